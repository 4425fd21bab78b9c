//! Two machines that tell each other what they have.

use std::sync::Arc;

use bytes::Bytes;
use phifs_core::disk::{Disk, MemDisk};
use phifs_core::id::{AuthorId, GlyphId};
use phifs_core::identity::{NodeKey, NodePublicKey};
use phifs_core::registry::{Entry, Member};
use phifs_core::snapshot::pull::{self, PullError};
use phifs_core::ssep::Secret;
use phifs_core::store::{GlyphIndex, GlyphKind, MemIndex};
use phifs_core::time::{Env as _, Hlc, Timestamp};
use phifs_core::volume::local::{Invite, JoinError, LocalVolume, MergeError, Peer, PeerError};
use phifs_core::volume::{Ino, RenameMode, Volume};

use super::{GO_ON, Site, noise, open, pair};
use crate::harness::{TestEnv, options, read_tree};

pub fn key_of(site: &Site) -> NodePublicKey {
    NodeKey::from_seed(&site.key).public()
}

/// Gives what these have, and counts the bytes.
fn giver<'a>(sites: &'a [&'a Site], bytes: &'a mut usize) -> impl FnMut(GlyphKind, &[GlyphId]) -> Given + 'a {
    move |kind, ids| {
        let mut given = Vec::new();
        for id in ids {
            let found = sites.iter().find_map(|site| site.volume.glyph_to_send(kind, id).unwrap());
            given.extend(found.map(|glyph| (*id, glyph)));
        }
        *bytes += given.iter().map(|(_, glyph)| glyph.len() + 32).sum::<usize>();
        Ok(given)
    }
}

type Given = std::io::Result<Vec<(GlyphId, Bytes)>>;

/// What one machine sends another one, and how many operations the other one learns by it.
fn try_tell(from: &Site, to: &Site) -> Result<(usize, u64), PeerError> {
    let head = from.volume.head()?.to_bytes();
    let mut bytes = head.len();
    let merged = to.volume.learn(&key_of(from), &head, &mut giver(&[from], &mut bytes), &GO_ON)?;
    Ok((bytes, merged.operations))
}

pub fn tell(from: &Site, to: &Site) -> (usize, u64) {
    try_tell(from, to).unwrap()
}

pub fn check_same(a: &Site, b: &Site) {
    assert_eq!(a.volume.context(), b.volume.context());
    assert_eq!(a.volume.tree_root().unwrap(), b.volume.tree_root().unwrap());
    let seen = [a, b].map(|site| read_tree(&site.volume).unwrap());
    assert!(seen[0] == seen[1]);
    for site in [a, b] {
        assert_eq!(site.volume.fsck(false, &|_| {}).unwrap().problems, []);
    }
}

#[test]
fn machines_that_told_each_other_all_are_the_same_and_go_on_by_differences() {
    let (a, b, _) = pair();
    a.write(Ino::ROOT, b"of a", &noise(31, 300_000));
    b.write(Ino::ROOT, b"of b", b"b");
    b.volume.rename(Ino::ROOT, b"dir", Ino::ROOT, b"renamed", RenameMode::Replace).unwrap();
    let (first, _) = tell(&a, &b);
    tell(&b, &a);
    check_same(&a, &b);
    assert_eq!(tell(&a, &b).1, 0, "it has heard all of it");
    a.write(Ino::ROOT, b"small", b"1");
    let (second, operations) = tell(&a, &b);
    assert!(second < 20_000 && first > 300_000 && operations > 0, "{first}, then {second} bytes");
    check_same(&a, &b);
    // They go on where they were after a restart and a collection.
    let (a, b) = (a.crashed(), b.crashed());
    a.volume.collect(1.0, &|_| {}).unwrap();
    b.volume.collect(1.0, &|_| {}).unwrap();
    b.write(Ino::ROOT, b"after", b"2");
    let (third, _) = tell(&b, &a);
    assert!(third < 100_000, "{third} bytes");
    tell(&a, &b);
    check_same(&a, &b);
}

fn make(
    disk: &MemDisk,
    env: &TestEnv,
    (peer, head): (&Peer, &[u8]),
    ask: pull::Ask<'_>,
) -> Result<LocalVolume, PeerError> {
    let to = (Arc::new(disk.clone()) as Arc<dyn Disk>, Arc::new(MemIndex::default()) as Arc<dyn GlyphIndex>);
    LocalVolume::bootstrap_from_peer(to, env, &NEW_KEY, &options(), (peer, head), ask, &GO_ON)?;
    Ok(open(Arc::new(disk.clone()), &TestEnv::new(7), &NEW_KEY).unwrap())
}

const NEW_KEY: [u8; 32] = [77; 32];

