//! Snapshots and versions as programs see them, below `.phi` of a real mount.

mod seen;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use phifs_tests::{DataMode, Node, is_root, on_ext4, run_ok, skip, wait_until};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use seen::{assert_same, seen};

const LIMIT: Duration = Duration::from_secs(60);

/// Ends the test where there is no phifs to ask.
macro_rules! needs_phifs {
    () => {
        if on_ext4() || !is_root() {
            skip!("about phifs, as root");
        }
    };
}

fn snapshot(node: &Node, name: &str) -> PathBuf {
    node.phifs(["snapshot", "create", name]).expect_success();
    node.dir().join(".phi/snapshots").join(name)
}

fn names(dir: &Path) -> BTreeSet<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    fs::read_dir(dir).unwrap().map(name).collect()
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap()
}

/// A tree with something of every kind in it.
fn make_tree(dir: &Path) {
    let at = |name: &str| dir.join(name);
    fs::create_dir_all(at("deep/er/and/deeper")).unwrap();
    for n in 0..300 {
        fs::write(at("deep").join(format!("file {n}")), format!("{n}\n").repeat(n)).unwrap();
    }
    let mut bytes = vec![0; 5 << 20];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    fs::write(at("long"), &bytes).unwrap();
    fs::write(at("empty"), b"").unwrap();
    let holes = File::create(at("holes")).unwrap();
    holes.write_all_at(&bytes[..100_000], 1 << 20).unwrap();
    holes.set_len(10 << 20).unwrap();
    rustix::fs::fallocate(&holes, FallocateFlags::KEEP_SIZE, 0, 4096).unwrap();
    drop(holes);
    fs::hard_link(at("long"), at("deep/long too")).unwrap();
    fs::hard_link(at("long"), at("deep/er/long three")).unwrap();
    symlink("../nowhere", at("deep/symlink")).unwrap();
    symlink("long", at("to long")).unwrap();
    let mode = Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, mode, 0).unwrap();
    rustix::fs::mknodat(CWD, at("socket"), FileType::Socket, mode, 0).unwrap();
    rustix::fs::mknodat(CWD, at("device"), FileType::CharacterDevice, mode, rustix::fs::makedev(1, 7)).unwrap();
    for (name, value) in [("user.a", b"1".as_slice()), ("trusted.b", &[7; 500])] {
        rustix::fs::setxattr(at("long"), name, value, XattrFlags::empty()).unwrap();
        rustix::fs::setxattr(at("deep/er"), name, value, XattrFlags::empty()).unwrap();
    }
    // user::rw-,user:7:r--,group::r--,mask::r--,other::---
    let entries: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 4, 7), (4, 4, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)];
    let acl = entries
        .iter()
        .flat_map(|(tag, bits, id)| [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat());
    let acl: Vec<u8> = 2u32.to_le_bytes().into_iter().chain(acl).collect();
    rustix::fs::setxattr(at("empty"), "system.posix_acl_access", &acl, XattrFlags::empty()).unwrap();
    std::os::unix::fs::chown(at("deep/er"), Some(12), Some(34)).unwrap();
    fs::set_permissions(at("deep/er"), fs::Permissions::from_mode(0o1751)).unwrap();
    let old = Timespec { tv_sec: -77, tv_nsec: 5 };
    let times = Timestamps { last_access: old, last_modification: old };
    rustix::fs::utimensat(CWD, at("deep/file 7"), &times, AtFlags::empty()).unwrap();
    rustix::fs::utimensat(CWD, at("deep/er/and"), &times, AtFlags::empty()).unwrap();
}

/// Until what was closed is published: then attributes no longer change by themselves.
fn wait_for_publication(node: &Node) {
    let unpublished = || {
        let status = node.phifs(["status", "--json"]).expect_success();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        status["volume"]["unpublished_files"].as_u64().unwrap()
    };
    assert!(wait_until(LIMIT, || unpublished() == 0), "files stay unpublished");
}

