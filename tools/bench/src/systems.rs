//! The filesystems that are compared, each in a directory of its own on the same disk.

mod juicefs;
mod phifs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::machine::Disk;

pub use juicefs::JuiceFs;
pub use phifs::Phifs;

/// FUSE requests by kind.
pub type Requests = BTreeMap<String, u64>;

pub trait System {
    fn name(&self) -> &'static str;

    /// Where programs see it.
    fn dir(&self) -> &Path;

    /// Waits until all work in the background is done, and tells how long that took.
    fn settle(&self) -> Result<Duration>;

    /// Waits as `settle` does, and tells when files of so many bytes were stored in their last form, with one copy in
    /// the host's cache; and how many copies there are in the end, where that can be told.
    fn pack(&self, _bytes: u64) -> Result<(Duration, Option<f64>)> {
        Ok((self.settle()?, None))
    }

    /// Gives up what removed files have left, so that the next row does not find its bytes there already.
    fn forget_removed(&self) -> Result<()> {
        Ok(())
    }

    /// Requests that the kernel has sent so far; empty where there are none or nobody counts.
    fn requests(&self) -> Result<Requests> {
        Ok(Requests::new())
    }
}

/// The host's own filesystem: what the others are measured against.
pub struct Host {
    dir: PathBuf,
    disk: Rc<Disk>,
}

impl Host {
    pub fn new(dir: PathBuf, disk: Rc<Disk>) -> Result<Host> {
        std::fs::create_dir(&dir)?;
        Ok(Host { dir, disk })
    }
}

impl System for Host {
    fn name(&self) -> &'static str {
        "host"
    }

    fn dir(&self) -> &Path {
        &self.dir
    }

    fn settle(&self) -> Result<Duration> {
        self.disk.sync()
    }

    /// Nothing is left to do once fsync has returned.
    fn pack(&self, _: u64) -> Result<(Duration, Option<f64>)> {
        Ok((Duration::ZERO, None))
    }
}

/// Runs a program to its end and returns what it printed.
pub fn succeed(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    let said = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success(), "{command:?} failed with {}: {}", output.status, said());
    Ok(output.stdout)
}

/// The same, and how long it took.
pub fn timed(command: &mut Command) -> Result<(Duration, Vec<u8>)> {
    let start = Instant::now();
    let said = succeed(command)?;
    Ok((start.elapsed(), said))
}
