//! Garbage collection: mark what is live, then remove dead packs and rewrite those with little left in them.
//!
//! The caller walks its roots and calls `Mark::keep`. What is put while a mark or a `Hold` lives is kept as well, so
//! writers need not stop. A pack goes in this order, and a crash between any two steps leaves only copies behind that
//! a later collection finds: live records are copied, the copies are synced, the places are changed in memory, the
//! index is told, the file is removed. Whoever still reads the file holds it open.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use super::glyphs::{GlyphStore, Unreadable};
use super::pack::{Entry, Pack, START};
use super::record::{self, Record, padded};
use super::room::Purpose;
use super::{Damage, GlyphKind, GlyphSource, Location, StoreError};
use crate::id::GlyphId;

/// An index keeps the room of entries that were removed. After a collection that took more data glyphs than this, and
/// more than it left, a new index takes less room and is quickly made.
const INDEX_RENEW_MIN: u64 = 4096;

/// What keeps a glyph: 128 bits of its id, the lowest of them replaced by its kind. Half the memory of the ids, and no
/// one can afford to make two that collide.
type Key = u128;

fn key(kind: GlyphKind, id: &GlyphId) -> Key {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&id.0[..16]);
    u128::from_le_bytes(bytes) & !1 | u128::from(kind == GlyphKind::Node)
}

/// Glyphs that were put since the oldest hold began.
#[derive(Default)]
pub(super) struct Pins {
    log: Arc<Mutex<PinLog>>,
}

#[derive(Default)]
struct PinLog {
    keys: VecDeque<Key>,
    /// The number of the first key that is still there, counted from the beginning of time.
    first: u64,
    /// Each hold, and the first key that it needs.
    holds: BTreeMap<u64, u64>,
    next_hold: u64,
}

/// While it lives, every glyph that is put, new or not, outlives collections, and also any collection that began in
/// the meantime. Take one before the first put of an operation, drop it when the operation is reachable from a root.
pub struct Hold {
    log: Arc<Mutex<PinLog>>,
    number: u64,
}

impl Pins {
    pub fn pin(&self, kind: GlyphKind, id: &GlyphId) {
        let mut log = self.log.lock();
        if !log.holds.is_empty() {
            log.keys.push_back(key(kind, id));
        }
    }

    /// `since_oldest`: also needs what older holds need.
    fn hold(&self, since_oldest: bool) -> Hold {
        let mut log = self.log.lock();
        let number = log.next_hold;
        log.next_hold += 1;
        let now = log.first + log.keys.len() as u64;
        let oldest = log.holds.values().copied().min().filter(|_| since_oldest);
        log.holds.insert(number, oldest.unwrap_or(now));
        Hold { log: self.log.clone(), number }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut log = self.log.lock();
        log.holds.remove(&self.number);
        let end = log.first + log.keys.len() as u64;
        let needed = log.holds.values().copied().min().unwrap_or(end);
        let gone = needed.saturating_sub(log.first);
        log.keys.drain(..gone as usize);
        log.first += gone;
    }
}

/// A collection under way. Dropping it gives the collection up.
pub struct Mark {
    hold: Hold,
    kinds: Vec<GlyphKind>,
    live: HashSet<Key>,
    /// Up to which number `live` has taken in the pins.
    pins_seen: u64,
}

impl Mark {
    /// Keeps a glyph. False if it was kept before, so that a walk need not go below it again.
    pub fn keep(&mut self, kind: GlyphKind, id: &GlyphId) -> bool {
        self.live.insert(key(kind, id))
    }

    fn take_in_pins(&mut self) {
        let log = self.hold.log.lock();
        let skip = self.pins_seen.saturating_sub(log.first);
        self.live.extend(log.keys.iter().skip(skip as usize));
        self.pins_seen = log.first + log.keys.len() as u64;
    }

    pub fn is_kept(&self, kind: GlyphKind, id: &GlyphId) -> bool {
        self.live.contains(&key(kind, id))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Packs that had nothing live.
    pub packs_removed: u64,
    /// Packs whose live records were copied.
    pub packs_rewritten: u64,
    pub glyphs_copied: u64,
    pub bytes_copied: u64,
    /// Of the packs that went.
    pub bytes_removed: u64,
    /// Live glyphs without a good copy; their packs stay until they are stored again.
    pub damaged: Vec<Damage>,
}

impl GlyphStore {
    /// See `Hold`.
    pub fn hold(&self) -> Hold {
        self.pins.hold(false)
    }

