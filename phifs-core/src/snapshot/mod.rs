//! S8 snapshots: immutable, signed, content-addressed states of a volume.
//!
//! A snapshot is a checkpoint that somebody kept: the roots of the Merkle maps, and the context that says exactly which
//! operations they contain. Nothing is copied to take one, and nothing is loaded to look into one (`meta::Frozen`).
//!
//! | module | what |
//! | --- | --- |
//! | `record` | the eight fields, their canonical bytes, id and seal |
//! | `changes` | what is different between two states, as people see it |
//! | `facts` | what a snapshot holds, counted along what changed since its parent |
//! | `keep` | which of many to keep |
//! | `tree` | the hash of what people see |

pub mod changes;
pub mod facts;
pub mod keep;
pub mod record;
pub mod tree;

pub use record::{Coherence, DeltaPhi, Kappa, Record, SealedRecord, Theta};
