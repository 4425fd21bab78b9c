//! Somebody who is not root: no CAP_SYS_ADMIN, a mount through fusermount3, a store in the data directory.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use phifs_tests::{Ran, is_root, on_ext4, phifs_bin, run, run_ok, skip};

use super::{LIMIT, needs_phifs};

/// The user nobody: fusermount3 wants to know a name for the number.
const UID: u32 = 65_534;

/// A home of their own. Dropping it takes the mount away.
struct User {
    home: tempfile::TempDir,
}

impl User {
    fn new() -> Self {
        let home = tempfile::Builder::new().prefix("phifs-user-").tempdir().unwrap();
        fs::create_dir(home.path().join("phi")).unwrap();
        // The binary may lie where only root may look.
        fs::copy(phifs_bin(), home.path().join("phifs")).unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for path in [home.path(), &home.path().join("phi")] {
            chown(path, Some(UID), Some(UID)).unwrap();
        }
        Self { home }
    }

    fn mount(&self) -> PathBuf {
        self.home.path().join("phi")
    }

    fn store(&self) -> PathBuf {
        self.home.path().join("data/phifs")
    }

    fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.uid(UID).gid(UID).current_dir(self.home.path());
        command.env("HOME", self.home.path()).env("XDG_DATA_HOME", self.home.path().join("data"));
        command
    }

    fn phifs(&self, arguments: &[&str]) -> Ran {
        run(self.command(self.home.path().join("phifs")).args(arguments), LIMIT)
    }

    fn shell(&self, script: &str) -> Ran {
        run_ok(self.command("/bin/sh").args(["-ec", script]), LIMIT)
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if fs::metadata(self.store().join("phifs.pid")).is_ok() {
            self.phifs(&["down", "--force"]);
        }
    }
}

macro_rules! needs_fusermount {
    () => {
        needs_phifs!();
        if !run(Command::new("sh").args(["-c", "command -v fusermount3"]), LIMIT).success() {
            skip!("fusermount3 is not installed (package fuse3)");
        }
        if fs::metadata("/dev/fuse").map_or(0, |device| device.mode()) & 0o6 != 0o6 {
            skip!("only root may open /dev/fuse here (chmod 666 /dev/fuse, as udev does)");
        }
    };
}

#[test]
fn a_user_mounts_on_a_directory_of_their_own_and_keeps_what_they_wrote() {
    needs_fusermount!();
    let user = User::new();
    let up = user.phifs(&["up", "--mount", "phi"]).expect_success();
    let mount = user.mount();
    assert!(up.stdout_text().contains(mount.to_str().unwrap()), "{up}");
    assert!(user.store().join("superblock").exists(), "the store is not in the data directory: {up}");
    assert_eq!(fs::metadata(user.store()).unwrap().mode() & 0o777, 0o700);

    let status = user.phifs(&["status", "--json"]).expect_success();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["features"]["data_path"], "writeback", "{status}");
    assert_eq!(status["mounts"][0]["text"], mount.to_str().unwrap());

    user.shell(
        "cd phi; mkdir d; echo kept > d/f; dd if=/dev/zero of=big bs=64k count=40 2>&1; sync d/f; ln d/f g; id -u",
    );
    let said = user.shell("cat phi/g; stat -c '%u %a %s' phi/d phi/big").stdout_text();
    assert!(said.starts_with("kept\n") && said.contains(&format!("{UID} ")) && said.contains("2621440"), "{said}");
    // Nobody else may enter: `allow_other` was not asked for, and root is somebody else.
    assert!(fs::read_dir(&mount).is_err(), "root can enter a mount that is for its owner");

    user.phifs(&["fsck"]).expect_success();
    user.phifs(&["down"]).expect_success();
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 0, "still mounted");
    user.phifs(&["up", "--mount", "phi"]).expect_success();
    assert_eq!(user.shell("cat phi/d/f; cmp -n 2621440 phi/big /dev/zero").stdout_text(), "kept\n");
    user.phifs(&["down"]).expect_success();
}

#[test]
fn what_only_root_may_is_refused_to_a_user_with_the_reason() {
    needs_fusermount!();
    let user = User::new();
    for arguments in [&["up", "--mount", "phi", "--suid"], &["up", "--mount", "phi", "--dev"]] {
        let refused = user.phifs(arguments).expect_clear_failure();
        assert!(refused.stderr_text().contains("root"), "{refused}");
        assert_eq!(refused.code(), Some(2), "{refused}");
    }
    let refused = user.phifs(&["up", "--mount", "/nonexistent"]).expect_clear_failure();
    assert!(refused.stderr_text().contains("/nonexistent"), "{refused}");
    let refused = user.phifs(&["up", "--mount", "phi", "--data-mode", "passthrough"]).expect_clear_failure();
    assert!(refused.stderr_text().contains("passthrough"), "{refused}");
    let refused = user.phifs(&["up", "--mount", "/usr"]).expect_clear_failure();
    assert!(refused.stderr_text().contains("/usr"), "{refused}");
    user.phifs(&["up", "--mount", "phi"]).expect_success();
    let refused = user.phifs(&["mount", "data"]).expect_clear_failure();
    assert!(refused.stderr_text().contains("root"), "{refused}");
}
