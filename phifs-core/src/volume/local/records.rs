//! What the journal knows of bytes that were written and not published yet: rows of the local table.
//!
//! A *base* says where the bytes of an inode are. *Deltas*, numbered in order, say what was written over it since: a
//! sync of a long file costs as much as what changed, not a sync of a file of the host. A new base takes its deltas'
//! place in the same transaction; so does the operation that publishes the file take the place of both.

use std::ops::Range;

use crate::codec::{self, DecodeError, Encode, Reader};
use crate::content::overlay::Overlay;
use crate::id::{Dot, InodeId};
use crate::merkle::VALUE_BYTES_MAX;
use crate::meta::Lsn;
use crate::time::Timestamp;

use super::state::{LocalChange, local_key};

const VERSION: u8 = 1;

/// The most that a base or a delta holds of a file. A write adds what it takes to say where it goes.
pub const BYTES_MAX: usize = 32 << 10;
pub const DELTA_BYTES_MAX: u64 = 60 << 10;
pub const WRITE_OVERHEAD_BYTES: u64 = 20;

const _: () = assert!(DELTA_BYTES_MAX as usize + 1024 <= VALUE_BYTES_MAX && BYTES_MAX + 1024 <= VALUE_BYTES_MAX);

/// Where the unpublished bytes of an inode are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Staged {
    /// They are in this staging file, as the overlay says. The file's time is `mtime` for as long as the host's for
    /// the staging file is `host_mtime`; after that the kernel wrote to it.
    File { number: u64, overlay: Overlay, mtime: Timestamp, host_mtime: Timestamp },
    /// They are these: a small file that was synced by writing it to the journal, or the start of one, with the rest in
    /// deltas.
    Bytes { bytes: Vec<u8>, mtime: Timestamp },
}

impl Staged {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        match self {
            Self::File { number, overlay, mtime, host_mtime } => {
                out.put_u8(1);
                out.put_varint(*number);
                out.put_time(*mtime);
                out.put_time(*host_mtime);
                overlay.encode(&mut out);
            }
            Self::Bytes { bytes, mtime } => {
                out.reserve(bytes.len() + 32);
                out.put_u8(2);
                out.put_time(*mtime);
                out.put_blob(bytes);
            }
        }
        out
    }

    /// Whether a row can hold it.
    pub fn fits(&self) -> bool {
        self.encode().len() <= VALUE_BYTES_MAX
    }

    pub fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        check_version(&mut reader)?;
        let staged = match reader.u8()? {
            1 => Self::File {
                number: reader.varint()?,
                mtime: reader.time()?,
                host_mtime: reader.time()?,
                overlay: Overlay::decode(&mut reader)?,
            },
            2 => Self::Bytes { mtime: reader.time()?, bytes: reader.blob()?.to_vec() },
            value => return Err(DecodeError::Unknown { what: "a record about a dirty file", value: u64::from(value) }),
        };
        reader.finish()?;
        Ok(staged)
    }
}

/// What was written since the base or the delta before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    pub mtime: Timestamp,
    /// Offsets and bytes.
    pub writes: Vec<(u64, Vec<u8>)>,
}

