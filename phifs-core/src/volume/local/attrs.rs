//! Attributes and extended attributes.

use crate::codec::{Encode, Reader};
use crate::durability::Durability;
use crate::id::{DirId, InodeId};
use crate::meta::TableId;
use crate::namespace::Effect;
use crate::namespace::derive::Child;
use crate::namespace::op::{Field, InodeEffect};
use crate::namespace::plan::drops;
use crate::namespace::privilege::{self, CAPABILITY, Grant, SET_ID_BITS, has_set_id};
use crate::namespace::row::{Closure, InodeRow, Mode, Owner};
use crate::namespace::tables::{Rows, Table, Tables, malformed};
use crate::namespace::union;
use crate::namespace::view::{self, Stat};
use crate::store::StoreError;
use crate::time::Timestamp;
use crate::volume::{Attr, Caller, FileKind, Ino, Result, SetAttr, SetTime, VolumeError, XattrMode};

use super::acl::{self, Acl};
use super::names::known_as;
use super::receipts::DURABILITY;
use super::scope::Scope;
use super::state::{Draft, State, local_key};
use super::{LocalVolume, conflicts, files::Shown};

const XATTR_NAME_BYTES_MAX: usize = 255;
const XATTR_BYTES_MAX: usize = 64 * 1024;
/// What all names of one inode's extended attributes may add up to, as for Linux's listxattr(2).
const XATTR_LIST_BYTES_MAX: usize = 64 * 1024;

/// The value of an attribute of the nearest directory that has it: this one, or one above.
pub(super) fn said_above(state: &State, dir: DirId, attribute: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut at = (!state.meta.is_empty(TableId(Table::Xattrs as u8))).then_some(dir);
    while let Some(dir) = at {
        if let Some(entry) = state.xattr(dir.inode(), attribute)?.latest() {
            return Ok(Some(entry.value.clone()));
        }
        let above = if dir == DirId::ROOT { None } else { state.dir(dir)?.and_then(|row| row.position()) };
        at = above.map(|(above, _)| above);
    }
    Ok(None)
}

impl LocalVolume {
    /// What stat(2) says of an inode, with the bytes that are not published yet.
    pub(super) fn attr(&self, state: &State, id: InodeId) -> Result<Attr> {
        let Some(row) = state.inode(id)? else {
            return self.departed.lock().get(&id).copied().ok_or(VolumeError::NotFound);
        };
        let nlink = view::nlink(state, id, row.kind())?;
        self.attr_of(state, state, id, &row, nlink)
    }

    /// The same for what a name means, which says a part of it.
    pub(super) fn attr_of_child(&self, state: &State, child: Child) -> Result<Attr> {
        let child = known_as(state, child)?;
        let id = child.inode();
        match state.inode(id)? {
            Some(row) => self.attr_of(state, state, id, &row, view::nlink_of_child(state, child)?),
            None => self.attr(state, id),
        }
    }

    pub(super) fn attr_of<T: Tables>(
        &self,
        state: &State,
        rows: &T,
        id: InodeId,
        row: &InodeRow,
        nlink: u32,
    ) -> Result<Attr> {
        let mut attr = attr_of_stat(state.ino(id), &view::stat(rows, id, row)?, nlink);
        if let Some(merged) = self.merged(state, id, row)? {
            merged.apply(&mut attr);
        }
        if let Some(atime) = atime(rows, id)? {
            attr.atime = atime;
        }
        if attr.kind == FileKind::File
            && let Some(shown) = self.shown(id)?
        {
            shown.apply(&mut attr);
        }
        Ok(attr)
    }

