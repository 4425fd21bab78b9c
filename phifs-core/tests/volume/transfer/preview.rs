//! The state of another machine, looked at while a store is made of it.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use phifs_core::disk::{Disk, MemDisk};
use phifs_core::id::GlyphId;
use phifs_core::store::{GlyphKind, MemIndex};
use phifs_core::volume::local::{Aim, AskAnytime, LocalVolume, Newcomer, Peer, PeerError, Preview};
use phifs_core::volume::{FileKind, Ino, NewKind, NewNode, RenameMode, Seek, SetAttr, Volume, VolumeError, XattrMode};

use super::peers::key_of;
use super::{DIR, GO_ON, Site, noise};
use crate::harness::{CALLER, NODE, READ, TestEnv, WRITE, options};

const NEW_KEY: [u8; 32] = [78; 32];
/// More than one leaf of every table.
const MANY: usize = 3000;
const LONG_BYTES: usize = 3 << 20;

/// One who gives glyphs, well or badly, and counts how many.
#[derive(Default)]
struct Giver {
    is_gone: AtomicBool,
    lies: AtomicBool,
    given: AtomicUsize,
}

struct Scene {
    from: Arc<Site>,
    giver: Arc<Giver>,
    disk: MemDisk,
    env: Arc<TestEnv>,
    newcomer: Newcomer,
    aim: Aim,
}

impl Scene {
    fn new() -> Self {
        let from = Site::new(0);
        let dir = from.volume.make(&CALLER, Ino::ROOT, b"dir", &DIR).unwrap().ino;
        for n in 0..MANY {
            from.write(dir, format!("file {n}").as_bytes(), format!("bytes of {n}").as_bytes());
        }
        let long = from.write(Ino::ROOT, b"long", &noise(5, LONG_BYTES));
        from.volume.setxattr(&CALLER, long, b"user.colour", b"green", XattrMode::Set).unwrap();
        let link = NewNode { kind: NewKind::Symlink(b"dir/file 7"), permissions: 0o777, umask: 0 };
        from.volume.make(&CALLER, Ino::ROOT, b"link", &link).unwrap();
        Self::of(Arc::new(from))
    }

    fn of(from: Arc<Site>) -> Self {
        let (disk, env) = (MemDisk::new(), TestEnv::new(7));
        let to = (Arc::new(disk.clone()) as Arc<dyn Disk>, Arc::new(MemIndex::default()) as _);
        let newcomer = Newcomer::begin(to, &*env, &NEW_KEY, &options()).unwrap();
        let peer = Peer { node: key_of(&from), volume: from.volume.id().unwrap() };
        let aim = Aim::new(&*env, &peer, &from.volume.head().unwrap().to_bytes()).unwrap();
        Self { from, giver: Arc::default(), disk, env, newcomer, aim }
    }

    fn ask(&self) -> AskAnytime {
        let (from, giver) = (self.from.clone(), self.giver.clone());
        Arc::new(move |kind, ids| give(&from, &giver, kind, ids))
    }

    fn preview(&self) -> Preview {
        self.newcomer.preview(&self.aim, 1 << 20, self.ask())
    }

    fn pull(&self, rows: &AtomicU64, go_on: &dyn Fn(u64) -> ControlFlow<()>) -> Result<(), PeerError> {
        self.newcomer.pull(&self.aim, &mut |kind, ids| give(&self.from, &self.giver, kind, ids), rows, go_on)
    }

    fn given(&self) -> usize {
        self.giver.given.swap(0, Ordering::Relaxed)
    }
}

fn give(from: &Site, giver: &Giver, kind: GlyphKind, ids: &[GlyphId]) -> io::Result<Vec<(GlyphId, Bytes)>> {
    if giver.is_gone.load(Ordering::Relaxed) {
        return Err(io::Error::other("gone"));
    }
    giver.given.fetch_add(ids.len(), Ordering::Relaxed);
    let glyph = |id: &GlyphId| {
        let glyph = from.volume.glyph_to_send(kind, id).unwrap()?;
        let mut bytes = glyph.to_vec();
        if giver.lies.load(Ordering::Relaxed) {
            *bytes.last_mut().unwrap() ^= 1;
        }
        Some((*id, Bytes::from(bytes)))
    };
    Ok(ids.iter().filter_map(glyph).collect())
}

