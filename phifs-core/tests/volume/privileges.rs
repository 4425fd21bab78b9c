//! Set-id bits and file capabilities: they are for the bytes and the owner that there were when they were given.

use phifs_core::namespace::events::What;
use phifs_core::volume::local::LocalVolume;
use phifs_core::volume::{Caller, Handle, Ino, Path, SetAttr, Volume, VolumeError, XattrMode};

use crate::harness::{CALLER, NODE, WRITE, settle};
use crate::merging::{branch, check, find, merge, new_volume, read, reopen, write};
use crate::staging::how;

const CAPABILITY: &[u8] = b"security.capability";
const USER: Caller = Caller { uid: 7, gid: 7, pid: 2 };
const FILE: &[u8] = b"program";

/// Makes the file a program that runs with the rights of others.
fn privilege(volume: &LocalVolume, ino: Ino) {
    volume.setattr(&CALLER, ino, &SetAttr { permissions: Some(0o6755), ..SetAttr::default() }).unwrap();
    volume.setxattr(&CALLER, ino, CAPABILITY, b"any", XattrMode::Set).unwrap();
}

/// The permissions, and whether there is a capability.
fn privileges(volume: &LocalVolume, ino: Ino) -> (u32, bool) {
    let has = match volume.getxattr(ino, CAPABILITY) {
        Err(VolumeError::NoAttribute) => false,
        value => value.unwrap() == b"any",
    };
    assert_eq!(volume.listxattr(ino).unwrap().iter().any(|name| name == CAPABILITY), has);
    (volume.getattr(ino, None).unwrap().permissions, has)
}

fn put(volume: &LocalVolume, ino: Ino, handle: Handle, bytes: &[u8], unprivileged: bool) {
    let caller = if unprivileged { USER } else { CALLER };
    volume.write(&caller, ino, handle, 0, bytes, unprivileged).unwrap();
}

fn close(volume: &LocalVolume, ino: Ino, handle: Handle) {
    volume.release(ino, handle);
    settle(volume);
}

#[test]
fn what_was_given_to_other_bytes_than_there_are_after_a_merge_is_gone_and_told() {
    for is_chown in [false, true] {
        let (disk, env, volume) = new_volume();
        write(&volume, FILE, b"base");
        volume.create_snapshot("base", vec![], false).unwrap();
        let one = branch(&volume, "base", "one");
        let there = find(&one, Ino::ROOT, FILE);
        privilege(&one, there);
        assert_eq!(privileges(&one, there), (0o6755, true));
        let here = find(&volume, Ino::ROOT, FILE);
        if is_chown {
            volume.setattr(&CALLER, here, &SetAttr { uid: Some(8), ..SetAttr::default() }).unwrap();
        } else {
            write(&volume, FILE, b"other bytes");
        }
        let merged = merge(&volume, "one", "live");
        let told: Vec<_> = merged.events.iter().map(|event| (event.what, event.row, &event.path[..])).collect();
        assert_eq!(told, [(What::Attr, 7, &b"/program"[..])]);
        merge(&volume, "live", "one");
        assert_eq!([privileges(&volume, here), privileges(&one, there)], [(0o755, false); 2]);
        assert!(matches!(volume.removexattr(&CALLER, here, CAPABILITY), Err(VolumeError::NoAttribute)));
        // Somebody who sees what there is may give it again.
        privilege(&volume, here);
        assert_eq!(merge(&volume, "live", "one").events, []);
        drop((volume, one));
        let volume = reopen(&disk, &env);
        let one = volume.open_branch("one", &|_| {}).unwrap();
        assert_eq!([privileges(&volume, here), privileges(&one, there)], [(0o6755, true); 2]);
        check(&volume);
    }
}

#[test]
fn root_keeps_set_id_bits_by_writing_and_others_do_not() {
    let (disk, env, volume) = new_volume();
    write(&volume, FILE, b"base");
    let ino = find(&volume, Ino::ROOT, FILE);
    privilege(&volume, ino);
    for bytes in [&b"first"[..], b"second"] {
        let handle = volume.open(&CALLER, ino, &WRITE).unwrap().handle;
        put(&volume, ino, handle, bytes, false);
        close(&volume, ino, handle);
        assert_eq!(privileges(&volume, ino), (0o6755, false), "a capability does not outlive a write");
    }
    volume.setattr(&CALLER, ino, &SetAttr { size_bytes: Some(3), ..SetAttr::default() }).unwrap();
    settle(&volume);
    write(&volume, b"synced", b"x");
    drop(volume);
    let volume = reopen(&disk, &env);
    assert_eq!((privileges(&volume, ino).0, read(&volume, ino)), (0o6755, b"sec".to_vec()));
    let handle = volume.open(&CALLER, ino, &WRITE).unwrap().handle;
    put(&volume, ino, handle, b"a user's", true);
    close(&volume, ino, handle);
    assert_eq!(privileges(&volume, ino).0, 0o755);
}