    pub(super) fn set_attributes(&self, caller: &Caller, ino: Ino, change: &SetAttr) -> Result<Attr> {
        self.check_writable()?;
        if ino.is_virtual() {
            return Err(VolumeError::ReadOnly);
        }
        if let Some(size_bytes) = change.size_bytes {
            self.truncate(ino, size_bytes)?;
        }
        if change.permissions.is_some_and(|permissions| permissions & u32::from(SET_ID_BITS) != 0) {
            self.publish_for_grant(ino)?;
        }
        let mut state = self.state.write();
        let rows = Scope::new(&state);
        let id = state.inode_id(ino)?;
        let Some(row) = rows.inode(id)? else { return self.set_departed(id, change) };
        let stat = view::stat(&rows, id, &row)?;
        let mut draft = state.draft(self.env.now());
        let now = draft.time;
        let mut effect = InodeEffect::new(id);
        let mut mode = stat.mode.clone();
        if let Some(permissions) = change.permissions {
            mode.permissions = (permissions & 0o7777) as u16;
            if let Some(mut acl) = Acl::parse_kept(&mode.acl) {
                acl.set_bits(mode.permissions);
                mode.acl = acl.encode();
            }
        }
        let owner = Owner { uid: change.uid.unwrap_or(stat.owner.uid), gid: change.gid.unwrap_or(stat.owner.gid) };
        if change.uid.is_some() || change.gid.is_some() {
            effect.owner = Some(owner);
            if stat.kind != FileKind::Directory {
                mode.permissions = without_set_id(mode.permissions, true);
            }
            drop_capability(&state, &mut draft, id)?;
        }
        if change.size_bytes.is_some() && caller.uid != 0 {
            mode.permissions = without_set_id(mode.permissions, caller.gid == owner.gid);
        }
        // A bit that stays is for the new owner as well.
        let is_for_other_owner = effect.owner.is_some() && has_set_id(&mode) && stat.kind != FileKind::Directory;
        let is_set = mode != stat.mode || change.permissions.is_some() || is_for_other_owner;
        let time_of = |set: SetTime| match set {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        let mtime = change.mtime.map(time_of);
        effect.mtime = mtime;
        if let Some(atime) = change.atime.map(time_of) {
            let mut value = Vec::new();
            value.put_time(atime);
            draft.local.push((local_key(b't', &id.0.to_bytes()), Some(value)));
        }
        effect.touched = Some(now);
        for (id, row) in rows_to_set(&rows, id, row)? {
            let mut effect = InodeEffect { inode: id, ..effect.clone() };
            if effect.owner.is_some() {
                effect.drops.extend(drops(Field::Owner, &row.owner));
            }
            if is_set {
                effect.mode = Some(Grant::new(mode.clone(), &row, draft.dot));
                effect.drops.extend(drops(Field::Mode, &row.mode));
            }
            if effect.mtime.is_some() {
                effect.drops.extend(drops(Field::Mtime, &row.mtime));
            }
            effect.drops.extend(drops(Field::Touched, &row.touched));
            draft.effects.push(Effect::Inode(effect));
        }
        let rows = rows.into_rows();
        state.commit_with(draft, rows, &self.journal)?;
        if let Some(mtime) = mtime {
            self.set_shown_mtime(id, mtime)?;
        }
        self.attr(&state, id)
    }

    /// The kernel hands over the times of files that it wrote to, even after they were removed. Refused, it would make
    /// syncfs(2) fail.
    fn set_departed(&self, id: InodeId, change: &SetAttr) -> Result<Attr> {
        if change.permissions.is_some() || change.uid.is_some() || change.gid.is_some() {
            return Err(VolumeError::NotFound);
        }
        let mut departed = self.departed.lock();
        let attr = departed.get_mut(&id).ok_or(VolumeError::NotFound)?;
        for (time, set) in [(&mut attr.mtime, change.mtime), (&mut attr.atime, change.atime)] {
            *time = match set {
                None => *time,
                Some(SetTime::Now) => self.env.now(),
                Some(SetTime::At(set)) => set,
            };
        }
        Ok(*attr)
    }

    pub(super) fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        if ino.is_virtual() {
            return self.reserved_link(ino);
        }
        let state = self.state.read();
        target_of(&*state, state.inode_id(ino)?)
    }

    /// Drops what must not survive a write by somebody without privilege.
    pub(super) fn kill_set_id(&self, id: InodeId, caller: &Caller) -> Result<()> {
        let mut state = self.state.write();
        let Some(row) = state.inode(id)? else { return Ok(()) };
        let Stat { mode, owner, .. } = Stat::of(&row);
        let permissions = without_set_id(mode.permissions, caller.gid == owner.gid);
        if permissions == mode.permissions {
            return Ok(());
        }
        let mut draft = state.draft(self.env.now());
        draft.effects.push(Effect::Inode(InodeEffect {
            mode: Some(Grant::new(Mode { permissions, ..mode }, &row, draft.dot)),
            touched: Some(draft.time),
            drops: drops(Field::Mode, &row.mode).chain(drops(Field::Touched, &row.touched)).collect(),
            ..InodeEffect::new(id)
        }));
        state.commit(draft, &self.journal)?;
        Ok(())
    }