fn snapshot_stays_as_the_tree_was(mode: DataMode) {
    needs_phifs!();
    let mut node = Node::up(mode);
    let tree = node.dir().join("tree");
    fs::create_dir(&tree).unwrap();
    make_tree(&tree);
    // On the write-back path the kernel has a ctime of its own, until it forgets the inode.
    node.down();
    node.start();
    let was = seen(&tree);
    let top = snapshot(&node, "before");
    assert_same(&top.join("tree"), &was);

    // Everything changes; the snapshot does not.
    fs::write(tree.join("long"), b"short").unwrap();
    fs::remove_file(tree.join("deep/long too")).unwrap();
    rustix::fs::removexattr(tree.join("deep/er"), "user.a").unwrap();
    fs::set_permissions(tree.join("deep"), fs::Permissions::from_mode(0o700)).unwrap();
    for n in 0..300 {
        fs::remove_file(tree.join(format!("deep/file {n}"))).unwrap();
    }
    let moved = node.dir().join("moved");
    fs::rename(&tree, &moved).unwrap();
    assert_same(&top.join("tree"), &was);
    // A directory is found by what it is, not by its name.
    assert_same(&moved.join(".phi/snapshots/before"), &was);
    node.phifs(["gc"]).expect_success();
    node.down();
    node.start();
    assert_same(&top.join("tree"), &was);

    let found = run_ok(Command::new("find").arg(top.join("tree")), LIMIT).stdout_text();
    assert_eq!(found.lines().count(), was.len());
    let copy = tempfile::tempdir().unwrap();
    run_ok(Command::new("cp").arg("-a").arg(top.join("tree")).arg(copy.path()), LIMIT);
    let copied = seen(&copy.path().join("tree"));
    assert!(copied.keys().eq(was.keys()));
    for (path, was) in &was {
        assert_eq!(copied[path].copied(), was.copied(), "{}", path.display());
    }
    node.assert_no_panic();
}

#[test]
fn snapshot_stays_as_the_tree_was_on_passthrough() {
    snapshot_stays_as_the_tree_was(DataMode::Passthrough);
}

#[test]
fn snapshot_stays_as_the_tree_was_on_writeback() {
    snapshot_stays_as_the_tree_was(DataMode::Writeback);
}

#[test]
fn every_change_below_phi_is_refused_as_read_only() {
    needs_phifs!();
    let node = Node::up(DataMode::Passthrough);
    let dir = node.dir();
    fs::create_dir(dir.join("d")).unwrap();
    fs::write(dir.join("d/f"), b"one").unwrap();
    let top = snapshot(&node, "s");
    let inside = top.join("d");
    let refused = |what: &str, result: std::io::Result<()>| {
        assert_eq!(errno(&result.expect_err(what)), Errno::ROFS, "{what}");
    };
    let version = names(&dir.join("d/.phi/versions/f")).into_iter().next().unwrap();
    let files = [inside.join("f"), dir.join("d/.phi/versions/f").join(version), dir.join(".phi/status.json")];
    for file in &files {
        refused("open for writing", File::options().write(true).open(file).map(drop));
        refused("open for appending", File::options().append(true).open(file).map(drop));
        refused("truncate", File::options().write(true).truncate(true).open(file).map(drop));
        refused("chmod", fs::set_permissions(file, fs::Permissions::from_mode(0o777)));
        refused("chown", std::os::unix::fs::chown(file, Some(1), None));
        refused("link", fs::hard_link(file, dir.join("link")));
        refused("unlink", fs::remove_file(file));
        refused("rename out", fs::rename(file, dir.join("out")));
        let set = rustix::fs::setxattr(file, "user.a", b"1", XattrFlags::empty());
        refused("setxattr", set.map_err(Into::into));
    }
    for at in [&inside, &top, &dir.join(".phi"), &dir.join(".phi/snapshots"), &dir.join("d/.phi/versions/f")] {
        refused("create", File::create_new(at.join("new")).map(drop));
        refused("mkdir", fs::create_dir(at.join("new")));
        refused("symlink", symlink("x", at.join("new")));
        refused("rename in", fs::rename(dir.join("d/f"), at.join("in")));
        refused("link in", fs::hard_link(dir.join("d/f"), at.join("in")));
        refused("utimes", File::open(at).unwrap().set_modified(std::time::SystemTime::now()));
    }
    refused("rmdir", fs::remove_dir(&inside));
    refused("rmdir of a snapshot", fs::remove_dir(&top));
    let exchanged = rustix::fs::renameat_with(CWD, dir.join("d"), CWD, &inside, RenameFlags::EXCHANGE);
    refused("exchange", exchanged.map_err(Into::into));
    assert_eq!(fs::read(inside.join("f")).unwrap(), b"one");
    assert_eq!(names(dir), BTreeSet::from(["d".to_owned()]));
}

#[test]
fn snapshots_are_listed_and_gone_at_once() {
    needs_phifs!();
    let node = Node::up(DataMode::Passthrough);
    fs::create_dir(node.dir().join("d")).unwrap();
    let lists = [node.dir().join(".phi/snapshots"), node.dir().join("d/.phi/snapshots")];
    let held = File::open(&lists[1]).unwrap();
    let held_names = || {
        let mut dir = rustix::fs::Dir::read_from(&held).unwrap();
        dir.rewind();
        let names = dir.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        names.filter(|name| !name.starts_with('.')).collect::<BTreeSet<_>>()
    };
    let mut there = BTreeSet::new();
    for round in 0..40 {
        let name = format!("s{round}");
        snapshot(&node, &name);
        there.insert(name);
        if round % 3 == 2 {
            let gone = format!("s{}", round / 2);
            if there.remove(&gone) {
                node.phifs(["snapshot", "delete", &gone]).expect_success();
                for list in &lists {
                    let lost = fs::metadata(list.join(&gone)).unwrap_err();
                    assert_eq!(errno(&lost), Errno::NOENT, "round {round}");
                }
            }
        }
        assert_eq!(held_names(), there, "round {round}, by a descriptor");
        for list in &lists {
            assert_eq!(names(list), there, "round {round}");
            assert!(there.iter().all(|name| list.join(name).is_dir()));
        }
    }
    assert!(!names(node.dir()).contains(".phi"));
}

