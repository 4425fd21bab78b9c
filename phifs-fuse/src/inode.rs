//! Which inodes the kernel holds, and how many references it has to each.
//!
//! An inode counts one for every entry handed out (lookup, create, mkdir, mknod, symlink, link, readdirplus) and one
//! for every open handle: RELEASE is answered by another thread than FORGET, and a volume must not see an inode
//! forgotten while it is open. At zero the volume hears of it, but never while a lookup is on its way that may hand
//! the same inode out again: such calls hold the gate, and forgetting needs it for itself.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use phifs_core::volume::Ino;

#[derive(Default)]
pub(crate) struct Inodes {
    counts: Mutex<HashMap<Ino, u64>>,
    /// Reached zero, and the volume has not been told yet.
    due: Mutex<Vec<Ino>>,
    gate: RwLock<()>,
}

impl Inodes {
    /// To be held from before an existing inode is looked up until it is counted.
    pub(crate) fn handing_out(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read()
    }

    pub(crate) fn add(&self, ino: Ino) {
        *self.counts.lock().entry(ino).or_insert(0) += 1;
    }

    /// Takes `n` references back. The kernel cannot return more than it got, but a lost count must not wrap around.
    pub(crate) fn subtract(&self, ino: Ino, n: u64) {
        let mut counts = self.counts.lock();
        let Entry::Occupied(mut count) = counts.entry(ino) else { return };
        *count.get_mut() = count.get().saturating_sub(n);
        if *count.get() == 0 {
            count.remove();
            self.due.lock().push(ino);
        }
    }

    /// An inode was shown, and the kernel did not take a reference. If it has none, the volume hears of it.
    pub(crate) fn pass(&self, ino: Ino) {
        if !self.counts.lock().contains_key(&ino) {
            self.due.lock().push(ino);
        }
    }

    /// Tells `forget` of every inode that the kernel no longer holds. Does nothing while entries are being handed
    /// out; whoever does that calls this afterwards.
    pub(crate) fn collect(&self, mut forget: impl FnMut(Ino)) {
        while !self.due.lock().is_empty() {
            let Some(_alone) = self.gate.try_write() else { return };
            let due = std::mem::take(&mut *self.due.lock());
            for ino in due {
                // It may have been handed out again since.
                if !self.counts.lock().contains_key(&ino) {
                    forget(ino);
                }
            }
        }
    }

    /// Whether the kernel holds this inode, or a call handed it out that was under way before.
    pub(crate) fn holds(&self, ino: Ino) -> bool {
        drop(self.gate.write());
        self.counts.lock().contains_key(&ino)
    }

    /// The inodes that the kernel holds.
    pub(crate) fn held(&self) -> Vec<Ino> {
        self.counts.lock().keys().copied().collect()
    }

    /// Takes all references back: the mount is gone.
    pub(crate) fn clear(&self) {
        let counts = std::mem::take(&mut *self.counts.lock());
        self.due.lock().extend(counts.into_keys());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(inodes: &Inodes) -> Vec<Ino> {
        let mut all = Vec::new();
        inodes.collect(|ino| all.push(ino));
        all
    }

    #[test]
    fn inode_is_forgotten_when_the_last_reference_returns() {
        let inodes = Inodes::default();
        inodes.add(Ino(7));
        inodes.add(Ino(7));
        inodes.subtract(Ino(7), 1);
        assert_eq!(collected(&inodes), []);
        inodes.subtract(Ino(7), 1);
        assert_eq!(collected(&inodes), [Ino(7)]);
        assert_eq!(collected(&inodes), []);
    }

    #[test]
    fn inode_on_its_way_out_is_not_forgotten() {
        let inodes = Inodes::default();
        inodes.add(Ino(7));
        let lookup = inodes.handing_out();
        inodes.subtract(Ino(7), 1);
        assert_eq!(collected(&inodes), []);
        inodes.add(Ino(7));
        drop(lookup);
        assert_eq!(collected(&inodes), []);
        inodes.subtract(Ino(7), 1);
        assert_eq!(collected(&inodes), [Ino(7)]);
    }

    #[test]
    fn inode_that_was_only_shown_is_forgotten_unless_it_is_held() {
        let inodes = Inodes::default();
        inodes.add(Ino(7));
        inodes.pass(Ino(7));
        inodes.pass(Ino(8));
        assert_eq!(collected(&inodes), [Ino(8)]);
    }

    #[test]
    fn end_of_the_mount_forgets_everything() {
        let inodes = Inodes::default();
        inodes.add(Ino(7));
        inodes.add(Ino(8));
        inodes.clear();
        let mut all = collected(&inodes);
        all.sort();
        assert_eq!(all, [Ino(7), Ino(8)]);
    }

    #[test]
    fn too_many_returns_do_not_wrap() {
        let inodes = Inodes::default();
        inodes.add(Ino(7));
        inodes.subtract(Ino(7), 5);
        inodes.subtract(Ino(7), 5);
        assert_eq!(collected(&inodes), [Ino(7)]);
    }
}