impl Delta {
    pub fn bytes(&self) -> u64 {
        self.writes.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Where the last of its bytes end.
    pub fn end(&self) -> u64 {
        self.writes.iter().map(|(offset, bytes)| offset.saturating_add(bytes.len() as u64)).max().unwrap_or(0)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + self.writes.iter().map(|(_, bytes)| bytes.len() + 16).sum::<usize>());
        out.put_u8(VERSION);
        out.put_time(self.mtime);
        for (offset, bytes) in &self.writes {
            out.put_varint(*offset);
            out.put_blob(bytes);
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        check_version(&mut reader)?;
        let mtime = reader.time()?;
        let mut writes = Vec::new();
        while !reader.is_empty() {
            writes.push((reader.varint()?, reader.blob()?.to_vec()));
        }
        Ok(Self { mtime, writes })
    }
}

fn check_version(reader: &mut Reader<'_>) -> codec::Result<()> {
    let found = reader.u8()?;
    if found == VERSION {
        return Ok(());
    }
    let (found, known) = (u32::from(found), u32::from(VERSION));
    Err(DecodeError::NewerVersion { what: "a record about a dirty file", found, known })
}

fn base_key(id: InodeId) -> Vec<u8> {
    local_key(b's', &id.0.to_bytes())
}

/// The row of the first base of a new file.
pub fn first(id: InodeId, base: &Staged) -> LocalChange {
    (base_key(id), Some(base.encode()))
}

/// The common part of the keys of all deltas of an inode.
pub fn delta_prefix(id: InodeId) -> Vec<u8> {
    local_key(b'd', &id.0.to_bytes())
}

fn delta_key(id: InodeId, number: u64) -> Vec<u8> {
    let mut key = delta_prefix(id);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// The number of a delta, from what follows the prefix in its key.
pub fn delta_number(rest: &[u8]) -> codec::Result<u64> {
    rest.try_into().map(u64::from_be_bytes).map_err(|_| DecodeError::Truncated)
}

/// The inode of a base, from its key without the first byte.
pub fn base_inode(rest: &[u8]) -> codec::Result<InodeId> {
    let bytes: [u8; 24] = rest.try_into().map_err(|_| DecodeError::Truncated)?;
    Ok(InodeId(Dot::from_bytes(&bytes)))
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Base {
    #[default]
    None,
    Bytes,
    /// A staging file, as it was when it was synced last.
    File,
    /// A staging file, whatever the kernel makes of it.
    WholeFile,
}

/// The records of one inode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    base: Base,
    /// The transaction that made the base; of a `WholeFile` in the place of another, the first.
    since: Lsn,
    deltas: Range<u64>,
    deltas_bytes: u64,
    /// As soon as the journal is durable up to here, the deltas that were removed stay removed.
    removed_at: Lsn,
}

impl Records {
    pub fn of_new_file() -> Self {
        Self { base: Base::WholeFile, since: Lsn(u64::MAX), ..Self::default() }
    }

    /// The new file is made, by a transaction that is not behind `lsn`.
    pub fn new_file_is_made(&mut self, lsn: Lsn) {
        self.since = self.since.min(lsn);
    }

    /// What recovery found.
    pub fn found(base: Base, deltas: Range<u64>, deltas_bytes: u64) -> Self {
        Self { base, deltas, deltas_bytes, ..Self::default() }
    }

    pub fn base(&self) -> Base {
        self.base
    }

    pub fn name_a_file(&self) -> bool {
        matches!(self.base, Base::File | Base::WholeFile)
    }

    /// The file that the base names is not the one that is written to from now on.
    pub fn file_replaced(&mut self) {
        if self.base == Base::WholeFile {
            self.base = Base::File;
        }
    }

    pub fn has_deltas(&self) -> bool {
        !self.deltas.is_empty()
    }

    /// Whether they take whatever is in the staging file.
    pub fn are_of_all(&self) -> bool {
        self.base == Base::WholeFile && !self.has_deltas()
    }

    /// Whether a crash is sure to find these, if the journal is durable up to `committed`.
    pub fn are_durable(&self, committed: Lsn) -> bool {
        self.since <= committed
    }

    /// Whether a crash could bring deltas back, if the journal is durable up to `committed`.
    pub fn may_bring_deltas_back(&self, committed: Lsn) -> bool {
        self.has_deltas() || self.removed_at > committed
    }

    pub fn deltas_bytes(&self) -> u64 {
        self.deltas_bytes
    }

    /// The changes that put this base, or none, in the place of the base and its deltas.
    pub fn replacing(&self, id: InodeId, base: Option<&Staged>) -> Vec<LocalChange> {
        let deltas = self.deltas.clone().map(|number| (delta_key(id, number), None));
        let base = (base.is_some() || self.base != Base::None).then(|| (base_key(id), base.map(Staged::encode)));
        base.into_iter().chain(deltas).collect()
    }

    /// The changes of `replacing` are made, by the transaction at `lsn`.
    pub fn replaced(&mut self, base: Base, lsn: Lsn) {
        if self.base != Base::WholeFile || base != Base::WholeFile {
            self.since = lsn;
        }
        self.base = base;
        if self.has_deltas() {
            self.removed_at = lsn;
        }
        self.deltas.start = self.deltas.end;
        self.deltas_bytes = 0;
    }

    /// The changes that add these deltas.
    pub fn adding<'a>(&self, id: InodeId, deltas: &'a [Delta]) -> impl Iterator<Item = LocalChange> + use<'a> {
        (self.deltas.end..).zip(deltas).map(move |(number, delta)| (delta_key(id, number), Some(delta.encode())))
    }

    /// The changes of `adding` are made.
    pub fn added(&mut self, deltas: &[Delta]) {
        self.deltas.end += deltas.len() as u64;
        self.deltas_bytes += deltas.iter().map(Delta::bytes).sum::<u64>();
    }
}
