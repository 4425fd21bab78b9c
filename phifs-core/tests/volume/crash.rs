//! Power loss at every sync, and at every change, of long mixed workloads. Afterwards the volume opens, what a sync
//! acknowledged is there, names and attributes are those of one moment, and no file shows bytes that it never had.

use std::collections::BTreeMap;
use std::sync::Arc;

use phifs_core::disk::{CrashDisk, Disk, MemDisk, PowerLoss};
use phifs_core::volume::local::LocalVolume;
use phifs_core::volume::{NewKind, NewNode, OpenHow, Volume};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::harness::{CALLER, MEMORY, Mode, Op, Player, any_op, open, read_tree, settle, staging_files};
use crate::model::{Id, Model, Tree};

/// What could be seen at some moment.
struct Moment {
    tree: Tree,
    files: BTreeMap<Vec<u8>, Id>,
}

/// What a workload did until the power went.
struct History {
    moments: Vec<Moment>,
    /// Nothing before this moment may be seen any more.
    acknowledged: usize,
    /// All that each file has held since it was synced last.
    contents: BTreeMap<Id, Vec<Arc<Vec<u8>>>>,
    author: Option<String>,
}

impl History {
    fn note(&mut self, model: &Model) {
        self.moments.push(Moment { tree: model.tree(), files: model.paths() });
        for (id, inode) in &model.inodes {
            let held = self.contents.entry(*id).or_default();
            if held.last().is_none_or(|last| **last != inode.bytes) {
                held.push(Arc::new(inode.bytes.clone()));
            }
        }
    }

    fn acknowledge(&mut self, synced: Option<Id>, bytes_synced: Option<Id>) {
        if synced.is_some() {
            self.acknowledged = self.moments.len() - 1;
        }
        for id in synced.into_iter().chain(bytes_synced) {
            if let Some(held) = self.contents.get_mut(&id) {
                held.drain(..held.len() - 1);
            }
        }
    }
}

/// A fixed sequence for each seed.
pub fn workload(seed: u64, len: usize) -> Vec<Op> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let ops = prop::collection::vec(any_op(), len).new_tree(&mut runner).unwrap();
    ops.current()
}

fn run(disk: &CrashDisk, ops: &[Op], mode: Mode) -> History {
    let mut history = History { moments: Vec::new(), acknowledged: 0, contents: BTreeMap::new(), author: None };
    let Ok(mut player) = Player::new(Arc::new(disk.clone()), mode, 1) else {
        assert!(disk.is_dead(), "a new volume opens");
        return history;
    };
    history.note(&player.model);
    for op in ops {
        history.author = Some(player.volume.status().author);
        let played = player.play(op);
        // The call that was interrupted may have happened.
        history.note(&player.model);
        if played.is_err() {
            break;
        }
        history.acknowledge(player.synced, player.bytes_synced);
    }
    history
}

/// Opens what the power loss left and holds it against the history.
fn check(image: &MemDisk, history: &History, what: &str) {
    let disk: Arc<dyn Disk> = Arc::new(image.clone());
    let env = crate::harness::TestEnv::new(2);
    let volume = open(&disk, &env).unwrap_or_else(|error| panic!("{what}: opening failed: {error}"));
    if let Some(author) = &history.author
        && !volume.opening().clean
    {
        assert_ne!(&volume.status().author, author, "{what}: an unclean stop ends an incarnation");
    }
    check_contents(&volume, history, what);
    let report = volume.fsck(false, &|_| {}).unwrap();
    assert!(report.problems.is_empty(), "{what}: {:?}", report.problems);
    works_on(volume, &disk, &env, what);
}

