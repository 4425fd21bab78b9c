//! `cargo xtask check`: the whole gate, the same for people and for CI.
//!
//! Formatting, clippy, the rules that no compiler knows (`tidy`, `dependencies`), then all tests. A step that fails
//! does not hide the next one; the command fails at the end. `cargo xtask tidy` does the quick rules alone.

mod dependencies;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

/// A step of the gate and how it is called in messages.
type Step = (&'static str, fn(&Path) -> Result<()>);

const USAGE: &str = "Usage: cargo xtask check | tidy | test

  check   Run the whole gate: format, clippy, tidy, dependencies, tests
  tidy    Run the rules on sources and dependencies alone
  test    Run all tests through the runner at hand (cargo-nextest, else cargo test)";

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let steps: &[Step] = match wanted.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["check"] => &[("format", format), ("tidy", tidy_step), ("clippy", clippy), ("tests", test)],
        ["tidy"] => &[("tidy", tidy_step)],
        ["test"] => &[("tests", test)],
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().expect("the workspace this was built in");
    let mut failed = Vec::new();
    for (name, step) in steps {
        let start = Instant::now();
        let result = step(&root);
        let took = start.elapsed().as_secs();
        match result {
            Ok(()) => eprintln!("xtask: {name}: good ({took} s)"),
            Err(error) => {
                eprintln!("xtask: {name}: {error:#} ({took} s)");
                failed.push(*name);
            }
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("xtask: failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

fn cargo(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(arguments).current_dir(root);
    command
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn format(root: &Path) -> Result<()> {
    succeed(&mut cargo(root, &["fmt", "--all", "--check"]))
}

fn clippy(root: &Path) -> Result<()> {
    succeed(&mut cargo(root, &["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-Dwarnings"]))
}

fn tidy_step(root: &Path) -> Result<()> {
    let mut problems = tidy::problems(root)?;
    problems.extend(dependencies::problems(root)?);
    for problem in &problems {
        eprintln!("  {problem}");
    }
    match problems.len() {
        0 => Ok(()),
        count => bail!("{count} problems"),
    }
}

/// All tests of the workspace, the ones on real mounts against the binary built here.
///
/// One profile for everything: the unit tests, the binary under test and their dependencies are compiled once.
fn test(root: &Path) -> Result<()> {
    succeed(&mut cargo(root, &["build", "--locked", "-p", "phifs-node"]))?;
    let binary = target_dir(root)?.join("debug/phifs");
    let nextest = cargo(root, &["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if nextest.is_ok_and(|status| status.success()) {
        return succeed(cargo(root, &["nextest", "run", "--workspace", "--locked"]).env("PHIFS_BIN", binary));
    }
    // Two programs with mounts at once are enough for any machine, and cargo runs the programs one after another.
    let rest = succeed(&mut cargo(root, &["test", "--workspace", "--exclude", "phifs-tests", "--locked"]));
    let arguments = ["test", "-p", "phifs-tests", "--locked", "--no-fail-fast", "--", "--test-threads=2"];
    succeed(cargo(root, &arguments).env("PHIFS_BIN", binary))?;
    rest
}

fn target_dir(root: &Path) -> Result<PathBuf> {
    let metadata = dependencies::metadata(root, &["--no-deps"])?;
    Ok(metadata["target_directory"].as_str().context("cargo names no target directory")?.into())
}
