//! What peers ask for.
//!
//! What always holds: whoever is no member gets an answer to `Join` alone, and few of those are heard at a time.

use std::sync::Arc;
use std::time::Duration;

use phifs_core::causal::VersionVector;
use phifs_core::codec::DecodeError;
use phifs_core::identity::NodePublicKey;
use phifs_core::ssep::{Answer, Follow, Hello, Refusal, Request, hash_of};
use quinn::{Connection, Incoming, SendStream, VarInt};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use super::pipe::Outgoing;
use super::wire::{self, WireError};
use super::{Peer, Shared, tls};
use crate::failure::Failure;

/// For how long somebody is kept waiting who follows.
pub const FOLLOW_TIME_MAX: Duration = Duration::from_secs(20);
/// How often it is looked whether there is something to tell: operations, and other members.
const LOOK: Duration = Duration::from_millis(10);
const MEMBERS_LOOK: Duration = Duration::from_millis(500);
const NOT_WELCOME: VarInt = VarInt::from_u32(1);
/// How long a node may take that is no member.
const STRANGER_TIME_MAX: Duration = Duration::from_secs(120);

/// Takes connections until the endpoint is closed.
pub async fn accept(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        tokio::spawn(welcome(shared.clone(), incoming));
    }
}

async fn welcome(shared: Arc<Shared>, incoming: Incoming) {
    let from = incoming.remote_address();
    let connection = match incoming.await {
        Ok(connection) => connection,
        Err(error) => return tracing::info!(%from, %error, "a connection was not made"),
    };
    let Some(key) = tls::peer_of(&connection) else { return connection.close(NOT_WELCOME, b"who are you?") };
    match shared.blocking(move |engine| engine.is_member(key)).await {
        Ok(true) => {
            if let Some(peer) = shared.peer(key) {
                peer.connected(&connection);
                peer.arrived.notify_one();
            }
            serve(shared, connection, key).await;
        }
        Ok(false) => {
            let Ok(_place) = shared.strangers.clone().try_acquire_owned() else {
                return connection.close(NOT_WELCOME, b"too many");
            };
            tracing::info!(node = %key, %from, "a node asks to join");
            let heard = hear(&shared, &connection, key);
            if tokio::time::timeout(STRANGER_TIME_MAX, heard).await != Ok(true) {
                return connection.close(NOT_WELCOME, b"not a member");
            }
            serve(shared, connection, key).await;
        }
        Err(error) => tracing::error!(%error, "cannot look up who has connected"),
    }
}

/// Hears a node that is no member. Says whether it is one now.
async fn hear(shared: &Arc<Shared>, connection: &Connection, key: NodePublicKey) -> bool {
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        let asked = wire::request(&mut receive).await;
        let answer = match asked {
            Ok(Request::Join(join)) => {
                let admitted = shared.blocking(move |engine| Ok(engine.admit(key, &join))).await;
                match admitted.unwrap_or_else(|failure| Err((Refusal::Failed, failure.message))) {
                    Ok(members) => {
                        tracing::info!(node = %key, "a node has joined");
                        shared.members_changed.notify_one();
                        Answer::Joined(members)
                    }
                    Err((why, text)) => {
                        tracing::warn!(node = %key, why = text, "a node was not admitted");
                        Answer::Refused { why, text }
                    }
                }
            }
            Ok(_) => refusal(Refusal::NotMember, "it is for members; join first"),
            Err(error) => explained(&error),
        };
        let is_in = matches!(answer, Answer::Joined(_));
        if send_all(&mut send, &answer).await.is_err() {
            return is_in;
        }
        if is_in {
            return true;
        }
    }
    false
}

/// Answers a member until the connection ends.
pub async fn serve(shared: Arc<Shared>, connection: Connection, key: NodePublicKey) {
    while let Ok((send, mut receive)) = connection.accept_bi().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            let outcome = match wire::request(&mut receive).await {
                Ok(request) => answer(&shared, key, request, send).await,
                Err(error) => {
                    tracing::warn!(node = %key, %error, "a request was not understood");
                    refuse(send, explained(&error)).await
                }
            };
            if let Err(error) = outcome {
                tracing::debug!(node = %key, %error, "an answer did not get through");
            }
        });
    }
}

