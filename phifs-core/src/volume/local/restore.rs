//! Putting things back: the volume becomes what a snapshot says, in whole or below one path, by new operations.
//!
//! What differs is found by comparing the two states, so the work is proportional to that. Every step is an operation of
//! its own that leaves a whole volume; a restore that was interrupted is simply started again. The order is: names are
//! put where they belong, from the root downwards, so that no directory ever has to move below itself; then what should
//! not be there is removed, from below; then bytes and attributes.
//!
//! What always holds:
//! - Nothing is lost: everything as it was is kept as a snapshot first, and what came after that is left alone.
//! - A file that somebody has open keeps its bytes: another one takes its name.

use std::collections::{HashMap, HashSet};

use crate::content::Content;
use crate::id::{DirId, InodeId};
use crate::meta::Frozen;
use crate::namespace::Effect;
use crate::namespace::derive::{self, Child};
use crate::namespace::op::{Field, InodeEffect, PlaceEffect};
use crate::namespace::plan::{self, drops};
use crate::namespace::privilege::{self, Grant};
use crate::namespace::register::Register;
use crate::namespace::row::{Birth, Closure, Evidence, InodeRow, Version};
use crate::namespace::tables::{Rows, Table, Tables};
use crate::namespace::view::{self, Reached, Stat};
use crate::registry::Cut;
use crate::snapshot::changes::{Change, Looks, Named, Story, changes, looks_of, stories};
use crate::volume::{FileKind, VolumeError};

use super::files::inline_bytes;
use super::names::foldable;
use super::scope::Scope;
use super::snapshots::{Result, SnapshotError};
use super::state::{Draft, local_key};
use super::{LocalVolume, history};

/// What one changed name or file takes at most on its way into journal and maps, to be compared with the space there is.
const BYTES_PER_CHANGE: u64 = 4096;

/// What is known of a file's bytes, and the bytes if they are beside the version record.
struct Bytes {
    evidence: Evidence,
    inline: Option<Vec<u8>>,
}

/// What a restore did, or would do.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    pub changes: Vec<Change>,
    /// The snapshot of how it was before, if anything changed.
    pub before: Option<String>,
}

impl LocalVolume {
    /// What turns one snapshot into another, or into the volume as it is now.
    pub fn snapshot_changes(&self, from: &str, to: Option<&str>) -> Result<Vec<Change>> {
        let _housekeeping = self.housekeeping.lock();
        let (_, from) = self.find_snapshot(from)?;
        let to = match to {
            Some(name) => self.find_snapshot(name)?.1.cut,
            None => self.cut_now()?,
        };
        Ok(changes(&self.frozen(&from.cut), &self.frozen(&to))?)
    }

