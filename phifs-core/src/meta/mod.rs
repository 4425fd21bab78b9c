//! The metadata database: memtables over Merkle maps, journal, superblock.
