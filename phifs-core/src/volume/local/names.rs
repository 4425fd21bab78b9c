//! What happens to names: lookup, make, link, unlink, rename, list.

use crate::id::{DirId, Dot, InodeId, LinkId};
use crate::merkle::VALUE_BYTES_MAX;
use crate::namespace::Effect;
use crate::namespace::derive::{self, Child};
use crate::namespace::op::MoveId;
use crate::namespace::plan;
use crate::namespace::position;
use crate::namespace::row::{Birth, InodeRow, Mode, Owner};
use crate::namespace::tables::{Rows, Table, Tables, move_key};
use crate::namespace::union::{self, Members};
use crate::namespace::view::{self, Found, Listed};
use crate::store::StoreError;
use crate::volume::{Attr, Caller, Entry, FileKind, Ino, Named, NewKind, NewNode, RenameMode, Result, VolumeError};

use super::LocalVolume;
use super::acl::{self, Acl};
use super::history;
use super::reserved;
use super::scope::Scope;
use super::state::{Draft, State, local_key};

pub const NAME_BYTES_MAX: usize = 255;
const SYMLINK_BYTES_MAX: usize = 4095;
/// All names of a file are one row of a table; merges may add some more.
const LINKS_MAX: u32 = 2500;
const _: () = assert!((LINKS_MAX as usize + 500) * Dot::LEN < VALUE_BYTES_MAX);

/// A directory that operations are about to change. What is made in a union is made in its canonical member.
struct Parent {
    id: DirId,
    row: InodeRow,
    members: Members,
}

impl LocalVolume {
    pub(super) fn lookup_name(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        if parent.is_virtual() || name == reserved::NAME {
            return self.reserved_lookup(parent, name);
        }
        let state = self.state.read();
        let dir = DirId(state.inode_id(parent)?.0);
        match name {
            b"." => self.attr(&state, dir.inode()),
            b".." => self.attr(&state, above(&state, dir)?.inode()),
            _ => match view::child(&*state, dir, name)? {
                Some(child) => self.attr_of_child(&state, child),
                None => {
                    drop(state);
                    self.sibling_named(dir, name)
                }
            },
        }
    }

    /// Makes anything that has a name. Returns its id, and what `finish` returned.
    pub(super) fn make_node(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        node: &NewNode<'_>,
        exclusive: bool,
        finish: impl FnOnce(&mut Draft, InodeId) -> Result<()>,
    ) -> Result<InodeId> {
        self.check_writable()?;
        check_new_name(name)?;
        if let NewKind::Symlink(target) = node.kind
            && (target.is_empty() || target.len() > SYMLINK_BYTES_MAX)
        {
            return Err(if target.is_empty() { VolumeError::NotFound } else { VolumeError::NameTooLong });
        }
        let mut state = self.state.write();
        let rows = Scope::new(&state);
        let parent = open_parent(&rows, parent)?;
        if view::child(&rows, parent.id, name)?.is_some() {
            return Err(VolumeError::Exists);
        }
        let aliases = parent.aliases(name);
        let mut draft = state.draft(self.env.now());
        let id = InodeId(draft.dot);
        let (kind, rdev, target) = match node.kind {
            NewKind::File => (FileKind::File, 0, &b""[..]),
            NewKind::Directory => (FileKind::Directory, 0, &b""[..]),
            NewKind::Symlink(target) => (FileKind::Symlink, 0, target),
            NewKind::Fifo => (FileKind::Fifo, 0, &b""[..]),
            NewKind::Socket => (FileKind::Socket, 0, &b""[..]),
            NewKind::CharDevice(rdev) => (FileKind::CharDevice, rdev, &b""[..]),
            NewKind::BlockDevice(rdev) => (FileKind::BlockDevice, rdev, &b""[..]),
        };
        let (mode, default_acl) = new_mode(&rows, &parent, node, kind)?;
        let above = view::stat(&rows, parent.id.inode(), &parent.row)?;
        let set_gid = above.mode.permissions & 0o2000 != 0;
        let gid = if set_gid { above.owner.gid } else { caller.gid };
        let mut mode = mode;
        if set_gid && kind == FileKind::Directory {
            mode.permissions |= 0o2000;
        }
        let birth = Birth { kind, rdev, time: draft.time, target: target.to_vec(), exclusive };
        let owner = Owner { uid: caller.uid, gid };
        draft.effects.extend(plan::create(draft.dot, birth, mode, owner, parent.id, name));
        if let Some(value) = default_acl {
            let name = acl::DEFAULT.to_vec();
            draft.effects.push(Effect::Xattr { inode: id, name, value: Some(value), drops: Vec::new() });
        }
        touch_dir(&rows, &mut draft, &parent)?;
        finish(&mut draft, id)?;
        let rows = rows.into_rows();
        state.commit_with(draft, rows, &self.journal)?;
        self.tell_aliases(&state, &aliases);
        Ok(id)
    }

