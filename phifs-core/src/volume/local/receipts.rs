//! Who else has what durably, and waiting for it.
//!
//! What always holds: nobody is taken to hold anything but by its own signed word, and that word is given only after the
//! disk has confirmed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::causal::VersionVector;
use crate::durability::{Degraded, Durability};
use crate::id::{DirId, Dot, InodeId};
use crate::identity::{BadSignature, NodePublicKey};
use crate::namespace::row::Closure;
use crate::namespace::tables::Rows as _;
use crate::namespace::view;
use crate::registry::Member;
use crate::ssep::Receipt;
use crate::volume::{FileKind, Result, VolumeError};

use super::LocalVolume;
use super::attrs::said_above;
use super::publication::Publication;
use super::snapshots::SnapshotError;

/// The attribute of a directory that says what syncs below it wait for. Of a file it tells what was reached.
pub(super) const DURABILITY: &[u8] = b"user.phi.durability";
/// How often it is tried to publish a file that somebody writes to.
const PUBLISH_TRIES: usize = 8;

/// What the other members have said to hold.
#[derive(Default)]
pub(super) struct Receipts {
    /// The latest word of each.
    held: Mutex<BTreeMap<NodePublicKey, VersionVector>>,
    more: Condvar,
    /// Up to where somebody waits.
    urgent: Mutex<VersionVector>,
}

impl LocalVolume {
    /// Makes all that is known durable, and vouches for it.
    pub fn receipt(&self) -> std::result::Result<Receipt, SnapshotError> {
        let context = self.context();
        self.commit_journal()?;
        Ok(Receipt::sign(&self.key, &self.id()?, context))
    }

    /// Remembers the word of another member.
    pub fn take_receipt(&self, node: NodePublicKey, receipt: &Receipt) -> std::result::Result<(), BadSignature> {
        let Ok(volume) = self.id() else { return Ok(()) };
        receipt.verify(&node, &volume)?;
        self.receipts.held.lock().entry(node).or_default().join(&receipt.context);
        self.receipts.more.notify_all();
        Ok(())
    }

    /// What a sync of this file or directory waits for: what the nearest directory says, and else the volume.
    pub(super) fn durability_of(&self, id: InodeId) -> Result<Durability> {
        let state = self.state.read();
        if !state.is_replicated() {
            return Ok(Durability::Local);
        }
        let Some(row) = state.inode(id)? else { return Ok(self.settings.read().durability) };
        let dir = match row.kind() {
            FileKind::Directory => Some(DirId(id.0)),
            kind => view::names_of(&*state, id, kind)?.into_iter().next().map(|(dir, _)| dir),
        };
        let said = dir.map(|dir| said_above(&state, dir, DURABILITY)).transpose()?.flatten();
        let said = said.and_then(|said| std::str::from_utf8(&said).ok()?.parse().ok());
        Ok(said.unwrap_or_else(|| self.settings.read().durability))
    }

    /// The second half of a sync, if more than this machine is to hold the file: it is published, and others have to say
    /// that they hold it.
    pub(super) fn sync_elsewhere(&self, id: InodeId) -> Result<()> {
        let wanted = self.durability_of(id)?;
        if wanted == Durability::Local {
            return Ok(());
        }
        let is_published = self.publish_for_others(id)?;
        let dot = {
            let state = self.state.read();
            Dot { author: state.author_id(), n: state.context.get(state.author_id()) }
        };
        let (wanted, degraded) = (wanted.machines(self.machines()?), self.settings.read().fsync_degraded);
        let have = if is_published && dot.n > 0 {
            1 + self.wait_for_holders(dot, wanted - 1, degraded.patience())?
        } else {
            1
        };
        if have >= wanted || degraded == Degraded::Local {
            Ok(())
        } else {
            Err(VolumeError::NotEnoughCopies { have, wanted })
        }
    }

    /// Says whether the bytes are in a version now.
    fn publish_for_others(&self, id: InodeId) -> Result<bool> {
        for _ in 0..PUBLISH_TRIES {
            let Some(user) = self.known(id) else { return Ok(true) };
            let closure = if user.cell.has_writers() { Closure::IdleFlush } else { Closure::Close };
            if self.publish(&user.cell, closure)? != Publication::Changing {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How many machines are to hold each file.
    fn machines(&self) -> Result<usize> {
        Ok(self.members()?.len().min(usize::from(self.settings.read().copies)).max(1))
    }

    /// How many machines hold a version durably, as far as is known here, and what that amounts to.
    pub(super) fn achieved(&self, version: Dot) -> Result<(usize, Durability)> {
        let machines = 1 + self.holders_of(version)?;
        Ok((machines, Durability::achieved(machines, self.machines()?)))
    }

    /// What another member has said to hold.
    pub fn held_by(&self, node: NodePublicKey) -> VersionVector {
        self.receipts.held.lock().get(&node).cloned().unwrap_or_default()
    }

    /// Asks the others to say soon whether they hold all of this.
    pub fn ask_for_receipts(&self, context: &VersionVector) {
        self.receipts.urgent.lock().join(context);
        self.state.read().tell_change();
    }

    /// How many other members hold this operation durably, and what it names.
    pub fn holders_of(&self, dot: Dot) -> Result<usize> {
        let members = self.members()?;
        let held = self.receipts.held.lock();
        Ok(holders(&held, &members, dot))
    }

    /// Up to where somebody waits for the receipts of others.
    pub fn urgent(&self) -> VersionVector {
        self.receipts.urgent.lock().clone()
    }

    /// Waits until so many other members hold this operation durably. Says how many do.
    pub fn wait_for_holders(&self, dot: Dot, wanted: usize, patience: Duration) -> Result<usize> {
        let until = Instant::now() + patience;
        if self.holders_of(dot)? < wanted {
            self.ask_for_receipts(&VersionVector::new().with(dot.author, dot.n));
        }
        loop {
            let members = self.members()?;
            let mut held = self.receipts.held.lock();
            let found = holders(&held, &members, dot);
            if found >= wanted || self.receipts.more.wait_until(&mut held, until).timed_out() {
                return Ok(holders(&held, &members, dot));
            }
        }
    }
}

fn holders(held: &BTreeMap<NodePublicKey, VersionVector>, members: &[(NodePublicKey, Member)], dot: Dot) -> usize {
    members.iter().filter(|(key, _)| held.get(key).is_some_and(|held| held.contains(dot))).count()
}
