//! Who else has what durably, and waiting for it.
//!
//! What always holds: nobody is taken to hold anything but by its own signed word, and that word is given only after the
//! disk has confirmed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::causal::VersionVector;
use crate::id::Dot;
use crate::identity::{BadSignature, NodePublicKey};
use crate::ssep::Receipt;
use crate::volume::Result;

use super::LocalVolume;
use super::snapshots::SnapshotError;

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

    /// How many other members hold this operation durably, and what it names.
    pub fn holders_of(&self, dot: Dot) -> Result<usize> {
        let held = self.receipts.held.lock();
        let members = self.members()?;
        Ok(members.iter().filter(|(key, _)| held.get(key).is_some_and(|held| held.contains(dot))).count())
    }

    /// Up to where somebody waits for the receipts of others.
    pub fn urgent(&self) -> VersionVector {
        self.receipts.urgent.lock().clone()
    }

    /// Waits until so many other members hold this operation durably. Says how many do.
    pub fn wait_for_holders(&self, dot: Dot, wanted: usize, patience: Duration) -> Result<usize> {
        let until = Instant::now() + patience;
        let mut found = self.holders_of(dot)?;
        if found >= wanted {
            return Ok(found);
        }
        self.receipts.urgent.lock().join(&VersionVector::new().with(dot.author, dot.n));
        self.state.read().tell_change();
        while found < wanted {
            let mut held = self.receipts.held.lock();
            if self.receipts.more.wait_until(&mut held, until).timed_out() {
                break;
            }
            drop(held);
            found = self.holders_of(dot)?;
        }
        self.holders_of(dot)
    }
}
