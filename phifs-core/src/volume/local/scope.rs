//! What one call reads and changes, over the tables.
//!
//! A call looks at the same few rows again and again: to check the rules, to draft the operation, to apply it. Each
//! row is fetched from the tables once; the second time it is found here. Changed rows stay here as well, until the
//! transaction is carried out as a whole.

use std::cell::RefCell;
use std::ops::{ControlFlow, Deref};

use bytes::Bytes;

use crate::merkle::VALUE_BYTES_MAX;
use crate::meta::Key;
use crate::namespace::coherence::Preference;
use crate::namespace::{Table, Tables, TablesMut};
use crate::store::StoreError;

use super::state::State;

/// The tables with the rows of one call on top.
pub struct Scope<'a> {
    under: &'a State,
    rows: RefCell<Rows>,
}

/// Rows that were read or changed while the state was at `transactions`.
pub struct Rows {
    /// In order. Nearly always a handful, so a list does.
    rows: Vec<Row>,
    transactions: u64,
}

struct Row {
    table: Table,
    key: Key,
    value: Option<Bytes>,
    changed: bool,
}

impl<'a> Scope<'a> {
    pub fn new(under: &'a State) -> Self {
        let rows = Rows { rows: Vec::with_capacity(16), transactions: under.transactions() };
        Self { under, rows: RefCell::new(rows) }
    }

    /// Goes on with what was read before.
    ///
    /// # Panics
    /// If there was a transaction since: the rows may have changed.
    pub fn resume(under: &'a State, rows: Rows) -> Self {
        assert_eq!(rows.transactions, under.transactions(), "rows outlived the transaction they were read for");
        Self { under, rows: RefCell::new(rows) }
    }

    pub fn into_rows(self) -> Rows {
        self.rows.into_inner()
    }
}

impl Rows {
    /// What is to be put into the tables.
    pub fn into_changes(self) -> impl Iterator<Item = (Table, Key, Option<Bytes>)> {
        self.rows.into_iter().filter(|row| row.changed).map(|row| (row.table, row.key, row.value))
    }

    /// The keys of the rows of a table that change, and whether there is a row afterwards.
    pub fn changed_keys(&self, table: Table) -> impl Iterator<Item = (&[u8], bool)> {
        self.changed(table, &[]).map(|row| (&row.key[..], row.value.is_some()))
    }

    /// The table and the size of a changed row that is larger than a map can hold, if one became so.
    pub fn too_large(&self) -> Option<(Table, usize)> {
        let sizes =
            self.rows.iter().filter(|row| row.changed).filter_map(|row| Some((row.table, row.value.as_ref()?.len())));
        sizes.into_iter().find(|(_, bytes)| *bytes > VALUE_BYTES_MAX)
    }

    fn find(&self, table: Table, key: &[u8]) -> Result<usize, usize> {
        self.rows.binary_search_by(|row| row.table.cmp(&table).then_with(|| row.key[..].cmp(key)))
    }

    fn set(&mut self, table: Table, key: &[u8], value: Option<Bytes>) {
        match self.find(table, key) {
            Ok(at) => (self.rows[at].value, self.rows[at].changed) = (value, true),
            Err(at) => self.rows.insert(at, Row { table, key: Key::from_slice(key), value, changed: true }),
        }
    }

    /// The changed rows of a table from a key on.
    fn changed(&self, table: Table, from: &[u8]) -> impl Iterator<Item = &Row> {
        let (Ok(first) | Err(first)) = self.find(table, from);
        self.rows[first..].iter().take_while(move |row| row.table == table).filter(|row| row.changed)
    }
}

/// Everything else about the state is as it was.
impl Deref for Scope<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        self.under
    }
}

