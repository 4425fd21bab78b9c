//! What a join came across that people may want to hear of: two sides changed the same thing, and one rule or another
//! said what comes of it. Events are told, not acted upon; nothing reads them back.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use crate::codec::{self, DecodeError, Encode, Reader};
use crate::id::{DirId, Dot, InodeId, LinkId};
use crate::store::StoreError;
use crate::volume::FileKind;

use super::conflict::{self, Matter};
use super::derive::{Child, dot_of};
use super::join::{Contexts, TheirRow};
use super::position::Move;
use super::privilege;
use super::row::{InodeRow, LinkRow, Place};
use super::tables::{Rows, Table, Tables, malformed};
use super::union;
use super::view;

type Result<T> = std::result::Result<T, StoreError>;

/// What happened. The numbers are in stored rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Files got the same name: one is shown.
    Name = 1,
    /// A file got the name of a directory: it is seen by another one.
    Type = 2,
    /// A file was written on both sides: one version is shown.
    Content = 3,
    /// Permissions, an owner or an attribute were set on both sides.
    Attr = 4,
    /// What one side removed was changed or moved by the other: it stays.
    EditDelete = 5,
    /// Both sides moved the same thing: the later place holds.
    Move = 6,
    /// A directory that one side removed is needed for what the other put there.
    Revived = 7,
    /// A directory cannot lie within itself: the later move is not made.
    MoveSkipped = 8,
    /// Directories of one name are one.
    Union = 9,
    /// Several were promised to be the only one to make a file: one is shown.
    Excl = 10,
}

impl What {
    const ALL: [Self; 10] = [
        Self::Name,
        Self::Type,
        Self::Content,
        Self::Attr,
        Self::EditDelete,
        Self::Move,
        Self::Revived,
        Self::MoveSkipped,
        Self::Union,
        Self::Excl,
    ];

    /// As the table of conflicts calls it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Type => "type",
            Self::Content => "content",
            Self::Attr => "attr",
            Self::EditDelete => "edit-delete",
            Self::Move => "move",
            Self::Revived => "revived",
            Self::MoveSkipped => "move-skipped",
            Self::Union => "union",
            Self::Excl => "excl",
        }
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub what: What,
    /// The row of the table of conflicts that it follows from.
    pub row: u8,
    /// Where it is afterwards, from the root.
    pub path: Vec<u8>,
    /// The place that did not hold, for moves.
    pub other: Option<Vec<u8>>,
}

const VERSION: u8 = 1;

impl Event {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, self.what as u8, self.row];
        out.put_blob(&self.path);
        out.put_u8(u8::from(self.other.is_some()));
        if let Some(other) = &self.other {
            out.put_blob(other);
        }
        out
    }

    /// Whether people have to decide about it.
    pub fn is_dispute(&self) -> bool {
        matches!(self.what, What::Name | What::Type | What::Content | What::Excl)
    }

    pub fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.format("an event", VERSION)?;
        let what = reader.u8()?;
        let known = What::ALL.into_iter().find(|known| *known as u8 == what);
        let what = known.ok_or(DecodeError::Unknown { what: "an event", value: u64::from(what) })?;
        let row = reader.u8()?;
        let path = reader.blob()?.to_vec();
        let other = if reader.u8()? == 1 { Some(reader.blob()?.to_vec()) } else { None };
        reader.finish()?;
        Ok(Self { what, row, path, other })
    }
}

/// What lies so deep that no call can name it is not told: paths of all of a deep tree are longer than the tree is large.
const PATH_BYTES_MAX: usize = 4096;

/// The two states and what came of them.
pub struct Joined<'a, T: ?Sized, U: ?Sized> {
    pub before: &'a T,
    pub after: &'a U,
    pub contexts: &'a Contexts<'a>,
    /// The rows of the other side in which the two differ.
    pub rows: &'a [TheirRow],
    /// The keys of derived rows that are new: names and inodes in conflict, members of unions, skipped moves.
    pub new: &'a [(Table, Vec<u8>)],
    /// The paths of directories that were asked for.
    pub paths: RefCell<HashMap<DirId, Option<Vec<u8>>>>,
}

