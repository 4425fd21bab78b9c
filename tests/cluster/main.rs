//! Several machines with one volume: real daemons and real mounts, on loopback.

mod arrival;
mod namespaces;

use std::fs;
use std::path::Path;
use std::process::Command;
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
    // It is mounted a moment before it can be asked.
    assert!(wait_until(SOON, || node.phifs(["status"]).success()), "{}", node.log());
    node
}

fn invitation(node: &Node) -> String {
    assert!(wait_until(SOON, || node.phifs(["status"]).success()), "{}", node.log());
    node.phifs(["invite", "--quiet"]).expect_success().stdout_text().trim().to_owned()
}

fn joined(other: &Node) -> Node {
    let mut node = Node::new(DataMode::Auto);
    node.start_with(["join", &invitation(other), "--listen", LISTEN]);
    assert!(wait_until(SOON, || node.phifs(["status"]).success()), "{}", node.log());
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
    let refused_with = |code: i32, token: &str| {
        let ran = alone.phifs(["join", token, "--mount", alone.dir().to_str().unwrap(), "--listen", LISTEN]);
        assert_eq!(ran.code(), Some(code), "{ran}");
        assert!(!alone.serves());
        ran.stderr_text().to_string()
    };
    let token = invitation(&a);
    let refused = |token: &str| refused_with(1, token);
    assert!(refused_with(2, &token[..token.len() - 3]).contains("cut off"));
    assert!(refused_with(2, "hello").contains("no invitation"));
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

#[track_caller]
fn json(node: &Node, words: &[&str]) -> serde_json::Value {
    let words: Vec<&str> = words.iter().chain(&["--json"]).copied().collect();
    serde_json::from_slice(&node.phifs(words).expect_success().stdout).expect("JSON")
}

fn members(node: &Node) -> Vec<serde_json::Value> {
    json(node, &["members"]).as_array().expect("a list").clone()
}

fn standing(node: &Node) -> String {
    json(node, &["status"])["cluster"]["standing"].as_str().expect("a word").to_owned()
}

/// All machines of a test have one name, so they are told apart by the first digits of their keys.
fn key(node: &Node) -> String {
    json(node, &["status"])["volume"]["node"].as_str().expect("a key").to_owned()
}

/// What is written here does not come there, as it would have by then.
fn assert_apart(from: &Node, to: &Node, name: &str) {
    fs::write(from.dir().join(name), "x").unwrap();
    assert!(!wait_until(Duration::from_millis(1500), || to.dir().join(name).exists()), "{name}");
}

#[test]
fn who_leaves_has_told_everything_and_goes_on_alone() {
    needs_phifs!();
    let a = first();
    let mut b = joined(&a);
    for at in 0..50 {
        fs::write(b.dir().join(format!("f{at}")), noise(at, 20_000)).unwrap();
    }
    let open = fs::File::create(b.dir().join("still open")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&open, b"so far", 0).unwrap();
    let left = json(&b, &["leave"]);
    assert_eq!(left["heard"], 1, "{left}\n{}", b.log());
    for at in 0..50 {
        assert_eq!(fs::read(a.dir().join(format!("f{at}"))).unwrap(), noise(at, 20_000));
    }
    assert_eq!(fs::read(a.dir().join("still open")).unwrap(), b"so far");
    drop(open);
    assert!(wait_until(SOON, || members(&a).len() == 1));
    assert_eq!((standing(&a).as_str(), standing(&b).as_str()), ("member", "former"));
    assert_apart(&a, &b, "of a");
    assert_apart(&b, &a, "of b");
    let said = b.phifs(["invite"]).expect_clear_failure().stderr_text();
    assert!(said.contains("no member any more") && said.contains("phifs join"), "{said}");
    assert!(b.phifs(["members"]).expect_success().stderr_text().contains("no member any more"));
    // Nor after a restart, whatever it is told.
    b.down();
    b.start_with(["up", "--listen", LISTEN]);
    assert!(wait_until(SOON, || b.phifs(["status"]).success()), "{}", b.log());
    assert_apart(&b, &a, "of b later");
    assert!(members(&b).is_empty() && b.log().contains("does not listen"));
    // What both did meanwhile comes together when it comes back.
    b.down();
    b.start_with(["join", &invitation(&a), "--listen", LISTEN]);
    assert!(reads(a.dir(), "of b later", b"x") && reads(b.dir(), "of a", b"x"));
    assert_same_root(&[&a, &b]);
    assert_eq!(members(&a).len(), 2);
    a.assert_no_panic();
    b.assert_no_panic();
}

#[test]
fn who_reaches_nobody_leaves_by_force_alone() {
    needs_phifs!();
    let mut a = first();
    let alone = a.phifs(["leave"]).expect_clear_failure().stderr_text();
    assert!(alone.contains("nothing to leave"), "{alone}");
    let b = joined(&a);
    a.down();
    fs::write(b.dir().join("only here"), "x").unwrap();
    let said = b.phifs(["leave"]).expect_clear_failure().stderr_text();
    assert!(said.contains("no other member can be reached") && said.contains("--force"), "{said}");
    assert_eq!(standing(&b), "member");
    let ran = b.phifs(["leave", "--force"]).expect_success();
    assert!(ran.stderr_text().contains("No other member has heard"), "{ran}");
    assert_eq!(standing(&b), "former");
    assert_eq!(fs::read(b.dir().join("only here")).unwrap(), b"x");
    a.start();
    assert!(wait_until(SOON, || a.phifs(["status"]).success()), "{}", a.log());
    a.phifs(["member", "remove", &key(&b)]).expect_success();
    assert_eq!(members(&a).len(), 1);
}

#[test]
fn who_is_removed_hears_of_it_and_is_heard_by_nobody() {
    needs_phifs!();
    let a = first();
    let (mut b, c) = (joined(&a), joined(&a));
    fs::write(b.dir().join("before"), "x").unwrap();
    assert!(reads(a.dir(), "before", b"x") && reads(c.dir(), "before", b"x"));
    assert!(wait_until(SOON, || members(&c).iter().filter(|member| member["connected"] == true).count() == 3));
    let said = a.phifs(["member", "remove", "nobody"]).expect_clear_failure();
    assert!(said.code() == Some(2) && said.stderr_text().contains(&key(&b)), "{said}");
    let own = key(&a);
    assert!(a.phifs(["member", "remove", &own]).expect_clear_failure().stderr_text().contains("phifs leave"));
    let removed = key(&b);
    assert_eq!(json(&a, &["member", "show", &removed])["connected"], true);
    let said = json(&a, &["member", "remove", &removed]);
    assert!(said["key"].as_str().unwrap().starts_with(&removed), "{said}");
    assert!(wait_until(SOON, || standing(&b) == "former"), "{}", b.log());
    assert!(wait_until(SOON, || members(&c).len() == 2));
    assert!(b.log().contains("was removed from the members"), "{}", b.log());
    assert_apart(&b, &a, "of b");
    assert_apart(&a, &b, "of a");
    assert!(reads(c.dir(), "of a", b"x"));
    b.down();
    b.start_with(["join", &invitation(&c), "--listen", LISTEN]);
    assert!(reads(a.dir(), "of b", b"x") && reads(b.dir(), "of a", b"x"));
    // One that is down while it is removed hears of it when it is back.
    assert!(wait_until(SOON, || members(&a).len() == 3));
    b.down();
    a.phifs(["member", "remove", &removed]).expect_success();
    b.start();
    assert!(wait_until(SOON, || b.phifs(["status"]).success()), "{}", b.log());
    assert!(wait_until(SOON, || standing(&b) == "former"), "{}", b.log());
    assert_same_root(&[&a, &c]);
    for node in [&a, &b, &c] {
        node.assert_no_panic();
    }
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
    assert!(ran.stderr_text().contains(&format!("cannot listen at {address}")), "{ran}");
    assert_eq!(ran.code(), Some(4), "{ran}");
    assert!(!node.serves());
}

/// The value of a metric, by the beginning of its line.
fn metric(address: &str, line: &str) -> Option<f64> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
    for line in body.lines().filter(|line| !line.starts_with("# ")) {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        let bare = name.split('{').next().unwrap();
        let bare = ["_bucket", "_sum", "_count"].iter().find_map(|end| bare.strip_suffix(end)).unwrap_or(bare);
        assert!(bare.starts_with("phifs_") && value.parse::<f64>().is_ok(), "{line}");
        assert!(body.contains(&format!("# TYPE {bare} ")), "{line}");
    }
    let found = body.lines().find(|found| found.starts_with(line))?;
    found.rsplit_once(' ')?.1.parse().ok()
}

