//! A phifs of the bench's own: a daemon with a store and a mountpoint in one directory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal};
use serde::Deserialize;

use super::{Requests, System, succeed, timed};
use crate::machine::{self, Disk};
use crate::network::Seat;
use crate::table::COPIES_MAX;

pub struct Phifs {
    program: PathBuf,
    store: PathBuf,
    mount: PathBuf,
    disk: Rc<Disk>,
    /// Where it runs and can be reached by others, if it can.
    seat: Option<Seat>,
}

/// The part of `phifs status --json` that is used here.
#[derive(Deserialize)]
struct Status {
    version: String,
    pid: u32,
    features: Features,
    #[serde(default)]
    requests: Requests,
    volume: Volume,
}

#[derive(Deserialize)]
struct Features {
    data_path: String,
}

#[derive(Deserialize)]
struct Volume {
    operations: u64,
    unpublished_files: u64,
    journal_bytes: u64,
    #[serde(default)]
    checkpoint_pending: bool,
}

/// The part of `phifs members --json` that is used here.
#[derive(Deserialize)]
struct Member {
    this_node: bool,
    connected: bool,
}

/// The part of `phifs df --json` that is used here.
#[derive(Deserialize)]
struct Space {
    parts: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    what: String,
    bytes: u64,
}

impl Phifs {
    /// Starts one with a new store.
    pub fn start(program: &Path, home: &Path, disk: Rc<Disk>) -> Result<Phifs> {
        let phifs = Phifs::new(program, home, disk, None)?;
        phifs.up()?;
        Ok(phifs)
    }

    /// Starts one that others can reach: the first of a volume, or with an invitation another one.
    pub fn start_on(
        program: &Path,
        home: &Path,
        disk: Rc<Disk>,
        seat: &Seat,
        invitation: Option<&str>,
    ) -> Result<Phifs> {
        let phifs = Phifs::new(program, home, disk, Some(seat.clone()))?;
        match invitation {
            None => phifs.serve(&["up"])?,
            Some(invitation) => phifs.serve(&["join", invitation])?,
        }
        Ok(phifs)
    }

    fn new(program: &Path, home: &Path, disk: Rc<Disk>, seat: Option<Seat>) -> Result<Phifs> {
        let (store, mount) = (home.join("store"), home.join("mnt"));
        std::fs::create_dir_all(&mount)?;
        Ok(Phifs { program: program.to_owned(), store, mount, disk, seat })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--store").arg(&self.store).args(arguments);
        command
    }

    pub fn up(&self) -> Result<()> {
        self.serve(&["up"])
    }

    /// Starts the daemon.
    fn serve(&self, how: &[&str]) -> Result<()> {
        let mut command = match &self.seat {
            None => Command::new(&self.program),
            Some(seat) => seat.command(&self.program),
        };
        command.args(how).arg("--store").arg(&self.store).arg("--mount").arg(&self.mount);
        if let Some(seat) = &self.seat {
            command.args(["--listen", &seat.listen()]);
        }
        succeed(&mut command).map(drop)
    }

    /// What admits one more machine.
    pub fn invite(&self) -> Result<String> {
        let invitation = succeed(&mut self.command(&["invite", "--quiet"]))?;
        Ok(String::from_utf8(invitation)?.trim().to_owned())
    }

    /// How many other machines it is connected with.
    pub fn connected(&self) -> Result<usize> {
        let json = succeed(&mut self.command(&["members", "--json"]))?;
        let members: Vec<Member> = serde_json::from_slice(&json).context("cannot understand `phifs members --json`")?;
        Ok(members.iter().filter(|member| !member.this_node && member.connected).count())
    }

