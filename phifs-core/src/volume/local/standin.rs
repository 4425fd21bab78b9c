//! Older versions that stand in for what cannot be had. A machine that is no holder of a glyph hears of a version before
//! anybody but its author may have the bytes, and then the author may go away.
//!
//! What always holds:
//! - What stands in was the file until a newer version came, is all here, and may be read by the same people.
//! - It stays as long as somebody has the file open, as what a merge has replaced does.
//! - Nobody's changes begin with it: what is written is based on the shown version, or on nothing.
//! - A content that is all here is looked through once, not at every open.

use std::collections::HashSet;
use std::time::Duration;

use crate::content::Content;
use crate::content::manifest::{Cursor, Part, What, visit_glyphs};
use crate::content::reader::ContentReader;
use crate::id::{Dot, GlyphId, InodeId};
use crate::namespace::row::Version;
use crate::namespace::tables::Rows as _;
use crate::namespace::view::Stat;
use crate::store::{GlyphKind, GlyphSource as _, Hold, StoreError};
use crate::volume::{Result, VolumeError};

use super::LocalVolume;
use super::files::{Data, FileCell, Shown};
use super::history::KeptVersion;
use super::remote::{AHEAD_BYTES, PATIENCE, lacking};

/// Of so many contents it is remembered that they are all here.
const WHOLE_MAX: usize = 65_536;

/// Why a version is not shown.
pub struct Lack {
    glyph: GlyphId,
    why: String,
}

/// An older version, for somebody who is about to open the file.
pub(super) struct StandIn {
    /// Instead of this one.
    shown: Dot,
    kept: KeptVersion,
    lack: Lack,
    _hold: Hold,
}

impl Data {
    /// What is about to be changed must be what is shown.
    pub(super) fn check_is_latest(&self) -> Result<()> {
        match &self.stands_in {
            Some(lack) => Err(StoreError::Missing(lack.glyph).into()),
            None => Ok(()),
        }
    }
}

impl LocalVolume {
    /// Whether parts of a version may be elsewhere, for all that is known, and there may be an older one.
    pub(super) fn is_in_doubt(&self, version: &Version) -> bool {
        let has_glyphs = matches!(version.content, Content::Single { .. } | Content::Manifest { .. });
        // Only what replaced another version leaves one behind.
        let Some(layout) = self.layout().filter(|_| has_glyphs && !version.bases.is_empty()) else { return false };
        let may_be_elsewhere = self.is_awaited() || !layout.holds_all(&self.key.public(), self.settings.read().copies);
        may_be_elsewhere && !self.remote.whole.lock().contains(&version.content)
    }

    /// Looks for an older version of a file that is about to be read, if the shown one cannot be had. The bytes that are
    /// last in the file are asked for, as those that its author gave to others last; all, if they are not many.
    pub(super) fn stand_in(&self, id: InodeId) -> Result<Option<StandIn>> {
        let (shown, content, kept) = {
            let state = self.state.read();
            let Some(row) = state.inode(id)? else { return Ok(None) };
            let stat = Stat::in_tables(&*state, &row);
            let Some((shown, version)) = stat.version.filter(|(_, version)| self.is_in_doubt(version)) else {
                return Ok(None);
            };
            // Who comes later reads what the first one does.
            if self.is_loaded(id) || self.merged(&state, id, &row)?.is_some() {
                return Ok(None);
            }
            let mut kept = self.kept_versions(&state, id)?;
            let is_open_to_same = |kept: &KeptVersion| kept.owner == stat.owner && kept.mode == stat.mode;
            kept.retain(|kept| kept.replaced.is_some() && is_open_to_same(kept));
            (shown, version.content, kept)
        };
        let hold = self.hold_glyphs();
        if self.is_whole(&content) {
            let mut whole = self.remote.whole.lock();
            if whole.len() >= WHOLE_MAX {
                whole.clear();
            }
            whole.insert(content);
            drop(whole);
            self.is_readable(Some(id));
            return Ok(None);
        }
        let Some(kept) = kept.into_iter().rev().find(|kept| self.is_whole(&kept.version.content)) else {
            return Ok(None);
        };
        match self.fetch_last(id, content) {
            Err(VolumeError::Store(error)) if lacking(&error).is_some() => {
                let why = self.why_unreadable(id).unwrap_or_else(|| error.to_string());
                let lack = Lack { glyph: lacking(&error).expect("just looked"), why };
                Ok(Some(StandIn { shown, kept, lack, _hold: hold }))
            }
            fetched => fetched.map(|()| None),
        }
    }

