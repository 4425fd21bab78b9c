//! Groups of operations, from one machine to another.

use std::sync::Arc;

use phifs_core::causal::VersionVector;
use phifs_core::namespace::events::What;
use phifs_core::oplog::SealedGroup;
use phifs_core::registry::Member;
use phifs_core::ssep::Follower;
use phifs_core::store::GlyphKind;
use phifs_core::time::Env as _;
use phifs_core::volume::local::{Backlog, GroupRefused, News, Taken};
use phifs_core::volume::{Ino, Invalidate, OpenHow, RenameMode, Volume, VolumeError, XattrMode};

use super::peers::{check_same, key_of};
use super::{Site, noise, pair};
use crate::harness::{CALLER, NODE, WRITE, settle};

/// Two machines that are members of one volume and have the same.
pub(super) fn members() -> (Site, Site) {
    let (a, b, _) = pair();
    let sites = [a, b];
    introduce(&sites);
    let [a, b] = sites;
    push(&a, &b);
    push(&b, &a);
    (a, b)
}

/// Makes each of them a member, as all of them know.
pub(super) fn introduce(sites: &[Site]) {
    for site in sites {
        for node in sites {
            let member = Member {
                name: "node".into(),
                role: String::new(),
                zone: String::new(),
                addresses: Vec::new(),
                since: site.env.now(),
                left: false,
                leaving: false,
            };
            site.volume.put_member(key_of(node), &member).unwrap();
        }
    }
}

fn groups_for(from: &Site, known: &VersionVector) -> Vec<SealedGroup> {
    match from.volume.news(known, &|_| true).unwrap() {
        News::Groups(groups) => groups,
        News::State => panic!("the log has everything"),
    }
}

/// Tells one machine what another one has, glyphs first.
pub(super) fn push(from: &Site, to: &Site) -> u64 {
    give(from, to, groups_for(from, &to.volume.context())).expect("it holds what its groups need")
}

/// Nothing if a group needs a glyph that was collected there since: then states are to be compared.
pub(super) fn give(from: &Site, to: &Site, groups: Vec<SealedGroup>) -> Option<u64> {
    let mut operations = 0;
    for group in groups {
        // As it is on the wire.
        let group = SealedGroup::decode(group.encoded().clone()).unwrap();
        let _hold = to.volume.hold_glyphs();
        loop {
            let missing = to.volume.missing_in_group(&group).unwrap();
            if missing.is_empty() {
                break;
            }
            for id in missing {
                to.volume.take_glyph(id, &from.volume.glyph_to_send(GlyphKind::Data, &id).unwrap()?).unwrap();
            }
        }
        match to.volume.take_group(&group).unwrap() {
            Taken::Applied(n) => operations += n,
            Taken::Known => {}
            taken => panic!("{taken:?}"),
        }
    }
    Some(operations)
}

#[test]
fn machines_that_give_each_other_their_groups_are_the_same() {
    let (a, b) = members();
    a.write(Ino::ROOT, b"of a", &noise(31, 300_000));
    let dir = a.mkdir(Ino::ROOT, b"new");
    a.write(dir, b"in it", b"small");
    b.write(Ino::ROOT, b"of b", b"b");
    b.volume.rename(Ino::ROOT, b"dir", Ino::ROOT, b"renamed", RenameMode::Replace).unwrap();
    assert!(push(&a, &b) > 2);
    assert!(push(&b, &a) > 1);
    check_same(&a, &b);
    assert_eq!(push(&a, &b), 0, "it has heard all of it");
    a.volume.unlink(Ino::ROOT, b"of a").unwrap();
    push(&a, &b);
    check_same(&a, &b);
}

#[test]
fn what_was_taken_in_is_there_after_a_crash() {
    let (a, b) = members();
    a.write(Ino::ROOT, b"of a", &noise(31, 300_000));
    b.write(Ino::ROOT, b"of b", b"b");
    push(&a, &b);
    b.volume.tick().unwrap();
    let b = b.crashed();
    push(&b, &a);
    push(&a, &b);
    check_same(&a, &b);
    assert_eq!(b.volume.status().unsealed_operations, 0);
}

