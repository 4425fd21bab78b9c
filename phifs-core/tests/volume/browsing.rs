//! What is seen of snapshots below `.phi`: the tree as it was, read-only, for as long as the snapshot is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use phifs_core::disk::{Disk, MemDisk};
use phifs_core::volume::local::LocalVolume;
use phifs_core::volume::{
    Attr, FileKind, Ino, Invalidate, NewKind, NewNode, OpenHow, Path, RenameMode, Result, Seek, SetAttr, Volume,
    VolumeError, XattrMode,
};
use proptest::prelude::*;

use crate::harness::{CALLER, MEMORY, Mode, NODE, Op, Player, READ, TestEnv, WRITE, any_op, errno, open, settle};

/// All that can be seen of one inode, but its number and the time of the last access, which no snapshot keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    attr: Attr,
    /// The paths that lead to the inode; of a directory, only its own.
    links: BTreeSet<Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    target: Vec<u8>,
    bytes: Vec<u8>,
}

/// What is seen below a directory, by path, and the inode numbers.
#[derive(Default)]
struct Look {
    seen: BTreeMap<Vec<u8>, Seen>,
    numbers: BTreeMap<Vec<u8>, Ino>,
}

impl Look {
    fn below(volume: &LocalVolume, top: Ino) -> Result<Self> {
        let mut look = Self::default();
        let mut links: BTreeMap<Ino, BTreeSet<Vec<u8>>> = BTreeMap::new();
        let mut todo = vec![(Vec::new(), top)];
        while let Some((path, ino)) = todo.pop() {
            let mut attr = volume.getattr(ino, None)?;
            assert_eq!(attr.ino, ino);
            (attr.ino, attr.atime) = (Ino(0), attr.btime);
            let mut seen =
                Seen { attr, links: BTreeSet::new(), xattrs: BTreeMap::new(), target: Vec::new(), bytes: Vec::new() };
            for name in volume.listxattr(ino)? {
                let value = volume.getxattr(ino, &name)?;
                seen.xattrs.insert(name, value);
            }
            match attr.kind {
                FileKind::Directory => {
                    let mut listed = Vec::new();
                    volume.readdir(ino, 0, &mut |found| {
                        listed.push((found.name.clone(), found.attr.ino, found.attr.kind, found.next));
                        true
                    })?;
                    let mut named = Vec::new();
                    volume.readdir_names(ino, 0, &mut |found| {
                        named.push((found.name.to_vec(), found.ino, found.kind, found.next));
                        true
                    })?;
                    assert_eq!(named, listed, "with attributes and without");
                    let below = listed.into_iter().skip(2);
                    todo.extend(below.map(|(name, ino, ..)| ([&path[..], b"/", &name].concat(), ino)));
                }
                FileKind::Symlink => seen.target = volume.readlink(ino)?,
                FileKind::File => seen.bytes = read(volume, ino)?,
                _ => {}
            }
            links.entry(ino).or_default().insert(path.clone());
            look.numbers.insert(path.clone(), ino);
            look.seen.insert(path, seen);
        }
        for (path, seen) in &mut look.seen {
            seen.links.clone_from(&links[&look.numbers[path]]);
        }
        Ok(look)
    }

    /// The part below one of the directories, with paths that begin there.
    fn part(&self, dir: &[u8]) -> BTreeMap<Vec<u8>, Seen> {
        let inside = |path: &[u8]| {
            let rest = path.strip_prefix(dir)?;
            (rest.is_empty() || rest[0] == b'/').then(|| rest.to_vec())
        };
        let seen = self.seen.iter().filter_map(|(path, seen)| {
            let links = seen.links.iter().filter_map(|link| inside(link)).collect();
            Some((inside(path)?, Seen { links, ..seen.clone() }))
        });
        seen.collect()
    }
}

fn read(volume: &LocalVolume, ino: Ino) -> Result<Vec<u8>> {
    let len = volume.getattr(ino, None)?.size_bytes as u32;
    let opened = volume.open(&CALLER, ino, &READ)?;
    let bytes = volume.read(ino, opened.handle, 0, len + 1);
    volume.release(ino, opened.handle);
    let bytes = bytes?;
    assert_eq!(bytes.len(), len as usize, "stat and read agree");
    Ok(bytes)
}

