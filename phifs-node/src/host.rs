//! What the filesystem below the store can do, and what its lack costs.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::mounts;

/// Filesystems that keep nothing when the machine stops.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// As the kernel names it.
    pub filesystem: String,
    /// Whether space can be reserved, and given back from the middle of a file. `None` where that cannot be tried out.
    pub reserves: Option<bool>,
    pub punches: Option<bool>,
}

impl Host {
    /// Looks at the filesystem of the directory `store`, and tries things out on a file there that has no name.
    pub fn of(store: &Path) -> io::Result<Self> {
        let device = store.metadata()?.dev();
        let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let mut mounts = mounts::of_device(&device)?;
        let filesystem = mounts.pop().map_or_else(|| "unknown".to_owned(), |mount| mount.kind);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(rustix::fs::CWD, store, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => Some(File::from(fd)),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        let can = |flags| {
            let tried = rustix::fs::fallocate(file.as_ref()?, flags, 0, 4096);
            Some(!matches!(tried, Err(Errno::OPNOTSUPP | Errno::NOSYS)))
        };
        let reserves = can(FallocateFlags::KEEP_SIZE);
        let punches = can(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE);
        Ok(Self { filesystem, reserves, punches })
    }

    /// What its users should know.
    pub fn shortcomings(&self) -> Vec<String> {
        let kind = &self.filesystem;
        let mut all = Vec::new();
        if IN_MEMORY.contains(&kind.as_str()) {
            all.push(format!("the store is on {kind}: everything is lost when the machine stops"));
        }
        if self.reserves == Some(false) {
            all.push(format!("{kind} cannot reserve space: syncs take longer, and a full disk shows later"));
        }
        if self.punches == Some(false) {
            all.push(format!("{kind} cannot punch holes: they take space until the file is closed"));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filesystem_of_a_directory_is_known_by_name() {
        let host = Host::of(Path::new("/proc/self/..")).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((host.filesystem.as_str(), host.reserves), ("proc", None));
        let dir = tempfile::tempdir().unwrap();
        let host = Host::of(dir.path()).unwrap();
        assert_ne!(host.filesystem, "unknown");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "what was tried out leaves no trace");
    }

    #[test]
    fn every_lack_is_told_and_nothing_else() {
        let host =
            |filesystem: &str, can| Host { filesystem: filesystem.into(), reserves: Some(can), punches: Some(can) };
        assert_eq!(host("ext4", true).shortcomings(), Vec::<String>::new());
        assert_eq!(host("nfs", false).shortcomings().len(), 2);
        assert!(host("tmpfs", true).shortcomings()[0].contains("lost when the machine stops"));
    }
}
