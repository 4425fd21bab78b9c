//! SSEP over QUIC: this node among the others that have the volume.
//!
//! | module | what |
//! | --- | --- |
//! | `tls` | keys instead of certificates; who may connect |
//! | `addresses` | telling others where this node is found |
//! | `socket` | the port, and where others find it; joining by an invitation |
//! | `wire` | requests and answers on streams |
//! | `traffic` | counting |
//! | `serve` | what peers ask for |
//! | `follow` | hearing from each of them what is new |
//! | `givers` | those from whom a new node gets what there is |
//! | `fetch` | getting glyphs: nodes of states, and the bytes of files |
//! | `leave` | the end of a membership: by the node itself, or by others |
//!
//! Each node follows each other member: it asks what that one knows and it does not, waits for the answer, and learns it.
//! A connection serves both sides, whoever made it. Messages, and what they mean, are core's (`phifs_core::ssep`).

mod addresses;
mod fetch;
mod follow;
mod givers;
#[cfg(test)]
mod hostile;
mod leave;
#[cfg(test)]
mod pair;
mod serve;
mod socket;
mod tls;
pub mod traffic;
mod wire;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use phifs_core::causal::VersionVector;
use phifs_core::identity::NodePublicKey;
use phifs_core::ssep::Hello;
use phifs_core::ssep::{MAJOR, MINOR};
use phifs_core::time::Env as _;
use phifs_core::volume::local::Head;
use quinn::Connection;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;

use crate::engine::Engine;
use crate::env::SystemEnv;
use crate::failure::Failure;
use crate::report::{Member, MemberStanding, ToCome};

pub use givers::{Givers, addresses as addresses_of};
use socket::machine_name;
pub use socket::{Admitted, DEFAULT_LISTEN, Socket};
use tls::{Guard, Identity};
use traffic::Refused;

/// How long work that is under way may take to notice that all ends.
const ENDING_TIME_MAX: Duration = Duration::from_secs(10);
const FAREWELL_TIME_MAX: Duration = Duration::from_secs(1);
/// How many nodes that are no members may be heard at a time.
const STRANGERS_MAX: usize = 8;

/// This node among its peers, until it is stopped.
pub struct Net {
    shared: Arc<Shared>,
    runtime: Mutex<Option<tokio::runtime::Runtime>>,
    address: SocketAddr,
}

struct Shared {
    engine: Arc<Engine>,
    identity: Identity,
    endpoint: quinn::Endpoint,
    volume: [u8; 16],
    peers: Mutex<BTreeMap<NodePublicKey, Arc<Peer>>>,
    /// There may be other members than before.
    members_changed: Notify,
    /// Counts whenever there are more operations.
    changes: watch::Sender<u64>,
    /// Counts whenever there is reason to hope that a peer can be reached that could not be: the network has changed.
    hope: watch::Sender<u64>,
    /// What is to be here and is being fetched.
    to_come: Mutex<Option<ToCome>>,
    strangers: Arc<Semaphore>,
    started: Instant,
    stopping: AtomicBool,
    /// This node is about to be no member any more, and the others are to hear of it.
    leaving: AtomicBool,
}

/// Another member.
struct Peer {
    key: NodePublicKey,
    state: Mutex<PeerState>,
    /// It has connected to us.
    arrived: Notify,
    /// How many of its requests are being answered.
    answering: AtomicU64,
}

