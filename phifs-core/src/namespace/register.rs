//! A dotted register: the values written by operations that nobody who saw them has overwritten yet.
//!
//! Usually it holds one value; two or more are concurrent. It behaves as `crdts::MVReg` under one shared context
//! (Almeida, Shoker, Baquero, "Delta state replicated data types", 2018), at a tenth of its size; the tests hold the
//! two side by side.

use smallvec::SmallVec;

use crate::id::Dot;
use crate::time::Hlc;

/// One written value. The author of its order is the dot's author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<V> {
    pub dot: Dot,
    pub hlc: Hlc,
    pub value: V,
}

/// Entries in the order of their dots, each dot once. The usual one lies in the register itself: a row is made of
/// several registers, and is decoded for every call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register<V> {
    entries: SmallVec<[Entry<V>; 1]>,
}

impl<V> Default for Register<V> {
    fn default() -> Self {
        Self { entries: SmallVec::new() }
    }
}

impl<V> Register<V> {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn entries(&self) -> &[Entry<V>] {
        &self.entries
    }

    pub fn dots(&self) -> impl Iterator<Item = Dot> + '_ {
        self.entries.iter().map(|entry| entry.dot)
    }

    /// The dot and the clock reading of every entry.
    pub fn stamps(&self) -> impl Iterator<Item = (Dot, Hlc)> + Clone + '_ {
        self.entries.iter().map(|entry| (entry.dot, entry.hlc))
    }

    pub fn get(&self, dot: Dot) -> Option<&Entry<V>> {
        self.entries.binary_search_by_key(&dot, |entry| entry.dot).ok().map(|at| &self.entries[at])
    }

    /// The entry that is shown when only one can be: the latest by clock, then author.
    pub fn latest(&self) -> Option<&Entry<V>> {
        self.entries.iter().max_by_key(|entry| (entry.hlc, entry.dot.author))
    }

    /// Adds a value; a dot that is there already keeps what it has, as one dot never names two values.
    /// Says whether the value was added.
    pub fn insert(&mut self, entry: Entry<V>) -> bool {
        let free = self.entries.binary_search_by_key(&entry.dot, |entry| entry.dot);
        if let Err(at) = free {
            self.entries.insert(at, entry);
        }
        free.is_err()
    }

    /// Adds a value behind all others.
    pub(super) fn push(&mut self, entry: Entry<V>) {
        debug_assert!(self.entries.last().is_none_or(|last| last.dot < entry.dot));
        self.entries.push(entry);
    }

    /// Removes the value with this dot, if it is still there.
    pub fn remove(&mut self, dot: Dot) {
        if let Ok(at) = self.entries.binary_search_by_key(&dot, |entry| entry.dot) {
            self.entries.remove(at);
        }
    }

    /// Keeps what both have, and what one has unless the other's context covers it.
    #[must_use]
    pub fn join(self, covers: impl Fn(Dot) -> bool, other: Self, other_covers: impl Fn(Dot) -> bool) -> Self {
        let mine: Vec<Dot> = self.dots().collect();
        let mut joined = self;
        joined.entries.retain(|entry| other.get(entry.dot).is_some() || !other_covers(entry.dot));
        for entry in other.entries {
            if mine.binary_search(&entry.dot).is_err() && !covers(entry.dot) {
                joined.insert(entry);
            }
        }
        joined
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crdts::{CmRDT, CvRDT, MVReg};
    use proptest::prelude::*;

    use super::*;
    use crate::id::AuthorId;

    #[derive(Clone, Default)]
    struct Replica {
        context: BTreeMap<AuthorId, u64>,
        register: Register<u32>,
        oracle: MVReg<u32, u8>,
    }

    impl Replica {
        fn write(&mut self, author: u8, value: u32) {
            let id = AuthorId([author; 16]);
            let n = self.context.entry(id).or_default();
            *n += 1;
            let dot = Dot { author: id, n: *n };
            let seen: Vec<Dot> = self.register.dots().collect();
            seen.into_iter().for_each(|dot| self.register.remove(dot));
            self.register.insert(Entry { dot, hlc: Hlc(u64::from(value)), value });
            let context = self.oracle.read().derive_add_ctx(author);
            self.oracle.apply(self.oracle.write(value, context));
        }

        fn join(&mut self, other: &Self) {
            let covers =
                |context: &BTreeMap<AuthorId, u64>, dot: Dot| context.get(&dot.author).is_some_and(|n| *n >= dot.n);
            self.register = std::mem::take(&mut self.register).join(
                |dot| covers(&self.context, dot),
                other.register.clone(),
                |dot| covers(&other.context, dot),
            );
            for (author, n) in &other.context {
                let mine = self.context.entry(*author).or_default();
                *mine = (*mine).max(*n);
            }
            self.oracle.merge(other.oracle.clone());
        }

        fn values(&self) -> Vec<u32> {
            let mut values: Vec<u32> = self.register.entries().iter().map(|entry| entry.value).collect();
            values.sort_unstable();
            values
        }

        fn oracle_values(&self) -> Vec<u32> {
            let mut values = self.oracle.read().val;
            values.sort_unstable();
            values
        }
    }

    proptest! {
        /// Steps: `(replica, None)` writes, `(replica, Some(other))` joins the other in.
        #[test]
        fn behaves_as_the_multi_value_register_of_the_crdts_crate(
            steps in prop::collection::vec((0..3usize, prop::option::of(0..3usize)), 1..40),
        ) {
            let mut replicas = vec![Replica::default(); 3];
            for (at, (replica, other)) in steps.into_iter().enumerate() {
                match other {
                    None => replicas[replica].write(replica as u8, at as u32),
                    Some(other) => {
                        let other = replicas[other].clone();
                        replicas[replica].join(&other);
                    }
                }
                prop_assert_eq!(replicas[replica].values(), replicas[replica].oracle_values());
            }
        }
    }
}
