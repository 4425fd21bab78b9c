//! Those from whom a new node gets what there is, for as long as it has no volume of its own: who has let it in, and a few
//! others. A connection that is lost is made anew.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use phifs_core::causal::VersionVector;
use phifs_core::id::GlyphId;
use phifs_core::identity::NodePublicKey;
use phifs_core::registry::{Entry, Member};
use phifs_core::ssep::{Answer, Request};
use phifs_core::store::GlyphKind;
use quinn::{Connection, Endpoint};
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

use super::AbortOnDrop;
use super::fetch::{CONNECTED_AFTER, CONNECTED_LOOK, ask_around, gather};
use super::socket::{Admitted, Socket, dial_any, refused};
use super::tls::Identity;
use super::wire::{self, ANSWER_TIME_MAX, WireError};
use crate::failure::Failure;

/// A new node learns from who has let it in, and from so many others.
const OTHERS_MAX: usize = 3;
/// How long it takes about until these have heard of it; and how long to rest before one is tried again.
const NEWS_TIME: Duration = Duration::from_millis(700);
const REST_MAX: Duration = Duration::from_secs(5);
/// How long a look at what is not here may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How soon it is noticed that all ends.
const STOP_LOOK: Duration = Duration::from_millis(100);

pub struct Givers {
    handle: Handle,
    shared: Arc<Shared>,
    _meeting: Vec<AbortOnDrop>,
}

struct Shared {
    endpoint: Endpoint,
    identity: Identity,
    connections: Mutex<Vec<(NodePublicKey, Connection)>>,
    stopping: AtomicBool,
}

impl Givers {
    pub fn new(socket: &Socket, admitted: &Admitted, known: &[SocketAddr]) -> Self {
        let shared = Arc::new(Shared {
            endpoint: socket.endpoint.clone(),
            identity: socket.identity.clone(),
            connections: Mutex::new(vec![(admitted.by, admitted.connection.clone())]),
            stopping: AtomicBool::new(false),
        });
        let handle = socket.runtime.handle().clone();
        let meet =
            |(key, addresses)| AbortOnDrop(handle.spawn(keep_meeting(shared.clone(), key, addresses)).abort_handle());
        let nodes = [admitted.by, socket.identity.node];
        let others = addresses(admitted).filter(|(key, _)| !nodes.contains(key)).take(OTHERS_MAX);
        let own = addresses(admitted).find(|(key, _)| *key == admitted.by);
        let by = own.map_or_else(|| known.to_vec(), |(_, addresses)| addresses);
        let meeting = std::iter::once((admitted.by, by)).chain(others).map(meet).collect();
        Self { handle, shared, _meeting: meeting }
    }

    /// How many can be asked now.
    pub fn connected(&self) -> usize {
        self.shared.connections().len()
    }

    pub fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
    }

    pub fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }

    /// The state of one of them, for a store to be made of it.
    pub fn head(&self) -> Result<(NodePublicKey, Bytes), Failure> {
        let asking = async {
            let (key, connection) = self.shared.any().await?;
            let nothing = Request::Catch(VersionVector::new());
            let answer = wire::ask_one(&connection, &nothing, ANSWER_TIME_MAX).await;
            Ok((key, answer))
        };
        let (key, answer) = self.unless_stopping(asking).map_err(Failure::plain)?;
        match answer.map_err(refused)? {
            Answer::Head(head) => Ok((key, head)),
            _ => Err(refused(WireError::Unexpected)),
        }
    }

    /// Asks for much. When nobody can be reached it waits until somebody can.
    pub fn ask(&self, kind: GlyphKind, ids: &[GlyphId]) -> io::Result<Vec<(GlyphId, Bytes)>> {
        self.unless_stopping(async {
            loop {
                self.shared.any().await?;
                let connections = self.shared.connections();
                let given = gather(&connections, kind, ids).await?;
                let all_are_there = connections.iter().all(|connection| connection.close_reason().is_none());
                if !given.is_empty() || all_are_there {
                    return Ok(given);
                }
            }
        })
    }

    /// Asks for what somebody looks at, who is not to wait for long.
    pub fn ask_now(&self) -> impl Fn(GlyphKind, &[GlyphId]) -> io::Result<Vec<(GlyphId, Bytes)>> + Send + Sync + use<> {
        let (shared, handle) = (self.shared.clone(), self.handle.clone());
        move |kind, ids| {
            let asking = async {
                let late = |_| io::Error::other("no node is reachable");
                timeout(CONNECTED_AFTER, shared.any()).await.map_err(late)??;
                ask_around(shared.connections(), kind, ids).await
            };
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no node has given it in time");
            handle.block_on(async { timeout(PATIENCE, asking).await }).map_err(late)?
        }
    }

    fn unless_stopping<T>(&self, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let stopped = async {
            while !self.is_stopping() {
                sleep(STOP_LOOK).await;
            }
        };
        self.handle.block_on(async {
            tokio::select! {
                done = work => done,
                () = stopped => Err(io::Error::new(io::ErrorKind::Interrupted, "going down")),
            }
        })
    }
}

impl Shared {
    fn connections(&self) -> Vec<Connection> {
        let mut connections = self.connections.lock();
        connections.retain(|(_, connection)| connection.close_reason().is_none());
        connections.iter().map(|(_, connection)| connection.clone()).collect()
    }

    /// Waits until somebody can be asked.
    async fn any(&self) -> io::Result<(NodePublicKey, Connection)> {
        loop {
            self.connections();
            if let Some((key, connection)) = self.connections.lock().first() {
                return Ok((*key, connection.clone()));
            }
            sleep(CONNECTED_LOOK).await;
        }
    }

    fn connection_to(&self, key: NodePublicKey) -> Option<Connection> {
        self.connections.lock().iter().find(|(other, _)| *other == key).map(|(_, connection)| connection.clone())
    }
}

/// The members, and where they are found.
pub fn addresses(admitted: &Admitted) -> impl Iterator<Item = (NodePublicKey, Vec<SocketAddr>)> + '_ {
    let member = |(key, entry): &(NodePublicKey, Entry)| {
        let member = Member::decode(entry.value.as_deref()?).ok().filter(|member| !member.left)?;
        Some((*key, member.addresses))
    };
    admitted.members.iter().filter_map(member)
}

/// Connects to a member whenever there is no connection, once it has heard that this node is one.
async fn keep_meeting(shared: Arc<Shared>, key: NodePublicKey, addresses: Vec<SocketAddr>) {
    let mut rest = NEWS_TIME;
    loop {
        if let Some(connection) = shared.connection_to(key) {
            connection.closed().await;
            rest = NEWS_TIME;
        }
        sleep(rest).await;
        rest = (rest * 2).min(REST_MAX);
        let Ok(config) = shared.identity.client(key) else { return };
        if let Ok(connection) = dial_any(&shared.endpoint, &config, &addresses).await
            && matches!(wire::ask_one(&connection, &Request::Members, ANSWER_TIME_MAX).await, Ok(Answer::Members(_)))
        {
            shared.connections.lock().push((key, connection));
        }
    }
}
