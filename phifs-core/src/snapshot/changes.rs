//! What is different between two states, as people see it: names that came, went or moved, and files that changed.
//!
//! Nothing is compared by path. A name belongs to a directory, and a directory keeps its identity wherever it moves; so
//! a moved tree is one change, and the work is proportional to what changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::content::Content;
use crate::id::{DirId, Dot, InodeId};
use crate::meta::Frozen;
use crate::namespace::coherence;
use crate::namespace::derive::{Child, Children, dot_of, split_child_key};
use crate::namespace::privilege;
use crate::namespace::row::{InodeRow, Mode, Owner};
use crate::namespace::tables::{Rows, Table, Tables, malformed};
use crate::namespace::union;
use crate::namespace::view::{self, Stat, names_of};
use crate::store::StoreError;
use crate::time::Timestamp;
use crate::volume::FileKind;

use super::facts::each_change;

type Result<T> = std::result::Result<T, StoreError>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    Added,
    Modified,
    Deleted,
    Renamed,
}

/// One line of a comparison. Paths begin with a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub what: What,
    pub kind: FileKind,
    /// Where it is now; of what was deleted, where it was.
    pub path: Vec<u8>,
    /// Where something renamed was.
    pub from: Option<Vec<u8>>,
    /// The lengths of a file before and after.
    pub old_bytes: Option<u64>,
    pub new_bytes: Option<u64>,
    /// Whether its bytes are others, or only its attributes.
    pub content: bool,
}

/// What happened to one inode.
pub struct Story {
    pub inode: InodeId,
    /// Names that it does not have any more, and names that it did not have.
    pub went: Vec<Named>,
    pub came: Vec<Named>,
    pub old: Option<Looks>,
    pub new: Option<Looks>,
}

/// A name, and where it is; nothing if nobody can get there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub dir: DirId,
    pub name: Vec<u8>,
    pub path: Option<Vec<u8>>,
}

/// Everything about an inode that a comparison looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looks {
    pub kind: FileKind,
    pub mode: Mode,
    pub owner: Owner,
    pub mtime: Timestamp,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub content: Content,
}

type Name = (DirId, Vec<u8>);

/// The inodes in which two states differ, each once.
pub fn stories(before: &Frozen, after: &Frozen) -> Result<Vec<Story>> {
    let mut names: BTreeMap<InodeId, (BTreeSet<Name>, BTreeSet<Name>)> = BTreeMap::new();
    each_change(before, after, Table::Inodes, &mut |change| {
        names.entry(InodeId(dot_of(&change.key)?)).or_default();
        Ok(())
    })?;
    each_change(before, after, Table::Xattrs, &mut |change| {
        let key = change.key.get(..Dot::LEN).unwrap_or_default();
        names.entry(InodeId(dot_of(key)?)).or_default();
        Ok(())
    })?;
    each_change(before, after, Table::Children, &mut |change| {
        let (dir, name) = split_child_key(&change.key)?;
        let shown = |tables: &Frozen, row: &Option<bytes::Bytes>| -> Result<Option<Child>> {
            let Some(row) = row else { return Ok(None) };
            let children = Children::decode(row).map_err(|e| malformed("child", &change.key, e))?;
            coherence::shown(tables, children.all())
        };
        let (old, new) = (shown(before, &change.old)?, shown(after, &change.new)?);
        // A directory that is one with another one does not come or go as long as that one is there.
        let visible = |child: Option<Child>, here: &Frozen, there: &Frozen| -> Result<Option<InodeId>> {
            let Some(child) = child else { return Ok(None) };
            Ok(if is_one_with_known(child, here, there)? { None } else { Some(child.inode()) })
        };
        let (old, new) = (visible(old, before, after)?, visible(new, after, before)?);
        if old == new {
            return Ok(());
        }
        if let Some(inode) = old {
            names.entry(inode).or_default().0.insert((dir, name.to_vec()));
        }
        if let Some(inode) = new {
            names.entry(inode).or_default().1.insert((dir, name.to_vec()));
        }
        Ok(())
    })?;
    let (mut before, mut after) = (Side::new(before), Side::new(after));
    let mut stories = Vec::with_capacity(names.len());
    for (inode, (went, came)) in names {
        stories.push(Story {
            inode,
            went: before.named(went)?,
            came: after.named(came)?,
            old: before.looks(inode)?,
            new: after.looks(inode)?,
        });
    }
    Ok(stories)
}

/// What turns the first state into the second, in the order of paths.
pub fn changes(before: &Frozen, after: &Frozen) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let mut side = Side::new(after);
    for story in stories(before, after)? {
        tell(&story, &mut side, &mut changes)?;
    }
    changes.sort_by(|a, b| (&a.path, a.what).cmp(&(&b.path, b.what)));
    Ok(changes)
}

