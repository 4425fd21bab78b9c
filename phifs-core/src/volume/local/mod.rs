//! A volume on one machine: POSIX rules over the causal tables, with the bytes of open files beside them.
//!
//! | module | what |
//! | --- | --- |
//! | `state`, `scope` | tables, context, clock; transactions, the only way in which they change; what one call reads |
//! | `recover` | opening: superblock, packs, journal, oplog, staging files |
//! | `names`, `attrs`, `acl` | calls on names and attributes |
//! | `files`, `staged` | open files; the bytes that were written to them and are not published yet |
//! | `cached` | which version of each file the kernel has in its cache |
//! | `durable`, `records` | how bytes become durable before they are published |
//! | `publication` | staged bytes become versions; the files of a group together |
//! | `upkeep` | what background threads do: sync, seal, publish, checkpoint |
//! | `collect` | garbage collection |
//! | `placed` | which contents are to be here |
//! | `pins` | paths whose contents stay here |
//! | `remote` | contents that are not here |
//! | `glyphs` | glyphs that come from other machines, and go to them, one by one |
//! | `conflicts` | what people have to decide about |
//! | `branches` | lines of changes of their own, which began as snapshots |
//! | `snapshots` | named snapshots: taken, sealed, deleted |
//! | `settings` | what is set for the volume |
//! | `restore` | putting back what a snapshot holds |
//! | `merge`, `join`, `bulk` | another line, or a snapshot, joined into one |
//! | `peers` | what other machines get of the main line, and what it learns of them |
//! | `coming` | glyphs of versions that are still being published |
//! | `groups` | operations on their way between machines |
//! | `audit` | whether machines that know the same have the same |
//! | `receipts`, `backlog` | what other machines hold durably; what they lack |
//! | `members` | who has the volume, and who is invited |
//! | `transfer` | snapshots that go out and come in as a stream |
//! | `bootstrap` | a new store out of such a stream, or of what another machine knows |
//! | `preview` | the volume of another machine, read-only, while a store is made of it |
//! | `tree` | reading the tree of some state where it lies |
//! | `verify` | whether all of a snapshot is there and sound |
//! | `check`, `lost` | scrub and fsck; which files a lost glyph takes with it |
//! | `ballast` | room for making room on a full disk |
//! | `history` | superseded versions of files |
//! | `drivers` | concurrent versions that are merged while they are read |
//! | `reserved` | `.phi` |
//!
//! Locks, in the order in which they are taken: housekeeping, the making of branches, a branch's slot, checkpoint, a
//! file's gate, the state (of a branch, then of the main line), a file's data, and the small ones that are held for a
//! moment (the map of files, handles, queues). One exception: the last user of a file looks at its data under the lock of
//! the map, which is safe as nobody waits for the map with a file's data in hand.
//! Nobody waits for the disk under the state lock but for the reading of rows that are not cached.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use parking_lot::{Condvar, Mutex, RwLock};

use crate::disk::Disk;
use crate::id::InodeId;
use crate::identity::NodeKey;
use crate::merkle::{NodeCache, Shape};
use crate::meta::superblock::{StoreId, Superblock};
use crate::meta::{Journal, TableId, TableSpec};
use crate::namespace::{Table, view};
use crate::oplog::Oplog;
use crate::settings::Settings;
use crate::snapshot::keep::KeepRules;
use crate::store::GlyphStore;
use crate::time::Env;
use crate::volume::{
    Allocate, Attr, Caller, Entry, FileKind, Handle, Ino, Invalidate, Named, NewNode, OpenHow, Opened, RenameMode,
    Result, Seek, SetAttr, StatFs, Volume, VolumeError, XattrMode,
};

mod acl;
mod attrs;
mod audit;
mod backlog;
mod ballast;
mod bootstrap;
mod branches;
mod bulk;
mod cached;
mod check;
mod collect;
mod coming;
mod conflicts;
mod drivers;
mod durable;
mod files;
mod glyphs;
mod groups;
mod history;
mod incarnation;
mod join;
mod lost;
mod members;
mod merge;
mod names;
mod peers;
mod pins;
mod placed;
mod preview;
mod publication;
mod receipts;
mod records;
mod recover;
mod remote;
mod reserved;
mod restore;
mod scope;
mod settings;
mod snapshots;
mod staged;
mod standin;
mod state;
mod transfer;
mod tree;
mod upkeep;
mod verify;

