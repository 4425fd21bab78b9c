//! Groups of operations that come from other machines, and those that go there.
//!
//! What always holds:
//! - A group is taken in as a whole, after everything that its author knew, and only if its author signed it.
//! - What the journal says of it is the group itself. Taking it in is a pure function of the tables and the group, so
//!   replaying does the same again.
//! - A group is in the log of operations before it is in the tables, so nobody is given a later one without it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::causal::VersionVector;
use crate::codec::{self, DecodeError, Encode, Reader};
use crate::id::{AuthorId, Dot, GlyphId};
use crate::identity::NodePublicKey;
use crate::meta::{Journal, Lsn};
use crate::namespace::suspect::Suspect;
use crate::namespace::{Effect, Op};
use crate::oplog::{OplogError, SealedGroup};
use crate::registry::Key;
use crate::store::StoreError;
use crate::time::{AHEAD_MS_MAX, Hlc, Timestamp};
use crate::volume::VolumeError;

use super::LocalVolume;
use super::history::Retention;
use super::join::Joined;
use super::merge::MergeError;
use super::state::State;

/// The kind of the journal record of a group.
pub const RECORD_GROUP: u8 = 3;

const VERSION: u8 = 1;
/// How often a group is tried that takes the name from a file that is being written.
const TRIES: usize = 3;

/// What became of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// So many of its operations were new.
    Applied(u64),
    Known,
    /// Its author knew more than is known here: it can be taken in after that.
    Early,
    /// It was made so many milliseconds after what is the present here.
    Future(u64),
}

/// Why a group is never taken in.
#[derive(Debug, thiserror::Error)]
pub enum GroupRefused {
    #[error("its author {0} is no member, and never was")]
    Stranger(NodePublicKey),
    #[error("an operation of it: {0}")]
    Malformed(#[from] DecodeError),
    #[error("operation {0} names what its author cannot have seen, or is out of time")]
    Impossible(u64),
    #[error(transparent)]
    Log(#[from] OplogError),
    #[error(transparent)]
    Merge(#[from] MergeError),
}

impl From<StoreError> for GroupRefused {
    fn from(error: StoreError) -> Self {
        Self::Merge(error.into())
    }
}

impl From<VolumeError> for GroupRefused {
    fn from(error: VolumeError) -> Self {
        Self::Merge(error.into())
    }
}

impl From<Suspect> for GroupRefused {
    fn from(error: Suspect) -> Self {
        Self::Merge(error.into())
    }
}

pub type Result<T> = std::result::Result<T, GroupRefused>;

/// What somebody lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// In an order in which they can be taken in. Some may be known in part.
    Groups(Vec<SealedGroup>),
    /// The log does not have all of it: states have to be compared.
    State,
}

/// A group on its way into the tables.
struct Incoming<'a> {
    group: &'a SealedGroup,
    time: Timestamp,
    retention: Retention,
}

impl Incoming<'_> {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.put_time(self.time);
        self.retention.encode(&mut out);
        out.put_bytes(self.group.encoded());
        out
    }
}

/// Its operations from number `from` on.
pub(super) fn operations(group: &SealedGroup, from: u64) -> codec::Result<Vec<Op>> {
    let author = group.author_id();
    let new = group.ops().filter(|(n, _)| *n >= from);
    new.map(|(n, bytes)| Op::decode(Dot { author, n }, &bytes)).collect()
}

/// How long the versions are that it makes from operation `from` on, and when the first of these was made.
pub(super) fn weigh(group: &SealedGroup, from: u64) -> codec::Result<(u64, Option<Hlc>)> {
    let ops = operations(group, from)?;
    let mut bytes = 0;
    for op in &ops {
        for effect in &op.effects {
            let Effect::Inode(effect) = effect else { continue };
            bytes += effect.version.as_ref().map_or(0, |(version, _)| version.content.len_bytes());
        }
    }
    Ok((bytes, ops.iter().map(|op| op.hlc).min()))
}

impl State {
    fn take_group(&mut self, group: &SealedGroup, joined: Joined) {
        self.take_joined(&[*group.author()], joined);
        self.context = std::mem::take(&mut self.context).with(group.author_id(), group.last());
        self.hlc = self.hlc.max(group.hlc().1);
        self.count_merge();
        self.tell_change();
    }

    fn commit_group(&mut self, incoming: &Incoming<'_>, joined: Joined, journal: &Journal) {
        journal.append(RECORD_GROUP, &incoming.encode());
        self.take_group(incoming.group, joined);
    }

    /// Takes a group in again that is found in the journal, unless the tables have it already.
    pub fn replay_group(&mut self, lsn: Lsn, payload: &[u8]) -> std::result::Result<(), StoreError> {
        let record = |source| StoreError::Malformed { what: format!("journal record {}", lsn.0), source };
        let mut reader = Reader::new(payload);
        let mut decode = || -> codec::Result<_> {
            reader.format("the record of a group", VERSION)?;
            Ok((reader.time()?, Retention::decode(&mut reader)?, reader.bytes(reader.remaining())?))
        };
        let (time, retention, bytes) = decode().map_err(record)?;
        let group = SealedGroup::parse(bytes::Bytes::copy_from_slice(bytes))
            .map_err(|_| record(DecodeError::NotCanonical("a group")))?;
        let known = self.context.get(group.author_id());
        if group.last() <= known {
            return Ok(());
        }
        let ops = operations(&group, known + 1).map_err(record)?;
        let joined = self.rehearse_ops(&ops, group.context(), time, retention).map_err(|error| match error {
            Suspect::Store(error) => error,
            error => unreachable!("it was checked when it was taken in: {error}"),
        })?;
        self.take_group(&group, joined);
        Ok(())
    }
}

