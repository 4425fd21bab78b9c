//! Where realistic changes come from: the commits of a git repository.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use phifs_tests::{Ran, run, run_ok};
use tempfile::TempDir;

use super::LIMIT;

/// A git repository, and some of its commits, each of which changes the one before.
pub struct History {
    home: TempDir,
    pub commits: Vec<String>,
}

/// How somebody brings a working directory from one commit to another one.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    /// As git does: what changes is unlinked and made again.
    Git,
    /// As tar does: what changes is written in place; `rm` removes.
    Tar,
    /// As rsync does: what changes is made beside it and renamed over it.
    Rsync,
}

impl History {
    const COMMITS: usize = 13;

    /// That of phifs itself, if this is a checkout that has it.
    pub fn own() -> Option<History> {
        let home = phifs_tests::scratch("history");
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut clone = Command::new("git");
        // For a checkout of somebody else.
        clone.args(["-c", "safe.directory=*", "clone", "-q", "--bare", "--shared"]);
        run(clone.arg(checkout).arg(home.path().join("git")), LIMIT).success().then_some(())?;
        let mut history = History { home, commits: Vec::new() };
        let listed = history.git(&["rev-list", "--reverse", "--first-parent", "HEAD"]).stdout_text();
        let all: Vec<&str> = listed.lines().collect();
        let from = (all.len() / 2).checked_sub(Self::COMMITS / 2)?;
        history.commits = all.get(from..from + Self::COMMITS)?.iter().map(|&commit| commit.to_owned()).collect();
        Some(history)
    }

    /// One that is made up, and always the same.
    pub fn made_up(seed: u64) -> History {
        let home = phifs_tests::scratch("history");
        let mut history = History { home, commits: Vec::new() };
        let work = history.dir("work");
        history.git(&["init", "-q", "-b", "main"]);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut project = Project { dir: work.clone(), files: Vec::new(), made: 0 };
        (0..120).for_each(|_| project.add(&mut random));
        for n in 0..Self::COMMITS {
            (0..10).for_each(|_| project.change(&mut random));
            let work = format!("--work-tree={}", work.display());
            history.git(&[&work, "add", "-A"]);
            history.git(&[&work, "commit", "-q", "-m", &format!("change {n}")]);
            history.commits.push(history.git(&["rev-parse", "HEAD"]).stdout_text().trim().to_owned());
        }
        history
    }

