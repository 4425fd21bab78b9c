//! Conformance through a real mount: pjdfstest and fsx, side by side with ext4 on the same machine in the same run,
//! and the few promises of POSIX that neither of them reaches.

mod single;

use phifs_tests::checks::{Verdict, fsx, installed, pjdfstest};
use phifs_tests::differences::{Differences, errno_named, probe};
use phifs_tests::{DataMode, Ext4Loop, Place, both_modes, is_root, long, seed_or, skip};

/// Every case that ext4 passes here and now must pass, except those that are listed, and those must fail.
fn conforms(mode: DataMode) {
    if !is_root() {
        skip!("pjdfstest needs root");
    }
    let Some(program) = installed("pjdfstest") else { skip!("pjdfstest is not installed: run tools/test") };
    let ext4 = Ext4Loop::new(512 << 20);
    let mut place = Place::new(mode);
    let other = tempfile::tempdir().expect("a temporary directory");
    let reference = pjdfstest(&program, ext4.dir(), other.path());
    let results = pjdfstest(&program, place.dir(), other.path());
    let list = Differences::load();
    let allowed = if phifs_tests::on_ext4() { Vec::new() } else { list.cases(mode) };

    let passed = |case: &str| results.get(case) == Some(&Verdict::Passed);
    let wanted: Vec<&String> = reference.iter().filter(|(_, v)| **v == Verdict::Passed).map(|(case, _)| case).collect();
    let mut failures = Vec::new();
    for case in &wanted {
        match results.get(*case) {
            Some(Verdict::Passed) => {}
            _ if allowed.contains(&case.as_str()) => {}
            other => failures.push(format!("{case}: {other:?}")),
        }
    }
    eprintln!(
        "pjdfstest: ext4 passes {} of {}, this place passes {} of those",
        wanted.len(),
        reference.len(),
        wanted.iter().filter(|case| passed(case)).count()
    );
    assert!(failures.is_empty(), "{} cases pass on ext4 only:\n{}", failures.len(), failures.join("\n"));
    let stale: Vec<_> = allowed.iter().filter(|case| passed(case) || !results.contains_key(**case)).collect();
    assert!(stale.is_empty(), "listed as different but not so: {stale:?}");
    place.assert_healthy();
}

#[test]
fn pjdfstest_passes_where_ext4_does_in_passthrough() {
    conforms(DataMode::Passthrough);
}

#[test]
fn pjdfstest_passes_where_ext4_does_in_writeback() {
    conforms(DataMode::Writeback);
}

both_modes!(fsx_finds_nothing_with_three_seeds, |place| {
    let Some(program) = installed("fsx") else { skip!("fsx is not installed: run tools/test") };
    let operations = if long() { 100_000 } else { 20_000 };
    let first = seed_or(1);
    for seed in first..first + 3 {
        let ran = fsx(&program, place.dir(), seed, operations);
        assert!(ran.success(), "fsx finds a difference with seed {seed}: {ran}");
    }
    place.assert_healthy();
});

both_modes!(listed_differences_are_as_listed, |place| {
    if phifs_tests::on_ext4() {
        skip!("the list is about phifs");
    }
    let ext4 = Ext4Loop::new(64 << 20);
    for difference in Differences::load().syscall {
        let (name, errno) = (difference.probe.as_str(), errno_named(&difference.errno));
        let make = |root: &std::path::Path| {
            let dir = root.join(name);
            std::fs::create_dir(&dir).expect("a directory to probe in");
            dir
        };
        assert_eq!(probe(name, &make(ext4.dir())), Ok(()), "{name} on ext4");
        assert_eq!(probe(name, &make(place.dir())), Err(errno), "{name} on phifs");
    }
});