async fn answer(shared: &Arc<Shared>, key: NodePublicKey, request: Request, mut send: SendStream) -> wire::Result<()> {
    // It may have been removed since it connected.
    if !matches!(shared.blocking(move |engine| engine.is_member(key)).await, Ok(true)) {
        return refuse(send, refusal(Refusal::NotMember, "it is for members")).await;
    }
    let one = match request {
        Request::Hello(Hello { major, volume, .. }) => {
            if (major, volume) == (shared.hello.major, shared.hello.volume) {
                Answer::Hello(shared.hello.clone())
            } else {
                refusal(Refusal::Mismatch, "another volume is served here, or another version is spoken")
            }
        }
        Request::Join(join) => {
            let admitted = shared.blocking(move |engine| Ok(engine.admit(key, &join))).await;
            match admitted.unwrap_or_else(|failure| Err((Refusal::Failed, failure.message))) {
                Ok(members) => Answer::Joined(members),
                Err((why, text)) => Answer::Refused { why, text },
            }
        }
        Request::Members => match shared.blocking(|engine| engine.member_entries()).await {
            Ok(members) => Answer::Members(members),
            Err(failure) => refusal(Refusal::Failed, &failure.message),
        },
        Request::Follow(follow) => return tell(shared, key, follow, send).await,
    };
    send_all(&mut send, &one).await
}

/// Waits until there is something that the asker does not know, and tells that.
async fn tell(shared: &Arc<Shared>, key: NodePublicKey, follow: Follow, mut send: SendStream) -> wire::Result<()> {
    let peer = shared.peer(key);
    if let Some(peer) = &peer {
        heard(shared, peer, &follow).await;
    }
    let Follow { context, known, members_hash } = follow;
    match news(shared, context, members_hash).await {
        Ok(Answer::Stream) => {}
        Ok(answer) => return send_all(&mut send, &answer).await,
        Err(failure) => return refuse(send, refusal(Refusal::Failed, &failure.message)).await,
    }
    wire::answer(&mut send, &Answer::Stream).await?;
    let handle = Handle::current();
    let told = shared.blocking(move |engine| {
        let mut out = Outgoing::new(send, handle);
        let head = engine.give(&key, &known, &mut out)?;
        Ok((out.into_stream(), head))
    });
    // Without an end to the stream the asker knows that it broke off.
    let (mut send, head) = told.await.map_err(|failure| {
        tracing::warn!(node = %key, %failure, "a node could not be told what is new");
        wire::lost(&failure)
    })?;
    if let Some(peer) = peer {
        peer.state.lock().sent = Some(head);
    }
    send.finish().map_err(wire::lost)
}

/// Waits for something to answer to somebody who follows.
async fn news(shared: &Arc<Shared>, context: VersionVector, members_hash: [u8; 32]) -> Result<Answer, Failure> {
    let context = Arc::new(context);
    let until = Instant::now() + FOLLOW_TIME_MAX;
    let mut next_look = Instant::now() + MEMBERS_LOOK;
    loop {
        let theirs = context.clone();
        if shared.blocking(move |engine| Ok(!theirs.covers(&engine.context()))).await? {
            return Ok(Answer::Stream);
        }
        let now = Instant::now();
        if now >= next_look {
            next_look = now + MEMBERS_LOOK;
            if shared.blocking(|engine| Ok(hash_of(&engine.member_entries()?))).await? != members_hash {
                return Ok(Answer::NewMembers);
            }
        }
        if shared.is_stopping() || now >= until {
            return Ok(Answer::Unchanged);
        }
        sleep(LOOK).await;
    }
}

/// Learns from a request how far the asker has come.
async fn heard(shared: &Arc<Shared>, peer: &Arc<Peer>, follow: &Follow) {
    let arrived = {
        let mut state = peer.state.lock();
        state.asked = Some((follow.context.clone(), std::time::Instant::now()));
        state.sent.take_if(|sent| follow.known.contains(&sent.id()))
    };
    let key = peer.key;
    if let Some(head) = arrived
        && let Err(error) = shared.blocking(move |engine| engine.was_given(&key, &head)).await
    {
        tracing::warn!(node = %key, %error, "cannot note what a node has; it will be sent more than it needs");
    }
}

async fn send_all(send: &mut SendStream, answer: &Answer) -> wire::Result<()> {
    wire::answer(send, answer).await?;
    send.finish().map_err(wire::lost)
}

async fn refuse(mut send: SendStream, refusal: Answer) -> wire::Result<()> {
    send_all(&mut send, &refusal).await
}

fn refusal(why: Refusal, text: &str) -> Answer {
    Answer::Refused { why, text: text.to_owned() }
}

fn explained(error: &WireError) -> Answer {
    let why = match error {
        WireError::Malformed(DecodeError::Unknown { what: "a request", .. }) => Refusal::Unknown,
        _ => Refusal::Malformed,
    };
    refusal(why, &error.to_string())
}
