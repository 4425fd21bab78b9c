//! Opening a store: finds the packs, scans those that were not sealed, and brings the index up to date.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::blocks::Streamed;
use super::gc::Pins;
use super::glyphs::{GlyphStore, StoreOptions};
use super::index::{GlyphIndex, Position};
use super::lane::{Lane, Shared};
use super::pack::{Found, Pack, encode_header};
use super::record::DATA_LEVEL;
use super::room::Room;
use super::{Damage, GlyphKind, StoreError};
use crate::disk::{Disk, FileName};

/// How far a long step has come, in packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub stage: Stage,
    pub done: u64,
    pub total: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    OpeningPacks,
    BuildingIndex,
}

/// What opening a store found. After a power loss both lists may hold writes that were never synced; after a clean
/// stop, anything in them is the disk's fault.
#[derive(Clone, Debug, Default)]
pub struct OpenReport {
    pub packs: u64,
    /// Bad bytes with good records behind them. What was there cannot be read here any more.
    pub damage: Vec<Damage>,
    /// Bytes behind the last good record of a pack: a write that a crash interrupted.
    pub dropped_tails: Vec<DroppedTail>,
    pub index_rebuilt: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedTail {
    pub pack: u32,
    pub len_bytes: u64,
}

impl GlyphStore {
    /// Opens the store on this disk; a disk without packs is an empty store.
    ///
    /// Fails when the disk does, and for packs of another store or of a newer format. Damage is no failure: it is in
    /// the report, and everything else stays readable.
    pub fn open(
        disk: Arc<dyn Disk>,
        index: Arc<dyn GlyphIndex>,
        options: &StoreOptions,
        progress: &dyn Fn(Progress),
    ) -> Result<(Self, OpenReport), StoreError> {
        let mut report = OpenReport::default();
        let mut packs = BTreeMap::new();
        let mut open_packs = Vec::new();
        let names = disk.list().map_err(|source| StoreError::Disk { doing: "listing the packs", source })?;
        let numbers: Vec<u32> =
            names.iter().filter_map(|name| if let FileName::Pack(n) = name { Some(*n) } else { None }).collect();
        let position = index.position();
        let known = position.ok().flatten().filter(|known| known.store_id == options.store_id);
        for (done, number) in numbers.iter().enumerate() {
            progress(Progress { stage: Stage::OpeningPacks, done: done as u64, total: numbers.len() as u64 });
            let found = Pack::open(&*disk, *number, &options.store_id)?;
            report.damage.extend(&found.damage);
            let end = found.pack.totals().end;
            // The index learns only of what is durable, so a tail that it knows was not torn by a crash.
            let was_durable = known.is_some_and(|known| known.pack == *number && known.offset > end);
            if was_durable && !found.sealed {
                let len_bytes = u32::try_from(found.tail_bytes).unwrap_or(u32::MAX);
                report.damage.push(Damage { pack: *number, offset_bytes: end, len_bytes, id: None });
            } else if found.tail_bytes > 0 && !found.sealed {
                report.dropped_tails.push(DroppedTail { pack: *number, len_bytes: found.tail_bytes });
            }
            let clean = found.damage.is_empty() && found.header_intact && !was_durable;
            let sealed = found.sealed;
            let pack = mend(&*disk, found, &options.store_id);
            if !sealed {
                open_packs.push((pack.clone(), clean));
            }
            packs.insert(*number, pack);
        }
        report.packs = packs.len() as u64;
        if let Some(position) = known {
            forget_damaged(&*index, position, &report.damage, &packs);
        }
        // What an earlier process wrote but did not sync must be durable before a put counts it as stored.
        make_durable(&*disk, &packs)?;

        // Numbers are never used twice, or an index that lags behind would name the wrong pack.
        let newest = packs.keys().next_back().copied().unwrap_or(0).max(known.map_or(0, |position| position.pack));
        let lane = |kind, pack_bytes_max| -> Result<Lane, StoreError> {
            let newest_of_kind = packs.values().rfind(|pack| pack.kind == kind);
            let head = newest_of_kind.map_or((0, 0), |pack| (pack.number, pack.totals().end));
            let resumed = newest_of_kind.filter(|newest| !newest.is_sealed());
            let resumed =
                resumed.filter(|newest| open_packs.iter().any(|(pack, clean)| *clean && Arc::ptr_eq(pack, newest)));
            for (pack, _) in open_packs.iter().filter(|(pack, _)| pack.kind == kind) {
                if resumed.is_none_or(|resumed| !Arc::ptr_eq(resumed, pack))
                    && let Err(error) = pack.seal(&options.store_id)
                {
                    // It was scanned, so it can be used as it is.
                    tracing::warn!(pack = pack.number, %error, "a pack could not be sealed");
                }
            }
            let mut places = HashMap::new();
            if kind == GlyphKind::Node {
                for pack in packs.values().filter(|pack| pack.kind == kind) {
                    places.extend(pack.entries()?.iter().map(|entry| (entry.id, entry.location(pack.number))));
                }
            }
            Ok(Lane::new(kind, pack_bytes_max, resumed.cloned(), head, places))
        };
        let data = lane(GlyphKind::Data, options.data_pack_bytes_max)?;
        let nodes = lane(GlyphKind::Node, options.node_pack_bytes_max)?;
        make_durable(&*disk, &open_packs.iter().map(|(pack, _)| (pack.number, pack.clone())).collect())?;

        let room = Room::new(&*disk, options.reserve_bytes)
            .map_err(|source| StoreError::Disk { doing: "asking for free space", source })?;
        let store = Self {
            shared: Shared {
                disk,
                store_id: options.store_id,
                packs: RwLock::new(packs),
                next_pack: AtomicU32::new(newest + 1),
                read_only: AtomicBool::new(false),
                room,
                streamed: Streamed::default(),
            },
            data,
            nodes,
            index,
            index_position: Mutex::new(None),
            index_damaged: AtomicBool::new(false),
            index_builds: AtomicU64::new(0),
            pins: Pins::default(),
            gate: RwLock::new(()),
            collecting: Mutex::new(()),
            data_level: AtomicI32::new(DATA_LEVEL),
            recent_nodes: super::glyphs::recent_nodes(),
        };
        match known.filter(|known| store.index_may_be_right(*known)) {
            Some(known) => {
                let mut position = store.index_position.lock();
                *position = Some(known);
                store.catch_up_index(&mut position, progress)?;
            }
            None => {
                report.index_rebuilt = store.usage().data_glyphs > 0;
                store.rebuild_index(progress)?;
            }
        }
        Ok((store, report))
    }

