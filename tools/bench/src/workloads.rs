//! The first table: the rows on each system in turns, again and again, with a rest before each run.
//!
//! A row ends when its last call has returned. What its system still does in the background is waited for and printed
//! apart, and never falls into the next row.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::machine::{self, Disk};
use crate::rows::{Bench, Row};
use crate::systems::{Requests, System};

/// One run of a row.
#[derive(Clone, Default, Serialize)]
pub struct Sample {
    pub seconds: f64,
    pub settle_seconds: f64,
    /// Flushes of the disk's cache, by whomever.
    pub flushes: Option<u64>,
    pub requests: Requests,
    /// How often the host's cache holds the bytes once all is settled, where the row asks for that.
    pub copies: Option<f64>,
}

/// The samples of one system, in the order of the runs.
#[derive(Serialize)]
pub struct Side {
    pub system: &'static str,
    pub samples: Vec<Sample>,
}

pub struct Workloads<'a> {
    pub bench: &'a Bench,
    pub disk: &'a Disk,
    /// The reference comes first.
    pub systems: &'a [Box<dyn System>],
    pub repeat: usize,
    pub rest: Duration,
}

impl Workloads<'_> {
    pub fn measure(&self, row: &Row) -> Result<Vec<Side>> {
        let mut sides: Vec<Side> =
            self.systems.iter().map(|system| Side { system: system.name(), samples: Vec::new() }).collect();
        for repetition in 0..self.repeat {
            // Another one goes first each time.
            for turn in 0..self.systems.len() {
                let at = (repetition + turn) % self.systems.len();
                let sample = self.run(row, &*self.systems[at]);
                let sample = sample.with_context(|| format!("{} on {}", row.name, sides[at].system))?;
                eprintln!(
                    "{:<18} {:<8} {:9.3} s, settled {:.2} s later",
                    row.name, sides[at].system, sample.seconds, sample.settle_seconds
                );
                sides[at].samples.push(sample);
            }
        }
        Ok(sides)
    }

    fn run(&self, row: &Row, system: &dyn System) -> Result<Sample> {
        let dir = system.dir().join(row.name);
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        (row.prepare)(&dir, self.bench)?;
        system.settle()?;
        std::thread::sleep(self.rest);
        if row.cold {
            machine::drop_caches()?;
        }
        let requests = system.requests()?;
        let flushes = self.disk.flushes();
        let start = Instant::now();
        (row.run)(&dir, self.bench)?;
        let mut seconds = start.elapsed().as_secs_f64();
        let flushes = self.disk.flushes().zip(flushes).map(|(after, before)| after - before);
        let requests = since(&requests, system.requests()?);
        let (settle, copies) = if row.settled { system.pack(files_bytes(&dir)?)? } else { (system.settle()?, None) };
        let settle_seconds = settle.as_secs_f64();
        if row.settled {
            seconds += settle_seconds;
        }
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        system.forget_removed()?;
        system.settle()?;
        Ok(Sample { seconds, settle_seconds, flushes, requests, copies })
    }
}

fn files_bytes(dir: &Path) -> Result<u64> {
    let sizes = fs::read_dir(dir)?.map(|entry| Ok(entry?.metadata()?.len()));
    sizes.sum()
}

fn since(before: &Requests, mut after: Requests) -> Requests {
    for (kind, count) in &mut after {
        *count -= before.get(kind).copied().unwrap_or(0);
    }
    after.retain(|_, count| *count > 0);
    after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_since_are_only_those_that_came() {
        let counts = |pairs: &[(&str, u64)]| -> Requests {
            pairs.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect()
        };
        let after = counts(&[("lookup", 7), ("open", 2), ("create", 3)]);
        let came = since(&counts(&[("lookup", 5), ("open", 2)]), after);
        assert_eq!(came, counts(&[("lookup", 2), ("create", 3)]));
    }
}
