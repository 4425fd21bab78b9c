//! Makes maps: from rows (`build`), or from another map and a batch of changes (`apply`).
//!
//! Both work on lists of *units* (see the module above) in key order and join what the paging rule says belongs
//! together, level by level from 0. A unit is written only when it is known to be one of the result:
//!
//! - Units of level n - 1 that were joined to a unit of level n are final. They would be joined differently only if a
//!   larger subtree fitted level n - 1, and that of their parent, being larger than a page, already does not.
//! - So joining two inner nodes takes the children of both as they are; nothing below changes.
//!
//! `apply` opens only the nodes that a change falls into, and those that a change makes small enough to be joined.

use std::iter::Peekable;

use bytes::Bytes;

use super::bits::{bit_len, critical_bit};
use super::node::{Node, Summary, encode_inner, encode_leaf, entry_bytes, row_bytes};
use super::partition::{Weight, cuts};
use super::read::{load_child, load_root};
use super::{KEY_BYTES_MAX, MapError, NodeSource, PAGE_BYTES_MAX, Root, Shape, VALUE_BYTES_MAX};
use crate::id::GlyphId;
use crate::store::StoreError;

/// Stores a node, and gets to know the one that it takes the place of: mostly they are much alike.
pub type NodeSink<'a> = &'a mut dyn FnMut(&[u8], Option<&Replaced>) -> Result<GlyphId, StoreError>;

/// A node in whose place another one is written.
#[derive(Clone, Debug)]
pub struct Replaced {
    pub id: GlyphId,
    pub bytes: Bytes,
}

/// The map of exactly these rows, which must come in ascending order of their keys. Memory stays bounded.
///
/// # Panics
///
/// If the keys do not ascend, or the shape asks for pages beyond `PAGE_BYTES_MAX`.
pub fn build(
    sink: NodeSink<'_>,
    shape: Shape,
    rows: impl IntoIterator<Item = (Bytes, Bytes)>,
) -> Result<Root, MapError> {
    let mut builder = Builder { writer: Writer::new(&NoNodes, sink, shape), floors: vec![Vec::new()] };
    let mut last: Option<Bytes> = None;
    for (key, value) in rows {
        assert_ascending(&mut last, &key);
        let row = Unit::row(key, value)?;
        builder.add(0, row)?;
    }
    builder.finish()
}

