//! A cluster of real volumes on a virtual network, clocks and disks, in which one seed decides everything.
//!
//! `PHIFS_SEEDS=N` runs the first N seeds, `PHIFS_SEED=n` one alone, and tells what happens.

mod clock;
mod disk;
mod kernel;
mod mutants;
mod network;
mod node;
mod oracle;
mod reach;
mod rng;
mod workload;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use mutants::Mutant;
use world::World;

const SEEDS: u64 = 1_000;
const THREADS: usize = 2;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}

#[test]
fn a_cluster_comes_to_be_the_same_and_keeps_what_it_promised_whatever_breaks() {
    if let Some(seed) = number("PHIFS_SEED") {
        return World::new(seed, Mutant::None, true).run();
    }
    let (seeds, next, failed) = (number("PHIFS_SEEDS").unwrap_or(SEEDS), AtomicU64::new(0), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            if catch_unwind(AssertUnwindSafe(|| World::new(seed, Mutant::None, false).run())).is_err() {
                eprintln!("to see it again: PHIFS_SEED={seed} cargo test -p phifs-core --test cluster a_cluster");
                failed.lock().expect("nobody panics with it").push(seed);
            }
        }
    };
    std::thread::scope(|scope| {
        (0..THREADS).for_each(|_| drop(scope.spawn(work)));
    });
    let failed = failed.into_inner().expect("nobody panics with it");
    assert!(failed.is_empty(), "{} of {seeds} seeds fail: {failed:?}", failed.len());
}

#[test]
fn a_seed_decides_everything() {
    for seed in 0..3 {
        let run = || {
            let mut world = World::new(seed, Mutant::None, false);
            world.run();
            world.digest.finalize()
        };
        assert_eq!(run(), run(), "seed {seed}");
    }
}
