//! Names that mean several things after a merge: what is seen, told and decided.

use std::sync::Arc;

use phifs_core::disk::MemDisk;
use phifs_core::namespace::conflict::Matter;
use phifs_core::namespace::events::What;
use phifs_core::volume::local::{LocalVolume, MergeOptions, Resolution, Side};
use phifs_core::volume::{FileKind, Ino, NewKind, NewNode, RenameMode, Volume, VolumeError, XattrMode};

use crate::harness::{CALLER, READ, WRITE, settle};
use crate::merging::{branch, check, find, merge, mkdir, new_volume, paths, read, reopen, root, tree, write, write_in};

/// The volume and a branch of it, both with these files and directories.
fn two_lines(
    make: impl FnOnce(&LocalVolume),
) -> (MemDisk, Arc<crate::harness::TestEnv>, LocalVolume, Arc<LocalVolume>) {
    let (disk, env, volume) = new_volume();
    make(&volume);
    settle(&volume);
    volume.create_snapshot("base", vec![], false).unwrap();
    let one = branch(&volume, "base", "one");
    (disk, env, volume, one)
}

fn below(volume: &LocalVolume, path: &str) -> Ino {
    path.split('/').filter(|name| !name.is_empty()).fold(Ino::ROOT, |dir, name| find(volume, dir, name.as_bytes()))
}

fn listed(volume: &LocalVolume, path: &str) -> Vec<String> {
    let mut names = Vec::new();
    let each = &mut |entry: &phifs_core::volume::Entry| {
        names.push(String::from_utf8(entry.name.clone()).unwrap());
        true
    };
    volume.readdir(below(volume, path), 0, each).unwrap();
    names.retain(|name| name != "." && name != "..");
    names.sort();
    names
}

fn disputed(volume: &LocalVolume) -> Vec<(String, Matter, usize)> {
    let found = volume.conflicts(b"/").unwrap();
    let text = |path: &[u8]| String::from_utf8(path.to_vec()).unwrap();
    found.iter().map(|found| (text(&found.path), found.conflict.matter, found.conflict.choices.len())).collect()
}

fn xattr(volume: &LocalVolume, path: &str, name: &str) -> String {
    String::from_utf8(volume.getxattr(below(volume, path), name.as_bytes()).unwrap()).unwrap()
}

fn events(volume: &LocalVolume) -> Vec<(What, u8, String)> {
    let told = volume.events().unwrap();
    told.into_iter().map(|(_, event)| (event.what, event.row, String::from_utf8(event.path).unwrap())).collect()
}

#[test]
fn directories_that_both_sides_made_are_one_however_deep() {
    let (disk, env, volume, one) = two_lines(|_| {});
    for (line, name) in [(&volume, &b"here"[..]), (&*one, b"there")] {
        let dir = mkdir(line, Ino::ROOT, b"d");
        let deep = mkdir(line, dir, b"deep");
        write_in(line, deep, name, name);
        write_in(line, dir, b"same", b"equal");
    }
    let known = below(&volume, "d");
    merge(&volume, "one", "live");
    assert_eq!(paths(&volume), ["/d", "/d/deep", "/d/deep/here", "/d/deep/there", "/d/same"]);
    assert_eq!(below(&volume, "d"), known, "the kernel knows it by this number");
    assert_eq!(disputed(&volume), [], "equal files are one");
    assert_eq!(volume.getattr(known, None).unwrap().nlink, 1);
    assert_eq!(events(&volume), [(What::Union, 3, "/d".into()), (What::Union, 3, "/d/deep".into())]);
    // What is done to the union is done to all of it.
    write_in(&volume, below(&volume, "d/deep"), b"after", b"after");
    volume.rename(Ino::ROOT, b"d", Ino::ROOT, b"e", RenameMode::Replace).unwrap();
    assert!(matches!(volume.rmdir(Ino::ROOT, b"e"), Err(VolumeError::NotEmpty)));
    assert_eq!(listed(&volume, "e/deep"), ["after", "here", "there"]);
    check(&volume);
    volume.commit().unwrap();
    drop(one);
    drop(volume);
    let volume = reopen(&disk, &env);
    assert_eq!(below(&volume, "e"), known);
    for name in ["after", "here", "there"] {
        volume.unlink(below(&volume, "e/deep"), name.as_bytes()).unwrap();
    }
    volume.rmdir(below(&volume, "e"), b"deep").unwrap();
    volume.unlink(below(&volume, "e"), b"same").unwrap();
    volume.rmdir(Ino::ROOT, b"e").unwrap();
    assert_eq!(paths(&volume), [""; 0]);
    check(&volume);
}

