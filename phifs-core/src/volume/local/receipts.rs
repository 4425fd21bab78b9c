//! Who else has what durably, and waiting for it.
//!
//! What always holds: nobody is taken to hold anything but by its own signed word, and that word is given only after the
//! disk has confirmed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::causal::VersionVector;
use crate::content::Content;
use crate::content::manifest::visit_glyphs;
use crate::durability::{Degraded, Durability};
use crate::id::{DirId, Dot, GlyphId, InodeId};
use crate::identity::{BadSignature, NodePublicKey};
use crate::namespace::row::Closure;
use crate::namespace::tables::Rows as _;
use crate::namespace::view::{self, Stat};
use crate::placement::Layout;
use crate::registry::Member;
use crate::ssep::Receipt;
use crate::volume::{FileKind, Result, VolumeError};

use super::LocalVolume;
use super::attrs::said_above;
use super::collect::CollectReport;
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
    held: Mutex<BTreeMap<NodePublicKey, Receipt>>,
    more: Condvar,
    /// Up to where somebody waits.
    urgent: Mutex<VersionVector>,
    /// The layout by which everything is here that is to be here.
    complete: Mutex<Option<[u8; 32]>>,
}

impl LocalVolume {
    /// Makes all that is known durable, and vouches for it. Nothing, as long as not all is here that the layout places here.
    pub fn receipt(&self) -> std::result::Result<Option<Receipt>, SnapshotError> {
        let (context, layout) = (self.context(), self.layout());
        let hash = hash_of(layout.as_deref());
        if self.is_awaited() || layout.is_some() && *self.receipts.complete.lock() != Some(hash) {
            return Ok(None);
        }
        self.commit_journal()?;
        Ok(Some(Receipt::sign(&self.key, &self.id()?, context, hash)))
    }

    /// The glyphs that are to be here and are not, as `missing` tells them. When there are none, this node vouches for what it
    /// has from then on.
    pub fn look_for_missing(&self) -> Result<Vec<(GlyphId, u64)>> {
        let layout = self.layout();
        let missing = self.missing()?;
        if missing.is_empty() {
            *self.receipts.complete.lock() = Some(hash_of(layout.as_deref()));
            self.nothing_is_awaited(layout.as_deref())?;
        }
        Ok(missing)
    }

    /// Remembers the word of another member.
    pub fn take_receipt(&self, node: NodePublicKey, receipt: Receipt) -> std::result::Result<(), BadSignature> {
        let Ok(volume) = self.id() else { return Ok(()) };
        receipt.verify(&node, &volume)?;
        self.receipts.held.lock().insert(node, receipt);
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
        let have =
            if is_published && dot.n > 0 { self.wait_for_machines(id, dot, wanted, degraded.patience())? } else { 1 };
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
    pub(super) fn achieved(&self, version: Dot, content: &Content) -> Result<(usize, Durability)> {
        let members = self.members()?;
        let machines = self.holding(&self.receipts.held.lock(), &members, version, content)?;
        Ok((machines, Durability::achieved(machines, self.machines()?)))
    }

    /// What another member has said to hold.
    pub fn held_by(&self, node: NodePublicKey) -> VersionVector {
        self.receipts.held.lock().get(&node).map(|receipt| receipt.context.clone()).unwrap_or_default()
    }

    /// Asks the others to say soon whether they hold all of this.
    pub fn ask_for_receipts(&self, context: &VersionVector) {
        self.receipts.urgent.lock().join(context);
        self.state.read().tell_change();
    }

    /// A collection that gives up, as far as the cache is too large, what all other machines that are to hold it have
    /// vouched for.
    pub fn collect_confirmed(&self, min_live_ratio: f64, progress: &dyn Fn(u64)) -> Result<CollectReport> {
        let Some(layout) = self.layout() else { return self.collect(min_live_ratio, progress) };
        let (context, copies, hash) = (self.context(), self.settings.read().copies, layout.hash());
        let vouches = |receipt: &Receipt| receipt.layout == hash && receipt.context.covers(&context);
        let vouching: BTreeSet<NodePublicKey> =
            self.receipts.held.lock().iter().filter(|(_, receipt)| vouches(receipt)).map(|(key, _)| *key).collect();
        let confirmed = |id: &GlyphId| layout.holders(id, copies).iter().all(|key| vouching.contains(key));
        self.collect_cached(&confirmed, min_live_ratio, progress)
    }

    /// How many machines hold this operation durably, and each part of the content that it names; this one counts.
    fn holding(
        &self,
        held: &BTreeMap<NodePublicKey, Receipt>,
        members: &[(NodePublicKey, Member)],
        dot: Dot,
        content: &Content,
    ) -> Result<usize> {
        let (layout, copies) = (self.layout(), self.settings.read().copies);
        let hash = hash_of(layout.as_deref());
        let own = self.key.public();
        let vouches = |key: &NodePublicKey| {
            *key == own || held.get(key).is_some_and(|word| word.layout == hash && word.context.contains(dot))
        };
        let mut least = members.iter().filter(|(key, _)| vouches(key) && *key != own).count() + 1;
        if let Some(layout) = layout {
            visit_glyphs(&*self.store, content, &mut |_, id| {
                let holders = layout.holders(id, copies);
                // What is written here is here, whoever is to hold it.
                let others = holders.iter().filter(|key| **key != own && vouches(key)).count();
                least = least.min(others + 1);
                false
            })?;
        }
        Ok(least.min(usize::from(copies).max(1)))
    }

    /// Up to where somebody waits for the receipts of others.
    pub fn urgent(&self) -> VersionVector {
        self.receipts.urgent.lock().clone()
    }

    /// Waits until so many machines hold this operation and the file as it is now. Says how many do.
    fn wait_for_machines(&self, id: InodeId, dot: Dot, wanted: usize, patience: Duration) -> Result<usize> {
        let late_ms = self.env.now().millis().saturating_add(patience.as_millis() as u64);
        let content = {
            let state = self.state.read();
            let row = state.inode(id)?;
            row.and_then(|row| Stat::of(&row).version).map_or(Content::Empty, |(_, version)| version.content)
        };
        let mut is_asked = false;
        loop {
            let members = self.members()?;
            let mut held = self.receipts.held.lock();
            let found = self.holding(&held, &members, dot, &content)?;
            let left = Duration::from_millis(late_ms.saturating_sub(self.env.now().millis()));
            if found >= wanted || left.is_zero() {
                return Ok(found);
            }
            if !is_asked {
                is_asked = true;
                drop(held);
                self.ask_for_receipts(&VersionVector::new().with(dot.author, dot.n));
            } else if self.receipts.more.wait_for(&mut held, left).timed_out() {
                return self.holding(&held, &members, dot, &content);
            }
        }
    }
}

/// Names a layout; nothing but zeros for none.
fn hash_of(layout: Option<&Layout>) -> [u8; 32] {
    layout.map_or([0; 32], Layout::hash)
}