    pub(super) fn link_name(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.check_writable()?;
        check_new_name(name)?;
        if ino.is_virtual() {
            return Err(VolumeError::ReadOnly);
        }
        let mut state = self.state.write();
        let rows = Scope::new(&state);
        let id = state.inode_id(ino)?;
        let row = rows.inode(id)?.ok_or(VolumeError::NotFound)?;
        let kind = row.kind();
        if kind == FileKind::Directory {
            return Err(VolumeError::NotPermitted("hard links to directories"));
        }
        let nlink = view::nlink(&rows, id, kind)?;
        if nlink == 0 {
            return Err(VolumeError::NotFound);
        }
        if nlink >= LINKS_MAX {
            return Err(VolumeError::TooManyLinks);
        }
        let parent = open_parent(&rows, parent)?;
        if view::child(&rows, parent.id, name)?.is_some() {
            return Err(VolumeError::Exists);
        }
        let mut draft = state.draft(self.env.now());
        draft.effects.push(plan::link(draft.dot, id, kind, parent.id, name));
        touch_inode(&mut draft, id, &row);
        touch_dir(&rows, &mut draft, &parent)?;
        let aliases = parent.aliases(name);
        let rows = rows.into_rows();
        state.commit_with(draft, rows, &self.journal)?;
        self.tell_aliases(&state, &aliases);
        self.attr(&state, id)
    }

    pub(super) fn unlink_name(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.check_writable()?;
        check_old_name(name)?;
        let mut state = self.state.write();
        let rows = Scope::new(&state);
        let parent = open_parent(&rows, parent)?;
        let mut draft = state.draft(self.env.now());
        let gone = match view::find(&rows, parent.id, name)? {
            Some(Found { shown: Child::Dir(_), .. }) => return Err(VolumeError::IsDirectory),
            Some(found) => self.drop_links(&rows, &mut draft, &found.all)?,
            None => self.drop_sibling(&rows, &mut draft, parent.id, name)?,
        };
        touch_dir(&rows, &mut draft, &parent)?;
        let aliases = parent.aliases(name);
        let rows = rows.into_rows();
        state.commit_with(draft, rows, &self.journal)?;
        self.tell_aliases(&state, &aliases);
        drop(state);
        self.names_gone(gone);
        Ok(())
    }

    /// Every name of a union is known to the kernel under each of its members that it knows.
    fn tell_aliases(&self, state: &State, names: &[(DirId, Vec<u8>)]) {
        if names.is_empty() {
            return;
        }
        if let Some(sink) = self.kernel() {
            for (dir, name) in names {
                sink.entry(state.ino(dir.inode()), name);
                sink.inode(state.ino(dir.inode()), false);
            }
        }
    }

    pub(super) fn names_gone(&self, gone: Vec<(InodeId, bool)>) {
        gone.into_iter().for_each(|(inode, last)| self.name_gone(inode, last));
    }

