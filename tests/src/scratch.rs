//! Where mounts and stores of a test live, so that nothing of them outlives the test, however it ends.
//!
//! A test that panics cleans up by its `Drop`s. One that is killed cannot; so
//!
//! - its thread has a mount namespace of its own: with the last process in it, all its mounts are gone, and with them
//!   the loop devices. `nsenter -m -t PID` looks into it;
//! - programs that it starts are killed with it (`dies_with_us`);
//! - its directories are named after its process, and the next test process removes those of dead ones.

use std::cell::Cell;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Once;

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::TempDir;

const PREFIX: &str = "phifs-test-";

/// A directory for the mounts and stores of this test, open to all users.
#[track_caller]
pub fn scratch(kind: &str) -> TempDir {
    static SWEEP: Once = Once::new();
    SWEEP.call_once(sweep);
    have_own_mounts().expect("a mount namespace of its own");
    let name = format!("{PREFIX}{}-{kind}-", std::process::id());
    let home = tempfile::Builder::new().prefix(&name).tempdir().expect("a temporary directory");
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("an open directory");
    home
}

/// Gives this thread, and those that it starts from now on, a mount namespace. Only root can; without it the mounts of
/// a killed test stay, as those of `phifs` do for any other user.
fn have_own_mounts() -> io::Result<()> {
    thread_local!(static DONE: Cell<bool> = const { Cell::new(false) });
    if DONE.get() || !crate::is_root() {
        return Ok(());
    }
    // SAFETY: only mounts, the working directory and the file mode mask stop being shared; no file descriptor does.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    DONE.set(true);
    Ok(())
}

/// Removes what killed test processes left.
fn sweep() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(PREFIX));
        let owner = name.and_then(|name| name.split_once('-')).and_then(|(pid, _)| pid.parse::<u32>().ok());
        let is_stale = owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists());
        if is_stale {
            // A daemon that went to the background may have mounted there for a process that was not root.
            let _ = unmount(path.join("mnt"), UnmountFlags::DETACH);
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// Lets a program be killed with the thread that starts it.
pub fn dies_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: the closure makes one system call, which is safe between fork and exec.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) }
}