/// Whether a directory is one with another one that the other state shows.
fn is_one_with_known(child: Child, here: &Frozen, there: &Frozen) -> Result<bool> {
    let Child::Dir(dir) = child else { return Ok(false) };
    let others = [union::members(here, dir)?, union::members(there, dir)?];
    for member in others.iter().flatten().filter(|member| **member != dir) {
        if there.dir(*member)?.is_some_and(|row| row.shown) {
            return Ok(true);
        }
    }
    Ok(false)
}

struct Side<'a> {
    tables: &'a Frozen,
    paths: HashMap<DirId, Option<Vec<u8>>>,
}

impl<'a> Side<'a> {
    fn new(tables: &'a Frozen) -> Self {
        Self { tables, paths: HashMap::new() }
    }

    fn named(&mut self, names: BTreeSet<Name>) -> Result<Vec<Named>> {
        let named = |(dir, name): Name| {
            let path = self.path_of_dir(dir)?.map(|above| [&above[..], b"/", &name].concat());
            Ok(Named { dir, name, path })
        };
        names.into_iter().map(named).collect()
    }

    /// The path of a directory; nothing if it is not below the root.
    fn path_of_dir(&mut self, dir: DirId) -> Result<Option<Vec<u8>>> {
        if dir == DirId::ROOT {
            return Ok(Some(Vec::new()));
        }
        if let Some(known) = self.paths.get(&dir) {
            return Ok(known.clone());
        }
        let mut path = None;
        if let Some((parent, name)) = self.tables.dir(dir)?.filter(|row| row.shown).and_then(|row| row.position()) {
            path = self.path_of_dir(parent)?.map(|above| [&above[..], b"/", &name].concat());
        }
        self.paths.insert(dir, path.clone());
        Ok(path)
    }

    fn looks(&self, inode: InodeId) -> Result<Option<Looks>> {
        let row = self.tables.inode(inode)?;
        row.map(|row| looks_of(self.tables, inode, &row)).transpose()
    }
}

impl Looks {
    /// As it is once the bytes are others: see `namespace::privilege`.
    pub fn lose_privileges(&mut self) {
        self.mode.permissions &= !privilege::SET_ID_BITS;
        self.xattrs.retain(|(name, _)| name != privilege::CAPABILITY);
    }
}

/// What a row and the attributes beside it say.
pub fn looks_of<T: Tables>(tables: &T, inode: InodeId, row: &InodeRow) -> Result<Looks> {
    let stat = Stat::in_tables(tables, row);
    Ok(Looks {
        kind: stat.kind,
        mode: stat.mode,
        owner: stat.owner,
        mtime: stat.mtime,
        xattrs: view::xattrs(tables, inode)?,
        content: stat.version.map_or(Content::Empty, |(_, version)| version.content),
    })
}

/// Whether there is something to say. The mtime of a directory changes with every name in it, which is told by itself.
fn differ(old: &Looks, new: &Looks) -> bool {
    let mtime = if new.kind == FileKind::Directory { new.mtime } else { old.mtime };
    Looks { mtime, ..old.clone() } != *new
}

fn tell(story: &Story, after: &mut Side<'_>, changes: &mut Vec<Change>) -> Result<()> {
    let kind = story.new.as_ref().or(story.old.as_ref()).map_or(FileKind::File, |looks| looks.kind);
    let len = |looks: &Option<Looks>| {
        let looks = looks.as_ref().filter(|looks| looks.kind == FileKind::File);
        looks.map(|looks| looks.content.len_bytes())
    };
    let (old_bytes, new_bytes) = (len(&story.old), len(&story.new));
    let line = |what, path, from| Change { what, kind, path, from, old_bytes, new_bytes, content: false };
    let went: Vec<_> = story.went.iter().filter_map(|named| named.path.clone()).collect();
    let came: Vec<_> = story.came.iter().filter_map(|named| named.path.clone()).collect();
    let renamed = went.len().min(came.len());
    for (from, to) in went.iter().zip(&came) {
        changes.push(line(What::Renamed, to.clone(), Some(from.clone())));
    }
    for path in &went[renamed..] {
        changes.push(Change { new_bytes: None, ..line(What::Deleted, path.clone(), None) });
    }
    for path in &came[renamed..] {
        changes.push(Change { old_bytes: None, content: true, ..line(What::Added, path.clone(), None) });
    }
    if let (Some(old), Some(new)) = (&story.old, &story.new)
        && differ(old, new)
    {
        // Names that came have been told as new.
        let content = old.content != new.content;
        let told = &came[renamed..];
        if story.inode == DirId::ROOT.inode() {
            changes.push(Change { content, ..line(What::Modified, b"/".to_vec(), None) });
        }
        for path in after
            .named(names_of(after.tables, story.inode, kind)?.into_iter().collect())?
            .into_iter()
            .filter_map(|named| named.path)
        {
            if !told.contains(&path) {
                changes.push(Change { content, ..line(What::Modified, path, None) });
            }
        }
    }
    Ok(())
}
