//! Several machines with one volume: real daemons and real mounts, on loopback.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use phifs_tests::{DataMode, Node, is_root, on_ext4, skip, wait_until};

/// What was written here is there by then. It takes milliseconds; the machine of a test may be busy with others.
const SOON: Duration = Duration::from_secs(10);
const LISTEN: &str = "127.0.0.1:0";

/// Ends the test where there is no phifs to ask.
macro_rules! needs_phifs {
    () => {
        if on_ext4() || !is_root() {
            skip!("about phifs, as root");
        }
    };
}

/// A first machine with a volume, which others can join.
fn first() -> Node {
    let mut node = Node::new(DataMode::Auto);
    node.start_with(["up", "--listen", LISTEN]);
    node
}

fn invitation(node: &Node) -> String {
    // It is mounted a moment before it can be asked.
    assert!(wait_until(SOON, || node.phifs(["status"]).success()), "{}", node.log());
    node.phifs(["invite", "--quiet"]).expect_success().stdout_text().trim().to_owned()
}

fn joined(other: &Node) -> Node {
    let mut node = Node::new(DataMode::Auto);
    node.start_with(["join", &invitation(other), "--listen", LISTEN]);
    node
}

fn reads(dir: &Path, name: &str, wanted: &[u8]) -> bool {
    wait_until(SOON, || fs::read(dir.join(name)).is_ok_and(|bytes| bytes == wanted))
}

/// What a snapshot that is taken now says of the state.
fn root(node: &Node, name: &str) -> serde_json::Value {
    node.phifs(["snapshot", "create", name]).expect_success();
    let shown = node.phifs(["--json", "snapshot", "show", name]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.expect_success().stdout).expect("JSON");
    shown["root"].clone()
}