pub use audit::Divergence;
pub use backlog::Backlog;
pub use bootstrap::{Aim, Made, Newcomer, Peer};
pub use branches::BranchError;
pub use check::{CheckReport, Problem};
pub use collect::{CollectReport, Confirmed};
pub use conflicts::{Explained, Found as FoundConflict, Resolution, Resolved};
pub use drivers::Unmerged;
pub use groups::{GroupRefused, News, Taken};
pub use history::FileVersion;
pub use lost::{LostFile, LostRows};
pub use members::{Invite, JoinError};
pub use merge::{MergeError, MergeOptions, Merged, Side};
pub use peers::{Head, PeerError};
pub use pins::PinnedHere;
pub use preview::{AskAnytime, Preview};
pub use recover::{OpenError, Opening, Progress};
pub use remote::PeerGlyphs;
pub use restore::Restored;
pub use settings::SettingError;
pub use snapshots::{SnapshotError, candidates};
pub use transfer::{Exported, ImportOptions, Imported, OutFile, Sink, Tell, TransferError};
pub use upkeep::{RecentOp, Status};
pub use verify::Verification;

use backlog::Backlogs;
use ballast::Ballast;
use branches::Branches;
use cached::CachedVersions;
use files::{FileCell, OpenFile};
use peers::LastHead;
use receipts::Receipts;
use remote::Remote;
use reserved::Reserved;
use staged::StagingPool;
use state::State;
use transfer::InUse;
use upkeep::{Cache, Checkpoints};

/// What may differ from one volume to the next.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for decoded nodes of the metadata maps.
    pub node_cache_bytes: u64,
    /// Memory for the bytes of small files that are not published yet.
    pub memory_bytes: u64,
    /// Space on the host for staging files of closed files, if the volume's settings say nothing else.
    pub staging_cache_bytes: u64,
    /// How much of the oplog is kept for peers and for `phifs log`.
    pub oplog_bytes: u64,
    /// Owner of the root directory of a new volume.
    pub root_owner: (u32, u32),
    /// A file that stays open is published at most this often, if the volume's settings say nothing else.
    pub publish_interval: std::time::Duration,
    /// How often a snapshot is taken, and which of those are kept, if the volume's settings say nothing else.
    pub snapshot_every: Option<std::time::Duration>,
    pub snapshot_keep: KeepRules,
    /// How many superseded versions of each file are kept.
    pub versions_keep: u32,
    /// For how long a version is kept after it was superseded.
    pub versions_max_age: std::time::Duration,
    /// Free space on the host that data must leave; `None` for 5 %, at most 10 GiB.
    pub reserve_bytes: Option<u64>,
    /// Whether the states of disputed files that are not shown are listed beside them, as read-only files.
    pub siblings: bool,
    /// Drop what follows damage in the middle of the journal, instead of refusing to open.
    pub repair: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node_cache_bytes: 128 << 20,
            memory_bytes: 64 << 20,
            staging_cache_bytes: 1 << 30,
            oplog_bytes: 256 << 20,
            root_owner: (0, 0),
            publish_interval: std::time::Duration::from_secs(1),
            snapshot_every: None,
            snapshot_keep: Settings::default().snapshot_keep,
            versions_keep: 16,
            versions_max_age: std::time::Duration::from_secs(7 * 24 * 60 * 60),
            reserve_bytes: None,
            siblings: false,
            repair: false,
        }
    }
}

const fn spec(table: Table, name: &'static str, replicated: bool, leaf_bytes: u32) -> TableSpec {
    TableSpec { id: TableId(table as u8), name, replicated, shape: Shape { leaf_bytes, inner_bytes: 4096 } }
}

/// Small contents are wide rows that are read and written in runs, so their leaves are long.
pub(crate) static TABLES: [TableSpec; 13] = [
    spec(Table::Inodes, "inodes", true, 4096),
    spec(Table::Links, "links", true, 4096),
    spec(Table::Moves, "moves", true, 4096),
    spec(Table::Xattrs, "xattrs", true, 4096),
    spec(Table::Contents, "contents", true, 32768),
    spec(Table::Children, "children", false, 4096),
    spec(Table::Dirs, "dirs", false, 4096),
    spec(Table::LinksOf, "links-of", false, 4096),
    spec(Table::Skipped, "skipped-moves", false, 4096),
    spec(Table::Unions, "unions", false, 4096),
    spec(Table::Conflicts, "conflicts", false, 4096),
    spec(Table::Registry, "registry", false, 4096),
    spec(Table::Local, "local", false, 4096),
];

