//! Signed, hash-chained groups of operations, and the log that keeps them.

mod group;

pub use group::{ChainHash, GroupBuilder, GroupError, Head, SealedGroup};
