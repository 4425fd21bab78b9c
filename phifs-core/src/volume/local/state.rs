//! The metadata of a local volume in one place: tables, context, clock and authors, changed by transactions only.
//!
//! A transaction is one operation, or changes that concern this node alone, or both. It is first applied to a scratch
//! copy of the rows it touches; only when that worked does it go to the journal and into the tables. So a failing disk
//! in the middle of an operation leaves nothing half done, and the journal's order is the order of the operations.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::causal::VersionVector;
use crate::codec::{self, Encode, Reader};
use crate::id::{AuthorId, Dot, InodeId};
use crate::identity::Author;
use crate::meta::{Journal, Lsn, Meta, TableId};
use crate::namespace::apply::{GENESIS_DOT, genesis};
use crate::namespace::coherence::Preference;
use crate::namespace::tables::{Rows as _, malformed};
use crate::namespace::{Effect, Op, Table, Tables, TablesMut, apply};
use crate::registry::{Branch, Entry, Key, NamedSnapshot};
use crate::settings::Settings;
use crate::store::StoreError;
use crate::time::{Hlc, Timestamp};
use crate::volume::{Ino, VolumeError};

use super::bulk::Changes;
use super::scope::{Rows, Scope};

/// The kind of the journal record of a transaction. (The only other one is that of a merge: see `join`.)
pub const RECORD_TRANSACTION: u8 = 1;

/// Bits of an inode number that hold the operation's number; above them is the local number of its author.
const INO_BITS: u32 = 44;

/// What the snapshots and branches in the registry have seen, taken together: branches that were made of them, or will
/// be, may change it. All lines of changes of a store look at the same.
pub type Known = Arc<RwLock<VersionVector>>;

pub struct State {
    pub meta: Meta,
    pub context: VersionVector,
    /// The largest clock reading known.
    pub hlc: Hlc,
    pub author: Author,
    author_id: AuthorId,
    authors: Authors,
    /// Rows of the inode table, those of files that are unlinked and still open included.
    inodes: u64,
    /// What others know. Whatever is in it may still be changed by them.
    known: Known,
    /// A snapshot is being taken, and what is in it is not known yet: everything may be.
    pub is_being_cut: bool,
    is_branch: bool,
    /// Other machines have, or had, the volume: everything is known to them, or will be within moments.
    is_replicated: bool,
    /// What is set for the volume; all lines of changes look at the same.
    pub settings: Arc<RwLock<Settings>>,
    /// Operations that are not in the oplog yet, oldest first.
    pub unsealed: VecDeque<Unsealed>,
    transactions: u64,
    merges: u64,
    /// Told whenever there are more operations.
    pub on_change: Option<Arc<dyn Fn() + Send + Sync>>,
}

pub struct Unsealed {
    pub dot: Dot,
    pub hlc: Hlc,
    pub bytes: Bytes,
    /// What was known then, if something came from elsewhere right after it.
    pub context: Option<VersionVector>,
}

/// Local numbers of authors, in order of first sight. Number 0 is the genesis.
pub struct Authors {
    by_number: Vec<(AuthorId, Option<Author>)>,
    numbers: HashMap<AuthorId, u32>,
}

impl Authors {
    pub fn new() -> Self {
        Self { by_number: vec![(AuthorId::GENESIS, None)], numbers: HashMap::from([(AuthorId::GENESIS, 0)]) }
    }

    pub fn add(&mut self, author: Author) -> u32 {
        let id = author.id();
        let next = self.by_number.len() as u32;
        let number = *self.numbers.entry(id).or_insert(next);
        if number == next {
            self.by_number.push((id, Some(author)));
        }
        number
    }

    /// `None` for one whose author has no number here.
    pub fn ino(&self, id: InodeId) -> Option<Ino> {
        Some(Ino(u64::from(*self.numbers.get(&id.0.author)?) << INO_BITS | id.0.n))
    }

