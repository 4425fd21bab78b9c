//! Snapshots, comparisons and restores, held against what plain walks of the trees say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use phifs_core::disk::{Access, CrashDisk, Disk, FaultDisk, MemDisk, PowerLoss};
use phifs_core::id::{DirId, InodeId};
use phifs_core::meta::Frozen;
use phifs_core::namespace::derive::Child;
use phifs_core::namespace::tables::Rows;
use phifs_core::namespace::view;
use phifs_core::snapshot::changes::{Change, Looks, What, looks_of};
use phifs_core::snapshot::facts::{Facts, count};
use phifs_core::snapshot::record::root_of;
use phifs_core::snapshot::tree::tree_root;
use phifs_core::time::Timestamp;
use phifs_core::volume::local::{LocalVolume, SnapshotError};
use phifs_core::volume::{FileKind, Ino, NewKind, NewNode, SetAttr, SetTime, Volume, XattrMode};

use crate::crash::workload;
use crate::harness::{CALLER, MEMORY, Mode, NODE, Op, Player, TestEnv, WRITE, open, read_tree, settle};

fn is_long() -> bool {
    std::env::var_os("PHIFS_LONG").is_some()
}

fn snap(volume: &LocalVolume, name: &str) -> [u8; 32] {
    let snapshot = volume.create_snapshot(name, Vec::new(), false).unwrap();
    tree_root(&volume.frozen(&snapshot.cut)).unwrap()
}

fn frozen(volume: &LocalVolume, name: &str) -> Frozen {
    volume.frozen(&volume.find_snapshot(name).unwrap().1.cut)
}

/// A volume after a workload, with snapshots named 0, 1, .. on the way, and what they looked like.
fn played(seed: u64, len: usize, every: usize) -> (Player, Vec<[u8; 32]>) {
    let mode = Mode { kernel: seed % 2 == 1, memory_bytes: MEMORY[(seed % 3) as usize] };
    let mut player = Player::new(Arc::new(MemDisk::new()), mode, 1).unwrap();
    let mut roots = Vec::new();
    for (at, op) in workload(seed, len).iter().enumerate() {
        player.play(op).unwrap();
        if at % every == every - 1 {
            roots.push(snap(&player.volume, &roots.len().to_string()));
        }
    }
    (player, roots)
}

fn assert_whole(volume: &LocalVolume, what: &str) {
    let report = volume.fsck(false, &|_| {}).unwrap();
    assert!(report.problems.is_empty(), "{what}: {:?}", report.problems);
}

#[test]
fn a_restore_gives_the_tree_of_the_snapshot_whatever_happened_since() {
    for seed in 500..if is_long() { 700 } else { 512 } {
        let (mut player, roots) = played(seed, 160, 32);
        let mut at = seed as usize;
        for round in 0..4 {
            at = (at * 7 + 3) % roots.len();
            let what = format!("workload {seed}, restore {round} of {at}");
            // Some files are still open, and some of them changed.
            let restored = player.volume.restore(&at.to_string(), None, false, &|_, _| {}).unwrap();
            let after = snap(&player.volume, &format!("after-{round}"));
            let left = player.volume.snapshot_changes(&at.to_string(), Some(&format!("after-{round}"))).unwrap();
            assert_eq!(after, roots[at], "{what}: {:?} left of {:?}", lines(&left), lines(&restored.changes));
            assert!(left.iter().all(|change| change.kind == FileKind::File), "{what}: only open files got copies");
            assert_whole(&player.volume, &what);
        }
        while !player.handles.is_empty() {
            player.release(0);
        }
        settle(&player.volume);
        let names: Vec<String> = player.volume.snapshots().unwrap().into_iter().map(|(name, _)| name).collect();
        player.volume.delete_snapshots(&names).unwrap();
        let before = read_tree(&player.volume).unwrap();
        // The second one sees the space of what the first one forgot.
        for _ in 0..2 {
            player.volume.collect(1.0, &|_| {}).unwrap();
        }
        assert!(read_tree(&player.volume).unwrap() == before, "workload {seed}: a collection changes nothing");
        assert_whole(&player.volume, "after a collection");
    }
}

