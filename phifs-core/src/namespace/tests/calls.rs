//! The calls of a filesystem as operations, made as the volume makes them: on all members of a union, and on all
//! candidates of a name. What a call refuses is no operation.

use super::super::coherence;
use super::super::derive::{self, Child};
use super::super::op::{Effect, Field, InodeEffect};
use super::super::privilege::{CAPABILITY, Grant, SET_ID_BITS};
use super::super::row::{Birth, Closure, Evidence, InodeRow, Mode, Owner, Version};
use super::super::tables::{Rows, Table, Tables, content_key};
use super::super::view::{self, Found, Reached};
use super::super::{conflict, plan, union};
use super::{MapTables, Replica, Sent};
use crate::content::Content;
use crate::content::validate::{Form, Verdict};
use crate::id::{DirId, Dot, GlyphId, InodeId};
use crate::time::Timestamp;
use crate::volume::FileKind;

type Path = &'static str;

/// What a user does, by paths from the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Mkdir(Path),
    Create(Path),
    /// Where it leads, and its own path.
    Symlink(Path, Path),
    Fifo(Path),
    Link(Path, Path),
    /// Opens, creates if need be, truncates, writes, closes.
    Write(Path, &'static str),
    Append(Path, &'static str),
    /// As `Write` by somebody who may keep set-id bits.
    WriteAsRoot(Path, &'static str),
    Truncate(Path),
    Unlink(Path),
    Rmdir(Path),
    /// As `rm -r` does: what is in it first, one by one.
    RemoveTree(Path),
    Rename(Path, Path),
    Exchange(Path, Path),
    Chmod(Path, u16),
    Chown(Path, u32),
    SetTime(Path, i64),
    SetXattr(Path, Path, &'static str),
    RemoveXattr(Path, Path),
    SetCapability(Path, &'static str),
}

use Call::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    NotFound,
    Exists,
    IsDirectory,
    NotDirectory,
    NotEmpty,
    IntoItself,
    NoAttribute,
}

type Result<T> = std::result::Result<T, Refused>;

impl Replica {
    /// Makes all of these calls, none of which may be refused.
    pub fn calls(&mut self, calls: &[Call]) -> Vec<Sent> {
        let sent = calls.iter().map(|call| self.call(*call).unwrap_or_else(|refused| panic!("{call:?}: {refused:?}")));
        sent.collect::<Vec<_>>().concat()
    }

    /// Makes a call. Some calls are several operations, some are none.
    pub fn call(&mut self, call: Call) -> Result<Vec<Sent>> {
        let effects = match call {
            Mkdir(path) => self.make(FileKind::Directory, "", path)?,
            Create(path) => self.make(FileKind::File, "", path)?,
            Symlink(target, path) => self.make(FileKind::Symlink, target, path)?,
            Fifo(path) => self.make(FileKind::Fifo, "", path)?,
            Link(old, new) => self.link(old, new)?,
            Write(path, text) => return self.write(path, false, |_| text.into()),
            WriteAsRoot(path, text) => return self.write(path, true, |_| text.into()),
            Append(path, text) => return self.write(path, false, |before| before + text),
            Truncate(path) => return self.write(path, false, |_| String::new()),
            Unlink(path) => self.remove(path, false)?,
            Rmdir(path) => self.remove(path, true)?,
            RemoveTree(path) => return self.remove_tree(path),
            Rename(from, to) => self.move_to(from, to)?,
            Exchange(a, b) => self.exchange(a, b)?,
            Chmod(path, permissions) => {
                self.set(path, |_| (Some(Mode { permissions, acl: Vec::new() }), None, None))?
            }
            Chown(path, uid) => self.set(path, |stat| {
                let mut mode = stat.mode.clone();
                mode.permissions &= if stat.kind == FileKind::Directory { 0o7777 } else { 0o1777 };
                ((mode != stat.mode).then_some(mode), Some(Owner { uid, gid: 1 }), None)
            })?,
            SetTime(path, secs) => self.set(path, |_| (None, None, Some(Timestamp::new(secs, 0))))?,
            SetXattr(path, name, value) => {
                let id = self.united(path)?[0];
                let name = format!("user.{name}").into_bytes();
                vec![
                    plan::set_xattr(&self.tables, self.next_dot(), id, &name, Some(value.into())).unwrap(),
                    self.touch(id),
                ]
            }
            SetCapability(path, value) => {
                let id = self.united(path)?[0];
                let set = plan::set_xattr(&self.tables, self.next_dot(), id, CAPABILITY, Some(value.into()));
                vec![set.unwrap(), self.touch(id)]
            }
            RemoveXattr(path, name) => {
                let (united, name) = (self.united(path)?, format!("user.{name}").into_bytes());
                let has = |id: &InodeId| !self.tables.xattr(*id, &name).unwrap().is_empty();
                let with: Vec<InodeId> = united.iter().copied().filter(has).collect();
                if with.is_empty() {
                    return Err(Refused::NoAttribute);
                }
                let gone =
                    with.iter().map(|id| plan::set_xattr(&self.tables, self.next_dot(), *id, &name, None).unwrap());
                gone.chain([self.touch(united[0])]).collect()
            }
        };
        Ok(if effects.is_empty() { Vec::new() } else { vec![self.act(effects)] })
    }

    /// The canonical directory that the last name of a path is in, and that name.
    fn parent<'a>(&self, path: &'a str) -> Result<(DirId, &'a str)> {
        let (above, name) = path.rsplit_once('/').unwrap();
        match view::follow(&self.tables, above.as_bytes()).unwrap() {
            Reached::Child(Child::Dir(dir)) => Ok((union::members(&self.tables, dir).unwrap()[0], name)),
            Reached::Nothing => Err(Refused::NotFound),
            _ => Err(Refused::NotDirectory),
        }
    }

    pub fn find(&self, path: &str) -> Result<Found> {
        let (dir, name) = self.parent(path)?;
        view::find(&self.tables, dir, name.as_bytes()).unwrap().ok_or(Refused::NotFound)
    }

    fn row(&self, inode: InodeId) -> InodeRow {
        self.tables.inode(inode).unwrap().unwrap_or_default()
    }

    fn touch(&self, inode: InodeId) -> Effect {
        plan::touch(inode, &self.row(inode), self.time())
    }

    /// What a path leads to, with all that are one with it.
    fn united(&self, path: &str) -> Result<Vec<InodeId>> {
        Ok(match self.find(path)?.shown {
            Child::Dir(dir) => union::members(&self.tables, dir).unwrap().iter().map(|dir| dir.inode()).collect(),
            Child::Link { inode, .. } => vec![inode],
        })
    }

    fn make(&self, kind: FileKind, target: &str, path: &str) -> Result<Vec<Effect>> {
        let (dir, name) = self.parent(path)?;
        if self.find(path).is_ok() {
            return Err(Refused::Exists);
        }
        let birth = Birth { kind, rdev: 0, time: self.time(), target: target.into(), exclusive: false };
        let mode = Mode { permissions: default_permissions(kind), acl: Vec::new() };
        let made = plan::create(self.next_dot(), birth, mode, Owner { uid: 1, gid: 1 }, dir, name.as_bytes());
        Ok([&made[..], &self.touched(dir)].concat())
    }

    fn link(&self, old: &str, new: &str) -> Result<Vec<Effect>> {
        let (found, (dir, name)) = (self.find(old)?.shown, self.parent(new)?);
        match found {
            Child::Dir(_) => Err(Refused::IsDirectory),
            _ if self.find(new).is_ok() => Err(Refused::Exists),
            Child::Link { inode, kind, .. } => {
                let link = plan::link(self.next_dot(), inode, kind, dir, name.as_bytes());
                Ok([vec![link, self.touch(inode)], self.touched(dir)].concat())
            }
        }
    }

    /// Of several candidates the one that is shown is written; the others have been seen and decided against.
    fn write(&mut self, path: &'static str, as_root: bool, change: impl Fn(String) -> String) -> Result<Vec<Sent>> {
        let mut sent = match self.find(path) {
            Err(Refused::NotFound) => self.call(Create(path))?,
            found => found.map(|_| Vec::new())?,
        };
        let Child::Link { inode, .. } = self.find(path)?.shown else { return Err(Refused::IsDirectory) };
        let mode = view::stat(&self.tables, inode, &self.row(inode)).unwrap().mode;
        if mode.permissions & SET_ID_BITS != 0 && !as_root {
            let plain = Mode { permissions: mode.permissions & !SET_ID_BITS, ..mode };
            sent.push(self.act(self.set(path, |_| (Some(plain.clone()), None, None))?));
        }
        let bytes = change(shown_text(&self.tables, inode));
        let effects = self.publish(inode, &bytes);
        sent.push(self.act(effects));
        Ok(sent)
    }

    /// The bytes of an inode are replaced, wherever it is named.
    pub fn publish(&self, inode: InodeId, text: &str) -> Vec<Effect> {
        let row = self.row(inode);
        let hash = GlyphId::of(text.as_bytes());
        let (content, inline) = match text.len() as u64 {
            0 => (Content::Empty, None),
            len_bytes => (Content::Inline { len_bytes, hash }, Some(text.into())),
        };
        let had_more = row.versions.entries().iter().any(|base| base.value.content != Content::Empty);
        let verdict = Some(Verdict { form: Form::Opaque, passes: false });
        let version = Version {
            content,
            mtime: self.time(),
            closure: Closure::Close,
            evidence: Evidence::after(&row.versions, self.hlc, verdict, text.is_empty() && had_more),
            bases: row.versions.dots().collect(),
        };
        let mut effects = plan::publish(&self.tables, inode, &row, (version, inline), self.time()).unwrap();
        effects.extend(plan::keep_set_id(self.next_dot(), inode, &row));
        if !self.tables.xattr(inode, CAPABILITY).unwrap().is_empty() {
            effects.push(plan::set_xattr(&self.tables, self.next_dot(), inode, CAPABILITY, None).unwrap());
        }
        effects.extend(removed(self, &conflict::rivals(&self.tables, inode).unwrap()));
        effects
    }

    fn remove(&self, path: &str, is_dir: bool) -> Result<Vec<Effect>> {
        let ((dir, _), found) = (self.parent(path)?, self.find(path)?);
        match (found.shown, is_dir) {
            (Child::Dir(_), false) => return Err(Refused::IsDirectory),
            (Child::Link { .. }, true) => return Err(Refused::NotDirectory),
            (Child::Dir(_), true) => self.check_empty(&found)?,
            _ => {}
        }
        Ok([removed(self, &found.all), self.touched(dir)].concat())
    }

    fn check_empty(&self, found: &Found) -> Result<()> {
        let is_empty = |child: &Child| match child {
            Child::Dir(dir) => self.tables.dir(*dir).unwrap().is_none_or(|row| row.entries == 0),
            Child::Link { .. } => true,
        };
        if found.all.iter().all(is_empty) { Ok(()) } else { Err(Refused::NotEmpty) }
    }

    fn remove_tree(&mut self, path: &str) -> Result<Vec<Sent>> {
        let mut sent = Vec::new();
        let shown = self.find(path)?.shown;
        if let Child::Dir(dir) = shown {
            for listed in view::list(&self.tables, dir, 0, usize::MAX).unwrap() {
                sent.extend(self.remove_tree(&format!("{path}/{}", String::from_utf8(listed.name).unwrap()))?);
            }
        }
        let effects = self.remove(path, matches!(shown, Child::Dir(_)))?;
        sent.push(self.act(effects));
        Ok(sent)
    }

    fn move_to(&self, from: &str, to: &str) -> Result<Vec<Effect>> {
        let ((old_dir, _), (dir, name)) = (self.parent(from)?, self.parent(to)?);
        let (source, target) = (self.find(from)?, self.find(to).ok());
        if is_inside(&self.tables, &source, dir) {
            return Err(Refused::IntoItself);
        }
        let mut effects = Vec::new();
        if let Some(target) = target {
            match (source.shown, target.shown) {
                (source, target) if source.inode() == target.inode() => return Ok(effects),
                (Child::Dir(_), Child::Link { .. }) => return Err(Refused::NotDirectory),
                (Child::Link { .. }, Child::Dir(_)) => return Err(Refused::IsDirectory),
                (Child::Dir(_), Child::Dir(_)) => self.check_empty(&target)?,
                _ => {}
            }
            effects.extend(removed(self, &target.all));
        }
        for what in &source.all {
            effects.extend(self.placed(*what, dir, name));
        }
        effects.extend(self.touched(old_dir));
        if dir != old_dir {
            effects.extend(self.touched(dir));
        }
        Ok(effects)
    }

    fn placed(&self, what: Child, dir: DirId, name: &str) -> Vec<Effect> {
        let mut effects = plan::place(&self.tables, what, dir, name.as_bytes(), &|_| Ok(Vec::new())).unwrap();
        effects.push(self.touch(what.inode()));
        effects
    }

    fn exchange(&self, a: &str, b: &str) -> Result<Vec<Effect>> {
        let ((dir_a, name_a), (dir_b, name_b)) = (self.parent(a)?, self.parent(b)?);
        let (first, second) = (self.find(a)?, self.find(b)?);
        if first.shown.inode() == second.shown.inode() {
            return Ok(Vec::new());
        }
        if is_inside(&self.tables, &first, dir_b) || is_inside(&self.tables, &second, dir_a) {
            return Err(Refused::IntoItself);
        }
        let mut moves: Vec<(Child, DirId, &str)> = Vec::new();
        moves.extend(first.all.iter().map(|what| (*what, dir_b, name_b)));
        moves.extend(second.all.iter().map(|what| (*what, dir_a, name_a)));
        moves.sort_unstable_by_key(|(what, ..)| *what);
        let mut effects: Vec<Effect> =
            moves.into_iter().flat_map(|(what, dir, name)| self.placed(what, dir, name)).collect();
        effects.extend(self.touched(dir_a));
        if dir_b != dir_a {
            effects.extend(self.touched(dir_b));
        }
        Ok(effects)
    }

    fn set(
        &self,
        path: &str,
        change: impl Fn(&view::Stat) -> (Option<Mode>, Option<Owner>, Option<Timestamp>),
    ) -> Result<Vec<Effect>> {
        let united = self.united(path)?;
        let (mode, owner, mtime) = change(&view::stat(&self.tables, united[0], &self.row(united[0])).unwrap());
        let of = |id: InodeId| {
            let row = self.row(id);
            let mut drops: Vec<(Field, Dot)> = plan::drops(Field::Touched, &row.touched).collect();
            drops.extend(plan::drops(Field::Mode, &row.mode).filter(|_| mode.is_some()));
            drops.extend(plan::drops(Field::Owner, &row.owner).filter(|_| owner.is_some()));
            drops.extend(plan::drops(Field::Mtime, &row.mtime).filter(|_| mtime.is_some()));
            let mode = mode.clone().map(|mode| Grant::new(mode, &row, self.next_dot()));
            let touched = Some(self.time());
            Effect::Inode(InodeEffect { mode, owner, mtime, touched, drops, ..InodeEffect::new(id) })
        };
        Ok(united.into_iter().map(of).collect())
    }
}

pub fn default_permissions(kind: FileKind) -> u16 {
    match kind {
        FileKind::Directory => 0o755,
        FileKind::Symlink => 0o777,
        _ => 0o644,
    }
}

/// What is to be read in a file.
pub fn shown_text(tables: &MapTables, inode: InodeId) -> String {
    let row = tables.inode(inode).unwrap().unwrap_or_default();
    coherence::best(&row, tables.preference()).map_or_else(String::new, |best| text(tables, inode, best.dot))
}

/// The bytes of one version.
pub fn text(tables: &MapTables, inode: InodeId, version: Dot) -> String {
    let bytes = tables.get(Table::Contents, &content_key(inode, version)).unwrap();
    String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap()
}

/// What a name means is removed, whatever that is.
pub fn removed(replica: &Replica, all: &[Child]) -> Vec<Effect> {
    let mut effects = Vec::new();
    for child in all {
        match *child {
            Child::Dir(dir) => effects.push(plan::remove_dir(dir, &replica.row(dir.inode()))),
            Child::Link { link, inode, kind } => {
                effects.push(plan::unlink(&replica.tables, link, inode, kind).unwrap());
            }
        }
        effects.push(replica.touch(child.inode()));
    }
    effects
}

/// Whether what is to be moved there contains the place.
pub fn is_inside(tables: &MapTables, what: &Found, place: DirId) -> bool {
    what.all.iter().any(|child| match child {
        Child::Dir(moved) => {
            let members = union::members(tables, place).unwrap();
            members.iter().any(|member| derive::is_inside(tables, *member, *moved).unwrap())
        }
        Child::Link { .. } => false,
    })
}
