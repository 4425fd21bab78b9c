//! What other machines get of the main line, and what it learns of them: signed states, as streams of what is new.
//!
//! A machine asks another one for its *head*, the state of its main line as it is, and says which of the earlier heads of
//! that machine it has; what comes is what the head has beyond the latest of those. A head that has come is merged like
//! any other state.
//!
//! What always holds:
//! - A head is learned only from the machine that signed it, and only when all that it names is here, durable and sound.
//! - The heads that two machines may go on from are kept from collections on both, across restarts.

use std::collections::BTreeMap;
use std::io::{BufReader, BufWriter, Read, Write};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::causal::VersionVector;
use crate::id::{GlyphId, S8Id};
use crate::identity::NodePublicKey;
use crate::meta::{Frozen, Roots};
use crate::namespace::tables::{Rows, Table, malformed};
use crate::snapshot::stream::{self, Base, Header, Reader, Writer};
use crate::snapshot::{Record, SealedRecord, transfer};
use crate::store::StoreError;
use crate::time::AHEAD_MS_MAX;

use super::LocalVolume;
use super::merge::{MergeError, MergeOptions, Merged, Source};
use super::state::local_key;
use super::transfer::{Tell, TransferError, go_on};

const BUFFER_BYTES: usize = 1 << 20;
/// The label of the records of heads.
const LABEL: &str = "head";
/// Local rows: the key of a node -> the head that it was last given, and the one that was last learned from it.
const GIVEN: u8 = b'w';
pub(super) const LEARNED: u8 = b'q';

/// A state of the main line of some machine, signed by it.
#[derive(Clone, Debug)]
pub struct Head {
    sealed: SealedRecord,
    /// Keeps it from collections.
    _kept: Arc<Roots>,
}

impl Head {
    pub fn id(&self) -> S8Id {
        self.sealed.id()
    }

    /// What is said of the state, and what it is called.
    pub fn record(&self) -> &Record {
        &self.sealed.record
    }

    pub fn context(&self) -> &VersionVector {
        &self.record().context
    }

    pub(super) fn roots(&self) -> &Roots {
        &self.sealed.record.roots
    }

    /// What the state is called: see `Record::root`.
    pub fn root(&self) -> [u8; 32] {
        self.sealed.record.root()
    }
}

/// The heads that this machine and others may go on from.
#[derive(Default)]
pub(super) struct Peers {
    /// The head of this machine that was asked for last.
    last: Mutex<Option<Head>>,
    given: Mutex<BTreeMap<NodePublicKey, Head>>,
    learned: Mutex<BTreeMap<NodePublicKey, Head>>,
}

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("its state is signed by another node")]
    OtherSigner,
    #[error("its clock is {0} seconds ahead of the one here")]
    ClockAhead(u64),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error(transparent)]
    Merge(#[from] MergeError),
}

impl From<StoreError> for PeerError {
    fn from(error: StoreError) -> Self {
        Self::Merge(error.into())
    }
}

impl From<stream::StreamError> for PeerError {
    fn from(error: stream::StreamError) -> Self {
        Self::Transfer(error.into())
    }
}

impl From<crate::volume::VolumeError> for PeerError {
    fn from(error: crate::volume::VolumeError) -> Self {
        Self::Merge(error.into())
    }
}

pub type Result<T> = std::result::Result<T, PeerError>;

impl LocalVolume {
    /// The state of the main line as it is. What was closed is in it.
    pub fn head(&self) -> Result<Head> {
        let mut last = self.peers.last.lock();
        self.publish_closed().map_err(MergeError::from)?;
        if let Some(head) = &*last
            && *head.context() == self.state.read().context
        {
            return Ok(head.clone());
        }
        let Source { cut, authors, _kept, .. } = self.line_as_source(self)?;
        let before = last.as_ref().map(|head| &head.sealed.record);
        let sealed = self.seal_state(&cut, authors, Vec::new(), before, LABEL).map_err(MergeError::from)?;
        let head = Head { sealed, _kept };
        *last = Some(head.clone());
        Ok(head)
    }

    fn frozen_head(&self, head: &Head) -> Frozen {
        Frozen::new(self.nodes.clone(), head.sealed.record.roots.clone())
    }

    /// What this machine knows.
    pub fn context(&self) -> VersionVector {
        self.state.read().context.clone()
    }

    /// The same, as far as the kernel has heard of it: whoever looks at the files now sees all of that.
    pub fn visible_context(&self) -> VersionVector {
        let _nothing_is_half_shown = self.showing.write();
        self.context()
    }

    /// The heads of a peer that are here, for it to go on from.
    pub fn learned_from(&self, peer: &NodePublicKey) -> Vec<S8Id> {
        self.peers.learned.lock().get(peer).map(Head::id).into_iter().collect()
    }

