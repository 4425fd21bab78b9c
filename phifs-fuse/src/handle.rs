//! The open files of a mount.
//!
//! The kernel drops requests that it has not delivered when it unmounts, and RELEASE is one of those that nobody waits
//! for. What is still in this table at the end is released then, so that no volume waits for a close that never comes.

use std::collections::HashMap;

use parking_lot::Mutex;
use phifs_core::volume::{Handle, Ino};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenFile {
    pub(crate) ino: Ino,
    /// Counts in `Backings`.
    pub(crate) passthrough: bool,
    /// A program that runs, or is being started: the kernel keeps its file open for as long.
    pub(crate) executes: bool,
}

#[derive(Default)]
pub(crate) struct Handles {
    open: Mutex<HashMap<Handle, OpenFile>>,
}

impl Handles {
    pub(crate) fn insert(&self, handle: Handle, file: OpenFile) {
        self.open.lock().insert(handle, file);
    }

    /// `None` for a handle that is not open.
    pub(crate) fn remove(&self, handle: Handle) -> Option<OpenFile> {
        self.open.lock().remove(&handle)
    }

    /// Whether somebody has it open as a program.
    pub(crate) fn executes(&self, ino: Ino) -> bool {
        self.open.lock().values().any(|file| file.executes && file.ino == ino)
    }

    pub(crate) fn open(&self) -> Vec<Handle> {
        self.open.lock().keys().copied().collect()
    }
}
