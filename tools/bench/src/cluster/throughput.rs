//! Whether programs are as fast where others follow what they do.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result};

use super::machines::Cluster;
use super::{span, text::text};
use crate::lab::Lab;
use crate::machine;
use crate::rows::{noise, write_incompressible};
use crate::systems::{Phifs, System, succeed};
use crate::table::{Figure, Limit, median_of};

const TREE_FILES: usize = 2_000;
const TREE_FILES_EACH_DIRECTORY: usize = 50;
const LARGE_MIB: usize = 512;
const SYNCS: usize = 300;
const PAGE: usize = 4096;

/// The programs keep to the first processor, the peers to the second.
const HERE: usize = 0;
const THERE: usize = 1;

struct Kind {
    what: &'static str,
    run: fn(&Lab, dir: &Path, seed: u64) -> Result<f64>,
}

const KINDS: [Kind; 3] = [
    Kind { what: "untar of 2,000 files", run: untar },
    Kind { what: "512 MiB written in 1 MiB writes, fsync", run: write },
    Kind { what: "append 4 KiB + fdatasync", run: append },
];

/// Two volumes, with one that nobody else has as the reference.
struct Volumes {
    alone: Phifs,
    cluster: Cluster,
}

pub fn beside_peers(lab: &Lab) -> Result<Vec<Figure>> {
    let alone = {
        let _pinned = machine::pin(HERE)?;
        Phifs::start(lab.program, &lab.home.join("alone"), Rc::clone(&lab.disk))?
    };
    let cluster = Cluster::start(lab, "speed", &[Some(HERE), Some(THERE), Some(THERE)])?;
    let volumes = Volumes { alone, cluster };
    // Of each kind: alone, with peers.
    let mut seconds: Vec<[Vec<f64>; 2]> = KINDS.iter().map(|_| Default::default()).collect();
    let mut seed = 0;
    for round in 0..lab.repeat {
        for (kind, seconds) in KINDS.iter().zip(&mut seconds) {
            for turn in 0..2 {
                let side = (round + turn) % 2;
                seed += 1;
                let took = volumes.run(lab, kind, side == 1, seed).context(kind.what)?;
                eprintln!("cluster-speed: {:<40} {:<10} {took:.3} s", kind.what, ["alone", "with peers"][side]);
                seconds[side].push(took);
            }
        }
    }
    let how = volumes.cluster.network.describe();
    let figures = KINDS.iter().zip(seconds).map(|(kind, [alone, peers])| {
        let ratio = median_of(alone.clone()) / median_of(peers.clone());
        let shown = |values: &[f64]| format!("{:.3} s ({})", median_of(values.to_vec()), span(values, 3));
        let detail = format!("{} alone, {} with them; {how}", shown(&alone), shown(&peers));
        let what = format!("speed with two peers against alone: {}", kind.what);
        Figure::new(what, ratio, "", Limit::AtLeast(0.8), detail)
    });
    Ok(figures.collect())
}

impl Volumes {
    fn run(&self, lab: &Lab, kind: &Kind, with_peers: bool, seed: u64) -> Result<f64> {
        let phifs = if with_peers { self.cluster.first() } else { &self.alone };
        let settle = || if with_peers { self.cluster.settle() } else { self.alone.settle().map(drop) };
        let dir = phifs.dir().join(format!("work{seed}"));
        fs::create_dir(&dir)?;
        settle()?;
        std::thread::sleep(lab.rest);
        let took = (kind.run)(lab, &dir, seed)?;
        settle()?;
        fs::remove_dir_all(&dir)?;
        match with_peers {
            true => self.cluster.forget_removed()?,
            false => {
                self.alone.settle()?;
                self.alone.gc()?;
                self.alone.settle()?;
            }
        }
        Ok(took)
    }
}

/// The time it takes on the processor of the programs.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let _pinned = machine::pin(HERE)?;
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

fn untar(lab: &Lab, dir: &Path, seed: u64) -> Result<f64> {
    let archive = archive(lab, seed)?;
    // Its own disk time is none of the row's business.
    fs::copy(&archive, "/dev/null")?;
    lab.disk.sync()?;
    let took = timed(|| succeed(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(dir)).map(drop))?;
    fs::remove_file(&archive)?;
    Ok(took)
}

/// A tree of texts of 1 to 15 KiB, none of which was in an archive before.
fn archive(lab: &Lab, seed: u64) -> Result<PathBuf> {
    let (tree, archive) = (lab.bench.scratch.join("texts"), lab.bench.scratch.join("texts.tar"));
    let mut rng = fastrand::Rng::with_seed(seed);
    for n in 0..lab.bench.scale.count(TREE_FILES) {
        let dir = tree.join(format!("d{}", n / TREE_FILES_EACH_DIRECTORY));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(format!("f{n}")), text(rng.u64(..), rng.usize(1 << 10..15 << 10)))?;
    }
    succeed(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&tree).arg("."))?;
    fs::remove_dir_all(&tree)?;
    Ok(archive)
}

fn write(lab: &Lab, dir: &Path, seed: u64) -> Result<f64> {
    timed(|| write_incompressible(&dir.join("large"), lab.bench.scale.bytes(LARGE_MIB), seed << 32))
}

fn append(lab: &Lab, dir: &Path, seed: u64) -> Result<f64> {
    let record = noise(seed, PAGE);
    timed(|| {
        let mut file = File::options().append(true).create_new(true).open(dir.join("log"))?;
        for _ in 0..lab.bench.scale.count(SYNCS) {
            file.write_all(&record)?;
            file.sync_data()?;
        }
        Ok(())
    })
}