/// One line of changes of a volume: the main one, which keeps the registry, or a branch. All lines of a store share the
/// glyphs and the nodes of maps.
pub struct LocalVolume {
    env: Arc<dyn Env>,
    disk: Arc<dyn Disk>,
    store: Arc<GlyphStore>,
    nodes: Arc<NodeCache>,
    store_id: StoreId,
    key: Arc<NodeKey>,
    /// The name of the branch that this is.
    branch: Option<String>,
    /// The branches that are open beside it, if this is the main line.
    branches: Branches,
    options: Options,
    opened: Opening,
    journal: Journal,
    oplog: Oplog,
    superblock: Mutex<Superblock>,
    sealing: Mutex<()>,
    /// Held by whoever counts and signs snapshots.
    sealing_snapshots: Mutex<()>,
    /// Whether there may be snapshots that are not sealed; whoever seals them waits for it.
    seal_wanted: Mutex<bool>,
    seal_asked: Condvar,
    /// Held by a collection, and by a check: what it has seen named must not be removed before it is read.
    housekeeping: Mutex<()>,
    /// Whether a snapshot was taken whose maps are still to be made (`Checkpoints::pending`).
    cut_pending: AtomicBool,
    /// The last checkpoint; held while the next one is made.
    checkpoint: Mutex<Checkpoints>,
    /// States that exports and imports read.
    in_use: InUse,
    head: LastHead,
    receipts: Receipts,
    backlogs: Backlogs,
    divergence: Mutex<Option<Divergence>>,
    /// Held (shared) from the moment when something from elsewhere is in the tables until the kernel has heard of it.
    showing: RwLock<()>,
    /// How many other machines hear at once of what is new.
    followers: AtomicUsize,
    coming: coming::Coming,
    state: Arc<RwLock<State>>,
    /// The state of the main line, which alone has a registry.
    registry: Arc<RwLock<State>>,
    files: Mutex<HashMap<InodeId, Arc<FileCell>>>,
    handles: RwLock<HashMap<u64, Arc<OpenFile>>>,
    next_handle: AtomicU64,
    /// The version of a file that the kernel's page cache holds.
    cached_versions: Mutex<CachedVersions>,
    /// Files that got another length behind the back of the kernel, which has not let go of them since. Where it caches
    /// what is written, it goes by the length that it first heard for as long as it knows the inode.
    misjudged: Mutex<HashSet<InodeId>>,
    staging: StagingPool,
    staging_cache: Cache,
    /// Held by whoever writes to the disk on a thread that must not wait for long.
    writing_to_disk: Mutex<()>,
    /// Files to settle: published, dropped or forgotten.
    queue: Mutex<VecDeque<InodeId>>,
    queued: Condvar,
    /// Somebody waits for what is queued: a snapshot.
    hurried: AtomicBool,
    /// What files looked like when they lost their last name, or later, when they were closed for the last time. The
    /// kernel still knows them, perhaps by a descriptor that was never opened for reading or writing (O_PATH).
    departed: Mutex<HashMap<InodeId, Attr>>,
    /// Directories that were removed and that the kernel still knows: somebody may have them open.
    removed_dirs: Mutex<HashSet<InodeId>>,
    /// What is below `.phi`, as far as the kernel knows it.
    reserved: Reserved,
    /// Files of groups that were synced: the group is to be published, however often somebody writes to it.
    synced_in_groups: Mutex<BTreeSet<InodeId>>,
    /// Files whose publication has to wait for the next tick.
    retries: Mutex<BTreeSet<InodeId>>,
    /// Whether the disk has room for data.
    room: AtomicBool,
    /// Whether it is about to run out: caches are given up, and some space is held back.
    tight: AtomicBool,
    ballast: Arc<Ballast>,
    stopping: AtomicBool,
    invalidate: RwLock<Option<Arc<dyn Invalidate>>>,
    /// What holds for the volume: the defaults of this machine, and what is set in the registry.
    settings: Arc<RwLock<Settings>>,
    merged: drivers::Remembered,
    /// Other machines, which may have what is not here.
    remote: Arc<Remote>,
    /// Files whose contents could not be had lately, and why.
    unreadable: Mutex<HashMap<InodeId, String>>,
    counters: upkeep::Counters,
}

impl LocalVolume {
    /// Where changes that the kernel may have cached are reported from now on.
    pub fn set_invalidate(&self, sink: Arc<dyn Invalidate>) {
        *self.invalidate.write() = Some(sink);
    }

    /// Nobody holds the lock while they report.
    fn kernel(&self) -> Option<Arc<dyn Invalidate>> {
        self.invalidate.read().clone()
    }

    fn invalidate_inode(&self, id: InodeId, data: bool) {
        if let Some(sink) = self.kernel() {
            let ino = self.state.read().ino(id);
            sink.inode(ino, data);
        }
    }

