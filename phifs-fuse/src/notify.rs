//! Tells the kernel what to drop from its caches.
//!
//! A notice waits in the kernel for the lock of a directory or of a page, and the request that holds it may be waiting
//! for us. So notices leave from one thread of their own that holds no lock, and whoever announces a change only adds
//! to a set. The set has a bound: beyond it, everything the kernel holds is dropped instead.
//!
//! The order among notices does not matter, because the volume shows the new state before it announces it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use parking_lot::{Condvar, Mutex, MutexGuard};
use phifs_core::volume::{Ino, Invalidate};

use crate::state::State;

/// Notices that may wait; some tens of megabytes at the very most.
const WAITING_MAX: usize = 1 << 16;

/// A LOOKUP whose reply has left but is not yet taken in by its caller makes the kernel answer "no such inode", and
/// then cache what it should not. So attributes are dropped a second time after this.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Whoever waits until the kernel has taken something in, waits no longer than this.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// What the kernel has to drop.
#[derive(Debug, Default, PartialEq, Eq)]
struct Notices {
    /// With the bytes, or the attributes alone.
    inodes: HashMap<Ino, bool>,
    names: HashSet<(Ino, Vec<u8>)>,
    /// Files of these inodes that the kernel need not hold any more. Nothing in its caches is wrong.
    files: Vec<Ino>,
    /// Too much to list; but `files` are.
    everything: bool,
}

impl Notices {
    fn inode(&mut self, ino: Ino, data: bool) {
        *self.inodes.entry(ino).or_insert(false) |= data;
        self.bound();
    }

    /// The directory's own pages go too: the kernel keeps listings in them, and a name that it has never looked up
    /// would not make it drop the listing.
    fn entry(&mut self, parent: Ino, name: &[u8]) {
        self.names.insert((parent, name.to_vec()));
        self.inode(parent, true);
    }

    fn bound(&mut self) {
        if self.everything || self.inodes.len() + self.names.len() > WAITING_MAX {
            *self = Self { everything: true, files: std::mem::take(&mut self.files), ..Self::default() };
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What waits for the kernel to drop its listing of a directory.
type Then = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    waiting: Notices,
    /// How many notices came, and how many of them the kernel has taken in.
    announced: u64,
    delivered: u64,
    listings: Vec<(Ino, Then)>,
    closed: bool,
}

/// Announces changes to the kernel of one mount.
pub(crate) struct Announcer {
    state: Arc<State>,
    queue: Mutex<Queue>,
    wake: Condvar,
    wake_listings: Condvar,
    wake_settling: Condvar,
}

impl Invalidate for Announcer {
    fn inode(&self, ino: Ino, data: bool) {
        self.announce(|notices| notices.inode(ino, data));
    }

    fn entry(&self, parent: Ino, name: &[u8]) {
        self.state.listings.changed(parent);
        self.announce(|notices| notices.entry(parent, name));
    }

    fn file(&self, ino: Ino) {
        self.enqueue(|notices| notices.files.push(ino));
    }

    fn holds(&self, ino: Ino) -> bool {
        self.state.inodes.holds(ino)
    }

    fn settle(&self) {
        let mut queue = self.queue.lock();
        let announced = queue.announced;
        while queue.delivered < announced && !queue.closed {
            if self.wake_settling.wait_for(&mut queue, SETTLE_MAX).timed_out() {
                tracing::warn!("the kernel has not taken in yet what changed");
                return;
            }
        }
    }
}

/// The end of the line to the kernel.
pub(crate) struct Line {
    pub(crate) notifier: Notifier,
    /// The device, for the one notice that fuser 0.18 does not know.
    pub(crate) device: OwnedFd,
}

impl Announcer {
    pub(crate) fn new(state: Arc<State>) -> Self {
        Self {
            state,
            queue: Mutex::default(),
            wake: Condvar::new(),
            wake_listings: Condvar::new(),
            wake_settling: Condvar::new(),
        }
    }

    fn announce(&self, add: impl FnOnce(&mut Notices)) {
        // First of all: from here on no reply that may be older than the change is cached.
        self.state.note_change();
        self.enqueue(add);
    }

    fn enqueue(&self, add: impl FnOnce(&mut Notices)) {
        let mut queue = self.queue.lock();
        if !queue.closed {
            add(&mut queue.waiting);
            queue.announced += 1;
            self.wake.notify_one();
        }
    }

    /// Does `then` once the kernel has dropped what it keeps of the entries of `dir`.
    pub(crate) fn drop_listing(&self, dir: Ino, then: impl FnOnce() + Send + 'static) {
        let mut queue = self.queue.lock();
        if queue.closed {
            drop(queue);
            return then();
        }
        queue.listings.push((dir, Box::new(then)));
        self.wake_listings.notify_one();
    }

    /// Drops listings, until `close`. On a thread of its own: `run` may be waiting for the lock of a directory, which
    /// is held by whoever lists it and waits for this.
    pub(crate) fn run_listings(&self, line: &Line) {
        let mut queue = self.queue.lock();
        while !queue.closed {
            let listings = std::mem::take(&mut queue.listings);
            if listings.is_empty() {
                self.wake_listings.wait(&mut queue);
                continue;
            }
            MutexGuard::unlocked(&mut queue, || {
                for (dir, then) in listings {
                    line.inode(dir, true);
                    then();
                }
            });
        }
    }

    /// Ends `run`; announcements made from now on are dropped.
    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        let listings = std::mem::take(&mut queue.listings);
        drop(queue);
        self.wake.notify_one();
        self.wake_listings.notify_one();
        self.wake_settling.notify_all();
        listings.into_iter().for_each(|(_, then)| then());
    }

    /// Passes on what is announced, until `close`.
    pub(crate) fn run(&self, line: &Line) {
        let mut again = HashSet::new();
        while let Some((notices, announced)) = self.next(if again.is_empty() { None } else { Some(AGAIN_AFTER) }) {
            for ino in again.drain() {
                line.inode(ino, false);
            }
            again.extend(notices.inodes.keys().copied());
            self.pass_on(notices, line);
            self.queue.lock().delivered = announced;
            self.wake_settling.notify_all();
        }
    }

    /// What has been announced, and up to where that is; nothing at all after `patience`. `None` when closed.
    fn next(&self, patience: Option<Duration>) -> Option<(Notices, u64)> {
        let mut queue = self.queue.lock();
        while queue.waiting.is_empty() && !queue.closed {
            match patience {
                None => self.wake.wait(&mut queue),
                Some(patience) => {
                    if self.wake.wait_for(&mut queue, patience).timed_out() {
                        break;
                    }
                }
            }
        }
        let announced = queue.announced;
        if queue.closed { None } else { Some((std::mem::take(&mut queue.waiting), announced)) }
    }

    fn pass_on(&self, notices: Notices, line: &Line) {
        if notices.everything {
            line.all_names();
            for ino in self.state.inodes.held() {
                self.drop_inode(ino, true, line);
            }
            self.drop_inode(Ino::ROOT, true, line);
        }
        for (ino, data) in notices.inodes {
            self.drop_inode(ino, data, line);
        }
        for (parent, name) in notices.names {
            line.entry(parent, &name);
        }
        for ino in notices.files {
            self.state.backings.invalidate(ino);
        }
    }

    fn drop_inode(&self, ino: Ino, data: bool, line: &Line) {
        if data {
            self.state.backings.invalidate(ino);
        }
        line.inode(ino, data);
    }
}

impl Line {
    fn inode(&self, ino: Ino, data: bool) {
        // A negative offset means the attributes alone; a length of zero means to the end.
        let offset = if data { 0 } else { -1 };
        logged(self.notifier.inval_inode(INodeNo(ino.0), offset, 0));
    }

