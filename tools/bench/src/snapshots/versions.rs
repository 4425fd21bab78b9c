//! A source tree and its next versions, kept by phifs and by others in turns.

use anyhow::Result;

use super::backups::{Backup, Kept, Other};
use crate::lab::{Lab, MIB};
use crate::sources;
use crate::table::{Figure, Limit, median_of};

/// Of the files that a version changes.
const CHANGED_BYTES: usize = 800_000;

/// What one of them needed.
struct Side {
    backup: Box<dyn Backup>,
    /// For the first version, and for two.
    stored: [u64; 2],
    /// For each further version.
    seconds: Vec<f64>,
}

pub fn space_and_time(lab: &Lab) -> Result<Vec<Figure>> {
    let sources = lab.bench.sources()?;
    let mut backups: Vec<Box<dyn Backup>> = vec![Box::new(Kept::exporting(lab, "source-versions")?)];
    let mut left_out = String::new();
    for other in Other::ALL {
        match other.open(lab, 1 << 10) {
            Ok(backup) => backups.push(backup),
            Err(why) => left_out += &format!("; {why:#}"),
        }
    }
    let mut sides = Vec::new();
    for mut backup in backups {
        sources.unpack(backup.dir())?;
        backup.settle()?;
        backup.keep()?;
        backup.collect()?;
        let stored = backup.stored_bytes()?;
        sides.push(Side { backup, stored: [stored; 2], seconds: Vec::new() });
    }
    let mut changed = 0;
    for version in 1..=lab.repeat {
        for side in &sides {
            let bytes = lab.bench.scale.count(CHANGED_BYTES);
            changed = sources::next_version(&side.backup.dir().join("tree"), version as u64, bytes)?;
        }
        for side in &sides {
            side.backup.settle()?;
        }
        std::thread::sleep(lab.rest);
        for turn in 0..sides.len() {
            let at = (version + turn) % sides.len();
            let side = &mut sides[at];
            let seconds = side.backup.keep()?;
            eprintln!("source-versions: {:<10} {seconds:.3} s", side.backup.name());
            side.seconds.push(seconds);
            side.backup.settle()?;
        }
        if version == 1 {
            for side in &mut sides {
                side.backup.collect()?;
                side.stored[1] = side.backup.stored_bytes()?;
            }
        }
    }
    Ok(figures(&sides, changed, &left_out))
}

fn figures(sides: &[Side], changed: usize, left_out: &str) -> Vec<Figure> {
    let side = |name: &str| sides.iter().find(|side| side.backup.name() == name);
    let seconds = |side: &Side| median_of(side.seconds.clone());
    let mine = &sides[0];

    // Of btrfs only the streams between versions are known.
    let repositories = || sides.iter().filter(|side| side.backup.name() != "btrfs send");
    let mib = |bytes: u64| bytes as f64 / MIB;
    let kept: Vec<String> = repositories()
        .map(|side| {
            let [first, both] = side.stored.map(mib);
            format!("{} {both:.2} MiB, {:.2} of it the second", side.backup.name(), both - first)
        })
        .collect();
    let how = format!("{}; {:.2} MiB of files changed{left_out}", kept.join(", "), mib(changed as u64));
    let smaller = side("restic").zip(side("borg")).map(|(restic, borg)| restic.stored[1].min(borg.stored[1]));
    let mut figures = vec![match smaller {
        Some(smaller) => {
            let what = "space of a source tree and its next version against the smaller of restic and borg";
            let ratio = mine.stored[1] as f64 / smaller as f64;
            Figure::new(what, ratio, "", Limit::AtMost(1.0), how).goal(Limit::AtMost(0.9))
        }
        None => Figure::unlimited("space of a source tree and its next version", mib(mine.stored[1]), "MiB", how),
    }];

    let times: Vec<String> =
        sides.iter().map(|side| format!("{} {:.3} s", side.backup.name(), seconds(side))).collect();
    let how = format!("{}{left_out}", times.join(", "));
    let what = "snapshot create and incremental export";
    if side("restic").is_none() && side("btrfs send").is_none() {
        figures.push(Figure::unlimited(what, seconds(mine), "s", how.clone()));
    }
    if let Some(restic) = side("restic") {
        let what = format!("{what} against restic's second backup");
        figures.push(Figure::new(what, seconds(mine) / seconds(restic), "", Limit::AtMost(0.2), how.clone()));
    }
    if let Some(btrfs) = side("btrfs send") {
        let what = format!("{what} against btrfs subvolume snapshot and send -p");
        figures.push(Figure::unlimited(what, seconds(mine) / seconds(btrfs), "", how).goal(Limit::AtMost(1.0)));
    }
    figures
}