#[track_caller]
fn assert_same_root(nodes: &[&Node]) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let same = wait_until(SOON, || {
        let name = format!("compared-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let roots: Vec<_> = nodes.iter().map(|node| root(node, &name)).collect();
        assert!(roots[0].is_string(), "{roots:?}");
        roots.windows(2).all(|two| two[0] == two[1])
    });
    assert!(same, "the roots differ");
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

#[test]
fn what_one_machine_writes_the_others_read_and_a_killed_one_catches_up() {
    needs_phifs!();
    let a = first();
    let long = noise(1, 3 << 20);
    fs::write(a.dir().join("long"), &long).unwrap();
    fs::create_dir(a.dir().join("dir")).unwrap();
    let mut b = joined(&a);
    assert_eq!(fs::read(b.dir().join("long")).unwrap(), long, "all that was there is there at once");

    fs::write(a.dir().join("dir/from a"), "a").unwrap();
    assert!(reads(b.dir(), "dir/from a", b"a"));
    fs::write(b.dir().join("dir/from b"), "b").unwrap();
    assert!(reads(a.dir(), "dir/from b", b"b"));
    fs::write(b.dir().join("dir/from a"), "a, and then b").unwrap();
    assert!(reads(a.dir(), "dir/from a", b"a, and then b"));
    assert_same_root(&[&a, &b]);

    b.kill();
    fs::write(a.dir().join("while it was down"), "x").unwrap();
    fs::remove_file(a.dir().join("dir/from b")).unwrap();
    b.unmount_dead();
    b.start();
    assert!(reads(b.dir(), "while it was down", b"x"), "{}", b.log());
    assert!(wait_until(SOON, || !b.dir().join("dir/from b").exists()));
    fs::write(b.dir().join("after"), "y").unwrap();
    assert!(reads(a.dir(), "after", b"y"), "{}", a.log());

    let c = joined(&b);
    fs::write(c.dir().join("of a third"), "z").unwrap();
    assert!(reads(a.dir(), "of a third", b"z"), "it was invited by the second");
    assert_same_root(&[&a, &b, &c]);
    let all_connected = || {
        let members = a.phifs(["--json", "members"]).expect_success();
        let members: serde_json::Value = serde_json::from_slice(&members.stdout).expect("JSON");
        let members = members.as_array().expect("a list");
        members.len() == 3 && members.iter().all(|member| member["connected"] == true)
    };
    assert!(wait_until(SOON, all_connected), "{}", a.phifs(["members"]));
    for node in [&a, &b, &c] {
        node.assert_no_panic();
    }
}

#[test]
fn both_sides_go_on_alone_and_what_both_wrote_is_kept() {
    needs_phifs!();
    let a = first();
    let mut b = joined(&a);
    fs::write(a.dir().join("file"), "at first").unwrap();
    assert!(reads(b.dir(), "file", b"at first"));
    // Nobody tells anybody anything while one of them is down.
    b.down();
    fs::write(a.dir().join("file"), "of a").unwrap();
    fs::write(a.dir().join("only a"), "a").unwrap();
    let mut a = a;
    a.down();
    b.start();
    fs::write(b.dir().join("file"), "of b").unwrap();
    fs::write(b.dir().join("only b"), "b").unwrap();
    a.start();
    assert!(reads(a.dir(), "only b", b"b"), "{}", a.log());
    assert!(reads(b.dir(), "only a", b"a"), "{}", b.log());
    assert_same_root(&[&a, &b]);
    let both = [&a, &b].map(|node| fs::read_to_string(node.dir().join("file")).unwrap());
    assert!(both[0] == both[1] && both[0].starts_with("of "), "{both:?}");
    let disputed = a.phifs(["conflicts"]).expect_success().stdout_text().to_string();
    assert!(disputed.contains("file"), "{disputed}");
}

#[test]
fn nobody_comes_in_without_an_invitation_that_is_good() {
    needs_phifs!();
    let a = first();
    let alone = Node::new(DataMode::Auto);
    let refused = |token: &str| {
        let ran = alone.phifs(["join", token, "--mount", alone.dir().to_str().unwrap(), "--listen", LISTEN]);
        assert!(!ran.success(), "{ran}");
        assert!(!alone.serves());
        ran.stderr_text().to_string()
    };
    let token = invitation(&a);
    assert!(refused(&token[..token.len() - 3]).contains("cut off"));
    assert!(refused("hello").contains("no invitation"));
    let short = a.phifs(["invite", "--quiet", "--expires", "1s"]).expect_success().stdout_text().trim().to_owned();
    std::thread::sleep(Duration::from_millis(1100));
    let said = refused(&short);
    assert!(said.contains("expired"), "{said}");

    let mut b = Node::new(DataMode::Auto);
    b.start_with(["join", &token, "--listen", LISTEN]);
    let said = refused(&token);
    assert!(said.contains("used by another node"), "{said}");
    // The one that it admitted may use it again, as long as it is the same volume.
    b.down();
    b.start_with(["join", &token]);
    fs::write(b.dir().join("x"), "x").unwrap();
    assert!(reads(a.dir(), "x", b"x"));
    let other = first();
    let said = b.phifs(["join", &invitation(&other)]).stderr_text().to_string();
    assert!(said.contains("holds a volume"), "{said}");
    b.down();
    let said = b.phifs(["join", &invitation(&other), "--mount", b.dir().to_str().unwrap()]).stderr_text().to_string();
    assert!(said.contains("holds another volume"), "{said}");
}

#[test]
fn an_invitation_is_not_to_be_seen_among_the_processes() {
    needs_phifs!();
    let a = first();
    let picture = a.phifs(["invite", "--qr"]).expect_success().stdout_text().to_string();
    assert!(picture.contains('\u{2588}') && picture.contains("phi1-"), "{picture}");
    let file = a.store().join("../invitation");
    for way in ["argument", "file", "input"] {
        let (node, token) = (Node::new(DataMode::Auto), invitation(&a));
        let mount = ["--mount", node.dir().to_str().unwrap(), "--listen", LISTEN];
        fs::write(&file, format!("{}\n {}\n", &token[..30], &token[30..])).unwrap();
        let words = match way {
            "argument" => vec![token.as_str()],
            "file" => vec!["--token-file", file.to_str().unwrap()],
            _ => vec!["-"],
        };
        let mut command = node.command([&["join"], &words[..], &mount].concat());
        let joined = command.stdin(fs::File::open(&file).unwrap()).output().unwrap();
        assert!(joined.status.success(), "{way}: {joined:?}");
        let pid = fs::read_to_string(node.store().join("phifs.pid")).unwrap();
        for seen in ["cmdline", "environ"] {
            let seen = fs::read(format!("/proc/{}/{seen}", pid.trim())).unwrap();
            let seen = String::from_utf8_lossy(&seen).into_owned();
            assert!(!seen.contains("phi1-") && !seen.contains(&token[30..60]), "{way}: {seen}");
        }
        node.phifs(["down"]).expect_success();
    }
}

#[test]
fn a_port_in_use_is_named() {
    needs_phifs!();
    let taken = std::net::UdpSocket::bind(LISTEN).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let node = Node::new(DataMode::Auto);
    let ran = node.phifs(["up", "--mount", node.dir().to_str().unwrap(), "--listen", &address]);
    assert!(!ran.success() && ran.stderr_text().contains(&format!("cannot listen at {address}")), "{ran}");
    assert!(!node.serves());
}
