//! Snapshots leave in a stream, and come in one.
//!
//! What always holds:
//! - A snapshot from elsewhere gets its name only when everything that it needs is here, durable and sound, and only if
//!   somebody signed it who is known here. Before that, all that an import leaves is glyphs that nothing names.
//! - What an export reads, and what an import builds on, outlives collections until it ends.

use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::id::{GlyphId, S8Id};
use crate::identity::NodePublicKey;
use crate::meta::{Frozen, Roots};
use crate::registry::{Key, NamedSnapshot, check_name};
use crate::snapshot::stream::{self, Base, Header, Reader, StreamError, Writer};
use crate::snapshot::transfer::{self, Received};
use crate::snapshot::{Record, SealedRecord};
use crate::store::StoreError;
use crate::volume::VolumeError;

use super::LocalVolume;
use super::recover::OpenError;
use super::snapshots::SnapshotError;
use super::state::State;

const BUFFER_BYTES: usize = 1 << 20;
/// Shorter beginnings of a key could be met by chance.
const KEY_DIGITS_MIN: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("it is a snapshot of another volume, {}", hex(.0))]
    OtherVolume([u8; 16]),
    #[error("it is signed by node {}, which this volume does not know", hex(&.0.0))]
    UnknownSigner(NodePublicKey),
    #[error("{trusted:?} is not the beginning of the key of node {}, which signed it", hex(&signer.0))]
    OtherSigner { trusted: String, signer: NodePublicKey },
    /// It tells only what changed since that one.
    #[error("it builds on the snapshot {:?} ({}), which is not here", .0.name, .0.id)]
    MissingBase(Base),
    #[error("its record contradicts that of {0}, which it says came before it")]
    BadParent(S8Id),
    #[error("its clock is {0} s ahead of the one of this machine")]
    ClockAhead(u64),
    #[error("there is a volume in this store already")]
    HasVolume,
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl From<StoreError> for TransferError {
    fn from(error: StoreError) -> Self {
        Self::Stream(error.into())
    }
}

impl From<VolumeError> for TransferError {
    fn from(error: VolumeError) -> Self {
        Self::Snapshot(error.into())
    }
}

pub type Result<T> = std::result::Result<T, TransferError>;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// States that somebody reads for a while, named or not. A collection keeps them.
#[derive(Default)]
pub(super) struct InUse(Mutex<Vec<Weak<Roots>>>);

impl InUse {
    /// They are kept until the result is dropped. To be called before whatever names them now can go.
    pub fn keep(&self, roots: &Roots) -> Arc<Roots> {
        let roots = Arc::new(roots.clone());
        let mut all = self.0.lock();
        all.retain(|roots| roots.strong_count() > 0);
        all.push(Arc::downgrade(&roots));
        roots
    }

    pub fn all(&self) -> Vec<Roots> {
        self.0.lock().iter().filter_map(Weak::upgrade).map(Arc::unwrap_or_clone).collect()
    }
}

/// Hears how many bytes of a stream are done, and may break the work off.
pub type Tell<'a> = &'a dyn Fn(u64) -> ControlFlow<()>;

pub(super) fn go_on(tell: Tell<'_>, bytes: u64) -> stream::Result<()> {
    if tell(bytes).is_break() { Err(StreamError::BrokenOff) } else { Ok(()) }
}

/// Where an export goes.
pub enum Sink<'a> {
    /// What a stream that broke off has left here is gone on with.
    File(&'a mut dyn OutFile),
    Pipe(&'a mut dyn Write),
}

/// A file that can be read again, and cut.
pub trait OutFile: Read + Write + Seek {
    fn set_len(&mut self, len_bytes: u64) -> io::Result<()>;
}

/// What went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    pub name: String,
    pub id: S8Id,
    pub since: Option<String>,
    pub glyphs: u64,
    /// The length of the stream.
    pub bytes: u64,
    /// As much of that was there from an earlier try.
    pub resumed_bytes: u64,
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    pub name: String,
    pub id: S8Id,
    /// It had a name already. Whatever was missing or damaged of it has been stored again.
    pub was_here: bool,
    pub received: Received,
}

/// What an import may do.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Instead of the name that it was taken under.
    pub name: Option<String>,
    /// The beginning of the key of a node that is known from now on, if it is this one that signed.
    pub trust: Option<String>,
    /// It may have a name already, another one than this.
    pub under_any_name: bool,
    /// It may be of another volume.
    pub unrelated: bool,
}

