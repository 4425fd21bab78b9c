//! The superblock: where a restart begins. Two slots, written in turn, so that a crash while writing one leaves the
//! other.
//!
//! ```text
//! slot = magic 8 | version u32 | store id 16 | sequence u64 | payload length u32 | payload | BLAKE3 of all before 32
//! ```
//!
//! Integers are little-endian; slot `n` starts at `n` MiB. What always holds:
//!
//! - The slot with the highest sequence that validates is the truth, and `write` never touches it.
//! - `write` returns only after its slot is durable. After a failed write nothing is written any more: whether the new
//!   state or the old one would be found is unknown until the store is opened again.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{DecodeError, Encode, Reader};
use crate::disk::{Disk, File, FileName};

/// Tells the files of one store from those of another. Drawn at random when a store is made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub [u8; 16]);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    #[error("there is no superblock, so no store")]
    Missing,
    /// Neither slot validates: the reasons, in order.
    #[error("both copies of the superblock are damaged: {0}; {1}")]
    Damaged(DecodeError, DecodeError),
    #[error(transparent)]
    Newer(DecodeError),
    #[error("the two copies of the superblock belong to different stores, {0} and {1}")]
    Mixed(StoreId, StoreId),
    #[error("a superblock of {len} bytes is longer than the {max} that fit")]
    TooLarge { len: usize, max: usize },
    #[error("the disk is full")]
    Full,
    #[error("the superblock is not written any more since a failed write")]
    ReadOnly,
    #[error("the disk failed while {doing}: {source}")]
    Disk { doing: &'static str, source: io::Error },
}

/// The longest payload.
pub const PAYLOAD_BYTES_MAX: usize = SLOT_BYTES as usize - HEAD_BYTES - HASH_BYTES;

const SLOT_BYTES: u64 = 1 << 20;
const MAGIC: [u8; 8] = *b"PHIFS-SB";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 40;
const HASH_BYTES: usize = 32;

pub struct Superblock {
    file: Arc<dyn File>,
    store: StoreId,
    sequence: u64,
    /// Both slots validated and carried the same payload when it was opened.
    agrees: bool,
    failed: bool,
}

impl Superblock {
    /// Makes the superblock of a new store. It must be the last file that is made, as it says that the store is there.
    pub fn create(disk: &dyn Disk, store: StoreId, payload: &[u8]) -> Result<Self, SuperblockError> {
        let file = disk.create(FileName::Superblock).map_err(failed("making the superblock"))?;
        let mut superblock = Self { file, store, sequence: 0, agrees: false, failed: false };
        // Both slots are reserved now, so that a full disk cannot keep a checkpoint from being recorded.
        superblock.file.allocate(0, 2 * SLOT_BYTES, false).map_err(failed("making the superblock"))?;
        superblock.write(payload)?;
        superblock.write(payload)?;
        disk.sync_names().map_err(failed("making the superblock"))?;
        Ok(superblock)
    }

    /// Opens the superblock of an existing store and returns the payload of the newest valid slot.
    ///
    /// # Errors
    /// `Missing` if there is none; `Newer` if a slot is in a newer format, even if the other one is not, as a newer
    /// program has written to this store.
    pub fn open(disk: &dyn Disk) -> Result<(Self, Bytes), SuperblockError> {
        let file = disk.open(FileName::Superblock).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SuperblockError::Missing,
            _ => SuperblockError::Disk { doing: "opening the superblock", source },
        })?;
        let slots = [read_slot(&*file, 0)?, read_slot(&*file, 1)?];
        if let Some(newer) = slots.iter().find_map(|slot| match slot {
            Err(newer @ DecodeError::NewerVersion { .. }) => Some(*newer),
            _ => None,
        }) {
            return Err(SuperblockError::Newer(newer));
        }
        let agrees = matches!(&slots, [Ok(a), Ok(b)] if a.payload == b.payload);
        let slot = match slots {
            [Ok(a), Ok(b)] if a.store != b.store => return Err(SuperblockError::Mixed(a.store, b.store)),
            [Ok(a), Ok(b)] => {
                if a.sequence > b.sequence {
                    a
                } else {
                    b
                }
            }
            [Ok(slot), Err(cause)] | [Err(cause), Ok(slot)] => {
                tracing::warn!(%cause, sequence = slot.sequence, "one copy of the superblock is damaged");
                slot
            }
            [Err(a), Err(b)] => return Err(SuperblockError::Damaged(a, b)),
        };
        Ok((Self { file, store: slot.store, sequence: slot.sequence, agrees, failed: false }, slot.payload))
    }

    /// Makes `payload` what the next start begins from.
    ///
    /// # Errors
    /// `TooLarge` changes nothing. After any other error only `ReadOnly` follows.
    pub fn write(&mut self, payload: &[u8]) -> Result<(), SuperblockError> {
        if self.failed {
            return Err(SuperblockError::ReadOnly);
        }
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(SuperblockError::TooLarge { len: payload.len(), max: PAYLOAD_BYTES_MAX });
        }
        let sequence = self.sequence + 1;
        let bytes = encode_slot(self.store, sequence, payload);
        self.failed = true;
        self.file.write_at(&bytes, offset_bytes(sequence)).map_err(failed("writing the superblock"))?;
        self.file.sync().map_err(failed("syncing the superblock"))?;
        self.failed = false;
        self.sequence = sequence;
        Ok(())
    }

    /// Whether both copies said the same when it was opened.
    pub fn copies_agree(&self) -> bool {
        self.agrees
    }

    pub fn store(&self) -> StoreId {
        self.store
    }

    /// Goes up by one with each write.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}

