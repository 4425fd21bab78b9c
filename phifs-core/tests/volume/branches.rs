//! Branches: lines of changes of their own over one store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use phifs_core::disk::{CrashDisk, Disk, FileName, MemDisk};
use phifs_core::id::AuthorId;
use phifs_core::meta::TableId;
use phifs_core::namespace::Table;
use phifs_core::volume::local::{BranchError, LocalVolume, Problem, SnapshotError};
use phifs_core::volume::{Ino, OpenHow, RenameMode, Volume, VolumeError};

use crate::harness::{CALLER, NODE, READ, TestEnv, WRITE, open, settle};

type Tree = BTreeMap<Vec<u8>, Vec<u8>>;

fn new_volume() -> (MemDisk, Arc<TestEnv>, LocalVolume) {
    let disk = MemDisk::new();
    let env = TestEnv::new(1);
    let volume = reopen(&disk, &env);
    (disk, env, volume)
}

fn reopen(disk: &MemDisk, env: &Arc<TestEnv>) -> LocalVolume {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    open(&disk, env).unwrap()
}

/// Of any length; no two of them share a glyph.
fn bytes(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

fn try_write(volume: &LocalVolume, name: &[u8], bytes: &[u8]) -> Result<(), VolumeError> {
    let (attr, opened) = match volume.lookup(&CALLER, Ino::ROOT, name) {
        Ok(attr) => (attr, volume.open(&CALLER, attr.ino, &OpenHow { truncate: true, ..WRITE })?),
        Err(VolumeError::NotFound) => volume.create(&CALLER, Ino::ROOT, name, &NODE, &WRITE)?,
        Err(error) => return Err(error),
    };
    volume.write(&CALLER, attr.ino, opened.handle, 0, bytes, false)?;
    volume.fsync(attr.ino, Some(opened.handle), false)?;
    volume.release(attr.ino, opened.handle);
    Ok(())
}

fn write(volume: &LocalVolume, name: &[u8], bytes: &[u8]) {
    try_write(volume, name, bytes).unwrap();
}

fn read(volume: &LocalVolume, name: &[u8]) -> Option<Vec<u8>> {
    let attr = volume.lookup(&CALLER, Ino::ROOT, name).ok()?;
    let opened = volume.open(&CALLER, attr.ino, &READ).unwrap();
    let bytes = volume.read(attr.ino, opened.handle, 0, 1 << 24).unwrap();
    volume.release(attr.ino, opened.handle);
    Some(bytes)
}

fn tree(volume: &LocalVolume) -> Tree {
    let mut names = Vec::new();
    let each = &mut |entry: &phifs_core::volume::Entry| {
        names.push(entry.name.to_vec());
        true
    };
    volume.readdir(Ino::ROOT, 0, each).unwrap();
    names.retain(|name| name != b"." && name != b"..");
    names.into_iter().map(|name| (name.clone(), read(volume, &name).unwrap())).collect()
}

fn branch(volume: &LocalVolume, snapshot: &str, name: &str) -> Arc<LocalVolume> {
    volume.clone_snapshot(snapshot, name).unwrap();
    volume.open_branch(name, &|_| {}).unwrap()
}

#[test]
fn what_is_done_on_one_side_does_not_show_on_the_other() {
    let (_, _, volume) = new_volume();
    for seed in 0..4 {
        write(&volume, &[b'a' + seed], &bytes(seed, 100_000));
    }
    volume.create_snapshot("base", vec![], false).unwrap();
    let side = branch(&volume, "base", "side");
    write(&side, b"a", &bytes(10, 300_000));
    write(&volume, b"b", &bytes(11, 5000));
    volume.unlink(Ino::ROOT, b"c").unwrap();
    side.rename(Ino::ROOT, b"d", Ino::ROOT, b"e", RenameMode::Replace).unwrap();
    settle(&volume);
    settle(&side);
    assert_eq!(read(&volume, b"a"), Some(bytes(0, 100_000)));
    assert_eq!(read(&side, b"a"), Some(bytes(10, 300_000)));
    assert_eq!(read(&volume, b"b"), Some(bytes(11, 5000)));
    assert_eq!(read(&side, b"b"), Some(bytes(1, 100_000)));
    assert_eq!((read(&volume, b"c"), read(&side, b"c")), (None, Some(bytes(2, 100_000))));
    assert_eq!((read(&side, b"d"), read(&side, b"e")), (None, Some(bytes(3, 100_000))));
    assert_eq!((read(&volume, b"d"), read(&volume, b"e")), (Some(bytes(3, 100_000)), None));
}

#[test]
fn nothing_that_any_line_or_snapshot_needs_is_collected() {
    let (disk, env, volume) = new_volume();
    let common: Tree = (0..3).map(|seed| (vec![b'a' + seed], bytes(seed, 200_000))).collect();
    common.iter().for_each(|(name, bytes)| write(&volume, name, bytes));
    volume.create_snapshot("base", vec![], false).unwrap();
    let side = branch(&volume, "base", "side");
    let closed = branch(&volume, "base", "closed");
    let crashed = branch(&volume, "base", "crashed");
    volume.clone_snapshot("base", "untouched").unwrap();
    write(&closed, b"a", &bytes(20, 100_000));
    settle(&closed);
    drop(closed);
    volume.close_branch("closed").unwrap();
    write(&crashed, b"b", &bytes(21, 100_000));
    write(&side, b"c", &bytes(22, 100_000));
    settle(&side);
    volume.snapshot_branch("side", "of side", vec![]).unwrap();
    side.unlink(Ino::ROOT, b"c").unwrap();
    for name in common.keys() {
        volume.unlink(Ino::ROOT, name).unwrap();
    }
    volume.delete_snapshots(&["base".into()]).unwrap();
    settle(&volume);
    let with = |name: &[u8], bytes: Option<Vec<u8>>| {
        let mut tree = common.clone();
        tree.remove(name);
        tree.extend(bytes.map(|bytes| (name.to_vec(), bytes)));
        tree
    };
    let expected = BTreeMap::from([
        ("closed", with(b"a", Some(bytes(20, 100_000)))),
        ("crashed", with(b"b", Some(bytes(21, 100_000)))),
        ("of side again", with(b"c", Some(bytes(22, 100_000)))),
        ("side", with(b"c", None)),
        ("untouched", common.clone()),
    ]);
    volume.collect(1.0, &|_| {}).unwrap();
    assert_eq!(tree(&side), expected["side"]);
    assert_eq!(tree(&crashed), expected["crashed"]);
    volume.fsync(Ino::ROOT, None, false).unwrap();
    side.fsync(Ino::ROOT, None, false).unwrap();
    drop((side, crashed, volume));

    for _ in 0..2 {
        let volume = reopen(&disk, &env);
        volume.collect(1.0, &|_| {}).unwrap();
        if volume.find_branch("of side again").is_err() {
            volume.clone_snapshot("of side", "of side again").unwrap();
        }
        assert_eq!(tree(&volume), Tree::new());
        for (name, expected) in &expected {
            let side = volume.open_branch(name, &|_| {}).unwrap();
            assert_eq!(tree(&side), *expected, "{name}");
            drop(side);
            volume.close_branch(name).unwrap();
        }
        assert_eq!(volume.fsck(false, &|_| {}).unwrap().problems, []);
        volume.shut_down().unwrap();
    }
}

#[test]
fn what_only_a_deleted_branch_held_is_freed() {
    let (_, _, volume) = new_volume();
    volume.create_snapshot("base", vec![], false).unwrap();
    volume.collect(1.0, &|_| {}).unwrap();
    let data_bytes = || volume.status().data_stored_bytes;
    let before = data_bytes();
    let side = branch(&volume, "base", "side");
    write(&side, b"long", &bytes(1, 1 << 20));
    settle(&side);
    assert!(matches!(volume.delete_branch("side"), Err(BranchError::InUse(_))));
    drop(side);
    volume.close_branch("side").unwrap();
    volume.collect(1.0, &|_| {}).unwrap();
    assert!(data_bytes() > before + (1 << 20));
    volume.delete_branch("side").unwrap();
    volume.collect(1.0, &|_| {}).unwrap();
    assert_eq!(data_bytes(), before);
}

#[test]
fn files_that_a_branch_knows_are_not_forgotten_before_it_is() {
    let (_, _, volume) = new_volume();
    write(&volume, b"known", b"to both");
    settle(&volume);
    volume.create_snapshot("base", vec![], false).unwrap();
    let side = branch(&volume, "base", "side");
    volume.delete_snapshots(&["base".into()]).unwrap();
    write(&side, b"own", b"of the branch");
    settle(&side);
    for (line, inodes) in [(&volume, 2), (&*side, 3)] {
        line.unlink(Ino::ROOT, b"known").unwrap();
        settle(line);
        assert_eq!(line.status().inodes, inodes, "a grave");
    }
    side.unlink(Ino::ROOT, b"own").unwrap();
    settle(&side);
    volume.collect(1.0, &|_| {}).unwrap();
    assert_eq!((volume.status().inodes, side.status().inodes), (2, 2));
    drop(side);
    volume.close_branch("side").unwrap();
    // What a snapshot of it knows goes with that, though the branch is closed.
    let data_bytes = || volume.status().data_stored_bytes;
    let before = data_bytes();
    let side = volume.open_branch("side", &|_| {}).unwrap();
    write(&side, b"long", &bytes(1, 1 << 20));
    settle(&side);
    volume.snapshot_branch("side", "with it", vec![]).unwrap();
    side.unlink(Ino::ROOT, b"long").unwrap();
    settle(&side);
    drop(side);
    volume.close_branch("side").unwrap();
    volume.collect(1.0, &|_| {}).unwrap();
    assert!(data_bytes() > before + (1 << 20));
    volume.delete_snapshots(&["with it".into()]).unwrap();
    volume.collect(1.0, &|_| {}).unwrap();
    assert_eq!(data_bytes(), before);
    volume.delete_branch("side").unwrap();
    volume.collect(1.0, &|_| {}).unwrap();
    assert_eq!(volume.status().inodes, 1);
}

#[test]
fn what_is_deleted_while_a_snapshot_is_taken_is_not_forgotten() {
    let (_, _, volume) = new_volume();
    volume.create_snapshot("base", vec![], false).unwrap();
    let side = branch(&volume, "base", "side");
    for line in [&volume, &*side] {
        let files: Vec<Vec<u8>> = (0..3000).map(|file| format!("file {file}").into_bytes()).collect();
        for name in &files {
            line.make(&CALLER, Ino::ROOT, name, &NODE).unwrap();
        }
        let name = if std::ptr::eq(line, &volume) { "of main" } else { "of side" };
        let snapshot = std::thread::scope(|scope| {
            let taking = scope.spawn(|| match name {
                "of main" => volume.create_snapshot(name, vec![], false).unwrap(),
                _ => volume.snapshot_branch("side", name, vec![]).unwrap(),
            });
            for name in &files {
                line.unlink(Ino::ROOT, name).unwrap();
            }
            taking.join().unwrap()
        });
        settle(line);
        let taken = snapshot.cut.roots.get(TableId(Table::Inodes as u8)).rows;
        assert!(line.status().inodes >= taken, "{} are left of {taken} that {name} knows", line.status().inodes);
    }
}

#[test]
fn snapshots_of_a_branch_follow_its_own_line() {
    let (disk, env, volume) = new_volume();
    volume.create_snapshot("base", vec![], false).unwrap();
    let side = branch(&volume, "base", "side");
    volume.create_snapshot("later", vec![], false).unwrap();
    write(&side, b"a", &bytes(1, 10_000));
    settle(&side);
    volume.snapshot_branch("side", "first", vec!["x".into()]).unwrap();
    drop(side);
    // The branch is not open, and whoever seals it starts anew.
    volume.close_branch("side").unwrap();
    volume.snapshot_branch("side", "second", vec![]).unwrap();
    volume.shut_down().unwrap();
    let volume = reopen(&disk, &env);
    volume.seal_snapshots().unwrap();
    let record = |name: &str| {
        let (_, snapshot) = volume.find_snapshot(name).unwrap();
        let id = snapshot.id.expect("it is sealed");
        (id, volume.sealed_record(id).unwrap().unwrap().record)
    };
    assert_eq!(record("base").1.parents, []);
    assert_eq!(record("later").1.parents, [record("base").0]);
    assert_eq!(record("first").1.parents, [record("base").0]);
    assert_eq!(record("second").1.parents, [record("first").0]);
    assert_eq!(record("first").1.kappa.files, 1);
    assert!(matches!(
        volume.snapshot_branch("side", "first", vec![]),
        Err(BranchError::Snapshot(SnapshotError::Exists(_)))
    ));
}

#[test]
fn snapshots_can_be_browsed_and_settings_hold_in_a_branch() {
    let (_, _, volume) = new_volume();
    write(&volume, b"old", b"of both");
    settle(&volume);
    volume.create_snapshot("base", vec![], false).unwrap();
    let side = branch(&volume, "base", "side");
    volume.change_setting("versions.keep", Some("3")).unwrap();
    assert_eq!(side.settings().versions_keep, 3);
    write(&volume, b"new", b"of the volume alone");
    settle(&volume);
    volume.create_snapshot("later", vec![], false).unwrap();
    let look = |name: &[u8], file: &[u8]| {
        let phi = side.lookup(&CALLER, Ino::ROOT, b".phi")?;
        let snapshots = side.lookup(&CALLER, phi.ino, b"snapshots")?;
        let snapshot = side.lookup(&CALLER, snapshots.ino, name)?;
        let file = side.lookup(&CALLER, snapshot.ino, file)?;
        let opened = side.open(&CALLER, file.ino, &READ)?;
        let bytes = side.read(file.ino, opened.handle, 0, 100)?;
        side.release(file.ino, opened.handle);
        Ok::<_, VolumeError>(bytes)
    };
    assert_eq!(look(b"base", b"old").unwrap(), b"of both");
    assert_eq!(look(b"later", b"new").unwrap(), b"of the volume alone");
    let phi = side.lookup(&CALLER, Ino::ROOT, b".phi").unwrap();
    let snapshots = side.lookup(&CALLER, phi.ino, b"snapshots").unwrap();
    let entered = side.lookup(&CALLER, snapshots.ino, b"later").unwrap();
    volume.delete_snapshots(&["later".into()]).unwrap();
    assert!(matches!(look(b"later", b"new"), Err(VolumeError::NotFound)));
    let inside = side.lookup(&CALLER, entered.ino, b"new");
    assert!(matches!(inside, Err(VolumeError::NotFound | VolumeError::Stale)), "{inside:?}");
}

#[test]
fn names_of_branches_are_checked_and_each_is_opened_once() {
    let (_, _, volume) = new_volume();
    volume.create_snapshot("base", vec![], false).unwrap();
    for name in ["", "a/b", "a\nb", ".hidden", &"x".repeat(201)] {
        assert!(matches!(volume.clone_snapshot("base", name), Err(BranchError::BadName(..))), "{name:?}");
    }
    let missing = volume.clone_snapshot("nothing", "side");
    assert!(matches!(missing, Err(BranchError::Snapshot(SnapshotError::NotFound(_)))));
    let _side = branch(&volume, "base", "side");
    assert!(matches!(volume.clone_snapshot("base", "side"), Err(BranchError::Exists(_))));
    assert!(matches!(volume.open_branch("side", &|_| {}), Err(BranchError::InUse(_))));
    assert!(matches!(volume.open_branch("other", &|_| {}), Err(BranchError::NotFound(_))));
    assert!(matches!(volume.delete_branch("other"), Err(BranchError::NotFound(_))));
}

#[test]
fn no_two_lines_make_operations_as_the_same_author() {
    let (disk, env, mut volume) = new_volume();
    let mut authors = BTreeSet::new();
    let mut dots: BTreeMap<AuthorId, &str> = BTreeMap::new();
    volume.create_snapshot("base", vec![], false).unwrap();
    for name in ["one", "two"] {
        volume.clone_snapshot("base", name).unwrap();
    }
    for round in 0..4 {
        let clean = round % 2 == 0;
        let mut lines = Vec::new();
        for name in ["one", "two"] {
            lines.push((name, volume.open_branch(name, &|_| {}).unwrap()));
        }
        let of_now: BTreeSet<String> =
            lines.iter().map(|(_, line)| line.status().author).chain([volume.status().author]).collect();
        assert_eq!(of_now.len(), 3, "round {round}");
        authors.extend(of_now);
        for (name, line) in &lines {
            write(line, format!("{round}").as_bytes(), name.as_bytes());
            settle(line);
            line.tick().unwrap();
            for op in line.recent_ops(100).unwrap() {
                assert_eq!(*dots.entry(op.dot.author).or_insert(name), *name, "round {round}");
            }
        }
        drop(lines);
        if clean {
            volume.close_branch("one").unwrap();
            volume.close_branch("two").unwrap();
            volume.shut_down().unwrap();
        }
        drop(volume);
        volume = reopen(&disk, &env);
    }
    // Three to begin with, and three more after each of the two unclean stops but the last.
    assert_eq!(authors.len(), 6);
}

#[test]
fn making_a_branch_costs_the_same_however_large_the_volume_is() {
    let changed = |files: u32| {
        let (disk, _, volume) = new_volume();
        for file in 0..files {
            volume.make(&CALLER, Ino::ROOT, format!("file {file}").as_bytes(), &NODE).unwrap();
        }
        volume.create_snapshot("base", vec![], false).unwrap();
        let before = disk.snapshot();
        volume.clone_snapshot("base", "side").unwrap();
        let after = disk.snapshot();
        let mut changed = 0;
        for name in after.list().unwrap() {
            let new = after.bytes_of(name).unwrap();
            let old = before.bytes_of(name).unwrap_or_default();
            let same = new.iter().zip(old.iter().chain(std::iter::repeat(&0))).filter(|(new, old)| new == old).count();
            changed += new.len() - same;
        }
        let packs =
            |disk: &MemDisk| disk.list().unwrap().iter().filter(|name| matches!(name, FileName::Pack(_))).count();
        assert_eq!(packs(&before), packs(&after));
        changed
    };
    let (small, large) = (changed(10), changed(10_000));
    assert!(large < 4096 && large < small + 512, "{small} bytes with 10 files, {large} with 10,000");
}

#[test]
fn damage_in_a_branch_is_told_with_its_name() {
    let (disk, env, volume) = new_volume();
    write(&volume, b"whole", &bytes(1, 30_000));
    settle(&volume);
    volume.create_snapshot("base", vec![], false).unwrap();
    let side = branch(&volume, "base", "side");
    write(&side, b"hit", &bytes(2, 30_000));
    settle(&side);
    drop(side);
    volume.close_branch("side").unwrap();
    volume.shut_down().unwrap();
    drop(volume);
    let needle = &bytes(2, 30_000)[1000..1016];
    for name in disk.list().unwrap().into_iter().filter(|name| matches!(name, FileName::Pack(_))) {
        let stored = disk.bytes_of(name).unwrap();
        if let Some(at) = stored.windows(needle.len()).position(|window| window == needle) {
            disk.flip(name, at as u64, 1).unwrap();
        }
    }
    let volume = reopen(&disk, &env);
    for report in [volume.scrub(&|_| {}).unwrap(), volume.fsck(false, &|_| {}).unwrap()] {
        let [Problem::Bytes(lost)] = &report.problems[..] else { panic!("{:?}", report.problems) };
        assert_eq!(lost.path, b"branch side:/hit");
    }
    disk.truncate(FileName::Branch(1, phifs_core::disk::BranchFile::Superblock), 10).unwrap();
    let report = volume.fsck(false, &|_| {}).unwrap();
    assert!(matches!(&report.problems[..], [Problem::Branch { name, .. }] if name == "side"), "{:?}", report.problems);
    let refused = volume.collect(1.0, &|_| {}).unwrap_err();
    assert!(matches!(&refused, VolumeError::Branch { name, .. } if name == "side"), "{refused}");
    volume.delete_branch("side").unwrap();
    volume.collect(1.0, &|_| {}).unwrap();
    assert_eq!(volume.fsck(false, &|_| {}).unwrap().problems, []);
}

/// All that can be seen: each line of changes, and each snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
struct World {
    main: Tree,
    branches: BTreeMap<String, Tree>,
    snapshots: BTreeMap<String, Tree>,
}

/// What happens to a world, one durable change at a time.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write(Line, u8, u8, usize),
    Remove(Line, u8),
    Rename(Line, u8, u8),
    Snapshot(Line, &'static str),
    Forget(&'static str),
    Clone(&'static str, &'static str),
    Delete(&'static str),
    Close(&'static str),
    Settle(Line),
    Checkpoint(Line),
    Collect,
}

/// A branch, or the main line.
type Line = Option<&'static str>;

const STORY: &[Step] = &[
    Step::Write(None, b'a', 1, 100),
    Step::Write(None, b'b', 2, 70_000),
    Step::Write(None, b'c', 3, 10_000),
    Step::Settle(None),
    Step::Snapshot(None, "base"),
    Step::Clone("base", "side"),
    Step::Write(Some("side"), b'a', 4, 50_000),
    Step::Write(None, b'a', 5, 50),
    Step::Remove(Some("side"), b'b'),
    Step::Settle(Some("side")),
    Step::Clone("base", "other"),
    Step::Rename(Some("other"), b'c', b'd'),
    Step::Forget("base"),
    Step::Remove(None, b'b'),
    Step::Settle(None),
    Step::Collect,
    Step::Checkpoint(Some("side")),
    Step::Snapshot(Some("side"), "of side"),
    Step::Write(Some("side"), b'c', 6, 20_000),
    Step::Close("other"),
    Step::Collect,
    Step::Clone("of side", "grandchild"),
    Step::Write(Some("grandchild"), b'e', 7, 5000),
    Step::Settle(Some("side")),
    Step::Close("side"),
    Step::Delete("side"),
    Step::Collect,
    Step::Remove(Some("other"), b'a'),
    Step::Close("grandchild"),
    Step::Collect,
];

struct Teller {
    volume: LocalVolume,
    open: BTreeMap<String, Arc<LocalVolume>>,
}

impl Teller {
    fn line(&mut self, line: Line) -> Result<&LocalVolume, VolumeError> {
        let Some(name) = line else { return Ok(&self.volume) };
        if !self.open.contains_key(name) {
            let opened = self.volume.open_branch(name, &|_| {})?;
            self.open.insert(name.into(), opened);
        }
        Ok(&self.open[name])
    }

    fn tell(&mut self, step: Step) -> Result<(), VolumeError> {
        match step {
            Step::Write(line, name, seed, len) => try_write(self.line(line)?, &[name], &bytes(seed, len)),
            Step::Remove(line, name) => {
                let line = self.line(line)?;
                line.unlink(Ino::ROOT, &[name])?;
                line.fsync(Ino::ROOT, None, false)
            }
            Step::Rename(line, from, to) => {
                let line = self.line(line)?;
                line.rename(Ino::ROOT, &[from], Ino::ROOT, &[to], RenameMode::Replace)?;
                line.fsync(Ino::ROOT, None, false)
            }
            Step::Snapshot(None, name) => {
                self.volume.create_snapshot(name, vec![], false).map(drop).map_err(|e| BranchError::from(e).into())
            }
            Step::Snapshot(Some(line), name) => Ok(self.volume.snapshot_branch(line, name, vec![]).map(drop)?),
            Step::Forget(name) => self.volume.delete_snapshots(&[name.into()]).map_err(|e| BranchError::from(e).into()),
            Step::Clone(from, name) => Ok(self.volume.clone_snapshot(from, name).map(drop)?),
            Step::Delete(name) => Ok(self.volume.delete_branch(name)?),
            Step::Close(name) => {
                self.open.remove(name);
                Ok(self.volume.close_branch(name)?)
            }
            Step::Settle(line) => {
                let line = self.line(line)?;
                settle(line);
                line.tick()
            }
            Step::Checkpoint(line) => self.line(line)?.make_checkpoint(false),
            Step::Collect => self.volume.collect(1.0, &|_| {}).map(drop),
        }
    }
}

impl World {
    fn line(&mut self, line: Line) -> &mut Tree {
        line.map_or(&mut self.main, |name| self.branches.get_mut(name).unwrap())
    }

    fn after(&self, step: Step) -> Self {
        let mut after = self.clone();
        match step {
            Step::Write(line, name, seed, len) => drop(after.line(line).insert(vec![name], bytes(seed, len))),
            Step::Remove(line, name) => drop(after.line(line).remove(&[name][..])),
            Step::Rename(line, from, to) => {
                let moved = after.line(line).remove(&[from][..]).unwrap();
                after.line(line).insert(vec![to], moved);
            }
            Step::Snapshot(line, name) => {
                let tree = after.line(line).clone();
                after.snapshots.insert(name.into(), tree);
            }
            Step::Forget(name) => drop(after.snapshots.remove(name)),
            Step::Clone(from, name) => {
                let tree = after.snapshots[from].clone();
                after.branches.insert(name.into(), tree);
            }
            Step::Delete(name) => drop(after.branches.remove(name)),
            Step::Close(_) | Step::Settle(_) | Step::Checkpoint(_) | Step::Collect => {}
        }
        after
    }

    fn found(volume: &LocalVolume) -> Self {
        let mut found = Self { main: tree(volume), ..Self::default() };
        for (name, _) in volume.branches().unwrap() {
            let line = volume.open_branch(&name, &|_| {}).unwrap();
            found.branches.insert(name.clone(), tree(&line));
            drop(line);
            volume.close_branch(&name).unwrap();
        }
        for (name, _) in volume.snapshots().unwrap() {
            let line = branch(volume, &name, "to look at it");
            found.snapshots.insert(name, tree(&line));
            drop(line);
            volume.close_branch("to look at it").unwrap();
            volume.delete_branch("to look at it").unwrap();
        }
        found
    }
}

/// Tells the story until the power goes, and says what the world may look like then.
fn live(disk: &CrashDisk) -> (World, World) {
    let mut world = World::default();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let volume = match open(&shared, &TestEnv::new(1)) {
        Ok(volume) => volume,
        Err(error) => {
            assert!(disk.is_dead(), "{error}");
            return (world.clone(), world);
        }
    };
    let mut teller = Teller { volume, open: BTreeMap::new() };
    for step in STORY {
        let after = world.after(*step);
        if let Err(error) = teller.tell(*step) {
            assert!(disk.is_dead(), "{step:?}: {error}");
            return (world, after);
        }
        world = after;
    }
    (world.clone(), world)
}

fn check_after_power_loss(disk: &CrashDisk, seed: u64, what: &str) {
    let (before, after) = live(disk);
    let image = disk.after_power_loss(seed);
    let env = TestEnv::new(2);
    let mut volume = reopen(&image, &env);
    let numbers = |disk: &MemDisk| {
        let number = |name| if let FileName::Branch(number, _) = name { Some(number) } else { None };
        disk.list().unwrap().into_iter().filter_map(number).collect::<BTreeSet<u32>>()
    };
    if seed % 2 == 1 {
        // Branches that were open are recovered by this.
        volume.collect(1.0, &|_| {}).unwrap();
    }
    let registered = volume.branches().unwrap().into_iter().map(|(_, branch)| branch.number).collect();
    assert_eq!(numbers(&image), registered, "{what}: files of branches");
    let found = World::found(&volume);
    assert!(found == before || found == after, "{what}");
    for round in 0..2 {
        volume.collect(1.0, &|_| {}).unwrap();
        assert!(World::found(&volume) == found, "{what}: after collection {round}");
        assert_eq!(volume.fsck(false, &|_| {}).unwrap().problems, [], "{what}");
        volume.shut_down().unwrap();
        drop(volume);
        volume = reopen(&image, &env);
    }
}

#[test]
fn power_loss_at_any_sync_leaves_each_line_as_it_was_before_or_after_the_step() {
    let probe = CrashDisk::healthy();
    live(&probe);
    let step = if std::env::var_os("PHIFS_LONG").is_some() { 1 } else { 61 };
    assert!(probe.syncs() > 100);
    for sync in 0..probe.syncs() {
        check_after_power_loss(&CrashDisk::dies_at_sync(sync), sync, &format!("sync {sync}"));
    }
    for op in (0..probe.ops()).step_by(step) {
        check_after_power_loss(&CrashDisk::dies_at_op(op), op, &format!("operation {op}"));
    }
}
