//! The bytes of one node, searched as they are: nothing is decoded for a lookup.
//!
//! ```text
//! version u8 | width u8 | level u16 | count u32 | prefix length u16 | prefix
//! ends of the key suffixes: count x width
//! leaf only: ends of the values: count x width
//! key suffixes
//! leaf: values      inner: count x (child id 32, rows u64, size u32, prefix bits u16, level u16)
//! ```
//!
//! Numbers are little-endian. `width` is 2 or 4 bytes, 4 only where 2 do not do. The prefix is what all keys share, as
//! long as possible; the key of a child is the smallest key below it. An encoding has one form; `Node::decode` refuses
//! all others, after which no access can fail.

use bytes::Bytes;

use super::bits::{bit_len, common_bytes, critical_bit};
use super::{KEY_BYTES_MAX, MapError, Root, VALUE_BYTES_MAX};
use crate::codec::{DecodeError, Encode, Reader};
use crate::id::GlyphId;

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 10;
const CHILD_BYTES: usize = GlyphId::LEN + 16;

/// More rows than there can be, yet far from where sums overflow.
const ROWS_MAX: u64 = 1 << 60;

/// What a row takes in a leaf. Part of the shape of every map: it must never change.
pub(super) fn row_bytes(key_bytes: usize, value_bytes: usize) -> u64 {
    (key_bytes + value_bytes + 4) as u64
}

/// What a child takes in an inner node. Part of the shape of every map: it must never change.
pub(super) fn entry_bytes(key_bytes: usize) -> u64 {
    (key_bytes + 2 + CHILD_BYTES) as u64
}

/// What a parent says of a child, and what a node says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Summary {
    pub rows: u64,
    /// The sum of what its rows or entries take.
    pub size_bytes: u32,
    /// Up to where all its keys agree: the bit at which it branches, or the length of its only key in bits.
    pub prefix_bits: u16,
    pub level: u16,
}

/// A validated node. Cloning shares the bytes.
#[derive(Clone, Debug)]
pub struct Node {
    bytes: Bytes,
    summary: Summary,
    count: u32,
    /// Where the key suffixes begin.
    keys_at: u32,
    /// Where the values, or the children, begin.
    values_at: u32,
    prefix_len: u16,
    wide: bool,
}

impl Node {
    /// Checks the whole structure. That the bytes are those of `id` is the affair of the store.
    pub fn decode(id: &GlyphId, bytes: Bytes) -> Result<Self, MapError> {
        Self::parse(bytes).map_err(|source| MapError::Malformed { node: *id, source })
    }

    pub fn level(&self) -> u16 {
        self.summary.level
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The length of its encoding.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn summary(&self) -> Summary {
        self.summary
    }

    pub(super) fn count(&self) -> usize {
        self.count as usize
    }

    pub(super) fn is_leaf(&self) -> bool {
        self.summary.level == 0
    }

    pub(super) fn prefix(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..][..self.prefix_len as usize]
    }