    /// Whether all glyphs of a content are here. While there is a hold, those that are stay.
    fn is_whole(&self, content: &Content) -> bool {
        let (mut pages, mut is_whole) = (HashSet::new(), true);
        let visited = visit_glyphs(&*self.store, content, &mut |part, id| {
            is_whole = is_whole && self.store.pin_stored(GlyphKind::Data, id);
            is_whole && part == Part::Page && pages.insert(*id)
        });
        is_whole && visited.is_ok()
    }

    /// Fetches what is missing at the end of a content, waiting no longer than one who reads.
    fn fetch_last(&self, id: InodeId, content: Content) -> Result<()> {
        let began = self.env.now();
        let mut missing = Vec::new();
        let (mut cursor, mut at) = (Cursor::new(content), 0);
        while let Some(span) = cursor.find(&self.fetching(Some(id), None), at)? {
            at = span.end();
            if let What::Glyph(glyph) = span.extent.what
                && !self.store.contains(GlyphKind::Data, &glyph)?
            {
                missing.push((span.start, span.extent.len_bytes, glyph));
            }
        }
        let mut bytes = 0;
        let first = missing.iter().rposition(|(_, len_bytes, _)| {
            bytes += len_bytes;
            bytes > AHEAD_BYTES
        });
        for (start, _, glyph) in missing.split_off(first.map_or(0, |first| first + 1)) {
            let waited = Duration::from_millis(self.env.now().millis().saturating_sub(began.millis()));
            // It comes, and slowly.
            let Some(left) = PATIENCE.checked_sub(waited) else { break };
            if !self.store.contains(GlyphKind::Data, &glyph)? {
                let source = self.fetching(Some(id), Some((content, start))).within(left);
                source.read(GlyphKind::Data, &glyph)?;
            }
        }
        Ok(())
    }

    /// Gives the cell the bytes of an older version, unless it has some by now or there is something newer.
    pub(super) fn show_older(&self, cell: &FileCell, stand_in: StandIn) -> Result<()> {
        let StandIn { shown, kept, lack, _hold } = stand_in;
        {
            let state = self.state.read();
            let Some(row) = state.inode(cell.id)? else { return Ok(()) };
            let stat = Stat::in_tables(&*state, &row);
            let mut data = cell.data.lock();
            if data.is_some() || stat.version.is_none_or(|(dot, _)| dot != shown) {
                return Ok(());
            }
            let content = kept.version.content;
            let why = format!("version {} is read, as a newer one cannot be: {}", kept.name(), lack.why);
            tracing::warn!(inode = %cell.id.0, %why, "a file is opened as it was before");
            *data = Some(Data {
                version: Some(kept.dot),
                seen: row.versions.dots().collect(),
                merges: state.merges(),
                outdated: Some(Shown {
                    len_bytes: content.len_bytes(),
                    allocated_bytes: content.allocated_bytes(),
                    mtime: kept.version.mtime,
                    ctime: stat.ctime,
                }),
                stands_in: Some(Lack { why, ..lack }),
                inline: kept.inline.clone(),
                reader: ContentReader::new(content, kept.inline)?,
                staging: None,
                failed: false,
            });
            self.misjudge(cell.id);
        }
        // It was told how long the shown version is.
        self.invalidate_inode(cell.id, true);
        Ok(())
    }

    /// Before a file is cut to a length: what stands in makes way, as far as nothing of the shown version is needed.
    pub(super) fn make_latest(&self, cell: &FileCell, len: u64) -> Result<()> {
        let mut data = cell.data.lock();
        let Some(loaded) = data.as_ref().filter(|data| data.stands_in.is_some()) else { return Ok(()) };
        if len > 0 {
            return loaded.check_is_latest();
        }
        *data = None;
        Ok(())
    }

    /// Why those who have a file open read an older version of it.
    pub(super) fn why_older(&self, id: InodeId) -> Option<String> {
        let cell = self.files.lock().get(&id).cloned()?;
        let data = cell.data.lock();
        Some(data.as_ref()?.stands_in.as_ref()?.why.clone())
    }
}
