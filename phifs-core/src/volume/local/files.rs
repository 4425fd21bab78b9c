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
use crate::content::reader::ContentReader;
use crate::content::{Content, ContentError};
use crate::disk::File;
use crate::id::{Dot, InodeId};
use crate::meta::Lsn;
use crate::namespace::row::Closure;
use crate::namespace::tables::{Rows, Table, Tables, content_key};
use crate::namespace::view::{self, Stat};
use crate::time::Timestamp;
use crate::volume::{
    Allocate, Attr, Caller, FileKind, Handle, Ino, NewNode, OpenHow, Opened, Path, Result, Seek, VolumeError,
};

use super::drivers::is_merged;
use super::publication::Publication;
use super::records::Base;
use super::remote::{Ahead, is_lacking};
use super::staged::{Change, MEMORY_BYTES_MAX, Staging};
use super::standin::Lack;
use super::state::{Draft, State};
use super::{LocalVolume, names, records};

/// A file up to this length is copied to a staging file when it is opened for writing, so that the kernel can write
/// to it by itself; longer ones are written through the daemon, which copies nothing.
const MATERIALISE_BYTES_MAX: u64 = 64 << 20;
/// A file up to this length is written through the daemon, which stages it in memory.
const SHORT_BYTES_MAX: u64 = 64 << 10;
/// A closed file at least this long keeps its staging file as a cache.
const CACHE_BYTES_MIN: u64 = 1 << 20;

pub(super) const ASKING: &str = "asking for writers of a staging file";

pub struct FileCell {
    pub id: InodeId,
    /// Handles, and calls under way that need the cell: as long as there is one, the cell stays.
    users: AtomicU32,
    /// Handles, counted from before the inode is looked at: as long as there is one, the inode stays.
    handles: AtomicU32,
    pub(super) gate: Mutex<Gate>,
    pub(super) data: Mutex<Option<Data>>,
}

#[derive(Default)]
pub(super) struct Gate {
    /// Handles whose READs and WRITEs come here.
    cached: u32,
    /// Handles that the kernel serves from the staging file.
    kernel: u32,
    writers: u32,
    /// Programs that run from it. The kernel keeps writers away from them by itself, but not a truncation on the way.
    running: u32,
}

impl Gate {
    /// Whether the kernel writes to the staging file by itself, or is about to.
    pub(super) fn kernel_writes(&self) -> bool {
        self.kernel > 0 && self.writers > 0
    }
}

/// The bytes of a file: its published version, and the staging file over it if there is one.
pub(super) struct Data {
    pub(super) version: Option<Dot>,
    /// The versions that there were when they were loaded. What is published replaces these, and no others.
    pub(super) seen: Vec<Dot>,
    /// How many merges there had been then. If there was none since, what is published decides against the other files
    /// that have a name of this one.
    pub(super) merges: u64,
    /// A merge has brought another version, or taken this one away. Until the last of its users closes the file, these
    /// bytes stay, and stat(2) shows this.
    pub(super) outdated: Option<Shown>,
    /// These are the bytes of an older version, as those of the shown one cannot be had.
    pub(super) stands_in: Option<Lack>,
    pub(super) inline: Bytes,
    pub(super) reader: ContentReader,
    pub(super) staging: Option<Staging>,
    /// A sync failed: what was written since the last one may be lost. Says so until the file is rewritten.
    pub(super) failed: bool,
}

/// One open(2).
pub struct OpenFile {
    cell: Arc<FileCell>,
    write: bool,
    execute: bool,
    /// The kernel appends where it takes the end to be, and does not know the length. What comes goes to the end.
    appends: bool,
    /// It began with an older version, as the shown one could not be had.
    older: bool,
    kernel: std::sync::atomic::AtomicBool,
}

impl OpenFile {
    /// The file whose shown version is read. That an older one can be read says nothing of it.
    fn about(&self) -> Option<InodeId> {
        (!self.older).then_some(self.cell.id)
    }
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
struct Opening<'a> {
    volume: &'a LocalVolume,
    cell: Option<Arc<FileCell>>,
}

impl<'a> Opening<'a> {
    fn new(volume: &'a LocalVolume, cell: &Arc<FileCell>) -> Self {
        cell.handles.fetch_add(1, Ordering::AcqRel);
        Self { volume, cell: Some(cell.clone()) }
    }

    /// The cell, in use by the handle from now on.
    fn done(mut self) -> Arc<FileCell> {
        let cell = self.cell.take().expect("done only once");
        cell.users.fetch_add(1, Ordering::AcqRel);
        cell
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        // Somebody may have left the work to whoever goes last.
        if let Some(cell) = &self.cell
            && cell.count_down()
        {
            self.volume.enqueue(cell.id);
        }
    }
}

impl FileCell {
    /// A handle less. Says whether it was the last one.
    fn count_down(&self) -> bool {
        self.handles.fetch_sub(1, Ordering::AcqRel) == 1
    }

