//! Branches through real mounts, beside the live volume, and merges of them.

mod history;
mod in_use;
mod trees;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use phifs_tests::{DataMode, Node, Ran, is_mounted, is_root, on_ext4, run, run_ok, skip, wait_until};
use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(120);

macro_rules! needs_phifs {
    () => {
        if on_ext4() || !is_root() {
            skip!("about phifs, as root");
        }
    };
}

use needs_phifs;

/// A mountpoint for a branch, which is free again afterwards, whatever happened.
struct Side(TempDir);

impl Side {
    fn new() -> Side {
        Side(phifs_tests::scratch("branch"))
    }

    fn dir(&self) -> &Path {
        self.0.path()
    }

    /// With a branch of the node mounted on it.
    #[track_caller]
    fn of(node: &Node, branch: &str) -> Side {
        let side = Side::new();
        side.mount(node, branch).expect_success();
        side
    }

    #[track_caller]
    fn mount(&self, node: &Node, branch: &str) -> Ran {
        run(node.command(["mount", "--branch", branch]).arg(self.dir()), LIMIT)
    }

    #[track_caller]
    fn unmount(&self) {
        run_ok(Command::new("umount").arg(self.dir()), LIMIT);
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        while is_mounted(self.dir()) && unmount(self.dir(), UnmountFlags::DETACH).is_ok() {}
    }
}

/// A node whose daemon takes requests.
fn up(mode: DataMode) -> Node {
    let mut node = Node::new(mode);
    restart(&mut node);
    node
}

#[track_caller]
fn restart(node: &mut Node) {
    node.start();
    // The mount is there a moment before the control socket.
    assert!(wait_until(LIMIT, || node.phifs(["status"]).success()));
}

#[track_caller]
fn branch_off(node: &Node, branch: &str) {
    let snapshot = format!("base of {branch}");
    node.phifs(["snapshot", "create", &snapshot]).expect_success();
    node.phifs(["snapshot", "clone", &snapshot, branch]).expect_success();
}

fn json(ran: Ran) -> serde_json::Value {
    serde_json::from_slice(&ran.expect_success().stdout).expect("one line of JSON")
}

fn sh(dir: &Path, script: &str) -> Ran {
    run_ok(Command::new("sh").args(["-euc", script]).current_dir(dir).env("HOME", dir), LIMIT)
}

fn programs_work_on_both_sides_and_each_keeps_to_its_own(mode: DataMode) {
    needs_phifs!();
    let mut node = up(mode);
    sh(
        node.dir(),
        "git init -q -b main repo; cd repo; git config user.name a; git config user.email a@b; \
         for n in 1 2 3 4 5 6 7 8 9; do head -c ${n}0000 /dev/urandom > file$n; done; \
         mkdir sub; ln file1 sub/hard; ln -s ../file2 sub/soft; chmod 751 file3; \
         git add -A; git commit -qm first; \
         printf 'all: out\\nout: in; tr a-z A-Z < in > out\\n' > Makefile; echo text > in",
    );
    branch_off(&node, "trial");
    let side = Side::of(&node, "trial");
    let differences = || {
        let rsync = ["-aHcni", "--delete"];
        let (from, to) = (node.dir().join("repo/"), side.dir().join("repo/"));
        run_ok(Command::new("rsync").args(rsync).arg(from).arg(to), LIMIT).stdout_text()
    };
    assert_eq!(differences(), "", "a new branch is its base");
    assert_ne!(node.dir().metadata().unwrap().dev(), side.dir().metadata().unwrap().dev());
    let work = |name: &str| {
        format!(
            "cd repo; make -s; test \"$(cat out)\" = TEXT; git checkout -qb {name}; \
             for n in 1 2 3 4 5; do echo {name} $n > file$n; git commit -qam \"{name} $n\"; done; \
             git rm -q file9; mv sub {name}; git add -A; git commit -qm {name}; git gc -q; git fsck --strict"
        )
    };
    std::thread::scope(|scope| {
        scope.spawn(|| sh(node.dir(), &work("live")));
        scope.spawn(|| sh(side.dir(), &work("branched")));
    });
    for (dir, own, other) in [(node.dir(), "live", "branched"), (side.dir(), "branched", "live")] {
        let repo = dir.join("repo");
        assert_eq!(fs::read_to_string(repo.join("file3")).unwrap(), format!("{own} 3\n"));
        assert!(repo.join(own).join("hard").exists() && !repo.join(other).exists());
        let log = sh(&repo, "git log --oneline").stdout_text();
        assert!(log.lines().count() == 7 && !log.contains(other), "{log}");
    }
    sh(node.dir(), &format!("rsync -aHc --delete repo/ '{}/repo/'", side.dir().display()));
    assert_eq!(differences(), "", "after rsync");
    node.phifs(["gc"]).expect_success();
    assert_eq!(differences(), "", "after a collection");
    node.phifs(["fsck"]).expect_success();
    side.unmount();
    side.mount(&node, "trial").expect_success();
    assert_eq!(differences(), "", "after mounting the branch again");
    node.down();
    assert!(!is_mounted(side.dir()));
    node.phifs(["fsck"]).expect_success();
    node.assert_no_panic();
}

