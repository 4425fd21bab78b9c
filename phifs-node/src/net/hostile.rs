//! Peers that mean harm, against a node as it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use phifs_core::causal::VersionVector;
use phifs_core::disk::MemDisk;
use phifs_core::snapshot::keep::KeepRules;
use phifs_core::ssep::{Answer, Join, Refusal, Request, Token};
use phifs_core::store::MemIndex;
use quinn::{Connection, RecvStream, SendStream};
use tokio::time::timeout;

use super::socket::dial_any;
use super::tls::STREAMS_MAX;
use super::wire::{self, ANSWER_TIME_MAX, Answers, WireError};
use super::{Net, Socket, traffic};
use crate::engine::{Engine, Options};
use crate::env::SystemEnv;
use crate::node_key::NodeSeed;

/// What takes longer does not happen.
const NEVER: Duration = Duration::from_millis(500);

pub(super) fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(super) fn options() -> Options {
    Options {
        cache_bytes: 8 << 20,
        staging_cache_bytes: 8 << 20,
        publish_interval: Duration::from_secs(1),
        snapshot_every: None,
        snapshot_keep: KeepRules::default(),
        siblings: false,
        repair: false,
        rebuild_index: false,
    }
}

/// A node, and a member of its volume of which nothing is known but its key.
struct Scene {
    engine: Arc<Engine>,
    net: Net,
    hostile: Socket,
    token: Token,
    before: VersionVector,
}

impl Scene {
    fn new() -> Self {
        let seed = NodeSeed([1; 32]);
        let (disk, index) = (Arc::new(MemDisk::new()), Arc::new(MemIndex::default()));
        let engine = Engine::open(disk, index, Arc::new(SystemEnv), &seed, &options(), &mut |_| {}).unwrap();
        let engine = Arc::new(engine);
        let net = Net::start(Socket::bind(loopback(), &seed).unwrap(), engine.clone()).unwrap();
        let invited = engine.invite(String::new(), String::new(), Duration::from_secs(60), net.addresses()).unwrap();
        let token: Token = invited.token.parse().unwrap();
        let hostile = Socket::bind(loopback(), &NodeSeed([2; 32])).unwrap();
        let before = engine.context();
        Self { engine, net, hostile, token, before }
    }

    fn member() -> Self {
        let scene = Self::new();
        let join = Join { secret: scene.token.secret, name: "hostile".into(), addresses: Vec::new() };
        let connection = scene.connect();
        let joined = scene.run(wire::ask_one(&connection, &Request::Join(join), ANSWER_TIME_MAX));
        assert!(matches!(joined, Ok(Answer::Joined(_))), "{joined:?}");
        scene
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.hostile.runtime.block_on(future)
    }

    fn connect(&self) -> Connection {
        let config = self.hostile.identity.client(self.engine.node()).unwrap();
        self.run(dial_any(&self.hostile.endpoint, &config, &self.token.addresses)).unwrap()
    }

    /// What is answered to these bytes, and nothing after them.
    async fn say(connection: &Connection, bytes: &[u8]) -> Result<Answer, WireError> {
        let (mut send, stream) = connection.open_bi().await.unwrap();
        // It may be refused before all of it is there.
        let _ = send.write_all(bytes).await;
        let _ = send.finish();
        timeout(ANSWER_TIME_MAX, Answers { stream }.next()).await.expect("an answer in time")
    }

    /// Others are answered as ever, and nothing has changed.
    fn check_unharmed(&self) {
        let connection = self.connect();
        let hello = Request::Hello(self.net.shared.hello());
        let answer = self.run(wire::ask_one(&connection, &hello, ANSWER_TIME_MAX));
        assert!(matches!(answer, Ok(Answer::Hello(_))), "{answer:?}");
        assert_eq!(self.engine.context(), self.before);
    }
}

fn frame(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_le_bytes()[..], bytes].concat()
}

fn malformed() -> u64 {
    traffic::refusals().find(|(what, _)| *what == "malformed").unwrap().1
}

#[test]
fn requests_that_make_no_sense_are_refused_and_counted() {
    let scene = Scene::member();
    let connection = scene.connect();
    let before = malformed();
    let huge = u32::MAX.to_le_bytes().to_vec();
    let long_list = frame(&[&[4][..], &[0xff, 0xff, 0xff, 0xff, 0x0f]].concat());
    for (bytes, unknown) in [(frame(&[200, 1, 2]), true), (frame(&[1, 0, 0]), false), (huge, false), (long_list, false)]
    {
        let answer = scene.run(Scene::say(&connection, &bytes));
        let Err(WireError::Refused { why, .. }) = answer else { panic!("{answer:?}") };
        assert_eq!(why == Refusal::Unknown, unknown, "{why:?}");
    }
    // Noise, and what breaks off.
    let mut rng = fastrand::Rng::with_seed(7);
    for len in 0..100 {
        let noise: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(len).collect();
        let answer = scene.run(Scene::say(&connection, &noise));
        assert!(answer.is_err(), "{answer:?}");
    }
    assert!(malformed() >= before + 4);
    scene.check_unharmed();
}

#[test]
fn who_opens_streams_without_end_or_never_reads_gets_no_more_than_its_share() {
    let scene = Scene::member();
    let connection = scene.connect();
    let open: Vec<(SendStream, RecvStream)> = scene.run(async {
        let mut open = Vec::new();
        while let Ok(stream) = timeout(NEVER, connection.open_bi()).await {
            let (mut send, receive) = stream.unwrap();
            // A stream is there for the other side once something was sent.
            send.write_all(&[1]).await.unwrap();
            open.push((send, receive));
        }
        open
    });
    assert_eq!(open.len(), usize::from(STREAMS_MAX));
    scene.check_unharmed();
    // Answers that nobody reads stop at what one stream holds.
    let deaf = scene.connect();
    let unread: Vec<Answers> = scene.run(async {
        let mut unread = Vec::new();
        while let Ok(asked) = timeout(NEVER, wire::ask(&deaf, &Request::Members)).await {
            unread.push(asked.unwrap());
            if unread.len() == usize::from(STREAMS_MAX) {
                break;
            }
        }
        unread
    });
    assert_eq!(unread.len(), usize::from(STREAMS_MAX));
    scene.check_unharmed();
}

#[test]
fn who_is_no_member_is_heard_with_an_invitation_alone() {
    let scene = Scene::new();
    let connection = scene.connect();
    for request in [Request::Hello(scene.net.shared.hello()), Request::Members] {
        let answer = scene.run(wire::ask_one(&connection, &request, ANSWER_TIME_MAX));
        assert!(matches!(&answer, Err(WireError::Refused { why: Refusal::NotMember, .. })), "{answer:?}");
    }
    let wrong = Join { secret: phifs_core::ssep::Secret([9; 16]), name: "x".into(), addresses: Vec::new() };
    let answer = scene.run(wire::ask_one(&connection, &Request::Join(wrong), ANSWER_TIME_MAX));
    assert!(matches!(&answer, Err(WireError::Refused { why: Refusal::BadInvitation, .. })), "{answer:?}");
    assert_eq!(scene.engine.members().unwrap().len(), 1);
    assert_eq!(scene.engine.context(), scene.before);
}
