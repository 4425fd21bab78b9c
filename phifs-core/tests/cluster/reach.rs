//! Who gets through to whom.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use phifs_core::id::GlyphId;
use phifs_core::store::GlyphKind;
use phifs_core::volume::local::{LocalVolume, PeerGlyphs};

pub struct Reach {
    now_ms: Arc<AtomicU64>,
    /// What gets through nowhere, and until when.
    cuts: Mutex<BTreeMap<(usize, usize), u64>>,
    up: Mutex<BTreeMap<usize, Weak<LocalVolume>>>,
}

impl Reach {
    pub fn new(now_ms: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self { now_ms, cuts: Mutex::default(), up: Mutex::default() })
    }

    pub fn cut(&self, pair: (usize, usize), until_ms: u64) {
        let mut cuts = self.cuts.lock().expect("one thread");
        let known = cuts.entry(pair).or_default();
        *known = until_ms.max(*known);
    }

    pub fn heal(&self) {
        self.cuts.lock().expect("one thread").clear();
    }

    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        let until = self.cuts.lock().expect("one thread").get(&(from, to)).copied();
        until.is_some_and(|until| until > self.now_ms.load(Ordering::Relaxed))
    }

    pub fn is_up(&self, node: usize, volume: &Arc<LocalVolume>) {
        self.up.lock().expect("one thread").insert(node, Arc::downgrade(volume));
    }

    /// The volumes that a node gets answers from.
    pub fn around(&self, node: usize) -> Vec<Arc<LocalVolume>> {
        let up: Vec<_> = self.up.lock().expect("one thread").iter().map(|(n, volume)| (*n, volume.upgrade())).collect();
        let is_through = |n: usize| n != node && !self.is_cut(node, n) && !self.is_cut(n, node);
        up.into_iter().filter(|(n, _)| is_through(*n)).filter_map(|(_, volume)| volume).collect()
    }
}

/// The others, for a node whose programs wait for contents.
pub struct Others {
    pub reach: Arc<Reach>,
    pub node: usize,
}

impl PeerGlyphs for Others {
    fn fetch(&self, ids: &[GlyphId], _patience: Duration) -> io::Result<Vec<(GlyphId, Bytes)>> {
        for volume in self.reach.around(self.node) {
            let has = |id: &GlyphId| Some((*id, volume.glyph_to_send(GlyphKind::Data, id).ok().flatten()?));
            if let Some(first) = has(&ids[0]) {
                return Ok(std::iter::once(first).chain(ids[1..].iter().filter_map(has)).collect());
            }
        }
        Err(io::Error::other("nobody who is reachable has it"))
    }
}
