//! Merges as a user meets them.

use std::fs::{self, File};
use std::io::Read as _;

use phifs_tests::{DataMode, Node, Ran, is_root, on_ext4, skip, wait_until};

use super::{LIMIT, needs_phifs};

fn json(ran: &Ran) -> serde_json::Value {
    serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran}"))
}

fn lines(ran: &Ran) -> Vec<String> {
    ran.stdout_text().lines().map(str::to_owned).collect()
}

fn snapshots(node: &Node) -> Vec<String> {
    let listed = json(&node.phifs(["snapshot", "list", "--json"]).expect_success());
    listed.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

/// A volume with a branch that is mounted, where both have changed something since.
fn forked(mode: DataMode) -> (Node, tempfile::TempDir) {
    let node = Node::up(mode);
    fs::create_dir(node.dir().join("dir")).unwrap();
    for name in ["dir/edited", "dir/removed", "dir/same"] {
        fs::write(node.dir().join(name), name).unwrap();
    }
    node.phifs(["snapshot", "create", "base"]).expect_success();
    node.phifs(["snapshot", "clone", "base", "trial"]).expect_success();
    let trial = tempfile::tempdir().unwrap();
    node.phifs(["mount", "--branch", "trial", trial.path().to_str().unwrap()]).expect_success();
    let at = |name: &str| trial.path().join(name);
    fs::write(at("dir/edited"), b"edited in the trial").unwrap();
    fs::remove_file(at("dir/removed")).unwrap();
    fs::create_dir(at("new")).unwrap();
    fs::write(at("new/file"), b"new").unwrap();
    fs::write(node.dir().join("live"), b"live").unwrap();
    (node, trial)
}

fn unmount(node: &Node, trial: &tempfile::TempDir) {
    rustix::mount::unmount(trial.path(), rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(wait_until(LIMIT, || node.phifs(["branch", "delete", "trial"]).success()), "the branch is not closed");
}

#[test]
fn a_branch_is_merged_into_the_volume_under_open_files_and_back() {
    needs_phifs!();
    for mode in [DataMode::Passthrough, DataMode::Writeback] {
        let (node, trial) = forked(mode);
        let at = |name: &str| node.dir().join(name);
        // The kernel has all of it in its caches.
        fs::read(at("dir/removed")).unwrap();
        assert_eq!(fs::read_dir(at("dir")).unwrap().count(), 3);
        let mut open = File::open(at("dir/edited")).unwrap();

        let told = node.phifs(["merge", "trial", "--dry-run"]).expect_success();
        let told = lines(&told);
        for expected in ["A /new/", "A /new/file  3 B", "D /dir/removed", "M /dir/edited  10 B -> 19 B"] {
            assert!(told.iter().any(|line| line.starts_with(expected)), "{expected}: {told:?}");
        }
        assert!(at("dir/removed").exists() && !at("new").exists());

        node.phifs(["merge", "trial"]).expect_success();
        assert_eq!(fs::read(at("new/file")).unwrap(), b"new");
        assert!(!at("dir/removed").exists());
        assert_eq!(fs::read_dir(at("dir")).unwrap().count(), 2);
        let mut seen = String::new();
        open.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "dir/edited", "it was opened before");
        drop(open);
        // The kernel tells of a close when it is over, and only then does it have to forget the length.
        let is_new = || fs::read(at("dir/edited")).unwrap() == b"edited in the trial";
        assert!(wait_until(LIMIT, is_new), "the last user is gone");
        let has_length = || fs::metadata(at("dir/edited")).unwrap().len() == 19;
        assert!(wait_until(LIMIT, has_length), "the kernel has not forgotten the file");

        let again = json(&node.phifs(["merge", "trial", "--json"]).expect_success());
        assert_eq!(again["operations"], 0);
        assert!(!trial.path().join("live").exists());
        node.phifs(["merge", "live", "--into", "trial"]).expect_success();
        assert_eq!(fs::read(trial.path().join("live")).unwrap(), b"live");
        unmount(&node, &trial);
        node.phifs(["fsck"]).expect_success();
    }
}

#[test]
fn names_are_looked_for_and_those_that_mean_several_things_are_refused() {
    needs_phifs!();
    let (node, trial) = forked(DataMode::Passthrough);
    node.phifs(["snapshot", "create", "trial"]).expect_success();
    let refused = node.phifs(["merge", "trial"]).expect_clear_failure();
    assert_eq!(refused.status.and_then(|status| status.code()), Some(2), "{refused}");
    for word in ["a branch and a snapshot", "branch:trial", "snapshot:trial"] {
        assert!(refused.stderr_text().contains(word), "{word}: {refused}");
    }
    node.phifs(["merge", "branch:trial"]).expect_success();
    let nothing = node.phifs(["merge", "snapshot:trial"]).expect_success();
    assert!(nothing.stderr_text().contains("nothing to merge"), "{nothing}");
    for wrong in [
        &["merge", "no such"][..],
        &["merge", "branch:no"],
        &["merge", "file:/no/such"],
        &["merge", "live", "--as", "x"],
    ] {
        node.phifs(wrong).expect_clear_failure();
    }
    unmount(&node, &trial);
}

#[test]
fn an_export_is_merged_and_two_snapshots_make_a_third() {
    needs_phifs!();
    let (node, trial) = forked(DataMode::Passthrough);
    node.phifs(["snapshot", "create", "--branch", "trial", "of trial"]).expect_success();
    node.phifs(["snapshot", "create", "of live"]).expect_success();
    let both = json(&node.phifs(["merge", "of trial", "--into", "of live", "--as", "both", "--json"]).expect_success());
    assert_eq!(both["snapshot"], "both");
    assert!(!node.dir().join("new").exists());
    let shown = json(&node.phifs(["snapshot", "show", "both", "--json"]).expect_success());
    assert_eq!(shown["seal"]["parents"].as_array().unwrap().len(), 2, "{shown}");
    assert_eq!(fs::read(node.dir().join(".phi/snapshots/both/new/file")).unwrap(), b"new");

    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("trial.phi");
    node.phifs(["snapshot", "export", "of trial", file.to_str().unwrap()]).expect_success();
    node.phifs(["snapshot", "delete", "of trial"]).expect_success();
    let before = snapshots(&node);
    node.phifs(["merge", file.to_str().unwrap(), "--dry-run"]).expect_success();
    node.phifs(["merge", file.to_str().unwrap()]).expect_success();
    assert_eq!(snapshots(&node), before, "what it was called for the time being is gone");
    assert_eq!(fs::read(node.dir().join("new/file")).unwrap(), b"new");

    // A volume that has nothing to do with it.
    let stranger = Node::up(DataMode::Passthrough);
    fs::write(stranger.dir().join("strange"), b"strange").unwrap();
    stranger.phifs(["snapshot", "create", "strange"]).expect_success();
    let file = files.path().join("strange.phi");
    stranger.phifs(["snapshot", "export", "strange", file.to_str().unwrap()]).expect_success();
    let refused = node.phifs(["merge", file.to_str().unwrap()]).expect_clear_failure();
    assert!(refused.stderr_text().contains("another volume"), "{refused}");
    let refused = node.phifs(["merge", file.to_str().unwrap(), "--unrelated"]).expect_clear_failure();
    let hint = refused.stderr_text();
    let digits = hint.split("--trust ").nth(1).expect("the hint says how").split_whitespace().next().unwrap();
    node.phifs(["merge", file.to_str().unwrap(), "--unrelated", "--trust", digits]).expect_success();
    assert_eq!(fs::read(node.dir().join("strange")).unwrap(), b"strange");
    unmount(&node, &trial);
}