#[test]
fn metrics_move_with_what_is_done() {
    needs_phifs!();
    let free = || std::net::TcpListener::bind(LISTEN).unwrap().local_addr().unwrap().to_string();
    let address = free();
    let mut a = Node::new(DataMode::Auto);
    let said = a.phifs(["up", "--mount", a.dir().to_str().unwrap(), "--metrics", "0.0.0.0:9447"]);
    assert!(said.code() == Some(2) && said.stderr_text().contains("loopback"), "{said}");
    a.start_with(["up", "--listen", LISTEN, "--metrics", &address]);
    let b = joined(&a);
    let sent = || metric(&address, "phifs_net_sent_bytes_total{path=\"push\"}").unwrap();
    let (made, before) = (metric(&address, "phifs_operations_total").unwrap(), sent());
    fs::write(a.dir().join("file"), "of a").unwrap();
    assert!(reads(b.dir(), "file", b"of a"));
    assert!(metric(&address, "phifs_operations_total").unwrap() > made && sent() > before);
    assert_eq!(metric(&address, "phifs_members"), Some(2.0));
    assert_eq!(metric(&address, "phifs_member_connected{"), Some(1.0));
    assert!(metric(&address, "phifs_fuse_requests_total{kind=\"create\"}").unwrap() >= 1.0);
    assert!(metric(&address, "phifs_fuse_request_seconds_count{kind=\"create\"}").unwrap() >= 1.0);
    assert!(wait_until(SOON, || metric(&address, "phifs_member_behind_bytes{") == Some(0.0)));
    assert_eq!(metric(&address, "phifs_member_behind_seconds{"), Some(0.0));
    // The link, on which it is told what is new.
    assert!(metric(&address, "phifs_member_requests_under_way{").unwrap() >= 1.0);
    for idle in ["phifs_fuse_requests_waiting", "phifs_missing_operations", "phifs_missing_glyphs", "phifs_held_up"] {
        assert_eq!(metric(&address, idle), Some(0.0), "{idle}");
    }
    // A word that is no invitation of this one is counted.
    let refused = || metric(&address, "phifs_net_refused_total{what=\"invitation\"}").unwrap();
    let (token, stranger) = (invitation(&a), Node::new(DataMode::Auto));
    let _c = {
        let mut c = Node::new(DataMode::Auto);
        c.start_with(["join", &token, "--listen", LISTEN]);
        c
    };
    assert_eq!(refused(), 0.0);
    stranger.phifs(["join", &token, "--mount", stranger.dir().to_str().unwrap(), "--listen", LISTEN]);
    assert_eq!(refused(), 1.0);
    // The summary of the cluster, watched.
    let watched = a.command(["status", "--watch", "--json"]).stdout(std::process::Stdio::piped()).spawn();
    let mut watched = watched.unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(watched.stdout.take().unwrap()));
    for _ in 0..2 {
        let status: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(status["cluster"]["members"], 3, "{status}");
    }
    watched.kill().unwrap();
    watched.wait().unwrap();
}

