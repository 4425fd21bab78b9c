//! The contents of one file in memory: 4 KiB pages that exist only where something was written.
//!
//! Pages are shared between clones until one of them writes, so a copy of a large file costs little.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Stamp;
use crate::time::Timestamp;

pub(super) const PAGE_BYTES: u64 = 4096;

type Page = [u8; PAGE_BYTES as usize];

#[derive(Clone, Default)]
pub(super) struct Sparse {
    len_bytes: u64,
    pages: BTreeMap<u64, Arc<Page>>,
    /// Pages with space behind them, as ranges start -> end. Every page in `pages` is in one of them.
    reserved: BTreeMap<u64, u64>,
    /// Counts changes; the modification time is made of it.
    changes: u64,
}

impl Sparse {
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    pub fn reserved_bytes(&self) -> u64 {
        self.reserved.iter().map(|(start, end)| end - start).sum::<u64>() * PAGE_BYTES
    }

    /// What a write or an allocation of this range would add to `reserved_bytes`.
    pub fn missing_bytes(&self, offset: u64, len: u64) -> u64 {
        let (start, end) = pages_touched(offset, len);
        let covered = |(&from, &to): (&u64, &u64)| to.min(end).saturating_sub(from.max(start));
        let held: u64 = self.reserved.range(..end).rev().take_while(|(_, to)| **to > start).map(covered).sum();
        (end - start - held) * PAGE_BYTES
    }

    pub fn stamp(&self) -> Stamp {
        let mtime = Timestamp::new((self.changes / 1_000_000_000) as i64, (self.changes % 1_000_000_000) as u32);
        Stamp { len_bytes: self.len_bytes, allocated_bytes: self.reserved_bytes(), mtime }
    }

    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> usize {
        let len = self.len_bytes.saturating_sub(offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..len];
        buf.fill(0);
        for (index, page) in self.pages.range(offset / PAGE_BYTES..(offset + len as u64).div_ceil(PAGE_BYTES)) {
            let page_start = index * PAGE_BYTES;
            let from = page_start.max(offset);
            let to = (page_start + PAGE_BYTES).min(offset + len as u64);
            buf[(from - offset) as usize..(to - offset) as usize]
                .copy_from_slice(&page[(from - page_start) as usize..(to - page_start) as usize]);
        }
        len
    }

    pub fn write_at(&mut self, buf: &[u8], offset: u64) {
        self.changes += 1;
        let end = offset + buf.len() as u64;
        self.reserve(offset, buf.len() as u64);
        self.for_pages(offset, end, |pages, index, from, to| {
            let page = pages.entry(index).or_insert_with(|| Arc::new([0; PAGE_BYTES as usize]));
            let page_start = index * PAGE_BYTES;
            Arc::make_mut(page)[(from - page_start) as usize..(to - page_start) as usize]
                .copy_from_slice(&buf[(from - offset) as usize..(to - offset) as usize]);
        });
        if !buf.is_empty() {
            self.len_bytes = self.len_bytes.max(end);
        }
    }

    pub fn set_len(&mut self, len: u64) {
        self.changes += 1;
        if len < self.len_bytes {
            self.zero(len, len.next_multiple_of(PAGE_BYTES));
        }
        // Also space reserved behind an unchanged end is given back, as ext4 does.
        self.release(len.div_ceil(PAGE_BYTES), u64::MAX / PAGE_BYTES);
        self.len_bytes = len;
    }

    pub fn allocate(&mut self, offset: u64, len: u64, keep_len: bool) {
        self.changes += 1;
        self.reserve(offset, len);
        if !keep_len {
            self.len_bytes = self.len_bytes.max(offset + len);
        }
    }

    pub fn punch_hole(&mut self, offset: u64, len: u64) {
        self.changes += 1;
        let end = offset.saturating_add(len);
        let (first_whole, behind_whole) = (offset.div_ceil(PAGE_BYTES), end / PAGE_BYTES);
        if first_whole < behind_whole {
            self.release(first_whole, behind_whole);
            self.zero(offset, first_whole * PAGE_BYTES);
            self.zero(behind_whole * PAGE_BYTES, end);
        } else {
            self.zero(offset, end);
        }
    }

    pub fn seek_data(&self, offset: u64) -> Option<u64> {
        let (index, _) = self.pages.range(offset / PAGE_BYTES..).next()?;
        let found = (index * PAGE_BYTES).max(offset);
        (found < self.len_bytes).then_some(found)
    }

    pub fn seek_hole(&self, offset: u64) -> u64 {
        let mut index = offset / PAGE_BYTES;
        for (&page, _) in self.pages.range(index..) {
            if page != index {
                break;
            }
            index += 1;
        }
        (index * PAGE_BYTES).max(offset).min(self.len_bytes.max(offset))
    }

    fn zero(&mut self, from: u64, to: u64) {
        self.for_pages(from, to, |pages, index, from, to| {
            if let Some(page) = pages.get_mut(&index) {
                let page_start = index * PAGE_BYTES;
                Arc::make_mut(page)[(from - page_start) as usize..(to - page_start) as usize].fill(0);
            }
        });
    }

