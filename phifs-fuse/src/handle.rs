//! The open files of a mount.
//!
//! The kernel drops requests that it has not delivered when it unmounts, and RELEASE is one of those that nobody waits
//! for. What is still in this table at the end is released then, so that no volume waits for a close that never comes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::OnceLock;

use parking_lot::Mutex;
use phifs_core::volume::{Handle, Ino};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenFile {
    pub(crate) ino: Ino,
    /// Counts in `Backings`.
    pub(crate) passthrough: bool,
    pub(crate) write: bool,
}

impl OpenFile {
    /// What is written through it may stay in the cache of the kernel, at least what is stored through a mapping.
    fn fills_cache(&self) -> bool {
        self.write && !self.passthrough
    }
}

#[derive(Default)]
struct Table {
    open: HashMap<Handle, OpenFile>,
    /// How many handles of an inode write into the kernel's cache; there is none without.
    writers: HashMap<Ino, usize>,
}

#[derive(Default)]
pub(crate) struct Handles {
    table: Mutex<Table>,
    /// Called when there is a writer where there was none.
    first_writer: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Handles {
    pub(crate) fn insert(&self, handle: Handle, file: OpenFile) {
        let is_first_writer = {
            let mut table = self.table.lock();
            let had_none = table.writers.is_empty();
            if file.fills_cache() {
                *table.writers.entry(file.ino).or_insert(0) += 1;
            }
            table.open.insert(handle, file);
            had_none && !table.writers.is_empty()
        };
        if is_first_writer && let Some(tell) = self.first_writer.get() {
            tell();
        }
    }

    /// Who is told, from now on, that `any_writer` has become true. To be called once.
    pub(crate) fn on_first_writer(&self, tell: impl Fn() + Send + Sync + 'static) {
        assert!(self.first_writer.set(Box::new(tell)).is_ok(), "one mount has one flusher");
    }

    /// Whether its bytes pass through here.
    pub(crate) fn is_served_here(&self, handle: Handle) -> bool {
        self.table.lock().open.get(&handle).is_some_and(|file| !file.passthrough)
    }

    /// `None` for a handle that is not open.
    pub(crate) fn remove(&self, handle: Handle) -> Option<OpenFile> {
        let mut table = self.table.lock();
        let file = table.open.remove(&handle)?;
        if file.fills_cache()
            && let Entry::Occupied(mut count) = table.writers.entry(file.ino)
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        Some(file)
    }

    /// Whether any file is open for writing into the kernel's cache.
    pub(crate) fn any_writer(&self) -> bool {
        !self.table.lock().writers.is_empty()
    }

    pub(crate) fn has_writer(&self, ino: Ino) -> bool {
        self.table.lock().writers.contains_key(&ino)
    }

    pub(crate) fn open(&self) -> Vec<Handle> {
        self.table.lock().open.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn first_writer_is_told_of_each_time_there_was_none() {
        let told = Arc::new(AtomicUsize::new(0));
        let handles = Handles::default();
        let count = Arc::clone(&told);
        handles.on_first_writer(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let writer = OpenFile { ino: Ino(5), passthrough: false, write: true };
        handles.insert(Handle(1), OpenFile { write: false, ..writer });
        handles.insert(Handle(2), OpenFile { passthrough: true, ..writer });
        assert_eq!(told.load(Ordering::Relaxed), 0);
        handles.insert(Handle(3), writer);
        handles.insert(Handle(4), OpenFile { ino: Ino(6), ..writer });
        assert_eq!(told.load(Ordering::Relaxed), 1);
        handles.remove(Handle(3));
        handles.remove(Handle(4));
        handles.insert(Handle(5), writer);
        assert_eq!(told.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn inode_has_a_writer_until_the_last_of_them_closes() {
        let handles = Handles::default();
        let file = |write| OpenFile { ino: Ino(5), passthrough: false, write };
        handles.insert(Handle(1), file(false));
        handles.insert(Handle(4), OpenFile { passthrough: true, ..file(true) });
        assert!(!handles.any_writer());
        handles.insert(Handle(2), file(true));
        handles.insert(Handle(3), file(true));
        assert!(handles.has_writer(Ino(5)) && !handles.has_writer(Ino(6)));
        handles.remove(Handle(2));
        handles.remove(Handle(1));
        assert!(handles.has_writer(Ino(5)));
        assert_eq!(handles.remove(Handle(3)), Some(file(true)));
        assert_eq!(handles.remove(Handle(3)), None);
        assert!(!handles.any_writer());
    }
}
