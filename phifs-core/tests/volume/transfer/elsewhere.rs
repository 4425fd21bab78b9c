//! Contents that are on another machine: they are fetched when somebody reads them, once, and nobody else waits for that.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use phifs_core::content::manifest::Part;
use phifs_core::disk::FileName;
use phifs_core::id::GlyphId;
use phifs_core::placement::{Layout, Place};
use phifs_core::store::GlyphKind;
use phifs_core::volume::local::{Options, PeerGlyphs};
use phifs_core::volume::{FileKind, Handle, Seek, VolumeError};

use super::groups::{members, push};
use super::peers::{check_same, key_of};
use super::*;
use crate::harness::READ;

/// What another machine has, and how it behaves.
#[derive(Default)]
pub(super) struct Other {
    pub glyphs: Mutex<BTreeMap<GlyphId, Bytes>>,
    pub asked: Mutex<Vec<Vec<GlyphId>>>,
    /// Tells that it was asked, and answers when it is told to.
    pub turns: Option<Turns>,
}

type Turns = (Mutex<Sender<()>>, Mutex<Receiver<()>>);

impl PeerGlyphs for Other {
    fn fetch(&self, ids: &[GlyphId], _: Duration) -> io::Result<Vec<(GlyphId, Bytes)>> {
        self.asked.lock().unwrap().push(ids.to_vec());
        if let Some((asked, answer)) = &self.turns {
            asked.lock().unwrap().send(()).unwrap();
            let told = answer.lock().unwrap().recv_timeout(Duration::from_secs(20));
            told.map_err(|_| io::Error::other("somebody waited for this"))?;
        }
        let glyphs = self.glyphs.lock().unwrap();
        Ok(ids.iter().filter_map(|id| Some((*id, glyphs.get(id)?.clone()))).collect())
    }
}

impl Other {
    fn ids(&self) -> Vec<GlyphId> {
        self.glyphs.lock().unwrap().keys().copied().collect()
    }

    fn times_asked(&self, id: &GlyphId) -> usize {
        self.asked.lock().unwrap().iter().filter(|ids| ids.contains(id)).count()
    }
}

/// All glyphs of contents that one machine has and the other one has not.
pub(super) fn difference(from: &Site, to: &Site) -> BTreeMap<GlyphId, Bytes> {
    let lacks = |id: &GlyphId| to.volume.glyph_to_send(GlyphKind::Data, id).unwrap().is_none();
    let ids = glyphs_of(from).into_iter().filter(lacks);
    ids.map(|id| (id, from.volume.glyph_to_send(GlyphKind::Data, &id).unwrap().unwrap())).collect()
}

/// All glyphs of contents, pages included.
pub(super) fn glyphs_of(site: &Site) -> BTreeSet<GlyphId> {
    let mut ids = BTreeSet::new();
    let mut each = |_: Part, id: &GlyphId, _: u64| {
        ids.insert(*id);
        Ok(())
    };
    site.volume.each_glyph(&mut each).unwrap();
    ids
}

pub(super) fn layout_of(holders: &[(&Site, u32)]) -> Layout {
    let place = |(site, weight): &(&Site, u32)| Place {
        key: key_of(site),
        weight: *weight,
        zone: String::new(),
        class: String::new(),
    };
    Layout::new(1, holders.iter().map(place).collect())
}

/// Two machines, of which the second is to hold nothing, and what it lacks of the files that `fill` writes on the first.
pub(super) fn apart(fill: impl Fn(&Site)) -> (Site, Site, Arc<Other>) {
    let (a, b) = members();
    let layout = layout_of(&[(&a, 1), (&b, 0)]);
    a.volume.set_layout(Some(layout.clone())).unwrap();
    b.volume.set_layout(Some(layout)).unwrap();
    fill(&a);
    push(&a, &b);
    let other = Other { glyphs: Mutex::new(difference(&a, &b)), ..Other::default() };
    (a, b, Arc::new(other))
}

pub(super) fn open_file(site: &Site, name: &[u8]) -> (Ino, Handle) {
    let ino = site.volume.lookup(&CALLER, Ino::ROOT, name).unwrap().ino;
    (ino, site.volume.open(&CALLER, ino, &READ).unwrap().handle)
}

