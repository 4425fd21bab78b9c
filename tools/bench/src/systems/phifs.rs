//! A phifs of the bench's own: a daemon with a store and a mountpoint in one directory.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{Requests, System, succeed};
use crate::machine::{self, Disk};

pub struct Phifs {
    program: PathBuf,
    store: PathBuf,
    mount: PathBuf,
    disk: Rc<Disk>,
}

/// The part of `phifs status --json` that is used here.
#[derive(Deserialize)]
struct Status {
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
    unpublished_files: u64,
    #[serde(default)]
    checkpoint_pending: bool,
}

impl Phifs {
    /// Starts one with a new store.
    pub fn start(program: &Path, home: &Path, disk: Rc<Disk>) -> Result<Phifs> {
        let (store, mount) = (home.join("store"), home.join("mnt"));
        std::fs::create_dir_all(&mount)?;
        let phifs = Phifs { program: program.to_owned(), store, mount, disk };
        phifs.up()?;
        Ok(phifs)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--store").arg(&self.store).args(arguments);
        command
    }

    pub fn up(&self) -> Result<()> {
        succeed(self.command(&["up", "--mount"]).arg(&self.mount)).map(drop)
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

    pub fn data_path(&self) -> Result<String> {
        Ok(self.status()?.features.data_path)
    }

    pub fn store(&self) -> &Path {
        &self.store
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
        let start = Instant::now();
        self.disk.sync()?;
        Ok(quiet + start.elapsed())
    }

    fn cached_bytes(&self) -> Option<u64> {
        machine::cached_bytes(&self.store)
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