    pub(super) fn suffix(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.end(index - 1) };
        &self.bytes[self.keys_at as usize..][start..self.end(index)]
    }

    pub(super) fn key(&self, index: usize) -> Bytes {
        Bytes::from([self.prefix(), self.suffix(index)].concat())
    }

    /// All keys, in one allocation.
    pub(super) fn keys(&self) -> impl Iterator<Item = Bytes> {
        let suffix_bytes = (self.values_at - self.keys_at) as usize;
        let mut keys = Vec::with_capacity(self.count() * self.prefix().len() + suffix_bytes);
        for index in 0..self.count() {
            keys.extend_from_slice(self.prefix());
            keys.extend_from_slice(self.suffix(index));
        }
        let mut rest = Bytes::from(keys);
        (0..self.count()).map(move |index| rest.split_to(self.prefix().len() + self.suffix(index).len()))
    }

    /// The rows of a leaf.
    pub fn rows(&self) -> impl Iterator<Item = (Bytes, Bytes)> {
        assert!(self.is_leaf(), "only leaves have rows");
        self.keys().enumerate().map(|(index, key)| (key, self.value(index)))
    }

    /// The value of a key in this leaf.
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.find(key).ok().map(|index| self.value(index))
    }

    /// The same, unless the key lies before the first or behind the last one here: only then may another leaf have it.
    pub fn get_between(&self, key: &[u8]) -> Option<Option<Bytes>> {
        match self.find(key) {
            Ok(index) => Some(Some(self.value(index))),
            Err(at) => (at > 0 && at < self.count()).then_some(None),
        }
    }

    pub(super) fn value(&self, index: usize) -> Bytes {
        let start = if index == 0 { 0 } else { self.end(self.count() + index - 1) };
        let values_at = self.values_at as usize;
        self.bytes.slice(values_at + start..values_at + self.end(self.count() + index))
    }

    pub(super) fn child(&self, index: usize) -> (GlyphId, Summary) {
        let bytes = &self.bytes[self.values_at as usize + index * CHILD_BYTES..][..CHILD_BYTES];
        parse_child(bytes).expect("a child has a fixed length")
    }

    /// The nodes right below this one, as roots of what is below them. A leaf has none.
    pub fn children(&self) -> impl Iterator<Item = Root> {
        (0..if self.is_leaf() { 0 } else { self.count() }).map(|index| {
            let (id, Summary { level, rows, .. }) = self.child(index);
            Root { id: Some(id), level, rows }
        })
    }

    /// The index of this key, or where it would stand.
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        let prefix = self.prefix();
        let common = key.len().min(prefix.len());
        match key[..common].cmp(&prefix[..common]) {
            std::cmp::Ordering::Greater => return Err(self.count()),
            std::cmp::Ordering::Equal if common == prefix.len() => {}
            _ => return Err(0),
        }
        let rest = &key[common..];
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = (low + high) / 2;
            match self.suffix(middle).cmp(rest) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// Whether this is the node that a parent tells of. The smallest key comes in two pieces, as nodes have it.
    pub(super) fn matches(&self, smallest: (&[u8], &[u8]), summary: Summary) -> bool {
        let own = (self.prefix(), self.suffix(0));
        let (long, short) = if own.0.len() >= smallest.0.len() { (own, smallest) } else { (smallest, own) };
        let (head, tail) = long.0.split_at(short.0.len());
        self.summary == summary && head == short.0 && short.1.strip_prefix(tail).is_some_and(|rest| rest == long.1)
    }

    /// The end of a suffix or, from `count` on, of a value.
    fn end(&self, index: usize) -> usize {
        let ends = &self.bytes[HEADER_BYTES + self.prefix_len as usize..];
        read_end(ends, index, self.wide)
    }

    fn parse(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(&bytes);
        match reader.u8()? {
            VERSION => {}
            0 => return Err(DecodeError::Unknown { what: "the version of a map node", value: 0 }),
            found => {
                let (found, known) = (u32::from(found), u32::from(VERSION));
                return Err(DecodeError::NewerVersion { what: "a map node", found, known });
            }
        }
        let wide = match reader.u8()? {
            2 => false,
            4 => true,
            width => return Err(DecodeError::Unknown { what: "the offset width", value: u64::from(width) }),
        };
        let level = u16::from_le_bytes(reader.array()?);
        let count = reader.u32()? as usize;
        let prefix_len = u16::from_le_bytes(reader.array()?);
        let leaf = level == 0;
        check(count >= if leaf { 1 } else { 2 }, "the count of a node")?;
        reader.bytes(usize::from(prefix_len))?;

        // Multiplied in 64 bits, as a count from hostile bytes may overflow 32.
        let table_bytes = count as u64 * if wide { 4 } else { 2 };
        let table = |reader: &mut Reader<'_>| {
            let table_bytes = usize::try_from(table_bytes).map_err(|_| DecodeError::Truncated)?;
            let bytes = reader.bytes(table_bytes)?;
            let ascending = (1..count).all(|at| read_end(bytes, at - 1, wide) <= read_end(bytes, at, wide));
            check(ascending, "the offsets of a node")?;
            Ok(read_end(bytes, count - 1, wide))
        };
        let keys_bytes = table(&mut reader)?;
        let values_bytes = if leaf { table(&mut reader)? } else { 0 };
        check(wide == is_wide(keys_bytes, values_bytes), "the offset width of a node")?;
        let keys_at = bytes.len() - reader.remaining();
        reader.bytes(keys_bytes)?;
        let values_at = bytes.len() - reader.remaining();
        let values_bytes = if leaf { values_bytes as u64 } else { count as u64 * CHILD_BYTES as u64 };
        reader.bytes(usize::try_from(values_bytes).map_err(|_| DecodeError::Truncated)?)?;
        reader.finish()?;

        let narrow = |at: usize| u32::try_from(at).map_err(|_| DecodeError::NotCanonical("the length of a node"));
        let summary = Summary { rows: 0, size_bytes: 0, prefix_bits: 0, level };
        let (keys_at, values_at) = (narrow(keys_at)?, narrow(values_at)?);
        let mut node = Self { summary, count: narrow(count)?, keys_at, values_at, prefix_len, wide, bytes };
        node.summary = node.check_contents()?;
        Ok(node)
    }

    /// Checks keys, values and children of a node whose offsets are sound, and sums it up.
    fn check_contents(&self) -> Result<Summary, DecodeError> {
        let count = self.count();
        let prefix_len = self.prefix().len();
        let (first, last) = (self.suffix(0), self.suffix(count - 1));
        let shared = if count == 1 { first.len() } else { common_bytes(first, last) };
        check(shared == 0, "the prefix of a node")?;

        let (mut size_bytes, mut rows, mut level) = (0u64, 0u64, 0);
        let mut bit_before = 0;
        for index in 0..count {
            let suffix = self.suffix(index);
            let key_bytes = prefix_len + suffix.len();
            check(key_bytes <= KEY_BYTES_MAX, "the length of a key")?;
            let mut bit_after = 0;
            if index + 1 < count {
                let next = self.suffix(index + 1);
                check(suffix < next, "the order of keys")?;
                bit_after = prefix_len as u32 * 9 + critical_bit(suffix, next);
            }
            if self.is_leaf() {
                let start = if index == 0 { 0 } else { self.end(count + index - 1) };
                let value_bytes = self.end(count + index) - start;
                check(value_bytes <= VALUE_BYTES_MAX, "the length of a value")?;
                size_bytes += row_bytes(key_bytes, value_bytes);
                rows += 1;
            } else {
                let (_, child) = self.child(index);
                // Its subtree must end before its neighbours part from it, and cannot outlast its smallest key.
                let prefix_bits = u32::from(child.prefix_bits);
                check(prefix_bits > bit_before.max(bit_after), "the prefix of a child")?;
                check(prefix_bits <= bit_len(key_bytes), "the prefix of a child")?;
                // Each level is at least one bit deeper than its parent, so levels are bounded as keys are.
                check(u32::from(child.level) + prefix_bits <= bit_len(KEY_BYTES_MAX), "the level of a child")?;
                check(child.rows > 0, "the rows of a child")?;
                rows = rows.saturating_add(child.rows);
                level = level.max(u32::from(child.level) + 1);
                size_bytes += entry_bytes(key_bytes);
            }
            bit_before = bit_after;
        }
        check(rows <= ROWS_MAX, "the rows of a node")?;
        check(level == u32::from(self.level()), "the level of a node")?;
        let size_bytes = u32::try_from(size_bytes).map_err(|_| DecodeError::NotCanonical("the size of a node"))?;
        let within = if count == 1 { bit_len(0) } else { critical_bit(first, last) };
        let prefix_bits = (prefix_len as u32 * 9 + within) as u16;
        Ok(Summary { rows, size_bytes, prefix_bits, level: self.level() })
    }
}