#[test]
fn a_change_of_a_union_reaches_everybody_who_stands_in_a_member() {
    let (_, _, volume, one) = two_lines(|_| {});
    let here = mkdir(&volume, Ino::ROOT, b"d");
    let there = mkdir(&one, Ino::ROOT, b"d");
    volume.setattr(&CALLER, here, &permissions(0o750)).unwrap();
    one.setattr(&CALLER, there, &permissions(0o705)).unwrap();
    one.setxattr(&CALLER, there, b"user.x", b"1", XattrMode::Set).unwrap();
    merge(&volume, "one", "live");
    merge(&volume, "live", "one");
    let union = volume.getattr(here, None).unwrap();
    assert_eq!(union.permissions, 0o700, "what both grant");
    assert_eq!(volume.getxattr(here, b"user.x").unwrap(), b"1");
    volume.setattr(&CALLER, here, &permissions(0o755)).unwrap();
    assert_eq!(volume.getattr(here, None).unwrap().permissions, 0o755);
    write_in(&one, there, b"f", b"through the other member");
    assert_eq!(listed(&one, "d"), ["f"]);
    merge(&volume, "one", "live");
    assert_eq!(read(&volume, find(&volume, here, b"f")), b"through the other member");
}

fn permissions(bits: u32) -> phifs_core::volume::SetAttr {
    phifs_core::volume::SetAttr { permissions: Some(bits), ..Default::default() }
}

#[test]
fn files_of_one_name_are_candidates_until_somebody_writes() {
    let (_, env, volume, one) = two_lines(|_| {});
    write(&volume, b"f", b"here");
    settle(&volume);
    env.advance();
    write(&one, b"f", b"there, later");
    merge(&volume, "one", "live");
    assert_eq!(paths(&volume), ["/f"]);
    assert_eq!(disputed(&volume), [("/f".into(), Matter::Name, 2)]);
    assert_eq!(events(&volume), [(What::Name, 1, "/f".into())]);
    let shown = read(&volume, below(&volume, "f"));
    assert_eq!(shown, b"there, later");
    assert_eq!(
        (xattr(&volume, "f", "user.phi.conflicts"), xattr(&volume, "", "user.phi.conflicts")),
        ("2".into(), "1".into())
    );
    assert!(xattr(&volume, "f", "user.phi.score").starts_with("{\"admissible\":1,\"closure\":"));
    assert!(volume.listxattr(below(&volume, "f")).unwrap().is_empty());
    // Both can be read.
    assert_eq!(listed(&volume, ".phi/conflicts"), ["f"]);
    let names = listed(&volume, ".phi/conflicts/f");
    let choices: Vec<_> =
        names.iter().map(|name| read(&volume, below(&volume, &format!(".phi/conflicts/f/{name}")))).collect();
    assert_eq!(choices, [&b"there, later"[..], b"here"]);
    write(&volume, b"f", b"decided");
    settle(&volume);
    assert_eq!(disputed(&volume), []);
    assert_eq!(read(&volume, below(&volume, "f")), b"decided");
    assert_eq!(xattr(&volume, "f", "user.phi.conflicts"), "0");
    let versions: Vec<_> = listed(&volume, ".phi/versions/f")
        .iter()
        .map(|name| read(&volume, below(&volume, &format!(".phi/versions/f/{name}"))))
        .collect();
    assert!(versions.contains(&b"here".to_vec()) && versions.contains(&b"there, later".to_vec()), "{versions:?}");
    // The decision is one for the branch as well.
    merge(&volume, "live", "one");
    assert_eq!(read(&one, below(&one, "f")), b"decided");
    assert_eq!(root(&volume, "live"), root(&volume, "one"));
    check(&volume);
}

