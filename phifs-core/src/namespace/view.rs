//! Reading the tables: what a name means and what an inode looks like.

use std::collections::BTreeSet;

use crate::id::{DirId, Dot, InodeId, LinkId};
use crate::store::StoreError;
use crate::time::Timestamp;
use crate::volume::FileKind;

use super::coherence::{self, Preference};
use super::derive::{self, Child, Children};
use super::privilege::{self, SET_ID_BITS};
use super::row::{InodeRow, Mode, NAME_BYTES_MAX, Owner, Version};
use super::tables::{Rows, Table, Tables, suffixed_key};
use super::union;

type Result<T> = std::result::Result<T, StoreError>;

/// What a name means, and what a call that acts on the name acts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What is shown: of a union its canonical directory, of several candidates one.
    pub shown: Child,
    /// The directories of the union, or the links of the candidates.
    pub all: Vec<Child>,
}

/// What a name in a directory, and in those that are one with it, means.
pub fn child<T: Tables + ?Sized>(tables: &T, dir: DirId, name: &[u8]) -> Result<Option<Child>> {
    Ok(find(tables, dir, name)?.map(|found| found.shown))
}

/// The same, with all candidates.
pub fn find<T: Tables + ?Sized>(tables: &T, dir: DirId, name: &[u8]) -> Result<Option<Found>> {
    let members = union::members(tables, dir)?;
    if let Some(found) = found(tables, union::meanings(tables, &members, name)?)? {
        return Ok(Some(found));
    }
    if !may_be_display_name(name) {
        return Ok(None);
    }
    let beside = files_beside_directories(tables, &members)?;
    Ok(beside.into_iter().find(|beside| beside.display == name).map(|beside| beside.found))
}

fn found<T: Tables + ?Sized>(tables: &T, all: Children) -> Result<Option<Found>> {
    let Some(shown) = coherence::shown(tables, all.all())? else { return Ok(None) };
    let all = match shown {
        Child::Dir(_) => all.dirs().map(Child::Dir).collect(),
        Child::Link { .. } => all.links().to_vec(),
    };
    Ok(Some(Found { shown, all }))
}

/// What stands between the name of a file that shares it with a directory, and some digits.
const DISPLAY_MARK: &[u8] = b"~phi-";
const DISPLAY_DIGITS: usize = 8;

fn may_be_display_name(name: &[u8]) -> bool {
    let digits = name.len().saturating_sub(DISPLAY_DIGITS);
    name[..digits].ends_with(DISPLAY_MARK)
}

/// The beginning of a name, in so many bytes, and not cut in the middle of a character.
pub fn cut_name(name: &[u8], bytes_max: usize) -> &[u8] {
    let mut kept = name.len().min(bytes_max);
    while kept < name.len() && kept > 0 && name[kept] & 0xc0 == 0x80 {
        kept -= 1;
    }
    &name[..kept]
}

/// The name by which a file is seen whose own name is a directory's: it ends with digits that follow from the link.
pub fn display_name(name: &[u8], link: LinkId) -> Vec<u8> {
    let hash = blake3::hash(&link.0.to_bytes());
    let room = NAME_BYTES_MAX - DISPLAY_MARK.len() - DISPLAY_DIGITS;
    [cut_name(name, room), DISPLAY_MARK, hash.to_hex()[..DISPLAY_DIGITS].as_bytes()].concat()
}

/// A file whose name is a directory's, and the name that it is seen by.
struct Beside {
    display: Vec<u8>,
    name: Vec<u8>,
    found: Found,
}

/// The name that a file has which is seen by another one, as a directory has it too.
pub(super) fn name_seen_as<T: Tables + ?Sized>(
    tables: &T,
    members: &[DirId],
    display: &[u8],
) -> Result<Option<Vec<u8>>> {
    if !may_be_display_name(display) {
        return Ok(None);
    }
    let beside = files_beside_directories(tables, members)?;
    Ok(beside.into_iter().find(|beside| beside.display == display).map(|beside| beside.name))
}