#[test]
fn a_group_waits_for_what_its_author_knew() {
    let (a, b) = members();
    a.write(Ino::ROOT, b"first", b"1");
    let start = b.volume.context();
    let first = groups_for(&a, &start);
    let between = a.volume.context();
    a.write(Ino::ROOT, b"second", b"2");
    let second = groups_for(&a, &between);
    assert_eq!(b.volume.take_group(&second[0]).unwrap(), Taken::Early);
    assert_eq!(b.volume.context(), start);
    assert!(matches!(b.volume.take_group(&first[0]).unwrap(), Taken::Applied(_)));
    assert!(matches!(b.volume.take_group(&second[0]).unwrap(), Taken::Applied(_)));
    assert_eq!(b.volume.take_group(&second[0]).unwrap(), Taken::Known);
    check_same(&a, &b);
}

#[test]
fn both_sides_hear_of_what_crossed() {
    let (a, b) = members();
    a.write(Ino::ROOT, b"both", b"0");
    push(&a, &b);
    a.volume.unlink(Ino::ROOT, b"both").unwrap();
    b.write(Ino::ROOT, b"both", b"of b");
    b.write(Ino::ROOT, b"same", b"of b");
    a.write(Ino::ROOT, b"same", b"of a");
    push(&a, &b);
    push(&b, &a);
    check_same(&a, &b);
    for site in [&a, &b] {
        let events = site.volume.events().unwrap();
        let told = |what: What, path: &[u8]| events.iter().any(|(_, e)| e.what == what && e.path == path);
        assert!(told(What::EditDelete, b"/both") && told(What::Name, b"/same"), "{events:?}");
    }
}

#[test]
fn nobody_but_members_is_listened_to() {
    let (a, b, _) = pair();
    let mut stranger = Site::new(2);
    stranger.volume = {
        let full = a.export("first", None);
        Site::out_of(2, &full).volume
    };
    stranger.write(Ino::ROOT, b"of a stranger", b"1");
    let groups = groups_for(&stranger, &b.volume.context());
    let before = b.volume.context();
    for group in groups {
        assert!(matches!(b.volume.take_group(&group), Err(GroupRefused::Stranger(_))));
    }
    assert_eq!(b.volume.context(), before);
}

#[test]
fn what_a_removed_member_has_done_can_still_be_had_of_others() {
    let (a, b) = members();
    a.write(Ino::ROOT, b"of a", b"1");
    assert!(b.volume.remove_member(key_of(&a)).unwrap());
    assert!(push(&a, &b) > 0);
    check_same(&a, &b);
}

#[test]
fn who_is_no_member_any_more_has_no_members() {
    let (a, b) = members();
    assert_eq!(a.volume.members().unwrap().len(), 2);
    a.volume.remove_member(key_of(&a)).unwrap();
    assert_eq!(a.volume.members().unwrap(), []);
    b.volume.take_member_entries(a.volume.member_entries().unwrap()).unwrap();
    assert_eq!(b.volume.members().unwrap().len(), 1);
}

#[test]
fn what_is_made_in_the_future_waits() {
    let (a, b) = members();
    a.env.move_by(61_000);
    a.write(Ino::ROOT, b"later", b"1");
    let groups = groups_for(&a, &b.volume.context());
    assert!(matches!(b.volume.take_group(&groups[0]).unwrap(), Taken::Future(_)));
    b.env.move_by(2_000);
    push(&a, &b);
    check_same(&a, &b);
}

#[test]
fn whoever_the_log_does_not_reach_back_to_gets_the_state() {
    let (a, b, _) = pair();
    // What came with the bootstrap was never there as groups.
    assert_eq!(b.volume.news(&VersionVector::new(), &|_| true).unwrap(), News::State);
    a.write(Ino::ROOT, b"more", b"1");
    assert!(matches!(a.volume.news(&b.volume.context(), &|_| true).unwrap(), News::Groups(_)));
}

