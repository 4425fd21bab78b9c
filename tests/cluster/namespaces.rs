//! Machines with a network of their own, whose cables are pulled while real programs work on real mounts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use phifs_tests::{DataMode, Network, Node, long, run_ok, seed_or, wait_until};

use super::{assert_same_root, invitation, json, members, noise};

/// Programs, and all that the machines do about each other, within this; much less when this machine is quiet.
const LIMIT: Duration = Duration::from_secs(60);
/// Until news goes on after a machine was given another address; sooner than a connection is given up.
const MOVE_MAX: Duration = Duration::from_secs(8);
/// No call of a program may take longer, whoever can be reached.
const CALL_MAX: Duration = Duration::from_secs(5);

/// Ends the test where there is no phifs, or no network to be made; else gives the machines.
macro_rules! cluster {
    ($machines:expr) => {{
        if phifs_tests::on_ext4() || !phifs_tests::is_root() {
            phifs_tests::skip!("about phifs, as root");
        }
        match phifs_tests::Network::new($machines) {
            Ok(network) => Cluster::new(network, $machines),
            Err(error) => phifs_tests::skip!("no network namespaces here: {error}"),
        }
    }};
}

/// Machines that share a volume, all connected at first.
struct Cluster {
    nodes: Vec<Node>,
    network: Network,
}

impl Cluster {
    #[track_caller]
    fn new(network: Network, machines: usize) -> Cluster {
        let mut nodes: Vec<Node> = (0..machines).map(|at| Node::on(network.host(at), DataMode::Auto)).collect();
        let (first, others) = nodes.split_first_mut().expect("a machine");
        first.start();
        for other in others {
            other.start_with(["join", &invitation(first)]);
        }
        let cluster = Cluster { nodes, network };
        assert!(wait_until(LIMIT, || cluster.all_are_connected()), "{}", cluster.shown());
        cluster
    }

    fn dir(&self, at: usize) -> &Path {
        self.nodes[at].dir()
    }

    fn all_are_connected(&self) -> bool {
        let all = self.nodes.len();
        // It is mounted a moment before it can be asked.
        self.nodes.iter().all(|node| node.phifs(["status"]).success() && connected(node) == all)
    }

    /// What each says of all, for those who have to find out why something did not happen.
    fn shown(&self) -> String {
        self.nodes.iter().map(|node| node.phifs(["members"]).to_string()).collect()
    }

    /// What one wrote, another one reads.
    #[track_caller]
    fn assert_reaches(&self, from: usize, to: usize, name: &str) {
        let began = Instant::now();
        let bytes = noise(0, 700_000);
        fs::write(self.dir(from).join(name), &bytes).unwrap();
        let path = self.dir(to).join(name);
        let reads = || fs::read(&path).is_ok_and(|read| read == bytes);
        assert!(wait_until(LIMIT, reads), "{name}\n{}", self.shown());
        eprintln!("{name}: there after {:.1?}", began.elapsed());
    }

    /// Waits until all mounts show the same, and says how long that took and what it is.
    #[track_caller]
    fn become_same(&self, what: &str) -> Tree {
        let began = Instant::now();
        let mut seen: Vec<Tree> = Vec::new();
        let is_same = wait_until(LIMIT, || {
            seen = self.nodes.iter().map(|node| tree(node.dir())).collect();
            let is_readable = |tree: &Tree| tree.values().all(|text| !text.starts_with(UNREADABLE));
            seen.windows(2).all(|two| two[0] == two[1]) && seen.iter().all(is_readable)
        });
        assert!(is_same, "{what}: {}\n{}", first_difference(&seen), self.shown());
        eprintln!("{what}: the same on all after {:.1?}", began.elapsed());
        assert_same_root(&self.nodes.iter().collect::<Vec<_>>());
        seen.swap_remove(0)
    }