#[test]
fn a_dry_run_tells_and_changes_nothing() {
    for seed in 520..526 {
        let (player, roots) = played(seed, 120, 40);
        let before = snap(&player.volume, "before");
        let count = player.volume.snapshots().unwrap().len();
        let told = player.volume.restore("0", None, true, &|_, _| {}).unwrap();
        assert_eq!(told.before, None);
        assert_eq!(player.volume.snapshots().unwrap().len(), count);
        assert_eq!(snap(&player.volume, "after"), before);
        assert_eq!(told.changes.is_empty(), player.volume.snapshot_changes("before", Some("0")).unwrap().is_empty());
        assert_eq!(roots.len(), 3);
    }
}

fn make(volume: &LocalVolume, parent: Ino, name: &[u8]) -> Ino {
    let node = NewNode { kind: NewKind::Directory, permissions: 0o755, umask: 0 };
    volume.make(&CALLER, parent, name, &node).unwrap().ino
}

fn write(volume: &LocalVolume, parent: Ino, name: &[u8], bytes: &[u8]) -> Ino {
    let (ino, opened) = match volume.lookup(&CALLER, parent, name) {
        Ok(attr) => {
            let how = phifs_core::volume::OpenHow { truncate: true, ..WRITE };
            (attr.ino, volume.open(&CALLER, attr.ino, &how).unwrap())
        }
        Err(_) => {
            let (attr, opened) = volume.create(&CALLER, parent, name, &NODE, &WRITE).unwrap();
            (attr.ino, opened)
        }
    };
    volume.write(&CALLER, ino, opened.handle, 0, bytes, false).unwrap();
    volume.release(ino, opened.handle);
    ino
}

fn new_volume() -> (Arc<dyn Disk>, Arc<TestEnv>, LocalVolume) {
    let disk: Arc<dyn Disk> = Arc::new(MemDisk::new());
    let env = TestEnv::new(1);
    let volume = open(&disk, &env).unwrap();
    (disk, env, volume)
}

fn lines(changes: &[Change]) -> Vec<String> {
    let text = |path: &[u8]| path.escape_ascii().to_string();
    let line = |change: &Change| match (&change.what, &change.from) {
        (What::Renamed, Some(from)) => format!("R {} -> {}", text(from), text(&change.path)),
        (what, _) => format!("{} {}", &format!("{what:?}")[..1], text(&change.path)),
    };
    changes.iter().map(line).collect()
}

#[test]
fn a_restore_of_one_path_leaves_the_rest_alone() {
    let (_, _, volume) = new_volume();
    let (a, b) = (make(&volume, Ino::ROOT, b"a"), make(&volume, Ino::ROOT, b"b"));
    let deep = make(&volume, a, b"deep");
    write(&volume, deep, b"x", b"one");
    write(&volume, a, b"y", b"one");
    write(&volume, b, b"z", b"one");
    snap(&volume, "s");
    // Moved out, changed, removed, added; and a change elsewhere.
    volume.rename(a, b"deep", b, b"moved", phifs_core::volume::RenameMode::Replace).unwrap();
    write(&volume, a, b"y", b"two");
    write(&volume, a, b"new", b"two");
    write(&volume, b, b"z", b"two");
    let before = snap(&volume, "before");
    let restored = volume.restore("s", Some(b"/a"), false, &|_, _| {}).unwrap();
    assert_eq!(lines(&restored.changes), ["A /a/deep", "D /a/new", "M /a/y"]);
    let (_, files) = read_tree(&volume).unwrap();
    let paths: Vec<(&str, &str)> = files
        .iter()
        .map(|(path, bytes)| (std::str::from_utf8(path).unwrap(), std::str::from_utf8(bytes).unwrap()))
        .collect();
    assert_eq!(paths, [("/a/deep/x", "one"), ("/a/y", "one"), ("/b/moved/x", "one"), ("/b/z", "two")]);
    assert!(matches!(volume.restore("s", Some(b"/nowhere"), false, &|_, _| {}), Err(SnapshotError::NoPath(_))));
    let back = restored.before.unwrap();
    volume.restore(&back, None, false, &|_, _| {}).unwrap();
    assert_eq!(snap(&volume, "again"), before, "how it was before can be had again");
    volume.restore("s", Some(b"/b/z"), false, &|_, _| {}).unwrap();
    assert_eq!(read_tree(&volume).unwrap().1[&b"/b/z"[..]], b"one");
}

