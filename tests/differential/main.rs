//! The same random sequence of calls on ext4 and on phifs must give the same results, errnos and trees.

use std::time::Duration;

use phifs_tests::ops::{compare, generate, shorten};
use phifs_tests::{DataMode, Ext4Loop, Place, is_root, long, seed_or, skip};

const CALLS: usize = 400;

fn same_as_ext4(mode: DataMode) {
    if !is_root() {
        skip!("other users need root");
    }
    let reference = Ext4Loop::new(1 << 30);
    let mut place = Place::new(mode);
    let seeds = if long() { 600 } else { 40 };
    let first = seed_or(1);
    for seed in first..first + seeds {
        let mut calls = generate(seed, CALLS);
        let Some(divergence) = compare(reference.dir(), place.dir(), &calls) else { continue };
        calls.truncate(divergence.at + 1);
        let calls = shorten(reference.dir(), place.dir(), calls, Duration::from_secs(30));
        let last = compare(reference.dir(), place.dir(), &calls).unwrap_or(divergence);
        let listing: String = calls.iter().map(|call| format!("  {call:?}\n")).collect();
        panic!("PHIFS_SEED={seed} ({} mode) differs after:\n{listing}{}", mode.name(), last.what);
    }
    place.assert_healthy();
}

#[test]
fn random_calls_give_the_same_as_on_ext4_in_passthrough() {
    same_as_ext4(DataMode::Passthrough);
}

#[test]
fn random_calls_give_the_same_as_on_ext4_in_writeback() {
    same_as_ext4(DataMode::Writeback);
}
