//! Rows of real programs: tar, rm, git, grep, sqlite.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Outside, Prepared, Scale};

const SOURCES: usize = 10_000;
const TRANSACTIONS: usize = 3_000;

fn succeed(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Text of about 5 KB that looks like source: words repeat, lines do not.
fn source(seed: u64) -> String {
    const WORDS: [&str; 12] =
        ["let", "mut", "file", "self", "return", "glyph", "(offset)", "=>", "bytes[n]", "&self.map", "match", "u64"];
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut text = String::new();
    for _ in 0..rng.usize(20..220) {
        for _ in 0..rng.usize(2..9) {
            text.push_str(WORDS[rng.usize(..WORDS.len())]);
            text.push(' ');
        }
        text.push_str(&format!("{:x};\n", rng.u32(..)));
    }
    text
}

fn write_sources(dir: &Path, scale: Scale) -> Result<()> {
    for n in 0..scale.count(SOURCES) {
        let below = dir.join(format!("tree/part{}/module{}", n % 20, n % 200));
        fs::create_dir_all(&below)?;
        fs::write(below.join(format!("source{n}.rs")), source(n as u64))?;
    }
    Ok(())
}

pub fn archive(_: &Path, scale: Scale) -> Result<Prepared> {
    let outside = Outside::new()?;
    write_sources(outside.path(), scale)?;
    let archive = outside.path().join("sources.tar");
    succeed(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(outside.path()).arg("tree"))?;
    Ok(Some(outside))
}

pub fn untar(dir: &Path, _: Scale, prepared: Prepared) -> Result<()> {
    let outside = prepared.context("an archive was prepared")?;
    succeed(Command::new("tar").arg("-xf").arg(outside.path().join("sources.tar")).arg("-C").arg(dir))
}

pub fn sources(dir: &Path, scale: Scale) -> Result<Prepared> {
    write_sources(dir, scale)?;
    Ok(None)
}

pub fn sources_warm(dir: &Path, scale: Scale) -> Result<Prepared> {
    write_sources(dir, scale)?;
    grep(dir, scale, None)?;
    Ok(None)
}

pub fn remove(dir: &Path, _: Scale, _: Prepared) -> Result<()> {
    succeed(Command::new("rm").arg("-rf").arg(dir.join("tree")))
}

pub fn grep(dir: &Path, _: Scale, _: Prepared) -> Result<()> {
    // Exit code 1 is "nothing found", which is the whole tree read.
    let status = Command::new("grep").arg("-rqF").arg("not in any of them").arg(dir).status()?;
    ensure!(status.code() == Some(1), "grep: {status}");
    Ok(())
}

fn git(dir: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "gc.auto=0"]);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    succeed(command.arg("-C").arg(dir.join("tree")).args(arguments))
}

pub fn repository(dir: &Path, scale: Scale) -> Result<Prepared> {
    write_sources(dir, scale)?;
    git(dir, &["init", "-q"])?;
    Ok(None)
}

pub fn git_commit(dir: &Path, _: Scale, _: Prepared) -> Result<()> {
    git(dir, &["add", "-A"])?;
    git(dir, &["commit", "-q", "-m", "all"])
}

pub fn committed_repository(dir: &Path, scale: Scale) -> Result<Prepared> {
    repository(dir, scale)?;
    git_commit(dir, scale, None)?;
    git_status(dir, scale, None)?;
    Ok(None)
}

pub fn git_status(dir: &Path, _: Scale, _: Prepared) -> Result<()> {
    git(dir, &["status", "--porcelain"])
}

/// An empty database, and the statements outside.
pub fn database(dir: &Path, scale: Scale) -> Result<Prepared> {
    let outside = Outside::new()?;
    let mut statements = String::from("pragma synchronous=full;\n");
    for n in 0..scale.count(TRANSACTIONS) {
        statements.push_str(&format!("insert into t values({n}, 'row {n} of a table with a little text in it');\n"));
    }
    fs::write(outside.path().join("statements"), statements)?;
    let make = "pragma journal_mode=wal; create table t(id integer primary key, body text);";
    succeed(Command::new("sqlite3").arg(dir.join("db")).arg(make))?;
    Ok(Some(outside))
}

pub fn sqlite(dir: &Path, _: Scale, prepared: Prepared) -> Result<()> {
    let outside = prepared.context("statements were prepared")?;
    let statements = fs::File::open(outside.path().join("statements"))?;
    let status =
        Command::new("sqlite3").arg("-bail").arg(dir.join("db")).stdin(statements).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "sqlite3: {status}");
    Ok(())
}