    /// By what each knows of the others, all hold everything, and nobody was seen to have something else.
    #[track_caller]
    fn end(self) {
        let is_everywhere = |node: &Node| json(node, &["status"])["cluster"]["under_replicated_bytes"] == 0;
        assert!(wait_until(LIMIT, || self.nodes.iter().all(is_everywhere)), "{}", self.shown());
        for mut node in self.nodes {
            assert!(node.alive(), "{}", node.log());
            assert!(json(&node, &["status"])["cluster"]["divergence"].is_null(), "{}", node.phifs(["status"]));
            node.phifs(["fsck"]).expect_success();
            node.assert_no_panic();
        }
    }
}

/// How many machines are in touch with this one, itself included.
fn connected(node: &Node) -> usize {
    members(node).iter().filter(|member| member["connected"] == true).count()
}

/// All that a mount shows, by path: kind, mode, owner, links, length, time, bytes or target, attributes.
type Tree = BTreeMap<PathBuf, String>;

const UNREADABLE: &str = "unreadable";

fn tree(dir: &Path) -> Tree {
    let mut found = Tree::new();
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let described = describe(&dir.join(&path));
        if let Ok((_, names)) = &described {
            left.extend(names.iter().map(|name| path.join(name)));
        }
        found.insert(path, described.map_or_else(|error| format!("{UNREADABLE}: {error}"), |(text, _)| text));
    }
    found
}

/// One of them, and the names in it if it is a directory.
fn describe(path: &Path) -> io::Result<(String, Vec<std::ffi::OsString>)> {
    let stat = fs::symlink_metadata(path)?;
    let mut hasher = DefaultHasher::new();
    let mut names = Vec::new();
    if stat.is_dir() {
        names = fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    } else if stat.is_symlink() {
        fs::read_link(path)?.hash(&mut hasher);
    } else {
        fs::read(path)?.hash(&mut hasher);
    }
    for name in attributes(path)? {
        let mut value = vec![0; 65536];
        let len = rustix::fs::lgetxattr(path, &*name, &mut value[..])?;
        (name, &value[..len]).hash(&mut hasher);
    }
    // A directory's own length and time are this machine's.
    let (len, mtime) = if stat.is_dir() { (0, (0, 0)) } else { (stat.len(), (stat.mtime(), stat.mtime_nsec())) };
    let owner = (stat.uid(), stat.gid());
    let links = if stat.is_dir() { 0 } else { stat.nlink() };
    let text = format!("{:o} {owner:?} {links} {len} {mtime:?} {:016x}", stat.mode(), hasher.finish());
    Ok((text, names))
}

fn attributes(path: &Path) -> io::Result<Vec<String>> {
    let mut list = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut list[..])?;
    let names = list[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let mut names: Vec<String> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    names.sort();
    Ok(names)
}

fn first_difference(trees: &[Tree]) -> String {
    let paths: std::collections::BTreeSet<&PathBuf> = trees.iter().flat_map(BTreeMap::keys).collect();
    let at = |path: &PathBuf| trees.iter().map(|tree| tree.get(path)).collect::<Vec<_>>();
    let differing = paths.into_iter().filter(|path| at(path).windows(2).any(|two| two[0] != two[1]));
    let lines: Vec<String> = differing.map(|path| format!("{}: {:?}", path.display(), at(path))).collect();
    format!("{} differ: {}", lines.len(), lines.iter().take(5).cloned().collect::<Vec<_>>().join("\n"))
}

/// Runs a script in a directory; everything that it starts ends with it.
#[track_caller]
fn sh(dir: &Path, script: &str) -> String {
    let mut command = Command::new("bash");
    command.args(["-euc", script]).current_dir(dir).env("GIT_CONFIG_NOSYSTEM", "1").env("HOME", dir);
    command.envs([("GIT_AUTHOR_NAME", "a"), ("GIT_AUTHOR_EMAIL", "a@b"), ("GIT_COMMITTER_NAME", "a")]);
    command.envs([("GIT_COMMITTER_EMAIL", "a@b"), ("TAR_OPTIONS", "--xattrs")]);
    run_ok(&mut command, LIMIT).stdout_text()
}

/// What this machine has, is on the other one.
#[track_caller]
fn carry_over(from: &Node, to: &Node) {
    let token = from.phifs(["token"]).expect_success().stdout_text();
    to.phifs(["wait", "--for", token.trim()]).expect_success();
}

