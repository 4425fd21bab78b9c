//! The end of a membership: by the node itself, or by others.
//!
//! What always holds: whoever leaves by itself goes only when those who can be reached have everything, unless it is told
//! to go all the same. Whoever was removed is not heard any more by anybody who knows of it, and hears of it from the first
//! of them; it believes what is written of it in the registry, not what a peer says.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use phifs_core::causal::VersionVector;
use phifs_core::identity::NodePublicKey;
use phifs_core::ssep::MemberEntries;
use quinn::{Connection, ConnectionError};

use super::serve::REMOVED;
use super::{Net, Shared};
use crate::control::Progress;
use crate::failure::Failure;

/// How long to wait for somebody to be connected.
const REACH_TIME_MAX: Duration = Duration::from_secs(15);
/// How long to wait for somebody who is, while nothing moves.
const STALL_TIME_MAX: Duration = Duration::from_secs(60);
/// How long the others may take to hear that this node has left.
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

impl Net {
    /// Waits until all who are connected, and one at least, have said that they hold what this node knows now, and what was
    /// placed with it.
    pub fn drain(&self, progress: &mut dyn FnMut(Progress)) -> Result<(), Failure> {
        let target = self.shared.engine.publish_all()?;
        self.shared.engine.set_leaving(true)?;
        let drained = self.wait_until_held(&target, progress);
        if drained.is_err() {
            self.shared.engine.set_leaving(false)?;
        }
        drained
    }

    fn wait_until_held(&self, target: &VersionVector, progress: &mut dyn FnMut(Progress)) -> Result<(), Failure> {
        let (began, mut moved, mut last) = (Instant::now(), Instant::now(), u64::MAX);
        loop {
            let lacking = self.shared.lacking(target);
            let most = lacking.iter().copied().max();
            match most {
                Some(0) => return Ok(()),
                None if began.elapsed() > REACH_TIME_MAX => {
                    return Err(all_the_same(Failure::plain("no other member can be reached")));
                }
                _ => {}
            }
            let left = lacking.iter().sum();
            if left != last {
                (moved, last) = (Instant::now(), left);
            }
            if most.is_some() && moved.elapsed() > STALL_TIME_MAX {
                // One has everything, and will tell it to those who are slow.
                if lacking.contains(&0) {
                    return Ok(());
                }
                return Err(all_the_same(Failure::plain("no other member takes what only this one has")));
            }
            if self.shared.is_stopping() {
                return Err(Failure::plain("the daemon is going down"));
            }
            let done = lacking.iter().filter(|lacks| **lacks == 0).count() as u64;
            let doing = "waiting for the others to have everything:".to_owned();
            progress(Progress { doing, done, total: most.map(|_| lacking.len() as u64), unit: "members".to_owned() });
            thread::sleep(LOOK);
        }
    }

    /// From now on this node is no member. Says how many members have heard of it.
    pub fn leave(&self) -> Result<u64, Failure> {
        let (shared, own) = (&self.shared, self.shared.engine.node());
        let connections: Vec<Connection> = {
            let peers = shared.peers.lock();
            peers.values().filter_map(|peer| peer.connection()).collect()
        };
        shared.leaving.store(true, Ordering::Release);
        if let Err(failure) = shared.engine.remove_member(own) {
            shared.leaving.store(false, Ordering::Release);
            return Err(failure);
        }
        let until = Instant::now() + FAREWELL_TIME_MAX;
        let hung_up = |connection: &Connection| match connection.close_reason() {
            Some(ConnectionError::ApplicationClosed(close)) => close.error_code == REMOVED,
            _ => false,
        };
        while Instant::now() < until && connections.iter().any(|connection| connection.close_reason().is_none()) {
            thread::sleep(LOOK);
        }
        Ok(connections.iter().filter(|connection| hung_up(connection)).count() as u64)
    }

    /// The members may be others than before.
    pub fn members_changed(&self) {
        self.shared.members_changed.notify_one();
    }
}

fn all_the_same(failure: Failure) -> Failure {
    failure.hint(
        "see `phifs members`; phifs leave --force leaves without, and what only this machine has stays here alone",
    )
}

impl Shared {
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// How many operations of these each member does not hold who is connected.
    fn lacking(&self, target: &VersionVector) -> Vec<u64> {
        let peers = self.peers.lock();
        let connected = peers.values().filter(|peer| peer.state.lock().is_connected());
        connected.map(|peer| self.engine.lacks(peer.key, target)).collect()
    }

    /// Ends all conversations with a node that is no member any more.
    pub(super) fn shut_out(&self, key: &NodePublicKey) {
        let Some(peer) = self.peers.lock().remove(key) else { return };
        tracing::info!(node = %key, "a node is no member any more");
        for connection in peer.state.lock().served.drain(..) {
            connection.close(REMOVED, b"no member any more");
        }
    }

    /// Takes what a member has written of this node.
    pub(super) async fn hear_of_end(self: &Arc<Self>, mut entries: MemberEntries) {
        let own = self.engine.node();
        entries.retain(|(key, _)| *key == own);
        match self.blocking(move |engine| engine.take_member_entries(entries)).await {
            Ok(_) => self.members_changed.notify_one(),
            Err(error) => tracing::error!(%error, "cannot note what a member says of this node"),
        }
    }

    /// This node has heard that it is no member any more.
    pub(super) async fn was_removed(self: &Arc<Self>) {
        tracing::error!(
            "this node was removed from the members: it goes on alone. To come back: phifs down, then phifs join with a new \
             invitation"
        );
        if let Err(error) = self.blocking(|engine| engine.listen_at(None)).await {
            tracing::warn!(%error, "cannot note that this node listens no more");
        }
        self.endpoint.close(REMOVED, b"removed");
    }
}