    pub fn inode_id(&self, ino: Ino) -> Result<InodeId, VolumeError> {
        let author = self.by_number.get((ino.0 >> INO_BITS) as usize).ok_or(VolumeError::Stale)?;
        Ok(InodeId(Dot { author: author.0, n: ino.0 & ((1 << INO_BITS) - 1) }))
    }
}

/// What follows the kind in the key of an entry of the registry, and its value.
type KeyedValue = (Vec<u8>, Vec<u8>);

/// A row of the local table to set or remove.
pub type LocalChange = (Vec<u8>, Option<Vec<u8>>);

/// An operation being put together.
pub struct Draft {
    pub dot: Dot,
    pub hlc: Hlc,
    pub time: Timestamp,
    pub effects: Vec<Effect>,
    pub local: Vec<LocalChange>,
    /// Entries of the registry to write; `None` removes one.
    pub registry: Vec<(Key, Option<Vec<u8>>)>,
}

impl State {
    pub fn new(meta: Meta, context: VersionVector, hlc: Hlc, author: Author) -> Self {
        let author_id = author.id();
        let inodes = meta.roots().get(TableId(Table::Inodes as u8)).rows;
        let (authors, unsealed) = (Authors::new(), VecDeque::new());
        let known = Known::default();
        Self {
            meta,
            context,
            hlc,
            author,
            author_id,
            authors,
            inodes,
            known,
            is_being_cut: false,
            is_branch: false,
            is_replicated: false,
            settings: Arc::default(),
            unsealed,
            transactions: 0,
            merges: 0,
            on_change: None,
        }
    }

    /// What others know, as all lines of the store are told.
    pub fn known(&self) -> Known {
        self.known.clone()
    }

    /// Makes it the state of a branch: the registry is with the main line, which says what others know.
    pub fn follow(&mut self, known: Known) {
        (self.known, self.is_branch) = (known, true);
    }

    /// Whether somebody else knows this operation, or will.
    pub fn is_shared(&self, dot: Dot) -> bool {
        self.is_being_cut || self.is_replicated || self.known.read().contains(dot)
    }

    /// Whether other machines have, or had, the volume.
    pub fn is_replicated(&self) -> bool {
        self.is_replicated
    }

    /// Whether snapshots have operations of an author that are not known here: then this is an old copy, and what it does
    /// next as this author was done before, elsewhere.
    pub fn is_known_to_have_done_more(&self, author: AuthorId) -> bool {
        self.known.read().get(author) > self.context.get(author)
    }

    /// Learns from the registry what others have seen, and tells the other lines. Only the main line has one.
    pub fn look_at_registry(&mut self) -> Result<(), StoreError> {
        let mut known = VersionVector::new();
        for (_, snapshot) in self.snapshots()? {
            known.join(&snapshot.cut.context);
        }
        for (_, branch) in self.branches()? {
            known.join(&branch.base.context);
        }
        known.join(&self.merged()?);
        *self.known.write() = known;
        let members = self.with_prefix(Table::Registry, &[Key::MEMBERS])?;
        self.is_replicated |= members.iter().any(|(key, _)| *key != self.author.node.0);
        Ok(())
    }

    /// What lines of this store, or others, have learnt from each other by merging. Only the main line keeps it.
    fn merged(&self) -> Result<VersionVector, StoreError> {
        let Some(bytes) = self.get(Table::Local, &merged_key())? else { return Ok(VersionVector::new()) };
        let mut reader = Reader::new(&bytes);
        let known = VersionVector::decode(&mut reader).and_then(|known| reader.finish().map(|()| known));
        known.map_err(|e| malformed("merged states", b"k", e))
    }