    /// What makes a program run with the rights of others is for the bytes that there are: those that were written
    /// before become a version now, so that it is for them. Of what is written meanwhile, `keep_set_id` decides.
    fn publish_for_grant(&self, ino: Ino) -> Result<()> {
        let id = self.state.read().inode_id(ino)?;
        if let Some(user) = self.known(id) {
            self.publish(&user.cell, Closure::IdleFlush)?;
        }
        Ok(())
    }

    pub(super) fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        if ino.is_virtual() {
            return self.reserved_xattr(ino, name);
        }
        let state = self.state.read();
        let id = state.inode_id(ino)?;
        if !name.starts_with(b"user.phi.") {
            return xattr_of(&*state, id, name);
        }
        let kind = state.inode(id)?.ok_or(VolumeError::NotFound)?.kind();
        if conflicts::is_of_copies(name, kind) {
            drop(state);
            self.told_of_copies(id, name)
        } else if conflicts::is_told(name, kind) {
            self.told(&state, id, name)
        } else {
            xattr_of(&*state, id, name)
        }
    }

    pub(super) fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], how: XattrMode) -> Result<()> {
        self.check_writable()?;
        if ino.is_virtual() {
            return Err(VolumeError::ReadOnly);
        }
        check_xattr_name(name)?;
        if value.len() > XATTR_BYTES_MAX {
            return Err(VolumeError::AttributeTooLarge);
        }
        if name == CAPABILITY {
            self.publish_for_grant(ino)?;
        }
        let mut state = self.state.write();
        let id = canonical(&*state, state.inode_id(ino)?)?;
        let row = state.inode(id)?.ok_or(VolumeError::NotFound)?;
        if conflicts::is_told(name, row.kind()) {
            return Err(VolumeError::NotPermitted("this attribute is told by the filesystem"));
        }
        if name == DURABILITY && !std::str::from_utf8(value).is_ok_and(|word| word.parse::<Durability>().is_ok()) {
            return Err(VolumeError::Invalid("the durability is local, quorum or all"));
        }
        if name == acl::ACCESS {
            let acl = Acl::parse(value)?;
            return self.set_access_acl(&mut state, id, &row, acl);
        }
        let mut value = Some(value);
        if name == acl::DEFAULT {
            if row.kind() != FileKind::Directory {
                return Err(VolumeError::Denied);
            }
            if Acl::parse(value.unwrap_or_default())?.is_none() {
                value = None;
            }
        }
        let old = state.xattr(id, name)?;
        let is_there = match xattr_of(&*state, id, name) {
            Err(VolumeError::NoAttribute) => false,
            found => found.map(|_| true)?,
        };
        match how {
            XattrMode::Create if is_there => return Err(VolumeError::Exists),
            XattrMode::Replace if !is_there => return Err(VolumeError::NoAttribute),
            _ => {}
        }
        if old.is_empty() {
            let taken: usize = xattr_names(&*state, id)?.iter().map(|name| name.len() + 1).sum();
            if taken + name.len() + 1 > XATTR_LIST_BYTES_MAX {
                return Err(VolumeError::NoSpace("the list of extended attributes would exceed 64 KiB"));
            }
        }
        let mut draft = state.draft(self.env.now());
        let value = value.map(|value| privilege::stored_xattr(name, value.to_vec(), &row, draft.dot));
        draft.effects.push(Effect::Xattr { inode: id, name: name.to_vec(), value, drops: old.dots().collect() });
        touch(&mut draft, id, &row);
        state.commit(draft, &self.journal)?;
        Ok(())
    }

    pub(super) fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        self.check_writable()?;
        if ino.is_virtual() {
            return Err(VolumeError::ReadOnly);
        }
        check_xattr_name(name)?;
        let mut state = self.state.write();
        let id = canonical(&*state, state.inode_id(ino)?)?;
        let row = state.inode(id)?.ok_or(VolumeError::NotFound)?;
        if name == acl::ACCESS {
            return self.set_access_acl(&mut state, id, &row, None);
        }
        let mut draft = state.draft(self.env.now());
        for inode in united(&*state, id)? {
            if view::xattr(&*state, inode, name)?.is_some() {
                let drops = state.xattr(inode, name)?.dots().collect();
                draft.effects.push(Effect::Xattr { inode, name: name.to_vec(), value: None, drops });
            }
        }
        if draft.effects.is_empty() {
            // Removing an ACL that is not there succeeds on Linux's own filesystems.
            return if name == acl::DEFAULT { Ok(()) } else { Err(VolumeError::NoAttribute) };
        }
        touch(&mut draft, id, &row);
        state.commit(draft, &self.journal)?;
        Ok(())
    }

    fn set_access_acl(&self, state: &mut State, id: InodeId, row: &InodeRow, acl: Option<Acl>) -> Result<()> {
        let mut mode = view::stat(state, id, row)?.mode;
        mode.acl = Vec::new();
        if let Some(acl) = acl {
            mode.permissions = mode.permissions & 0o7000 | acl.bits();
            if !acl.is_minimal() {
                mode.acl = acl.encode();
            }
        }
        let mut draft = state.draft(self.env.now());
        for (id, row) in rows_to_set(state, id, row.clone())? {
            draft.effects.push(Effect::Inode(InodeEffect {
                mode: Some(Grant::new(mode.clone(), &row, draft.dot)),
                touched: Some(draft.time),
                drops: drops(Field::Mode, &row.mode).chain(drops(Field::Touched, &row.touched)).collect(),
                ..InodeEffect::new(id)
            }));
        }
        state.commit(draft, &self.journal)?;
        Ok(())
    }

    pub(super) fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        if ino.is_virtual() {
            return self.reserved_xattrs(ino);
        }
        let state = self.state.read();
        xattrs_of(&*state, state.inode_id(ino)?)
    }
}