fn attribute(site: &Site, ino: Ino, name: &str) -> String {
    String::from_utf8(site.volume.getxattr(ino, format!("user.phi.{name}").as_bytes()).unwrap()).unwrap()
}

#[test]
fn a_sync_says_no_more_than_what_others_have_vouched_for() {
    let (a, b) = members();
    a.volume.change_setting("fsync_degraded", Some("block 30ms")).unwrap();
    let ino = a.write(Ino::ROOT, b"file", &noise(1, 100_000));
    a.volume.fsync(ino, None, false).unwrap();
    assert_eq!([attribute(&a, ino, "durability"), attribute(&a, ino, "replicas")], ["local", "1"]);

    a.volume.change_setting("durability", Some("all")).unwrap();
    let failed = a.volume.fsync(ino, None, false);
    assert!(matches!(failed, Err(VolumeError::NotEnoughCopies { have: 1, wanted: 2 })), "{failed:?}");
    push(&a, &b);
    assert!(a.volume.fsync(ino, None, false).is_err(), "it was sent, and nobody says that it arrived");
    let receipt = b.volume.receipt().unwrap().unwrap();
    assert!(a.volume.take_receipt(key_of(&a), receipt.clone()).is_err(), "it is by another node");
    assert!(a.volume.fsync(ino, None, false).is_err());
    a.volume.take_receipt(key_of(&b), receipt).unwrap();
    a.volume.fsync(ino, None, false).unwrap();
    assert_eq!([attribute(&a, ino, "durability"), attribute(&a, ino, "replicas")], ["all", "2"]);
    // A later version is another matter.
    a.write(Ino::ROOT, b"file", b"more");
    assert!(a.volume.fsync(ino, None, false).is_err());
    assert_eq!(attribute(&a, ino, "durability"), "local");

    a.volume.change_setting("fsync_degraded", Some("local")).unwrap();
    a.volume.change_setting("durability", Some("local")).unwrap();
    let dir = a.mkdir(Ino::ROOT, b"precious");
    let inner = a.mkdir(dir, b"inner");
    let deep = a.write(inner, b"deep", b"1");
    let set = |value: &[u8]| a.volume.setxattr(&CALLER, dir, b"user.phi.durability", value, XattrMode::Set);
    assert!(set(b"most").is_err());
    set(b"quorum").unwrap();
    a.volume.change_setting("fsync_degraded", Some("block 30ms")).unwrap();
    assert!(a.volume.fsync(deep, None, false).is_err() && a.volume.fsync(inner, None, false).is_err());
    a.volume.fsync(ino, None, false).unwrap();
}

#[test]
fn a_backlog_is_what_was_not_vouched_for_and_as_old_as_what_was_not_heard_of() {
    let (a, b) = members();
    let key = key_of(&b);
    a.volume.take_receipt(key, b.volume.receipt().unwrap().unwrap()).unwrap();
    let backlog = || a.volume.backlog_of(key, Some(&b.volume.context())).unwrap();
    assert_eq!(backlog(), Backlog::default());
    let before = a.env.now();
    a.write(Ino::ROOT, b"first", &noise(1, 100_000));
    let between = a.env.move_by(5_000);
    let first = backlog();
    assert_eq!(first.bytes, 100_000);
    let oldest = first.oldest.unwrap().millis();
    assert!((before.millis()..between.millis()).contains(&oldest), "{oldest}");
    // It grows by what is new.
    a.write(Ino::ROOT, b"second", &noise(2, 50_000));
    assert_eq!(backlog(), Backlog { bytes: 150_000, ..first });
    assert_eq!(a.volume.under_replicated_bytes().unwrap(), 150_000);
    assert_eq!(a.volume.backlog_of(key, None).unwrap(), Backlog { bytes: 150_000, oldest: None });
    // What was heard of is not yet held.
    push(&a, &b);
    assert_eq!(backlog(), Backlog { bytes: 150_000, oldest: None });
    a.volume.take_receipt(key, b.volume.receipt().unwrap().unwrap()).unwrap();
    assert_eq!(backlog(), Backlog::default());
    assert_eq!(a.volume.under_replicated_bytes().unwrap(), 0);
}