#[test]
fn a_writer_who_could_not_know_decides_nothing() {
    let (_, env, volume, one) = two_lines(|_| {});
    write(&volume, b"f", b"here");
    settle(&volume);
    env.advance();
    write(&one, b"f", b"there");
    let ino = below(&volume, "f");
    let opened = volume.open(&CALLER, ino, &WRITE).unwrap();
    merge(&volume, "one", "live");
    volume.write(&CALLER, ino, opened.handle, 0, b"opened before", false).unwrap();
    volume.release(ino, opened.handle);
    settle(&volume);
    assert_eq!(disputed(&volume), [("/f".into(), Matter::Name, 2)]);
    assert_eq!(read(&volume, below(&volume, "f")), b"opened before", "the newest");
}

#[test]
fn a_file_is_seen_beside_a_directory_of_its_name() {
    let (_, _, volume, one) = two_lines(|_| {});
    write(&volume, b"x", b"a file");
    mkdir(&one, Ino::ROOT, b"x");
    write_in(&one, below(&one, "x"), b"inside", b"1");
    merge(&volume, "one", "live");
    let names = listed(&volume, "");
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names[1].starts_with("x~phi-") && names[1].len() == 14, "{names:?}");
    assert_eq!(volume.lookup(&CALLER, Ino::ROOT, b"x").unwrap().kind, FileKind::Directory);
    assert_eq!(read(&volume, below(&volume, &names[1])), b"a file");
    assert_eq!(disputed(&volume), [(format!("/{}", names[1]), Matter::Type, 1)]);
    assert!(matches!(volume.make(&CALLER, Ino::ROOT, names[1].as_bytes(), &DIR), Err(VolumeError::Exists)));
    let refused = volume.resolve(format!("/{}", names[1]).as_bytes(), Resolution::Pick(0), false, false);
    assert!(matches!(refused, Err(VolumeError::Invalid(_))));
    volume.rename(Ino::ROOT, names[1].as_bytes(), Ino::ROOT, b"y", RenameMode::Replace).unwrap();
    assert_eq!(paths(&volume), ["/x", "/x/inside", "/y"]);
    assert_eq!(disputed(&volume), []);
    check(&volume);
}

const DIR: NewNode<'_> = NewNode { kind: NewKind::Directory, permissions: 0o755, umask: 0 };

#[test]
fn versions_of_a_file_are_picked_kept_both_or_decided_by_policy() {
    let (disk, env, volume, one) = two_lines(|volume| {
        for name in [b"a.txt", b"b.txt", b"c.txt"] {
            write(volume, name, b"base");
        }
    });
    for name in [b"a.txt", b"b.txt", b"c.txt"] {
        write(&volume, name, b"here");
        settle(&volume);
        env.advance();
        write(&one, name, b"there");
    }
    merge(&volume, "one", "live");
    let all = ["/a.txt", "/b.txt", "/c.txt"].map(|path| (path.to_owned(), Matter::Content, 2));
    assert_eq!(disputed(&volume), all);
    drop(one);
    drop(volume);
    let volume = reopen(&disk, &env);
    assert_eq!(disputed(&volume), all, "they outlive a restart");
    let before = tree(&volume);
    let foreseen = volume.resolve(b"/a.txt", Resolution::Pick(1), false, true).unwrap();
    assert_eq!((foreseen.len(), tree(&volume), disputed(&volume).len()), (1, before, 3), "a dry run");
    volume.resolve(b"/a.txt", Resolution::Pick(1), false, false).unwrap();
    assert_eq!(read(&volume, below(&volume, "a.txt")), b"here");
    let kept = volume.resolve(b"/b.txt", Resolution::KeepBoth, false, false).unwrap();
    let beside = String::from_utf8(kept[0].beside[0].clone()).unwrap();
    assert!(beside.starts_with("/b~") && beside.ends_with(".txt"), "{beside}");
    assert_eq!(
        (read(&volume, below(&volume, "b.txt")), read(&volume, below(&volume, &beside))),
        (b"there".to_vec(), b"here".to_vec())
    );
    let decided = volume.resolve(b"/", Resolution::Newest, true, false).unwrap();
    assert_eq!(decided.len(), 1);
    assert_eq!(read(&volume, below(&volume, "c.txt")), b"there");
    assert_eq!(disputed(&volume), []);
    settle(&volume);
    check(&volume);
    // Deciding is an operation like any other: a branch that learns of it has nothing to decide.
    volume.open_branch("one", &|_| {}).unwrap();
    merge(&volume, "live", "one");
    assert_eq!(root(&volume, "live"), root(&volume, "one"));
}