impl LocalVolume {
    /// Writes a snapshot into a stream, or what it has and the snapshot `since` has not. `progress` hears of its length.
    pub fn export_snapshot(
        &self,
        name: &str,
        since: Option<&str>,
        sink: Sink<'_>,
        progress: Tell<'_>,
    ) -> Result<Exported> {
        let (name, sealed, _kept) = self.sealed_snapshot(name)?;
        let since = since.map(|since| self.sealed_snapshot(since)).transpose()?;
        let base = since.as_ref().map(|(name, sealed, _)| Base { id: sealed.id(), name: name.clone() });
        let after = Frozen::new(self.nodes.clone(), sealed.record.roots.clone());
        let before = since.as_ref().map(|(_, sealed, _)| Frozen::new(self.nodes.clone(), sealed.record.roots.clone()));
        let id = sealed.id();
        let header = Header { sealed, base };

        let mut resumed = None;
        let out: &mut dyn Write = match sink {
            Sink::Pipe(out) => out,
            Sink::File(file) => {
                let failed = StreamError::Write;
                file.rewind().map_err(failed)?;
                resumed = stream::look_for_rest(BufReader::with_capacity(BUFFER_BYTES, &mut *file), &header)?;
                let end = resumed.map_or(0, |rest| rest.len_bytes);
                file.set_len(end).map_err(failed)?;
                file.seek(SeekFrom::Start(end)).map_err(failed)?;
                file
            }
        };
        let mut exported = Exported {
            name,
            id,
            since: since.as_ref().map(|(name, ..)| name.clone()),
            glyphs: 0,
            bytes: 0,
            resumed_bytes: resumed.map_or(0, |rest| rest.len_bytes),
        };
        if let Some(rest) = resumed.filter(|rest| rest.complete) {
            (exported.glyphs, exported.bytes) = (rest.glyphs, rest.len_bytes);
            return Ok(exported);
        }
        let out = BufWriter::with_capacity(BUFFER_BYTES, out);
        let mut writer = match &resumed {
            Some(rest) => Writer::resume(out, rest),
            None => Writer::begin(out, &header)?,
        };
        let last = resumed.and_then(|rest| rest.last);
        let tell = &mut |bytes| go_on(progress, bytes);
        let read = &|kind, id: &GlyphId| self.stored_anywhere(kind, id);
        transfer::export((&self.store, read), before.as_ref(), &after, last, &mut writer, tell)?;
        exported.glyphs = writer.glyphs();
        exported.bytes = writer.bytes() + stream::END_BYTES;
        writer.finish()?;
        Ok(exported)
    }

    /// The record of a snapshot, counted and signed now if it was not yet. Its state is kept until the last of these is
    /// dropped.
    pub(super) fn sealed_snapshot(
        &self,
        name: &str,
    ) -> std::result::Result<(String, SealedRecord, Arc<Roots>), SnapshotError> {
        let (name, snapshot) = self.find_snapshot(name)?;
        let kept = self.in_use.keep(&snapshot.cut.roots);
        if snapshot.id.is_none() {
            self.seal_snapshots()?;
        }
        let (name, snapshot) = self.find_snapshot(&name)?;
        let sealed = snapshot.id.map(|id| self.sealed_record(id)).transpose()?.flatten();
        let sealed = sealed.filter(|sealed| sealed.record.roots == *kept);
        let sealed = sealed.ok_or_else(|| SnapshotError::NotFound(name.clone()))?;
        Ok((name, sealed, kept))
    }

    /// Takes a snapshot out of a stream. `progress` hears how much of it was read.
    ///
    /// # Errors
    /// The volume is as before, but for glyphs that nothing names and the next collection takes. Until then, another try
    /// finds them here.
    pub fn import_snapshot(&self, input: impl Read, options: &ImportOptions, progress: Tell<'_>) -> Result<Imported> {
        let (header, mut reader) = Reader::open(BufReader::with_capacity(BUFFER_BYTES, input))?;
        let Header { sealed, base } = &header;
        let (record, id) = (&sealed.record, sealed.id());
        let signer = self.check_origin(record, options)?;
        let (name, was_here) = self.name_for(sealed, options)?;
        let _kept;
        let before = match base {
            None => None,
            Some(base) => {
                let missing = || TransferError::MissingBase(base.clone());
                let known = self.snapshot_of(base.id)?.ok_or_else(missing)?;
                _kept = self.in_use.keep(&known.cut.roots);
                // It may have been deleted just before it was kept.
                self.snapshot_of(base.id)?.ok_or_else(missing)?;
                Some(self.frozen(&known.cut))
            }
        };
        let _hold = self.store.hold();
        let after = Frozen::new(self.nodes.clone(), record.roots.clone());
        let tell = &mut |bytes| go_on(progress, bytes);
        let received = transfer::import(&self.store, record, before.as_ref(), &after, &mut reader, tell)?;
        if !was_here {
            self.register_import(&name, sealed, signer)?;
        }
        Ok(Imported { name, id, was_here, received })
    }