#[test]
fn what_a_snapshot_holds_is_counted_right_along_the_changes() {
    for seed in 530..536 {
        let (player, roots) = played(seed, 200, 20);
        player.volume.seal_snapshots().unwrap();
        let mut parents = Vec::new();
        for n in 0..roots.len() {
            let (_, snapshot) = player.volume.find_snapshot(&n.to_string()).unwrap();
            let sealed = player.volume.sealed_record(snapshot.id.unwrap()).unwrap().unwrap();
            let record = &sealed.record;
            assert_eq!(record.parents, parents, "each has the one before it as its parent");
            parents = vec![sealed.id()];
            let glyphs = player.volume.glyphs();
            let Facts { kappa, logical_bytes, conflicts, .. } =
                count(glyphs, None, &player.volume.frozen(&snapshot.cut)).unwrap();
            assert_eq!((record.kappa, record.delta_phi.logical_bytes), (kappa, logical_bytes), "workload {seed}, {n}");
            assert_eq!((record.coherence.conflicts, conflicts), (0, 0));
        }
    }
}

/// Everything below a directory, by path.
fn walk(tables: &Frozen) -> BTreeMap<Vec<u8>, (InodeId, Looks)> {
    let mut found = BTreeMap::new();
    let mut todo = vec![(Vec::new(), Child::Dir(DirId::ROOT))];
    while let Some((path, child)) = todo.pop() {
        if let Child::Dir(dir) = child {
            for item in view::list(tables, dir, 0, usize::MAX).unwrap() {
                todo.push(([&path[..], b"/", &item.name].concat(), item.child));
            }
        }
        let row = tables.inode(child.inode()).unwrap().unwrap();
        let mut looks = looks_of(tables, child.inode(), &row).unwrap();
        if looks.kind == FileKind::Directory {
            looks.mtime = Timestamp::default();
        }
        found.insert(if path.is_empty() { b"/".to_vec() } else { path }, (child.inode(), looks));
    }
    found
}

#[test]
fn a_comparison_explains_every_difference_and_nothing_else() {
    for seed in 540..if is_long() { 640 } else { 548 } {
        let (player, roots) = played(seed, 160, 40);
        for (from, to) in (0..roots.len()).flat_map(|a| (0..roots.len()).map(move |b| (a, b))) {
            let (old, new) = (frozen(&player.volume, &from.to_string()), frozen(&player.volume, &to.to_string()));
            let changes = player.volume.snapshot_changes(&from.to_string(), Some(&to.to_string())).unwrap();
            let (old, new) = (walk(&old), walk(&new));
            let what = format!("workload {seed}, {from} to {to}: {:?}", lines(&changes));
            // The paths of the old tree, as the renames of directories make them.
            let moved = |path: &[u8]| {
                let (inode, _) = &old[path];
                new.iter().find(|(_, (new, _))| new == inode).map(|(path, _)| path.clone())
            };
            for (path, (inode, looks)) in &old {
                let told = |wanted: What, at: &[u8]| changes.iter().any(|c| c.what == wanted && c.path == at);
                let names: Vec<&Vec<u8>> =
                    new.iter().filter(|(_, (id, _))| id == inode).map(|(path, _)| path).collect();
                if names.is_empty() {
                    assert!(told(What::Deleted, path), "{what}: {path:?} went");
                }
                if let Some(now) = moved(path)
                    && new[&now].1 != *looks
                {
                    let told = names.iter().any(|name| told(What::Modified, name) || told(What::Added, name));
                    assert!(told, "{what}: {now:?} changed");
                }
            }
            for (path, (inode, _)) in &new {
                let is_new = !old.values().any(|(old, _)| old == inode);
                let is_told = changes.iter().any(|c| c.what == What::Added && c.path == *path);
                assert!(!is_new || is_told, "{what}: {path:?} came");
            }
            for change in &changes {
                match change.what {
                    What::Added | What::Modified => assert!(new.contains_key(&change.path), "{what}"),
                    What::Deleted => assert!(old.contains_key(&change.path), "{what}"),
                    What::Renamed => {
                        let from = change.from.as_ref().unwrap();
                        assert_eq!(old[from].0, new[&change.path].0, "{what}: it is the same inode");
                    }
                }
                if change.what == What::Modified {
                    let (inode, looks) = &new[&change.path];
                    let was = old.values().find(|(old, _)| old == inode).map(|(_, looks)| looks);
                    assert!(was.is_some_and(|was| was != looks), "{what}: {:?} did change", change.path);
                }
            }
            assert_eq!(from == to, changes.is_empty() && from == to);
        }
    }
}

