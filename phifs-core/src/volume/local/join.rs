//! What joining another state means for the tables of a line of changes, the rows of this machine included.
//!
//! The journal says no more of it than which state that was. Joining is a pure function of the two states, so replaying
//! does the same again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::ControlFlow;

use bytes::Bytes;

use crate::causal::VersionVector;
use crate::codec::{self, Encode, Reader};
use crate::id::{DirId, Dot, InodeId, LinkId};
use crate::identity::Author;
use crate::merkle;
use crate::meta::{Frozen, Journal, Lsn, Roots, TableId};
use crate::namespace::apply::apply;
use crate::namespace::coherence;
use crate::namespace::derive::{Child, Children, dot_of, split_child_key};
use crate::namespace::events::{self, Event};
use crate::namespace::join::{Contexts, TheirRow, join};
use crate::namespace::op::Op;
use crate::namespace::register::Register;
use crate::namespace::row::{InodeRow, LinkRow};
use crate::namespace::suspect::{self, Suspect};
use crate::namespace::tables::{REPLICATED, Rows, Table, Tables, TablesMut, malformed};
use crate::namespace::union;
use crate::namespace::view::{self, Stat};
use crate::registry::Cut;
use crate::store::StoreError;
use crate::time::Timestamp;
use crate::volume::{FileKind, VolumeError};

use super::bulk::{Bulk, Changes};
use super::history::{self, Retention};
use super::names::known_as;
use super::state::{State, local_key};

/// The kind of the journal record of a join.
pub const RECORD_MERGE: u8 = 2;

const MERGE_VERSION: u8 = 1;

/// Rows of the local table about what joins came across: time of the join, number -> event.
const EVENT: u8 = b'e';

/// So many are kept, the latest.
const EVENTS_MAX: usize = 10_000;

/// Another state, to be joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Its nodes and glyphs are in this store. `time` is when it is joined.
    pub theirs: Cut,
    /// Everybody who made something in it.
    pub authors: Vec<Author>,
    /// Which of the versions are kept that it replaces.
    pub retention: Retention,
}

impl Merge {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![MERGE_VERSION];
        self.theirs.encode(&mut out);
        self.retention.encode(&mut out);
        out.put_varint(self.authors.len() as u64);
        self.authors.iter().for_each(|author| author.encode(&mut out));
        out
    }

    pub fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.format("the record of a merge", MERGE_VERSION)?;
        let theirs = Cut::decode(&mut reader)?;
        let retention = Retention::decode(&mut reader)?;
        let authors = (0..reader.count()?).map(|_| Author::decode(&mut reader)).collect::<codec::Result<_>>()?;
        reader.finish()?;
        Ok(Self { theirs, authors, retention })
    }
}

/// The rows in which a state with these maps and another one differ.
pub fn differing(mine: &Roots, theirs: &Frozen) -> Result<Vec<TheirRow>, StoreError> {
    let mut rows = Vec::new();
    for table in REPLICATED {
        let id = TableId(table as u8);
        merkle::diff(theirs.source(), &mine.get(id), &theirs.roots().get(id), &mut |change| {
            rows.push(TheirRow { table, key: change.key, value: change.new });
            ControlFlow::Continue(())
        })?;
    }
    Ok(rows)
}

/// What a state becomes by joining another one, in `rows` of which the two differ; or what is wrong with that one.
pub fn joined<'a, T: Tables + ?Sized>(
    mine: &'a T,
    context: &VersionVector,
    theirs: &Cut,
    rows: &[TheirRow],
) -> Result<Bulk<'a, T>, Suspect> {
    suspect::check_rows(mine, &theirs.context, rows)?;
    let bulk = joined_unchecked(mine, context, theirs, rows)?;
    suspect::check_joined(&bulk, rows)?;
    check_sizes(&bulk)?;
    Ok(bulk)
}

fn check_sizes<T: Tables + ?Sized>(bulk: &Bulk<'_, T>) -> Result<(), StoreError> {
    let Some((table, key)) = bulk.too_large() else { return Ok(()) };
    Err(malformed(&table.to_string(), key, codec::DecodeError::NotCanonical("the size of a row")))
}

fn joined_unchecked<'a, T: Tables + ?Sized>(
    mine: &'a T,
    context: &VersionVector,
    theirs: &Cut,
    rows: &[TheirRow],
) -> Result<Bulk<'a, T>, StoreError> {
    let contexts = Contexts { mine: &|dot| context.contains(dot), theirs: &|dot| theirs.context.contains(dot) };
    let mut bulk = Bulk::new(mine);
    join(&mut bulk, &contexts, rows)?;
    Ok(bulk)
}

