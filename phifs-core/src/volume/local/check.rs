//! fsck and scrub: everything is read, held against its checksums and against the rest, and what is lost is told by
//! path. Derived rows follow from the others and can be made anew; anything else that is lost here is lost, unless
//! somebody has a copy.

use std::collections::HashSet;

use crate::id::GlyphId;
use crate::meta::TableId;
use crate::namespace::derive;
use crate::namespace::tables::{DERIVED, Table};
use crate::store::{Damage, ScrubCursor};
use crate::volume::{Result, VolumeError};

use super::LocalVolume;
use super::branches::BranchError;
use super::lost::{Gaps, LostFile, LostRows, Seen};

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
    /// A branch cannot be opened, so nothing is known about what is in it.
    Branch { name: String, why: String },
}

/// How much is looked at.
#[derive(Clone, Copy)]
enum Depth {
    /// Whether all can be read.
    Bytes,
    /// Whether it agrees as well.
    Everything { repair: bool },
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
    /// Checks all metadata and all bytes, of branches as well; `repair` derives anew what can be derived. `progress` hears
    /// of bytes read.
    pub fn fsck(&self, repair: bool, progress: &dyn Fn(u64)) -> Result<CheckReport> {
        self.check(Depth::Everything { repair }, progress)
    }

    /// Reads everything that is stored and compares it with its checksums.
    pub fn scrub(&self, progress: &dyn Fn(u64)) -> Result<CheckReport> {
        self.check(Depth::Bytes, progress)
    }

    fn check(&self, depth: Depth, progress: &dyn Fn(u64)) -> Result<CheckReport> {
        assert!(self.branch.is_none(), "the main line checks all");
        let _housekeeping = self.housekeeping.lock();
        let mut report = CheckReport::default();
        let damage = self.read_packs(&mut report, progress)?;
        let (mut seen, bytes) = (Seen::default(), report.bytes);
        let progress = || progress(bytes);
        let mut blamed = self.check_line(depth, &mut report, &mut seen, &progress)?;
        for (name, branch) in self.branches()? {
            let slot = self.branches.slot(branch.number);
            let open = slot.lock();
            if self.state.read().branch(&name)?.as_ref() != Some(&branch) {
                // It has been deleted.
                continue;
            }
            let checked = self.with_branch(&name, &branch, &open, |line| {
                Ok(line.check_line(depth, &mut report, &mut seen, &progress)?)
            });
            match checked {
                Ok(glyphs) => blamed.extend(glyphs),
                Err(BranchError::Open { name, source }) => {
                    report.problems.push(Problem::Branch { name, why: source.to_string() });
                }
                Err(error) => return Err(error.into()),
            }
        }
        let is_blamed = |damage: &Damage| damage.id.is_some_and(|id| blamed.contains(&id));
        report.unused.extend(damage.into_iter().filter(|damage| !is_blamed(damage)));
        Ok(report)
    }

    /// Adds what is wrong with one line of changes, and returns the glyphs that are to blame.
    fn check_line(
        &self,
        depth: Depth,
        report: &mut CheckReport,
        seen: &mut Seen,
        progress: &dyn Fn(),
    ) -> Result<HashSet<GlyphId>> {
        let broken = self.survey_tables();
        let derived = match depth {
            Depth::Bytes => {
                let derived = broken.iter().filter(|gaps| DERIVED.contains(&gaps.table));
                derived.map(|gaps| self.unreadable(gaps, false)).collect()
            }
            Depth::Everything { repair } => self.check_derived(&broken, repair)?,
        };
        let is_mended = derived.iter().any(|problem| matches!(problem, Problem::Derived { repaired: true, .. }));
        let broken = if is_mended { self.survey_tables() } else { broken };
        // Reading every file misses also what no pack lists.
        let lost = self.find_lost(&broken, seen, progress)?;
        report.problems.extend(lost.files.into_iter().map(Problem::Bytes));
        report.problems.extend(lost.rows.into_iter().map(Problem::Rows));
        let is_unindexed = lost.missing.iter().take(MISSING_SAMPLE).any(|id: &GlyphId| self.store.is_in_packs(id));
        if is_unindexed && !report.problems.contains(&Problem::Index) {
            report.problems.push(Problem::Index);
        }
        report.problems.extend(derived);
        if let Depth::Everything { .. } = depth {
            let oplog = self.oplog.check().map_err(|error| VolumeError::Internal(error.to_string()))?;
            if !oplog.is_intact() {
                report.problems.push(Problem::Oplog { places: oplog.damage.len().max(1) as u64 });
            }
        }
        Ok(lost.glyphs)
    }

    /// Builds the index of glyph locations anew from the packs.
    pub fn rebuild_index(&self, progress: &dyn Fn(crate::store::Progress)) -> Result<()> {
        Ok(self.store.rebuild_index(progress)?)
    }

    /// Reads all packs. Returns what is damaged in them.
    fn read_packs(&self, report: &mut CheckReport, progress: &dyn Fn(u64)) -> Result<Vec<Damage>> {
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
        Ok(damage)
    }

    fn check_derived(&self, broken: &[Gaps], repair: bool) -> Result<Vec<Problem>> {
        let (lost, others): (Vec<&Gaps>, _) = broken.iter().partition(|gaps| DERIVED.contains(&gaps.table));
        if others.iter().any(|gaps| gaps.table != Table::Local) {
            // They do not tell any more what should follow from them.
            return Ok(lost.into_iter().map(|gaps| self.unreadable(gaps, false)).collect());
        }
        let mut problems: Vec<Problem> = lost.iter().map(|gaps| self.unreadable(gaps, repair)).collect();
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
                    let what = |row| self.said_of(format!("a derived row does not follow from the others: {row}"));
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

    fn unreadable(&self, gaps: &Gaps, repaired: bool) -> Problem {
        let why = gaps.gaps.first().map(|gap| gap.error.to_string()).unwrap_or_default();
        let what = format!("a part of the table of {} cannot be read: {why}", gaps.table);
        Problem::Derived { what: self.said_of(what), repaired }
    }

    /// What is wrong, with the name of the branch in which it is.
    pub(super) fn said_of(&self, what: String) -> String {
        match &self.branch {
            Some(name) => format!("branch {name}: {what}"),
            None => what,
        }
    }
}
