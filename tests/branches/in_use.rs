//! A merge while everything that it changes is in use.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use phifs_tests::{DataMode, is_root, on_ext4, run_ok, skip, wait_until};

use super::{LIMIT, Side, branch_off, needs_phifs, up};

/// More than the kernel reads at once.
const MANY: usize = 3000;

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Ends those who wait for it, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Lists a directory until it is told to stop. What is there all the time is in each listing, and nothing twice.
fn list_in_a_loop(dir: &Path, is_over: &AtomicBool) -> usize {
    for round in 1.. {
        let listed = names(dir);
        let unique: BTreeSet<&String> = listed.iter().collect();
        assert_eq!(unique.len(), listed.len(), "a name is listed twice");
        let staying = listed.iter().filter(|name| name.starts_with("stays")).count();
        assert_eq!(staying, MANY, "a name that nobody touched is missing");
        if is_over.load(Ordering::Acquire) {
            return round;
        }
    }
    unreachable!("it is told to stop")
}

fn read_all(mut file: &File) -> String {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

fn merged_while_everything_is_in_use(mode: DataMode) {
    needs_phifs!();
    let mut node = up(mode);
    let live = node.dir().to_owned();
    let at = |name: &str| live.join(name);
    fs::create_dir(at("many")).unwrap();
    for n in 0..MANY {
        fs::write(at(&format!("many/stays {n}")), b"").unwrap();
    }
    for n in 0..300 {
        fs::write(at(&format!("many/goes {n}")), b"").unwrap();
    }
    for dir in ["moves/below", "files", "to"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    fs::write(at("moves/below/kept"), b"kept").unwrap();
    for name in ["overwritten", "replaced", "removed", "both"] {
        fs::write(at(&format!("files/{name}")), format!("old {name}")).unwrap();
    }
    branch_off(&node, "trial");
    let side = Side::of(&node, "trial");
    let there = |name: &str| side.dir().join(name);
    for n in 0..300 {
        fs::remove_file(there(&format!("many/goes {n}"))).unwrap();
        fs::write(there(&format!("many/comes {n}")), b"").unwrap();
    }
    fs::rename(there("moves"), there("to/moved")).unwrap();
    fs::create_dir(there("one")).unwrap();
    fs::write(there("one/theirs"), b"theirs").unwrap();
    fs::write(there("files/overwritten"), b"new overwritten").unwrap();
    fs::write(there("files/beside"), b"new replaced").unwrap();
    fs::rename(there("files/beside"), there("files/replaced")).unwrap();
    fs::remove_file(there("files/removed")).unwrap();
    fs::write(there("files/both"), b"theirs of both").unwrap();
    fs::write(there("files/comes"), b"comes").unwrap();
    fs::create_dir_all(at("one")).unwrap();
    fs::write(at("one/mine"), b"mine").unwrap();

    // The kernel knows all of it, and of some names that they are not there.
    run_ok(Command::new("find").arg(&live).args(["-type", "f", "-exec", "stat", "{}", "+"]), LIMIT);
    for absent in ["files/comes", "many/comes 7", "one/theirs", "to/moved", "to/moved/below"] {
        assert!(fs::metadata(at(absent)).is_err());
    }
    let open = |name: &str| File::options().read(true).write(true).open(at(&format!("files/{name}"))).unwrap();
    let [overwritten, replaced, removed, mut both] = ["overwritten", "replaced", "removed", "both"].map(open);
    let mut listing = fs::read_dir(at("many")).unwrap();
    let first = listing.next().unwrap().unwrap().file_name();

    let go = phifs_tests::scratch("go");
    let go = go.path().join("go");
    let shell = |dir: &str, script: &str| {
        let wait = format!("while [ ! -e '{}' ]; do sleep 0.01; done; {script}", go.display());
        run_ok(Command::new("sh").args(["-euc", &wait]).current_dir(at(dir)), LIMIT).stdout_text()
    };
    let is_over = AtomicBool::new(false);
    let listings = std::thread::scope(|scope| {
        let over = Over(&is_over);
        let moves =
            scope.spawn(|| shell("moves/below", "ls; cat kept; echo made > made; cat ../below/made; cd -P ..; ls"));
        let union = scope.spawn(|| shell("one", "cat mine; cat theirs; echo made > made; ls; mv theirs renamed"));
        let list = scope.spawn(|| list_in_a_loop(&live.join("many"), &is_over));
        std::thread::sleep(Duration::from_millis(200));
        let merged = node.phifs(["merge", "trial"]);
        File::create(&go).unwrap();
        merged.expect_success();
        assert_eq!(moves.join().unwrap(), "kept\nkeptmade\nbelow\n");
        assert_eq!(union.join().unwrap(), "minetheirsmade\nmine\ntheirs\n");
        drop(over);
        list.join().unwrap()
    });
    assert!(listings > 0);

    // A listing that began before goes on with what is there now, and has what was there all the time.
    let rest: Vec<_> = listing.map(|entry| entry.unwrap().file_name()).chain([first]).collect();
    assert_eq!(rest.iter().filter(|name| name.to_str().unwrap().starts_with("stays")).count(), MANY);
    assert_eq!(rest.iter().collect::<BTreeSet<_>>().len(), rest.len());

    let now: BTreeSet<String> = names(&at("many")).into_iter().collect();
    assert_eq!(now.len(), MANY + 300);
    assert!(now.contains("comes 7") && fs::metadata(at("many/comes 7")).is_ok());
    assert!(!now.contains("goes 7") && fs::metadata(at("many/goes 7")).is_err());
    assert_eq!(fs::read(at("files/comes")).unwrap(), b"comes");
    assert!(!at("moves").exists());
    assert_eq!(fs::read(at("to/moved/below/made")).unwrap(), b"made\n");
    let one: BTreeSet<String> = names(&at("one")).into_iter().collect();
    assert_eq!(one, BTreeSet::from(["made", "mine", "renamed"].map(str::to_owned)));

    // Who had a file open has it as it was, and may write: that is a state beside the one of the branch.
    for (file, name) in [(&overwritten, "overwritten"), (&replaced, "replaced"), (&removed, "removed")] {
        assert_eq!(read_all(file), format!("old {name}"));
    }
    assert_eq!(fs::read(at("files/replaced")).unwrap(), b"new replaced", "it is another file");
    assert!(!at("files/removed").exists());
    both.write_all(b"mine").unwrap();
    both.sync_all().unwrap();
    assert_eq!(read_all(&both), "mineboth");
    drop((overwritten, replaced, removed, both));
    assert!(wait_until(LIMIT, || fs::read(at("files/overwritten")).unwrap() == b"new overwritten"));
    let choices = || -> BTreeSet<String> {
        let dir = at(".phi/conflicts/files/both");
        if !dir.exists() {
            return BTreeSet::new();
        }
        names(&dir).iter().map(|name| fs::read_to_string(dir.join(name)).unwrap()).collect()
    };
    let expected = BTreeSet::from(["mineboth", "theirs of both"].map(str::to_owned));
    assert!(wait_until(LIMIT, || choices() == expected), "{:?}", choices());

    node.phifs(["merge", "live", "--into", "trial"]).expect_success();
    let same = |what: &str| run_ok(Command::new("diff").arg("-r").arg(at(what)).arg(there(what)), LIMIT);
    for what in ["many", "to", "one", "files"] {
        same(what);
    }
    side.unmount();
    node.phifs(["fsck"]).expect_success();
    node.down();
    node.phifs(["fsck"]).expect_success();
    node.assert_no_panic();
}

#[test]
fn merged_while_everything_is_in_use_in_passthrough() {
    merged_while_everything_is_in_use(DataMode::Passthrough);
}

#[test]
fn merged_while_everything_is_in_use_in_writeback() {
    merged_while_everything_is_in_use(DataMode::Writeback);
}
