//! Merges of merges of merges: three people's edits of one source tree, through mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use phifs_tests::{DataMode, Node, is_root, on_ext4, run_ok, seed_or, skip};

use super::history::{History, Manner};
use super::{LIMIT, Side, branch_off, json, needs_phifs, up};

/// What there is at a path: what it is and whether it is executable, and a hash of its bytes. Of a symlink that is
/// where it leads, which is what is read of it where there is a choice.
type Tree = BTreeMap<PathBuf, (u32, u64)>;

/// The files and symlinks below a directory.
fn tree(dir: &Path) -> Tree {
    fn walk(dir: &Path, below: &Path, tree: &mut Tree) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let (path, below) = (entry.path(), below.join(entry.file_name()));
            let meta = path.symlink_metadata().unwrap();
            if meta.is_dir() {
                walk(&path, &below, tree);
                continue;
            }
            let bytes = if meta.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_vec()
            } else {
                fs::read(&path).unwrap()
            };
            let mut hash = DefaultHasher::new();
            bytes.hash(&mut hash);
            let found = (meta.mode() & 0o170_100, hash.finish());
            assert!(tree.insert(below, found).is_none(), "{} is listed twice", path.display());
        }
    }
    let mut found = Tree::new();
    walk(dir, Path::new(""), &mut found);
    found
}

/// What somebody has done to a tree since all had the same.
struct Line<'a> {
    dir: PathBuf,
    tree: Tree,
    touched: BTreeSet<PathBuf>,
    history: &'a History,
}

