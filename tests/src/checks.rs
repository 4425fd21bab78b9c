//! The public test suites that phifs is held against, run on any directory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{Ran, run};

/// Finds a program that `tools/test` installs: on the path, or under `target/tools/bin`.
pub fn installed(name: &str) -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut dirs = std::iter::once(own).chain(std::env::split_paths(&path)).chain(sbin);
    dirs.find_map(|dir| fs::canonicalize(dir.join(name)).ok())
}

/// How one case of a conformance suite ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Passed,
    Skipped,
    Failed(String),
}

/// Runs the whole of pjdfstest on a directory; `other` is a directory on another filesystem, for EXDEV.
#[track_caller]
pub fn pjdfstest(program: &Path, dir: &Path, other: &Path) -> BTreeMap<String, Verdict> {
    let home = tempfile::tempdir().expect("a temporary directory");
    let config = home.path().join("pjdfstest.toml");
    // Remounting read-only is left out: it would stop the whole place under test.
    let text = r#"
        [features]
        posix_fallocate = {}
        rename_ctime = {}
        utime_now = {}
        utimensat = {}
        [settings]
        naptime = 0.05
        allow_remount = false
        [dummy_auth]
        entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
    "#;
    fs::write(&config, text).expect("the configuration of pjdfstest");
    let dir = fs::canonicalize(dir).expect("the directory under test");
    let base = base_of_usable_length(&dir);
    fs::create_dir_all(&base).expect("a directory to test in");
    fs::set_permissions(&base, fs::Permissions::from_mode(0o755)).expect("an open directory");
    let mut command = Command::new(program);
    command.env("NO_COLOR", "1").arg("-c").arg(&config).arg("-p").arg(&base).arg("-s").arg(other);
    let ran = run(&mut command, Duration::from_secs(400));
    assert!(!ran.timed_out(), "pjdfstest hangs: {ran}");
    let verdicts = verdicts(&ran.stdout_text());
    assert!(verdicts.len() > 300, "pjdfstest ran {} cases only: {ran}", verdicts.len());
    verdicts
}

/// pjdfstest 0.2.2 builds a path of PATH_MAX from components of 127 bytes and fails by an underflow of its own where
/// the remainder is 0 or 1; it works two temporary directories of 11 bytes below the one it is given.
fn base_of_usable_length(dir: &Path) -> PathBuf {
    let fits = |path: &Path| (4095 - (path.as_os_str().len() + 22)) % 127 > 1;
    let mut names = ["p", "pjd", "pjdfstest"].into_iter().map(|name| dir.join(name));
    names.find(|path| fits(path)).expect("one of three lengths fits")
}

/// Reads the suite's output: a line `name  ok|skipped|FAILED` for each case, then indented lines with the cause.
fn verdicts(output: &str) -> BTreeMap<String, Verdict> {
    let mut verdicts = BTreeMap::new();
    let mut failing: Option<String> = None;
    for line in output.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(case), Some(result @ ("ok" | "skipped" | "FAILED")), None) if case.contains("::") => {
                let verdict = match result {
                    "ok" => Verdict::Passed,
                    "skipped" => Verdict::Skipped,
                    _ => Verdict::Failed(String::new()),
                };
                failing = (result == "FAILED").then(|| case.to_owned());
                verdicts.insert(case.to_owned(), verdict);
            }
            _ => {
                if let Some(Verdict::Failed(why)) = failing.as_ref().and_then(|case| verdicts.get_mut(case))
                    && why.len() < 2000
                {
                    why.push_str(line.trim());
                    why.push('\n');
                }
            }
        }
    }
    verdicts
}

/// Exercises one file on a directory with random operations, the memory-mapped ones included.
#[track_caller]
pub fn fsx(program: &Path, dir: &Path, seed: u64, operations: u64) -> Ran {
    let home = tempfile::tempdir().expect("a temporary directory");
    let config = home.path().join("fsx.toml");
    let text = "
        flen = 1048576
        [weights]
        close_open = 1
        read = 10
        write = 10
        mapread = 10
        mapwrite = 10
        invalidate = 1
        truncate = 3
        fsync = 0.2
        fdatasync = 0.2
        posix_fallocate = 1
        punch_hole = 3
        sendfile = 2
        posix_fadvise = 1
        copy_file_range = 5
    ";
    fs::write(&config, text).expect("the configuration of fsx");
    let mut command = Command::new(program);
    command.args(["-N", &operations.to_string(), "-S", &seed.to_string()]);
    command.arg("-f").arg(&config).arg("-P").arg(home.path()).arg(dir.join(format!("fsx-{seed}")));
    run(&mut command, Duration::from_secs(900))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conformance_output_is_read_with_causes() {
        let output = "\
open::a::b      ok\nopen::c    skipped\n\tneeds a thing\nlink::d    FAILED\n\tleft != right\n  1: frame\nrm::e  ok\n\nSummary: 1 failed";
        let verdicts = verdicts(output);
        assert_eq!(verdicts.len(), 4);
        assert_eq!(verdicts["open::c"], Verdict::Skipped);
        assert_eq!(verdicts["link::d"], Verdict::Failed("left != right\n1: frame\n".to_owned()));
        assert_eq!(verdicts["rm::e"], Verdict::Passed);
    }
}
