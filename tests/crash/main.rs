//! Crashes under load through a real mount: `kill -9` of the daemon, and power cuts of the filesystem below the store.
//!
//! Both matter beside the simulated disks of the engine's own tests, because with passthrough the bytes of files go
//! from the kernel to the host filesystem and never pass the engine.

use std::fs::{self, File};
use std::time::Duration;

use phifs_tests::load::{Load, Syncing, Tail};
use phifs_tests::{DataMode, Ext4Loop, Node, is_root, long, on_ext4, seed_or, skip};

const STORE_BYTES: u64 = 2 << 30;

/// How a round ends.
enum Crash {
    Kill,
    /// Of the filesystem that holds the store.
    PowerCut(Ext4Loop),
}

impl Crash {
    fn strike(&self, node: &mut Node) {
        if let Crash::PowerCut(host) = self {
            host.cut_power();
            // The daemon lives on without a disk for a moment: whatever it acknowledges now counts against it.
            std::thread::sleep(Duration::from_millis(150));
        }
        node.kill();
    }

    /// Once nobody uses the dead mount any more.
    fn recover(&mut self, node: &mut Node) {
        if let Crash::PowerCut(host) = self {
            node.unmount_dead();
            host.unmount();
            host.mount();
        }
        node.start();
    }
}

/// Crashes under load, round after round, on one store.
fn crashes_keep_promises(node: &mut Node, crash: &mut Crash, rounds: u64, seed: u64, tail: Tail) {
    let mut rng = fastrand::Rng::with_seed(seed);
    node.start();
    let mut load = Load::prepare(node.dir(), seed, Syncing::Real, tail);
    let mut acknowledged = 0;
    for round in 0..rounds {
        // At once, or well into the load.
        let before = Duration::from_millis(rng.u64(50..1500));
        let report = load.run_until_crash(before, || crash.strike(node));
        assert!(report.early_errors.is_empty(), "round {round}: {:?}\n{}", report.early_errors, node.log());
        crash.recover(node);
        let problems = load.verify();
        assert!(problems.is_empty(), "seed {seed}, round {round} ({report:?}):\n{}", problems.join("\n"));
        acknowledged += report.acknowledged;
    }
    assert!(acknowledged > 10 * rounds, "only {acknowledged} syncs were acknowledged: this proves little");
    node.down();
    let fsck = node.phifs(["fsck"]);
    assert!(fsck.success(), "fsck finds something after {rounds} crashes: {fsck}");
    node.assert_no_panic();
    eprintln!("{rounds} crashes, {acknowledged} acknowledged syncs, nothing lost");
}

fn killed_daemon_keeps_its_promises(mode: DataMode) {
    if !is_root() || on_ext4() {
        skip!("about phifs, as root");
    }
    let rounds = if long() { 50 } else { 5 };
    crashes_keep_promises(&mut Node::new(mode), &mut Crash::Kill, rounds, seed_or(11), Tail::Written);
}

#[test]
fn killed_daemon_keeps_its_promises_in_passthrough() {
    killed_daemon_keeps_its_promises(DataMode::Passthrough);
}

#[test]
fn killed_daemon_keeps_its_promises_in_writeback() {
    killed_daemon_keeps_its_promises(DataMode::Writeback);
}

fn power_cut_keeps_promises(mode: DataMode) {
    if !is_root() || on_ext4() {
        skip!("about phifs, as root; the harness test cuts the power of a bare ext4");
    }
    let rounds = if long() { 20 } else { 3 };
    let host = Ext4Loop::new(STORE_BYTES);
    let store = host.dir().join("store");
    // Dropped after the node, which uses it.
    let mut crash = Crash::PowerCut(host);
    let mut node = Node::with_store(mode, store);
    // Bytes of staging files that nobody synced are as the host's filesystem leaves them.
    crashes_keep_promises(&mut node, &mut crash, rounds, seed_or(23), Tail::MayBeZero);
}

#[test]
fn power_cut_keeps_promises_in_passthrough() {
    power_cut_keeps_promises(DataMode::Passthrough);
}

#[test]
fn power_cut_keeps_promises_in_writeback() {
    power_cut_keeps_promises(DataMode::Writeback);
}

/// Without any fsync, changes reach the disk within a second.
fn unsynced_changes_survive_a_power_cut_after_a_while(mode: DataMode) {
    if !is_root() || on_ext4() {
        skip!("about phifs, as root");
    }
    let host = Ext4Loop::new(STORE_BYTES);
    let store = host.dir().join("store");
    let mut crash = Crash::PowerCut(host);
    let mut node = Node::with_store(mode, store);
    node.start();
    let dir = node.dir().join("d");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("old"), b"old").unwrap();
    File::open(dir.join("old")).unwrap().sync_all().unwrap();
    for n in 0..200 {
        fs::write(dir.join(format!("f{n}")), phifs_tests::pattern::content(1, n, 100 * n as usize)).unwrap();
    }
    fs::rename(dir.join("old"), dir.join("new")).unwrap();
    fs::set_permissions(dir.join("new"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::remove_file(dir.join("f7")).unwrap();
    // One second is the promise; the rest is for a machine that is busy with other tests.
    std::thread::sleep(Duration::from_millis(2500));
    crash.strike(&mut node);
    crash.recover(&mut node);
    assert_eq!(fs::read(dir.join("new")).unwrap(), b"old");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(dir.join("new")).unwrap()) & 0o777, 0o600);
    assert!(!dir.join("old").exists() && !dir.join("f7").exists());
    for n in (0..200).filter(|&n| n != 7) {
        let bytes = fs::read(dir.join(format!("f{n}"))).unwrap();
        assert!(bytes == phifs_tests::pattern::content(1, n, 100 * n as usize), "f{n} has other bytes");
    }
}

#[test]
fn unsynced_changes_survive_a_power_cut_after_a_while_in_passthrough() {
    unsynced_changes_survive_a_power_cut_after_a_while(DataMode::Passthrough);
}

#[test]
fn unsynced_changes_survive_a_power_cut_after_a_while_in_writeback() {
    unsynced_changes_survive_a_power_cut_after_a_while(DataMode::Writeback);
}
