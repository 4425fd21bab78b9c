//! Random calls give the same results as the model.

use std::sync::Arc;

use phifs_core::disk::{Disk, MemDisk};
use phifs_core::volume::{Ino, NewKind, NewNode, OpenHow, Volume, VolumeError};
use proptest::prelude::*;

use crate::harness::{CALLER, MEMORY, Mode, Op, Player, TestEnv, any_op, open};

fn run(ops: &[Op], kernel: bool, memory_bytes: u64) {
    let mut player = Player::new(Arc::new(MemDisk::new()), Mode { kernel, memory_bytes }, 1).unwrap();
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
    fn calls_through_the_volume_do_what_posix_says(ops in prop::collection::vec(any_op(), 1..120), memory in 0..3usize) {
        run(&ops, false, MEMORY[memory]);
    }

    #[test]
    fn calls_beside_a_writing_kernel_do_what_posix_says(ops in prop::collection::vec(any_op(), 1..120), memory in 0..3usize) {
        run(&ops, true, MEMORY[memory]);
    }
}

fn cases() -> u32 {
    if std::env::var_os("PHIFS_LONG").is_some() { 20_000 } else { 300 }
}

#[test]
fn a_running_program_is_not_cut_short() {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let volume = open(&disk, &TestEnv::new(1)).unwrap();
    let node = NewNode { kind: NewKind::File, permissions: 0o700, umask: 0 };
    let how = OpenHow { write: true, ..OpenHow::default() };
    let (attr, opened) = volume.create(&CALLER, Ino::ROOT, b"program", &node, &how).unwrap();
    volume.write(&CALLER, attr.ino, opened.handle, 0, b"#!", false).unwrap();
    volume.release(attr.ino, opened.handle);
    let running = OpenHow { read: true, execute: true, ..OpenHow::default() };
    let running = volume.open(&CALLER, attr.ino, &running).unwrap().handle;
    let cut = OpenHow { read: true, truncate: true, ..OpenHow::default() };
    assert!(matches!(volume.open(&CALLER, attr.ino, &cut), Err(VolumeError::Running)));
    assert_eq!(volume.read(attr.ino, running, 0, 10).unwrap(), b"#!");
    volume.release(attr.ino, running);
    volume.open(&CALLER, attr.ino, &cut).unwrap();
    assert_eq!(volume.getattr(attr.ino, None).unwrap().size_bytes, 0);
}
