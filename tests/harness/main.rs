//! Tests of the harness itself, on ext4 alone: the checkers accept a good filesystem, and each of them notices when
//! something is wrong. A checker that cannot fail proves nothing.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use phifs_tests::load::{Load, Syncing, Tail};
use phifs_tests::ops::{compare, generate, shorten};
use phifs_tests::{Ext4Loop, is_root, run, skip};

const BYTES: u64 = 1 << 30;

/// Cuts the power of an ext4 under load a few times; all that the checker had to say.
fn power_cuts(syncing: Syncing, rounds: u32) -> Vec<String> {
    let mut ext4 = Ext4Loop::new(BYTES);
    let mut load = Load::prepare(ext4.dir(), 5, syncing, Tail::MayBeZero);
    let mut problems = Vec::new();
    for _ in 0..rounds {
        let report = load.run_until_crash(Duration::from_millis(700), || {
            ext4.cut_power();
            std::thread::sleep(Duration::from_millis(50));
        });
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
    // An ext4 that is shut down while it answers an fsync can acknowledge it and lose it; that is rare, and the next
    // run is free of it. A checker that is wrong would be wrong each time.
    let mut runs = (0..3).map(|_| power_cuts(Syncing::Real, 3));
    let last = runs.find(|problems| problems.is_empty());
    assert!(last.is_some(), "three runs in a row lose what ext4 acknowledged");
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
