//! Whether all of a snapshot is there and sound: every node and every byte that it names is read from the disk, and held
//! against its name, its record and the rest.

use std::collections::{HashMap, HashSet};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::content::manifest::{self, GoodPages};
use crate::content::reader::ContentReader;
use crate::id::{DirId, Dot, GlyphId, InodeId, S8Id};
use crate::merkle::{self, Gap, MapError, Node, NodeSource};
use crate::meta::{Frozen, TableId};
use crate::namespace::Table;
use crate::namespace::derive::{self, Child, Children, dot_of};
use crate::namespace::row::InodeRow;
use crate::namespace::tables::{DERIVED, REPLICATED, Rows, malformed};
use crate::snapshot::{rows, tree};
use crate::store::{GlyphKind, GlyphSource, GlyphStore, StoreError};
use crate::volume::Result as VolumeResult;

use super::files::inline_bytes;
use super::lost::{Gaps, LostFile, LostRows, named_dir, path_in};
use super::snapshots::{Result, SnapshotError};
use super::{CheckReport, LocalVolume, Problem};

/// What was found out about a snapshot.
#[derive(Clone, Debug)]
pub struct Verification {
    pub name: String,
    pub id: S8Id,
    /// The hash of what people see in it; nothing if that cannot be told any more.
    pub tree_root: Option<[u8; 32]>,
    pub report: CheckReport,
}

/// Nodes as they are on the disk: one that is lost there may still be in the cache.
struct OnDisk {
    store: Arc<GlyphStore>,
    nodes: AtomicU64,
    bytes: AtomicU64,
}

impl NodeSource for OnDisk {
    fn node(&self, id: &GlyphId) -> std::result::Result<Node, MapError> {
        let bytes = self.store.read(GlyphKind::Node, id)?;
        self.nodes.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Node::decode(id, bytes)
    }
}

impl LocalVolume {
    /// Reads everything that a snapshot names. `progress` hears of bytes read.
    pub fn verify_snapshot(&self, name: &str, progress: &dyn Fn(u64)) -> Result<Verification> {
        let (name, sealed, _kept) = self.sealed_snapshot(name)?;
        let record = &sealed.record;
        let tables = Frozen::new(self.nodes.clone(), record.roots.clone());
        let on_disk = OnDisk { store: self.store.clone(), nodes: AtomicU64::new(0), bytes: AtomicU64::new(0) };
        let survey = |table| {
            let gaps = merkle::survey(&on_disk, &record.roots.get(TableId(table as u8)));
            progress(on_disk.bytes.load(Ordering::Relaxed));
            Gaps { table, gaps }
        };
        let broken: Vec<Gaps> =
            REPLICATED.into_iter().chain(DERIVED).map(survey).filter(|gaps| !gaps.gaps.is_empty()).collect();
        let (nodes, node_bytes) = (on_disk.nodes.into_inner(), on_disk.bytes.into_inner());

        let mut check =
            Check { volume: self, tables, broken, glyphs: nodes, bytes: node_bytes, problems: Vec::new(), progress };
        check.lost_rows()?;
        check.bytes_of_files()?;
        let mut tree_root = None;
        if check.broken.is_empty() {
            for (table, _) in record.roots.iter() {
                check.each_row(table, &mut |_, key, value| {
                    let outside = rows::check(table, key, value, &record.context).err();
                    Ok(outside.map(|error| Problem::Derived { what: error.to_string(), repaired: false }))
                })?;
            }
            check.derived()?;
            // Another check may already tell of a cycle, on which this would never end.
            if check.problems.iter().all(|problem| matches!(problem, Problem::Bytes(_))) {
                tree_root = Some(tree::tree_root(&check.tables)?);
            }
        }
        let report =
            CheckReport { glyphs: check.glyphs, bytes: check.bytes, problems: check.problems, unused: Vec::new() };
        Ok(Verification { name, id: sealed.id(), tree_root, report })
    }

    /// The hash of what people see now; equal for equal trees, whatever their history.
    pub fn tree_root(&self) -> Result<[u8; 32]> {
        let (_kept, tables) = {
            let mut checkpoints = self.checkpoint.lock();
            let cut = self.cut(&mut checkpoints)?;
            (self.in_use.keep(&cut.roots), self.frozen(&cut))
        };
        Ok(tree::tree_root(&tables)?)
    }
}

struct Check<'a> {
    volume: &'a LocalVolume,
    tables: Frozen,
    /// What cannot be read of the tables.
    broken: Vec<Gaps>,
    glyphs: u64,
    bytes: u64,
    problems: Vec<Problem>,
    progress: &'a dyn Fn(u64),
}

/// Looks at a row, and tells what is wrong with it.
type Look<'a> = &'a mut dyn FnMut(&Frozen, &[u8], &Bytes) -> VolumeResult<Option<Problem>>;

