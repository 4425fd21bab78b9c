//! One file's bytes: how a version names them, how they are read, and how a mutable file becomes a version.
//!
//! A version record holds a [`Content`]: a few dozen bytes that say everything about the file's bytes, whatever its
//! length. Small files are inline or one glyph; the rest is an ordered list of glyphs and holes in a tree of pages
//! (`manifest`). `reader` reads any of these. A file that is being changed is a staging file on the host laid over
//! the version that it started from (`overlay`); `publish` turns that into the next version and stores only the
//! glyphs around what changed; `validate` says whether its bytes are what they seem to be.
//!
//! What always holds:
//! - A content says its length without reading anything, and no length exceeds [`LEN_MAX`].
//! - The glyphs of a manifest, and its pages, depend on the bytes and the holes, not on how the file came about.
//! - Whatever a page of a manifest claims is checked when the page is read: pages may come from other authors.

pub mod manifest;
pub mod overlay;
pub mod publish;
pub mod ranges;
pub mod reader;
#[cfg(test)]
mod testing;
pub mod validate;

use std::io;

use crate::codec::{DecodeError, Encode, Reader};
use crate::id::GlyphId;
use crate::store::StoreError;

/// Contents up to this length are kept beside the version record instead of in a glyph.
pub const INLINE_MAX: u64 = 4096;
/// Contents up to this length are one glyph.
pub const SINGLE_MAX: u64 = 64 * 1024;
/// The longest file that the kernel's signed offsets can address.
pub const LEN_MAX: u64 = i64::MAX as u64;
/// The host frees space in blocks of this size, so holes start and end at multiples of it.
const BLOCK: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the staging file failed while {doing}: {source}")]
    Staging { doing: &'static str, source: io::Error },
    /// The bytes hash to their name, so it was their author who wrote nonsense.
    #[error("glyph {id} is no good part of a file: {source}")]
    Malformed { id: GlyphId, source: DecodeError },
    /// The bytes beside a version record are not the ones that it names.
    #[error("the inline bytes {0} are damaged")]
    InlineDamaged(GlyphId),
    #[error("the file would be longer than {LEN_MAX} bytes")]
    TooLong,
}

pub type Result<T> = std::result::Result<T, ContentError>;

/// Says what was being done to the staging file when it failed.
fn staging(doing: &'static str) -> impl Fn(io::Error) -> ContentError {
    move |source| ContentError::Staging { doing, source }
}

/// What a version record stores about a file's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Content {
    Empty,
    /// The bytes live beside the version record; at most [`INLINE_MAX`] of them.
    Inline {
        len_bytes: u64,
        hash: GlyphId,
    },
    /// At most [`SINGLE_MAX`] bytes in one glyph.
    Single {
        len_bytes: u64,
        glyph: GlyphId,
    },
    /// Nothing but a hole.
    Hole {
        len_bytes: u64,
    },
    /// A list of extents, see `manifest`.
    Manifest {
        len_bytes: u64,
        /// The bytes that are not in holes.
        allocated_bytes: u64,
        root: GlyphId,
        /// How many levels of pages lie below the root page.
        depth: u8,
    },
}

impl Content {
    pub const VERSION: u8 = 1;

    pub fn len_bytes(&self) -> u64 {
        match *self {
            Self::Empty => 0,
            Self::Inline { len_bytes, .. }
            | Self::Single { len_bytes, .. }
            | Self::Hole { len_bytes }
            | Self::Manifest { len_bytes, .. } => len_bytes,
        }
    }

    /// The bytes that are not in holes, for `st_blocks`.
    pub fn allocated_bytes(&self) -> u64 {
        match *self {
            Self::Empty | Self::Hole { .. } => 0,
            Self::Inline { len_bytes, .. } | Self::Single { len_bytes, .. } => len_bytes,
            Self::Manifest { allocated_bytes, .. } => allocated_bytes,
        }
    }

    /// The content of an empty file after this range was copied into it, where that needs no byte to be read:
    /// when the range is the whole file. Inline bytes must be copied along.
    pub fn clone_range(&self, offset_bytes: u64, len_bytes: u64) -> Option<Self> {
        (offset_bytes == 0 && len_bytes >= self.len_bytes()).then_some(*self)
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u8(Self::VERSION);
        match self {
            Self::Empty => out.put_u8(0),
            Self::Inline { len_bytes, hash } => {
                out.put_u8(1);
                out.put_varint(*len_bytes);
                out.put_glyph_id(hash);
            }
            Self::Single { len_bytes, glyph } => {
                out.put_u8(2);
                out.put_varint(*len_bytes);
                out.put_glyph_id(glyph);
            }
            Self::Hole { len_bytes } => {
                out.put_u8(3);
                out.put_varint(*len_bytes);
            }
            Self::Manifest { len_bytes, allocated_bytes, root, depth } => {
                out.put_u8(4);
                out.put_varint(*len_bytes);
                out.put_varint(*allocated_bytes);
                out.put_glyph_id(root);
                out.put_u8(*depth);
            }
        }
    }