    /// Adds to the draft that all these names go. Says of each inode whether it has none left.
    pub(super) fn drop_links(
        &self,
        rows: &Scope<'_>,
        draft: &mut Draft,
        links: &[Child],
    ) -> Result<Vec<(InodeId, bool)>> {
        let mut gone = Vec::new();
        for (n, child) in links.iter().enumerate() {
            let Child::Link { link, inode, kind } = *child else { continue };
            // Two links of one inode at one name: only the last takes it away.
            let again = links[n + 1..].iter().filter(|other| other.inode() == inode).count() as u32;
            let before = links[..n].iter().filter(|other| other.inode() == inode).count() as u32;
            let last = again == 0 && view::nlink_of_child(rows, *child)? <= before + 1;
            self.drop_link(rows, draft, (link, inode, kind), last)?;
            if again == 0 {
                gone.push((inode, last));
            }
        }
        Ok(gone)
    }

    /// After an inode lost a name, perhaps its last.
    fn name_gone(&self, inode: InodeId, last: bool) {
        if last {
            self.inode_gone(inode);
        } else {
            // The kernel counts the link down by itself once our reply arrives. If somebody looks at the inode by
            // another name in between, it takes one off the new number, and would keep the result for ever.
            self.invalidate_inode(inode, false);
        }
    }

    /// Adds to the draft what unlinking means, the last name of an inode or not.
    fn drop_link(
        &self,
        rows: &Scope<'_>,
        draft: &mut Draft,
        (link, inode, kind): (LinkId, InodeId, FileKind),
        gone: bool,
    ) -> Result<()> {
        draft.effects.push(plan::unlink(rows, link, inode, kind)?);
        let Some(row) = rows.inode(inode)? else { return Ok(()) };
        if gone {
            let mut attr = self.attr_of(rows, rows, inode, &row, 0)?;
            attr.ctime = draft.time;
            self.departed.lock().insert(inode, attr);
        }
        if gone && !self.is_open(inode) {
            if rows.is_shared(inode.0) {
                touch_inode(draft, inode, &row);
            }
            purge(rows, rows, draft, inode, &row)?;
        } else {
            touch_inode(draft, inode, &row);
            if gone {
                draft.local.push((local_key(b'o', &inode.0.to_bytes()), Some(Vec::new())));
            }
        }
        Ok(())
    }

    pub(super) fn rmdir_name(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.check_writable()?;
        match name {
            b"." => return Err(VolumeError::Invalid("rmdir of .")),
            b".." => return Err(VolumeError::NotEmpty),
            _ => check_old_name(name)?,
        }
        let mut state = self.state.write();
        let rows = Scope::new(&state);
        let parent = open_parent(&rows, parent)?;
        let found = view::find(&rows, parent.id, name)?.ok_or(VolumeError::NotFound)?;
        let mut draft = state.draft(self.env.now());
        let removed = drop_dirs(&rows, &mut draft, &found)?;
        touch_dir(&rows, &mut draft, &parent)?;
        let aliases = parent.aliases(name);
        let rows = rows.into_rows();
        state.commit_with(draft, rows, &self.journal)?;
        self.tell_aliases(&state, &aliases);
        self.removed_dirs.lock().extend(removed);
        Ok(())
    }

