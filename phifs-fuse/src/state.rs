//! What a mount knows: the volume behind it and what the kernel holds of it. One method for each operation that is
//! more than a call of the volume.
//!
//! Whatever is handed to the kernel is counted before the reply leaves, so that a FORGET or a RELEASE never comes
//! first.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use std::{ffi::OsStr, io, os::fd::BorrowedFd};

use fuser::{BackingId, FopenFlags, Generation, INodeNo, ReplyDirectoryPlus};
use phifs_core::volume::{
    Attr, Caller, Handle, Ino, Named, NewNode, OpenHow, Opened, Path, RenameMode, Result, SetAttr, Volume, VolumeError,
};

use crate::answer::{Entry, Opening, XattrAnswer};
use crate::attr::{file_attr, negative_ttl, no_attr, open_how, ttl_of};
use crate::backing::{Backings, Refusal};
use crate::flush::Writes;
use crate::guard::guarded;
use crate::handle::{Handles, OpenFile};
use crate::inode::Inodes;
use crate::listings::Listings;
use crate::requests::Requests;

pub(crate) struct State {
    pub(crate) volume: Arc<dyn Volume>,
    pub(crate) requests: Arc<Requests>,
    pub(crate) inodes: Inodes,
    pub(crate) listings: Listings,
    pub(crate) backings: Backings<BackingId>,
    pub(crate) handles: Handles,
    pub(crate) writes: Arc<Writes>,
    /// The kernel collects writes in its cache.
    writeback: AtomicBool,
    /// How many changes the volume has announced. A result that was made while one came in may be older than it, and
    /// the kernel does not know yet what it should drop: such a result is not to be cached.
    changes: AtomicU64,
}

impl State {
    pub(crate) fn new(volume: Arc<dyn Volume>) -> Self {
        Self {
            volume,
            requests: Arc::default(),
            inodes: Inodes::default(),
            listings: Listings::default(),
            backings: Backings::default(),
            handles: Handles::default(),
            writes: Arc::default(),
            writeback: AtomicBool::new(false),
            changes: AtomicU64::new(0),
        }
    }

    pub(crate) fn switch_writeback_on(&self) {
        self.writeback.store(true, Ordering::Relaxed);
    }

    /// The volume announces a change; what is being looked up right now may be out of date.
    pub(crate) fn note_change(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    fn ttl_since(&self, changes: u64, ttl: Duration) -> Duration {
        if self.changes() == changes { ttl } else { Duration::ZERO }
    }

    fn count(&self, attr: &Attr, changes: u64) -> Entry {
        self.inodes.add(attr.ino);
        Entry { attr: file_attr(attr), ttl: self.ttl_since(changes, ttl_of(attr.ino)) }
    }

    pub(crate) fn lookup(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Entry> {
        let changes = self.changes();
        let gate = self.inodes.handing_out();
        let found = self.volume.lookup(caller, parent, name).map(|attr| self.count(&attr, changes));
        drop(gate);
        self.collect();
        match found {
            Err(VolumeError::NotFound) => {
                let ttl = self.ttl_since(changes, negative_ttl(parent, name));
                if ttl.is_zero() { Err(VolumeError::NotFound) } else { Ok(Entry { attr: no_attr(), ttl }) }
            }
            other => other,
        }
    }

    pub(crate) fn make(&self, caller: &Caller, parent: Ino, name: &[u8], node: &NewNode<'_>) -> Result<Entry> {
        let changes = self.changes();
        let made = self.volume.make(caller, parent, name, node);
        self.listings.changed(parent);
        Ok(self.count(&made?, changes))
    }

    pub(crate) fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Entry> {
        let changes = self.changes();
        let linked = self.volume.link(ino, parent, name);
        self.listings.changed(parent);
        Ok(self.count(&linked?, changes))
    }

    pub(crate) fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let unlinked = self.volume.unlink(parent, name);
        self.listings.changed(parent);
        unlinked
    }

    pub(crate) fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let removed = self.volume.rmdir(parent, name);
        self.listings.changed(parent);
        removed
    }

    pub(crate) fn rename(&self, from: Ino, name: &[u8], to: Ino, new_name: &[u8], mode: RenameMode) -> Result<()> {
        let renamed = self.volume.rename(from, name, to, new_name, mode);
        self.listings.changed(from);
        self.listings.changed(to);
        renamed
    }

    pub(crate) fn getattr(&self, ino: Ino, handle: Option<Handle>) -> Result<Entry> {
        let changes = self.changes();
        let attr = self.volume.getattr(ino, handle)?;
        Ok(Entry { attr: file_attr(&attr), ttl: self.ttl_since(changes, ttl_of(ino)) })
    }

