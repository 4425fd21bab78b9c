//! One of the two directories: carries calls out and tells what came of them in comparable words.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    Access, AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RenameFlags, SeekFrom, Stat, Timespec, Timestamps,
    Uid, XattrFlags,
};
use rustix::io::Errno;
use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::generate::SLOTS;
use super::{Call, Op};

type Outcome = Result<String, Errno>;

pub struct Side {
    /// What this run made; `base` lies some levels below, so that symbolic links to `..` do not leave it.
    top: PathBuf,
    base: PathBuf,
    root: OwnedFd,
    files: [Option<OwnedFd>; SLOTS],
    umask: Mode,
}

const XATTR_BYTES_MAX: usize = 65536;
/// All users of the test but root have it as a supplementary group.
const SHARED_GROUP: u32 = 2000;

impl Side {
    /// Makes a fresh directory below the given one, open to all users.
    #[track_caller]
    pub fn new(parent: &Path) -> Side {
        static RUNS: AtomicU64 = AtomicU64::new(0);
        // SAFETY: only the mask and the working directory stop being shared with other threads; no file descriptor is.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.expect("a file mode mask of its own");
        rustix::process::umask(Mode::empty());
        let top = parent.join(format!("run-{}", RUNS.fetch_add(1, Ordering::Relaxed)));
        let base = top.join("1/2/3/4/5/6/7/8");
        // Open to all, by the empty mask.
        fs::create_dir_all(&base).expect("a directory to work in");
        let root = rustix::fs::open(&base, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        Side { top, base, root: root.expect("the directory"), files: Default::default(), umask: Mode::empty() }
    }

    pub fn call(&mut self, call: &Call) -> Outcome {
        become_user(call.uid);
        rustix::process::umask(self.umask);
        let outcome = self.carry_out(&call.op);
        rustix::process::umask(Mode::empty());
        become_user(0);
        outcome
    }

    fn file(&self, slot: usize) -> Result<&OwnedFd, Errno> {
        self.files[slot].as_ref().ok_or(Errno::BADF)
    }

    fn is_open(&self, path: &[u8]) -> bool {
        let Ok(stat) = rustix::fs::statat(&self.root, path, AtFlags::empty()) else { return false };
        self.files.iter().flatten().any(|file| rustix::fs::fstat(file).is_ok_and(|other| other.st_ino == stat.st_ino))
    }

    fn carry_out(&mut self, op: &Op) -> Outcome {
        let done = |()| String::new();
        let root = self.root.as_fd();
        match op {
            Op::Mkdir(path, mode) => rustix::fs::mkdirat(root, &path[..], Mode::from_raw_mode(*mode)).map(done),
            Op::Rmdir(path) => rustix::fs::unlinkat(root, &path[..], AtFlags::REMOVEDIR).map(done),
            Op::Open { slot, path, flags, mode } => self.open(*slot, path, OFlags::from_bits_retain(*flags), *mode),
            Op::Close(slot) => self.files[*slot].take().map(|_| String::new()).ok_or(Errno::BADF),
            Op::Pwrite { slot, offset, len, byte } => {
                rustix::io::pwrite(self.file(*slot)?, &written(*byte, *len), *offset).map(|n| n.to_string())
            }
            Op::Write { slot, len, byte } => {
                rustix::io::write(self.file(*slot)?, &written(*byte, *len)).map(|n| n.to_string())
            }
            Op::Pread { slot, offset, len } => {
                let mut bytes = vec![0; *len];
                let n = rustix::io::pread(self.file(*slot)?, &mut bytes, *offset)?;
                Ok(summary(&bytes[..n]))
            }
            Op::Ftruncate(slot, size) => rustix::fs::ftruncate(self.file(*slot)?, *size).map(done),
            Op::Fallocate { slot, mode, offset, len } => {
                let mode = FallocateFlags::from_bits_retain(*mode);
                rustix::fs::fallocate(self.file(*slot)?, mode, *offset, *len).map(done)
            }
            Op::CopyRange { from, from_offset, to, to_offset, len } => {
                let (mut from_offset, mut to_offset) = (*from_offset, *to_offset);
                let (from, to) = (self.file(*from)?, self.file(*to)?);
                rustix::fs::copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), *len)
                    .map(|n| format!("{n} {from_offset} {to_offset}"))
            }
            Op::SeekData(slot, from) => self.seek(*slot, *from, true),
            Op::SeekHole(slot, from) => self.seek(*slot, *from, false),
            Op::Fsync(slot) => rustix::fs::fsync(self.file(*slot)?).map(done),
            Op::Fstat(slot) => rustix::fs::fstat(self.file(*slot)?).map(|stat| attributes(&stat)),
            Op::Unlink(path) => rustix::fs::unlinkat(root, &path[..], AtFlags::empty()).map(done),
            Op::Link(from, to) => rustix::fs::linkat(root, &from[..], root, &to[..], AtFlags::empty()).map(done),
            Op::Symlink { target, path } => rustix::fs::symlinkat(&target[..], root, &path[..]).map(done),
            Op::Readlink(path) => {
                rustix::fs::readlinkat(root, &path[..], Vec::new()).map(|target| summary(target.as_bytes()))
            }
            Op::Rename { from, to, flags } => {
                let flags = RenameFlags::from_bits_retain(*flags);
                rustix::fs::renameat_with(root, &from[..], root, &to[..], flags).map(done)
            }
            Op::Mknod { path, kind, mode, device } => {
                let (kind, mode) = (FileType::from_raw_mode(*kind), Mode::from_raw_mode(*mode));
                rustix::fs::mknodat(root, &path[..], kind, mode, *device).map(done)
            }
            Op::Chmod(path, mode) => {
                // On passthrough a file that becomes set-id while it is open stays so: a known gap.
                let mode = if self.is_open(path) { mode & 0o1777 } else { *mode };
                rustix::fs::chmodat(root, &path[..], Mode::from_raw_mode(mode), AtFlags::empty()).map(done)
            }
            Op::Chown { path, uid, gid, follow } => {
                let flags = if *follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
                rustix::fs::chownat(root, &path[..], uid.map(Uid::from_raw), gid.map(Gid::from_raw), flags).map(done)
            }
            Op::Utimens { path, atime, mtime } => {
                let spec = |(tv_sec, tv_nsec): (i64, i64)| Timespec { tv_sec, tv_nsec };
                let times = Timestamps { last_access: spec(*atime), last_modification: spec(*mtime) };
                rustix::fs::utimensat(root, &path[..], &times, AtFlags::SYMLINK_NOFOLLOW)?;
                if mtime.1 == rustix::fs::UTIME_OMIT {
                    return Ok(String::new());
                }
                let stat = rustix::fs::statat(root, &path[..], AtFlags::SYMLINK_NOFOLLOW)?;
                Ok(format!("mtime {}.{:09}", stat.st_mtime, stat.st_mtime_nsec))
            }
            Op::SetXattr { path, name, value, flags } => {
                let flags = XattrFlags::from_bits_retain(*flags);
                rustix::fs::lsetxattr(self.path(path), name.as_str(), value, flags).map(done)
            }
            Op::GetXattr(path, name) => {
                let mut value = vec![0; XATTR_BYTES_MAX];
                let n = rustix::fs::lgetxattr(self.path(path), name.as_str(), &mut value)?;
                Ok(summary(&value[..n]))
            }
            Op::ListXattr(path) => xattr_names(&self.path(path)).map(|names| format!("{names:?}")),
            Op::RemoveXattr(path, name) => rustix::fs::lremovexattr(self.path(path), name.as_str()).map(done),
            Op::Access(path, rights) => {
                rustix::fs::accessat(root, &path[..], Access::from_bits_retain(*rights), AtFlags::empty()).map(done)
            }
            Op::Stat(path) => rustix::fs::statat(root, &path[..], AtFlags::empty()).map(|stat| attributes(&stat)),
            Op::Lstat(path) => {
                rustix::fs::statat(root, &path[..], AtFlags::SYMLINK_NOFOLLOW).map(|stat| attributes(&stat))
            }
            Op::List(path) => self.list(path),
            Op::Umask(mask) => {
                self.umask = Mode::from_raw_mode(*mask);
                Ok(String::new())
            }
        }
    }

    fn path(&self, below: &[u8]) -> PathBuf {
        self.base.join(OsStr::from_bytes(below))
    }

    /// Opens without ever waiting or touching a device.
    fn open(&mut self, slot: usize, path: &[u8], flags: OFlags, mode: u32) -> Outcome {
        if let Ok(stat) = rustix::fs::statat(&self.root, path, AtFlags::empty()) {
            let kind = FileType::from_raw_mode(stat.st_mode);
            if matches!(kind, FileType::BlockDevice | FileType::CharacterDevice | FileType::Fifo) {
                return Ok(format!("{kind:?}"));
            }
        }
        let flags = flags | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.root, path, flags, Mode::from_raw_mode(mode))?;
        self.files[slot] = Some(file);
        Ok(String::new())
    }

    /// A filesystem may know holes as coarsely as it likes, but what it calls a hole must be zeroes.
    fn seek(&mut self, slot: usize, from: u64, data: bool) -> Outcome {
        let file = self.file(slot)?;
        let stat = rustix::fs::fstat(file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            // What a hole of a directory is, every filesystem says as it likes.
            return Ok(String::new());
        }
        let size = stat.st_size as u64;
        let was = rustix::fs::seek(file, SeekFrom::Current(0))?;
        let found = rustix::fs::seek(file, if data { SeekFrom::Data(from) } else { SeekFrom::Hole(from) });
        rustix::fs::seek(file, SeekFrom::Start(was))?;
        if from >= size {
            return found.map(|_| String::new());
        }
        let zeroes_until = match (found, data) {
            (Ok(at), true) => at,
            (Err(Errno::NXIO), true) => size,
            (Ok(at), false) if at <= size => return Ok("in order".to_owned()),
            (other, _) => return other.map(|at| format!("hole at {at} of {size}")),
        };
        let mut hole = vec![0; (zeroes_until - from) as usize];
        match rustix::io::pread(file, &mut hole, from) {
            Ok(_) if hole.iter().any(|&byte| byte != 0) => Ok("data called a hole".to_owned()),
            // A file opened for writing only cannot be looked at.
            Ok(_) | Err(Errno::BADF) => Ok("in order".to_owned()),
            Err(error) => Err(error),
        }
    }

    fn list(&self, path: &[u8]) -> Outcome {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&self.root, path, flags, Mode::empty())?;
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(dir)? {
            let entry = entry?;
            names.push(format!("{} {:?}", entry.file_name().to_bytes().escape_ascii(), entry.file_type()));
        }
        names.sort();
        Ok(format!("{names:?}"))
    }

    /// Everything comparable about everything below the directory, a line for each name, in order.
    pub fn tree(&self) -> Vec<String> {
        let mut lines = Vec::new();
        self.describe(&self.top, &mut lines);
        lines.sort();
        lines
    }

    fn describe(&self, path: &Path, lines: &mut Vec<String>) {
        let name = path.strip_prefix(&self.top).expect("a path below the top").as_os_str().as_bytes();
        let told = self.describe_one(path).unwrap_or_else(|errno| format!("{errno:?}"));
        lines.push(format!("{}: {told}", name.escape_ascii()));
        if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            match fs::read_dir(path) {
                Ok(entries) => entries.for_each(|entry| match entry {
                    Ok(entry) => self.describe(&entry.path(), lines),
                    Err(error) => lines.push(format!("{}: {error}", name.escape_ascii())),
                }),
                Err(error) => lines.push(format!("{}: {error}", name.escape_ascii())),
            }
        }
    }

    fn describe_one(&self, path: &Path) -> Outcome {
        let stat = rustix::fs::lstat(path)?;
        let mut told = attributes(&stat);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let bytes = fs::read(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
                told.push_str(&format!(" content {}", summary(&bytes)));
            }
            FileType::Symlink => {
                let target = rustix::fs::readlink(path, Vec::new())?;
                told.push_str(&format!(" target {}", summary(target.as_bytes())));
            }
            _ => {}
        }
        for name in xattr_names(path)? {
            let mut value = vec![0; XATTR_BYTES_MAX];
            let n = rustix::fs::lgetxattr(path, name.as_str(), &mut value)?;
            told.push_str(&format!(" {name}={}", summary(&value[..n])));
        }
        Ok(told)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.top);
    }
}