fn walk(volume: &LocalVolume, from: Ino, path: &str) -> Result<Attr> {
    let mut attr = volume.getattr(from, None)?;
    for name in path.split('/') {
        attr = volume.lookup(&CALLER, attr.ino, name.as_bytes())?;
    }
    Ok(attr)
}

fn names(volume: &LocalVolume, dir: Ino) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let list = &mut |entry: &phifs_core::volume::Entry| {
        assert!(names.insert(String::from_utf8(entry.name.clone()).unwrap()), "listed twice");
        true
    };
    volume.readdir(dir, 2, list).unwrap();
    names
}

fn volume() -> (LocalVolume, Arc<TestEnv>) {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let env = TestEnv::new(1);
    (open(&disk, &env).unwrap(), env)
}

fn make(volume: &LocalVolume, parent: Ino, name: &[u8], kind: NewKind<'_>) -> Ino {
    let node = NewNode { kind, permissions: 0o750, umask: 0 };
    volume.make(&CALLER, parent, name, &node).unwrap().ino
}

fn write(volume: &LocalVolume, parent: Ino, name: &[u8], bytes: &[u8]) -> Ino {
    let (ino, handle) = match volume.lookup(&CALLER, parent, name) {
        Ok(attr) => (attr.ino, volume.open(&CALLER, attr.ino, &OpenHow { truncate: true, ..WRITE }).unwrap().handle),
        Err(_) => {
            let (attr, opened) = volume.create(&CALLER, parent, name, &NODE, &WRITE).unwrap();
            (attr.ino, opened.handle)
        }
    };
    volume.write(&CALLER, ino, handle, 0, bytes, false).unwrap();
    volume.release(ino, handle);
    settle(volume);
    ino
}

