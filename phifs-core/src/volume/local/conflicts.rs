//! What people have to decide about, and deciding it.
//!
//! A decision is an operation like any other: it replaces what it has seen. What was decided against is kept among the
//! versions of the file that stays, as long as those are kept.

use std::collections::BTreeSet;

use crate::content::Content;
use crate::id::{DirId, Dot, InodeId};
use crate::namespace::conflict::{self, Choice, Conflict, Matter};
use crate::namespace::derive::Child;
use crate::namespace::op::{Field, InodeEffect};
use crate::namespace::privilege::{self, Grant};
use crate::namespace::row::{Closure, InodeRow, NAME_BYTES_MAX, Version};
use crate::namespace::tables::{Rows, Tables};
use crate::namespace::view::{self, Reached, Stat};
use crate::namespace::{Effect, plan, union};
use crate::volume::{FileKind, Result, VolumeError};

use super::LocalVolume;
use super::drivers::Unmerged;
use super::files::inline_bytes;
use super::history;
use super::names::{foldable, touch_inode};
use super::receipts::DURABILITY;
use super::scope::Scope;
use super::state::{Draft, State};

/// How to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// For the choice with this rank; 0 is the one that is shown.
    Pick(usize),
    /// For all: those that are not shown get names of their own.
    KeepBoth,
    /// For the one that was published last.
    Newest,
    /// For the one that is shown.
    Coherent,
}

/// All states that a file has, and why the first is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// Nothing if there is nothing to decide.
    pub matter: Option<Matter>,
    /// The best first.
    pub choices: Vec<Choice>,
    /// Of several versions of a file: whether a driver merges them, and else why not.
    pub merge: Option<std::result::Result<(), Unmerged>>,
}

/// A conflict, and where it is: from the root, beginning with a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub path: Vec<u8>,
    pub conflict: Conflict,
}

/// What was decided, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    pub path: Vec<u8>,
    /// The choice that has the name from now on.
    pub kept: Choice,
    /// Where the others are from now on; nothing for those that only `.phi/versions` has.
    pub beside: Vec<Vec<u8>>,
}

impl LocalVolume {
    /// What there is to decide about at a path and below it, in the order of paths.
    pub fn conflicts(&self, path: &[u8]) -> Result<Vec<Found>> {
        let state = self.state.read();
        let mut found = self.found_in(&state)?;
        let path = path.strip_suffix(b"/").unwrap_or(path);
        found.retain(|found| {
            found.path.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        });
        Ok(found)
    }

    /// All states that the file at a path has.
    pub fn explain(&self, path: &[u8]) -> Result<Explained> {
        let state = self.state.read();
        let (dir, name) = parent_of(&*state, path)?;
        let conflict = conflict::at(&*state, dir, name)?;
        let (matter, choices) = match conflict {
            Some(conflict) => (Some(conflict.matter), conflict.choices),
            None => {
                let found = view::find(&*state, dir, name)?.ok_or(VolumeError::NotFound)?;
                if let Child::Dir(_) = found.shown {
                    return Err(VolumeError::IsDirectory);
                }
                (None, conflict::choices(&*state, &found.all)?)
            }
        };
        let merge = match (matter, choices.first()) {
            (Some(Matter::Content), Some(shown)) => {
                let row = state.inode(shown.inode)?.unwrap_or_default();
                Some(self.merge_versions(&state, shown.inode, &row)?.map(|_| ()))
            }
            _ => None,
        };
        let matter = matter.filter(|_| merge != Some(Ok(())));
        Ok(Explained { matter, choices, merge })
    }

    /// Everything that people have to decide about: what no driver merges.
    pub(super) fn disputed(&self, state: &State) -> Result<Vec<Conflict>> {
        let mut disputed = Vec::new();
        for conflict in conflict::all(state)? {
            if !self.is_merged(state, &conflict)? {
                disputed.push(conflict);
            }
        }
        Ok(disputed)
    }

