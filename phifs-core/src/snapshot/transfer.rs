//! From a store to a stream, and from a stream to a store.

use std::io::{Read, Write};

use crate::id::GlyphId;
use crate::meta::Frozen;
use crate::store::{GlyphKind, GlyphStore, StoreError, StoredGlyph};

use super::reach::{Step, reach};
use super::record::Record;
use super::rows;
use super::stream::{Frame, Reader, Result, StreamError, Writer};

/// After so much, what an import has stored is made durable, and its places leave memory.
pub(super) const SYNC_BYTES: u64 = 256 << 20;

/// Hears how many bytes are done, and may stop the work.
pub type Progress<'a> = &'a mut dyn FnMut(u64) -> Result<()>;

/// Reads a glyph as it is stored, wherever it is.
pub type ReadStored<'a> = &'a dyn Fn(GlyphKind, &GlyphId) -> std::result::Result<StoredGlyph, StoreError>;

/// Writes what `after` needs beyond `before`. The first glyphs may be there already, if this goes on with a stream that
/// broke off; `last` is the last of them.
pub fn export<W: Write>(
    (store, read): (&GlyphStore, ReadStored<'_>),
    before: Option<&Frozen>,
    after: &Frozen,
    last: Option<GlyphId>,
    writer: &mut Writer<W>,
    progress: Progress<'_>,
) -> Result<()> {
    let there = writer.glyphs();
    let mut met = 0;
    reach(store, before, after, &mut |step| {
        let Step::Glyph(kind, id) = step else { return Ok(()) };
        met += 1;
        if met > there {
            writer.put(&read(kind, id)?)?;
        } else if met == there && last != Some(*id) {
            let why = "what is there of it does not belong to this snapshot".to_owned();
            return Err(StreamError::Damaged { at: writer.bytes(), why });
        }
        progress(writer.bytes())
    })
}

/// What an import has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    pub glyphs: u64,
    /// Of these, what was not there before.
    pub new_glyphs: u64,
    pub new_bytes: u64,
}

/// Stores what a stream brings of a snapshot, and nothing that does not belong to it. When this returns, all that `after`
/// needs is there, durable and sound, if all that `before` needs is.
///
/// The caller holds what is put (`GlyphStore::hold`) and what `before` needs until the snapshot has a name.
pub fn import<R: Read>(
    store: &GlyphStore,
    record: &Record,
    before: Option<&Frozen>,
    after: &Frozen,
    stream: &mut Reader<R>,
    progress: Progress<'_>,
) -> Result<Received> {
    let mut received = Received::default();
    let mut synced_at = 0;
    reach(store, before, after, &mut |step| {
        match step {
            Step::Glyph(kind, id) => {
                let glyph = loop {
                    match stream.next()? {
                        Frame::Check => {}
                        Frame::Glyph(glyph) if glyph.kind() == kind && glyph.id() == *id => break glyph,
                        Frame::Glyph(glyph) => {
                            return Err(stream.damaged(format!("glyph {} stands where {id} belongs", glyph.id())));
                        }
                        Frame::End => return Err(stream.damaged(format!("it ends without glyph {id}"))),
                    }
                };
                let is_new = store.write_stored(&glyph).map_err(|error| match error {
                    StoreError::Malformed { what, source } => stream.damaged(format!("{what}: {source}")),
                    error => StreamError::Store(error),
                })?;
                received.glyphs += 1;
                received.new_glyphs += u64::from(is_new);
                received.new_bytes += if is_new { u64::from(glyph.plain_bytes()) } else { 0 };
                if received.new_bytes >= synced_at + SYNC_BYTES {
                    synced_at = received.new_bytes;
                    store.sync()?;
                    store.flush_index();
                }
            }
            Step::Leaf(table, leaf) => {
                leaf.rows().try_for_each(|(key, value)| rows::check(table, &key, &value, &record.context))?;
            }
        }
        progress(stream.bytes())
    })?;
    loop {
        match stream.next()? {
            Frame::Check => {}
            Frame::Glyph(glyph) => {
                return Err(stream.damaged(format!("glyph {} belongs to something else", glyph.id())));
            }
            Frame::End => break,
        }
    }
    store.sync()?;
    Ok(received)
}
