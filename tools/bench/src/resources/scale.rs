//! Whether operations cost more in a volume with many files.

use std::fs;
use std::time::Instant;

use anyhow::Result;

use super::Lab;
use crate::machine;
use crate::population::Population;
use crate::systems::{Phifs, System};
use crate::table::{Figure, Limit, median_of};

const FEW: usize = 20_000;
const MANY: usize = 2_000_000;
/// Operations of one measurement, of each kind.
const OPERATIONS: usize = 5_000;

/// Speeds of two volumes in turns, each with as many directories as the other: what the kernel asks for by itself is
/// the same in both.
pub fn speed_by_count(lab: &Lab) -> Result<Vec<Figure>> {
    let scale = lab.bench.scale;
    let volumes = [("few", scale.count(FEW)), ("many", scale.count(MANY))];
    let volumes = volumes.map(|(name, count)| -> Result<(Phifs, Population)> {
        let phifs = lab.phifs(name)?;
        let files = Population::new(phifs.dir(), count);
        files.make(0..count, 64..65)?;
        phifs.settle()?;
        Ok((phifs, files))
    });
    let [few, many] = volumes;
    let volumes = [few?, many?];

    let operations = scale.count(OPERATIONS).min(volumes[0].1.count / 4);
    // Seconds of each kind of operation, for either volume.
    let mut seconds = [const { [const { Vec::new() }; KINDS.len()] }; 2];
    for repetition in 0..lab.repeat {
        for turn in 0..volumes.len() {
            let at = (repetition + turn) % volumes.len();
            let (phifs, files) = &volumes[at];
            for (kind, seconds) in KINDS.iter().zip(&mut seconds[at]) {
                phifs.settle()?;
                std::thread::sleep(lab.rest / 5);
                // Names that the kernel knows cost nothing in either.
                machine::drop_caches_if_root()?;
                seconds.push((kind.run)(files, repetition, operations)?);
            }
            eprintln!("scale: round {} of {} at {} files", repetition + 1, lab.repeat, files.count);
        }
    }
    let [few, many] = seconds;
    let figures = KINDS.iter().zip(few.into_iter().zip(many)).map(|(kind, (few, many))| {
        let rate = |seconds: Vec<f64>| operations as f64 / median_of(seconds);
        let (few, many) = (rate(few), rate(many));
        let [at_few, at_many] = [&volumes[0].1, &volumes[1].1].map(|files| files.count);
        let detail = format!("{many:.0} per second at {at_many} files, {few:.0} at {at_few}");
        let what = format!("{} at 2,000,000 files against 20,000", kind.name);
        Figure::new(what, many / few, "", Limit::AtLeast(0.8), detail)
    });
    Ok(figures.collect())
}

struct Kind {
    name: &'static str,
    run: fn(&Population, usize, usize) -> Result<f64>,
}

const KINDS: [Kind; 3] =
    [Kind { name: "create", run: create }, Kind { name: "stat", run: stat }, Kind { name: "rename", run: rename }];

/// New files behind those that are there; they stay, a thousandth of the larger volume.
fn create(files: &Population, round: usize, operations: usize) -> Result<f64> {
    let first = files.count + round * operations;
    let start = Instant::now();
    for n in first..first + operations {
        fs::write(files.path(n), [0; 64])?;
    }
    Ok(start.elapsed().as_secs_f64())
}

fn stat(files: &Population, round: usize, operations: usize) -> Result<f64> {
    let mut rng = fastrand::Rng::with_seed(round as u64);
    let start = Instant::now();
    for _ in 0..operations {
        fs::symlink_metadata(files.path(rng.usize(..files.count)))?;
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Some of them, spread over all, there and (not timed) back again.
fn rename(files: &Population, round: usize, operations: usize) -> Result<f64> {
    let stride = files.count / operations;
    let paths = || (0..operations).map(|n| files.path((n * stride + round) % files.count));
    let start = Instant::now();
    for path in paths() {
        fs::rename(&path, path.with_extension("renamed"))?;
    }
    let seconds = start.elapsed().as_secs_f64();
    for path in paths() {
        fs::rename(path.with_extension("renamed"), &path)?;
    }
    Ok(seconds)
}
