//! What keeps versions of a directory: phifs with its snapshots, and the programs it is compared with.
//!
//! Of the others each has what costs it least: a local repository and its own defaults; borg does without encryption.
//! They are not installed here. What is missing is left out, and the reason stands in its place.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::Lab;
use crate::machine::{self, Disk};
use crate::systems::{Phifs, System, succeed, timed};

pub trait Backup {
    fn name(&self) -> &'static str;

    /// Whose versions it keeps.
    fn dir(&self) -> &Path;

    /// Waits until what was written there lies on the disk, and for all work in the background.
    fn settle(&self) -> Result<()>;

    /// Keeps one more version, and tells how many seconds that took.
    fn keep(&mut self) -> Result<f64>;

    /// Gives up what no version needs.
    fn collect(&self) -> Result<()> {
        Ok(())
    }

    /// What all versions take.
    fn stored_bytes(&self) -> Result<u64>;
}

/// A phifs of which snapshots are taken, and where wanted exported as well, each with the one before as its base.
pub struct Kept {
    phifs: Phifs,
    export: Option<PathBuf>,
    versions: usize,
}

impl Kept {
    pub fn new(lab: &Lab, name: &str) -> Result<Kept> {
        Ok(Kept { phifs: lab.phifs(name)?, export: None, versions: 0 })
    }

    pub fn exporting(lab: &Lab, name: &str) -> Result<Kept> {
        let phifs = lab.phifs(name)?;
        phifs.ensure_exports()?;
        Ok(Kept { phifs, export: Some(lab.bench.scratch.join("export")), versions: 0 })
    }
}

impl Backup for Kept {
    fn name(&self) -> &'static str {
        "phifs"
    }

    fn dir(&self) -> &Path {
        self.phifs.dir()
    }

    fn settle(&self) -> Result<()> {
        self.phifs.settle().map(drop)
    }

    fn keep(&mut self) -> Result<f64> {
        let name = |version: usize| format!("v{version}");
        let mut took = self.phifs.snapshot(&name(self.versions))?;
        if let (Some(file), Some(since)) = (&self.export, self.versions.checked_sub(1)) {
            took += self.phifs.export(&name(self.versions), file, Some(&name(since)))?;
            fs::remove_file(file)?;
        }
        self.versions += 1;
        Ok(took.as_secs_f64())
    }

    fn collect(&self) -> Result<()> {
        self.settle()?;
        self.phifs.gc()
    }

    fn stored_bytes(&self) -> Result<u64> {
        self.settle()?;
        self.phifs.packed_bytes()
    }
}

#[derive(Clone, Copy)]
pub enum Other {
    Restic,
    Borg,
    Btrfs,
}

impl Other {
    pub const ALL: [Other; 3] = [Other::Restic, Other::Borg, Other::Btrfs];

    /// One with nothing in it, or why there is none. `mib` is the room that btrfs gets; the others take what they need.
    pub fn open(self, lab: &Lab, mib: usize) -> Result<Box<dyn Backup>> {
        Ok(match self {
            Other::Restic => Box::new(Repository::restic(lab)?),
            Other::Borg => Box::new(Repository::borg(lab)?),
            Other::Btrfs => Box::new(Btrfs::new(lab, mib)?),
        })
    }
}

/// A directory that goes away with all that lies in it.
struct Home(PathBuf);

impl Home {
    fn new(lab: &Lab, name: &str) -> Result<Home> {
        let dir = lab.home.join(name);
        fs::create_dir(&dir)?;
        Ok(Home(dir))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // What is left of it goes with the directory of the bench.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn ensure_installed(program: &str, package: &str) -> Result<()> {
    match Command::new(program).arg("--version").output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("{program} is not installed (on Debian: apt-get install {package})")
        }
        ran => ran.map(drop).with_context(|| format!("cannot start {program}")),
    }
}

/// A repository of restic or borg beside a directory of the host.
struct Repository {
    name: &'static str,
    environment: Vec<(&'static str, PathBuf)>,
    disk: Rc<Disk>,
    dir: PathBuf,
    repository: PathBuf,
    versions: usize,
    _home: Home,
}

impl Repository {
    fn new(lab: &Lab, name: &'static str, package: &str) -> Result<Repository> {
        ensure_installed(name, package)?;
        let home = Home::new(lab, name)?;
        let (dir, repository) = (home.0.join("files"), home.0.join("repository"));
        fs::create_dir(&dir)?;
        let disk = Rc::clone(&lab.disk);
        Ok(Repository { name, environment: Vec::new(), disk, dir, repository, versions: 0, _home: home })
    }

