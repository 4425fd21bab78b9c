//! Which file the kernel reads and writes in place of each inode.
//!
//! The kernel refuses a second open of an inode unless it names the very registration of the first, even for the same
//! file. So a registration is kept per inode, from the first open until the kernel forgets the inode or its bytes
//! change, and it is never exchanged while a handle is open. Keeping it after the last close saves 26 us on the next
//! open. The kernel holds the file itself: no descriptor stays open here.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use phifs_core::disk::File;
use phifs_core::volume::Ino;
use rustix::io::Errno;

/// Why an inode's file was not handed to the kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("passthrough is off for this mount")]
    Off,
    #[error("the file has no descriptor")]
    NoDescriptor,
    #[error("the kernel refused the file: {0}")]
    Kernel(io::Error),
    /// Only a bug of the volume can bring it about.
    #[error("the inode is open through another file")]
    OtherFileOpen,
}

/// What tells one file from another whatever handle it came by: device and inode number on the host.
///
/// The number cannot be reused while it is held here, because the kernel holds the file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct HostFile {
    device: u64,
    number: u64,
}

struct Held<B> {
    registration: Arc<B>,
    file: HostFile,
    handles: usize,
    /// To be dropped with the last handle.
    stale: bool,
}

/// `B` is a registration with the kernel, which ends when it is dropped.
pub(crate) struct Backings<B> {
    held: Mutex<HashMap<Ino, Held<B>>>,
    on: AtomicBool,
}

impl<B> Default for Backings<B> {
    fn default() -> Self {
        Self { held: Mutex::default(), on: AtomicBool::new(false) }
    }
}

impl<B> Backings<B> {
    pub(crate) fn switch_on(&self) {
        self.on.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Whether an open of this inode finds its file registered.
    pub(crate) fn holds(&self, ino: Ino) -> bool {
        self.held.lock().contains_key(&ino)
    }

    /// The registration for one more handle of `ino` on `file`; `register` makes one where there is none.
    ///
    /// # Errors
    /// A refusal that would meet every other file too switches passthrough off.
    pub(crate) fn attach(
        &self,
        ino: Ino,
        file: &dyn File,
        register: impl FnOnce(BorrowedFd<'_>) -> io::Result<B>,
    ) -> Result<Arc<B>, Refusal> {
        if !self.is_on() {
            return Err(Refusal::Off);
        }
        let fd = file.fd().ok_or(Refusal::NoDescriptor)?;
        let stat = rustix::fs::fstat(fd).map_err(|error| Refusal::Kernel(error.into()))?;
        let file = HostFile { device: stat.st_dev, number: stat.st_ino };
        // The lock is held while registering: two first opens at once must not register twice.
        let mut all = self.held.lock();
        if let Some(held) = all.get_mut(&ino) {
            if held.file == file {
                held.handles += 1;
                held.stale = false;
                return Ok(Arc::clone(&held.registration));
            }
            if held.handles > 0 {
                return Err(Refusal::OtherFileOpen);
            }
        }
        let registration = Arc::new(register(fd).map_err(|error| self.refused(error))?);
        all.insert(ino, Held { registration: Arc::clone(&registration), file, handles: 1, stale: false });
        Ok(registration)
    }

    /// A handle that was attached is closed.
    pub(crate) fn detach(&self, ino: Ino) {
        let mut all = self.held.lock();
        let Some(held) = all.get_mut(&ino) else { return };
        held.handles = held.handles.saturating_sub(1);
        if held.handles == 0 && held.stale {
            all.remove(&ino);
        }
    }

    /// The bytes of the inode are now elsewhere.
    pub(crate) fn invalidate(&self, ino: Ino) {
        let mut all = self.held.lock();
        let Some(held) = all.get_mut(&ino) else { return };
        if held.handles == 0 {
            let last = all.remove(&ino);
            drop(all);
            // If nobody else has the file, the host filesystem gives its space back in here.
            drop(last);
        } else {
            held.stale = true;
        }
    }

    /// The kernel holds the inode no longer.
    pub(crate) fn forget(&self, ino: Ino) {
        self.held.lock().remove(&ino);
    }

    fn refused(&self, error: io::Error) -> Refusal {
        // Without the privilege or the feature there is no point in asking again. Lack of memory passes.
        let for_good = [Errno::PERM, Errno::NOSYS, Errno::NOTTY, Errno::OPNOTSUPP, Errno::INVAL, Errno::LOOP];
        if Errno::from_io_error(&error).is_some_and(|errno| for_good.contains(&errno)) {
            self.on.store(false, Ordering::Relaxed);
            tracing::warn!(%error, "the kernel refuses passthrough; file data now goes through this process");
        }
        Refusal::Kernel(error)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::AtomicU32;

    use phifs_core::disk::Stamp;

    use super::*;

    struct TempFile(std::fs::File);

    impl File for TempFile {
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            unreachable!()
        }
        fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            unreachable!()
        }
        fn sync(&self) -> io::Result<()> {
            unreachable!()
        }
        fn stamp(&self) -> io::Result<Stamp> {
            unreachable!()
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            unreachable!()
        }
        fn allocate(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
            unreachable!()
        }
        fn punch_hole(&self, _: u64, _: u64) -> io::Result<()> {
            unreachable!()
        }
        fn seek_data(&self, _: u64) -> io::Result<Option<u64>> {
            unreachable!()
        }
        fn seek_hole(&self, _: u64) -> io::Result<u64> {
            unreachable!()
        }
        fn fd(&self) -> Option<BorrowedFd<'_>> {
            Some(self.0.as_fd())
        }
    }

