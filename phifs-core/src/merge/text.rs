//! Text by lines: diff3 of any number of sides, clean or not at all.
//!
//! Each side is a list of replaced ranges of lines of the base. Ranges of different sides that overlap or touch are a
//! contradiction, unless they say the same: where two lines side by side were changed, nobody but a person knows
//! whether the changes go together.

use imara_diff::{Algorithm, Diff, InternedInput};

/// Lines of the base that are replaced by others.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    start: usize,
    end: usize,
    lines: String,
}

pub fn merge(base: &str, sides: &[&str]) -> Option<String> {
    let mut changes: Vec<Change> = sides.iter().flat_map(|side| changes(base, side)).collect();
    changes.sort_unstable();
    changes.dedup();
    if changes.windows(2).any(|pair| pair[1].start <= pair[0].end) {
        return None;
    }
    let lines: Vec<&str> = base.split_inclusive('\n').collect();
    let (mut merged, mut at) = (String::with_capacity(base.len()), 0);
    for change in &changes {
        merged.extend(lines[at..change.start].iter().copied());
        merged.push_str(&change.lines);
        at = change.end;
    }
    merged.extend(lines[at..].iter().copied());
    Some(merged)
}

/// What a side changed, in order and apart from each other.
fn changes(base: &str, side: &str) -> Vec<Change> {
    let mut input: InternedInput<&str> = InternedInput::default();
    // Not by the library's own notion of a line, which knows of carriage returns alone as well.
    input.update_before(base.split_inclusive('\n'));
    input.update_after(side.split_inclusive('\n'));
    let diff = Diff::compute(Algorithm::Histogram, &input);
    let change = |hunk: imara_diff::Hunk| {
        let lines = input.after[hunk.after.start as usize..hunk.after.end as usize].iter();
        let lines = lines.map(|token| input.interner[*token]).collect();
        Change { start: hunk.before.start as usize, end: hunk.before.end as usize, lines }
    };
    diff.hunks().map(change).collect()
}