    pub fn is_open(&self) -> bool {
        self.handles.load(Ordering::Acquire) > 0
    }

    /// A file whose unpublished bytes were found when the volume was opened.
    pub fn recovered(
        id: InodeId,
        (version, seen): (Option<Dot>, Vec<Dot>),
        inline: Bytes,
        reader: ContentReader,
        staging: Staging,
    ) -> Self {
        let data = Data {
            version,
            seen,
            // Nobody knows what was there when they were written.
            merges: u64::MAX,
            outdated: None,
            stands_in: None,
            inline,
            reader,
            staging: Some(staging),
            failed: false,
        };
        Self {
            id,
            users: AtomicU32::new(0),
            handles: AtomicU32::new(0),
            gate: Mutex::new(Gate::default()),
            data: Mutex::new(Some(data)),
        }
    }

    /// Whether somebody has it open for writing.
    pub fn has_writers(&self) -> bool {
        self.gate.lock().writers > 0
    }

    /// The published bytes, read from this offset on.
    fn base_from(&self, offset: u64) -> Ahead {
        self.data.lock().as_ref().map(|data| (*data.reader.content(), offset))
    }

    /// How long it is with what is not published, if there is such.
    pub fn staged_bytes(&self) -> u64 {
        let data = self.data.lock();
        data.as_ref().and_then(|data| data.staging.as_ref()).map_or(0, |staging| staging.overlay.len_bytes())
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
pub(super) fn from_io(doing: &'static str, source: std::io::Error) -> VolumeError {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            VolumeError::NoSpace("the host's filesystem is full")
        }
        std::io::ErrorKind::FileTooLarge => VolumeError::TooLarge,
        _ => VolumeError::Disk { doing, source },
    }
}

pub(super) fn staging_io(doing: &'static str) -> impl Fn(std::io::Error) -> VolumeError {
    move |source| from_io(doing, source)
}

/// What the kernel did to a staging file could not be told.
pub(super) fn looking_failed(source: std::io::Error) -> VolumeError {
    from_io("looking at a staging file", source)
}