    /// Everything to decide about that has a path.
    fn found_in(&self, state: &State) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for conflict in self.disputed(state)? {
            if let Some(above) = view::path_of_dir(state, conflict.dir)? {
                found.push(Found { path: [&above[..], b"/", &conflict.seen_name()].concat(), conflict });
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// Whether a driver makes one of the versions, so that nobody has to decide.
    pub(super) fn is_merged(&self, state: &State, conflict: &Conflict) -> Result<bool> {
        let Some(shown) = conflict.choices.first().filter(|_| conflict.matter == Matter::Content) else {
            return Ok(false);
        };
        let row = state.inode(shown.inode)?.unwrap_or_default();
        Ok(self.merged(state, shown.inode, &row)?.is_some())
    }

    /// Decides about the name at a path, or with `recursive` about all at it and below.
    pub fn resolve(&self, path: &[u8], how: Resolution, recursive: bool, dry_run: bool) -> Result<Vec<Resolved>> {
        let mut found = self.conflicts(path)?;
        if !recursive {
            found.retain(|found| found.path == path);
        }
        let mut resolved = Vec::new();
        for Found { path, conflict } in found {
            if dry_run {
                resolved.push(foresee(&self.state.read(), &path, &conflict, how)?);
            } else {
                resolved.extend(self.decide(path, conflict, how)?);
            }
        }
        if !dry_run && !resolved.is_empty() {
            self.commit_journal()?;
        }
        Ok(resolved)
    }

    fn decide(&self, path: Vec<u8>, conflict: Conflict, how: Resolution) -> Result<Option<Resolved>> {
        self.check_writable()?;
        for choice in &conflict.choices {
            // A cache of the old bytes would be in the way.
            self.evict(choice.inode)?;
        }
        let mut beside = Vec::new();
        if how == Resolution::KeepBoth {
            // One operation makes one file, so copies of versions come first; until the end nothing is decided.
            for choice in copied(&conflict) {
                let name = self.copy_beside(&conflict, choice)?;
                beside.push(path_beside(&path, &name));
            }
        }
        let mut state = self.state.write();
        let rows = Scope::new(&state);
        let now = conflict::at(&rows, conflict.dir, &conflict.name)?;
        if now.as_ref() != Some(&conflict) {
            // Somebody else decided, or there is more to decide about.
            return Ok(None);
        }
        let mut draft = state.draft(self.env.now());
        let kept = conflict.choices[chosen(&conflict, how)?].clone();
        let mut gone = Vec::new();
        let mut names = vec![conflict.name.clone(), conflict.seen_name()];
        if how == Resolution::KeepBoth {
            for choice in moved(&conflict) {
                let name = free_name(&rows, conflict.dir, &conflict, choice, &names)?;
                place(&rows, &mut draft, choice, conflict.dir, &name)?;
                beside.push(path_beside(&path, &name));
                names.push(name);
            }
        } else {
            gone = self.drop_rivals(&rows, &mut draft, kept.inode, &rivals(&conflict, kept.inode))?;
        }
        let row = rows.inode(kept.inode)?.ok_or(VolumeError::NotFound)?;
        if row.versions.entries().len() > 1 {
            let version = kept.version.clone().ok_or(VolumeError::NotFound)?;
            let inline = inline_bytes(&rows, kept.inode, Some(kept.dot), &version.content)?;
            let inline = matches!(version.content, crate::content::Content::Inline { .. }).then(|| inline.to_vec());
            let version = Version { closure: Closure::Close, bases: row.versions.dots().collect(), ..version };
            history::keep_replaced(&rows, &mut draft, kept.inode, &row, self.retention())?;
            draft.effects.extend(plan::publish(&rows, kept.inode, &row, (version, inline), draft.time)?);
            draft.effects.extend(plan::keep_set_id(draft.dot, kept.inode, &row));
        } else {
            touch_inode(&mut draft, kept.inode, &row);
        }
        let above = rows.inode(conflict.dir.inode())?.unwrap_or_default();
        draft.effects.extend(plan::touch_dir(&rows, conflict.dir, &above, draft.time)?);
        let members = union::members(&rows, conflict.dir)?;
        let rows = rows.into_rows();
        state.commit_with(draft, rows, &self.journal)?;
        self.cached_versions.lock().remove(&kept.inode);
        self.misjudge(kept.inode);
        if let Some(sink) = self.kernel() {
            for member in members {
                let ino = state.ino(member.inode());
                names.iter().for_each(|name| sink.entry(ino, name));
                sink.inode(ino, true);
            }
            conflict.choices.iter().for_each(|choice| sink.inode(state.ino(choice.inode), true));
        }
        drop(state);
        self.still_misjudged();
        self.names_gone(gone);
        Ok(Some(Resolved { path, kept, beside }))
    }

    /// Adds to the draft that these files lose the name that `kept` keeps. What they were is kept among its versions.
    pub(super) fn drop_rivals(
        &self,
        rows: &Scope<'_>,
        draft: &mut Draft,
        kept: InodeId,
        rivals: &[Child],
    ) -> Result<Vec<(InodeId, bool)>> {
        let mut adopted = BTreeSet::new();
        for rival in rivals {
            if rival.kind() == FileKind::File && adopted.insert(rival.inode()) {
                let row = rows.inode(rival.inode())?.unwrap_or_default();
                history::adopt(rows, draft, kept, (rival.inode(), &row), self.retention())?;
            }
        }
        self.drop_links(rows, draft, rivals)
    }

    /// Adds to the draft that a state goes that is listed beside the one that is shown: it is decided against.
    pub(super) fn drop_sibling(
        &self,
        rows: &Scope<'_>,
        draft: &mut Draft,
        dir: DirId,
        name: &[u8],
    ) -> Result<Vec<(InodeId, bool)>> {
        if !self.options.siblings {
            return Err(VolumeError::NotFound);
        }
        let dir = union::members(rows, dir)?[0];
        for conflict in conflict::all(rows)?.into_iter().filter(|conflict| conflict.dir == dir) {
            let is_it = |choice: &&Choice| name_of(&conflict.name, choice, 0) == name;
            let Some(choice) = conflict.choices[1..].iter().find(is_it) else { continue };
            let row = rows.inode(choice.inode)?.ok_or(VolumeError::NotFound)?;
            if row.versions.entries().len() < 2 {
                return self.drop_rivals(rows, draft, conflict.choices[0].inode, &[choice.as_child()]);
            }
            let mut others = row.clone();
            row.versions.dots().filter(|dot| *dot != choice.dot).for_each(|dot| others.versions.remove(dot));
            history::keep_replaced(rows, draft, choice.inode, &others, self.retention())?;
            let drops = vec![(Field::Version, choice.dot)];
            draft.effects.push(Effect::Inode(InodeEffect { drops, ..InodeEffect::new(choice.inode) }));
            touch_inode(draft, choice.inode, &row);
            return Ok(vec![(choice.inode, false)]);
        }
        Err(VolumeError::NotFound)
    }

    /// Makes a file of its own out of a version.
    fn copy_beside(&self, conflict: &Conflict, choice: &Choice) -> Result<Vec<u8>> {
        let mut state = self.state.write();
        let rows = Scope::new(&state);
        let row = rows.inode(choice.inode)?.ok_or(VolumeError::NotFound)?;
        let version = choice.version.clone().ok_or(VolumeError::NotFound)?;
        let name = free_name(&rows, conflict.dir, conflict, choice, &[])?;
        let mut draft = state.draft(self.env.now());
        copy(&rows, &mut draft, &row, choice, version)?;
        let copy = InodeId(draft.dot);
        draft.effects.push(plan::link(draft.dot, copy, choice.kind, conflict.dir, &name));
        let above = rows.inode(conflict.dir.inode())?.unwrap_or_default();
        draft.effects.extend(plan::touch_dir(&rows, conflict.dir, &above, draft.time)?);
        let members = union::members(&rows, conflict.dir)?;
        let rows = rows.into_rows();
        state.commit_with(draft, rows, &self.journal)?;
        if let Some(sink) = self.kernel() {
            members.iter().for_each(|member| sink.entry(state.ino(member.inode()), &name));
        }
        Ok(name)
    }
}

/// What there is to decide about at a path.
pub(super) fn found_at<T: Tables + ?Sized>(tables: &T, path: &[u8]) -> Result<Option<Found>> {
    let (dir, name) = parent_of(tables, path)?;
    Ok(conflict::at(tables, dir, name)?.map(|conflict| Found { path: path.to_vec(), conflict }))
}

/// The directory that a path's last name is in, and that name.
fn parent_of<'a, T: Tables + ?Sized>(tables: &T, path: &'a [u8]) -> Result<(DirId, &'a [u8])> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    let (above, name) = path.split_at(at);
    if name.is_empty() {
        return Err(VolumeError::IsDirectory);
    }
    match view::follow(tables, above)? {
        Reached::Child(Child::Dir(dir)) => Ok((dir, name)),
        Reached::Nothing => Err(VolumeError::NotFound),
        _ => Err(VolumeError::NotDirectory),
    }
}

/// The rank of the choice that a resolution decides for.
fn chosen(conflict: &Conflict, how: Resolution) -> Result<usize> {
    let choices = &conflict.choices;
    let newest = || (0..choices.len()).max_by_key(|at| (choices[*at].hlc, choices[*at].dot.author));
    if conflict.matter == Matter::Type && choices.len() < 2 && how != Resolution::KeepBoth {
        return Err(VolumeError::Invalid("a directory has that name as well: the file can only get another one"));
    }
    match how {
        Resolution::Pick(rank) if rank < choices.len() => Ok(rank),
        Resolution::Pick(_) => Err(VolumeError::Invalid("there are not so many choices")),
        Resolution::Newest => Ok(newest().unwrap_or(0)),
        Resolution::KeepBoth | Resolution::Coherent => Ok(0),
    }
}

fn foresee(state: &State, path: &[u8], conflict: &Conflict, how: Resolution) -> Result<Resolved> {
    let kept = conflict.choices[chosen(conflict, how)?].clone();
    let mut names: Vec<Vec<u8>> = Vec::new();
    if how == Resolution::KeepBoth {
        for choice in copied(conflict).chain(moved(conflict)) {
            names.push(free_name(state, conflict.dir, conflict, choice, &names)?);
        }
    }
    let beside = names.iter().map(|name| path_beside(path, name)).collect();
    Ok(Resolved { path: path.to_vec(), kept, beside })
}

/// The choices that become files of their own if all are kept: versions of a file that has others.
fn copied(conflict: &Conflict) -> impl Iterator<Item = &Choice> {
    let first_of = |choice: &Choice| conflict.choices.iter().find(|other| other.inode == choice.inode);
    conflict.choices.iter().filter(move |choice| first_of(choice).is_some_and(|first| first.dot != choice.dot))
}

/// The choices that get another name if all are kept: files other than the one that is shown, and one that has the name
/// of a directory.
fn moved(conflict: &Conflict) -> impl Iterator<Item = &Choice> {
    let first_of = |choice: &Choice| conflict.choices.iter().find(|other| other.inode == choice.inode);
    let shown = conflict.choices.first().map(|choice| choice.inode);
    let stays = move |inode| Some(inode) == shown && conflict.matter != Matter::Type;
    conflict
        .choices
        .iter()
        .filter(move |choice| !stays(choice.inode) && first_of(choice).is_some_and(|first| first.dot == choice.dot))
}

fn rivals(conflict: &Conflict, kept: InodeId) -> Vec<Child> {
    let mut rivals: Vec<Child> =
        conflict.choices.iter().filter(|choice| choice.inode != kept).map(Choice::as_child).collect();
    rivals.sort_unstable();
    rivals.dedup();
    rivals
}

fn place(rows: &Scope<'_>, draft: &mut Draft, choice: &Choice, dir: DirId, name: &[u8]) -> Result<()> {
    let (child, row) = (choice.as_child(), rows.inode(choice.inode)?.ok_or(VolumeError::NotFound)?);
    draft.effects.extend(plan::place(rows, child, dir, name, &|moves| foldable(rows, child, moves))?);
    touch_inode(draft, choice.inode, &row);
    Ok(())
}

/// Adds a new inode to the draft that looks like another one with this version.
fn copy(rows: &Scope<'_>, draft: &mut Draft, row: &InodeRow, choice: &Choice, version: Version) -> Result<()> {
    let stat = Stat::of(row);
    let inline = inline_bytes(rows, choice.inode, Some(choice.dot), &version.content)?;
    let inline = matches!(version.content, crate::content::Content::Inline { .. }).then(|| inline.to_vec());
    let inode = InodeId(draft.dot);
    draft.effects.push(Effect::Inode(InodeEffect {
        birth: row.birth.latest().map(|entry| entry.value.clone()),
        mode: Some(Grant::of_new(stat.mode, stat.kind, draft.dot)),
        owner: Some(stat.owner),
        mtime: Some(version.mtime),
        touched: Some(draft.time),
        version: Some((Version { bases: Vec::new(), ..version }, inline)),
        ..InodeEffect::new(inode)
    }));
    for (name, value) in view::xattrs(rows, choice.inode)? {
        let value = Some(privilege::stored_xattr(&name, value, &InodeRow::default(), draft.dot));
        draft.effects.push(Effect::Xattr { inode, name, value, drops: Vec::new() });
    }
    Ok(())
}

/// A name beside the disputed one that says who made the choice and when: `report~AUTHOR~TIME.txt`.
pub(super) fn name_of(name: &[u8], choice: &Choice, again: usize) -> Vec<u8> {
    let dot = name.iter().rposition(|byte| *byte == b'.').filter(|at| *at > 0).unwrap_or(name.len());
    let (stem, ending) = name.split_at(dot);
    let again = if again == 0 { String::new() } else { format!("-{again}") };
    let tag = format!("~{}{again}", tag_of(choice.dot, choice.hlc));
    let room = NAME_BYTES_MAX.saturating_sub(tag.len() + ending.len());
    let mut full = [view::cut_name(stem, room), tag.as_bytes(), ending].concat();
    full.truncate(NAME_BYTES_MAX);
    full
}

/// Who and when: eight digits of the author, and the time of day.
pub(super) fn tag_of(dot: Dot, hlc: crate::time::Hlc) -> String {
    let author = dot.author.to_string();
    let author = &author[..author.len().min(8)];
    format!("{author}~{}", crate::time::utc(hlc.millis()).replace(' ', "T").replace(':', ""))
}

fn free_name<T: Tables>(
    rows: &T,
    dir: DirId,
    conflict: &Conflict,
    choice: &Choice,
    taken: &[Vec<u8>],
) -> Result<Vec<u8>> {
    if conflict.matter == Matter::Type && conflict.choices.len() == 1 {
        // It is seen by this name already.
        return Ok(conflict.seen_name());
    }
    for again in 0.. {
        let name = name_of(&conflict.name, choice, again);
        if !taken.contains(&name) && view::find(rows, dir, &name)?.is_none() {
            return Ok(name);
        }
    }
    Err(VolumeError::NameTooLong)
}

fn path_beside(path: &[u8], name: &[u8]) -> Vec<u8> {
    let above = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    [&path[..above], name].concat()
}

/// Attributes that say something about a file instead of belonging to it. They are read only, and not listed.
const COUNT: &[u8] = b"user.phi.conflicts";
const WINNER: &[u8] = b"user.phi.winner";
const SCORE: &[u8] = b"user.phi.score";
const WRITER: &[u8] = b"user.phi.writer";
const STATUS: &[u8] = b"user.phi.status";

const REPLICAS: &[u8] = b"user.phi.replicas";

/// Whether the filesystem itself says what this attribute of such an inode is.
pub(super) fn is_told(name: &[u8], kind: FileKind) -> bool {
    [COUNT, WINNER, SCORE, WRITER, STATUS, REPLICAS].contains(&name) || is_of_copies(name, kind)
}

/// Whether it is about how many machines have a file.
pub(super) fn is_of_copies(name: &[u8], kind: FileKind) -> bool {
    [REPLICAS, DURABILITY].contains(&name) && kind != FileKind::Directory
}

impl LocalVolume {
    /// On how many machines a file is, or what that amounts to. Not to be asked with the state in hand: who the members are is
    /// looked up there as well.
    pub(super) fn told_of_copies(&self, id: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        let version = {
            let state = self.state.read();
            let row = state.inode(id)?.ok_or(VolumeError::NotFound)?;
            Stat::in_tables(&*state, &row).version
        };
        let (dot, content) = version.map_or((id.0, Content::Empty), |(dot, version)| (dot, version.content));
        let (machines, level) = self.achieved(dot, &content)?;
        Ok(if name == REPLICAS { machines.to_string() } else { level.word().to_owned() }.into_bytes())
    }

