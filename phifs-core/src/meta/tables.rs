//! Tables of rows: the newest changes in a memtable, those of a checkpoint under way in a frozen one, the rest in a
//! Merkle map.
//!
//! What always holds:
//!
//! - A read sees the active row before the frozen one before the map's.
//! - Frozen rows stay until the maps that contain them are installed; if that fails, they go back under the active
//!   ones. So no change is ever in neither place.
//! - `recent` is a leaf of the map that `roots` names.

use std::mem;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::checkpoint::{CheckpointDone, CheckpointJob, Roots};
use super::memtable::{Key, Memtable, Overlay};
use crate::codec::DecodeError;
use crate::merkle::{self, KEY_BYTES_MAX, MapError, Node, NodeSource, Shape, VALUE_BYTES_MAX};

/// The number of a table in stored roots. It never changes its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub u8);

#[derive(Clone, Copy, Debug)]
pub struct TableSpec {
    pub id: TableId,
    /// For people.
    pub name: &'static str,
    /// Whether its root is part of the state that all nodes share. The others can be rebuilt from those that are.
    pub replicated: bool,
    /// Never changes during the life of a table.
    pub shape: Shape,
}

pub(super) type Source = Arc<dyn NodeSource + Send + Sync>;

/// The tables of one store. Durability is the journal's and the superblock's part.
pub struct Meta {
    source: Source,
    specs: &'static [TableSpec],
    roots: Roots,
    /// One memtable for each of `specs`.
    active: Vec<Memtable>,
    frozen: Option<Arc<Vec<Memtable>>>,
    /// For each table, the leaf that was read last. Whoever works in one directory, or on files in the order in which
    /// they were made, finds most rows in it and need not come down from the root.
    recent: Vec<Mutex<Option<Node>>>,
}

/// What a checkpoint replaced. Freeing many rows takes a while, so drop it after the lock around `Meta` is released.
#[must_use = "drop it without holding a lock"]
pub struct Superseded {
    _frozen: Arc<Vec<Memtable>>,
    _done: Arc<Vec<Memtable>>,
}

impl Meta {
    /// The tables as they are at `roots`.
    ///
    /// # Errors
    /// There is a root for a table that is not in `specs`, so a newer program has written here.
    ///
    /// # Panics
    /// If two of `specs` have the same id.
    pub fn open(source: Source, specs: &'static [TableSpec], roots: Roots) -> Result<Self, DecodeError> {
        for (index, spec) in specs.iter().enumerate() {
            assert!(specs[..index].iter().all(|other| other.id != spec.id), "two tables have the id of {}", spec.name);
        }
        if let Some((unknown, _)) = roots.iter().find(|(table, _)| specs.iter().all(|spec| spec.id != *table)) {
            return Err(DecodeError::Unknown { what: "a table of the store", value: u64::from(unknown.0) });
        }
        let recent = specs.iter().map(|_| Mutex::default()).collect();
        Ok(Self { source, specs, roots, active: empty(specs), frozen: None, recent })
    }

    pub fn get(&self, table: TableId, key: &[u8]) -> Result<Option<Bytes>, MapError> {
        let index = self.index(table);
        let frozen = self.frozen.as_ref().map(|frozen| &frozen[index]);
        match self.active[index].get(key).or_else(|| frozen?.get(key)) {
            Some(row) => Ok(row.clone()),
            None => self.stored(index, key),
        }
    }

    fn stored(&self, index: usize, key: &[u8]) -> Result<Option<Bytes>, MapError> {
        let recent = &self.recent[index];
        // Somebody else has it: the way from the root is not worth waiting for.
        if let Some(recent) = recent.try_lock()
            && let Some(found) = recent.as_ref().and_then(|leaf| leaf.get_between(key))
        {
            return Ok(found);
        }
        let leaf = merkle::leaf(&*self.source, &self.roots.get(self.specs[index].id), key)?;
        let value = leaf.as_ref().and_then(|leaf| leaf.get(key));
        if let Some(mut recent) = recent.try_lock() {
            *recent = leaf;
        }
        Ok(value)
    }

    pub fn put(&mut self, table: TableId, key: &[u8], value: &[u8]) {
        self.set(table, Key::from_slice(key), Some(Bytes::copy_from_slice(value)));
    }

    /// Deleting a row that is not there is no error.
    pub fn delete(&mut self, table: TableId, key: &[u8]) {
        self.set(table, Key::from_slice(key), None);
    }

    /// Stores a row, or deletes it.
    ///
    /// # Panics
    /// If the row is larger than a map can hold, or there is no such table.
    pub fn set(&mut self, table: TableId, key: Key, value: Option<Bytes>) {
        // Found here, it is one caller's bug. Found by the checkpoint, it would keep all changes from being stored.
        assert!(key.len() <= KEY_BYTES_MAX, "a key of {} bytes", key.len());
        let value_bytes = value.as_ref().map_or(0, Bytes::len);
        assert!(value_bytes <= VALUE_BYTES_MAX, "a value of {value_bytes} bytes");
        let index = self.index(table);
        self.active[index].set(key, value);
    }

