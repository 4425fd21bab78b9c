//! One short method per FUSE operation: decode, call the volume, reply.
//!
//! Operations on names and attributes are answered on the thread that read the request. Those that may wait for a
//! disk or a network go to the pool: flush, fsync, a change of size, the release of what the kernel wrote by itself,
//! the opens that have to fetch, cut or sync bytes, and reads and writes unless the bytes are in memory and nobody else
//! is at work on them. Bytes that a request lends are copied on the way there. So does the rename of a file that is open
//! for writing on the write-back path, once the flusher has fetched its bytes.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use phifs_core::volume::{Caller, Handle, Ino, NewKind, NewNode, Result, SetAttr, VolumeError};

use crate::answer::{Answer, Register};
use crate::attr::{
    CAPABILITY, PERMISSIONS, SET_ID, allocate_mode, file_type, node_kind, rename_mode, seek_kind, set_time, xattr_mode,
};
use crate::commits::Commits;
use crate::flush::Flusher;
use crate::guard::guarded;
use crate::init::{DataPath, Init};
use crate::latch::Latch;
use crate::notify::Announcer;
use crate::pool::Pool;
use crate::requests::Begun;
use crate::state::{State, joined, xattr_answer};

/// The most that one copy_file_range(2) reports: what the kernel itself allows one call, and it fits in the reply.
const COPY_BYTES_MAX: u64 = 0x7fff_f000;

pub(crate) struct Adapter {
    pub(crate) state: Arc<State>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) commits: Commits,
    pub(crate) flusher: Arc<Flusher>,
    pub(crate) announcer: Arc<Announcer>,
    pub(crate) init: Arc<Init>,
    /// Opened when the last request is answered.
    pub(crate) ended: Arc<Latch>,
}

impl Adapter {
    fn at_once<T, R: Answer<T>>(
        &self,
        op: &'static str,
        ino: INodeNo,
        reply: R,
        work: impl FnOnce(&State, &R) -> Result<T>,
    ) {
        let begun = self.state.requests.begin(op);
        let outcome = guarded(op, Ino(ino.0), || work(&self.state, &reply));
        self.state.requests.end(begun);
        reply.answer(outcome);
    }

