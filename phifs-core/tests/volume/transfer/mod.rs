//! Snapshots on their way from one store to another: out, in, and as the beginning of a new store. A stream that is
//! damaged in any way is refused, and what was interrupted is gone on with.

mod between;
mod coming;
mod elsewhere;
mod eviction;
mod glyphs;
mod golden;
mod groups;
mod hostile;
mod interrupted;
mod older;
mod peers;
mod preview;
mod restored;
mod shared_out;
mod ways;

use std::ops::ControlFlow;
use std::sync::Arc;

use phifs_core::disk::{Disk, MemDisk};
use phifs_core::snapshot::stream::{Frame, Header, Reader, Writer};
use phifs_core::store::{MemIndex, StoredGlyph};
use phifs_core::volume::local::{ImportOptions, Imported, LocalVolume, OpenError, Sink, TransferError};
use phifs_core::volume::{Allocate, Ino, NewKind, NewNode, Volume, XattrMode};

use crate::harness::{CALLER, NODE, TestEnv, WRITE, options, settle};

const KEYS: [[u8; 32]; 4] = [[7; 32], [8; 32], [9; 32], [10; 32]];
/// Nobody breaks anything off.
const GO_ON: fn(u64) -> ControlFlow<()> = |_| ControlFlow::Continue(());
const DIR: NewNode<'_> = NewNode { kind: NewKind::Directory, permissions: 0o755, umask: 0 };

/// A store with a volume. Clones of the disk share it.
struct Site {
    disk: MemDisk,
    env: Arc<TestEnv>,
    key: [u8; 32],
    volume: LocalVolume,
}

fn open(disk: Arc<dyn Disk>, env: &Arc<TestEnv>, key: &[u8; 32]) -> Result<LocalVolume, OpenError> {
    LocalVolume::open(disk, Arc::new(MemIndex::default()), env.clone(), key, options(), &|_| {})
}

fn bootstrap(disk: Arc<dyn Disk>, env: &TestEnv, key: &[u8; 32], stream: &[u8]) -> Result<Imported, TransferError> {
    LocalVolume::bootstrap((disk, Arc::new(MemIndex::default())), env, key, &options(), stream, &GO_ON)
}

impl Site {
    fn new(who: usize) -> Self {
        let (disk, env, key) = (MemDisk::new(), TestEnv::new(who as u64 + 1), KEYS[who]);
        let volume = open(Arc::new(disk.clone()), &env, &key).unwrap();
        Self { disk, env, key, volume }
    }

    /// A store made out of a full export.
    fn out_of(who: usize, stream: &[u8]) -> Self {
        let (disk, env, key) = (MemDisk::new(), TestEnv::new(who as u64 + 1), KEYS[who]);
        bootstrap(Arc::new(disk.clone()), &env, &key, stream).unwrap();
        let volume = open(Arc::new(disk.clone()), &env, &key).unwrap();
        Self { disk, env, key, volume }
    }

    /// What a machine finds that loses power now, with whatever has reached the disk.
    fn crashed(&self) -> Self {
        self.copied(99)
    }

    /// A machine that starts from a copy of the disk as it is now.
    fn copied(&self, seed: u64) -> Self {
        Self::started(&self.disk, self.key, seed)
    }

    fn started(image: &MemDisk, key: [u8; 32], seed: u64) -> Self {
        let (disk, env) = (image.snapshot(), TestEnv::new(seed));
        let volume = open(Arc::new(disk.clone()), &env, &key).unwrap();
        Self { disk, env, key, volume }
    }

    fn write(&self, dir: Ino, name: &[u8], bytes: &[u8]) -> Ino {
        self.env.advance();
        let (attr, opened) = match self.volume.lookup(&CALLER, dir, name) {
            Ok(attr) => (attr, self.volume.open(&CALLER, attr.ino, &WRITE).unwrap()),
            Err(_) => self.volume.create(&CALLER, dir, name, &NODE, &WRITE).unwrap(),
        };
        self.volume.write(&CALLER, attr.ino, opened.handle, 0, bytes, false).unwrap();
        self.volume.release(attr.ino, opened.handle);
        settle(&self.volume);
        attr.ino
    }

    fn mkdir(&self, dir: Ino, name: &[u8]) -> Ino {
        self.env.advance();
        self.volume.make(&CALLER, dir, name, &DIR).unwrap().ino
    }

    /// One of everything.
    fn fill(&self) {
        self.fill_with(&[30_000, 900_000, 300_000], |at, len| noise(at as u64, len));
    }

