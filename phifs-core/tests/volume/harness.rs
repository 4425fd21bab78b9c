//! A volume over a simulated disk, played together with the model: every call goes to both, and what they say must be
//! the same. In kernel mode the player does what the kernel does with a file that was handed to it: it reads and
//! writes the staging file behind the volume's back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use phifs_core::disk::{Disk, File, FileName};
use phifs_core::store::MemIndex;
use phifs_core::time::{Env, Timestamp};
use phifs_core::volume::local::{LocalVolume, OpenError, Options};
use phifs_core::volume::{
    Allocate, Attr, Caller, FileKind, Handle, Ino, NewKind, NewNode, OpenHow, Path, RenameMode, Seek, SetAttr, SetTime,
    Volume, VolumeError, XattrMode,
};
use proptest::prelude::*;

use crate::kernel::KernelDisk;
use crate::model::{self, Errno, Id, Inode, Model, ROOT};

pub const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 1 };
/// A new file.
pub const NODE: NewNode<'_> = NewNode { kind: NewKind::File, permissions: 0o600, umask: 0 };
/// How a file is opened whose bytes all pass through the volume.
pub const READ: OpenHow = OpenHow {
    read: true,
    write: false,
    truncate: false,
    append: false,
    direct: false,
    passthrough: false,
    sync: false,
    exclusive: false,
    execute: false,
};
pub const WRITE: OpenHow = OpenHow { write: true, ..READ };

/// A clock that stands until it is moved, and random bytes from a counter.
pub struct TestEnv {
    millis: AtomicU64,
    draws: AtomicU64,
}

impl TestEnv {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { millis: AtomicU64::new(1_700_000_000_000), draws: AtomicU64::new(seed << 32) })
    }

    pub fn advance(&self) -> Timestamp {
        self.move_by(1)
    }

    pub fn move_by(&self, millis: u64) -> Timestamp {
        self.millis.fetch_add(millis, Ordering::Relaxed);
        self.now()
    }
}

impl Env for TestEnv {
    fn now(&self) -> Timestamp {
        let millis = self.millis.load(Ordering::Relaxed);
        Timestamp::new((millis / 1000) as i64, (millis % 1000) as u32 * 1_000_000)
    }

    fn random(&self) -> [u8; 32] {
        let draw = self.draws.fetch_add(1, Ordering::Relaxed);
        *blake3::hash(&draw.to_le_bytes()).as_bytes()
    }
}

pub fn options() -> Options {
    // Short enough that files which stay open are published in the middle of a test.
    Options { publish_interval: Duration::from_millis(4), reserve_bytes: Some(1 << 20), ..Options::default() }
}

pub fn open_with(disk: &Arc<dyn Disk>, env: &Arc<TestEnv>, options: Options) -> Result<LocalVolume, OpenError> {
    LocalVolume::open(disk.clone(), Arc::new(MemIndex::default()), env.clone(), &[7; 32], options, &|_| {})
}

pub fn open(disk: &Arc<dyn Disk>, env: &Arc<TestEnv>) -> Result<LocalVolume, OpenError> {
    open_with(disk, env, options())
}

/// Does at once what the publishing threads do in the background.
pub fn settle(volume: &LocalVolume) {
    volume.stop_publishers();
    volume.run_publisher();
}

pub fn staging_files(disk: &dyn Disk) -> usize {
    disk.list().unwrap().into_iter().filter(|name| matches!(name, FileName::Staging(_))).count()
}

pub fn errno(error: &VolumeError) -> Errno {
    match error {
        VolumeError::NotFound => "NotFound",
        VolumeError::Stale => "Stale",
        VolumeError::Exists => "Exists",
        VolumeError::NotDirectory => "NotDirectory",
        VolumeError::IsDirectory => "IsDirectory",
        VolumeError::NotEmpty => "NotEmpty",
        VolumeError::NameTooLong => "NameTooLong",
        VolumeError::Invalid(_) => "Invalid",
        VolumeError::NotPermitted(_) => "NotPermitted",
        VolumeError::Denied => "Denied",
        VolumeError::ReadOnly => "ReadOnly",
        VolumeError::NoSpace(_) => "NoSpace",
        VolumeError::TooLarge => "TooLarge",
        VolumeError::Running => "Running",
        VolumeError::TooManyLinks => "TooManyLinks",
        VolumeError::NoAttribute => "NoAttribute",
        VolumeError::AttributeTooLarge => "AttributeTooLarge",
        VolumeError::Range => "Range",
        VolumeError::NotSupported(_) => "NotSupported",
        VolumeError::BadHandle => "BadHandle",
        VolumeError::NoData => "NoData",
        VolumeError::Store(_) => "Store",
        VolumeError::Disk { .. } => "Disk",
        VolumeError::LostWrite => "LostWrite",
        VolumeError::NotEnoughCopies { .. } => "NotEnoughCopies",
        VolumeError::Branch { .. } => "Branch",
        VolumeError::Internal(_) => "Internal",
    }
}