    fn restic(lab: &Lab) -> Result<Repository> {
        let mut restic = Repository::new(lab, "restic", "restic")?;
        restic.environment = vec![
            ("RESTIC_REPOSITORY", restic.repository.clone()),
            ("RESTIC_CACHE_DIR", restic.repository.with_extension("cache")),
            ("RESTIC_PASSWORD", "measured".into()),
        ];
        succeed(restic.command().arg("init"))?;
        Ok(restic)
    }

    fn borg(lab: &Lab) -> Result<Repository> {
        let mut borg = Repository::new(lab, "borg", "borgbackup")?;
        borg.environment = vec![
            ("BORG_REPO", borg.repository.clone()),
            ("BORG_BASE_DIR", borg.repository.with_extension("base")),
            ("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes".into()),
        ];
        succeed(borg.command().args(["init", "--encryption", "none"]))?;
        Ok(borg)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.name);
        command.envs(self.environment.iter().cloned()).current_dir(&self.dir);
        command
    }
}

impl Backup for Repository {
    fn name(&self) -> &'static str {
        self.name
    }

    fn dir(&self) -> &Path {
        &self.dir
    }

    fn settle(&self) -> Result<()> {
        self.disk.sync().map(drop)
    }

    fn keep(&mut self) -> Result<f64> {
        self.versions += 1;
        let mut command = self.command();
        match self.name {
            "borg" => command.args(["create", &format!("::v{}", self.versions), "."]),
            _ => command.args(["backup", "--quiet", "."]),
        };
        Ok(timed(&mut command)?.0.as_secs_f64())
    }

    fn stored_bytes(&self) -> Result<u64> {
        machine::file_bytes(&self.repository)
    }
}

/// btrfs in a file of the host. What it stores are the streams of `btrfs send`, each from the version before.
struct Btrfs {
    mount: PathBuf,
    live: PathBuf,
    stream: PathBuf,
    versions: usize,
    sent_bytes: u64,
    _home: Home,
}

impl Btrfs {
    fn new(lab: &Lab, mib: usize) -> Result<Btrfs> {
        ensure_installed("mkfs.btrfs", "btrfs-progs")?;
        ensure!(machine::is_root(), "only root can mount btrfs");
        let home = Home::new(lab, "btrfs")?;
        let (image, mount) = (home.0.join("image"), home.0.join("mnt"));
        fs::create_dir(&mount)?;
        // Its smallest is 109 MiB; what is not written takes no room.
        File::create_new(&image)?.set_len(lab.bench.scale.bytes(mib).max(256 << 20) as u64)?;
        succeed(Command::new("mkfs.btrfs").arg("--quiet").arg(&image))?;
        succeed(Command::new("mount").args(["-t", "btrfs", "-o", "loop"]).arg(&image).arg(&mount))
            .context("cannot mount btrfs; the kernel may lack it")?;
        let (live, stream) = (mount.join("live"), lab.bench.scratch.join("stream"));
        let btrfs = Btrfs { mount, live, stream, versions: 0, sent_bytes: 0, _home: home };
        succeed(Command::new("btrfs").args(["subvolume", "create"]).arg(&btrfs.live))?;
        Ok(btrfs)
    }

    fn version(&self, version: usize) -> PathBuf {
        self.mount.join(format!("v{version}"))
    }
}

impl Backup for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs send"
    }

    fn dir(&self) -> &Path {
        &self.live
    }

    fn settle(&self) -> Result<()> {
        Ok(rustix::fs::syncfs(File::open(&self.live)?)?)
    }

    fn keep(&mut self) -> Result<f64> {
        let new = self.version(self.versions);
        let snapshot = ["subvolume", "snapshot", "-r"];
        let (mut took, _) = timed(Command::new("btrfs").args(snapshot).arg(&self.live).arg(&new))?;
        if let Some(since) = self.versions.checked_sub(1) {
            let mut send = Command::new("btrfs");
            send.args(["send", "--quiet", "-p"]).arg(self.version(since)).arg("-f").arg(&self.stream).arg(&new);
            took += timed(&mut send)?.0;
            self.sent_bytes += fs::metadata(&self.stream)?.len();
            fs::remove_file(&self.stream)?;
        }
        self.versions += 1;
        Ok(took.as_secs_f64())
    }

    fn stored_bytes(&self) -> Result<u64> {
        Ok(self.sent_bytes)
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        // The loop device goes with the mount; `run` looks after mounts that stay.
        let _ = succeed(Command::new("umount").arg(&self.mount));
    }
}
