//! The `phifs` command and its daemon as real processes with a real mount. Needs root and /dev/fuse; says so and passes
//! without them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A store and a mountpoint, with no daemon left behind at the end.
struct Node {
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Option<Self> {
        let able = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
        if !able {
            eprintln!("skipped: needs root and /dev/fuse");
        }
        able.then(|| Self { dir: tempfile::tempdir().unwrap() })
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn mount(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_phifs"));
        command.args(args).arg("--json").env("PHIFS_STORE", self.store()).env("PHIFS_MOUNT", self.mount());
        command.output().unwrap()
    }

    /// The result of a command that succeeds.
    fn ask(&self, args: &[&str]) -> Value {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The exit code and message of a command that fails.
    fn refused(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        let error: Value = serde_json::from_slice(output.stderr.trim_ascii_end()).expect("a failure in JSON");
        (output.status.code().unwrap(), error["error"]["message"].as_str().unwrap().to_owned())
    }

    fn mounted(&self) -> bool {
        phifs_node::mounts::at(&self.mount()).unwrap().is_some()
    }

    fn signal(&self, pid: &Value, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(pid.as_i64().unwrap() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while phifs_node::store_dir::StoreDir::find(&self.store()).unwrap().is_in_use() {
            assert!(Instant::now() < until, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.run(&["down", "--force"]);
    }
}

#[test]
fn volume_comes_up_once_and_goes_down_leaving_nothing() {
    let Some(node) = Node::new() else { return };
    assert_eq!(node.refused(&["status"]).0, 1, "there is no store yet");
    let ready = node.ask(&["up"]);
    assert!(node.mounted());
    assert_eq!(node.ask(&["up"])["pid"], ready["pid"], "up again is up still");
    let elsewhere = node.dir.path().join("elsewhere");
    assert_eq!(node.refused(&["up", "--mount", elsewhere.to_str().unwrap()]).0, 4);
    let status = node.ask(&["status"]);
    assert_eq!((&status["pid"], status["mounts"].as_array().unwrap().len()), (&ready["pid"], 1));
    node.ask(&["down"]);
    assert!(!node.mounted());
    assert_eq!(node.refused(&["status"]).0, 3);
    assert_eq!(node.refused(&["down"]).0, 3);
    for left in ["phifs.pid", "control.sock"] {
        assert!(!node.store().join(left).exists(), "{left}");
    }
}

#[test]
fn busy_volume_stays_and_its_users_are_named_unless_forced() {
    let Some(node) = Node::new() else { return };
    let further = node.dir.path().join("further");
    fs::create_dir(&further).unwrap();
    node.ask(&["up"]);
    assert_eq!(node.ask(&["mount", further.to_str().unwrap()])["mounts"].as_array().unwrap().len(), 2);
    let mut user = Command::new("sleep").arg("60").current_dir(node.mount()).spawn().unwrap();
    let (code, message) = node.refused(&["down"]);
    assert_eq!(code, 4);
    assert!(message.contains(&format!("process {} (sleep): its working directory", user.id())), "{message}");
    node.ask(&["status"]);
    node.ask(&["down", "--force"]);
    assert!(!node.mounted() && phifs_node::mounts::at(&further).unwrap().is_none());
    user.kill().unwrap();
    user.wait().unwrap();
}

#[test]
fn killed_daemon_is_cleared_by_the_next_up_and_by_down() {
    let Some(node) = Node::new() else { return };
    let ready = node.ask(&["up"]);
    node.signal(&ready["pid"], rustix::process::Signal::KILL);
    assert!(fs::read_dir(node.mount()).is_err(), "a dead mount gives an error");
    let ready = node.ask(&["up"]);
    assert!(fs::read_dir(node.mount()).is_ok());
    node.signal(&ready["pid"], rustix::process::Signal::KILL);
    assert_eq!(node.ask(&["down"])["was_running"], false);
    assert!(!node.mounted());
}

#[test]
fn signals_and_unmounts_from_outside_end_the_daemon_cleanly() {
    let Some(node) = Node::new() else { return };
    let ready = node.ask(&["up"]);
    node.signal(&ready["pid"], rustix::process::Signal::TERM);
    assert!(!node.mounted() && !node.store().join("phifs.pid").exists());
    node.ask(&["up"]);
    phifs_node::mounts::unmount(&node.mount()).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while node.store().join("phifs.pid").exists() {
        assert!(Instant::now() < until, "the daemon does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(node.refused(&["status"]).0, 3);
}

#[test]
fn daemon_that_cannot_start_says_why_through_up() {
    let Some(node) = Node::new() else { return };
    fs::create_dir(node.store()).unwrap();
    fs::write(node.store().join("phifs.toml"), "cache_mib = 'much'").unwrap();
    let (code, message) = node.refused(&["up"]);
    assert_eq!(code, 2);
    assert!(message.contains("phifs.toml:1:13: cache_mib cannot be \"much\""), "{message}");
    fs::remove_file(node.store().join("phifs.toml")).unwrap();
    fs::write(node.mount(), "").unwrap();
    let (code, message) = node.refused(&["up"]);
    assert_eq!(code, 1);
    assert!(message.ends_with("is not a directory"), "{message}");
}
