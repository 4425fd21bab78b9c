//! What a lost glyph takes with it: bytes of files where it was data, and rows where it was a node of a map. Both are
//! looked for by reading everything, and told by the paths that people know.

use std::collections::{HashMap, HashSet};
use std::ops::{ControlFlow, Range};

use bytes::Bytes;

use crate::content::manifest::{self, GoodPages};
use crate::content::reader::ContentReader;
use crate::content::{Content, ContentError};
use crate::id::{DirId, Dot, GlyphId, InodeId};
use crate::merkle::{self, Gap, MapError, Node, NodeSource};
use crate::meta::TableId;
use crate::namespace::derive::{Child, Children, dot_of};
use crate::namespace::row::InodeRow;
use crate::namespace::tables::{DERIVED, REPLICATED, Rows, Table, Tables, malformed};
use crate::store::{GlyphKind, GlyphSource, GlyphStore, StoreError};
use crate::volume::{Result, VolumeError};

use super::LocalVolume;
use super::files::inline_bytes;
use super::history;

/// Rows looked at under one hold of the state's lock.
const BATCH: usize = 1024;
/// No path is followed further.
const DEPTH_MAX: usize = 1 << 20;

/// A file of which bytes are lost. Reading these gives EIO, reading others does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LostFile {
    pub path: Vec<u8>,
    pub len_bytes: u64,
    /// In order; empty if it is not known which.
    pub lost: Vec<Range<u64>>,
    /// Why the first of them cannot be read.
    pub why: String,
}

/// Rows of a table that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostRows {
    pub table: Table,
    pub why: String,
    /// Files and directories that they are about, as far as these have names that can still be read.
    pub paths: Vec<Vec<u8>>,
    /// Whether there may be more of them.
    pub is_partial: bool,
}

/// The parts of one table that cannot be read.
pub(super) struct Gaps {
    pub table: Table,
    pub gaps: Vec<Gap>,
}

/// Everything that was found to be lost.
#[derive(Default)]
pub(super) struct Lost {
    pub files: Vec<LostFile>,
    pub rows: Vec<LostRows>,
    /// The glyphs that are to blame.
    pub glyphs: HashSet<GlyphId>,
    pub missing: Vec<GlyphId>,
}

impl Lost {
    fn blame(&mut self, error: &StoreError) {
        match error {
            StoreError::Corrupt { id, .. } => drop(self.glyphs.insert(*id)),
            StoreError::Missing(id) => self.missing.push(*id),
            _ => {}
        }
    }
}

/// What has been read and found good: it need not be read again for the next line of changes.
#[derive(Default)]
pub(super) struct Seen {
    good: HashSet<GlyphId>,
    pages: GoodPages,
}

/// Nodes as they are on the disk: one that is lost there may still be in the cache.
struct Stored<'a>(&'a GlyphStore);

impl NodeSource for Stored<'_> {
    fn node(&self, id: &GlyphId) -> std::result::Result<Node, MapError> {
        Node::decode(id, self.0.read(GlyphKind::Node, id)?)
    }
}

impl LocalVolume {
    /// Reads all nodes of all maps, and tells what cannot be read of which tables.
    pub(super) fn survey_tables(&self) -> Vec<Gaps> {
        let roots = self.state.read().meta.roots().clone();
        let tables = REPLICATED.into_iter().chain(DERIVED).chain([Table::Local]);
        let survey = |table| {
            let gaps = merkle::survey(&Stored(&self.store), &roots.get(TableId(table as u8)));
            Gaps { table, gaps }
        };
        tables.map(survey).filter(|gaps| !gaps.gaps.is_empty()).collect()
    }

    /// Finds all that is lost, and logs each path of it.
    pub(super) fn find_lost(&self, broken: &[Gaps], seen: &mut Seen, progress: &dyn Fn()) -> Result<Lost> {
        let mut lost = Lost::default();
        self.find_lost_rows(broken, &mut lost)?;
        self.find_lost_bytes(broken, seen, progress, &mut lost)?;
        for path in lost.files.iter_mut().map(|file| &mut file.path) {
            *path = self.labelled(std::mem::take(path));
        }
        for path in lost.rows.iter_mut().flat_map(|rows| &mut rows.paths) {
            *path = self.labelled(std::mem::take(path));
        }
        for file in &lost.files {
            tracing::error!(path = %file.path.escape_ascii(), why = file.why, "bytes of a file are lost");
        }
        for rows in &lost.rows {
            tracing::error!(table = ?rows.table, why = rows.why, "metadata is lost");
            for path in &rows.paths {
                tracing::error!(path = %path.escape_ascii(), "metadata of this file or directory is lost");
            }
        }
        Ok(lost)
    }