#[test]
fn whoever_stands_in_a_deleted_snapshot_is_told_and_nothing_hangs() {
    needs_phifs!();
    let node = Node::up(DataMode::Passthrough);
    let dir = node.dir().join("d");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("f"), vec![7; 3 << 20]).unwrap();
    wait_for_publication(&node);
    let inside = snapshot(&node, "s").join("d");
    fs::remove_file(dir.join("f")).unwrap();
    let (stood, file) = (File::open(&inside).unwrap(), File::open(inside.join("f")).unwrap());
    assert_eq!(names(&inside), BTreeSet::from(["f".to_owned()]));
    let mut mapped = [0; 10];
    file.read_exact_at(&mut mapped, 0).unwrap();
    node.phifs(["snapshot", "delete", "s"]).expect_success();
    node.phifs(["gc"]).expect_success();
    let stale = |error: std::io::Error| matches!(errno(&error), Errno::STALE | Errno::NOENT | Errno::IO);
    // The kernel is told to drop what it has kept, which takes a moment.
    let is_gone = |what: &mut dyn FnMut() -> std::io::Result<()>| wait_until(LIMIT, || what().is_err_and(stale));
    assert!(is_gone(&mut || file.metadata().map(drop)));
    assert!(is_gone(&mut || file.read_exact_at(&mut [0; 10], 2 << 20)));
    assert!(is_gone(&mut || Ok(rustix::fs::statat(&stood, "f", AtFlags::empty()).map(drop)?)));
    assert!(is_gone(&mut || fs::read_dir(&inside).map(drop)));
    drop((stood, file));
    // The name is free for another.
    let again = snapshot(&node, "s").join("d");
    assert_eq!(names(&again), BTreeSet::new());
    node.assert_no_panic();
}

#[test]
fn log_tells_the_versions_of_a_file_however_it_is_named() {
    needs_phifs!();
    let node = Node::up(DataMode::Passthrough);
    let dir = node.dir().join("d");
    fs::create_dir(&dir).unwrap();
    let file = dir.join("f");
    for text in ["1", "22"] {
        fs::write(&file, text).unwrap();
        wait_for_publication(&node);
    }
    snapshot(&node, "s");
    // Not published when it is asked for.
    File::options().append(true).open(&file).unwrap().write_all(b"3").unwrap();
    symlink(&file, node.dir().join("link")).unwrap();
    let link = node.dir().join("link");
    let log = |path: &Path| -> serde_json::Value {
        let mut command = node.command(["log", "--json"]);
        let ran = run_ok(command.arg(path).current_dir(&dir), LIMIT);
        serde_json::from_slice(&ran.stdout).unwrap()
    };
    let told = log(&file);
    let sizes: Vec<_> = told.as_array().unwrap().iter().map(|version| version["bytes"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [1, 2, 3]);
    assert_eq!(told[1]["snapshots"][0]["name"], "s");
    assert_eq!((&told[1]["current"], &told[2]["current"]), (&false.into(), &true.into()));
    for path in [link.as_path(), Path::new("f"), Path::new("/d/f"), Path::new("d/f")] {
        assert_eq!(log(path), told, "{}", path.display());
    }
    let versions = dir.join(".phi/versions/f");
    let read: Vec<_> = names(&versions).iter().map(|name| fs::read_to_string(versions.join(name)).unwrap()).collect();
    assert_eq!(read, ["1", "22", "223"]);
    let last = names(&versions).pop_last().unwrap();
    assert_eq!(fs::metadata(versions.join(last)).unwrap().size(), 3);
    for (path, word) in [("/nothing", "there is no /nothing"), (dir.to_str().unwrap(), "no regular file")] {
        let ran = node.phifs(["log", path]).expect_clear_failure();
        assert!(ran.stderr_text().contains(word), "{ran}");
    }
    let text = node.phifs(["log", file.to_str().unwrap()]).expect_success().stdout_text();
    assert!(text.lines().nth(2).unwrap().ends_with("  s"), "{text}");
    assert!(node.phifs(["log"]).expect_success().stdout_text().contains("create"));
}
