//! Reading packs in large blocks: whoever asks for many glyphs asks for neighbours, and others often ask for the same soon.
//!
//! They may ask for what is just being written: so what was written last is kept as well.
//!
//! What always holds: a block that is kept is in its file, and full, so it never changes.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Weak};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::glyphs::GlyphStore;
use super::lane::within;
use super::pack::Pack;
use super::{GlyphKind, Location};

const BLOCK_BYTES: usize = 1 << 20;
/// So many of those that were read last are kept, for those who are a little behind, and of those that were written.
const READ_MAX: usize = 48;
const WRITTEN_MAX: usize = 16;

/// As long as somebody has one, glyphs of contents are read in blocks; after that they take no memory.
pub struct Stream(#[expect(dead_code, reason = "it keeps them")] Arc<Blocks>);

/// The blocks of those who stream.
#[derive(Default)]
pub(super) struct Streamed(Mutex<Weak<Blocks>>);

#[derive(Default)]
struct Blocks {
    read: Mutex<VecDeque<(Name, Slot)>>,
    /// As they were written: the pack, where it begins in bytes, whole records.
    written: Mutex<VecDeque<(u32, u32, Bytes)>>,
}

/// Of a block: the pack and where it begins, in blocks.
type Name = (u32, u32);
/// Whoever comes while it is being read waits for that.
type Slot = Arc<Mutex<Option<Bytes>>>;

impl GlyphStore {
    /// Somebody is about to read many glyphs of contents, one after the other.
    pub fn stream(&self) -> Stream {
        let mut streamed = self.shared.streamed.0.lock();
        let blocks = streamed.upgrade().unwrap_or_default();
        *streamed = Arc::downgrade(&blocks);
        Stream(blocks)
    }

    #[cfg(test)]
    pub(super) fn is_streaming(&self) -> bool {
        self.shared.streamed.0.lock().upgrade().is_some_and(|blocks| !blocks.read.lock().is_empty())
    }

    /// The bytes of a record, by way of blocks; nothing if it is to be read by itself.
    pub(super) fn streamed(&self, pack: &Pack, at: Location, len: usize) -> Option<Bytes> {
        let blocks = self.shared.streamed.0.lock().upgrade().filter(|_| pack.kind == GlyphKind::Data)?;
        if let Some(record) = blocks.just_written(at, len) {
            return Some(record);
        }
        let (start, end) = (at.offset_bytes as usize, at.offset_bytes as usize + len);
        let (first, last) = (start / BLOCK_BYTES, (end - 1) / BLOCK_BYTES);
        // Of the pack that is being filled, the last block is still to change.
        if (self.data.written(pack.number) as usize) < (last + 1) * BLOCK_BYTES {
            return None;
        }
        let file = pack.file()?;
        let read = |n: usize| {
            let name = (pack.number, n as u32);
            blocks.get(name, || file.read_past_cache(BLOCK_BYTES, (n * BLOCK_BYTES) as u64))
        };
        let from = |n: usize, block: &Bytes| {
            let (begins, ends) = (n * BLOCK_BYTES, n * BLOCK_BYTES + block.len());
            (start.max(begins) <= end.min(ends))
                .then(|| block.slice(start.max(begins) - begins..end.min(ends) - begins))
        };
        if first == last {
            return from(first, &read(first)?).filter(|bytes| bytes.len() == len);
        }
        let mut bytes = BytesMut::with_capacity(len);
        for n in first..=last {
            bytes.extend_from_slice(&from(n, &read(n)?)?);
        }
        (bytes.len() == len).then(|| bytes.freeze())
    }
}

impl Streamed {
    /// A block was written that others may be about to ask for.
    pub fn written(&self, pack: &Pack, at: u32, block: Bytes) {
        if pack.kind == GlyphKind::Data
            && let Some(blocks) = self.0.lock().upgrade()
        {
            let mut written = blocks.written.lock();
            written.push_back((pack.number, at, block));
            if written.len() > WRITTEN_MAX {
                written.pop_front();
            }
        }
    }
}

impl Blocks {
    fn just_written(&self, location: Location, len: usize) -> Option<Bytes> {
        self.written.lock().iter().rev().find_map(|(pack, at, block)| {
            let range = within(location, (*pack, *at), block.len())?;
            Some(block.slice(range.start..range.start + len))
        })
    }

    /// One that cannot be read is not kept.
    fn get(&self, name: Name, read: impl FnOnce() -> io::Result<Bytes>) -> Option<Bytes> {
        let slot = {
            let mut slots = self.read.lock();
            match slots.iter().find(|(known, _)| *known == name) {
                Some((_, slot)) => slot.clone(),
                None => {
                    let slot = Slot::default();
                    slots.push_back((name, slot.clone()));
                    if slots.len() > READ_MAX {
                        slots.pop_front();
                    }
                    slot
                }
            }
        };
        let mut block = slot.lock();
        if block.is_none() {
            *block = read().ok();
        }
        block.clone()
    }
}