#[test]
fn a_moved_tree_is_one_line() {
    let (_, _, volume) = new_volume();
    let (a, b) = (make(&volume, Ino::ROOT, b"a"), make(&volume, Ino::ROOT, b"b"));
    for n in 0..20 {
        write(&volume, a, format!("f{n}").as_bytes(), b"x");
    }
    snap(&volume, "s");
    volume.rename(Ino::ROOT, b"a", b, b"c", phifs_core::volume::RenameMode::Replace).unwrap();
    assert_eq!(lines(&volume.snapshot_changes("s", None).unwrap()), ["R /a -> /b/c"]);
}

/// The same operations give the same root, whatever checkpoints, restarts and collections lie between them.
#[test]
fn the_root_depends_on_the_operations_alone() {
    for seed in 550..556 {
        let roots = [0, 1, 2].map(|variant| {
            let mode = Mode { kernel: false, memory_bytes: 64 << 20 };
            let mut player = Player::new(Arc::new(MemDisk::new()), mode, 1).unwrap();
            for (at, op) in workload(seed, 150).iter().enumerate() {
                // Background work makes operations; it is to come at the same points.
                if !matches!(op, Op::Settle | Op::Tick | Op::Collect | Op::Checkpoint | Op::Reopen) {
                    player.play(op).unwrap();
                }
                if at % 10 == 9 {
                    while !player.handles.is_empty() {
                        player.release(0);
                    }
                    settle(&player.volume);
                    match (variant, at % 30) {
                        (1, _) => player.volume.make_checkpoint(false).unwrap(),
                        (2, 29) => player.reopen().unwrap(),
                        (2, 9) => drop(player.volume.collect(1.0, &|_| {}).unwrap()),
                        _ => {}
                    }
                }
            }
            let snapshot = player.volume.create_snapshot("s", Vec::new(), false).unwrap();
            (root_of(&snapshot.cut.roots), snapshot.cut.context)
        });
        assert_eq!(roots[0].1, roots[1].1, "workload {seed}");
        assert_eq!(roots[0], roots[1], "workload {seed}: checkpoints");
        assert_eq!(roots[0], roots[2], "workload {seed}: restarts and collections");
    }
}

#[test]
fn equal_trees_look_equal_whatever_their_histories() {
    let looks = [false, true].map(|detour| {
        let (_, env, volume) = new_volume();
        if detour {
            write(&volume, Ino::ROOT, b"gone", b"x");
            volume.unlink(Ino::ROOT, b"gone").unwrap();
            let other = make(&volume, Ino::ROOT, b"other");
            volume.rename(Ino::ROOT, b"other", Ino::ROOT, b"d", phifs_core::volume::RenameMode::Replace).unwrap();
            write(&volume, other, b"f", b"first");
            env.advance();
        } else {
            make(&volume, Ino::ROOT, b"d");
        }
        let dir = volume.lookup(&CALLER, Ino::ROOT, b"d").unwrap().ino;
        let file = write(&volume, dir, b"f", b"last");
        volume.link(file, Ino::ROOT, b"hard").unwrap();
        volume.setxattr(&CALLER, file, b"user.x", b"1", XattrMode::Set).unwrap();
        settle(&volume);
        for ino in [Ino::ROOT, dir, file] {
            let time = SetTime::At(Timestamp::new(1000, 0));
            volume.setattr(&CALLER, ino, &SetAttr { mtime: Some(time), ..SetAttr::default() }).unwrap();
        }
        (volume, file)
    });
    let roots: Vec<_> = looks.iter().map(|(volume, _)| snap(volume, "s")).collect();
    assert_eq!(roots[0], roots[1]);
    for (n, (volume, file)) in looks.iter().enumerate() {
        // Each of these can be seen.
        match n {
            0 => volume.setxattr(&CALLER, *file, b"user.x", b"2", XattrMode::Set).unwrap(),
            _ => volume.unlink(Ino::ROOT, b"hard").unwrap(),
        }
        assert_ne!(snap(volume, "t"), roots[0]);
    }
}

