//! Why a filesystem could not be mounted or unmounted, in words that say what to do.

use std::io;
use std::path::PathBuf;

use crate::init::DataMode;

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("{0} does not exist; make this directory first")]
    Missing(PathBuf),
    #[error("{0} is not a directory")]
    NotDirectory(PathBuf),
    #[error("there is no /dev/fuse; try `modprobe fuse`, or start the container with `--device /dev/fuse`")]
    NoDevice,
    #[error("not permitted to mount on {path}: {why}")]
    NoPermission { path: PathBuf, why: String },
    #[error("a filesystem of type {fs_type} is already mounted on {path}")]
    AlreadyMounted { path: PathBuf, fs_type: String },
    /// The process behind it is gone. `clear_dead_mount` helps.
    #[error("a filesystem whose server is gone is still mounted on {0}; `umount -l {0}` clears it")]
    Dead(PathBuf),
    #[error("data path {0} is not to be had: this kernel or the privileges of this process do not allow it")]
    Unavailable(DataMode),
    #[error("{0} is in use; close what is open there, or unmount by force")]
    Busy(PathBuf),
    #[error("the source `{0}` of a mount must not be empty or hold commas, backslashes or control characters")]
    BadSource(String),
    #[error("failed while {doing}: {source}")]
    System { doing: &'static str, source: io::Error },
}

impl MountError {
    /// For `map_err`.
    pub(crate) fn system<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { doing, source: source.into() }
    }
}