    /// Begins a collection of glyphs of these kinds.
    pub fn begin_mark(&self, kinds: &[GlyphKind]) -> Mark {
        // A put that found its glyph before the pins were kept has returned by now.
        let _gate = self.gate.write();
        Mark { hold: self.pins.hold(true), kinds: kinds.to_vec(), live: HashSet::new(), pins_seen: 0 }
    }

    /// Removes packs in which nothing is live, and rewrites those in which less than `min_live_ratio` of the bytes is
    /// (0: none, 1: all that have any garbage).
    ///
    /// After an error nothing live is lost, and what was done so far stays done.
    pub fn sweep(&self, mut mark: Mark, min_live_ratio: f64) -> Result<SweepReport, StoreError> {
        self.shared.check_writable()?;
        let _one_at_a_time = self.collecting.lock();
        let mut report = SweepReport::default();
        let before = self.usage().data_glyphs;
        for kind in mark.kinds.clone() {
            mark.take_in_pins();
            if kind == GlyphKind::Node {
                self.free_from_dead(&mut mark, &mut report)?;
            }
            let mut poor = Vec::new();
            for pack in self.shared.packs_of(kind) {
                let all = pack.totals().end - START;
                let live =
                    pack.entries()?.iter().filter(|entry| mark.is_kept(kind, &entry.id)).map(footprint).sum::<u32>();
                if all > 0 && (live == 0 || f64::from(live) < f64::from(all) * min_live_ratio) {
                    poor.push((live, pack));
                }
            }
            // The emptiest first: they give the room for the copies of the others.
            poor.sort_by_key(|(live, pack)| (*live, pack.number));
            for (_, pack) in poor {
                self.collect(&pack, &mut mark, &mut report)?;
            }
        }
        self.flush_index();
        let left = self.usage().data_glyphs;
        let gone = before.saturating_sub(left);
        if gone > left.max(INDEX_RENEW_MIN) {
            self.rebuild_index(&|_| {})?;
        }
        Ok(report)
    }

    /// Writes the live nodes anew that are told by dead ones. Where there is no room for that, the dead ones stay.
    ///
    /// What is put from here on is told by what is put as well, so it lives.
    fn free_from_dead(&self, mark: &mut Mark, report: &mut SweepReport) -> Result<(), StoreError> {
        let kind = GlyphKind::Node;
        let mut bases = Vec::new();
        let mut written = Ok(());
        for pack in self.shared.packs_of(kind) {
            let mut entries = pack.entries()?;
            entries.retain(|entry| mark.is_kept(kind, &entry.id));
            entries.sort_unstable_by_key(|entry| entry.offset);
            for entry in entries {
                let here = entry.location(pack.number);
                if self.locate(kind, &entry.id).is_none_or(|(location, _)| location != here) {
                    continue;
                }
                // What is not good is not copied either, later.
                let Ok(Some(base)) = self.base_of(&pack, here, &entry.id) else { continue };
                if mark.is_kept(kind, &base) {
                    continue;
                }
                match self.read(kind, &entry.id) {
                    Ok(plain) if written.is_ok() => {
                        let record = record::encode(kind, entry.id, &plain, 0);
                        written = self.nodes.append(&self.shared, &record, Purpose::Upkeep, Some(here));
                        report.glyphs_copied += u64::from(written.is_ok());
                        bases.push(base);
                    }
                    Ok(_) => bases.push(base),
                    Err(StoreError::Disk { doing, source }) => return Err(StoreError::Disk { doing, source }),
                    Err(_) => report.damaged.push(Damage {
                        pack: pack.number,
                        offset_bytes: entry.offset,
                        len_bytes: footprint(&entry),
                        id: Some(entry.id),
                    }),
                }
            }
        }
        if !bases.is_empty() && written.is_ok() {
            written = self.nodes.sync(&self.shared);
        }
        match written {
            Err(StoreError::Full) => {
                for base in bases {
                    self.keep_chain(mark, base);
                }
                Ok(())
            }
            written => written,
        }
    }

    fn keep_chain(&self, mark: &mut Mark, mut id: GlyphId) {
        while mark.keep(GlyphKind::Node, &id)
            && let Some((location, pack)) = self.locate(GlyphKind::Node, &id)
            && let Ok(Some(base)) = self.base_of(&pack, location, &id)
        {
            id = base;
        }
    }