#[test]
fn names_that_are_taken_or_mislead_are_refused_and_nothing_changes() {
    let (_, _, volume) = new_volume();
    snap(&volume, "s");
    assert!(matches!(volume.create_snapshot("s", vec![], false), Err(SnapshotError::Exists(_))));
    for name in ["", "a/b", "a\nb", &"x".repeat(300)] {
        assert!(matches!(volume.create_snapshot(name, vec![], false), Err(SnapshotError::BadName(..))), "{name}");
    }
    let names = ["s".to_owned(), "t".to_owned()];
    assert!(matches!(volume.delete_snapshots(&names), Err(SnapshotError::NotFound(_))));
    assert_eq!(volume.snapshots().unwrap().len(), 1);
}

#[test]
fn space_comes_back_when_the_last_snapshot_that_holds_it_goes() {
    let (disk, env, volume) = new_volume();
    let noise = |seed: u8| {
        let mut bytes = vec![0; 3 << 20];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    };
    write(&volume, Ino::ROOT, b"stays", &noise(1));
    write(&volume, Ino::ROOT, b"goes", &noise(2));
    snap(&volume, "one");
    snap(&volume, "two");
    volume.unlink(Ino::ROOT, b"goes").unwrap();
    let stored = |volume: &LocalVolume| {
        volume.collect(1.0, &|_| {}).unwrap();
        volume.status().data_stored_bytes >> 20
    };
    assert_eq!(stored(&volume), 6);
    volume.delete_snapshots(&["one".to_owned()]).unwrap();
    assert_eq!(stored(&volume), 6);
    volume.restore("two", Some(b"/goes"), false, &|_, _| {}).unwrap();
    assert_eq!(read_tree(&volume).unwrap().1[&b"/goes"[..]], noise(2));
    volume.unlink(Ino::ROOT, b"goes").unwrap();
    let names: Vec<String> = volume.snapshots().unwrap().into_iter().map(|(name, _)| name).collect();
    volume.delete_snapshots(&names).unwrap();
    assert_eq!(volume.status().inodes, 3, "what had no name was kept for them");
    assert_eq!(stored(&volume), 3);
    assert_eq!(volume.status().inodes, 2);
    settle(&volume);
    volume.shut_down().unwrap();
    drop(volume);
    let volume = open(&disk, &env).unwrap();
    assert_eq!(read_tree(&volume).unwrap().1.keys().collect::<Vec<_>>(), [&b"/stays".to_vec()]);
}

#[test]
fn snapshots_between_few_changes_take_little_room_and_outlive_each_other() {
    let (disk, env, volume) = new_volume();
    let dir = make(&volume, Ino::ROOT, b"dir");
    let bytes = |n: u64| blake3::hash(&n.to_le_bytes()).to_hex().repeat(16).into_bytes();
    for n in 0..400 {
        write(&volume, dir, format!("{n}").as_bytes(), &bytes(n));
    }
    let mut roots = vec![snap(&volume, "0")];
    let (rounds, changes) = (90, 8);
    let mut fresh = 1000;
    for round in 1..rounds {
        for n in 0..changes {
            fresh += 1;
            write(&volume, dir, format!("{}", (round * 31 + n * 50) % 400).as_bytes(), &bytes(fresh));
        }
        roots.push(snap(&volume, &format!("{round}")));
    }
    settle(&volume);
    volume.collect(1.0, &|_| {}).unwrap();
    let stored = volume.status().node_stored_bytes;
    // A leaf of 32 KiB for each changed file would be 20 MB.
    assert!(stored < 3 << 20, "{stored} bytes");
    // What the deleted ones tell the others by goes.
    let gone: Vec<String> = (0..rounds).filter(|n| n % 30 != 7).map(|n| n.to_string()).collect();
    volume.delete_snapshots(&gone).unwrap();
    let mut volume = volume;
    for _ in 0..2 {
        volume.collect(1.0, &|_| {}).unwrap();
        volume.shut_down().unwrap();
        drop(volume);
        volume = open(&disk, &env).unwrap();
        assert_whole(&volume, "after a collection");
        for round in (0..rounds).filter(|n| n % 30 == 7) {
            let name = round.to_string();
            assert_eq!(tree_root(&frozen(&volume, &name)).unwrap(), roots[round], "snapshot {name}");
        }
    }
    let left = volume.status().node_stored_bytes;
    assert!(left < stored * 2 / 3, "{left} of {stored} bytes are left");
}