    /// The length of a file changes, and the kernel does not know. Called under the lock of the state, so that whoever
    /// opens the file afterwards finds it out; somebody then has to call `forget_in_kernel`.
    fn misjudge(&self, id: InodeId) {
        if self.kernel().is_some() {
            self.misjudged.lock().insert(id);
        }
    }

    fn is_misjudged(&self, id: InodeId) -> bool {
        self.misjudged.lock().contains(&id)
    }

    /// What the kernel does not know any more, it will hear anew. Gives the rest.
    fn still_misjudged(&self) -> Vec<InodeId> {
        let mut misjudged: Vec<InodeId> = self.misjudged.lock().iter().copied().collect();
        if misjudged.is_empty() {
            return misjudged;
        }
        let sink = self.kernel();
        misjudged.retain(|id| {
            let ino = self.state.read().ino(*id);
            let is_held = sink.as_ref().is_some_and(|sink| sink.holds(ino));
            if !is_held {
                self.misjudged.lock().remove(id);
            }
            is_held
        });
        misjudged
    }

    /// Makes the kernel forget a file as a whole: as long as it knows one of its names, it goes by its own idea of the
    /// length.
    fn forget_in_kernel(&self, state: &State, id: InodeId) -> Result<()> {
        let Some(sink) = self.kernel() else { return Ok(()) };
        for (dir, name) in view::names_of(state, id, FileKind::File)? {
            sink.entry(state.ino(dir.inode()), &name);
        }
        sink.inode(state.ino(id), true);
        Ok(())
    }

    /// The staging file of this inode is being given up; as long as the kernel holds it, its space is not free.
    fn let_go_of_file(&self, id: InodeId) {
        if let Some(sink) = self.kernel() {
            let ino = self.state.read().ino(id);
            sink.file(ino);
        }
    }