    fn in_pool<T, R: Answer<T> + Send + 'static>(
        &self,
        op: &'static str,
        ino: INodeNo,
        reply: R,
        work: impl FnOnce(&State, &R) -> Result<T> + Send + 'static,
    ) {
        self.pool.run(self.job(self.state.requests.begin(op), op, ino, reply, work));
    }

    /// Answers with what `now` makes of it. Where that is nothing, the work that `later` prepares goes to the pool.
    fn now_or_in_pool<T, R, W>(
        &self,
        op: &'static str,
        ino: INodeNo,
        reply: R,
        now: impl FnOnce(&State) -> Option<T>,
        later: impl FnOnce() -> W,
    ) where
        R: Answer<T> + Send + 'static,
        W: FnOnce(&State, &R) -> Result<T> + Send + 'static,
    {
        let begun = self.state.requests.begin(op);
        match guarded(op, Ino(ino.0), || Ok(now(&self.state))).transpose() {
            Some(outcome) => {
                self.state.requests.end(begun);
                reply.answer(outcome);
            }
            None => self.pool.run(self.job(begun, op, ino, reply, later())),
        }
    }

    /// A request that is not served at all.
    fn refused(&self, op: &'static str) {
        self.state.requests.end(self.state.requests.begin(op));
    }

    /// Tells the kernel what was listed of a directory, if it was anything at all.
    fn listed<R: Answer<()> + Send + 'static>(&self, ino: INodeNo, reply: R, any: std::result::Result<bool, Errno>) {
        if any == Ok(false) && self.state.listings.is_suspect_at_end(Ino(ino.0)) {
            self.announcer.drop_listing(Ino(ino.0), move || reply.answer(Ok(())));
        } else {
            reply.answer(any.map(drop));
        }
    }

    fn job<T, R: Answer<T> + Send + 'static>(
        &self,
        begun: Begun,
        op: &'static str,
        ino: INodeNo,
        reply: R,
        work: impl FnOnce(&State, &R) -> Result<T> + Send + 'static,
    ) -> impl FnOnce() + Send + 'static {
        let state = Arc::clone(&self.state);
        move || {
            let outcome = guarded(op, Ino(ino.0), || work(&state, &reply));
            state.requests.end(begun);
            // The inode may be forgotten as soon as the reply is out; nothing of this request may outlive it.
            drop(state);
            reply.answer(outcome);
        }
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        match self.init.negotiate(config)? {
            DataPath::Passthrough => self.state.backings.switch_on(),
            DataPath::Writeback => self.state.switch_writeback_on(),
            DataPath::Plain => {}
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.flusher.switch_off();
        self.pool.close();
        self.commits.close();
        self.state.finish();
        self.ended.open();
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.at_once("lookup", parent, reply, |state, _| {
            state.lookup(&caller(request), Ino(parent.0), name.as_bytes())
        });
    }

    /// Also serves BATCH_FORGET, one inode at a time.
    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        let begun = self.state.requests.begin("forget");
        self.state.forget(Ino(ino.0), lookups);
        self.state.requests.end(begun);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        self.at_once("getattr", ino, reply, |state, _| state.getattr(Ino(ino.0), handle.map(|h| Handle(h.0))));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let caller = caller(request);
        let change = SetAttr {
            permissions: mode.map(|mode| mode & PERMISSIONS),
            uid,
            gid,
            size_bytes: size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            handle: handle.map(|handle| Handle(handle.0)),
        };
        // What is written has to be published before the file is set-id, so that the bit is for that.
        if size.is_some() || change.permissions.is_some_and(|permissions| permissions & SET_ID != 0) {
            self.in_pool("setattr", ino, reply, move |state, _| state.setattr(&caller, Ino(ino.0), &change));
        } else {
            self.at_once("setattr", ino, reply, |state, _| state.setattr(&caller, Ino(ino.0), &change));
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.at_once("readlink", ino, reply, |state, _| state.volume.readlink(Ino(ino.0)));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.at_once("mknod", parent, reply, |state, _| {
            let node = NewNode { kind: node_kind(mode, rdev)?, permissions: mode & PERMISSIONS, umask };
            state.make(&caller(request), Ino(parent.0), name.as_bytes(), &node)
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.at_once("mkdir", parent, reply, |state, _| {
            let node = NewNode { kind: NewKind::Directory, permissions: mode & PERMISSIONS, umask };
            state.make(&caller(request), Ino(parent.0), name.as_bytes(), &node)
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.at_once("symlink", parent, reply, |state, _| {
            let kind = NewKind::Symlink(target.as_os_str().as_bytes());
            let node = NewNode { kind, permissions: 0o777, umask: 0 };
            state.make(&caller(request), Ino(parent.0), name.as_bytes(), &node)
        });
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.at_once("link", ino, reply, |state, _| state.link(Ino(ino.0), Ino(parent.0), name.as_bytes()));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.at_once("unlink", parent, reply, |state, _| state.unlink(Ino(parent.0), name.as_bytes()));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.at_once("rmdir", parent, reply, |state, _| state.rmdir(Ino(parent.0), name.as_bytes()));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = (Ino(parent.0), Ino(new_parent.0));
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        let unflushed = self.state.unflushed(&caller(request), from, &name);
        let work = move |state: &State, _: &ReplyEmpty| state.rename(from, &name, to, &new_name, rename_mode(flags)?);
        match unflushed {
            Some(ino) if self.flusher.is_on() => {
                let begun = self.state.requests.begin("rename");
                self.flusher.before(self.job(begun, "rename", parent, reply, work), ino);
            }
            _ => self.at_once("rename", parent, reply, work),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.at_once("create", parent, reply, |state, reply| {
            let node = NewNode { kind: NewKind::File, permissions: mode & PERMISSIONS, umask };
            let register = |fd: std::os::fd::BorrowedFd<'_>| reply.register(fd);
            state.create(&caller(request), Ino(parent.0), name.as_bytes(), &node, &state.how(flags), register)
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let caller = caller(request);
        let how = self.state.how(flags.0);
        let work =
            move |state: &State, reply: &ReplyOpen| state.open(&caller, Ino(ino.0), &how, |fd| reply.register(fd));
        if self.state.open_may_wait(Ino(ino.0), &how) {
            self.in_pool("open", ino, reply, work);
        } else {
            self.at_once("open", ino, reply, work);
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let handle = Handle(handle.0);
        let now = |state: &State| state.volume.read_now(handle, offset, size);
        let later = || move |state: &State, _: &ReplyData| state.volume.read(Ino(ino.0), handle, offset, size);
        self.now_or_in_pool("read", ino, reply, now, later);
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let handle = Handle(handle.0);
        let kill_set_id = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let under_way = self.state.is_writeback().then(|| self.state.writes.begin(Ino(ino.0)));
        let now = |state: &State| if kill_set_id { None } else { state.volume.write_now(handle, offset, data) };
        let later = || {
            let (data, caller) = (data.to_vec(), caller(request));
            move |state: &State, _: &ReplyWrite| {
                let _until_done = under_way;
                state.volume.write(&caller, Ino(ino.0), handle, offset, &data, kill_set_id)
            }
        };
        self.now_or_in_pool("write", ino, reply, now, later);
    }

    fn flush(&self, _: &Request, ino: INodeNo, handle: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.in_pool("flush", ino, reply, move |state, _| state.volume.flush(Ino(ino.0), Handle(handle.0)));
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        flags: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let work = move |state: &State, _: &ReplyEmpty| state.release(Handle(handle.0));
        if flags.acc_mode() == OpenAccMode::O_RDONLY || self.state.is_served_here(Handle(handle.0)) {
            self.at_once("release", ino, reply, work);
        } else {
            self.in_pool("release", ino, reply, work);
        }
    }

    fn fsync(&self, _: &Request, ino: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        let begun = self.state.requests.begin("fsync");
        // A panic is told by the call below.
        let recorded = guarded("fsync", Ino(ino.0), || Ok(self.state.volume.record_now(Ino(ino.0))));
        if recorded == Ok(true) {
            return self.commits.answer_when_durable(reply, begun);
        }
        self.pool.run(self.job(begun, "fsync", ino, reply, move |state: &State, _: &ReplyEmpty| {
            state.volume.fsync(Ino(ino.0), Some(Handle(handle.0)), data_only)
        }));
    }

    /// ENOSYS makes the kernel open directories by itself, and keep what it read of them.
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.refused("opendir");
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, after: u64, mut reply: ReplyDirectory) {
        let begun = self.state.requests.begin("readdir");
        let listed = guarded("readdir", Ino(ino.0), || {
            self.state.readdir(Ino(ino.0), after, &mut |entry| {
                let name = OsStr::from_bytes(entry.name);
                !reply.add(INodeNo(entry.ino.0), entry.next, file_type(entry.kind), name)
            })
        });
        self.state.requests.end(begun);
        self.listed(ino, reply, listed);
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, after: u64, mut reply: ReplyDirectoryPlus) {
        let begun = self.state.requests.begin("readdirplus");
        let listed = guarded("readdirplus", Ino(ino.0), || self.state.readdirplus(Ino(ino.0), after, &mut reply));
        self.state.requests.end(begun);
        self.listed(ino, reply, listed);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.in_pool("fsyncdir", ino, reply, move |state, _| state.volume.fsync(Ino(ino.0), None, data_only));
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.at_once("statfs", ino, reply, |state, _| state.volume.statfs());
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let (caller, name, value) = (caller(request), name.as_bytes().to_vec(), value.to_vec());
        let may_publish = name == CAPABILITY;
        let set = move |state: &State| state.volume.setxattr(&caller, Ino(ino.0), &name, &value, xattr_mode(flags)?);
        if may_publish {
            self.in_pool("setxattr", ino, reply, move |state, _| set(state));
        } else {
            self.at_once("setxattr", ino, reply, |state, _| set(state));
        }
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.at_once("getxattr", ino, reply, |state, _| state.getxattr(Ino(ino.0), name.as_bytes(), size));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.at_once("listxattr", ino, reply, |state, _| {
            let mut names = state.volume.listxattr(Ino(ino.0))?;
            // The kernel keeps their values from others, but not their names.
            names.retain(|name| request.uid() == 0 || !name.starts_with(b"trusted."));
            xattr_answer(joined(&names), size)
        });
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.at_once("removexattr", ino, reply, |state, _| {
            state.volume.removexattr(&caller(request), Ino(ino.0), name.as_bytes())
        });
    }

    /// The kernel checks permissions itself.
    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        self.refused("access");
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        self.refused("ioctl");
        reply.error(Errno::ENOTTY);
    }

    /// ENOSYS makes the kernel treat every file as always ready.
    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        self.refused("poll");
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let caller = caller(request);
        self.in_pool("fallocate", ino, reply, move |state, _| {
            state.volume.fallocate(&caller, Ino(ino.0), Handle(handle.0), offset, length, allocate_mode(mode)?)
        });
    }

    fn lseek(&self, _: &Request, ino: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        if self.state.is_writeback() {
            // The kernel holds bytes and a length that the volume has not seen, and asking for them is no promise to get
            // all. A hole reported where data is on its way would make cp(1) lose it. Told that there is no such call,
            // the kernel takes everything up to the end for data.
            self.refused("lseek");
            return reply.error(Errno::ENOSYS);
        }
        self.at_once("lseek", ino, reply, |state, _| {
            let offset = u64::try_from(offset).map_err(|_| VolumeError::NoData)?;
            let found = state.volume.seek(Ino(ino.0), Handle(handle.0), offset, seek_kind(whence)?)?;
            i64::try_from(found).map_err(|_| VolumeError::TooLarge)
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        from_handle: FileHandle,
        from_offset: u64,
        to: INodeNo,
        to_handle: FileHandle,
        to_offset: u64,
        len: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let caller = caller(request);
        self.in_pool("copy_file_range", to, reply, move |state, _| {
            let from = (Ino(from.0), Handle(from_handle.0), from_offset);
            let to = (Ino(to.0), Handle(to_handle.0), to_offset);
            let copied = state.volume.copy_range(&caller, from, to, len.min(COPY_BYTES_MAX))?;
            u32::try_from(copied).map_err(|_| VolumeError::Internal(format!("copied {copied} bytes of {len}")))
        });
    }
}
