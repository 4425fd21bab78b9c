//! Whether the kernel takes files of a certain filesystem for passthrough.
//!
//! It tells only when it is offered one, and which it takes depends on where they lie: not on overlayfs, nor on another
//! FUSE mount that passes through. Asked before the first file is opened, there is still a choice of other paths.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// struct fuse_backing_map of linux/fuse.h.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// _IOW(229, 1, struct fuse_backing_map) and _IOW(229, 2, uint32_t).
const BACKING_OPEN: libc::Ioctl = 0x4010_e501;
const BACKING_CLOSE: libc::Ioctl = 0x4004_e502;

/// Registers `file` with the connection behind `device`, and takes it back.
pub(crate) fn takes(device: BorrowedFd<'_>, file: BorrowedFd<'_>) -> io::Result<()> {
    let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the request reads one struct of this layout, which lives until the call returns.
    let id = unsafe { libc::ioctl(device.as_raw_fd(), BACKING_OPEN, &raw const map) };
    if id <= 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the request reads one number, which lives until the call returns. It is the one that was just given out.
    if unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE, &raw const id) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
