//! Which version of each file the kernel has in its page cache, so that an open can tell whether to keep the pages.
//!
//! The kernel holds millions of inodes, so an entry is 16 bytes: authors are replaced by local numbers.

use std::collections::HashMap;

use crate::id::{AuthorId, Dot, InodeId};

/// Bits of a packed dot that hold the operation's number; above them is the number of its author.
const N_BITS: u32 = 44;
/// No dot packs to this: its author would have the largest number.
const NO_VERSION: u64 = u64::MAX;

#[derive(Default)]
pub struct CachedVersions {
    authors: HashMap<AuthorId, u64>,
    versions: HashMap<u64, u64>,
}

impl CachedVersions {
    /// Notes that the kernel caches this version of the file from now on; says whether it did so before.
    pub fn insert(&mut self, id: InodeId, version: Option<Dot>) -> bool {
        let packed = version.map_or(Some(NO_VERSION), |version| self.pack(version));
        let (Some(id), Some(version)) = (self.pack(id.0), packed) else { return false };
        self.versions.insert(id, version) == Some(version)
    }

    pub fn remove(&mut self, id: &InodeId) {
        if let Some(id) = self.pack(id.0) {
            self.versions.remove(&id);
        }
    }

    /// `None` for a dot that does not fit. Such a file is simply never known to be cached.
    fn pack(&mut self, dot: Dot) -> Option<u64> {
        let next = self.authors.len() as u64;
        let author = *self.authors.entry(dot.author).or_insert(next);
        let fits = author < NO_VERSION >> N_BITS && dot.n >> N_BITS == 0;
        fits.then_some(author << N_BITS | dot.n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(author: u8, n: u64) -> Dot {
        Dot { author: AuthorId([author; 16]), n }
    }

    #[test]
    fn only_the_very_version_of_the_very_file_is_known() {
        let mut cached = CachedVersions::default();
        let (file, other) = (InodeId(dot(1, 7)), InodeId(dot(2, 7)));
        assert!(!cached.insert(file, None));
        assert!(cached.insert(file, None));
        assert!(!cached.insert(file, Some(dot(1, 8))));
        assert!(cached.insert(file, Some(dot(1, 8))));
        assert!(!cached.insert(file, Some(dot(2, 8))), "the same number of another author");
        assert!(!cached.insert(other, Some(dot(2, 8))), "the same number in another author's file");
        cached.remove(&file);
        assert!(!cached.insert(file, Some(dot(2, 8))));
        assert!(cached.insert(other, Some(dot(2, 8))));
    }

    #[test]
    fn number_too_large_to_pack_is_never_known() {
        let mut cached = CachedVersions::default();
        let large = Dot { n: 1 << N_BITS, ..dot(1, 0) };
        for (file, version) in [(InodeId(large), None), (InodeId(dot(1, 1)), Some(large))] {
            assert!(!cached.insert(file, version));
            assert!(!cached.insert(file, version));
        }
    }
}
