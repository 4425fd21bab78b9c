//! Many rows on top of a state: what a merge makes of it, until all of that is taken over or dropped.
//!
//! As `scope`, for transactions of any size. Rows that are only read are not kept.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::merkle::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::meta::Key;
use crate::namespace::{Table, Tables, TablesMut};
use crate::store::StoreError;

/// The changed rows of one table; `None` for one that goes.
pub type Changes = BTreeMap<Key, Option<Bytes>>;

pub struct Bulk<'a, T: ?Sized> {
    under: &'a T,
    tables: BTreeMap<Table, Changes>,
}

impl<'a, T: Tables + ?Sized> Bulk<'a, T> {
    pub fn new(under: &'a T) -> Self {
        Self { under, tables: BTreeMap::new() }
    }

    /// The state without the changes.
    pub fn under(&self) -> &'a T {
        self.under
    }

    /// The keys of the rows of a table that were changed, and whether there is a row now.
    pub fn changed(&self, table: Table) -> impl Iterator<Item = (&[u8], Option<&Bytes>)> {
        self.tables.get(&table).into_iter().flatten().map(|(key, value)| (&key[..], value.as_ref()))
    }

    pub fn into_changes(self) -> BTreeMap<Table, Changes> {
        self.tables
    }

    /// A row that is larger than a map can hold, if one became so.
    pub fn too_large(&self) -> Option<(Table, &[u8])> {
        let rows = self.tables.iter().flat_map(|(table, rows)| rows.iter().map(move |row| (*table, row)));
        let is_too_large = |(key, value): (&Key, &Option<Bytes>)| {
            key.len() > KEY_BYTES_MAX || value.as_ref().is_some_and(|value| value.len() > VALUE_BYTES_MAX)
        };
        rows.filter(|(_, row)| is_too_large(*row)).map(|(table, (key, _))| (table, &key[..])).next()
    }

    fn set(&mut self, table: Table, key: &[u8], value: Option<Bytes>) {
        self.tables.entry(table).or_default().insert(Key::from_slice(key), value);
    }
}

impl<T: Tables + ?Sized> Tables for Bulk<'_, T> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.tables.get(&table).and_then(|rows| rows.get(key)) {
            Some(value) => Ok(value.clone()),
            None => self.under.get(table, key),
        }
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let Some(rows) = self.tables.get(&table) else { return self.under.scan(table, from, visit) };
        let mut changed = rows.range::<[u8], _>((Bound::Included(from), Bound::Unbounded)).peekable();
        let mut stopped = false;
        self.under.scan(table, from, &mut |key, value| {
            while let Some((before, row)) = changed.next_if(|(changed, _)| changed[..] < *key) {
                if row.as_ref().is_some_and(|row| visit(before, row).is_break()) {
                    stopped = true;
                    return ControlFlow::Break(());
                }
            }
            let flow = match changed.next_if(|(changed, _)| changed[..] == *key) {
                Some((_, Some(row))) => visit(key, row),
                Some((_, None)) => ControlFlow::Continue(()),
                None => visit(key, value),
            };
            stopped = flow.is_break();
            flow
        })?;
        if !stopped {
            for (key, row) in changed {
                if row.as_ref().is_some_and(|row| visit(key, row).is_break()) {
                    break;
                }
            }
        }
        Ok(())
    }
}

impl<T: Tables + ?Sized> TablesMut for Bulk<'_, T> {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.set(table, key, Some(Bytes::copy_from_slice(value)));
    }

    fn delete(&mut self, table: Table, key: &[u8]) {
        self.set(table, key, None);
    }
}