    pub(super) fn rename_name(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        self.check_writable()?;
        check_old_name(name)?;
        check_new_name(new_name)?;
        self.publish_before_rename(parent, name)?;
        let mut state = self.state.write();
        let rows = Scope::new(&state);
        let from = &open_parent(&rows, parent)?;
        let other = if new_parent == parent { None } else { Some(open_parent(&rows, new_parent)?) };
        let to = other.as_ref().unwrap_or(from);
        let source = view::find(&rows, from.id, name)?.ok_or(VolumeError::NotFound)?;
        let target = view::find(&rows, to.id, new_name)?;
        let mut draft = state.draft(self.env.now());
        let (mut gone, mut removed) = (Vec::new(), Vec::new());
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(VolumeError::Exists),
            (RenameMode::Exchange, None) => return Err(VolumeError::NotFound),
            (RenameMode::Exchange, Some(target)) => {
                // Two names of one inode: as in Linux, nothing happens.
                if source.shown.inode() == target.shown.inode() {
                    return Ok(());
                }
                check_not_inside(&rows, &source, to)?;
                check_not_inside(&rows, &target, from)?;
                // In the order of their ids, which is the order in which moves of one operation are folded.
                let mut moves: Vec<(Child, DirId, &[u8])> = Vec::new();
                moves.extend(source.all.iter().map(|what| (*what, to.id, new_name)));
                moves.extend(target.all.iter().map(|what| (*what, from.id, name)));
                moves.sort_unstable_by_key(|(what, ..)| *what);
                for (what, dir, name) in moves {
                    place(&rows, &mut draft, what, dir, name)?;
                }
            }
            (_, target) => {
                check_not_inside(&rows, &source, to)?;
                if let Some(target) = target {
                    // Two names of one inode: POSIX says that nothing happens.
                    if source.shown.inode() == target.shown.inode() {
                        return Ok(());
                    }
                    match (source.shown, target.shown) {
                        (Child::Dir(_), Child::Dir(_)) => removed = drop_dirs(&rows, &mut draft, &target)?,
                        (Child::Dir(_), Child::Link { .. }) => return Err(VolumeError::NotDirectory),
                        (Child::Link { .. }, Child::Dir(_)) => return Err(VolumeError::IsDirectory),
                        (Child::Link { .. }, Child::Link { .. }) => {
                            gone = self.drop_links(&rows, &mut draft, &target.all)?;
                        }
                    }
                }
                // A file that is seen beside a directory of its name keeps the name that it is given now.
                for what in &source.all {
                    place(&rows, &mut draft, *what, to.id, new_name)?;
                }
            }
        }
        touch_dir(&rows, &mut draft, from)?;
        if to.id != from.id {
            touch_dir(&rows, &mut draft, to)?;
        }
        let mut aliases = from.aliases(name);
        aliases.extend(to.aliases(new_name));
        let rows = rows.into_rows();
        state.commit_with(draft, rows, &self.journal)?;
        self.tell_aliases(&state, &aliases);
        drop(state);
        self.removed_dirs.lock().extend(removed);
        self.names_gone(gone);
        Ok(())
    }

    pub(super) fn list(&self, ino: Ino, after: u64, each: &mut dyn FnMut(&Entry) -> bool) -> Result<()> {
        if ino.is_virtual() {
            return self.reserved_list(ino, after, each);
        }
        let attr = &mut |state: &State, child| {
            let attr = self.attr_of_child(state, child);
            attr.inspect_err(|error| tracing::error!(%error, "a listed inode cannot be read"))
        };
        let each = &mut |name: &[u8], attr, next| each(&Entry { name: name.to_vec(), attr, next });
        self.list_as(ino, after, |attr| attr, attr, each)
    }

    pub(super) fn list_names(&self, ino: Ino, after: u64, each: &mut dyn FnMut(&Named<'_>) -> bool) -> Result<()> {
        if ino.is_virtual() {
            return self.reserved_list_names(ino, after, each);
        }
        let number = &mut |state: &State, child: Child| Ok((state.ino(known_as(state, child)?.inode()), child.kind()));
        let each = &mut |name: &[u8], (ino, kind), next| each(&Named { name, ino, kind, next });
        self.list_as(ino, after, |attr| (attr.ino, attr.kind), number, each)
    }

    /// Lists a directory, telling of each name what `look` finds, and of "." and ".." what `above` makes of them.
    fn list_as<T>(
        &self,
        ino: Ino,
        mut after: u64,
        above: fn(Attr) -> T,
        look: &mut dyn FnMut(&State, Child) -> Result<T>,
        each: &mut dyn FnMut(&[u8], T, u64) -> bool,
    ) -> Result<()> {
        let dir = {
            let state = self.state.read();
            let dir = DirId(state.inode_id(ino)?.0);
            for (name, dir, next) in [(&b"."[..], dir, SELF), (b"..", self::above(&state, dir)?, ABOVE)] {
                if after < next {
                    if !each(name, above(self.attr(&state, dir.inode())?), next) {
                        return Ok(());
                    }
                    after = next;
                }
            }
            dir
        };
        let siblings = self.siblings_in(dir)?;
        loop {
            // The lock is taken for a batch only: a huge directory must not hold up everybody else.
            let state = self.state.read();
            let listed = view::list(&*state, dir, after + 1, BATCH)?;
            if siblings.is_empty() {
                if !pass_on(&listed, &mut after, &mut |child| look(&state, child), each)? {
                    return Ok(());
                }
                continue;
            }
            let more = listed.len() >= BATCH;
            let until = listed.last().filter(|_| more).map_or(u64::MAX, |last| last.hash);
            let real = listed.into_iter().map(|item| (item.hash, item.name, Item::Real(item.child)));
            let beside = siblings.iter().filter(|(hash, ..)| *hash > after && *hash <= until);
            let beside = beside.map(|(hash, name, node)| (*hash, name.clone(), Item::Sibling(*node)));
            let mut items: Vec<_> = real.chain(beside).collect();
            items.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
            for (at, (hash, name, item)) in items.iter().enumerate() {
                let told = match item {
                    Item::Real(child) => look(&state, *child)?,
                    Item::Sibling(node) => above(self.sibling_attr(&state, *node)?),
                };
                let again = items.get(at + 1).is_some_and(|next| next.0 == *hash);
                if !each(name, told, hash - u64::from(again)) {
                    return Ok(());
                }
                after = *hash;
            }
            if !more {
                return Ok(());
            }
        }
    }
}

