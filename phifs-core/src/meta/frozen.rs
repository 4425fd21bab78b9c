//! One state of all tables, read where it lies. Nothing of it is loaded before it is asked for.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::checkpoint::Roots;
use super::tables::{Source, TableId};
use crate::merkle::{self, MapError, NodeSource};

/// The tables as some roots name them. They never change, so any number of readers share them.
#[derive(Clone)]
pub struct Frozen {
    source: Source,
    roots: Roots,
}

impl Frozen {
    pub fn new(source: Source, roots: Roots) -> Self {
        Self { source, roots }
    }

    /// The same source, with nothing in the tables.
    #[must_use]
    pub fn without_rows(self) -> Self {
        Self { roots: Roots::default(), ..self }
    }

    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Where the nodes of the maps are.
    pub fn source(&self) -> &dyn NodeSource {
        &*self.source
    }

    pub fn get_row(&self, table: TableId, key: &[u8]) -> Result<Option<Bytes>, MapError> {
        merkle::get(&*self.source, &self.roots.get(table), key)
    }

    /// Visits the rows from `from` on in key order, until `visit` breaks.
    pub fn scan_rows(
        &self,
        table: TableId,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
    ) -> Result<(), MapError> {
        for row in merkle::scan(&*self.source, &self.roots.get(table), from) {
            let (key, value) = row?;
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }
}
