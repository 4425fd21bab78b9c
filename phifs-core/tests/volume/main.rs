//! The local volume at its lowest level: over simulated disks, without FUSE. `PHIFS_LONG=1` looks further.

mod branches;
mod browsing;
mod conflicts;
mod crash;
mod damage;
mod drivers;
mod faults;
mod harness;
mod kernel;
mod leftovers;
mod limits;
mod lost;
mod merging;
mod model;
mod privileges;
mod semantics;
mod snapshots;
mod staging;
mod threads;
mod transfer;
mod unheard;
mod versions;
