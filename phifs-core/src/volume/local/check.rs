//! fsck and scrub: everything is read, held against its checksums and against the rest, and what is lost is told by
//! path. Derived rows follow from the others and can be made anew; anything else that is lost here is lost, unless
//! somebody has a copy.

use crate::id::GlyphId;
use crate::meta::TableId;
use crate::namespace::derive;
use crate::namespace::tables::{DERIVED, Table};
use crate::store::{Damage, ScrubCursor};
use crate::volume::{Result, VolumeError};

use super::LocalVolume;
use super::lost::{Gaps, LostFile, LostRows};

const SCRUB_STEP_BYTES: u64 = 16 << 20;
/// Of so many missing glyphs it is looked whether the index has merely lost them.
const MISSING_SAMPLE: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Bytes of a file are lost.
    Bytes(LostFile),
    /// Rows that nothing else tells are lost.
    Rows(LostRows),
    /// Rows that follow from others are lost or wrong. `repair` makes them anew, unless some of the others are lost.
    Derived { what: String, repaired: bool },
    /// The index does not know of glyphs that are stored; `rebuild_index` finds them.
    Index,
    /// Places in the log of operations cannot be read. The volume does not depend on it.
    Oplog { places: u64 },
}

/// What a check has found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    pub glyphs: u64,
    pub bytes: u64,
    pub problems: Vec<Problem>,
    /// Damaged bytes in packs that nothing needs, or of which another copy is good. A power cut leaves some, too: of what
    /// was being written and never acknowledged.
    pub unused: Vec<Damage>,
}

impl LocalVolume {
    /// Checks all metadata and all bytes; `repair` derives anew what can be derived. `progress` hears of bytes read.
    pub fn fsck(&self, repair: bool, progress: &dyn Fn(u64)) -> Result<CheckReport> {
        let _housekeeping = self.housekeeping.lock();
        let broken = self.survey_tables();
        let derived = self.check_derived(&broken, repair)?;
        let is_mended = derived.iter().any(|problem| matches!(problem, Problem::Derived { repaired: true, .. }));
        let broken = if is_mended { self.survey_tables() } else { broken };
        let mut report = self.read_all(&broken, progress)?;
        report.problems.extend(derived);
        let oplog = self.oplog.check().map_err(|error| VolumeError::Internal(error.to_string()))?;
        if !oplog.is_intact() {
            report.problems.push(Problem::Oplog { places: oplog.damage.len().max(1) as u64 });
        }
        Ok(report)
    }

    /// Reads everything that is stored and compares it with its checksums.
    pub fn scrub(&self, progress: &dyn Fn(u64)) -> Result<CheckReport> {
        let _housekeeping = self.housekeeping.lock();
        let broken = self.survey_tables();
        let mut report = self.read_all(&broken, progress)?;
        let derived = broken.iter().filter(|gaps| DERIVED.contains(&gaps.table));
        report.problems.extend(derived.map(|gaps| unreadable(gaps, false)));
        Ok(report)
    }

    /// Builds the index of glyph locations anew from the packs.
    pub fn rebuild_index(&self, progress: &dyn Fn(crate::store::Progress)) -> Result<()> {
        Ok(self.store.rebuild_index(progress)?)
    }

    fn read_all(&self, broken: &[Gaps], progress: &dyn Fn(u64)) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        let mut damage = Vec::new();
        let mut cursor = ScrubCursor::default();
        loop {
            let step = self.store.scrub(cursor, SCRUB_STEP_BYTES)?;
            report.glyphs += step.glyphs;
            report.bytes += step.bytes;
            damage.extend(step.damage);
            cursor = step.cursor;
            progress(report.bytes);
            if step.finished {
                break;
            }
        }
        // What was damaged so badly when the store was opened that it is not in the packs' lists any more.
        damage.extend(&self.opened.store.damage);
        // Reading every file misses also what no pack lists.
        let bytes = report.bytes;
        let lost = self.find_lost(broken, &|| progress(bytes))?;
        report.problems.extend(lost.files.into_iter().map(Problem::Bytes));
        report.problems.extend(lost.rows.into_iter().map(Problem::Rows));
        if lost.missing.iter().take(MISSING_SAMPLE).any(|id: &GlyphId| self.store.is_in_packs(id)) {
            report.problems.push(Problem::Index);
        }
        let blamed = |damage: &Damage| damage.id.is_some_and(|id| lost.glyphs.contains(&id));
        report.unused.extend(damage.into_iter().filter(|damage| !blamed(damage)));
        Ok(report)
    }

    fn check_derived(&self, broken: &[Gaps], repair: bool) -> Result<Vec<Problem>> {
        let (lost, others): (Vec<&Gaps>, _) = broken.iter().partition(|gaps| DERIVED.contains(&gaps.table));
        if others.iter().any(|gaps| gaps.table != Table::Local) {
            // They do not tell any more what should follow from them.
            return Ok(lost.into_iter().map(|gaps| unreadable(gaps, false)).collect());
        }
        let mut problems: Vec<Problem> = lost.iter().map(|gaps| unreadable(gaps, repair)).collect();
        {
            let _checkpoint = self.checkpoint.lock();
            let mut state = self.state.write();
            if repair {
                lost.iter().for_each(|gaps| state.meta.clear(TableId(gaps.table as u8)));
            }
            if repair || lost.is_empty() {
                let differences = derive::differences(&derive::kept(&*state)?, &derive::recompute(&*state)?);
                if repair && !differences.is_empty() {
                    derive::rebuild(&mut *state)?;
                }
                if lost.is_empty() {
                    let what = |row| format!("a derived row does not follow from the others: {row}");
                    let wrong =
                        differences.into_iter().map(|row| Problem::Derived { what: what(row), repaired: repair });
                    problems.extend(wrong);
                }
            }
        }
        if repair && !problems.is_empty() {
            // The rebuilt rows are in no journal, so they must be in a checkpoint; in both copies of the superblock.
            self.make_checkpoint(false)?;
            self.make_checkpoint(false)?;
        }
        Ok(problems)
    }
}

fn unreadable(gaps: &Gaps, repaired: bool) -> Problem {
    let why = gaps.gaps.first().map(|gap| gap.error.to_string()).unwrap_or_default();
    Problem::Derived { what: format!("a part of the table of {} cannot be read: {why}", gaps.table), repaired }
}
