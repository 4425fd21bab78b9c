//! POSIX ACLs as the kernel hands them over (`system.posix_acl_*`), and how they bear on permission bits.
//!
//! The rules are those of POSIX 1003.1e draft 17, sections 23.1.2 to 23.1.5: the group bits of a file with a mask are
//! the mask; a default ACL takes the place of the umask for what is made in its directory.

use crate::volume::{Result, VolumeError};

pub const ACCESS: &[u8] = b"system.posix_acl_access";
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    bits: u16,
    id: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    entries: Vec<Entry>,
}

impl Acl {
    /// Reads and checks the extended attribute. No entries at all means: no ACL.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let bad = || VolumeError::Invalid("malformed ACL");
        let (version, rest) = bytes.split_first_chunk::<4>().ok_or_else(bad)?;
        if u32::from_le_bytes(*version) != VERSION || rest.len() % 8 != 0 {
            return Err(bad());
        }
        let entries: Vec<Entry> = rest
            .chunks_exact(8)
            .map(|chunk| Entry {
                tag: u16::from_le_bytes([chunk[0], chunk[1]]),
                bits: u16::from_le_bytes([chunk[2], chunk[3]]),
                id: u32::from_le_bytes([chunk[4], chunk[5], chunk[6], chunk[7]]),
            })
            .collect();
        if entries.is_empty() {
            return Ok(None);
        }
        let acl = Self { entries };
        if acl.is_valid() { Ok(Some(acl)) } else { Err(bad()) }
    }

    /// One entry for owner, group and others each; a mask iff somebody is named; entries in the order of their tags.
    fn is_valid(&self) -> bool {
        let count = |tag| self.entries.iter().filter(|entry| entry.tag == tag).count();
        let named = count(USER) + count(GROUP);
        let known = self.entries.iter().all(|entry| {
            entry.bits <= 7
                && matches!(entry.tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER)
                && (!matches!(entry.tag, USER | GROUP) || entry.id != NO_ID)
        });
        known
            && self.entries.is_sorted_by_key(|entry| entry.tag)
            && count(USER_OBJ) == 1
            && count(GROUP_OBJ) == 1
            && count(OTHER) == 1
            && (count(MASK) == 1 || count(MASK) == 0 && named == 0)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            out.extend_from_slice(&entry.tag.to_le_bytes());
            out.extend_from_slice(&entry.bits.to_le_bytes());
            let id = if matches!(entry.tag, USER | GROUP) { entry.id } else { NO_ID };
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    /// Whether it says no more than nine permission bits can.
    pub fn is_minimal(&self) -> bool {
        self.entries.len() == 3
    }

    /// The nine permission bits that go with it.
    pub fn bits(&self) -> u16 {
        let group = if self.has(MASK) { MASK } else { GROUP_OBJ };
        self.get(USER_OBJ) << 6 | self.get(group) << 3 | self.get(OTHER)
    }

    /// The ACL after chmod(2).
    pub fn set_bits(&mut self, bits: u16) {
        let group = if self.has(MASK) { MASK } else { GROUP_OBJ };
        self.set(USER_OBJ, bits >> 6 & 7);
        self.set(group, bits >> 3 & 7);
        self.set(OTHER, bits & 7);
    }

    /// The access ACL and nine bits of something made with these bits in a directory that has this default ACL.
    pub fn inherit(&self, bits: u16) -> (Self, u16) {
        let mut acl = self.clone();
        acl.set_bits(self.bits() & bits);
        let bits = acl.bits();
        (acl, bits)
    }

    fn has(&self, tag: u16) -> bool {
        self.entries.iter().any(|entry| entry.tag == tag)
    }

    fn get(&self, tag: u16) -> u16 {
        self.entries.iter().find(|entry| entry.tag == tag).map_or(0, |entry| entry.bits)
    }

    fn set(&mut self, tag: u16, bits: u16) {
        self.entries.iter_mut().filter(|entry| entry.tag == tag).for_each(|entry| entry.bits = bits);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        Acl { entries: entries.iter().map(|&(tag, bits, id)| Entry { tag, bits, id }).collect() }.encode()
    }

    #[test]
    fn mask_stands_for_the_group_bits() {
        let bytes = acl(&[(USER_OBJ, 7, 0), (USER, 7, 5), (GROUP_OBJ, 5, 0), (MASK, 6, 0), (OTHER, 1, 0)]);
        let mut acl = Acl::parse(&bytes).unwrap().unwrap();
        assert_eq!(acl.bits(), 0o761);
        acl.set_bits(0o640);
        assert_eq!((acl.bits(), acl.get(GROUP_OBJ), acl.get(MASK)), (0o640, 5, 4));
    }

    #[test]
    fn default_acl_limits_what_is_asked_for() {
        let bytes = acl(&[(USER_OBJ, 7, 0), (GROUP_OBJ, 5, 0), (OTHER, 0, 0)]);
        let (inherited, bits) = Acl::parse(&bytes).unwrap().unwrap().inherit(0o666);
        assert_eq!(bits, 0o640);
        assert!(inherited.is_minimal());
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Acl::parse(&[]).is_err());
        assert!(Acl::parse(&[2, 0, 0, 0, 1]).is_err());
        assert!(Acl::parse(&acl(&[(USER_OBJ, 7, 0)])).is_err());
        assert!(Acl::parse(&acl(&[(USER_OBJ, 7, 0), (USER, 7, 5), (GROUP_OBJ, 5, 0), (OTHER, 1, 0)])).is_err());
        assert!(Acl::parse(&[2, 0, 0, 0]).unwrap().is_none());
    }
}
