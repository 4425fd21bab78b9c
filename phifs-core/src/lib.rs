//! The storage engine of phifs, without sockets, clocks, paths or threads of its own.
//!
//! A volume's metadata is one causal CRDT (`namespace`), kept in history-independent Merkle maps (`merkle`) that are
//! also its database (`meta`). File bytes are immutable glyphs (`store`) that versions name (`content`).
//! `volume` puts the POSIX rules on top; `phifs-fuse` and `phifs-node` do the I/O.

pub mod causal;
pub mod chunker;
pub mod codec;
pub mod content;
pub mod disk;
pub mod durability;
pub mod id;
pub mod identity;
pub mod merge;
pub mod merkle;
pub mod meta;
pub mod namespace;
pub mod oplog;
pub mod placement;
pub mod registry;
pub mod settings;
pub mod snapshot;
pub mod ssep;
pub mod store;
pub mod time;
pub mod volume;
