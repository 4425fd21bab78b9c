//! The store that the rest of the program sees: put, read, sync, and the index behind them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::gc::Pins;
use super::index::{GlyphIndex, Position};
use super::lane::{Lane, Shared};
use super::pack::{Entry, Pack};
use super::record::{self, Base, Codec, DELTAS_MAX, Delta, GLYPH_BYTES_MAX, HEADER_BYTES, Header, Record};
use super::recover::{Progress, Stage};
use super::room::Purpose;
use super::{GlyphKind, GlyphSink, GlyphSource, Location, StoreError};
use crate::codec::DecodeError;
use crate::id::GlyphId;

/// A lookup that races with a collection finds the glyph at its new place the second time.
const LOOKUPS_MAX: usize = 3;
const INDEX_BATCH: usize = 4096;
/// A glyph that was damaged and stored again may be told by more than it was before. Where deltas that somebody made up go
/// round in a circle, this is the end.
const DELTAS_READ_MAX: usize = 4 * DELTAS_MAX;

#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Packs carry it, and a pack of another store is refused.
    pub store_id: [u8; 16],
    pub data_pack_bytes_max: u32,
    pub node_pack_bytes_max: u32,
    /// Free space that data must leave; `None` for 5 % of the disk, at most 10 GiB.
    pub reserve_bytes: Option<u64>,
}

impl StoreOptions {
    pub fn new(store_id: [u8; 16]) -> Self {
        Self { store_id, data_pack_bytes_max: 256 << 20, node_pack_bytes_max: 64 << 20, reserve_bytes: None }
    }
}

/// What the packs hold, copies that wait for a collection included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub packs: u64,
    pub data_glyphs: u64,
    pub data_plain_bytes: u64,
    pub data_stored_bytes: u64,
    pub node_glyphs: u64,
    pub node_plain_bytes: u64,
    pub node_stored_bytes: u64,
    /// Glyphs that are damaged here and were not stored again since.
    pub quarantined: u64,
    /// Places that wait in memory for `flush_index`.
    pub unindexed: u64,
}

pub struct GlyphStore {
    pub(super) shared: Shared,
    pub(super) data: Lane,
    pub(super) nodes: Lane,
    pub(super) index: Arc<dyn GlyphIndex>,
    /// Held while the index changes; the position it is known to reflect.
    pub(super) index_position: Mutex<Option<Position>>,
    pub(super) index_damaged: AtomicBool,
    /// Goes up when a rebuild of the index begins and when it ends.
    pub(super) index_builds: AtomicU64,
    pub(super) pins: Pins,
    /// Read: while a put pins a glyph and looks whether it is there. Written: when a collection lets go of a pack.
    pub(super) gate: RwLock<()>,
    /// One collection at a time.
    pub(super) collecting: Mutex<()>,
    /// How hard data is compressed.
    pub(super) data_level: AtomicI32,
    /// Nodes that were read lately: others may be told by them, and whoever compares two maps reads both.
    pub(super) recent_nodes: RecentNodes,
}

/// Plain bytes of nodes, bounded in bytes.
pub(super) type RecentNodes = Cache<GlyphId, Bytes, ByLen>;

#[derive(Clone)]
pub(super) struct ByLen;

impl Weighter<GlyphId, Bytes> for ByLen {
    fn weight(&self, _: &GlyphId, plain: &Bytes) -> u64 {
        const OVERHEAD: usize = size_of::<GlyphId>() + size_of::<Bytes>() + 64;
        (plain.len() + OVERHEAD) as u64
    }
}

const RECENT_BYTES_MAX: u64 = 2 << 20;

pub(super) fn recent_nodes() -> RecentNodes {
    Cache::with_weighter(512, RECENT_BYTES_MAX, ByLen)
}

/// Why a record could not be read.
pub(super) enum Unreadable {
    /// It is not there, or not what it should be.
    Bad,
    Disk(io::Error),
    /// It is told by a glyph that cannot be read.
    Base(StoreError),
}