/// One call, or one piece of background work. The bytes choose among what there is, so that any sequence of them makes
/// sense and can be shortened.
#[derive(Clone, Debug)]
pub enum Op {
    Make { dir: u8, name: u8, kind: u8 },
    Create { dir: u8, name: u8 },
    Open { file: u8, write: bool, truncate: bool },
    Read { handle: u8, at: u8, len: u8 },
    Write { handle: u8, at: u8, len: u8, fill: u8 },
    Allocate { handle: u8, at: u8, len: u8, mode: u8 },
    Seek { handle: u8, at: u8, hole: bool },
    Copy { from: u8, from_at: u8, to: u8, to_at: u8, len: u8 },
    Release { handle: u8 },
    Fsync { file: u8 },
    Msync { handle: u8 },
    Truncate { file: u8, len: u8 },
    Chmod { file: u8, bits: u16 },
    Chown { file: u8, uid: u8 },
    Utimes { file: u8, secs: i16 },
    Link { file: u8, dir: u8, name: u8 },
    Unlink { dir: u8, name: u8 },
    Rmdir { dir: u8, name: u8 },
    Rename { dir: u8, name: u8, to_dir: u8, to_name: u8, mode: u8 },
    SetXattr { file: u8, name: u8, len: u8, how: u8 },
    RemoveXattr { file: u8, name: u8 },
    List { dir: u8 },
    Settle,
    Tick,
    Checkpoint,
    Collect,
    Reopen,
}

pub fn any_op() -> impl Strategy<Value = Op> {
    let b = any::<u8>;
    prop_oneof![
        4 => (b(), b(), b()).prop_map(|(dir, name, kind)| Op::Make { dir, name, kind }),
        6 => (b(), b()).prop_map(|(dir, name)| Op::Create { dir, name }),
        6 => (b(), any::<bool>(), 0..6u8).prop_map(|(file, write, t)| Op::Open { file, write, truncate: t == 0 }),
        4 => (b(), b(), b()).prop_map(|(handle, at, len)| Op::Read { handle, at, len }),
        12 => (b(), b(), b(), b()).prop_map(|(handle, at, len, fill)| Op::Write { handle, at, len, fill }),
        3 => (b(), b(), b(), b()).prop_map(|(handle, at, len, mode)| Op::Allocate { handle, at, len, mode }),
        2 => (b(), b(), any::<bool>()).prop_map(|(handle, at, hole)| Op::Seek { handle, at, hole }),
        2 => (b(), b(), b(), b(), b())
            .prop_map(|(from, from_at, to, to_at, len)| Op::Copy { from, from_at, to, to_at, len }),
        5 => b().prop_map(|handle| Op::Release { handle }),
        3 => b().prop_map(|file| Op::Fsync { file }),
        3 => b().prop_map(|handle| Op::Msync { handle }),
        3 => (b(), b()).prop_map(|(file, len)| Op::Truncate { file, len }),
        2 => (b(), 0..0o10000u16).prop_map(|(file, bits)| Op::Chmod { file, bits }),
        1 => (b(), b()).prop_map(|(file, uid)| Op::Chown { file, uid }),
        2 => (b(), any::<i16>()).prop_map(|(file, secs)| Op::Utimes { file, secs }),
        3 => (b(), b(), b()).prop_map(|(file, dir, name)| Op::Link { file, dir, name }),
        5 => (b(), b()).prop_map(|(dir, name)| Op::Unlink { dir, name }),
        2 => (b(), b()).prop_map(|(dir, name)| Op::Rmdir { dir, name }),
        6 => (b(), b(), b(), b(), b())
            .prop_map(|(dir, name, to_dir, to_name, mode)| Op::Rename { dir, name, to_dir, to_name, mode }),
        2 => (b(), b(), b(), b()).prop_map(|(file, name, len, how)| Op::SetXattr { file, name, len, how }),
        1 => (b(), b()).prop_map(|(file, name)| Op::RemoveXattr { file, name }),
        2 => b().prop_map(|dir| Op::List { dir }),
        4 => Just(Op::Settle),
        3 => Just(Op::Tick),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Collect),
        1 => Just(Op::Reopen),
    ]
}

const NAMES: [&[u8]; 5] = [b"a", b"b", b"c\xff\n", b"d", b"eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"];
/// On both sides of the limits between inline, single and manifest contents, of blocks, and of what goes to the journal.
const OFFSETS: [usize; 8] = [0, 1, 4000, 4096, 33_000, 65_536, 150_000, 300_000];
const LENGTHS: [usize; 8] = [1, 100, 4095, 4097, 20_000, 40_000, 70_000, 120_000];