/// What the tables say about an inode.
pub(super) fn attr_of_stat(ino: Ino, stat: &Stat, nlink: u32) -> Attr {
    let content = stat.version.as_ref().map(|(_, version)| version.content);
    Attr {
        ino,
        kind: stat.kind,
        permissions: u32::from(stat.mode.permissions),
        nlink,
        uid: stat.owner.uid,
        gid: stat.owner.gid,
        rdev: stat.rdev,
        size_bytes: match stat.kind {
            FileKind::Symlink => stat.target.len() as u64,
            FileKind::Directory => 4096,
            _ => content.map_or(0, |content| content.len_bytes()),
        },
        blocks: match stat.kind {
            FileKind::Directory => 8,
            _ => blocks(content.map_or(0, |content| content.allocated_bytes())),
        },
        atime: stat.btime,
        mtime: stat.mtime,
        ctime: stat.ctime,
        btime: stat.btime,
    }
}

/// Where a symlink leads.
pub(super) fn target_of<T: Tables>(rows: &T, id: InodeId) -> Result<Vec<u8>> {
    let row = rows.inode(id)?.ok_or(VolumeError::NotFound)?;
    match row.kind() {
        FileKind::Symlink => Ok(Stat::of(&row).target),
        _ => Err(VolumeError::Invalid("not a symlink")),
    }
}

/// The value of an extended attribute.
pub(super) fn xattr_of<T: Tables>(rows: &T, id: InodeId, name: &[u8]) -> Result<Vec<u8>> {
    check_xattr_name(name)?;
    if name == acl::ACCESS {
        let row = rows.inode(id)?.ok_or(VolumeError::NotFound)?;
        let mode = view::stat(rows, id, &row)?.mode;
        return if mode.acl.is_empty() { Err(VolumeError::NoAttribute) } else { Ok(mode.acl) };
    }
    for inode in united(rows, id)? {
        if let Some(value) = view::xattr(rows, inode, name)? {
            return Ok(value);
        }
    }
    Err(VolumeError::NoAttribute)
}

/// All that are one with an inode: the members of a union, or it alone.
fn united<T: Tables>(rows: &T, id: InodeId) -> std::result::Result<Vec<InodeId>, StoreError> {
    Ok(union::members(rows, DirId(id.0))?.iter().map(|member| member.inode()).collect())
}

