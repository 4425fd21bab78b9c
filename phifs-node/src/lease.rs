//! Asks the kernel whether a file is open for writing, by anybody.
//!
//! There is no call for that; but a read lease is granted only while there is no writer, a mapping that stores can go
//! through included (fcntl(2), F_SETLEASE). It is given back at once. While it is held, somebody who opens the file
//! for writing waits for that moment, and the kernel sends SIGIO, which the daemon ignores.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Whether anybody has the file open for writing. `file` itself must be open for reading only.
pub fn is_open_for_writing(file: &File) -> io::Result<bool> {
    match set_lease(file, libc::F_RDLCK) {
        Ok(()) => match set_lease(file, libc::F_UNLCK) {
            // Another thread asked at the same time and has given the lease back for both.
            Err(error) if error.raw_os_error() != Some(libc::EAGAIN) => Err(error),
            _ => Ok(false),
        },
        Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        // A host filesystem without leases: better one look too many than a lost store.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS)) => Ok(true),
        Err(error) => Err(error),
    }
}

fn set_lease(file: &File, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and F_SETLEASE takes an integer.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_threads_may_ask_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        drop(File::create(&path).unwrap());
        let reader = File::open(&path).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..2000).for_each(|_| assert!(!is_open_for_writing(&reader).unwrap())));
            }
        });
    }

    #[test]
    fn a_writer_is_noticed_while_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let writer = File::create(&path).unwrap();
        let reader = File::open(&path).unwrap();
        assert!(is_open_for_writing(&reader).unwrap());
        drop(writer);
        assert!(!is_open_for_writing(&reader).unwrap());
    }
}
