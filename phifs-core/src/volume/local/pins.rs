//! Paths whose contents stay here, whatever the layout says: rules of this machine alone.
//!
//! A rule is a path. What it leads to at the time is kept, and what is below; so a file that is saved as a new one under
//! the same name stays pinned.

use std::collections::{HashMap, HashSet};

use crate::content::Content;
use crate::content::manifest::{Cursor, What};
use crate::id::{DirId, InodeId};
use crate::namespace::derive::{Child, dot_of};
use crate::namespace::row::InodeRow;
use crate::namespace::tables::{Rows, Table, Tables, malformed};
use crate::namespace::union;
use crate::namespace::view::{self, Reached};
use crate::store::{GlyphKind, GlyphSource as _};
use crate::volume::{FileKind, Result};

use super::LocalVolume;
use super::remote::is_lacking;
use super::snapshots::SnapshotError;
use super::state::{State, local_key};

/// What `n` says, before the path.
const PIN: &[u8] = b"pin ";

fn pin_key(path: &[u8]) -> Vec<u8> {
    local_key(b'n', &[PIN, path].concat())
}

/// The inodes that the rules lead to now, and which directories are below them, as far as that was asked.
struct Pinned {
    roots: HashSet<InodeId>,
    dirs: HashMap<DirId, bool>,
}

impl Pinned {
    fn has(&mut self, state: &State, id: InodeId, kind: FileKind) -> Result<bool> {
        if self.roots.contains(&id) {
            return Ok(true);
        }
        for (dir, _) in view::names_of(state, id, kind)? {
            if self.is_below(state, dir)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_below(&mut self, state: &State, dir: DirId) -> Result<bool> {
        let (mut way, mut at) = (Vec::new(), Some(dir));
        let mut is_below = false;
        while let Some(dir) = at {
            if let Some(known) = self.dirs.get(&dir) {
                is_below = *known;
                break;
            }
            if self.roots.contains(&dir.inode()) {
                is_below = true;
                break;
            }
            // Nobody goes round in a circle, should there be one.
            self.dirs.insert(dir, false);
            way.push(dir);
            at = view::place_of(state, Child::Dir(dir))?.map(|(above, _)| above);
        }
        self.dirs.extend(way.into_iter().map(|dir| (dir, is_below)));
        Ok(is_below)
    }
}

/// What is here of pinned paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinnedHere {
    pub files: u64,
    pub bytes: u64,
    /// Files of which not all could be had.
    pub incomplete: u64,
}

impl LocalVolume {
    /// Keeps here what the path leads to, and what is below it. `fetch_pinned` brings what is elsewhere.
    ///
    /// # Errors
    /// `NotFound` if there is nothing.
    pub fn pin_path(&self, path: &[u8]) -> Result<()> {
        let path = normal(path);
        self.inode_at(&path)?;
        self.set_pin(&path, Some(Vec::new()))
    }

    /// Takes a rule back; says whether there was one.
    pub fn unpin_path(&self, path: &[u8]) -> Result<bool> {
        let path = normal(path);
        let is_there = self.state.read().get(Table::Local, &pin_key(&path))?.is_some();
        if is_there {
            self.set_pin(&path, None)?;
        }
        Ok(is_there)
    }

    /// The paths, from the root of the volume.
    pub fn pinned_paths(&self) -> Result<Vec<Vec<u8>>> {
        let rules = self.state.read().with_prefix(Table::Local, &local_key(b'n', PIN))?;
        let path = |rest: &[u8]| if rest.is_empty() { b"/".to_vec() } else { rest.to_vec() };
        Ok(rules.into_iter().map(|(rest, _)| path(&rest)).collect())
    }

    fn set_pin(&self, path: &[u8], value: Option<Vec<u8>>) -> Result<()> {
        assert!(self.branch.is_none(), "paths are those of the main line");
        self.state.write().commit_local(vec![(pin_key(path), value)], self.env.now(), &self.journal)?;
        self.commit_journal()
    }

    /// Visits the contents that pinned files have now.
    pub(super) fn each_pinned(&self, each: &mut dyn FnMut(InodeId, &Content) -> Result<()>) -> Result<()> {
        let Some(mut pinned) = self.pinned_now()? else { return Ok(()) };
        self.each_row(Table::Inodes, &[], &mut |key, row| {
            let id = InodeId(dot_of(key)?);
            let row = InodeRow::decode(id.0, row).map_err(|e| malformed("inode", key, e))?;
            if row.kind() == FileKind::File && pinned.has(&self.state.read(), id, FileKind::File)? {
                row.versions.entries().iter().try_for_each(|entry| each(id, &entry.value.content))?;
            }
            Ok(())
        })
    }

    /// What the rules lead to; nothing without rules. A path that leads nowhere now may do so again.
    fn pinned_now(&self) -> Result<Option<Pinned>> {
        let rules = self.pinned_paths()?;
        if rules.is_empty() {
            return Ok(None);
        }
        let state = self.state.read();
        let mut roots = HashSet::new();
        for path in rules {
            match view::follow(&*state, &path)? {
                Reached::Child(Child::Dir(dir)) => {
                    roots.extend(union::members(&*state, dir)?.iter().map(|member| member.inode()));
                }
                Reached::Child(file) => drop(roots.insert(file.inode())),
                Reached::Nothing | Reached::NotDirectory => {}
            }
        }
        Ok(Some(Pinned { roots, dirs: HashMap::new() }))
    }

    /// Fetches what is pinned and not here. What cannot be had is left for the next time. `progress` hears of bytes.
    pub fn fetch_pinned(&self, progress: &dyn Fn(u64)) -> std::result::Result<PinnedHere, SnapshotError> {
        let (mut here, mut last) = (PinnedHere::default(), None);
        self.publish_closed()?;
        self.each_pinned(&mut |id, content| {
            // The versions of a file come one after the other.
            here.files += u64::from(last.replace(id) != Some(id));
            let fetched = self.fetch_content(id, *content, &mut |bytes| {
                here.bytes += bytes;
                progress(here.bytes);
            });
            match fetched {
                Err(error) if is_lacking(&error) => here.incomplete += 1,
                fetched => fetched?,
            }
            Ok(())
        })?;
        Ok(here)
    }

    /// Fetches what is not here of a content. `progress` hears of each part that is here.
    pub(super) fn fetch_content(&self, id: InodeId, content: Content, progress: &mut dyn FnMut(u64)) -> Result<()> {
        if matches!(content, Content::Inline { .. }) {
            progress(content.len_bytes());
            return Ok(());
        }
        let (mut cursor, mut at) = (Cursor::new(content), 0);
        while let Some(span) = cursor.find(&self.fetching(Some(id), None), at)? {
            if let What::Glyph(glyph) = span.extent.what
                && !self.store.contains(GlyphKind::Data, &glyph)?
            {
                self.fetching(Some(id), Some((content, at))).read(GlyphKind::Data, &glyph)?;
            }
            progress(span.extent.len_bytes);
            at = span.end();
        }
        Ok(())
    }
}

/// Without a slash at the end: nothing for the root.
fn normal(path: &[u8]) -> Vec<u8> {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    path[..end].to_vec()
}