    /// Whether this snapshot may come in. Says which node is to be known from now on.
    fn check_origin(&self, record: &Record, options: &ImportOptions) -> Result<Option<NodePublicKey>> {
        let state = self.state.read();
        if record.volume != self.volume_id(&state)? && !options.unrelated {
            return Err(TransferError::OtherVolume(record.volume));
        }
        for parent in &record.parents {
            if let Some(known) = sealed_entry(&state, *parent)? {
                check_parent(record, *parent, &known.record)?;
            }
        }
        let node = record.author.node;
        let trust = options.trust.as_deref();
        if let Some(digits) = trust
            && (digits.len() < KEY_DIGITS_MIN || !hex(&node.0).starts_with(&digits.to_ascii_lowercase()))
        {
            return Err(TransferError::OtherSigner { trusted: digits.to_owned(), signer: node });
        }
        if node == self.key.public() || state.entry(&Key::Node(node))?.is_some() {
            return Ok(None);
        }
        if trust.is_some() { Ok(Some(node)) } else { Err(TransferError::UnknownSigner(node)) }
    }

    /// The name for a snapshot that comes in, and whether it has that already.
    fn name_for(&self, sealed: &SealedRecord, options: &ImportOptions) -> Result<(String, bool)> {
        let wanted = options.name.as_deref();
        let id = sealed.id();
        let here = self.state.read().snapshots()?.into_iter().find(|(_, snapshot)| snapshot.id == Some(id));
        match here {
            Some((name, _)) if options.under_any_name || wanted.is_none_or(|wanted| wanted == name) => Ok((name, true)),
            Some((name, _)) => Err(SnapshotError::Exists(name).into()),
            None => {
                let name = wanted.unwrap_or(&sealed.record.label);
                check_name(name).map_err(|why| SnapshotError::BadName(name.into(), why))?;
                if self.state.read().snapshot(name)?.is_some() {
                    return Err(SnapshotError::Exists(name.into()).into());
                }
                Ok((name.into(), false))
            }
        }
    }

    fn snapshot_of(&self, id: S8Id) -> Result<Option<NamedSnapshot>> {
        let snapshots = self.state.read().snapshots()?;
        Ok(snapshots.into_iter().map(|(_, snapshot)| snapshot).find(|snapshot| snapshot.id == Some(id)))
    }

    /// Enters a snapshot whose glyphs are all here and held.
    fn register_import(&self, name: &str, sealed: &SealedRecord, signer: Option<NodePublicKey>) -> Result<()> {
        {
            let mut state = self.state.write();
            if state.snapshot(name)?.is_some() {
                return Err(SnapshotError::Exists(name.into()).into());
            }
            self.change_author_if_behind(&mut state, &sealed.record.context).map_err(VolumeError::from)?;
            // Branches may be made of it.
            let local = state.meet(&sealed.record.authors);
            let mut draft = state.draft(self.env.now());
            draft.local = local;
            draft.registry = entries(name, sealed);
            draft.registry.extend(signer.map(|node| (Key::Node(node), Some(Vec::new()))));
            state.commit(draft, &self.journal).map_err(VolumeError::from)?;
        }
        self.commit_journal()?;
        for branch in self.branches.opened() {
            branch.change_author_if_known_better()?;
        }
        self.snapshots_changed();
        Ok(())
    }

    /// The same for a branch.
    fn change_author_if_known_better(&self) -> Result<()> {
        let mut state = self.state.write();
        if state.is_known_to_have_done_more(state.author_id()) {
            self.change_author(&mut state).map_err(VolumeError::from)?;
        }
        Ok(())
    }
}

/// What the registry says of a snapshot from elsewhere.
pub(super) fn entries(name: &str, sealed: &SealedRecord) -> Vec<(Key, Option<Vec<u8>>)> {
    let snapshot =
        NamedSnapshot { cut: sealed.record.cut(), id: Some(sealed.id()), scheduled: false, labels: Vec::new() };
    vec![(Key::Record(sealed.id()), Some(sealed.encode())), (Key::Snapshot(name.into()), Some(snapshot.encode()))]
}

fn sealed_entry(state: &State, id: S8Id) -> Result<Option<SealedRecord>> {
    let Some(bytes) = state.entry(&Key::Record(id))? else { return Ok(None) };
    let sealed = SealedRecord::decode(&bytes).map_err(|error| VolumeError::Internal(error.to_string()))?;
    Ok(Some(sealed))
}

/// Nobody forgets what was known before.
fn check_parent(record: &Record, id: S8Id, parent: &Record) -> Result<()> {
    let holds = record.context.covers(&parent.context) && record.volume == parent.volume;
    if holds { Ok(()) } else { Err(TransferError::BadParent(id)) }
}
