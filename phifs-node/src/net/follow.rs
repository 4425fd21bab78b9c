//! Asking the other members, again and again, what they know and this node does not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use phifs_core::identity::NodePublicKey;
use phifs_core::ssep::{Answer, Follow, Request, hash_of};
use quinn::Connection;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::pipe::Incoming;
use super::serve::{self, FOLLOW_TIME_MAX};
use super::socket::dial;
use super::wire::{self, ANSWER_TIME_MAX, WireError};
use super::{Peer, Shared};
use crate::env;
use crate::failure::Failure;

/// How often it is looked who the members are, if nobody says that it changed.
const MEMBERS_LOOK: Duration = Duration::from_secs(5);
/// How long to rest after a failure: at first, and at most.
const REST_MIN: Duration = Duration::from_millis(200);
const REST_MAX: Duration = Duration::from_secs(10);
/// After each time that something was learned, rest as long as that took, but no longer: whoever writes all the time is
/// not to spend all the time on telling of it.
const PAUSE_MAX: Duration = Duration::from_secs(1);

impl Shared {
    pub(super) fn peer(&self, key: NodePublicKey) -> Option<Arc<Peer>> {
        if key == self.engine.node() {
            return None;
        }
        Some(self.peers.lock().entry(key).or_insert_with(|| Arc::new(Peer::new(key))).clone())
    }
}

/// Follows everybody who is a member, for as long as they are.
pub async fn follow_members(shared: Arc<Shared>) {
    let mut following: BTreeMap<NodePublicKey, AbortHandle> = BTreeMap::new();
    while !shared.is_stopping() {
        match shared.blocking(|engine| engine.members()).await {
            Ok(members) => {
                let members: BTreeSet<NodePublicKey> = members.into_iter().map(|(key, _)| key).collect();
                following.retain(|key, task| {
                    let stays = members.contains(key);
                    if !stays {
                        task.abort();
                        shared.peers.lock().remove(key);
                    }
                    stays
                });
                for key in members {
                    if let (false, Some(peer)) = (following.contains_key(&key), shared.peer(key)) {
                        following.insert(key, tokio::spawn(follow(shared.clone(), peer)).abort_handle());
                    }
                }
            }
            Err(error) => tracing::error!(%error, "cannot look up the members"),
        }
        let _ = timeout(MEMBERS_LOOK, shared.members_changed.notified()).await;
    }
}

/// Follows one of them.
async fn follow(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut rest = REST_MIN;
    loop {
        let trouble = match connection(&shared, &peer).await {
            Ok(connection) => {
                tracing::info!(node = %peer.key, at = %connection.remote_address(), "connected");
                peer.state.lock().trouble = None;
                let began = Instant::now();
                let outcome = listen(&shared, &peer, &connection).await;
                if outcome.is_ok() || began.elapsed() > REST_MAX {
                    rest = REST_MIN;
                }
                let Err(error) = outcome else { continue };
                if !shared.is_stopping() {
                    tracing::warn!(node = %peer.key, %error, "cannot learn from a node; it is tried again");
                }
                error.message
            }
            Err(error) => {
                tracing::debug!(node = %peer.key, %error, "cannot reach a node");
                error.to_string()
            }
        };
        if shared.is_stopping() {
            return;
        }
        peer.state.lock().trouble = Some(trouble);
        // So that nodes that lost each other at the same time do not all come back at the same time.
        let _ = timeout(jittered(rest), peer.arrived.notified()).await;
        rest = (rest * 2).min(REST_MAX);
    }
}

/// Between half and all of it.
fn jittered(rest: Duration) -> Duration {
    rest / 2 + rest.mul_f64(f64::from(env::random()[0]) / 512.0)
}

/// The connection that there is, or a new one.
async fn connection(shared: &Arc<Shared>, peer: &Arc<Peer>) -> wire::Result<Connection> {
    if let Some(connection) = peer.connection() {
        return Ok(connection);
    }
    let key = peer.key;
    let addresses = shared.blocking(move |engine| engine.addresses_of(key)).await.map_err(wire::lost)?;
    let config = shared.identity.client(key).map_err(wire::lost)?;
    tokio::select! {
        dialled = dial_all(shared, &config, addresses) => {
            let connection = dialled?;
            peer.connected(&connection);
            tokio::spawn(serve::serve(shared.clone(), connection.clone(), key));
            Ok(connection)
        }
        () = peer.arrived.notified() => peer.connection().ok_or(WireError::Silent),
    }
}

async fn dial_all(
    shared: &Shared,
    config: &quinn::ClientConfig,
    addresses: Vec<SocketAddr>,
) -> wire::Result<Connection> {
    let mut last = WireError::Lost("it has no address".to_owned());
    for address in addresses {
        match dial(&shared.endpoint, config, address).await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Learns from a peer until that does not work any more, or there is a better connection.
async fn listen(shared: &Arc<Shared>, peer: &Arc<Peer>, connection: &Connection) -> Result<(), Failure> {
    greet(shared, connection).await.map_err(Failure::plain)?;
    loop {
        let began = Instant::now();
        match learn_once(shared, peer, connection).await {
            Ok(Next::Pause) => sleep(began.elapsed().min(PAUSE_MAX)).await,
            Ok(Next::AtOnce) => {}
            Ok(Next::OtherConnection) => return Ok(()),
            Err(failure) => return Err(failure),
        }
    }
}

/// The other side refuses if it is of another version or volume.
async fn greet(shared: &Shared, connection: &Connection) -> wire::Result<()> {
    match wire::ask_one(connection, &Request::Hello(shared.hello.clone()), ANSWER_TIME_MAX).await? {
        Answer::Hello(hello) if hello.volume == shared.hello.volume => Ok(()),
        _ => Err(WireError::Unexpected),
    }
}

/// What to do after asking once.
enum Next {
    /// Something came.
    Pause,
    AtOnce,
    OtherConnection,
}

/// Asks once, and learns what comes.
async fn learn_once(shared: &Arc<Shared>, peer: &Peer, connection: &Connection) -> Result<Next, Failure> {
    let key = peer.key;
    let asked = shared.blocking(move |engine| {
        let members_hash = hash_of(&engine.member_entries()?);
        Ok(Follow { context: engine.context(), known: engine.learned_from(&key), members_hash })
    });
    let mut answers = wire::ask(connection, &Request::Follow(asked.await?)).await.map_err(Failure::plain)?;
    let answer = tokio::select! {
        answer = timeout(FOLLOW_TIME_MAX + ANSWER_TIME_MAX, answers.next()) => answer,
        // It has a better connection, so nothing may come over this one any more.
        () = peer.arrived.notified() => return Ok(Next::OtherConnection),
    };
    match answer.map_err(|_| WireError::Silent).and_then(|answer| answer).map_err(Failure::plain)? {
        Answer::Unchanged => Ok(Next::AtOnce),
        Answer::NewMembers => {
            let answer = wire::ask_one(connection, &Request::Members, ANSWER_TIME_MAX).await;
            let Answer::Members(members) = answer.map_err(Failure::plain)? else {
                return Err(Failure::plain(WireError::Unexpected));
            };
            shared.blocking(move |engine| engine.take_member_entries(members)).await?;
            shared.members_changed.notify_one();
            Ok(Next::Pause)
        }
        Answer::Stream => {
            let input = Incoming::new(answers.stream, Handle::current());
            let operations = shared.blocking(move |engine| engine.learn(&key, input)).await?;
            tracing::debug!(node = %key, operations, "learned what a node has done");
            Ok(Next::Pause)
        }
        _ => Err(Failure::plain(WireError::Unexpected)),
    }
}
