//! What peers ask for.
//!
//! What always holds: whoever is no member gets an answer to `Join` alone, and few of those are heard at a time.

use std::sync::Arc;
use std::time::Duration;

use phifs_core::causal::VersionVector;
use phifs_core::codec::DecodeError;
use phifs_core::id::GlyphId;
use phifs_core::identity::NodePublicKey;
use phifs_core::ssep::{Answer, Hello, MAJOR, Next, Note, Refusal, Request, Teller};
use phifs_core::store::GlyphKind;
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::time::{Instant, sleep};

use super::traffic::{self, Refused};
use super::wire::{self, WireError};
use super::{Peer, Shared, tls};

/// What happens so soon after one another is told together.
const TOGETHER: Duration = Duration::from_millis(2);
/// How often it is looked whether there are other members.
const MEMBERS_LOOK: Duration = Duration::from_millis(500);
/// Streams go in this order where the network is what is short: what is new, what somebody waits for, states, the bytes of
/// files.
const PRIORITY_NEWS: i32 = 3;
const PRIORITY_LOOK: i32 = 2;
const PRIORITY_STATE: i32 = 1;
const PRIORITY_BULK: i32 = 0;
/// Who asks for so few glyphs has somebody who looks at what is in them; else more are asked for at once.
const LOOK_GLYPHS: usize = 64;
/// So many glyphs are read at a time: a few MiB.
const GLYPHS_AT_ONCE: usize = 16;
const NOT_WELCOME: VarInt = VarInt::from_u32(1);
/// It is no member any more.
pub const REMOVED: VarInt = VarInt::from_u32(2);
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
                shared.connected(&peer, &connection);
                peer.arrived.notify_one();
            }
            // Whoever was removed before it was noted as connected is not found by those who close connections.
            if !matches!(shared.blocking(move |engine| engine.is_member(key)).await, Ok(true)) {
                return connection.close(REMOVED, b"no member any more");
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
            if let Some(peer) = shared.peer(key) {
                peer.serves(&connection);
            }
            serve(shared, connection, key).await;
        }
        Err(error) => tracing::error!(%error, "cannot look up who has connected"),
    }
}

/// Hears a node that is no member. Says whether it is one now. One that was a member gets what says so, whatever it asks.
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
                        traffic::refused(Refused::Invitation);
                        tracing::warn!(node = %key, why = text, "a node was not admitted");
                        Answer::Refused { why, text }
                    }
                }
            }
            Ok(_) => match shared.blocking(move |engine| engine.former_member(key)).await {
                Ok(entries) if !entries.is_empty() => Answer::Members(entries),
                _ => refusal(Refusal::NotMember, "it is for members; join first"),
            },
            Err(error) => {
                traffic::refused(Refused::Malformed);
                explained(&error)
            }
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
            let _answering = shared.peer(key).map(|peer| peer.answering());
            let outcome = match wire::request(&mut receive).await {
                Ok(request) => answer(&shared, key, request, receive, send).await,
                Err(error) => {
                    traffic::refused(Refused::Malformed);
                    tracing::warn!(node = %key, %error, "a request was not understood");
                    refuse(send, explained(&error)).await
                }
            };
            if let Err(error) = outcome {
                tracing::debug!(node = %key, %error, "an answer did not get through");
            }
        });
    }
    if let Some(peer) = shared.peer(key) {
        peer.served_no_more();
    }
}