fn read(volume: &dyn Volume, ino: Ino, len: usize) -> Result<Vec<u8>, VolumeError> {
    let opened = volume.open(&CALLER, ino, &READ)?;
    let bytes = volume.read(ino, opened.handle, 0, len as u32);
    volume.release(ino, opened.handle);
    bytes
}

fn names(volume: &dyn Volume, dir: Ino) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    volume
        .readdir(dir, 0, &mut |entry| {
            names.push(entry.name.clone());
            true
        })
        .unwrap();
    names
}

/// It shows what the other machine shows, under the same numbers for all that was made there.
fn assert_shows_all(preview: &dyn Volume, from: &LocalVolume) {
    for path in [&b"dir"[..], b"long", b"link"] {
        let seen = preview.lookup(&CALLER, Ino::ROOT, path).unwrap();
        let mut there = from.lookup(&CALLER, Ino::ROOT, path).unwrap();
        assert_eq!((seen.ino, seen.atime), (preview.getattr(seen.ino, None).unwrap().ino, there.btime));
        (there.ino, there.atime) = (seen.ino, seen.atime);
        assert_eq!(seen, there);
    }
    let ino = |name: &[u8]| preview.lookup(&CALLER, Ino::ROOT, name).unwrap().ino;
    assert_eq!(preview.readlink(ino(b"link")).unwrap(), b"dir/file 7");
    assert_eq!(preview.listxattr(ino(b"long")).unwrap(), [b"user.colour"]);
    assert_eq!(preview.getxattr(ino(b"long"), b"user.colour").unwrap(), b"green");
    let listed = names(preview, ino(b"dir"));
    assert_eq!((listed.len(), &listed), (MANY + 2, &names(from, from.lookup(&CALLER, Ino::ROOT, b"dir").unwrap().ino)));
    for n in [0, 7, MANY - 1] {
        let file = preview.lookup(&CALLER, ino(b"dir"), format!("file {n}").as_bytes()).unwrap();
        assert_eq!(
            (file.kind, read(preview, file.ino, 100).unwrap()),
            (FileKind::File, format!("bytes of {n}").into())
        );
    }
    assert!(read(preview, ino(b"long"), LONG_BYTES).unwrap() == noise(5, LONG_BYTES));
}

#[test]
fn all_can_be_read_before_anything_was_pulled_and_only_what_is_looked_at_is_fetched() {
    let scene = Scene::new();
    let preview = scene.preview();
    assert_eq!(names(&preview, Ino::ROOT).len(), 5);
    let few = scene.given();
    assert_shows_all(&preview, &scene.from.volume);
    let all = scene.given();
    assert!(few > 0 && few * 2 < all, "{few} of {all} glyphs");
    assert_shows_all(&preview, &scene.from.volume);
    assert_eq!(scene.given(), 0, "what was fetched is kept");

    let rows = AtomicU64::new(0);
    scene.pull(&rows, &GO_ON).unwrap();
    let pulled = scene.given();
    assert_eq!(rows.into_inner(), scene.aim.rows());
    let other = Scene::of(scene.from.clone());
    other.pull(&AtomicU64::new(0), &GO_ON).unwrap();
    assert!(pulled < other.given(), "and is not pulled again");
}

#[test]
fn a_half_pulled_store_shows_all_and_the_volume_that_it_becomes_goes_on_for_those_inside() {
    let scene = Scene::new();
    let (preview, asked) = (scene.preview(), AtomicUsize::new(0));
    let for_a_while = |_| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    let rows = AtomicU64::new(0);
    scene.pull(&rows, &for_a_while).unwrap_err();
    assert!(rows.into_inner() < scene.aim.rows());
    assert_shows_all(&preview, &scene.from.volume);
    scene.pull(&AtomicU64::new(0), &GO_ON).unwrap();
    let long = preview.lookup(&CALLER, Ino::ROOT, b"long").unwrap().ino;
    let opened = preview.open(&CALLER, long, &READ).unwrap();

    let Scene { from, giver, disk, env, newcomer, aim } = scene;
    let made = newcomer.finish(&*env, &aim).unwrap();
    let volume = LocalVolume::open_made(made, Arc::new(disk), env, &NEW_KEY, options(), &|_| {}).unwrap();
    let volume = Arc::new(volume);
    preview.leave_to(volume.clone());
    assert_eq!(volume.lookup(&CALLER, Ino::ROOT, b"long").unwrap().ino, long, "the numbers stay");
    volume.unlink(Ino::ROOT, b"long").unwrap();
    volume.collect(1.0, &|_| {}).unwrap();
    giver.is_gone.store(true, Ordering::Relaxed);
    assert!(preview.read(long, opened.handle, 0, LONG_BYTES as u32).unwrap() == noise(5, LONG_BYTES));
    assert_shows_all(&preview, &from.volume);
    assert_eq!(volume.fsck(false, &|_| {}).unwrap().problems, []);
}

