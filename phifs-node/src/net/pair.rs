//! Two nodes that follow each other, on disks in memory.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use phifs_core::disk::{Disk, MemDisk};
use phifs_core::ssep::Token;
use phifs_core::store::{GlyphIndex, MemIndex};
use phifs_core::volume::local::Peer;
use phifs_core::volume::{Caller, Ino, NewKind, NewNode, OpenHow};

use super::hostile::{loopback, options};
use super::{Givers, Net, Socket};
use crate::engine::{Engine, Newcomer};
use crate::env::SystemEnv;
use crate::node_key::NodeSeed;
use crate::report::Member;

/// What takes milliseconds has happened by then.
const SOON: Duration = Duration::from_secs(20);
const DISK_BYTES: u64 = 1 << 30;

struct Node {
    disk: MemDisk,
    engine: Arc<Engine>,
    net: Net,
}

impl Node {
    fn first() -> Self {
        let (disk, index, seed) = (MemDisk::new(), Arc::new(MemIndex::default()), NodeSeed([1; 32]));
        let opened =
            Engine::open(Arc::new(disk.clone()), index, Arc::new(SystemEnv), &seed, &options(), &mut |_| {}).unwrap();
        let engine = Arc::new(opened);
        let net = Net::start(Socket::bind(loopback(), &seed).unwrap(), engine.clone()).unwrap();
        Self { disk, engine, net }
    }

    fn join(&self) -> Self {
        let invited = self.engine.invite(String::new(), String::new(), SOON, self.net.addresses()).unwrap();
        let token: Token = invited.token.parse().unwrap();
        let (disk, index, seed) = (MemDisk::with_capacity(DISK_BYTES), MemIndex::default(), NodeSeed([2; 32]));
        let socket = Socket::bind(loopback(), &seed).unwrap();
        let (store, index): (Arc<dyn Disk>, Arc<dyn GlyphIndex>) = (Arc::new(disk.clone()), Arc::new(index));
        let admitted = socket.join(&token).unwrap();
        let givers = Givers::new(&socket, &admitted, &token.addresses);
        let (node, head) = givers.head().unwrap();
        let newcomer = Newcomer::begin((store, index), seed, options()).unwrap();
        let aim = Newcomer::aim(&Peer { node, volume: token.volume }, &head).unwrap();
        let go_on = || ControlFlow::Continue(());
        let pulled = newcomer.pull(&aim, &mut |kind, ids| givers.ask(kind, ids), &AtomicU64::new(0), &go_on);
        assert!(pulled.is_ok());
        let engine = newcomer.open(&aim, &mut |_| {}).unwrap();
        engine.take_member_entries(admitted.members).unwrap();
        engine.place().unwrap();
        let engine = Arc::new(engine);
        let net = Net::start(socket, engine.clone()).unwrap();
        Self { disk, engine, net }
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let (volume, caller) = (self.engine.volume(), Caller { uid: 0, gid: 0, pid: 1 });
        let node = NewNode { kind: NewKind::File, permissions: 0o644, umask: 0 };
        let how = OpenHow {
            read: false,
            write: true,
            truncate: false,
            append: false,
            direct: false,
            sync: false,
            exclusive: false,
            execute: false,
            passthrough: false,
        };
        let (attr, opened) = volume.create(&caller, Ino::ROOT, name.as_bytes(), &node, &how).unwrap();
        for (at, piece) in bytes.chunks(1 << 20).enumerate() {
            let offset = (at as u64) << 20;
            volume.write(&caller, attr.ino, opened.handle, offset, piece, false).unwrap();
        }
        volume.release(attr.ino, opened.handle);
        self.engine.publish_all().unwrap();
    }

    fn knows_all_of(&self, other: &Self) -> bool {
        self.engine.context().covers(&other.engine.context())
    }

    /// What it says of itself, and of the other one.
    fn members(&self) -> (Member, Member) {
        let (own, others): (Vec<_>, Vec<_>) =
            self.net.members().unwrap().into_iter().partition(|member| member.this_node);
        (own[0].clone(), others[0].clone())
    }
}

#[track_caller]
fn wait_until(what: impl Fn() -> bool) {
    let until = Instant::now() + SOON;
    while !what() {
        assert!(Instant::now() < until, "it does not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    bytes
}

#[test]
fn what_a_full_disk_has_no_room_for_is_taken_in_once_it_has() {
    let a = Node::first();
    let b = a.join();
    wait_until(|| b.knows_all_of(&a) && b.members().1.standing.connected);
    let free = b.disk.space().unwrap().free_bytes;
    let filler = b.disk.create_unnamed();
    filler.allocate(0, free - (1 << 20), false).unwrap();
    a.write("file", &noise(12 << 20));
    wait_until(|| b.members().0.standing.trouble.is_some());
    let (own, other) = b.members();
    assert_eq!(own.standing.trouble.as_deref(), Some("its disk is full"));
    assert!(other.standing.connected && other.standing.trouble.unwrap().contains("this machine is full"));
    assert!(!b.knows_all_of(&a));
    wait_until(|| a.members().1.standing.behind_bytes == Some(12 << 20));
    assert!(a.members().1.standing.behind.unwrap() > 0);
    drop(filler);
    wait_until(|| b.knows_all_of(&a) && b.members().0.standing.trouble.is_none());
    wait_until(|| {
        let lag = a.members().1.standing;
        (lag.behind, lag.behind_bytes, lag.behind_secs) == (Some(0), Some(0), Some(0))
    });
    assert!(b.members().1.standing.trouble.is_none());
}

#[test]
fn a_connection_that_comes_about_gives_hope_on_both_sides() {
    let a = Node::first();
    let hopes = a.net.shared.hope.subscribe();
    let b = a.join();
    wait_until(|| b.members().1.standing.connected && a.members().1.standing.connected);
    assert!(hopes.has_changed().unwrap() && *b.net.shared.hope.borrow() > 0);
}
