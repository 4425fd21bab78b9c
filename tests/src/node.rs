//! One phifs daemon with a store and a mountpoint of its own.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::network::Host;
use crate::process::{Ran, run, wait_until};
use crate::scratch::{dies_with_us, scratch};

/// What statfs(2) says of every FUSE filesystem.
const FUSE_SUPER_MAGIC: rustix::fs::FsWord = 0x6573_5546;
/// How long a daemon may take to mount, to stop, or to answer a command.
const PATIENCE: Duration = Duration::from_secs(30);
/// No daemon of a test lives longer: when it hangs, killing it turns the hang of the test into a failure.
const LIFE_MAX: Duration = Duration::from_secs(900);

/// How a mount serves file data, as the setting `data_mode` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataMode {
    Passthrough,
    Writeback,
    /// What phifs takes for the best.
    Auto,
}

impl DataMode {
    pub fn name(self) -> &'static str {
        match self {
            DataMode::Passthrough => "passthrough",
            DataMode::Writeback => "writeback",
            DataMode::Auto => "auto",
        }
    }
}

/// The binary under test: `PHIFS_BIN`, else the newer of the two that cargo builds in this workspace.
#[track_caller]
pub fn phifs_bin() -> PathBuf {
    if let Some(path) = std::env::var_os("PHIFS_BIN") {
        return fs::canonicalize(&path).unwrap_or_else(|error| panic!("PHIFS_BIN {}: {error}", path.display()));
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let built = ["release/phifs", "debug/phifs"].map(|path| target.join(path));
    let newest = built.into_iter().filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path))).max();
    let (_, path) = newest.expect("no phifs binary: run `cargo build -p phifs-node --release` or set PHIFS_BIN");
    fs::canonicalize(path).expect("the path of the binary")
}

/// Whether something is mounted exactly there, asked of the kernel's table and not of the (maybe hanging) mount.
pub fn is_mounted(dir: &Path) -> bool {
    // Not that of the process: each test has its own.
    let table = fs::read("/proc/thread-self/mountinfo").expect("the mount table");
    let wanted = dir.as_os_str().as_encoded_bytes();
    table.split(|&byte| byte == b'\n').any(|line| line.split(|&byte| byte == b' ').nth(4) == Some(wanted))
}

pub struct Node {
    store: PathBuf,
    mount: PathBuf,
    mode: DataMode,
    host: Option<Host>,
    daemon: Option<Daemon>,
    _home: TempDir,
}

struct Daemon {
    child: Child,
    /// Dropped with the daemon, which ends its watchdog.
    _watchdog: mpsc::Sender<()>,
}

impl Node {
    /// A store and a mountpoint, both empty, and no daemon yet.
    #[track_caller]
    pub fn new(mode: DataMode) -> Node {
        let home = scratch("node");
        let store = home.path().join("store");
        Node::build(mode, store, home)
    }

    /// The same with the store in a given directory, say on a disk that is about to lose power.
    #[track_caller]
    pub fn with_store(mode: DataMode, store: PathBuf) -> Node {
        let home = scratch("node");
        Node::build(mode, store, home)
    }

    #[track_caller]
    fn build(mode: DataMode, store: PathBuf, home: TempDir) -> Node {
        let mount = home.path().join("mnt");
        fs::create_dir(&mount).expect("a mountpoint");
        Node { store, mount, mode, host: None, daemon: None, _home: home }
    }

    /// The same on a host of a network of the test.
    #[track_caller]
    pub fn on(host: &Host, mode: DataMode) -> Node {
        let mut node = Node::new(mode);
        node.host = Some(host.clone());
        node
    }

    /// A node with its daemon up.
    #[track_caller]
    pub fn up(mode: DataMode) -> Node {
        let mut node = Node::new(mode);
        node.start();
        node
    }

    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The mountpoint.
    pub fn dir(&self) -> &Path {
        &self.mount
    }

