//! Crashes under load through a real mount: `kill -9` of the daemon, and power cuts of the filesystem below the store.
//!
//! Both matter beside the simulated disks of the engine's own tests, because with passthrough the bytes of files go
//! from the kernel to the host filesystem and never pass the engine.

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use phifs_tests::load::{Load, Syncing, Tail};
use phifs_tests::{DataMode, Ext4Loop, Node, is_root, long, on_ext4, run_ok, seed_or, skip};

const STORE_BYTES: u64 = 2 << 30;

/// When to crash: at once, or well into the load.
fn pause(rng: &mut fastrand::Rng) -> Duration {
    Duration::from_millis(rng.u64(50..1500))
}

fn killed_daemon_keeps_its_promises(mode: DataMode) {
    if !is_root() {
        skip!("passthrough needs root");
    }
    if on_ext4() {
        skip!("ext4 has no daemon to kill");
    }
    let rounds = if long() { 50 } else { 5 };
    let seed = seed_or(11);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut node = Node::up(mode);
    let mut load = Load::prepare(node.dir(), seed, Syncing::Real, Tail::Written);
    let mut acknowledged = 0;
    for round in 0..rounds {
        let report = load.run_until_crash(pause(&mut rng), || node.kill());
        assert!(report.early_errors.is_empty(), "round {round}: {:?}\n{}", report.early_errors, node.log());
        node.start();
        let problems = load.verify();
        assert!(problems.is_empty(), "seed {seed}, round {round} ({report:?}):\n{}", problems.join("\n"));
        acknowledged += report.acknowledged;
    }
    assert!(acknowledged > 10 * rounds, "only {acknowledged} syncs were acknowledged: this proves little");
    node.down();
    let fsck = node.phifs(["fsck"]);
    assert!(fsck.success(), "fsck finds something after {rounds} crashes: {fsck}");
    node.assert_no_panic();
    eprintln!("{rounds} kills, {acknowledged} acknowledged syncs, nothing lost");
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
    if !is_root() {
        skip!("loop devices need root");
    }
    if on_ext4() {
        skip!("the harness test cuts the power of a bare ext4");
    }
    let rounds = if long() { 20 } else { 3 };
    let seed = seed_or(23);
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut host = Ext4Loop::new(STORE_BYTES);
    let mut node = Node::with_store(mode, host.dir().join("store"));
    node.start();
    // Bytes of staging files that nobody synced are as the host's filesystem leaves them.
    let mut load = Load::prepare(node.dir(), seed, Syncing::Real, Tail::MayBeZero);
    let mut acknowledged = 0;
    for round in 0..rounds {
        let report = load.run_until_crash(pause(&mut rng), || {
            host.cut_power();
            // The daemon lives on without a disk for a moment: whatever it acknowledges now counts against it.
            std::thread::sleep(Duration::from_millis(150));
            node.kill();
        });
        assert!(report.early_errors.is_empty(), "round {round}: {:?}\n{}", report.early_errors, node.log());
        node.unmount_dead();
        host.unmount();
        host.mount();
        node.start();
        let problems = load.verify();
        assert!(problems.is_empty(), "seed {seed}, round {round} ({report:?}):\n{}", problems.join("\n"));
        acknowledged += report.acknowledged;
    }
    assert!(acknowledged > 10 * rounds, "only {acknowledged} syncs were acknowledged: this proves little");
    node.down();
    let fsck = node.phifs(["fsck"]);
    assert!(fsck.success(), "fsck finds something after {rounds} power cuts: {fsck}");
    node.assert_no_panic();
    eprintln!("{rounds} power cuts, {acknowledged} acknowledged syncs, nothing lost");
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
    let mut host = Ext4Loop::new(STORE_BYTES);
    let mut node = Node::with_store(mode, host.dir().join("store"));
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
    host.cut_power();
    node.kill();
    node.unmount_dead();
    host.unmount();
    host.mount();
    node.start();
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

/// A second store to a page of a mapping leaves no trace in the file's times.
fn every_fsync_covers_what_a_mapping_stored(mode: DataMode) {
    if !is_root() || on_ext4() {
        skip!("about phifs, as root");
    }
    let mut host = Ext4Loop::new(STORE_BYTES);
    let mut node = Node::with_store(mode, host.dir().join("store"));
    node.start();
    let script = "
import mmap, os, sys
for path, size in zip(sys.argv[1:], (4096, 65536)):
    f = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(f, size)
    m = mmap.mmap(f, size)
    for bytes in (b'first', b'then', b'last'):
        m[:len(bytes)] = bytes
        os.fsync(f)
";
    let paths = [node.dir().join("small"), node.dir().join("large")];
    run_ok(Command::new("python3").args(["-c", script]).args(&paths), Duration::from_secs(20));
    host.cut_power();
    node.kill();
    node.unmount_dead();
    host.unmount();
    host.mount();
    node.start();
    for path in paths {
        let bytes = fs::read(&path).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes[..5]), "lastt", "{}", path.display());
    }
}

#[test]
fn every_fsync_covers_what_a_mapping_stored_in_passthrough() {
    every_fsync_covers_what_a_mapping_stored(DataMode::Passthrough);
}

#[test]
fn every_fsync_covers_what_a_mapping_stored_in_writeback() {
    every_fsync_covers_what_a_mapping_stored(DataMode::Writeback);
}
