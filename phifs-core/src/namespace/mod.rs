//! The directory-tree CRDT: causal tables of dotted registers, the operations that change them, and their join.
//!
//! One causal context (a version vector) covers all tables, so nothing needs a tombstone: a dot that the context covers
//! and that no row holds was removed. An operation is a list of effects; applying effects is the only way in which a
//! table changes, whether the operation was made here, replayed from the journal or received from a peer.
//!
//! | module | what |
//! | --- | --- |
//! | `tables` | the tables and how rows are keyed |
//! | `register`, `row` | dotted registers and the rows made of them, with their canonical bytes |
//! | `privilege` | set-id bits and capabilities: what they were granted for |
//! | `version` | published states of a file's bytes, and what is known of them |
//! | `op` | operations and effects, with their canonical bytes |
//! | `apply` | effects on rows |
//! | `derive` | child index, visibility and link counts, kept in step with the rows |
//! | `union` | directories that are one to those who look, and names that mean several things |
//! | `conflict` | what people have to decide about |
//! | `position` | directory positions, kept in step with the moves |
//! | `recompute` | the derived tables from nothing |
//! | `join` | the lattice join of a second state |
//! | `suspect` | whether a second state can be believed |
//! | `events` | what a join came across that people want to hear of |
//! | `plan` | what each kind of change means as effects |
//! | `coherence` | which of several concurrent states is shown |
//! | `view` | reading: what a name means, what an inode looks like |

pub mod apply;
pub mod coherence;
pub mod conflict;
pub mod derive;
pub mod events;
pub mod join;
pub mod op;
pub mod plan;
pub mod position;
pub mod privilege;
mod recompute;
pub mod register;
pub mod row;
pub mod suspect;
pub mod tables;
pub mod union;
pub mod version;
pub mod view;

#[cfg(test)]
mod tests;

pub use apply::apply;
pub use op::{Effect, Op};
pub use privilege::Grant;
pub use row::{Birth, InodeRow, LinkRow, Mode, Owner, Place, Stamp, Version};
pub use tables::{Table, Tables, TablesMut};
