//! Concurrent versions that a driver merges: what readers see, and what a write makes of it.

use std::sync::Arc;

use phifs_core::disk::{Disk, MemDisk};
use phifs_core::volume::local::{LocalVolume, MergeOptions, Side};
use phifs_core::volume::{Ino, OpenHow, Volume, XattrMode};

use crate::harness::{CALLER, NODE, READ, TestEnv, WRITE, open, settle};

struct Fixture {
    disk: MemDisk,
    env: Arc<TestEnv>,
    volume: LocalVolume,
}

fn save(env: &TestEnv, volume: &LocalVolume, name: &[u8], bytes: &[u8]) {
    env.advance();
    let (ino, handle) = match volume.lookup(&CALLER, Ino::ROOT, name) {
        Ok(attr) => (attr.ino, volume.open(&CALLER, attr.ino, &OpenHow { truncate: true, ..WRITE }).unwrap().handle),
        Err(_) => {
            let (attr, opened) = volume.create(&CALLER, Ino::ROOT, name, &NODE, &WRITE).unwrap();
            (attr.ino, opened.handle)
        }
    };
    volume.write(&CALLER, ino, handle, 0, bytes, false).unwrap();
    volume.release(ino, handle);
    settle(volume);
}

fn read(volume: &LocalVolume, name: &[u8]) -> Vec<u8> {
    let attr = volume.lookup(&CALLER, Ino::ROOT, name).unwrap();
    let opened = volume.open(&CALLER, attr.ino, &READ).unwrap();
    let bytes = volume.read(attr.ino, opened.handle, 0, 1 << 24).unwrap();
    volume.release(attr.ino, opened.handle);
    assert_eq!(attr.size_bytes, bytes.len() as u64, "stat(2) is of the same bytes");
    bytes
}

/// A file that began as `base` and was saved as all of these, one after the other, on either side; merged.
fn meet(name: &[u8], base: &[u8], live: &[&[u8]], branch: &[&[u8]]) -> Fixture {
    let disk = MemDisk::new();
    let env = TestEnv::new(1);
    let volume = open(&(Arc::new(disk.clone()) as Arc<dyn Disk>), &env).unwrap();
    volume.setxattr(&CALLER, Ino::ROOT, b"user.phi.merge", b"text", XattrMode::Set).unwrap();
    save(&env, &volume, name, base);
    volume.create_snapshot("base", vec![], false).unwrap();
    volume.clone_snapshot("base", "other").unwrap();
    let other = volume.open_branch("other", &|_| {}).unwrap();
    live.iter().for_each(|bytes| save(&env, &volume, name, bytes));
    branch.iter().for_each(|bytes| save(&env, &other, name, bytes));
    volume.merge(&Side::Branch("other".into()), &Side::Live, &MergeOptions::default()).unwrap();
    Fixture { disk, env, volume }
}

#[test]
fn lines_that_both_sides_appended_are_all_there() {
    let Fixture { volume, .. } = meet(b"a.log", b"1\n", &[b"1\n2\n", b"1\n2\n3\n"], &[b"1\nx\n", b"1\nx\ny\n"]);
    assert_eq!(read(&volume, b"a.log"), b"1\n2\n3\nx\ny\n");
    assert_eq!(read(&volume, b"a.log"), b"1\n2\n3\nx\ny\n", "and so the next time");
}

#[test]
fn a_file_that_nobody_had_written_before_began_with_nothing() {
    let Fixture { volume, .. } = meet(b"a.log", b"", &[b"1\n", b"1\n2\n"], &[b"x\n"]);
    assert_eq!(read(&volume, b"a.log"), b"1\n2\nx\n");
}

#[test]
fn texts_below_a_directory_that_asks_for_it_are_merged_by_lines() {
    let Fixture { volume, .. } = meet(b"a.txt", b"1\n2\n3\n", &[b"one\n2\n3\n"], &[b"1\n2\nthree\n"]);
    assert_eq!(read(&volume, b"a.txt"), b"one\n2\nthree\n");
}