/// The files in a union whose names are those of directories, by the names that they are seen by.
fn files_beside_directories<T: Tables + ?Sized>(tables: &T, members: &[DirId]) -> Result<Vec<Beside>> {
    let mut names: BTreeSet<Vec<u8>> = BTreeSet::new();
    for member in members {
        for (rest, _) in tables.with_prefix(Table::Conflicts, &member.0.to_bytes())? {
            // The prefix alone is an inode with several versions.
            names.extend(derive::name_in_rest(&rest).map(<[u8]>::to_vec));
        }
    }
    let mut beside = Vec::new();
    for name in names {
        let all = union::meanings(tables, members, &name)?;
        if let (Some(_), [Child::Link { link, .. }, ..]) = (all.dirs().next(), all.links()) {
            let display = display_name(&name, *link);
            let links = Children::of_links(all.links());
            beside.extend(found(tables, links)?.map(|found| Beside { display, name, found }));
        }
    }
    Ok(beside)
}

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    Child(Child),
    Nothing,
    /// A name before the last one means no directory.
    NotDirectory,
}

/// Follows a path from the root. Symlinks are not followed; empty names and `.` are passed over.
pub fn follow<T: Tables + ?Sized>(tables: &T, path: &[u8]) -> Result<Reached> {
    let mut at = Child::Dir(DirId::ROOT);
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
        let Child::Dir(dir) = at else { return Ok(Reached::NotDirectory) };
        match child(tables, dir, name)? {
            Some(child) => at = child,
            None => return Ok(Reached::Nothing),
        }
    }
    Ok(Reached::Child(at))
}

/// Where a name leads to this from; nothing if none does.
pub fn place_of<T: Tables + ?Sized>(tables: &T, child: Child) -> Result<Option<(DirId, Vec<u8>)>> {
    Ok(match child {
        Child::Dir(dir) => tables.dir(dir)?.filter(|row| row.shown).and_then(|row| row.position()),
        Child::Link { link, .. } => {
            tables.link(link)?.and_then(|row| row.place().map(|place| (place.parent, place.name.clone())))
        }
    })
}

/// All names of an inode.
pub fn names_of<T: Tables + ?Sized>(tables: &T, inode: InodeId, kind: FileKind) -> Result<Vec<(DirId, Vec<u8>)>> {
    if kind == FileKind::Directory {
        return Ok(place_of(tables, Child::Dir(DirId(inode.0)))?.into_iter().collect());
    }
    let mut names = Vec::new();
    for link in derive::links_of(tables, inode)? {
        names.extend(place_of(tables, Child::Link { link, inode, kind })?);
    }
    Ok(names)
}

/// Where a directory is, from the root; empty for that, and nothing if nobody can get there.
pub fn path_of_dir<T: Tables + ?Sized>(tables: &T, mut dir: DirId) -> Result<Option<Vec<u8>>> {
    let mut names = Vec::new();
    while dir != DirId::ROOT {
        let Some((parent, name)) = place_of(tables, Child::Dir(dir))? else { return Ok(None) };
        names.push(name);
        dir = parent;
    }
    Ok(Some(names.iter().rev().flat_map(|name| [b"/", name.as_slice()].concat()).collect()))
}

/// One name of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: Vec<u8>,
    pub hash: u64,
    pub child: Child,
}

/// Up to `limit` names of a directory and those that are one with it, in the order of their hashes, beginning with the
/// first whose hash is at least `from`; one more than the limit where hashes are equal, so that a listing can resume
/// behind a hash.
pub fn list<T: Tables + ?Sized>(tables: &T, dir: DirId, from: u64, limit: usize) -> Result<Vec<Listed>> {
    let members = union::members(tables, dir)?;
    let mut listed = list_names(tables, &members, from, limit)?;
    // Where every list was cut off, the rest of it comes next time.
    let beside = files_beside_directories(tables, &members)?.into_iter().map(|beside| {
        let hash = derive::name_hash(&beside.display);
        Listed { name: beside.display, hash, child: beside.found.shown }
    });
    let beside: Vec<Listed> = beside.filter(|item| item.hash >= from).collect();
    if !beside.is_empty() {
        listed.extend(beside);
        listed.sort_by(|a, b| (a.hash, &a.name).cmp(&(b.hash, &b.name)));
        listed.dedup_by(|a, b| a.name == b.name);
        cut_off(&mut listed, limit);
    }
    Ok(listed)
}

fn cut_off(listed: &mut Vec<Listed>, limit: usize) {
    if let Some(last) = limit.checked_sub(1).and_then(|last| listed.get(last)) {
        let hash = last.hash;
        let end = listed.iter().skip(limit).take_while(|item| item.hash == hash).count();
        listed.truncate(limit + end);
    }
}