impl GlyphSource for GlyphStore {
    fn read(&self, kind: GlyphKind, id: &GlyphId) -> Result<Bytes, StoreError> {
        let plain = self.read_within(kind, id, DELTAS_READ_MAX)?;
        if kind == GlyphKind::Node {
            self.recent_nodes.insert(*id, plain.clone());
        }
        Ok(plain)
    }
}

impl GlyphSink for GlyphStore {
    fn write(&self, kind: GlyphKind, plain: &[u8]) -> Result<GlyphId, StoreError> {
        let id = self.admit(plain)?;
        if !self.pin_stored(kind, &id) {
            self.append(&record::encode(kind, id, plain, self.data_level.load(Ordering::Relaxed)))?;
        }
        Ok(id)
    }
}

impl GlyphStore {
    /// Stores a node. Where that takes less room, it is told by another one, which is to stay as long as this one: a
    /// collection that takes it has to write this one anew.
    pub fn write_node_after(&self, plain: &[u8], base: &GlyphId, base_plain: &[u8]) -> Result<GlyphId, StoreError> {
        let id = self.admit(plain)?;
        if !self.pin_stored(GlyphKind::Node, &id) {
            let record = match self.pin_chain(GlyphKind::Node, base) {
                Some(deltas) => record::encode_after(id, plain, &Base { id: base, plain: base_plain, deltas }),
                None => record::encode(GlyphKind::Node, id, plain, 0),
            };
            self.append(&record)?;
        }
        Ok(id)
    }

    /// The id of what is about to be written.
    fn admit(&self, plain: &[u8]) -> Result<GlyphId, StoreError> {
        self.shared.check_writable()?;
        if plain.len() > GLYPH_BYTES_MAX {
            let what = format!("a glyph of {} bytes", plain.len());
            return Err(StoreError::Malformed { what, source: DecodeError::NotCanonical("its length") });
        }
        Ok(GlyphId::of(plain))
    }

    fn append(&self, record: &Record<'_>) -> Result<(), StoreError> {
        let (kind, id) = (record.header.kind, record.header.id);
        let purpose = match kind {
            GlyphKind::Data => Purpose::Data,
            GlyphKind::Node => Purpose::Upkeep,
        };
        let lane = self.lane(kind);
        // If it has a place, that is known to be bad.
        lane.append(&self.shared, record, purpose, lane.place(&id))
    }

    /// Reads a glyph that no more than so many deltas tell.
    fn read_within(&self, kind: GlyphKind, id: &GlyphId, deltas_max: usize) -> Result<Bytes, StoreError> {
        let lane = self.lane(kind);
        if let Some(at) = lane.quarantined(id) {
            return Err(corrupt(*id, at));
        }
        let trust = self.index_trust(kind);
        match self.locate(kind, id) {
            Some((location, pack)) => match self.fetch(&pack, location, id, deltas_max) {
                Ok(plain) => Ok(plain),
                Err(failure) => self.read_elsewhere(kind, id, Some((location, failure)), deltas_max),
            },
            None if trust.is_some() && trust == self.index_trust(kind) => Err(StoreError::Missing(*id)),
            None => self.read_elsewhere(kind, id, None, deltas_max),
        }
    }

    /// How hard data is compressed from now on: a level of zstd, 0 for not at all.
    pub fn set_data_level(&self, level: i32) {
        self.data_level.store(level, Ordering::Relaxed);
    }

    /// Whether the glyph is stored: its record is there and not known to be damaged. Its bytes are not read, so rot that
    /// neither a read nor a scrub has met yet goes unnoticed.
    pub fn contains(&self, kind: GlyphKind, id: &GlyphId) -> Result<bool, StoreError> {
        let lane = self.lane(kind);
        if lane.quarantined(id).is_some() {
            return Ok(false);
        }
        let trust = self.index_trust(kind);
        match self.locate(kind, id) {
            Some((location, pack)) => match self.header(&pack, location, id) {
                Ok(_) => Ok(true),
                Err(failure) => Ok(self.read_elsewhere(kind, id, Some((location, failure)), DELTAS_READ_MAX).is_ok()),
            },
            None if trust.is_some() && trust == self.index_trust(kind) => Ok(false),
            None => match self.read_elsewhere(kind, id, None, DELTAS_READ_MAX) {
                Ok(_) => Ok(true),
                Err(StoreError::Disk { doing, source }) => Err(StoreError::Disk { doing, source }),
                Err(_) => Ok(false),
            },
        }
    }

