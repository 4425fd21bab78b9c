//! Rows of real programs: tar, rm, git, grep, sqlite.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::Bench;
use crate::systems::succeed;

pub const SOURCES: usize = 10_000;
const TRANSACTIONS: usize = 3_000;

pub fn count(bench: &Bench) -> usize {
    bench.scale.count(SOURCES)
}

pub fn transactions(bench: &Bench) -> usize {
    bench.scale.count(TRANSACTIONS)
}

/// Makes the archive, and has it read: its own disk time is none of the row's business.
pub fn archive(_: &Path, bench: &Bench) -> Result<()> {
    fs::copy(&bench.sources()?.archive, "/dev/null")?;
    Ok(())
}

pub fn untar(dir: &Path, bench: &Bench) -> Result<()> {
    bench.sources()?.unpack(dir)
}

pub fn sources(dir: &Path, bench: &Bench) -> Result<()> {
    bench.sources()?.unpack(dir)
}

pub fn sources_warm(dir: &Path, bench: &Bench) -> Result<()> {
    sources(dir, bench)?;
    grep(dir, bench)
}

pub fn remove(dir: &Path, _: &Bench) -> Result<()> {
    succeed(Command::new("rm").arg("-rf").arg(dir.join("tree"))).map(drop)
}

pub fn grep(dir: &Path, _: &Bench) -> Result<()> {
    // Exit code 1 is "nothing found", which is the whole tree read.
    let status = Command::new("grep").arg("-rqF").arg("not in any of them").arg(dir).status()?;
    ensure!(status.code() == Some(1), "grep: {status}");
    Ok(())
}

fn git(dir: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "gc.auto=0"]);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    succeed(command.arg("-C").arg(dir.join("tree")).args(arguments)).map(drop)
}

pub fn repository(dir: &Path, bench: &Bench) -> Result<()> {
    sources(dir, bench)?;
    git(dir, &["init", "-q"])
}

pub fn git_commit(dir: &Path, _: &Bench) -> Result<()> {
    git(dir, &["add", "-A"])?;
    git(dir, &["commit", "-q", "-m", "all"])
}

pub fn committed_repository(dir: &Path, bench: &Bench) -> Result<()> {
    repository(dir, bench)?;
    git_commit(dir, bench)?;
    git_status(dir, bench)
}

pub fn git_status(dir: &Path, _: &Bench) -> Result<()> {
    git(dir, &["status", "--porcelain"])
}

/// An empty database, and the statements outside.
pub fn database(dir: &Path, bench: &Bench) -> Result<()> {
    let mut statements = String::from("pragma synchronous=full;\n");
    for n in 0..transactions(bench) {
        statements.push_str(&format!("insert into t values({n}, 'row {n} of a table with a little text in it');\n"));
    }
    fs::write(bench.scratch.join("statements"), statements)?;
    let make = "pragma journal_mode=wal; create table t(id integer primary key, body text);";
    succeed(Command::new("sqlite3").arg(dir.join("db")).arg(make)).map(drop)
}

pub fn sqlite(dir: &Path, bench: &Bench) -> Result<()> {
    let statements = fs::File::open(bench.scratch.join("statements"))?;
    let status =
        Command::new("sqlite3").arg("-bail").arg(dir.join("db")).stdin(statements).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "sqlite3: {status}");
    Ok(())
}
