//! The seam between the daemon and core's engine: opens it over real files, turns its results into reports and its
//! errors into failures. Nothing else in this crate knows the engine's types.
//!
//! The engine itself (`phifs_core::volume::local::LocalVolume`) is joined here. Until it is, `open` gives an empty
//! volume that refuses every change, so that nobody can take it for a place to keep anything.

use std::sync::Arc;
use std::time::Duration;

use phifs_core::disk::{Disk, Space};
use phifs_core::store::GlyphIndex;
use phifs_core::time::{Env, Timestamp};
use phifs_core::volume::{
    Allocate, Attr, Caller, Entry, FileKind, Handle, Ino, NewNode, OpenHow, Opened, RenameMode, Result as VolumeResult,
    Seek, SetAttr, StatFs, Volume, VolumeError, XattrMode,
};

use crate::control::Progress;
use crate::failure::Failure;
use crate::node_key::NodeSeed;
use crate::report::{Checked, Collected, Operation, Usage, UsagePart, VolumeStatus};

/// How to open the engine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for glyphs and metadata that were read.
    pub cache_bytes: u64,
    /// Disk space for materialised files whose bytes are published.
    pub staging_cache_bytes: u64,
    /// At most this long until what was written to an open file is published.
    pub publish_interval: Duration,
}

/// An open volume. Shared by the mount, the background threads and the control socket.
pub struct Engine {
    disk: Arc<dyn Disk>,
    volume: Arc<Empty>,
}

impl Engine {
    /// Recovers the store on `disk` and opens its volume; `progress` hears of replay and rebuild.
    pub fn open(
        disk: Arc<dyn Disk>,
        _index: Arc<dyn GlyphIndex>,
        env: Arc<dyn Env>,
        _seed: &NodeSeed,
        _options: &Options,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, Failure> {
        progress(Progress::step("opening the volume"));
        let volume = Arc::new(Empty { made: env.now() });
        Ok(Self { disk, volume })
    }

    pub fn volume(&self) -> Arc<dyn Volume> {
        self.volume.clone()
    }

    pub fn status(&self) -> VolumeStatus {
        VolumeStatus { read_only: Some("there is no engine behind it".to_owned()), inodes: 1, ..Default::default() }
    }

    /// The last `count` operations, the latest last.
    pub fn recent_ops(&self, _count: u32) -> Result<Vec<Operation>, Failure> {
        Ok(Vec::new())
    }

    pub fn usage(&self) -> Result<Usage, Failure> {
        let Space { total_bytes, free_bytes } = self.disk.space().map_err(Failure::plain)?;
        let parts = Vec::<UsagePart>::new();
        Ok(Usage { logical_bytes: 0, disk_total_bytes: total_bytes, disk_free_bytes: free_bytes, parts })
    }

    pub fn gc(&self, _progress: &mut dyn FnMut(Progress)) -> Result<Collected, Failure> {
        Ok(Collected::default())
    }

    /// Reads and verifies every glyph.
    pub fn scrub(&self, _progress: &mut dyn FnMut(Progress)) -> Result<Checked, Failure> {
        Ok(Checked::default())
    }

    /// Checks that maps, glyphs and index agree; `rebuild_index` begins with an empty index, `repair` mends what can be.
    pub fn fsck(
        &self,
        _rebuild_index: bool,
        _repair: bool,
        _progress: &mut dyn FnMut(Progress),
    ) -> Result<Checked, Failure> {
        Ok(Checked::default())
    }

    /// Does what is due (publish, checkpoint, flush) and says when to be called again at the latest. Several threads
    /// call it, so that a long checkpoint does not hold up publishing.
    pub fn tick(&self) -> Result<Duration, Failure> {
        Ok(Duration::from_secs(1))
    }

    /// Publishes, checkpoints and closes; nothing is accepted afterwards. Called once.
    pub fn shutdown(&self, progress: &mut dyn FnMut(Progress)) -> Result<(), Failure> {
        progress(Progress::step("closing the volume"));
        Ok(())
    }
}

/// A volume with a root directory and nothing else.
struct Empty {
    made: Timestamp,
}

impl Empty {
    fn root(&self) -> Attr {
        Attr {
            ino: Ino::ROOT,
            kind: FileKind::Directory,
            permissions: 0o755,
            nlink: 2,
            uid: 0,
            gid: 0,
            rdev: 0,
            size_bytes: 0,
            blocks: 0,
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
            btime: self.made,
        }
    }
}

impl Volume for Empty {
    fn lookup(&self, _: &Caller, _: Ino, _: &[u8]) -> VolumeResult<Attr> {
        Err(VolumeError::NotFound)
    }