fn pick<T: Copy>(among: &[T], choice: u8) -> T {
    among[choice as usize % among.len()]
}

/// Bytes that tell their file, place and time apart.
fn pattern(fill: u8, offset: usize, len: usize) -> Vec<u8> {
    let seed = u64::from(fill) << 32;
    (offset..offset + len)
        .map(|at| {
            let mixed = (seed + (at / 8) as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            // Never zero, which is what holes read as.
            (mixed >> (at % 8 * 8)) as u8 | 1
        })
        .collect()
}

/// Who writes, and where the bytes are.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// Files are handed to the kernel where that is possible.
    pub kernel: bool,
    /// How much may be staged in memory.
    pub memory_bytes: u64,
}

/// All small files are staged in memory, a few of them, and none.
pub const MEMORY: [u64; 3] = [64 << 20, 400 << 10, 0];

pub struct OpenedFile {
    pub id: Id,
    pub handle: Handle,
    pub write: bool,
    /// It can make a shared mapping to store to.
    maps: bool,
    kernel: Option<Arc<dyn File>>,
}

pub struct Player {
    pub disk: Arc<dyn Disk>,
    pub env: Arc<TestEnv>,
    options: Options,
    pub volume: LocalVolume,
    pub model: Model,
    pub handles: Vec<OpenedFile>,
    pub kernel: bool,
    kernel_disk: KernelDisk,
    /// The inode for which the last call was a sync that succeeded.
    pub synced: Option<Id>,
    /// The file whose bytes the kernel has just synced by itself.
    pub bytes_synced: Option<Id>,
}

/// The disk has failed: the last call may have happened or not.
#[derive(Debug)]
pub struct Died;

type Step = Result<(), Died>;

impl Player {
    pub fn new(disk: Arc<dyn Disk>, mode: Mode, seed: u64) -> Result<Self, OpenError> {
        let env = TestEnv::new(seed);
        let kernel_disk = KernelDisk::over(disk.clone());
        let Mode { kernel, memory_bytes } = mode;
        let disk = if kernel { Arc::new(kernel_disk.clone()) } else { disk };
        let options = Options { memory_bytes, ..options() };
        let volume = open_with(&disk, &env, options.clone())?;
        let mut player = Self {
            disk,
            env,
            options,
            volume,
            model: Model::new(Timestamp::default()),
            handles: Vec::new(),
            kernel,
            kernel_disk,
            synced: None,
            bytes_synced: None,
        };
        player.adopt_root();
        Ok(player)
    }

    fn adopt_root(&mut self) {
        if let Ok(attr) = self.volume.getattr(Ino::ROOT, None) {
            let root = self.model.inodes.get_mut(&ROOT).unwrap();
            (root.uid, root.gid, root.permissions) = (attr.uid, attr.gid, attr.permissions);
            (root.atime, root.mtime, root.ctime, root.btime) = (attr.atime, attr.mtime, attr.ctime, attr.btime);
        }
    }

    fn id(&self, choice: u8) -> Id {
        let ids: Vec<Id> = self.model.inodes.keys().copied().collect();
        pick(&ids, choice)
    }

    /// A directory, or now and then something that is none.
    fn dir(&self, choice: u8) -> Id {
        let is_dir = |(_, inode): &(&Id, &Inode)| choice > 250 || inode.kind == FileKind::Directory && inode.nlink > 0;
        let ids: Vec<Id> = self.model.inodes.iter().filter(is_dir).map(|(id, _)| *id).collect();
        pick(&ids, choice)
    }

    fn file(&self, choice: u8) -> Id {
        let is_file = |(_, inode): &(&Id, &Inode)| choice > 250 || inode.kind == FileKind::File;
        let ids: Vec<Id> = self.model.inodes.iter().filter(is_file).map(|(id, _)| *id).collect();
        if ids.is_empty() { ROOT } else { pick(&ids, choice) }
    }

    fn handle(&self, choice: u8) -> Option<usize> {
        (!self.handles.is_empty()).then(|| choice as usize % self.handles.len())
    }

    pub fn ino(&self, id: Id) -> Ino {
        self.model.get(id).ino.expect("known since it was made")
    }

    /// Compares results; `Died` if the call failed for want of a disk.
    fn same<T>(&self, what: &Op, real: Result<T, VolumeError>, model: model::Result<()>) -> Result<Option<T>, Died> {
        match (real, model) {
            (
                Err(VolumeError::Disk { .. } | VolumeError::Store(_) | VolumeError::ReadOnly | VolumeError::LostWrite),
                _,
            ) if self.disk.list().is_err() => Err(Died),
            (Ok(value), Ok(())) => Ok(Some(value)),
            (Err(real), Err(model)) => {
                assert_eq!(errno(&real), model, "{what:?}");
                Ok(None)
            }
            (Err(real), Ok(())) => panic!("{what:?} failed: {real}"),
            (Ok(_), Err(model)) => panic!("{what:?} should have failed with {model}"),
        }
    }