    /// Writes what a head has beyond the one of those in `known` that the peer was given last. Says how many bytes.
    pub fn give(
        &self,
        peer: &NodePublicKey,
        head: &Head,
        known: &[S8Id],
        out: &mut dyn Write,
        tell: Tell<'_>,
    ) -> Result<u64> {
        let base = self.peers.given.lock().get(peer).filter(|given| known.contains(&given.id())).cloned();
        let before = base.as_ref().map(|base| self.frozen_head(base));
        let base = base.map(|base| Base { id: base.id(), name: LABEL.into() });
        let header = Header { sealed: head.sealed.clone(), base };
        let out = BufWriter::with_capacity(BUFFER_BYTES, out);
        let mut writer = Writer::begin(out, &header)?;
        let after = self.frozen_head(head);
        let tell = &mut |bytes| go_on(tell, bytes);
        let read = &|kind, id: &GlyphId| self.stored_anywhere(kind, id);
        transfer::export((&self.store, read), before.as_ref(), &after, None, &mut writer, tell)?;
        let bytes = writer.bytes() + stream::END_BYTES;
        writer.finish()?;
        Ok(bytes)
    }

    /// The peer has this head now: what it gets next is told as a difference to that.
    pub fn was_given(&self, peer: &NodePublicKey, head: &Head) -> Result<()> {
        self.remember(GIVEN, peer, head)?;
        self.peers.given.lock().insert(*peer, head.clone());
        Ok(())
    }

    fn remember(&self, about: u8, peer: &NodePublicKey, head: &Head) -> Result<()> {
        let row = (local_key(about, &peer.0), Some(head.sealed.encode()));
        self.state.write().commit_local(vec![row], self.env.now(), &self.journal)?;
        Ok(())
    }

    /// Takes the head of a peer out of a stream, and merges it.
    pub fn learn(&self, peer: &NodePublicKey, input: impl Read, tell: Tell<'_>) -> Result<Merged> {
        let (header, mut reader) = Reader::open(BufReader::with_capacity(BUFFER_BYTES, input))?;
        let Header { sealed, base } = header;
        let record = &sealed.record;
        if record.author.node != *peer {
            return Err(PeerError::OtherSigner);
        }
        if record.volume != self.volume_id(&self.state.read()).map_err(MergeError::from)? {
            return Err(MergeError::OtherVolume(record.volume).into());
        }
        let ahead_ms = record.theta.hlc.millis().saturating_sub(self.env.now().millis());
        if ahead_ms > AHEAD_MS_MAX {
            return Err(PeerError::ClockAhead(ahead_ms / 1000));
        }
        let base = match base {
            None => None,
            Some(base) => {
                let known = self.peers.learned.lock().get(peer).filter(|known| known.id() == base.id).cloned();
                Some(known.ok_or(TransferError::MissingBase(base))?)
            }
        };
        let before = base.as_ref().map(|base| self.frozen_head(base));
        let merged = {
            let _hold = self.store.hold();
            let after = Frozen::new(self.nodes.clone(), record.roots.clone());
            let tell = &mut |bytes| go_on(tell, bytes);
            transfer::import(&self.store, record, before.as_ref(), &after, &mut reader, tell)?;
            // It is kept as long as something holds it; what it has is not held any more after this block.
            self.in_use.keep(&record.roots)
        };
        let head = Head { sealed: sealed.clone(), _kept: merged.clone() };
        let (cut, authors) = (record.cut(), record.authors.clone());
        let source = Source { cut, authors, id: Some(sealed.id()), _kept: merged };
        let outcome = self.merge_source(&source, &MergeOptions::default())?;
        self.remember(LEARNED, peer, &head)?;
        self.peers.learned.lock().insert(*peer, head);
        Ok(outcome)
    }

    /// Finds the heads that were kept when the volume was closed.
    pub(super) fn load_peers(&self) -> std::result::Result<(), StoreError> {
        for (about, heads) in [(GIVEN, &self.peers.given), (LEARNED, &self.peers.learned)] {
            for (rest, value) in self.state.read().with_prefix(Table::Local, &[about])? {
                let bad = || malformed("head", &rest, crate::codec::DecodeError::NotCanonical("the head of a peer"));
                let node = NodePublicKey(<[u8; 32]>::try_from(&rest[..]).map_err(|_| bad())?);
                let sealed = SealedRecord::decode(&value).map_err(|_| bad())?;
                let _kept = self.in_use.keep(&sealed.record.roots);
                heads.lock().insert(node, Head { sealed, _kept });
            }
        }
        Ok(())
    }
}
