//! Room for making room: a file that holds some space while the disk is nearly full.
//!
//! The kernel writes to staging files without asking, so the disk below can fill to the last block. Then not even a
//! delete could become durable, and nothing would ever be freed. Giving up the ballast lets the journal and a
//! checkpoint through; what they free soon pays for a new one.

use parking_lot::Mutex;

use crate::disk::{Disk, FileName};

pub const BALLAST_BYTES: u64 = 16 << 20;

#[derive(Default)]
pub struct Ballast {
    held: Mutex<bool>,
}

impl Ballast {
    /// Holds space back, if there still is some.
    pub fn hold(&self, disk: &dyn Disk) {
        let mut held = self.held.lock();
        if *held {
            return;
        }
        let made = match disk.create(FileName::Ballast) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => disk.open(FileName::Ballast),
            made => made,
        };
        match made.and_then(|file| file.allocate(0, BALLAST_BYTES, false)) {
            Ok(()) => *held = true,
            Err(_) => drop(disk.remove(FileName::Ballast)),
        }
    }

    /// Gives the space up. Says whether there was any.
    pub fn release(&self, disk: &dyn Disk) -> bool {
        let mut held = self.held.lock();
        let gone = disk.remove(FileName::Ballast).is_ok();
        std::mem::take(&mut *held) && gone
    }
}