    /// Whether the glyph is stored, as `contains` has it; but of what was written here lately not even the record is looked
    /// at. For those who look for many at a time.
    pub fn has(&self, kind: GlyphKind, id: &GlyphId) -> Result<bool, StoreError> {
        let lane = self.lane(kind);
        let is_placed = || lane.place(id).is_some_and(|place| self.shared.pack(place.pack).is_some());
        if lane.quarantined(id).is_none() && is_placed() { Ok(true) } else { self.contains(kind, id) }
    }

    /// Makes every glyph durable that was written before the call. Cheap when nothing new is there.
    ///
    /// `Full`: the disk had no room for bytes that were accepted before; they stay in memory and a later call tries
    /// again. Any other failure is final: the store takes no more writes (`ReadOnly`) until it is opened anew.
    pub fn sync(&self) -> Result<(), StoreError> {
        // Metadata is made durable even where data cannot be: without it nothing could be deleted.
        let data = self.sync_kind(GlyphKind::Data);
        let nodes = self.sync_kind(GlyphKind::Node);
        data.and(nodes)
    }

    /// `sync` for the glyphs of one kind.
    pub fn sync_kind(&self, kind: GlyphKind) -> Result<(), StoreError> {
        self.lane(kind).sync(&self.shared)
    }

    /// False once a write or a sync has failed for good.
    pub fn is_writable(&self) -> bool {
        self.shared.check_writable().is_ok()
    }

    /// Hands the places of durable glyphs to the index, which frees the memory they take here. See `Usage::unindexed`.
    pub fn flush_index(&self) {
        let mut position = self.index_position.lock();
        let (pack, offset) = self.data.synced();
        let now = Position { store_id: self.shared.store_id, pack, offset };
        let places = self.data.synced_places();
        if self.needs_index_rebuild() || (places.is_empty() && *position == Some(now)) {
            return;
        }
        for batch in places.chunks(INDEX_BATCH).map(Some).chain([None]) {
            // Only the last batch may claim the new position: the places are in no particular order.
            let changes: Vec<_> = batch.unwrap_or_default().iter().map(|(id, place)| (*id, Some(*place))).collect();
            let reflected = if batch.is_none() { now } else { position.unwrap_or(self.beginning()) };
            if let Err(error) = self.index.apply(&changes, reflected) {
                self.distrust_index(&error.to_string());
                return;
            }
        }
        *position = Some(now);
        self.data.forget_places(&places);
    }

    /// Whether the index was caught with a wrong answer or a failure. Reads stay right but are slow until a rebuild.
    pub fn needs_index_rebuild(&self) -> bool {
        self.index_damaged.load(Ordering::Acquire)
    }