/// A tree as programs leave them: files of all lengths, links, modes, attributes, empty directories.
fn plant(dir: &Path, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    for at in 0..120 {
        let below = dir.join(format!("d{}/e{}", at % 7, at % 3));
        fs::create_dir_all(&below).unwrap();
        let path = below.join(format!("file {at}"));
        let len = [0, 1, 100, 4096, 20_000, 300_000][random.usize(..6)];
        fs::write(&path, noise(random.u64(..), len)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode([0o644, 0o600, 0o755, 0o4711][at % 4])).unwrap();
        match at % 10 {
            0 => symlink(format!("../file {at}"), below.join(format!("link {at}"))).unwrap(),
            1 => fs::hard_link(&path, dir.join(format!("also {at}"))).unwrap(),
            2 => {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(&path, "user.of-the-test", &noise(7, at), flags).unwrap();
            }
            3 => fs::create_dir_all(dir.join(format!("empty {at}"))).unwrap(),
            _ => {}
        }
    }
}

/// Delivers as qmail and its followers do: whole into tmp, synced, and then under its name.
fn deliver(maildir: &Path, host: &str, messages: std::ops::Range<u32>) -> io::Result<()> {
    for at in messages {
        let name = format!("{at}.{host}");
        let (tmp, new) = (maildir.join("tmp").join(&name), maildir.join("new").join(&name));
        let mut file = File::create_new(&tmp)?;
        writeln!(file, "From: {host}\n\n{at}")?;
        file.sync_all()?;
        if at % 2 == 0 {
            fs::rename(&tmp, &new)?;
        } else {
            fs::hard_link(&tmp, &new)?;
            fs::remove_file(&tmp)?;
        }
    }
    Ok(())
}

#[test]
fn real_programs_on_three_machines_at_once_leave_the_same_on_all() {
    let cluster = cluster!(3);
    let [a, b, c] = &cluster.nodes[..] else { unreachable!() };
    let outside = tempfile::tempdir().unwrap();
    plant(outside.path(), 1);
    let source = outside.path().display();
    sh(a.dir(), "mkdir -p mail/tmp mail/new mail/cur; git init -q repository");
    carry_over(a, b);
    carry_over(a, c);
    thread::scope(|scope| {
        scope.spawn(|| {
            sh(a.dir(), &format!("mkdir tarred; tar c -C '{source}' . | tar x -C tarred"));
            deliver(&a.dir().join("mail"), "a", 0..60).unwrap();
        });
        scope.spawn(|| {
            deliver(&b.dir().join("mail"), "b", 0..60).unwrap();
            sh(b.dir(), &format!("rsync -aHX '{source}/' synced/; tar cf archive.tar -C synced ."));
            sh(b.dir(), "cd repository; for i in $(seq 20); do echo $i >f$i; git add .; git commit -qm $i; done");
        });
        scope.spawn(|| {
            let rows = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 2000)";
            sh(
                c.dir(),
                &format!(
                    "sqlite3 db 'create table t(i integer primary key, x); insert into t {rows} select i, randomblob(99) from n'
                     for i in $(seq 20); do sqlite3 db \"update t set x = randomblob(50) where i % 20 = $i - 1\"; done"
                ),
            );
        });
    });
    let all = cluster.become_same("programs");
    assert_eq!(all.keys().filter(|path| path.starts_with("mail/new")).count(), 121, "a message is lost");
    assert_eq!(all.keys().filter(|path| path.starts_with("mail/tmp")).count(), 1);
    // Each checks what another one made.
    let compared = format!("diff -r --no-dereference '{source}' tarred; diff -r --no-dereference '{source}' synced");
    sh(c.dir(), &compared);
    let checked = "git -c safe.directory=* -C repository fsck --strict; git -C repository log --oneline | wc -l";
    assert_eq!(sh(a.dir(), checked).trim(), "20");
    sh(a.dir(), "git clone -q repository clone; cd clone; echo more >more; git add .; git commit -qm more");
    carry_over(a, c);
    assert_eq!(sh(c.dir(), "cd clone; git fsck --strict; git status --short; git log --oneline | wc -l").trim(), "21");
    assert_eq!(sh(b.dir(), "sqlite3 db 'pragma integrity_check; select count(*) from t'"), "ok\n2000\n");
    let disputed = a.phifs(["conflicts", "--json"]).expect_success().stdout_text();
    assert_eq!(disputed.trim(), "[]");
    cluster.end();
}