    /// Makes the volume what the snapshot says, or only what is at and below a path (which begins with a slash).
    /// `dry_run` only tells. `progress` hears how many of how many steps are done.
    pub fn restore(
        &self,
        name: &str,
        path: Option<&[u8]>,
        dry_run: bool,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Restored> {
        let (_, snapshot) = self.find_snapshot(name)?;
        // No collection may take what is compared.
        let _housekeeping = self.housekeeping.lock();
        let mut told = changes(&self.frozen(&self.cut_now()?), &self.frozen(&snapshot.cut))?;
        let scope = Within { path: path.filter(|path| *path != b"/").map(<[u8]>::to_vec) };
        let source = self.frozen(&snapshot.cut);
        if let Some(path) = &scope.path {
            if !matches!(view::follow(&source, path)?, Reached::Child(_)) {
                return Err(not_there(path));
            }
            told = told.into_iter().filter_map(|change| scope.cut_down(change)).collect();
        }
        if dry_run || told.is_empty() {
            return Ok(Restored { changes: told, before: None });
        }
        self.check_room_for(told.len() as u64)?;
        let (before, now) = self.snapshot_before_restore()?;
        let done = self.turn_into(&now, source, scope, progress).and_then(|()| Ok(self.commit_journal()?));
        if let Err(source) = done {
            tracing::error!(error = %source, before, "a restore failed; it is undone");
            return Err(match self.undo(&now) {
                Ok(()) => source,
                Err(error) => {
                    tracing::error!(%error, "a restore that failed could not be undone");
                    SnapshotError::Halfway { before, source: Box::new(source) }
                }
            });
        }
        Ok(Restored { changes: told, before: Some(before) })
    }

    /// Makes operations that turn the state of now into another one.
    fn turn_into(&self, now: &Cut, source: Frozen, scope: Within, progress: &dyn Fn(u64, u64)) -> Result<()> {
        let mut work = Restoring {
            volume: self,
            now: self.frozen(now),
            source,
            scope,
            copies: HashMap::new(),
            displaced: HashMap::new(),
            copied: HashSet::new(),
        };
        let done = work.run(progress);
        self.still_misjudged();
        done
    }

    fn undo(&self, before: &Cut) -> Result<()> {
        let now = self.cut_now()?;
        self.turn_into(&now, self.frozen(before), Within { path: None }, &|_, _| {})?;
        Ok(self.commit_journal()?)
    }

    fn cut_now(&self) -> Result<Cut> {
        self.publish_closed()?;
        self.cut(&mut self.checkpoint.lock())
    }

    /// A full disk in the middle would leave half of it done.
    pub(super) fn check_room_for(&self, changes: u64) -> Result<()> {
        let space = self.disk.space();
        let space = space.map_err(|source| VolumeError::Disk { doing: "asking for free space", source })?;
        let needed = self.store.reserve_bytes().saturating_add(changes.saturating_mul(BYTES_PER_CHANGE));
        if space.free_bytes < needed {
            return Err(VolumeError::NoSpace("the disk has no room for so many changes").into());
        }
        Ok(())
    }

    fn snapshot_before_restore(&self) -> Result<(String, Cut)> {
        let millis = self.env.now().millis();
        for n in 0.. {
            let name = format!("before-restore-{}", millis + n);
            match self.create_snapshot(&name, vec!["before-restore".into()], false) {
                Err(SnapshotError::Exists(_)) => {}
                other => return other.map(|snapshot| (name, snapshot.cut)),
            }
        }
        unreachable!("the numbers do not end")
    }
}

fn not_there(path: &[u8]) -> SnapshotError {
    SnapshotError::NoPath(String::from_utf8_lossy(path).into_owned())
}

/// The part of the volume that is put back.
struct Within {
    /// `None`: all of it.
    path: Option<Vec<u8>>,
}

impl Within {
    fn contains(&self, path: &[u8]) -> bool {
        let Some(top) = &self.path else { return true };
        path.strip_prefix(&top[..]).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
    }

    fn has(&self, named: &Named) -> bool {
        named.path.as_ref().is_some_and(|path| self.contains(path))
    }

    /// What a change means for this part.
    fn cut_down(&self, change: Change) -> Option<Change> {
        use crate::snapshot::changes::What::{Added, Deleted};
        let from = change.from.as_ref().map(|from| self.contains(from));
        match (from, self.contains(&change.path)) {
            (None | Some(true), true) => Some(change),
            (Some(false), true) => Some(Change { what: Added, from: None, old_bytes: None, content: true, ..change }),
            (Some(true), false) => {
                let path = change.from.clone().unwrap_or_default();
                Some(Change { what: Deleted, path, from: None, new_bytes: None, ..change })
            }
            (_, false) => None,
        }
    }
}

struct Restoring<'a> {
    volume: &'a LocalVolume,
    /// The volume when it began, and what it is to become.
    now: Frozen,
    source: Frozen,
    scope: Within,
    /// Inodes of the snapshot, and those that were made in their place.
    copies: HashMap<InodeId, InodeId>,
    /// Where those are that had to make way.
    displaced: HashMap<(DirId, Vec<u8>), Vec<u8>>,
    /// Directories of the snapshot that were made anew, with everything in them.
    copied: HashSet<DirId>,
}

