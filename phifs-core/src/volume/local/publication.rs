//! Publishing: what is in a staging file becomes a version that others can see.
//!
//! The files of a directory with the attribute `user.phi.group` are published together: whenever one of them is, all of
//! them that changed are, in one operation, as they were at one moment. So a database and its log never part.

use bytes::Bytes;
use parking_lot::MutexGuard;

use crate::content::overlay::Sources;
use crate::content::publish::{self, Published};
use crate::content::reader::ContentReader;
use crate::content::{Content, ContentError, validate};
use crate::id::{DirId, Dot, InodeId};
use crate::meta::Frozen;
use crate::namespace::conflict;
use crate::namespace::derive::{self, Child};
use crate::namespace::op::{Effect, LinkEffect};
use crate::namespace::plan;
use crate::namespace::row::{Closure, Evidence, InodeRow, Version};
use crate::namespace::tables::{Rows, Table, Tables};
use crate::namespace::union;
use crate::namespace::view::{self, Stat};
use crate::time::Hlc;
use crate::volume::Result;

use super::files::{ASKING, Data, FileCell, Gate, Shown, User, looking_failed, staging_io};
use super::scope::Scope;
use super::state::{Draft, State};
use super::{LocalVolume, history};

/// The attribute of a directory whose files are published together. Any value will do.
const GROUP: &[u8] = b"user.phi.group";

/// What became of an attempt to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publication {
    Clean,
    Published,
    /// Somebody writes at the same time; a later attempt will do.
    Changing,
    /// Nothing names the file any more.
    Gone,
}

/// The bytes of a file, stored and ready to be named by a version.
struct Prepared {
    /// Whether the kernel lets somebody write to the staging file.
    written: bool,
    /// Which bytes they are: the staging file, and how often it had changed.
    seen: (u64, u64),
    published: Published,
}

/// What a publication decides: names that mean one thing now, and files that lost one.
#[derive(Default)]
struct Decided {
    names: Vec<(DirId, Vec<u8>)>,
    gone: Vec<(InodeId, bool)>,
}

/// A file that is being published.
struct Item<'a> {
    cell: &'a FileCell,
    closure: Closure,
    prepared: Prepared,
}

impl LocalVolume {
    /// Turns what is in the staging file into a version, without holding up readers and writers meanwhile.
    pub(super) fn publish(&self, cell: &FileCell, closure: Closure) -> Result<Publication> {
        let Some(dir) = self.group_of(cell.id)? else { return self.publish_together(&[(cell, closure)]) };
        let others = self.written_in(dir, cell.id)?;
        let others = others.iter().map(|user| (&*user.cell, Closure::IdleFlush));
        let files: Vec<_> = std::iter::once((cell, closure)).chain(others).collect();
        self.publish_together(&files)
    }

    /// Notes that a file was synced whose group is to be published for that.
    pub(super) fn synced(&self, id: InodeId) -> Result<()> {
        if self.group_of(id)?.is_some() {
            self.synced_in_groups.lock().insert(id);
        }
        Ok(())
    }

    /// Publishes the groups that were synced, each at most once in the interval.
    pub(super) fn publish_synced_groups(&self) -> Result<()> {
        let interval = self.settings.read().publish_interval.as_millis() as u64;
        let mut outcome = Ok(());
        let synced = std::mem::take(&mut *self.synced_in_groups.lock());
        for id in synced {
            let Some(user) = self.known(id) else { continue };
            let now = self.env.now();
            let waits = match user.cell.data.lock().as_mut().and_then(|data| data.staging.as_mut()) {
                Some(staging) if now.millis() < staging.tried_at.millis() + interval => true,
                Some(staging) => {
                    staging.tried_at = now;
                    false
                }
                None => continue,
            };
            match if waits { Ok(Publication::Changing) } else { self.publish(&user.cell, Closure::IdleFlush) } {
                Ok(Publication::Changing) => drop(self.synced_in_groups.lock().insert(id)),
                Ok(_) => {}
                Err(error) => outcome = Err(error),
            }
        }
        outcome
    }