fn check_contents(volume: &LocalVolume, history: &History, what: &str) {
    let (tree, files) = read_tree(volume).unwrap_or_else(|error| panic!("{what}: reading failed: {error}"));
    if history.moments.is_empty() {
        assert_eq!(tree.len(), 1, "{what}: a new volume is empty");
        return;
    }
    let candidates: Vec<usize> =
        (history.acknowledged..history.moments.len()).filter(|at| history.moments[*at].tree == tree).collect();
    let Some(at) = candidates.last() else {
        let early = history.moments.iter().position(|moment| moment.tree == tree);
        let nearest = &history.moments[history.acknowledged].tree;
        panic!(
            "{what}: no moment since the last sync ({}) looked like this (but {early:?} did);\nfound {:#?}\nsynced {:#?}",
            history.acknowledged,
            brief(&tree),
            brief(nearest)
        );
    };
    for (path, bytes) in &files {
        // The inode of a name may have changed between moments that look the same.
        let fits = candidates.iter().any(|at| {
            let held = &history.contents[&history.moments[*at].files[path]];
            is_mixed_from(bytes, held)
        });
        if !fits {
            let held = &history.contents[&history.moments[*at].files[path]];
            let lens: Vec<usize> = held.iter().map(|held| held.len()).collect();
            panic!(
                "{what}: {:?} shows {} bytes it never had; it had {lens:?}",
                String::from_utf8_lossy(path),
                bytes.len()
            );
        }
    }
}

fn brief(tree: &Tree) -> Vec<String> {
    tree.iter()
        .map(|(path, entry)| {
            format!(
                "{} {:?} {:o} {} {:?}",
                String::from_utf8_lossy(path),
                entry.kind,
                entry.permissions,
                entry.nlink,
                entry.mtime
            )
        })
        .collect()
}

/// Whether each byte is one that the file held at its place, and the length one that it had or that a torn write gave
/// it. What was never synced may read as zero where the file was shorter before.
fn is_mixed_from(bytes: &[u8], held: &[Arc<Vec<u8>>]) -> bool {
    let lens = || held.iter().map(|held| held.len());
    held.iter().any(|held| held[..] == *bytes)
        || lens().min() <= Some(bytes.len())
            && lens().max() >= Some(bytes.len())
            && bytes
                .iter()
                .enumerate()
                .all(|(at, byte)| held.iter().any(|held| held.get(at).map_or(*byte == 0, |held| held == byte)))
}

/// The volume takes changes, a clean stop and a new start.
fn works_on(volume: LocalVolume, disk: &Arc<dyn Disk>, env: &Arc<crate::harness::TestEnv>, what: &str) {
    env.advance();
    let root = phifs_core::volume::Ino::ROOT;
    let node = NewNode { kind: NewKind::File, permissions: 0o600, umask: 0 };
    let how = OpenHow { write: true, ..OpenHow::default() };
    let (attr, opened) = volume.create(&CALLER, root, b"after", &node, &how).unwrap();
    volume.write(&CALLER, attr.ino, opened.handle, 0, b"life goes on", false).unwrap();
    volume.fsync(attr.ino, None, false).unwrap();
    volume.release(attr.ino, opened.handle);
    settle(&volume);
    volume.tick().unwrap();
    volume.recent_ops(10_000).unwrap();
    let before = read_tree(&volume).unwrap();
    settle(&volume);
    volume.shut_down().unwrap_or_else(|error| panic!("{what}: stopping failed: {error}"));
    drop(volume);
    assert_eq!(staging_files(&**disk), 0, "{what}: a clean stop leaves no staging file");
    let volume = open(disk, env).unwrap_or_else(|error| panic!("{what}: the second opening failed: {error}"));
    let opening = volume.opening();
    assert!(opening.clean && !opening.oplog_damaged && opening.recovered_files == 0, "{what}: {opening:?}");
    assert!(read_tree(&volume).unwrap() == before, "{what}: a clean stop changed something");
    let report = volume.fsck(false, &|_| {}).unwrap();
    assert!(report.problems.is_empty(), "{what}: {:?}", report.problems);
}

/// Each seed has its share of memory.
fn mode(seed: u64, kernel: bool) -> Mode {
    Mode { kernel, memory_bytes: MEMORY[(seed % 3) as usize] }
}