#[test]
fn an_inviter_that_is_not_there_is_named_with_its_addresses() {
    needs_phifs!();
    let mut a = first();
    let (token, address) = (invitation(&a), members(&a)[0]["addresses"][0].clone());
    a.down();
    let node = Node::new(DataMode::Auto);
    let ran = node.phifs(["join", &token, "--mount", node.dir().to_str().unwrap(), "--listen", LISTEN]);
    let said = ran.stderr_text();
    assert_eq!(ran.code(), Some(1), "{ran}");
    assert!(said.contains("cannot reach") && said.contains(address.as_str().unwrap()), "{said}");
}

#[test]
fn machines_meet_over_ipv6() {
    needs_phifs!();
    if std::net::UdpSocket::bind("[::1]:0").is_err() {
        skip!("no IPv6 here");
    }
    let mut a = Node::new(DataMode::Auto);
    a.start_with(["up", "--listen", "[::1]:0"]);
    let mut b = Node::new(DataMode::Auto);
    b.start_with(["join", &invitation(&a), "--listen", "[::]:0"]);
    fs::write(a.dir().join("of a"), "a").unwrap();
    assert!(reads(b.dir(), "of a", b"a"));
    // Who listens to everything is heard over both.
    let mut c = Node::new(DataMode::Auto);
    c.start_with(["join", &invitation(&b), "--listen", "0.0.0.0:0"]);
    fs::write(c.dir().join("of c"), "c").unwrap();
    assert!(reads(a.dir(), "of c", b"c"));
    assert_same_root(&[&a, &b, &c]);
}

