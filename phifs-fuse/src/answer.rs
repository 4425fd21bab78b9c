//! One reply for each kind of result, so that a handler only says how the result is made.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    BackingId, Errno, FileAttr, FileHandle, FopenFlags, Generation, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use phifs_core::volume::{Handle, StatFs};

/// Inode numbers are never used twice within a mount, so all generations are the same.
const GENERATION: Generation = Generation(0);

/// Sends a result to the kernel.
pub(crate) trait Answer<T> {
    fn answer(self, outcome: Result<T, Errno>);
}

/// What a name leads to, and for how long the kernel may believe it.
pub(crate) struct Entry {
    pub(crate) attr: FileAttr,
    pub(crate) ttl: Duration,
}

/// How an open file's bytes travel, in the kernel's terms.
pub(crate) struct Opening {
    pub(crate) handle: Handle,
    pub(crate) flags: FopenFlags,
    pub(crate) backing: Option<Arc<BackingId>>,
}

/// The value of an attribute, or its size for a caller that sent no room for it.
pub(crate) enum XattrAnswer {
    Size(u32),
    Value(Vec<u8>),
}

/// A reply through which a file can be registered for passthrough.
pub(crate) trait Register {
    fn register(&self, fd: BorrowedFd<'_>) -> io::Result<BackingId>;
}

impl Register for ReplyOpen {
    fn register(&self, fd: BorrowedFd<'_>) -> io::Result<BackingId> {
        self.open_backing(fd)
    }
}

impl Register for ReplyCreate {
    fn register(&self, fd: BorrowedFd<'_>) -> io::Result<BackingId> {
        self.open_backing(fd)
    }
}

macro_rules! answer {
    ($reply:ty, $value:ty, |$r:ident, $v:pat_param| $send:expr) => {
        impl Answer<$value> for $reply {
            fn answer(self, outcome: Result<$value, Errno>) {
                let $r = self;
                match outcome {
                    Ok($v) => $send,
                    Err(errno) => $r.error(errno),
                }
            }
        }
    };
}

answer!(ReplyEmpty, (), |reply, ()| reply.ok());
answer!(ReplyDirectory, (), |reply, ()| reply.ok());
answer!(ReplyDirectoryPlus, (), |reply, ()| reply.ok());
answer!(ReplyData, Vec<u8>, |reply, bytes| reply.data(&bytes));
answer!(ReplyWrite, u32, |reply, written| reply.written(written));
answer!(ReplyLseek, i64, |reply, offset| reply.offset(offset));
answer!(ReplyAttr, Entry, |reply, entry| reply.attr(&entry.ttl, &entry.attr));
answer!(ReplyEntry, Entry, |reply, entry| reply.entry(&entry.ttl, &entry.attr, GENERATION));
answer!(ReplyXattr, XattrAnswer, |reply, answer| match answer {
    XattrAnswer::Size(size) => reply.size(size),
    XattrAnswer::Value(value) => reply.data(&value),
});
answer!(ReplyStatfs, StatFs, |reply, s| reply.statfs(
    s.blocks,
    s.blocks_free,
    s.blocks_available,
    s.inodes,
    s.inodes_free,
    s.block_bytes,
    s.name_bytes_max,
    s.block_bytes,
));
answer!(ReplyOpen, Opening, |reply, opening| {
    let handle = FileHandle(opening.handle.0);
    match opening.backing {
        Some(backing) => reply.opened_passthrough(handle, opening.flags, &backing),
        None => reply.opened(handle, opening.flags),
    }
});
answer!(ReplyCreate, (Entry, Opening), |reply, (entry, opening)| {
    let handle = FileHandle(opening.handle.0);
    match opening.backing {
        Some(backing) => {
            reply.created_passthrough(&entry.ttl, &entry.attr, GENERATION, handle, opening.flags, &backing);
        }
        None => reply.created(&entry.ttl, &entry.attr, GENERATION, handle, opening.flags),
    }
});