    /// Does the same to the volume and the model.
    pub fn play(&mut self, op: &Op) -> Step {
        let now = self.env.advance();
        (self.synced, self.bytes_synced) = (None, None);
        self.tell_writers();
        match *op {
            Op::Make { dir, name, kind } => self.make(op, self.dir(dir), pick(&NAMES, name), kind, now),
            Op::Create { dir, name } => self.create(op, self.dir(dir), pick(&NAMES, name), now),
            Op::Open { file, write, truncate } => self.open(op, self.file(file), write || truncate, truncate, now),
            Op::Read { handle, at, len } => {
                let Some(index) = self.handle(handle) else { return Ok(()) };
                self.read(op, index, pick(&OFFSETS, at), pick(&LENGTHS, len))
            }
            Op::Write { handle, at, len, fill } => {
                let Some(index) = self.handle(handle) else { return Ok(()) };
                let (offset, len) = (pick(&OFFSETS, at), pick(&LENGTHS, len));
                self.write(op, index, offset, &pattern(fill, offset, len), fill > 200, now)
            }
            Op::Allocate { handle, at, len, mode } => {
                let Some(index) = self.handle(handle) else { return Ok(()) };
                let mode = pick(
                    &[
                        Allocate::Reserve,
                        Allocate::ReserveKeepSize,
                        Allocate::PunchHole,
                        Allocate::ZeroRange,
                        Allocate::ZeroRangeKeepSize,
                    ],
                    mode,
                );
                let (id, fd, offset, len) =
                    (self.handles[index].id, self.handles[index].handle, pick(&OFFSETS, at), pick(&LENGTHS, len));
                let real = self.volume.fallocate(&CALLER, self.ino(id), fd, offset as u64, len as u64, mode);
                let wanted = if self.handles[index].write { Ok(()) } else { Err("BadHandle") };
                if wanted.is_ok() {
                    self.model.allocate(id, offset, len, mode, now);
                }
                self.same(op, real, wanted).map(drop)
            }
            Op::Seek { handle, at, hole } => {
                let Some(index) = self.handle(handle) else { return Ok(()) };
                self.seek(op, index, pick(&OFFSETS, at), hole)
            }
            Op::Copy { from, from_at, to, to_at, len } => {
                let (Some(from), Some(to)) = (self.handle(from), self.handle(to)) else { return Ok(()) };
                self.copy(op, (from, pick(&OFFSETS, from_at)), (to, pick(&OFFSETS, to_at)), pick(&LENGTHS, len), now)
            }
            Op::Release { handle } => {
                let Some(index) = self.handle(handle) else { return Ok(()) };
                self.release(index);
                Ok(())
            }
            Op::Fsync { file } => {
                let id = self.id(file);
                let ino = self.ino(id);
                // As the mount does it.
                let recorded = self.volume.record_now(ino);
                let real = if recorded { self.volume.commit() } else { self.volume.fsync(ino, None, false) };
                self.same(op, real, Ok(()))?;
                self.synced = Some(id);
                Ok(())
            }
            Op::Msync { handle } => self.msync(op, handle),
            Op::Truncate { file, len } => {
                let len = if len % 4 == 0 { 0 } else { pick(&OFFSETS, len) as u64 };
                self.setattr(op, self.file(file), SetAttr { size_bytes: Some(len), ..SetAttr::default() }, now)
            }
            Op::Chmod { file, bits } => self.setattr(
                op,
                self.id(file),
                SetAttr { permissions: Some(u32::from(bits)), ..SetAttr::default() },
                now,
            ),
            Op::Chown { file, uid } => {
                let change = SetAttr { uid: Some(u32::from(uid)), gid: Some(9), ..SetAttr::default() };
                self.setattr(op, self.id(file), change, now)
            }
            Op::Utimes { file, secs } => {
                let time = SetTime::At(Timestamp::new(i64::from(secs) << 20, 5));
                let atime = if secs % 2 == 0 { Some(SetTime::Now) } else { None };
                self.setattr(op, self.id(file), SetAttr { mtime: Some(time), atime, ..SetAttr::default() }, now)
            }
            Op::Link { file, dir, name } => {
                let (id, dir, name) = (self.id(file), self.dir(dir), pick(&NAMES, name));
                let real = self.volume.link(self.ino(id), self.ino(dir), name);
                let wanted = self.model.link(id, dir, name, now);
                self.same(op, real, wanted).map(drop)
            }
            Op::Unlink { dir, name } => {
                let (dir, name) = (self.dir(dir), pick(&NAMES, name));
                let real = self.volume.unlink(self.ino(dir), name);
                let wanted = self.model.unlink(dir, name, now);
                self.same(op, real, wanted).map(drop)
            }
            Op::Rmdir { dir, name } => {
                let (dir, name) = (self.dir(dir), pick(&NAMES, name));
                let real = self.volume.rmdir(self.ino(dir), name);
                let wanted = self.model.rmdir(dir, name, now);
                self.same(op, real, wanted).map(drop)
            }
            Op::Rename { dir, name, to_dir, to_name, mode } => {
                let mode = pick(
                    &[RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange],
                    mode,
                );
                let (from, to) = ((self.dir(dir), pick(&NAMES, name)), (self.dir(to_dir), pick(&NAMES, to_name)));
                let real = self.volume.rename(self.ino(from.0), from.1, self.ino(to.0), to.1, mode);
                let wanted = self.model.rename(from, to, mode, now);
                self.same(op, real, wanted).map(drop)
            }
            Op::SetXattr { file, name, len, how } => {
                let id = self.id(file);
                let name = [b"user.".as_slice(), pick(&NAMES, name)].concat();
                let value = vec![len; pick(&LENGTHS, len).min(60_000)];
                let how = pick(&[XattrMode::Set, XattrMode::Create, XattrMode::Replace], how);
                let real = self.volume.setxattr(&CALLER, self.ino(id), &name, &value, how);
                let wanted = self.model.set_xattr(id, &name, &value, how, now);
                self.same(op, real, wanted).map(drop)
            }
            Op::RemoveXattr { file, name } => {
                let id = self.id(file);
                let name = [b"user.".as_slice(), pick(&NAMES, name)].concat();
                let real = self.volume.removexattr(&CALLER, self.ino(id), &name);
                let wanted = self.model.remove_xattr(id, &name, now);
                self.same(op, real, wanted).map(drop)
            }
            Op::List { dir } => self.check_listing(self.dir(dir)),
            Op::Settle => {
                settle(&self.volume);
                self.alive()
            }
            Op::Tick => self.background(op, self.volume.tick()),
            Op::Checkpoint => self.background(op, self.volume.make_checkpoint(false)),
            Op::Collect => self.background(op, self.volume.collect(0.9, &|_| {}).map(drop)),
            Op::Reopen => self.reopen(),
        }
    }

