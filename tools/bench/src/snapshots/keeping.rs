//! What very many snapshots cost, in space and to those who work in the volume.

use anyhow::Result;

use super::changing::Changing;
use crate::lab::Lab;
use crate::speeds::{CREATE, STAT, in_turns};
use crate::systems::System;
use crate::table::{Figure, Limit};

const FILES: usize = 100_000;
const SNAPSHOTS: usize = 1_000;
const CHANGES: usize = 100;
const LEN: usize = 1024;
const OPERATIONS: usize = 5_000;

type Change = fn(&mut Changing, usize, usize) -> Result<()>;

pub fn thousand(lab: &Lab) -> Result<Vec<Figure>> {
    // The same changes without snapshots are what speed is compared with.
    let (without, _) = volume(lab, "kept-none", Changing::change, false)?;
    let (scattered, scattered_kib) = volume(lab, "kept-scattered", Changing::change, true)?;
    let (together, together_kib) = volume(lab, "kept-together", Changing::change_together, true)?;
    drop(together);
    let space = |what: &str, kib: Kib, floor, goal| {
        let detail = format!("for {:.1} KiB changed; {:.1} KiB before `phifs gc`", kib.changed, kib.with_garbage);
        Figure::new(what, kib.kept, "KiB", Limit::AtMost(floor), detail).goal(Limit::AtMost(goal))
    };
    let mut figures = vec![
        space("space of one of 1,000 snapshots beyond the changed bytes, scattered", scattered_kib, 1024.0, 512.0),
        space("the same, changes in one directory", together_kib, 128.0, 64.0),
    ];
    let kinds = [CREATE, STAT];
    let operations = lab.bench.scale.count(OPERATIONS).min(without.files.count / 4);
    let both = [&without, &scattered].map(|volume| (&volume.phifs, &volume.files));
    let rates = in_turns(lab, both, &kinds, operations)?;
    figures.extend(kinds.iter().zip(rates).map(|(kind, [without, with])| {
        let what = format!("{} in a volume with 1,000 snapshots against one without", kind.name);
        // No slower, as far as rates of two volumes can be told apart.
        Figure::new(what, with / without, "", Limit::AtLeast(0.9), format!("{with:.0} and {without:.0} per second"))
    }));
    Ok(figures)
}

/// For each snapshot.
struct Kib {
    changed: f64,
    /// Beyond what changed.
    kept: f64,
    /// The same before what nothing refers to is collected.
    with_garbage: f64,
}

fn volume(lab: &Lab, name: &str, change: Change, snapshots: bool) -> Result<(Changing, Kib)> {
    let scale = lab.bench.scale;
    let mut volume = Changing::new(lab, name, scale.count(FILES), 1024..4096)?;
    if snapshots {
        volume.snapshot()?;
    }
    let before = collected_bytes(&volume)?;
    let (count, changes) = (scale.count(SNAPSHOTS), scale.count(CHANGES));
    for n in 1..=count {
        change(&mut volume, changes, LEN)?;
        if snapshots {
            volume.snapshot()?;
        }
        if n.is_multiple_of(100) {
            eprintln!("thousand-snapshots: {name}, {n} of {count}");
        }
    }
    volume.phifs.settle()?;
    let full = volume.phifs.packed_bytes()?;
    let after = collected_bytes(&volume)?;
    let changed = (changes * LEN) as f64 / 1024.0;
    let beyond = |bytes: u64| (bytes as f64 - before as f64) / 1024.0 / count as f64 - changed;
    Ok((volume, Kib { changed, kept: beyond(after), with_garbage: beyond(full) }))
}

fn collected_bytes(volume: &Changing) -> Result<u64> {
    volume.phifs.settle()?;
    volume.phifs.gc()?;
    volume.phifs.settle()?;
    volume.phifs.packed_bytes()
}