/// The map that `root` becomes by these changes, which must come in ascending order of their keys: `Some` sets the
/// value of a key, `None` removes the row. Writes the nodes of the result that `root` lacks, children first, each
/// once, and no others. Memory follows the number of changes.
///
/// # Panics
///
/// As `build`.
pub fn apply(
    source: &dyn NodeSource,
    sink: NodeSink<'_>,
    shape: Shape,
    root: &Root,
    changes: impl IntoIterator<Item = (Bytes, Option<Bytes>)>,
) -> Result<Root, MapError> {
    let mut last = None;
    let mut changes = changes.into_iter().inspect(|(key, _)| assert_ascending(&mut last, key));
    let mut editor =
        Editor { writer: Writer::new(source, sink, shape), changes: (&mut changes as Changes<'_>).peekable() };
    let units = match load_root(source, root)? {
        Some((id, node)) => vec![Unit::stored(node.key(0), node.summary(), id)],
        None => Vec::new(),
    };
    let Some(mut units) = editor.update(units)? else { return Ok(*root) };
    let mut writer = editor.writer;
    writer.pack(&mut units, u16::MAX)?;
    writer.root(units.pop())
}

fn assert_ascending(last: &mut Option<Bytes>, key: &Bytes) {
    assert!(last.as_ref().is_none_or(|last| last < key), "the keys of a batch ascend");
    *last = Some(key.clone());
}

/// A subtree of the trie: a row, or what is or may become a node.
struct Unit {
    /// Its smallest key.
    key: Bytes,
    summary: Summary,
    body: Body,
    replaced: Option<Replaced>,
}

enum Body {
    Stored(GlyphId),
    /// The value of a single row.
    Row(Bytes),
    /// Level 0: rows. Above: stored units. At least two.
    Group(Vec<Unit>),
}

impl Unit {
    fn row(key: Bytes, value: Bytes) -> Result<Self, MapError> {
        if key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            return Err(MapError::RowTooLarge { key_bytes: key.len(), value_bytes: value.len() });
        }
        Ok(Self::checked_row(key, value))
    }

    fn checked_row(key: Bytes, value: Bytes) -> Self {
        let size_bytes = row_bytes(key.len(), value.len()) as u32;
        let summary = Summary { rows: 1, size_bytes, prefix_bits: bit_len(key.len()) as u16, level: 0 };
        Self { key, summary, body: Body::Row(value), replaced: None }
    }

    fn stored(key: Bytes, summary: Summary, id: GlyphId) -> Self {
        Self { key, summary, body: Body::Stored(id), replaced: None }
    }

    /// Whether a key has its place inside this subtree.
    fn covers(&self, key: &[u8]) -> bool {
        critical_bit(key, &self.key) >= u32::from(self.summary.prefix_bits)
    }

    /// What it adds to a unit of `level`.
    fn weight(&self, level: u16) -> Weight {
        match self.summary.level {
            own if own > level => Weight::WHOLE_PAGE,
            own if own < level => Weight { bytes: entry_bytes(self.key.len()), units: 1 },
            // An inner node is at least two units of the level below.
            _ => Weight { bytes: u64::from(self.summary.size_bytes), units: if level == 0 { 1 } else { 2 } },
        }
    }
}

/// The rows or children of a node, as units.
fn units_of(node: &Node) -> Vec<Unit> {
    let unit = |(index, key): (usize, Bytes)| {
        if node.is_leaf() {
            Unit::checked_row(key, node.value(index))
        } else {
            let (id, summary) = node.child(index);
            Unit::stored(key, summary, id)
        }
    };
    node.keys().enumerate().map(unit).collect()
}

type Changes<'a> = &'a mut dyn Iterator<Item = (Bytes, Option<Bytes>)>;

struct Editor<'a> {
    writer: Writer<'a>,
    changes: Peekable<Changes<'a>>,
}

/// A node under change.
struct Open {
    /// The node as its parent knows it; `None` for the list that holds the root.
    unit: Option<Unit>,
    replaced: Option<Replaced>,
    /// What the changes have not reached yet.
    rest: std::vec::IntoIter<Unit>,
    /// What became of the others, not joined.
    done: Vec<Unit>,
    changed: bool,
}

impl Open {
    fn new(unit: Option<Unit>, replaced: Option<Replaced>, units: Vec<Unit>) -> Self {
        let done = Vec::with_capacity(units.len() + 2);
        Self { unit, replaced, rest: units.into_iter(), done, changed: false }
    }

    fn covers(&self, key: &[u8]) -> bool {
        self.unit.as_ref().is_none_or(|unit| unit.covers(key))
    }

    /// Takes a change that falls into none of the units: a new row, or nothing to remove.
    fn insert(&mut self, (key, value): (Bytes, Option<Bytes>)) -> Result<(), MapError> {
        if let Some(value) = value {
            self.done.push(Unit::row(key, value)?);
            self.changed = true;
        }
        Ok(())
    }
}

impl Editor<'_> {
    /// Carries out the changes on these units; `None` if they change nothing. The result is not joined.
    ///
    /// The path of open nodes is not the program's stack, as hostile nodes could make that overflow.
    fn update(&mut self, units: Vec<Unit>) -> Result<Option<Vec<Unit>>, MapError> {
        let mut path = vec![Open::new(None, None, units)];
        loop {
            let open = path.last_mut().expect("the first is popped last");
            if let Some(unit) = open.rest.next() {
                while let Some(change) = self.changes.next_if(|(key, _)| *key < unit.key && !unit.covers(key)) {
                    open.insert(change)?;
                }
                if !self.changes.peek().is_some_and(|(key, _)| unit.covers(key)) {
                    open.done.push(unit);
                    continue;
                }
                match &unit.body {
                    Body::Row(old) => {
                        let (_, value) = self.changes.next().expect("it was peeked at");
                        if value.as_ref() == Some(old) {
                            open.done.push(unit);
                        } else {
                            open.changed = true;
                            open.insert((unit.key, value))?;
                        }
                    }
                    Body::Stored(id) => {
                        let node = load_child(self.writer.source, id, (&unit.key, &[]), unit.summary)?;
                        let replaced = Replaced { id: *id, bytes: node.bytes().clone() };
                        path.push(Open::new(Some(unit), Some(replaced), units_of(&node)));
                    }
                    Body::Group(_) => unreachable!("changes meet units as they are stored"),
                }
                continue;
            }
            while let Some(change) = self.changes.next_if(|(key, _)| open.covers(key)) {
                open.insert(change)?;
            }
            let Open { unit, replaced, mut done, changed, .. } = path.pop().expect("it was just looked at");
            let (Some(unit), Some(parent)) = (unit, path.last_mut()) else { return Ok(changed.then_some(done)) };
            if changed {
                self.writer.pack(&mut done, unit.summary.level)?;
                for new in done.iter_mut().filter(|new| new.summary.level == unit.summary.level) {
                    new.replaced = new.replaced.take().or_else(|| replaced.clone());
                }
                parent.done.append(&mut done);
                parent.changed = true;
            } else {
                parent.done.push(unit);
            }
        }
    }
}

