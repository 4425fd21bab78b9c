//! Files that only grow, by whole lines.

use std::collections::HashSet;

use imara_diff::{Algorithm, Diff, InternedInput};

/// The base, then what each side added, in the order of the sides. Lines are never split: the base and all additions
/// end with one.
pub fn merge(base: &[u8], sides: &[&[u8]]) -> Option<Vec<u8>> {
    let is_whole = |bytes: &[u8]| bytes.is_empty() || bytes.ends_with(b"\n");
    let added: Option<Vec<&[u8]>> =
        sides.iter().map(|side| side.strip_prefix(base).filter(|it| is_whole(it))).collect();
    let added = added.filter(|_| is_whole(base))?;
    Some([base, &added.concat()].concat())
}

/// The same where it is not known what they began with: all lines of all sides, each side's in its order, and what sides
/// have in common once. That is what comes of several who go on appending to what each has seen of the others' lines. Sides
/// that have nothing in common may be anything, a log and the next one for instance.
pub fn merge_without_base(sides: &[&[u8]]) -> Option<Vec<u8>> {
    if !sides.iter().all(|side| side.ends_with(b"\n")) {
        return None;
    }
    let (first, others) = sides.split_first()?;
    let (mut all, mut left) = (first.to_vec(), others.to_vec());
    while !left.is_empty() {
        let known: HashSet<&[u8]> = lines(&all).collect();
        let next = left.iter().position(|side| lines(side).any(|line| known.contains(line)))?;
        drop(known);
        all = lines_of_both(&all, left.remove(next));
    }
    Some(all)
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|byte| *byte == b'\n')
}

/// A common supersequence of the lines of two files.
fn lines_of_both(a: &[u8], b: &[u8]) -> Vec<u8> {
    let mut input: InternedInput<&[u8]> = InternedInput::default();
    input.update_before(lines(a));
    input.update_after(lines(b));
    let diff = Diff::compute(Algorithm::Histogram, &input);
    let (mut all, mut at) = (Vec::with_capacity(a.len() + b.len()), 0);
    let put = |all: &mut Vec<u8>, tokens: &[imara_diff::Token]| {
        tokens.iter().for_each(|token| all.extend_from_slice(input.interner[*token]));
    };
    for hunk in diff.hunks() {
        put(&mut all, &input.before[at..hunk.before.end as usize]);
        put(&mut all, &input.after[hunk.after.start as usize..hunk.after.end as usize]);
        at = hunk.before.end as usize;
    }
    put(&mut all, &input.before[at..]);
    all
}
