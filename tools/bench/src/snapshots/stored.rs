//! What the past of a large file takes in the store.

use std::path::Path;

use anyhow::Result;

use super::backups::{Backup, Kept, Other};
use super::edits;
use crate::lab::Lab;
use crate::rows::write_incompressible;
use crate::table::{Figure, Limit};

const RANGE: usize = 64 << 10;

/// Grown bytes for each changed one.
#[derive(Clone, Copy)]
struct Grown {
    stored: f64,
    /// Without what no version needs, which takes space as long as nobody collects it.
    collected: f64,
}

struct Side {
    name: &'static str,
    scattered: Grown,
    inserted: Grown,
}

pub fn growth(lab: &Lab) -> Result<Vec<Figure>> {
    let phifs = grow(lab, Box::new(Kept::new(lab, "stored-growth")?))?;
    let (mut others, mut left_out) = (Vec::new(), Vec::new());
    // One after the other, each with a copy of the file: three at once take much room.
    for other in Other::ALL {
        match other.open(lab, 4 << 10) {
            Ok(backup) => others.push(grow(lab, backup)?),
            Err(why) => left_out.push(format!("{why:#}")),
        }
    }
    let figure = |what: &str, edit: fn(&Side) -> Grown, floor, goal| {
        let Grown { stored, collected } = edit(&phifs);
        let mut how = vec![format!("after `phifs gc` {collected:.2}")];
        how.extend(others.iter().map(|side| format!("{} {:.2}", side.name, edit(side).stored)));
        how.extend(left_out.iter().cloned());
        Figure::new(what, stored, "", Limit::AtMost(floor), how.join("; ")).goal(Limit::AtMost(goal))
    };
    let scattered = "stored for each changed byte: 164 times 64 KiB scattered over 1 GiB";
    let inserted = "the same: 10 MiB overwritten and 4 KiB inserted";
    Ok(vec![figure(scattered, |side| side.scattered, 5.0, 3.0), figure(inserted, |side| side.inserted, 1.2, 1.1)])
}

fn grow(lab: &Lab, mut backup: Box<dyn Backup>) -> Result<Side> {
    let scale = lab.bench.scale;
    let large = backup.dir().join("large");
    write_incompressible(&large, scale.bytes(1 << 10), 0)?;
    backup.settle()?;
    backup.keep()?;
    let (count, changed) = (scale.count(164), scale.count(10 << 20));
    let scattered = grown(&mut *backup, count * RANGE, |large| edits::scatter(large, count, RANGE))?;
    let inserted = grown(&mut *backup, changed + (4 << 10), |large| {
        edits::overwrite(large, changed)?;
        // Where what follows is large as well as what comes before.
        let third = std::fs::metadata(large)?.len() / 3;
        edits::insert(large, third, 4 << 10)
    })?;
    eprintln!("stored-growth: {} done", backup.name());
    Ok(Side { name: backup.name(), scattered, inserted })
}

fn grown(backup: &mut dyn Backup, changed: usize, edit: impl FnOnce(&Path) -> Result<()>) -> Result<Grown> {
    backup.collect()?;
    let before = backup.stored_bytes()? as f64;
    edit(&backup.dir().join("large"))?;
    backup.settle()?;
    backup.keep()?;
    let stored = backup.stored_bytes()? as f64;
    backup.collect()?;
    let collected = backup.stored_bytes()? as f64;
    Ok(Grown { stored: (stored - before) / changed as f64, collected: (collected - before) / changed as f64 })
}