/// Joins units and writes nodes.
struct Writer<'a> {
    source: &'a dyn NodeSource,
    sink: NodeSink<'a>,
    shape: Shape,
    buffer: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn new(source: &'a dyn NodeSource, sink: NodeSink<'a>, shape: Shape) -> Self {
        assert!(shape.leaf_bytes.max(shape.inner_bytes) <= PAGE_BYTES_MAX, "a page of {shape:?} is too large");
        Self { source, sink, shape, buffer: Vec::new() }
    }

    /// Joins neighbours up to the units of level `top`.
    fn pack(&mut self, units: &mut Vec<Unit>, top: u16) -> Result<(), MapError> {
        let mut bits = critical_bits(units);
        let mut level = 0;
        while units.len() > 1 && level <= top {
            self.join(level, units, &mut bits)?;
            // A unit weighs something else only at its own level and at the next one; between, nothing new joins.
            let higher = units.iter().map(|unit| unit.summary.level).filter(|&own| own >= level);
            level = higher.min().unwrap_or(level).max(level + 1);
        }
        Ok(())
    }

    /// Turns a list whose units are right below `level` into the units of that level.
    fn join(&mut self, level: u16, units: &mut Vec<Unit>, bits: &mut Vec<u32>) -> Result<(), MapError> {
        let cuts = cuts(units.iter().map(|unit| unit.weight(level)), bits, |sum| match level {
            0 => sum.bytes <= u64::from(self.shape.leaf_bytes),
            _ => sum.units <= 2 || sum.bytes <= u64::from(self.shape.inner_bytes),
        });
        if cuts.iter().all(|&cut| cut) {
            return Ok(());
        }
        let mut rest = std::mem::take(units).into_iter();
        for run in cuts.split_inclusive(|&cut| cut) {
            // The last run has no cut behind it.
            let len = if run.last() == Some(&true) { run.len() } else { run.len() + 1 };
            let unit = self.group(level, rest.by_ref().take(len))?;
            units.push(unit);
        }
        if let Some(unit) = rest.next() {
            units.push(unit);
        }
        let mut cuts = cuts.iter();
        bits.retain(|_| *cuts.next().expect("as many as bits"));
        Ok(())
    }

    /// One unit of `level` out of these. Units below that level become its children and are written.
    fn group(&mut self, level: u16, mut run: impl ExactSizeIterator<Item = Unit>) -> Result<Unit, MapError> {
        if run.len() == 1 {
            return Ok(run.next().expect("there is one"));
        }
        let mut members = Vec::with_capacity(run.len());
        let (mut rows, mut size_bytes) = (0, 0);
        let mut replaced = None;
        for mut unit in run {
            rows += unit.summary.rows;
            size_bytes += unit.weight(level).bytes;
            if unit.summary.level == level {
                replaced = replaced.or(unit.replaced.take());
            }
            match unit.body {
                _ if unit.summary.level < level => members.push(self.write(unit)?),
                Body::Row(_) => members.push(unit),
                Body::Group(mut units) => members.append(&mut units),
                Body::Stored(id) => {
                    let node = load_child(self.source, &id, (&unit.key, &[]), unit.summary)?;
                    members.append(&mut units_of(&node));
                }
            }
        }
        let (key, last) = (members[0].key.clone(), &members[members.len() - 1].key);
        let prefix_bits = critical_bit(&key, last) as u16;
        let summary = Summary { rows, size_bytes: size_bytes as u32, prefix_bits, level };
        Ok(Unit { key, summary, body: Body::Group(members), replaced })
    }

    /// Writes the node of a unit, unless it is stored.
    fn write(&mut self, unit: Unit) -> Result<Unit, MapError> {
        self.buffer.clear();
        match &unit.body {
            Body::Stored(_) => return Ok(unit),
            Body::Row(value) => encode_leaf(&mut self.buffer, std::iter::once((&unit.key[..], &value[..]))),
            Body::Group(units) if unit.summary.level == 0 => {
                let rows = units.iter().map(|row| match &row.body {
                    Body::Row(value) => (&row.key[..], &value[..]),
                    _ => unreachable!("a leaf holds rows"),
                });
                encode_leaf(&mut self.buffer, rows);
            }
            Body::Group(units) => {
                let children = units.iter().map(|child| match &child.body {
                    Body::Stored(id) => (&child.key[..], id, child.summary),
                    _ => unreachable!("children were written first"),
                });
                encode_inner(&mut self.buffer, unit.summary.level, children);
            }
        }
        let id = (self.sink)(&self.buffer, unit.replaced.as_ref())?;
        Ok(Unit::stored(unit.key, unit.summary, id))
    }

    /// The map whose only unit this is.
    fn root(&mut self, unit: Option<Unit>) -> Result<Root, MapError> {
        let Some(unit) = unit else { return Ok(Root::EMPTY) };
        let unit = self.write(unit)?;
        let Body::Stored(id) = unit.body else { unreachable!("it was written") };
        Ok(Root { id: Some(id), level: unit.summary.level, rows: unit.summary.rows })
    }
}