/// What the power loss leaves: a snapshot is there as it was or not at all, and a restore that was cut short can be
/// made again.
#[test]
fn power_loss_at_any_sync_leaves_snapshots_whole() {
    // The names that were promised, and of a disk that lives what they mean.
    let story = |disk: &CrashDisk| -> BTreeMap<String, Option<[u8; 32]>> {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let mut done = BTreeMap::new();
        let Ok(volume) = open(&shared, &TestEnv::new(1)) else { return done };
        let mut run = || -> Result<(), SnapshotError> {
            let dir = volume.make(
                &CALLER,
                Ino::ROOT,
                b"d",
                &NewNode { kind: NewKind::Directory, permissions: 0o755, umask: 0 },
            )?;
            for round in 0..4u8 {
                for n in 0..3u8 {
                    let name = [b'a' + n];
                    let attr = volume.lookup(&CALLER, dir.ino, &name);
                    let (ino, opened) = match attr {
                        Ok(attr) => (attr.ino, volume.open(&CALLER, attr.ino, &WRITE)?),
                        Err(_) => {
                            let (attr, opened) = volume.create(&CALLER, dir.ino, &name, &NODE, &WRITE)?;
                            (attr.ino, opened)
                        }
                    };
                    volume.write(
                        &CALLER,
                        ino,
                        opened.handle,
                        0,
                        &vec![round * 3 + n; 5000 * (n as usize + 1)],
                        false,
                    )?;
                    volume.release(ino, opened.handle);
                }
                let name = round.to_string();
                volume.take_snapshot(&name, vec![], false)?;
                done.insert(name, None);
                match round {
                    1 => drop(volume.unlink(dir.ino, b"b")),
                    2 => {
                        volume.restore("0", None, false, &|_, _| {})?;
                        volume.delete_snapshots(&["1".to_owned()])?;
                        done.remove("1");
                        volume.collect(1.0, &|_| {})?;
                        volume.seal_snapshots()?;
                    }
                    _ => {}
                }
            }
            Ok(())
        };
        if run().is_err() {
            assert!(disk.is_dead(), "only the disk may fail");
            return done;
        }
        for (name, root) in &mut done {
            // It may die only now, as the maps of the last one are made.
            let found = volume.find_snapshot(name);
            *root = found.ok().and_then(|(_, found)| tree_root(&volume.frozen(&found.cut)).ok());
        }
        done
    };
    let probe = CrashDisk::healthy();
    let wanted = story(&probe);
    let step = if is_long() { 1 } else { 2 };
    for point in (0..probe.syncs()).step_by(step) {
        let disk = CrashDisk::over(&MemDisk::new(), PowerLoss::AtSync(point));
        let promised = story(&disk);
        for seed in 0..2 {
            let what = format!("sync {point}, seed {seed}");
            let image: Arc<dyn Disk> = Arc::new(disk.after_power_loss(seed));
            let volume = open(&image, &TestEnv::new(2)).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_whole(&volume, &what);
            for name in promised.keys() {
                match volume.find_snapshot(name) {
                    Ok((_, snapshot)) => {
                        let found = tree_root(&volume.frozen(&snapshot.cut)).unwrap();
                        assert!(wanted.get(name).is_none_or(|wanted| *wanted == Some(found)), "{what}: {name}");
                    }
                    // Its deletion may have been under way.
                    Err(error) => assert!(name == "1", "{what}: {name}: {error}"),
                }
            }
            volume.seal_snapshots().unwrap();
            volume.collect(1.0, &|_| {}).unwrap();
            if promised.contains_key("0") {
                volume.restore("0", None, false, &|_, _| {}).unwrap();
                assert_eq!(Some(snap(&volume, "again")), wanted["0"], "{what}: a restore after the crash");
            }
            assert_whole(&volume, &what);
        }
    }
}

#[test]
fn a_snapshot_is_what_was_there_when_it_was_taken_however_late_its_maps_are_made() {
    for clean in [false, true] {
        let (disk, env, volume) = new_volume();
        let dir = make(&volume, Ino::ROOT, b"d");
        for n in 0..50u8 {
            write(&volume, dir, &[b'a', n + b'0'], &[n; 100]);
        }
        settle(&volume);
        volume.take_snapshot("s", vec![], false).unwrap();
        for n in 0..50u8 {
            write(&volume, dir, &[b'a', n + b'0'], &[n + 1; 200]);
        }
        volume.unlink(dir, b"a0").unwrap();
        settle(&volume);
        volume.fsync(dir, None, false).unwrap();
        if clean {
            volume.shut_down().unwrap();
        }
        // Without a clean stop the journal alone has it.
        drop(volume);
        let volume = open(&disk, &env).unwrap();
        let found = walk(&frozen(&volume, "s"));
        assert_eq!(found.len(), 52, "clean: {clean}");
        assert!(found.values().all(|(_, looks)| [0, 100].contains(&looks.content.len_bytes())), "clean: {clean}");
        assert_eq!(volume.snapshot_changes("s", None).unwrap().len(), 50);
        assert_whole(&volume, "after a restart");
    }
}