impl<T: Tables + ?Sized, U: Tables + ?Sized> Joined<'_, T, U> {
    /// Everything that happened, in the order of paths.
    pub fn events(&self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        for (table, key) in self.new {
            match table {
                Table::Conflicts => self.conflict(key, &mut events)?,
                Table::Unions => self.union(DirId(dot_of(key)?), &mut events)?,
                Table::Skipped => self.skipped(key, &mut events)?,
                _ => {}
            }
        }
        let mut moved = BTreeSet::new();
        for row in self.rows {
            let owner = row.key.get(..Dot::LEN).unwrap_or_default();
            match row.table {
                Table::Links => self.link(LinkId(dot_of(&row.key)?), row, &mut events)?,
                Table::Inodes => self.inode(InodeId(dot_of(&row.key)?), row, &mut events)?,
                Table::Xattrs => {
                    let (inode, name) = (InodeId(dot_of(owner)?), row.key.get(Dot::LEN..).unwrap_or_default());
                    if self.after.xattr(inode, name)?.entries().len() > 1 {
                        self.tell_inode(inode, What::Attr, 9, &mut events)?;
                    }
                    if name == privilege::CAPABILITY && self.takes_capability(inode)? {
                        self.tell_inode(inode, What::Attr, 7, &mut events)?;
                    }
                }
                Table::Moves => {
                    if let Some(value) = &row.value {
                        moved.insert(Move::decode(&row.key, value)?.dir);
                    }
                }
                _ => {}
            }
        }
        moved.into_iter().try_for_each(|dir| self.moved(dir, &mut events))?;
        events.sort_by(|a, b| (&a.path, a.what, &a.other).cmp(&(&b.path, b.what, &b.other)));
        events.dedup();
        Ok(events)
    }

    fn path(&self, dir: DirId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let above = self.path_of_dir(dir)?;
        Ok(above.map(|above| [&above[..], b"/", name].concat()).filter(|path| path.len() <= PATH_BYTES_MAX))
    }

    /// Each directory is looked at once, however many are below it.
    fn path_of_dir(&self, mut dir: DirId) -> Result<Option<Vec<u8>>> {
        let mut paths = self.paths.borrow_mut();
        let mut below = Vec::new();
        let mut path = loop {
            if dir == DirId::ROOT {
                break Some(Vec::new());
            }
            if let Some(known) = paths.get(&dir) {
                break known.clone();
            }
            let Some((parent, name)) = view::place_of(self.after, Child::Dir(dir))? else {
                below.push((dir, Vec::new()));
                break None;
            };
            below.push((dir, name));
            dir = parent;
        };
        for (dir, name) in below.into_iter().rev() {
            let longer = path.map(|path: Vec<u8>| [&path[..], b"/", &name].concat());
            path = longer.filter(|path| path.len() <= PATH_BYTES_MAX);
            paths.insert(dir, path.clone());
        }
        Ok(path)
    }

    fn tell(&self, what: What, row: u8, dir: DirId, name: &[u8], events: &mut Vec<Event>) -> Result<()> {
        if let Some(path) = self.path(dir, name)? {
            events.push(Event { what, row, path, other: None });
        }
        Ok(())
    }

    fn tell_inode(&self, inode: InodeId, what: What, row: u8, events: &mut Vec<Event>) -> Result<()> {
        let kind = self.after.inode(inode)?.map_or(FileKind::File, |row| row.kind());
        if inode == DirId::ROOT.inode() {
            events.push(Event { what, row, path: b"/".to_vec(), other: None });
        }
        for (dir, name) in view::names_of(self.after, inode, kind)? {
            self.tell(what, row, dir, &name, events)?;
        }
        Ok(())
    }

    fn conflict(&self, key: &[u8], events: &mut Vec<Event>) -> Result<()> {
        for (dir, name) in union::disputed_names(self.after, key)? {
            if let Some(conflict) = conflict::at(self.after, dir, &name)? {
                let what = match conflict.matter {
                    Matter::Name if conflict::is_exclusive_broken(&conflict.choices) => What::Excl,
                    Matter::Name => What::Name,
                    Matter::Type => What::Type,
                    Matter::Content => What::Content,
                };
                self.tell(what, conflict.matter.row(&conflict.choices), conflict.dir, &conflict.seen_name(), events)?;
            }
        }
        Ok(())
    }

    fn union(&self, dir: DirId, events: &mut Vec<Event>) -> Result<()> {
        let members = union::members(self.after, dir)?;
        if members.len() < 2 {
            return Ok(());
        }
        // Directories that were made by that name on both sides, or one that was moved there.
        let mut row = 3;
        for member in &members {
            let is_moved = self.after.dir(*member)?.is_some_and(|row| row.moves.len() > 1);
            row = if is_moved { 28 } else { row };
        }
        match view::place_of(self.after, Child::Dir(members[0]))? {
            Some((above, name)) => self.tell(What::Union, row, above, &name, events),
            None => Ok(()),
        }
    }

    fn skipped(&self, key: &[u8], events: &mut Vec<Event>) -> Result<()> {
        let Some(value) = self.after.get(Table::Moves, key)? else { return Ok(()) };
        let skipped = Move::decode(key, &value)?;
        let other = self.path(skipped.parent, &skipped.name)?;
        if let Some((above, name)) = view::place_of(self.after, Child::Dir(skipped.dir))?
            && let Some(path) = self.path(above, &name)?
        {
            events.push(Event { what: What::MoveSkipped, row: 27, path, other });
        }
        Ok(())
    }

    fn link(&self, id: LinkId, theirs: &TheirRow, events: &mut Vec<Event>) -> Result<()> {
        let Some(after) = self.after.link(id)? else { return Ok(()) };
        let Some(place) = after.place() else { return Ok(()) };
        let is_gone_there = theirs.value.is_none() && (self.contexts.theirs)(id.0);
        let is_gone_here = self.before.link(id)?.is_none() && (self.contexts.mine)(id.0);
        if is_gone_there || is_gone_here {
            // Moved or edited by the one who did not remove it: moved, if its place is not the one it was made at.
            let row = if after.places.entries().len() == 1 && place.since.hlc == after.places.entries()[0].hlc {
                14
            } else {
                10
            };
            return self.tell(What::EditDelete, row, place.parent, &place.name, events);
        }
        let there = theirs.value.as_ref().map(|bytes| LinkRow::decode(id.0, bytes));
        let there = there.transpose().map_err(|e| malformed("link", &theirs.key, e))?;
        let (here, there) = (self.before.link(id)?, there);
        let (Some(here), Some(there)) = (here, there) else { return Ok(()) };
        let (Some(here), Some(there)) = (here.place(), there.place()) else { return Ok(()) };
        let at = |place: &Place| (place.parent, place.name.clone());
        let is_unseen = after.places.entries().len() > 1 && at(here) != at(there) && {
            // Both are still asserted: neither side has seen the other's.
            let places: BTreeSet<_> = after.places.entries().iter().map(|entry| at(&entry.value)).collect();
            places.contains(&at(here)) && places.contains(&at(there))
        };
        if is_unseen {
            let loser = if at(here) == at(place) { there } else { here };
            if let Some(path) = self.path(place.parent, &place.name)? {
                let other = self.path(loser.parent, &loser.name)?;
                events.push(Event { what: What::Move, row: 12, path, other });
            }
        }
        Ok(())
    }

    fn inode(&self, id: InodeId, theirs: &TheirRow, events: &mut Vec<Event>) -> Result<()> {
        let Some(after) = self.after.inode(id)? else { return Ok(()) };
        let decode =
            |bytes: &bytes::Bytes| InodeRow::decode(id.0, bytes).map_err(|e| malformed("inode", &theirs.key, e));
        let there = theirs.value.as_ref().map(decode).transpose()?.unwrap_or_default();
        let here = self.before.inode(id)?.unwrap_or_default();
        if after.kind() == FileKind::Directory {
            let is_shown = self.after.dir(DirId(id.0))?.is_some_and(|row| row.shown);
            let is_known = (self.contexts.mine)(id.0) && (self.contexts.theirs)(id.0);
            if is_shown && is_known && (here.alive.is_empty() || there.alive.is_empty()) {
                // Alive again as it was moved, or there for what is in it.
                let row = if after.alive.is_empty() { 21 } else { 23 };
                self.tell_inode(id, What::Revived, row, events)?;
            }
        }
        if takes_set_id(&after) && !takes_set_id(&here) && !takes_set_id(&there) {
            self.tell_inode(id, What::Attr, 7, events)?;
        }
        let more = |before: usize, other: usize, after: usize| after > 1 && after > before.max(other);
        let lens = |row: &InodeRow| (row.mode.entries().len(), row.owner.entries().len());
        let (here, there, now) = (lens(&here), lens(&there), lens(&after));
        if more(here.0, there.0, now.0) {
            self.tell_inode(id, What::Attr, 8, events)?;
        }
        if more(here.1, there.1, now.1) {
            self.tell_inode(id, What::Attr, 9, events)?;
        }
        Ok(())
    }

    /// Whether there is a capability that is not for the bytes that there are now, and this was not so before.
    fn takes_capability(&self, inode: InodeId) -> Result<bool> {
        let Some(dot) = self.after.xattr(inode, privilege::CAPABILITY)?.latest().map(|entry| entry.dot) else {
            return Ok(false);
        };
        let is_new = self.before.xattr(inode, privilege::CAPABILITY)?.get(dot).is_none();
        Ok(view::xattr(self.after, inode, privilege::CAPABILITY)?.is_none()
            && (is_new || view::xattr(self.before, inode, privilege::CAPABILITY)?.is_some()))
    }

    /// A directory that the other side moved: perhaps it was moved here as well.
    fn moved(&self, dir: DirId, events: &mut Vec<Event>) -> Result<()> {
        let Some(row) = self.after.dir(dir)? else { return Ok(()) };
        let Some((above, name)) = row.position() else { return Ok(()) };
        let mine = row.moves.iter().rev().find(|id| !(self.contexts.theirs)(id.dot));
        let theirs = row.moves.iter().rev().find(|id| !(self.contexts.mine)(id.dot));
        let (Some(mine), Some(theirs)) = (mine, theirs) else { return Ok(()) };
        let Some(path) = self.path(above, &name)? else { return Ok(()) };
        let key = super::tables::move_key(*mine.min(theirs), dir);
        let Some(value) = self.after.get(Table::Moves, &key)? else { return Ok(()) };
        let lost = Move::decode(&key, &value)?;
        if (lost.parent, &lost.name) != (above, &name) {
            let other = self.path(lost.parent, &lost.name)?;
            events.push(Event { what: What::Move, row: 26, path, other });
        }
        Ok(())
    }
}

/// Whether an inode has set-id bits that are not for what there is. (Where modes are concurrent, that is told.)
fn takes_set_id(row: &InodeRow) -> bool {
    let [grant] = row.mode.entries() else { return false };
    privilege::has_set_id(&grant.value.mode) && !grant.value.holds(row)
}