    fn tell_writers(&self) {
        self.kernel_disk.set_written(self.handles.iter().any(|open| open.write && open.kernel.is_some()));
    }

    fn background(&self, op: &Op, real: Result<(), VolumeError>) -> Step {
        self.same(op, real, Ok(())).map(drop)
    }

    fn alive(&self) -> Step {
        self.disk.list().map(drop).map_err(|_| Died)
    }

    fn make(&mut self, op: &Op, dir: Id, name: &[u8], kind: u8, now: Timestamp) -> Step {
        let target = [name, b"/target"].concat();
        let kinds = [
            (NewKind::Directory, FileKind::Directory),
            (NewKind::File, FileKind::File),
            (NewKind::Directory, FileKind::Directory),
            (NewKind::Symlink(&target), FileKind::Symlink),
            (NewKind::Fifo, FileKind::Fifo),
            (NewKind::CharDevice(0x0103), FileKind::CharDevice),
        ];
        let (new, kind) = pick(&kinds, kind);
        let mut like = Inode { permissions: 0o640, ..model::inode(kind, now) };
        match new {
            NewKind::Symlink(target) => (like.target, like.permissions) = (target.to_vec(), 0o777),
            NewKind::CharDevice(rdev) => like.rdev = rdev,
            _ => {}
        }
        self.inherit(dir, &mut like);
        let node = NewNode { kind: new, permissions: 0o666, umask: 0o026 };
        let real = self.volume.make(&CALLER, self.ino(dir), name, &node);
        let made = self.model.make(dir, name, &like, now);
        if let Some(attr) = self.same(op, real, made.map(drop))? {
            self.model.inodes.get_mut(&made.unwrap()).unwrap().ino = Some(attr.ino);
        }
        Ok(())
    }

    /// What a set-group-id directory passes on.
    fn inherit(&self, dir: Id, like: &mut Inode) {
        let above = self.model.get(dir);
        if above.permissions & 0o2000 != 0 {
            like.gid = above.gid;
            like.permissions |= if like.kind == FileKind::Directory { 0o2000 } else { 0 };
        }
    }