#[test]
fn a_store_made_of_a_head_goes_on_from_there() {
    let a = Site::new(0);
    a.write(Ino::ROOT, b"of a", &noise(31, 300_000));
    let head = a.volume.head().unwrap().to_bytes();
    let (disk, env) = (MemDisk::new(), TestEnv::new(7));
    let node = NodeKey::from_seed(&NEW_KEY).public();
    let make = |peer: &Peer, bytes: &mut usize| make(&disk, &env, (peer, &head), &mut giver(&[&a], bytes));
    let peer = Peer { node: key_of(&a), volume: a.volume.id().unwrap() };
    let refused = make(&Peer { volume: [9; 16], ..peer }, &mut 0).err();
    assert!(matches!(refused, Some(PeerError::Merge(MergeError::OtherVolume(_)))), "{refused:?}");
    let refused = make(&Peer { node, ..peer }, &mut 0).err();
    assert!(matches!(refused, Some(PeerError::OtherSigner)), "{refused:?}");
    assert!(!LocalVolume::is_there(&disk).unwrap());
    let mut bytes = 0;
    let volume = make(&peer, &mut bytes).unwrap();
    assert!(bytes < 100_000, "{bytes} bytes, and the contents of files come later");
    assert!(LocalVolume::is_there(&disk).unwrap());

    assert_eq!(volume.snapshots().unwrap().len(), 0, "nobody took a snapshot");
    assert_eq!(volume.id().unwrap(), peer.volume);
    assert_eq!(volume.tree_root().unwrap(), a.volume.tree_root().unwrap());
    assert_eq!(volume.fsck(false, &|_| {}).unwrap().problems, [], "what has still to come is not lost");
    assert!(volume.receipt().unwrap().is_none(), "it vouches for nothing yet");
    drop(volume);
    let volume = open(Arc::new(disk.clone()), &env, &NEW_KEY).unwrap();
    assert!(volume.receipt().unwrap().is_none(), "nor after a restart");
    while let missing = volume.look_for_missing().unwrap()
        && !missing.is_empty()
    {
        for (id, _) in missing {
            volume.take_glyph(id, &a.volume.glyph_to_send(GlyphKind::Data, &id).unwrap().unwrap()).unwrap();
        }
    }
    assert!(volume.receipt().unwrap().is_some());
    a.write(Ino::ROOT, b"more", b"1");
    let (head, mut bytes) = (a.volume.head().unwrap().to_bytes(), 0);
    volume.learn(&key_of(&a), &head, &mut giver(&[&a], &mut bytes), &GO_ON).unwrap();
    assert!(bytes < 20_000, "{bytes} bytes");
    assert_eq!(volume.context(), a.volume.context());
    assert_eq!(read_tree(&volume).unwrap(), read_tree(&a.volume).unwrap());
    assert_eq!(volume.fsck(false, &|_| {}).unwrap().problems, []);
}

#[test]
fn what_broke_off_goes_on_from_anybody_where_it_was() {
    let (a, b, _) = pair();
    for n in 0..400 {
        a.write(Ino::ROOT, format!("file {n:03}").as_bytes(), &noise(n, 3_000));
    }
    let c = Site::new(2);
    let peer = Peer { node: key_of(&a), volume: a.volume.id().unwrap() };
    let (disk, env) = (MemDisk::new(), TestEnv::new(7));
    let head = a.volume.head().unwrap().to_bytes();
    tell(&a, &b);
    // So many glyphs are given before it breaks off, and by whom.
    let (mut tries, mut asked) = (0, 0);
    let volume = loop {
        let (sites, mut bytes) = ([if tries % 2 == 0 { &a } else { &b }, &c], 0);
        let mut give = giver(&sites, &mut bytes);
        let mut left = 3;
        let mut some = |kind, ids: &[GlyphId]| {
            if left == 0 {
                return Err(std::io::Error::other("cut"));
            }
            let ids = &ids[..ids.len().min(left)];
            left -= ids.len();
            asked += ids.len();
            give(kind, ids)
        };
        match make(&disk, &env, (&peer, &head), &mut some) {
            Ok(volume) => break volume,
            Err(PeerError::Pull(_)) => tries += 1,
            Err(error) => panic!("{error}"),
        }
    };
    let mut all = 0;
    let fresh = make(&MemDisk::new(), &env, (&peer, &head), &mut |kind, ids: &[GlyphId]| {
        all += ids.len();
        giver(&[&a], &mut 0)(kind, ids)
    });
    assert!(tries > 2 && asked == all, "{tries} tries, {asked} of {all} glyphs: none twice");
    assert_eq!(volume.tree_root().unwrap(), a.volume.tree_root().unwrap());
    assert_eq!(fresh.unwrap().tree_root().unwrap(), a.volume.tree_root().unwrap());
}

