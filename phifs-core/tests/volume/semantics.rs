//! Random calls give the same results as the model.

use std::sync::Arc;

use phifs_core::disk::MemDisk;
use proptest::prelude::*;

use crate::harness::{Op, Player, any_op};

fn run(ops: &[Op], kernel: bool) {
    let mut player = Player::new(Arc::new(MemDisk::new()), kernel, 1).unwrap();
    for op in ops {
        player.play(op).unwrap();
    }
    player.check_all().unwrap();
    assert_eq!(player.volume.fsck(false, &|_| {}).unwrap().problems.len(), 0);
    player.reopen().unwrap();
    player.check_all().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn calls_through_the_volume_do_what_posix_says(ops in prop::collection::vec(any_op(), 1..120)) {
        run(&ops, false);
    }

    #[test]
    fn calls_beside_a_writing_kernel_do_what_posix_says(ops in prop::collection::vec(any_op(), 1..120)) {
        run(&ops, true);
    }
}

fn cases() -> u32 {
    if std::env::var_os("PHIFS_LONG").is_some() { 20_000 } else { 300 }
}