/// What a join changes for those who look at the files.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Names that mean something else now.
    pub names: Vec<(DirId, Vec<u8>)>,
    /// Inodes that were there and look different.
    pub inodes: Vec<InodeId>,
    /// Of these, the files that have another version now, and those that are gone.
    pub contents: Vec<InodeId>,
    /// Inodes that have lost their last name.
    pub nameless: Vec<InodeId>,
    /// What people may want to hear of.
    pub events: Vec<Event>,
}

/// What a join changes in a line of changes: rows, and how many inodes there are then.
pub struct Joined {
    pub told: Told,
    changes: BTreeMap<Table, Changes>,
    inodes: u64,
    transactions: u64,
}

impl State {
    /// Adds to `rows` those that were changed here since the maps were made and that the other state has.
    pub fn add_changed(
        &self,
        rows: &mut Vec<TheirRow>,
        theirs: &Frozen,
        context: &VersionVector,
    ) -> Result<(), StoreError> {
        let found = rows.len();
        for table in REPLICATED {
            let changed = self.meta.changed_keys(TableId(table as u8));
            if changed.is_empty() {
                continue;
            }
            let known: HashSet<&[u8]> =
                rows[..found].iter().filter(|row| row.table == table).map(|row| &row.key[..]).collect();
            let mut new = Vec::new();
            for key in changed.iter().filter(|key| !known.contains(&key[..])) {
                // Of what they have never heard of they have nothing, and cannot have removed anything.
                let made = key.get(if table == Table::Moves { 8..8 + Dot::LEN } else { 0..Dot::LEN });
                if context.contains(dot_of(made.unwrap_or_default())?) {
                    let value = theirs.get(table, key)?;
                    new.push(TheirRow { table, key: Bytes::copy_from_slice(key), value });
                }
            }
            rows.extend(new);
        }
        Ok(())
    }

    /// Finds out what a join makes of the tables. `checked`: the other state is known to be sound.
    pub fn rehearse_merge(&self, merge: &Merge, rows: &[TheirRow], checked: bool) -> Result<Joined, Suspect> {
        let mut bulk = if checked {
            joined_unchecked(self, &self.context, &merge.theirs, rows)?
        } else {
            joined(self, &self.context, &merge.theirs, rows)?
        };
        let told = tell(&bulk)?;
        let (named, nameless) = self.names_of_changed(&bulk, &told)?;
        let events = events_of(&bulk, &self.context, &merge.theirs.context, rows)?;
        let told = Told { nameless, events, ..told };
        self.bring_along(&mut bulk, merge.theirs.time, merge.retention, &told, named)?;
        Ok(self.as_joined(bulk, told)?)
    }

    /// Finds out what operations of another node, all of them new, make of the tables. `theirs` is what their author knew.
    pub fn rehearse_ops(
        &self,
        ops: &[Op],
        theirs: &VersionVector,
        time: Timestamp,
        retention: Retention,
    ) -> Result<Joined, Suspect> {
        let mut bulk = Bulk::new(self);
        ops.iter().try_for_each(|op| apply(&mut bulk, op))?;
        let rows = rows_of_author(&bulk, theirs)?;
        suspect::check_joined(&bulk, &rows)?;
        check_sizes(&bulk)?;
        let told = tell(&bulk)?;
        let (named, nameless) = self.names_of_changed(&bulk, &told)?;
        // An author who knew all that is known here has met nobody.
        let events =
            if theirs.covers(&self.context) { Vec::new() } else { events_of(&bulk, &self.context, theirs, &rows)? };
        let told = Told { nameless, events, ..told };
        self.bring_along(&mut bulk, time, retention, &told, named)?;
        Ok(self.as_joined(bulk, told)?)
    }

    fn as_joined(&self, bulk: Bulk<'_, Self>, told: Told) -> Result<Joined, StoreError> {
        let mut inodes = self.inodes();
        for (key, row) in bulk.changed(Table::Inodes) {
            let is_new = !self.context.contains(dot_of(key)?);
            let was_there = !is_new && self.get(Table::Inodes, key)?.is_some();
            inodes = inodes + u64::from(row.is_some()) - u64::from(was_there);
        }
        Ok(Joined { told, changes: bulk.into_changes(), inodes, transactions: self.transactions() })
    }