    pub fn decode(reader: &mut Reader<'_>) -> std::result::Result<Self, DecodeError> {
        check_version("a file's content", reader.u8()?, Self::VERSION)?;
        let tag = reader.u8()?;
        let mut len = |max: u64| match reader.varint()? {
            0 => Err(DecodeError::NotCanonical("the length of a content")),
            len if len > max => Err(DecodeError::NotCanonical("the length of a content")),
            len => Ok(len),
        };
        Ok(match tag {
            0 => Self::Empty,
            1 => Self::Inline { len_bytes: len(INLINE_MAX)?, hash: reader.glyph_id()? },
            2 => Self::Single { len_bytes: len(SINGLE_MAX)?, glyph: reader.glyph_id()? },
            3 => Self::Hole { len_bytes: len(LEN_MAX)? },
            4 => {
                let len_bytes = len(LEN_MAX)?;
                let allocated_bytes = len(len_bytes)?;
                let root = reader.glyph_id()?;
                let depth = reader.u8()?;
                if depth > manifest::DEPTH_MAX {
                    return Err(DecodeError::NotCanonical("the depth of a manifest"));
                }
                Self::Manifest { len_bytes, allocated_bytes, root, depth }
            }
            _ => return Err(DecodeError::Unknown { what: "the kind of a content", value: u64::from(tag) }),
        })
    }
}

fn check_version(what: &'static str, found: u8, known: u8) -> std::result::Result<(), DecodeError> {
    match found {
        0 => Err(DecodeError::Unknown { what, value: 0 }),
        found if found > known => {
            Err(DecodeError::NewerVersion { what, found: u32::from(found), known: u32::from(known) })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(content: Content) {
        let mut bytes = Vec::new();
        content.encode(&mut bytes);
        let mut reader = Reader::new(&bytes);
        assert_eq!(Content::decode(&mut reader), Ok(content));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn every_kind_round_trips() {
        let id = GlyphId([7; 32]);
        round_trip(Content::Empty);
        round_trip(Content::Inline { len_bytes: INLINE_MAX, hash: id });
        round_trip(Content::Single { len_bytes: SINGLE_MAX, glyph: id });
        round_trip(Content::Hole { len_bytes: LEN_MAX });
        round_trip(Content::Manifest { len_bytes: LEN_MAX, allocated_bytes: 1, root: id, depth: 3 });
    }

    #[test]
    fn impossible_lengths_and_depths_are_refused() {
        let id = GlyphId([7; 32]);
        let bad = [
            Content::Inline { len_bytes: INLINE_MAX + 1, hash: id },
            Content::Single { len_bytes: 0, glyph: id },
            Content::Hole { len_bytes: LEN_MAX + 1 },
            Content::Manifest { len_bytes: 10, allocated_bytes: 11, root: id, depth: 0 },
            Content::Manifest { len_bytes: 10, allocated_bytes: 10, root: id, depth: manifest::DEPTH_MAX + 1 },
        ];
        for content in bad {
            let mut bytes = Vec::new();
            content.encode(&mut bytes);
            assert!(matches!(Content::decode(&mut Reader::new(&bytes)), Err(DecodeError::NotCanonical(_))));
        }
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let newer = DecodeError::NewerVersion { what: "a file's content", found: 2, known: 1 };
        assert_eq!(Content::decode(&mut Reader::new(&[2, 0])), Err(newer));
    }

    #[test]
    fn only_whole_files_are_cloned_without_reading() {
        let content = Content::Hole { len_bytes: 100 };
        assert_eq!(content.clone_range(0, 100), Some(content));
        assert_eq!(content.clone_range(0, 99), None);
        assert_eq!(content.clone_range(1, 100), None);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_their_only_encoding_or_fail(bytes: Vec<u8>, tag in 0u8..6) {
            let bytes = [&[1, tag][..], &bytes].concat();
            let mut reader = Reader::new(&bytes);
            if let Ok(content) = Content::decode(&mut reader) {
                let mut again = Vec::new();
                content.encode(&mut again);
                prop_assert_eq!(&bytes[..bytes.len() - reader.remaining()], &again[..]);
            }
        }
    }
}
