//! A set of byte offsets, kept as half-open ranges that neither touch nor overlap.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::codec::{DecodeError, Encode, Reader};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// Start to end; every end lies before the next start.
    ends: BTreeMap<u64, u64>,
}

impl RangeSet {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ends.iter().map(|(&start, &end)| start..end)
    }

    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Swallow whatever overlaps or touches, from the right, as only one range can reach in from the left.
        while let Some((&other_start, &other_end)) = self.ends.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.ends.remove(&other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.ends.insert(start, end);
    }

    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.ends.range(..range.end).next_back() {
            if end <= range.start {
                break;
            }
            self.ends.remove(&start);
            if end > range.end {
                self.ends.insert(range.end, end);
            }
            if start < range.start {
                self.ends.insert(start, range.start);
            }
        }
    }

    /// Removes everything from this offset on.
    pub fn truncate(&mut self, len: u64) {
        self.remove(len..u64::MAX);
    }

    /// Whether the offset is in the set, and where that changes next (`u64::MAX`: nowhere).
    pub fn span(&self, offset: u64) -> (bool, u64) {
        if let Some((_, &end)) = self.ends.range(..=offset).next_back()
            && offset < end
        {
            return (true, end);
        }
        let next = self.ends.range(offset..).next();
        (false, next.map_or(u64::MAX, |(&start, _)| start))
    }

    pub fn contains(&self, offset: u64) -> bool {
        self.span(offset).0
    }

    /// Whether all of the range is in the set.
    pub fn covers(&self, range: Range<u64>) -> bool {
        range.is_empty() || matches!(self.span(range.start), (true, end) if end >= range.end)
    }

    /// The parts of `within` that are not in the set, in order.
    pub fn gaps(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = within.start;
        std::iter::from_fn(move || {
            while at < within.end {
                let (inside, end) = self.span(at);
                let span = at..end.min(within.end);
                at = span.end;
                if !inside {
                    return Some(span);
                }
            }
            None
        })
    }

    /// A count, then for every range its distance from the one before and its length.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_varint(self.ends.len() as u64);
        let mut at = 0;
        for range in self.iter() {
            out.put_varint(range.start - at);
            out.put_varint(range.end - range.start);
            at = range.end;
        }
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bad = DecodeError::NotCanonical("a set of ranges");
        let count = reader.count()?;
        let mut set = Self::new();
        let mut at = 0u64;
        for index in 0..count {
            let distance = reader.varint()?;
            let len = reader.varint()?;
            if len == 0 || (distance == 0 && index > 0) {
                return Err(bad);
            }
            let start = at.checked_add(distance).ok_or(bad)?;
            at = start.checked_add(len).ok_or(bad)?;
            set.ends.insert(start, at);
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPACE: u64 = 40;

    #[derive(Clone, Debug)]
    enum Op {
        Insert(Range<u64>),
        Remove(Range<u64>),
        Truncate(u64),
    }

    fn range() -> impl Strategy<Value = Range<u64>> {
        (0..=SPACE, 0..12u64).prop_map(|(start, len)| start..(start + len).min(SPACE))
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => range().prop_map(Op::Insert),
            2 => range().prop_map(Op::Remove),
            1 => (0..=SPACE).prop_map(Op::Truncate),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_row_of_flags(ops in prop::collection::vec(op(), 0..40), within in range()) {
            let mut set = RangeSet::new();
            let mut flags = [false; SPACE as usize];
            for op in ops {
                match op {
                    Op::Insert(range) => {
                        set.insert(range.clone());
                        range.for_each(|at| flags[at as usize] = true);
                    }
                    Op::Remove(range) => {
                        set.remove(range.clone());
                        range.for_each(|at| flags[at as usize] = false);
                    }
                    Op::Truncate(len) => {
                        set.truncate(len);
                        flags[len as usize..].fill(false);
                    }
                }
                let ranges: Vec<_> = set.iter().collect();
                prop_assert!(ranges.iter().all(|range| range.start < range.end));
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
                for at in 0..SPACE {
                    prop_assert_eq!(set.contains(at), flags[at as usize]);
                    let end = (at..SPACE).find(|&next| flags[next as usize] != flags[at as usize]);
                    let (inside, span_end) = set.span(at);
                    prop_assert_eq!(span_end.min(SPACE), end.unwrap_or(SPACE));
                    prop_assert_eq!(inside, flags[at as usize]);
                }
            }
            let missing: Vec<u64> = within.clone().filter(|&at| !flags[at as usize]).collect();
            prop_assert_eq!(set.covers(within.clone()), missing.is_empty());
            prop_assert_eq!(set.gaps(within).flatten().collect::<Vec<_>>(), missing);

            let mut bytes = Vec::new();
            set.encode(&mut bytes);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(RangeSet::decode(&mut reader), Ok(set));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn any_bytes_decode_to_their_only_encoding_or_fail(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            if let Ok(set) = RangeSet::decode(&mut reader) {
                let mut again = Vec::new();
                set.encode(&mut again);
                prop_assert_eq!(&bytes[..bytes.len() - reader.remaining()], &again[..]);
            }
        }
    }
}