    /// Notes that somebody else is about to know all of this, and may change it.
    pub fn note_merged(
        &mut self,
        context: &VersionVector,
        now: Timestamp,
        journal: &Journal,
    ) -> Result<(), StoreError> {
        let mut merged = self.merged()?;
        if merged.covers(context) {
            return Ok(());
        }
        merged.join(context);
        let mut value = Vec::new();
        merged.encode(&mut value);
        self.commit_local(vec![(merged_key(), Some(value))], now, journal)?;
        self.look_at_registry()
    }

    /// Learns what snapshots and branches have seen whose entries were just written. What has come needs no look at all
    /// the others, for which everybody would wait.
    fn learn_from(&mut self, written: &[(Vec<u8>, Entry)]) -> Result<(), StoreError> {
        let about = |key: &[u8], about| key.first() == Some(&about);
        let (mut known, mut is_less) = (VersionVector::new(), false);
        for (key, entry) in written {
            match &entry.value {
                Some(value) if about(key, Key::SNAPSHOTS) => {
                    let snapshot = NamedSnapshot::decode(value).map_err(|e| malformed("snapshot", key, e))?;
                    known.join(&snapshot.cut.context);
                }
                Some(value) if about(key, Key::BRANCHES) => {
                    let branch = Branch::decode(value).map_err(|e| malformed("branch", key, e))?;
                    known.join(&branch.base.context);
                }
                Some(_) => {}
                None => is_less |= about(key, Key::SNAPSHOTS) || about(key, Key::BRANCHES),
            }
            self.is_replicated |= about(key, Key::MEMBERS) && key[1..] != self.author.node.0;
        }
        if is_less {
            return self.look_at_registry();
        }
        self.known.write().join(&known);
        Ok(())
    }