    /// Tells the log which file cannot be read, as the caller only gets a number.
    fn log_damage(&self, error: &VolumeError, ino: Ino, name: Option<&[u8]>) {
        use crate::store::StoreError::{Corrupt, Malformed, Missing};
        if !matches!(error, VolumeError::Store(Corrupt { .. } | Malformed { .. } | Missing(_))) {
            return;
        }
        let id = self.state.read().inode_id(ino);
        let mut path = id.and_then(|id| self.path_of(id)).unwrap_or_else(|_| format!("(inode {})", ino.0).into_bytes());
        if let Some(name) = name {
            if path != b"/" {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        let path = self.labelled(path);
        tracing::error!(%error, path = %path.escape_ascii(), "a file cannot be read");
    }

    /// A path as it is told to people: in a branch it says in which.
    fn labelled(&self, path: Vec<u8>) -> Vec<u8> {
        match &self.branch {
            Some(name) => [format!("branch {name}:").as_bytes(), &path].concat(),
            None => path,
        }
    }

    fn check_writable(&self) -> Result<()> {
        if self.journal.is_failed() {
            return Err(VolumeError::ReadOnly);
        }
        // Callers hold no lock here, so this is the place to wait when the journal falls behind.
        if self.journal.is_backlogged() { self.commit_journal() } else { Ok(()) }
    }

    fn has_room(&self) -> bool {
        self.room.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Volume for LocalVolume {
    fn lookup(&self, _: &Caller, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.lookup_name(parent, name).inspect_err(|error| self.log_damage(error, parent, Some(name)))
    }

    fn forget(&self, ino: Ino) {
        if ino.is_virtual() {
            return self.reserved_forget(ino);
        }
        let id = self.state.read().inode_id(ino);
        if let Ok(id) = id {
            self.cached_versions.lock().remove(&id);
            self.misjudged.lock().remove(&id);
            self.departed.lock().remove(&id);
            let removed = self.removed_dirs.lock().remove(&id);
            if removed && let Err(error) = self.purge_orphan(id) {
                tracing::error!(%error, "a removed directory is forgotten at the next start only");
            }
        }
    }

    fn getattr(&self, ino: Ino, _: Option<Handle>) -> Result<Attr> {
        if ino.is_virtual() {
            return self.reserved_attr(ino);
        }
        let state = self.state.read();
        let id = state.inode_id(ino)?;
        self.attr(&state, id)
    }

    fn setattr(&self, caller: &Caller, ino: Ino, change: &SetAttr) -> Result<Attr> {
        self.set_attributes(caller, ino, change)
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.read_link(ino)
    }

    fn make(&self, caller: &Caller, parent: Ino, name: &[u8], node: &NewNode<'_>) -> Result<Attr> {
        let id = self.make_node(caller, parent, name, node, false, |_, _| Ok(()))?;
        self.attr(&self.state.read(), id)
    }

    fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        node: &NewNode<'_>,
        how: &OpenHow,
    ) -> Result<(Attr, Opened)> {
        self.create_file(caller, parent, name, node, how)
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.link_name(ino, parent, name)
    }

    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.unlink_name(parent, name)
    }

    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.rmdir_name(parent, name)
    }

    fn rename(&self, parent: Ino, name: &[u8], new_parent: Ino, new_name: &[u8], mode: RenameMode) -> Result<()> {
        self.rename_name(parent, name, new_parent, new_name, mode)
    }

    fn open(&self, caller: &Caller, ino: Ino, how: &OpenHow) -> Result<Opened> {
        self.open_file(caller, ino, how).inspect_err(|error| self.log_damage(error, ino, None))
    }

    fn open_may_wait(&self, ino: Ino, how: &OpenHow) -> bool {
        self.open_may_wait_for_disk(ino, how)
    }

    fn refuse_passthrough(&self, handle: Handle) -> bool {
        self.refuse_kernel(handle)
    }

    fn read(&self, ino: Ino, handle: Handle, offset_bytes: u64, len_bytes: u32) -> Result<Vec<u8>> {
        self.read_file(ino, handle, offset_bytes, len_bytes).inspect_err(|error| self.log_damage(error, ino, None))
    }

    fn read_now(&self, handle: Handle, offset_bytes: u64, len_bytes: u32) -> Option<Vec<u8>> {
        self.read_from_memory(handle, offset_bytes, len_bytes)
    }

    fn write_now(&self, handle: Handle, offset_bytes: u64, bytes: &[u8]) -> Option<u32> {
        self.write_at_once(handle, offset_bytes, bytes)
    }

    fn write(
        &self,
        caller: &Caller,
        _: Ino,
        handle: Handle,
        offset_bytes: u64,
        bytes: &[u8],
        kill_set_id: bool,
    ) -> Result<u32> {
        self.write_file(handle, offset_bytes, bytes, kill_set_id.then_some(caller))
    }

    fn flush(&self, _: Ino, handle: Handle) -> Result<()> {
        self.flush_file(handle)
    }

    fn release(&self, ino: Ino, handle: Handle) {
        if ino.is_virtual() {
            return self.reserved_release(handle);
        }
        self.release_file(handle);
    }

    fn fsync(&self, ino: Ino, _: Option<Handle>, _: bool) -> Result<()> {
        self.sync_file(ino)
    }

    fn record_now(&self, ino: Ino) -> bool {
        self.record_at_once(ino)
    }

    fn commit(&self) -> Result<()> {
        self.commit_journal()
    }

    fn fallocate(
        &self,
        caller: &Caller,
        _: Ino,
        handle: Handle,
        offset_bytes: u64,
        len_bytes: u64,
        mode: Allocate,
    ) -> Result<()> {
        self.allocate(caller, handle, offset_bytes, len_bytes, mode)
    }

    fn seek(&self, ino: Ino, handle: Handle, offset_bytes: u64, seek: Seek) -> Result<u64> {
        if ino.is_virtual() {
            return self.reserved_seek(handle, offset_bytes, seek);
        }
        self.seek_file(handle, offset_bytes, seek)
    }

    fn copy_range(
        &self,
        caller: &Caller,
        from: (Ino, Handle, u64),
        to: (Ino, Handle, u64),
        len_bytes: u64,
    ) -> Result<u64> {
        self.copy_bytes(caller, from, (to.1, to.2), len_bytes)
    }

    fn readdir(&self, ino: Ino, after: u64, each: &mut dyn FnMut(&Entry) -> bool) -> Result<()> {
        self.list(ino, after, each).inspect_err(|error| self.log_damage(error, ino, None))
    }

    fn readdir_names(&self, ino: Ino, after: u64, each: &mut dyn FnMut(&Named<'_>) -> bool) -> Result<()> {
        self.list_names(ino, after, each).inspect_err(|error| self.log_damage(error, ino, None))
    }

    fn statfs(&self) -> Result<StatFs> {
        self.stat_fs()
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.get_xattr(ino, name)
    }

    fn setxattr(&self, _: &Caller, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.set_xattr(ino, name, value, mode)
    }

    fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.list_xattrs(ino)
    }

    fn removexattr(&self, _: &Caller, ino: Ino, name: &[u8]) -> Result<()> {
        self.remove_xattr(ino, name)
    }
}