    /// Which of the inodes that a join is about have names afterwards, and which have none.
    fn names_of_changed(
        &self,
        joined: &Bulk<'_, Self>,
        told: &Told,
    ) -> Result<(Vec<InodeId>, Vec<InodeId>), StoreError> {
        let mut named: HashSet<InodeId> = HashSet::new();
        let mut asked: BTreeSet<InodeId> = told.inodes.iter().copied().collect();
        for (key, row) in joined.changed(Table::Links) {
            let id = LinkId(dot_of(key)?);
            let place = |row: &LinkRow| row.place().map(|place| place.inode);
            let now = row.map(|row| LinkRow::decode(id.0, row).map_err(|e| malformed("link", key, e))).transpose()?;
            named.extend(now.as_ref().and_then(place));
            if self.context.contains(id.0) {
                asked.extend(self.link(id)?.as_ref().and_then(place));
            }
        }
        for (key, _) in joined.changed(Table::Dirs) {
            asked.insert(InodeId(dot_of(key)?));
        }
        for (key, _) in joined.changed(Table::Inodes) {
            asked.insert(InodeId(dot_of(key)?));
        }
        asked.remove(&DirId::ROOT.inode());
        let (mut has, mut has_none) = (Vec::new(), Vec::new());
        for id in asked.into_iter().chain(named.iter().copied()).collect::<BTreeSet<_>>() {
            let is_named = named.contains(&id)
                || match joined.inode(id)? {
                    Some(row) => view::nlink(joined, id, row.kind())? > 0,
                    None => false,
                };
            if is_named { has.push(id) } else { has_none.push(id) }
        }
        Ok((has, has_none))
    }

    /// Brings the rows of this machine along: graves of inodes without names, versions that were replaced, the numbers of
    /// unions, and what is noted of all this.
    fn bring_along(
        &self,
        joined: &mut Bulk<'_, Self>,
        time: Timestamp,
        retention: Retention,
        told: &Told,
        named: Vec<InodeId>,
    ) -> Result<(), StoreError> {
        self.keep_history(joined, time, retention, named, &told.nameless)?;
        self.keep_known_numbers(joined)?;
        self.note_events(joined, time, &told.events)
    }

    fn keep_history(
        &self,
        joined: &mut Bulk<'_, Self>,
        time: Timestamp,
        retention: Retention,
        named: Vec<InodeId>,
        nameless: &[InodeId],
    ) -> Result<(), StoreError> {
        let local = |about: u8, id: InodeId| local_key(about, &id.0.to_bytes());
        let mut draft = self.draft(time);
        let failed = |error: VolumeError| match error {
            VolumeError::Store(error) => error,
            error => unreachable!("rows of history only fail to be read: {error}"),
        };
        for (key, row) in joined.changed(Table::Inodes) {
            let id = InodeId(dot_of(key)?);
            let Some(mut before) = (if self.context.contains(id.0) { self.inode(id)? } else { None }) else { continue };
            let Some(row) = row else {
                history::forget(self, &mut draft, id, &before).map_err(failed)?;
                draft.local.push((local(b't', id), None));
                continue;
            };
            let now = InodeRow::decode(id.0, row).map_err(|e| malformed("inode", key, e))?;
            for dot in now.versions.dots() {
                before.versions.remove(dot);
            }
            history::keep_replaced(self, &mut draft, id, &before, retention).map_err(failed)?;
        }
        // Most have neither, and there are few of these rows.
        for about in [b'g', b'o'] {
            if self.with_any(about)? {
                for id in &named {
                    if self.get(Table::Local, &local(about, *id))?.is_some() {
                        draft.local.push((local(about, *id), None));
                    }
                }
            }
        }
        for id in nameless {
            let is_there = joined.get(Table::Inodes, &id.0.to_bytes())?.is_some();
            draft.local.push((local(b'g', *id), is_there.then(Vec::new)));
        }
        for (key, value) in draft.local {
            match value {
                Some(value) => joined.put(Table::Local, &key, &value),
                None => joined.delete(Table::Local, &key),
            }
        }
        Ok(())
    }

    /// Notes what happened for `phifs log --conflicts`, and forgets the oldest of what was noted before.
    fn note_events(&self, joined: &mut Bulk<'_, Self>, time: Timestamp, events: &[Event]) -> Result<(), StoreError> {
        if events.is_empty() {
            return Ok(());
        }
        let known = self.with_prefix(Table::Local, &[EVENT])?;
        for (rest, _) in known.iter().take((known.len() + events.len()).saturating_sub(EVENTS_MAX)) {
            joined.delete(Table::Local, &local_key(EVENT, rest));
        }
        let millis = time.millis();
        for (n, event) in events.iter().take(EVENTS_MAX).enumerate() {
            let which = [&millis.to_be_bytes()[..], &(n as u32).to_be_bytes()].concat();
            joined.put(Table::Local, &local_key(EVENT, &which), &event.encode());
        }
        Ok(())
    }