fn browse_against_records(steps: &[Vec<Op>], memory_bytes: u64) {
    let mut player = Player::new(Arc::new(MemDisk::new()), Mode { kernel: false, memory_bytes }, 1).unwrap();
    let mut records = BTreeMap::new();
    for (number, ops) in steps.iter().enumerate() {
        for op in ops {
            player.play(op).unwrap();
        }
        while !player.handles.is_empty() {
            player.release(0);
        }
        settle(&player.volume);
        let name = format!("s{number}");
        let record = Look::below(&player.volume, Ino::ROOT).unwrap();
        player.volume.create_snapshot(&name, Vec::new(), false).unwrap();
        records.insert(name, record);
        // Now and then one goes, and what only it held.
        if number % 7 == 6 {
            let gone = format!("s{}", number / 2);
            if records.remove(&gone).is_some() {
                player.volume.delete_snapshots(&[gone]).unwrap();
                player.volume.collect(0.9, &|_| {}).unwrap();
            }
        }
    }
    let volume = &player.volume;
    let list = walk(volume, Ino::ROOT, ".phi/snapshots").unwrap().ino;
    assert_eq!(names(volume, list), records.keys().cloned().collect());
    for (name, record) in &records {
        let top = walk(volume, list, name).unwrap().ino;
        let found = Look::below(volume, top).unwrap();
        assert_eq!(found.seen, record.seen, "{name}");
    }
    // From each directory of today: the same directory, whatever its name was.
    let now = Look::below(volume, Ino::ROOT).unwrap();
    for (path, seen) in now.seen.iter().filter(|(_, seen)| seen.attr.kind == FileKind::Directory) {
        let ino = now.numbers[path];
        let list = walk(volume, ino, ".phi/snapshots").unwrap().ino;
        let places: BTreeMap<&String, (&Vec<u8>, &Look)> = records
            .iter()
            .filter_map(|(name, record)| {
                let place = record.numbers.iter().find(|(_, number)| **number == ino)?.0;
                Some((name, (place, record)))
            })
            .collect();
        assert_eq!(names(volume, list), places.keys().map(|name| (*name).clone()).collect(), "{seen:?}");
        for (name, (place, record)) in places {
            let found = Look::below(volume, walk(volume, list, name).unwrap().ino).unwrap();
            assert_eq!(found.seen, record.part(place), "{name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if std::env::var_os("PHIFS_LONG").is_some() { 300 } else { 4 }, max_shrink_iters: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hundreds_of_snapshots_stay_as_they_were_while_the_volume_changes(
        steps in prop::collection::vec(prop::collection::vec(any_op(), 0..8), 100..200),
        memory in 0..3usize,
    ) {
        browse_against_records(&steps, MEMORY[memory]);
    }
}

#[test]
fn nothing_below_phi_can_be_changed() {
    let (volume, _) = volume();
    let file = write(&volume, Ino::ROOT, b"f", b"one");
    volume.setxattr(&CALLER, file, b"user.a", b"1", XattrMode::Set).unwrap();
    make(&volume, Ino::ROOT, b"d", NewKind::Directory);
    volume.create_snapshot("s", Vec::new(), false).unwrap();
    write(&volume, Ino::ROOT, b"f", b"two");
    let at = |path: &str| walk(&volume, Ino::ROOT, path).unwrap().ino;
    let version = names(&volume, at(".phi/versions/f")).into_iter().next().unwrap();
    let dirs = [".phi", ".phi/snapshots", ".phi/snapshots/s", ".phi/snapshots/s/d", ".phi/versions", ".phi/versions/f"];
    let files = [".phi/status.json".to_owned(), ".phi/snapshots/s/f".into(), format!(".phi/versions/f/{version}")];
    let refused = |what: &str, result: std::result::Result<(), VolumeError>| match result {
        Err(error) => assert_eq!(errno(&error), "ReadOnly", "{what}"),
        Ok(()) => panic!("{what} worked"),
    };
    let node = NewNode { kind: NewKind::Directory, permissions: 0o700, umask: 0 };
    for path in dirs {
        let dir = at(path);
        refused(path, volume.make(&CALLER, dir, b"new", &node).map(drop));
        refused(path, volume.create(&CALLER, dir, b"new", &NODE, &WRITE).map(drop));
        refused(path, volume.link(file, dir, b"new").map(drop));
        refused(path, volume.unlink(dir, b"f"));
        refused(path, volume.rmdir(dir, b"d"));
        refused(path, volume.rename(dir, b"f", Ino::ROOT, b"new", RenameMode::Replace));
        refused(path, volume.rename(Ino::ROOT, b"f", dir, b"f", RenameMode::Replace));
        refused(path, volume.rename(dir, b"f", dir, b"g", RenameMode::Exchange));
    }
    for path in dirs.iter().map(|path| (*path).to_owned()).chain(files.clone()) {
        let ino = at(&path);
        for change in [
            SetAttr { permissions: Some(0o777), ..SetAttr::default() },
            SetAttr { uid: Some(1), ..SetAttr::default() },
            SetAttr { size_bytes: Some(0), ..SetAttr::default() },
            SetAttr { mtime: Some(phifs_core::volume::SetTime::Now), ..SetAttr::default() },
        ] {
            refused(&path, volume.setattr(&CALLER, ino, &change).map(drop));
        }
        refused(&path, volume.setxattr(&CALLER, ino, b"user.a", b"2", XattrMode::Set));
        refused(&path, volume.removexattr(&CALLER, ino, b"user.a"));
        refused(&path, volume.link(ino, Ino::ROOT, b"new").map(drop));
    }
    for path in files {
        let ino = at(&path);
        refused(&path, volume.open(&CALLER, ino, &WRITE).map(drop));
        refused(&path, volume.open(&CALLER, ino, &OpenHow { truncate: true, ..READ }).map(drop));
    }
    assert_eq!(read(&volume, at(".phi/snapshots/s/f")).unwrap(), b"one");
    assert_eq!(names(&volume, Ino::ROOT), BTreeSet::from(["f".to_owned(), "d".to_owned()]));
}

#[test]
fn phi_is_not_found_inside_a_snapshot() {
    let (volume, _) = volume();
    make(&volume, Ino::ROOT, b"d", NewKind::Directory);
    volume.create_snapshot("s", Vec::new(), false).unwrap();
    for inside in [".phi/snapshots/s/.phi", ".phi/snapshots/s/d/.phi", "d/.phi/snapshots/s/.phi"] {
        assert_eq!(errno(&walk(&volume, Ino::ROOT, inside).unwrap_err()), "NotFound");
    }
}

#[test]
fn holes_and_long_files_are_read_from_a_snapshot_as_they_were() {
    let (volume, _) = volume();
    let bytes: Vec<u8> = (0..300_000u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let ino = write(&volume, Ino::ROOT, b"f", &bytes);
    let opened = volume.open(&CALLER, ino, &WRITE).unwrap();
    let punch = phifs_core::volume::Allocate::PunchHole;
    volume.fallocate(&CALLER, ino, opened.handle, 200_000, 600_000, punch).unwrap();
    volume.release(ino, opened.handle);
    settle(&volume);
    volume.create_snapshot("s", Vec::new(), false).unwrap();
    let live = volume.getattr(ino, None).unwrap();
    write(&volume, Ino::ROOT, b"f", b"short");
    let old = walk(&volume, Ino::ROOT, ".phi/snapshots/s/f").unwrap();
    assert_eq!((old.size_bytes, old.blocks), (live.size_bytes, live.blocks));
    let opened = volume.open(&CALLER, old.ino, &READ).unwrap();
    assert!(matches!(opened.path, Path::Cached { keep_cache: true }), "it never changes");
    let seek = |offset, what| volume.seek(old.ino, opened.handle, offset, what);
    let hole = seek(0, Seek::Hole).unwrap();
    let data = seek(hole, Seek::Data).unwrap();
    assert!((200_000..220_000).contains(&hole) && (780_000..=800_000).contains(&data), "{hole} {data}");
    assert_eq!(seek(data, Seek::Hole).unwrap(), bytes.len() as u64);
    assert_eq!(errno(&seek(bytes.len() as u64, Seek::Data).unwrap_err()), "NoData");
    let mut wanted = bytes;
    wanted[200_000..800_000].fill(0);
    let part = |from: usize, len: usize| volume.read(old.ino, opened.handle, from as u64, len as u32).unwrap();
    for (from, len) in [(0, 1 << 20), (199_990, 100), (1_000_000, 1 << 20), (5_000_000, 10)] {
        assert!(part(from, len) == wanted[from.min(wanted.len())..(from + len).min(wanted.len())], "{from}");
    }
    volume.release(old.ino, opened.handle);
    assert_eq!(errno(&volume.read(old.ino, opened.handle, 0, 1).unwrap_err()), "BadHandle");
}

/// Remembers what the kernel was told to drop.
#[derive(Default)]
struct Dropped(Mutex<BTreeSet<Ino>>);

impl Invalidate for Dropped {
    fn inode(&self, ino: Ino, data: bool) {
        assert!(data);
        self.0.lock().insert(ino);
    }
    fn entry(&self, _: Ino, _: &[u8]) {}
    fn file(&self, _: Ino) {}
}

#[test]
fn whoever_is_in_a_deleted_snapshot_finds_nothing_more_there() {
    let (volume, _) = volume();
    let dropped = Arc::new(Dropped::default());
    volume.set_invalidate(dropped.clone());
    let dir = make(&volume, Ino::ROOT, b"d", NewKind::Directory);
    write(&volume, dir, b"f", &[7; 100_000]);
    volume.create_snapshot("s", Vec::new(), false).unwrap();
    volume.unlink(dir, b"f").unwrap();
    let (top, below) = (walk(&volume, Ino::ROOT, ".phi/snapshots/s").unwrap().ino, "d");
    let inside = walk(&volume, top, below).unwrap().ino;
    let file = volume.lookup(&CALLER, inside, b"f").unwrap().ino;
    let opened = volume.open(&CALLER, file, &READ).unwrap();
    assert_eq!(volume.read(file, opened.handle, 0, 10).unwrap(), [7; 10]);
    volume.delete_snapshots(&["s".into()]).unwrap();
    volume.collect(0.9, &|_| {}).unwrap();
    let stale = |result: Result<()>| assert_eq!(errno(&result.unwrap_err()), "Stale");
    let check = || {
        for ino in [top, inside, file] {
            stale(volume.getattr(ino, None).map(drop));
            stale(volume.getxattr(ino, b"user.a").map(drop));
        }
        stale(volume.lookup(&CALLER, inside, b"f").map(drop));
        stale(volume.readdir(inside, 0, &mut |_| true));
        stale(volume.read(file, opened.handle, 50_000, 10).map(drop));
        stale(volume.open(&CALLER, file, &READ).map(drop));
    };
    check();
    assert_eq!(*dropped.0.lock(), BTreeSet::from([top, inside, file]));
    // Another one of that name is another one.
    volume.create_snapshot("s", Vec::new(), false).unwrap();
    check();
    let new = walk(&volume, Ino::ROOT, ".phi/snapshots/s").unwrap().ino;
    assert_ne!(new, top);
    assert_eq!(names(&volume, new), BTreeSet::from(["d".to_owned()]));
    [top, inside, file].into_iter().for_each(|ino| volume.forget(ino));
    check();
}

#[test]
fn snapshots_are_listed_in_the_directories_that_they_hold_and_at_once() {
    let (volume, _) = volume();
    let list = |dir: Ino| names(&volume, walk(&volume, dir, ".phi/snapshots").unwrap().ino);
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let a = make(&volume, Ino::ROOT, b"a", NewKind::Directory);
    volume.create_snapshot("1", Vec::new(), false).unwrap();
    let b = make(&volume, a, b"b", NewKind::Directory);
    assert_eq!((list(Ino::ROOT), list(a), list(b)), (set(&["1"]), set(&["1"]), set(&[])));
    volume.create_snapshot("2", Vec::new(), false).unwrap();
    volume.rename(a, b"b", Ino::ROOT, b"c", RenameMode::Replace).unwrap();
    volume.create_snapshot("3", Vec::new(), false).unwrap();
    assert_eq!((list(Ino::ROOT), list(a), list(b)), (set(&["1", "2", "3"]), set(&["1", "2", "3"]), set(&["2", "3"])));
    assert_eq!(errno(&walk(&volume, b, ".phi/snapshots/1").unwrap_err()), "NotFound");
    volume.delete_snapshots(&["2".into()]).unwrap();
    assert_eq!((list(Ino::ROOT), list(b)), (set(&["1", "3"]), set(&["3"])));
    // The kernel still knows it, so it is still something; but it is nowhere.
    volume.rmdir(Ino::ROOT, b"c").unwrap();
    volume.create_snapshot("4", Vec::new(), false).unwrap();
    assert_eq!((list(Ino::ROOT), list(b)), (set(&["1", "3", "4"]), set(&["3"])));
    assert_eq!(errno(&walk(&volume, b, ".phi/snapshots/2").unwrap_err()), "NotFound");
}

#[test]
fn a_directory_in_a_snapshot_is_another_inode_from_each_place_where_it_is_entered() {
    let (volume, _) = volume();
    let a = make(&volume, Ino::ROOT, b"a", NewKind::Directory);
    make(&volume, a, b"b", NewKind::Directory);
    volume.create_snapshot("s", Vec::new(), false).unwrap();
    let at = |path: &str| walk(&volume, Ino::ROOT, path).unwrap().ino;
    // The kernel lets a directory have one place only.
    let places = [".phi/snapshots/s/a/b", "a/.phi/snapshots/s/b", "a/b/.phi/snapshots/s"].map(at);
    assert_eq!(BTreeSet::from(places).len(), 3);
    assert_eq!(places, [".phi/snapshots/s/a/b", "a/.phi/snapshots/s/b", "a/b/.phi/snapshots/s"].map(at));
    let above = |path: &str| walk(&volume, Ino::ROOT, path).unwrap().ino;
    assert_eq!(above("a/.phi/snapshots/s/.."), at("a/.phi/snapshots"));
    assert_eq!(above("a/.phi/snapshots/s/b/.."), at("a/.phi/snapshots/s"));
    assert_eq!(above("a/.phi/.."), a);
}

#[test]
fn lists_tell_nobody_more_than_their_directory_does() {
    let (volume, _) = volume();
    let dir = make(&volume, Ino::ROOT, b"d", NewKind::Directory);
    let change = SetAttr { permissions: Some(0o711), uid: Some(5), gid: Some(6), ..SetAttr::default() };
    volume.setattr(&CALLER, dir, &change).unwrap();
    write(&volume, dir, b"secret", b"1");
    for path in [".phi", ".phi/snapshots", ".phi/versions", ".phi/versions/secret"] {
        let attr = walk(&volume, dir, path).unwrap();
        assert_eq!((attr.permissions, attr.uid, attr.gid), (0o511, 5, 6), "{path}");
    }
}