    /// The directory whose files are published together with this one.
    fn group_of(&self, id: InodeId) -> Result<Option<DirId>> {
        let state = self.state.read();
        if state.meta.is_empty(crate::meta::TableId(Table::Xattrs as u8)) {
            return Ok(None);
        }
        for link in derive::links_of(&*state, id)? {
            let row = state.link(link)?;
            if let Some(place) = row.as_ref().and_then(|row| row.place())
                && !state.xattr(place.parent.inode(), GROUP)?.is_empty()
            {
                return Ok(Some(place.parent));
            }
        }
        Ok(None)
    }

    /// The other files of a directory that may have to be published.
    fn written_in(&self, dir: DirId, but: InodeId) -> Result<Vec<User<'_>>> {
        let mut written = Vec::new();
        for id in self.cells().into_iter().map(|cell| cell.id).filter(|id| *id != but) {
            if self.group_of(id)? == Some(dir) {
                written.extend(self.known(id));
            }
        }
        Ok(written)
    }

    /// Publishes all of these in one operation, or none. Says what became of the first.
    fn publish_together(&self, files: &[(&FileCell, Closure)]) -> Result<Publication> {
        // No collection may take the new glyphs before the operation that names them.
        let _hold = self.store.hold();
        for (cell, _) in files {
            self.read_ahead(cell.id);
        }
        let mut items = Vec::with_capacity(files.len());
        let mut first = Publication::Published;
        for (n, &(cell, closure)) in files.iter().enumerate() {
            match self.prepare(cell)? {
                Ok(prepared) => items.push(Item { cell, closure, prepared }),
                Err(Publication::Changing) => return Ok(Publication::Changing),
                Err(other) if n == 0 => first = other,
                Err(_) => {}
            }
        }
        if items.is_empty() {
            return Ok(first);
        }
        // In one order, as others may do the same with the same files.
        items.sort_by_key(|item| item.cell.id);
        let gates: Vec<MutexGuard<'_, Gate>> = items.iter().map(|item| item.cell.gate.lock()).collect();
        let mut state = self.state.write();
        let mut datas: Vec<MutexGuard<'_, Option<Data>>> = items.iter().map(|item| item.cell.data.lock()).collect();
        let mut draft = state.draft(self.env.now());
        let mut drafted = Vec::with_capacity(items.len());
        let mut deciding = Vec::new();
        for (n, item) in items.iter().enumerate() {
            match self.draft_item(&state, &mut draft, item, &gates[n], &mut datas[n])? {
                Ok(has_version) => {
                    let knows = datas[n].as_ref().is_some_and(|loaded| loaded.merges == state.merges());
                    if has_version && knows {
                        deciding.push(item.cell.id);
                    }
                    drafted.push(Some(has_version));
                }
                Err(Publication::Changing) => return Ok(Publication::Changing),
                Err(other) => {
                    if item.cell.id == files[0].0.id {
                        first = other;
                    }
                    drafted.push(None);
                }
            }
        }
        if drafted.iter().all(Option::is_none) {
            return Ok(first);
        }
        let dot = draft.dot;
        let published: Vec<InodeId> = items.iter().map(|item| item.cell.id).collect();
        let mut decided = self.decide_by_writing(&state, &mut draft, &deciding, &published)?;
        decided.names.extend(disputed_names(&state, &published)?);
        let lsn = state.commit(draft, &self.journal)?;
        for ((item, data), has_version) in items.into_iter().zip(&mut datas).zip(drafted) {
            let Some(has_version) = has_version else { continue };
            let Some(loaded) = data.as_mut() else { continue };
            let Some(staging) = loaded.staging.as_mut() else { continue };
            let Prepared { written, published, .. } = item.prepared;
            let version = if has_version { Some(dot) } else { loaded.version };
            if !staging.is_handed() {
                // The kernel's cache holds what was published.
                self.cached_versions.lock().advance(item.cell.id, loaded.version, version);
            }
            if has_version {
                loaded.seen = vec![dot];
                // Beside a better one it is seen by those alone who have the file open.
                let row = state.inode(item.cell.id)?.unwrap_or_default();
                let is_shown = Stat::of(&row).version.is_some_and(|(shown, _)| shown == dot);
                if !is_shown {
                    self.misjudge(item.cell.id);
                }
                loaded.outdated = (!is_shown).then(|| Shown {
                    len_bytes: published.content.len_bytes(),
                    allocated_bytes: published.content.allocated_bytes(),
                    mtime: staging.mtime,
                    ctime: staging.changed,
                });
            }
            loaded.version = version;
            loaded.inline = published.inline;
            loaded.reader = ContentReader::new(published.content, loaded.inline.clone())?;
            staging.published(published.content, self.env.now(), written, lsn);
            staging.retire_replaced(&self.staging, lsn);
            self.counters.published.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        drop((datas, gates));
        if let (Some(sink), false) = (self.kernel(), decided.names.is_empty()) {
            for (dir, name) in &decided.names {
                sink.entry(state.ino(dir.inode()), name);
            }
        }
        drop(state);
        self.names_gone(decided.gone);
        Ok(first)
    }

    /// Adds to the draft that what is published takes the place of the other files of its name, as far as the writer
    /// could know of them.
    fn decide_by_writing(
        &self,
        state: &State,
        draft: &mut Draft,
        deciding: &[InodeId],
        published: &[InodeId],
    ) -> Result<Decided> {
        let mut decided = Decided::default();
        if state.meta.is_empty(crate::meta::TableId(Table::Conflicts as u8)) {
            return Ok(decided);
        }
        for id in deciding {
            if !is_name_disputed(state, draft, *id)? {
                continue;
            }
            // Of two that are published together neither replaces the other.
            let is_other = |child: &Child| !published.contains(&child.inode());
            let rivals: Vec<Child> = conflict::rivals(state, *id)?.into_iter().filter(is_other).collect();
            let rows = Scope::new(state);
            for rival in &rivals {
                decided.names.extend(view::place_of(state, *rival)?);
            }
            decided.gone.extend(self.drop_rivals(&rows, draft, *id, &rivals)?);
        }
        Ok(decided)
    }

    /// Brings the rows into the cache that a publication is made of: while it is made, under the lock of the state,
    /// everybody would wait for the disk. An error shows again where it counts.
    fn read_ahead(&self, id: InodeId) {
        let roots = self.state.read().meta.roots().clone();
        let stored = Frozen::new(self.nodes.clone(), roots);
        let read = || -> Result<()> {
            let Some(row) = stored.inode(id)? else { return Ok(()) };
            for link in derive::links_of(&stored, id)? {
                stored.link(link)?;
            }
            history::read_ahead(&stored, id, &row)
        };
        let _ = read();
    }

    /// Stores the bytes of a file; or says why there is nothing to be done.
    fn prepare(&self, cell: &FileCell) -> Result<std::result::Result<Prepared, Publication>> {
        let Some((written, synced)) = self.protect_pages(cell)? else { return Ok(Err(Publication::Clean)) };
        let (overlay, file, seen, mut base) = {
            let mut data = cell.data.lock();
            let Some(Data { staging: Some(staging), reader, inline, .. }) = data.as_mut() else {
                return Ok(Err(Publication::Clean));
            };
            staging.observe().map_err(looking_failed)?;
            if !staging.dirty {
                return Ok(Err(Publication::Clean));
            }
            if written && (staging.number, staging.generation) != synced {
                // A record may stay that takes what is in the staging file, so no byte in it may be older.
                return Ok(Err(Publication::Changing));
            }
            let base = *staging.overlay.base();
            let inline = if base == *reader.content() { inline.clone() } else { Bytes::new() };
            let base = ContentReader::new(base, inline)?;
            (staging.overlay.clone(), staging.file.clone(), (staging.number, staging.generation), base)
        };
        let glyphs = self.fetching(Some(cell.id), None);
        let mut sources = Sources { file: &*file, base: &mut base, glyphs: &glyphs };
        match publish::publish(&overlay, &mut sources, &self.telling(overlay.len_bytes())) {
            Ok(published) => Ok(Ok(Prepared { written, seen, published })),
            // The kernel cut the file short while it was read.
            Err(ContentError::Staging { source, .. }) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
                Ok(Err(Publication::Changing))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Adds to the draft what publishes a file, if its bytes are still the ones that were stored. Says whether it gets a
    /// new version.
    fn draft_item(
        &self,
        state: &State,
        draft: &mut Draft,
        item: &Item<'_>,
        gate: &Gate,
        data: &mut Option<Data>,
    ) -> Result<std::result::Result<bool, Publication>> {
        let Item { cell, closure, prepared } = item;
        let Some(loaded) = data.as_mut() else { return Ok(Err(Publication::Gone)) };
        let Some(staging) = loaded.staging.as_mut() else { return Ok(Err(Publication::Gone)) };
        staging.observe().map_err(looking_failed)?;
        // The number as well: it may have been published and dropped, and written again into another staging file.
        if (staging.number, staging.generation) != prepared.seen {
            return Ok(Err(Publication::Changing));
        }
        if !staging.dirty {
            // Somebody else published it meanwhile.
            return Ok(Err(Publication::Clean));
        }
        if gate.kernel_writes() && !prepared.written {
            // Opened in the meantime, perhaps with the promise that it is found in the staging file.
            return Ok(Err(Publication::Changing));
        }
        let Some(mut row) = state.inode(cell.id)? else { return Ok(Err(Publication::Gone)) };
        // What others have done since is none of what was read here: it stays beside what was made of that.
        let unseen: Vec<_> = row.versions.dots().filter(|dot| !loaded.seen.contains(dot)).collect();
        unseen.into_iter().for_each(|dot| row.versions.remove(dot));
        // A record that outlived this version would bring back older bytes after a crash. But what the kernel may still
        // write, and sync by itself, must be found; the staging file has just been synced with the bytes published here.
        let record = prepared.written.then(|| staging.record()).transpose();
        let record = record.map_err(looking_failed)?;
        draft.local.extend(staging.records.replacing(cell.id, record.as_ref()));
        if staging.recovered && loaded.version.is_some() && prepared.published.content == *loaded.reader.content() {
            // The crash came between publishing the file and closing it: there is nothing to add.
            return Ok(Ok(false));
        }
        let closure = if staging.recovered { Closure::CrashRecovered } else { *closure };
        let version = Version {
            content: prepared.published.content,
            mtime: staging.mtime,
            closure,
            evidence: self.evidence(&row, &prepared.published, draft.hlc),
            bases: bases(state, &row),
        };
        self.draft_version(state, draft, cell.id, &row, (version, &prepared.published.inline), staging.changed)?;
        // Who is not privileged clears set-id bits by writing, but of what the kernel writes by itself nobody says who
        // did. And a bit that came with a merge, the writer may not have known.
        let is_own = row.mode.dots().all(|dot| dot.author == state.author_id());
        if !staging.is_handed() && (is_own || loaded.merges == state.merges()) {
            draft.effects.extend(plan::keep_set_id(draft.dot, cell.id, &row));
        }
        Ok(Ok(true))
    }

    /// What there is to say of bytes that are to replace the versions of a file.
    fn evidence(&self, row: &InodeRow, published: &Published, now: Hlc) -> Evidence {
        // Of what is not here it is not known that it was nothing.
        let had_more = |base: &Version| {
            base.evidence.collapsed || !validate::is_blank(base.content, &*self.store).unwrap_or(false)
        };
        let collapsed = published.is_blank && row.versions.entries().iter().any(|base| had_more(&base.value));
        Evidence::after(&row.versions, now, published.verdict, collapsed)
    }

    /// Prepares a dirty file for being read while somebody may store to it through a mapping. Says whether the kernel
    /// lets anybody write to it, or soon will, and which bytes of which staging file were synced for that; `None` if the
    /// file is clean.
    ///
    /// A store to a page that is writable already leaves no trace. The sync write-protects all pages, so that any
    /// store from then on moves the mtime and shows as a change.
    fn protect_pages(&self, cell: &FileCell) -> Result<Option<(bool, (u64, u64))>> {
        let is_open = cell.gate.lock().kernel_writes();
        let (file, seen) = {
            let mut data = cell.data.lock();
            let Some(staging) = data.as_mut().and_then(|data| data.staging.as_mut()) else { return Ok(None) };
            staging.observe().map_err(looking_failed)?;
            if !staging.dirty {
                return Ok(None);
            }
            let seen = (staging.number, staging.generation);
            if !staging.is_handed() {
                return Ok(Some((false, seen)));
            }
            (staging.file.clone(), seen)
        };
        let written = is_open || file.has_writers().map_err(staging_io(ASKING))?;
        if written {
            let synced = self.staging.name_is_durable(seen.0).and_then(|()| file.sync());
            synced.map_err(staging_io("syncing a staging file"))?;
        }
        Ok(Some((written, seen)))
    }

    /// Adds to the draft what publishes a version.
    fn draft_version(
        &self,
        state: &State,
        draft: &mut Draft,
        id: InodeId,
        row: &InodeRow,
        (version, inline): (Version, &Bytes),
        changed: crate::time::Timestamp,
    ) -> Result<()> {
        let inline = matches!(version.content, Content::Inline { .. }).then(|| inline.to_vec());
        let touched = Stat::of(row).ctime.max(changed);
        draft.effects.extend(plan::publish(state, id, row, (version, inline), touched)?);
        super::attrs::drop_capability(state, draft, id)?;
        history::keep_replaced(state, draft, id, row, self.retention())
    }
}

/// The versions that the next one replaces. Of such as nobody else has seen, those that they replaced as well, as far as
/// others know them: so whoever changes the file elsewhere finds the one that both began with.
fn bases(state: &State, row: &InodeRow) -> Vec<Dot> {
    let mut bases: Vec<Dot> = row.versions.dots().collect();
    for own in row.versions.entries().iter().filter(|entry| !state.is_shared(entry.dot)) {
        bases.extend(own.value.bases.iter().filter(|base| state.is_shared(**base)));
    }
    bases.sort_unstable();
    bases.dedup();
    bases
}

/// The names of these files that mean something else as well: with a new version, another meaning may be shown.
fn disputed_names(state: &State, files: &[InodeId]) -> Result<Vec<(DirId, Vec<u8>)>> {
    let mut disputed = Vec::new();
    if state.meta.is_empty(crate::meta::TableId(Table::Conflicts as u8)) {
        return Ok(disputed);
    }
    for id in files {
        for (dir, name) in union::disputed_names_of(state, *id)? {
            disputed.extend(union::members(state, dir)?.into_iter().map(|member| (member, name.clone())));
        }
    }
    Ok(disputed)
}

/// Whether a name that a publication keeps alive means something else as well.
fn is_name_disputed(state: &State, draft: &Draft, id: InodeId) -> Result<bool> {
    for effect in &draft.effects {
        if let Effect::Link(LinkEffect { inode, place: Some(place), .. }) = effect
            && *inode == id
            && state.get(Table::Conflicts, &derive::child_key(place.parent, &place.name))?.is_some()
        {
            return Ok(true);
        }
    }
    Ok(false)
}
