//! The branches that are mounted beside the volume. Each has a mount and background threads of its own.
//!
//! What always holds: a branch is closed when its mount is gone and its threads have ended, once, by whoever notices it
//! first; others wait for that.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use phifs_fuse::Mount;

use super::{Background, Event, LATE_RELEASES_MAX, Place, mount, mounts_of, spawn, unmount};
use crate::config::Config;
use crate::control::Progress;
use crate::engine::Engine;
use crate::failure::Failure;
use crate::mounts::MountPoint;
use crate::report::{Branch, BranchMount};
use crate::show::Name;

pub struct BranchMounts {
    config: Config,
    /// Of the volume itself.
    engine: Arc<Engine>,
    mounted: Mutex<BTreeMap<String, Arc<Mounted>>>,
    events: Sender<Event>,
}

struct Mounted {
    mount: Mount,
    background: Background,
    /// Held while it is being closed.
    closed: Mutex<bool>,
}

impl BranchMounts {
    pub fn new(config: &Config, engine: Arc<Engine>, events: Sender<Event>) -> Self {
        Self { config: config.clone(), engine, mounted: Mutex::default(), events }
    }

    /// Opens a branch and mounts it, until it is unmounted by whomever.
    pub fn mount(
        self: &Arc<Self>,
        name: &str,
        dir: &Name,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<BranchMount, Failure> {
        self.wait_for_end(name);
        let branch = Arc::new(self.engine.open_branch(name, progress)?);
        let mounted = self.serve(&branch, dir).inspect_err(|_| self.close_engine(name))?;
        self.mounted.lock().insert(name.to_owned(), mounted.clone());
        let (all, watched, of) = (self.clone(), mounted.clone(), name.to_owned());
        let watch = move || {
            watched.mount.wait();
            all.close(&of, &watched);
            // The daemon may be stopping already.
            let _ = all.events.send(Event::BranchUnmounted);
        };
        if let Err(failure) = spawn("branch-watch", watch) {
            // Nobody would notice its end.
            unmount(&mounted.mount, true)?;
            self.close(name, &mounted);
            return Err(failure);
        }
        tracing::info!(branch = name, mount = %dir.quoted(), "serving a branch");
        Ok(BranchMount { branch: name.to_owned(), mounts: names(&mounted.mount) })
    }

    fn serve(&self, branch: &Arc<Engine>, dir: &Name) -> Result<Arc<Mounted>, Failure> {
        let dir = PathBuf::from(OsString::from_vec(dir.bytes()));
        let mount = mount(&self.config, Place { dir: &dir, choice: "for the branch" }, branch)?;
        branch.set_invalidate(mount.invalidator());
        let background = Background::start(branch)
            .inspect_err(|_| mount.unmount(true).unwrap_or_else(|error| tracing::warn!(%error, "a mount stays")))?;
        Ok(Arc::new(Mounted { mount, background, closed: Mutex::new(false) }))
    }

    /// Takes all of them away and closes them. Those that are in use stay, unless by `force`.
    pub fn unmount(&self, force: bool) -> Result<(), Failure> {
        let all: Vec<_> = self.mounted.lock().iter().map(|(name, mounted)| (name.clone(), mounted.clone())).collect();
        for (name, mounted) in all {
            unmount(&mounted.mount, force)?;
            self.close(&name, &mounted);
        }
        Ok(())
    }

    /// Forgets a branch that is not mounted, and all that was done in it.
    pub fn delete(&self, name: &str) -> Result<(), Failure> {
        self.wait_for_end(name);
        self.engine.delete_branch(name)
    }

    /// umount(8) is back before the branch is closed. Whoever comes next waits a moment.
    fn wait_for_end(&self, name: &str) {
        let is_ending = || self.mounted.lock().get(name).is_some_and(|mounted| mounts_of(&mounted.mount).is_empty());
        let until = Instant::now() + LATE_RELEASES_MAX;
        while is_ending() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn close(&self, name: &str, mounted: &Mounted) {
        let mut closed = mounted.closed.lock();
        if *closed {
            return;
        }
        mounted.background.stop();
        self.close_engine(name);
        self.mounted.lock().remove(name);
        *closed = true;
        tracing::info!(branch = name, "a branch is closed");
    }

    fn close_engine(&self, name: &str) {
        if let Err(failure) = self.engine.close_branch(name) {
            tracing::error!(branch = name, "a branch was not closed cleanly, it is recovered the next time: {failure}");
        }
    }

    pub fn is_empty(&self) -> bool {
        self.mounted.lock().is_empty()
    }

    pub fn mount_points(&self) -> Vec<MountPoint> {
        self.mounted.lock().values().flat_map(|mounted| mounts_of(&mounted.mount)).collect()
    }

    pub fn report(&self) -> Vec<BranchMount> {
        let report = |(name, mounted): (&String, &Arc<Mounted>)| BranchMount {
            branch: name.clone(),
            mounts: names(&mounted.mount),
        };
        self.mounted.lock().iter().map(report).collect()
    }

    /// All branches, with where they are mounted.
    pub fn list(&self) -> Result<Vec<Branch>, Failure> {
        let mut branches = self.engine.branches()?;
        let mounted = self.mounted.lock();
        for branch in &mut branches {
            branch.mounts = mounted.get(&branch.name).map(|mounted| names(&mounted.mount)).unwrap_or_default();
        }
        Ok(branches)
    }
}

fn names(mount: &Mount) -> Vec<Name> {
    mounts_of(mount).iter().map(|mount| Name::of_path(&mount.path)).collect()
}
