//! The one place where an error becomes a number.
//!
//! Every variant is named, so that a new one fails to compile until somebody decides. Two rules hold for all of them:
//! the reply is never ENOSYS, because the kernel then stops asking for good (an fsync would succeed forever without
//! being tried), and an error of the host's disk never looks like a statement about a name of the user.

use std::io;

use fuser::Errno;
use phifs_core::store::StoreError;
use phifs_core::volume::VolumeError;

/// What the caller of the system call sees.
pub(crate) fn errno_of(error: &VolumeError) -> Errno {
    match error {
        VolumeError::NotFound => Errno::ENOENT,
        VolumeError::Stale => Errno::ESTALE,
        VolumeError::Exists => Errno::EEXIST,
        VolumeError::NotDirectory => Errno::ENOTDIR,
        VolumeError::IsDirectory => Errno::EISDIR,
        VolumeError::NotEmpty => Errno::ENOTEMPTY,
        VolumeError::NameTooLong => Errno::ENAMETOOLONG,
        VolumeError::Invalid(_) => Errno::EINVAL,
        VolumeError::NotPermitted(_) => Errno::EPERM,
        VolumeError::Denied => Errno::EACCES,
        VolumeError::ReadOnly => Errno::EROFS,
        VolumeError::NoSpace(_) => Errno::ENOSPC,
        VolumeError::TooLarge => Errno::EFBIG,
        VolumeError::Running => Errno::ETXTBSY,
        VolumeError::TooManyLinks => Errno::EMLINK,
        VolumeError::NoAttribute => Errno::NO_XATTR,
        VolumeError::AttributeTooLarge => Errno::E2BIG,
        VolumeError::Range => Errno::ERANGE,
        VolumeError::NotSupported(_) => Errno::EOPNOTSUPP,
        VolumeError::BadHandle => Errno::EBADF,
        VolumeError::NoData => Errno::ENXIO,
        VolumeError::Store(error) => errno_of_store(error),
        VolumeError::Disk { doing: _, source } => errno_of_disk(source),
        VolumeError::LostWrite
        | VolumeError::NotEnoughCopies { .. }
        | VolumeError::Branch { .. }
        | VolumeError::Internal(_) => Errno::EIO,
    }
}

/// Whether an operator should hear of it: the fault is ours or the disk's, not the caller's.
pub(crate) fn is_our_fault(error: &VolumeError) -> bool {
    errno_of(error) == Errno::EIO
}

fn errno_of_store(error: &StoreError) -> Errno {
    match error {
        StoreError::Missing(_) | StoreError::Corrupt { .. } | StoreError::Malformed { .. } => Errno::EIO,
        StoreError::Disk { doing: _, source } => errno_of_disk(source),
        StoreError::Full | StoreError::RowTooLarge { .. } => Errno::ENOSPC,
        StoreError::ReadOnly => Errno::EROFS,
    }
}

/// The host's number, unless it would mislead: a missing store file does not mean that the user's file is missing,
/// and ENOSYS would switch the operation off for the whole mount.
fn errno_of_disk(error: &io::Error) -> Errno {
    let Some(code) = error.raw_os_error() else { return Errno::EIO };
    let errno = Errno::from_i32(code);
    let misleading = [
        Errno::ENOSYS,
        Errno::ENOENT,
        Errno::ENOTDIR,
        Errno::EISDIR,
        Errno::EEXIST,
        Errno::ESTALE,
        Errno::EINTR,
        Errno::EAGAIN,
    ];
    if misleading.contains(&errno) { Errno::EIO } else { errno }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(code: i32) -> VolumeError {
        VolumeError::Disk { doing: "syncing", source: io::Error::from_raw_os_error(code) }
    }

    #[test]
    fn full_disk_stays_enospc() {
        assert_eq!(errno_of(&disk(Errno::ENOSPC.code())), Errno::ENOSPC);
        assert_eq!(errno_of(&VolumeError::Store(StoreError::Full)), Errno::ENOSPC);
        let source = io::Error::from_raw_os_error(Errno::EDQUOT.code());
        assert_eq!(errno_of(&StoreError::Disk { doing: "writing", source }.into()), Errno::EDQUOT);
    }

    #[test]
    fn disk_errors_never_switch_an_operation_off() {
        assert_eq!(errno_of(&disk(Errno::ENOSYS.code())), Errno::EIO);
    }

    #[test]
    fn missing_store_file_is_not_a_missing_user_file() {
        assert_eq!(errno_of(&disk(Errno::ENOENT.code())), Errno::EIO);
        assert!(is_our_fault(&disk(Errno::ENOENT.code())));
    }

    #[test]
    fn error_without_a_number_is_eio() {
        let source = io::Error::other("short read");
        assert_eq!(errno_of(&VolumeError::Disk { doing: "reading", source }), Errno::EIO);
    }
}