    fn forget(&self, _: Ino) {}

    fn getattr(&self, ino: Ino, _: Option<Handle>) -> VolumeResult<Attr> {
        if ino == Ino::ROOT { Ok(self.root()) } else { Err(VolumeError::Stale) }
    }

    fn setattr(&self, _: &Caller, _: Ino, _: &SetAttr) -> VolumeResult<Attr> {
        Err(VolumeError::ReadOnly)
    }

    fn readlink(&self, _: Ino) -> VolumeResult<Vec<u8>> {
        Err(VolumeError::Stale)
    }

    fn make(&self, _: &Caller, _: Ino, _: &[u8], _: &NewNode<'_>) -> VolumeResult<Attr> {
        Err(VolumeError::ReadOnly)
    }

    fn create(&self, _: &Caller, _: Ino, _: &[u8], _: &NewNode<'_>, _: &OpenHow) -> VolumeResult<(Attr, Opened)> {
        Err(VolumeError::ReadOnly)
    }

    fn link(&self, _: Ino, _: Ino, _: &[u8]) -> VolumeResult<Attr> {
        Err(VolumeError::ReadOnly)
    }

    fn unlink(&self, _: Ino, _: &[u8]) -> VolumeResult<()> {
        Err(VolumeError::ReadOnly)
    }

    fn rmdir(&self, _: Ino, _: &[u8]) -> VolumeResult<()> {
        Err(VolumeError::ReadOnly)
    }

    fn rename(&self, _: Ino, _: &[u8], _: Ino, _: &[u8], _: RenameMode) -> VolumeResult<()> {
        Err(VolumeError::ReadOnly)
    }

    fn open(&self, _: &Caller, _: Ino, _: &OpenHow) -> VolumeResult<Opened> {
        Err(VolumeError::Stale)
    }

    fn refuse_passthrough(&self, _: Handle) -> bool {
        false
    }

    fn read(&self, _: Ino, _: Handle, _: u64, _: u32) -> VolumeResult<Vec<u8>> {
        Err(VolumeError::BadHandle)
    }

    fn write(&self, _: Ino, _: Handle, _: u64, _: &[u8], _: bool) -> VolumeResult<u32> {
        Err(VolumeError::BadHandle)
    }

    fn flush(&self, _: Ino, _: Handle) -> VolumeResult<()> {
        Ok(())
    }

    fn release(&self, _: Ino, _: Handle) {}

    fn fsync(&self, _: Ino, _: Option<Handle>, _: bool) -> VolumeResult<()> {
        Ok(())
    }

    fn fallocate(&self, _: Ino, _: Handle, _: u64, _: u64, _: Allocate) -> VolumeResult<()> {
        Err(VolumeError::BadHandle)
    }

    fn seek(&self, _: Ino, _: Handle, _: u64, _: Seek) -> VolumeResult<u64> {
        Err(VolumeError::BadHandle)
    }

    fn copy_range(&self, _: (Ino, Handle, u64), _: (Ino, Handle, u64), _: u64) -> VolumeResult<u64> {
        Err(VolumeError::BadHandle)
    }

    fn readdir(&self, _: Ino, after: u64, each: &mut dyn FnMut(&Entry) -> bool) -> VolumeResult<()> {
        for (next, name) in [(1, "."), (2, "..")] {
            if next > after && !each(&Entry { name: name.into(), attr: self.root(), next }) {
                break;
            }
        }
        Ok(())
    }

    fn statfs(&self) -> VolumeResult<StatFs> {
        Ok(StatFs {
            block_bytes: 4096,
            blocks: 0,
            blocks_free: 0,
            blocks_available: 0,
            inodes: 1,
            inodes_free: 0,
            name_bytes_max: 255,
        })
    }

    fn getxattr(&self, _: Ino, _: &[u8]) -> VolumeResult<Vec<u8>> {
        Err(VolumeError::NoAttribute)
    }

    fn setxattr(&self, _: &Caller, _: Ino, _: &[u8], _: &[u8], _: XattrMode) -> VolumeResult<()> {
        Err(VolumeError::ReadOnly)
    }

    fn listxattr(&self, _: Ino) -> VolumeResult<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }

    fn removexattr(&self, _: &Caller, _: Ino, _: &[u8]) -> VolumeResult<()> {
        Err(VolumeError::ReadOnly)
    }
}