    fn find_lost_bytes(&self, broken: &[Gaps], seen: &mut Seen, progress: &dyn Fn(), lost: &mut Lost) -> Result<()> {
        self.each_row(Table::Inodes, gaps_of(broken, Table::Inodes), &mut |key, value| {
            let id = InodeId(dot_of(key)?);
            let mut file = LostFile::default();
            match InodeRow::decode(id.0, value) {
                Ok(row) => {
                    for entry in row.versions.entries() {
                        let content = &entry.value.content;
                        let inline = inline_bytes(&*self.state.read(), id, Some(entry.dot), content);
                        self.survey_content(content, inline, seen, &mut file, lost);
                    }
                }
                Err(error) => file.why = malformed("inode", key, error).to_string(),
            }
            self.note_lost(id, file, "", lost);
            progress();
            Ok(())
        })?;
        self.each_row(Table::Local, gaps_of(broken, Table::Local), &mut |key, value| {
            let Some(decoded) = history::decode_row(key, value) else { return Ok(()) };
            let (id, kept) = decoded?;
            let mut file = LostFile::default();
            let what = format!(" (version {})", kept.name());
            self.survey_content(&kept.version.content, Ok(kept.inline), seen, &mut file, lost);
            self.note_lost(id, file, &what, lost);
            progress();
            Ok(())
        })
    }

    /// Reads all bytes of a version, each glyph once in a survey.
    fn survey_content(
        &self,
        content: &Content,
        inline: Result<Bytes>,
        seen: &mut Seen,
        file: &mut LostFile,
        lost: &mut Lost,
    ) {
        file.len_bytes = content.len_bytes();
        let mut report = |range: Range<u64>, error: &dyn std::fmt::Display| {
            if file.why.is_empty() {
                file.why = error.to_string();
            }
            match file.lost.last_mut().filter(|last| last.end == range.start) {
                Some(last) => last.end = range.end,
                None => file.lost.push(range),
            }
        };
        let Seen { good, pages } = seen;
        let read = &mut |glyph: &GlyphId| {
            if !good.contains(glyph) {
                match self.store.read(GlyphKind::Data, glyph) {
                    Err(error) if self.is_elsewhere(glyph, &error) => {}
                    read => drop(read?),
                }
                good.insert(*glyph);
            }
            Ok(())
        };
        manifest::survey(&*self.store, content, pages, read, &mut |range, error| {
            if self.awaits(&error) {
                return;
            }
            if let ContentError::Store(error) = &error {
                lost.blame(error);
            }
            report(range, &error);
        });
        let whole = 0..content.len_bytes();
        match inline.map(|inline| ContentReader::new(*content, inline)) {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => report(whole, &error),
            Err(error) => report(whole, &error),
        }
    }

    fn note_lost(&self, id: InodeId, mut file: LostFile, which: &str, lost: &mut Lost) {
        if file.why.is_empty() {
            return;
        }
        let unnamed = || format!("(inode {})", id.0).into_bytes();
        file.path = self.path_of(id).unwrap_or_else(|_| unnamed());
        file.path.extend_from_slice(which.as_bytes());
        lost.files.push(file);
    }

    fn find_lost_rows(&self, broken: &[Gaps], lost: &mut Lost) -> Result<()> {
        let unlisted = gaps_of(broken, Table::Children);
        let mut found: Vec<LostRows> = Vec::new();
        for gap in broken.iter().flat_map(|gaps| &gaps.gaps) {
            if let MapError::Store(error) = &gap.error {
                lost.blame(error);
            }
        }
        // The rest can be derived anew.
        let others = || broken.iter().filter(|gaps| !DERIVED.contains(&gaps.table));
        for Gaps { table, gaps } in others() {
            let why = gaps.first().map(|gap| gap.error.to_string()).unwrap_or_default();
            let more = gaps.len().saturating_sub(1);
            let why = if more > 0 { format!("{why}, and {more} more") } else { why };
            let why = self.said_of(why);
            found.push(LostRows { table: *table, why, paths: Vec::new(), is_partial: !unlisted.is_empty() });
        }
        if found.is_empty() {
            return Ok(());
        }
        let mut dirs = HashMap::new();
        self.each_row(Table::Children, unlisted, &mut |key, value| {
            let Ok(children) = Children::decode(value) else { return Ok(()) };
            for (rows, Gaps { table, gaps }) in found.iter_mut().zip(others()) {
                let about = |child: &Child| match (table, child) {
                    (Table::Inodes | Table::Xattrs, child) => is_within(child.inode().0, gaps),
                    (Table::Links, Child::Link { link, .. }) => is_within(link.0, gaps),
                    // What is lost with inline contents are bytes of files; the others are not about one file each.
                    _ => false,
                };
                if children.all().iter().any(about) {
                    let dir = DirId(dot_of(&key[..Dot::LEN.min(key.len())])?);
                    let name = key.get(Dot::LEN + 8..).unwrap_or_default();
                    let parent = dirs.entry(dir).or_insert_with(|| named_dir(&*self.state.read(), dir));
                    rows.paths.push([parent.as_slice(), b"/", name].concat());
                }
            }
            Ok(())
        })?;
        lost.rows = found;
        Ok(())
    }

