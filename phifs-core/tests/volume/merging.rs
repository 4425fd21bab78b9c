//! Merging lines of changes and snapshots.

use std::collections::BTreeMap;
use std::sync::Arc;

use phifs_core::disk::{CrashDisk, Disk, MemDisk};
use phifs_core::namespace::suspect::Suspect;
use phifs_core::snapshot::changes::What;
use phifs_core::volume::local::{
    ImportOptions, LocalVolume, MergeError, MergeOptions, Merged, Options, Side, Sink, SnapshotError,
};
use phifs_core::volume::{FileKind, Ino, Invalidate, NewKind, NewNode, OpenHow, RenameMode, Volume, VolumeError};

use crate::harness::{CALLER, NODE, READ, TestEnv, WRITE, open, open_with, options, settle};

pub type Tree = BTreeMap<Vec<u8>, Vec<u8>>;

pub fn new_volume() -> (MemDisk, Arc<TestEnv>, LocalVolume) {
    let disk = MemDisk::new();
    let env = TestEnv::new(1);
    let volume = reopen(&disk, &env);
    (disk, env, volume)
}

pub fn reopen(disk: &MemDisk, env: &Arc<TestEnv>) -> LocalVolume {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    open(&disk, env).unwrap()
}

fn bytes(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

fn try_write_in(volume: &LocalVolume, dir: Ino, name: &[u8], bytes: &[u8]) -> Result<(), VolumeError> {
    let (attr, opened) = match volume.lookup(&CALLER, dir, name) {
        Ok(attr) => (attr, volume.open(&CALLER, attr.ino, &OpenHow { truncate: true, ..WRITE })?),
        Err(VolumeError::NotFound) => volume.create(&CALLER, dir, name, &NODE, &WRITE)?,
        Err(error) => return Err(error),
    };
    volume.write(&CALLER, attr.ino, opened.handle, 0, bytes, false)?;
    volume.fsync(attr.ino, Some(opened.handle), false)?;
    volume.release(attr.ino, opened.handle);
    Ok(())
}

pub fn write_in(volume: &LocalVolume, dir: Ino, name: &[u8], bytes: &[u8]) {
    try_write_in(volume, dir, name, bytes).unwrap();
}

pub fn write(volume: &LocalVolume, name: &[u8], bytes: &[u8]) {
    write_in(volume, Ino::ROOT, name, bytes);
}

pub fn mkdir(volume: &LocalVolume, dir: Ino, name: &[u8]) -> Ino {
    let node = NewNode { kind: NewKind::Directory, permissions: 0o755, umask: 0 };
    volume.make(&CALLER, dir, name, &node).unwrap().ino
}

pub fn find(volume: &LocalVolume, dir: Ino, name: &[u8]) -> Ino {
    volume.lookup(&CALLER, dir, name).unwrap().ino
}

pub fn read(volume: &LocalVolume, ino: Ino) -> Vec<u8> {
    let opened = volume.open(&CALLER, ino, &READ).unwrap();
    let bytes = volume.read(ino, opened.handle, 0, 1 << 24).unwrap();
    volume.release(ino, opened.handle);
    bytes
}

/// Every path, with the bytes of files.
pub fn tree(volume: &LocalVolume) -> Tree {
    let mut tree = Tree::new();
    let mut dirs = vec![(Ino::ROOT, Vec::new())];
    while let Some((dir, path)) = dirs.pop() {
        let mut found = Vec::new();
        volume
            .readdir(dir, 0, &mut |entry| {
                found.push((entry.name.clone(), entry.attr.ino, entry.attr.kind));
                true
            })
            .unwrap();
        for (name, ino, kind) in found.into_iter().filter(|(name, ..)| name != b"." && name != b"..") {
            let path = [&path[..], b"/", &name].concat();
            if kind == FileKind::Directory {
                tree.insert(path.clone(), b"directory".to_vec());
                dirs.push((ino, path));
            } else {
                tree.insert(path, read(volume, ino));
            }
        }
    }
    tree
}

pub fn paths(volume: &LocalVolume) -> Vec<String> {
    tree(volume).into_keys().map(|path| String::from_utf8(path).unwrap()).collect()
}

pub fn branch(volume: &LocalVolume, snapshot: &str, name: &str) -> Arc<LocalVolume> {
    volume.clone_snapshot(snapshot, name).unwrap();
    volume.open_branch(name, &|_| {}).unwrap()
}

fn side(name: &str) -> Side {
    if name == "live" { Side::Live } else { Side::Branch(name.into()) }
}

fn try_merge(volume: &LocalVolume, source: &str, target: &str) -> Result<Merged, MergeError> {
    volume.merge(&side(source), &side(target), &MergeOptions::default())
}

pub fn merge(volume: &LocalVolume, source: &str, target: &str) -> Merged {
    try_merge(volume, source, target).unwrap()
}

/// Names the state of a line.
pub fn root(volume: &LocalVolume, line: &str) -> [u8; 32] {
    let name = format!("root of {line} {}", volume.snapshots().unwrap().len());
    match line {
        "live" => volume.create_snapshot(&name, vec![], false).unwrap(),
        line => volume.snapshot_branch(line, &name, vec![]).unwrap(),
    };
    record(volume, &name).root()
}

fn record(volume: &LocalVolume, name: &str) -> phifs_core::snapshot::Record {
    volume.seal_snapshots().unwrap();
    let id = volume.find_snapshot(name).unwrap().1.id.unwrap();
    volume.sealed_record(id).unwrap().unwrap().record
}

pub fn check(volume: &LocalVolume) {
    let report = volume.fsck(false, &|_| {}).unwrap();
    assert_eq!(report.problems, []);
}

/// A volume and two branches that have done things to the same files.
fn two_branches(volume: &LocalVolume) -> [Arc<LocalVolume>; 2] {
    let dir = mkdir(volume, Ino::ROOT, b"dir");
    let below = mkdir(volume, dir, b"below");
    for (seed, name) in [b"a", b"b", b"c", b"d"].into_iter().enumerate() {
        write_in(volume, dir, name, &bytes(seed as u8, 9000));
    }
    write_in(volume, below, b"deep", b"deep");
    volume.create_snapshot("base", vec![], false).unwrap();
    let (one, two) = (branch(volume, "base", "one"), branch(volume, "base", "two"));
    let dir = find(&one, Ino::ROOT, b"dir");
    write_in(&one, dir, b"a", &bytes(10, 20_000));
    write_in(&one, dir, b"new in one", b"one");
    one.unlink(dir, b"b").unwrap();
    one.rename(dir, b"below", Ino::ROOT, b"risen", RenameMode::Replace).unwrap();
    mkdir(&one, Ino::ROOT, b"dir of one");
    let dir = find(&two, Ino::ROOT, b"dir");
    write_in(&two, dir, b"a", &bytes(11, 30_000));
    write_in(&two, dir, b"b", &bytes(12, 5000));
    two.unlink(dir, b"c").unwrap();
    two.rename(dir, b"d", Ino::ROOT, b"d of two", RenameMode::Replace).unwrap();
    let below = find(&two, dir, b"below");
    two.rename(Ino::ROOT, b"d of two", below, b"d", RenameMode::Replace).unwrap();
    two.setxattr(&CALLER, find(&two, dir, b"a"), b"user.x", b"two", phifs_core::volume::XattrMode::Set).unwrap();
    [one, two]
}

const AFTER_BOTH: [&str; 9] =
    ["/dir", "/dir of one", "/dir/a", "/dir/b", "/dir/new in one", "/risen", "/risen/d", "/risen/deep", ""];

#[test]
fn lines_that_merged_each_other_in_any_order_are_the_same() {
    let (_, _, volume) = new_volume();
    let [one, two] = two_branches(&volume);
    merge(&volume, "one", "two");
    merge(&volume, "two", "one");
    let merged = merge(&volume, "two", "live");
    assert!(merged.operations > 8 && merged.names > 4, "{merged:?}");
    assert_eq!(paths(&volume), AFTER_BOTH[..8]);
    let dir = find(&volume, Ino::ROOT, b"dir");
    assert_eq!(read(&volume, find(&volume, dir, b"b")), bytes(12, 5000), "an edit beats a removal");
    let roots = ["live", "one", "two"].map(|line| root(&volume, line));
    assert!(roots[0] == roots[1] && roots[1] == roots[2]);
    assert_eq!(tree(&one), tree(&two));
    assert_eq!(tree(&one), tree(&volume));
    for (source, target) in [("one", "live"), ("live", "one"), ("two", "one"), ("live", "live")] {
        assert_eq!(merge(&volume, source, target).operations, 0, "{source} into {target} again");
    }
    assert_eq!(root(&volume, "live"), roots[0]);
    check(&volume);
}

#[test]
fn the_other_order_comes_to_the_same_and_a_branch_need_not_be_open() {
    let (disk, env, volume) = new_volume();
    drop(two_branches(&volume));
    volume.close_branch("one").unwrap();
    volume.close_branch("two").unwrap();
    let roots = [["one", "two"], ["two", "one"]].map(|order| {
        let volume = reopen(&disk.snapshot(), &env);
        order.iter().for_each(|line| drop(merge(&volume, line, "live")));
        check(&volume);
        root(&volume, "live")
    });
    assert_eq!(roots[0], roots[1]);
}

#[test]
fn a_merge_outlives_a_crash_right_after_it_and_a_collection() {
    let (disk, env, volume) = new_volume();
    drop(two_branches(&volume));
    merge(&volume, "one", "live");
    merge(&volume, "two", "live");
    let expected = tree(&volume);
    let crashed = reopen(&disk.snapshot(), &env);
    assert_eq!(tree(&crashed), expected);
    // The journal names the states of the branches, which are gone now.
    for name in ["one", "two"] {
        volume.close_branch(name).unwrap();
        volume.delete_branch(name).unwrap();
    }
    volume.collect(1.0, &|_| {}).unwrap();
    let crashed = reopen(&disk.snapshot(), &env);
    assert_eq!(tree(&crashed), expected);
    check(&crashed);
}

#[test]
fn a_dry_run_tells_what_the_merge_then_does() {
    let (_, _, volume) = new_volume();
    drop(two_branches(&volume));
    merge(&volume, "one", "live");
    let (before, operations) = (tree(&volume), volume.status().operations);
    let dry = MergeOptions { dry_run: true, ..MergeOptions::default() };
    let told = volume.merge(&side("two"), &Side::Live, &dry).unwrap();
    assert_eq!((tree(&volume), volume.status().operations), (before, operations));
    let told: Vec<_> =
        told.changes.iter().map(|change| (change.what, change.path.escape_ascii().to_string())).collect();
    let line = |what, path: &str| (what, path.to_owned());
    let expected = [
        line(What::Modified, "/dir/a"),
        line(What::Added, "/dir/b"),
        line(What::Deleted, "/dir/c"),
        line(What::Renamed, "/risen/d"),
    ];
    let told: Vec<_> = told.into_iter().filter(|(_, path)| path != "/dir" && path != "/risen").collect();
    assert_eq!(told, expected);
}

#[test]
fn two_snapshots_make_a_third_one_with_both_as_parents() {
    let (_, _, volume) = new_volume();
    let [one, _two] = two_branches(&volume);
    volume.snapshot_branch("one", "of one", vec![]).unwrap();
    volume.snapshot_branch("two", "of two", vec![]).unwrap();
    let before = tree(&volume);
    let options = MergeOptions { name: Some("both".into()), ..MergeOptions::default() };
    let snapshot = |name: &str| Side::Snapshot(name.into());
    let merged = volume.merge(&snapshot("of two"), &snapshot("of one"), &options).unwrap();
    assert_eq!(merged.snapshot.as_deref(), Some("both"));
    assert_eq!(tree(&volume), before, "nothing else changes");
    let both = record(&volume, "both");
    let id = |name: &str| volume.find_snapshot(name).unwrap().1.id.unwrap();
    let mut parents = vec![id("of one"), id("of two")];
    parents.sort_unstable();
    assert_eq!(both.parents, parents);
    merge(&volume, "two", "one");
    assert_eq!(both.root(), root(&volume, "one"));
    volume.collect(1.0, &|_| {}).unwrap();
    let line = branch(&volume, "both", "third");
    assert_eq!(tree(&line), tree(&one));
    let again = MergeOptions { name: Some("again".into()), ..MergeOptions::default() };
    assert_eq!(volume.merge(&snapshot("of one"), &snapshot("both"), &again).unwrap().operations, 0);
    check(&volume);
}

#[test]
fn an_open_file_keeps_its_bytes_until_it_is_closed() {
    let (_, _, volume) = new_volume();
    write(&volume, b"read", b"old");
    write(&volume, b"removed", b"still here");
    write(&volume, b"cached", &bytes(1, 2 << 20));
    settle(&volume);
    volume.create_snapshot("base", vec![], false).unwrap();
    let one = branch(&volume, "base", "one");
    write(&one, b"read", b"new and longer");
    write(&one, b"cached", &bytes(2, 2 << 20));
    one.unlink(Ino::ROOT, b"removed").unwrap();
    let [read_ino, removed] = [&b"read"[..], b"removed"].map(|name| find(&volume, Ino::ROOT, name));
    let opened = [read_ino, removed].map(|ino| volume.open(&CALLER, ino, &READ).unwrap().handle);
    merge(&volume, "one", "live");
    assert_eq!(volume.read(read_ino, opened[0], 0, 99).unwrap(), b"old");
    assert_eq!(volume.getattr(read_ino, None).unwrap().size_bytes, 3, "stat(2) agrees with read(2)");
    assert_eq!(volume.read(removed, opened[1], 0, 99).unwrap(), b"still here");
    assert_eq!(volume.getattr(removed, None).unwrap().nlink, 0);
    assert_eq!(read(&volume, find(&volume, Ino::ROOT, b"cached")), bytes(2, 2 << 20));
    [read_ino, removed].into_iter().zip(opened).for_each(|(ino, handle)| volume.release(ino, handle));
    settle(&volume);
    assert_eq!(volume.getattr(read_ino, None).unwrap().size_bytes, 14);
    assert_eq!(read(&volume, read_ino), b"new and longer");
    assert_eq!(paths(&volume), ["/cached", "/read"]);
    check(&volume);
}

#[test]
fn what_is_written_to_an_open_file_stays_beside_what_the_merge_brought() {
    let (disk, env, volume) = new_volume();
    write(&volume, b"f", b"base");
    volume.create_snapshot("base", vec![], false).unwrap();
    let one = branch(&volume, "base", "one");
    write(&one, b"f", b"of one");
    let ino = find(&volume, Ino::ROOT, b"f");
    let opened = volume.open(&CALLER, ino, &WRITE).unwrap();
    volume.write(&CALLER, ino, opened.handle, 0, b"live", false).unwrap();
    merge(&volume, "one", "live");
    volume.write(&CALLER, ino, opened.handle, 4, b" goes on", false).unwrap();
    assert_eq!(volume.read(ino, opened.handle, 0, 99).unwrap(), b"live goes on");
    volume.release(ino, opened.handle);
    settle(&volume);
    assert_eq!(read(&volume, ino), b"live goes on");
    let current: Vec<_> = volume.file_versions(ino).unwrap().into_iter().filter(|version| version.is_current).collect();
    assert_eq!(current.len(), 2, "{current:?}");
    // Somebody who opens it after that has seen both.
    write(&volume, b"f", b"resolved");
    settle(&volume);
    let versions = volume.file_versions(ino).unwrap();
    assert_eq!(versions.iter().filter(|version| version.is_current).count(), 1, "{versions:?}");
    drop(volume);
    check(&reopen(&disk, &env));
}

#[test]
fn a_file_that_is_written_to_survives_its_removal_elsewhere() {
    let (_, _, volume) = new_volume();
    write(&volume, b"f", &bytes(1, 5 << 20));
    settle(&volume);
    volume.create_snapshot("base", vec![], false).unwrap();
    let one = branch(&volume, "base", "one");
    one.unlink(Ino::ROOT, b"f").unwrap();
    let ino = find(&volume, Ino::ROOT, b"f");
    let opened = volume.open(&CALLER, ino, &WRITE).unwrap();
    volume.write(&CALLER, ino, opened.handle, 1000, b"changed", false).unwrap();
    merge(&volume, "one", "live");
    volume.release(ino, opened.handle);
    settle(&volume);
    assert_eq!(read(&volume, ino)[1000..1007], *b"changed");
    assert_eq!(paths(&volume), ["/f"]);
}

#[test]
fn what_a_merge_supersedes_is_kept_as_an_old_version() {
    let (_, _, volume) = new_volume();
    write(&volume, b"f", b"base");
    settle(&volume);
    volume.create_snapshot("base", vec![], false).unwrap();
    let one = branch(&volume, "base", "one");
    write(&one, b"f", b"of one");
    volume.delete_snapshots(&["base".into()]).unwrap();
    merge(&volume, "one", "live");
    let versions = volume.file_versions(find(&volume, Ino::ROOT, b"f")).unwrap();
    let kept: Vec<_> =
        versions.iter().map(|version| (version.len_bytes, version.is_current, version.is_kept)).collect();
    assert_eq!(kept, [(4, false, true), (6, true, true)]);
}

/// What one line removes another one may still change, as long as that knows it.
#[test]
fn what_came_by_a_merge_and_is_removed_comes_back_whole_if_it_was_changed_where_it_came_from() {
    let (_, _, volume) = new_volume();
    volume.create_snapshot("base", vec![], false).unwrap();
    let one = branch(&volume, "base", "one");
    write(&one, b"f", b"first");
    let dir = mkdir(&one, Ino::ROOT, b"dir");
    settle(&one);
    merge(&volume, "one", "live");
    volume.unlink(Ino::ROOT, b"f").unwrap();
    volume.rmdir(Ino::ROOT, b"dir").unwrap();
    volume.forget(find(&volume, Ino::ROOT, b".phi"));
    volume.collect(1.0, &|_| {}).unwrap();
    write(&one, b"f", b"second");
    write_in(&one, dir, b"inside", b"inside");
    settle(&one);
    merge(&volume, "one", "live");
    assert_eq!(paths(&volume), ["/dir", "/dir/inside", "/f"]);
    let attr = volume.lookup(&CALLER, Ino::ROOT, b"f").unwrap();
    assert_eq!((attr.permissions, read(&volume, attr.ino)), (0o600, b"second".to_vec()));
    assert_eq!(volume.lookup(&CALLER, Ino::ROOT, b"dir").unwrap().permissions, 0o755);
    check(&volume);
}

#[test]
fn what_a_merge_removes_takes_no_room_once_nobody_can_bring_it_back() {
    let (_, _, volume) = new_volume();
    write(&volume, b"f", b"first");
    settle(&volume);
    volume.create_snapshot("base", vec![], false).unwrap();
    let one = branch(&volume, "base", "one");
    one.unlink(Ino::ROOT, b"f").unwrap();
    let inodes = volume.status().inodes;
    merge(&volume, "one", "live");
    assert_eq!(paths(&volume), Vec::<String>::new());
    assert_eq!(volume.status().inodes, inodes, "others know it");
    volume.collect(1.0, &|_| {}).unwrap();
    check(&volume);
}

#[derive(Default)]
struct Told(parking_lot::Mutex<Vec<String>>);

impl Invalidate for Told {
    fn inode(&self, ino: Ino, data: bool) {
        self.0.lock().push(format!("{} {}", ino.0 & 0xfff, if data { "data" } else { "attributes" }));
    }

    fn entry(&self, _: Ino, name: &[u8]) {
        self.0.lock().push(String::from_utf8(name.to_vec()).unwrap());
    }

    fn file(&self, _: Ino) {}
}

/// A kernel that caches what is written believes in the length that it heard first, until it forgets the file.
#[test]
fn a_file_of_which_the_kernel_has_the_wrong_length_is_read_and_appended_to_past_its_cache() {
    let (_, _, volume) = new_volume();
    write(&volume, b"file", b"short");
    volume.create_snapshot("before", vec![], false).unwrap();
    let trial = branch(&volume, "before", "trial");
    write(&trial, b"file", b"longer than it was");
    write(&trial, b"new", b"new");

    let told = Arc::new(Told::default());
    volume.set_invalidate(told.clone());
    let ino = find(&volume, Ino::ROOT, b"file");
    let before = volume.open(&CALLER, ino, &READ).unwrap();
    assert!(matches!(before.path, phifs_core::volume::Path::Cached { .. }));
    merge(&volume, "trial", "live");
    volume.release(ino, before.handle);
    told.0.lock().clear();

    let appending = OpenHow { append: true, ..WRITE };
    let opened = volume.open(&CALLER, ino, &appending).unwrap();
    assert!(matches!(opened.path, phifs_core::volume::Path::Direct));
    assert_eq!(volume.read(ino, opened.handle, 0, 100).unwrap(), b"longer than it was");
    assert_eq!(volume.write(&CALLER, ino, opened.handle, 5, b", and more", false).unwrap(), 10);
    volume.release(ino, opened.handle);
    assert!(told.0.lock().contains(&"file".to_owned()), "whoever closes it last has the kernel forget it");
    told.0.lock().clear();
    volume.tick().unwrap();
    assert!(told.0.lock().contains(&"file".to_owned()), "until it has");
    assert_eq!(read(&volume, ino), b"longer than it was, and more");

    volume.forget(ino);
    told.0.lock().clear();
    volume.tick().unwrap();
    assert_eq!(*told.0.lock(), Vec::<String>::new());
    let ino = find(&volume, Ino::ROOT, b"file");
    for ino in [ino, find(&volume, Ino::ROOT, b"new")] {
        let opened = volume.open(&CALLER, ino, &appending).unwrap();
        assert!(matches!(opened.path, phifs_core::volume::Path::Cached { .. }), "the kernel knows its length");
        volume.write(&CALLER, ino, opened.handle, 1, b"!", false).unwrap();
        volume.release(ino, opened.handle);
        assert_eq!(read(&volume, ino)[1], b'!', "and so where it ends");
    }
}

#[test]
fn the_kernel_hears_of_every_name_and_file_that_changed() {
    let (_, _, volume) = new_volume();
    for name in [&b"edited"[..], b"gone", b"moved", b"same"] {
        write(&volume, name, name);
    }
    settle(&volume);
    volume.create_snapshot("base", vec![], false).unwrap();
    let one = branch(&volume, "base", "one");
    write(&one, b"edited", b"other bytes");
    one.unlink(Ino::ROOT, b"gone").unwrap();
    one.rename(Ino::ROOT, b"moved", Ino::ROOT, b"there", RenameMode::Replace).unwrap();
    let told = Arc::new(Told::default());
    volume.set_invalidate(told.clone());
    let edited = find(&volume, Ino::ROOT, b"edited").0 & 0xfff;
    merge(&volume, "one", "live");
    let told = told.0.lock().clone();
    for expected in ["gone", "moved", "there", &format!("{edited} data")] {
        assert!(told.iter().any(|line| line == expected), "{expected}: {told:?}");
    }
    assert!(!told.iter().any(|line| line == "same"), "{told:?}");
}

const GO_ON: fn(u64) -> std::ops::ControlFlow<()> = |_| std::ops::ControlFlow::Continue(());

fn export(volume: &LocalVolume, name: &str) -> Vec<u8> {
    let mut stream = Vec::new();
    volume.export_snapshot(name, None, Sink::Pipe(&mut stream), &GO_ON).unwrap();
    stream
}

/// Two copies of one store that both went on as the same author.
#[test]
fn a_copy_of_the_store_that_went_its_own_way_is_refused_whole() {
    let (disk, env, volume) = new_volume();
    write(&volume, b"f", b"common");
    settle(&volume);
    volume.create_snapshot("base", vec![], false).unwrap();
    volume.shut_down().unwrap();
    drop(volume);
    let copy = reopen(&disk.snapshot(), &env);
    let volume = reopen(&disk, &env);
    assert_eq!(copy.status().author, volume.status().author, "this test needs two with one author");
    write(&copy, b"f", b"of the copy");
    settle(&copy);
    write(&copy, b"g", b"of the copy");
    settle(&copy);
    copy.create_snapshot("copy", vec![], false).unwrap();
    write(&volume, b"f", b"of this one");
    settle(&volume);
    volume.import_snapshot(&export(&copy, "copy")[..], &ImportOptions::default(), &GO_ON).unwrap();
    let before = tree(&volume);
    let refused = volume.merge(&Side::Snapshot("copy".into()), &Side::Live, &MergeOptions::default());
    assert!(matches!(refused, Err(MergeError::Suspect(Suspect::TwoOperations(_)))), "{refused:?}");
    assert_eq!(tree(&volume), before);
    check(&volume);
}

#[test]
fn the_same_operations_with_another_state_are_refused() {
    let (disk, env, volume) = new_volume();
    write(&volume, b"f", b"common");
    settle(&volume);
    volume.shut_down().unwrap();
    drop(volume);
    let copies = [b"of one", b"other!"].map(|bytes| {
        let copy = reopen(&disk.snapshot(), &env);
        write(&copy, b"f", bytes);
        settle(&copy);
        copy.create_snapshot(&String::from_utf8_lossy(bytes), vec![], false).unwrap();
        copy
    });
    let stream = export(&copies[1], "other!");
    copies[0].import_snapshot(&stream[..], &ImportOptions::default(), &GO_ON).unwrap();
    let refused = copies[0].merge(&Side::Snapshot("other!".into()), &Side::Live, &MergeOptions::default());
    assert!(matches!(refused, Err(MergeError::Suspect(Suspect::OtherState))), "{refused:?}");
}

#[test]
fn a_full_disk_refuses_a_merge_and_nothing_changes() {
    let disk = MemDisk::with_capacity(96 << 20);
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let env = TestEnv::new(1);
    let volume = open_with(&shared, &env, Options { reserve_bytes: Some(4 << 20), ..options() }).unwrap();
    write(&volume, b"f", b"base");
    volume.create_snapshot("base", vec![], false).unwrap();
    let one = branch(&volume, "base", "one");
    for number in 0..200u8 {
        write(&one, &[b'a', number / 26 + b'a', number % 26 + b'a'], b"small");
    }
    settle(&one);
    one.make_checkpoint(false).unwrap();
    let mut filled = 0;
    while try_write_in(&volume, Ino::ROOT, b"large", &bytes(filled, 4 << 20)).is_ok() && filled < 40 {
        filled += 1;
        settle(&volume);
        volume.tick().unwrap();
    }
    let before = tree(&volume);
    let refused = try_merge(&volume, "one", "live");
    let why = refused.unwrap_err();
    assert!(matches!(why, MergeError::Snapshot(SnapshotError::Volume(VolumeError::NoSpace(_)))), "{why:?}");
    assert_eq!(tree(&volume), before);
    volume.unlink(Ino::ROOT, b"large").unwrap();
    drop(volume);
    check(&reopen(&disk, &env));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write(&'static str, u8, u8, usize),
    Remove(&'static str, u8),
    Rename(&'static str, u8, u8),
    Snapshot(&'static str),
    Branch(&'static str, &'static str),
    Close(&'static str),
    Settle(&'static str),
    Merge(&'static str, &'static str),
    Collect,
}

const STORY: &[Step] = &[
    Step::Write("live", b'a', 1, 50_000),
    Step::Write("live", b'b', 2, 300),
    Step::Settle("live"),
    Step::Snapshot("base"),
    Step::Branch("base", "one"),
    Step::Branch("base", "two"),
    Step::Write("one", b'a', 3, 40_000),
    Step::Rename("one", b'b', b'c'),
    Step::Write("two", b'd', 4, 2000),
    Step::Remove("two", b'b'),
    Step::Settle("two"),
    Step::Write("live", b'e', 5, 700),
    Step::Merge("one", "live"),
    Step::Write("live", b'a', 6, 100),
    Step::Merge("live", "two"),
    Step::Close("one"),
    Step::Collect,
    Step::Merge("two", "live"),
    Step::Remove("live", b'c'),
    Step::Merge("live", "one"),
    Step::Collect,
];

struct Teller {
    volume: LocalVolume,
    open: BTreeMap<String, Arc<LocalVolume>>,
}

impl Teller {
    fn line(&mut self, name: &str) -> Result<&LocalVolume, VolumeError> {
        if name == "live" {
            return Ok(&self.volume);
        }
        if !self.open.contains_key(name) {
            let opened = self.volume.open_branch(name, &|_| {})?;
            self.open.insert(name.into(), opened);
        }
        Ok(&self.open[name])
    }

    fn tell(&mut self, step: Step) -> Result<(), String> {
        let text = |error: VolumeError| error.to_string();
        match step {
            Step::Write(line, name, seed, len) => {
                try_write_in(self.line(line).map_err(text)?, Ino::ROOT, &[name], &bytes(seed, len)).map_err(text)
            }
            Step::Remove(line, name) => {
                let line = self.line(line).map_err(text)?;
                line.unlink(Ino::ROOT, &[name]).and_then(|()| line.fsync(Ino::ROOT, None, false)).map_err(text)
            }
            Step::Rename(line, from, to) => {
                let line = self.line(line).map_err(text)?;
                let renamed = line.rename(Ino::ROOT, &[from], Ino::ROOT, &[to], RenameMode::Replace);
                renamed.and_then(|()| line.fsync(Ino::ROOT, None, false)).map_err(text)
            }
            Step::Snapshot(name) => {
                self.volume.create_snapshot(name, vec![], false).map(drop).map_err(|error| error.to_string())
            }
            Step::Branch(from, name) => {
                self.volume.clone_snapshot(from, name).map(drop).map_err(|error| error.to_string())
            }
            Step::Close(name) => {
                self.open.remove(name);
                self.volume.close_branch(name).map_err(|error| error.to_string())
            }
            Step::Settle(line) => {
                let line = self.line(line).map_err(text)?;
                settle(line);
                line.tick().map_err(text)
            }
            Step::Merge(from, to) => try_merge(&self.volume, from, to).map(drop).map_err(|error| error.to_string()),
            Step::Collect => self.volume.collect(1.0, &|_| {}).map(drop).map_err(text),
        }
    }
}

type World = BTreeMap<String, Tree>;

fn world(volume: &LocalVolume) -> World {
    let mut world = World::from([("live".to_owned(), tree(volume))]);
    for (name, _) in volume.branches().unwrap() {
        let line = volume.open_branch(&name, &|_| {}).unwrap();
        world.insert(name.clone(), tree(&line));
        drop(line);
        volume.close_branch(&name).unwrap();
    }
    world
}

/// How the story goes without a crash: what there is after each step.
fn chapters() -> Vec<World> {
    (0..=STORY.len())
        .map(|count| {
            let (_, _, volume) = new_volume();
            let mut teller = Teller { volume, open: BTreeMap::new() };
            STORY[..count].iter().for_each(|step| teller.tell(*step).unwrap());
            let names: Vec<String> = std::mem::take(&mut teller.open).into_keys().collect();
            names.iter().for_each(|name| teller.volume.close_branch(name).unwrap());
            world(&teller.volume)
        })
        .collect()
}

/// How many steps were done when the power went.
fn live(disk: &CrashDisk) -> usize {
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let volume = match open(&shared, &TestEnv::new(1)) {
        Ok(volume) => volume,
        Err(error) => {
            assert!(disk.is_dead(), "{error}");
            return 0;
        }
    };
    let mut teller = Teller { volume, open: BTreeMap::new() };
    for (done, step) in STORY.iter().enumerate() {
        if let Err(error) = teller.tell(*step) {
            assert!(disk.is_dead(), "{step:?}: {error}");
            return done;
        }
    }
    STORY.len()
}

fn check_after_power_loss(chapters: &[World], disk: &CrashDisk, seed: u64, what: &str) {
    let done = live(disk);
    let image = disk.after_power_loss(seed);
    let env = TestEnv::new(2);
    let volume = reopen(&image, &env);
    if seed % 2 == 1 {
        volume.collect(1.0, &|_| {}).unwrap();
    }
    let found = world(&volume);
    let next = (done + 1).min(STORY.len());
    assert!(found == chapters[done] || found == chapters[next], "{what}: {done}\n{found:?}");
    volume.collect(1.0, &|_| {}).unwrap();
    assert_eq!(volume.fsck(false, &|_| {}).unwrap().problems, [], "{what}");
    volume.shut_down().unwrap();
    drop(volume);
    assert!(world(&reopen(&image, &env)) == found, "{what}: after another start");
}

#[test]
fn power_loss_at_any_sync_leaves_each_line_as_before_or_after_the_merge() {
    let chapters = chapters();
    let probe = CrashDisk::healthy();
    assert_eq!(live(&probe), STORY.len());
    let step = if std::env::var_os("PHIFS_LONG").is_some() { 1 } else { 61 };
    for sync in 0..probe.syncs() {
        check_after_power_loss(&chapters, &CrashDisk::dies_at_sync(sync), sync, &format!("sync {sync}"));
    }
    for op in (0..probe.ops()).step_by(step) {
        check_after_power_loss(&chapters, &CrashDisk::dies_at_op(op), op, &format!("operation {op}"));
    }
}
