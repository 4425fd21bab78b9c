//! What a replica knows: version vectors.
//!
//! Numbers of one author are contiguous from 1, so one number per author names every operation known of it.
//! An author of whom nothing is known has no entry; a vector therefore has one form in memory and one in bytes.
//! The `crdts` crate's `VClock` behaves the same (the tests hold the two side by side) but knows no canonical bytes.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::codec::{self, DecodeError, Encode, Reader};
use crate::id::{AuthorId, Dot};

/// A set of dots that has, of every author, all up to some number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionVector {
    entries: BTreeMap<AuthorId, u64>,
}

impl VersionVector {
    pub fn new() -> Self {
        Self::default()
    }

    /// The largest number known of this author; 0 when nothing is.
    pub fn get(&self, author: AuthorId) -> u64 {
        self.entries.get(&author).copied().unwrap_or(0)
    }

    pub fn contains(&self, dot: Dot) -> bool {
        dot.n > 0 && dot.n <= self.get(dot.author)
    }

    /// Whether everything in `other` is also in here.
    pub fn covers(&self, other: &Self) -> bool {
        other.entries.iter().all(|(&author, &n)| n <= self.get(author))
    }

    /// Adds the author's next dot.
    ///
    /// # Panics
    /// If it is not the next one: a hole here would make merges take unknown operations for removed ones.
    pub fn advance(&mut self, dot: Dot) {
        let n = self.entries.entry(dot.author).or_insert(0);
        assert!(n.checked_add(1) == Some(dot.n), "{dot} does not follow {n}");
        *n = dot.n;
    }

    /// The same, with exactly the dots up to `n` of this author.
    #[must_use]
    pub fn with(mut self, author: AuthorId, n: u64) -> Self {
        if n == 0 {
            self.entries.remove(&author);
        } else {
            self.entries.insert(author, n);
        }
        self
    }

    /// Adds everything that is in `other`.
    pub fn join(&mut self, other: &Self) {
        for (&author, &theirs) in &other.entries {
            let ours = self.entries.entry(author).or_insert(0);
            *ours = theirs.max(*ours);
        }
    }

    /// What is in here and missing from `other`, at most one range for each author.
    pub fn missing_from<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (AuthorId, RangeInclusive<u64>)> + 'a {
        self.iter().filter_map(|(author, ours)| {
            let theirs = other.get(author);
            (theirs < ours).then(|| (author, theirs + 1..=ours))
        })
    }

    /// How many dots are in here and missing from `other`.
    pub fn count_missing_from(&self, other: &Self) -> u64 {
        self.missing_from(other).map(|(_, range)| range.end() - range.start() + 1).sum()
    }

    /// Every author of whom something is known, with the largest number, in order of author.
    pub fn iter(&self) -> impl Iterator<Item = (AuthorId, u64)> + '_ {
        self.entries.iter().map(|(&author, &n)| (author, n))
    }

    /// How many authors something is known of.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn encode(&self, out: &mut impl Encode) {
        out.put_varint(self.entries.len() as u64);
        for (&author, &n) in &self.entries {
            out.put_dot(Dot { author, n });
        }
    }

    pub fn decode(reader: &mut Reader<'_>) -> codec::Result<Self> {
        let mut entries = BTreeMap::new();
        for _ in 0..reader.count()? {
            let dot = reader.dot()?;
            let ascends = entries.last_key_value().is_none_or(|(&last, _)| last < dot.author);
            if dot.n == 0 || !ascends {
                return Err(DecodeError::NotCanonical("a version vector"));
            }
            entries.insert(dot.author, dot.n);
        }
        Ok(Self { entries })
    }
}

/// Inclusion of sets: two vectors that each have something the other lacks are not ordered.
impl PartialOrd for VersionVector {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self.covers(other), other.covers(self)) {
            (true, true) => Some(Ordering::Equal),
            (true, false) => Some(Ordering::Greater),
            (false, true) => Some(Ordering::Less),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crdts::{CmRDT, CvRDT, VClock};
    use proptest::prelude::*;

    /// Both forms of the same knowledge: a few authors, so that vectors meet often.
    fn both() -> impl Strategy<Value = (VersionVector, VClock<AuthorId>)> {
        proptest::collection::btree_map(1u8..5, 1u64..4, 0..5).prop_map(|entries| {
            let (mut ours, mut oracle) = (VersionVector::new(), VClock::new());
            for (author, n) in entries {
                let author = AuthorId([author; 16]);
                for n in 1..=n {
                    ours.advance(Dot { author, n });
                    oracle.apply(crdts::Dot::new(author, n));
                }
            }
            (ours, oracle)
        })
    }

    fn same(ours: &VersionVector, oracle: &VClock<AuthorId>) -> bool {
        ours.iter().eq(oracle.iter().map(|dot| (*dot.actor, dot.counter)))
    }

    proptest! {
        #[test]
        fn behaves_as_vclock((a, a_oracle) in both(), (b, b_oracle) in both(), author in 0u8..6, n in 0u64..5) {
            let author = AuthorId([author; 16]);
            prop_assert!(same(&a, &a_oracle));
            prop_assert_eq!(a.partial_cmp(&b), a_oracle.partial_cmp(&b_oracle));
            prop_assert_eq!(a.get(author), a_oracle.get(&author));
            prop_assert_eq!(a.contains(Dot { author, n }), n > 0 && a_oracle.get(&author) >= n);

            let (mut joined, mut joined_oracle) = (a.clone(), a_oracle);
            joined.join(&b);
            joined_oracle.merge(b_oracle);
            prop_assert!(same(&joined, &joined_oracle));
        }

        #[test]
        fn sending_what_is_missing_makes_the_join((a, _) in both(), (b, _) in both()) {
            let mut reached = b.clone();
            for (author, range) in a.missing_from(&b) {
                for n in range {
                    reached.advance(Dot { author, n });
                }
            }
            let mut joined = b;
            joined.join(&a);
            prop_assert_eq!(reached, joined);
        }

        #[test]
        fn bytes_round_trip((a, _) in both()) {
            let mut bytes = Vec::new();
            a.encode(&mut bytes);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(VersionVector::decode(&mut reader), Ok(a));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn any_bytes_decode_or_fail_cleanly(bytes in proptest::collection::vec(0u8..3, 0..80)) {
            let mut reader = Reader::new(&bytes);
            if let Ok(vector) = VersionVector::decode(&mut reader) {
                let mut again = Vec::new();
                vector.encode(&mut again);
                prop_assert_eq!(&bytes[..again.len()], &again[..], "one value, one encoding");
            }
        }
    }

    #[test]
    #[should_panic(expected = "does not follow")]
    fn a_hole_is_refused() {
        VersionVector::new().advance(Dot { author: AuthorId([1; 16]), n: 2 });
    }

    #[test]
    fn second_forms_are_refused() {
        let entry = |author: u8, n: u8| [&[author; 16][..], &[n]].concat();
        for entries in [vec![entry(1, 0)], vec![entry(2, 1), entry(1, 1)], vec![entry(1, 1), entry(1, 2)]] {
            let bytes = [vec![entries.len() as u8], entries.concat()].concat();
            let decoded = VersionVector::decode(&mut Reader::new(&bytes));
            assert_eq!(decoded, Err(DecodeError::NotCanonical("a version vector")));
        }
    }
}