    /// Visits the rows of a table, letting others at the tables between batches, and goes on behind `gaps`.
    pub(super) fn each_row(
        &self,
        table: Table,
        gaps: &[Gap],
        each: &mut dyn FnMut(&[u8], &Bytes) -> Result<()>,
    ) -> Result<()> {
        let mut from = Vec::new();
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            let scanned = self.state.read().scan(table, &from, &mut |key, value| {
                batch.push((key.to_vec(), value.clone()));
                if batch.len() < BATCH { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            for (key, value) in &batch {
                each(key, value)?;
            }
            let is_full = batch.len() == BATCH;
            if let Some((mut last, _)) = batch.pop() {
                last.push(0);
                from = last;
            }
            match scanned {
                Ok(()) if is_full => {}
                Ok(()) => return Ok(()),
                Err(error) => match gaps.iter().find(|gap| gap.until.as_ref().is_none_or(|until| *until > from)) {
                    Some(Gap { until: Some(until), .. }) => from.clone_from(until),
                    Some(Gap { until: None, .. }) => return Ok(()),
                    None => return Err(error.into()),
                },
            }
        }
    }

    /// A path from the root to the inode, one of them if it has several names.
    pub fn path_of(&self, id: InodeId) -> Result<Vec<u8>> {
        path_in(&*self.state.read(), id)
    }
}

/// A path from the root to an inode of any state.
pub(super) fn path_in<T: Tables>(tables: &T, id: InodeId) -> Result<Vec<u8>> {
    let dir = DirId(id.0);
    if tables.dir(dir)?.is_some() {
        let path = path_of_dir(tables, dir)?;
        return Ok(if path.is_empty() { b"/".to_vec() } else { path });
    }
    let link = crate::namespace::derive::links_of(tables, id)?.into_iter().next();
    let row = link.map(|link| tables.link(link)).transpose()?.flatten();
    let Some(place) = row.as_ref().and_then(|row| row.place()) else {
        return Ok(format!("(unlinked inode {})", id.0).into_bytes());
    };
    Ok([&path_of_dir(tables, place.parent)?, b"/".as_slice(), &place.name].concat())
}

/// Empty for the root.
fn path_of_dir<T: Tables>(tables: &T, mut dir: DirId) -> Result<Vec<u8>> {
    let mut names = Vec::new();
    while dir != DirId::ROOT {
        // A snapshot from elsewhere may have a cycle.
        let row = tables.dir(dir)?.filter(|_| names.len() < DEPTH_MAX).ok_or(VolumeError::Stale)?;
        names.push(row.name);
        dir = row.parent;
    }
    Ok(names.iter().rev().flat_map(|name| [b"/", name.as_slice()].concat()).collect())
}

pub(super) fn named_dir<T: Tables>(tables: &T, dir: DirId) -> Vec<u8> {
    path_of_dir(tables, dir).unwrap_or_else(|_| format!("(directory {})", dir.0).into_bytes())
}

fn gaps_of(broken: &[Gaps], table: Table) -> &[Gap] {
    broken.iter().find(|gaps| gaps.table == table).map_or(&[], |gaps| &gaps.gaps)
}

/// Whether rows whose keys begin with this dot may be in one of the gaps.
fn is_within(dot: Dot, gaps: &[Gap]) -> bool {
    let key = dot.to_bytes();
    gaps.iter().any(|gap| {
        let from = &gap.from[..gap.from.len().min(Dot::LEN)];
        from <= &key[..] && gap.until.as_ref().is_none_or(|until| key[..] < until[..])
    })
}