pub(super) fn read_all(site: &Site, name: &[u8]) -> Result<Vec<u8>, VolumeError> {
    let (ino, handle) = open_file(site, name);
    let mut bytes = Vec::new();
    loop {
        match site.volume.read(ino, handle, bytes.len() as u64, 128 << 10) {
            Ok(part) if part.is_empty() => break,
            Ok(part) => bytes.extend(part),
            Err(error) => {
                site.volume.release(ino, handle);
                return Err(error);
            }
        }
    }
    site.volume.release(ino, handle);
    settle(&site.volume);
    Ok(bytes)
}

pub(super) fn status(site: &Site, name: &[u8]) -> String {
    let ino = site.volume.lookup(&CALLER, Ino::ROOT, name).unwrap().ino;
    String::from_utf8(site.volume.getxattr(ino, b"user.phi.status").unwrap()).unwrap()
}

const LONG: usize = 20 << 20;

#[test]
fn file_that_is_elsewhere_is_fetched_ahead_and_kept() {
    let (_a, b, other) = apart(|a| _ = a.write(Ino::ROOT, b"long", &noise(7, LONG)));
    assert!(other.ids().len() > LONG / (256 << 10), "pages alone came along");
    b.volume.set_peers(Some(other.clone()));
    assert_eq!(read_all(&b, b"long").unwrap(), noise(7, LONG));
    let asked = other.asked.lock().unwrap().len();
    assert!((LONG >> 22..=LONG >> 21).contains(&asked), "asked {asked} times");
    assert!(other.ids().iter().all(|id| other.times_asked(id) <= 1));
    assert_eq!(read_all(&b, b"long").unwrap(), noise(7, LONG));
    assert_eq!(other.asked.lock().unwrap().len(), asked, "nobody is asked again");
}

#[test]
fn reason_why_a_file_cannot_be_read_is_told_until_it_can() {
    let (_a, b, other) = apart(|a| _ = a.write(Ino::ROOT, b"single", &noise(7, 30_000)));
    assert_eq!(status(&b, b"single"), "ok");
    assert!(read_all(&b, b"single").is_err());
    assert!(status(&b, b"single").ends_with("no other machine is connected"), "{}", status(&b, b"single"));
    b.volume.set_peers(Some(Arc::new(Other::default())));
    assert!(read_all(&b, b"single").is_err());
    assert!(status(&b, b"single").ends_with("nobody who was asked has it"), "{}", status(&b, b"single"));
    b.volume.set_peers(Some(other));
    assert_eq!(read_all(&b, b"single").unwrap(), noise(7, 30_000));
    assert_eq!(status(&b, b"single"), "ok");
}

#[test]
fn wrong_bytes_are_not_read_and_not_kept() {
    let (_a, b, other) = apart(|a| _ = a.write(Ino::ROOT, b"single", &noise(7, 30_000)));
    let id = other.ids()[0];
    let right = other.glyphs.lock().unwrap()[&id].clone();
    let mut wrong = right.to_vec();
    wrong[100] ^= 1;
    other.glyphs.lock().unwrap().insert(id, wrong.into());
    b.volume.set_peers(Some(other.clone()));
    assert!(read_all(&b, b"single").is_err());
    assert_eq!(b.volume.glyph_to_send(GlyphKind::Data, &id).unwrap(), None);
    other.glyphs.lock().unwrap().insert(id, right);
    assert_eq!(read_all(&b, b"single").unwrap(), noise(7, 30_000));
}

#[test]
fn readers_of_one_glyph_wait_for_one_fetch() {
    let (_a, b, mut other) = apart(|a| _ = a.write(Ino::ROOT, b"single", &noise(7, 30_000)));
    let (asked, was_asked) = channel();
    let (answer, told) = channel();
    Arc::get_mut(&mut other).unwrap().turns = Some((Mutex::new(asked), Mutex::new(told)));
    b.volume.set_peers(Some(other.clone()));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let (ino, handle) = open_file(&b, b"single");
                    let read = b.volume.read(ino, handle, 0, 65_536);
                    b.volume.release(ino, handle);
                    read
                })
            })
            .collect();
        was_asked.recv().unwrap();
        let again = was_asked.recv_timeout(Duration::from_millis(300));
        assert!(again.is_err(), "whoever comes later waits for the first");
        answer.send(()).unwrap();
        for reader in readers {
            assert_eq!(reader.join().unwrap().unwrap(), noise(7, 30_000));
        }
    });
    assert_eq!(other.asked.lock().unwrap().len(), 1);
}