    /// Files that are one glyph, several, and have a hole.
    fn fill_with(&self, lengths: &[usize; 3], bytes: impl Fn(usize, usize) -> Vec<u8>) {
        let dir = self.mkdir(Ino::ROOT, b"dir");
        let deep = self.mkdir(dir, b"deep");
        self.write(Ino::ROOT, b"inline", b"few bytes");
        let single = self.write(dir, b"single", &bytes(0, lengths[0]));
        self.write(deep, b"long", &bytes(1, lengths[1]));
        self.write(deep, b"plain", &[b'a'; 400_000]);
        self.volume.link(single, deep, b"other name").unwrap();
        self.volume.setxattr(&CALLER, single, b"user.colour", b"green", XattrMode::Set).unwrap();
        let target = NewNode { kind: NewKind::Symlink(b"../single"), permissions: 0o777, umask: 0 };
        self.volume.make(&CALLER, deep, b"link", &target).unwrap();
        let holes = self.write(deep, b"holes", &bytes(2, lengths[2]));
        let opened = self.volume.open(&CALLER, holes, &WRITE).unwrap();
        self.volume.fallocate(&CALLER, holes, opened.handle, 65_536, 131_072, Allocate::PunchHole).unwrap();
        self.volume.release(holes, opened.handle);
        for n in 0..200 {
            self.volume.make(&CALLER, dir, format!("file {n}").as_bytes(), &NODE).unwrap();
        }
        settle(&self.volume);
    }

    fn snapshot(&self, name: &str) {
        self.env.advance();
        self.volume.create_snapshot(name, Vec::new(), false).unwrap();
    }

    fn export(&self, name: &str, since: Option<&str>) -> Vec<u8> {
        let mut out = Vec::new();
        self.volume.export_snapshot(name, since, Sink::Pipe(&mut out), &GO_ON).unwrap();
        out
    }

    fn import(&self, stream: &[u8]) -> Result<Imported, TransferError> {
        self.volume.import_snapshot(stream, &ImportOptions::default(), &GO_ON)
    }

    fn names(&self) -> Vec<String> {
        self.volume.snapshots().unwrap().into_iter().map(|(name, _)| name).collect()
    }

    /// The tree root of a snapshot in which nothing is wrong.
    fn verified(&self, name: &str) -> [u8; 32] {
        let found = self.volume.verify_snapshot(name, &|_| {}).unwrap();
        assert!(found.report.problems.is_empty(), "{name}: {:?}", found.report.problems);
        found.tree_root.unwrap()
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Everything of a volume that an import could change.
fn state_of(volume: &LocalVolume) -> (Vec<String>, [u8; 32], String) {
    let names = volume.snapshots().unwrap().into_iter().map(|(name, _)| name).collect();
    (names, volume.tree_root().unwrap(), volume.status().author)
}

/// A store with a snapshot named `first`, another one made out of it, and the export that went over.
fn pair() -> (Site, Site, Vec<u8>) {
    let old = Site::new(0);
    old.fill();
    old.snapshot("first");
    let full = old.export("first", None);
    let new = Site::out_of(1, &full);
    (old, new, full)
}

/// The stores of the two sides before an increment goes over: old, new, the full export, the increment.
fn ready() -> (Site, Site, Vec<u8>, Vec<u8>) {
    let (old, new, full) = pair();
    let dir = old.volume.lookup(&CALLER, Ino::ROOT, b"dir").unwrap().ino;
    let deep = old.volume.lookup(&CALLER, dir, b"deep").unwrap().ino;
    old.write(deep, b"long", &noise(20, 250_000));
    old.write(dir, b"more", &noise(21, 2_000));
    old.snapshot("second");
    let increment = old.export("second", Some("first"));
    (old, new, full, increment)
}

/// Writes a stream anew with other frames, so that all its checks are good.
fn forge(stream: &[u8], change: impl FnOnce(&mut Header, &mut Vec<StoredGlyph>)) -> Vec<u8> {
    let (mut header, mut reader) = Reader::open(stream).unwrap();
    let mut glyphs = Vec::new();
    loop {
        match reader.next().unwrap() {
            Frame::Glyph(glyph) => glyphs.push(glyph),
            Frame::Check => {}
            Frame::End => break,
        }
    }
    change(&mut header, &mut glyphs);
    let mut writer = Writer::begin(Vec::new(), &header).unwrap();
    glyphs.iter().for_each(|glyph| writer.put(glyph).unwrap());
    writer.finish().unwrap()
}