fn check(holds: bool, what: &'static str) -> Result<(), DecodeError> {
    if holds { Ok(()) } else { Err(DecodeError::NotCanonical(what)) }
}

fn read_end(ends: &[u8], index: usize, wide: bool) -> usize {
    if wide {
        let bytes = ends[index * 4..].first_chunk().expect("the table was checked");
        u32::from_le_bytes(*bytes) as usize
    } else {
        let bytes = ends[index * 2..].first_chunk().expect("the table was checked");
        usize::from(u16::from_le_bytes(*bytes))
    }
}

fn parse_child(bytes: &[u8]) -> Result<(GlyphId, Summary), DecodeError> {
    let mut reader = Reader::new(bytes);
    let id = reader.glyph_id()?;
    let rows = reader.u64()?;
    let size_bytes = reader.u32()?;
    let prefix_bits = u16::from_le_bytes(reader.array()?);
    let level = u16::from_le_bytes(reader.array()?);
    Ok((id, Summary { rows, size_bytes, prefix_bits, level }))
}

fn is_wide(keys_bytes: usize, values_bytes: usize) -> bool {
    keys_bytes.max(values_bytes) > usize::from(u16::MAX)
}

/// Encodes a leaf; the rows are sorted by key and there is at least one.
pub(super) fn encode_leaf<'a>(
    out: &mut Vec<u8>,
    rows: impl DoubleEndedIterator<Item = (&'a [u8], &'a [u8])> + ExactSizeIterator + Clone,
) {
    let values_bytes = rows.clone().map(|(_, value)| value.len()).sum();
    let keys = rows.clone().map(|(key, _)| key);
    encode(out, 0, keys, Some((values_bytes, rows.clone().map(|(_, value)| value.len()))));
    rows.for_each(|(_, value)| out.put_bytes(value));
}