fn list_names<T: Tables + ?Sized>(tables: &T, members: &[DirId], from: u64, limit: usize) -> Result<Vec<Listed>> {
    let mut names: Vec<(u64, Vec<u8>, Children)> = Vec::new();
    for member in members {
        each_name(tables, *member, from, limit, &mut |hash, name, children| {
            names.push((hash, name.to_vec(), children));
        })?;
    }
    if members.len() > 1 {
        names.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        names.dedup_by(|b, a| {
            let is_same = a.1 == b.1;
            if is_same {
                a.2.extend(&b.2);
            }
            is_same
        });
    }
    let mut listed: Vec<Listed> = Vec::with_capacity(names.len());
    for (hash, name, children) in names {
        let shown = coherence::shown(tables, children.all())?;
        listed.extend(shown.map(|child| Listed { name, hash, child }));
    }
    cut_off(&mut listed, limit);
    Ok(listed)
}

fn each_name<T: Tables + ?Sized>(
    tables: &T,
    dir: DirId,
    from: u64,
    limit: usize,
    each: &mut dyn FnMut(u64, &[u8], Children),
) -> Result<()> {
    use std::ops::ControlFlow::{Break, Continue};
    let prefix = dir.0.to_bytes();
    let (mut count, mut last) = (0, None);
    let mut damaged = None;
    tables.scan(Table::Children, &derive::children_from(dir, from), &mut |key, value| {
        let Some((hash, name)) = key.strip_prefix(&prefix[..]).and_then(|rest| rest.split_first_chunk::<8>()) else {
            return Break(());
        };
        let hash = u64::from_be_bytes(*hash);
        if count >= limit && last.is_some_and(|last| last != hash) {
            return Break(());
        }
        (count, last) = (count + 1, Some(hash));
        match Children::decode(value) {
            Ok(children) => each(hash, name, children),
            Err(e) => {
                damaged = Some(super::tables::malformed("child", key, e));
                return Break(());
            }
        }
        Continue(())
    })?;
    damaged.map_or(Ok(()), Err)
}

/// What an inode looks like as far as the replicated tables know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub kind: FileKind,
    pub rdev: u32,
    pub target: Vec<u8>,
    pub mode: Mode,
    pub owner: Owner,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub btime: Timestamp,
    pub version: Option<(Dot, Version)>,
}

impl Stat {
    pub fn of(row: &InodeRow) -> Self {
        Self::preferring(Preference::default(), row)
    }

    /// As the volume wants concurrent versions to be ranked.
    pub fn in_tables<T: Tables + ?Sized>(tables: &T, row: &InodeRow) -> Self {
        let is_one = row.versions.entries().len() <= 1;
        Self::preferring(if is_one { Preference::default() } else { tables.preference() }, row)
    }

    fn preferring(preference: Preference, row: &InodeRow) -> Self {
        let birth = row.birth.latest().map(|entry| &entry.value);
        let version = coherence::best(row, preference);
        // Written bytes and utimensat(2) both set the mtime; the later of them holds.
        let set = row.mtime.latest().map(|entry| (entry.hlc, entry.dot.author, entry.value));
        let written = version.map(|entry| (entry.hlc, entry.dot.author, entry.value.mtime));
        Self {
            kind: row.kind(),
            rdev: birth.map_or(0, |birth| birth.rdev),
            target: birth.map_or_else(Vec::new, |birth| birth.target.clone()),
            mode: mode_of(row),
            owner: row.owner.latest().map_or(Owner { uid: 0, gid: 0 }, |entry| entry.value),
            mtime: set.max(written).map_or_else(Timestamp::default, |(_, _, time)| time),
            ctime: row.touched.latest().map_or_else(Timestamp::default, |entry| entry.value),
            btime: birth.map_or_else(Timestamp::default, |birth| birth.time),
            version: version.map(|entry| (entry.dot, entry.value.clone())),
        }
    }
}

