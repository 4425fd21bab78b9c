//! Glyphs that travel one by one: what an operation of another machine needs, and what others are given.
//!
//! Between asking for what an operation needs and applying it, the caller holds what is here (`hold_glyphs`), or a
//! collection could take what nothing names yet.
//!
//! What always holds: bytes of others are stored only if they are those of the id that was asked for.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use crate::content::manifest::{Part, visit_glyphs};
use crate::id::GlyphId;
use crate::namespace::op::{Effect, Op};
use crate::store::{GlyphKind, Hold, StoreError, StoredGlyph};
use crate::volume::Result;

use super::LocalVolume;

impl LocalVolume {
    /// While it lives, glyphs that are taken, and those that were found to be here already, outlive collections. To be
    /// taken before `missing_in` is asked and dropped when the operation is applied.
    pub fn hold_glyphs(&self) -> Hold {
        self.store.hold()
    }

    /// The glyphs that an operation needs, that are to be here and are not, in the order of the file. Of a long file they
    /// are told in rounds: what lists glyphs, which everybody holds, comes first, and what it lists when it is here.
    /// Nothing: the operation can be applied.
    ///
    /// # Errors
    /// `Malformed` if a list of glyphs is none: then this operation cannot ever be applied.
    pub fn missing_in(&self, op: &Op) -> Result<Vec<GlyphId>> {
        let (mut missing, mut wanted) = (Vec::new(), HashSet::new());
        let (mut met, mut pages) = (HashMap::new(), HashSet::new());
        for effect in &op.effects {
            let Effect::Inode(effect) = effect else { continue };
            let Some((version, _)) = &effect.version else { continue };
            visit_glyphs(&*self.store, &version.content, &mut |part, id| {
                let is_here = *met.entry(*id).or_insert_with(|| self.store.pin_stored(GlyphKind::Data, id));
                if !is_here && (part == Part::Page || self.is_placed_here(id)) && wanted.insert(*id) {
                    missing.push(*id);
                }
                part == Part::Page && is_here && pages.insert(*id)
            })?;
        }
        Ok(missing)
    }

    /// A glyph of contents as it is stored, for another machine; nothing if it is not here, or damaged.
    pub fn glyph_to_send(&self, id: &GlyphId) -> Result<Option<Bytes>> {
        match self.store.read_stored(GlyphKind::Data, id) {
            Ok(glyph) => Ok(Some(glyph.encode())),
            Err(StoreError::Missing(_) | StoreError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores a glyph of contents that another machine has sent. It is durable when the journal is: whatever names it is
    /// to be written there after this.
    ///
    /// # Errors
    /// `Malformed` if these are not the bytes of this glyph. Then nothing is kept of them.
    pub fn take_glyph(&self, id: GlyphId, bytes: &[u8]) -> Result<()> {
        let malformed = |source| StoreError::Malformed { what: format!("glyph {id}"), source };
        let glyph = StoredGlyph::decode(id, bytes).map_err(malformed)?;
        if glyph.kind() != GlyphKind::Data {
            return Err(malformed(crate::codec::DecodeError::NotCanonical("the kind of a glyph of contents")).into());
        }
        self.store.write_stored(&glyph)?;
        Ok(())
    }
}