/// Encodes an inner node; the children are sorted by their smallest keys and there are at least two.
pub(super) fn encode_inner<'a>(
    out: &mut Vec<u8>,
    level: u16,
    children: impl DoubleEndedIterator<Item = (&'a [u8], &'a GlyphId, Summary)> + ExactSizeIterator + Clone,
) {
    let keys = children.clone().map(|(key, ..)| key);
    encode(out, level, keys, None::<(usize, std::iter::Empty<usize>)>);
    for (_, id, child) in children {
        out.put_glyph_id(id);
        out.put_u64(child.rows);
        out.put_u32(child.size_bytes);
        out.put_bytes(&child.prefix_bits.to_le_bytes());
        out.put_bytes(&child.level.to_le_bytes());
    }
}

/// Encodes all but the values: `values` is the sum of their lengths, and the lengths.
fn encode<'a>(
    out: &mut Vec<u8>,
    level: u16,
    keys: impl DoubleEndedIterator<Item = &'a [u8]> + ExactSizeIterator + Clone,
    values: Option<(usize, impl Iterator<Item = usize>)>,
) {
    let count = keys.len();
    let first = keys.clone().next().expect("a node is never empty");
    let last = keys.clone().next_back().expect("a node is never empty");
    let prefix = &first[..common_bytes(first, last)];
    let keys_bytes = keys.clone().map(|key| key.len() - prefix.len()).sum();
    let wide = is_wide(keys_bytes, values.as_ref().map_or(0, |(sum, _)| *sum));

    out.put_u8(VERSION);
    out.put_u8(if wide { 4 } else { 2 });
    out.put_bytes(&level.to_le_bytes());
    out.put_u32(count as u32);
    out.put_bytes(&(prefix.len() as u16).to_le_bytes());
    out.put_bytes(prefix);
    put_ends(out, wide, keys.clone().map(|key| key.len() - prefix.len()));
    if let Some((_, lengths)) = values {
        put_ends(out, wide, lengths);
    }
    keys.for_each(|key| out.put_bytes(&key[prefix.len()..]));
}