    /// The value of an entry of the registry.
    pub fn entry(&self, key: &Key) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.written_entry(key)?.and_then(|entry| entry.value))
    }

    /// The latest write of an entry of the registry.
    pub fn written_entry(&self, key: &Key) -> Result<Option<Entry>, StoreError> {
        let key = key.encode();
        let Some(bytes) = self.get(Table::Registry, &key)? else { return Ok(None) };
        Entry::decode(&bytes).map(Some).map_err(|e| malformed("registry", &key, e))
    }

    /// All entries of a kind that are not removed: what follows the kind in their keys, and the value.
    pub fn entries(&self, about: u8) -> Result<Vec<KeyedValue>, StoreError> {
        let mut entries = Vec::new();
        for (rest, bytes) in self.with_prefix(Table::Registry, &[about])? {
            let entry = Entry::decode(&bytes).map_err(|e| malformed("registry", &rest, e))?;
            entries.extend(entry.value.map(|value| (rest, value)));
        }
        Ok(entries)
    }

    pub fn snapshot(&self, name: &str) -> Result<Option<NamedSnapshot>, StoreError> {
        let Some(value) = self.entry(&Key::Snapshot(name.into()))? else { return Ok(None) };
        Ok(Some(NamedSnapshot::decode(&value).map_err(|e| malformed("snapshot", name.as_bytes(), e))?))
    }

    /// Puts the maps of a snapshot into its entry, without a word in the journal: whoever replays that makes them again.
    pub fn show_snapshot(&mut self, name: &str, snapshot: &NamedSnapshot) -> Result<(), StoreError> {
        let key = Key::Snapshot(name.into());
        if let Some(mut entry) = self.written_entry(&key)? {
            entry.value = Some(snapshot.encode());
            self.put(Table::Registry, &key.encode(), &entry.encode());
        }
        Ok(())
    }

    /// All named snapshots, in the order of their names.
    pub fn snapshots(&self) -> Result<Vec<(String, NamedSnapshot)>, StoreError> {
        decode_snapshots(self.written_snapshots()?)
    }

    /// The same as they are written, which is quicker.
    pub fn written_snapshots(&self) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
        self.with_prefix(Table::Registry, &[Key::SNAPSHOTS])
    }

    pub fn branch(&self, name: &str) -> Result<Option<Branch>, StoreError> {
        let Some(value) = self.entry(&Key::Branch(name.into()))? else { return Ok(None) };
        Ok(Some(Branch::decode(&value).map_err(|e| malformed("branch", name.as_bytes(), e))?))
    }

    /// All branches, in the order of their names.
    pub fn branches(&self) -> Result<Vec<(String, Branch)>, StoreError> {
        let named = |(name, value): KeyedValue| {
            let branch = Branch::decode(&value).map_err(|e| malformed("branch", &name, e))?;
            Ok((String::from_utf8_lossy(&name).into_owned(), branch))
        };
        self.entries(Key::BRANCHES)?.into_iter().map(named).collect()
    }

    /// Makes what every volume begins with.
    pub fn begin(&mut self) {
        genesis(self);
        self.inodes = 1;
        self.context.advance(GENESIS_DOT);
    }

    /// How many inodes there are.
    pub fn inodes(&self) -> u64 {
        self.inodes
    }

    pub fn author_id(&self) -> AuthorId {
        self.author_id
    }

    /// From now on operations are made as this author, whose number is recorded.
    pub fn become_author(&mut self, author: Author) -> Vec<LocalChange> {
        self.author_id = author.id();
        self.author = author;
        self.meet(&[author])
    }

    /// Gives numbers to authors that have none, to be recorded before any row names them.
    pub fn meet(&mut self, authors: &[Author]) -> Vec<LocalChange> {
        let mut changes = Vec::new();
        for author in authors {
            if !self.authors.numbers.contains_key(&author.id()) {
                let number = self.authors.add(*author);
                changes.push((local_key(b'a', &number.to_be_bytes()), Some(author.to_bytes().to_vec())));
            }
        }
        changes
    }

    /// Learns the numbers of authors from the local table.
    pub fn load_authors(&mut self) -> Result<(), StoreError> {
        let mut authors = Vec::new();
        for (rest, value) in crate::namespace::tables::Rows::with_prefix(self, Table::Local, b"a")? {
            let author = Author::decode(&mut Reader::new(&value)).map_err(|e| malformed("author", &rest, e))?;
            authors.push(author);
        }
        for author in authors {
            self.authors.add(author);
        }
        Ok(())
    }

    /// The author with this id, if it is known; nobody stands behind the genesis.
    pub fn author_of(&self, id: AuthorId) -> Option<Author> {
        let number = *self.authors.numbers.get(&id)?;
        self.authors.by_number[number as usize].1
    }

    pub fn ino(&self, id: InodeId) -> Ino {
        self.authors.ino(id).expect("the author of a row is known")
    }

    pub fn inode_id(&self, ino: Ino) -> Result<InodeId, VolumeError> {
        self.authors.inode_id(ino)
    }

    pub fn draft(&self, now: Timestamp) -> Draft {
        let dot = Dot { author: self.author_id, n: self.context.get(self.author_id) + 1 };
        // Most operations have two to four effects.
        Draft {
            dot,
            hlc: self.hlc.tick(now),
            time: now,
            effects: Vec::with_capacity(4),
            local: Vec::new(),
            registry: Vec::new(),
        }
    }

    /// Carries a draft out: journal, then tables.
    pub fn commit(&mut self, draft: Draft, journal: &Journal) -> Result<Lsn, StoreError> {
        let rows = Scope::new(self).into_rows();
        self.commit_with(draft, rows, journal)
    }

    /// The same, with the rows that were read for the draft.
    pub fn commit_with(&mut self, draft: Draft, rows: Rows, journal: &Journal) -> Result<Lsn, StoreError> {
        let Draft { dot, hlc, time, effects, local, registry } = draft;
        assert!(registry.is_empty() || !self.is_branch, "the registry is with the main line");
        let op = (!effects.is_empty()).then_some(Op { dot, hlc, time, effects });
        let entry = |(key, value): (Key, _)| (key.encode(), Entry { hlc, author: dot.author, value });
        let registry: Vec<_> = registry.into_iter().map(entry).collect();
        let (rows, inodes) = self.rehearse(rows, op.as_ref(), &local, &registry)?;
        let op_bytes = op.as_ref().map(|op| Bytes::from(op.encode()));
        let record = encode_transaction(dot, op_bytes.as_deref(), &local, &registry);
        let lsn = journal.append(RECORD_TRANSACTION, &record);
        self.take(rows, inodes);
        if !registry.is_empty() {
            self.hlc = hlc;
            self.learn_from(&registry)?;
        }
        if let Some(bytes) = op_bytes {
            self.context.advance(dot);
            self.hlc = hlc;
            self.unsealed.push_back(Unsealed { dot, hlc, bytes, context: None });
            self.tell_change();
        }
        Ok(lsn)
    }

    /// Changes that concern this node alone.
    pub fn commit_local(
        &mut self,
        changes: Vec<LocalChange>,
        now: Timestamp,
        journal: &Journal,
    ) -> Result<Lsn, StoreError> {
        let mut draft = self.draft(now);
        draft.local = changes;
        self.commit(draft, journal)
    }

    /// Entries of the registry that others have written.
    pub fn commit_entries(&mut self, entries: Vec<(Vec<u8>, Entry)>, journal: &Journal) -> Result<Lsn, StoreError> {
        assert!(!self.is_branch, "the registry is with the main line");
        let rows = Scope::new(self).into_rows();
        let (rows, inodes) = self.rehearse(rows, None, &[], &entries)?;
        let nothing = Dot { author: self.author_id, n: 0 };
        let lsn = journal.append(RECORD_TRANSACTION, &encode_transaction(nothing, None, &[], &entries));
        self.take(rows, inodes);
        // What is written here from now on is later.
        self.hlc = entries.iter().map(|(_, entry)| entry.hlc).fold(self.hlc, Hlc::max);
        self.learn_from(&entries)?;
        Ok(lsn)
    }

    /// Applies a transaction found in the journal; one that the tables already contain changes nothing. Says if a snapshot
    /// was taken at this place whose maps were still to be made.
    pub fn replay(&mut self, lsn: Lsn, payload: &[u8]) -> Result<Option<String>, StoreError> {
        let record = |source| StoreError::Malformed { what: format!("journal record {}", lsn.0), source };
        let Transaction { dot, op: op_bytes, local, registry } = decode_transaction(payload).map_err(record)?;
        for (key, value) in local.iter().filter(|(key, _)| key.first() == Some(&b'a')) {
            let author = value.as_deref().map(|value| Author::decode(&mut Reader::new(value)));
            if let Some(author) = author.transpose().map_err(|e| malformed("author", key, e))? {
                self.authors.add(author);
            }
        }
        let op = op_bytes.map(|bytes| Op::decode(dot, bytes)).transpose().map_err(record)?;
        if op.is_some() && self.context.contains(dot) {
            return Ok(None);
        }
        let rows = Scope::new(self).into_rows();
        let (rows, inodes) = self.rehearse(rows, op.as_ref(), &local, &registry)?;
        self.take(rows, inodes);
        for (_, entry) in &registry {
            self.hlc = self.hlc.max(entry.hlc);
        }
        if let (Some(op), Some(bytes)) = (op, op_bytes) {
            self.context.advance(dot);
            self.hlc = self.hlc.max(op.hlc);
            let bytes = Bytes::copy_from_slice(bytes);
            self.unsealed.push_back(Unsealed { dot, hlc: op.hlc, bytes, context: None });
        }
        let taken = |(key, entry): &(Vec<u8>, Entry)| {
            let name = String::from_utf8(key.strip_prefix(&[Key::SNAPSHOTS])?.to_vec()).ok()?;
            let snapshot = NamedSnapshot::decode(entry.value.as_ref()?).ok()?;
            snapshot.cut.is_pending().then_some(name)
        };
        Ok(registry.iter().find_map(taken))
    }

    /// What a transaction writes, and how many inodes there are then.
    fn rehearse(
        &self,
        rows: Rows,
        op: Option<&Op>,
        local: &[LocalChange],
        registry: &[(Vec<u8>, Entry)],
    ) -> Result<(Rows, u64), StoreError> {
        let mut scope = Scope::resume(self, rows);
        if let Some(op) = op {
            apply(&mut scope, op)?;
        }
        for (key, value) in local {
            match value {
                Some(value) => scope.put(Table::Local, key, value),
                None => scope.delete(Table::Local, key),
            }
        }
        for (key, entry) in registry {
            let stored = scope.get(Table::Registry, key)?;
            let stored = stored.map(|bytes| Entry::decode(&bytes)).transpose();
            let joined = match stored.map_err(|e| malformed("registry", key, e))? {
                Some(stored) => stored.join(entry.clone(), key),
                None => entry.clone(),
            };
            scope.put(Table::Registry, key, &joined.encode());
        }
        let rows = scope.into_rows();
        if let Some((table, bytes)) = rows.too_large() {
            return Err(StoreError::RowTooLarge { table: table.to_string(), bytes });
        }
        let mut inodes = self.inodes;
        for (key, stays) in rows.changed_keys(Table::Inodes) {
            // An inode has the dot of the operation that makes it, so that one need not be looked for; of the others
            // the rows have just been read, and are in a cache.
            let is_new = op.is_some_and(|op| op.dot.to_bytes() == key[..]);
            let was_there = !is_new && self.get(Table::Inodes, key)?.is_some();
            inodes = inodes + u64::from(stays) - u64::from(was_there);
        }
        Ok((rows, inodes))
    }

    fn take(&mut self, rows: Rows, inodes: u64) {
        self.inodes = inodes;
        for (table, key, value) in rows.into_changes() {
            self.meta.set(TableId(table as u8), key, value);
        }
        self.transactions += 1;
    }

    /// The same for a transaction of any size.
    pub(super) fn take_changes(&mut self, changes: BTreeMap<Table, Changes>, inodes: u64) {
        self.inodes = inodes;
        for (table, rows) in changes {
            for (key, value) in rows {
                self.meta.set(TableId(table as u8), key, value);
            }
        }
        self.transactions += 1;
    }

    pub(super) fn tell_change(&self) {
        if let Some(tell) = &self.on_change {
            tell();
        }
    }

    /// What was known until now was so for all operations that are not sealed: what comes next came from elsewhere.
    pub(super) fn end_group(&mut self) {
        if let Some(last) = self.unsealed.back_mut() {
            last.context.get_or_insert_with(|| self.context.clone());
        }
    }

    /// How many joins there were since the start.
    pub fn merges(&self) -> u64 {
        self.merges
    }

    pub(super) fn count_merge(&mut self) {
        self.merges += 1;
    }

    /// How many transactions there were since the start.
    pub fn transactions(&self) -> u64 {
        self.transactions
    }
}