/// One entry of a listing in which disputed files have siblings.
enum Item {
    Real(Child),
    Sibling(reserved::Node),
}

/// The directory that a directory is in, as the kernel knows it.
fn above(state: &State, dir: DirId) -> Result<DirId> {
    let parent = state.dir(dir)?.ok_or(VolumeError::Stale)?.parent;
    Ok(DirId(known_as(state, Child::Dir(parent))?.inode().0))
}

/// What a name means, as the kernel knows it: of a union the member that it knew before there was a union.
pub(super) fn known_as(state: &State, child: Child) -> std::result::Result<Child, StoreError> {
    let Child::Dir(dir) = child else { return Ok(child) };
    let members = union::members(state, dir)?;
    if members.len() > 1 {
        for member in &members {
            if state.get(Table::Local, &local_key(b'u', &member.0.to_bytes()))?.is_some() {
                return Ok(Child::Dir(*member));
            }
        }
    }
    Ok(Child::Dir(members[0]))
}

/// The cookies of "." and "..", and how many names are fetched at once.
pub(super) const SELF: u64 = 1;
pub(super) const ABOVE: u64 = 2;
pub(super) const BATCH: usize = 256;

/// Passes on a batch of names, and notes in `after` how far that went. Says whether there may be more, and room for it.
pub(super) fn pass_on<T>(
    listed: &[Listed],
    after: &mut u64,
    look: &mut dyn FnMut(Child) -> Result<T>,
    each: &mut dyn FnMut(&[u8], T, u64) -> bool,
) -> Result<bool> {
    for (at, item) in listed.iter().enumerate() {
        // Names with one hash share a cookie: all but the last resume before it, so that none is skipped.
        let more = listed.get(at + 1).is_some_and(|next| next.hash == item.hash);
        if !each(&item.name, look(item.child)?, item.hash - u64::from(more)) {
            return Ok(false);
        }
        *after = item.hash;
    }
    Ok(listed.len() >= BATCH)
}

