//! A volume on its way to a new machine over a slow line.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use phifs_tests::{DataMode, Network, Node, is_root, on_ext4, skip, wait_until};

use super::{invitation, json, noise};

/// Much less when this machine is quiet.
const LIMIT: Duration = Duration::from_secs(60);
const DIRS: usize = 40;
const FILES: usize = 1000;
/// The metadata take about half a minute.
const RATE: &str = "1mbit";

fn arriving(node: &Node) -> serde_json::Value {
    json(node, &["status"])["arriving"].clone()
}

#[track_caller]
fn assert_browseable(node: &Node, long: &[u8]) {
    let names = fs::read_dir(node.dir()).unwrap().count();
    assert_eq!(names, DIRS + 1);
    assert_eq!(fs::read_dir(node.dir().join("dir 7")).unwrap().count(), FILES);
    let path = node.dir().join("dir 7/file 77");
    assert_eq!((fs::read(&path).unwrap(), path.metadata().unwrap().len()), (b"7, 77".to_vec(), 5));
    assert_eq!(fs::read(node.dir().join("long")).unwrap(), long);
    assert!(!node.dir().join("dir 7/file x").exists());
    let refused = fs::write(node.dir().join("new"), "").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
    let failed = node.phifs(["members"]);
    assert!(!failed.success() && failed.to_string().contains("on its way"), "{failed}");
}

#[test]
fn a_new_machine_can_be_browsed_at_once_and_goes_on_after_a_break() {
    if on_ext4() || !is_root() {
        skip!("about phifs, as root");
    }
    let network = match Network::new(2) {
        Ok(network) => network,
        Err(error) => skip!("no network namespaces here: {error}"),
    };
    let [mut a, mut b] = [0, 1].map(|at| Node::on(network.host(at), DataMode::Auto));
    a.start();
    for dir in 0..DIRS {
        let path = a.dir().join(format!("dir {dir}"));
        fs::create_dir(&path).unwrap();
        for file in 0..FILES {
            fs::write(path.join(format!("file {file}")), format!("{dir}, {file}")).unwrap();
        }
    }
    let long = noise(3, 100_000);
    fs::write(a.dir().join("long"), &long).unwrap();
    let token = invitation(&a);
    if let Err(error) = network.slow_down(0, RATE) {
        skip!("no slow network here: {error}");
    }

    let began = Instant::now();
    b.start_early_with(["join", &token]);
    assert_browseable(&b, &long);
    eprintln!("browsed after {:.1?}: {}", began.elapsed(), arriving(&b));
    let rows = |node: &Node| arriving(node)["rows"].as_u64().unwrap_or(u64::MAX);
    assert!(wait_until(LIMIT, || rows(&b) > 20_000), "{}", arriving(&b));
    let by_then = rows(&b);

    b.kill();
    b.unmount_dead();
    b.start_early_with(["up"]);
    assert!(wait_until(LIMIT, || rows(&b) >= by_then / 2), "{}", arriving(&b));
    assert_browseable(&b, &long);
    // The other machine goes, and comes back.
    a.kill();
    a.unmount_dead();
    assert!(wait_until(LIMIT, || arriving(&b)["connected"] == 0), "{}", arriving(&b));
    assert_eq!(fs::read(b.dir().join("long")).unwrap(), long, "what is here is here");
    a.start();

    let inside = fs::File::open(b.dir().join("dir 7/file 78")).unwrap();
    let number = inside.metadata().unwrap().ino();
    network.speed_up(0).unwrap();
    assert!(wait_until(LIMIT, || !b.is_read_only()), "{}\n{}", arriving(&b), b.log());
    assert_eq!(std::io::read_to_string(&inside).unwrap(), "7, 78", "whoever was inside goes on");
    assert_eq!(b.dir().join("dir 7/file 78").metadata().unwrap().ino(), number);
    assert!(wait_until(LIMIT, || arriving(&b).is_null()));
    fs::write(b.dir().join("new"), "of b").unwrap();
    assert!(wait_until(LIMIT, || fs::read(a.dir().join("new")).is_ok_and(|read| read == b"of b")), "{}", b.log());
    drop(inside);
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let mounts = table.lines().filter(|line| line.contains(b.dir().to_str().unwrap())).count();
    assert_eq!(mounts, 1);
    for node in [&a, &b] {
        node.phifs(["fsck"]).expect_success();
        node.assert_no_panic();
    }
}
