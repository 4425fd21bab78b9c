//! The daemon behind the `phifs` command, and the command itself.

pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
mod direct;
pub mod engine;
pub mod env;
pub mod failure;
pub mod file_disk;
mod findings;
pub mod hex;
mod host;
mod lease;
mod metrics;
pub mod mounts;
mod net;
pub mod node_key;
pub mod report;
pub mod show;
pub mod sled_index;
pub mod store_dir;
pub mod telemetry;
mod write_behind;