/// Somebody who works on a machine without a pause, whatever happens to the network or the machine.
struct Worker<'a> {
    dir: &'a Path,
    name: &'a str,
    random: fastrand::Rng,
    /// The longest call.
    slowest: Duration,
    /// What was made, closed and synced, and is to be found later.
    kept: Vec<(String, u64)>,
}

impl<'a> Worker<'a> {
    fn new(dir: &'a Path, name: &'a str) -> Self {
        let random = fastrand::Rng::with_seed(name.bytes().map(u64::from).sum());
        Worker { dir, name, random, slowest: Duration::ZERO, kept: Vec::new() }
    }

    /// Works until it is told to stop, or the machine is gone.
    fn work(mut self, stop: &AtomicBool) -> Self {
        let mut at = 0;
        while !stop.load(Ordering::Relaxed) {
            at += 1;
            if self.step(at).is_err() {
                break;
            }
            // The disks of three machines are one.
            thread::sleep(Duration::from_millis(10));
        }
        self
    }

    fn timed<T>(&mut self, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let began = Instant::now();
        let done = call();
        self.slowest = self.slowest.max(began.elapsed());
        done
    }

    fn step(&mut self, at: u64) -> io::Result<()> {
        let (dir, worker) = (self.dir, self.name);
        let own = format!("{worker}/{at}");
        let bytes = noise(at, self.random.usize(..40_000));
        let mut file = self.timed(|| File::create(dir.join(&own)))?;
        self.timed(|| file.write_all(&bytes))?;
        self.timed(|| file.sync_all())?;
        drop(file);
        self.kept.push((own, bytes.len() as u64));
        let shared = dir.join(format!("shared/{}", at % 8));
        self.timed(|| fs::write(shared, format!("of {worker}, {at}")))?;
        if at.is_multiple_of(5) {
            // Until that is synced nobody knows which name it has.
            let (own, len) = self.kept.pop().expect("just made");
            let moved = format!("{worker}/moved {at}");
            self.timed(|| fs::rename(dir.join(own), dir.join(&moved)))?;
            self.timed(|| File::open(dir.join(&moved))?.sync_all())?;
            self.kept.push((moved, len));
            self.timed(|| fs::create_dir_all(dir.join(format!("{worker} and others/{}", at % 3))))?;
            self.timed(|| fs::read_dir(dir.join(worker))?.count().checked_add(1).ok_or(io::ErrorKind::Other.into()))?;
        }
        Ok(())
    }

    /// Everything that was acknowledged is there.
    #[track_caller]
    fn assert_kept(&self, all: &Tree) {
        for (path, len) in &self.kept {
            let found = all.get(Path::new(path)).unwrap_or_else(|| panic!("{path} is lost"));
            assert!(found.contains(&format!(" {len} ")), "{path} is {found}, of {len} bytes");
        }
    }
}

/// What the workers expect to be there.
fn furnish(cluster: &Cluster, names: &[&str]) {
    let [first, others @ ..] = &cluster.nodes[..] else { unreachable!() };
    for name in names.iter().chain(&["shared"]) {
        fs::create_dir(first.dir().join(name)).unwrap();
    }
    fs::write(first.dir().join("diary.log"), "").unwrap();
    others.iter().for_each(|other| carry_over(first, other));
}

