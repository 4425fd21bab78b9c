//! The metadata database: memtables over Merkle maps, made durable by a journal and a superblock.
//!
//! Rows are bytes here; what they mean is the caller's affair. A change goes to the memtable of its table and, as
//! part of a record that the caller composes, into the journal. A checkpoint freezes the memtables, applies them to
//! the Merkle maps without holding a lock, and stores the new roots in the superblock together with the journal
//! position they stand for. A restart loads the newest superblock and replays the journal from there.
//!
//! The order that makes a checkpoint safe is the caller's to keep: freeze together with `Journal::appended` under one
//! lock, run the job, sync the packs, write the superblock, install, recycle the journal.

pub mod journal;
pub mod superblock;

#[cfg(test)]
mod test_disk;