    /// What was noted, the latest last: when, and what.
    pub fn noted_events(&self) -> Result<Vec<(u64, Event)>, StoreError> {
        let noted = |(rest, value): (Vec<u8>, Bytes)| {
            let millis = rest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
            Ok((millis, Event::decode(&value).map_err(|e| malformed("event", &rest, e))?))
        };
        self.with_prefix(Table::Local, &[EVENT])?.into_iter().map(noted).collect()
    }

    /// Of each new union the member that was seen here before keeps its number.
    fn keep_known_numbers(&self, joined: &mut Bulk<'_, Self>) -> Result<(), StoreError> {
        let changed: Vec<DirId> = joined
            .changed(Table::Unions)
            .filter(|(_, row)| row.is_some())
            .map(|(key, _)| dot_of(key).map(DirId))
            .collect::<Result<_, _>>()?;
        for dir in changed {
            let members = union::members(joined, dir)?;
            if members[0] != dir {
                continue;
            }
            let before = members.iter().map(|member| Ok((*member, self.dir(*member)?.is_some_and(|row| row.shown))));
            let before = before.collect::<Result<Vec<_>, StoreError>>()?;
            let Some((seen, _)) = before.into_iter().find(|(_, shown)| *shown) else { continue };
            let Child::Dir(known) = known_as(self, Child::Dir(seen))? else { continue };
            joined.put(Table::Local, &local_key(b'u', &known.0.to_bytes()), &[]);
        }
        Ok(())
    }

    /// Whether there is any row of this kind in the local table.
    fn with_any(&self, about: u8) -> Result<bool, StoreError> {
        let mut any = false;
        self.scan(Table::Local, &[about], &mut |key, _| {
            any = key.first() == Some(&about);
            ControlFlow::Break(())
        })?;
        Ok(any)
    }

    /// Carries a join out: journal, then tables.
    ///
    /// # Panics
    /// If there was a transaction since it was rehearsed.
    pub fn commit_merge(&mut self, merge: &Merge, joined: Joined, journal: &Journal) -> Lsn {
        let lsn = journal.append(RECORD_MERGE, &merge.encode());
        self.take_merge(merge, joined);
        lsn
    }

    fn take_merge(&mut self, merge: &Merge, joined: Joined) {
        self.take_joined(&merge.authors, joined);
        self.context.join(&merge.theirs.context);
        self.hlc = self.hlc.max(merge.theirs.hlc);
        self.count_merge();
        self.tell_change();
    }

    pub(super) fn take_joined(&mut self, authors: &[Author], joined: Joined) {
        self.end_group();
        assert_eq!(joined.transactions, self.transactions(), "a join outlived the state it was made of");
        for (key, value) in self.meet(authors) {
            self.put(Table::Local, &key, &value.unwrap_or_default());
        }
        self.take_changes(joined.changes, joined.inodes);
    }

    /// Does a join again that is found in the journal. Says what was joined, unless the tables have it already.
    pub fn replay_merge(
        &mut self,
        lsn: Lsn,
        payload: &[u8],
        frozen: impl Fn(&Roots) -> Frozen,
    ) -> Result<Option<Roots>, StoreError> {
        let record = |source| StoreError::Malformed { what: format!("journal record {}", lsn.0), source };
        let merge = Merge::decode(payload).map_err(record)?;
        if self.context.covers(&merge.theirs.context) {
            return Ok(None);
        }
        let theirs = frozen(&merge.theirs.roots);
        let mut rows = differing(self.meta.roots(), &theirs)?;
        self.add_changed(&mut rows, &theirs, &merge.theirs.context)?;
        let joined = self.rehearse_merge(&merge, &rows, true).map_err(|error| match error {
            Suspect::Store(error) => error,
            error => unreachable!("it was checked when it was joined: {error}"),
        })?;
        self.take_merge(&merge, joined);
        Ok(Some(merge.theirs.roots))
    }
}

/// What a join comes across that people may want to hear of.
pub fn events_of<T: Tables + ?Sized>(
    joined: &Bulk<'_, T>,
    mine: &VersionVector,
    theirs: &VersionVector,
    rows: &[TheirRow],
) -> Result<Vec<Event>, StoreError> {
    let before = joined.under();
    let mut new = Vec::new();
    for table in [Table::Conflicts, Table::Unions, Table::Skipped] {
        for (key, row) in joined.changed(table) {
            if row.is_some() && before.get(table, key)?.as_ref() != row {
                new.push((table, key.to_vec()));
            }
        }
    }
    let contexts = Contexts { mine: &|dot| mine.contains(dot), theirs: &|dot| theirs.contains(dot) };
    events::Joined { before, after: joined, contexts: &contexts, rows, new: &new, paths: RefCell::default() }.events()
}