impl Tables for Scope<'_> {
    fn preference(&self) -> Preference {
        self.under.preference()
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let mut seen = self.rows.borrow_mut();
        match seen.find(table, key) {
            Ok(at) => Ok(seen.rows[at].value.clone()),
            Err(at) => {
                let value = self.under.get(table, key)?;
                let row = Row { table, key: Key::from_slice(key), value: value.clone(), changed: false };
                seen.rows.insert(at, row);
                Ok(value)
            }
        }
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let seen = self.rows.borrow();
        let mut changed = seen.changed(table, from).peekable();
        let mut stopped = false;
        self.under.scan(table, from, &mut |key, value| {
            while let Some(row) = changed.next_if(|row| row.key[..] < *key) {
                if let Some(value) = &row.value
                    && visit(&row.key, value).is_break()
                {
                    stopped = true;
                    return ControlFlow::Break(());
                }
            }
            let flow = match changed.next_if(|row| row.key[..] == *key) {
                Some(Row { value: Some(value), .. }) => visit(key, value),
                Some(Row { value: None, .. }) => ControlFlow::Continue(()),
                None => visit(key, value),
            };
            stopped = flow.is_break();
            flow
        })?;
        if !stopped {
            for row in changed {
                if let Some(value) = &row.value
                    && visit(&row.key, value).is_break()
                {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl TablesMut for Scope<'_> {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.rows.get_mut().set(table, key, Some(Bytes::copy_from_slice(value)));
    }

    fn delete(&mut self, table: Table, key: &[u8]) {
        self.rows.get_mut().set(table, key, None);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::causal::VersionVector;
    use crate::id::GlyphId;
    use crate::identity::{Author, NodePublicKey};
    use crate::merkle::{self, MapError, Node, NodeSource, Root};
    use crate::meta::{Lsn, Meta, Roots, TableId};
    use crate::time::Hlc;
    use crate::volume::local::TABLES;

    /// The map of one leaf, and how often it was asked for.
    struct OneLeaf {
        id: GlyphId,
        plain: Bytes,
        reads: AtomicUsize,
    }

    impl NodeSource for OneLeaf {
        fn node(&self, id: &GlyphId) -> Result<Node, MapError> {
            assert_eq!(*id, self.id);
            self.reads.fetch_add(1, Ordering::Relaxed);
            Node::decode(id, self.plain.clone())
        }
    }

    /// A state whose stored local rows are `a` to `d`, each its own value.
    fn state() -> (State, Arc<OneLeaf>) {
        let mut plain = Vec::new();
        let mut sink = |node: &[u8], _: Option<&merkle::Replaced>| {
            plain = node.to_vec();
            Ok(GlyphId::of(node))
        };
        let rows = ["a", "b", "c", "d"].map(|row| (Bytes::from(row), Bytes::from(row)));
        let root: Root = merkle::build(&mut sink, Default::default(), rows).unwrap();
        let id = root.id.unwrap();
        let leaf = Arc::new(OneLeaf { id, plain: plain.into(), reads: AtomicUsize::new(0) });
        let mut roots = Roots::default();
        roots.set(TableId(Table::Local as u8), root);
        let meta = Meta::open(leaf.clone(), &TABLES, roots).unwrap();
        let author = Author { node: NodePublicKey([7; 32]), incarnation: 1 };
        (State::new(meta, VersionVector::new(), Hlc::default(), author), leaf)
    }

    fn scanned(scope: &Scope<'_>, from: &[u8]) -> String {
        let mut found = String::new();
        let visit = &mut |_: &[u8], value: &Bytes| {
            found.push_str(std::str::from_utf8(value).unwrap());
            if value == "stop" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        scope.scan(Table::Local, from, visit).unwrap();
        found
    }

    #[test]
    fn changes_lie_over_what_is_stored() {
        let (state, _) = state();
        let mut scope = Scope::new(&state);
        assert_eq!(scope.get(Table::Local, b"c").unwrap().unwrap(), "c");
        scope.put(Table::Local, b"aa", b"1");
        scope.put(Table::Local, b"c", b"2");
        scope.delete(Table::Local, b"b");
        scope.delete(Table::Local, b"e");
        scope.put(Table::Local, b"f", b"3");
        scope.put(Table::Links, b"b", b"of another table");
        assert_eq!(scanned(&scope, b""), "a12d3");
        assert_eq!(scanned(&scope, b"aa"), "12d3");
        assert_eq!(scope.get(Table::Local, b"b").unwrap(), None);
        assert_eq!(scope.get(Table::Local, b"c").unwrap().unwrap(), "2");
        scope.put(Table::Local, b"aa", b"stop");
        assert_eq!(scanned(&scope, b""), "astop");
    }

    #[test]
    fn a_row_is_fetched_once_and_only_changes_are_carried_out() {
        let (state, leaf) = state();
        let scope = Scope::new(&state);
        let read = |scope: &Scope<'_>, key: &[u8]| drop(scope.get(Table::Local, key).unwrap());
        [b"c", b"x", b"c", b"x"].iter().for_each(|key| read(&scope, *key));
        let reads = leaf.reads.load(Ordering::Relaxed);
        let mut scope = Scope::resume(&state, scope.into_rows());
        read(&scope, b"x");
        assert_eq!(leaf.reads.load(Ordering::Relaxed), reads, "read for the first time only");
        scope.delete(Table::Local, b"c");
        let changes: Vec<_> = scope.into_rows().into_changes().collect();
        assert_eq!(changes, [(Table::Local, Key::from_slice(b"c"), None)]);
    }

    #[test]
    #[should_panic(expected = "outlived the transaction")]
    fn rows_of_an_earlier_transaction_are_refused() {
        let (mut state, _) = state();
        let rows = Scope::new(&state).into_rows();
        // No operation, and one local row that goes.
        state.replay(Lsn(1), &[1, 0, 1, b'c', 0]).unwrap();
        Scope::resume(&state, rows);
    }
}
