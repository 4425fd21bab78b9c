//! Time and chance as a node sees them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use phifs_core::time::{Env, Timestamp};

const BEGINNING_MS: u64 = 1_700_000_000_000;

/// The clock of a node: the time of the world, and how far it is off.
pub struct Clock {
    world_ms: Arc<AtomicU64>,
    off_ms: AtomicI64,
    draws: AtomicU64,
}

impl Clock {
    pub fn new(world_ms: Arc<AtomicU64>, seed: u64) -> Arc<Self> {
        Arc::new(Self { world_ms, off_ms: AtomicI64::new(0), draws: AtomicU64::new(seed) })
    }

    pub fn set_off(&self, ms: i64) {
        self.off_ms.store(ms, Ordering::Relaxed);
    }
}

impl Env for Clock {
    fn now(&self) -> Timestamp {
        let world = BEGINNING_MS + self.world_ms.load(Ordering::Relaxed);
        let ms = world.saturating_add_signed(self.off_ms.load(Ordering::Relaxed));
        Timestamp::new((ms / 1000) as i64, (ms % 1000) as u32 * 1_000_000)
    }

    fn random(&self) -> [u8; 32] {
        *blake3::hash(&self.draws.fetch_add(1, Ordering::Relaxed).to_le_bytes()).as_bytes()
    }
}