/// What an inode looks like: a directory that is one with others grants what all of them grant, and has the owner of the
/// canonical one.
pub fn stat<T: Tables + ?Sized>(tables: &T, id: InodeId, row: &InodeRow) -> Result<Stat> {
    let mut stat = Stat::in_tables(tables, row);
    if stat.kind != FileKind::Directory {
        return Ok(stat);
    }
    let members = union::members(tables, DirId(id.0))?;
    if members.len() == 1 {
        return Ok(stat);
    }
    let mut times = (stat.mtime, stat.ctime, stat.btime);
    let mut all = 0o7777;
    for (n, member) in members.iter().enumerate() {
        let other = Stat::of(&tables.inode(member.inode())?.unwrap_or_default());
        times = (times.0.max(other.mtime), times.1.max(other.ctime), times.2.min(other.btime));
        all &= other.mode.permissions;
        if n == 0 {
            stat = other;
        }
    }
    stat.mode.permissions = all;
    follow_bits(&mut stat.mode);
    (stat.mtime, stat.ctime, stat.btime) = times;
    Ok(stat)
}

/// Concurrent modes grant to group and others only what all of them grant, to the owner what any of them grants, and
/// no set-id bit.
pub(super) fn mode_of(row: &InodeRow) -> Mode {
    let Some(latest) = row.mode.latest() else { return Mode { permissions: 0, acl: Vec::new() } };
    let mut mode = latest.value.mode.clone();
    if !latest.value.holds(row) {
        mode.permissions &= !SET_ID_BITS;
    }
    if row.mode.entries().len() > 1 {
        let each = || row.mode.entries().iter().map(|entry| entry.value.mode.permissions);
        let (all, any) = (each().fold(0o077, |all, bits| all & bits), each().fold(0, |any, bits| any | bits));
        mode.permissions = mode.permissions & 0o1000 | any & 0o700 | all;
        follow_bits(&mut mode);
    }
    mode
}

/// The value of an extended attribute: the latest of several. A capability has to be for what there is.
pub fn xattr<T: Tables + ?Sized>(tables: &T, inode: InodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let stored = tables.xattr(inode, name)?;
    let Some(latest) = stored.latest() else { return Ok(None) };
    if name != privilege::CAPABILITY {
        return Ok(Some(latest.value.clone()));
    }
    let row = tables.inode(inode)?.unwrap_or_default();
    Ok(privilege::shown_xattr(name, &latest.value, &row).map(<[u8]>::to_vec))
}

/// All extended attributes of an inode, by name.
pub fn xattrs<T: Tables + ?Sized>(tables: &T, inode: InodeId) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    for (name, _) in tables.with_prefix(Table::Xattrs, &suffixed_key(inode.0, &[]))? {
        if let Some(value) = xattr(tables, inode, &name)? {
            found.push((name, value));
        }
    }
    Ok(found)
}

/// Makes the ACL grant what the bits do, as chmod(2) does: the kernel goes by the ACL. What somebody is granted by name
/// is bounded by the mask, which the group bits are.
fn follow_bits(mode: &mut Mode) {
    // As `volume::local::acl` has them.
    const HEAD_BYTES: usize = 4;
    const ENTRY_BYTES: usize = 8;
    const USER_OBJ: u8 = 0x01;
    const MASK: u8 = 0x10;
    const OTHER: u8 = 0x20;
    let bits = mode.permissions;
    for entry in mode.acl.get_mut(HEAD_BYTES..).unwrap_or_default().chunks_exact_mut(ENTRY_BYTES) {
        let granted = match entry[0] {
            USER_OBJ => bits >> 6,
            MASK => bits >> 3,
            OTHER => bits,
            _ => continue,
        };
        entry[2] = (granted & 7) as u8;
    }
}

/// The number of names an inode has; for a directory, 2 and one for each subdirectory. A union says 1, which is what
/// filesystems say that do not count.
pub fn nlink<T: Tables + ?Sized>(tables: &T, id: InodeId, kind: FileKind) -> Result<u32> {
    if kind == FileKind::Directory {
        if union::members(tables, DirId(id.0))?.len() > 1 {
            return Ok(1);
        }
        let row = tables.dir(DirId(id.0))?;
        return Ok(row.map_or(0, |row| if row.shown { 2 + row.subdirs as u32 } else { 0 }));
    }
    Ok(derive::links_of(tables, id)?.len() as u32)
}

/// The same for the inode of a shown name: that it has this name is known.
pub fn nlink_of_child<T: Tables + ?Sized>(tables: &T, child: Child) -> Result<u32> {
    match child {
        Child::Dir(dir) => nlink(tables, dir.inode(), FileKind::Directory),
        Child::Link { inode, .. } => Ok(derive::stored_links(tables, inode)?.map_or(1, |links| links.len() as u32)),
    }
}