    /// Changes a setting of the volume.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        succeed(&mut self.command(&["volume", "set", name, value])).map(drop)
    }

    /// How many operations were made here.
    pub fn operations(&self) -> Result<u64> {
        Ok(self.status()?.volume.operations)
    }

    pub fn down(&self) -> Result<()> {
        succeed(&mut self.command(&["down"])).map(drop)
    }

    pub fn gc(&self) -> Result<()> {
        succeed(&mut self.command(&["gc"])).map(drop)
    }

    fn status(&self) -> Result<Status> {
        let json = succeed(&mut self.command(&["status", "--json"]))?;
        serde_json::from_slice(&json).context("cannot understand `phifs status --json`")
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.status()?.pid)
    }

    /// Its version and data path.
    pub fn describe(&self) -> Result<String> {
        let status = self.status()?;
        Ok(format!("phifs {}, data path {}", status.version, status.features.data_path))
    }

    pub fn store(&self) -> &Path {
        &self.store
    }

    /// What a start after a crash would replay.
    pub fn journal_bytes(&self) -> Result<u64> {
        Ok(self.status()?.volume.journal_bytes)
    }

    /// Ends the daemon as a crash would, and waits until it is gone.
    pub fn kill(&self) -> Result<()> {
        let pid = self.pid()?;
        let process = Pid::from_raw(pid.cast_signed()).context("a process has a positive id")?;
        rustix::process::kill_process(process, Signal::KILL)?;
        while Path::new(&format!("/proc/{pid}")).exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// How long it takes to start the command, whatever it does then.
    pub fn startup(&self) -> Result<Duration> {
        timed(Command::new(&self.program).arg("--version")).map(|(took, _)| took)
    }

    pub fn snapshot(&self, name: &str) -> Result<Duration> {
        timed(&mut self.command(&["snapshot", "create", name])).map(|(took, _)| took)
    }

    /// What changed between two snapshots, as lines.
    pub fn diff(&self, from: &str, to: &str) -> Result<(Duration, String)> {
        let (took, said) = timed(&mut self.command(&["snapshot", "diff", from, to]))?;
        Ok((took, String::from_utf8_lossy(&said).into_owned()))
    }

    /// Where a snapshot can be looked at.
    pub fn browse(&self, name: &str) -> PathBuf {
        self.mount.join(".phi/snapshots").join(name)
    }

    /// Fails early, with the reason, when it is too old for what will be measured.
    pub fn ensure_browses(&self) -> Result<()> {
        self.snapshot("first")?;
        let dir = self.browse("first");
        std::fs::read_dir(&dir).map(drop).with_context(|| {
            format!("{} cannot show snapshots as directories: {}", self.program.display(), dir.display())
        })
    }

    pub fn ensure_exports(&self) -> Result<()> {
        succeed(&mut self.command(&["snapshot", "export", "--help"]))
            .with_context(|| format!("{} has no `snapshot export`", self.program.display()))
            .map(drop)
    }

    /// Everything of a snapshot, or what a holder of `since` lacks.
    pub fn export(&self, name: &str, file: &Path, since: Option<&str>) -> Result<Duration> {
        let mut command = self.command(&["snapshot", "export", name]);
        command.arg(file);
        if let Some(since) = since {
            command.args(["--since", since]);
        }
        timed(&mut command).map(|(took, _)| took)
    }

    /// Space in packs that is in use: contents of files, names and attributes.
    pub fn packed_bytes(&self) -> Result<u64> {
        let json = succeed(&mut self.command(&["df", "--json"]))?;
        let space: Space = serde_json::from_slice(&json).context("cannot understand `phifs df --json`")?;
        let packed = |part: &&Part| ["data", "metadata"].contains(&part.what.as_str());
        let (parts, bytes) = space.parts.iter().filter(packed).fold((0, 0), |(n, sum), part| (n + 1, sum + part.bytes));
        ensure!(parts == 2, "`phifs df --json` names no data or no metadata");
        Ok(bytes)
    }

    fn is_busy(&self) -> Result<bool> {
        let volume = self.status()?.volume;
        Ok(volume.unpublished_files > 0 || volume.checkpoint_pending)
    }
}

impl System for Phifs {
    fn name(&self) -> &'static str {
        "phifs"
    }

    fn dir(&self) -> &Path {
        &self.mount
    }

    /// Everything is published, no checkpoint is due, the daemon does nothing, and the host has written it all.
    fn settle(&self) -> Result<Duration> {
        let quiet = machine::wait_until_quiet(&[self.pid()?], || self.is_busy())?;
        Ok(quiet + self.disk.sync()?)
    }

    fn pack(&self, bytes: u64) -> Result<(Duration, Option<f64>)> {
        let copies = || machine::cached_bytes(&self.store).map(|cached| cached as f64 / bytes as f64);
        let start = Instant::now();
        let mut packed = Duration::ZERO;
        machine::wait_until_quiet(&[self.pid()?], || {
            let busy = self.is_busy()?;
            if busy || copies().is_some_and(|copies| copies > COPIES_MAX) {
                packed = start.elapsed();
            }
            Ok(busy)
        })?;
        Ok((packed, copies()))
    }

    fn forget_removed(&self) -> Result<()> {
        self.gc()
    }

    fn requests(&self) -> Result<Requests> {
        Ok(self.status()?.requests)
    }
}

impl Drop for Phifs {
    fn drop(&mut self) {
        // What is left of it goes with the directory of the bench; `run` looks after mounts that stay.
        let _ = succeed(&mut self.command(&["down", "--force"]));
        let _ = std::fs::remove_dir_all(&self.store);
    }
}
