//! Getting glyphs from peers.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use phifs_core::id::GlyphId;
use phifs_core::identity::NodePublicKey;
use phifs_core::ssep::{Answer, GLYPHS_MAX, Request};
use phifs_core::store::GlyphKind;
use phifs_core::volume::local::PeerGlyphs;
use quinn::Connection;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::Shared;
use super::wire::{self, ANSWER_TIME_MAX, WireError};
use crate::failure::Failure;
use crate::report::ToCome;

/// So much is checked and stored at a time.
const STORED_BYTES: usize = 4 << 20;
/// Fewer than these are not worth asking two.
const FEW: usize = 8;
/// A peer that somebody waits for and that has said nothing for so long gets company.
const HEDGE_AFTER: Duration = Duration::from_millis(250);
/// Whoever reads right after the start waits so long at most until there is somebody to ask.
pub const CONNECTED_AFTER: Duration = Duration::from_secs(3);
pub const CONNECTED_LOOK: Duration = Duration::from_millis(50);
/// How often what is pinned is fetched, and the cache made small enough.
const CACHE_LOOK: Duration = Duration::from_secs(300);
/// How long to rest before it is looked again for what is to be here.
const REST_MIN: Duration = Duration::from_millis(500);
const REST_MAX: Duration = Duration::from_secs(30);

/// Fetches and stores these glyphs of contents: from `first`, if there is one, and what it has not from the others. Says which
/// of them nobody has who can be reached.
pub async fn fetch(
    shared: &Arc<Shared>,
    first: Option<NodePublicKey>,
    ids: Vec<GlyphId>,
) -> Result<Vec<GlyphId>, Failure> {
    let mut missing = ids;
    for connection in connections(shared, first) {
        match fetch_from(shared, &connection, missing.clone()).await {
            Ok(left) => missing = left,
            Err(failure) if failure.is_full() => return Err(failure),
            Err(error) => tracing::debug!(at = %connection.remote_address(), %error, "a node does not give glyphs"),
        }
        if missing.is_empty() {
            break;
        }
    }
    Ok(missing)
}

/// Says which of the glyphs the peer does not have. What has come is stored while more is on its way.
async fn fetch_from(shared: &Arc<Shared>, connection: &Connection, ids: Vec<GlyphId>) -> Result<Vec<GlyphId>, Failure> {
    let (mut missing, mut storing) = (Vec::new(), JoinSet::new());
    for ids in ids.chunks(GLYPHS_MAX) {
        let request = Request::Glyphs(GlyphKind::Data, ids.to_vec());
        let mut answers = wire::ask(connection, &request).await.map_err(Failure::plain)?;
        let (mut glyphs, mut bytes): (Vec<(GlyphId, Bytes)>, usize) = (Vec::new(), 0);
        for id in ids {
            match glyph(&mut answers).await.map_err(Failure::plain)? {
                Some(glyph) => {
                    bytes += glyph.len();
                    glyphs.push((*id, glyph));
                }
                None => missing.push(*id),
            }
            if bytes >= STORED_BYTES {
                stored(&mut storing).await?;
                let (shared, glyphs) = (shared.clone(), std::mem::take(&mut glyphs));
                storing.spawn(async move { shared.blocking(move |engine| engine.take_glyphs(glyphs)).await });
                bytes = 0;
            }
        }
        stored(&mut storing).await?;
        shared.blocking(move |engine| engine.take_glyphs(glyphs)).await?;
    }
    Ok(missing)
}

async fn stored(storing: &mut JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    while let Some(done) = storing.join_next().await {
        done.map_err(Failure::plain)??;
    }
    Ok(())
}

/// To the peers that there are connections to.
pub fn connections(shared: &Shared, first: Option<NodePublicKey>) -> Vec<Connection> {
    let mut peers: Vec<_> = shared.peers.lock().values().cloned().collect();
    peers.sort_by_key(|peer| Some(peer.key) != first);
    peers.iter().filter_map(|peer| peer.connection()).collect()
}

/// Gets what these peers have of the glyphs: a part from each of them, all at once; and what one has not, from the next.
pub async fn gather(connections: &[Connection], kind: GlyphKind, ids: &[GlyphId]) -> io::Result<Vec<(GlyphId, Bytes)>> {
    if connections.is_empty() {
        return Err(io::Error::other("no node is reachable"));
    }
    let (mut glyphs, mut missing) = (Vec::with_capacity(ids.len()), ids.to_vec());
    for turn in 0..connections.len() {
        let share = missing.len().div_ceil(connections.len()).clamp(FEW, GLYPHS_MAX);
        let mut asked = JoinSet::new();
        for (n, ids) in missing.chunks(share).enumerate() {
            let (connection, ids) = (connections[(n + turn) % connections.len()].clone(), ids.to_vec());
            asked.spawn(async move { (connection.remote_address(), ask(&connection, kind, ids).await) });
        }
        while let Some(answered) = asked.join_next().await {
            match answered.map_err(io::Error::other)? {
                (_, Ok(given)) => glyphs.extend(given),
                (at, Err(error)) => tracing::debug!(%at, %error, "a node does not give glyphs"),
            }
        }
        let got: HashSet<GlyphId> = glyphs.iter().map(|(id, _)| *id).collect();
        missing.retain(|id| !got.contains(id));
        if missing.is_empty() {
            break;
        }
    }
    Ok(glyphs)
}

