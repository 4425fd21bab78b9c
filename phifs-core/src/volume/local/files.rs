//! Open files: handles, and the bytes behind them.
//!
//! Every open or dirty file has one cell. Its locks, in the order in which they are taken: the cell's gate (who has it
//! open, and how), the volume's state, the cell's data (bytes). Reading and writing bytes takes the last alone.
//!
//! How bytes travel follows the kernel's rule that all passthrough handles of an inode share one file and exclude
//! cached handles: an inode that is open in the cached way stays so until those handles are closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use crate::content::overlay::{Overlay, Sources};
use crate::content::publish::{self, Published};
use crate::content::reader::ContentReader;
use crate::content::{Content, ContentError};
use crate::id::{Dot, InodeId};
use crate::meta::Lsn;
use crate::namespace::plan;
use crate::namespace::row::{Closure, Version};
use crate::namespace::tables::{Rows, Table, Tables, content_key};
use crate::namespace::view::{self, Stat};
use crate::time::Timestamp;
use crate::volume::{
    Allocate, Attr, Caller, FileKind, Handle, Ino, NewNode, OpenHow, Opened, Path, Result, Seek, VolumeError,
};

use super::staged::{Staged, Staging};
use super::state::{Draft, State, local_key};
use super::{LocalVolume, names, reserved};

/// A file up to this length is copied to a staging file when it is opened for writing, so that the kernel can write
/// to it by itself; longer ones are written through the daemon, which copies nothing.
const MATERIALISE_BYTES_MAX: u64 = 64 << 20;
/// A synced file up to this length goes to the journal, which costs one flush; longer ones are synced in place.
const JOURNAL_BYTES_MAX: u64 = 32 << 10;
/// A closed file at least this long keeps its staging file as a cache.
const CACHE_BYTES_MIN: u64 = 1 << 20;

const ASKING: &str = "asking for writers of a staging file";

pub struct FileCell {
    pub id: InodeId,
    /// Handles, and calls under way that need the cell: as long as there is one, the cell stays.
    users: AtomicU32,
    /// Handles, counted from before the inode is looked at: as long as there is one, the inode stays.
    handles: AtomicU32,
    gate: Mutex<Gate>,
    data: Mutex<Option<Data>>,
}

#[derive(Default)]
struct Gate {
    /// Handles whose READs and WRITEs come here.
    cached: u32,
    /// Handles that the kernel serves from the staging file.
    kernel: u32,
    writers: u32,
}

/// The bytes of a file: its published version, and the staging file over it if there is one.
struct Data {
    version: Option<Dot>,
    inline: Bytes,
    reader: ContentReader,
    staging: Option<Staging>,
    /// A sync failed: what was written since the last one may be lost. Says so until the file is rewritten.
    failed: bool,
}

/// One open(2).
pub struct OpenFile {
    cell: Arc<FileCell>,
    write: bool,
    kernel: std::sync::atomic::AtomicBool,
}

/// What the unpublished bytes of a file make of its attributes.
#[derive(Clone, Copy)]
pub struct Shown {
    pub len_bytes: u64,
    pub allocated_bytes: u64,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

/// A handle in the making. Given up, it leaves no trace.
struct Opening {
    cell: Option<Arc<FileCell>>,
}

impl Opening {
    fn new(cell: &Arc<FileCell>) -> Self {
        cell.handles.fetch_add(1, Ordering::AcqRel);
        Self { cell: Some(cell.clone()) }
    }

    /// The cell, in use by the handle from now on.
    fn done(mut self) -> Arc<FileCell> {
        let cell = self.cell.take().expect("done only once");
        cell.users.fetch_add(1, Ordering::AcqRel);
        cell
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(cell) = &self.cell {
            cell.handles.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// What became of an attempt to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publication {
    Clean,
    Published,
    /// Somebody writes at the same time; a later attempt will do.
    Changing,
    /// Nothing names the file any more.
    Gone,
}

impl FileCell {
    /// A file whose unpublished bytes were found when the volume was opened.
    pub fn recovered(
        id: InodeId,
        version: Option<Dot>,
        inline: Bytes,
        reader: ContentReader,
        staging: Staging,
    ) -> Self {
        let data = Data { version, inline, reader, staging: Some(staging), failed: false };
        Self {
            id,
            users: AtomicU32::new(0),
            handles: AtomicU32::new(0),
            gate: Mutex::new(Gate::default()),
            data: Mutex::new(Some(data)),
        }
    }

    /// Whether it is written to or holds bytes that are not published. What the kernel wrote into a staging file by
    /// itself is noticed only after the close.
    pub fn is_unpublished(&self) -> bool {
        // Whoever holds one of these locks is at work on the file; nobody who only asks waits for that.
        let written = || self.gate.try_lock().is_none_or(|gate| gate.writers > 0);
        let dirty = |data: &Data| data.staging.as_ref().is_some_and(|staging| staging.dirty);
        written() || self.data.try_lock().is_none_or(|data| data.as_ref().is_some_and(dirty))
    }
}

impl From<ContentError> for VolumeError {
    fn from(error: ContentError) -> Self {
        match error {
            ContentError::Store(source) => Self::Store(source),
            ContentError::Staging { doing, source } => from_io(doing, source),
            ContentError::TooLong => Self::TooLarge,
            error @ (ContentError::Malformed { .. } | ContentError::InlineDamaged(_)) => {
                Self::Store(crate::store::StoreError::Malformed {
                    what: error.to_string(),
                    source: crate::codec::DecodeError::NotCanonical("a file's content"),
                })
            }
        }
    }
}

/// An error of the host's filesystem on a staging file.
fn from_io(doing: &'static str, source: std::io::Error) -> VolumeError {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            VolumeError::NoSpace("the host's filesystem is full")
        }
        std::io::ErrorKind::FileTooLarge => VolumeError::TooLarge,
        _ => VolumeError::Disk { doing, source },
    }
}

fn staging_io(doing: &'static str) -> impl Fn(std::io::Error) -> VolumeError {
    move |source| from_io(doing, source)
}

/// Keeps a cell in use; the last one to go tidies up.
struct User<'a> {
    volume: &'a LocalVolume,
    cell: Arc<FileCell>,
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        self.volume.leave(&self.cell);
    }
}