fn is_long() -> bool {
    std::env::var_os("PHIFS_LONG").is_some()
}

/// Loses power at each of these points, and looks at several things the disk may have kept.
fn crash_at(points: impl Iterator<Item = PowerLoss>, ops: &[Op], mode: Mode, seeds: u64, name: &str) {
    for point in points {
        let disk = CrashDisk::over(&MemDisk::new(), point);
        let history = run(&disk, ops, mode);
        for seed in 0..seeds {
            check(&disk.after_power_loss(seed), &history, &format!("{name}, {point:?}, seed {seed}"));
        }
    }
}

fn at_every_sync(seed: u64, len: usize, mode: Mode) {
    let ops = workload(seed, len);
    let probe = CrashDisk::healthy();
    run(&probe, &ops, mode);
    let name = format!("workload {seed} of {len}");
    crash_at((0..probe.syncs() + 1).map(PowerLoss::AtSync), &ops, mode, 4, &name);
}

fn at_every_op(seed: u64, len: usize, mode: Mode, step: usize) {
    let ops = workload(seed, len);
    let probe = CrashDisk::healthy();
    run(&probe, &ops, mode);
    let name = format!("workload {seed} of {len}");
    crash_at((0..probe.ops()).step_by(step).map(PowerLoss::AtOp), &ops, mode, 3, &name);
}

#[test]
fn nothing_acknowledged_is_lost_by_power_loss_at_any_sync() {
    for seed in 0..if is_long() { 40 } else { 3 } {
        at_every_sync(seed, 150, mode(seed, false));
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_power_loss_at_any_sync_beside_a_writing_kernel() {
    for seed in 100..if is_long() { 140 } else { 103 } {
        at_every_sync(seed, 150, mode(seed, true));
    }
}

#[test]
fn power_loss_in_the_middle_of_any_change_tears_nothing() {
    let step = if is_long() { 1 } else { 5 };
    for (seed, kernel) in [(200, false), (201, true), (203, false), (204, true)] {
        at_every_op(seed, 80, mode(seed, kernel), step);
    }
}

#[test]
fn power_loss_around_collections_leaves_every_version_readable() {
    for (seed, kernel) in [(400, false), (401, true)] {
        let mode = mode(seed, kernel);
        let mut ops = Vec::new();
        for (at, op) in workload(seed, 120).into_iter().enumerate() {
            ops.push(op);
            match at % 8 {
                3 => ops.push(Op::Settle),
                5 => ops.push(Op::Collect),
                7 => ops.push(Op::Tick),
                _ => {}
            }
        }
        let probe = CrashDisk::healthy();
        run(&probe, &ops, mode);
        let name = format!("workload {seed} with collections");
        let step = if is_long() { 1 } else { 3 };
        crash_at((0..probe.syncs()).step_by(step).map(PowerLoss::AtSync), &ops, mode, 3, &name);
    }
}

#[test]
fn power_loss_during_recovery_is_recovered_from() {
    for (seed, kernel) in [(300, false), (301, true), (302, true)] {
        let mode = mode(seed, kernel);
        let ops = workload(seed, 120);
        let probe = CrashDisk::healthy();
        run(&probe, &ops, mode);
        for first in (0..probe.syncs()).step_by(if is_long() { 1 } else { 7 }) {
            let disk = CrashDisk::dies_at_sync(first);
            let history = run(&disk, &ops, mode);
            for second in 0.. {
                let disk = CrashDisk::over(&disk.after_power_loss(2 + second), PowerLoss::AtOp(second));
                let shared: Arc<dyn Disk> = Arc::new(disk.clone());
                let env = crate::harness::TestEnv::new(2);
                if open(&shared, &env).is_ok() && !disk.is_dead() {
                    break;
                }
                let what = format!("workload {seed}, sync {first}, then change {second} of the recovery");
                check(&disk.after_power_loss(second), &history, &what);
            }
        }
    }
}