/// The changed rows as the other side has them who knows no more than `theirs`.
fn rows_of_author<T: Tables + ?Sized>(bulk: &Bulk<'_, T>, theirs: &VersionVector) -> Result<Vec<TheirRow>, StoreError> {
    fn seen<V>(register: &mut Register<V>, theirs: &VersionVector) {
        let unseen: Vec<Dot> = register.dots().filter(|dot| !theirs.contains(*dot)).collect();
        unseen.into_iter().for_each(|dot| register.remove(dot));
    }
    let mut rows = Vec::new();
    for table in REPLICATED {
        for (key, value) in bulk.changed(table) {
            let decode = |what: &'static str| move |error| malformed(what, key, error);
            let value = match (table, value) {
                (Table::Inodes, Some(value)) => {
                    let id = dot_of(key)?;
                    let mut row = InodeRow::decode(id, value).map_err(decode("inode"))?;
                    seen(&mut row.birth, theirs);
                    seen(&mut row.alive, theirs);
                    seen(&mut row.mode, theirs);
                    seen(&mut row.owner, theirs);
                    seen(&mut row.mtime, theirs);
                    seen(&mut row.touched, theirs);
                    seen(&mut row.versions, theirs);
                    (!row.dots().is_empty()).then(|| row.encode(id).into())
                }
                (Table::Links, Some(value)) => {
                    let id = dot_of(key)?;
                    let mut row = LinkRow::decode(id, value).map_err(decode("link"))?;
                    seen(&mut row.places, theirs);
                    (!row.places.is_empty()).then(|| row.encode(id).into())
                }
                (_, value) => value.cloned(),
            };
            rows.push(TheirRow { table, key: Bytes::copy_from_slice(key), value });
        }
    }
    Ok(rows)
}

/// What is different in the tables for those who look at the files.
fn tell(joined: &Bulk<'_, State>) -> Result<Told, StoreError> {
    let mut told = Told::default();
    let before = joined.under();
    for (key, row) in joined.changed(Table::Children) {
        let children = |row: &Bytes| Children::decode(row).map_err(|e| malformed("child", key, e));
        let was = before.get(Table::Children, key)?.as_ref().map(children).transpose()?.unwrap_or_default();
        let is = row.map(children).transpose()?.unwrap_or_default();
        if coherence::shown(before, was.all())? != coherence::shown(joined, is.all())? {
            let (dir, name) = split_child_key(key)?;
            told.names.push((dir, name.to_vec()));
        }
    }
    let mut inodes = BTreeSet::new();
    for (key, _) in joined.changed(Table::Unions) {
        // Everything in them may mean something else: the kernel drops what it knows of all that is below such a name.
        let dir = DirId(dot_of(key)?);
        for tables in [before as &dyn Tables, joined] {
            told.names.extend(view::place_of(tables, Child::Dir(dir))?);
        }
        if before.context.contains(dir.0) {
            inodes.insert(dir.inode());
        }
    }
    for (key, row) in joined.changed(Table::Inodes) {
        let id = InodeId(dot_of(key)?);
        if !before.context.contains(id.0) {
            continue;
        }
        let Some(was) = before.inode(id)? else { continue };
        let now = row.map(|row| InodeRow::decode(id.0, row).map_err(|e| malformed("inode", key, e))).transpose()?;
        if now.as_ref() == Some(&was) {
            continue;
        }
        inodes.insert(id);
        let version = |row: &InodeRow| Stat::of(row).version.map(|(dot, _)| dot);
        if was.kind() == FileKind::File && now.as_ref().map(version) != Some(version(&was)) {
            told.contents.push(id);
        }
    }
    for (key, _) in joined.changed(Table::Xattrs) {
        let id = InodeId(dot_of(key.get(..Dot::LEN).unwrap_or_default())?);
        inodes.extend(before.context.contains(id.0).then_some(id));
    }
    let are_disputed = !before.meta.is_empty(TableId(Table::Conflicts as u8));
    if are_disputed || joined.changed(Table::Conflicts).next().is_some() {
        // Of several files of a name another one may be shown now: by its bytes, or as it is no longer like the others.
        for id in &inodes {
            told.names.extend(union::disputed_names_of(joined, *id)?);
        }
    }
    told.inodes.extend(inodes);
    Ok(told)
}