    fn entry(&self, parent: Ino, name: &[u8]) {
        logged(self.notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(name)));
    }

    /// FUSE_NOTIFY_INC_EPOCH of Linux 6.16: every name cached so far has to be looked up again.
    fn all_names(&self) {
        const INC_EPOCH: i32 = 8;
        const LEN: u32 = 16;
        // struct fuse_out_header: length, code in place of an error, and no request.
        let mut notice = [0; LEN as usize];
        notice[..4].copy_from_slice(&LEN.to_ne_bytes());
        notice[4..8].copy_from_slice(&INC_EPOCH.to_ne_bytes());
        if let Err(error) = rustix::io::write(&self.device, &notice) {
            tracing::warn!(%error, "this kernel cannot drop all names at once; some may be out of date until remounted");
        }
    }
}

fn logged(sent: io::Result<()>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "the kernel did not take a notice");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_of_one_inode_are_merged() {
        let mut notices = Notices::default();
        notices.inode(Ino(5), false);
        notices.inode(Ino(5), true);
        notices.inode(Ino(5), false);
        assert_eq!(notices.inodes, HashMap::from([(Ino(5), true)]));
    }

    #[test]
    fn changed_name_drops_the_listing_of_its_directory() {
        let mut notices = Notices::default();
        notices.entry(Ino(5), b"new");
        assert_eq!(notices.inodes, HashMap::from([(Ino(5), true)]));
    }

    #[test]
    fn flood_of_notices_becomes_one() {
        let mut notices = Notices::default();
        for n in 0..=WAITING_MAX as u64 {
            notices.inode(Ino(n), false);
        }
        notices.entry(Ino(5), b"late");
        assert!(notices.everything && notices.inodes.is_empty() && notices.names.is_empty());
    }

    #[test]
    fn files_to_let_go_of_outlast_a_flood() {
        let mut notices = Notices { files: vec![Ino(5)], ..Notices::default() };
        for n in 0..=WAITING_MAX as u64 {
            notices.inode(Ino(n), false);
        }
        assert!(notices.everything);
        assert_eq!(notices.files, [Ino(5)]);
    }
}