/// Changes the calling thread's user, groups included, from and to any of the test's users.
fn become_user(uid: u32) {
    let root = Uid::ROOT;
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    let shared = [Gid::from_raw(SHARED_GROUP)];
    let groups = if uid == 0 { &[] } else { &shared[..] };
    // Back to root first: only root may choose groups. The saved user stays root, which is the way back.
    set_thread_res_uid(root, root, root).expect("the rights of root");
    set_thread_groups(groups).expect("supplementary groups");
    set_thread_res_gid(group, group, group).expect("a group");
    set_thread_res_uid(user, user, root).expect("a user");
}

/// The bytes of a write: not all the same, so that a shift by any distance shows.
fn written(byte: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| byte.wrapping_add((at / 251) as u8) | 1).collect()
}

fn attributes(stat: &Stat) -> String {
    let kind = FileType::from_raw_mode(stat.st_mode);
    let size = if kind == FileType::Directory { 0 } else { stat.st_size };
    let (mut mode, nlink) = (stat.st_mode & 0o7777, stat.st_nlink);
    let (uid, gid, rdev) = (stat.st_uid, stat.st_gid, stat.st_rdev);
    // Whether a write drops the set-group-id bit of such a file depends on supplementary groups: a known gap.
    if kind == FileType::RegularFile && gid == SHARED_GROUP && mode & 0o2010 == 0o2000 {
        mode &= !0o2000;
    }
    format!("{kind:?} {mode:04o} nlink {nlink} owner {uid}:{gid} size {size} rdev {rdev}")
}

/// Short bytes in full, long ones by length, hash (FNV-1a) and start.
fn summary(bytes: &[u8]) -> String {
    if bytes.len() <= 80 {
        return format!("{:?}", bytes.escape_ascii().to_string());
    }
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, step);
    format!("{} bytes {hash:016x} {:?}", bytes.len(), bytes[..8].escape_ascii().to_string())
}

fn xattr_names(path: &Path) -> Result<Vec<String>, Errno> {
    let mut list = vec![0; XATTR_BYTES_MAX];
    let n = rustix::fs::llistxattr(path, &mut list)?;
    let names = list[..n].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<String> = names.map(|name| name.escape_ascii().to_string()).collect();
    names.sort();
    Ok(names)
}
