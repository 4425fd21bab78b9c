//! What goes out comes in, in both directions; in the wrong place it does not.

use std::sync::Arc;

use phifs_core::disk::{Disk, FileName, MemDisk};
use phifs_core::identity::NodeKey;
use phifs_core::volume::local::{ImportOptions, SnapshotError, TransferError};
use phifs_core::volume::{Ino, RenameMode, Volume};

use super::{GO_ON, KEYS, Site, bootstrap, noise, open, pair, ready};
use crate::harness::{CALLER, NODE, TestEnv, read_tree};

#[test]
fn a_new_store_out_of_an_export_looks_as_the_old_one_and_goes_its_own_way() {
    let (old, new, _) = pair();
    assert_eq!(read_tree(&new.volume).unwrap(), read_tree(&old.volume).unwrap());
    assert_eq!(new.volume.tree_root().unwrap(), old.volume.tree_root().unwrap());
    assert_eq!(new.verified("first"), old.verified("first"));
    assert_eq!(new.volume.tree_root().unwrap(), new.verified("first"));
    assert_ne!(new.volume.status().author, old.volume.status().author);
    assert_ne!(new.volume.status().store_id, old.volume.status().store_id);
    let report = new.volume.fsck(false, &|_| {}).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);

    // It changes, is collected, starts again, and takes snapshots that build on the one it came with.
    new.write(Ino::ROOT, b"inline", b"other bytes");
    new.snapshot("second");
    new.volume.collect(1.0, &|_| {}).unwrap();
    let new = new.crashed();
    assert_eq!(new.names(), ["first", "second"]);
    assert_eq!(new.verified("first"), old.verified("first"));
    assert_ne!(new.verified("second"), old.verified("first"));
    let parents = |name: &str| {
        new.volume.seal_snapshots().unwrap();
        let id = new.volume.find_snapshot(name).unwrap().1.id.unwrap();
        new.volume.sealed_record(id).unwrap().unwrap().record.parents
    };
    assert_eq!(parents("second"), [new.volume.find_snapshot("first").unwrap().1.id.unwrap()]);
}

#[test]
fn increments_carry_what_changed_and_go_back_and_forth() {
    let (old, new, full) = pair();
    let dir = old.volume.lookup(&CALLER, Ino::ROOT, b"dir").unwrap().ino;
    old.write(dir, b"single", &noise(10, 20_000));
    old.volume.rename(dir, b"file 3", Ino::ROOT, b"moved", RenameMode::Replace).unwrap();
    old.volume.unlink(dir, b"file 4").unwrap();
    old.snapshot("second");
    let increment = old.export("second", Some("first"));
    assert!(increment.len() < 90_000, "{} bytes for 30 kB of changes", increment.len());
    let imported = new.import(&increment).unwrap();
    assert_eq!((imported.name.as_str(), imported.was_here), ("second", false));
    assert_eq!(new.verified("second"), old.verified("second"));
    assert_eq!(new.export("second", Some("first")), increment, "the same snapshots give the same bytes anywhere");
    assert_eq!(new.export("first", None), full);

    // The other way, the first store must be told whom to believe.
    new.write(Ino::ROOT, b"inline", b"said by the new one");
    new.snapshot("third");
    let answer = new.export("third", Some("second"));
    assert!(matches!(old.import(&answer), Err(TransferError::UnknownSigner(_))));
    let key = NodeKey::from_seed(&KEYS[1]).public();
    let digits: String = key.0.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    let trusting = |digits: &str| ImportOptions { trust: Some(digits.into()), ..ImportOptions::default() };
    for wrong in ["", "0123456", "0123456789", &digits[..6]] {
        let refused = old.volume.import_snapshot(&answer[..], &trusting(wrong), &GO_ON);
        assert!(matches!(refused, Err(TransferError::OtherSigner { .. })), "{wrong:?}");
    }
    old.volume.import_snapshot(&answer[..], &trusting(&digits), &GO_ON).unwrap();
    assert_eq!(old.verified("third"), new.verified("third"));
    // Its author was never seen here, and a branch can begin with it all the same.
    old.volume.clone_snapshot("third", "theirs").unwrap();
    let branch = old.volume.open_branch("theirs", &|_| {}).unwrap();
    assert_eq!(read_tree(&branch).unwrap(), read_tree(&new.volume).unwrap());
    drop(branch);
    old.volume.close_branch("theirs").unwrap();
    new.write(Ino::ROOT, b"inline", b"said again");
    new.snapshot("fourth");
    old.import(&new.export("fourth", Some("third"))).expect("the node is known from now on");

    for site in [&old, &new] {
        site.volume.collect(1.0, &|_| {}).unwrap();
    }
    let (old, new) = (old.crashed(), new.crashed());
    for name in ["first", "second", "third", "fourth"] {
        assert_eq!(old.verified(name), new.verified(name));
    }
}

