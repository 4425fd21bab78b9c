//! Snapshots that go from one store to another, through files and pipes, with real processes.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use phifs_tests::{DataMode, Node, Ran, is_root, on_ext4, run, skip, wait_until};
use rustix::fs::FlockOperation;

use super::{LIMIT, needs_phifs};

/// More than an export writes between two of its checks.
const BIG_BYTES: usize = 20 << 20;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

fn json(ran: &Ran) -> serde_json::Value {
    serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran}"))
}

fn tree_root(node: &Node, snapshot: &str) -> String {
    let verified = json(&node.phifs(["snapshot", "verify", snapshot, "--json"]).expect_success());
    verified[0]["tree_root"].as_str().expect("a tree root").to_owned()
}

fn snapshots(node: &Node) -> Vec<String> {
    let listed = json(&node.phifs(["snapshot", "list", "--json"]).expect_success());
    listed.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

/// A node with something in it, and a snapshot of that.
fn filled() -> Node {
    let node = Node::up(DataMode::Passthrough);
    fs::create_dir_all(node.dir().join("a/b")).unwrap();
    fs::write(node.dir().join("a/small"), b"small").unwrap();
    fs::write(node.dir().join("a/b/big"), noise(1, BIG_BYTES)).unwrap();
    fs::hard_link(node.dir().join("a/small"), node.dir().join("a/b/link")).unwrap();
    std::os::unix::fs::symlink("../small", node.dir().join("a/b/sym")).unwrap();
    node.phifs(["snapshot", "create", "monday"]).expect_success();
    node
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A new node whose store is made out of an export.
fn node_out_of(file: &Path) -> Node {
    let node = Node::new(DataMode::Passthrough);
    run(node.command(["up", "--from", path(file)]).arg("--mount").arg(node.dir()), LIMIT).expect_success();
    node
}

#[test]
fn a_volume_goes_through_a_pipe_to_another_store_and_what_changes_follows() {
    needs_phifs!();
    let old = filled();
    let new = Node::new(DataMode::Passthrough);
    let pipe = |name: &str, since: &[&str], mut reader: std::process::Command| {
        let mut writer = old.command(["snapshot", "export", name, "-"]);
        let mut writer = writer.args(since).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        reader.stdin(writer.stdout.take().unwrap());
        // `run` gives a command no input, so this one is waited for by itself.
        let read = reader.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        assert!(writer.wait().unwrap().success());
    };
    let mut up = new.command(["up", "--from", "-"]);
    up.arg("--mount").arg(new.dir());
    pipe("monday", &[], up);
    assert_eq!(fs::read(new.dir().join("a/b/big")).unwrap(), noise(1, BIG_BYTES));
    assert_eq!(tree_root(&new, "monday"), tree_root(&old, "monday"));

    fs::write(old.dir().join("a/small"), b"changed").unwrap();
    fs::rename(old.dir().join("a/b"), old.dir().join("c")).unwrap();
    old.phifs(["snapshot", "create", "tuesday"]).expect_success();
    pipe("tuesday", &["--since", "monday"], new.command(["snapshot", "import", "-"]));
    assert_eq!(snapshots(&new), ["monday", "tuesday"]);
    assert_eq!(tree_root(&new, "tuesday"), tree_root(&old, "tuesday"));
    // The live volume is as it was.
    assert_eq!(fs::read(new.dir().join("a/small")).unwrap(), b"small");

    // And back, once the first has been told whom to believe.
    fs::write(new.dir().join("said here"), b"new").unwrap();
    new.phifs(["snapshot", "create", "wednesday"]).expect_success();
    let files = tempfile::tempdir().unwrap();
    let file = files.path().join("wednesday.phi");
    new.phifs(["snapshot", "export", "wednesday", path(&file), "--since", "monday"]).expect_success();
    let refused = old.phifs(["snapshot", "import", path(&file)]).expect_clear_failure();
    let hint = refused.stderr_text();
    let digits = hint.split("--trust ").nth(1).expect("the hint says how").split_whitespace().next().unwrap();
    old.phifs(["snapshot", "import", path(&file), "--trust", digits, "--name", "theirs"]).expect_success();
    assert_eq!(tree_root(&old, "theirs"), tree_root(&new, "wednesday"));
    new.phifs(["down"]).expect_success();
}

#[test]
fn an_export_gets_its_name_when_it_is_whole_and_goes_on_when_it_was_interrupted() {
    needs_phifs!();
    let node = filled();
    let files = tempfile::tempdir().unwrap();
    let (file, partial) = (files.path().join("monday.phi"), files.path().join("monday.phi.partial"));
    let export = || node.phifs(["snapshot", "export", "monday", path(&file), "--json"]);
    let first = json(&export().expect_success());
    let whole = fs::read(&file).unwrap();
    assert_eq!((first["bytes"].as_u64(), first["resumed_bytes"].as_u64()), (Some(whole.len() as u64), Some(0)));
    assert!(!partial.exists());

    fs::remove_file(&file).unwrap();
    fs::write(&partial, &whole[..13 << 20]).unwrap();
    let again = json(&export().expect_success());
    assert!(again["resumed_bytes"].as_u64().unwrap() > 8 << 20, "{again}");
    assert!(fs::read(&file).unwrap() == whole);

    let other = File::create(&partial).unwrap();
    rustix::fs::flock(&other, FlockOperation::LockExclusive).unwrap();
    assert_eq!(export().expect_clear_failure().code(), Some(4));
    drop(other);
    node.phifs(["snapshot", "export", "sunday", path(&file)]).expect_clear_failure();
    assert!(fs::read(&file).unwrap() == whole, "an export that failed took away an older one");
    let nowhere = files.path().join("no/such/directory");
    node.phifs(["snapshot", "export", "monday", path(&nowhere)]).expect_clear_failure();
    node.phifs(["snapshot", "export", "monday", "/dev/full"]).expect_clear_failure();
}

#[test]
fn what_does_not_belong_here_is_refused_with_a_reason_and_changes_nothing() {
    needs_phifs!();
    let old = filled();
    fs::write(old.dir().join("a/small"), b"changed").unwrap();
    old.phifs(["snapshot", "create", "tuesday"]).expect_success();
    let files = tempfile::tempdir().unwrap();
    let at = |name: &str| files.path().join(name);
    let (full, increment) = (at("full"), at("increment"));
    old.phifs(["snapshot", "export", "monday", path(&full)]).expect_success();
    old.phifs(["snapshot", "export", "tuesday", path(&increment), "--since", "monday"]).expect_success();
    let good = fs::read(&increment).unwrap();
    fs::write(at("cut"), &good[..good.len() - 1]).unwrap();
    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 1;
    fs::write(at("damaged"), damaged).unwrap();
    fs::write(at("text"), b"no export").unwrap();

    let new = node_out_of(&full);
    for (file, word) in [("cut", "early"), ("damaged", "damaged"), ("text", "no exported snapshot")] {
        let refused = new.phifs(["snapshot", "import", path(&at(file))]).expect_clear_failure();
        assert!(refused.stderr_text().contains(word), "{file}: {refused}");
        assert_eq!(refused.code(), Some(1));
    }
    new.phifs(["snapshot", "import", path(&at("not there"))]).expect_clear_failure();
    let stranger = Node::up(DataMode::Passthrough);
    let refused = stranger.phifs(["snapshot", "import", path(&full)]).expect_clear_failure();
    assert!(refused.stderr_text().contains("another volume"), "{refused}");
    assert!(snapshots(&stranger).is_empty());
    assert_eq!(snapshots(&new), ["monday"]);

    new.phifs(["snapshot", "delete", "monday"]).expect_success();
    let refused = new.phifs(["snapshot", "import", path(&increment)]).expect_clear_failure();
    assert!(refused.stderr_text().contains("\"monday\""), "it does not say what to import first: {refused}");
    new.phifs(["snapshot", "import", path(&full)]).expect_success();
    new.phifs(["snapshot", "create", "tuesday"]).expect_success();
    new.phifs(["snapshot", "import", path(&increment)]).expect_clear_failure();
    new.phifs(["snapshot", "import", path(&increment), "--name", "theirs"]).expect_success();
    assert_eq!(tree_root(&new, "theirs"), tree_root(&old, "tuesday"));

    // A store that has a volume, served or not, is never made anew; and half an export makes none.
    let up = |node: &Node, file: &Path| {
        run(node.command(["up", "--from", path(file)]).arg("--mount").arg(node.dir()), LIMIT).expect_clear_failure()
    };
    up(&new, &full);
    new.phifs(["down"]).expect_success();
    up(&new, &full);
    let none = Node::new(DataMode::Passthrough);
    let half = at("half");
    fs::write(&half, &fs::read(&full).unwrap()[..BIG_BYTES / 2]).unwrap();
    up(&none, &half);
    let refused = run(none.command(["up"]).arg("--mount").arg(none.dir()), LIMIT).expect_clear_failure();
    assert!(refused.stderr_text().contains("--from"), "{refused}");
    run(none.command(["up", "--from", path(&full)]).arg("--mount").arg(none.dir()), LIMIT).expect_success();
    assert_eq!(fs::read(none.dir().join("a/b/big")).unwrap(), noise(1, BIG_BYTES));
    none.phifs(["down"]).expect_success();
}

#[test]
fn an_import_whose_daemon_was_killed_goes_on_where_it_was() {
    needs_phifs!();
    let old = filled();
    let files = tempfile::tempdir().unwrap();
    let full = files.path().join("full");
    old.phifs(["snapshot", "export", "monday", path(&full)]).expect_success();
    fs::write(old.dir().join("more"), noise(2, BIG_BYTES)).unwrap();
    old.phifs(["snapshot", "create", "tuesday"]).expect_success();
    let increment = files.path().join("increment");
    old.phifs(["snapshot", "export", "tuesday", path(&increment), "--since", "monday"]).expect_success();
    let stream = fs::read(&increment).unwrap();

    let mut new = Node::new(DataMode::Passthrough);
    run(new.command(["up", "--from", path(&full)]).arg("--mount").arg(new.dir()), LIMIT).expect_success();
    new.phifs(["down"]).expect_success();
    new.start();
    let packs = || -> u64 {
        let packs = fs::read_dir(new.store().join("packs")).unwrap();
        packs.map(|pack| pack.unwrap().metadata().unwrap().len()).sum()
    };
    let before = packs();
    let mut import = new.command(["snapshot", "import", "-"]);
    let mut import = import.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = import.stdin.take().unwrap();
    input.write_all(&stream[..15 << 20]).unwrap();
    assert!(wait_until(Duration::from_secs(30), || packs() > before), "nothing was stored");
    std::thread::sleep(Duration::from_millis(500));
    new.kill();
    drop(input);
    assert!(!import.wait().unwrap().success());

    new.start();
    assert_eq!(snapshots(&new), ["monday"]);
    let imported = json(&new.phifs(["snapshot", "import", path(&increment), "--json"]).expect_success());
    assert!(imported["new_glyphs"].as_u64() < imported["glyphs"].as_u64(), "nothing was found again: {imported}");
    assert_eq!(tree_root(&new, "tuesday"), tree_root(&old, "tuesday"));
    new.assert_no_panic();
}