#[test]
fn contradictions_show_the_best_version() {
    let Fixture { volume, .. } = meet(b"a.txt", b"1\n2\n", &[b"one\n2\n"], &[b"uno\n2\n"]);
    assert_eq!(read(&volume, b"a.txt"), b"uno\n2\n");
}

#[test]
fn a_driver_that_the_volume_does_not_pin_is_not_run() {
    let Fixture { volume, .. } = meet(b"a.log", b"1\n", &[b"1\n2\n"], &[b"1\nx\n"]);
    volume.change_setting("merge.drivers", Some("append/2")).unwrap();
    assert_eq!(read(&volume, b"a.log"), b"1\nx\n");
    volume.change_setting("merge.drivers", None).unwrap();
    assert_eq!(read(&volume, b"a.log"), b"1\n2\nx\n");
}

/// Long enough not to lie beside a version's record, and longer than one glyph.
fn lines(len: usize) -> Vec<u8> {
    b"a line of some length\n".repeat(len / 22)
}

#[test]
fn a_write_to_merged_bytes_replaces_all_versions() {
    for len in [100, 10_000, 200_000, 3_000_000] {
        let base = lines(len);
        let with = |added: &[u8]| [&base, added].concat();
        let Fixture { disk, env, volume } = meet(b"a.log", &base, &[&with(b"2\n")], &[&with(b"x\n")]);
        let merged = with(b"2\nx\n");
        assert_eq!(read(&volume, b"a.log"), merged, "{len}");
        assert!(volume.conflicts(b"/").unwrap().is_empty(), "nobody has to decide");
        assert_eq!(volume.explain(b"/a.log").unwrap().merge, Some(Ok(())));
        let ino = volume.lookup(&CALLER, Ino::ROOT, b"a.log").unwrap().ino;
        let opened = volume.open(&CALLER, ino, &WRITE).unwrap();
        volume.write(&CALLER, ino, opened.handle, merged.len() as u64, b"more\n", false).unwrap();
        volume.fsync(ino, Some(opened.handle), false).unwrap();
        // What was synced outlives a crash. Which versions it was made of does not, so it is one more candidate.
        let crashed = open(&(Arc::new(disk.snapshot()) as Arc<dyn Disk>), &env).unwrap();
        settle(&crashed);
        let all = [&merged[..], b"more\n"].concat();
        let choices = crashed.explain(b"/a.log").unwrap().choices;
        assert_eq!(choices.len(), 3, "{len}");
        assert!(choices.iter().any(|choice| choice.content().len_bytes() == all.len() as u64), "{len} after a crash");
        assert_eq!(crashed.fsck(false, &|_| {}).unwrap().problems, []);
        volume.release(ino, opened.handle);
        settle(&volume);
        assert!(read(&volume, b"a.log") == all, "{len}");
        assert_eq!(volume.explain(b"/a.log").unwrap().choices.len(), 1, "{len}");
        assert_eq!(volume.fsck(false, &|_| {}).unwrap().problems, []);
    }
}

#[test]
fn who_only_looks_settles_nothing() {
    let Fixture { volume, disk, env } = meet(b"a.log", b"1\n", &[b"1\n2\n"], &[b"1\nx\n"]);
    let ino = volume.lookup(&CALLER, Ino::ROOT, b"a.log").unwrap().ino;
    let opened = volume.open(&CALLER, ino, &WRITE).unwrap();
    volume.release(ino, opened.handle);
    settle(&volume);
    assert_eq!(volume.explain(b"/a.log").unwrap().choices.len(), 2);
    let again = open(&(Arc::new(disk.snapshot()) as Arc<dyn Disk>), &env).unwrap();
    assert_eq!(read(&again, b"a.log"), b"1\n2\nx\n");
}