/// Adds to the draft that an inode without names is forgotten.
///
/// Unless a branch knows it, or could be made of a snapshot that does: it may change the inode or give it a name. What is
/// left is a grave then, until the last of them is gone.
pub(super) fn purge<T: Tables>(
    state: &State,
    rows: &T,
    draft: &mut Draft,
    inode: InodeId,
    row: &InodeRow,
) -> Result<()> {
    let key = inode.0.to_bytes();
    if state.is_shared(inode.0) {
        draft.local.push((local_key(b'g', &key), Some(Vec::new())));
    } else {
        draft.effects.push(plan::purge(rows, inode, row)?);
    }
    history::forget(rows, draft, inode, row)?;
    for about in [b't', b'o'] {
        let key = local_key(about, &key);
        if rows.get(Table::Local, &key)?.is_some() {
            draft.local.push((key, None));
        }
    }
    Ok(())
}

/// Adds to the draft that a directory goes, with all that are one with it. Returns their inodes.
fn drop_dirs(rows: &Scope<'_>, draft: &mut Draft, found: &Found) -> Result<Vec<InodeId>> {
    let mut removed = Vec::new();
    for child in &found.all {
        let Child::Dir(dir) = *child else { return Err(VolumeError::NotDirectory) };
        if rows.dir(dir)?.is_some_and(|row| row.entries > 0) {
            return Err(VolumeError::NotEmpty);
        }
        let row = rows.inode(dir.inode())?.ok_or(VolumeError::NotFound)?;
        // What is left is forgotten when the kernel has forgotten it: it does not say who has a directory open.
        draft.effects.push(plan::remove_dir(dir, &row));
        touch_inode(draft, dir.inode(), &row);
        draft.local.push((local_key(b'o', &dir.inode().0.to_bytes()), Some(Vec::new())));
        removed.push(dir.inode());
    }
    Ok(removed)
}

/// Adds to the draft that something gets a new place.
fn place(rows: &Scope<'_>, draft: &mut Draft, what: Child, parent: DirId, name: &[u8]) -> Result<()> {
    let row = rows.inode(what.inode())?.ok_or(VolumeError::NotFound)?;
    draft.effects.extend(plan::place(rows, what, parent, name, &|moves| foldable(rows, what, moves))?);
    touch_inode(draft, what.inode(), &row);
    Ok(())
}

/// Earlier moves of a directory that nobody needs any more. Where others know the directory, the latest of those that
/// they do not know stay as well: one may yet turn out not to be possible, and then the one before it holds.
///
/// Those that others know are dropped only where there are so many that their row would grow too large. A directory is
/// nowhere then if none of the last `KNOWN_KEPT` moves turns out to be possible; and none of them may be skipped, as
/// that may be for what an earlier one did.
pub(super) fn foldable(
    rows: &Scope<'_>,
    what: Child,
    moves: &[MoveId],
) -> std::result::Result<Vec<MoveId>, StoreError> {
    const KEPT: usize = 16;
    const KNOWN_KEPT: usize = 500;
    if !rows.is_shared(what.inode().0) {
        return Ok(moves.to_vec());
    }
    let (known, unseen): (Vec<MoveId>, Vec<MoveId>) = moves.iter().copied().partition(|id| rows.is_shared(id.dot));
    let mut folded = unseen[..unseen.len().saturating_sub(KEPT)].to_vec();
    if let Some((oldest @ &[first, ..], _)) = known.split_at_checked(known.len().saturating_sub(KNOWN_KEPT))
        && !position::is_any_skipped(rows, &move_key(first, DirId(what.inode().0)))?
    {
        folded.extend(oldest);
        folded.sort_unstable();
    }
    Ok(folded)
}

/// No member of a union may come to lie inside of any other.
fn check_not_inside(rows: &Scope<'_>, what: &Found, dir: &Parent) -> Result<()> {
    for child in &what.all {
        let Child::Dir(moved) = *child else { continue };
        for member in &dir.members {
            if derive::is_inside(rows, *member, moved)? {
                return Err(VolumeError::Invalid("a directory cannot move into itself"));
            }
        }
    }
    Ok(())
}

