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
//! | `reach` | every glyph that a snapshot needs beyond another one, in an order that follows from the two |
//! | `stream` | the bytes of an export: a header, frames, checks, an end |
//! | `transfer` | from a store to a stream, and from a stream to a store |
//! | `pull` | from the stores of others to this one, glyph by glyph |
//! | `rows` | what rows from elsewhere must be like |

pub mod changes;
pub mod facts;
pub mod keep;
pub mod pull;
pub mod reach;
pub mod record;
pub mod rows;
pub mod stream;
pub mod transfer;
pub mod tree;

pub use record::{Coherence, DeltaPhi, Kappa, Record, SealedRecord, Theta};