/// Those that a peer has.
async fn ask(connection: &Connection, kind: GlyphKind, ids: Vec<GlyphId>) -> wire::Result<Vec<(GlyphId, Bytes)>> {
    let mut answers = wire::ask(connection, &Request::Glyphs(kind, ids.clone())).await?;
    let mut glyphs = Vec::with_capacity(ids.len());
    for id in ids {
        glyphs.extend(glyph(&mut answers).await?.map(|glyph| (id, glyph)));
    }
    Ok(glyphs)
}

async fn glyph(answers: &mut wire::Answers) -> wire::Result<Option<Bytes>> {
    match timeout(ANSWER_TIME_MAX, answers.next()).await.map_err(|_| WireError::Silent)?? {
        Answer::Glyph(glyph) => Ok(glyph),
        _ => Err(WireError::Unexpected),
    }
}

/// The peers, for readers who wait.
pub struct Reachable {
    pub shared: Arc<Shared>,
    pub handle: Handle,
}

impl PeerGlyphs for Reachable {
    fn fetch(&self, ids: &[GlyphId], patience: Duration) -> io::Result<Vec<(GlyphId, Bytes)>> {
        let asking = async {
            while connections(&self.shared, None).is_empty() && self.shared.started.elapsed() < CONNECTED_AFTER {
                sleep(CONNECTED_LOOK).await;
            }
            timeout(patience, ask_around(connections(&self.shared, None), GlyphKind::Data, ids)).await
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no node has given it in time");
        self.handle.block_on(asking).map_err(late)?
    }
}

/// Asks one peer after the other, the next one when the last is slow or has not got it; who is first is believed.
pub async fn ask_around(
    connections: Vec<Connection>,
    kind: GlyphKind,
    ids: &[GlyphId],
) -> io::Result<Vec<(GlyphId, Bytes)>> {
    let mut asked = JoinSet::new();
    let mut left = connections.into_iter();
    loop {
        if let Some(connection) = left.next() {
            let ids = ids[..ids.len().min(GLYPHS_MAX)].to_vec();
            asked.spawn(async move { ask_first(&connection, kind, ids).await });
        } else if asked.is_empty() {
            return Err(io::Error::other("no node that is reachable has it"));
        }
        let hedge = if left.len() > 0 { HEDGE_AFTER } else { ANSWER_TIME_MAX };
        if let Ok(Some(Ok(Ok(glyphs)))) = timeout(hedge, asked.join_next()).await
            && !glyphs.is_empty()
        {
            return Ok(glyphs);
        }
    }
}

/// The first glyph and what comes along with it; nothing if the peer has not got that one.
async fn ask_first(connection: &Connection, kind: GlyphKind, ids: Vec<GlyphId>) -> wire::Result<Vec<(GlyphId, Bytes)>> {
    let mut answers = wire::ask(connection, &Request::Glyphs(kind, ids.clone())).await?;
    let mut glyphs = Vec::new();
    for id in ids {
        match glyph(&mut answers).await? {
            Some(glyph) => glyphs.push((id, glyph)),
            None if glyphs.is_empty() => return Ok(glyphs),
            None => {}
        }
    }
    Ok(glyphs)
}

/// Fetches what can be had of these, and shows how much is still to come.
async fn fetch_missing(shared: &Arc<Shared>, missing: &[(GlyphId, u64)]) -> Result<(), Failure> {
    let mut left = ToCome { glyphs: missing.len() as u64, bytes: missing.iter().map(|(_, bytes)| bytes).sum() };
    let mut outcome = Ok(());
    for some in missing.chunks(GLYPHS_MAX) {
        *shared.to_come.lock() = Some(left);
        match fetch(shared, None, some.iter().map(|(id, _)| *id).collect()).await {
            Ok(away) if away.is_empty() => {
                left.glyphs -= some.len() as u64;
                left.bytes -= some.iter().map(|(_, bytes)| bytes).sum::<u64>();
            }
            Ok(away) => {
                let (many, one) = (away.len(), away[0]);
                let why = format!("no node that is reachable has the bytes of {many} glyphs, {one} first");
                outcome = Err(Failure::plain(why));
            }
            Err(failure) => return Err(failure),
        }
    }
    outcome
}

/// Keeps everything here that is to be here, as members come and go.
pub async fn keep_complete(shared: Arc<Shared>) {
    let mut rest = REST_MIN;
    let mut is_complete = false;
    let mut next_look = Instant::now() + CACHE_LOOK;
    while !shared.is_stopping() {
        if Instant::now() >= next_look {
            if let Err(error) = shared.blocking(|engine| engine.keep_cache()).await {
                tracing::warn!(%error, "cannot tidy up the cache of glyphs");
            }
            next_look = Instant::now() + CACHE_LOOK;
        }
        let placed = shared.blocking(|engine| engine.place()).await;
        if !matches!(placed, Ok(false)) {
            (is_complete, rest) = (false, REST_MIN);
        }
        // A group was taken in without.
        is_complete &= !shared.engine.is_awaited();
        if !is_complete {
            let looked = async {
                let missing = shared.blocking(|engine| engine.look_for_missing()).await?;
                if missing.is_empty() {
                    return Ok(true);
                }
                tracing::info!(glyphs = missing.len(), "fetching what is to be here by now");
                fetch_missing(&shared, &missing).await.map(|()| false)
            };
            match looked.await {
                Ok(done) => {
                    *shared.to_come.lock() = None;
                    (is_complete, rest) = (done, REST_MIN);
                }
                Err(error) => {
                    tracing::debug!(%error, "not all is here that is to be here");
                    rest = (rest * 2).min(REST_MAX);
                }
            }
        }
        sleep(rest).await;
    }
}
