//! How fast a large file comes to the disks of others, beside a program that does nothing else.

use std::fs::{self, File};
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::machines::Cluster;
use super::span;
use crate::lab::Lab;
use crate::network::{Network, Seat};
use crate::rows::{noise, write_incompressible};
use crate::systems::{System, succeed};
use crate::table::{Figure, Limit, median_of};

const LARGE_MIB: usize = 1024;
const MIB: usize = 1 << 20;
const DIR: &str = "durable";
const WHAT: &str = "1 GiB until two other machines have it on disk: rate against rsync to both";

pub fn against_rsync(lab: &Lab) -> Result<Vec<Figure>> {
    let cluster = Cluster::start(lab, "bulk", &[None, None, None])?;
    cluster.make_durable_dir(DIR)?;
    let bytes = lab.bench.scale.bytes(LARGE_MIB);
    let rsync = Rsync::start(lab, &cluster.network);
    let (mut phifs_seconds, mut written_seconds, mut rsync_seconds) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..lab.repeat {
        for turn in 0..2 {
            let seed = (round as u64 + 1) << 32;
            cluster.settle()?;
            if (round + turn) % 2 == 1 {
                let Ok(rsync) = &rsync else { continue };
                let took = rsync.copy(lab, bytes, seed)?;
                eprintln!("cluster-bulk: rsync {took:.3} s");
                rsync_seconds.push(took);
            } else {
                std::thread::sleep(lab.rest);
                let (written, took) = replicate(&cluster, bytes, seed)?;
                eprintln!("cluster-bulk: phifs {took:.3} s after {written:.3} s of writing");
                written_seconds.push(written);
                phifs_seconds.push(took);
            }
        }
    }
    let shown = |values: &[f64]| format!("{:.2} s ({})", median_of(values.to_vec()), span(values, 2));
    let phifs = format!(
        "phifs {} from the last write to the return of fsync with durability = all, after {} of writing",
        shown(&phifs_seconds),
        shown(&written_seconds)
    );
    let network = cluster.network.describe();
    match rsync {
        Err(why) => Ok(vec![Figure::unlimited(
            "1 GiB until two other machines have it on disk",
            median_of(phifs_seconds),
            "s",
            format!("{phifs}; not compared: {why:#}; {network}"),
        )]),
        Ok(rsync) => {
            let ratio = median_of(rsync_seconds.clone()) / median_of(phifs_seconds);
            let how = if rsync.syncs { "--fsync" } else { "synced afterwards" };
            let detail = format!(
                "{phifs}; rsync {}, both at once from the host's cache, daemons over TCP, --whole-file, {how}; {network}",
                shown(&rsync_seconds)
            );
            Ok(vec![Figure::new(WHAT, ratio, "", Limit::AtLeast(0.6), detail).goal(Limit::AtLeast(1.0))])
        }
    }
}

/// How many seconds the writing took, and how many more it took until all machines said that they have it.
fn replicate(cluster: &Cluster, bytes: usize, seed: u64) -> Result<(f64, f64)> {
    let path = cluster.first().dir().join(DIR).join("large");
    let start = Instant::now();
    let mut file = File::create_new(&path)?;
    for at in 0..bytes / MIB {
        file.write_all(&noise(seed + at as u64, MIB))?;
    }
    let written = start.elapsed();
    file.sync_all().context("the other machines do not say that they have it")?;
    let durable = start.elapsed();
    drop(file);
    cluster.settle()?;
    cluster.ensure_everywhere(&path)?;
    ensure_same(&cluster.nodes[1].dir().join(DIR).join("large"), bytes, seed)?;
    fs::remove_file(&path)?;
    cluster.forget_removed()?;
    Ok((written.as_secs_f64(), (durable - written).as_secs_f64()))
}

/// A look at three places: that all of it is there is what the machines have signed.
fn ensure_same(path: &Path, bytes: usize, seed: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = File::open(path)?;
    ensure!(file.metadata()?.len() == bytes as u64, "{} has another length", path.display());
    let count = bytes / MIB;
    for at in [0, count / 2, count - 1] {
        let mut read = vec![0; MIB];
        file.read_exact_at(&mut read, (at * MIB) as u64)?;
        ensure!(read == noise(seed + at as u64, MIB), "{} has other bytes at {at} MiB", path.display());
    }
    Ok(())
}

/// Daemons of rsync on the machines of the peers, each with a directory.
struct Rsync {
    source: Seat,
    targets: Vec<Target>,
    /// Whether it has a flag for that.
    syncs: bool,
}

struct Target {
    url: String,
    file: PathBuf,
    daemon: Child,
}

impl Rsync {
    fn start(lab: &Lab, network: &Network) -> Result<Rsync> {
        let help = succeed(Command::new("rsync").arg("--help")).context("rsync is not installed")?;
        let syncs = String::from_utf8_lossy(&help).contains("--fsync");
        let (source, others) = network.seats.split_first().context("there are machines")?;
        let targets = others.iter().enumerate().map(|(n, seat)| Target::start(lab, seat, n));
        Ok(Rsync { source: source.clone(), targets: targets.collect::<Result<_>>()?, syncs })
    }

    /// How long it takes to bring such a file to all targets.
    fn copy(&self, lab: &Lab, bytes: usize, seed: u64) -> Result<f64> {
        let source = lab.bench.scratch.join("large");
        write_incompressible(&source, bytes, seed)?;
        lab.disk.sync()?;
        std::thread::sleep(lab.rest);
        let start = Instant::now();
        let copies = self.targets.iter().map(|target| {
            let mut command = self.source.command("rsync");
            command.arg("--whole-file").args(self.syncs.then_some("--fsync")).arg(&source).arg(&target.url);
            command.stdin(Stdio::null()).spawn().context("cannot start rsync")
        });
        for mut copy in copies.collect::<Result<Vec<Child>>>()? {
            let status = copy.wait()?;
            ensure!(status.success(), "rsync: {status}");
        }
        if !self.syncs {
            self.targets.iter().try_for_each(|target| File::open(&target.file)?.sync_all())?;
        }
        let took = start.elapsed().as_secs_f64();
        for target in &self.targets {
            ensure_same(&target.file, bytes, seed)?;
            fs::remove_file(&target.file)?;
        }
        fs::remove_file(&source)?;
        lab.disk.sync()?;
        Ok(took)
    }
}

impl Target {
    fn start(lab: &Lab, seat: &Seat, n: usize) -> Result<Target> {
        let home = lab.home.join(format!("rsync-{n}"));
        fs::create_dir_all(home.join("target"))?;
        let config = home.join("rsyncd.conf");
        let target = home.join("target");
        let text = format!(
            "use chroot = no\nuid = 0\ngid = 0\npid file = {0}/pid\nlog file = {0}/log\n[target]\npath = {1}\n\
             read only = no\n",
            home.display(),
            target.display()
        );
        fs::write(&config, text)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let mut command = seat.command("rsync");
        command.args(["--daemon", "--no-detach"]).arg(format!("--config={}", config.display()));
        command.arg(format!("--address={}", seat.address)).arg(format!("--port={port}")).stdin(Stdio::null());
        let daemon = command.spawn().context("cannot start the daemon of rsync")?;
        // It writes its process id once it listens.
        let start = Instant::now();
        while !home.join("pid").exists() {
            ensure!(start.elapsed() < Duration::from_secs(10), "the daemon of rsync does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        let url = format!("rsync://{}:{port}/target/", seat.address);
        Ok(Target { url, file: target.join("large"), daemon })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
