//! Files with concurrent versions that a driver can merge: readers see the merged bytes.
//!
//! What is merged is a version that nobody published. It is no operation and is stored nowhere: whoever looks at the
//! file computes it, and all get the same. It has a dot of its own, made of the driver and the versions that it
//! merges, so that bytes in the kernel's cache are never taken for those of another. The first write publishes what
//! the writer saw, in the place of all of them.
//!
//! The version that all sides began with must still be known: among the superseded ones that are kept here, by way of
//! what each version says it replaced. Without it nothing is merged, and the best version is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::codec::Encode;
use crate::content::Content;
use crate::content::reader::ContentReader;
use crate::id::{AuthorId, Dot, GlyphId, InodeId};
use crate::merge::{self, Driver, Side};
use crate::namespace::derive;
use crate::namespace::row::{Closure, InodeRow, Version};
use crate::namespace::tables::{Rows, Tables};
use crate::time::Timestamp;
use crate::volume::{Attr, Result};

use super::LocalVolume;
use super::attrs::{self, said_above};
use super::files::inline_bytes;
use super::history::{self, KeptVersion};
use super::remote::is_lacking;
use super::state::State;

/// No author makes so many operations, so a dot with this bit names merged bytes.
const MERGED: u64 = 1 << 63;

/// How many merged bytes are remembered at most.
const REMEMBERED_MAX: usize = 64 << 20;

/// The bytes of a file that several versions were merged into.
#[derive(Debug)]
pub struct Merged {
    pub dot: Dot,
    pub bytes: Bytes,
    pub hash: GlyphId,
    pub mtime: Timestamp,
}

/// Why concurrent versions are not merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmerged {
    #[error("no merge driver is set for it")]
    NoDriver,
    #[error("the volume does not use {0} as this program has it")]
    OtherDriver(Driver),
    #[error("the version that all of them began with is not kept here")]
    NoBase,
    #[error("they are too long for {0}")]
    TooLong(Driver),
    #[error("not all of them can be read")]
    Unreadable,
    #[error("{0} finds that they contradict each other")]
    Contradiction(Driver),
}

pub type Outcome = std::result::Result<Arc<Merged>, Unmerged>;

/// What came of merging lately. Emptied when there is too much of it.
#[derive(Default)]
pub struct Remembered {
    outcomes: Mutex<(BTreeMap<Dot, Outcome>, usize)>,
}

impl Remembered {
    fn get(&self, dot: Dot) -> Option<Outcome> {
        self.outcomes.lock().0.get(&dot).cloned()
    }

    fn put(&self, dot: Dot, outcome: &Outcome) {
        let (outcomes, bytes) = &mut *self.outcomes.lock();
        // What there is to say about it takes some space as well.
        *bytes += 128 + outcome.as_ref().map_or(0, |merged| merged.bytes.len());
        if *bytes > REMEMBERED_MAX {
            outcomes.clear();
            *bytes = 0;
        }
        outcomes.insert(dot, outcome.clone());
    }
}

impl Merged {
    /// As a content whose bytes are at hand. It is in no table, so it may be longer than others of its kind.
    pub fn content(&self) -> Content {
        match self.bytes.len() as u64 {
            0 => Content::Empty,
            len_bytes => Content::Inline { len_bytes, hash: self.hash },
        }
    }

    pub fn apply(&self, attr: &mut Attr) {
        attr.size_bytes = self.bytes.len() as u64;
        attr.blocks = attrs::blocks(attr.size_bytes);
        attr.mtime = self.mtime;
    }
}

/// Whether this names merged bytes, and no version that somebody published.
pub fn is_merged(version: Option<Dot>) -> bool {
    version.is_some_and(|dot| dot.n & MERGED != 0)
}

impl LocalVolume {
    /// What the versions of a file are merged into; nothing if there is but one, or they are not merged.
    pub(super) fn merged(&self, state: &State, id: InodeId, row: &InodeRow) -> Result<Option<Arc<Merged>>> {
        if row.versions.entries().len() < 2 {
            return Ok(None);
        }
        Ok(self.merge_versions(state, id, row)?.ok())
    }

    /// The same, with the reason.
    pub(super) fn merge_versions(&self, state: &State, id: InodeId, row: &InodeRow) -> Result<Outcome> {
        let Some(driver) = driver_of(state, id)? else { return Ok(Err(Unmerged::NoDriver)) };
        if !self.settings.read().merge_drivers.runs(driver) {
            return Ok(Err(Unmerged::OtherDriver(driver)));
        }
        let dot = dot_of_merged(driver, row);
        if let Some(outcome) = self.merged.get(dot) {
            return Ok(outcome);
        }
        let base = common_base(state, id, row)?;
        if base.is_none() && driver.needs_base() {
            return Ok(Err(Unmerged::NoBase));
        }
        let outcome = self.run_driver(state, id, row, driver, base);
        if let Err(why) = &outcome {
            tracing::debug!(inode = %id.0, %why, "concurrent versions are not merged");
        }
        // What cannot be read now may come back.
        if !matches!(outcome, Err(Unmerged::Unreadable)) {
            self.merged.put(dot, &outcome);
        }
        Ok(outcome)
    }

    /// Fetches what is elsewhere of versions that are to be merged, before somebody reads the file. As long as that cannot
    /// be had, the best version is shown.
    pub(super) fn fetch_to_merge(&self, id: InodeId) -> Result<()> {
        let contents: Vec<Content> = {
            let state = self.state.read();
            let Some(row) = state.inode(id)? else { return Ok(()) };
            let versions = row.versions.entries();
            if versions.len() < 2 || !matches!(self.merge_versions(&state, id, &row)?, Err(Unmerged::Unreadable)) {
                return Ok(());
            }
            let base = common_base(&*state, id, &row)?.map(|(content, _)| content);
            versions.iter().map(|entry| entry.value.content).chain(base).collect()
        };
        match contents.into_iter().try_for_each(|content| self.fetch_content(id, content, &mut |_| {})) {
            Err(error) if is_lacking(&error) => Ok(()),
            fetched => {
                fetched?;
                // It was told how long the best version is.
                self.invalidate_inode(id, true);
                Ok(())
            }
        }
    }