async fn answer(
    shared: &Arc<Shared>,
    key: NodePublicKey,
    request: Request,
    receive: RecvStream,
    mut send: SendStream,
) -> wire::Result<()> {
    // It may have been removed since it connected.
    if !matches!(shared.blocking(move |engine| engine.is_member(key)).await, Ok(true)) {
        return refuse(send, refusal(Refusal::NotMember, "it is for members")).await;
    }
    let one = match request {
        Request::Hello(Hello { major, volume, .. }) => {
            if (major, volume) == (MAJOR, shared.volume) {
                Answer::Hello(shared.hello())
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
        Request::Follow(note) => return tell(shared, key, note, receive, send).await,
        Request::Catch(context) => return send_head(shared, key, context, send).await,
        Request::Glyphs(kind, ids) => return send_glyphs(shared, kind, ids, send).await,
    };
    send_all(&mut send, &one).await
}

/// Tells somebody who follows what it does not know, as soon as there is something, until the link breaks.
async fn tell(
    shared: &Arc<Shared>,
    key: NodePublicKey,
    first: Note,
    receive: RecvStream,
    mut send: SendStream,
) -> wire::Result<()> {
    let Some(peer) = shared.peer(key) else { return Ok(()) };
    let _ = send.set_priority(PRIORITY_NEWS);
    let mut changes = shared.changes.subscribe();
    let (mut notes, _reading) = wire::notes_ahead(receive);
    let _followed = shared.engine.followed(key);
    let (began, mut teller) = (Instant::now(), Teller::new(&first));
    heard(shared, &peer, first).await?;
    loop {
        while let Ok(note) = notes.try_recv() {
            let note = note?;
            teller.heard(&note);
            heard(shared, &peer, note).await?;
        }
        changes.borrow_and_update();
        let now = began.elapsed();
        let looked = shared.blocking(move |engine| {
            let next = engine.tell(&mut teller, now)?;
            Ok((teller, next))
        });
        let next;
        (teller, next) = looked.await.map_err(|failure| {
            tracing::warn!(node = %key, %failure, "a node could not be told what is new");
            wire::lost(&failure)
        })?;
        match next {
            Next::Say(answer) => wire::answer(&mut send, &answer).await?,
            Next::Wait(patience) => {
                tokio::select! {
                    note = notes.recv() => {
                        let Some(note) = note else { return Ok(()) };
                        let note = note?;
                        teller.heard(&note);
                        heard(shared, &peer, note).await?;
                    }
                    _ = changes.changed() => sleep(TOGETHER).await,
                    () = sleep(patience.unwrap_or(MEMBERS_LOOK).min(MEMBERS_LOOK)) => {}
                }
            }
        }
        if shared.is_stopping() {
            return Ok(());
        }
    }
}

/// Learns from a note how far somebody has come, and what it vouches for.
async fn heard(shared: &Arc<Shared>, peer: &Arc<Peer>, note: Note) -> wire::Result<()> {
    let (key, Note { context, root, receipt, .. }) = (peer.key, note);
    {
        let mut state = peer.state.lock();
        state.asked = Some((context.clone(), std::time::Instant::now()));
        state.head.take_if(|head| context.covers(head.context()));
    }
    if let Some(receipt) = receipt {
        shared.blocking(move |engine| engine.take_receipt(key, receipt)).await.map_err(wire::lost)?;
    }
    if let Some(root) = root {
        shared.blocking(move |engine| engine.audit(key, &context, root)).await.map_err(wire::lost)?;
    }
    Ok(())
}

/// Says what the state of this node is called. It stays until the asker asks again, or its connections are gone.
async fn send_head(
    shared: &Arc<Shared>,
    key: NodePublicKey,
    context: VersionVector,
    mut send: SendStream,
) -> wire::Result<()> {
    let asked = shared.blocking(move |engine| {
        let knows_all = !context.is_empty() && context.covers(&engine.context());
        if knows_all { Ok(None) } else { engine.head().map(Some) }
    });
    let answer = match asked.await {
        Ok(None) => Answer::Unchanged,
        Ok(Some(head)) => {
            let bytes = head.to_bytes();
            if let Some(peer) = shared.peer(key) {
                peer.state.lock().head = Some(head);
            }
            Answer::Head(bytes)
        }
        Err(failure) => {
            tracing::warn!(node = %key, %failure, "a node could not be given the state");
            refusal(Refusal::Failed, &failure.message)
        }
    };
    send_all(&mut send, &answer).await
}

/// Sends glyphs, in the order in which they were asked for.
async fn send_glyphs(
    shared: &Arc<Shared>,
    kind: GlyphKind,
    ids: Vec<GlyphId>,
    mut send: SendStream,
) -> wire::Result<()> {
    let _ = send.set_priority(match kind {
        _ if ids.len() <= LOOK_GLYPHS => PRIORITY_LOOK,
        GlyphKind::Node => PRIORITY_STATE,
        GlyphKind::Data => PRIORITY_BULK,
    });
    let is_bulk = kind == GlyphKind::Data && ids.len() > LOOK_GLYPHS;
    let _stream = is_bulk.then(|| shared.engine.stream_glyphs());
    let mut ids = ids.into_iter();
    loop {
        let some: Vec<GlyphId> = ids.by_ref().take(GLYPHS_AT_ONCE).collect();
        if some.is_empty() {
            return send.finish().map_err(wire::lost);
        }
        let read = shared.blocking(move |engine| engine.glyphs_to_send(kind, &some)).await;
        let glyphs = match read {
            Ok(glyphs) => glyphs,
            Err(failure) => return refuse(send, refusal(Refusal::Failed, &failure.message)).await,
        };
        for glyph in glyphs {
            wire::answer(&mut send, &Answer::Glyph(glyph)).await?;
        }
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
