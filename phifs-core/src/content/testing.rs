//! What the tests of this part share: glyphs in memory, and bytes that do not compress or repeat.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::content::Content;
use crate::content::overlay::{Overlay, Sources};
use crate::content::publish::{Published, publish};
use crate::content::reader::ContentReader;
use crate::disk::{Disk, File, FileName, MemDisk};
use crate::id::GlyphId;
use crate::store::{GlyphKind, GlyphSink, GlyphSource, StoreError};

/// A glyph store that counts.
#[derive(Default)]
pub struct Glyphs {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    glyphs: BTreeMap<GlyphId, Bytes>,
    reads: usize,
    new_bytes: usize,
}

impl Glyphs {
    pub fn count(&self) -> usize {
        self.state.lock().glyphs.len()
    }

    /// How many glyphs were read so far.
    pub fn reads(&self) -> usize {
        self.state.lock().reads
    }

    /// How many bytes of glyphs were stored so far that were not there before.
    pub fn new_bytes(&self) -> usize {
        self.state.lock().new_bytes
    }

    pub fn put(&self, plain: &[u8]) -> GlyphId {
        self.write(GlyphKind::Data, plain).unwrap()
    }
}

impl GlyphSource for Glyphs {
    fn read(&self, _: GlyphKind, id: &GlyphId) -> Result<Bytes, StoreError> {
        let mut state = self.state.lock();
        state.reads += 1;
        state.glyphs.get(id).cloned().ok_or(StoreError::Missing(*id))
    }
}

impl GlyphSink for Glyphs {
    fn write(&self, _: GlyphKind, plain: &[u8]) -> Result<GlyphId, StoreError> {
        let mut state = self.state.lock();
        let id = GlyphId::of(plain);
        if state.glyphs.insert(id, Bytes::copy_from_slice(plain)).is_none() {
            state.new_bytes += plain.len();
        }
        Ok(id)
    }
}

/// Bytes that look random.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A file that is open for writing, with all that it needs.
pub struct Open {
    pub overlay: Overlay,
    pub file: Arc<dyn File>,
    pub base: ContentReader,
    pub glyphs: Arc<Glyphs>,
}

impl Open {
    /// A new file.
    pub fn new() -> Self {
        let empty = published(Content::Empty, Bytes::new());
        Self::over(&empty, Arc::default())
    }

    pub fn over(base: &Published, glyphs: Arc<Glyphs>) -> Self {
        let file = MemDisk::new().create(FileName::Staging(1)).unwrap();
        let overlay = Overlay::over(base.content, &*file).unwrap();
        let base = ContentReader::new(base.content, base.inline.clone()).unwrap();
        Self { overlay, file, base, glyphs }
    }

    /// A published file with these bytes.
    pub fn with(bytes: &[u8]) -> Self {
        let mut open = Self::new();
        open.write(bytes, 0);
        open.publish();
        open
    }

    /// The overlay, and where its calls read.
    pub fn parts(&mut self) -> (&mut Overlay, Sources<'_>) {
        (&mut self.overlay, Sources { file: &*self.file, base: &mut self.base, glyphs: &*self.glyphs })
    }

    pub fn write(&mut self, bytes: &[u8], offset: u64) {
        self.overlay.write(&*self.file, bytes, offset).unwrap();
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![7; len];
        let (overlay, mut from) = self.parts();
        let got = overlay.read_at(&mut from, &mut bytes, offset).unwrap();
        bytes.truncate(got);
        bytes
    }

    /// Publishes and goes on from there.
    pub fn publish(&mut self) -> Published {
        let glyphs = self.glyphs.clone();
        let (overlay, mut from) = self.parts();
        let published = publish(overlay, &mut from, &*glyphs).unwrap();
        self.overlay.published(published.content);
        self.base = ContentReader::new(published.content, published.inline.clone()).unwrap();
        published
    }

    /// The version that chunking every byte of the file gives.
    pub fn publish_all(&mut self) -> Published {
        let glyphs = self.glyphs.clone();
        let (overlay, mut from) = self.parts();
        let range = 0..overlay.len_bytes();
        overlay.materialise(&mut from, range).unwrap();
        publish(&Overlay::whole(overlay.len_bytes()), &mut from, &*glyphs).unwrap()
    }
}

/// What was published as this, and of which nothing else is known.
pub fn published(content: Content, inline: Bytes) -> Published {
    Published { content, inline, verdict: None, is_blank: false }
}

/// All bytes of a version.
pub fn bytes_of(published: &Published, glyphs: &Glyphs) -> Vec<u8> {
    let mut reader = ContentReader::new(published.content, published.inline.clone()).unwrap();
    let mut bytes = vec![7; published.content.len_bytes() as usize + 1];
    let got = reader.read_at(glyphs, &mut bytes, 0).unwrap();
    bytes.truncate(got);
    bytes
}