impl<'a> Line<'a> {
    fn new(mount: &Path, history: &'a History) -> Line<'a> {
        let dir = mount.join("src");
        Line { tree: tree(&dir), dir, touched: BTreeSet::new(), history }
    }

    fn check_out(&mut self, manner: Manner, commits: &[usize]) {
        let commit = |n: usize| self.history.commits[n].as_str();
        for step in commits.windows(2) {
            self.history.check_out(manner, &self.dir, Some(commit(step[0])), commit(step[1]));
            self.touched.extend(self.history.changed(commit(step[0]), commit(step[1])));
            self.look();
        }
    }

    /// Notes what looks different.
    fn look(&mut self) {
        let now = tree(&self.dir);
        let paths: BTreeSet<&PathBuf> = now.keys().chain(self.tree.keys()).collect();
        self.touched.extend(paths.into_iter().filter(|path| now.get(*path) != self.tree.get(*path)).cloned());
        self.tree = now;
    }
}

/// What each line did is in what came of merging them, which is mounted: shown, or to be chosen.
fn assert_nothing_is_lost(base: &Tree, lines: &[&Line<'_>], merged: &Tree, mount: &Path) {
    let mut disputed: BTreeMap<&Path, Vec<u64>> = BTreeMap::new();
    let candidates = tree_if_any(&mount.join(".phi/conflicts/src"));
    for (path, (_, bytes)) in &candidates {
        disputed.entry(path.parent().unwrap()).or_default().push(*bytes);
    }
    let trees = lines.iter().map(|line| &line.tree).chain([base, merged]);
    for path in trees.flat_map(Tree::keys).collect::<BTreeSet<_>>() {
        let touched: Vec<_> = lines.iter().filter(|line| line.touched.contains(path)).collect();
        let (is, why) = (merged.get(path), path.display());
        match touched[..] {
            [] => assert_eq!(is, base.get(path), "{why}: nobody changed it"),
            [line] => assert_eq!(is, line.tree.get(path), "{why}: only one changed it"),
            _ => {
                let choices = disputed.get(path.as_path()).map_or(&[][..], |choices| choices);
                let wrote = || touched.iter().filter_map(|line| line.tree.get(path));
                for (_, bytes) in wrote() {
                    let is_shown = is.is_some_and(|(_, shown)| shown == bytes);
                    assert!(is_shown || choices.contains(bytes), "{why}: what one of them wrote is lost");
                }
                assert_eq!(is.is_some(), wrote().next().is_some(), "{why}: it is there if somebody wrote it");
            }
        }
    }
}

fn tree_if_any(dir: &Path) -> Tree {
    if dir.exists() { tree(dir) } else { Tree::new() }
}

/// What only one of two has changed is as git has it, and what neither has.
fn assert_as_git(history: &History, commits: [usize; 3], lines: [&Line<'_>; 2], merged: &Tree) {
    let [base, one, two] = commits.map(|n| history.commits[n].as_str());
    let by_git = tree(&history.merged_by_git(base, one, two));
    let is_both = |path: &PathBuf| lines.iter().all(|line| line.touched.contains(path));
    let only = |tree: &Tree| -> Tree {
        tree.iter().filter(|(path, _)| !is_both(path)).map(|(path, found)| (path.clone(), *found)).collect()
    };
    assert_eq!(only(merged), only(&by_git), "it is not what git makes of it");
}

fn merge(node: &Node, source: &str, target: &str) -> u64 {
    json(node.phifs(["merge", source, "--into", target, "--json"]))["operations"].as_u64().unwrap()
}

/// Names the state of a line.
fn root(node: &Node, branch: Option<&str>, name: &str) -> String {
    let branch: Vec<&str> = branch.map_or(Vec::new(), |branch| vec!["--branch", branch]);
    node.phifs(["snapshot", "create", name].iter().chain(&branch)).expect_success();
    json(node.phifs(["snapshot", "show", name, "--json"]))["root"].as_str().unwrap().to_owned()
}

/// All three lines are the same, in each way of looking at them.
fn assert_all_same(node: &Node, round: &str, mounts: [&Path; 3]) {
    let branches = [None, Some("one"), Some("two")];
    let roots = branches.map(|branch| root(node, branch, &format!("{round} of {}", branch.unwrap_or("live"))));
    assert!(roots[0] == roots[1] && roots[0] == roots[2], "{round}: {roots:?}");
    for other in &mounts[1..] {
        let diff = ["-r", "--no-dereference"];
        run_ok(Command::new("diff").args(diff).arg(mounts[0].join("src")).arg(other.join("src")), LIMIT);
        assert_eq!(tree(&mounts[0].join("src")), tree(&other.join("src")), "{round}: modes and types");
        let choices = |mount: &Path| tree_if_any(&mount.join(".phi/conflicts"));
        assert_eq!(choices(mounts[0]), choices(other), "{round}: what is disputed");
    }
    node.phifs(["fsck"]).expect_success();
}

fn three_people_edit_one_source_tree(history: &History, mode: DataMode) {
    const BASE: usize = 6;
    let mut node = up(mode);
    let src = node.dir().join("src");
    fs::create_dir(&src).unwrap();
    history.check_out(Manner::Git, &src, None, &history.commits[BASE]);
    branch_off(&node, "one");
    branch_off(&node, "two");
    let sides = ["one", "two"].map(|branch| Side::of(&node, branch));
    let mounts = [node.dir(), sides[0].dir(), sides[1].dir()];
    let base = tree(&src);
    let mut lines = mounts.map(|mount| Line::new(mount, history));
    assert!(lines.iter().all(|line| line.tree == base));
    // One goes on as the project did, one takes changes back, one does both.
    lines[0].check_out(Manner::Git, &[BASE, BASE + 1, BASE + 2, BASE + 3]);
    lines[1].check_out(Manner::Tar, &[BASE, BASE - 1, BASE - 2, BASE - 3]);
    lines[2].check_out(Manner::Rsync, &[BASE, BASE + 6, BASE - 6]);

    // As they are now, to merge them in other ways as well.
    for (name, branch) in [("L", None), ("1", Some("one")), ("2", Some("two"))] {
        root(&node, branch, name);
    }
    assert!(merge(&node, "one", "live") > 0);
    let both = tree(&src);
    assert_nothing_is_lost(&base, &[&lines[0], &lines[1]], &both, mounts[0]);
    assert_as_git(history, [BASE, BASE + 3, BASE - 3], [&lines[0], &lines[1]], &both);
    assert!(merge(&node, "two", "live") > 0);
    // one <- (2), then (L <- 1 <- 2); two <- (L <- 1), then what one has.
    assert!(merge(&node, "snapshot:2", "branch:one") > 0);
    assert!(merge(&node, "live", "branch:one") > 0);
    node.phifs(["merge", "snapshot:L", "--into", "snapshot:1", "--as", "L1"]).expect_success();
    assert!(merge(&node, "snapshot:L1", "branch:two") > 0);
    assert_eq!(merge(&node, "branch:one", "branch:two"), 0, "it had all of it");
    assert_eq!(merge(&node, "branch:two", "live") + merge(&node, "branch:two", "branch:one"), 0);
    let all = tree(&src);
    assert_nothing_is_lost(&base, &[&lines[0], &lines[1], &lines[2]], &all, mounts[0]);
    assert_all_same(&node, "first round", mounts);
    let disputed = node.phifs(["conflicts"]).expect_success().stdout_text();
    assert!(disputed.lines().count() > 1, "they edited nothing together: {disputed}");

    // They go on with what came of it, which decides some of what is disputed.
    let mut lines = mounts.map(|mount| Line::new(mount, history));
    lines[0].check_out(Manner::Tar, &[BASE + 3, BASE + 4]);
    lines[1].check_out(Manner::Tar, &[BASE - 3, BASE - 4, BASE - 5]);
    lines[2].check_out(Manner::Git, &[BASE, BASE + 1]);
    merge(&node, "branch:two", "branch:one");
    merge(&node, "live", "branch:two");
    merge(&node, "branch:one", "live");
    merge(&node, "live", "branch:two");
    merge(&node, "branch:two", "branch:one");
    assert_nothing_is_lost(&all, &[&lines[0], &lines[1], &lines[2]], &tree(&src), mounts[0]);
    assert_all_same(&node, "second round", mounts);

    // One moves what another one works in.
    let inner = fs::read_dir(&src).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir());
    let inner = inner.max_by_key(|dir| tree(dir).len()).unwrap();
    let name = inner.file_name().unwrap();
    fs::create_dir(mounts[1].join("src/above")).unwrap();
    fs::rename(mounts[1].join("src").join(name), mounts[1].join("src/above/moved")).unwrap();
    fs::write(inner.join("new while it moves"), b"new").unwrap();
    let expected = tree(&inner);
    merge(&node, "branch:one", "live");
    merge(&node, "live", "branch:one");
    merge(&node, "branch:one", "branch:two");
    assert!(!inner.exists());
    assert_eq!(tree(&src.join("above/moved")), expected);
    assert_all_same(&node, "third round", mounts);

    sides.iter().for_each(Side::unmount);
    node.phifs(["gc"]).expect_success();
    node.down();
    node.phifs(["fsck"]).expect_success();
    node.assert_no_panic();
}

#[test]
fn three_people_edit_the_source_of_phifs() {
    needs_phifs!();
    let Some(history) = History::own() else {
        // A checkout in CI has the latest commit only; the test below has commits of its own.
        eprintln!("skipped: the checkout has no history");
        return;
    };
    three_people_edit_one_source_tree(&history, DataMode::Passthrough);
}

#[test]
fn three_people_edit_a_source_tree_that_is_made_up() {
    needs_phifs!();
    let seed = seed_or(5);
    eprintln!("seed {seed}");
    three_people_edit_one_source_tree(&History::made_up(seed), DataMode::Writeback);
}