    /// What all daemons of this node have written to stderr.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self._home.path().join("log")
    }

    /// A `phifs` command line for this node, with its store given.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(phifs_bin());
        let mut arguments = arguments.into_iter();
        if let Some(subcommand) = arguments.next() {
            command.arg(subcommand);
        }
        command.arg("--store").arg(&self.store).args(arguments).env("PHIFS_DATA_MODE", self.mode.name());
        if let Some(host) = &self.host {
            host.enter(&mut command);
        }
        command
    }

    /// Runs a `phifs` command on this node's store to its end.
    #[track_caller]
    pub fn phifs<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ran {
        run(&mut self.command(arguments), PATIENCE * 2)
    }

    /// Starts the daemon and waits for the mount. Panics with the log if it does not come up.
    #[track_caller]
    pub fn start(&mut self) {
        if let Err(why) = self.try_start(PATIENCE) {
            panic!("phifs up: {why}\n{}", self.log());
        }
    }

    /// The same with another command that ends in a daemon, or with more flags.
    #[track_caller]
    pub fn start_with<S: AsRef<OsStr>>(&mut self, arguments: impl IntoIterator<Item = S>) {
        self.start_early_with(arguments);
        assert!(wait_until(PATIENCE, || !self.is_read_only()), "it can only be read\n{}", self.log());
    }

    /// The same, and does not wait for a volume that is on its way and can only be read.
    #[track_caller]
    pub fn start_early_with<S: AsRef<OsStr>>(&mut self, arguments: impl IntoIterator<Item = S>) {
        if let Err(why) = self.try_start_with(arguments, PATIENCE) {
            panic!("{why}\n{}", self.log());
        }
    }

    /// Whether the mount refuses every change, or there is none just now.
    pub fn is_read_only(&self) -> bool {
        let flags = rustix::fs::statvfs(&self.mount).map(|statfs| statfs.f_flag);
        !is_mounted(&self.mount) || flags.is_ok_and(|flags| flags.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    }

    /// Starts the daemon; the error tells how it ended, or that it neither mounted nor ended in time.
    #[track_caller]
    pub fn try_start(&mut self, patience: Duration) -> Result<(), String> {
        self.try_start_with(["up"], patience)
    }

    #[track_caller]
    fn try_start_with<S: AsRef<OsStr>>(
        &mut self,
        arguments: impl IntoIterator<Item = S>,
        patience: Duration,
    ) -> Result<(), String> {
        assert!(self.daemon.is_none(), "the daemon of this node runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log file");
        let mut command = self.command(arguments);
        command.arg("--mount").arg(&self.mount).arg("--foreground").process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        let mut child =
            dies_with_us(&mut command).spawn().unwrap_or_else(|error| panic!("cannot start the daemon: {error}"));
        let mut ended = None;
        wait_until(patience, || {
            ended = child.try_wait().expect("waiting for the daemon");
            ended.is_some() || self.serves() && self.listens()
        });
        if let Some(status) = ended {
            return Err(format!("the daemon ended with {status}"));
        }
        let daemon = Daemon { _watchdog: watch(&child), child };
        if !self.serves() || !self.listens() {
            drop(daemon);
            return Err(format!("no mount, or nobody at the control socket, after {patience:?}"));
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Mounted, and by a living daemon. Only what the kernel does not cache tells a dead mount: `statfs` does.
    pub fn serves(&self) -> bool {
        // A dead mount may be taken away between the two questions, and then the directory below answers the second.
        is_mounted(&self.mount) && rustix::fs::statfs(&self.mount).is_ok_and(|statfs| statfs.f_type == FUSE_SUPER_MAGIC)
    }

    /// Commands are heard, which comes last.
    fn listens(&self) -> bool {
        std::os::unix::net::UnixStream::connect(self.store().join("control.sock")).is_ok()
    }

    /// The serving daemon's process.
    #[track_caller]
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.daemon.as_ref().expect("a running daemon").child)
    }

    /// `kill -9`: the daemon stops between two instructions, and the mount is dead.
    #[track_caller]
    pub fn kill(&mut self) {
        drop(self.daemon.take().expect("a running daemon"));
    }

    /// `phifs down`, waiting until the daemon has ended.
    #[track_caller]
    pub fn down(&mut self) {
        let ran = self.phifs(["down"]);
        assert!(ran.success(), "{ran}\n{}", self.log());
        let mut daemon = self.daemon.take().expect("a running daemon");
        let ended = wait_until(PATIENCE, || daemon.child.try_wait().expect("waiting for the daemon").is_some());
        assert!(ended, "the daemon still runs after `phifs down`\n{}", self.log());
        assert!(!is_mounted(&self.mount), "still mounted after `phifs down`");
    }

    /// Whether the daemon that was started still runs.
    pub fn alive(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|daemon| matches!(daemon.child.try_wait(), Ok(None)))
    }

    /// The memory that the daemon has in use.
    #[track_caller]
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(self.proc("status")).expect("the status of the daemon");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        let kib: u64 = line.and_then(|kib| kib.parse().ok()).expect("a line VmRSS");
        1024 * kib
    }

    /// How many descriptors the daemon has open.
    #[track_caller]
    pub fn open_descriptors(&self) -> usize {
        fs::read_dir(self.proc("fd")).expect("the descriptors of the daemon").count()
    }

    fn proc(&self, what: &str) -> String {
        format!("/proc/{}/{what}", self.pid().as_raw_nonzero())
    }

    /// Takes a dead mount away, as a user would with `fusermount -u`.
    pub fn unmount_dead(&self) {
        while is_mounted(&self.mount) && unmount(&self.mount, UnmountFlags::DETACH).is_ok() {}
    }

    /// Ends a daemon that went to the background by itself, which `STORE/phifs.pid` names.
    fn end_background(&self) {
        let pid = fs::read_to_string(self.store.join("phifs.pid")).ok().and_then(|text| text.trim().parse().ok());
        let Some(pid) = pid else { return };
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|&byte| byte == 0);
        // The number in a stale file may be anybody's by now.
        if words.any(|word| word == self.store.as_os_str().as_encoded_bytes()) {
            let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
        }
    }

    /// Panics with the log if any daemon of this node ever panicked, even where the panic was survived.
    #[track_caller]
    pub fn assert_no_panic(&self) {
        let log = self.log();
        assert!(!log.contains("panicked at"), "the daemon panicked:\n{log}");
    }
}

/// Starts a thread that kills the daemon when it has lived too long.
fn watch(child: &Child) -> mpsc::Sender<()> {
    let (alive, gone) = mpsc::channel::<()>();
    let pid = Pid::from_child(child);
    std::thread::spawn(move || {
        if gone.recv_timeout(LIFE_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("the daemon is killed after {LIFE_MAX:?}: this test hangs");
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    alive
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.daemon = None;
        self.end_background();
        self.unmount_dead();
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("-- the end of the daemon's log:");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}
