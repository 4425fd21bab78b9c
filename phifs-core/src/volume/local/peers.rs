//! What other machines get of the main line, and what it learns of them: signed states, and the glyphs that these name.
//!
//! A machine asks another one for its *head*, the state of its main line as it is. Then it asks that one, or anybody, for
//! the nodes below the head that it does not have, and for the contents that are to be here; and merges the head like
//! any other state.
//!
//! What always holds: a head is learned only from the machine that signed it, and only when all that is to be here of what
//! it names is here, durable and sound.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::causal::VersionVector;
use crate::id::S8Id;
use crate::identity::NodePublicKey;
use crate::meta::{Frozen, Roots};
use crate::snapshot::pull::{Ask, Pull, PullError};
use crate::snapshot::record::RecordError;
use crate::snapshot::{Record, SealedRecord};
use crate::store::StoreError;
use crate::time::AHEAD_MS_MAX;

use super::LocalVolume;
use super::merge::{MergeError, MergeOptions, Merged, Source};
use super::transfer::{Tell, TransferError, go_on};

/// The label of the records of heads.
const LABEL: &str = "head";

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

    /// The bytes that somebody learns it from.
    pub fn to_bytes(&self) -> Bytes {
        self.sealed.encode().into()
    }

    /// What the state is called: see `Record::root`.
    pub fn root(&self) -> [u8; 32] {
        self.sealed.record.root()
    }
}

/// The head of this machine that was asked for last.
#[derive(Default)]
pub(super) struct LastHead(Mutex<Option<Head>>);

#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error("its state is signed by another node")]
    OtherSigner,
    #[error("its clock is {0} seconds ahead of the one here")]
    ClockAhead(u64),
    #[error("its state makes no sense: {0}")]
    Record(#[from] RecordError),
    #[error(transparent)]
    Pull(#[from] PullError),
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

impl From<crate::volume::VolumeError> for PeerError {
    fn from(error: crate::volume::VolumeError) -> Self {
        Self::Merge(error.into())
    }
}

pub type Result<T> = std::result::Result<T, PeerError>;

impl LocalVolume {
    /// The state of the main line as it is. What was closed is in it.
    pub fn head(&self) -> Result<Head> {
        let mut last = self.head.0.lock();
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

    /// What this machine knows.
    pub fn context(&self) -> VersionVector {
        self.state.read().context.clone()
    }

    /// The same, as far as the kernel has heard of it: whoever looks at the files now sees all of that.
    pub fn visible_context(&self) -> VersionVector {
        let _nothing_is_half_shown = self.showing.write();
        self.context()
    }

    /// Takes in the head of a peer, given its bytes, and merges it.
    pub fn learn(&self, peer: &NodePublicKey, head: &[u8], ask: Ask<'_>, tell: Tell<'_>) -> Result<Merged> {
        let sealed = SealedRecord::decode(head)?;
        let record = &sealed.record;
        check_origin(record, peer, self.env.now().millis())?;
        if record.volume != self.volume_id(&self.state.read()).map_err(MergeError::from)? {
            return Err(MergeError::OtherVolume(record.volume).into());
        }
        let own = self.line_as_source(self)?;
        let before = Frozen::new(self.nodes.clone(), own.cut.roots.clone());
        let after = Frozen::new(self.nodes.clone(), record.roots.clone());
        let merged = {
            let _hold = self.store.hold();
            let progress = &mut |bytes| go_on(tell, bytes);
            let mut pull = Pull::new(&self.store, ask, progress);
            pull.nodes(&before, &record.roots)?;
            pull.contents(&before, record, &after, &|part, id| self.is_wanted_here(part, id))?;
            self.store.sync()?;
            // It is kept as long as something holds it; what it has is not held any more after this block.
            self.in_use.keep(&record.roots)
        };
        let (cut, authors) = (record.cut(), record.authors.clone());
        let source = Source { cut, authors, id: Some(sealed.id()), _kept: merged };
        Ok(self.merge_source(&source, &MergeOptions::default())?)
    }
}

/// A head is believed of its signer alone, and only if it is not of the future.
pub(super) fn check_origin(record: &Record, peer: &NodePublicKey, now_ms: u64) -> Result<()> {
    if record.author.node != *peer {
        return Err(PeerError::OtherSigner);
    }
    let ahead_ms = record.theta.hlc.millis().saturating_sub(now_ms);
    if ahead_ms > AHEAD_MS_MAX { Err(PeerError::ClockAhead(ahead_ms / 1000)) } else { Ok(()) }
}
