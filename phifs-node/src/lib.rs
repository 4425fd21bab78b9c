//! The daemon behind the `phifs` command, and the command itself.

pub mod config;
pub mod env;
pub mod file_disk;
pub mod hex;
pub mod mounts;
pub mod node_key;
pub mod show;
pub mod store_dir;