impl LocalVolume {
    /// From now on told whenever there are more operations, of whomever. It must not call back, and not wait.
    pub fn set_on_change(&self, tell: Option<Arc<dyn Fn() + Send + Sync>>) {
        self.state.write().on_change = tell;
    }

    /// Another machine hears of what is new from now on (1), or does not any more (-1).
    pub fn count_follower(&self, by: isize) {
        self.followers.fetch_add(by as usize, Ordering::Relaxed);
    }

    /// Takes in a group from elsewhere, if its time has come. It is seen by everybody when this returns, and durable after
    /// the next sync.
    pub fn take_group(&self, group: &SealedGroup) -> Result<Taken> {
        let author = group.author();
        if !self.has_met(author.node)? {
            return Err(GroupRefused::Stranger(author.node));
        }
        // While the journal cannot be written, only so much is taken in.
        self.check_writable()?;
        let ahead_ms = group.hlc().1.millis().saturating_sub(self.env.now().millis());
        if ahead_ms > AHEAD_MS_MAX {
            return Ok(Taken::Future(ahead_ms));
        }
        for tried in 1.. {
            match self.try_take_group(group) {
                // What was written becomes a version, which keeps the name.
                Err(GroupRefused::Merge(MergeError::BeingWritten(_))) if tried < TRIES => self.publish_all()?,
                other => return other,
            }
        }
        unreachable!("the last try returns")
    }

    fn try_take_group(&self, group: &SealedGroup) -> Result<Taken> {
        let id = group.author_id();
        let _showing = self.showing.read();
        let incoming = Incoming { group, time: self.env.now(), retention: self.retention() };
        let (told, operations) = {
            let mut state = self.state.write();
            let known = state.context.get(id);
            if group.last() <= known {
                return Ok(Taken::Known);
            }
            if id == state.author_id() {
                // It was made here, by a run of which nothing is left.
                self.change_author(&mut state)?;
            }
            if !is_ready(&state.context, group) {
                return Ok(Taken::Early);
            }
            let ops = operations(group, known + 1)?;
            if let Some(op) = ops.iter().find(|op| !is_possible(op, group)) {
                return Err(GroupRefused::Impossible(op.dot.n));
            }
            let joined = state.rehearse_ops(&ops, group.context(), incoming.time, incoming.retention)?;
            match self.oplog.append(group) {
                Ok(_) => {}
                Err(error @ OplogError::Forked { .. }) => return Err(error.into()),
                // It is a cache; peers can compare states.
                Err(error) => tracing::error!(%error, "the operation log cannot be written"),
            }
            let commit = |state: &mut State, joined| state.commit_group(&incoming, joined, &self.journal);
            (self.take_in(&mut state, joined, commit)?, ops.len() as u64)
        };
        self.show(&told)?;
        Ok(Taken::Applied(operations))
    }

    /// The glyphs that a group needs and that are not here: see `missing_in`.
    pub fn missing_in_group(&self, group: &SealedGroup) -> Result<Vec<GlyphId>> {
        let known = self.state.read().context.get(group.author_id());
        let mut missing = Vec::new();
        for op in operations(group, known + 1)? {
            missing.extend(self.missing_in(&op)?);
        }
        Ok(missing)
    }

    /// What somebody lacks who knows this, as far as it is by the authors that are asked for. It may be that there are
    /// operations that nobody has sealed yet.
    pub fn news(
        &self,
        known: &VersionVector,
        wanted: &dyn Fn(AuthorId) -> bool,
    ) -> std::result::Result<News, VolumeError> {
        let context = self.context();
        self.seal()?;
        if self.shares_out() {
            // Who hears of it may be none who fetches the bytes: a crash must not take them any more.
            self.commit_journal()?;
        }
        let lacks: Vec<_> = context.missing_from(known).filter(|(author, _)| wanted(*author)).collect();
        Ok(match self.oplog.ranges(&lacks) {
            Ok(Some(groups)) => News::Groups(groups),
            Ok(None) => News::State,
            Err(error) => {
                tracing::warn!(%error, "the operation log cannot be read; states are compared instead");
                News::State
            }
        })
    }

    /// Whether a node is a member, or was one: then what it made is believed.
    pub fn has_met(&self, node: NodePublicKey) -> std::result::Result<bool, VolumeError> {
        Ok(self.registry.read().entry(&Key::Node(node))?.is_some())
    }

    /// The node that an author is at.
    pub fn node_of(&self, author: AuthorId) -> Option<NodePublicKey> {
        self.state.read().author_of(author).map(|author| author.node)
    }
}

/// Whether everything is known that its author knew.
fn is_ready(context: &VersionVector, group: &SealedGroup) -> bool {
    let before = |(author, n)| {
        let needed = if author == group.author_id() { group.before().n } else { n };
        needed <= context.get(author)
    };
    group.context().iter().all(before)
}

fn is_possible(op: &Op, group: &SealedGroup) -> bool {
    let (first, last) = group.hlc();
    (first..=last).contains(&op.hlc) && op.names_only(|dot| group.context().contains(dot))
}