    fn create(&mut self, op: &Op, dir: Id, name: &[u8], now: Timestamp) -> Step {
        let node = NewNode { kind: NewKind::File, permissions: 0o600, umask: 0 };
        // Only one that is not read is handed to the kernel.
        let maps = name.len() > 1;
        let how = OpenHow { read: maps, write: true, passthrough: self.kernel, ..OpenHow::default() };
        let mut like = Inode { permissions: 0o600, ..model::inode(FileKind::File, now) };
        self.inherit(dir, &mut like);
        let real = self.volume.create(&CALLER, self.ino(dir), name, &node, &how);
        let made = self.model.make(dir, name, &like, now);
        if let Some((attr, opened)) = self.same(op, real, made.map(drop))? {
            let id = made.unwrap();
            let inode = self.model.inodes.get_mut(&id).unwrap();
            inode.ino = Some(attr.ino);
            inode.handles += 1;
            let kernel = kernel_file(opened.path);
            self.handles.push(OpenedFile { id, handle: opened.handle, write: true, maps, kernel });
        }
        Ok(())
    }

    fn open(&mut self, op: &Op, id: Id, write: bool, truncate: bool, now: Timestamp) -> Step {
        let how = OpenHow { read: true, write, truncate, passthrough: self.kernel, ..OpenHow::default() };
        let real = self.volume.open(&CALLER, self.ino(id), &how);
        let wanted = self.model.open(id, truncate, now);
        if let Some(opened) = self.same(op, real, wanted)? {
            let kernel = kernel_file(opened.path);
            self.handles.push(OpenedFile { id, handle: opened.handle, write, maps: write, kernel });
        }
        Ok(())
    }

    pub fn release(&mut self, index: usize) {
        let open = self.handles.remove(index);
        self.volume.release(self.ino(open.id), open.handle);
        self.model.release(open.id);
    }

    fn read(&mut self, op: &Op, index: usize, offset: usize, len: usize) -> Step {
        let open = &self.handles[index];
        let bytes = &self.model.get(open.id).bytes;
        let wanted = &bytes[offset.min(bytes.len())..(offset + len).min(bytes.len())];
        let real = match &open.kernel {
            Some(file) => {
                let mut buf = vec![0; len];
                file.read_at(&mut buf, offset as u64)
                    .map(|got| {
                        buf.truncate(got);
                        buf
                    })
                    .map_err(|source| VolumeError::Disk { doing: "reading as the kernel", source })
            }
            None => self.volume.read(self.ino(open.id), open.handle, offset as u64, len as u32),
        };
        if let Some(real) = self.same(op, real, Ok(()))? {
            assert_same_bytes(&real, wanted, &format!("{op:?} of inode {}", open.id));
        }
        Ok(())
    }

    fn write(&mut self, op: &Op, index: usize, offset: usize, bytes: &[u8], kill: bool, now: Timestamp) -> Step {
        let open = &self.handles[index];
        let (id, write) = (open.id, open.write);
        let mut kill = kill;
        let real = match &open.kernel {
            Some(_) if !write => return Ok(()),
            Some(file) => {
                kill = false;
                file.write_at(bytes, offset as u64)
                    .map_err(|source| VolumeError::Disk { doing: "writing as the kernel", source })
            }
            None => self.volume.write(&CALLER, self.ino(id), open.handle, offset as u64, bytes, kill).map(drop),
        };
        let wanted = if write { Ok(()) } else { Err("BadHandle") };
        if write {
            self.model.write(id, offset, bytes, now);
            if kill {
                self.model.drop_set_id(id, CALLER.gid);
            }
        }
        self.same(op, real, wanted).map(drop)
    }

    /// As msync(2) on a mapping of a file that the kernel has for itself: nobody tells the volume.
    fn msync(&mut self, op: &Op, handle: u8) -> Step {
        let Some(open) = self.handle(handle).map(|index| &self.handles[index]) else { return Ok(()) };
        let Some(file) = open.kernel.as_ref().filter(|_| open.maps) else { return Ok(()) };
        let id = open.id;
        let real = file.sync().map_err(|source| VolumeError::Disk { doing: "syncing as the kernel", source });
        self.same(op, real, Ok(()))?;
        self.bytes_synced = Some(id);
        Ok(())
    }

    fn seek(&mut self, op: &Op, index: usize, offset: usize, hole: bool) -> Step {
        let open = &self.handles[index];
        let bytes = &self.model.get(open.id).bytes;
        let what = if hole { Seek::Hole } else { Seek::Data };
        let real = self.volume.seek(self.ino(open.id), open.handle, offset as u64, what);
        let at = match real {
            Ok(at) => at as usize,
            Err(VolumeError::NoData) => {
                let rest = bytes.get(offset..).unwrap_or_default();
                assert!(rest.is_empty() || !hole && rest.iter().all(|byte| *byte == 0), "{op:?} overlooked data");
                return Ok(());
            }
            failed => return self.same(op, failed, Ok(())).map(drop),
        };
        assert!(at >= offset && at <= bytes.len(), "{op:?} led outside the file");
        // A hole may be kept as zeroes, but bytes are never said to be a hole.
        assert!(hole || bytes[offset..at].iter().all(|byte| *byte == 0), "{op:?} overlooked data");
        Ok(())
    }

