//! The local volume at its lowest level: over simulated disks, without FUSE.

mod crash;
mod harness;
mod model;
mod semantics;
