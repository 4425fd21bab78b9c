//! Which contents are to be here: those that the layout places here, and those of pinned paths.
//!
//! What always holds: without a layout, everything is to be here.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::codec::{self, Reader};
use crate::content::manifest::{Part, visit_sized_glyphs};
use crate::content::{Content, ContentError};
use crate::id::GlyphId;
use crate::identity::NodePublicKey;
use crate::namespace::derive::dot_of;
use crate::namespace::row::InodeRow;
use crate::namespace::tables::malformed;
use crate::namespace::{Table, Tables as _};
use crate::placement::Layout;
use crate::store::{GlyphKind, StoreError};
use crate::volume::Result;

use super::LocalVolume;
use super::history;
use super::state::local_key;

/// Of the row that says what the layout is: this, the number of copies, the layout.
const ROW_VERSION: u8 = 1;

fn decode_row(row: &[u8]) -> codec::Result<Layout> {
    let mut reader = Reader::new(row);
    reader.format("the row of a layout", ROW_VERSION)?;
    reader.u8()?;
    Layout::decode(reader.bytes(reader.remaining())?)
}

fn layout_key() -> Vec<u8> {
    local_key(b'n', b"layout")
}

/// There as long as not all has come that is to be here.
pub(super) fn awaited_key() -> Vec<u8> {
    local_key(b'n', b"awaited")
}

impl LocalVolume {
    /// Says which members hold what from now on, also after a restart. `None`: this machine holds everything. To be said again
    /// when the number of copies is another one.
    pub fn set_layout(&self, layout: Option<Layout>) -> Result<()> {
        assert!(self.branch.is_none(), "one layout holds for all lines");
        let copies = self.settings.read().copies;
        let encoded = layout.as_ref().map(|layout| [&[ROW_VERSION, copies], &layout.encode()[..]].concat());
        let mut state = self.state.write();
        if state.get(Table::Local, &layout_key())?.as_deref() != encoded.as_deref() {
            let changes = vec![(layout_key(), encoded), (awaited_key(), Some(Vec::new()))];
            state.commit_local(changes, self.env.now(), &self.journal)?;
            self.remote.awaited.store(true, Ordering::Release);
        }
        *self.remote.layout.write() = layout.map(Arc::new);
        drop(state);
        self.commit_journal()
    }

    /// Whether something that is to be here has still to come from others. Then it is not lost.
    pub fn is_awaited(&self) -> bool {
        self.remote.awaited.load(Ordering::Acquire)
    }

    /// Something is taken in whose contents have still to come.
    pub fn await_contents(&self) -> Result<()> {
        let mut state = self.state.write();
        if !self.is_awaited() {
            state.commit_local(vec![(awaited_key(), Some(Vec::new()))], self.env.now(), &self.journal)?;
            self.remote.awaited.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// All that was awaited has come; whoever says so has looked after it was `expected` that decided what that is.
    pub(super) fn nothing_is_awaited(&self, expected: [u8; 32]) -> Result<()> {
        let mut state = self.state.write();
        if self.is_awaited() && self.placing() == expected {
            state.commit_local(vec![(awaited_key(), None)], self.env.now(), &self.journal)?;
            self.remote.awaited.store(false, Ordering::Release);
        }
        Ok(())
    }

    pub fn layout(&self) -> Option<Arc<Layout>> {
        self.remote.layout.read().clone()
    }

    /// Names what decides where glyphs are to be: the layout, and of how many copies. Nothing but zeroes without a layout.
    pub fn placing(&self) -> [u8; 32] {
        let copies = self.settings.read().copies;
        let name = |layout: Arc<Layout>| *blake3::hash(&[&layout.hash()[..], &[copies]].concat()).as_bytes();
        self.layout().map_or([0; 32], name)
    }

    /// Finds the layout that was set before the volume was closed.
    pub(super) fn load_layout(&self) -> std::result::Result<(), StoreError> {
        let is_awaited = self.state.read().get(Table::Local, &awaited_key())?.is_some();
        self.remote.awaited.store(is_awaited, Ordering::Release);
        if let Some(bytes) = self.state.read().get(Table::Local, &layout_key())? {
            let layout = decode_row(&bytes).map_err(|e| malformed("layout", &layout_key(), e))?;
            *self.remote.layout.write() = Some(Arc::new(layout));
        }
        Ok(())
    }

    /// Whether not everybody is to hold everything.
    pub(super) fn shares_out(&self) -> bool {
        let copies = usize::from(self.settings.read().copies);
        self.layout().is_some_and(|layout| layout.places().len() > copies)
    }

    /// Whether a glyph of contents is to be here.
    pub fn is_placed_here(&self, id: &GlyphId) -> bool {
        let Some(layout) = self.layout() else { return true };
        layout.is_holder(&self.key.public(), id, self.settings.read().copies)
    }

    /// Whether a glyph of contents may lawfully not be here. One that is here and damaged is damaged all the same.
    pub(super) fn is_elsewhere(&self, id: &GlyphId, error: &StoreError) -> bool {
        matches!(error, StoreError::Missing(missing) if missing == id)
            && (self.is_awaited() || !self.is_placed_here(id))
    }

    /// Whether contents cannot be read for want of something that has still to come.
    pub(super) fn awaits(&self, error: &ContentError) -> bool {
        self.is_awaited() && matches!(error, ContentError::Store(StoreError::Missing(_)))
    }

    /// The glyphs of contents that are to be here and are not, of the state of now and of the versions kept beside it. As
    /// with `missing_in`, what a list that is missing lists is told when it is here. Each comes with the bytes of a file that
    /// it is needed for.
    pub fn missing(&self) -> Result<Vec<(GlyphId, u64)>> {
        let mut missing = Vec::new();
        self.each_glyph(&mut |part, id, bytes| {
            if self.is_wanted_here(part, id) && !self.store.has(GlyphKind::Data, id)? {
                missing.push((*id, bytes));
            }
            Ok(())
        })?;
        Ok(missing)
    }

    /// Visits the glyphs of contents that are to be held somewhere, each once: those of the state of now, and of the
    /// versions kept beside it. With the bytes of a file that it is needed for.
    pub fn each_glyph(&self, each: &mut dyn FnMut(Part, &GlyphId, u64) -> Result<()>) -> Result<()> {
        let (mut met, mut pages) = (HashSet::new(), HashSet::new());
        let mut visit = |content: &Content| -> Result<()> {
            let mut outcome = Ok(());
            let visited = visit_sized_glyphs(&*self.store, content, &mut |part, id, bytes| {
                if outcome.is_ok() && met.insert(*id) {
                    outcome = each(part, id, bytes);
                }
                let is_here = || self.store.contains(GlyphKind::Data, id).unwrap_or(false);
                part == Part::Page && outcome.is_ok() && pages.insert(*id) && is_here()
            });
            outcome.and(Ok(visited?))
        };
        self.each_row(Table::Inodes, &[], &mut |key, row| {
            let row = InodeRow::decode(dot_of(key)?, row).map_err(|e| malformed("inode", key, e))?;
            row.versions.entries().iter().try_for_each(|entry| visit(&entry.value.content))
        })?;
        self.each_row(Table::Local, &[], &mut |key, row| match history::decode_row(key, row) {
            Some(decoded) => visit(&decoded?.1.version.content),
            None => Ok(()),
        })
    }

    /// The members that are to hold a glyph of contents, whom to ask first being the first. Nothing without a layout.
    pub fn holders(&self, id: &GlyphId) -> Vec<NodePublicKey> {
        self.layout().map_or_else(Vec::new, |layout| layout.holders(id, self.settings.read().copies))
    }
}