#[test]
fn nobody_is_blocked_while_the_network_is_cut_and_afterwards_all_have_all() {
    let cluster = cluster!(3);
    let (network, names) = (&cluster.network, ["a", "b", "c"]);
    furnish(&cluster, &names);
    let stop = &AtomicBool::new(false);
    let dirs = [0, 1, 2].map(|at| cluster.dir(at));
    let done: Vec<Worker> = thread::scope(|scope| {
        let start = |(dir, name)| scope.spawn(move || Worker::new(dir, name).work(stop));
        let working: Vec<_> = dirs.into_iter().zip(names).map(start).collect();
        thread::sleep(Duration::from_secs(1));
        network.cut(0);
        thread::sleep(Duration::from_secs(3));
        network.cut(1);
        for (at, name) in names.iter().enumerate() {
            fs::write(cluster.dir(at).join("disputed"), format!("said {name}\n")).unwrap();
            let mut diary = File::options().append(true).open(cluster.dir(at).join("diary.log")).unwrap();
            writeln!(diary, "said {name}").unwrap();
        }
        // Longer than connections live that nothing comes over.
        thread::sleep(Duration::from_secs(12));
        assert_eq!([0, 1, 2].map(|at| connected(&cluster.nodes[at])), [1; 3], "{}", cluster.shown());
        network.mend(0);
        network.mend(1);
        thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        working.into_iter().map(|worker| worker.join().expect("a worker")).collect()
    });
    let all = cluster.become_same("cut in three");
    for worker in &done {
        eprintln!("{}: {} files, no call took longer than {:.1?}", worker.name, worker.kept.len(), worker.slowest);
        assert!(worker.kept.len() > 100 && worker.slowest < CALL_MAX, "{:?}", worker.slowest);
        worker.assert_kept(&all);
    }
    for node in &cluster.nodes {
        let disputed = node.phifs(["conflicts"]).expect_success().stdout_text();
        assert!(disputed.lines().any(|line| line == "/disputed"), "{disputed}");
        let said = "said a\nsaid b\nsaid c\n";
        assert_eq!(sh(node.dir(), "sort .phi/conflicts/disputed/*"), said, "a side is lost");
        assert_eq!(sh(node.dir(), "sort diary.log"), said, "lines that were added on all sides are one file");
    }
    cluster.end();
}

#[test]
fn machines_that_cannot_reach_each_other_hear_of_each_other_from_a_third() {
    let cluster = cluster!(3);
    cluster.network.keep_apart(&[0, 2]);
    // Before anybody knows that the connection is of no use any more, and after.
    cluster.assert_reaches(0, 2, "at once");
    cluster.assert_reaches(2, 0, "and back");
    let apart = || [0, 1, 2].map(|at| connected(&cluster.nodes[at])) == [2, 3, 2];
    assert!(wait_until(LIMIT, apart), "{}", cluster.shown());
    cluster.assert_reaches(0, 2, "by the third");
    cluster.assert_reaches(2, 0, "and back by the third");
    carry_over(&cluster.nodes[0], &cluster.nodes[2]);
    cluster.network.bring_together(&[0, 2]);
    assert!(wait_until(LIMIT, || cluster.all_are_connected()), "{}", cluster.shown());
    cluster.become_same("a third between");
    cluster.end();
}

#[test]
fn machines_that_are_killed_at_work_come_back_with_all_that_they_had_promised() {
    let mut cluster = cluster!(3);
    let names = ["a", "b", "c"];
    furnish(&cluster, &names);
    let mut random = fastrand::Rng::with_seed(seed_or(1));
    for _ in 0..if long() { 40 } else { 4 } {
        let (stop, dirs) = (&AtomicBool::new(false), [0, 1, 2].map(|at| cluster.dir(at).to_owned()));
        let done: Vec<Worker> = thread::scope(|scope| {
            let start = |(dir, name)| scope.spawn(move || Worker::new(dir, name).work(stop));
            let working: Vec<_> = dirs.iter().map(PathBuf::as_path).zip(names).map(start).collect();
            for _ in 0..2 {
                let (pulled, killed) = (random.usize(..3), random.usize(..3));
                if random.bool() {
                    cluster.network.cut(pulled)
                } else {
                    cluster.network.mend(pulled)
                }
                thread::sleep(Duration::from_millis(random.u64(100..700)));
                cluster.nodes[killed].kill();
                thread::sleep(Duration::from_millis(random.u64(..300)));
                cluster.nodes[killed].unmount_dead();
                cluster.nodes[killed].start();
            }
            (0..3).for_each(|at| cluster.network.mend(at));
            stop.store(true, Ordering::Relaxed);
            working.into_iter().map(|worker| worker.join().expect("a worker")).collect()
        });
        let all = cluster.become_same("killed");
        done.iter().for_each(|worker| worker.assert_kept(&all));
    }
    cluster.end();
}