fn canonical<T: Tables>(rows: &T, id: InodeId) -> std::result::Result<InodeId, StoreError> {
    Ok(union::members(rows, DirId(id.0))?[0].inode())
}

/// The rows to change for a change of an inode's attributes: those of all members of a union, as what it grants is what
/// all of them grant.
fn rows_to_set<T: Tables>(rows: &T, id: InodeId, row: InodeRow) -> Result<Vec<(InodeId, InodeRow)>> {
    let united = united(rows, id)?;
    if united.len() == 1 {
        return Ok(vec![(id, row)]);
    }
    let mut found = Vec::new();
    for id in united {
        found.push((id, rows.inode(id)?.ok_or(VolumeError::NotFound)?));
    }
    Ok(found)
}

/// The names of all extended attributes.
pub(super) fn xattrs_of<T: Tables>(rows: &T, id: InodeId) -> Result<Vec<Vec<u8>>> {
    let row = rows.inode(id)?.ok_or(VolumeError::NotFound)?;
    let mut names = Vec::new();
    for inode in united(rows, id)? {
        names.extend(xattr_names(rows, inode)?);
    }
    names.sort_unstable();
    names.dedup();
    if !view::stat(rows, id, &row)?.mode.acl.is_empty() {
        names.push(acl::ACCESS.to_vec());
    }
    Ok(names)
}

fn xattr_names<T: Tables>(rows: &T, id: InodeId) -> std::result::Result<Vec<Vec<u8>>, StoreError> {
    Ok(view::xattrs(rows, id)?.into_iter().map(|(name, _)| name).collect())
}

impl Acl {
    /// An ACL that was checked when it was stored.
    fn parse_kept(bytes: &[u8]) -> Option<Self> {
        Self::parse(bytes).ok().flatten()
    }
}

impl Shown {
    fn apply(self, attr: &mut Attr) {
        attr.size_bytes = self.len_bytes;
        attr.blocks = blocks(self.allocated_bytes);
        attr.mtime = self.mtime;
        attr.ctime = attr.ctime.max(self.ctime);
    }
}

fn touch(draft: &mut Draft, id: InodeId, row: &InodeRow) {
    draft.effects.push(Effect::Inode(InodeEffect {
        touched: Some(draft.time),
        drops: drops(Field::Touched, &row.touched).collect(),
        ..InodeEffect::new(id)
    }));
}

/// File capabilities do not survive a change of owner or bytes.
pub(super) fn drop_capability(state: &State, draft: &mut Draft, id: InodeId) -> Result<()> {
    let old = state.xattr(id, CAPABILITY)?;
    if !old.is_empty() {
        draft.effects.push(Effect::Xattr {
            inode: id,
            name: CAPABILITY.to_vec(),
            value: None,
            drops: old.dots().collect(),
        });
    }
    Ok(())
}

/// Without set-user-id, and without set-group-id where the group may execute the file; elsewhere that bit means mandatory
/// locking, and stays if the caller is of the file's group. (Of groups, only the caller's first is known here.)
pub(super) fn without_set_id(permissions: u16, in_group: bool) -> u16 {
    let mut permissions = permissions & !0o4000;
    if permissions & 0o010 != 0 || !in_group {
        permissions &= !0o2000;
    }
    permissions
}

/// In units of 512 bytes, by whole pages as a host filesystem counts.
pub(super) fn blocks(allocated_bytes: u64) -> u64 {
    allocated_bytes.div_ceil(4096) * 8
}

/// The atime that somebody set; reading a file does not change it.
fn atime<T: Tables>(rows: &T, id: InodeId) -> Result<Option<Timestamp>> {
    let key = local_key(b't', &id.0.to_bytes());
    let value = rows.get(Table::Local, &key)?;
    Ok(value.map(|value| Reader::new(&value).time().map_err(|e| malformed("atime", &key, e))).transpose()?)
}

fn check_xattr_name(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX {
        return Err(VolumeError::Range);
    }
    let known: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    if known.contains(&name) {
        return Err(VolumeError::Invalid("an extended attribute without a name"));
    }
    if name == acl::ACCESS || name == acl::DEFAULT || known.iter().any(|prefix| name.starts_with(prefix)) {
        return Ok(());
    }
    Err(VolumeError::NotSupported("an extended attribute outside user, trusted, security and POSIX ACLs"))
}
