//! Versions of files that were superseded: kept as long as they are to be, readable, and gone after that.

use std::sync::Arc;
use std::time::Duration;

use phifs_core::content::validate::Form;
use phifs_core::disk::{Disk, FileName, MemDisk};
use phifs_core::namespace::row::Closure;
use phifs_core::namespace::version::Validity;
use phifs_core::volume::local::{LocalVolume, Options, Problem};
use phifs_core::volume::{Attr, Ino, OpenHow, Result, SetAttr, Volume};

use crate::harness::{CALLER, NODE, READ, TestEnv, WRITE, errno, open_with, options, settle};

struct Fixture {
    disk: Arc<dyn Disk>,
    env: Arc<TestEnv>,
    options: Options,
    volume: LocalVolume,
}

fn start(versions_keep: u32) -> Fixture {
    let (disk, env): (Arc<dyn Disk>, _) = (Arc::new(MemDisk::new()), TestEnv::new(1));
    let options = Options { versions_keep, versions_max_age: Duration::from_millis(1000), ..options() };
    let volume = open_with(&disk, &env, options.clone()).unwrap();
    Fixture { disk, env, options, volume }
}

impl Fixture {
    fn save(&self, name: &[u8], bytes: &[u8]) -> Ino {
        self.env.advance();
        let (ino, handle) = match self.volume.lookup(&CALLER, Ino::ROOT, name) {
            Ok(attr) => {
                let how = OpenHow { truncate: true, ..WRITE };
                (attr.ino, self.volume.open(&CALLER, attr.ino, &how).unwrap().handle)
            }
            Err(_) => {
                let (attr, opened) = self.volume.create(&CALLER, Ino::ROOT, name, &NODE, &WRITE).unwrap();
                (attr.ino, opened.handle)
            }
        };
        self.volume.write(&CALLER, ino, handle, 0, bytes, false).unwrap();
        self.volume.release(ino, handle);
        settle(&self.volume);
        ino
    }

    fn wait(&self, millis: u64) {
        for _ in 0..millis {
            self.env.advance();
        }
    }

    fn list(&self, name: &[u8]) -> Ino {
        let names: [&[u8]; 3] = [b".phi", b"versions", name];
        names.iter().fold(Ino::ROOT, |dir, name| self.volume.lookup(&CALLER, dir, name).unwrap().ino)
    }

