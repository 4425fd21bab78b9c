//! Contents that are not here: with more members than copies, a machine has only those parts of files that are its to
//! hold, that it wrote, or that were read here. What else is read is fetched from the others, kept, and read ahead of.
//!
//! What always holds:
//! - Nodes of maps and the pages of long files are here; only data may lack. Without a layout nothing lacks.
//! - What was fetched is what its id says.
//! - Nobody waits for another machine while holding a lock that other files need: a call that finds something missing
//!   gives up, fetches it, and begins anew (`having`).
//! - Who wants what is under way already waits for that, and shares its fate.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::content::Content;
use crate::content::manifest::{Cursor, What};
use crate::id::{GlyphId, InodeId};
use crate::placement::Layout;
use crate::store::{GlyphKind, GlyphSource, GlyphStore, StoreError, StoredGlyph};
use crate::volume::{Result, VolumeError};

use super::LocalVolume;

/// How long a reader waits for others.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// A source that does not keep to its patience is waited for so much longer.
const INDULGENCE: Duration = Duration::from_secs(5);
/// How much is fetched along with what is missing, of what follows in the file.
pub(super) const AHEAD_BYTES: u64 = 4 << 20;
/// Of so many files the reason is remembered why they cannot be read.
const UNREADABLE_MAX: usize = 4096;

/// The other machines.
pub trait PeerGlyphs: Send + Sync {
    /// Fetches glyphs of contents, in the form of `LocalVolume::glyph_to_send`: the first above all, of the others as
    /// many as come with it. Blocks, at most for as long as `patience`; where nobody can be asked, not at all.
    fn fetch(&self, ids: &[GlyphId], patience: Duration) -> io::Result<Vec<(GlyphId, Bytes)>>;
}

/// What all lines of changes in a store know of other machines.
#[derive(Default)]
pub(super) struct Remote {
    pub peers: RwLock<Option<Arc<dyn PeerGlyphs>>>,
    pub layout: RwLock<Option<Arc<Layout>>>,
    /// See `LocalVolume::is_awaited`.
    pub awaited: AtomicBool,
    flights: Mutex<HashMap<GlyphId, Arc<Flight>>>,
    pub uses: Mutex<Uses>,
    /// What was found to be all here since glyphs were removed last.
    pub whole: Mutex<BTreeSet<Content>>,
}

/// When glyphs were read last that are not to be here, in an order of its own. It is forgotten at a restart.
#[derive(Default)]
pub(super) struct Uses {
    last: HashMap<GlyphId, u64>,
    now: u64,
}

impl Uses {
    fn note(&mut self, id: GlyphId) {
        self.now += 1;
        self.last.insert(id, self.now);
    }

    /// 0: not since the start.
    pub fn last(&self, id: &GlyphId) -> u64 {
        self.last.get(id).copied().unwrap_or(0)
    }

    pub fn forget(&mut self, id: &GlyphId) {
        self.last.remove(id);
    }
}

/// Glyphs under way together.
#[derive(Default)]
struct Flight {
    landed: Mutex<Option<std::result::Result<Unstored, Arc<str>>>>,
    landing: Condvar,
}

/// Glyphs that came and for which there was no room here.
type Unstored = Arc<HashMap<GlyphId, Bytes>>;

/// Ends a flight, also if the source panics: others must not wait for ever.
struct Landing<'a> {
    remote: &'a Remote,
    flight: Arc<Flight>,
    ids: Vec<GlyphId>,
}

impl Landing<'_> {
    fn with(&self, outcome: std::result::Result<Unstored, Arc<str>>) {
        self.flight.landed.lock().get_or_insert(outcome);
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        self.with(Err("asking others for it failed".into()));
        let mut flights = self.remote.flights.lock();
        self.ids.iter().for_each(|id| drop(flights.remove(id)));
        self.flight.landing.notify_all();
    }
}

/// What is here, with what was fetched for one call and has no room here.
pub(super) struct Here<'a> {
    volume: &'a LocalVolume,
    unstored: Vec<Unstored>,
    /// How long its reader waits for others.
    patience: Duration,
}

impl GlyphSource for Here<'_> {
    fn read(&self, kind: GlyphKind, id: &GlyphId) -> std::result::Result<Bytes, StoreError> {
        match self.unstored.iter().find_map(|glyphs| glyphs.get(id)) {
            Some(plain) if kind == GlyphKind::Data => Ok(plain.clone()),
            _ => {
                let plain = self.volume.store.read(kind, id)?;
                self.volume.note_use(kind, id);
                Ok(plain)
            }
        }
    }
}