#[test]
fn nothing_can_be_changed() {
    let scene = Scene::new();
    let preview = scene.preview();
    let ino = preview.lookup(&CALLER, Ino::ROOT, b"long").unwrap().ino;
    let handle = preview.open(&CALLER, ino, &READ).unwrap().handle;
    let (root, mode) = (Ino::ROOT, RenameMode::Replace);
    let refused = [
        preview.open(&CALLER, ino, &WRITE).err(),
        preview.setattr(&CALLER, ino, &SetAttr::default()).err(),
        preview.make(&CALLER, root, b"new", &DIR).err(),
        preview.create(&CALLER, root, b"new", &NODE, &WRITE).err(),
        preview.link(ino, root, b"new").err(),
        preview.unlink(root, b"long").err(),
        preview.rmdir(root, b"dir").err(),
        preview.rename(root, b"long", root, b"new", mode).err(),
        preview.write(&CALLER, ino, handle, 0, b"x", false).err(),
        preview.setxattr(&CALLER, ino, b"user.x", b"x", XattrMode::Set).err(),
        preview.removexattr(&CALLER, ino, b"user.colour").err(),
    ];
    for (at, refused) in refused.iter().enumerate() {
        assert!(matches!(refused, Some(VolumeError::ReadOnly)), "{at}: {refused:?}");
    }
    assert_eq!(preview.seek(ino, handle, 0, Seek::Hole).unwrap(), LONG_BYTES as u64);
    assert!(preview.statfs().unwrap().inodes > MANY as u64);
    assert!(matches!(preview.lookup(&CALLER, root, b"new"), Err(VolumeError::NotFound)));
}

#[test]
fn what_cannot_be_had_or_is_something_else_is_an_error_until_it_comes() {
    let scene = Scene::new();
    let preview = scene.preview();
    for bad in [&scene.giver.is_gone, &scene.giver.lies] {
        bad.store(true, Ordering::Relaxed);
        let failed = preview.lookup(&CALLER, Ino::ROOT, b"long");
        assert!(matches!(failed, Err(VolumeError::Store(_))), "{failed:?}");
        bad.store(false, Ordering::Relaxed);
    }
    let long = preview.lookup(&CALLER, Ino::ROOT, b"long").unwrap().ino;
    for bad in [&scene.giver.is_gone, &scene.giver.lies] {
        bad.store(true, Ordering::Relaxed);
        let failed = read(&preview, long, LONG_BYTES);
        assert!(matches!(failed, Err(VolumeError::Store(_))), "{:?}", failed.map(|bytes| bytes.len()));
        bad.store(false, Ordering::Relaxed);
    }
    assert_shows_all(&preview, &scene.from.volume);
}

#[test]
fn without_room_all_can_be_read_and_nothing_is_kept() {
    let scene = Scene::new();
    let full = MemDisk::with_capacity(64 << 20);
    let to = (Arc::new(full.clone()) as Arc<dyn Disk>, Arc::new(MemIndex::default()) as _);
    let newcomer = Newcomer::begin(to, &*scene.env, &NEW_KEY, &options()).unwrap();
    full.create_unnamed().allocate(0, full.space().unwrap().free_bytes, false).unwrap();
    let preview = newcomer.preview(&scene.aim, 1 << 20, scene.ask());
    assert_shows_all(&preview, &scene.from.volume);
}

/// Whoever looks at several things at once waits for each of them by itself.
#[test]
fn many_look_at_once() {
    let scene = Scene::new();
    let (preview, failures) = (scene.preview(), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    assert_shows_all(&preview, &scene.from.volume);
                }));
                failures.lock().extend(looked.err().map(|_| ()));
            });
        }
        scene.pull(&AtomicU64::new(0), &GO_ON).unwrap();
    });
    assert!(failures.into_inner().is_empty());
}