    /// An index that knows more than the packs hold comes from somewhere else, or they lost something.
    fn index_may_be_right(&self, known: Position) -> bool {
        let end = self.shared.pack(known.pack).map(|pack| pack.totals().end);
        known.pack < self.shared.next_pack.load(Ordering::Relaxed) && end.is_none_or(|end| known.offset <= end)
    }
}

/// Takes records that an open pack has lost from the index, before the pack is sealed without them: a put that finds one
/// of them there would count its glyph as stored.
fn forget_damaged(index: &dyn GlyphIndex, position: Position, damage: &[Damage], packs: &BTreeMap<u32, Arc<Pack>>) {
    for (id, damage) in damage.iter().filter_map(|damage| Some((damage.id?, damage))) {
        let named = index.get(&id).ok().flatten();
        if named.is_some_and(|at| (at.pack, at.offset_bytes) == (damage.pack, damage.offset_bytes)) {
            let others = packs.values().filter(|pack| pack.kind == GlyphKind::Data);
            let other = others.flat_map(|pack| pack.find(&id).unwrap_or_default()).next_back();
            if let Err(error) = index.apply(&[(id, other)], position) {
                tracing::warn!(%error, "the glyph index cannot be corrected");
            }
        }
    }
}

/// Repairs what can be repaired in place, as far as the disk lets us: the header, and the end behind a torn tail.
fn mend(disk: &dyn Disk, found: Found, store_id: &[u8; 16]) -> Arc<Pack> {
    let pack = found.pack;
    let mended = || -> std::io::Result<()> {
        let file = pack.file_or_create(disk)?.0;
        if !found.header_intact {
            file.write_at(&encode_header(store_id, pack.number, pack.kind), 0)?;
        }
        if !found.sealed && found.tail_bytes > 0 {
            file.set_len(pack.totals().end.into())?;
        }
        Ok(())
    };
    if let Err(error) = mended() {
        tracing::warn!(pack = pack.number, %error, "a damaged pack could not be mended");
    }
    Arc::new(pack)
}

fn make_durable(disk: &dyn Disk, packs: &BTreeMap<u32, Arc<Pack>>) -> Result<(), StoreError> {
    let failed = |source| StoreError::Disk { doing: "syncing the packs", source };
    for pack in packs.values() {
        if let Some(file) = pack.file() {
            file.sync().map_err(failed)?;
        }
    }
    if packs.is_empty() { Ok(()) } else { disk.sync_names().map_err(failed) }
}
