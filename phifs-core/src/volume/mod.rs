//! The `Volume` trait: all that a mounted filesystem can do, in terms of inode numbers and bytes.
//!
//! Calls block until this node has done the work. Implementations are shared by many threads.

pub mod local;

use std::sync::Arc;

use crate::disk::File;
use crate::time::Timestamp;

/// An inode number as the kernel sees it: local author index (20 bits), then the operation's number (44 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl Ino {
    pub const ROOT: Self = Self(1);
    /// The author index of inodes that exist only as long as somebody looks at them: those below `.phi`.
    const VIRTUAL: u64 = 0xf_ffff << 44;
    /// Behind it, how long such an inode lasts; the rest is its number.
    const LASTS: u64 = 0b11 << 42;
    const NUMBER: u64 = (1 << 42) - 1;

    /// One that no table knows.
    pub fn new_virtual(n: u64, lasts: Lasts) -> Self {
        Self(Self::VIRTUAL | (lasts as u64) << 42 | n & Self::NUMBER)
    }

    /// The next one of its kind.
    #[must_use]
    pub fn virtual_after(self) -> Self {
        Self(self.0 & !Self::NUMBER | self.0.wrapping_add(1) & Self::NUMBER)
    }

    pub fn is_virtual(self) -> bool {
        self.0 & Self::VIRTUAL == Self::VIRTUAL
    }

    /// How long the kernel may keep what it knows of it; every change of what is in the tables it is told.
    pub fn lasts(self) -> Lasts {
        match (self.0 & Self::LASTS) >> 42 {
            _ if !self.is_virtual() => Lasts::Ever,
            0 => Lasts::Moment,
            1 => Lasts::Itself,
            _ => Lasts::Ever,
        }
    }
}

/// How long a virtual inode, and the name that leads to it, are what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasts {
    /// It may be gone at any moment, and so may what it shows.
    Moment = 0,
    /// It stays as long as what it is in, but what it shows may change at any moment.
    Itself = 1,
    /// Nothing of it ever changes.
    Ever = 2,
}

/// Names an open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

/// Who asks. Supplementary groups are the kernel's affair (`default_permissions`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    pub ino: Ino,
    pub kind: FileKind,
    /// The twelve permission bits.
    pub permissions: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub size_bytes: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
}

/// A time to set: what utimensat(2) can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At(Timestamp),
}

/// The attributes to change; `None` leaves one alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    pub permissions: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size_bytes: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    pub handle: Option<Handle>,
}

/// What a new node shall be. `umask` is applied here because a default ACL of the parent replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewNode<'a> {
    pub kind: NewKind<'a>,
    pub permissions: u32,
    pub umask: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewKind<'a> {
    File,
    Directory,
    Symlink(&'a [u8]),
    Fifo,
    Socket,
    CharDevice(u32),
    BlockDevice(u32),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenHow {
    pub read: bool,
    pub write: bool,
    pub truncate: bool,
    /// O_APPEND: the caller places what is written, unless it cannot know where the file ends.
    pub append: bool,
    /// O_DIRECT: the page cache must not stand between.
    pub direct: bool,
    /// O_SYNC or O_DSYNC: every write is to be durable when it returns.
    pub sync: bool,
    /// O_EXCL: the caller relies on being the one who makes the file.
    pub exclusive: bool,
    /// The file is about to be run.
    pub execute: bool,
    /// Whether the caller can hand the file behind an inode to the kernel.
    pub passthrough: bool,
}

impl OpenHow {
    /// Whether somebody may be promised a sync that nobody here hears of, if the kernel has the file for itself: by
    /// msync(2), as only a handle that can read and write can make a shared mapping to store to, or by every write.
    pub fn syncs_unheard(&self) -> bool {
        self.write && (self.read || self.sync)
    }
}

/// How the bytes of an open file travel.
pub enum Path {
    /// READ and WRITE come here. `keep_cache`: what the kernel has cached of this inode is still right.
    Cached { keep_cache: bool },
    /// READ and WRITE come here and the kernel caches nothing.
    Direct,
    /// The kernel reads and writes this file itself. While any handle of the inode is open this way,
    /// every other one gets the same file.
    Passthrough { file: Arc<dyn File> },
}

pub struct Opened {
    pub handle: Handle,
    pub path: Path,
}

/// One entry of a directory listing. `next` resumes behind it, also after the directory changed.
pub struct Entry {
    pub name: Vec<u8>,
    pub attr: Attr,
    pub next: u64,
}

/// The same for somebody who asks for no attributes.
pub struct Named<'a> {
    pub name: &'a [u8],
    pub ino: Ino,
    pub kind: FileKind,
    pub next: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replaces a target that is there.
    Replace,
    NoReplace,
    Exchange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    Set,
    Create,
    Replace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Reserve; the file becomes longer where needed.
    Reserve,
    ReserveKeepSize,
    PunchHole,
    ZeroRange,
    ZeroRangeKeepSize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    Data,
    Hole,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    pub block_bytes: u32,
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub inodes: u64,
    pub inodes_free: u64,
    pub name_bytes_max: u32,
}

