//! The paging rule, on neighbours alone.
//!
//! The Patricia trie over a sorted list is the Cartesian tree (smallest on top) over the critical bits between
//! neighbours: each boundary is the branching of one subtree. A boundary is *cut* if that subtree is too large for one
//! page. A subtree of a subtree is never larger, so the runs between cuts are the largest subtrees that fit.

/// What a list element takes on a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weight {
    pub bytes: u64,
    /// How many elements of a page it is; only whether it is more than two in all is ever asked.
    pub units: u32,
}

impl Weight {
    /// Too large to share a page with anything.
    pub const WHOLE_PAGE: Self = Self { bytes: u64::MAX, units: u32::MAX };

    fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), units: self.units.saturating_add(other.units) }
    }
}

/// Says for each boundary whether it is cut. `critical_bits[i]` lies between the elements i and i + 1.
pub(super) fn cuts(
    weights: impl Iterator<Item = Weight>,
    critical_bits: &[u32],
    fits: impl Fn(Weight) -> bool,
) -> Vec<bool> {
    let mut cuts = vec![false; critical_bits.len()];
    // Subtrees still open on the right, each with the boundary on its left; their critical bits ascend.
    let mut open: Vec<(Weight, usize)> = Vec::new();
    let mut close = |open: &mut Vec<(Weight, usize)>, until: Option<u32>| {
        while let [.., left, right] = &mut open[..]
            && until.is_none_or(|bit| critical_bits[right.1] > bit)
        {
            left.0 = left.0.plus(right.0);
            cuts[right.1] = !fits(left.0);
            open.pop();
        }
    };
    for (index, weight) in weights.enumerate() {
        // The boundary left of the first element does not exist; it stays at the bottom and is never looked at.
        let boundary = index.wrapping_sub(1);
        if index > 0 {
            close(&mut open, Some(critical_bits[boundary]));
        }
        open.push((weight, boundary));
    }
    close(&mut open, None);
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_between_cuts_are_the_largest_subtrees_that_fit() {
        // Trie: ((a b) (c (d e))), one byte each.
        let bits = [5, 1, 3, 4];
        let cuts_at = |limit| {
            let weights = std::iter::repeat_n(Weight { bytes: 1, units: 1 }, 5);
            cuts(weights, &bits, |sum| sum.bytes <= limit)
        };
        assert_eq!(cuts_at(5), [false, false, false, false]);
        assert_eq!(cuts_at(4), [false, true, false, false]);
        assert_eq!(cuts_at(2), [false, true, true, false]);
        assert_eq!(cuts_at(1), [true, true, true, true]);
    }
}
