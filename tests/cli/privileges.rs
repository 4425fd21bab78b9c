//! Set-id programs and device nodes: nothing on a mount that is not asked to, everything on one that is.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use phifs_tests::{DataMode, Node, is_root, on_ext4, run, run_ok, skip};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::{LIMIT, needs_phifs};

const UID: u32 = 47_111;

/// As whom a set-id copy of id(1) runs when somebody else starts it.
fn effective_uid(program: &Path) -> String {
    let mut command = Command::new(program);
    run_ok(command.arg("-u").uid(UID).gid(UID), LIMIT).stdout_text().trim().to_owned()
}

fn read_device(device: &Path) -> std::io::Result<[u8; 4]> {
    let mut bytes = [1; 4];
    fs::File::open(device)?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn make_both(dir: &Path) {
    fs::copy("/usr/bin/id", dir.join("id")).unwrap();
    fs::set_permissions(dir.join("id"), fs::Permissions::from_mode(0o4755)).unwrap();
    mknodat(CWD, dir.join("zero"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 5)).unwrap();
}

#[test]
fn set_id_programs_and_devices_work_only_where_they_were_asked_for() {
    needs_phifs!();
    for mode in [DataMode::Passthrough, DataMode::Writeback] {
        let mut node = Node::up(mode);
        make_both(node.dir());
        assert_eq!(effective_uid(&node.dir().join("id")), UID.to_string());
        let refused = read_device(&node.dir().join("zero")).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
        node.down();

        run_ok(node.command(["up", "--suid"]).arg("--mount").arg(node.dir()), LIMIT);
        assert_eq!(effective_uid(&node.dir().join("id")), "0");
        assert!(read_device(&node.dir().join("zero")).is_err(), "`suid` lets devices be opened");
        node.phifs(["down"]).expect_success();

        fs::write(node.store().join("phifs.toml"), "dev = true\n").unwrap();
        run_ok(node.command(["up"]).env("PHIFS_SUID", "true").arg("--mount").arg(node.dir()), LIMIT);
        assert_eq!(effective_uid(&node.dir().join("id")), "0");
        assert_eq!(read_device(&node.dir().join("zero")).unwrap(), [0; 4]);
        let further = tempfile::tempdir().unwrap();
        node.phifs([Path::new("mount"), further.path()]).expect_success();
        assert_eq!(read_device(&further.path().join("zero")).unwrap(), [0; 4]);
        // The shell of an ordinary system on it.
        fs::copy("/bin/sh", node.dir().join("sh")).unwrap();
        assert!(run(Command::new(node.dir().join("sh")).args(["-c", "true"]), LIMIT).success());
        node.phifs(["down"]).expect_success();
    }
}