    /// Names and attributes in the order of the names.
    fn versions(&self, name: &[u8]) -> Vec<(String, Attr)> {
        let mut found = Vec::new();
        let list = &mut |entry: &phifs_core::volume::Entry| {
            found.push((String::from_utf8(entry.name.clone()).unwrap(), entry.attr));
            true
        };
        self.volume.readdir(self.list(name), 2, list).unwrap();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    fn read(&self, ino: Ino) -> Result<Vec<u8>> {
        let opened = self.volume.open(&CALLER, ino, &READ)?;
        let bytes = self.volume.read(ino, opened.handle, 0, 1 << 20);
        self.volume.release(ino, opened.handle);
        bytes
    }

    fn bytes(&self, name: &[u8]) -> Vec<Vec<u8>> {
        self.versions(name).into_iter().map(|(_, attr)| self.read(attr.ino).unwrap()).collect()
    }

    fn live_glyphs(&self) -> u64 {
        self.volume.make_checkpoint(false).unwrap();
        self.volume.collect(0.9, &|_| {}).unwrap().live_glyphs
    }
}

/// As long as it takes for a glyph of its own.
fn long(n: u8) -> Vec<u8> {
    (0..40_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 ^ n).collect()
}

#[test]
fn every_published_version_can_be_read_in_the_order_of_time() {
    let fixture = start(16);
    let texts = [b"one".to_vec(), long(1), Vec::new(), long(2), b"last".to_vec()];
    for text in &texts {
        fixture.save(b"f", text);
    }
    assert_eq!(fixture.bytes(b"f"), texts);
    let volume = &fixture.volume;
    for ((name, attr), text) in fixture.versions(b"f").into_iter().zip(&texts) {
        assert!(name.starts_with("2023-11-14T22:13:2") && name.contains("Z-"), "{name}");
        assert_eq!((attr.size_bytes, attr.nlink, attr.permissions), (text.len() as u64, 1, 0o400));
        let found = volume.lookup(&CALLER, fixture.list(b"f"), name.as_bytes()).unwrap();
        assert_eq!(found, attr);
        assert_eq!(volume.getattr(attr.ino, None).unwrap(), attr);
    }
    // After a clean stop, and after a crash.
    fixture.volume.shut_down().unwrap();
    let Fixture { disk, env, options, .. } = fixture;
    let reopened = open_with(&disk, &env, options.clone()).unwrap();
    let fixture = Fixture { disk: disk.clone(), env: env.clone(), options: options.clone(), volume: reopened };
    assert_eq!(fixture.bytes(b"f"), texts);
    fixture.save(b"f", b"newer");
    fixture.volume.commit().unwrap();
    drop(fixture);
    let volume = open_with(&disk, &env, options.clone()).unwrap();
    assert!(!volume.opening().clean);
    let fixture = Fixture { disk, env, options, volume };
    assert_eq!(fixture.bytes(b"f")[1..], [&texts[1..], &[b"newer".to_vec()]].concat());
}

#[test]
fn versions_look_as_the_file_did_when_they_were_replaced() {
    let fixture = start(16);
    let ino = fixture.save(b"f", b"private");
    fixture.save(b"f", b"public");
    let change = SetAttr { permissions: Some(0o644), uid: Some(7), ..SetAttr::default() };
    fixture.volume.setattr(&CALLER, ino, &change).unwrap();
    let looks: Vec<_> = fixture.versions(b"f").iter().map(|(_, attr)| (attr.permissions, attr.uid)).collect();
    assert_eq!(looks, [(0o400, 0), (0o444, 7)]);
}

#[test]
fn the_oldest_go_when_there_are_too_many() {
    let fixture = start(3);
    for n in 0..10 {
        fixture.save(b"f", &[n; 10]);
    }
    assert_eq!(fixture.bytes(b"f"), [6, 7, 8, 9].map(|n| vec![n; 10]));
    let none = start(0);
    none.save(b"f", b"1");
    none.save(b"f", b"2");
    assert_eq!(none.bytes(b"f"), [b"2"]);
}

#[test]
fn versions_of_a_file_that_stays_open_do_not_push_out_what_was_saved() {
    let fixture = start(8);
    for n in 0..4 {
        fixture.save(b"f", &[n; 10]);
    }
    let ino = fixture.volume.lookup(&CALLER, Ino::ROOT, b"f").unwrap().ino;
    let opened = fixture.volume.open(&CALLER, ino, &WRITE).unwrap();
    for n in 10..40 {
        fixture.volume.write(&CALLER, ino, opened.handle, 0, &[n; 10], false).unwrap();
        fixture.wait(10);
        fixture.volume.tick().unwrap();
    }
    fixture.volume.release(ino, opened.handle);
    settle(&fixture.volume);
    let wanted = [0, 1, 2, 3, 37, 38, 39].map(|n| vec![n; 10]);
    assert_eq!(fixture.bytes(b"f"), wanted);
    let via = |version: phifs_core::volume::local::FileVersion| version.closure;
    let via: Vec<_> = fixture.volume.file_versions(ino).unwrap().into_iter().map(via).collect();
    assert_eq!(via[..4], [Closure::Close; 4]);
    assert_eq!(via[4..6], [Closure::IdleFlush; 2]);
}

#[test]
fn a_version_says_what_became_of_the_bytes() {
    let fixture = start(16);
    let png = [&b"\x89PNG\r\n\x1a\n"[..], &[7; 5000], b"\0\0\0\0IEND\xaeB`\x82"].concat();
    let ino = fixture.save(b"f", &png);
    fixture.save(b"f", &png[..4000]);
    fixture.save(b"f", b"{\"now\": \"JSON\"}");
    fixture.save(b"f", &[0; 100_000]);
    let found = || -> Vec<_> {
        let versions = fixture.volume.file_versions(ino).unwrap().into_iter();
        versions
            .map(|version| version.evidence)
            .map(|evidence| (evidence.form, evidence.validity, evidence.collapsed, evidence.sessions))
            .collect()
    };
    let expected = [
        (Form::Png, Validity::Passes, false, 1),
        (Form::Png, Validity::Fails, false, 1),
        (Form::Json, Validity::Passes, false, 1),
        (Form::Opaque, Validity::Fails, true, 1),
    ];
    assert_eq!(found(), expected);
    fixture.wait(60_000);
    fixture.save(b"f", b"");
    assert_eq!(found().last(), Some(&(Form::Opaque, Validity::Fails, true, 2)));
}

#[test]
fn a_file_that_was_closed_is_published_as_closed_whoever_publishes_it() {
    let fixture = start(8);
    let (attr, opened) = fixture.volume.create(&CALLER, Ino::ROOT, b"f", &NODE, &WRITE).unwrap();
    fixture.volume.write(&CALLER, attr.ino, opened.handle, 0, b"1", false).unwrap();
    fixture.volume.release(attr.ino, opened.handle);
    // Before any publisher gets to it.
    fixture.volume.tick().unwrap();
    assert_eq!(fixture.volume.file_versions(attr.ino).unwrap()[0].closure, Closure::Close);
}

#[test]
fn collections_keep_the_bytes_of_versions_as_long_as_these_are_kept() {
    let fixture = start(16);
    fixture.save(b"f", &long(1));
    fixture.save(b"f", &long(2));
    fixture.save(b"f", b"short");
    let all = fixture.live_glyphs();
    assert_eq!(fixture.bytes(b"f"), [long(1), long(2), b"short".to_vec()]);
    let second = fixture.versions(b"f")[1].1.ino;
    let reader = fixture.volume.open(&CALLER, second, &READ).unwrap();
    fixture.wait(1001);
    assert_eq!(fixture.bytes(b"f"), [b"short"], "the others are too old");
    assert_eq!(errno(&fixture.read(second).unwrap_err()), "Stale");
    // What somebody reads stays until they have done so.
    let with_reader = fixture.live_glyphs();
    assert!(with_reader < all);
    assert_eq!(fixture.volume.read(second, reader.handle, 0, 1 << 20).unwrap(), long(2));
    fixture.volume.release(second, reader.handle);
    assert_eq!(fixture.live_glyphs(), with_reader - 1);
}

#[test]
fn versions_go_with_their_file() {
    let fixture = start(16);
    fixture.save(b"other", b"");
    let before = fixture.live_glyphs();
    fixture.save(b"f", &long(1));
    fixture.save(b"f", &long(2));
    fixture.volume.unlink(Ino::ROOT, b"f").unwrap();
    settle(&fixture.volume);
    assert_eq!(fixture.live_glyphs(), before);
}

#[test]
fn versions_are_told_with_the_snapshots_that_hold_them() {
    let fixture = start(1);
    let ino = fixture.save(b"f", b"1");
    fixture.volume.create_snapshot("first", Vec::new(), false).unwrap();
    fixture.volume.create_snapshot("second", Vec::new(), false).unwrap();
    fixture.save(b"f", b"22");
    fixture.save(b"f", b"333");
    fixture.volume.create_snapshot("third", Vec::new(), false).unwrap();
    let told = || -> Vec<_> {
        let versions = fixture.volume.file_versions(ino).unwrap().into_iter();
        let names = |snapshots: Vec<(String, _)>| snapshots.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let told = versions.map(|v| (v.len_bytes, v.is_current, v.is_kept, names(v.snapshots).join(" ")));
        told.collect()
    };
    assert_eq!(
        told(),
        [
            (1, false, false, "first second".to_owned()),
            (2, false, true, String::new()),
            (3, true, true, "third".to_owned())
        ]
    );
    // What was written and not published yet is the current one.
    let opened = fixture.volume.open(&CALLER, ino, &WRITE).unwrap();
    fixture.volume.write(&CALLER, ino, opened.handle, 0, b"4444", false).unwrap();
    fixture.volume.release(ino, opened.handle);
    assert_eq!(told().last(), Some(&(4, true, true, String::new())));
    assert_eq!(fixture.volume.inode_at(b"/f").unwrap(), ino);
    assert_eq!(errno(&fixture.volume.inode_at(b"f/x").unwrap_err()), "NotDirectory");
    assert_eq!(errno(&fixture.volume.inode_at(b"g").unwrap_err()), "NotFound");
    assert_eq!(errno(&fixture.volume.file_versions(Ino::ROOT).unwrap_err()), "IsDirectory");
}

#[test]
fn a_check_reads_versions_and_names_those_that_are_damaged() {
    let fixture = start(16);
    let mut noise = vec![0; 40_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    fixture.save(b"f", &noise);
    fixture.save(b"f", b"short");
    let version = fixture.versions(b"f").remove(0).0;
    assert_eq!(fixture.volume.scrub(&|_| {}).unwrap().problems, []);
    fixture.volume.shut_down().unwrap();
    let Fixture { disk, env, options, .. } = fixture;
    for name in disk.list().unwrap().into_iter().filter(|name| matches!(name, FileName::Pack(_))) {
        let pack = disk.open(name).unwrap();
        let mut bytes = vec![0; pack.stamp().unwrap().len_bytes as usize];
        pack.read_exact_at(&mut bytes, 0).unwrap();
        if let Some(at) = bytes.windows(100).position(|window| window == &noise[20_000..20_100]) {
            pack.write_at(&[!noise[20_000]], at as u64).unwrap();
        }
    }
    let volume = open_with(&disk, &env, options).unwrap();
    let problems = volume.scrub(&|_| {}).unwrap().problems;
    let [Problem::Bytes(lost)] = &problems[..] else { panic!("{problems:?}") };
    assert_eq!(String::from_utf8_lossy(&lost.path), format!("/f (version {version})"));
}
