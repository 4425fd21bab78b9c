//! Glyphs that travel one by one: what an operation of another machine needs, and what others are given.
//!
//! Between asking for what an operation needs and applying it, the caller holds what is here (`hold_glyphs`), or a
//! collection could take what nothing names yet.
//!
//! What always holds: bytes of others are stored only if they are those of the id that was asked for.

use bytes::Bytes;

use crate::content::Content;
use crate::content::manifest::Part;
use crate::id::GlyphId;
use crate::namespace::op::{Effect, Op};
use crate::namespace::tables::malformed;
use crate::oplog::SealedGroup;
use crate::snapshot::pull;
use crate::store::{GlyphKind, Hold, StoreError, Stream};
use crate::volume::Result;

use super::LocalVolume;
use super::groups::operations;

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
        Ok(pull::missing_of(&self.store, &contents_of(op), &|part, id| self.is_wanted_here(part, id))?)
    }

    /// Whether a group may be taken in before the bytes have come that it needs here: they are safe with its author, who has said
    /// so. What lists the glyphs of a long file is needed at once.
    pub fn may_come_later(&self, group: &SealedGroup) -> Result<bool> {
        if !self.has_vouched_for(group.author().node, group.author_id(), group.last()) {
            return Ok(false);
        }
        let known = self.context().get(group.author_id());
        for op in operations(group, known + 1).map_err(|e| malformed("group", &group.author_id().0, e))? {
            let lists = pull::missing_of(&self.store, &contents_of(&op), &|part, _| part == Part::Page)?;
            if !lists.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a glyph of contents is to be here, one way or the other.
    pub(super) fn is_wanted_here(&self, part: Part, id: &GlyphId) -> bool {
        part == Part::Page || self.is_placed_here(id)
    }

    /// A glyph as it is stored, for another machine; nothing if it is not here, or damaged.
    pub fn glyph_to_send(&self, kind: GlyphKind, id: &GlyphId) -> Result<Option<Bytes>> {
        match self.store.read_stored(kind, id) {
            Ok(glyph) => Ok(Some(glyph.encode())),
            Err(StoreError::Missing(_) | StoreError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Another machine is about to be sent many glyphs of contents.
    pub fn stream_glyphs(&self) -> Stream {
        self.store.stream()
    }

    /// Stores a glyph of contents that another machine has sent. It is durable when the journal is: whatever names it is
    /// to be written there after this.
    ///
    /// # Errors
    /// `Malformed` if these are not the bytes of this glyph. Then nothing is kept of them.
    pub fn take_glyph(&self, id: GlyphId, bytes: &Bytes) -> Result<()> {
        pull::take(&self.store, GlyphKind::Data, id, bytes)?;
        Ok(())
    }
}

fn contents_of(op: &Op) -> Vec<Content> {
    let content = |effect: &Effect| match effect {
        Effect::Inode(effect) => effect.version.as_ref().map(|(version, _)| version.content),
        _ => None,
    };
    op.effects.iter().filter_map(content).collect()
}