/// Taken away again with the test.
struct Address(&'static str);

impl Address {
    fn give(address: &'static str) -> Option<Address> {
        let ran = Command::new("ip").args(["address", "add", address, "dev", "lo"]).output();
        ran.is_ok_and(|ran| ran.status.success()).then_some(Address(address))
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["address", "del", self.0, "dev", "lo"]).output();
    }
}

#[test]
fn a_machine_that_is_given_another_address_tells_the_others() {
    needs_phifs!();
    let mut a = Node::new(DataMode::Auto);
    a.start_with(["up", "--listen", "0.0.0.0:0"]);
    let mut b = Node::new(DataMode::Auto);
    b.start_with(["join", &invitation(&a), "--listen", "0.0.0.0:0"]);
    let knows = || members(&b).iter().any(|member| member["addresses"].to_string().contains("192.0.2.77:"));
    assert!(wait_until(SOON, || b.phifs(["status"]).success()) && !knows());
    let Some(given) = Address::give("192.0.2.77/32") else { skip!("addresses cannot be given here") };
    assert!(wait_until(SOON * 3, knows), "{}", a.log());
    drop(given);
    assert!(wait_until(SOON * 3, || !knows()), "{}", a.log());
}

#[test]
fn what_is_on_another_machine_is_fetched_by_who_reads_it() {
    needs_phifs!();
    let a = first();
    let b = joined(&a);
    a.phifs(["volume", "set", "copies", "1"]).expect_success();
    let copies = |node: &Node| node.phifs(["volume", "get", "copies"]).expect_success().stdout_text().to_string();
    assert!(wait_until(SOON, || copies(&b).contains('1')), "settings are the volume's: {}", copies(&b));
    let all: Vec<Vec<u8>> = (0..24).map(|n| noise(100 + n, 150_000)).collect();
    for (n, bytes) in all.iter().enumerate() {
        fs::write(a.dir().join(format!("file {n}")), bytes).unwrap();
    }
    let token = a.phifs(["token"]).expect_success().stdout_text().trim().to_owned();
    b.phifs(["wait", "--for", &token]).expect_success();
    let stored = |node: &Node| {
        let status = node.phifs(["--json", "df"]).expect_success();
        let usage: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
        let parts = usage["parts"].as_array().expect("a list");
        parts.iter().find(|part| part["what"] == "data").and_then(|part| part["bytes"].as_u64()).expect("a size")
    };
    let before = stored(&b);
    assert!(before < 150_000 * 20, "about half of them are placed there: {before}");
    for (n, bytes) in all.iter().enumerate() {
        assert!(fs::read(b.dir().join(format!("file {n}"))).unwrap() == *bytes, "file {n}: {}", b.log());
    }
    assert!(stored(&b) > before, "what was read is there now");
    for node in [&a, &b] {
        node.phifs(["fsck"]).expect_success();
        node.assert_no_panic();
    }
}