fn open_parent(rows: &Scope<'_>, ino: Ino) -> Result<Parent> {
    if ino.is_virtual() {
        return Err(VolumeError::ReadOnly);
    }
    let id = rows.inode_id(ino)?;
    let row = rows.inode(id)?.ok_or(VolumeError::NotFound)?;
    if row.kind() != FileKind::Directory {
        return Err(VolumeError::NotDirectory);
    }
    let members = union::members(rows, DirId(id.0))?;
    if members.len() > 1 {
        let id = members[0];
        let row = rows.inode(id.inode())?.ok_or(VolumeError::NotFound)?;
        return Ok(Parent { id, row, members });
    }
    // A removed directory is still there for what somebody else put into it.
    if row.alive.is_empty() && !rows.dir(DirId(id.0))?.is_some_and(|row| row.shown) {
        return Err(VolumeError::NotFound);
    }
    Ok(Parent { id: DirId(id.0), row, members })
}

impl Parent {
    /// A name in each of the members, if there are several.
    fn aliases(&self, name: &[u8]) -> Vec<(DirId, Vec<u8>)> {
        let several = self.members.len() > 1;
        self.members.iter().filter(|_| several).map(|member| (*member, name.to_vec())).collect()
    }
}

/// A directory whose entries change gets a new mtime and ctime.
fn touch_dir(rows: &Scope<'_>, draft: &mut Draft, parent: &Parent) -> Result<()> {
    draft.effects.extend(plan::touch_dir(rows, parent.id, &parent.row, draft.time)?);
    Ok(())
}

pub(super) fn touch_inode(draft: &mut Draft, inode: InodeId, row: &InodeRow) {
    draft.effects.push(plan::touch(inode, row, draft.time));
}

/// The mode of a new node under its parent's default ACL or the umask, and the default ACL that it inherits.
fn new_mode(
    rows: &Scope<'_>,
    parent: &Parent,
    node: &NewNode<'_>,
    kind: FileKind,
) -> std::result::Result<(Mode, Option<Vec<u8>>), StoreError> {
    let asked = (node.permissions & 0o7777) as u16;
    if kind == FileKind::Symlink {
        return Ok((Mode { permissions: 0o777, acl: Vec::new() }, None));
    }
    let inherited = rows.xattr(parent.id.inode(), acl::DEFAULT)?.latest().map(|entry| entry.value.clone());
    let default = inherited.as_deref().and_then(|bytes| Acl::parse(bytes).ok().flatten());
    let Some(default) = default else {
        return Ok((Mode { permissions: asked & !(node.umask as u16 & 0o777), acl: Vec::new() }, None));
    };
    let (access, bits) = default.inherit(asked);
    let acl = if access.is_minimal() { Vec::new() } else { access.encode() };
    let passed_on = if kind == FileKind::Directory { inherited } else { None };
    Ok((Mode { permissions: asked & 0o7000 | bits, acl }, passed_on))
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_BYTES_MAX { Err(VolumeError::NameTooLong) } else { Ok(()) }
}

fn check_new_name(name: &[u8]) -> Result<()> {
    check_name(name)?;
    match name {
        b"" => Err(VolumeError::NotFound),
        b"." | b".." => Err(VolumeError::Exists),
        reserved::NAME => Err(VolumeError::NotPermitted(".phi is reserved")),
        name if name.contains(&b'/') || name.contains(&0) => Err(VolumeError::Invalid("a name with a slash or NUL")),
        _ => Ok(()),
    }
}

fn check_old_name(name: &[u8]) -> Result<()> {
    check_name(name)?;
    match name {
        b"." | b".." => Err(VolumeError::Invalid("the name . or ..")),
        reserved::NAME => Err(VolumeError::NotPermitted(".phi is reserved")),
        _ => Ok(()),
    }
}