/// Why a call failed. `phifs-fuse` turns each into one errno.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("no such file or directory")]
    NotFound,
    #[error("the inode is gone")]
    Stale,
    #[error("already exists")]
    Exists,
    #[error("not a directory")]
    NotDirectory,
    #[error("is a directory")]
    IsDirectory,
    #[error("directory not empty")]
    NotEmpty,
    #[error("name longer than 255 bytes")]
    NameTooLong,
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    #[error("not permitted: {0}")]
    NotPermitted(&'static str),
    #[error("permission denied")]
    Denied,
    #[error("the filesystem is read-only")]
    ReadOnly,
    #[error("no space left: {0}")]
    NoSpace(&'static str),
    #[error("file too large")]
    TooLarge,
    #[error("the program is running")]
    Running,
    #[error("too many links")]
    TooManyLinks,
    #[error("no such attribute")]
    NoAttribute,
    #[error("attribute too large")]
    AttributeTooLarge,
    #[error("the buffer is too small")]
    Range,
    #[error("not supported: {0}")]
    NotSupported(&'static str),
    #[error("bad handle")]
    BadHandle,
    #[error("no data behind this offset")]
    NoData,
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    #[error("the disk failed while {doing}: {source}")]
    Disk { doing: &'static str, source: std::io::Error },
    /// An earlier failure to make this file's bytes durable; it stays until the file is rewritten.
    #[error("bytes of this file could not be made durable")]
    LostWrite,
    /// It is durable on this machine, and on fewer others than the volume wants.
    #[error("it is durable on {have} machines instead of {wanted}")]
    NotEnoughCopies { have: usize, wanted: usize },
    #[error("the branch {name:?} cannot be opened: {why}")]
    Branch { name: String, why: String },
    #[error("internal error: {0}")]
    Internal(String),
}

pub type Result<T> = std::result::Result<T, VolumeError>;

impl VolumeError {
    /// Whether the disk has no room: the same may work when it has.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::NoSpace(_) | Self::Store(crate::store::StoreError::Full))
    }
}

/// Where an implementation reports changes that the kernel may have cached. It must not block or call back.
pub trait Invalidate: Send + Sync {
    /// Attributes of this inode changed; with `data`, its bytes did too.
    fn inode(&self, ino: Ino, data: bool);
    /// This name in this directory now means something else, or nothing.
    fn entry(&self, parent: Ino, name: &[u8]);
    /// The file that `Path::Passthrough` named for this inode is no longer its; holding it costs space.
    fn file(&self, ino: Ino);
    /// Whether the kernel may know this inode, with calls under way brought to their ends. May wait for them: whoever calls
    /// it holds no lock that a call would need.
    fn holds(&self, _: Ino) -> bool {
        true
    }
    /// Waits until what was reported so far holds, for a few seconds at most. The exception: this may block, so whoever
    /// calls it serves nobody and holds no lock that a call would need.
    fn settle(&self) {}
}

/// A mounted filesystem. Names and symlink targets are arbitrary bytes without NUL; names hold no slash.
///
/// The kernel checks permissions (`default_permissions`); what it cannot check (ACL inheritance, set-id clearing,
/// reserved names) is checked here.
pub trait Volume: Send + Sync + 'static {
    fn lookup(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Attr>;
    /// The kernel dropped its last reference to this inode.
    fn forget(&self, ino: Ino);
    fn getattr(&self, ino: Ino, handle: Option<Handle>) -> Result<Attr>;
    fn setattr(&self, caller: &Caller, ino: Ino, change: &SetAttr) -> Result<Attr>;
    fn readlink(&self, ino: Ino) -> Result<Vec<u8>>;
    /// mkdir, mknod and symlink.
    fn make(&self, caller: &Caller, parent: Ino, name: &[u8], node: &NewNode<'_>) -> Result<Attr>;
    /// Makes a regular file and opens it; an existing name is an error, as the kernel looks it up first.
    fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        node: &NewNode<'_>,
        how: &OpenHow,
    ) -> Result<(Attr, Opened)>;
    fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr>;
    fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()>;
    fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()>;
    fn rename(&self, parent: Ino, name: &[u8], new_parent: Ino, new_name: &[u8], mode: RenameMode) -> Result<()>;

    fn open(&self, caller: &Caller, ino: Ino, how: &OpenHow) -> Result<Opened>;
    /// Whether `open` may have to wait for a disk or a network.
    fn open_may_wait(&self, ino: Ino, how: &OpenHow) -> bool;
    /// The kernel refused the file offered by `Path::Passthrough` for this handle; it is served by READ and WRITE
    /// from now on. Says whether the kernel may keep its cache.
    fn refuse_passthrough(&self, handle: Handle) -> bool;
    /// Fewer bytes than asked for only at the end of the file.
    fn read(&self, ino: Ino, handle: Handle, offset_bytes: u64, len_bytes: u32) -> Result<Vec<u8>>;
    /// As `read`, if the bytes are at hand; `None` if that would mean to wait.
    fn read_now(&self, handle: Handle, offset_bytes: u64, len_bytes: u32) -> Option<Vec<u8>>;
    /// `kill_set_id`: the kernel asks to drop set-id bits, as the writer is not privileged.
    fn write(
        &self,
        caller: &Caller,
        ino: Ino,
        handle: Handle,
        offset_bytes: u64,
        bytes: &[u8],
        kill_set_id: bool,
    ) -> Result<u32>;
    /// As `write` without `kill_set_id`, if it can be done without waiting for other calls; else `None`, and `write` is
    /// to be called.
    fn write_now(&self, handle: Handle, offset_bytes: u64, bytes: &[u8]) -> Option<u32>;
    /// A descriptor of this handle was closed.
    fn flush(&self, ino: Ino, handle: Handle) -> Result<()>;
    fn release(&self, ino: Ino, handle: Handle);
    fn fsync(&self, ino: Ino, handle: Option<Handle>, data_only: bool) -> Result<()>;
    /// Does the first half of `fsync` if it can be done without waiting; `commit` is the other. If not (false),
    /// `fsync` is to be called.
    fn record_now(&self, ino: Ino) -> bool;
    /// Makes durable what has been done to names and attributes, and the bytes of all files that were recorded.
    fn commit(&self) -> Result<()>;
    fn fallocate(
        &self,
        caller: &Caller,
        ino: Ino,
        handle: Handle,
        offset_bytes: u64,
        len_bytes: u64,
        mode: Allocate,
    ) -> Result<()>;
    fn seek(&self, ino: Ino, handle: Handle, offset_bytes: u64, seek: Seek) -> Result<u64>;
    fn copy_range(
        &self,
        caller: &Caller,
        from: (Ino, Handle, u64),
        to: (Ino, Handle, u64),
        len_bytes: u64,
    ) -> Result<u64>;

    /// Lists a directory from behind `after` (0: the start) until `each` returns false for an entry,
    /// which then comes first next time. "." and ".." are included. Every virtual inode that was shown to `each` is
    /// to be forgotten at some time, also if the kernel did not hear of it.
    fn readdir(&self, ino: Ino, after: u64, each: &mut dyn FnMut(&Entry) -> bool) -> Result<()>;
    /// As `readdir`, without the attributes, which may take long to find.
    fn readdir_names(&self, ino: Ino, after: u64, each: &mut dyn FnMut(&Named<'_>) -> bool) -> Result<()> {
        self.readdir(ino, after, &mut |Entry { name, attr, next }| {
            each(&Named { name, ino: attr.ino, kind: attr.kind, next: *next })
        })
    }

    fn statfs(&self) -> Result<StatFs>;
    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>>;
    fn setxattr(&self, caller: &Caller, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()>;
    fn listxattr(&self, ino: Ino) -> Result<Vec<Vec<u8>>>;
    fn removexattr(&self, caller: &Caller, ino: Ino, name: &[u8]) -> Result<()>;
}