#[test]
fn a_sync_that_waits_hears_of_the_receipt_at_once() {
    let (a, b) = members();
    a.volume.change_setting("durability", Some("quorum")).unwrap();
    let ino = a.write(Ino::ROOT, b"file", b"1");
    std::thread::scope(|scope| {
        let synced = scope.spawn(|| a.volume.fsync(ino, None, false));
        // Whoever tells the others tells them to hurry.
        while a.volume.urgent().is_empty() {
            std::thread::yield_now();
        }
        push(&a, &b);
        a.volume.take_receipt(key_of(&b), b.volume.receipt().unwrap().unwrap()).unwrap();
        synced.join().unwrap().unwrap();
    });
}

#[test]
fn settings_are_those_of_the_volume_on_every_machine() {
    let (a, b) = members();
    a.volume.change_setting("copies", Some("2")).unwrap();
    b.env.move_by(5);
    b.volume.change_setting("prefer", Some("recency")).unwrap();
    let tell = |from: &Site, to: &Site| to.volume.take_setting_entries(from.volume.setting_entries().unwrap()).unwrap();
    assert!(tell(&a, &b) && tell(&b, &a) && !tell(&a, &b));
    assert_eq!(a.volume.settings(), b.volume.settings());
    assert_eq!(b.volume.settings().copies, 2);
    b.volume.change_setting("copies", None).unwrap();
    tell(&b, &a);
    assert_eq!(a.volume.settings().copies, 3);
    assert_eq!(a.crashed().volume.settings(), b.volume.settings());
}

#[test]
fn machines_compare_their_states_and_give_nothing_up_when_they_differ() {
    let (a, b) = members();
    a.write(Ino::ROOT, b"file", b"1");
    let (context, root) = (a.volume.head().unwrap().context().clone(), a.volume.head().unwrap().root());
    assert_eq!(b.volume.audit(key_of(&a), &context, root).unwrap(), None, "it does not know as much");
    push(&a, &b);
    assert_eq!(b.volume.audit(key_of(&a), &context, root).unwrap(), Some(true));
    b.volume.collect(1.0, &|_| {}).unwrap();
    assert_eq!(b.volume.audit(key_of(&a), &context, [7; 32]).unwrap(), Some(false));
    let found = b.volume.divergence().unwrap();
    assert_eq!((found.ours, found.theirs), (root, [7; 32]));
    assert!(b.volume.collect(1.0, &|_| {}).is_err());
}

#[test]
fn bytes_count_as_under_replicated_until_all_members_vouch_for_them() {
    let (a, b) = members();
    a.volume.take_receipt(key_of(&b), b.volume.receipt().unwrap().unwrap()).unwrap();
    assert_eq!(a.volume.under_replicated_bytes().unwrap(), 0);
    a.write(Ino::ROOT, b"file", &noise(1, 70_000));
    a.write(Ino::ROOT, b"small", &noise(2, 1_000));
    assert_eq!(a.volume.under_replicated_bytes().unwrap(), 71_000);
    push(&a, &b);
    assert_eq!(a.volume.under_replicated_bytes().unwrap(), 71_000);
    a.volume.take_receipt(key_of(&b), b.volume.receipt().unwrap().unwrap()).unwrap();
    assert_eq!(a.volume.under_replicated_bytes().unwrap(), 0);
}

#[derive(Default)]
struct Told(parking_lot::Mutex<Vec<Vec<u8>>>);

impl Invalidate for Told {
    fn inode(&self, _: Ino, _: bool) {}

    fn entry(&self, _: Ino, name: &[u8]) {
        self.0.lock().push(name.to_vec());
    }

    fn file(&self, _: Ino) {}
}

