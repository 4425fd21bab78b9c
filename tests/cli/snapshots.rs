//! Snapshots and settings as a user meets them: compared, put back, pruned, taken by the schedule.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use phifs_tests::{DataMode, Node, Ran, is_root, on_ext4, skip, wait_until};

use super::{LIMIT, needs_phifs};

fn lines(ran: &Ran) -> Vec<String> {
    String::from_utf8_lossy(&ran.stdout).lines().map(str::to_owned).collect()
}

fn names(node: &Node) -> Vec<String> {
    let listed = node.phifs(["snapshot", "list", "--json"]).expect_success();
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    listed.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_volume_is_compared_with_a_snapshot_and_put_back_under_open_files() {
    needs_phifs!();
    for mode in [DataMode::Passthrough, DataMode::Writeback] {
        let node = Node::up(mode);
        let at = |path: &str| node.dir().join(path);
        fs::create_dir_all(at("tree/below")).unwrap();
        fs::write(at("tree/below/kept"), b"kept").unwrap();
        fs::write(at("changed"), vec![1; 100_000]).unwrap();
        fs::write(at("removed"), b"removed").unwrap();
        fs::hard_link(at("removed"), at("tree/name")).unwrap();
        node.phifs(["snapshot", "create", "before"]).expect_success();

        fs::rename(at("tree"), at("moved")).unwrap();
        fs::remove_file(at("removed")).unwrap();
        fs::write(at("changed"), vec![2; 50_000]).unwrap();
        fs::set_permissions(at("moved/below/kept"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(at("new"), b"new").unwrap();
        let told = node.phifs(["snapshot", "diff", "before"]).expect_success();
        let wanted = [
            "M /changed  97.7 KiB -> 48.8 KiB",
            "R /tree/ -> /moved/",
            "M /moved/below/kept  attributes",
            "A /new  3 B",
            "D /removed",
        ];
        assert_eq!(lines(&told).len(), wanted.len(), "{told}");
        assert!(wanted.iter().all(|wanted| lines(&told).iter().any(|line| line.starts_with(wanted))), "{told}");

        let mut open = File::options().read(true).append(true).open(at("changed")).unwrap();
        let dry = node.phifs(["snapshot", "restore", "before", "--dry-run"]).expect_success();
        assert_eq!(fs::read(at("new")).unwrap(), b"new", "{dry}");
        node.phifs(["snapshot", "restore", "before"]).expect_success();
        assert_eq!(fs::read(at("changed")).unwrap(), vec![1; 100_000]);
        assert_eq!(fs::read(at("tree/below/kept")).unwrap(), b"kept");
        assert_eq!(fs::metadata(at("tree/below/kept")).unwrap().mode() & 0o777, 0o644);
        assert_eq!(fs::metadata(at("removed")).unwrap().ino(), fs::metadata(at("tree/name")).unwrap().ino());
        assert!(!at("new").exists() && !at("moved").exists());
        // Whoever had it open has what it was.
        open.write_all(b"more").unwrap();
        let mut bytes = Vec::new();
        open.read_to_end(&mut bytes).unwrap();
        drop(open);
        assert_eq!(fs::metadata(at("changed")).unwrap().len(), 100_000);
        let again = node.phifs(["snapshot", "diff", "before", "--stat"]).expect_success();
        assert!(String::from_utf8_lossy(&again.stdout).contains(" 0 renamed"), "{again}");

        // And the other way round, one path only.
        let kept = names(&node).into_iter().find(|name| name.starts_with("before-restore")).unwrap();
        let new = at("new");
        node.phifs(["snapshot", "restore", &kept, new.to_str().unwrap()]).expect_success();
        assert_eq!(fs::read(at("new")).unwrap(), b"new");
        assert!(at("tree").exists(), "nothing else was put back");
        node.phifs(["fsck"]).expect_success();
        node.assert_no_panic();
    }
}

#[test]
fn wrong_names_paths_and_rules_are_refused_with_nothing_changed() {
    needs_phifs!();
    let node = Node::up(DataMode::Passthrough);
    node.phifs(["snapshot", "create", "one"]).expect_success();
    let long = "x".repeat(300);
    let refused: [(&[&str], i32); 12] = [
        (&["snapshot", "create", "one"], 1),
        (&["snapshot", "create", "a/b"], 2),
        (&["snapshot", "create", "a\nb"], 2),
        (&["snapshot", "create", &long], 2),
        (&["snapshot", "show", "two"], 1),
        (&["snapshot", "diff", "one", "two"], 1),
        (&["snapshot", "restore", "one", "/nowhere"], 1),
        (&["snapshot", "delete", "one", "two"], 1),
        (&["snapshot", "prune"], 2),
        (&["volume", "set", "compression", "99"], 2),
        (&["volume", "set", "snapshot.every", "soon"], 2),
        (&["volume", "get", "nothing"], 2),
    ];
    for (arguments, code) in refused {
        let ran = node.phifs(arguments);
        assert_eq!(ran.status.and_then(|status| status.code()), Some(code), "{arguments:?}: {ran}");
        assert!(String::from_utf8_lossy(&ran.stderr).starts_with("error: "), "{ran}");
    }
    assert_eq!(names(&node), ["one"]);
}

#[test]
fn the_schedule_takes_snapshots_only_of_changes_and_keeps_what_the_rules_say() {
    needs_phifs!();
    let mut node = Node::up(DataMode::Passthrough);
    node.phifs(["snapshot", "create", "by-hand"]).expect_success();
    node.phifs(["volume", "set", "snapshot.keep", "last=2"]).expect_success();
    node.phifs(["volume", "set", "snapshot.every", "1s"]).expect_success();
    let scheduled = |node: &Node| names(node).into_iter().filter(|name| name.starts_with("auto-")).collect::<Vec<_>>();
    let mut seen = std::collections::BTreeSet::new();
    let mut n = 0;
    let taken = wait_until(LIMIT, || {
        n += 1;
        fs::write(node.dir().join("file"), format!("{n}")).unwrap();
        let now = scheduled(&node);
        assert!(now.len() <= 3, "{now:?}");
        seen.extend(now);
        seen.len() >= 3
    });
    assert!(taken, "three snapshots of the schedule");
    assert!(names(&node).contains(&"by-hand".to_owned()), "those taken by hand stay");
    // Settings belong to the volume.
    node.down();
    node.start();
    let kept = node.phifs(["volume", "get", "snapshot.keep"]).expect_success();
    assert_eq!(lines(&kept), ["last=2"]);
    node.phifs(["volume", "unset", "snapshot.every"]).expect_success();
    let pruned = node.phifs(["snapshot", "prune", "--scheduled", "--keep-last", "1"]).expect_success();
    assert!(lines(&pruned).iter().filter(|line| line.starts_with("kept")).count() == 1, "{pruned}");
    assert_eq!(scheduled(&node).len(), 1);
}