    /// Builds the index from the packs, which can take a minute for every few million glyphs.
    pub fn rebuild_index(&self, progress: &dyn Fn(Progress)) -> Result<(), StoreError> {
        self.data.sync(&self.shared)?;
        let mut position = self.index_position.lock();
        *position = None;
        // Until it knows everything again, readers ask the packs for what it does not know.
        self.index_damaged.store(true, Ordering::Release);
        self.index_builds.fetch_add(1, Ordering::AcqRel);
        if let Err(error) = self.index.clear() {
            tracing::warn!(%error, "the glyph index cannot be cleared; reads are slow until it is rebuilt");
            return Ok(());
        }
        if self.catch_up_index(&mut position, progress)? {
            self.index_builds.fetch_add(1, Ordering::AcqRel);
            self.index_damaged.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Free space on the disk that data must leave.
    pub fn reserve_bytes(&self) -> u64 {
        self.shared.room.reserve_bytes()
    }

    pub fn usage(&self) -> Usage {
        let mut usage = Usage {
            quarantined: (self.data.quarantine_len() + self.nodes.quarantine_len()) as u64,
            unindexed: self.data.places() as u64,
            ..Usage::default()
        };
        for pack in self.shared.packs.read().values() {
            let totals = pack.totals();
            usage.packs += 1;
            let (glyphs, plain_bytes, stored_bytes) = match pack.kind {
                GlyphKind::Data => (&mut usage.data_glyphs, &mut usage.data_plain_bytes, &mut usage.data_stored_bytes),
                GlyphKind::Node => (&mut usage.node_glyphs, &mut usage.node_plain_bytes, &mut usage.node_stored_bytes),
            };
            *glyphs += totals.records;
            *plain_bytes += totals.plain_bytes;
            *stored_bytes += u64::from(totals.end);
        }
        usage
    }

    /// How many bytes the glyph takes, as far as it is known to be here. Its record is not looked at.
    pub fn stored_bytes(&self, kind: GlyphKind, id: &GlyphId) -> Option<u32> {
        self.locate(kind, id).map(|(location, _)| record::padded(location.stored_bytes))
    }

    /// Whether some pack lists this data glyph, whatever the index says.
    pub fn is_in_packs(&self, id: &GlyphId) -> bool {
        let packs = self.shared.packs_of(GlyphKind::Data);
        packs.iter().any(|pack| pack.find(id).is_ok_and(|found| !found.is_empty()))
    }

    pub(super) fn lane(&self, kind: GlyphKind) -> &Lane {
        match kind {
            GlyphKind::Data => &self.data,
            GlyphKind::Node => &self.nodes,
        }
    }

    fn beginning(&self) -> Position {
        Position { store_id: self.shared.store_id, pack: 0, offset: 0 }
    }

    /// Gives the index all durable records behind `position`, which grows with it. False if it did not take them.
    pub(super) fn catch_up_index(
        &self,
        position: &mut Option<Position>,
        progress: &dyn Fn(Progress),
    ) -> Result<bool, StoreError> {
        let packs = self.shared.packs_of(GlyphKind::Data);
        let synced = self.data.synced();
        for (done, pack) in packs.iter().enumerate() {
            let reflected = position.map_or((0, 0), |position| (position.pack, position.offset));
            if (pack.number, pack.totals().end) <= reflected {
                continue;
            }
            progress(Progress { stage: Stage::BuildingIndex, done: done as u64, total: packs.len() as u64 });
            let unknown = |entry: &Entry| {
                let at = (pack.number, entry.offset);
                reflected <= at && at < synced
            };
            let entries: Vec<_> = pack.entries()?.into_iter().filter(unknown).collect();
            for batch in entries.chunks(INDEX_BATCH) {
                let changes: Vec<_> = batch.iter().map(|entry| (entry.id, Some(entry.location(pack.number)))).collect();
                let last = batch.last().expect("chunks are not empty");
                let offset = last.offset + record::padded(last.stored_bytes);
                let now = Position { pack: pack.number, offset, ..self.beginning() };
                if let Err(error) = self.index.apply(&changes, now) {
                    tracing::warn!(%error, "the glyph index takes no entries");
                    self.index_damaged.store(true, Ordering::Release);
                    return Ok(false);
                }
                *position = Some(now);
            }
        }
        Ok(true)
    }

    pub(super) fn distrust_index(&self, why: &str) {
        if !self.index_damaged.swap(true, Ordering::AcqRel) {
            tracing::warn!(why, "the glyph index is damaged and must be rebuilt from the packs");
        }
    }

    /// What the index does not know is not stored, if this is the same before and after it was asked, and is `Some`:
    /// then no rebuild was under way in between. Nodes need no index.
    fn index_trust(&self, kind: GlyphKind) -> Option<u64> {
        match kind {
            GlyphKind::Node => Some(0),
            GlyphKind::Data => (!self.needs_index_rebuild()).then(|| self.index_builds.load(Ordering::Acquire)),
        }
    }

    /// Where memory or the index says that a glyph is. The record there must still be checked.
    pub(super) fn locate(&self, kind: GlyphKind, id: &GlyphId) -> Option<(Location, Arc<Pack>)> {
        for _ in 0..LOOKUPS_MAX {
            let location = match self.lane(kind).place(id) {
                Some(location) => Some(location),
                None if kind == GlyphKind::Node => None,
                None => self.index.get(id).unwrap_or_else(|error| {
                    self.distrust_index(&error.to_string());
                    None
                }),
            }?;
            // An entry for a pack that is gone is one whose removal the index has lost, or we raced with a move.
            if let Some(pack) = self.shared.pack(location.pack) {
                return Some((location, pack));
            }
        }
        None
    }

    /// The first `len` bytes of a record, from memory or the disk, with the header checked against the id.
    fn record(&self, pack: &Pack, location: Location, id: &GlyphId, len: usize) -> Result<(Header, Bytes), Unreadable> {
        let mut bytes = self.lane(pack.kind).in_memory(location, len).unwrap_or_default();
        if bytes.is_empty() {
            if location.stored_bytes as usize > GLYPH_BYTES_MAX {
                return Err(Unreadable::Bad);
            }
            let is_whole = len > HEADER_BYTES + GlyphId::LEN;
            bytes = match is_whole.then(|| self.streamed(pack, location, len)).flatten() {
                Some(bytes) => bytes,
                None => read_exact(pack, location, len)?,
            };
        }
        let header = Header::decode(&bytes, location.pack, location.offset_bytes).ok_or(Unreadable::Bad)?;
        let right = header.id == *id && header.kind == pack.kind && header.stored_bytes == location.stored_bytes;
        if right { Ok((header, bytes)) } else { Err(Unreadable::Bad) }
    }

    pub(super) fn header(&self, pack: &Pack, location: Location, id: &GlyphId) -> Result<Header, Unreadable> {
        self.record(pack, location, id, HEADER_BYTES).map(|(header, _)| header)
    }

    /// The header and the stored bytes of a record, as they are.
    pub(super) fn whole(&self, pack: &Pack, location: Location, id: &GlyphId) -> Result<(Header, Bytes), Unreadable> {
        let len = HEADER_BYTES + location.stored_bytes as usize;
        let (header, bytes) = self.record(pack, location, id, len)?;
        Ok((header, bytes.slice(HEADER_BYTES..)))
    }

    /// The header and the stored bytes of a record, intact.
    pub(super) fn stored(&self, pack: &Pack, location: Location, id: &GlyphId) -> Result<(Header, Bytes), Unreadable> {
        let (header, bytes) = self.whole(pack, location, id)?;
        if header.stored_is_intact(&bytes) { Ok((header, bytes)) } else { Err(Unreadable::Bad) }
    }

    /// The plain bytes of a record, verified.
    fn fetch(&self, pack: &Pack, location: Location, id: &GlyphId, deltas_max: usize) -> Result<Bytes, Unreadable> {
        let (header, stored) = self.whole(pack, location, id)?;
        if header.codec != Codec::Delta {
            return header.plain(stored).ok_or(Unreadable::Bad);
        }
        let deltas_max = deltas_max.checked_sub(1).ok_or(Unreadable::Bad)?;
        let delta = Delta::decode(stored).ok_or(Unreadable::Bad)?;
        let base = match self.recent_nodes.get(&delta.base) {
            Some(base) => base,
            None => self.read_within(pack.kind, &delta.base, deltas_max).map_err(Unreadable::Base)?,
        };
        header.plain_after(&delta, &base).ok_or(Unreadable::Bad)
    }

    /// By which glyph another one is told, if it is.
    pub(super) fn base_of(&self, pack: &Pack, location: Location, id: &GlyphId) -> Result<Option<GlyphId>, Unreadable> {
        let len = HEADER_BYTES + GlyphId::LEN.min(location.stored_bytes as usize);
        let (header, bytes) = self.record(pack, location, id, len)?;
        if header.codec != Codec::Delta {
            return Ok(None);
        }
        let delta = Delta::decode(bytes.slice(HEADER_BYTES..)).ok_or(Unreadable::Bad)?;
        Ok(Some(delta.base))
    }

    /// Asks the packs themselves, newest first, after memory or the index gave a place that did not hold (`tried`) or
    /// cannot be asked. This is slow, and finds every copy there is.
    fn read_elsewhere(
        &self,
        kind: GlyphKind,
        id: &GlyphId,
        tried: Option<(Location, Unreadable)>,
        deltas_max: usize,
    ) -> Result<Bytes, StoreError> {
        let (mut disk_error, mut base_error) = (None, None);
        let tried = tried.map(|(location, failure)| {
            match failure {
                Unreadable::Bad => {}
                Unreadable::Disk(error) => disk_error = Some(error),
                Unreadable::Base(error) => base_error = Some(error),
            }
            location
        });
        let mut damaged = None;
        for pack in self.shared.packs_of(kind).iter().rev() {
            let locations = pack.find(id).unwrap_or_else(|error| {
                disk_error.get_or_insert(error);
                Vec::new()
            });
            for location in locations.into_iter().rev() {
                if Some(location) == tried {
                    damaged.get_or_insert(location);
                    continue;
                }
                match self.fetch(pack, location, id, deltas_max) {
                    Ok(plain) => {
                        if tried.is_some() && damaged.is_none() && disk_error.is_none() && kind == GlyphKind::Data {
                            self.distrust_index("it names a place where the glyph is not");
                        }
                        self.correct_place(kind, *id, tried, location);
                        return Ok(plain);
                    }
                    Err(Unreadable::Bad) => damaged = damaged.or(Some(location)),
                    Err(Unreadable::Disk(error)) => disk_error = disk_error.or(Some(error)),
                    Err(Unreadable::Base(error)) => base_error = base_error.or(Some(error)),
                }
            }
        }
        // A disk that fails to answer may answer later: that is no proof of damage.
        if let Some(source) = disk_error {
            return Err(StoreError::Disk { doing: "reading a glyph", source });
        }
        // Nothing is wrong with the record itself: storing the base again heals this one, too.
        if let Some(error) = base_error {
            return Err(error);
        }
        if let Some(location) = damaged {
            self.lane(kind).quarantine(*id, location);
            tracing::error!(glyph = %id, pack = location.pack, offset = location.offset_bytes, "a glyph is damaged");
            return Err(corrupt(*id, location));
        }
        if tried.is_some() && kind == GlyphKind::Data {
            self.distrust_index("it names a place where no such glyph is");
        }
        Err(StoreError::Missing(*id))
    }

    fn correct_place(&self, kind: GlyphKind, id: GlyphId, wrong: Option<Location>, right: Location) {
        // Recursive, as a put that looks for its glyph holds it already. Without it, a collection might let go of the
        // pack between the check and the correction, and the place would hide the right one in the index for ever.
        let _gate = self.gate.read_recursive();
        if self.shared.pack(right.pack).is_some() {
            self.lane(kind).correct_place(id, wrong, right);
        }
    }
}

fn read_exact(pack: &Pack, location: Location, len: usize) -> Result<Bytes, Unreadable> {
    let file = pack.file().ok_or(Unreadable::Bad)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, location.offset_bytes.into()).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Unreadable::Bad,
        _ => Unreadable::Disk(error),
    })?;
    Ok(bytes.into())
}

fn corrupt(id: GlyphId, at: Location) -> StoreError {
    StoreError::Corrupt { id, pack: at.pack, offset_bytes: at.offset_bytes.into() }
}