#[test]
fn files_of_one_name_can_all_be_kept() {
    let (_, env, volume, one) = two_lines(|_| {});
    write(&volume, b"f", b"here");
    settle(&volume);
    env.advance();
    write(&one, b"f", b"there");
    merge(&volume, "one", "live");
    let kept = volume.resolve(b"/f", Resolution::KeepBoth, false, false).unwrap();
    assert_eq!(kept[0].beside.len(), 1);
    let mut bytes: Vec<_> = tree(&volume).into_values().collect();
    bytes.sort();
    assert_eq!(bytes, [&b"here"[..], b"there"]);
    assert_eq!(disputed(&volume), []);
    check(&volume);
}

#[test]
fn a_collection_keeps_candidates_and_what_was_decided_against() {
    let (_, env, volume, one) = two_lines(|_| {});
    let long = |seed: u8| vec![seed; 100_000];
    write(&volume, b"f", &long(1));
    settle(&volume);
    env.advance();
    write(&one, b"f", &long(2));
    merge(&volume, "one", "live");
    volume.close_branch("one").unwrap();
    drop(one);
    volume.delete_branch("one").unwrap();
    volume.delete_snapshots(&["base".into()]).unwrap();
    volume.collect(1.0, &|_| {}).unwrap();
    let path = |n: usize| format!(".phi/conflicts/f/{}", listed(&volume, ".phi/conflicts/f")[n]);
    assert!(read(&volume, below(&volume, &path(0))) == long(2) && read(&volume, below(&volume, &path(1))) == long(1));
    volume.resolve(b"/f", Resolution::Pick(1), false, false).unwrap();
    settle(&volume);
    volume.collect(1.0, &|_| {}).unwrap();
    let kept: Vec<_> = listed(&volume, ".phi/versions/f")
        .iter()
        .map(|name| read(&volume, below(&volume, &format!(".phi/versions/f/{name}"))))
        .collect();
    assert!(kept.contains(&long(2)), "{} versions", kept.len());
    check(&volume);
}

#[test]
fn a_dry_run_tells_each_conflict_with_its_row() {
    let (_, env, volume, one) = two_lines(|volume| {
        write(volume, b"w", b"base");
        mkdir(volume, Ino::ROOT, b"gone");
        for name in [&b"p"[..], b"q"] {
            mkdir(volume, Ino::ROOT, name);
        }
    });
    write(&volume, b"w", b"here");
    settle(&volume);
    env.advance();
    write(&one, b"w", b"there");
    volume.rmdir(Ino::ROOT, b"gone").unwrap();
    write_in(&one, below(&one, "gone"), b"new", b"1");
    volume.rename(Ino::ROOT, b"p", below(&volume, "q"), b"p", RenameMode::Replace).unwrap();
    env.advance();
    one.rename(Ino::ROOT, b"q", below(&one, "p"), b"q", RenameMode::Replace).unwrap();
    let dry = MergeOptions { dry_run: true, ..MergeOptions::default() };
    let told = volume.merge(&Side::Branch("one".into()), &Side::Live, &dry).unwrap();
    let rows = |merged: &phifs_core::volume::local::Merged| -> Vec<(u8, String)> {
        merged.events.iter().map(|event| (event.row, String::from_utf8(event.path.clone()).unwrap())).collect()
    };
    assert_eq!(rows(&told), [(21, "/gone".into()), (27, "/q".into()), (6, "/w".into())]);
    assert_eq!(told.conflicts.len(), 1);
    assert_eq!(volume.events().unwrap(), []);
    let merged = merge(&volume, "one", "live");
    assert_eq!(merged.events, told.events);
    assert_eq!(volume.events().unwrap().len(), 3);
    assert_eq!(paths(&volume), ["/gone", "/gone/new", "/q", "/q/p", "/w"]);
    let open = volume.open(&CALLER, below(&volume, "w"), &READ).unwrap();
    volume.release(below(&volume, "w"), open.handle);
    check(&volume);
}