fn critical_bits(units: &[Unit]) -> Vec<u32> {
    units.windows(2).map(|pair| critical_bit(&pair[0].key, &pair[1].key)).collect()
}

/// Builds all levels at once from rows in order. Rows still to come can change only the last unit of each level, so
/// the others are written and handed to the level above.
struct Builder<'a> {
    writer: Writer<'a>,
    /// By level: units of the level below (at first: rows) that are not yet joined.
    floors: Vec<Vec<Unit>>,
}

impl Builder<'_> {
    fn add(&mut self, level: usize, unit: Unit) -> Result<(), MapError> {
        if level == self.floors.len() {
            self.floors.push(Vec::new());
        }
        self.floors[level].push(unit);
        // A row takes at least four bytes of a page, so this is more than two pages, and most of it goes up.
        let page_bytes = self.writer.shape.leaf_bytes.max(self.writer.shape.inner_bytes);
        if self.floors[level].len() < 1024 + page_bytes as usize / 2 {
            return Ok(());
        }
        let mut units = self.join(level)?;
        let last = units.pop().expect("there were many");
        for unit in units {
            let unit = self.writer.write(unit)?;
            self.add(level + 1, unit)?;
        }
        self.floors[level] = match last {
            Unit { body: Body::Group(members), .. } => members,
            unit => vec![unit],
        };
        Ok(())
    }

    fn join(&mut self, level: usize) -> Result<Vec<Unit>, MapError> {
        let mut units = std::mem::take(&mut self.floors[level]);
        let mut bits = critical_bits(&units);
        self.writer.join(level as u16, &mut units, &mut bits)?;
        Ok(units)
    }

    fn finish(mut self) -> Result<Root, MapError> {
        for level in 0.. {
            let mut units = self.join(level)?;
            if level + 1 == self.floors.len() {
                if units.len() <= 1 {
                    return self.writer.root(units.pop());
                }
                self.floors.push(Vec::new());
            }
            self.floors[level + 1].append(&mut units);
        }
        unreachable!("each level has fewer units than the one below")
    }
}

/// `build` meets no stored unit that it would have to open.
struct NoNodes;

impl NodeSource for NoNodes {
    fn node(&self, id: &GlyphId) -> Result<Node, MapError> {
        Err(StoreError::Missing(*id).into())
    }
}