    pub(crate) fn setattr(&self, caller: &Caller, ino: Ino, change: &SetAttr) -> Result<Entry> {
        let changes = self.changes();
        let attr = self.volume.setattr(caller, ino, change)?;
        Ok(Entry { attr: file_attr(&attr), ttl: self.ttl_since(changes, ttl_of(ino)) })
    }

    pub(crate) fn getxattr(&self, ino: Ino, name: &[u8], size: u32) -> Result<XattrAnswer> {
        match self.volume.getxattr(ino, name) {
            // Asked only where SELinux is off, as it answers by itself. "None here" would make ls(1) ask for each file
            // again; "no such thing on this filesystem" it remembers.
            Err(VolumeError::NoAttribute) if name == b"security.selinux" => {
                Err(VolumeError::NotSupported("a label, where SELinux is off"))
            }
            other => xattr_answer(other?, size),
        }
    }

    /// Whether the kernel keeps written bytes to itself for a while.
    pub(crate) fn is_writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    /// The file by this name, if the kernel may hold bytes of it.
    pub(crate) fn unflushed(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Option<Ino> {
        if !self.is_writeback() || !self.handles.any_writer() {
            return None;
        }
        // What is wrong with the name, the call itself will tell.
        let ino = guarded("lookup", parent, || self.volume.lookup(caller, parent, name)).ok()?.ino;
        self.handles.has_writer(ino).then_some(ino)
    }

    /// What these flags of open(2) ask of the volume.
    pub(crate) fn how(&self, flags: i32) -> OpenHow {
        let how = open_how(flags, self.is_writeback());
        OpenHow { passthrough: self.backings.is_on(), ..how }
    }

    /// Whether an open may have to wait for a disk or a network.
    pub(crate) fn open_may_wait(&self, ino: Ino, how: &OpenHow) -> bool {
        // The file is registered with the kernel, and nothing has to be made durable before the kernel may use it.
        let is_at_hand = self.backings.holds(ino) && !how.truncate && !how.syncs_unheard();
        !is_at_hand && self.volume.open_may_wait(ino, how)
    }

    /// Whether a handle is served by requests, and not by the kernel from a file of the host.
    pub(crate) fn is_served_here(&self, handle: Handle) -> bool {
        self.handles.is_served_here(handle)
    }

    pub(crate) fn open(
        &self,
        caller: &Caller,
        ino: Ino,
        how: &OpenHow,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Result<Opening> {
        let opened = self.volume.open(caller, ino, how)?;
        self.opened(ino, how, opened, register)
    }

    pub(crate) fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        node: &NewNode<'_>,
        how: &OpenHow,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Result<(Entry, Opening)> {
        let changes = self.changes();
        let created = self.volume.create(caller, parent, name, node, how);
        self.listings.changed(parent);
        let (attr, opened) = created?;
        let opening = self.opened(attr.ino, how, opened, register)?;
        Ok((self.count(&attr, changes), opening))
    }

    fn opened(
        &self,
        ino: Ino,
        how: &OpenHow,
        opened: Opened,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Result<Opening> {
        let handle = opened.handle;
        // Closing has nothing to report that fsync does not; only what the kernel collected has to come here first.
        let flush = how.write && self.is_writeback();
        let mut flags = if flush { FopenFlags::empty() } else { FopenFlags::FOPEN_NOFLUSH };
        let mut backing = None;
        match opened.path {
            Path::Cached { keep_cache } => flags.set(FopenFlags::FOPEN_KEEP_CACHE, keep_cache),
            Path::Direct => flags |= FopenFlags::FOPEN_DIRECT_IO,
            Path::Passthrough { file } => match self.backings.attach(ino, &*file, register) {
                Ok(registration) => backing = Some(registration),
                Err(Refusal::OtherFileOpen) => {
                    self.volume.release(ino, handle);
                    return Err(VolumeError::Internal(Refusal::OtherFileOpen.to_string()));
                }
                Err(refusal @ (Refusal::Off | Refusal::NoDescriptor | Refusal::Kernel(_))) => {
                    tracing::debug!(ino = ino.0, %refusal, "file data goes through this process");
                    flags.set(FopenFlags::FOPEN_KEEP_CACHE, self.volume.refuse_passthrough(handle));
                }
            },
        }
        self.handles.insert(handle, OpenFile { ino, passthrough: backing.is_some(), write: how.write });
        self.inodes.add(ino);
        Ok(Opening { handle, flags, backing })
    }

    pub(crate) fn release(&self, handle: Handle) -> Result<()> {
        let file = self.handles.remove(handle).ok_or(VolumeError::BadHandle)?;
        // Before the volume believes that the inode is closed, a new file of its must be welcome here.
        if file.passthrough {
            self.backings.detach(file.ino);
        }
        self.volume.release(file.ino, handle);
        self.inodes.subtract(file.ino, 1);
        self.collect();
        Ok(())
    }

    /// Whether there was anything left to list. See `Volume::readdir_names`.
    pub(crate) fn readdir(&self, ino: Ino, after: u64, add: &mut dyn FnMut(&Named<'_>) -> bool) -> Result<bool> {
        self.list(ino, after, |shown| {
            self.volume.readdir_names(ino, after, &mut |named| {
                shown(named.ino, false);
                add(named)
            })
        })
    }

    pub(crate) fn readdirplus(&self, ino: Ino, after: u64, reply: &mut ReplyDirectoryPlus) -> Result<bool> {
        let changes = self.changes();
        self.list(ino, after, |shown| {
            self.volume.readdir(ino, after, &mut |entry| {
                let attr = &entry.attr;
                let ttl = self.ttl_since(changes, ttl_of(attr.ino));
                let name = OsStr::from_bytes(&entry.name);
                let full = reply.add(INodeNo(attr.ino.0), entry.next, name, &ttl, &file_attr(attr), Generation(0));
                // The kernel takes no reference for these two.
                shown(attr.ino, !full && entry.name != b"." && entry.name != b"..");
                !full
            })
        })
    }

    /// `walk` tells of each entry that the volume showed whether the kernel takes a reference to it.
    fn list(&self, ino: Ino, after: u64, walk: impl FnOnce(&mut dyn FnMut(Ino, bool)) -> Result<()>) -> Result<bool> {
        if after == 0 {
            self.listings.begin(ino);
        }
        let (mut any, mut taken, mut passed) = (false, Vec::new(), Vec::new());
        let gate = self.inodes.handing_out();
        let listed = walk(&mut |ino, is_taken| {
            any = true;
            if is_taken {
                taken.push(ino);
            } else if ino.is_virtual() {
                passed.push(ino);
            }
        });
        if listed.is_ok() {
            taken.into_iter().for_each(|ino| self.inodes.add(ino));
        } else {
            // The reply is an error, so the kernel hears of none.
            passed.extend(taken.into_iter().filter(|ino| ino.is_virtual()));
        }
        passed.into_iter().for_each(|ino| self.inodes.pass(ino));
        drop(gate);
        self.collect();
        listed.map(|()| any)
    }

    pub(crate) fn forget(&self, ino: Ino, lookups: u64) {
        self.inodes.subtract(ino, lookups);
        self.collect();
    }

    /// Tells the volume which inodes the kernel let go of.
    fn collect(&self) {
        self.inodes.collect(|ino| {
            self.backings.forget(ino);
            self.listings.forget(ino);
            if ino != Ino::ROOT {
                // A panic is logged; forgetting has no reply.
                let _ = guarded("forget", ino, || {
                    self.volume.forget(ino);
                    Ok(())
                });
            }
        });
    }

    /// Lets go of everything the kernel held, because the mount is gone.
    pub(crate) fn finish(&self) {
        for handle in self.handles.open() {
            let _ = guarded("release", Ino::ROOT, || self.release(handle));
        }
        self.inodes.clear();
        self.collect();
    }
}

/// `size` is the room that the caller has; 0 asks how much is needed.
pub(crate) fn xattr_answer(value: Vec<u8>, size: u32) -> Result<XattrAnswer> {
    let needed = u32::try_from(value.len()).map_err(|_| VolumeError::AttributeTooLarge)?;
    if size == 0 {
        Ok(XattrAnswer::Size(needed))
    } else if needed > size {
        Err(VolumeError::Range)
    } else {
        Ok(XattrAnswer::Value(value))
    }
}

/// The form of listxattr(2): each name with a NUL behind it.
pub(crate) fn joined(names: &[Vec<u8>]) -> Vec<u8> {
    names.iter().flat_map(|name| name.iter().copied().chain([0])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_is_measured_then_fetched() {
        assert!(matches!(xattr_answer(vec![1, 2, 3], 0), Ok(XattrAnswer::Size(3))));
        assert!(matches!(xattr_answer(vec![1, 2, 3], 2), Err(VolumeError::Range)));
        assert!(matches!(xattr_answer(vec![1, 2, 3], 3), Ok(XattrAnswer::Value(value)) if value == [1, 2, 3]));
    }

    #[test]
    fn attribute_names_end_with_nul() {
        assert_eq!(joined(&[b"user.a".to_vec(), b"user.b".to_vec()]), b"user.a\0user.b\0");
        assert_eq!(joined(&[]), b"");
    }
}