    fn run_driver(
        &self,
        state: &State,
        id: InodeId,
        row: &InodeRow,
        driver: Driver,
        base: Option<(Content, Bytes)>,
    ) -> Outcome {
        let contents = row.versions.entries().iter().map(|entry| &entry.value.content);
        let is_long = |content: &Content| content.len_bytes() > driver.len_max() as u64;
        if contents.chain(base.iter().map(|(content, _)| content)).any(is_long) {
            return Err(Unmerged::TooLong(driver));
        }
        let read = |content: Content, inline: Result<Bytes>| -> Result<Vec<u8>> {
            let mut bytes = vec![0; content.len_bytes() as usize];
            ContentReader::new(content, inline?)?.read_at(&*self.store, &mut bytes, 0)?;
            Ok(bytes)
        };
        let bytes_of = |dot: Dot, content: Content| read(content, inline_bytes(state, id, Some(dot), &content));
        let sides: Result<Vec<Vec<u8>>> =
            row.versions.entries().iter().map(|entry| bytes_of(entry.dot, entry.value.content)).collect();
        let base_bytes = base.map(|(content, inline)| read(content, Ok(inline))).transpose();
        let (sides, base_bytes) = match (sides, base_bytes) {
            (Ok(sides), Ok(base_bytes)) => (sides, base_bytes),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(inode = %id.0, %error, "concurrent versions cannot be merged");
                return Err(Unmerged::Unreadable);
            }
        };
        let entries = row.versions.entries().iter().zip(&sides);
        let sides: Vec<Side<'_>> =
            entries.map(|(entry, bytes)| Side { hlc: entry.hlc, author: entry.dot.author, bytes }).collect();
        let bytes = merge::merge(driver, base_bytes.as_deref(), &sides).ok_or(Unmerged::Contradiction(driver))?;
        let mtime = row.versions.entries().iter().map(|entry| entry.value.mtime).max().unwrap_or_default();
        let (dot, hash) = (dot_of_merged(driver, row), GlyphId::of(&bytes));
        Ok(Arc::new(Merged { dot, bytes: bytes.into(), hash, mtime }))
    }
}

/// The same for all who have these versions, and for no others.
fn dot_of_merged(driver: Driver, row: &InodeRow) -> Dot {
    let mut id = b"merge".to_vec();
    id.put_blob(driver.to_string().as_bytes());
    row.versions.dots().for_each(|dot| id.put_dot(dot));
    let hash = blake3::hash(&id);
    let (mut author, mut n) = ([0; 16], [0; 8]);
    author.copy_from_slice(&hash.as_bytes()[..16]);
    n.copy_from_slice(&hash.as_bytes()[16..24]);
    Dot { author: AuthorId(author), n: u64::from_le_bytes(n) | MERGED }
}

/// The driver for a file: by its first name, and what is said of the directories above that.
fn driver_of(state: &State, id: InodeId) -> Result<Option<Driver>> {
    let Some(link) = derive::links_of(state, id)?.into_iter().next() else { return Ok(None) };
    let Some(row) = state.link(link)? else { return Ok(None) };
    let Some(place) = row.place() else { return Ok(None) };
    let said = said_above(state, place.parent, merge::ATTRIBUTE)?;
    Ok(Driver::of(&place.name, said.as_deref()))
}

/// The content that all concurrent versions began with, and its bytes if they are inline; if it is kept here, and there is
/// only one such. A file that was only made, and never written, has no version: then that is nothing.
fn common_base<T: Tables>(rows: &T, id: InodeId, row: &InodeRow) -> Result<Option<(Content, Bytes)>> {
    let kept: BTreeMap<Dot, KeptVersion> = history::load(rows, id)?.into_iter().map(|kept| (kept.dot, kept)).collect();
    let before = |bases: &[Dot]| -> BTreeSet<Dot> {
        let (mut found, mut next) = (BTreeSet::new(), bases.to_vec());
        while let Some(dot) = next.pop() {
            if found.insert(dot) {
                next.extend(kept.get(&dot).into_iter().flat_map(|kept| &kept.version.bases));
            }
        }
        found
    };
    let mut all = row.versions.entries().iter().map(|entry| before(&entry.value.bases));
    let Some(first) = all.next() else { return Ok(None) };
    let (mut common, mut all_before) = (first.clone(), first);
    for before in all {
        common = &common & &before;
        all_before.extend(before);
    }
    if common.is_empty() {
        // What was found after a crash does not say what it was made of.
        let is_told = |version: &Version| version.closure != Closure::CrashRecovered;
        let is_known = |dot: &Dot| kept.get(dot).is_some_and(|kept| is_told(&kept.version));
        let is_from_birth =
            row.versions.entries().iter().all(|entry| is_told(&entry.value)) && all_before.iter().all(is_known);
        return Ok(is_from_birth.then(|| (Content::Empty, Bytes::new())));
    }
    let older: BTreeSet<Dot> =
        common.iter().filter_map(|dot| kept.get(dot)).flat_map(|kept| before(&kept.version.bases)).collect();
    // Of two that neither replaced the other, each would give another result.
    let mut newest = common.difference(&older);
    let base = newest.next().filter(|_| newest.next().is_none()).and_then(|dot| kept.get(dot));
    Ok(base.map(|base| (base.version.content, base.inline.clone())))
}
