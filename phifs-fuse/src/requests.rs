//! How many requests of each kind the kernel has sent: what an operation costs in round trips.

use std::sync::atomic::{AtomicU64, Ordering};

/// As the adapter names them. The last one stands for whatever has no name here.
const KINDS: [&str; 35] = [
    "lookup",
    "forget",
    "getattr",
    "setattr",
    "readlink",
    "mknod",
    "mkdir",
    "symlink",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "create",
    "open",
    "read",
    "write",
    "flush",
    "release",
    "fsync",
    "opendir",
    "readdir",
    "readdirplus",
    "fsyncdir",
    "statfs",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
    "access",
    "ioctl",
    "poll",
    "fallocate",
    "lseek",
    "copy_file_range",
    "other",
];

pub(crate) struct Requests([AtomicU64; KINDS.len()]);

impl Default for Requests {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; KINDS.len()])
    }
}

impl Requests {
    pub(crate) fn count(&self, kind: &str) {
        let at = KINDS.iter().position(|known| *known == kind).unwrap_or(KINDS.len() - 1);
        self.0[at].fetch_add(1, Ordering::Relaxed);
    }

    /// Those that came at all.
    pub(crate) fn counts(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        KINDS.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_kind_and_unnamed_ones_together() {
        let requests = Requests::default();
        for kind in ["open", "lookup", "open", "bmap", "interrupt"] {
            requests.count(kind);
        }
        assert_eq!(requests.counts(), [("lookup", 1), ("open", 2), ("other", 2)]);
    }
}