struct Slot {
    store: StoreId,
    sequence: u64,
    payload: Bytes,
}

fn offset_bytes(sequence: u64) -> u64 {
    sequence % 2 * SLOT_BYTES
}

fn encode_slot(store: StoreId, sequence: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + payload.len() + HASH_BYTES);
    bytes.put_bytes(&MAGIC);
    bytes.put_u32(VERSION);
    bytes.put_bytes(&store.0);
    bytes.put_u64(sequence);
    bytes.put_u32(payload.len() as u32);
    bytes.put_bytes(payload);
    let hash = blake3::hash(&bytes);
    bytes.put_bytes(hash.as_bytes());
    bytes
}

fn read_slot(file: &dyn File, slot: u64) -> Result<Result<Slot, DecodeError>, SuperblockError> {
    let mut bytes = vec![0; SLOT_BYTES as usize];
    let mut len = 0;
    while len < bytes.len() {
        match file.read_at(&mut bytes[len..], slot * SLOT_BYTES + len as u64) {
            Ok(0) => break,
            Ok(got) => len += got,
            Err(source) => return Err(SuperblockError::Disk { doing: "reading the superblock", source }),
        }
    }
    Ok(decode_slot(&bytes[..len]))
}

fn decode_slot(bytes: &[u8]) -> Result<Slot, DecodeError> {
    let mut reader = Reader::new(bytes);
    if reader.array()? != MAGIC {
        return Err(DecodeError::NotCanonical("the superblock's magic number"));
    }
    match reader.u32()? {
        VERSION => {}
        found if found > VERSION => {
            return Err(DecodeError::NewerVersion { what: "the superblock", found, known: VERSION });
        }
        found => return Err(DecodeError::Unknown { what: "the superblock's version", value: u64::from(found) }),
    }
    let store = StoreId(reader.array()?);
    let sequence = reader.u64()?;
    let len = reader.u32()? as usize;
    let payload = reader.bytes(len)?;
    if blake3::hash(&bytes[..HEAD_BYTES + len]) != reader.array()? {
        return Err(DecodeError::NotCanonical("the superblock's checksum"));
    }
    Ok(Slot { store, sequence, payload: Bytes::copy_from_slice(payload) })
}

fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> SuperblockError {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SuperblockError::Full,
        _ => SuperblockError::Disk { doing, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{CrashDisk, MemDisk, PowerLoss};

    const STORE: StoreId = StoreId([9; 16]);

    fn written(payloads: &[&str]) -> MemDisk {
        let disk = MemDisk::new();
        let mut superblock = Superblock::create(&disk, STORE, payloads[0].as_bytes()).unwrap();
        for payload in &payloads[1..] {
            superblock.write(payload.as_bytes()).unwrap();
        }
        disk
    }

    fn opened(disk: &MemDisk) -> Result<String, SuperblockError> {
        let (superblock, payload) = Superblock::open(disk)?;
        assert_eq!(superblock.store(), STORE);
        Ok(String::from_utf8(payload.to_vec()).unwrap())
    }

    fn slot_of_newest(disk: &MemDisk) -> u64 {
        offset_bytes(Superblock::open(disk).unwrap().0.sequence())
    }

    #[test]
    fn version_1_is_what_it_was() {
        let bytes = encode_slot(STORE, 3, b"state");
        assert_eq!(bytes[..12], *b"PHIFS-SB\x01\0\0\0");
        assert_eq!(bytes[12..28], STORE.0);
        assert_eq!(bytes[28..45], *b"\x03\0\0\0\0\0\0\0\x05\0\0\0state");
        assert_eq!(bytes[45..], *blake3::hash(&bytes[..45]).as_bytes());
    }

    #[test]
    fn the_newest_payload_is_found() {
        let disk = written(&["one"]);
        for round in ["two", "three", "four"] {
            let (mut superblock, _) = Superblock::open(&disk).unwrap();
            superblock.write(round.as_bytes()).unwrap();
            assert_eq!(opened(&disk).unwrap(), round);
        }
        assert!(matches!(Superblock::open(&MemDisk::new()), Err(SuperblockError::Missing)));
    }

    #[test]
    fn copies_agree_after_the_same_was_written_twice() {
        let disk = written(&["one"]);
        let agrees = || Superblock::open(&disk).unwrap().0.copies_agree();
        let write = |payload: &str| Superblock::open(&disk).unwrap().0.write(payload.as_bytes()).unwrap();
        write("two");
        assert!(!agrees());
        write("two");
        assert!(agrees());
        disk.flip(FileName::Superblock, 30, 1).unwrap();
        assert!(!agrees());
    }

    #[test]
    fn any_damage_to_one_copy_leaves_the_other() {
        let disk = written(&["old", "older", "newest"]);
        let at = slot_of_newest(&disk);
        let len = (HEAD_BYTES + "newest".len() + HASH_BYTES) as u64;
        for byte in at..at + len {
            // A flip upward in the version field reads as a newer format and is refused, which is tested below.
            if (8..12).contains(&(byte - at)) {
                continue;
            }
            disk.flip(FileName::Superblock, byte, 0x10).unwrap();
            assert_eq!(opened(&disk).unwrap(), "older", "byte {byte}");
            disk.flip(FileName::Superblock, byte, 0x10).unwrap();
        }
        assert_eq!(opened(&disk).unwrap(), "newest");
    }

    #[test]
    fn truncation_anywhere_gives_a_whole_payload_or_an_error() {
        let disk = written(&["old", "even", "odd"]);
        let second = SLOT_BYTES as usize;
        let slot_len = HEAD_BYTES + "odd".len() + HASH_BYTES;
        for len in (0..slot_len + 9).chain(second - 1..second + slot_len + 9).rev() {
            disk.truncate(FileName::Superblock, len as u64).unwrap();
            match opened(&disk) {
                Ok(payload) => assert!(["even", "odd"].contains(&&payload[..]), "{payload} at {len}"),
                Err(SuperblockError::Damaged(..)) => assert!(len < slot_len + 2, "cut at {len}"),
                Err(other) => panic!("{other} at {len}"),
            }
        }
    }

    #[test]
    fn damage_to_both_copies_is_reported() {
        let disk = written(&["old", "new"]);
        disk.flip(FileName::Superblock, 3, 1).unwrap();
        disk.flip(FileName::Superblock, SLOT_BYTES + HEAD_BYTES as u64, 1).unwrap();
        let refused = opened(&disk).unwrap_err();
        assert!(matches!(refused, SuperblockError::Damaged(..)), "{refused}");
    }

    #[test]
    fn a_newer_format_is_refused_even_beside_a_known_one() {
        let disk = written(&["old", "new"]);
        disk.flip(FileName::Superblock, 8, VERSION as u8 ^ 7).unwrap();
        let refused = opened(&disk).unwrap_err();
        assert!(refused.to_string().contains("version 7; this program knows versions up to 1"), "{refused}");
    }

    #[test]
    fn a_crash_during_a_write_leaves_the_old_payload_or_the_new() {
        for seed in 0..50 {
            let disk = CrashDisk::over(&written(&["a", "b", "old"]), PowerLoss::AtOp(seed % 2));
            let (mut superblock, _) = Superblock::open(&disk).unwrap();
            assert!(superblock.write(b"new").is_err());
            assert!(matches!(superblock.write(b"new"), Err(SuperblockError::ReadOnly)));
            let found = opened(&disk.after_power_loss(seed)).unwrap();
            assert!(found == "old" || found == "new", "{found}");
        }
    }

    #[test]
    fn a_payload_that_does_not_fit_is_refused_and_changes_nothing() {
        let disk = written(&["old"]);
        let (mut superblock, _) = Superblock::open(&disk).unwrap();
        assert!(matches!(superblock.write(&vec![0; PAYLOAD_BYTES_MAX + 1]), Err(SuperblockError::TooLarge { .. })));
        superblock.write(&vec![b'x'; PAYLOAD_BYTES_MAX]).unwrap();
        assert_eq!(opened(&disk).unwrap().len(), PAYLOAD_BYTES_MAX);
    }
}