    /// A new directory that is no part of what is tested.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.home.path().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        dir
    }

    fn command(&self) -> Command {
        let mut git = Command::new("git");
        let who = [("NAME", "a"), ("EMAIL", "a@b"), ("DATE", "1700000000 +0000")];
        for (what, value) in who {
            git.env(format!("GIT_AUTHOR_{what}"), value).env(format!("GIT_COMMITTER_{what}"), value);
        }
        git.args(["-c", "safe.directory=*", "-c", "core.bare=false", "-c", "core.autocrlf=false"]);
        git.arg("--git-dir").arg(self.home.path().join("git"));
        git
    }

    #[track_caller]
    fn git(&self, arguments: &[&str]) -> Ran {
        run_ok(self.command().args(arguments), LIMIT)
    }

    /// With an index of its own, for a working directory.
    #[track_caller]
    fn git_in(&self, dir: &Path, index: &Path, arguments: &[&str]) -> Ran {
        let mut git = self.command();
        run_ok(git.env("GIT_INDEX_FILE", index).arg("--work-tree").arg(dir).args(arguments), LIMIT)
    }

    /// What is written or removed on the way from one commit to another one, even if it is so already.
    pub fn changed(&self, from: &str, to: &str) -> Vec<PathBuf> {
        let listed = self.git(&["diff", "--name-only", "--no-renames", "-z", from, to]).stdout;
        let names = listed.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        names.map(|name| PathBuf::from(OsStr::from_bytes(name))).collect()
    }

    /// Brings a directory from one commit, or from nothing, to another one.
    #[track_caller]
    pub fn check_out(&self, manner: Manner, dir: &Path, from: Option<&str>, to: &str) {
        let scratch = self.dir("check-out");
        match manner {
            Manner::Git => {
                let index = scratch.join("index");
                if let Some(from) = from {
                    self.git_in(dir, &index, &["read-tree", from]);
                    run(
                        self.command().env("GIT_INDEX_FILE", &index).arg("--work-tree").arg(dir).args([
                            "update-index",
                            "-q",
                            "--refresh",
                        ]),
                        LIMIT,
                    );
                }
                self.git_in(dir, &index, &["read-tree", "--reset", "-u", to]);
            }
            Manner::Tar => {
                let from = from.expect("what was there");
                let script = r#"
                    git diff --name-only --no-renames -z --diff-filter=D "$1" "$2" > "$4/gone"
                    git diff --name-only --no-renames -z --diff-filter=d "$1" "$2" > "$4/there"
                    git archive --format=tar "$2" > "$4/tar"
                    cd "$3"
                    xargs -0 -r rm -f -- < "$4/gone"
                    tar -x -m --overwrite --null --verbatim-files-from -T "$4/there" -f "$4/tar"
                    find . -mindepth 1 -type d -empty -delete
                "#;
                self.script(script, &[from.as_ref(), to.as_ref(), dir.as_ref(), scratch.as_ref()]);
            }
            Manner::Rsync => {
                let script = r#"git archive --format=tar "$1" | tar -x -m -C "$3"; rsync -rlpc --delete "$3/" "$2/""#;
                self.script(script, &[to.as_ref(), dir.as_ref(), scratch.as_ref()]);
            }
        }
    }

    #[track_caller]
    fn script(&self, script: &str, arguments: &[&OsStr]) {
        let mut sh = Command::new("sh");
        sh.args(["-euc", script, "sh"]).args(arguments);
        sh.env("GIT_DIR", self.home.path().join("git")).env("GIT_CONFIG_COUNT", "1");
        sh.env("GIT_CONFIG_KEY_0", "safe.directory").env("GIT_CONFIG_VALUE_0", "*");
        run_ok(&mut sh, LIMIT);
    }

    /// What git makes of two commits that both came of a third one, without what both have changed.
    pub fn merged_by_git(&self, base: &str, one: &str, two: &str) -> PathBuf {
        let (dir, index) = (self.dir("merged"), self.home.path().join("merged-index"));
        self.git_in(&dir, &index, &["read-tree", "-i", "-m", "--aggressive", base, one, two]);
        self.git_in(&dir, &index, &["checkout-index", "-a"]);
        fs::remove_file(index).unwrap();
        dir
    }
}

/// A source tree to make up changes in.
struct Project {
    dir: PathBuf,
    files: Vec<String>,
    made: usize,
}

impl Project {
    fn add(&mut self, random: &mut fastrand::Rng) {
        self.made += 1;
        let dirs = ["", "src/", "src/deep/er/", "docs/", "tests/data with spaces/"];
        let name = format!("{}file-{}", dirs[random.usize(..dirs.len())], self.made);
        let lines = (0..random.usize(..200)).map(|n| format!("line {n} of {}: {}\n", self.made, random.u32(..)));
        self.write(&name, lines.collect::<String>().as_bytes());
        self.files.push(name);
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn change(&mut self, random: &mut fastrand::Rng) {
        let at = random.usize(..self.files.len());
        let path = self.dir.join(&self.files[at]);
        match random.u8(..10) {
            0 => self.add(random),
            1 => {
                fs::remove_file(path).unwrap();
                self.files.swap_remove(at);
            }
            2 => {
                let name = format!("renamed/{}/{}", random.u8(..3), self.files[at].replace('/', "-"));
                self.write(&name, &fs::read(&path).unwrap());
                fs::remove_file(path).unwrap();
                self.files[at] = name;
            }
            3 => fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap(),
            4 => {
                let link = self.dir.join(format!("link-{}", random.u8(..5)));
                let _ = fs::remove_file(&link);
                std::os::unix::fs::symlink(&self.files[at], link).unwrap();
            }
            _ => {
                let mut text = fs::read(&path).unwrap();
                let line = format!("changed {}\n", random.u32(..));
                let place = random.usize(..=text.len());
                text.splice(place..place, line.bytes());
                fs::write(path, text).unwrap();
            }
        }
    }
}
