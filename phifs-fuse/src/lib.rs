//! The FUSE mount: makes any `phifs_core::volume::Volume` a directory of this machine.
//!
//! `mount` is the way in. `adapter` has a short method for each FUSE operation, `state` what is more than a call of
//! the volume; `inode`, `handle` and `backing` know what the kernel holds, `notify` tells it what to drop, `flush`
//! makes it hand over what it holds back, `errno` is where errors become numbers.

mod adapter;
mod answer;
mod attr;
mod backing;
mod commits;
mod errno;
mod error;
mod flush;
mod guard;
mod handle;
mod init;
mod inode;
mod latch;
mod listings;
mod mountpoint;
mod notify;
mod pool;
mod probe;
mod requests;
mod session;
mod state;
mod syncer;

pub use error::MountError;
pub use init::{DataMode, DataPath, Features};
pub use mountpoint::clear_dead_mount;
pub use requests::Latencies;
pub use session::{Mount, MountOptions, mount};