#[test]
fn what_was_written_and_not_published_yet_is_among_the_bytes_that_a_bit_is_for() {
    let (disk, env, volume) = new_volume();
    let (attr, opened) = volume.create(&CALLER, Ino::ROOT, FILE, &NODE, &WRITE).unwrap();
    put(&volume, attr.ino, opened.handle, b"written before", false);
    privilege(&volume, attr.ino);
    close(&volume, attr.ino, opened.handle);
    assert_eq!(privileges(&volume, attr.ino), (0o6755, true));
    let handle = volume.open(&CALLER, attr.ino, &WRITE).unwrap().handle;
    put(&volume, attr.ino, handle, b"and synced", false);
    volume.fsync(attr.ino, Some(handle), false).unwrap();
    let crashed = reopen(&disk.snapshot(), &env);
    settle(&crashed);
    assert_eq!(read(&crashed, attr.ino), b"and syncedfore");
    assert_eq!(privileges(&crashed, attr.ino), (0o755, false), "who wrote that, and knew of the bits, nobody knows");
}

/// Whoever had the file open before does not know of it.
#[test]
fn a_bit_that_comes_with_a_merge_is_not_for_what_is_being_written() {
    for merged_before in ["open", "write", "close"] {
        let (_, _, volume) = new_volume();
        write(&volume, FILE, b"base");
        volume.create_snapshot("base", vec![], false).unwrap();
        let one = branch(&volume, "base", "one");
        privilege(&one, find(&one, Ino::ROOT, FILE));
        let ino = find(&volume, Ino::ROOT, FILE);
        let merge_before = |what: &str| drop((what == merged_before).then(|| merge(&volume, "one", "live")));
        merge_before("open");
        let handle = volume.open(&CALLER, ino, &WRITE).unwrap().handle;
        merge_before("write");
        put(&volume, ino, handle, b"written", false);
        merge_before("close");
        close(&volume, ino, handle);
        let kept = if merged_before == "open" { 0o6755 } else { 0o755 };
        assert_eq!(privileges(&volume, ino), (kept, false), "merged before {merged_before}");
    }
}

#[test]
fn of_what_the_kernel_writes_by_itself_nobody_knows_that_it_may_keep_a_bit() {
    let (_, _, volume) = new_volume();
    let long = vec![7; 300_000];
    write(&volume, FILE, &long);
    settle(&volume);
    let ino = find(&volume, Ino::ROOT, FILE);
    for writes_on in [false, true] {
        let opened = volume.open(&CALLER, ino, &how(true)).unwrap();
        let Path::Passthrough { file } = opened.path else { panic!("a long file is handed to the kernel") };
        file.write_at(b"before", 0).unwrap();
        privilege(&volume, ino);
        if writes_on {
            file.write_at(b"afterwards", 0).unwrap();
        }
        close(&volume, ino, opened.handle);
        assert_eq!(privileges(&volume, ino), if writes_on { (0o755, false) } else { (0o6755, true) });
        volume.setattr(&CALLER, ino, &SetAttr { permissions: Some(0o755), ..SetAttr::default() }).unwrap();
    }
}

#[test]
fn a_restore_brings_the_bits_back_with_the_bytes() {
    let (_, _, volume) = new_volume();
    write(&volume, FILE, b"base");
    let ino = find(&volume, Ino::ROOT, FILE);
    privilege(&volume, ino);
    volume.create_snapshot("privileged", vec![], false).unwrap();
    for is_removed in [false, true] {
        if is_removed {
            volume.unlink(Ino::ROOT, FILE).unwrap();
        } else {
            write(&volume, FILE, b"others");
        }
        volume.restore("privileged", None, false, &|_, _| {}).unwrap();
        let ino = find(&volume, Ino::ROOT, FILE);
        assert_eq!(read(&volume, ino), b"base");
        assert_eq!(privileges(&volume, ino), (0o6755, true), "removed: {is_removed}");
    }
    check(&volume);
}

#[test]
fn a_changed_owner_takes_set_user_id_and_leaves_the_set_group_id_that_means_locking() {
    let (disk, env, volume) = new_volume();
    write(&volume, FILE, b"base");
    let ino = find(&volume, Ino::ROOT, FILE);
    volume.setattr(&CALLER, ino, &SetAttr { permissions: Some(0o6745), ..SetAttr::default() }).unwrap();
    volume.setattr(&CALLER, ino, &SetAttr { uid: Some(7), ..SetAttr::default() }).unwrap();
    assert_eq!(privileges(&volume, ino).0, 0o2745);
    write(&volume, b"synced", b"x");
    drop(volume);
    assert_eq!(privileges(&reopen(&disk, &env), ino).0, 0o2745);
}