    fn copy(&mut self, op: &Op, from: (usize, usize), to: (usize, usize), len: usize, now: Timestamp) -> Step {
        let (source, target) = (&self.handles[from.0], &self.handles[to.0]);
        let ends = |a: usize, b: usize| a < b + len && b < a + len;
        if source.id == target.id && ends(from.1, to.1) {
            return Ok(());
        }
        let bytes = &self.model.get(source.id).bytes;
        let bytes = bytes[from.1.min(bytes.len())..(from.1 + len).min(bytes.len())].to_vec();
        let real = self.volume.copy_range(
            &CALLER,
            (self.ino(source.id), source.handle, from.1 as u64),
            (self.ino(target.id), target.handle, to.1 as u64),
            len as u64,
        );
        let wanted = if bytes.is_empty() || target.write { Ok(()) } else { Err("BadHandle") };
        if wanted.is_ok() && !bytes.is_empty() {
            self.model.write(target.id, to.1, &bytes, now);
        }
        if let Some(copied) = self.same(op, real, wanted)? {
            assert_eq!(copied, bytes.len() as u64);
        }
        Ok(())
    }

    fn setattr(&mut self, op: &Op, id: Id, change: SetAttr, now: Timestamp) -> Step {
        let real = self.volume.setattr(&CALLER, self.ino(id), &change);
        let wanted = self.model.setattr(id, &change, now);
        self.same(op, real, wanted).map(drop)
    }

    /// Closes everything, stops cleanly and starts again.
    pub fn reopen(&mut self) -> Step {
        while !self.handles.is_empty() {
            self.release(0);
        }
        self.tell_writers();
        settle(&self.volume);
        self.volume.shut_down().map_err(|error| {
            assert!(self.disk.list().is_err(), "stopping failed: {error}");
            Died
        })?;
        self.alive()?;
        assert_eq!(staging_files(&*self.disk), 0, "a clean stop leaves no staging file");
        let author = self.volume.status().author;
        match open_with(&self.disk, &self.env, self.options.clone()) {
            Ok(volume) => self.volume = volume,
            Err(error) => {
                assert!(self.disk.list().is_err(), "opening failed: {error}");
                return Err(Died);
            }
        }
        assert!(self.volume.opening().clean);
        assert_eq!(self.volume.opening().recovered_files, 0, "a clean stop leaves nothing to recover");
        assert_eq!(self.volume.status().author, author, "a clean stop does not end an incarnation");
        Ok(())
    }

    fn check_listing(&self, dir: Id) -> Step {
        let wanted = match self.model.get(dir).kind {
            FileKind::Directory => Ok(()),
            _ => Err("Stale"),
        };
        let op = Op::List { dir: 0 };
        let mut names = Vec::new();
        let mut cookies = Vec::new();
        let real = self.volume.readdir(self.ino(dir), 0, &mut |entry| {
            names.push((entry.name.clone(), entry.attr.ino));
            cookies.push(entry.next);
            true
        });
        if self.same(&op, real, wanted)?.is_none() {
            return Ok(());
        }
        for (at, cookie) in cookies.iter().enumerate() {
            let mut rest = Vec::new();
            let real = self.volume.readdir(self.ino(dir), *cookie, &mut |entry| {
                rest.push((entry.name.clone(), entry.attr.ino));
                true
            });
            self.same(&op, real, Ok(()))?;
            assert_eq!(rest, names[at + 1..], "a listing resumed behind {cookie} goes on where it stopped");
        }
        let inode = self.model.get(dir);
        let mut wanted: Vec<_> = inode.entries.iter().map(|(name, id)| (name.clone(), self.ino(*id))).collect();
        wanted.push((b".".to_vec(), self.ino(dir)));
        wanted.push((b"..".to_vec(), self.ino(inode.parent)));
        names.sort();
        wanted.sort();
        assert_eq!(names, wanted);
        Ok(())
    }