#[test]
fn nobody_else_waits_while_something_is_fetched() {
    let (_a, b, mut other) = apart(|a| _ = a.write(Ino::ROOT, b"single", &noise(7, 30_000)));
    let (asked, was_asked) = channel();
    let (answer, told) = channel();
    Arc::get_mut(&mut other).unwrap().turns = Some((Mutex::new(asked), Mutex::new(told)));
    b.volume.set_peers(Some(other));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (ino, handle) = open_file(&b, b"single");
            let read = b.volume.read(ino, handle, 0, 65_536);
            b.volume.release(ino, handle);
            read
        });
        was_asked.recv().unwrap();
        let attr = b.volume.lookup(&CALLER, Ino::ROOT, b"single").unwrap();
        assert_eq!((attr.size_bytes, attr.kind), (30_000, FileKind::File));
        let opened = b.volume.open(&CALLER, attr.ino, &WRITE).unwrap();
        b.volume.write(&CALLER, attr.ino, opened.handle, 30_000, b"more", false).unwrap();
        b.volume.release(attr.ino, opened.handle);
        b.mkdir(Ino::ROOT, b"new");
        b.volume.tick().unwrap();
        b.volume.collect(1.0, &|_| {}).unwrap();
        answer.send(()).unwrap();
        let read = reader.join().unwrap().unwrap();
        assert_eq!(read[..30_000], noise(7, 30_000));
    });
}

#[test]
fn what_is_written_to_a_file_that_is_elsewhere_is_durable_without_the_others() {
    for (len, at) in [(30_000, 5_000), (LONG, 9 << 20)] {
        let (a, b, other) = apart(|a| _ = a.write(Ino::ROOT, b"file", &noise(7, len)));
        let ino = b.volume.lookup(&CALLER, Ino::ROOT, b"file").unwrap().ino;
        let opened = b.volume.open(&CALLER, ino, &WRITE).unwrap();
        b.volume.write(&CALLER, ino, opened.handle, at as u64, b"changed", false).unwrap();
        b.volume.fsync(ino, Some(opened.handle), false).unwrap();

        let b = b.crashed();
        assert_eq!(b.volume.layout(), a.volume.layout(), "it is known after a crash");
        b.volume.set_peers(Some(other));
        let mut expected = noise(7, len);
        expected[at..at + 7].copy_from_slice(b"changed");
        assert!(read_all(&b, b"file").unwrap() == expected, "{len}");
        b.volume.tick().unwrap();
        b.volume.shut_down().unwrap();
        push(&b, &a);
        assert!(read_all(&a, b"file").unwrap() == expected, "{len}");
    }
}

#[test]
fn only_what_is_needed_is_fetched_to_publish_a_change() {
    let (a, b, other) = apart(|a| _ = a.write(Ino::ROOT, b"long", &noise(7, LONG)));
    b.volume.set_peers(Some(other.clone()));
    let ino = b.volume.lookup(&CALLER, Ino::ROOT, b"long").unwrap().ino;
    let opened = b.volume.open(&CALLER, ino, &WRITE).unwrap();
    b.volume.write(&CALLER, ino, opened.handle, 9 << 20, b"changed", false).unwrap();
    b.volume.release(ino, opened.handle);
    settle(&b.volume);
    let fetched: usize = other.asked.lock().unwrap().iter().map(Vec::len).sum();
    assert!((1..=8).contains(&fetched), "{fetched} glyphs");
    push(&b, &a);
    check_same(&a, &b);
    let mut expected = noise(7, LONG);
    expected[9 << 20..][..7].copy_from_slice(b"changed");
    assert!(read_all(&a, b"long").unwrap() == expected);
}