/// As `Here`, and fetches what is missing at once. For those who hold no lock that others need.
pub(super) struct Fetching<'a> {
    volume: &'a LocalVolume,
    about: Option<InodeId>,
    ahead: Ahead,
    patience: Duration,
}

impl Fetching<'_> {
    /// For somebody who has waited already.
    pub fn within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }
}

/// Which content is read, and where: what follows there is fetched along.
pub(super) type Ahead = Option<(Content, u64)>;

impl GlyphSource for Fetching<'_> {
    fn read(&self, kind: GlyphKind, id: &GlyphId) -> std::result::Result<Bytes, StoreError> {
        let here = Here { patience: self.patience, ..self.volume.here() };
        let missing = match here.read(kind, id) {
            Err(error) if kind == GlyphKind::Data && lacking(&error).is_some() => error,
            read => return read,
        };
        let here = self.volume.fetch_into(here, &missing, self.about, || self.ahead).ok_or(missing)?;
        let read = here.read(kind, id)?;
        self.volume.is_readable(self.about);
        Ok(read)
    }
}

/// The glyph that others may have, if it is for lack of one that something failed.
pub(super) fn lacking(error: &StoreError) -> Option<GlyphId> {
    match error {
        StoreError::Missing(id) | StoreError::Corrupt { id, .. } => Some(*id),
        _ => None,
    }
}

pub(super) fn is_lacking(error: &VolumeError) -> bool {
    matches!(error, VolumeError::Store(error) if lacking(error).is_some())
}

impl LocalVolume {
    /// Where glyphs are fetched from that are not here.
    pub fn set_peers(&self, peers: Option<Arc<dyn PeerGlyphs>>) {
        *self.remote.peers.write() = peers;
    }

    /// Reads contents, and begins anew when what was missing has come. `read` must let go of every lock when it returns;
    /// `ahead` says what it was about to read.
    pub(super) fn having<T>(
        &self,
        about: Option<InodeId>,
        ahead: impl Fn() -> Ahead,
        mut read: impl FnMut(&dyn GlyphSource) -> Result<T>,
    ) -> Result<T> {
        let mut here = self.here();
        let mut fetched = None;
        loop {
            let missing = match read(&here) {
                Ok(read) => {
                    self.is_readable(about);
                    return Ok(read);
                }
                Err(VolumeError::Store(error)) => error,
                Err(error) => return Err(error),
            };
            // What has come and is missing again will not do so for long.
            if lacking(&missing).is_none() || lacking(&missing) == fetched {
                return Err(missing.into());
            }
            fetched = lacking(&missing);
            here = match self.fetch_into(here, &missing, about, &ahead) {
                Some(here) => here,
                None => return Err(missing.into()),
            };
        }
    }

