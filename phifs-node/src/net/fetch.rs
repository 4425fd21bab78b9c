//! Getting glyphs from peers.

use std::sync::Arc;

use bytes::Bytes;
use phifs_core::id::GlyphId;
use phifs_core::ssep::{Answer, GLYPHS_MAX, Request};
use quinn::Connection;
use tokio::time::timeout;

use super::wire::{self, ANSWER_TIME_MAX, WireError};
use super::{Peer, Shared};
use crate::failure::Failure;

/// So much is checked and stored at a time.
const STORED_BYTES: usize = 4 << 20;

/// Fetches all of these glyphs, from a peer that should have them, and what it has not from the others.
pub async fn fetch(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    connection: &Connection,
    ids: Vec<GlyphId>,
) -> Result<(), Failure> {
    let mut missing = fetch_from(shared, connection, ids).await?;
    let others: Vec<_> = shared.peers.lock().values().filter(|other| other.key != peer.key).cloned().collect();
    for other in others {
        if missing.is_empty() {
            break;
        }
        if let Some(connection) = other.connection() {
            match fetch_from(shared, &connection, missing.clone()).await {
                Ok(left) => missing = left,
                Err(error) => tracing::debug!(node = %other.key, %error, "a node does not give glyphs"),
            }
        }
    }
    match missing.first() {
        None => Ok(()),
        Some(id) => {
            let many = missing.len();
            Err(Failure::plain(format!("no node that is reachable has the bytes of {many} glyphs, {id} first")))
        }
    }
}

/// Says which of the glyphs the peer does not have.
async fn fetch_from(shared: &Arc<Shared>, connection: &Connection, ids: Vec<GlyphId>) -> Result<Vec<GlyphId>, Failure> {
    let mut missing = Vec::new();
    for ids in ids.chunks(GLYPHS_MAX) {
        let mut answers = wire::ask(connection, &Request::Glyphs(ids.to_vec())).await.map_err(Failure::plain)?;
        let (mut glyphs, mut bytes): (Vec<(GlyphId, Bytes)>, usize) = (Vec::new(), 0);
        for id in ids {
            let answer = timeout(ANSWER_TIME_MAX, answers.next()).await.map_err(|_| WireError::Silent);
            match answer.and_then(|answer| answer).map_err(Failure::plain)? {
                Answer::Glyph(Some(glyph)) => {
                    bytes += glyph.len();
                    glyphs.push((*id, glyph));
                }
                Answer::Glyph(None) => missing.push(*id),
                _ => return Err(Failure::plain(WireError::Unexpected)),
            }
            if bytes >= STORED_BYTES {
                let glyphs = std::mem::take(&mut glyphs);
                shared.blocking(move |engine| engine.take_glyphs(glyphs)).await?;
                bytes = 0;
            }
        }
        shared.blocking(move |engine| engine.take_glyphs(glyphs)).await?;
    }
    Ok(missing)
}