fn put_ends(out: &mut Vec<u8>, wide: bool, lengths: impl Iterator<Item = usize>) {
    let mut end = 0;
    for len in lengths {
        end += len;
        if wide {
            out.put_u32(end as u32);
        } else {
            out.put_bytes(&(end as u16).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(rows: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_leaf(&mut bytes, rows.iter().copied());
        bytes
    }

    /// An inner node of two children, the leaves with the keys "a" and "b", once `damage` was done to the second.
    fn inner(level: u16, damage: impl Fn(&mut Summary)) -> Vec<u8> {
        let child = Summary { rows: 1, size_bytes: 5, prefix_bits: 10, level: 0 };
        let mut second = child;
        damage(&mut second);
        let id = GlyphId([7; 32]);
        let mut bytes = Vec::new();
        encode_inner(&mut bytes, level, [(&b"a"[..], &id, child), (&b"b"[..], &id, second)].into_iter());
        bytes
    }

    fn decode(bytes: Vec<u8>) -> Result<Node, DecodeError> {
        Node::parse(Bytes::from(bytes))
    }

    #[test]
    fn what_no_map_contains_is_refused_by_name() {
        let refused = |bytes: Vec<u8>, reason: &'static str| {
            assert_eq!(decode(bytes).map(drop).unwrap_err(), DecodeError::NotCanonical(reason));
        };
        refused(leaf(&[(b"b", b""), (b"a", b"")]), "the order of keys");
        refused(leaf(&[(b"a", b""), (b"c", b""), (b"c", b""), (b"d", b"")]), "the order of keys");
        let mut longer_prefix_possible = leaf(&[(b"ax", b""), (b"by", b"")]);
        let second_key = longer_prefix_possible.len() - 2;
        longer_prefix_possible[second_key] = b'a';
        refused(longer_prefix_possible, "the prefix of a node");
        refused(vec![1, 4, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "the offset width of a node");
        refused(vec![1, 2, 0, 0, 0, 0, 0, 0, 0, 0], "the count of a node");
        refused(leaf(&[(&[0; KEY_BYTES_MAX + 1], b"")]), "the length of a key");
        refused(leaf(&[(b"", &[0; VALUE_BYTES_MAX + 1])]), "the length of a value");

        decode(inner(1, |_| ())).unwrap();
        refused(inner(2, |_| ()), "the level of a node");
        refused(inner(1, |child| child.rows = 0), "the rows of a child");
        refused(inner(1, |child| child.rows = ROWS_MAX), "the rows of a node");
        // "a" and "b" part at bit 7, and "b" has ten bits.
        decode(inner(1, |child| child.prefix_bits = 8)).unwrap();
        refused(inner(1, |child| child.prefix_bits = 7), "the prefix of a child");
        refused(inner(1, |child| child.prefix_bits = 11), "the prefix of a child");
        let deepest = bit_len(KEY_BYTES_MAX) as u16 - 10;
        decode(inner(deepest + 1, |child| child.level = deepest)).unwrap();
        refused(inner(deepest + 2, |child| child.level = deepest + 1), "the level of a child");
    }

    #[test]
    fn large_nodes_have_wide_offsets() {
        let value = vec![1; VALUE_BYTES_MAX];
        let bytes = leaf(&[(b"a", &value), (b"b", b"small")]);
        assert_eq!(bytes[1], 4);
        let node = decode(bytes).unwrap();
        assert_eq!((&node.value(0)[..], &node.value(1)[..]), (&value[..], &b"small"[..]));
    }

    #[test]
    fn a_newer_version_is_named_in_the_error() {
        let error = Node::decode(&GlyphId([0; 32]), Bytes::from_static(&[9, 2, 0, 0])).unwrap_err();
        assert!(error.to_string().contains("format version 9"), "{error}");
    }
}