    fn for_pages(&mut self, from: u64, to: u64, mut each: impl FnMut(&mut BTreeMap<u64, Arc<Page>>, u64, u64, u64)) {
        let mut at = from;
        while at < to {
            let index = at / PAGE_BYTES;
            let page_end = ((index + 1) * PAGE_BYTES).min(to);
            each(&mut self.pages, index, at, page_end);
            at = page_end;
        }
    }

    fn reserve(&mut self, offset: u64, len: u64) {
        let (mut start, mut end) = pages_touched(offset, len);
        if start == end {
            return;
        }
        while let Some((&from, &to)) = self.reserved.range(..=end).next_back().filter(|(_, to)| **to >= start) {
            if from <= start && end <= to {
                return;
            }
            self.reserved.remove(&from);
            start = start.min(from);
            end = end.max(to);
        }
        self.reserved.insert(start, end);
    }

    fn release(&mut self, start: u64, end: u64) {
        while let Some((&from, &to)) = self.reserved.range(..end).next_back().filter(|(_, to)| **to > start) {
            self.reserved.remove(&from);
            if end < to {
                self.reserved.insert(end, to);
            }
            if from < start {
                self.reserved.insert(from, start);
            }
        }
        let gone: Vec<u64> = self.pages.range(start..end).map(|(index, _)| *index).collect();
        for index in gone {
            self.pages.remove(&index);
        }
    }
}

fn pages_touched(offset: u64, len: u64) -> (u64, u64) {
    if len == 0 {
        return (0, 0);
    }
    (offset / PAGE_BYTES, offset.saturating_add(len).div_ceil(PAGE_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn eight_tebibytes_cost_two_pages() {
        let mut file = Sparse::default();
        file.set_len(8 << 40);
        file.write_at(b"start", 100);
        file.write_at(b"end", (8 << 40) - 3);
        assert_eq!(file.stamp().allocated_bytes, 2 * PAGE_BYTES);
        assert_eq!(file.seek_data(0), Some(0));
        assert_eq!(file.seek_hole(0), PAGE_BYTES);
        assert_eq!(file.seek_data(PAGE_BYTES), Some((8 << 40) - PAGE_BYTES));
        assert_eq!(file.seek_hole((8 << 40) - 1), 8 << 40);
    }

    #[test]
    fn a_clone_does_not_see_later_writes() {
        let mut file = Sparse::default();
        file.write_at(b"old", 0);
        let copy = file.clone();
        file.write_at(b"new", 0);
        let mut buf = [0; 3];
        copy.read_at(&mut buf, 0);
        assert_eq!(&buf, b"old");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, Vec<u8>),
        SetLen(u64),
        Allocate(u64, u64, bool),
        Punch(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let at = 0..40_000u64;
        prop_oneof![
            (at.clone(), prop::collection::vec(1u8.., 0..9000)).prop_map(|(offset, bytes)| Step::Write(offset, bytes)),
            at.clone().prop_map(Step::SetLen),
            (at.clone(), 0..20_000u64, any::<bool>()).prop_map(|(offset, len, keep)| Step::Allocate(offset, len, keep)),
            (at, 0..20_000u64).prop_map(|(offset, len)| Step::Punch(offset, len)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_as_a_plain_vector(steps in prop::collection::vec(step(), 1..20)) {
            let mut file = Sparse::default();
            let mut model: Vec<u8> = Vec::new();
            for step in steps {
                match step {
                    Step::Write(offset, bytes) => {
                        let missing = file.missing_bytes(offset, bytes.len() as u64);
                        let before = file.reserved_bytes();
                        file.write_at(&bytes, offset);
                        prop_assert_eq!(file.reserved_bytes(), before + missing);
                        let end = offset as usize + bytes.len();
                        if !bytes.is_empty() {
                            model.resize(model.len().max(end), 0);
                            model[offset as usize..end].copy_from_slice(&bytes);
                        }
                    }
                    Step::SetLen(len) => {
                        file.set_len(len);
                        model.resize(len as usize, 0);
                    }
                    Step::Allocate(offset, len, keep) => {
                        file.allocate(offset, len, keep);
                        if !keep {
                            model.resize(model.len().max((offset + len) as usize), 0);
                        }
                    }
                    Step::Punch(offset, len) => {
                        file.punch_hole(offset, len);
                        let end = model.len().min((offset + len) as usize);
                        if (offset as usize) < end {
                            model[offset as usize..end].fill(0);
                        }
                    }
                }
                let mut read = vec![7; model.len() + 1];
                prop_assert_eq!(file.read_at(&mut read, 0), model.len());
                prop_assert_eq!(&read[..model.len()], &model[..]);
                prop_assert!(file.pages.len() as u64 * PAGE_BYTES <= file.reserved_bytes());
                for (start, end) in file.reserved.clone() {
                    prop_assert!(start < end);
                    prop_assert!(file.reserved.range(start + 1..=end).next().is_none(), "ranges are merged");
                }
            }
        }
    }
}