#[test]
fn holes_and_snapshots_and_exports_of_what_is_elsewhere_are_whole() {
    let (a, b, other) = apart(|a| {
        a.write(Ino::ROOT, b"some", &noise(50, 50_000));
        let holes = a.write(Ino::ROOT, b"holes", &noise(51, 700_000));
        let opened = a.volume.open(&CALLER, holes, &WRITE).unwrap();
        a.volume.fallocate(&CALLER, holes, opened.handle, 65_536, 131_072, Allocate::PunchHole).unwrap();
        a.volume.release(holes, opened.handle);
        settle(&a.volume);
    });
    b.volume.set_peers(Some(other.clone()));
    b.snapshot("here");
    let (holes, handle) = open_file(&b, b"holes");
    assert_eq!(b.volume.seek(holes, handle, 0, Seek::Hole).unwrap(), 65_536);
    b.volume.release(holes, handle);
    assert!(read_all(&b, b"holes").unwrap() == read_all(&a, b"holes").unwrap());
    let mut at = Ino::ROOT;
    for name in [&b".phi"[..], b"snapshots", b"here", b"some"] {
        at = b.volume.lookup(&CALLER, at, name).unwrap().ino;
    }
    let opened = b.volume.open(&CALLER, at, &READ).unwrap();
    assert_eq!(b.volume.read(at, opened.handle, 0, 65_536).unwrap(), noise(50, 50_000));
    b.volume.release(at, opened.handle);
    b.volume.forget(at);
    a.write(Ino::ROOT, b"unread", &noise(52, 100_000));
    push(&a, &b);
    other.glyphs.lock().unwrap().extend(difference(&a, &b));
    b.snapshot("later");
    let stream = b.export("later", None);
    let c = Site::out_of(2, &stream);
    assert_eq!(c.volume.tree_root().unwrap(), a.volume.tree_root().unwrap());
    c.verified("later");
}

#[test]
fn what_is_fetched_can_be_read_where_there_is_no_room_for_it() {
    let (a, b, other) = apart(|a| _ = a.write(Ino::ROOT, b"file", &noise(7, 300_000)));
    b.volume.shut_down().unwrap();
    let full = Options { reserve_bytes: Some(1 << 60), ..options() };
    let disk = Arc::new(b.disk.clone());
    let index = Arc::new(MemIndex::default());
    let volume = LocalVolume::open(disk, index, b.env.clone(), &b.key, full, &|_| {}).unwrap();
    let b = Site { volume, ..b };
    b.volume.set_peers(Some(other.clone()));
    assert!(read_all(&b, b"file").unwrap() == noise(7, 300_000));
    assert_eq!(difference(&a, &b).len(), other.ids().len(), "nothing is kept");
}

#[test]
fn versions_that_are_elsewhere_are_merged_when_the_file_is_opened() {
    let text = |first: &str, last: &str| {
        let lines: String = (0..2000).map(|n| format!("line {n:05}\n")).collect();
        lines.replacen("line 00000", first, 1).replacen("line 01999", last, 1).into_bytes()
    };
    let (base, of_a, of_b) = ("line 00000", "by a......", "by b......");
    let (a, b, other) = apart(|a| {
        a.volume.setxattr(&CALLER, Ino::ROOT, b"user.phi.merge", b"text", XattrMode::Set).unwrap();
        a.write(Ino::ROOT, b"text", &text(base, "line 01999"));
    });
    b.volume.set_peers(Some(other.clone()));
    a.write(Ino::ROOT, b"text", &text(of_a, "line 01999"));
    b.write(Ino::ROOT, b"text", &text(base, of_b));
    push(&a, &b);
    push(&b, &a);
    other.glyphs.lock().unwrap().extend(difference(&a, &b));
    assert_eq!(read_all(&b, b"text").unwrap(), text(of_a, of_b));
    assert_eq!(read_all(&a, b"text").unwrap(), text(of_a, of_b));
}

#[test]
fn damage_is_healed_from_another_machine() {
    let site = Site::new(0);
    site.write(Ino::ROOT, b"single", &noise(7, 30_000));
    let id = *glyphs_of(&site).first().unwrap();
    let sent = site.volume.glyph_to_send(GlyphKind::Data, &id).unwrap().unwrap();
    let other = Other { glyphs: Mutex::new([(id, sent)].into()), ..Other::default() };
    site.volume.shut_down().unwrap();
    let bytes = noise(7, 30_000);
    for name in site.disk.list().unwrap().into_iter().filter(|name| matches!(name, FileName::Pack(_))) {
        let pack = site.disk.bytes_of(name).unwrap();
        if let Some(at) = pack.windows(64).position(|window| window == &bytes[..64]) {
            site.disk.open(name).unwrap().write_at(b"damage", at as u64).unwrap();
        }
    }
    let site = Site { volume: open(Arc::new(site.disk.clone()), &site.env, &site.key).unwrap(), ..site };
    assert!(read_all(&site, b"single").is_err());
    site.volume.set_peers(Some(Arc::new(other)));
    assert_eq!(read_all(&site, b"single").unwrap(), noise(7, 30_000));
    site.volume.set_peers(None);
    assert_eq!(read_all(&site, b"single").unwrap(), noise(7, 30_000), "it is stored anew");
}
