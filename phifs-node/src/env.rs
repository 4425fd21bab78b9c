//! The real world behind core's `Env`: the wall clock and the kernel's random numbers.

use phifs_core::time::{Env, Timestamp};

pub struct SystemEnv;

impl Env for SystemEnv {
    fn now(&self) -> Timestamp {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        Timestamp::new(now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0))
    }

    /// # Panics
    /// When the kernel gives no random bytes. There is no safe way on: ids made of anything else could repeat.
    fn random(&self) -> [u8; 32] {
        random()
    }
}

/// 32 bytes from getrandom(2), fit for keys. Panics as [`SystemEnv::random`] does.
pub fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_is_past_2020_and_random_bytes_differ() {
        assert!(SystemEnv.now().secs > 1_577_836_800);
        assert_ne!(SystemEnv.random(), SystemEnv.random());
    }
}