#[test]
fn wrong_places_and_names_are_refused_and_nothing_changes() {
    let old = Site::new(0);
    old.fill();
    old.snapshot("first");
    let full = old.export("first", None);
    old.write(Ino::ROOT, b"inline", b"changed");
    old.snapshot("second");
    let increment = old.export("second", Some("first"));

    let stranger = Site::new(2);
    assert!(matches!(stranger.import(&full), Err(TransferError::OtherVolume(_))));
    assert!(stranger.names().is_empty());
    let (env, disk) = (TestEnv::new(5), MemDisk::new());
    let refused = bootstrap(Arc::new(disk.clone()), &env, &KEYS[1], &increment);
    assert!(matches!(refused, Err(TransferError::MissingBase(base)) if base.name == "first"));
    assert_eq!(disk.list().unwrap(), [], "a refused stream leaves the disk empty");
    let refused = bootstrap(Arc::new(stranger.disk.clone()), &env, &KEYS[1], &full);
    assert!(matches!(refused, Err(TransferError::HasVolume)));

    let new = Site::out_of(1, &full);
    new.volume.delete_snapshots(&["first".into()]).unwrap();
    assert!(matches!(new.import(&increment), Err(TransferError::MissingBase(base)) if base.name == "first"));
    new.import(&full).expect("it can come again");
    let again = new.import(&full).unwrap();
    assert!(again.was_here && again.received.new_glyphs == 0);
    new.snapshot("second");
    assert!(matches!(new.import(&increment), Err(TransferError::Snapshot(SnapshotError::Exists(_)))));
    let named = ImportOptions { name: Some("theirs".into()), ..ImportOptions::default() };
    new.volume.import_snapshot(&increment[..], &named, &GO_ON).unwrap();
    assert_eq!(new.verified("theirs"), old.verified("second"));
    let named = ImportOptions { name: Some("a/b".into()), ..ImportOptions::default() };
    new.volume.delete_snapshots(&["theirs".into()]).unwrap();
    let refused = new.volume.import_snapshot(&increment[..], &named, &GO_ON);
    assert!(matches!(refused, Err(TransferError::Snapshot(SnapshotError::BadName(..)))));
}

#[test]
fn a_store_that_is_an_old_copy_of_itself_goes_on_as_another_author() {
    let site = Site::new(0);
    site.fill();
    let copy = {
        let disk = site.disk.snapshot();
        let env = TestEnv::new(5);
        Site { volume: open(Arc::new(disk.clone()), &env, &KEYS[0]).unwrap(), disk, env, key: KEYS[0] }
    };
    // The copy has another author already, as its original was not closed; the next copy is of a closed one.
    copy.write(Ino::ROOT, b"x", b"x");
    copy.snapshot("early");
    copy.volume.seal_snapshots().unwrap();
    let stop = |site: Site| {
        site.volume.shut_down().unwrap();
        (site.disk.snapshot(), site.env.clone())
    };
    let (disk, env) = stop(copy);
    let reopen = |disk: &MemDisk| {
        let disk = disk.snapshot();
        Site { volume: open(Arc::new(disk.clone()), &env, &KEYS[0]).unwrap(), disk, env: env.clone(), key: KEYS[0] }
    };
    let (one, two) = (reopen(&disk), reopen(&disk));
    assert_eq!(one.volume.status().author, two.volume.status().author, "this test needs two with one author");
    one.write(Ino::ROOT, b"x", b"changed in one");
    one.snapshot("late");
    let before = two.volume.status().author;
    two.import(&one.export("late", Some("early"))).unwrap();
    assert_ne!(two.volume.status().author, before);
    two.write(Ino::ROOT, b"x", b"changed in the other");
    two.snapshot("other");
    assert_eq!(two.verified("late"), one.verified("late"));
}

#[test]
fn so_does_a_branch_of_an_old_copy_open_or_not() {
    let site = Site::new(0);
    site.snapshot("base");
    site.volume.clone_snapshot("base", "side").unwrap();
    site.volume.shut_down().unwrap();
    let (one, two) = (site.copied(6), site.copied(7));
    let [side, other] = [&one, &two].map(|copy| copy.volume.open_branch("side", &|_| {}).unwrap());
    let author = side.status().author;
    assert_eq!(author, other.status().author, "this test needs two with one author");
    side.make(&CALLER, Ino::ROOT, b"x", &NODE).unwrap();
    one.volume.snapshot_branch("side", "late", vec![]).unwrap();
    let stream = one.export("late", None);
    two.import(&stream).unwrap();
    assert_ne!(other.status().author, author, "it is open");
    let three = site.copied(8);
    three.import(&stream).unwrap();
    let other = three.volume.open_branch("side", &|_| {}).unwrap();
    assert_ne!(other.status().author, author, "it was not open");
}

#[test]
fn damage_is_found_with_its_paths_and_an_import_mends_it() {
    let (old, new, _, increment) = ready();
    new.import(&increment).unwrap();
    // The live volume of the new store does not need what is new in this snapshot.
    let content = noise(20, 250_000);
    let pack_with = |bytes: &[u8]| {
        let is_pack = |name: &FileName| matches!(name, FileName::Pack(_));
        new.disk.list().unwrap().into_iter().filter(is_pack).find_map(|name| {
            let found = new.disk.bytes_of(name).unwrap().windows(bytes.len()).position(|window| window == bytes);
            found.map(|at| (name, at as u64))
        })
    };
    new.volume.tick().unwrap();
    let (name, at) = pack_with(&content[200_000..200_100]).expect("noise is stored as it is");
    new.disk.flip(name, at, 1).unwrap();
    let found = new.volume.verify_snapshot("second", &|_| {}).unwrap();
    let said = format!("{:?}", found.report.problems);
    let path: Vec<u8> = b"/dir/deep/long".to_vec();
    assert!(said.contains(&format!("{path:?}")), "{said}");
    assert_eq!(new.verified("first"), old.verified("first"));
    let mended = new.import(&increment).unwrap();
    assert!(mended.was_here && mended.received.new_glyphs == 1, "{mended:?}");
    assert_eq!(new.verified("second"), old.verified("second"));
}