impl LocalVolume {
    fn enter(&self, id: InodeId) -> User<'_> {
        let mut files = self.files.lock();
        let cell = files.entry(id).or_insert_with(|| {
            Arc::new(FileCell {
                id,
                users: AtomicU32::new(0),
                handles: AtomicU32::new(0),
                gate: Mutex::new(Gate::default()),
                data: Mutex::new(None),
            })
        });
        // Under the lock of the map, so that nobody removes the cell in between.
        cell.users.fetch_add(1, Ordering::AcqRel);
        User { volume: self, cell: cell.clone() }
    }

    fn leave(&self, cell: &Arc<FileCell>) {
        let mut files = self.files.lock();
        if cell.users.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let idle = cell.data.lock().as_ref().is_none_or(|data| data.staging.is_none());
        if idle {
            files.remove(&cell.id);
        }
    }

    /// Whether anybody has the inode open.
    pub(super) fn is_open(&self, id: InodeId) -> bool {
        self.files.lock().get(&id).is_some_and(|cell| cell.handles.load(Ordering::Acquire) > 0)
    }

    /// The cell of a file, if it has one.
    fn known(&self, id: InodeId) -> Option<User<'_>> {
        let known = self.files.lock().contains_key(&id);
        known.then(|| self.enter(id))
    }

    /// The bytes of the cell, loaded. `state` is held so that the version cannot change meanwhile.
    fn data<'a>(&self, state: &State, cell: &'a FileCell) -> Result<MutexGuard<'a, Option<Data>>> {
        let mut data = cell.data.lock();
        if data.is_none() {
            let row = state.inode(cell.id)?.ok_or(VolumeError::NotFound)?;
            let stat = Stat::of(&row);
            match stat.kind {
                FileKind::File => {}
                FileKind::Directory => return Err(VolumeError::IsDirectory),
                _ => return Err(VolumeError::Invalid("not a regular file")),
            }
            let (version, content) = match stat.version {
                Some((dot, version)) => (Some(dot), version.content),
                None => (None, Content::Empty),
            };
            let inline = inline_bytes(state, cell.id, version, &content)?;
            let reader = ContentReader::new(content, inline.clone())?;
            *data = Some(Data { version, inline, reader, staging: None, failed: false });
        }
        Ok(data)
    }

    /// Gives the cell a staging file if it has none, and tells the journal.
    fn stage(&self, state: &mut State, cell: &FileCell) -> Result<()> {
        let mut data = self.data(state, cell)?;
        let data = data.as_mut().expect("just loaded");
        if data.staging.is_some() {
            return Ok(());
        }
        let (number, file) = self.staging.take().map_err(staging_io("making a staging file"))?;
        let now = self.env.now();
        let begin = || -> Result<Staging> {
            let overlay = Overlay::over(*data.reader.content(), &*file)?;
            let staging =
                Staging::new(number, file, overlay, now, now).map_err(staging_io("looking at a staging file"))?;
            let change = (local_key(b's', &cell.id.0.to_bytes()), Some(staging.record().encode()));
            state.commit_local(vec![change], now, &self.journal)?;
            Ok(staging)
        };
        let staging = begin().inspect_err(|_| self.staging.retire(number, Lsn::default()))?;
        data.staging = Some(staging);
        Ok(())
    }

    pub(super) fn create_file(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        node: &NewNode<'_>,
        how: &OpenHow,
    ) -> Result<(Attr, Opened)> {
        let (number, file) = self.staging.take().map_err(staging_io("making a staging file"))?;
        let now = self.env.now();
        let mut staging = Staging::new(number, file.clone(), Overlay::whole(0), now, now)
            .map_err(staging_io("looking at a staging file"))?;
        staging.recorded_whole = true;
        let record = staging.record().encode();
        let reader = ContentReader::new(Content::Empty, Bytes::new())?;
        let data = Data { version: None, inline: Bytes::new(), reader, staging: Some(staging), failed: false };
        let mut entered = None;
        let made = self.make_node(caller, parent, name, node, |draft: &mut Draft, id| {
            draft.local.push((local_key(b's', &id.0.to_bytes()), Some(record)));
            // Before others can see the name and open the file on their own.
            let user = self.enter(id);
            *user.cell.data.lock() = Some(data);
            let opening = Opening::new(&user.cell);
            entered = Some((user, opening));
            Ok(())
        });
        let (id, (user, opening)) = match (made, entered) {
            (Ok(id), Some(entered)) => (id, entered),
            (made, entered) => {
                if let Some((user, _)) = &entered {
                    *user.cell.data.lock() = None;
                }
                self.staging.retire(number, Lsn::default());
                return Err(made.err().unwrap_or_else(|| VolumeError::Internal("a file made without a cell".into())));
            }
        };
        let attr = self.attr(&self.state.read(), id).inspect_err(|_| self.enqueue(id))?;
        let mut gate = user.cell.gate.lock();
        let set_id = node.permissions & 0o6000 != 0;
        let path = if how.passthrough && !how.sync && !set_id && self.has_room() {
            gate.kernel += 1;
            Path::Passthrough { file }
        } else {
            gate.cached += 1;
            if how.direct { Path::Direct } else { Path::Cached { keep_cache: false } }
        };
        gate.writers += u32::from(how.write);
        drop(gate);
        let handle = self.add_handle(opening, how.write, matches!(path, Path::Passthrough { .. }));
        Ok((attr, Opened { handle, path }))
    }

    pub(super) fn open_file(&self, caller: &Caller, ino: Ino, how: &OpenHow) -> Result<Opened> {
        if reserved::is_virtual(ino) {
            return self.reserved_open(ino, how);
        }
        if how.write || how.truncate {
            self.check_writable()?;
        }
        let id = self.state.read().inode_id(ino)?;
        let user = self.enter(id);
        let opening = Opening::new(&user.cell);
        if how.truncate {
            self.truncate_cell(&user.cell, 0)?;
            if caller.uid != 0 {
                self.kill_set_id(id, caller)?;
            }
        }
        let mut gate = user.cell.gate.lock();
        let path = self.choose_path(&user.cell, &gate, how)?;
        match path {
            Path::Passthrough { .. } => gate.kernel += 1,
            Path::Cached { .. } | Path::Direct => gate.cached += 1,
        }
        gate.writers += u32::from(how.write);
        drop(gate);
        let handle = self.add_handle(opening, how.write, matches!(path, Path::Passthrough { .. }));
        Ok(Opened { handle, path })
    }

    fn choose_path(&self, cell: &FileCell, gate: &Gate, how: &OpenHow) -> Result<Path> {
        let state = self.state.read();
        let row = state.inode(cell.id)?.ok_or(VolumeError::NotFound)?;
        let mode = Stat::of(&row).mode.permissions;
        let (len, whole) = {
            let mut data = self.data(&state, cell)?;
            let data = data.as_mut().expect("just loaded");
            match &mut data.staging {
                Some(staging) => {
                    staging.observe().map_err(staging_io("looking at a staging file"))?;
                    (staging.overlay.len_bytes(), staging.overlay.is_whole())
                }
                None => (data.reader.content().len_bytes(), false),
            }
        };
        drop(state);
        let version = self.cached_version(cell);
        let through_here = move |keep_cache| if how.direct { Path::Direct } else { Path::Cached { keep_cache } };
        // Only through WRITE does the kernel say that set-id bits must go.
        let set_id = mode & 0o6000 != 0;
        // And only through FSYNC does it say that a write of an O_SYNC descriptor must be durable.
        let excluded = gate.cached > 0 || how.write && (set_id || how.sync) && gate.kernel == 0;
        if !how.passthrough || excluded {
            return Ok(through_here(version));
        }
        if !whole {
            if !how.write || len > MATERIALISE_BYTES_MAX || !self.has_room() {
                return Ok(through_here(version));
            }
            self.materialise(cell)?;
        }
        if how.write && gate.kernel == 0 && !self.has_room() {
            return Ok(through_here(version));
        }
        let data = cell.data.lock();
        let staging = data.as_ref().and_then(|data| data.staging.as_ref());
        let staging = staging.ok_or_else(|| VolumeError::Internal("a whole file without staging".into()))?;
        Ok(Path::Passthrough { file: staging.file.clone() })
    }

    /// Brings all bytes into the staging file.
    fn materialise(&self, cell: &FileCell) -> Result<()> {
        self.stage(&mut self.state.write(), cell)?;
        let mut data = cell.data.lock();
        let Some(Data { staging: Some(staging), reader, .. }) = data.as_mut() else { return Ok(()) };
        let mut sources = Sources { file: &*staging.file, base: reader, glyphs: &*self.store };
        let len = staging.overlay.len_bytes();
        staging.overlay.materialise(&mut sources, 0..len)?;
        staging.restamp().map_err(staging_io("looking at a staging file"))?;
        Ok(())
    }

    /// Whether the kernel's cached bytes of this file are those of its version; from now on they are.
    fn cached_version(&self, cell: &FileCell) -> bool {
        let data = cell.data.lock();
        let Some(data) = data.as_ref() else { return false };
        if data.staging.as_ref().is_some_and(|staging| staging.dirty) {
            self.cached_versions.lock().remove(&cell.id);
            return false;
        }
        self.cached_versions.lock().insert(cell.id, data.version) == Some(data.version)
    }

    fn add_handle(&self, opening: Opening, write: bool, kernel: bool) -> Handle {
        let cell = opening.done();
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let open = OpenFile { cell, write, kernel: kernel.into() };
        self.handles.write().insert(number, Arc::new(open));
        Handle(number)
    }

    fn handle(&self, handle: Handle) -> Result<Arc<OpenFile>> {
        self.handles.read().get(&handle.0).cloned().ok_or(VolumeError::BadHandle)
    }

    pub(super) fn refuse_kernel(&self, handle: Handle) -> bool {
        let Ok(open) = self.handle(handle) else { return false };
        if open.kernel.swap(false, Ordering::AcqRel) {
            let mut gate = open.cell.gate.lock();
            gate.kernel -= 1;
            gate.cached += 1;
        }
        false
    }

    pub(super) fn read_file(&self, ino: Ino, handle: Handle, offset: u64, len: u32) -> Result<Vec<u8>> {
        if reserved::is_virtual(ino) {
            return self.reserved_read(ino, offset, len);
        }
        let open = self.handle(handle)?;
        let mut data = open.cell.data.lock();
        let Data { reader, staging, .. } = data.as_mut().ok_or(VolumeError::BadHandle)?;
        let mut buf = vec![0; len as usize];
        let got = match staging {
            Some(staging) => {
                staging.observe().map_err(staging_io("looking at a staging file"))?;
                let mut sources = Sources { file: &*staging.file, base: reader, glyphs: &*self.store };
                staging.overlay.read_at(&mut sources, &mut buf, offset)?
            }
            None => reader.read_at(&*self.store, &mut buf, offset)?,
        };
        buf.truncate(got);
        Ok(buf)
    }

    /// `unprivileged`: who writes, if set-id bits do not survive that.
    pub(super) fn write_file(
        &self,
        handle: Handle,
        offset: u64,
        bytes: &[u8],
        unprivileged: Option<&Caller>,
    ) -> Result<u32> {
        let open = self.handle(handle)?;
        if !open.write {
            return Err(VolumeError::BadHandle);
        }
        self.change(&open.cell, |staging| Ok(staging.overlay.write(&*staging.file, bytes, offset)?))?;
        if let Some(caller) = unprivileged {
            self.kill_set_id(open.cell.id, caller)?;
        }
        Ok(bytes.len() as u32)
    }

    /// Changes bytes: makes sure that there is a staging file and room, and notes the change.
    fn change(&self, cell: &FileCell, change: impl FnOnce(&mut Staging) -> Result<()>) -> Result<()> {
        self.check_writable()?;
        if !self.has_room() {
            return Err(VolumeError::NoSpace("the disk is full up to the reserve"));
        }
        let mut data = cell.data.lock();
        if data.as_ref().is_none_or(|data| data.staging.is_none()) {
            drop(data);
            let gate = cell.gate.lock();
            self.stage(&mut self.state.write(), cell)?;
            drop(gate);
            data = cell.data.lock();
        }
        let Some(Data { staging: Some(staging), .. }) = data.as_mut() else { return Err(VolumeError::BadHandle) };
        staging.observe().map_err(staging_io("looking at a staging file"))?;
        change(staging)?;
        staging.changed(self.env.now()).map_err(staging_io("looking at a staging file"))
    }

    pub(super) fn truncate(&self, ino: Ino, len: u64) -> Result<()> {
        let id = self.state.read().inode_id(ino)?;
        let user = self.enter(id);
        let gate = user.cell.gate.lock();
        let open = gate.cached + gate.kernel > 0;
        drop(gate);
        self.truncate_cell(&user.cell, len)?;
        if !open {
            let published = self.publish(&user.cell, Closure::Close);
            self.enqueue(id);
            published?;
        }
        Ok(())
    }

    fn truncate_cell(&self, cell: &FileCell, len: u64) -> Result<()> {
        if len > crate::content::LEN_MAX {
            return Err(VolumeError::TooLarge);
        }
        {
            let gate = cell.gate.lock();
            self.stage(&mut self.state.write(), cell)?;
            drop(gate);
        }
        let mut data = cell.data.lock();
        let Some(Data { staging: Some(staging), failed, .. }) = data.as_mut() else {
            return Err(VolumeError::BadHandle);
        };
        staging.observe().map_err(staging_io("looking at a staging file"))?;
        if len == 0 {
            staging.file.set_len(0).map_err(staging_io("truncating"))?;
            staging.overlay = Overlay::whole(0);
            // Nothing of what could not be synced is left.
            *failed = false;
        } else {
            staging.overlay.truncate(&*staging.file, len)?;
        }
        staging.changed(self.env.now()).map_err(staging_io("looking at a staging file"))
    }

    pub(super) fn allocate(
        &self,
        caller: &Caller,
        handle: Handle,
        offset: u64,
        len: u64,
        mode: Allocate,
    ) -> Result<()> {
        let open = self.handle(handle)?;
        if !open.write {
            return Err(VolumeError::BadHandle);
        }
        if len == 0 {
            return Err(VolumeError::Invalid("an empty range"));
        }
        if offset.checked_add(len).is_none_or(|end| end > crate::content::LEN_MAX) {
            return Err(VolumeError::TooLarge);
        }
        self.change(&open.cell, |staging| {
            let file = &*staging.file;
            match mode {
                Allocate::Reserve => staging.overlay.allocate(file, offset, len, false)?,
                Allocate::ReserveKeepSize => staging.overlay.allocate(file, offset, len, true)?,
                Allocate::PunchHole => staging.overlay.punch_hole(file, offset, len)?,
                Allocate::ZeroRange => staging.overlay.zero_range(file, offset, len, false)?,
                Allocate::ZeroRangeKeepSize => staging.overlay.zero_range(file, offset, len, true)?,
            }
            Ok(())
        })?;
        if caller.uid == 0 { Ok(()) } else { self.kill_set_id(open.cell.id, caller) }
    }

    pub(super) fn seek_file(&self, handle: Handle, offset: u64, seek: Seek) -> Result<u64> {
        let open = self.handle(handle)?;
        let mut data = open.cell.data.lock();
        let Data { reader, staging, .. } = data.as_mut().ok_or(VolumeError::BadHandle)?;
        let glyphs = &*self.store;
        let found = match staging {
            Some(staging) => {
                staging.observe().map_err(staging_io("looking at a staging file"))?;
                if offset >= staging.overlay.len_bytes() {
                    return Err(VolumeError::NoData);
                }
                let mut sources = Sources { file: &*staging.file, base: reader, glyphs };
                match seek {
                    Seek::Data => staging.overlay.seek_data(&mut sources, offset)?,
                    Seek::Hole => Some(staging.overlay.seek_hole(&mut sources, offset)?),
                }
            }
            None if offset >= reader.content().len_bytes() => None,
            None => match seek {
                Seek::Data => reader.seek_data(glyphs, offset)?,
                Seek::Hole => Some(reader.seek_hole(glyphs, offset)?),
            },
        };
        found.ok_or(VolumeError::NoData)
    }

    /// Copies bytes between two open files. Equal bytes become the same glyphs when the target is published.
    pub(super) fn copy_bytes(
        &self,
        caller: &Caller,
        from: (Ino, Handle, u64),
        to: (Handle, u64),
        len: u64,
    ) -> Result<u64> {
        const STEP: u64 = 1 << 20;
        let mut copied = 0;
        while copied < len {
            let step = STEP.min(len - copied) as u32;
            let bytes = self.read_file(from.0, from.1, from.2 + copied, step)?;
            if bytes.is_empty() {
                break;
            }
            self.write_file(to.0, to.1 + copied, &bytes, (caller.uid != 0).then_some(caller))?;
            copied += bytes.len() as u64;
            // The source ended here, even if it is the target and has just grown.
            if bytes.len() < step as usize {
                break;
            }
        }
        Ok(copied)
    }

    pub(super) fn release_file(&self, handle: Handle) {
        let Some(open) = self.handles.write().remove(&handle.0) else { return };
        let cell = open.cell.clone();
        let mut gate = cell.gate.lock();
        if open.kernel.load(Ordering::Acquire) {
            gate.kernel -= 1;
        } else {
            gate.cached -= 1;
        }
        gate.writers -= u32::from(open.write);
        let (last, last_writer) = (gate.kernel + gate.cached == 0, open.write && gate.writers == 0);
        drop(gate);
        // Somebody may have written through a mapping; the kernel must ask again for what stat(2) says.
        if open.write && open.kernel.load(Ordering::Acquire) && self.observe_dirty(&cell) {
            self.invalidate_inode(cell.id, false);
        }
        cell.handles.fetch_sub(1, Ordering::AcqRel);
        if last_writer || last {
            self.enqueue(cell.id);
        }
        self.leave(&cell);
    }

    /// The versions under files that are being changed.
    pub(super) fn contents_in_use(&self) -> Vec<Content> {
        let cells: Vec<_> = self.files.lock().values().cloned().collect();
        let mut contents = Vec::new();
        for cell in cells {
            if let Some(data) = cell.data.lock().as_ref() {
                contents.push(*data.reader.content());
                contents.extend(data.staging.as_ref().map(|staging| *staging.overlay.base()));
            }
        }
        contents
    }

    fn observe_dirty(&self, cell: &FileCell) -> bool {
        let mut data = cell.data.lock();
        let Some(staging) = data.as_mut().and_then(|data| data.staging.as_mut()) else { return false };
        if let Err(error) = staging.observe() {
            tracing::error!(%error, inode = %cell.id.0, "a staging file cannot be looked at");
        }
        staging.dirty
    }

    /// Work after a file was closed: publish, drop what is no longer needed, forget it if nothing names it.
    pub(super) fn settle(&self, id: InodeId) -> Result<()> {
        let Some(user) = self.known(id) else { return Ok(()) };
        let gate = user.cell.gate.lock();
        let open = gate.cached + gate.kernel > 0;
        let writers = gate.writers > 0;
        drop(gate);
        let gone = {
            let state = self.state.read();
            match state.inode(id)? {
                None => true,
                Some(row) => view::nlink(&*state, id, row.kind())? == 0,
            }
        };
        if gone {
            return self.forget_orphan(&user.cell);
        }
        if !writers && self.publish(&user.cell, Closure::Close)? == Publication::Changing {
            self.enqueue_later(id);
            return Ok(());
        }
        if !open && self.has_writers(&user.cell)? {
            // A mapping outlived its descriptors: whatever is stored through it is looked for at every tick.
            self.enqueue_later(id);
            return Ok(());
        }
        if !open {
            self.cache_or_drop(&user.cell, true)?;
        }
        Ok(())
    }

    /// Whether the kernel lets somebody write to the staging file.
    fn has_writers(&self, cell: &FileCell) -> Result<bool> {
        let file = cell.data.lock().as_ref().and_then(|data| data.staging.as_ref()).map(|staging| staging.file.clone());
        file.map_or(Ok(false), |file| file.has_writers()).map_err(staging_io(ASKING))
    }

    /// Called when an inode lost its last name.
    pub(super) fn inode_gone(&self, id: InodeId) {
        self.cached_versions.lock().remove(&id);
        let known = self.files.lock().contains_key(&id);
        if known {
            self.enqueue(id);
        }
    }

    /// The last handle of an unlinked file is closed.
    fn forget_orphan(&self, cell: &FileCell) -> Result<()> {
        let mut state = self.state.write();
        // Not the gate: somebody who is about to open it counts as well. Under the lock of the state, so that whoever
        // comes later finds the inode gone.
        if cell.handles.load(Ordering::Acquire) > 0 {
            return Ok(());
        }
        let mut draft = state.draft(self.env.now());
        if let Some(row) = state.inode(cell.id)? {
            names::purge(&state, &mut draft, cell.id, &row)?;
        }
        let mut data = cell.data.lock();
        let staging = data.as_mut().and_then(|data| data.staging.take());
        if staging.is_some() {
            draft.local.push((local_key(b's', &cell.id.0.to_bytes()), None));
        }
        if draft.effects.is_empty() && draft.local.is_empty() {
            return Ok(());
        }
        let lsn = state.commit(draft, &self.journal)?;
        if let Some(staging) = staging {
            self.staging.retire(staging.number, lsn);
        }
        Ok(())
    }

    /// A closed and clean file loses its staging file; a long one is kept as a cache if it `may_stay`.
    fn cache_or_drop(&self, cell: &FileCell, may_stay: bool) -> Result<()> {
        let gate = cell.gate.lock();
        if gate.cached + gate.kernel > 0 {
            return Ok(());
        }
        let mut state = self.state.write();
        let mut data = cell.data.lock();
        let Some(loaded) = data.as_mut() else { return Ok(()) };
        let Some(staging) = loaded.staging.as_mut() else { return Ok(()) };
        staging.observe().map_err(staging_io("looking at a staging file"))?;
        if staging.dirty {
            return Ok(());
        }
        let len = staging.overlay.len_bytes();
        let is_worth = len >= CACHE_BYTES_MIN && staging.overlay.is_whole();
        if may_stay && is_worth && self.staging_cache.admit(cell.id, len) {
            return Ok(());
        }
        let lsn = if staging.has_record {
            let change = (local_key(b's', &cell.id.0.to_bytes()), None);
            state.commit_local(vec![change], self.env.now(), &self.journal)?
        } else {
            self.journal.appended()
        };
        self.staging.retire(staging.number, lsn);
        loaded.staging = None;
        Ok(())
    }

    /// Publishes a file whose users will not come back, or else makes its bytes durable in staging.
    pub(super) fn close_down(&self, id: InodeId) -> Result<()> {
        let settled = self.settle(id);
        let Some(user) = self.known(id) else { return settled };
        let published = settled.and_then(|()| self.publish(&user.cell, Closure::IdleFlush));
        match published {
            Ok(Publication::Clean | Publication::Published | Publication::Gone) => Ok(()),
            Ok(Publication::Changing) => self.record_bytes(&user.cell),
            Err(error) => self.record_bytes(&user.cell).and(Err(error)),
        }
    }

    /// Drops the cached staging file of a file that nobody has open.
    pub(super) fn evict(&self, id: InodeId) -> Result<()> {
        self.known(id).map_or(Ok(()), |user| self.cache_or_drop(&user.cell, false))
    }

    /// What stat(2) shows of a file that was changed and not published.
    pub(super) fn shown(&self, id: InodeId) -> Result<Option<Shown>> {
        let Some(cell) = self.files.lock().get(&id).cloned() else { return Ok(None) };
        let mut data = cell.data.lock();
        let Some(staging) = data.as_mut().and_then(|data| data.staging.as_mut()) else { return Ok(None) };
        staging.observe().map_err(staging_io("looking at a staging file"))?;
        if !staging.dirty {
            return Ok(None);
        }
        Ok(Some(Shown {
            len_bytes: staging.overlay.len_bytes(),
            allocated_bytes: staging.overlay.allocated_bytes(&*staging.file)?,
            mtime: staging.mtime,
            ctime: staging.changed,
        }))
    }

    /// utimensat(2) on a file with unpublished bytes.
    pub(super) fn set_shown_mtime(&self, id: InodeId, mtime: Timestamp) -> Result<()> {
        let Some(cell) = self.files.lock().get(&id).cloned() else { return Ok(()) };
        let mut data = cell.data.lock();
        if let Some(staging) = data.as_mut().and_then(|data| data.staging.as_mut()) {
            staging.observe().map_err(staging_io("looking at a staging file"))?;
            staging.mtime = mtime;
            // The next fsync makes this time durable too.
            staging.recorded = None;
            staging.recorded_whole = false;
        }
        Ok(())
    }

    /// close(2) is the last chance to tell the writer that an earlier sync failed.
    pub(super) fn flush_file(&self, handle: Handle) -> Result<()> {
        let Ok(open) = self.handle(handle) else { return Ok(()) };
        let failed = open.write && open.cell.data.lock().as_ref().is_some_and(|data| data.failed);
        if failed { Err(VolumeError::LostWrite) } else { Ok(()) }
    }

    /// fsync(2): the bytes of the file, its name and everything before it are durable afterwards.
    pub(super) fn sync_file(&self, ino: Ino) -> Result<()> {
        if reserved::is_virtual(ino) {
            return Ok(());
        }
        let id = self.state.read().inode_id(ino)?;
        if let Some(user) = self.known(id) {
            self.record_bytes(&user.cell)?;
        }
        self.commit_journal()
    }

    /// Makes sure that the journal, once committed, stands for the bytes of the file as they are now.
    pub(super) fn record_bytes(&self, cell: &FileCell) -> Result<()> {
        let (file, number, generation, synced, small) = {
            let mut data = cell.data.lock();
            let Some(data) = data.as_mut() else { return Ok(()) };
            if data.failed {
                return Err(VolumeError::LostWrite);
            }
            let Some(staging) = data.staging.as_mut() else { return Ok(()) };
            staging.observe().map_err(staging_io("looking at a staging file"))?;
            if !staging.dirty {
                return Ok(());
            }
            if staging.recorded == Some(staging.generation)
                && (staging.recorded_bytes.is_none() || !staging.file.has_writers().map_err(staging_io(ASKING))?)
            {
                return Ok(());
            }
            let small = staging.overlay.len_bytes() <= JOURNAL_BYTES_MAX && staging.overlay.is_whole();
            (staging.file.clone(), staging.number, staging.generation, staging.record(), small)
        };
        if !small && let Err(source) = self.staging.name_is_durable(number).and_then(|()| file.sync()) {
            if let Some(data) = cell.data.lock().as_mut() {
                data.failed = true;
            }
            return Err(from_io("syncing a staging file", source));
        }
        let mut state = self.state.write();
        let mut data = cell.data.lock();
        let Some(Data { staging: Some(staging), .. }) = data.as_mut() else { return Ok(()) };
        // Published meanwhile, or even dropped after that: then the bytes are in a version.
        if staging.number != number || staging.published >= Some(generation) {
            return Ok(());
        }
        // The kernel's writes to a whole file change nothing that the record says.
        if !small && staging.recorded_whole && staging.is_all_there_is() {
            staging.recorded = Some(generation);
            return Ok(());
        }
        let mut recorded_bytes = None;
        let record = if small {
            let mut bytes = vec![0; JOURNAL_BYTES_MAX as usize + 1];
            // The length may have changed since; the kernel writes on its own.
            let got = staging.file.read_at(&mut bytes, 0).map_err(staging_io("reading a staging file"))?;
            if got as u64 > JOURNAL_BYTES_MAX {
                drop(data);
                drop(state);
                return self.record_bytes(cell);
            }
            bytes.truncate(got);
            let hash = Some(blake3::hash(&bytes));
            if staging.recorded == Some(generation) && staging.recorded_bytes == hash {
                return Ok(());
            }
            recorded_bytes = hash;
            Staged::Bytes { bytes, mtime: staging.mtime }
        } else {
            // As it was before the sync: what was written during it may not be on the disk.
            synced
        };
        let change = (local_key(b's', &cell.id.0.to_bytes()), Some(record.encode()));
        state.commit_local(vec![change], self.env.now(), &self.journal)?;
        staging.has_record = true;
        staging.recorded = Some(generation);
        staging.recorded_bytes = recorded_bytes;
        staging.recorded_whole = !small && staging.is_all_there_is();
        Ok(())
    }

    /// Publishes what was written to a file that is about to get another name, so that after a crash the new name
    /// never shows fewer bytes than were written.
    pub(super) fn publish_before_rename(&self, parent: Ino, name: &[u8]) -> Result<()> {
        if self.files.lock().is_empty() || reserved::is_virtual(parent) {
            return Ok(());
        }
        let id = {
            let state = self.state.read();
            let dir = crate::id::DirId(state.inode_id(parent)?.0);
            match view::child(&*state, dir, name)? {
                Some(child) => child.inode(),
                None => return Ok(()),
            }
        };
        if let Some(user) = self.known(id) {
            match self.publish(&user.cell, Closure::Close) {
                // The name changes all the same; the bytes are in the staging file.
                Err(VolumeError::NoSpace(_) | VolumeError::Store(crate::store::StoreError::Full)) => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Publishes a file that stays open, if it was not for a while; what cannot be published is made durable at least.
    pub(super) fn publish_open(&self, cell: &FileCell) -> Result<()> {
        let due = {
            let data = cell.data.lock();
            let staging = data.as_ref().and_then(|data| data.staging.as_ref());
            let interval = self.options.publish_interval.as_millis() as u64;
            staging.is_some_and(|staging| self.env.now().millis() >= staging.published_at.millis() + interval)
        };
        if due && matches!(self.publish(cell, Closure::IdleFlush), Ok(outcome) if outcome != Publication::Changing) {
            return Ok(());
        }
        self.record_bytes(cell)
    }

    /// Turns what is in the staging file into a version, without holding up readers and writers meanwhile.
    pub(super) fn publish(&self, cell: &FileCell, closure: Closure) -> Result<Publication> {
        // No collection may take the new glyphs before the operation that names them.
        let _hold = self.store.hold();
        let Some(written) = self.protect_pages(cell)? else { return Ok(Publication::Clean) };
        let (overlay, file, seen, mut base) = {
            let mut data = cell.data.lock();
            let Some(Data { staging: Some(staging), reader, inline, .. }) = data.as_mut() else {
                return Ok(Publication::Clean);
            };
            staging.observe().map_err(staging_io("looking at a staging file"))?;
            if !staging.dirty {
                return Ok(Publication::Clean);
            }
            let base = *staging.overlay.base();
            let inline = if base == *reader.content() { inline.clone() } else { Bytes::new() };
            let base = ContentReader::new(base, inline)?;
            (staging.overlay.clone(), staging.file.clone(), (staging.number, staging.generation), base)
        };
        let mut sources = Sources { file: &*file, base: &mut base, glyphs: &*self.store };
        let published = match publish::publish(&overlay, &mut sources, &*self.store) {
            Ok(published) => published,
            // The kernel cut the file short while it was read.
            Err(ContentError::Staging { source, .. }) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Ok(Publication::Changing);
            }
            Err(e) => return Err(e.into()),
        };
        let gate = cell.gate.lock();
        let mut state = self.state.write();
        let mut data = cell.data.lock();
        let Some(loaded) = data.as_mut() else { return Ok(Publication::Gone) };
        let Some(staging) = loaded.staging.as_mut() else { return Ok(Publication::Gone) };
        staging.observe().map_err(staging_io("looking at a staging file"))?;
        // The number as well: it may have been published and dropped, and written again into another staging file.
        if (staging.number, staging.generation) != seen {
            return Ok(Publication::Changing);
        }
        if !staging.dirty {
            // Somebody else published it meanwhile.
            return Ok(Publication::Clean);
        }
        let (mtime, changed) = (staging.mtime, staging.changed);
        let closure = if staging.recovered { Closure::CrashRecovered } else { closure };
        let Some(mut draft) = self.draft_version(&state, cell.id, &published, (mtime, changed), closure)? else {
            return Ok(Publication::Gone);
        };
        // A record that outlived this version would bring back older bytes after a crash. But what the kernel may still
        // write, and sync by itself, must be found; the staging file has just been synced with the bytes published here.
        // (Only a file that is whole is ever handed to the kernel; of another the base has a part.)
        let written = written && staging.overlay.is_whole();
        let record = written.then(|| staging.record_of_all().encode());
        draft.local.push((local_key(b's', &cell.id.0.to_bytes()), record));
        if staging.recovered && loaded.version.is_some() && published.content == *loaded.reader.content() {
            // The crash came between publishing the file and closing it: there is nothing to add.
            draft.effects.clear();
        }
        let version = if draft.effects.is_empty() { loaded.version } else { Some(draft.dot) };
        state.commit(draft, &self.journal)?;
        loaded.version = version;
        loaded.inline = published.inline;
        loaded.reader = ContentReader::new(published.content, loaded.inline.clone())?;
        staging.published(published.content, self.env.now(), written);
        self.counters.published.fetch_add(1, Ordering::Relaxed);
        drop(gate);
        Ok(Publication::Published)
    }
}

impl LocalVolume {
    /// Prepares a dirty file for being read while somebody may store to it through a mapping. Says whether the kernel
    /// lets anybody write to it; `None` if the file is clean.
    ///
    /// A store to a page that is writable already leaves no trace. The sync write-protects all pages, so that any
    /// store from then on moves the mtime and shows as a change.
    fn protect_pages(&self, cell: &FileCell) -> Result<Option<bool>> {
        let (file, number) = {
            let mut data = cell.data.lock();
            let Some(staging) = data.as_mut().and_then(|data| data.staging.as_mut()) else { return Ok(None) };
            staging.observe().map_err(staging_io("looking at a staging file"))?;
            if !staging.dirty {
                return Ok(None);
            }
            (staging.file.clone(), staging.number)
        };
        let written = file.has_writers().map_err(staging_io(ASKING))?;
        if written {
            let synced = self.staging.name_is_durable(number).and_then(|()| file.sync());
            synced.map_err(staging_io("syncing a staging file"))?;
        }
        Ok(Some(written))
    }

    /// The operation that publishes a version; `None` if the inode is gone.
    fn draft_version(
        &self,
        state: &State,
        id: InodeId,
        published: &Published,
        (mtime, changed): (Timestamp, Timestamp),
        closure: Closure,
    ) -> Result<Option<Draft>> {
        let Some(row) = state.inode(id)? else { return Ok(None) };
        let mut draft = state.draft(self.env.now());
        let version = Version { content: published.content, mtime, closure, bases: row.versions.dots().collect() };
        let inline = matches!(published.content, Content::Inline { .. }).then(|| published.inline.to_vec());
        let touched = Stat::of(&row).ctime.max(changed);
        draft.effects.extend(plan::publish(state, id, &row, (version, inline), touched)?);
        super::attrs::drop_capability(state, &mut draft, id)?;
        Ok(Some(draft))
    }
}

/// The bytes beside the version record of a small file.
pub(super) fn inline_bytes(state: &State, id: InodeId, version: Option<Dot>, content: &Content) -> Result<Bytes> {
    match (content, version) {
        (Content::Inline { .. }, Some(dot)) => {
            Ok(state.get(Table::Contents, &content_key(id, dot))?.unwrap_or_default())
        }
        _ => Ok(Bytes::new()),
    }
}