    /// The value of another such attribute: of a file how many choices it has, if more than one; of a directory how many names
    /// below it are disputed; the shown choice, its score and its author; whether it can be read, or why not, or why an older version is.
    pub(super) fn told(&self, state: &State, id: InodeId, name: &[u8]) -> Result<Vec<u8>> {
        let row = state.inode(id)?.ok_or(VolumeError::NotFound)?;
        if row.kind() == FileKind::Directory {
            return if name == COUNT {
                Ok(self.count_below(state, DirId(id.0))?.to_string().into_bytes())
            } else {
                Err(VolumeError::NoAttribute)
            };
        }
        if name == STATUS {
            let lacks = self.why_older(id).map(|why| format!("older: {why}"));
            let lacks = lacks.or_else(|| self.why_unreadable(id).map(|why| format!("unreadable: {why}")));
            return Ok(lacks.map_or("ok".into(), String::into_bytes));
        }
        let mut choices = Vec::new();
        if let Some((dir, name)) = view::names_of(state, id, row.kind())?.into_iter().next() {
            let conflict = conflict::at(state, dir, &name)?;
            if let Some(conflict) = conflict
                && !self.is_merged(state, &conflict)?
            {
                choices = conflict.choices;
            }
        }
        let count = choices.len();
        if choices.is_empty() {
            let (inode, kind, link) = (id, row.kind(), crate::id::LinkId(id.0));
            choices = conflict::choices(state, &[Child::Link { link, inode, kind }])?;
        }
        let shown = choices.first().ok_or(VolumeError::NoAttribute)?;
        Ok(match name {
            COUNT => count.to_string(),
            WINNER => shown.dot.to_string(),
            WRITER => shown.dot.author.to_string(),
            _ => {
                let terms: Vec<String> =
                    shown.score.terms().map(|term| format!("\"{}\":{}", term.name, term.value)).collect();
                format!("{{{}}}", terms.join(","))
            }
        }
        .into_bytes())
    }

    /// How many names in a directory and below it there is something to decide about.
    fn count_below(&self, state: &State, dir: DirId) -> Result<usize> {
        let conflicts = self.disputed(state)?;
        if dir == DirId::ROOT || conflicts.is_empty() {
            return Ok(conflicts.len());
        }
        let members = union::members(state, dir)?;
        let mut count = 0;
        for conflict in conflicts {
            let mut at = Some(conflict.dir);
            while let Some(dir) = at.filter(|dir| !members.contains(dir)) {
                at = view::place_of(state, Child::Dir(dir))?.map(|(above, _)| above);
            }
            count += usize::from(at.is_some());
        }
        Ok(count)
    }
}
