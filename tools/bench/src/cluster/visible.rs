//! How long it takes until another machine can read a small file.

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::machines::Cluster;
use super::{span, text::text};
use crate::lab::Lab;
use crate::systems::System;
use crate::table::{Figure, Limit, median_of};

const FILES: usize = 200;
const LEN: usize = 500;
/// Between two looks.
const LOOK: Duration = Duration::from_micros(300);
const PATIENCE: Duration = Duration::from_secs(30);

pub fn small_files(lab: &Lab) -> Result<Vec<Figure>> {
    let cluster = Cluster::start(lab, "visible", &[None, None])?;
    let [here, there] = [&cluster.nodes[0], &cluster.nodes[1]].map(|node| node.dir().join("visible"));
    fs::create_dir(&here)?;
    let count = lab.bench.scale.count(FILES);
    let mut rng = fastrand::Rng::with_seed(7);
    let mut rounds: Vec<Vec<f64>> = Vec::new();
    for round in 0..lab.repeat {
        cluster.settle()?;
        std::thread::sleep(lab.rest);
        let mut millis = Vec::new();
        for n in 0..count {
            // So that no timer of the daemons goes with the files.
            std::thread::sleep(Duration::from_micros(rng.u64(..20_000)));
            let name = format!("{round}-{n}");
            let bytes = text((round * count + n) as u64, LEN);
            let mut file = File::create_new(here.join(&name))?;
            file.write_all(&bytes)?;
            drop(file);
            let closed = Instant::now();
            while fs::read(there.join(&name)).ok().is_none_or(|read| read != bytes) {
                ensure!(closed.elapsed() < PATIENCE, "{name} cannot be read after {} s", PATIENCE.as_secs());
                std::thread::sleep(LOOK);
            }
            millis.push(closed.elapsed().as_secs_f64() * 1e3);
        }
        eprintln!("cluster-visible: round {} of {}: {:.1} ms", round + 1, lab.repeat, median_of(millis.clone()));
        rounds.push(millis);
    }
    let medians: Vec<f64> = rounds.iter().map(|millis| median_of(millis.clone())).collect();
    let mut all = rounds.concat();
    all.sort_by(f64::total_cmp);
    let most = all.last().copied().unwrap_or(f64::NAN);
    let how = format!(
        "{} files of {LEN} bytes, from the return of close to the first full read, looked for every 0.3 ms; {}",
        all.len(),
        cluster.network.describe()
    );
    let figure = |what: &str, value, limit, detail| Figure::new(what, value, "ms", Limit::AtMost(limit), detail);
    let what = "a small file can be read on another machine, p50";
    let p50 = figure(what, percentile(&all, 50), 15.0, format!("{how}; p50 of each round {} ms", span(&medians, 1)));
    let p99 = figure("the same, p99", percentile(&all, 99), 60.0, format!("the longest {most:.1} ms"));
    Ok(vec![p50, p99])
}

/// The least value that so many of a hundred do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!([50, 99, 100].map(|percent| percentile(&values, percent)), [100.0, 198.0, 200.0]);
        assert_eq!(percentile(&[3.0], 50), 3.0);
    }
}