/// Keeps a cell in use; the last one to go tidies up.
pub(super) struct User<'a> {
    volume: &'a LocalVolume,
    pub(super) cell: Arc<FileCell>,
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

    /// All files that are open or staged, in the order of their inodes: what happens to one after the other is then the
    /// same wherever the same was done before.
    pub(super) fn cells(&self) -> Vec<Arc<FileCell>> {
        let mut cells: Vec<_> = self.files.lock().values().cloned().collect();
        cells.sort_unstable_by_key(|cell| cell.id);
        cells
    }

    /// Whether anybody has the inode open.
    pub(super) fn is_open(&self, id: InodeId) -> bool {
        self.files.lock().get(&id).is_some_and(|cell| cell.is_open())
    }

    /// Whether there are bytes of the inode in memory or staging.
    pub(super) fn is_loaded(&self, id: InodeId) -> bool {
        let cell = self.files.lock().get(&id).cloned();
        cell.is_some_and(|cell| cell.data.lock().is_some())
    }

    /// Whether some of them are not published.
    pub(super) fn is_written(&self, id: InodeId) -> bool {
        let cell = self.files.lock().get(&id).cloned();
        let is_dirty = |data: &Data| data.staging.as_ref().is_some_and(|staging| staging.dirty);
        cell.is_some_and(|cell| cell.data.lock().as_ref().is_some_and(is_dirty))
    }

    /// The cell of a file, if it has one.
    pub(super) fn known(&self, id: InodeId) -> Option<User<'_>> {
        let known = self.files.lock().contains_key(&id);
        known.then(|| self.enter(id))
    }

    /// The bytes of the cell, loaded. `state` is held so that the version cannot change meanwhile.
    fn data<'a>(&self, state: &State, cell: &'a FileCell) -> Result<MutexGuard<'a, Option<Data>>> {
        let mut data = cell.data.lock();
        if data.is_none() {
            let row = state.inode(cell.id)?.ok_or(VolumeError::NotFound)?;
            let stat = Stat::in_tables(state, &row);
            match stat.kind {
                FileKind::File => {}
                FileKind::Directory => return Err(VolumeError::IsDirectory),
                _ => return Err(VolumeError::Invalid("not a regular file")),
            }
            let (version, content, inline) = match (self.merged(state, cell.id, &row)?, stat.version) {
                (Some(merged), _) => (Some(merged.dot), merged.content(), merged.bytes.clone()),
                (None, Some((dot, version))) => {
                    (Some(dot), version.content, inline_bytes(state, cell.id, Some(dot), &version.content)?)
                }
                (None, None) => (None, Content::Empty, Bytes::new()),
            };
            let reader = ContentReader::new(content, inline.clone())?;
            let seen = row.versions.dots().collect();
            let merges = state.merges();
            *data = Some(Data {
                version,
                seen,
                merges,
                outdated: None,
                stands_in: None,
                inline,
                reader,
                staging: None,
                failed: false,
            });
        }
        Ok(data)
    }

    /// Gives the cell a place for changed bytes if it has none. A file that is or gets `short` is staged in memory.
    fn stage(&self, state: &State, cell: &FileCell, short: bool) -> Result<()> {
        let mut data = self.data(state, cell)?;
        let data = data.as_mut().expect("just loaded");
        if data.staging.is_some() {
            return Ok(());
        }
        let place = if short { self.staging.take_short() } else { self.staging.take_file() };
        let place = place.map_err(staging_io("making a staging file"))?;
        let now = self.env.now();
        let begin = || -> Result<Staging> {
            let mtime = state.inode(cell.id)?.map_or(now, |row| Stat::in_tables(state, &row).mtime);
            let overlay = if is_merged(data.version) {
                // No version has these bytes, so nothing may lie over them: after a crash they could not be found.
                place.file.write_at(&data.inline, 0).map_err(staging_io("writing a staging file"))?;
                Overlay::whole(data.inline.len() as u64)
            } else {
                Overlay::over(*data.reader.content(), &*place.file)?
            };
            Staging::new(place.clone(), overlay, now, mtime).map_err(looking_failed)
        };
        let begun = begin().inspect_err(|_| self.staging.give_back(&place, Lsn::default()));
        data.staging = Some(begun?);
        Ok(())
    }

    /// Moves a file from memory to the disk.
    pub(super) fn spill(&self, staging: &mut Staging) -> Result<()> {
        const STEP: u64 = 1 << 20;
        let place = self.staging.take_file().map_err(staging_io("making a staging file"))?;
        let copy = |from: &dyn File, to: &dyn File| -> std::io::Result<()> {
            let len = staging.overlay.len_bytes();
            to.set_len(len)?;
            let mut at = 0;
            while let Some(start) = from.seek_data(at)? {
                at = from.seek_hole(start)?.min(start + STEP);
                let mut bytes = vec![0; (at - start) as usize];
                from.read_exact_at(&mut bytes, start)?;
                to.write_at(&bytes, start)?;
            }
            Ok(())
        };
        if let Err(source) = copy(&*staging.file, &*place.file) {
            self.staging.give_back(&place, Lsn::default());
            return Err(from_io("writing a staging file", source));
        }
        staging.move_to(place, &self.staging, self.journal.appended());
        Ok(())
    }

    /// Changes what is staged; if memory is too short for that, after moving it to the disk.
    pub(super) fn alter(&self, staging: &mut Staging, mut alter: impl FnMut(&mut Staging) -> Result<()>) -> Result<()> {
        match alter(staging) {
            Err(VolumeError::NoSpace(_)) if staging.in_memory => {
                self.spill(staging)?;
                alter(staging)
            }
            altered => altered,
        }
    }

    pub(super) fn create_file(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        node: &NewNode<'_>,
        how: &OpenHow,
    ) -> Result<(Attr, Opened)> {
        let place = self.staging.take_short().map_err(staging_io("making a staging file"))?;
        let now = self.env.now();
        let mut staging = Staging::new(place.clone(), Overlay::whole(0), now, now).map_err(looking_failed)?;
        // Where memory is short, the kernel is to write the file by itself; unless that would take a flush here.
        let set_id = node.permissions & 0o6000 != 0;
        let kernel = !place.in_memory && how.passthrough && !how.syncs_unheard() && !set_id && self.has_room();
        let record = if kernel { Some(staging.hand_over_new().map_err(looking_failed)?) } else { None };
        let reader = ContentReader::new(Content::Empty, Bytes::new())?;
        let data = Data {
            version: None,
            seen: Vec::new(),
            merges: 0,
            outdated: None,
            stands_in: None,
            inline: Bytes::new(),
            reader,
            staging: Some(staging),
            failed: false,
        };
        let mut entered = None;
        let made = self.make_node(caller, parent, name, node, how.exclusive, |draft: &mut Draft, id| {
            draft.local.extend(record.map(|record| records::first(id, &record)));
            // Before others can see the name and open the file on their own.
            let user = self.enter(id);
            *user.cell.data.lock() = Some(data);
            let opening = Opening::new(self, &user.cell);
            entered = Some((user, opening));
            Ok(())
        });
        let (id, (user, opening)) = match (made, entered) {
            (Ok(id), Some(entered)) => (id, entered),
            (made, entered) => {
                if let Some((user, _)) = &entered {
                    *user.cell.data.lock() = None;
                }
                self.staging.give_back(&place, Lsn::default());
                return Err(made.err().unwrap_or_else(|| VolumeError::Internal("a file made without a cell".into())));
            }
        };
        let attr = self.attr(&self.state.read(), id).inspect_err(|_| self.enqueue(id))?;
        let mut gate = user.cell.gate.lock();
        let path = if kernel {
            if let Some(Data { staging: Some(staging), .. }) = user.cell.data.lock().as_mut() {
                staging.records.new_file_is_made(self.journal.appended());
            }
            gate.kernel += 1;
            Path::Passthrough { file: place.file }
        } else {
            gate.cached += 1;
            if how.direct {
                Path::Direct
            } else {
                // There is nothing yet, and all that comes goes through the cache.
                self.cached_versions.lock().insert(id, None);
                Path::Cached { keep_cache: true }
            }
        };
        gate.writers += u32::from(how.write);
        gate.running += u32::from(how.execute);
        drop(gate);
        let handle = self.add_handle(opening, how, &path);
        Ok((attr, Opened { handle, path }))
    }

    pub(super) fn open_file(&self, caller: &Caller, ino: Ino, how: &OpenHow) -> Result<Opened> {
        if ino.is_virtual() {
            return self.reserved_open(ino, how);
        }
        if how.write || how.truncate {
            self.check_writable()?;
        }
        let id = self.state.read().inode_id(ino)?;
        self.leave_outdated(id)?;
        if self.layout().is_some() {
            self.fetch_to_merge(id)?;
        }
        let stand_in = if how.write || how.truncate { None } else { self.stand_in(id)? };
        let user = self.enter(id);
        let opening = Opening::new(self, &user.cell);
        if let Some(stand_in) = stand_in {
            self.show_older(&user.cell, stand_in)?;
        }
        if how.truncate {
            // A program that just ended may still count. Nobody needs to know who wants to write, as the kernel has
            // looked at that by itself.
            if !how.write && user.cell.gate.lock().running > 0 {
                return Err(VolumeError::Running);
            }
            self.truncate_cell(&user.cell, 0)?;
            if caller.uid != 0 {
                self.kill_set_id(id, caller)?;
            }
        }
        let (mut gate, path) = loop {
            let gate = user.cell.gate.lock();
            let path = self.choose_path(&user.cell, &gate, how)?;
            if !matches!(path, Path::Passthrough { .. }) || !how.syncs_unheard() || self.cell_is_findable(&user.cell) {
                break (gate, path);
            }
            // Nobody who closes the file waits for this.
            drop(gate);
            self.make_findable(&user.cell)?;
        };
        match path {
            Path::Passthrough { .. } => gate.kernel += 1,
            Path::Cached { .. } | Path::Direct => gate.cached += 1,
        }
        gate.writers += u32::from(how.write);
        gate.running += u32::from(how.execute);
        drop(gate);
        let handle = self.add_handle(opening, how, &path);
        Ok(Opened { handle, path })
    }

    /// Whether an open may have to fetch, cut, copy or sync bytes on the disk.
    pub(super) fn open_may_wait_for_disk(&self, ino: Ino, how: &OpenHow) -> bool {
        let may_fetch = self.layout().is_some();
        if !how.write && !how.truncate && !may_fetch {
            return false;
        }
        let state = self.state.read();
        let Ok(id) = state.inode_id(ino) else { return false };
        let Ok(Some(row)) = state.inode(id) else { return false };
        if may_fetch && row.versions.entries().len() > 1 {
            return true;
        }
        let version = Stat::in_tables(&*state, &row).version;
        if !how.write && !how.truncate {
            return version.is_some_and(|(_, version)| self.is_in_doubt(&version));
        }
        if version.is_some_and(|(_, version)| version.content.len_bytes() > SHORT_BYTES_MAX) {
            return true;
        }
        // What is not published yet may be long all the same.
        let on_disk = |data: &Data| data.staging.as_ref().is_some_and(|staging| !staging.in_memory);
        let is_long = |cell: &FileCell| cell.data.try_lock().is_none_or(|data| data.as_ref().is_some_and(on_disk));
        how.syncs_unheard() && self.files.lock().get(&id).is_some_and(|cell| is_long(cell))
    }

    fn cell_is_findable(&self, cell: &FileCell) -> bool {
        let data = cell.data.lock();
        let staging = data.as_ref().and_then(|data| data.staging.as_ref());
        staging.is_some_and(|staging| self.is_findable(staging))
    }

    fn choose_path(&self, cell: &FileCell, gate: &Gate, how: &OpenHow) -> Result<Path> {
        let state = self.state.read();
        let row = state.inode(cell.id)?.ok_or(VolumeError::NotFound)?;
        let mode = Stat::of(&row).mode.permissions;
        let (len, whole, is_ours, is_unsynced) = {
            let mut data = self.data(&state, cell)?;
            let data = data.as_mut().expect("just loaded");
            if how.write {
                data.check_is_latest()?;
            }
            let is_dirty = data.staging.as_ref().is_some_and(|staging| staging.dirty);
            if how.write && gate.cached + gate.kernel == 0 && !is_dirty {
                data.merges = state.merges();
            }
            match &mut data.staging {
                Some(staging) => {
                    staging.observe().map_err(looking_failed)?;
                    let committed = self.journal.committed();
                    let is_ours = staging.in_memory || staging.records.may_bring_deltas_back(committed);
                    let is_unsynced = staging.dirty && !staging.records.are_of_all();
                    (staging.overlay.len_bytes(), staging.overlay.is_whole(), is_ours, is_unsynced)
                }
                None => (data.reader.content().len_bytes(), false, false, false),
            }
        };
        drop(state);
        let through_here = || {
            if how.direct || self.is_misjudged(cell.id) {
                if how.write {
                    self.cached_versions.lock().remove(&cell.id);
                }
                Path::Direct
            } else {
                Path::Cached { keep_cache: self.is_cache_right(cell) }
            }
        };
        // Only through WRITE does the kernel say that set-id bits must go. A reader of such a file is no different: a
        // later writer would have to follow it.
        let set_id = mode & 0o6000 != 0;
        // And only through FSYNC does it say that a write of an O_SYNC descriptor must be durable. What was just written
        // through here, any amount of it, would have to be synced before the kernel may sync by itself.
        let waits = how.write && how.sync || how.syncs_unheard() && is_unsynced;
        let excluded = gate.cached > 0 || is_ours || gate.kernel == 0 && (set_id || waits);
        if !how.passthrough || excluded {
            return Ok(through_here());
        }
        if !whole {
            if !how.write || len <= SHORT_BYTES_MAX || len > MATERIALISE_BYTES_MAX || !self.has_room() {
                return Ok(through_here());
            }
            match self.materialise(cell) {
                // What is not here is not fetched before somebody reads it.
                Err(error) if is_lacking(&error) => return Ok(through_here()),
                done => done?,
            }
        }
        if how.write && gate.kernel == 0 && !self.has_room() {
            return Ok(through_here());
        }
        let mut data = cell.data.lock();
        let staging = data.as_mut().and_then(|data| data.staging.as_mut());
        let staging = staging.ok_or_else(|| VolumeError::Internal("a whole file without staging".into()))?;
        // Somebody may have synced it just now.
        if !staging.is_handed() && staging.records.may_bring_deltas_back(self.journal.committed()) {
            drop(data);
            return Ok(through_here());
        }
        staging.hand_over().map_err(looking_failed)?;
        Ok(Path::Passthrough { file: staging.file.clone() })
    }

    /// Brings all bytes into the staging file.
    fn materialise(&self, cell: &FileCell) -> Result<()> {
        self.stage(&self.state.read(), cell, false)?;
        let mut data = cell.data.lock();
        let Some(Data { staging: Some(staging), reader, .. }) = data.as_mut() else { return Ok(()) };
        let mut sources = Sources { file: &*staging.file, base: reader, glyphs: &*self.store };
        let len = staging.overlay.len_bytes();
        staging.overlay.materialise(&mut sources, 0..len)?;
        staging.restamp().map_err(looking_failed)?;
        Ok(())
    }

    /// Whether the bytes of this file that the kernel has cached are right; from now on they are. Whatever is written
    /// through here passes through that cache, but what the kernel writes to the staging file by itself does not.
    fn is_cache_right(&self, cell: &FileCell) -> bool {
        let data = cell.data.lock();
        let Some(data) = data.as_ref() else { return false };
        if data.staging.as_ref().is_some_and(|staging| staging.dirty && staging.is_handed()) {
            self.cached_versions.lock().remove(&cell.id);
            return false;
        }
        self.cached_versions.lock().insert(cell.id, data.version)
    }

    fn add_handle(&self, opening: Opening<'_>, how: &OpenHow, path: &Path) -> Handle {
        let cell = opening.done();
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let kernel = matches!(path, Path::Passthrough { .. }).into();
        let appends = how.append && matches!(path, Path::Direct) && self.is_misjudged(cell.id);
        let older = cell.data.lock().as_ref().is_some_and(|data| data.stands_in.is_some());
        let open = OpenFile { cell, write: how.write, execute: how.execute, appends, older, kernel };
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
        if ino.is_virtual() {
            return self.reserved_read(ino, handle, offset, len);
        }
        let open = self.handle(handle)?;
        let mut buf = vec![0; len as usize];
        let got = self.having(
            open.about(),
            || open.cell.base_from(offset),
            |glyphs| {
                let mut data = open.cell.data.lock();
                let Data { reader, staging, .. } = data.as_mut().ok_or(VolumeError::BadHandle)?;
                Ok(match staging {
                    Some(staging) => {
                        staging.observe().map_err(looking_failed)?;
                        let mut sources = Sources { file: &*staging.file, base: reader, glyphs };
                        staging.overlay.read_at(&mut sources, &mut buf, offset)?
                    }
                    None => reader.read_at(glyphs, &mut buf, offset)?,
                })
            },
        )?;
        buf.truncate(got);
        Ok(buf)
    }

    /// Reads what is in memory, unless somebody is at work on the file.
    pub(super) fn read_from_memory(&self, handle: Handle, offset: u64, len: u32) -> Option<Vec<u8>> {
        let open = self.handle(handle).ok()?;
        let mut data = open.cell.data.try_lock()?;
        let Data { reader, staging, .. } = data.as_mut()?;
        let (len_bytes, at_hand) = match staging {
            Some(staging) => (staging.overlay.len_bytes(), staging.in_memory && staging.overlay.is_whole()),
            None => (reader.content().len_bytes(), matches!(reader.content(), Content::Empty | Content::Inline { .. })),
        };
        if !at_hand {
            return None;
        }
        let mut buf = vec![0; u64::from(len).min(len_bytes.saturating_sub(offset)) as usize];
        let got = match staging {
            Some(staging) => staging.file.read_at(&mut buf, offset).ok()?,
            None => reader.read_at(&*self.store, &mut buf, offset).ok()?,
        };
        buf.truncate(got);
        Some(buf)
    }

    /// Writes to where the file is staged already, unless somebody is at work on it. One writer at a time may do so on
    /// the disk, so that only one of the threads that must not wait ever does, should the host keep it waiting.
    pub(super) fn write_at_once(&self, handle: Handle, offset: u64, bytes: &[u8]) -> Option<u32> {
        let open = self.handle(handle).ok()?;
        let end = offset.checked_add(bytes.len() as u64)?;
        if !open.write || open.appends || !self.has_room() || self.journal.is_failed() || self.journal.is_backlogged() {
            return None;
        }
        let mut data = open.cell.data.try_lock()?;
        let staging = data.as_mut()?.staging.as_mut()?;
        let stays_in_memory = staging.in_memory && end <= MEMORY_BYTES_MAX;
        let _turn = if stays_in_memory { None } else { Some(self.writing_to_disk.try_lock()?) };
        let written = self.change_staged(staging, end, Change::Written(offset..end), |staging| {
            Ok(staging.overlay.write(&*staging.file, bytes, offset)?)
        });
        written.ok().map(|()| bytes.len() as u32)
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
        // The kernel lets one append at a time.
        let offset = if open.appends { self.end_of(&open.cell)? } else { offset };
        let end = offset.saturating_add(bytes.len() as u64);
        // First, so that no crash leaves the bytes with the bits.
        if let Some(caller) = unprivileged {
            self.kill_set_id(open.cell.id, caller)?;
        }
        self.change(&open.cell, end, Change::Written(offset..end), |staging| {
            Ok(staging.overlay.write(&*staging.file, bytes, offset)?)
        })?;
        Ok(bytes.len() as u32)
    }

    fn end_of(&self, cell: &FileCell) -> Result<u64> {
        let mut data = cell.data.lock();
        let Data { reader, staging, .. } = data.as_mut().ok_or(VolumeError::BadHandle)?;
        let Some(staging) = staging else { return Ok(reader.content().len_bytes()) };
        staging.observe().map_err(looking_failed)?;
        Ok(staging.overlay.len_bytes())
    }

    /// Changes bytes before `end`: makes sure that there is a place and room for them, and notes the change.
    fn change(
        &self,
        cell: &FileCell,
        end: u64,
        what: Change,
        change: impl FnMut(&mut Staging) -> Result<()>,
    ) -> Result<()> {
        self.check_writable()?;
        if !self.has_room() {
            return Err(VolumeError::NoSpace("the disk is full up to the reserve"));
        }
        let mut data = cell.data.lock();
        if data.as_ref().is_none_or(|data| data.staging.is_none()) {
            drop(data);
            let gate = cell.gate.lock();
            {
                let state = self.state.read();
                let len = self.data(&state, cell)?.as_ref().map_or(0, |data| data.reader.content().len_bytes());
                self.stage(&state, cell, len <= SHORT_BYTES_MAX && end <= MEMORY_BYTES_MAX)?;
            }
            drop(gate);
            data = cell.data.lock();
        }
        let Some(Data { staging: Some(staging), .. }) = data.as_mut() else { return Err(VolumeError::BadHandle) };
        self.change_staged(staging, end, what, change)
    }

    fn change_staged(
        &self,
        staging: &mut Staging,
        end: u64,
        what: Change,
        change: impl FnMut(&mut Staging) -> Result<()>,
    ) -> Result<()> {
        staging.observe().map_err(looking_failed)?;
        if staging.in_memory && end > MEMORY_BYTES_MAX {
            self.spill(staging)?;
        }
        self.alter(staging, change).inspect_err(|_| staging.change_failed())?;
        staging.changed(what, self.env.now()).map_err(looking_failed)
    }

    pub(super) fn truncate(&self, ino: Ino, len: u64) -> Result<()> {
        let id = self.state.read().inode_id(ino)?;
        self.leave_outdated(id)?;
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
        // Whether the kernel reads or writes the staging file decides what may be done with it; it must not change
        // meanwhile.
        let gate = loop {
            let gate = cell.gate.lock();
            {
                let state = self.state.read();
                self.make_latest(cell, len)?;
                let short = self.data(&state, cell)?.as_ref().map_or(0, |data| data.reader.content().len_bytes());
                let short = len == 0 || short <= SHORT_BYTES_MAX && len <= MEMORY_BYTES_MAX;
                self.stage(&state, cell, short)?;
            }
            if len == 0 && gate.kernel == 0 || self.deltas_are_gone(cell) {
                break gate;
            }
            drop(gate);
            self.remove_deltas(cell)?;
        };
        let mut data = cell.data.lock();
        let Some(Data { staging: Some(staging), failed, .. }) = data.as_mut() else {
            return Err(VolumeError::BadHandle);
        };
        let change = |staging: &mut Staging| {
            if len > 0 {
                staging.overlay.truncate(&*staging.file, len)?;
                return Ok(());
            }
            if staging.in_memory || staging.is_handed() || gate.kernel > 0 {
                staging.file.set_len(0).map_err(staging_io("truncating"))?;
            } else {
                // What records say of the old file stays true until new ones are made.
                let place = self.staging.take_short().map_err(staging_io("making a staging file"))?;
                staging.move_to(place, &self.staging, self.journal.appended());
            }
            staging.overlay = Overlay::whole(0);
            Ok(())
        };
        self.change_staged(staging, len, Change::Other, change)?;
        // Nothing of what could not be synced is left.
        *failed &= len > 0;
        Ok(())
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
        self.change(&open.cell, offset + len, Change::Other, |staging| {
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
        let found = self.having(
            open.about(),
            || None,
            |glyphs| {
                let mut data = open.cell.data.lock();
                let Data { reader, staging, .. } = data.as_mut().ok_or(VolumeError::BadHandle)?;
                Ok(match staging {
                    Some(staging) => {
                        staging.observe().map_err(looking_failed)?;
                        if offset >= staging.overlay.len_bytes() {
                            return Ok(None);
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
                })
            },
        )?;
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
        gate.running -= u32::from(open.execute);
        let (last, last_writer) = (gate.kernel + gate.cached == 0, open.write && gate.writers == 0);
        drop(gate);
        // Somebody may have written through a mapping; the kernel must ask again for what stat(2) says.
        if open.write && open.kernel.load(Ordering::Acquire) && self.observe_dirty(&cell) {
            self.invalidate_inode(cell.id, false);
        }
        // Whoever was the last by the gate need not be the last one here, and only then an unlinked file can go.
        let none = cell.count_down();
        if last_writer || last || none {
            self.enqueue(cell.id);
        }
        self.leave(&cell);
        let forgotten = last && self.is_misjudged(cell.id);
        if forgotten && let Err(error) = self.forget_in_kernel(&self.state.read(), cell.id) {
            tracing::error!(%error, inode = %cell.id.0, "the kernel may go on to show old bytes");
        }
    }

    /// A merge gives the file another version, or takes its last one. `stat` is what it looked like before.
    pub(super) fn outdate(&self, id: InodeId, stat: &Stat) {
        let Some(cell) = self.files.lock().get(&id).cloned() else { return };
        let mut data = cell.data.lock();
        let Some(data) = data.as_mut() else { return };
        let content = data.reader.content();
        data.outdated.get_or_insert(Shown {
            len_bytes: content.len_bytes(),
            allocated_bytes: content.allocated_bytes(),
            mtime: stat.mtime,
            ctime: stat.ctime,
        });
    }

    /// Drops the bytes of a file that a merge has changed since they were loaded, if nobody needs them.
    fn leave_outdated(&self, id: InodeId) -> Result<()> {
        let Some(user) = self.known(id) else { return Ok(()) };
        let is_outdated = user.cell.data.lock().as_ref().is_some_and(|data| data.outdated.is_some());
        if is_outdated { self.cache_or_drop(&user.cell, false) } else { Ok(()) }
    }

    /// The versions that are being read, and those under files that are being changed.
    pub(super) fn contents_in_use(&self) -> Vec<Content> {
        let mut contents = self.contents_being_read();
        for cell in self.cells() {
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
        let is_orphan = {
            let state = self.state.read();
            state.inode(id)?.map(|row| Ok::<_, VolumeError>(view::nlink(&*state, id, row.kind())? == 0)).transpose()?
        };
        if is_orphan == Some(true) {
            // Who only read it has left no cell.
            return self.forget_orphan(&self.enter(id).cell);
        }
        let Some(user) = self.known(id) else { return Ok(()) };
        if is_orphan.is_none() {
            return self.forget_orphan(&user.cell);
        }
        let gate = user.cell.gate.lock();
        let open = gate.cached + gate.kernel > 0;
        let writers = gate.writers > 0;
        drop(gate);
        if !writers && self.publish(&user.cell, Closure::Close)? == Publication::Changing {
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
        let file = {
            let data = cell.data.lock();
            let staging = data.as_ref().and_then(|data| data.staging.as_ref());
            staging.filter(|staging| staging.is_handed()).map(|staging| staging.file.clone())
        };
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
            let attr = self.attr_of(&state, &*state, cell.id, &row, 0)?;
            // Unless the kernel has let go of it in the meantime.
            self.departed.lock().entry(cell.id).and_modify(|last| *last = attr);
            names::purge(&state, &*state, &mut draft, cell.id, &row)?;
        }
        let mut data = cell.data.lock();
        let staging = data.as_mut().and_then(|data| data.staging.take());
        if let Some(staging) = &staging {
            draft.local.extend(staging.records.replacing(cell.id, None));
        }
        let is_nothing = draft.effects.is_empty() && draft.local.is_empty();
        let lsn = if is_nothing { self.journal.appended() } else { state.commit(draft, &self.journal)? };
        if let Some(staging) = staging {
            staging.retire(&self.staging, lsn);
        }
        Ok(())
    }

    /// A closed and clean file loses its staging file; a long one is kept as a cache if it `may_stay`.
    fn cache_or_drop(&self, cell: &FileCell, may_stay: bool) -> Result<()> {
        let gate = cell.gate.lock();
        if gate.cached + gate.kernel > 0 {
            return Ok(());
        }
        if self.has_writers(cell)? {
            // A mapping outlived its descriptors: whatever is stored through it is looked for at every tick.
            self.enqueue_later(cell.id);
            return Ok(());
        }
        let mut state = self.state.write();
        let mut data = cell.data.lock();
        let Some(loaded) = data.as_mut() else { return Ok(()) };
        let is_outdated = loaded.outdated.is_some();
        let Some(staging) = loaded.staging.as_mut() else {
            if is_outdated {
                *data = None;
            }
            return Ok(());
        };
        staging.observe().map_err(looking_failed)?;
        if staging.dirty {
            return Ok(());
        }
        // What is published is safer than any copy of it, which a record would bring back after a crash.
        let changes = staging.records.replacing(cell.id, None);
        let lsn = if changes.is_empty() {
            self.journal.appended()
        } else {
            let lsn = state.commit_local(changes, self.env.now(), &self.journal)?;
            staging.records.replaced(Base::None, lsn);
            lsn
        };
        let len = staging.overlay.len_bytes();
        let is_worth = len >= CACHE_BYTES_MIN && staging.overlay.is_whole() && !loaded.failed;
        if may_stay
            && is_worth
            && !is_outdated
            && self.staging_cache.admit(cell.id, len, self.settings.read().cache_bytes)
        {
            return Ok(());
        }
        let handed = staging.is_handed();
        if let Some(staging) = loaded.staging.take() {
            staging.retire(&self.staging, lsn);
        }
        if is_outdated {
            *data = None;
        }
        drop((data, state, gate));
        if handed {
            self.let_go_of_file(cell.id);
        }
        Ok(())
    }

    /// Publishes a file whose users will not come back, or else makes its bytes durable in staging.
    pub(super) fn close_down(&self, id: InodeId) -> Result<()> {
        let settled = self.settle(id);
        let Some(user) = self.known(id) else { return settled };
        let published = settled.and_then(|()| self.publish(&user.cell, Closure::IdleFlush));
        match published {
            Ok(Publication::Clean | Publication::Published | Publication::Gone) => Ok(()),
            Ok(Publication::Changing) => self.record(&user.cell),
            Err(error) => self.record(&user.cell).and(Err(error)),
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
        let Some(Data { staging, outdated, .. }) = data.as_mut() else { return Ok(None) };
        let pinned = || outdated.filter(|_| cell.is_open());
        let Some(staging) = staging else { return Ok(pinned()) };
        staging.observe().map_err(looking_failed)?;
        if !staging.dirty {
            return Ok(pinned());
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
            staging.observe().map_err(looking_failed)?;
            staging.set_mtime(mtime);
        }
        Ok(())
    }

    /// close(2) is the last chance to tell the writer that an earlier sync failed.
    pub(super) fn flush_file(&self, handle: Handle) -> Result<()> {
        let Ok(open) = self.handle(handle) else { return Ok(()) };
        let failed = open.write && open.cell.data.lock().as_ref().is_some_and(|data| data.failed);
        if failed { Err(VolumeError::LostWrite) } else { Ok(()) }
    }

    /// Publishes what was written to a file that is about to get another name, so that after a crash the new name
    /// never shows fewer bytes than were written.
    pub(super) fn publish_before_rename(&self, parent: Ino, name: &[u8]) -> Result<()> {
        if self.files.lock().is_empty() || parent.is_virtual() {
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
}

/// The bytes beside the version record of a small file.
pub(super) fn inline_bytes<T: Tables>(rows: &T, id: InodeId, version: Option<Dot>, content: &Content) -> Result<Bytes> {
    match (content, version) {
        (Content::Inline { .. }, Some(dot)) => {
            Ok(rows.get(Table::Contents, &content_key(id, dot))?.unwrap_or_default())
        }
        _ => Ok(Bytes::new()),
    }
}