impl Tables for State {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.meta.get(TableId(table as u8), key)?)
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        Ok(self.meta.scan(TableId(table as u8), from, visit)?)
    }

    fn preference(&self) -> Preference {
        self.settings.read().prefer
    }
}

impl TablesMut for State {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.meta.put(TableId(table as u8), key, value);
    }

    fn delete(&mut self, table: Table, key: &[u8]) {
        self.meta.delete(TableId(table as u8), key);
    }
}

/// A key of the local table: what it is about, then which one.
///
/// `a` author number -> author; `s` inode and `d` inode, number -> its dirty bytes (see `records`); `t` inode -> atime;
/// `o` inode -> nothing: unlinked while open; `g` inode -> nothing: a grave, without names but known to others.
/// `k` -> what is known elsewhere because it was merged; `p` name of a snapshot -> the two that it was merged of, until it
/// is sealed.
/// `h` -> the last snapshot that was sealed, and with the number of a branch that of the branch; `l` name of a snapshot
/// -> the number of the branch that it was taken of, until it is sealed; `v` inode, version -> a superseded version that
/// is kept (see `history`); `e` -> what joins came across (see `join`);
/// `i` hash of a secret -> the invitation that it belongs to (see `members`); `n` what -> what the node was told once;
/// `u` directory -> nothing: of a union, the member by whose number the kernel knows it.
pub fn local_key(about: u8, which: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + which.len());
    key.push(about);
    key.extend_from_slice(which);
    key
}