    fn collect(&self, pack: &Arc<Pack>, mark: &mut Mark, report: &mut SweepReport) -> Result<(), StoreError> {
        let kind = pack.kind;
        let lane = self.lane(kind);
        // A sealed pack waits for nothing, so it can go even when the disk is too full to write what others wait for.
        if !pack.is_sealed() {
            lane.seal(&self.shared, pack.number)?;
        }
        let entries = pack.entries()?;
        let mut safe = HashSet::new();
        let gate = loop {
            mark.take_in_pins();
            for entry in entries.iter().filter(|entry| mark.is_kept(kind, &entry.id)) {
                if !safe.contains(&entry.id) && !self.rescue(pack, entry, report)? {
                    return Ok(());
                }
                safe.insert(entry.id);
            }
            if !safe.is_empty() {
                lane.sync(&self.shared)?;
            }
            // From here no put can find a glyph in this pack and rely on it. Those that did in the meantime count.
            let gate = self.gate.write();
            mark.take_in_pins();
            if entries.iter().all(|entry| safe.contains(&entry.id) || !mark.is_kept(kind, &entry.id)) {
                break gate;
            }
        };
        let places: Vec<(GlyphId, Location)> =
            entries.iter().map(|entry| (entry.id, entry.location(pack.number))).collect();
        lane.forget_places(&places);
        self.shared.packs.write().remove(&pack.number);
        drop(gate);

        if kind == GlyphKind::Data {
            self.flush_index();
            self.forget_in_index(&places);
        }
        lane.remove_file(&self.shared, pack.number)?;
        report.bytes_removed += u64::from(pack.totals().end);
        if safe.is_empty() {
            report.packs_removed += 1;
        } else {
            report.packs_rewritten += 1;
        }
        Ok(())
    }

    /// Sees to it that a live glyph has a good copy outside this pack. False if there is none anywhere.
    fn rescue(&self, pack: &Pack, entry: &Entry, report: &mut SweepReport) -> Result<bool, StoreError> {
        let (kind, id, lane) = (pack.kind, &entry.id, self.lane(pack.kind));
        let here = entry.location(pack.number);
        // The second time only if the place in use was wrong: reading the glyph has found a better one then.
        for _ in 0..2 {
            let in_use = self.locate(kind, id);
            if in_use.as_ref().is_some_and(|(location, other)| {
                other.number != pack.number && self.stored(other, *location, id).is_ok()
            }) {
                return Ok(true);
            }
            let in_use = in_use.map(|(location, _)| location).filter(|location| location.pack == pack.number);
            for location in [in_use, Some(here)].into_iter().flatten() {
                match self.stored(pack, location, id) {
                    Ok((header, stored)) => {
                        let record = Record { header, stored: stored[..].into() };
                        lane.append(&self.shared, &record, Purpose::Upkeep, lane.place(id))?;
                        report.glyphs_copied += 1;
                        report.bytes_copied += u64::from(footprint(entry));
                        return Ok(true);
                    }
                    Err(Unreadable::Disk(source)) => {
                        return Err(StoreError::Disk { doing: "copying a glyph", source });
                    }
                    Err(_) => {}
                }
            }
            match self.read(kind, id) {
                Ok(_) => {}
                Err(StoreError::Disk { doing, source }) => return Err(StoreError::Disk { doing, source }),
                Err(_) => break,
            }
        }
        let (offset_bytes, len_bytes) = (entry.offset, footprint(entry));
        report.damaged.push(Damage { pack: pack.number, offset_bytes, len_bytes, id: Some(*id) });
        Ok(false)
    }

    /// Removes the entries that still name these places.
    fn forget_in_index(&self, places: &[(GlyphId, Location)]) {
        let position = self.index_position.lock();
        let Some(position) = position.filter(|_| !self.index_damaged.load(Ordering::Acquire)) else { return };
        let still_there =
            |(id, place): &&(GlyphId, Location)| matches!(self.index.get(id), Ok(Some(at)) if at == *place);
        let changes: Vec<_> = places.iter().filter(still_there).map(|(id, _)| (*id, None)).collect();
        if !changes.is_empty()
            && let Err(error) = self.index.apply(&changes, position)
        {
            self.distrust_index(&error.to_string());
        }
    }
}

fn footprint(entry: &Entry) -> u32 {
    padded(entry.stored_bytes)
}