/// One of them.
struct Answering(Arc<Peer>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answering.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct PeerState {
    connection: Option<Connection>,
    /// All that are served, to be closed once it is no member any more.
    served: Vec<Connection>,
    /// What it knew when it was heard of last, and when that was.
    asked: Option<(VersionVector, Instant)>,
    /// The state that it was told of and may be asking for; no collection takes any of it.
    head: Option<Head>,
    /// The version of its program, and how far its clock is ahead, in milliseconds.
    program: Option<(String, i64)>,
    /// Why it cannot be followed.
    trouble: Option<String>,
    /// What it tells waits, as the disk here is full.
    finds_no_room: bool,
}

impl Net {
    /// Takes part from now on. The members know where to find this node.
    pub fn start(socket: Socket, engine: Arc<Engine>) -> Result<Self, Failure> {
        let addresses = socket.addresses();
        engine.announce(&machine_name(), &addresses)?;
        engine.listen_at(Some(socket.address()))?;
        let Socket { runtime, endpoint, identity, address } = socket;
        let volume = engine.volume_id()?;
        let guard = Arc::new(Door { engine: engine.clone() });
        let config = identity.server(guard).map_err(Failure::plain)?;
        endpoint.set_server_config(Some(config));
        let shared = Arc::new(Shared {
            engine,
            identity,
            endpoint,
            volume,
            peers: Mutex::default(),
            members_changed: Notify::new(),
            changes: watch::Sender::new(0),
            hope: watch::Sender::new(0),
            to_come: Mutex::default(),
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            started: Instant::now(),
            stopping: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
        });
        let changes = shared.changes.clone();
        shared.engine.set_on_change(Some(Arc::new(move || changes.send_modify(|n| *n += 1))));
        let reachable = fetch::Reachable { shared: shared.clone(), handle: runtime.handle().clone() };
        shared.engine.set_peers(Some(Arc::new(reachable)));
        runtime.spawn(fetch::keep_complete(shared.clone()));
        runtime.spawn(serve::accept(shared.clone()));
        runtime.spawn(follow::follow_members(shared.clone()));
        runtime.spawn(addresses::keep_announcing(shared.clone(), address, addresses));
        tracing::info!(%address, "listening for other nodes");
        Ok(Self { shared, runtime: Mutex::new(Some(runtime)), address })
    }

    /// Where others may find this node.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        socket::reachable_at(self.address)
    }

    /// All members, and how it stands with them.
    pub fn members(&self) -> Result<Vec<Member>, Failure> {
        let (engine, own) = (&self.shared.engine, self.shared.engine.node());
        let mut members = Vec::new();
        for (key, member) in engine.members()? {
            let standing = if key == own { self.own_standing() } else { self.standing_of(key)? };
            members.push(Member {
                name: member.name,
                key: crate::hex::encode(&key.0),
                role: member.role,
                zone: member.zone,
                addresses: member.addresses.iter().map(ToString::to_string).collect(),
                since_millis: member.since.millis(),
                this_node: key == own,
                standing,
            });
        }
        Ok(members)
    }

    /// How it stands with this node itself, as far as it has heard from the others.
    fn own_standing(&self) -> MemberStanding {
        let (context, mut known) = (self.shared.engine.context(), VersionVector::new());
        let mut is_full = false;
        for peer in self.shared.peers.lock().values() {
            let state = peer.state.lock();
            is_full |= state.finds_no_room;
            known = state.asked.iter().fold(known, |mut known, (theirs, _)| {
                known.join(theirs);
                known
            });
        }
        MemberStanding {
            connected: true,
            behind: Some(known.count_missing_from(&context)),
            version: Some(self.shared.hello().program),
            trouble: is_full.then(|| "its disk is full".to_owned()),
            ..MemberStanding::default()
        }
    }

    fn standing_of(&self, key: NodePublicKey) -> Result<MemberStanding, Failure> {
        let engine = &self.shared.engine;
        let peer = self.shared.peers.lock().get(&key).cloned();
        let (mut standing, heard) = peer.as_ref().map(|peer| peer.state.lock().standing()).unwrap_or_default();
        standing.answering = peer.map_or(0, |peer| peer.answering.load(Ordering::Relaxed));
        let backlog = engine.backlog_of(key, heard.as_ref())?;
        standing.behind_bytes = Some(backlog.bytes);
        let Some(heard) = heard else { return Ok(standing) };
        let behind = engine.context().count_missing_from(&heard);
        standing.behind = Some(behind);
        let now = SystemEnv.now().millis();
        let age = backlog.oldest.map(|oldest| now.saturating_sub(oldest.millis()) / 1000);
        standing.behind_secs = if behind == 0 { Some(0) } else { age };
        Ok(standing)
    }

    /// What is to be here and has still to come.
    pub fn to_come(&self) -> Option<ToCome> {
        *self.shared.to_come.lock()
    }

    /// Ends all conversations. What is being learned is learned as a whole or not at all.
    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.engine.set_on_change(None);
        self.shared.engine.set_peers(None);
        self.shared.endpoint.close(0_u8.into(), b"going down");
        if let Some(runtime) = self.runtime.lock().take() {
            // Else the peers would have to find out by themselves.
            let told = async { tokio::time::timeout(FAREWELL_TIME_MAX, self.shared.endpoint.wait_idle()).await };
            if runtime.block_on(told).is_err() {
                tracing::debug!("not all peers have heard that this node goes down");
            }
            runtime.shutdown_timeout(ENDING_TIME_MAX);
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A task that is of no use any more when this is gone.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl PeerState {
    /// What is known of a peer at once, and what it knew when it was heard of last.
    fn standing(&self) -> (MemberStanding, Option<VersionVector>) {
        let (program, connection) = (self.program.as_ref(), self.connection.as_ref().filter(|_| self.is_connected()));
        let full =
            self.finds_no_room.then(|| "nothing is taken from it, as the disk of this machine is full".to_owned());
        let standing = MemberStanding {
            connected: self.is_connected(),
            heard_secs: self.asked.as_ref().map(|(_, at)| at.elapsed().as_secs()),
            round_trip_micros: connection.map(|connection| connection.rtt().as_micros() as u64),
            version: program.map(|(version, _)| version.clone()),
            clock_ahead_millis: program.map(|(_, ahead)| *ahead),
            trouble: full.or_else(|| self.trouble.clone()),
            ..MemberStanding::default()
        };
        (standing, self.asked.as_ref().map(|(context, _)| context.clone()))
    }

    fn is_connected(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.close_reason().is_none())
    }
}

impl Peer {
    fn new(key: NodePublicKey) -> Self {
        Self { key, state: Mutex::default(), arrived: Notify::new(), answering: AtomicU64::new(0) }
    }

    fn answering(self: &Arc<Self>) -> Answering {
        self.answering.fetch_add(1, Ordering::Relaxed);
        Answering(self.clone())
    }

    /// The connection that there is.
    fn connection(&self) -> Option<Connection> {
        self.state.lock().connection.clone().filter(|connection| connection.close_reason().is_none())
    }

    /// The latest connection is the best: whoever makes one has none that is any good. An earlier one goes on serving the
    /// other side, until it is closed there or falls silent.
    fn connected(&self, connection: &Connection) {
        self.state.lock().connection = Some(connection.clone());
        self.serves(connection);
    }

    /// A connection has ended. Whoever has no other asks anew.
    fn served_no_more(&self) {
        let mut state = self.state.lock();
        state.served.retain(|connection| connection.close_reason().is_none());
        if state.served.is_empty() {
            state.head = None;
        }
    }

    fn serves(&self, connection: &Connection) {
        let mut state = self.state.lock();
        state.served.retain(|connection| connection.close_reason().is_none());
        state.served.push(connection.clone());
    }
}

impl Shared {
    /// How this node introduces itself.
    fn hello(&self) -> Hello {
        let (program, clock_ms) = (env!("CARGO_PKG_VERSION").to_owned(), SystemEnv.now().millis());
        Hello { major: MAJOR, minor: MINOR, volume: self.volume, program, clock_ms }
    }

    /// A peer can be reached, so perhaps others can be as well.
    fn connected(&self, peer: &Peer, connection: &Connection) {
        peer.connected(connection);
        self.raise_hope();
    }

    /// Those who rest because a peer could not be reached try again.
    fn raise_hope(&self) {
        self.hope.send_modify(|n| *n += 1);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Does what waits for locks or disks where that holds up nobody.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Engine) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let shared = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&shared.engine)).await;
        done.unwrap_or_else(|error| Err(Failure::plain(format!("internal error: {error}"))))
    }
}

/// Lets members in, those that were members, to be told that they are none any more, and while somebody may be invited
/// those who say that they are. Who is no member is heard by `serve::hear`.
struct Door {
    engine: Arc<Engine>,
}

impl Guard for Door {
    fn lets_in(&self, key: NodePublicKey) -> bool {
        let let_in = self.engine.was_member(key).and_then(|was| Ok(was || self.engine.has_invited()?));
        let let_in = let_in.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot look up who may connect");
            false
        });
        if !let_in {
            traffic::refused(Refused::Stranger);
            tracing::warn!(node = %key, "refused a connection of a node that is no member");
        }
        let_in
    }
}