/// A name, and the one that what had it has for the time being.
type MadeWay = ((DirId, Vec<u8>), Vec<u8>);

/// An operation in the making, and what the kernel has to be told of it.
struct Step {
    draft: Draft,
    entries: Vec<(DirId, Vec<u8>)>,
    inodes: Vec<InodeId>,
}

impl Restoring<'_> {
    fn run(&mut self, progress: &dyn Fn(u64, u64)) -> Result<()> {
        let stories = stories(&self.now, &self.source)?;
        let mut came: Vec<(&Story, &Named)> = Vec::new();
        let mut went: Vec<(&Story, &Named)> = Vec::new();
        for story in &stories {
            came.extend(story.came.iter().filter(|named| self.scope.has(named)).map(|named| (story, named)));
            went.extend(story.went.iter().filter(|named| self.scope.has(named)).map(|named| (story, named)));
        }
        let depth = |named: &Named| named.path.as_ref().map_or(0, |path| path.iter().filter(|b| **b == b'/').count());
        came.sort_by_key(|(_, named)| depth(named));
        went.sort_by_key(|(_, named)| std::cmp::Reverse(depth(named)));
        let total = (came.len() + went.len() + stories.len()) as u64;
        let mut done = 0;
        let mut step = || {
            done += 1;
            progress(done, total);
        };
        if let Some(path) = self.scope.path.clone() {
            self.make_way_to(&path)?;
        }
        for (story, named) in came {
            self.put(story.inode, named.dir, &named.name)?;
            step();
        }
        for (story, named) in went {
            self.remove(story.inode, named.dir, &named.name)?;
            step();
        }
        for story in &stories {
            if story.new.is_some() && !self.copies.contains_key(&story.inode) {
                self.put_looks(story.inode)?;
            }
            step();
        }
        Ok(())
    }

    /// The directory that stands for one of the snapshot.
    fn here(&self, dir: DirId) -> DirId {
        self.copies.get(&dir.inode()).map_or(dir, |copy| DirId(copy.0))
    }

    fn step(&self, make: impl FnOnce(&Self, &Scope<'_>, &mut Step) -> Result<bool>) -> Result<bool> {
        let mut state = self.volume.state.write();
        let rows = Scope::new(&state);
        let mut step = Step { draft: state.draft(self.volume.env.now()), entries: Vec::new(), inodes: Vec::new() };
        let is_change = make(self, &rows, &mut step)?;
        let rows = rows.into_rows();
        if is_change {
            state.commit_with(step.draft, rows, &self.volume.journal)?;
        }
        if !is_change {
            return Ok(false);
        }
        if let Some(kernel) = self.volume.kernel() {
            for (dir, name) in step.entries {
                let ino = state.ino(dir.inode());
                kernel.entry(ino, &name);
                kernel.inode(ino, true);
            }
        }
        for inode in step.inodes {
            self.volume.cached_versions.lock().remove(&inode);
            self.volume.misjudge(inode);
            self.volume.forget_in_kernel(&state, inode)?;
        }
        Ok(true)
    }

    /// Makes the directories above a path as far as they are missing.
    fn make_way_to(&mut self, path: &[u8]) -> Result<()> {
        let (mut there, mut here) = (DirId::ROOT, DirId::ROOT);
        let mut names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        names.pop();
        for name in names {
            let Some(Child::Dir(next)) = view::child(&self.source, there, name)? else { return Err(not_there(path)) };
            let found = view::child(&*self.volume.state.read(), here, name)?;
            here = match found {
                Some(Child::Dir(dir)) => dir,
                Some(Child::Link { .. }) => return Err(VolumeError::NotDirectory.into()),
                None => {
                    self.copies.insert(there.inode(), here.inode());
                    self.put_new(next.inode(), there, name)?;
                    self.here(next)
                }
            };
            there = next;
            self.copies.insert(there.inode(), here.inode());
        }
        Ok(())
    }

    /// Sees to it that an inode of the snapshot has a name that it has there.
    fn put(&mut self, inode: InodeId, dir: DirId, name: &[u8]) -> Result<()> {
        if self.copied.contains(&dir) {
            return Ok(());
        }
        let copy = self.copies.get(&inode).copied();
        if copy.is_none() && !self.is_usable(inode)? {
            return self.put_new(inode, dir, name);
        }
        let inode = copy.unwrap_or(inode);
        let parent = self.here(dir);
        let mut way = None;
        self.step(|this, rows, step| {
            let Some(row) = rows.inode(inode)? else { return Err(VolumeError::Stale.into()) };
            match view::child(rows, parent, name)? {
                Some(child) if child.inode() == inode => return Ok(false),
                other => way = this.make_way(rows, step, parent, name, other)?,
            }
            let kind = row.kind();
            let child = match kind {
                FileKind::Directory => Some(Child::Dir(DirId(inode.0))),
                _ => this.superfluous_link(rows, inode, kind)?,
            };
            match child {
                Some(child) => {
                    step.entries.extend(view::place_of(rows, child)?);
                    let folds = |moves: &[_]| foldable(rows, child, moves);
                    step.draft.effects.extend(plan::place(rows, child, parent, name, &folds)?);
                }
                None => step.draft.effects.push(plan::link(step.draft.dot, inode, kind, parent, name)),
            }
            touch(step, inode, &row);
            step.forget_grave(rows, inode)?;
            step.entries.push((parent, name.to_vec()));
            step.inodes.push(inode);
            Ok(true)
        })?;
        self.displaced.extend(way);
        // Its removal is history, whoever still has it open.
        self.volume.removed_dirs.lock().remove(&inode);
        Ok(())
    }

    /// Whether the inode itself can be put back: it is known here, and has no name outside of the part that is put back.
    fn is_usable(&self, inode: InodeId) -> Result<bool> {
        let state = self.volume.state.read();
        let Some(row) = state.inode(inode)? else { return Ok(false) };
        if self.scope.path.is_none() {
            return Ok(true);
        }
        for (dir, name) in view::names_of(&*state, inode, row.kind())? {
            let above = view::path_of_dir(&*state, dir)?;
            let is_within = above.is_some_and(|above| self.scope.contains(&[&above[..], b"/", &name].concat()));
            // What had to make way is within it.
            if !is_within && !self.displaced.iter().any(|((at, _), temporary)| *at == dir && *temporary == name) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A link of the file at a name that it has not in the snapshot.
    fn superfluous_link(&self, rows: &Scope<'_>, inode: InodeId, kind: FileKind) -> Result<Option<Child>> {
        for link in derive::links_of(rows, inode)? {
            let Some(row) = rows.link(link)? else { continue };
            let Some(place) = row.place() else { continue };
            let there = view::child(&self.source, place.parent, &place.name)?;
            if there.is_none_or(|child| child.inode() != inode) {
                return Ok(Some(Child::Link { link, inode, kind }));
            }
        }
        Ok(None)
    }

    /// Gives what has the name another one for the time being.
    fn make_way(
        &self,
        rows: &Scope<'_>,
        step: &mut Step,
        parent: DirId,
        name: &[u8],
        child: Option<Child>,
    ) -> Result<Option<MadeWay>> {
        let Some(child) = child else { return Ok(None) };
        let temporary = format!(".phifs-restore-{}", step.draft.dot).into_bytes();
        let folds = |moves: &[_]| foldable(rows, child, moves);
        step.draft.effects.extend(plan::place(rows, child, parent, &temporary, &folds)?);
        step.entries.push((parent, temporary.clone()));
        Ok(Some(((parent, name.to_vec()), temporary)))
    }

    /// Makes an inode like one of the snapshot, with everything below it.
    fn put_new(&mut self, inode: InodeId, dir: DirId, name: &[u8]) -> Result<()> {
        let parent = self.here(dir);
        let (birth, looks, bytes) = self.model(inode)?;
        let kind = birth.kind;
        let (mut made, mut way) = (None, None);
        self.step(|this, rows, step| {
            let other = view::child(rows, parent, name)?;
            way = this.make_way(rows, step, parent, name, other)?;
            let dot = step.draft.dot;
            made = Some(InodeId(dot));
            step.make(InodeId(dot), birth, &looks, bytes);
            step.draft.effects.push(match kind {
                FileKind::Directory => Effect::Move { dir: DirId(dot), parent, name: name.to_vec(), folds: Vec::new() },
                _ => plan::link(dot, InodeId(dot), kind, parent, name),
            });
            step.entries.push((parent, name.to_vec()));
            Ok(true)
        })?;
        self.displaced.extend(way);
        let made = made.ok_or_else(|| VolumeError::Internal("nothing was made".into()))?;
        self.copies.insert(inode, made);
        if kind == FileKind::Directory {
            let dir = DirId(inode.0);
            let mut from = 0;
            loop {
                const BATCH: usize = 256;
                let listed = view::list(&self.source, dir, from, BATCH)?;
                for item in &listed {
                    self.put(item.child.inode(), dir, &item.name)?;
                }
                match listed.last() {
                    Some(last) if listed.len() >= BATCH => from = last.hash + 1,
                    _ => break,
                }
            }
            self.copied.insert(dir);
        }
        Ok(())
    }

    /// What an inode was in the snapshot.
    fn model(&self, inode: InodeId) -> Result<(Birth, Looks, Bytes)> {
        let row = self.source.inode(inode)?.ok_or(VolumeError::NotFound)?;
        let looks = looks_of(&self.source, inode, &row)?;
        let birth = row.birth.latest().map(|entry| entry.value.clone());
        let birth = birth.ok_or_else(|| VolumeError::Internal("an inode without birth".into()))?;
        let version = Stat::of(&row).version;
        let evidence = version.as_ref().map_or_else(Evidence::default, |(_, version)| version.evidence);
        let inline = matches!(looks.content, Content::Inline { .. });
        let dot = version.map(|(dot, _)| dot);
        let inline = inline.then(|| inline_bytes(&self.source, inode, dot, &looks.content)).transpose()?;
        Ok((birth, looks, Bytes { evidence, inline: inline.map(|bytes| bytes.to_vec()) }))
    }

    /// Takes a name away that the snapshot does not have, if it still means what it meant.
    fn remove(&mut self, inode: InodeId, dir: DirId, name: &[u8]) -> Result<()> {
        let displaced = self.displaced.get(&(dir, name.to_vec())).cloned();
        let names: Vec<&[u8]> = std::iter::once(name).chain(displaced.as_deref()).collect();
        for name in names {
            let child = view::child(&*self.volume.state.read(), dir, name)?;
            match child {
                Some(Child::Dir(removed)) if removed.inode() == inode => return self.remove_tree(removed, dir, name),
                Some(child) if child.inode() == inode => return self.remove_link(child, dir, name),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes a directory with what was in it when this began; what came later stays, and so does the directory then.
    fn remove_tree(&mut self, removed: DirId, parent: DirId, name: &[u8]) -> Result<()> {
        let listed = view::list(&*self.volume.state.read(), removed, 0, usize::MAX)?;
        for item in listed {
            let was = view::child(&self.now, removed, &item.name)?;
            if was.is_some_and(|was| was.inode() == item.child.inode()) {
                match item.child {
                    Child::Dir(below) => self.remove_tree(below, removed, &item.name)?,
                    child => self.remove_link(child, removed, &item.name)?,
                }
            }
        }
        self.step(|_, rows, step| {
            let Some(row) = rows.inode(removed.inode())? else { return Ok(false) };
            if rows.dir(removed)?.is_none_or(|row| row.entries > 0) {
                return Ok(false);
            }
            step.draft.effects.push(plan::remove_dir(removed, &row));
            touch(step, removed.inode(), &row);
            step.draft.local.push((local_key(b'g', &removed.inode().0.to_bytes()), Some(Vec::new())));
            step.entries.push((parent, name.to_vec()));
            Ok(true)
        })?;
        Ok(())
    }

    fn remove_link(&mut self, child: Child, parent: DirId, name: &[u8]) -> Result<()> {
        let Child::Link { link, inode, kind } = child else { return Ok(()) };
        self.step(|this, rows, step| {
            step.draft.effects.push(plan::unlink(rows, link, inode, kind)?);
            let Some(row) = rows.inode(inode)? else { return Ok(true) };
            touch(step, inode, &row);
            if derive::links_of(rows, inode)?.len() <= 1 {
                // Kept for the snapshot that was just taken, or for whoever has it open.
                let about = if this.volume.is_open(inode) { b'o' } else { b'g' };
                step.draft.local.push((local_key(about, &inode.0.to_bytes()), Some(Vec::new())));
            }
            step.entries.push((parent, name.to_vec()));
            step.inodes.push(inode);
            Ok(true)
        })?;
        Ok(())
    }

    /// Puts bytes and attributes back.
    fn put_looks(&mut self, inode: InodeId) -> Result<()> {
        let (birth, looks, bytes) = self.model(inode)?;
        let is_within = {
            let state = self.volume.state.read();
            let Some(row) = state.inode(inode)? else { return Ok(()) };
            let mut is_within = false;
            for (dir, name) in view::names_of(&*state, inode, row.kind())? {
                let above = view::path_of_dir(&*state, dir)?;
                is_within |= above.is_some_and(|above| self.scope.contains(&[&above[..], b"/", &name].concat()));
            }
            is_within || inode == DirId::ROOT.inode() && self.scope.path.is_none()
        };
        if !is_within {
            return Ok(());
        }
        // A cache of the old bytes would be in the way.
        self.volume.evict(inode)?;
        let mut in_use = false;
        self.step(|this, rows, step| {
            let Some(row) = rows.inode(inode)? else { return Ok(false) };
            let mut now = looks_of(rows, inode, &row)?;
            if now.content != looks.content || this.volume.is_written(inode) {
                if this.volume.is_loaded(inode) {
                    in_use = true;
                    return Ok(false);
                }
                let version = Version {
                    content: looks.content,
                    mtime: looks.mtime,
                    closure: Closure::Close,
                    evidence: bytes.evidence.again(&row.versions, step.draft.hlc),
                    bases: row.versions.dots().collect(),
                };
                history::keep_replaced(rows, &mut step.draft, inode, &row, this.volume.retention())?;
                step.draft.effects.extend(plan::publish(
                    rows,
                    inode,
                    &row,
                    (version, bytes.inline.clone()),
                    step.draft.time,
                )?);
                now.lose_privileges();
            }
            step.change_looks(inode, &row, &now, &looks);
            for (name, value) in xattr_changes(&now, &looks) {
                step.draft.effects.push(plan::set_xattr(rows, step.draft.dot, inode, &name, value)?);
            }
            step.inodes.push(inode);
            Ok(!step.draft.effects.is_empty())
        })?;
        if in_use { self.replace(inode, birth, &looks, bytes) } else { Ok(()) }
    }

    /// Another file takes the names of one that is open.
    fn replace(&mut self, inode: InodeId, birth: Birth, looks: &Looks, bytes: Bytes) -> Result<()> {
        self.step(|_, rows, step| {
            let Some(row) = rows.inode(inode)? else { return Ok(false) };
            let copy = InodeId(step.draft.dot);
            let kind = birth.kind;
            step.make(copy, birth, looks, bytes);
            for (n, link) in derive::links_of(rows, inode)?.into_iter().enumerate() {
                let Some(place) = rows.link(link)?.and_then(|row| row.place().cloned()) else { continue };
                step.draft.effects.push(plan::unlink(rows, link, inode, kind)?);
                step.entries.push((place.parent, place.name.clone()));
                if n == 0 {
                    step.draft.effects.push(plan::link(step.draft.dot, copy, kind, place.parent, &place.name));
                } else {
                    // One operation makes one link; the others are made of the old ones.
                    step.draft.effects.push(Effect::Link(crate::namespace::op::LinkEffect {
                        link,
                        inode: copy,
                        kind,
                        place: Some(PlaceEffect { since: None, parent: place.parent, name: place.name }),
                        drops: Vec::new(),
                    }));
                }
            }
            touch(step, inode, &row);
            step.draft.local.push((local_key(b'o', &inode.0.to_bytes()), Some(Vec::new())));
            step.inodes.push(inode);
            Ok(true)
        })?;
        Ok(())
    }
}

impl Step {
    /// Adds a new inode that looks so.
    fn make(&mut self, inode: InodeId, birth: Birth, looks: &Looks, bytes: Bytes) {
        let is_file = birth.kind == FileKind::File && looks.content != Content::Empty;
        let Bytes { evidence, inline } = bytes;
        let (evidence, closure) = (evidence.again(&Register::default(), self.draft.hlc), Closure::Close);
        let version = Version { content: looks.content, mtime: looks.mtime, closure, evidence, bases: Vec::new() };
        self.draft.effects.push(Effect::Inode(InodeEffect {
            alive: birth.kind == FileKind::Directory,
            birth: Some(birth),
            mode: Some(Grant::of_new(looks.mode.clone(), looks.kind, self.draft.dot)),
            owner: Some(looks.owner),
            mtime: Some(looks.mtime),
            touched: Some(self.draft.time),
            version: is_file.then_some((version, inline)),
            ..InodeEffect::new(inode)
        }));
        for (name, value) in &looks.xattrs {
            let value = Some(privilege::stored_xattr(name, value.clone(), &InodeRow::default(), self.draft.dot));
            let name = name.clone();
            self.draft.effects.push(Effect::Xattr { inode, name, value, drops: Vec::new() });
        }
    }

    /// Adds what makes an inode look so, its bytes apart.
    fn change_looks(&mut self, inode: InodeId, row: &InodeRow, now: &Looks, looks: &Looks) {
        let mut effect = InodeEffect::new(inode);
        let is_for_other_owner = now.owner != looks.owner && privilege::has_set_id(&looks.mode);
        if now.mode != looks.mode || is_for_other_owner {
            effect.mode = Some(Grant::new(looks.mode.clone(), row, self.draft.dot));
            effect.drops.extend(drops(Field::Mode, &row.mode));
        }
        if now.owner != looks.owner {
            effect.owner = Some(looks.owner);
            effect.drops.extend(drops(Field::Owner, &row.owner));
        }
        if now.mtime != looks.mtime {
            effect.mtime = Some(looks.mtime);
            effect.drops.extend(drops(Field::Mtime, &row.mtime));
        }
        let is_change = !effect.drops.is_empty();
        if is_change || now.xattrs != looks.xattrs {
            effect.touched = Some(self.draft.time);
            effect.drops.extend(drops(Field::Touched, &row.touched));
            self.draft.effects.push(Effect::Inode(effect));
        }
    }

    /// The inode has a name again.
    fn forget_grave(&mut self, rows: &Scope<'_>, inode: InodeId) -> Result<()> {
        for about in [b'g', b'o'] {
            let key = local_key(about, &inode.0.to_bytes());
            if rows.get(Table::Local, &key)?.is_some() {
                self.draft.local.push((key, None));
            }
        }
        Ok(())
    }
}

fn touch(step: &mut Step, inode: InodeId, row: &InodeRow) {
    step.draft.effects.push(plan::touch(inode, row, step.draft.time));
}

/// The attributes to set, and those to remove.
fn xattr_changes(now: &Looks, looks: &Looks) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let value = |xattrs: &[(Vec<u8>, Vec<u8>)], name: &[u8]| {
        xattrs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    };
    let names: std::collections::BTreeSet<&Vec<u8>> = now.xattrs.iter().chain(&looks.xattrs).map(|(n, _)| n).collect();
    let changes = names.into_iter().map(|name| (name.clone(), value(&looks.xattrs, name)));
    changes.filter(|(name, wanted)| value(&now.xattrs, name) != *wanted).collect()
}
