//! How many bytes are sent for what is new.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};

use super::machines::Cluster;
use super::{span, text::text};
use crate::lab::{Lab, MIB};
use crate::network::Traffic;
use crate::rows::{noise, write_incompressible};
use crate::systems::System;
use crate::table::{Figure, Limit, median_of};

const FILES: usize = 10_000;
const FILES_EACH_DIRECTORY: usize = 100;
const LARGE_MIB: usize = 1024;
const CHANGED_MIB: usize = 10;
/// What is granted for each byte that is new, with each receiver, and for each operation.
const EACH_BYTE: f64 = 1.2;
const EACH_OPERATION: f64 = 300.0;

/// What was sent for something.
struct Sent {
    /// By each of the machines.
    traffic: Vec<Traffic>,
    operations: u64,
    /// That a receiver lacks, compressed.
    new_bytes: usize,
}

pub fn bytes_sent(lab: &Lab) -> Result<Vec<Figure>> {
    let cluster = Cluster::start(lab, "wire", &[None, None, None])?;
    cluster.network.send_single_packets()?;
    let files = rounds(lab, &cluster, |round| new_files(lab, &cluster, round))?;
    let large = cluster.first().dir().join("large");
    write_incompressible(&large, lab.bench.scale.bytes(LARGE_MIB), 1 << 40)?;
    let changes = rounds(lab, &cluster, |round| change(lab, &cluster, round))?;
    let count = lab.bench.scale.count(FILES);
    Ok(vec![
        figure(
            "sent for 10,000 small new files to two receivers",
            &files,
            &cluster,
            &format!("{count} texts of 1 KiB; compressed as by zstd -1, each by itself"),
        ),
        figure("sent for 10 MiB changed in 1 GiB to two receivers", &changes, &cluster, "one incompressible range"),
    ])
}

/// `work` tells how many bytes are new.
fn rounds(lab: &Lab, cluster: &Cluster, work: impl Fn(usize) -> Result<usize>) -> Result<Vec<Sent>> {
    let round = |round| {
        cluster.settle()?;
        std::thread::sleep(lab.rest / 5);
        let (before, operations) = (cluster.network.traffic()?, cluster.first().operations()?);
        let new_bytes = work(round)?;
        cluster.settle()?;
        let (after, now) = (cluster.network.traffic()?, cluster.first().operations()?);
        let traffic: Vec<Traffic> = after.into_iter().zip(before).map(|(after, before)| after.since(before)).collect();
        let (all, operations) = (traffic.iter().copied().sum::<Traffic>(), now - operations);
        eprintln!("cluster-wire: {} bytes for {new_bytes} new ones and {operations} operations", all.bytes);
        Ok(Sent { traffic, operations, new_bytes })
    };
    (0..lab.repeat).map(round).collect()
}

fn new_files(lab: &Lab, cluster: &Cluster, round: usize) -> Result<usize> {
    let count = lab.bench.scale.count(FILES);
    let dir = format!("new{round}");
    fs::create_dir(cluster.first().dir().join(&dir))?;
    let (mut new_bytes, mut last) = (0, None);
    for n in 0..count {
        let below = format!("{dir}/d{}", n / FILES_EACH_DIRECTORY);
        if n.is_multiple_of(FILES_EACH_DIRECTORY) {
            fs::create_dir(cluster.first().dir().join(&below))?;
        }
        let bytes = text((round * count + n) as u64, 900 + n * 7919 % 250);
        let path = format!("{below}/f{n}");
        File::create_new(cluster.first().dir().join(&path))?.write_all(&bytes)?;
        new_bytes += zstd::bulk::compress(&bytes, 1)?.len();
        last = Some((path, bytes));
    }
    cluster.settle()?;
    if let Some((path, bytes)) = last {
        for node in &cluster.nodes {
            ensure!(fs::read(node.dir().join(&path))? == bytes, "{path} is not what was written");
        }
    }
    Ok(new_bytes)
}

/// Another range each time, that begins anywhere.
fn change(lab: &Lab, cluster: &Cluster, round: usize) -> Result<usize> {
    let bytes = noise(round as u64 + (1 << 41), lab.bench.scale.bytes(CHANGED_MIB));
    let large = lab.bench.scale.bytes(LARGE_MIB);
    let at = fastrand::Rng::with_seed(round as u64).usize(..large - bytes.len()) as u64;
    File::options().write(true).open(cluster.first().dir().join("large"))?.write_all_at(&bytes, at)?;
    cluster.settle()?;
    cluster.ensure_everywhere(&cluster.first().dir().join("large"))?;
    for node in &cluster.nodes {
        let mut read = vec![0; bytes.len()];
        File::open(node.dir().join("large"))?.read_exact_at(&mut read, at)?;
        ensure!(read == bytes, "the range is not what was written");
    }
    Ok(bytes.len())
}

fn figure(what: &str, rounds: &[Sent], cluster: &Cluster, how: &str) -> Figure {
    let receivers = cluster.nodes.len() - 1;
    let median = |of: &dyn Fn(&Sent) -> f64| median_of(rounds.iter().map(of).collect());
    let (new, operations) = (median(&|sent| sent.new_bytes as f64), median(&|sent| sent.operations as f64));
    let limit = (EACH_BYTE * new * receivers as f64 + EACH_OPERATION * operations) / MIB;
    let sum = |sent: &Sent| sent.traffic.iter().copied().sum::<Traffic>();
    let sent: Vec<f64> = rounds.iter().map(|sent| sum(sent).bytes as f64 / MIB).collect();
    let of_first = median(&|sent| sent.traffic[0].bytes as f64) / MIB;
    let (packets, dropped) = (median(&|sent| sum(sent).packets as f64), median(&|sent| sum(sent).dropped as f64));
    let detail = format!(
        "{} MiB, {of_first:.2} of it by the one who wrote; {packets} packets, {dropped} of them dropped by busy receivers; \
         {:.2} MiB new, {operations} operations; {how}; all packets with \
         headers, until all is on all disks; {}",
        span(&sent, 2),
        new / MIB,
        cluster.network.describe()
    );
    Figure::new(what, median_of(sent), "MiB", Limit::AtMost((limit * 100.0).round() / 100.0), detail)
}
