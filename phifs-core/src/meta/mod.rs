//! The metadata database: memtables over Merkle maps, made durable by a journal and a superblock.
//!
//! Rows are bytes here; what they mean is the caller's affair. A change goes to the memtable of its table and, as
//! part of a record that the caller composes, into the journal. A checkpoint freezes the memtables, applies them to
//! the Merkle maps without holding a lock, and stores the new roots in the superblock together with the journal
//! position they stand for. A restart loads the newest superblock and replays the journal from there.
//!
//! The order that makes a checkpoint safe is the caller's to keep:
//!
//! 1. under the lock that orders changes: `Meta::freeze`, and note `Journal::appended`;
//! 2. without it: `CheckpointJob::run`, sync the packs, `Superblock::write` with the new roots and that position;
//! 3. under the lock again: `Meta::install` (or `Meta::abandon`, had anything failed);
//! 4. `Journal::recycle` up to that position.

mod checkpoint;
mod frozen;
pub mod journal;
mod memtable;
pub mod superblock;
mod tables;

pub use checkpoint::{CheckpointDone, CheckpointJob, Roots};
pub use frozen::Frozen;
pub use journal::{Journal, Lsn};
pub use memtable::Key;
pub use tables::{Meta, Superseded, TableId, TableSpec};

#[cfg(test)]
mod tests;
