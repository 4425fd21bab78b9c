//! Rows changed since the last checkpoint, in memory.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::iter::Peekable;
use std::ops::Bound;

use bytes::Bytes;
use smallvec::SmallVec;

/// The key of a row in memory. Most lie in the tree's own nodes: a search that follows a pointer for each comparison
/// waits for memory each time.
pub type Key = SmallVec<[u8; 56]>;

/// What a row costs besides its bytes: its entry in the tree, and the value's allocation.
const ROW_OVERHEAD_BYTES: usize = 128;

/// The changed rows of one table; `None` for a deleted one.
#[derive(Clone, Debug, Default)]
pub(super) struct Memtable {
    rows: BTreeMap<Key, Option<Bytes>>,
    bytes: usize,
}

impl Memtable {
    pub(super) fn set(&mut self, key: Key, value: Option<Bytes>) {
        self.bytes += value.as_ref().map_or(0, Bytes::len);
        let key_bytes = key.len();
        match self.rows.insert(key, value) {
            Some(old) => self.bytes -= old.map_or(0, |old| old.len()),
            None => self.bytes += key_bytes + ROW_OVERHEAD_BYTES,
        }
    }

    /// `Some(None)` says that the row was deleted.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Option<Bytes>> {
        self.rows.get(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.rows.keys()
    }

    pub(super) fn from(&self, key: &[u8]) -> Range<'_, Key, Option<Bytes>> {
        self.rows.range::<[u8], _>((Bound::Included(key), Bound::Unbounded))
    }

    /// Puts the rows of `newer` over those here.
    pub(super) fn absorb(&mut self, newer: Memtable) {
        for (key, value) in newer.rows {
            self.set(key, value);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Memory in use, estimated.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The changes in key order. They share their values with the rows here.
    pub(super) fn changes(&self) -> impl Iterator<Item = (Bytes, Option<Bytes>)> {
        self.rows.iter().map(|(key, value)| (Bytes::copy_from_slice(key), value.clone()))
    }
}

/// The rows of two memtables in key order; where both have a key, the newer one's.
pub(super) struct Overlay<'a> {
    newer: Peekable<Range<'a, Key, Option<Bytes>>>,
    older: Peekable<Range<'a, Key, Option<Bytes>>>,
}

impl<'a> Overlay<'a> {
    pub(super) fn new(newer: &'a Memtable, older: &'a Memtable, from: &[u8]) -> Self {
        Self { newer: newer.from(from).peekable(), older: older.from(from).peekable() }
    }
}

impl<'a> Iterator for Overlay<'a> {
    type Item = (&'a Key, &'a Option<Bytes>);

    fn next(&mut self) -> Option<Self::Item> {
        let Some((newer, _)) = self.newer.peek() else { return self.older.next() };
        match self.older.peek() {
            Some((older, _)) if older < newer => self.older.next(),
            Some((older, _)) if older == newer => {
                self.older.next();
                self.newer.next()
            }
            _ => self.newer.next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_of_memory_follows_every_change() {
        let mut table = Memtable::default();
        let row = |key: &[u8], value: Option<&'static str>| (Key::from_slice(key), value.map(Bytes::from));
        let set = |table: &mut Memtable, (key, value)| table.set(key, value);
        set(&mut table, row(b"key", Some("value")));
        set(&mut table, row(b"key", Some("longer value")));
        set(&mut table, row(b"gone", Some("x")));
        set(&mut table, row(b"gone", None));
        assert_eq!((table.len(), table.bytes()), (2, 3 + 12 + 4 + 2 * ROW_OVERHEAD_BYTES));
        let mut newer = Memtable::default();
        set(&mut newer, row(b"key", Some("v")));
        set(&mut newer, row(b"new", None));
        table.absorb(newer);
        assert_eq!((table.len(), table.bytes()), (3, 3 + 1 + 4 + 3 + 3 * ROW_OVERHEAD_BYTES));
    }
}
