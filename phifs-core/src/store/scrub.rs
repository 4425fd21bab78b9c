//! Reads everything back, a budget at a time, to find damage before somebody needs the bytes.

use super::glyphs::{GlyphStore, Unreadable};
use super::record::padded;
use super::{Damage, StoreError};

/// How far a pass over the packs has come. The default is the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubCursor {
    pack: u32,
    offset: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Where to go on; the beginning again when this pass is over.
    pub cursor: ScrubCursor,
    pub finished: bool,
    pub glyphs: u64,
    pub bytes: u64,
    /// These glyphs are quarantined here, unless a good copy is elsewhere in the store. Storing one again heals it.
    pub damage: Vec<Damage>,
}

impl GlyphStore {
    /// Checks the checksums of the next records, until about `budget_bytes` were read (one record at least).
    pub fn scrub(&self, cursor: ScrubCursor, budget_bytes: u64) -> Result<ScrubProgress, StoreError> {
        let mut progress = ScrubProgress::default();
        let packs: Vec<_> = self.shared.packs.read().range(cursor.pack..).map(|(_, pack)| pack.clone()).collect();
        for pack in packs {
            let from = if pack.number == cursor.pack { cursor.offset } else { 0 };
            for entry in pack.entries()?.iter().filter(|entry| entry.offset >= from) {
                if progress.glyphs > 0 && progress.bytes >= budget_bytes {
                    progress.cursor = ScrubCursor { pack: pack.number, offset: entry.offset };
                    return Ok(progress);
                }
                progress.glyphs += 1;
                progress.bytes += u64::from(padded(entry.stored_bytes));
                let location = entry.location(pack.number);
                let Err(failure) = self.stored(&pack, location, &entry.id) else { continue };
                let lane = self.lane(pack.kind);
                let is_only_copy = self.locate(pack.kind, &entry.id).is_none_or(|(at, _)| at == location);
                // A sector that cannot be read today may be read tomorrow, so that is reported but not remembered.
                if is_only_copy && matches!(failure, Unreadable::Bad) {
                    lane.quarantine(entry.id, location);
                }
                progress.damage.push(Damage {
                    pack: pack.number,
                    offset_bytes: entry.offset,
                    len_bytes: padded(entry.stored_bytes),
                    id: Some(entry.id),
                });
            }
        }
        progress.finished = true;
        Ok(progress)
    }
}