    fn here(&self) -> Here<'_> {
        Here { volume: self, unstored: Vec::new(), patience: PATIENCE }
    }

    /// Where there is a limit to what is kept of others, what was read lately stays longest.
    fn note_use(&self, kind: GlyphKind, id: &GlyphId) {
        let has_limit = || self.settings.read().glyph_cache_bytes.is_some();
        if kind == GlyphKind::Data && self.layout().is_some() && has_limit() && !self.is_placed_here(id) {
            self.remote.uses.lock().note(*id);
        }
    }

    /// What is here, for somebody who may wait.
    pub(super) fn fetching(&self, about: Option<InodeId>, ahead: Ahead) -> Fetching<'_> {
        Fetching { volume: self, about, ahead, patience: PATIENCE }
    }

    /// A glyph of contents as it is stored, wherever it is.
    pub(super) fn stored_anywhere(
        &self,
        kind: GlyphKind,
        id: &GlyphId,
    ) -> std::result::Result<StoredGlyph, StoreError> {
        match self.store.read_stored(kind, id) {
            Err(error) if kind == GlyphKind::Data && lacking(&error).is_some() => {
                let here = self.fetch_into(self.here(), &error, None, || None).ok_or(error)?;
                match here.unstored.iter().find_map(|glyphs| glyphs.get(id)) {
                    Some(plain) => Ok(StoredGlyph::of(kind, plain)),
                    None => self.store.read_stored(kind, id),
                }
            }
            read => read,
        }
    }

    /// Fetches what is missing. `None`, and the reason is noted, if that failed.
    fn fetch_into<'a>(
        &self,
        mut here: Here<'a>,
        missing: &StoreError,
        about: Option<InodeId>,
        ahead: impl Fn() -> Ahead,
    ) -> Option<Here<'a>> {
        let id = lacking(missing)?;
        match self.fetch(id, &here, ahead) {
            Ok(unstored) => {
                if !unstored.is_empty() {
                    here.unstored.push(unstored);
                }
                Some(here)
            }
            Err(why) => {
                tracing::warn!(glyph = %id, %why, "contents cannot be had");
                if let Some(about) = about {
                    let mut unreadable = self.unreadable.lock();
                    if unreadable.len() >= UNREADABLE_MAX {
                        unreadable.clear();
                    }
                    unreadable.insert(about, format!("{missing}; {why}"));
                }
                None
            }
        }
    }

    pub(super) fn is_readable(&self, about: Option<InodeId>) {
        if let Some(about) = about {
            let mut unreadable = self.unreadable.lock();
            if !unreadable.is_empty() {
                unreadable.remove(&about);
            }
        }
    }

    /// Why a file could not be read lately.
    pub(super) fn why_unreadable(&self, id: InodeId) -> Option<String> {
        self.unreadable.lock().get(&id).cloned()
    }

    fn fetch(
        &self,
        id: GlyphId,
        here: &Here<'_>,
        ahead: impl Fn() -> Ahead,
    ) -> std::result::Result<Unstored, Arc<str>> {
        let peers = self.remote.peers.read().clone().ok_or("no other machine is connected")?;
        let ahead = missing_ahead(&self.store, here, id, ahead());
        let (flight, landing) = {
            let mut flights = self.remote.flights.lock();
            match flights.get(&id) {
                Some(flight) => (flight.clone(), None),
                // It has just come.
                None if self.store.contains(GlyphKind::Data, &id).unwrap_or(false) => return Ok(Unstored::default()),
                None => {
                    let flight = Arc::new(Flight::default());
                    let mut ids = vec![id];
                    ids.extend(ahead.into_iter().filter(|id| !flights.contains_key(id)));
                    ids.iter().for_each(|id| drop(flights.insert(*id, flight.clone())));
                    (flight.clone(), Some(Landing { remote: &self.remote, flight, ids }))
                }
            }
        };
        if let Some(landing) = landing {
            landing.with(self.bring(&*peers, &landing.ids, here.patience));
        }
        let mut landed = flight.landed.lock();
        if landed.is_none() {
            flight.landing.wait_for(&mut landed, here.patience + INDULGENCE);
        }
        landed.clone().unwrap_or(Err("it does not come".into()))
    }

    /// Asks others, and stores what they send.
    fn bring(
        &self,
        peers: &dyn PeerGlyphs,
        ids: &[GlyphId],
        patience: Duration,
    ) -> std::result::Result<Unstored, Arc<str>> {
        let sent = peers.fetch(ids, patience).map_err(|error| error.to_string())?;
        let mut wanted: HashSet<&GlyphId> = ids.iter().collect();
        let mut unstored = HashMap::new();
        for (id, bytes) in sent {
            // What nobody asked for is not looked at.
            if !wanted.remove(&id) {
                continue;
            }
            match self.take_glyph(id, &bytes) {
                Ok(()) => {}
                Err(VolumeError::Store(StoreError::Malformed { .. })) => {
                    tracing::warn!(glyph = %id, "another machine has sent wrong bytes");
                    wanted.insert(&ids[0]);
                }
                // The disk is full, or read-only; the reader gets it all the same.
                Err(error) => {
                    tracing::debug!(glyph = %id, %error, "what was fetched is not kept");
                    let plain = StoredGlyph::decode(id, &bytes).ok().and_then(|glyph| glyph.plain());
                    unstored.extend(plain.map(|plain| (id, plain)));
                }
            }
        }
        if wanted.contains(&ids[0]) { Err("nobody who was asked has it".into()) } else { Ok(unstored.into()) }
    }
}

/// What else is missing in a store of a content, from this glyph on.
pub(super) fn missing_ahead(store: &GlyphStore, here: &dyn GlyphSource, id: GlyphId, ahead: Ahead) -> Vec<GlyphId> {
    let mut missing = Vec::new();
    let Some((content, mut at)) = ahead else { return missing };
    let mut cursor = Cursor::new(content);
    let mut bytes = 0;
    let mut met = HashSet::from([id]);
    // A page that is missing will be asked for by whoever comes to it.
    while bytes < AHEAD_BYTES
        && let Ok(Some(span)) = cursor.find(here, at)
    {
        at = span.end();
        bytes += span.extent.len_bytes;
        if let What::Glyph(id) = span.extent.what
            && met.insert(id)
            && matches!(store.contains(GlyphKind::Data, &id), Ok(false))
        {
            missing.push(id);
        }
    }
    missing
}
