//! Glyphs of a version that is still to come: while a long file is published, others hear which glyphs it will have, and fetch
//! them meanwhile.
//!
//! It is only a hint. Nobody counts on the version to come, and who has not heard of the glyphs fetches them with it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::id::GlyphId;
use crate::store::{GlyphKind, GlyphSink, StoreError, Stream};

use super::LocalVolume;

/// So many are told together: 8 MiB, as a rule.
const LOT: usize = 128;
/// Who has not heard of the last lots hears no more of the ones before.
const LOTS_MAX: usize = 32;
/// Shorter files are told at once.
const LONG_BYTES: u64 = 8 << 20;

/// What is coming, for those who tell.
#[derive(Default)]
pub(super) struct Coming(Mutex<Lots>);

#[derive(Default)]
struct Lots {
    so_far: u64,
    latest: VecDeque<Arc<[GlyphId]>>,
}

/// The store as the publication of a file sees it.
pub(super) struct Telling<'a> {
    volume: &'a LocalVolume,
    /// Stored and not told; nothing if nobody is to be told.
    lot: Option<Mutex<Vec<GlyphId>>>,
    /// What is fetched at once need not be read from the disk for that.
    _stream: Option<Stream>,
}

impl LocalVolume {
    /// Where the glyphs of a version of this length go.
    pub(super) fn telling(&self, len_bytes: u64) -> Telling<'_> {
        let is_told = len_bytes >= LONG_BYTES && self.followers.load(Ordering::Relaxed) > 0;
        let lot = is_told.then(Mutex::default);
        Telling { volume: self, lot, _stream: is_told.then(|| self.store.stream()) }
    }

    /// How many lots were told so far.
    pub fn lots_so_far(&self) -> u64 {
        self.coming.0.lock().so_far
    }

    /// The next lot for somebody who has heard so many; that number goes up.
    pub fn next_lot(&self, heard: &mut u64) -> Option<Arc<[GlyphId]>> {
        let lots = self.coming.0.lock();
        let first = lots.so_far - lots.latest.len() as u64;
        let next = (*heard).max(first);
        let lot = lots.latest.get((next - first) as usize).cloned()?;
        *heard = next + 1;
        Some(lot)
    }

    /// The glyphs of a lot that are to be here and are not. The caller holds what is here: see `hold_glyphs`.
    pub fn missing_of_lot(&self, lot: Vec<GlyphId>) -> Vec<GlyphId> {
        lot.into_iter().filter(|id| self.is_placed_here(id) && !self.store.pin_known(id)).collect()
    }

    fn tell_lot(&self, lot: Vec<GlyphId>) {
        {
            let mut lots = self.coming.0.lock();
            lots.so_far += 1;
            lots.latest.push_back(lot.into());
            if lots.latest.len() > LOTS_MAX {
                lots.latest.pop_front();
            }
        }
        self.state.read().tell_change();
    }
}

impl GlyphSink for Telling<'_> {
    fn write(&self, kind: GlyphKind, plain: &[u8]) -> Result<GlyphId, StoreError> {
        let id = self.volume.store.write(kind, plain)?;
        if let Some(lot) = &self.lot {
            let mut lot = lot.lock();
            lot.push(id);
            if lot.len() >= LOT {
                self.volume.tell_lot(std::mem::take(&mut *lot));
            }
        }
        Ok(id)
    }
}
