//! Applying frozen memtables to the Merkle maps, and the roots that result.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::memtable::Memtable;
use super::tables::{Source, TableId, TableSpec};
use crate::codec::{self, DecodeError, Encode, Reader};
use crate::merkle::{self, MapError, NodeSink, Replaced, Root};

/// One state of all tables. Tables that are empty have no entry, so that one state has one encoding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roots(BTreeMap<TableId, Root>);

impl Roots {
    pub fn get(&self, table: TableId) -> Root {
        self.0.get(&table).copied().unwrap_or(Root::EMPTY)
    }

    pub fn set(&mut self, table: TableId, root: Root) {
        if root == Root::EMPTY {
            self.0.remove(&table);
        } else {
            self.0.insert(table, root);
        }
    }

    /// The tables that have rows, in order.
    pub fn iter(&self) -> impl Iterator<Item = (TableId, Root)> {
        self.0.iter().map(|(table, root)| (*table, *root))
    }

    /// The number of tables, then each table's number and root.
    pub fn encode(&self, out: &mut impl Encode) {
        out.put_varint(self.0.len() as u64);
        for (table, root) in &self.0 {
            out.put_u8(table.0);
            root.encode(out);
        }
    }

    pub fn decode(reader: &mut Reader<'_>) -> codec::Result<Self> {
        let mut roots = BTreeMap::new();
        for _ in 0..reader.count()? {
            let (table, root) = (TableId(reader.u8()?), Root::decode(reader)?);
            let ascending = roots.last_key_value().is_none_or(|(last, _)| *last < table);
            if !ascending || root == Root::EMPTY {
                return Err(DecodeError::NotCanonical("the list of table roots"));
            }
            roots.insert(table, root);
        }
        Ok(Self(roots))
    }
}

/// Frozen changes on their way into the maps. It holds no lock; reads and writes of `Meta` go on meanwhile.
#[derive(Clone)]
pub struct CheckpointJob {
    pub(super) source: Source,
    pub(super) specs: &'static [TableSpec],
    pub(super) roots: Roots,
    pub(super) frozen: Arc<Vec<Memtable>>,
}

impl CheckpointJob {
    /// Makes the nodes of the new state. `sink` stores one and returns its name; it may do so before it is durable. It gets
    /// to know the node that the new one takes the place of, if that is of one of the maps that are `kept` by others too.
    ///
    /// # Errors
    /// A node could not be read or stored. The caller then calls `Meta::abandon`.
    pub fn run(self, kept: &Roots, sink: NodeSink<'_>) -> Result<CheckpointDone, MapError> {
        let mut roots = self.roots;
        for (spec, changed) in self.specs.iter().zip(self.frozen.iter()).filter(|(_, changed)| changed.len() > 0) {
            let old = roots.get(spec.id);
            let is_kept = kept.get(spec.id) == old;
            let mut sink = |plain: &[u8], replaced: Option<&Replaced>| sink(plain, replaced.filter(|_| is_kept));
            let root = merkle::apply(&*self.source, &mut sink, spec.shape, &old, changed.changes())?;
            roots.set(spec.id, root);
        }
        Ok(CheckpointDone { roots, frozen: self.frozen })
    }
}

/// All frozen changes are in the maps of these roots.
pub struct CheckpointDone {
    pub(super) roots: Roots,
    pub(super) frozen: Arc<Vec<Memtable>>,
}

impl CheckpointDone {
    pub fn roots(&self) -> &Roots {
        &self.roots
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::GlyphId;
    use proptest::prelude::*;

    #[test]
    fn roots_in_another_order_or_without_rows_are_refused() {
        let root = Root { id: Some(GlyphId([3; 32])), level: 1, rows: 9 };
        let mut roots = Roots::default();
        roots.set(TableId(1), root);
        roots.set(TableId(2), root);
        roots.set(TableId(3), Root::EMPTY);
        let mut bytes = Vec::new();
        roots.encode(&mut bytes);
        assert_eq!(Roots::decode(&mut Reader::new(&bytes)), Ok(roots));
        let second = 1 + (bytes.len() - 1) / 2;
        bytes[second] = 1;
        assert!(Roots::decode(&mut Reader::new(&bytes)).is_err(), "twice the same table");
        assert!(Roots::decode(&mut Reader::new(&[1, 5, 0])).is_err(), "an empty table");
    }

    proptest! {
        #[test]
        fn any_bytes_decode_to_the_roots_they_encode_or_fail(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            if let Ok(roots) = Roots::decode(&mut reader) {
                let mut again = Vec::new();
                roots.encode(&mut again);
                prop_assert_eq!(&bytes[..bytes.len() - reader.remaining()], &again[..]);
            }
        }
    }
}