impl Check<'_> {
    /// Visits the rows of a table that can be read.
    fn each_row(&mut self, table: TableId, look: Look<'_>) -> Result<()> {
        let gaps = self.broken.iter().find(|gaps| gaps.table as u8 == table.0).map_or(&[][..], |gaps| &gaps.gaps);
        let mut from = Vec::new();
        loop {
            let mut failed = None;
            let scanned = self.tables.scan_rows(table, &from.clone(), &mut |key, value| {
                from = [key, &[0]].concat();
                match look(&self.tables, key, value) {
                    Ok(problem) => self.problems.extend(problem),
                    Err(error) => failed = Some(error),
                }
                if failed.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            if let Some(error) = failed {
                return Err(error.into());
            }
            let Err(error) = scanned else { return Ok(()) };
            match gaps.iter().find(|gap| gap.until.as_ref().is_none_or(|until| *until > from)) {
                Some(Gap { until: Some(until), .. }) => from.clone_from(until),
                Some(Gap { until: None, .. }) => return Ok(()),
                None => return Err(SnapshotError::Volume(StoreError::from(error).into())),
            }
        }
    }

    /// Tells of parts of tables that are lost, and of the names below which something is.
    fn lost_rows(&mut self) -> Result<()> {
        let why = |gaps: &Gaps| gaps.gaps.first().map(|gap| gap.error.to_string()).unwrap_or_default();
        let mut lost: Vec<LostRows> = Vec::new();
        for gaps in &self.broken {
            let is_partial = self.broken.iter().any(|gaps| gaps.table == Table::Children);
            lost.push(LostRows { table: gaps.table, why: why(gaps), paths: Vec::new(), is_partial });
        }
        if lost.is_empty() {
            return Ok(());
        }
        let mut dirs = HashMap::new();
        self.each_row(TableId(Table::Children as u8), &mut |tables, key, value| {
            let Ok(children) = Children::decode(value) else { return Ok(None) };
            for rows in &mut lost {
                let is_lost = |child: &Child| match (rows.table, child) {
                    (Table::Inodes, child) => tables.inode(child.inode()).is_err(),
                    (Table::Xattrs, child) => tables.with_prefix(Table::Xattrs, &child.inode().0.to_bytes()).is_err(),
                    (Table::Links, Child::Link { link, .. }) => tables.link(*link).is_err(),
                    (Table::Dirs, Child::Dir(dir)) => tables.dir(*dir).is_err(),
                    _ => false,
                };
                if children.all().iter().any(is_lost) {
                    let dir = DirId(dot_of(&key[..Dot::LEN.min(key.len())])?);
                    let name = key.get(Dot::LEN + 8..).unwrap_or_default();
                    let parent = dirs.entry(dir).or_insert_with(|| named_dir(tables, dir));
                    rows.paths.push([parent.as_slice(), b"/", name].concat());
                }
            }
            Ok(None)
        })?;
        self.problems.extend(lost.into_iter().map(Problem::Rows));
        Ok(())
    }

    /// Reads the bytes of every version of every file.
    fn bytes_of_files(&mut self) -> Result<()> {
        let store = &self.volume.store;
        let (mut good, mut pages) = (HashSet::new(), GoodPages::default());
        let (mut glyphs, mut bytes) = (self.glyphs, self.bytes);
        let progress = self.progress;
        self.each_row(TableId(Table::Inodes as u8), &mut |tables, key, value| {
            let id = InodeId(dot_of(key)?);
            let mut file = LostFile { path: Vec::new(), len_bytes: 0, lost: Vec::new(), why: String::new() };
            let row = InodeRow::decode(id.0, value).map_err(|e| malformed("inode", key, e))?;
            for entry in row.versions.entries() {
                let content = &entry.value.content;
                file.len_bytes = content.len_bytes();
                let read = &mut |glyph: &GlyphId| {
                    if !good.contains(glyph) {
                        match store.read(GlyphKind::Data, glyph) {
                            Err(error) if self.volume.is_elsewhere(glyph, &error) => {}
                            read => {
                                bytes += read?.len() as u64;
                                glyphs += 1;
                                progress(bytes);
                            }
                        }
                        good.insert(*glyph);
                    }
                    Ok(())
                };
                manifest::survey(&**store, content, &mut pages, read, &mut |range, error| {
                    if !self.volume.awaits(&error) {
                        report(&mut file, range, &error);
                    }
                });
                let whole = 0..content.len_bytes();
                match inline_bytes(tables, id, Some(entry.dot), content) {
                    Ok(inline) => {
                        if let Err(error) = ContentReader::new(*content, inline) {
                            report(&mut file, whole, &error);
                        }
                    }
                    Err(error) => report(&mut file, whole, &error),
                }
            }
            if file.why.is_empty() {
                return Ok(None);
            }
            file.path = path_in(tables, id).unwrap_or_else(|_| format!("(inode {})", id.0).into_bytes());
            Ok(Some(Problem::Bytes(file)))
        })?;
        (self.glyphs, self.bytes) = (glyphs, bytes);
        Ok(())
    }

    /// Holds the derived tables against what follows from the others.
    fn derived(&mut self) -> Result<()> {
        let differences = derive::differences(&derive::kept(&self.tables)?, &derive::recompute(&self.tables)?);
        let wrong = |row: String| Problem::Derived {
            what: format!("a derived row does not follow from the others: {row}"),
            repaired: false,
        };
        self.problems.extend(differences.into_iter().map(wrong));
        Ok(())
    }
}

fn report(file: &mut LostFile, range: Range<u64>, error: &dyn std::fmt::Display) {
    if file.why.is_empty() {
        file.why = error.to_string();
    }
    match file.lost.last_mut().filter(|last| last.end == range.start) {
        Some(last) => last.end = range.end,
        None => file.lost.push(range),
    }
}