#[test]
fn the_kernel_hears_that_a_publication_shows_another_file_of_a_name() {
    let (a, b) = members();
    a.write(Ino::ROOT, b"same", b"of a");
    b.env.move_by(5_000);
    let (own, opened) = b.volume.create(&CALLER, Ino::ROOT, b"same", &NODE, &WRITE).unwrap();
    b.volume.write(&CALLER, own.ino, opened.handle, 0, b"of b", false).unwrap();
    push(&a, &b);
    let shown = |site: &Site| site.volume.lookup(&CALLER, Ino::ROOT, b"same").unwrap().ino;
    assert_ne!(shown(&b), own.ino, "so far only the other one has been written");
    let told = Arc::new(Told::default());
    b.volume.set_invalidate(told.clone());
    b.volume.release(own.ino, opened.handle);
    settle(&b.volume);
    assert_eq!(shown(&b), own.ino);
    assert!(told.0.lock().contains(&b"same".to_vec()));
}

#[test]
fn the_kernel_hears_that_files_of_a_name_are_no_longer_alike() {
    let mut changed = 0;
    for is_first in [true, false] {
        let (a, b) = members();
        let create = |site: &Site| site.write(Ino::ROOT, b"same", b"");
        let (made, later) = if is_first { (create(&a), &b) } else { (create(&b), &a) };
        later.env.move_by(5_000);
        let made_later = create(later);
        push(&a, &b);
        push(&b, &a);
        let shown = |site: &Site| site.volume.lookup(&CALLER, Ino::ROOT, b"same").unwrap().ino;
        let before = shown(&b);
        let told = Arc::new(Told::default());
        b.volume.set_invalidate(told.clone());
        let on_a = if is_first { made } else { made_later };
        a.volume.setxattr(&CALLER, on_a, b"user.colour", b"green", XattrMode::Set).unwrap();
        push(&a, &b);
        if shown(&b) != before {
            changed += 1;
            assert!(told.0.lock().contains(&b"same".to_vec()));
        }
    }
    assert!(changed > 0, "this test needs a file that comes to be shown");
}

#[test]
fn a_relayed_group_that_was_changed_on_the_way_is_refused() {
    let (a, b) = members();
    a.write(Ino::ROOT, b"of a", b"1");
    let before = b.volume.context();
    for group in groups_for(&a, &before) {
        let sealed = group.encoded();
        for at in (0..sealed.len()).step_by(7) {
            let mut forged = sealed.to_vec();
            forged[at] ^= 1;
            let mut follower = Follower::new();
            assert!(follower.take(&b.volume, vec![forged.into()]).is_err(), "byte {at}");
            assert!(follower.is_idle());
        }
    }
    assert_eq!(b.volume.context(), before);
}

#[test]
fn a_version_that_is_published_beside_a_better_one_does_not_stand_behind_the_length_of_that() {
    let (a, b) = members();
    let ino = a.write(Ino::ROOT, b"f", b"0");
    push(&a, &b);
    let on_b = b.volume.lookup(&CALLER, Ino::ROOT, b"f").unwrap().ino;
    let open = b.volume.open(&CALLER, on_b, &WRITE).unwrap();
    b.volume.write(&CALLER, on_b, open.handle, 0, b"the longer one of b", false).unwrap();
    a.env.move_by(5_000);
    let opened = a.volume.open(&CALLER, ino, &OpenHow { truncate: true, ..WRITE }).unwrap();
    a.volume.write(&CALLER, ino, opened.handle, 0, b"of a", false).unwrap();
    a.volume.release(ino, opened.handle);
    settle(&a.volume);
    push(&a, &b);
    b.volume.publish_all().unwrap();
    let len = || b.volume.getattr(on_b, None).unwrap().size_bytes;
    let read = || {
        let open = b.volume.open(&CALLER, on_b, &WRITE).unwrap();
        let bytes = b.volume.read(on_b, open.handle, 0, 100).unwrap();
        b.volume.release(on_b, open.handle);
        bytes
    };
    assert_eq!(len(), read().len() as u64, "while it is open");
    b.volume.release(on_b, open.handle);
    assert_eq!((len(), read()), (4, b"of a".to_vec()), "afterwards");
}