#[test]
fn the_other_states_are_listed_beside_the_file_if_that_is_asked_for() {
    let (disk, env, volume, one) = two_lines(|volume| write(volume, b"v.txt", b"base"));
    for name in [&b"f"[..], b"v.txt"] {
        write(&volume, name, b"here");
        settle(&volume);
        env.advance();
        write(&one, name, b"there");
    }
    merge(&volume, "one", "live");
    assert_eq!(listed(&volume, ""), ["f", "v.txt"]);
    drop(one);
    drop(volume);
    let disk: Arc<dyn phifs_core::disk::Disk> = Arc::new(disk);
    let options = phifs_core::volume::local::Options { siblings: true, ..crate::harness::options() };
    let volume = crate::harness::open_with(&disk, &env, options).unwrap();
    let names = listed(&volume, "");
    assert_eq!(names.len(), 4, "{names:?}");
    let sibling = |start: &str| names.iter().find(|name| name.starts_with(start)).unwrap();
    let (of_f, of_v) = (sibling("f~"), sibling("v~"));
    assert!(of_v.ends_with(".txt"), "{of_v}");
    assert_eq!(
        (read(&volume, below(&volume, of_f)), read(&volume, below(&volume, of_v))),
        (b"here".to_vec(), b"here".to_vec())
    );
    let refused = volume.open(&CALLER, below(&volume, of_v), &WRITE);
    assert!(matches!(refused, Err(VolumeError::ReadOnly)));
    // Removing one decides against it.
    volume.unlink(Ino::ROOT, of_v.as_bytes()).unwrap();
    assert_eq!(disputed(&volume), [("/f".into(), Matter::Name, 2)]);
    volume.unlink(Ino::ROOT, of_f.as_bytes()).unwrap();
    assert_eq!(disputed(&volume), []);
    assert_eq!(listed(&volume, ""), ["f", "v.txt"]);
    assert_eq!(read(&volume, below(&volume, "v.txt")), b"there");
    check(&volume);
}