#[test]
fn a_machine_with_another_address_is_found_again() {
    let mut cluster = cluster!(3);
    let host = cluster.network.host(1).clone();
    let old = cluster.network.address(1);
    host.ip(&format!("address del {old}/24 dev eth0\naddress add 10.7.7.99/24 dev eth0\n")).unwrap();
    cluster.assert_reaches(1, 0, "from the new address");
    cluster.assert_reaches(2, 1, "to the new address");
    assert!(wait_until(LIMIT, || cluster.all_are_connected()), "{}", cluster.shown());
    let knows = || knows(&cluster.nodes[2], "10.7.7.99:", &format!("{old}:"));
    assert!(wait_until(LIMIT, knows), "{}", cluster.shown());
    // Others remember it.
    cluster.nodes[2].down();
    cluster.nodes[2].start();
    cluster.assert_reaches(1, 2, "after a restart");
    cluster.become_same("another address");
    cluster.end();
}

#[test]
fn a_connection_outlives_the_address_of_the_machine_that_made_it() {
    let mut cluster = cluster!(2);
    let (host, mut address) = (cluster.network.host(1).clone(), cluster.network.address(1));
    let mut move_to = |next: &str| {
        host.ip(&format!("address del {address}/24 dev eth0\naddress add {next}/24 dev eth0\n")).unwrap();
        address = next.to_owned();
    };
    // Where nobody looks for it, so that it is the one who calls.
    cluster.nodes[1].down();
    move_to("10.7.7.50");
    cluster.nodes[1].start();
    cluster.assert_reaches(0, 1, "before");
    cluster.assert_reaches(1, 0, "before, the other way");
    let connections = |cluster: &Cluster| cluster.nodes.iter().map(made).sum::<usize>();
    let before = connections(&cluster);
    assert!(before >= 2, "each hears from the other");

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (dir, stop) = (cluster.dir(1), &stop);
        scope.spawn(move || {
            for n in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                fs::write(dir.join(format!("while it moves {n}")), noise(n, 20_000)).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
        });
        for at in 60..63 {
            thread::sleep(Duration::from_millis(300));
            move_to(&format!("10.7.7.{at}"));
            let began = Instant::now();
            cluster.assert_reaches(1, 0, &format!("from address {at}"));
            cluster.assert_reaches(0, 1, &format!("to address {at}"));
            assert!(began.elapsed() < MOVE_MAX, "{:?}", began.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(connections(&cluster), before, "{}", cluster.nodes[1].log());
    // Whoever was called calls back.
    assert!(wait_until(LIMIT, || knows(&cluster.nodes[0], "10.7.7.62:", "10.7.7.50:")), "{}", cluster.shown());
    let other = cluster.network.host(0).clone();
    let old = cluster.network.address(0);
    other.ip(&format!("address del {old}/24 dev eth0\naddress add 10.7.7.70/24 dev eth0\n")).unwrap();
    cluster.assert_reaches(0, 1, "from the one who was called");
    cluster.assert_reaches(1, 0, "to the one who was called");
    cluster.become_same("moved");
    cluster.end();
}

/// Whether somebody is to be found at one address and nobody at another, as far as a machine has heard.
fn knows(node: &Node, new: &str, old: &str) -> bool {
    let told: String = members(node).iter().map(|member| member["addresses"].to_string()).collect();
    told.contains(new) && !told.contains(old)
}

/// How often a machine has begun to hear from another one, on a connection that either of them made.
fn made(node: &Node) -> usize {
    node.log().lines().filter(|line| line.contains(" connected node=")).count()
}

#[track_caller]
fn set(node: &Node, name: &str, value: &str) {
    node.phifs(["volume", "set", name, value]).expect_success();
}

/// Writes a file and syncs it, and says what the sync said and how long it took.
fn sync(dir: &Path, name: &str) -> (io::Result<()>, Duration) {
    let mut file = File::create(dir.join(name)).unwrap();
    file.write_all(b"to be kept").unwrap();
    let began = Instant::now();
    (file.sync_all(), began.elapsed())
}

fn attribute(path: &Path, name: &str) -> String {
    let mut value = [0; 256];
    let len = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
    String::from_utf8_lossy(&value[..len]).into_owned()
}

#[test]
fn a_sync_that_is_to_reach_others_says_when_it_does_not() {
    let cluster = cluster!(3);
    let (node, dir) = (&cluster.nodes[0], cluster.dir(0));
    set(node, "durability", "quorum");
    set(node, "fsync_degraded", "block 2s");
    cluster.nodes[1..].iter().for_each(|other| carry_over(node, other));
    for at in 0..5 {
        let (said, took) = sync(dir, &format!("among others {at}"));
        said.unwrap();
        assert!(took < Duration::from_millis(1500), "{took:?}");
        let replicas = attribute(&dir.join(format!("among others {at}")), "user.phi.replicas");
        eprintln!("a sync on two of three took {took:.1?}, replicas {replicas}");
        assert!(["2", "3"].contains(&replicas.as_str()), "{replicas}");
    }
    cluster.network.cut(0);
    let (said, took) = sync(dir, "alone");
    let is_io_error =
        |said: io::Result<()>| said.unwrap_err().raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    assert!(is_io_error(said));
    assert!((1.9..4.5).contains(&took.as_secs_f64()), "{took:?}");
    assert_eq!(attribute(&dir.join("alone"), "user.phi.replicas"), "1");
    set(node, "fsync_degraded", "error");
    let (said, took) = sync(dir, "alone as well");
    assert!(is_io_error(said) && took < Duration::from_secs(8), "{took:?}");
    set(node, "fsync_degraded", "local");
    let (said, took) = sync(dir, "alone, and content");
    said.unwrap();
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert_eq!(attribute(&dir.join("alone, and content"), "user.phi.replicas"), "1");
    cluster.network.mend(0);
    let is_everywhere = || attribute(&dir.join("alone"), "user.phi.replicas") == "3";
    assert!(wait_until(LIMIT, is_everywhere), "{}", cluster.shown());
    set(node, "fsync_degraded", "error");
    let (said, took) = sync(dir, "among others again");
    said.unwrap();
    assert!(took < Duration::from_millis(1500), "{took:?}");
    cluster.become_same("durability");
    cluster.end();
}

#[test]
fn a_wait_for_what_another_machine_has_ends_when_it_is_there_or_says_that_it_is_not() {
    let cluster = cluster!(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!() };
    for at in 0..20 {
        fs::write(a.dir().join("counted"), at.to_string()).unwrap();
        carry_over(a, b);
        assert_eq!(fs::read_to_string(b.dir().join("counted")).unwrap(), at.to_string());
    }
    cluster.network.cut(1);
    fs::write(a.dir().join("counted"), "not yet").unwrap();
    let token = a.phifs(["token"]).expect_success().stdout_text();
    let began = Instant::now();
    let said = b.phifs(["wait", "--for", token.trim(), "--timeout", "1s"]).expect_clear_failure().stderr_text();
    assert!(said.contains("have not arrived in time") && said.contains("phifs members"), "{said}");
    assert!((0.9..4.0).contains(&began.elapsed().as_secs_f64()), "{:?}", began.elapsed());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| b.phifs(["wait", "--for", token.trim(), "--timeout", "50s"]));
        cluster.network.mend(1);
        waiting.join().expect("a wait").expect_success();
    });
    assert_eq!(fs::read_to_string(b.dir().join("counted")).unwrap(), "not yet");
    cluster.end();
}
