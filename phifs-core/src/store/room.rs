//! Keeps some of the disk free: user data stops first, so that deletes and metadata still have room.

use std::io;

use parking_lot::Mutex;

use super::StoreError;
use crate::disk::Disk;

const RESERVE_BYTES_MAX: u64 = 10 << 30;
/// 5 %.
const RESERVE_DIVISOR: u64 = 20;
/// How much may be admitted on the strength of one look at the disk.
const LOOK_EVERY_BYTES: u64 = 4 << 20;

pub(super) struct Room {
    reserve_bytes: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    free_bytes: u64,
    admitted_since_look: u64,
}

/// What a write is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Data,
    /// Nodes, and copies that a collection makes to free more than they take.
    Upkeep,
}

impl Room {
    /// With `reserve_bytes` or, without, 5 % of the disk, at most 10 GiB.
    pub fn new(disk: &dyn Disk, reserve_bytes: Option<u64>) -> io::Result<Self> {
        let space = disk.space()?;
        let reserve_bytes = reserve_bytes.unwrap_or((space.total_bytes / RESERVE_DIVISOR).min(RESERVE_BYTES_MAX));
        let state = State { free_bytes: space.free_bytes, admitted_since_look: 0 };
        Ok(Self { reserve_bytes, state: Mutex::new(state) })
    }

    pub fn reserve_bytes(&self) -> u64 {
        self.reserve_bytes
    }

    /// Accounts for bytes about to be written, or refuses them with `Full`.
    pub fn admit(&self, disk: &dyn Disk, purpose: Purpose, bytes: u64) -> Result<(), StoreError> {
        let keep_free = match purpose {
            Purpose::Data => self.reserve_bytes,
            Purpose::Upkeep => 0,
        };
        let mut state = self.state.lock();
        let fits = |state: &State| state.free_bytes.saturating_sub(state.admitted_since_look) >= keep_free + bytes;
        if !fits(&state) || state.admitted_since_look >= LOOK_EVERY_BYTES {
            let space = disk.space().map_err(|source| StoreError::Disk { doing: "asking for free space", source })?;
            *state = State { free_bytes: space.free_bytes, admitted_since_look: 0 };
            if !fits(&state) {
                return Err(StoreError::Full);
            }
        }
        state.admitted_since_look += bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{FileName, MemDisk};

    #[test]
    fn data_stops_at_the_reserve_and_upkeep_does_not() {
        let disk = MemDisk::with_capacity(1 << 20);
        let room = Room::new(&disk, Some(512 << 10)).unwrap();
        let file = disk.create(FileName::Pack(1)).unwrap();
        room.admit(&disk, Purpose::Data, 100 << 10).unwrap();
        file.allocate(0, 600 << 10, true).unwrap();
        assert!(matches!(room.admit(&disk, Purpose::Data, 500 << 10), Err(StoreError::Full)));
        room.admit(&disk, Purpose::Upkeep, 100 << 10).unwrap();
        file.allocate(0, 1000 << 10, true).unwrap();
        room.admit(&disk, Purpose::Upkeep, 24 << 10).unwrap();
        file.set_len(0).unwrap();
        room.admit(&disk, Purpose::Data, 100 << 10).unwrap();
    }
}
