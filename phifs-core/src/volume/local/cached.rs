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
        let (Some(id), Some(version)) = (self.pack(id.0), self.pack_version(version)) else { return false };
        self.versions.insert(id, version) == Some(version)
    }

    /// Notes that the bytes which the kernel caches of the file, if they are those of version `from`, are now `to`.
    pub fn advance(&mut self, id: InodeId, from: Option<Dot>, to: Option<Dot>) {
        let (Some(key), Some(from)) = (self.pack(id.0), self.pack_version(from)) else { return };
        if self.versions.get(&key) != Some(&from) {
            return;
        }
        match self.pack_version(to) {
            Some(to) => self.versions.insert(key, to),
            None => self.versions.remove(&key),
        };
    }

    pub fn remove(&mut self, id: &InodeId) {
        if let Some(id) = self.pack(id.0) {
            self.versions.remove(&id);
        }
    }

    fn pack_version(&mut self, version: Option<Dot>) -> Option<u64> {
        version.map_or(Some(NO_VERSION), |version| self.pack(version))
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
    fn cached_bytes_advance_only_from_their_own_version() {
        let mut cached = CachedVersions::default();
        let file = InodeId(dot(1, 7));
        cached.advance(file, None, Some(dot(1, 8)));
        assert!(!cached.insert(file, None), "nothing was cached");
        cached.advance(file, None, Some(dot(1, 8)));
        cached.advance(file, None, Some(dot(1, 9)));
        assert!(cached.insert(file, Some(dot(1, 8))));
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
