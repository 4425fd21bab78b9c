//! Tests of the harness itself, on ext4 alone: the checkers accept a good filesystem, and each of them notices when
//! something is wrong. A checker that cannot fail proves nothing.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use phifs_tests::load::{Load, Syncing, Tail};
use phifs_tests::ops::{compare, generate, shorten};
use phifs_tests::{Ext4Loop, is_root, run, skip, wait_until};

const BYTES: u64 = 1 << 30;

/// Cuts the power of an ext4 under load a few times; all that the checker had to say.
fn power_cuts(syncing: Syncing, rounds: u32) -> Vec<String> {
    let mut ext4 = Ext4Loop::new(BYTES);
    let mut load = Load::prepare(ext4.dir(), 5, syncing, Tail::MayBeZero);
    let mut problems = Vec::new();
    for _ in 0..rounds {
        let report = load.run_until_crash(Duration::from_millis(700), || {
            if let Syncing::OfHostUntil(cut) = syncing {
                cut.store(true, Ordering::SeqCst);
            }
            ext4.cut_power();
            std::thread::sleep(Duration::from_millis(50));
        });
        if let Syncing::OfHostUntil(cut) = syncing {
            cut.store(false, Ordering::SeqCst);
        }
        assert_eq!(report.early_errors, Vec::<String>::new());
        assert!(report.acknowledged > 10, "{report:?}");
        ext4.unmount();
        ext4.mount();
        problems.extend(load.verify());
    }
    problems
}

#[test]
fn power_cuts_of_ext4_lose_nothing_acknowledged() {
    if !is_root() {
        skip!("loop devices need root");
    }
    // The ioctl is not quite a power cut. ext4 acknowledges an fsync whose blocks are being written when it comes: the
    // journal is dead by the time they shall be marked as written, that failure is not told to whoever waits for the
    // pages, and the transaction with the new size had been committed before. So only what returned before counts.
    static CUT: AtomicBool = AtomicBool::new(false);
    assert_eq!(power_cuts(Syncing::OfHostUntil(&CUT), 3), Vec::<String>::new());
}

#[test]
fn pretended_syncs_are_found_out_by_a_power_cut() {
    if !is_root() {
        skip!("loop devices need root");
    }
    let problems = power_cuts(Syncing::Pretended, 1);
    let found = |what: &str| problems.iter().any(|problem| problem.contains(what));
    assert!(found("appends") && found("replacements") && found("creates") && found("pages"), "{problems:?}");
}

/// Changes one byte of every worker's files behind its back.
#[test]
fn one_changed_byte_is_found_by_the_checker() {
    let dir = tempfile::tempdir().unwrap();
    let mut load = Load::prepare(dir.path(), 9, Syncing::Pretended, Tail::MayBeZero);
    load.run_until_crash(Duration::from_millis(500), || {});
    assert_eq!(load.verify(), Vec::<String>::new());
    load.run_until_crash(Duration::from_millis(300), || {});
    let log = fs::read_dir(dir.path().join("appends")).unwrap().next().unwrap().unwrap().path();
    let targets =
        [log, dir.path().join("replacements/3"), dir.path().join("pages/db"), dir.path().join("many-pages/db")];
    for target in &targets {
        let file = File::options().read(true).write(true).open(target).unwrap();
        let at = file.metadata().unwrap().len() / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }
    let problems = load.verify();
    for target in targets {
        let name = target.display().to_string();
        assert!(problems.iter().any(|problem| problem.contains(&name)), "{name} is not among {problems:?}");
    }
}

#[test]
fn lost_and_doubled_trees_are_found_by_the_checker() {
    let dir = tempfile::tempdir().unwrap();
    let mut load = Load::prepare(dir.path(), 13, Syncing::Pretended, Tail::MayBeZero);
    load.run_until_crash(Duration::from_millis(500), || {});
    assert_eq!(load.verify(), Vec::<String>::new());
    let trees = dir.path().join("trees");
    let mut names: Vec<_> = fs::read_dir(&trees).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    fs::remove_dir_all(&names[0]).unwrap();
    fs::remove_file(names[1].join("a/b/leaf")).unwrap();
    assert_eq!(load.verify().len(), 2);
}

#[test]
fn a_hanging_program_is_ended_with_its_children() {
    let start = Instant::now();
    let ran = run(Command::new("sh").args(["-c", "echo begun; sleep 60 & sleep 60"]), Duration::from_millis(300));
    assert!(ran.timed_out() && start.elapsed() < Duration::from_secs(10));
    assert_eq!(ran.stdout_text(), "begun\n");
}

/// Not a test of its own: what the next one kills.
const VICTIM: &str = "PHIFS_TEST_VICTIM";

#[test]
fn a_killed_test_leaves_neither_mounts_nor_loop_devices_nor_files() {
    if !is_root() {
        skip!("loop devices need root");
    }
    if std::env::var_os(VICTIM).is_some() {
        let ext4 = Ext4Loop::new(64 << 20);
        println!("mounted {}", ext4.dir().display());
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim.args(["--exact", "a_killed_test_leaves_neither_mounts_nor_loop_devices_nor_files", "--nocapture"]);
    let mut victim = victim.env(VICTIM, "1").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines().map(Result::unwrap);
    let dir = lines.find_map(|line| line.strip_prefix("mounted ").map(PathBuf::from)).expect("a mount");
    let home = dir.parent().unwrap().to_owned();
    let loops = || {
        let devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path().join("loop/backing_file"));
        devices
            .filter(|file| fs::read_to_string(file).is_ok_and(|path| Path::new(path.trim()).starts_with(&home)))
            .count()
    };
    assert_eq!(loops(), 1);
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(wait_until(Duration::from_secs(20), || loops() == 0), "the loop device of a dead test is in use");
    assert!(home.exists(), "this test is about what is left");
    // The first of the next process sweeps.
    let next = ["--exact", "a_killed_test_leaves_neither_mounts_nor_loop_devices_nor_files", "--nocapture"];
    let mut next = Command::new(std::env::current_exe().unwrap()).args(next).env(VICTIM, "1").spawn().unwrap();
    let swept = wait_until(Duration::from_secs(20), || !home.exists());
    next.kill().unwrap();
    next.wait().unwrap();
    assert!(swept, "{} is left", home.display());
}

#[test]
fn two_filesystems_of_a_kind_do_not_differ_and_other_kinds_do() {
    if !is_root() {
        skip!("loop devices need root");
    }
    let (one, two) = (Ext4Loop::new(BYTES), Ext4Loop::new(BYTES));
    let tmpfs = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut found = None;
    for seed in 1..40 {
        let calls = generate(seed, 400);
        let same = compare(one.dir(), two.dir(), &calls);
        assert!(same.is_none(), "seed {seed}: ext4 differs from ext4: {same:?}");
        found = found.or_else(|| Some((calls.clone(), compare(one.dir(), tmpfs.path(), &calls)?)));
    }
    let (mut calls, divergence) = found.expect("tmpfs differs from ext4 in some way");
    calls.truncate(divergence.at + 1);
    let short = shorten(one.dir(), tmpfs.path(), calls, Duration::from_secs(20));
    assert!(short.len() < 20, "a difference is shown by few calls, not {}", short.len());
    eprintln!("tmpfs differs: {short:?}");
}