/// A database and its log: whoever sees one as it was then sees the other as it was then.
#[test]
fn files_of_a_group_are_published_in_one_operation() {
    for grouped in [false, true] {
        let (_, env, volume) = new_volume();
        let dir = make(&volume, Ino::ROOT, b"db");
        if grouped {
            volume.setxattr(&CALLER, dir, b"user.phi.group", b"1", XattrMode::Set).unwrap();
        }
        let open = |name: &[u8]| {
            let (attr, opened) = volume.create(&CALLER, dir, name, &NODE, &WRITE).unwrap();
            (attr.ino, opened.handle)
        };
        let (table, log) = (open(b"table"), open(b"log"));
        for round in 0..5u8 {
            for (ino, handle) in [table, log] {
                volume.write(&CALLER, ino, handle, 0, &[round; 6000], false).unwrap();
            }
            volume.fsync(log.0, Some(log.1), false).unwrap();
            for _ in 0..20 {
                env.advance();
            }
            volume.tick().unwrap();
        }
        let ops = volume.recent_ops(100).unwrap();
        let versions = |op: &phifs_core::volume::local::RecentOp| -> BTreeSet<InodeId> {
            let effects = op.effects.iter();
            effects
                .filter_map(|effect| match effect {
                    phifs_core::namespace::Effect::Inode(effect) if effect.version.is_some() => Some(effect.inode),
                    _ => None,
                })
                .collect()
        };
        let sizes: BTreeSet<usize> = ops.iter().map(|op| versions(op).len()).filter(|n| *n > 0).collect();
        assert_eq!(sizes, BTreeSet::from([if grouped { 2 } else { 1 }]), "grouped: {grouped}");
    }
}

/// Whatever write or sync fails, a snapshot is there or not, and a restore did all or nothing.
#[test]
fn a_failing_disk_leaves_the_volume_as_before_or_done() {
    const ENOSPC: i32 = 28;
    for access in [Access::Write, Access::Sync] {
        for skip in 0.. {
            let fault = Arc::new(FaultDisk::new(Arc::new(MemDisk::new())));
            let disk: Arc<dyn Disk> = fault.clone();
            let volume = open(&disk, &TestEnv::new(1)).unwrap();
            let dir = make(&volume, Ino::ROOT, b"d");
            for n in 0..6u8 {
                write(&volume, dir, &[b'a' + n], &vec![n; 3000 * n as usize + 1]);
            }
            let wanted = snap(&volume, "s");
            for n in 0..4u8 {
                write(&volume, dir, &[b'c' + n], &vec![n + 9; 20_000]);
            }
            volume.unlink(dir, b"a").unwrap();
            let before = snap(&volume, "t");
            let calls = fault.calls(access);
            fault.fail_once(access, skip, ENOSPC);
            let created = volume.create_snapshot("u", vec![], false);
            let restored = volume.restore("s", None, false, &|_, _| {});
            let met = fault.calls(access) > calls + skip;
            fault.heal();
            let what = format!("{access:?} {skip}: {created:?} {restored:?}");
            assert_whole(&volume, &what);
            assert!(created.is_err() || volume.find_snapshot("u").is_ok(), "{what}");
            match volume.create_snapshot("now", vec![], false) {
                Ok(now) => {
                    let now = tree_root(&volume.frozen(&now.cut)).unwrap();
                    assert_eq!(now, if restored.is_ok() { wanted } else { before }, "{what}");
                }
                // A failed sync of the journal makes the volume read-only until the next start.
                Err(_) => assert!(created.is_err() || restored.is_err(), "{what}"),
            }
            drop(volume);
            let volume = open(&disk, &TestEnv::new(2)).unwrap();
            assert_whole(&volume, &what);
            for (name, root) in [("s", wanted), ("t", before)] {
                assert_eq!(tree_root(&frozen(&volume, name)).unwrap(), root, "{what}: {name}");
            }
            if !met {
                break;
            }
        }
    }
}
