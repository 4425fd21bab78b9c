//! Crashes under load through a real mount: `kill -9` of the daemon, and power cuts of the filesystem below the store.
//!
//! Both matter beside the simulated disks of the engine's own tests, because with passthrough the bytes of files go
//! from the kernel to the host filesystem and never pass the engine.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use phifs_tests::load::{Load, Syncing, Tail};
use phifs_tests::{Background, DataMode, Ext4Loop, Node, is_root, long, on_ext4, run_ok, seed_or, skip, wait_until};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

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
    let mut stays_open = File::create(dir.join("open")).unwrap();
    stays_open.write_all(&phifs_tests::pattern::content(1, 1000, 300_000)).unwrap();
    let mut mapper = map_and_store(&[dir.join("small"), dir.join("large")]);
    // One second is the promise; the rest is for a machine that is busy with other tests.
    std::thread::sleep(Duration::from_millis(2500));
    crash.strike(&mut node);
    mapper.kill();
    drop(stays_open);
    crash.recover(&mut node);
    assert_eq!(fs::read(dir.join("new")).unwrap(), b"old");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(dir.join("new")).unwrap()) & 0o777, 0o600);
    assert!(!dir.join("old").exists() && !dir.join("f7").exists());
    for n in (0..200).filter(|&n| n != 7) {
        let bytes = fs::read(dir.join(format!("f{n}"))).unwrap();
        assert!(bytes == phifs_tests::pattern::content(1, n, 100 * n as usize), "f{n} has other bytes");
    }
    let bytes = fs::read(dir.join("open")).unwrap();
    assert!(bytes == phifs_tests::pattern::content(1, 1000, 300_000), "the file that stayed open has other bytes");
    for (name, len) in [("small", 4096), ("large", 1 << 20)] {
        let bytes = fs::read(dir.join(name)).unwrap();
        assert_eq!(bytes.len(), len, "{name}");
        let stored = [&bytes[..6], &bytes[2000..2006], &bytes[len - 6..]];
        assert_eq!(stored, [b"first.", b"second", b"third."], "what was stored to {name} through its mapping");
    }
}

/// A process that stores to shared mappings of new files three times, with pauses, and keeps them. The descriptors are
/// closed before.
fn map_and_store(paths: &[PathBuf]) -> Background {
    let script = "
import mmap, os, sys, time
maps = []
for path, size in zip(sys.argv[2:], (4096, 1 << 20)):
    f = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(f, size)
    maps.append(mmap.mmap(f, size))
    os.close(f)
for m in maps: m[:6] = b'first.'
time.sleep(0.5)
for m in maps: m[2000:2006] = b'second'
time.sleep(1)
for m in maps: m[-6:] = b'third.'
os.mkdir(sys.argv[1])
time.sleep(1000)
";
    let home = tempfile::tempdir().unwrap();
    let done = home.path().join("done");
    let child = Background::start(Command::new("python3").args(["-c", script]).arg(&done).args(paths));
    assert!(wait_until(Duration::from_secs(20), || done.exists()), "nothing was stored");
    child
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

/// Nobody had time to learn that the file was opened, and it stays open.
fn msync_right_after_an_open_survives_a_power_cut(mode: DataMode) {
    if !is_root() || on_ext4() {
        skip!("about phifs, as root");
    }
    let mut host = Ext4Loop::new(STORE_BYTES);
    let mut node = Node::with_store(mode, host.dir().join("store"));
    node.start();
    let files = [("small", 4096), ("large", 300_000)].map(|(name, len)| (node.dir().join(name), len));
    let old = |len| phifs_tests::pattern::content(1, 1, len);
    for (path, len) in &files {
        fs::write(path, old(*len)).unwrap();
    }
    // So that they are published and nothing is left to be synced.
    node.down();
    node.start();
    let script = "
import mmap, os, sys, time
for path in sys.argv[2:]:
    m = mmap.mmap(os.open(path, os.O_RDWR), 0)
    m[1000:1006] = b'stored'
    m.flush()
os.mkdir(sys.argv[1])
time.sleep(1000)
";
    let home = tempfile::tempdir().unwrap();
    let done = home.path().join("done");
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(&done).args(files.each_ref().map(|(path, _)| path));
    let mut python = Background::start(&mut python);
    assert!(wait_until(Duration::from_secs(20), || done.exists()), "nothing was stored");
    host.cut_power();
    node.kill();
    python.kill();
    node.unmount_dead();
    host.unmount();
    host.mount();
    node.start();
    for (path, len) in files {
        let mut wanted = old(len);
        wanted[1000..1006].copy_from_slice(b"stored");
        assert!(fs::read(&path).unwrap() == wanted, "{} is not as it was synced", path.display());
    }
}

#[test]
fn msync_right_after_an_open_survives_a_power_cut_in_passthrough() {
    msync_right_after_an_open_survives_a_power_cut(DataMode::Passthrough);
}

#[test]
fn msync_right_after_an_open_survives_a_power_cut_in_writeback() {
    msync_right_after_an_open_survives_a_power_cut(DataMode::Writeback);
}

/// One of the daemon's threads waits in the kernel, deaf to all signals, for what the other threads have to answer.
#[test]
fn a_daemon_that_waits_for_cached_bytes_can_be_killed() {
    if !is_root() || on_ext4() {
        skip!("about phifs, as root");
    }
    let mut node = Node::up(DataMode::Writeback);
    let path = node.dir().join("f");
    let mut writer = Background::start(
        Command::new("dd").args(["if=/dev/zero", "bs=1M"]).arg(format!("of={}", path.display())).stderr(Stdio::null()),
    );
    let waits = wait_until(Duration::from_secs(60), || {
        kill_process(node.pid(), Signal::STOP).unwrap();
        // Stopped at the right moment, it waits for as long as we like.
        let waits = !wait_until(Duration::from_millis(300), || thread_state(node.pid(), "phifs-sync") != Some('D'));
        if !waits {
            kill_process(node.pid(), Signal::CONT).unwrap();
        }
        waits
    });
    assert!(waits, "never seen waiting: this proves nothing");
    kill_process(node.pid(), Signal::KILL).unwrap();
    let ended = wait_until(Duration::from_secs(10), || !node.alive());
    if !ended {
        // Lets go of the daemon, and of this test.
        rustix::mount::unmount(node.dir(), UnmountFlags::FORCE | UnmountFlags::DETACH).unwrap();
    }
    assert!(ended, "the daemon cannot be killed");
    writer.kill();
    node.kill();
    node.start();
    node.down();
}

/// How a thread of this name is: `D` for one that waits in the kernel and cannot be woken.
fn thread_state(pid: Pid, name: &str) -> Option<char> {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).ok()?;
    let mut stats = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    stats.find_map(|stat| stat.split_once(&format!("({name}) "))?.1.chars().next())
}