    fn check_attr(&self, real: &Attr, id: Id) {
        let inode = self.model.get(id);
        let what = format!("inode {id}: {real:?}");
        assert_eq!(real.kind, inode.kind, "{what}");
        // Of what the kernel writes by itself nobody says who wrote it: then set-id bits go, whoever it was.
        let hidden = if self.kernel && real.kind == FileKind::File { 0o6000 } else { 0 };
        assert_eq!(real.permissions & !hidden, inode.permissions & !hidden, "{what}");
        assert_eq!(real.permissions & hidden & !inode.permissions, 0, "{what}");
        assert_eq!((real.uid, real.gid, real.rdev), (inode.uid, inode.gid, inode.rdev), "{what}");
        assert_eq!(real.nlink, inode.nlink, "{what}");
        let size = match inode.kind {
            FileKind::File => inode.bytes.len(),
            FileKind::Symlink => inode.target.len(),
            FileKind::Directory => 4096,
            _ => 0,
        };
        assert_eq!(real.size_bytes, size as u64, "{what}");
        assert_eq!((real.atime, real.btime), (inode.atime, inode.btime), "{what}");
        // The memory disk's clock is a counter, so times of what the kernel wrote mean nothing here.
        if !self.kernel || inode.kind != FileKind::File {
            assert_eq!((real.mtime, real.ctime), (inode.mtime, inode.ctime), "{what}");
        }
        if inode.kind == FileKind::File && inode.bytes.iter().any(|byte| *byte != 0) {
            assert!(real.blocks > 0, "{what}");
        }
    }

    /// Holds everything that can be seen against the model.
    pub fn check_all(&mut self) -> Step {
        let op = Op::List { dir: 0 };
        let ids: Vec<Id> = self.model.inodes.keys().copied().collect();
        for id in ids {
            let inode = self.model.get(id).clone();
            let ino = self.ino(id);
            if let Some(attr) = self.same(&op, self.volume.getattr(ino, None), Ok(()))? {
                self.check_attr(&attr, id);
            }
            let names = self.same(&op, self.volume.listxattr(ino), Ok(()))?.unwrap();
            assert_eq!(names, inode.xattrs.keys().cloned().collect::<Vec<_>>());
            for (name, value) in &inode.xattrs {
                let real = self.same(&op, self.volume.getxattr(ino, name), Ok(()))?.unwrap();
                assert_eq!(&real, value);
            }
            match inode.kind {
                FileKind::Directory => {
                    self.check_listing(id)?;
                    for (name, child) in &inode.entries {
                        let attr = self.same(&op, self.volume.lookup(&CALLER, ino, name), Ok(()))?.unwrap();
                        self.check_attr(&attr, *child);
                    }
                }
                FileKind::File => {
                    let now = self.env.now();
                    self.open(&op, id, false, false, now)?;
                    let last = self.handles.len() - 1;
                    self.read(&op, last, 0, 1 << 20)?;
                    self.release(last);
                }
                FileKind::Symlink => {
                    let target = self.same(&op, self.volume.readlink(ino), Ok(()))?.unwrap();
                    assert_eq!(target, inode.target);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn kernel_file(path: Path) -> Option<Arc<dyn File>> {
    match path {
        Path::Passthrough { file } => Some(file),
        Path::Cached { .. } | Path::Direct => None,
    }
}

pub fn assert_same_bytes(real: &[u8], wanted: &[u8], what: &str) {
    if real != wanted {
        let at = real.iter().zip(wanted).position(|(a, b)| a != b);
        panic!("{what}: {} bytes instead of {}, first difference at {at:?}", real.len(), wanted.len());
    }
}

pub type Files = BTreeMap<Vec<u8>, Vec<u8>>;

/// All that a volume shows, read back by itself: the tree, and the bytes of every file by path.
pub fn read_tree(volume: &LocalVolume) -> Result<(model::Tree, Files), VolumeError> {
    let mut tree = model::Tree::new();
    let mut files = Files::new();
    let mut todo = vec![(Vec::new(), Ino::ROOT)];
    while let Some((path, ino)) = todo.pop() {
        let attr = volume.getattr(ino, None)?;
        let mut entry = model::TreeEntry {
            kind: attr.kind,
            permissions: attr.permissions,
            owner: (attr.uid, attr.gid),
            rdev: attr.rdev,
            nlink: attr.nlink,
            target: Vec::new(),
            xattrs: Default::default(),
            mtime: None,
        };
        for name in volume.listxattr(ino)? {
            let value = volume.getxattr(ino, &name)?;
            entry.xattrs.insert(name, value);
        }
        match attr.kind {
            FileKind::Directory => {
                entry.mtime = Some(attr.mtime);
                volume.readdir(ino, 2, &mut |found| {
                    todo.push(([&path[..], b"/", &found.name].concat(), found.attr.ino));
                    true
                })?;
            }
            FileKind::Symlink => entry.target = volume.readlink(ino)?,
            FileKind::File => {
                let opened = volume.open(&CALLER, ino, &READ)?;
                let read = volume.read(ino, opened.handle, 0, attr.size_bytes as u32 + 1);
                volume.release(ino, opened.handle);
                let bytes = read?;
                assert_eq!(bytes.len() as u64, attr.size_bytes, "stat and read agree");
                files.insert(path.clone(), bytes);
            }
            _ => {}
        }
        tree.insert(path, entry);
    }
    Ok((tree, files))
}