/// Of what is known elsewhere because it was merged.
pub fn merged_key() -> Vec<u8> {
    local_key(b'k', &[])
}

/// What `State::written_snapshots` says.
pub fn decode_snapshots(written: Vec<(Vec<u8>, Bytes)>) -> Result<Vec<(String, NamedSnapshot)>, StoreError> {
    let mut snapshots = Vec::with_capacity(written.len());
    for (name, bytes) in written {
        let entry = Entry::decode(&bytes).map_err(|e| malformed("registry", &name, e))?;
        let Some(value) = entry.value else { continue };
        let snapshot = NamedSnapshot::decode(&value).map_err(|e| malformed("snapshot", &name, e))?;
        snapshots.push((String::from_utf8_lossy(&name).into_owned(), snapshot));
    }
    Ok(snapshots)
}

const TRANSACTION_VERSION: u8 = 2;
/// Before there was a registry.
const TRANSACTION_VERSION_1: u8 = 1;

/// What a journal record says.
struct Transaction<'a> {
    dot: Dot,
    op: Option<&'a [u8]>,
    local: Vec<LocalChange>,
    registry: Vec<(Vec<u8>, Entry)>,
}

/// Most transactions do not concern the registry; those are written as before there was one.
fn encode_transaction(dot: Dot, op: Option<&[u8]>, local: &[LocalChange], registry: &[(Vec<u8>, Entry)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + op.map_or(0, <[u8]>::len));
    out.put_u8(if registry.is_empty() { TRANSACTION_VERSION_1 } else { TRANSACTION_VERSION });
    out.put_u8(u8::from(op.is_some()));
    if let Some(op) = op {
        out.put_dot(dot);
        out.put_blob(op);
    }
    if !registry.is_empty() {
        out.put_varint(registry.len() as u64);
        for (key, entry) in registry {
            out.put_blob(key);
            out.put_blob(&entry.encode());
        }
    }
    for (key, value) in local {
        out.put_blob(key);
        out.put_u8(u8::from(value.is_some()));
        if let Some(value) = value {
            out.put_blob(value);
        }
    }
    out
}

fn decode_transaction(bytes: &[u8]) -> codec::Result<Transaction<'_>> {
    let mut reader = Reader::new(bytes);
    let version = reader.u8()?;
    if !matches!(version, TRANSACTION_VERSION_1 | TRANSACTION_VERSION) {
        return Err(codec::DecodeError::NewerVersion {
            what: "a journal record",
            found: u32::from(version),
            known: u32::from(TRANSACTION_VERSION),
        });
    }
    let mut dot = Dot { author: AuthorId::GENESIS, n: 0 };
    let mut op = None;
    if reader.u8()? == 1 {
        dot = reader.dot()?;
        op = Some(reader.blob()?);
    }
    let mut registry = Vec::new();
    if version == TRANSACTION_VERSION {
        for _ in 0..reader.count()? {
            let key = reader.blob()?.to_vec();
            registry.push((key, Entry::decode(reader.blob()?)?));
        }
    }
    let mut local = Vec::new();
    while !reader.is_empty() {
        let key = reader.blob()?.to_vec();
        let value = if reader.u8()? == 1 { Some(reader.blob()?.to_vec()) } else { None };
        local.push((key, value));
    }
    Ok(Transaction { dot, op, local, registry })
}