fn member(name: &str) -> Member {
    let addresses = vec!["192.0.2.7:7447".parse().unwrap()];
    let (name, since) = (name.to_owned(), Timestamp::new(1, 0));
    Member { name, role: String::new(), zone: String::new(), addresses, since, left: false, leaving: false }
}

fn invite(site: &Site, number: u8, lasts_ms: u64) -> Secret {
    let (secret, now) = (Secret([number; 16]), site.env.now().millis());
    let (role, zone) = ("spare".to_owned(), "cellar".to_owned());
    site.volume.invite(&secret, &Invite { role, zone, expires_ms: now + lasts_ms, used_by: None }).unwrap();
    secret
}

#[test]
fn an_invitation_admits_one_node_until_it_expires() {
    let a = Site::new(0);
    let [first, second] = [21, 22].map(|seed| NodeKey::from_seed(&[seed; 32]).public());
    let made = |invite: &Invite, since| Member { role: invite.role.clone(), since, ..member("b") };
    assert!(!a.volume.has_invited().unwrap());
    let secret = invite(&a, 1, 3_600_000);
    let wrong = a.volume.admit(first, &Secret([2; 16]), made);
    assert!(matches!(wrong, Err(JoinError::Unknown)), "{wrong:?}");
    a.volume.admit(first, &secret, made).unwrap();
    a.volume.admit(first, &secret, made).expect("it may not have heard the answer");
    let a = a.crashed();
    let again = a.volume.admit(second, &secret, made);
    assert!(matches!(again, Err(JoinError::Used)), "{again:?}");
    assert_eq!(a.volume.member(first).unwrap().unwrap().role, "spare");
    assert_eq!(a.volume.member(second).unwrap(), None);

    let secret = invite(&a, 3, 0);
    let late = a.volume.admit(second, &secret, made);
    assert!(matches!(late, Err(JoinError::Expired)), "{late:?}");
    assert!(a.volume.has_invited().unwrap(), "whoever comes late is told so");
}

#[test]
fn members_are_what_was_said_last_wherever_it_was_heard() {
    let (a, b, c) = (Site::new(0), Site::new(1), Site::new(2));
    let node = NodeKey::from_seed(&[21; 32]).public();
    a.volume.put_member(node, &member("old")).unwrap();
    b.volume.take_member_entries(a.volume.member_entries().unwrap()).unwrap();
    b.volume.put_member(node, &member("new")).unwrap();
    for (from, to) in [(&b, &c), (&a, &c), (&b, &a), (&c, &b)] {
        to.volume.take_member_entries(from.volume.member_entries().unwrap()).unwrap();
    }
    for site in [a, b, c] {
        let site = site.crashed();
        assert_eq!(site.volume.members().unwrap(), [(node, member("new"))]);
    }
    let c = Site::new(2);
    let hlc = Hlc::from_millis(c.env.now().millis() + 120_000);
    let future = Entry { hlc, author: AuthorId([1; 16]), value: Some(member("x").encode()) };
    let garbage = Entry { hlc: Hlc(1), value: Some(vec![1, 2, 3]), ..future.clone() };
    c.volume.take_member_entries(vec![(node, future), (node, garbage)]).unwrap();
    assert_eq!(c.volume.member_entries().unwrap(), []);
}

/// Lets machines tell each other who the members are, until nothing is new.
fn gossip(sites: &[&Site]) {
    let tell = |from: &Site, to: &Site| to.volume.take_member_entries(from.volume.member_entries().unwrap()).unwrap();
    let all = || sites.iter().flat_map(|from| sites.iter().map(move |to| (*from, *to)));
    while all().fold(false, |news, (from, to)| tell(from, to) || news) {}
}

fn admit(site: &Site, node: NodePublicKey, number: u8) -> Result<(), JoinError> {
    site.volume.admit(node, &Secret([number; 16]), |_, since| Member { since, ..member("m") })
}

#[test]
fn what_a_removed_member_still_says_of_itself_does_not_bring_it_back() {
    let (a, b, removed) = (Site::new(0), Site::new(1), Site::new(2));
    let node = key_of(&removed);
    invite(&a, 1, 3_600_000);
    admit(&a, node, 1).unwrap();
    gossip(&[&a, &b, &removed]);
    assert!(a.volume.remove_member(node).unwrap());
    assert!(!a.volume.remove_member(node).unwrap());
    // It has not heard, and its clock is ahead.
    for _ in 0..9000 {
        removed.env.advance();
    }
    let known = removed.volume.member(node).unwrap().unwrap();
    let moved = Member { addresses: vec!["192.0.2.9:1".parse().unwrap()], ..known };
    removed.volume.put_member(node, &moved).unwrap();
    gossip(&[&b, &removed]);
    assert_eq!(b.volume.members().unwrap(), [(node, moved.clone())]);
    gossip(&[&a, &b, &removed]);
    for site in [a.crashed(), b.crashed(), removed.crashed()] {
        assert_eq!(site.volume.members().unwrap(), []);
        assert!(site.volume.present_or_past_member(node).unwrap().unwrap().left);
        site.volume.put_member(node, &moved).unwrap();
        assert_eq!(site.volume.member(node).unwrap(), None, "to move is not to come back");
        if site.volume.has_invited().unwrap() {
            let again = admit(&site, node, 1);
            assert!(matches!(again, Err(JoinError::Removed)), "{again:?}");
        }
    }
}