#[test]
fn an_acl_grants_no_more_than_both_sides_do() {
    let (_, env, volume, one) = two_lines(|volume| write(volume, b"f", b"1"));
    // rwx for a named user and the group by way of the mask, r for others.
    let entry =
        |tag: u16, bits: u16, id: u32| [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat();
    let acl = [
        2u32.to_le_bytes().to_vec(),
        entry(1, 6, u32::MAX),
        entry(2, 7, 1234),
        entry(4, 4, u32::MAX),
        entry(0x10, 7, u32::MAX),
        entry(0x20, 4, u32::MAX),
    ]
    .concat();
    volume.setattr(&CALLER, below(&volume, "f"), &permissions(0o600)).unwrap();
    env.advance();
    one.setxattr(&CALLER, below(&one, "f"), b"system.posix_acl_access", &acl, XattrMode::Set).unwrap();
    merge(&volume, "one", "live");
    let file = below(&volume, "f");
    assert_eq!(volume.getattr(file, None).unwrap().permissions, 0o600);
    let merged = volume.getxattr(file, b"system.posix_acl_access").unwrap();
    assert_eq!((merged[4 + 3 * 8 + 2], merged[4 + 4 * 8 + 2]), (0, 0), "mask and others: {merged:?}");
    assert_eq!(events(&volume), [(What::Attr, 8, "/f".into())]);
}

#[test]
fn two_that_were_promised_to_be_the_only_one_are_told() {
    let (_, env, volume, one) = two_lines(|_| {});
    let make = |line: &LocalVolume, name: &[u8], exclusive| {
        let how = phifs_core::volume::OpenHow { exclusive, ..WRITE };
        let (attr, opened) = line.create(&CALLER, Ino::ROOT, name, &crate::harness::NODE, &how).unwrap();
        line.write(&CALLER, attr.ino, opened.handle, 0, &attr.ino.0.to_le_bytes(), false).unwrap();
        line.release(attr.ino, opened.handle);
        settle(line);
    };
    for (name, exclusive) in [(b"lock", true), (b"file", false)] {
        make(&volume, name, true);
        env.advance();
        make(&one, name, exclusive);
        one.commit().unwrap();
    }
    let merged = merge(&volume, "one", "live");
    let rows: Vec<_> = merged.events.iter().map(|event| (event.what, event.row)).collect();
    assert_eq!(rows, [(What::Name, 1), (What::Excl, 33)]);
}

#[test]
fn what_lies_deeper_than_a_path_can_name_is_disputed_and_no_event() {
    const DEPTH: usize = 300;
    let long = [b'n'; 255];
    let deepest = |volume: &LocalVolume| (0..DEPTH).fold(Ino::ROOT, |dir, _| find(volume, dir, &long));
    let (disk, env, volume, one) = two_lines(|volume| {
        let deepest = (0..DEPTH).fold(Ino::ROOT, |dir, _| mkdir(volume, dir, &long));
        write_in(volume, deepest, b"file", b"before");
        write(volume, b"file", b"before");
    });
    for (line, bytes) in [(&volume, &b"here"[..]), (&*one, b"there")] {
        write_in(line, deepest(line), b"file", bytes);
        write(line, b"file", bytes);
    }
    merge(&volume, "one", "live");
    assert_eq!(disputed(&volume).len(), 2);
    assert_eq!(events(&volume), [(What::Content, 6, "/file".into())]);
    check(&volume);
    drop((volume, one));
    assert_eq!(disputed(&reopen(&disk, &env)).len(), 2);
}

/// The names that the kernel was told of.
#[derive(Default)]
struct Told(parking_lot::Mutex<Vec<(Ino, Vec<u8>)>>);

impl phifs_core::volume::Invalidate for Told {
    fn inode(&self, _: Ino, _: bool) {}
    fn entry(&self, parent: Ino, name: &[u8]) {
        self.0.lock().push((parent, name.to_vec()));
    }
    fn file(&self, _: Ino) {}
}

fn listen(line: &LocalVolume) -> Arc<Told> {
    let told = Arc::new(Told::default());
    line.set_invalidate(told.clone());
    told
}

#[test]
fn the_kernel_hears_of_a_name_under_the_member_of_a_union_that_it_knows() {
    let (_, _, volume, one) = two_lines(|_| {});
    let here = mkdir(&volume, Ino::ROOT, b"d");
    let there = mkdir(&one, Ino::ROOT, b"d");
    merge(&volume, "one", "live");
    merge(&volume, "live", "one");
    let told = [listen(&volume), listen(&one)];
    write_in(&volume, here, b"of volume", b"1");
    write_in(&one, there, b"of one", b"1");
    settle(&one);
    told.iter().for_each(|told| told.0.lock().clear());
    merge(&volume, "one", "live");
    merge(&volume, "live", "one");
    for (told, known, name) in [(&told[0], here, &b"of one"[..]), (&told[1], there, b"of volume")] {
        assert!(told.0.lock().contains(&(known, name.to_vec())), "{:?}", told.0.lock());
    }
}

#[test]
fn the_kernel_hears_of_a_name_that_shows_another_file() {
    let (_, env, volume, one) = two_lines(|_| {});
    for (first, second, name) in
        [(&volume, &*one, b"p"), (&*one, &volume, b"q")].map(|(a, b, name)| (a as &LocalVolume, b, name))
    {
        write(first, name, b"first");
        settle(first);
        env.advance();
        write(second, name, b"second");
        settle(second);
        env.advance();
    }
    let told = [listen(&volume), listen(&one)];
    merge(&volume, "one", "live");
    merge(&volume, "live", "one");
    for (told, line, name) in [(&told[0], &volume, b"p"), (&told[1], &*one, b"q")]
        .map(|(told, line, name)| (told, line as &LocalVolume, name))
    {
        assert_eq!(read(line, find(line, Ino::ROOT, name)), b"second");
        assert!(told.0.lock().contains(&(Ino::ROOT, name.to_vec())), "{:?}", told.0.lock());
    }
}
