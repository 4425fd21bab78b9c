//! How fast two volumes are at operations on names, in turns.

use std::fs;
use std::time::Instant;

use anyhow::Result;

use crate::lab::Lab;
use crate::machine;
use crate::population::Population;
use crate::systems::{Phifs, System};
use crate::table::median_of;

pub struct Kind {
    pub name: &'static str,
    run: fn(&Population, usize, usize) -> Result<f64>,
}

pub const CREATE: Kind = Kind { name: "create", run: create };
pub const STAT: Kind = Kind { name: "stat", run: stat };
pub const RENAME: Kind = Kind { name: "rename", run: rename };

/// New files behind those that are there; they stay, few beside them.
/// Operations per second of each kind in either volume. Both have as many directories: what the kernel asks for by
/// itself is the same in both.
pub fn in_turns(
    lab: &Lab,
    volumes: [(&Phifs, &Population); 2],
    kinds: &[Kind],
    operations: usize,
) -> Result<Vec<[f64; 2]>> {
    let mut seconds: Vec<[Vec<f64>; 2]> = kinds.iter().map(|_| Default::default()).collect();
    for repetition in 0..lab.repeat {
        for turn in 0..volumes.len() {
            let at = (repetition + turn) % volumes.len();
            let (phifs, files) = volumes[at];
            for (kind, seconds) in kinds.iter().zip(&mut seconds) {
                phifs.settle()?;
                std::thread::sleep(lab.rest / 5);
                // Names that the kernel knows cost nothing in either.
                machine::drop_caches_if_root()?;
                seconds[at].push((kind.run)(files, repetition, operations)?);
            }
            eprintln!("speeds: round {} of {} in volume {}", repetition + 1, lab.repeat, at + 1);
        }
    }
    let rates = seconds.into_iter().map(|both| both.map(|seconds| operations as f64 / median_of(seconds)));
    Ok(rates.collect())
}

/// New files behind those that are there; they stay, few beside them.
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