#[test]
fn a_removal_does_not_undo_an_admission_that_it_did_not_know_of() {
    let (a, b, c) = (Site::new(0), Site::new(1), Site::new(2));
    let node = NodeKey::from_seed(&[21; 32]).public();
    invite(&a, 1, 3_600_000);
    invite(&b, 2, 3_600_000);
    admit(&a, node, 1).unwrap();
    gossip(&[&a, &b]);
    // The removal is later by the clocks of all.
    admit(&b, node, 2).unwrap();
    for _ in 0..9000 {
        a.env.advance();
    }
    a.volume.remove_member(node).unwrap();
    for (from, to) in [(&a, &c), (&b, &c), (&b, &a), (&a, &b)] {
        to.volume.take_member_entries(from.volume.member_entries().unwrap()).unwrap();
    }
    for site in [&a, &b, &c] {
        assert!(site.crashed().volume.member(node).unwrap().is_some());
    }
    // One that knows of it ends it, and whoever was removed may be invited anew.
    c.volume.remove_member(node).unwrap();
    gossip(&[&a, &b, &c]);
    assert!([&a, &b, &c].iter().all(|site| site.volume.member(node).unwrap().is_none()));
    invite(&b, 3, 3_600_000);
    admit(&b, node, 3).unwrap();
    gossip(&[&a, &b, &c]);
    assert!([&a, &b, &c].iter().all(|site| site.volume.member(node).unwrap().is_some()));
}

#[test]
fn both_sides_of_a_cut_are_kept_when_it_heals() {
    let (a, b, _) = pair();
    a.write(Ino::ROOT, b"inline", b"here");
    b.write(Ino::ROOT, b"inline", b"there");
    tell(&a, &b);
    tell(&b, &a);
    check_same(&a, &b);
    for site in [&a, &b] {
        assert_eq!(site.volume.conflicts(b"/").unwrap().len(), 1);
    }
    a.write(Ino::ROOT, b"inline", b"decided");
    tell(&a, &b);
    check_same(&a, &b);
    assert!(b.volume.conflicts(b"/").unwrap().is_empty());
}

#[test]
fn a_head_of_somebody_else_or_damaged_glyphs_change_nothing() {
    let (a, b, _) = pair();
    a.write(Ino::ROOT, b"of a", &noise(31, 50_000));
    let before = (b.volume.context(), b.volume.tree_root().unwrap());
    let (head, key) = (a.volume.head().unwrap().to_bytes(), key_of(&a));
    let learn = |head: &[u8], damage: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let mut give = |kind, ids: &[GlyphId]| {
            let given = giver(&[&a], &mut 0)(kind, ids)?;
            Ok(given.into_iter().map(|(id, glyph)| (id, damage(glyph.to_vec()).into())).collect())
        };
        b.volume.learn(&key, head, &mut give, &GO_ON)
    };
    let refused = b.volume.learn(&key_of(&b), &head, &mut giver(&[&a], &mut 0), &GO_ON);
    assert!(matches!(refused, Err(PeerError::OtherSigner)));
    for at in 0..head.len() {
        let mut damaged = head.to_vec();
        damaged[at] ^= 4;
        assert!(learn(&damaged, &|glyph| glyph).is_err(), "byte {at}");
        assert!(learn(&head[..at], &|glyph| glyph).is_err(), "{at} bytes");
    }
    let flipped = |mut glyph: Vec<u8>| {
        let middle = glyph.len() / 2;
        glyph[middle] ^= 4;
        glyph
    };
    assert!(matches!(learn(&head, &flipped), Err(PeerError::Pull(PullError::Lacking { .. }))));
    assert!(matches!(learn(&head, &|_| Vec::new()), Err(PeerError::Pull(PullError::Lacking { .. }))));
    let stranger = Site::new(2);
    stranger.write(Ino::ROOT, b"x", b"x");
    let refused = try_tell(&stranger, &b);
    assert!(matches!(refused, Err(PeerError::Merge(MergeError::OtherVolume(_)))));
    assert_eq!((b.volume.context(), b.volume.tree_root().unwrap()), before);
    learn(&head, &|glyph| glyph).unwrap();
    check_same(&a, &b);
}
