//! Running other programs with a deadline, so that a hang is a failure and never a stuck test run.
//!
//! A program runs in a process group of its own and the whole group is killed at the deadline. Its output goes to
//! files, not pipes: a background child that keeps a pipe open would otherwise keep the test waiting.

use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::scratch::dies_with_us;

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Ran {
    pub command: String,
    /// `None` when it was killed at the deadline.
    pub status: Option<ExitStatus>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Ran {
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    pub fn timed_out(&self) -> bool {
        self.status.is_none()
    }

    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Panics with everything the program said unless it succeeded.
    #[track_caller]
    pub fn expect_success(self) -> Ran {
        assert!(self.success(), "{self}");
        self
    }

    /// Panics unless the program ended by itself, with an error code, without a panic, and said something about it.
    #[track_caller]
    pub fn expect_clear_failure(self) -> Ran {
        assert!(self.code().is_some_and(|code| code != 0), "should have failed with an exit code: {self}");
        assert!(!self.stderr_text().contains("panicked at"), "panicked: {self}");
        assert!(!self.stderr_text().trim().is_empty(), "failed without a word: {self}");
        self
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = self.status.map_or("killed at its deadline".to_owned(), |status| status.to_string());
        let tail = |bytes: &[u8]| String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(6000)..]).into_owned();
        write!(out, "{}: {status}\n{}\n{}", self.command, tail(&self.stdout), tail(&self.stderr))
    }
}

/// Runs a program to its end or for `limit` at most. Panics only if it cannot be started.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Ran {
    let mut text = command.get_program().as_bytes().to_vec();
    for argument in command.get_args() {
        text.push(b' ');
        text.extend_from_slice(argument.as_bytes());
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let mut out = tempfile::tempfile().expect("a temporary file");
    let mut err = tempfile::tempfile().expect("a temporary file");
    command
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("a second handle"))
        .stderr(err.try_clone().expect("a second handle"))
        .process_group(0);
    let mut child = dies_with_us(command).spawn().unwrap_or_else(|error| panic!("cannot start {text}: {error}"));
    let status = wait_or_kill(&mut child, limit);
    let read_all = |file: &mut std::fs::File| {
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).expect("the output of a program");
        bytes
    };
    Ran { command: text, status, stdout: read_all(&mut out), stderr: read_all(&mut err) }
}

/// Runs a program that must succeed.
#[track_caller]
pub fn run_ok(command: &mut Command, limit: Duration) -> Ran {
    run(command, limit).expect_success()
}

/// A program that runs beside the test in a process group of its own, ended with its children on drop.
pub struct Background {
    child: Child,
}

impl Background {
    #[track_caller]
    pub fn start(command: &mut Command) -> Background {
        let child = dies_with_us(command.stdin(Stdio::null()).process_group(0)).spawn();
        Background { child: child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")) }
    }

    /// `kill -9` of the whole group.
    pub fn kill(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for a child that leads its process group; at the deadline kills the group and gives `None`.
fn wait_or_kill(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(status) = child.try_wait().expect("waiting for a child") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
            // A process stuck in the kernel would not end even now; the test must go on to say so.
            wait_until(Duration::from_secs(10), || matches!(child.try_wait(), Ok(Some(_))));
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Asks every few milliseconds whether something has happened; whether it did before the limit.
pub fn wait_until(limit: Duration, mut happened: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !happened() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