#[test]
fn programs_work_on_both_sides_and_each_keeps_to_its_own_in_passthrough() {
    programs_work_on_both_sides_and_each_keeps_to_its_own(DataMode::Passthrough);
}

#[test]
fn programs_work_on_both_sides_and_each_keeps_to_its_own_in_writeback() {
    programs_work_on_both_sides_and_each_keeps_to_its_own(DataMode::Writeback);
}

fn synced(dir: &Path, name: &str, bytes: &[u8]) {
    let file = File::create(dir.join(name)).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn killed_daemon_leaves_both_sides_with_all_that_was_synced() {
    needs_phifs!();
    let mut node = up(DataMode::Passthrough);
    synced(node.dir(), "shared", &[1; 100_000]);
    branch_off(&node, "trial");
    let side = Side::of(&node, "trial");
    for round in 0..5_u8 {
        synced(node.dir(), "live", &[round; 70_000]);
        synced(side.dir(), "own", &[round + 100; 50_000]);
        synced(side.dir(), "shared", &[round + 200; 10]);
        node.kill();
        restart(&mut node);
        assert!(!is_mounted(side.dir()), "the dead mount of the branch is cleared");
        let listed = json(node.phifs(["branch", "list", "--json"]));
        assert_eq!(listed[0]["mounts"].as_array().unwrap().len(), 0, "it is not mounted again by itself");
        if round % 2 == 0 {
            // Recovers the branch.
            node.phifs(["gc"]).expect_success();
        }
        side.mount(&node, "trial").expect_success();
        assert!(fs::read(node.dir().join("live")).unwrap() == [round; 70_000]);
        assert!(fs::read(node.dir().join("shared")).unwrap() == [1; 100_000]);
        assert!(!node.dir().join("own").exists() && !side.dir().join("live").exists());
        assert!(fs::read(side.dir().join("own")).unwrap() == [round + 100; 50_000]);
        assert!(fs::read(side.dir().join("shared")).unwrap() == [round + 200; 10]);
    }
    node.phifs(["fsck"]).expect_success();
    node.down();
    node.assert_no_panic();
}

#[test]
fn branch_can_be_mounted_again_and_deleted_as_soon_as_it_is_unmounted() {
    needs_phifs!();
    let mut node = up(DataMode::Auto);
    branch_off(&node, "trial");
    let side = Side::of(&node, "trial");
    for round in 0..10 {
        fs::write(side.dir().join("round"), format!("{round}")).unwrap();
        side.unmount();
        assert_eq!(fs::read_dir(side.dir()).unwrap().count(), 0);
        side.mount(&node, "trial").expect_success();
        assert_eq!(fs::read_to_string(side.dir().join("round")).unwrap(), format!("{round}"));
    }
    let further = Side::of(&node, "trial");
    let mounts = json(node.phifs(["mount", "--json"]));
    assert_eq!(mounts["branches"][0]["mounts"].as_array().unwrap().len(), 2, "{mounts}");
    side.unmount();
    assert!(further.dir().join("round").exists(), "one of two mounts is left");
    assert_eq!(node.phifs(["branch", "delete", "trial"]).expect_clear_failure().code(), Some(4));
    further.unmount();
    node.phifs(["branch", "delete", "trial"]).expect_success();
    assert_eq!(fs::read_dir(node.store().join("branches")).unwrap().count(), 0);
    side.mount(&node, "trial").expect_clear_failure();
    node.down();
}

#[test]
fn busy_branch_keeps_everything_up_unless_by_force() {
    needs_phifs!();
    let mut node = up(DataMode::Passthrough);
    branch_off(&node, "trial");
    let side = Side::of(&node, "trial");
    synced(side.dir(), "kept", b"kept");
    let open = File::open(side.dir().join("kept")).unwrap();
    let refused = node.phifs(["down"]).expect_clear_failure();
    assert_eq!(refused.code(), Some(4), "{refused}");
    let (dir, me) = (side.dir().to_str().unwrap(), std::process::id().to_string());
    assert!(refused.stderr_text().contains(dir) && refused.stderr_text().contains(&me), "{refused}");
    assert!(node.alive() && node.serves() && side.dir().join("kept").exists(), "a refused `down` stopped something");
    drop(open);
    // And the other way round.
    let open = File::open(node.dir()).unwrap();
    node.phifs(["down"]).expect_clear_failure();
    assert!(side.dir().join("kept").exists(), "the branch went though the volume is in use");
    drop(open);
    let open = File::open(side.dir().join("kept")).unwrap();
    node.phifs(["down", "--force"]).expect_success();
    assert!(wait_until(LIMIT, || !node.alive()));
    assert!(!is_mounted(side.dir()) && !is_mounted(node.dir()));
    drop(open);
    node.kill();
    restart(&mut node);
    side.mount(&node, "trial").expect_success();
    assert_eq!(fs::read(side.dir().join("kept")).unwrap(), b"kept");
}

#[test]
fn branch_in_use_outlives_the_mount_of_the_volume() {
    needs_phifs!();
    let mut node = up(DataMode::Passthrough);
    branch_off(&node, "trial");
    let side = Side::of(&node, "trial");
    let open = File::create(side.dir().join("written")).unwrap();
    run_ok(Command::new("umount").arg(node.dir()), LIMIT);
    assert!(wait_until(LIMIT, || node.log().contains("is in use by")));
    open.write_all_at(b"still", 0).unwrap();
    open.sync_all().unwrap();
    drop(open);
    assert!(node.alive());
    side.unmount();
    assert!(wait_until(LIMIT, || !node.alive()), "nothing is mounted any more");
    node.kill();
    restart(&mut node);
    side.mount(&node, "trial").expect_success();
    assert_eq!(fs::read(side.dir().join("written")).unwrap(), b"still");
}

#[test]
fn names_and_places_that_do_not_fit_are_refused() {
    needs_phifs!();
    let node = up(DataMode::Auto);
    branch_off(&node, "trial");
    let long = "x".repeat(300);
    for name in ["a/b", "a\nb", "", ".hidden", "..", &long] {
        let refused = node.phifs(["snapshot", "clone", "base of trial", name]).expect_clear_failure();
        assert_eq!(refused.code(), Some(2), "{name:?}: {refused}");
    }
    for command in [
        vec!["snapshot", "clone", "base of trial", "trial"],
        vec!["snapshot", "clone", "nothing", "other"],
        vec!["snapshot", "create", "--branch", "other", "of other"],
        vec!["snapshot", "create", "--branch", "trial", "base of trial"],
        vec!["snapshot", "create", "--branch", "trial", "a/b"],
        vec!["branch", "delete", "other"],
        vec!["mount", "--branch", "other", "/nowhere"],
        vec!["mount", "--branch", "trial", "/no/such/parent/dir"],
    ] {
        let refused = node.phifs(&command).expect_clear_failure();
        assert!(refused.stderr_text().contains("try: "), "{command:?}: {refused}");
    }
    let home = phifs_tests::scratch("places");
    let (full, file) = (home.path().join("full"), home.path().join("file"));
    fs::create_dir(&full).unwrap();
    fs::write(full.join("x"), b"").unwrap();
    fs::write(&file, b"").unwrap();
    for unfit in [&full, &file, &node.dir().to_owned()] {
        let refused = run(node.command(["mount", "--branch", "trial"]).arg(unfit), LIMIT).expect_clear_failure();
        assert!(refused.stderr_text().contains(unfit.to_str().unwrap()), "{refused}");
    }
    assert_eq!(json(node.phifs(["mount", "--json"]))["branches"].as_array().unwrap().len(), 0);
    // A refused mount leaves the branch free, and one that is missing is made.
    let side = Side::new();
    let made: PathBuf = side.dir().join("made");
    let mount = |dir: &Path| run(node.command(["mount", "--branch", "trial"]).arg(dir), LIMIT);
    mount(&made).expect_success();
    fs::write(made.join("secret"), b"x").unwrap();
    fs::set_permissions(made.join("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let stranger = run(Command::new("cat").arg(made.join("secret")).uid(65534).gid(65534), LIMIT);
    assert!(!stranger.success(), "{stranger}");
    run_ok(Command::new("umount").arg(&made), LIMIT);
}

#[test]
fn snapshots_of_branches_and_space_of_deleted_ones() {
    needs_phifs!();
    let mut node = up(DataMode::Auto);
    branch_off(&node, "trial");
    let side = Side::of(&node, "trial");
    sh(side.dir(), "head -c 30000000 /dev/urandom > big");
    node.phifs(["snapshot", "create", "--branch", "trial", "with big"]).expect_success();
    fs::remove_file(side.dir().join("big")).unwrap();
    node.phifs(["snapshot", "clone", "with big", "second"]).expect_success();
    node.phifs(["gc"]).expect_success();
    let second = Side::of(&node, "second");
    assert_eq!(second.dir().join("big").metadata().unwrap().len(), 30_000_000);
    let show = json(node.phifs(["snapshot", "show", "with big", "--json"]));
    let base = json(node.phifs(["snapshot", "show", "base of trial", "--json"]));
    assert_eq!(show["seal"]["parents"][0], base["seal"]["id"]);
    let packs = || -> u64 {
        let packs = fs::read_dir(node.store().join("packs")).unwrap();
        packs.map(|pack| pack.unwrap().metadata().unwrap().blocks() * 512).sum()
    };
    assert!(packs() > 30_000_000);
    second.unmount();
    side.unmount();
    node.phifs(["branch", "delete", "second"]).expect_success();
    node.phifs(["snapshot", "delete", "with big"]).expect_success();
    node.phifs(["gc"]).expect_success();
    assert!(packs() < 10_000_000, "{} bytes are left", packs());
    let usage = json(node.phifs(["df", "--json"]));
    let part = |what: &str| {
        let parts = usage["parts"].as_array().unwrap();
        parts.iter().find(|part| part["what"] == what).map_or(0, |part| part["bytes"].as_u64().unwrap())
    };
    assert!(part("branches") > 0 && part("others") < 1 << 20, "{usage}");
    node.down();
}