    fn temp_file() -> TempFile {
        TempFile(tempfile::tempfile().unwrap())
    }

    /// Hands out 1, 2, 3 ... as registrations.
    struct Kernel {
        backings: Backings<u32>,
        next: AtomicU32,
    }

    impl Kernel {
        fn new() -> Self {
            let backings = Backings::default();
            backings.switch_on();
            Self { backings, next: AtomicU32::new(1) }
        }

        fn open(&self, ino: u64, file: &TempFile) -> Result<u32, Refusal> {
            let register = |_: BorrowedFd<'_>| Ok(self.next.fetch_add(1, Ordering::Relaxed));
            self.backings.attach(Ino(ino), file, register).map(|registration| *registration)
        }
    }

    #[test]
    fn same_file_gives_the_same_registration_by_any_descriptor() {
        let kernel = Kernel::new();
        let file = temp_file();
        let again = TempFile(file.0.try_clone().unwrap());
        assert_eq!(kernel.open(5, &file).unwrap(), 1);
        assert_eq!(kernel.open(5, &again).unwrap(), 1);
        assert_eq!(kernel.open(6, &temp_file()).unwrap(), 2);
    }

    #[test]
    fn registration_outlives_the_last_close_but_not_forget() {
        let kernel = Kernel::new();
        let file = temp_file();
        kernel.open(5, &file).unwrap();
        kernel.backings.detach(Ino(5));
        assert_eq!(kernel.open(5, &file).unwrap(), 1);
        kernel.backings.detach(Ino(5));
        kernel.backings.forget(Ino(5));
        assert_eq!(kernel.open(5, &file).unwrap(), 2);
    }

    #[test]
    fn invalidated_registration_stays_while_a_handle_is_open() {
        let kernel = Kernel::new();
        let file = temp_file();
        kernel.open(5, &file).unwrap();
        kernel.backings.invalidate(Ino(5));
        assert!(kernel.backings.holds(Ino(5)));
        kernel.backings.detach(Ino(5));
        assert!(!kernel.backings.holds(Ino(5)));
    }

    #[test]
    fn another_file_waits_for_the_last_close() {
        let kernel = Kernel::new();
        let other = temp_file();
        kernel.open(5, &temp_file()).unwrap();
        assert!(matches!(kernel.open(5, &other), Err(Refusal::OtherFileOpen)));
        kernel.backings.detach(Ino(5));
        assert_eq!(kernel.open(5, &other).unwrap(), 2);
    }

    #[test]
    fn lack_of_privilege_switches_passthrough_off_and_lack_of_memory_does_not() {
        let kernel = Kernel::new();
        let attach = |error: Errno| kernel.backings.attach(Ino(5), &temp_file(), |_| Err(error.into()));
        assert!(matches!(attach(Errno::NOMEM), Err(Refusal::Kernel(_))));
        assert!(kernel.backings.is_on());
        assert!(matches!(attach(Errno::PERM), Err(Refusal::Kernel(_))));
        assert!(!kernel.backings.is_on());
        assert!(matches!(attach(Errno::PERM), Err(Refusal::Off)));
    }
}