    /// Makes a table empty without reading it, however damaged it is.
    ///
    /// # Panics
    /// While a checkpoint is under way, which would bring its rows back.
    pub fn clear(&mut self, table: TableId) {
        assert!(self.frozen.is_none(), "no checkpoint is under way");
        let index = self.index(table);
        self.active[index] = Memtable::default();
        self.roots.set(table, merkle::Root::EMPTY);
    }

    /// Visits the rows from `from` on in key order, until `visit` breaks.
    pub fn scan(
        &self,
        table: TableId,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
    ) -> Result<(), MapError> {
        let index = self.index(table);
        let none = Memtable::default();
        let frozen = self.frozen.as_ref().map_or(&none, |frozen| &frozen[index]);
        let mut stored = merkle::scan(&*self.source, &self.roots.get(table), from);
        let mut row = stored.next().transpose()?;
        for (key, value) in Overlay::new(&self.active[index], frozen, from) {
            while let Some((stored_key, stored_value)) = row.take_if(|(stored_key, _)| stored_key[..] < key[..]) {
                if visit(&stored_key, &stored_value).is_break() {
                    return Ok(());
                }
                row = stored.next().transpose()?;
            }
            if row.as_ref().is_some_and(|(stored_key, _)| stored_key[..] == key[..]) {
                row = stored.next().transpose()?;
            }
            if value.as_ref().is_some_and(|value| visit(key, value).is_break()) {
                return Ok(());
            }
        }
        while let Some((key, value)) = row {
            if visit(&key, &value).is_break() {
                break;
            }
            row = stored.next().transpose()?;
        }
        Ok(())
    }

    /// Memory that the changes since the last freeze take, estimated.
    pub fn changed_bytes(&self) -> usize {
        self.active.iter().map(Memtable::bytes).sum()
    }

    /// Rows changed since the last freeze.
    pub fn changed_rows(&self) -> usize {
        self.active.iter().map(Memtable::len).sum()
    }

    /// Whether a checkpoint is under way.
    pub fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// Whether there is surely no row in this table.
    pub fn is_empty(&self, table: TableId) -> bool {
        !self.is_changed(table) && self.roots.get(table).rows == 0
    }

    /// Whether rows of this table have changed since the last checkpoint installed.
    pub fn is_changed(&self, table: TableId) -> bool {
        let index = self.index(table);
        self.active[index].len() > 0 || self.frozen.as_ref().is_some_and(|frozen| frozen[index].len() > 0)
    }

    /// The keys of the rows of a table that have changed since the last checkpoint installed, in order.
    pub fn changed_keys(&self, table: TableId) -> Vec<Key> {
        let index = self.index(table);
        let frozen = self.frozen.iter().flat_map(|frozen| frozen[index].keys());
        let mut keys: Vec<Key> = self.active[index].keys().chain(frozen).cloned().collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// The state of the last checkpoint installed.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Starts a checkpoint of all changes so far, in time that does not depend on their number. `None` while one is
    /// under way, or if nothing changed.
    pub fn freeze(&mut self) -> Option<CheckpointJob> {
        if self.frozen.is_some() || self.changed_rows() == 0 {
            return None;
        }
        let frozen = Arc::new(mem::replace(&mut self.active, empty(self.specs)));
        self.frozen = Some(frozen.clone());
        Some(CheckpointJob { source: self.source.clone(), specs: self.specs, roots: self.roots.clone(), frozen })
    }

    /// Ends a checkpoint: reads go to its maps from now on.
    ///
    /// # Panics
    /// If it is not the one under way.
    pub fn install(&mut self, done: CheckpointDone) -> Superseded {
        let frozen = self.frozen.take().expect("a checkpoint is under way");
        assert!(Arc::ptr_eq(&frozen, &done.frozen), "the checkpoint done is the one under way");
        self.roots = done.roots;
        self.recent.iter_mut().for_each(|leaf| *leaf.get_mut() = None);
        Superseded { _frozen: frozen, _done: done.frozen }
    }

    /// Ends a checkpoint that failed: its changes will be part of the next one.
    pub fn abandon(&mut self) {
        let Some(frozen) = self.frozen.take() else { return };
        // The job may still hold it; a copy shares the bytes of the rows.
        let older = Arc::unwrap_or_clone(frozen);
        let newer = mem::replace(&mut self.active, older);
        for (table, newer) in self.active.iter_mut().zip(newer) {
            table.absorb(newer);
        }
    }

    fn index(&self, table: TableId) -> usize {
        let index = self.specs.iter().position(|spec| spec.id == table);
        index.unwrap_or_else(|| panic!("there is no table {}", table.0))
    }
}

fn empty(specs: &[TableSpec]) -> Vec<Memtable> {
    vec![Memtable::default(); specs.len()]
}

#[cfg(test)]
mod tests;
