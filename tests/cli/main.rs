//! The command and the daemon under bad conditions: each ends in a clear error, nothing lost, nothing hanging.

mod disks;
mod hosts;
mod merging;
mod privileges;
mod snapshots;
mod transfer;
mod user;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::time::Duration;

use phifs_tests::{DataMode, Node, is_root, on_ext4, phifs_bin, run, run_ok, skip, wait_until};

const LIMIT: Duration = Duration::from_secs(60);

/// Ends the test where there is no phifs to ask.
macro_rules! needs_phifs {
    () => {
        if on_ext4() || !is_root() {
            skip!("about phifs, as root");
        }
    };
}
pub(crate) use needs_phifs;

#[test]
fn up_goes_to_the_background_once_mounted_and_down_waits() {
    needs_phifs!();
    let node = Node::new(DataMode::Passthrough);
    let up = run_ok(node.command(["up"]).arg("--mount").arg(node.dir()), LIMIT);
    let said = up.stdout_text() + &up.stderr_text();
    assert!(said.contains(node.dir().to_str().unwrap()), "it does not say where it is mounted: {up}");
    assert_eq!(said.matches("phifs invite").count(), 1, "{up}");
    let again = run_ok(node.command(["up", "--json"]).arg("--mount").arg(node.dir()), LIMIT);
    assert!(
        again.stdout_text().contains(r#""standing":"alone""#) && !again.stdout_text().contains("invite"),
        "{again}"
    );
    fs::write(node.dir().join("f"), b"here").unwrap();
    let pid: i32 = fs::read_to_string(node.store().join("phifs.pid")).unwrap().trim().parse().unwrap();
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(command.windows(5).any(|bytes| bytes == b"phifs"), "STORE/phifs.pid names another process");
    let status = node.phifs(["status", "--json"]).expect_success();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["pid"], pid);
    node.phifs(["down"]).expect_success();
    // A zombie has ended; who collects it is not the command's business.
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "`down` came back before the daemon had ended: {state}");
    assert_eq!(fs::read_dir(node.dir()).unwrap().count(), 0, "still mounted");
    node.phifs(["down"]).expect_clear_failure();
    node.phifs(["status"]).expect_clear_failure();
}

#[test]
fn a_busy_mount_is_named_with_its_users_and_force_ends_it() {
    needs_phifs!();
    let mut node = Node::up(DataMode::Passthrough);
    fs::write(node.dir().join("kept"), b"x").unwrap();
    let open = File::open(node.dir().join("kept")).unwrap();
    let refused = node.phifs(["down"]).expect_clear_failure();
    let me = std::process::id().to_string();
    assert!(refused.stderr_text().contains(&me), "it does not tell that process {me} keeps it busy: {refused}");
    assert!(node.alive() && node.dir().join("kept").exists(), "a refused `down` stopped something");
    node.phifs(["down", "--force"]).expect_success();
    assert!(wait_until(LIMIT, || !node.alive()));
    drop(open);
    node.kill();
    node.start();
    assert_eq!(fs::read(node.dir().join("kept")).unwrap(), b"x");
}

#[test]
fn a_second_daemon_on_the_store_says_so() {
    needs_phifs!();
    let node = Node::up(DataMode::Passthrough);
    let other = tempfile::tempdir().unwrap();
    let second = run(node.command(["up"]).arg("--mount").arg(other.path()), LIMIT).expect_clear_failure();
    assert_eq!(second.code(), Some(4), "{second}");
    let first = node.pid().as_raw_nonzero().to_string();
    assert!(second.stderr_text().contains(&first), "it does not name process {first}: {second}");
    fs::write(node.dir().join("f"), b"the first one serves on").unwrap();
}

#[test]
fn unfit_mountpoints_are_refused_with_their_name() {
    needs_phifs!();
    let home = tempfile::tempdir().unwrap();
    let (full, file) = (home.path().join("full"), home.path().join("file"));
    // A directory cannot be made below a file, whoever asks.
    let missing = file.join("missing");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("something"), b"").unwrap();
    fs::write(&file, b"").unwrap();
    let mounted = Node::up(DataMode::Passthrough);
    for unfit in [missing.as_path(), &full, &file, mounted.dir()] {
        let node = Node::new(DataMode::Passthrough);
        let ran = run(node.command(["up"]).arg("--mount").arg(unfit), LIMIT);
        if ran.success() && unfit != mounted.dir() {
            node.phifs(["down", "--force"]);
        }
        let ran = ran.expect_clear_failure();
        assert!(ran.stderr_text().contains(unfit.to_str().unwrap()), "the mountpoint is not named: {ran}");
    }
    assert!(full.join("something").exists());
}

#[test]
fn a_wrong_configuration_is_shown_by_line_and_column() {
    needs_phifs!();
    let node = Node::new(DataMode::Passthrough);
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("c.toml");
    for (text, place, word) in [
        ("cache_mib = 64\n  colour = \"red\"\n", ":2:3", "colour"),
        ("\ndata_mode = \"sideways\"\n", ":2:", "data_mode"),
        ("cache_mib = \"much\"\n", ":1:", "cache_mib"),
        ("cache_mib = = 3\n", ":1:", "c.toml"),
    ] {
        fs::write(&config, text).unwrap();
        let mut command = node.command(["up"]);
        command.env_remove("PHIFS_DATA_MODE").arg("--mount").arg(node.dir()).arg("--config").arg(&config);
        let ran = run(&mut command, LIMIT).expect_clear_failure();
        let said = ran.stderr_text();
        assert!(said.contains(&format!("c.toml{place}")) && said.contains(word), "{text:?}: {ran}");
    }
}

#[test]
fn wrong_usage_has_an_exit_code_of_its_own() {
    needs_phifs!();
    let code = |arguments: &[&str]| run(Command::new(phifs_bin()).args(arguments), LIMIT).expect_clear_failure().code();
    assert_eq!(code(&["no-such-command"]), Some(2));
    assert_eq!(code(&["status", "--no-such-flag"]), Some(2));
    assert_ne!(code(&["status", "--store", "/nonexistent/store"]), Some(2));
}

#[test]
fn what_a_dead_daemon_left_is_cleared() {
    needs_phifs!();
    let mut node = Node::up(DataMode::Passthrough);
    fs::write(node.dir().join("f"), b"kept").unwrap();
    File::open(node.dir().join("f")).unwrap().sync_all().unwrap();
    node.kill();
    assert!(node.store().join("phifs.pid").exists(), "this test is about the files of a dead daemon");
    assert!(!node.serves(), "the mount of a dead daemon answers");
    // Somebody else has the process number now.
    fs::write(node.store().join("phifs.pid"), format!("{}\n", std::process::id())).unwrap();
    node.start();
    assert_eq!(fs::read(node.dir().join("f")).unwrap(), b"kept");
}

#[test]
fn a_dead_daemon_leaves_no_unkillable_process() {
    needs_phifs!();
    for mode in [DataMode::Passthrough, DataMode::Writeback] {
        let mut node = Node::up(mode);
        let script = "import os,sys,mmap\nf=os.open(sys.argv[1],os.O_RDWR|os.O_CREAT)\nos.ftruncate(f,1<<24)\nm=mmap.mmap(f,0)\nwhile True:\n m[:]=b'x'*(1<<24)\n os.fsync(f)";
        let path = node.dir().join("f");
        let mut user = phifs_tests::Background::start(
            Command::new("python3").args(["-c", script]).arg(&path).stderr(std::process::Stdio::null()),
        );
        std::thread::sleep(Duration::from_millis(700));
        node.kill();
        let (done, told) = std::sync::mpsc::channel();
        let killer = std::thread::spawn(move || {
            user.kill();
            done.send(()).unwrap();
        });
        assert!(told.recv_timeout(Duration::from_secs(20)).is_ok(), "a user of the dead mount cannot be killed");
        killer.join().unwrap();
        node.start();
    }
}

#[test]
fn odd_names_are_harmless_in_text_and_whole_in_json() {
    needs_phifs!();
    let mut node = Node::up(DataMode::Passthrough);
    let names: [&[u8]; 3] = [b"two\nlines", b"\xff\xfenot text", b"\x1b[31mred \"quoted\""];
    for name in names {
        fs::write(node.dir().join(OsStr::from_bytes(name)), b"x").unwrap();
        File::open(node.dir().join(OsStr::from_bytes(name))).unwrap().sync_all().unwrap();
    }
    for command in [&["status"][..], &["log"], &["df"], &["fsck"], &["scrub"], &["gc"], &["mount", "-v"]] {
        let text = node.phifs(command).expect_success();
        let printed = [&text.stdout[..], &text.stderr].concat();
        assert!(std::str::from_utf8(&printed).is_ok(), "{command:?} prints what is not text");
        assert!(!printed.contains(&0x1b), "{command:?} prints an escape sequence");
        assert!(!text.stdout_text().lines().any(|line| line == "lines"), "{command:?} breaks a name over lines");
        let json = node.phifs(command.iter().chain(&["--json"])).expect_success();
        let lines = json.stdout_text();
        for line in lines.lines() {
            serde_json::from_str::<serde_json::Value>(line)
                .unwrap_or_else(|error| panic!("{command:?}: {error}: {json}"));
        }
        assert!(!lines.is_empty(), "{command:?} --json prints nothing");
    }
    node.down();
}

#[test]
fn a_store_of_a_newer_format_is_refused_untouched() {
    needs_phifs!();
    const MAGIC: &[u8] = b"PHIFS-SB";
    let mut node = Node::up(DataMode::Passthrough);
    fs::write(node.dir().join("f"), b"x").unwrap();
    node.down();
    let path = node.store().join("superblock");
    let mut bytes = fs::read(&path).unwrap();
    let slots: Vec<usize> = (0..bytes.len() - 12).filter(|&at| bytes[at..].starts_with(MAGIC)).collect();
    assert!(!slots.is_empty(), "no superblock in the superblock file");
    let mut newer = String::new();
    for slot in slots {
        // The version is a number of four bytes behind the magic; its low byte is the one that is not zero.
        let at = (slot + MAGIC.len()..slot + 12).find(|&at| bytes[at] != 0).expect("a version");
        bytes[at] += 1;
        newer = bytes[at].to_string();
    }
    fs::write(&path, &bytes).unwrap();
    let ran = run(node.command(["up"]).arg("--mount").arg(node.dir()), LIMIT).expect_clear_failure();
    assert!(ran.stderr_text().contains(&format!("version {newer}")), "it does not name the version it found: {ran}");
    assert_eq!(fs::read(&path).unwrap(), bytes, "a store that is not understood was changed");
}

#[test]
fn a_directory_that_is_no_store_is_left_alone() {
    needs_phifs!();
    let node = Node::new(DataMode::Passthrough);
    fs::create_dir(node.store()).unwrap();
    fs::write(node.store().join("thesis.tex"), b"years").unwrap();
    let ran = run(node.command(["up"]).arg("--mount").arg(node.dir()), LIMIT).expect_clear_failure();
    assert!(ran.stderr_text().contains("thesis.tex") || ran.stderr_text().contains("not a phifs store"), "{ran}");
    assert_eq!(fs::read_dir(node.store()).unwrap().count(), 1, "something was put beside somebody's files");
}

#[test]
fn completions_and_man_pages_are_made() {
    needs_phifs!();
    for shell in ["bash", "zsh", "fish"] {
        let made = run_ok(Command::new(phifs_bin()).args(["completions", shell]), LIMIT);
        assert!(made.stdout_text().contains("scrub"), "{made}");
    }
    let home = tempfile::tempdir().unwrap();
    run_ok(Command::new(phifs_bin()).arg("man").arg(home.path()), LIMIT);
    assert!(home.path().join("phifs.1").exists() && home.path().join("phifs-up.1").exists());
}

#[test]
fn deleting_the_index_ends_in_a_rebuild() {
    needs_phifs!();
    let mut node = Node::up(DataMode::Passthrough);
    let bytes = phifs_tests::pattern::content(1, 2, 3_000_000);
    fs::write(node.dir().join("f"), &bytes).unwrap();
    node.down();
    fs::remove_dir_all(node.store().join("index")).expect("the index");
    node.start();
    assert!(fs::read(node.dir().join("f")).unwrap() == bytes);
    node.down();
    node.phifs(["fsck", "--rebuild-index"]).expect_success();
    node.phifs(["fsck"]).expect_success();
}

/// Everything in the store is in the answer: du(1) counts the same.
#[test]
fn df_accounts_for_every_file_of_the_store() {
    needs_phifs!();
    let mut node = Node::up(DataMode::Passthrough);
    for n in 0..20 {
        fs::write(node.dir().join(format!("f{n}")), phifs_tests::pattern::noise(n, 100_000)).unwrap();
    }
    let open = File::create(node.dir().join("open")).unwrap();
    std::io::Write::write_all(&mut &open, &phifs_tests::pattern::noise(77, 3 << 20)).unwrap();
    let counts = || {
        let du = run_ok(Command::new("du").args(["-s", "--block-size=1"]).arg(node.store()), LIMIT).stdout_text();
        let du: u64 = du.split_whitespace().next().unwrap().parse().unwrap();
        let df = node.phifs(["df", "--json"]).expect_success();
        let df: serde_json::Value = serde_json::from_slice(&df.stdout).unwrap();
        let parts: Vec<_> =
            df["parts"].as_array().unwrap().iter().map(|part| part["bytes"].as_u64().unwrap()).collect();
        (parts.into_iter().sum::<u64>(), du, df)
    };
    // Background work goes on between the two.
    let agreed = wait_until(LIMIT, || {
        let (df, du, _) = counts();
        df == du
    });
    let (df, du, parts) = counts();
    assert!(agreed, "df says {df}, du says {du}: {parts}");
    let copies = parts["parts"].as_array().unwrap().iter().find(|part| part["what"] == "plain copies").unwrap();
    assert!(copies["bytes"].as_u64().unwrap() >= 3 << 20, "{parts}");
    drop(open);
    node.down();
}

#[test]
fn status_and_statfs_count_inodes_as_of_now() {
    needs_phifs!();
    let mut node = Node::up(DataMode::Passthrough);
    let counts = || {
        let status = node.phifs(["status", "--json"]).expect_success();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        let statfs = rustix::fs::statvfs(node.dir()).unwrap();
        (status["volume"]["inodes"].as_u64().unwrap(), statfs.f_files - statfs.f_ffree)
    };
    assert_eq!(counts(), (1, 1));
    for n in 0..10 {
        fs::write(node.dir().join(format!("f{n}")), b"x").unwrap();
    }
    assert_eq!(counts(), (11, 11));
    for n in 0..4 {
        fs::remove_file(node.dir().join(format!("f{n}"))).unwrap();
    }
    assert!(wait_until(LIMIT, || counts() == (7, 7)), "{:?}", counts());
    node.down();
}

/// Nothing is written when nothing happens, and next to no time is spent.
#[test]
fn an_idle_node_rests() {
    needs_phifs!();
    const WATCHED: Duration = Duration::from_secs(10);
    let mut node = Node::up(DataMode::Passthrough);
    for n in 0..200 {
        fs::write(node.dir().join(format!("f{n}")), phifs_tests::pattern::noise(n, 20_000)).unwrap();
    }
    let pid = node.pid().as_raw_nonzero();
    let written = || {
        let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
        text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse::<u64>().unwrap()
    };
    let ticks = || {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = text.rsplit(") ").next().unwrap().split(' ').collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let is_published = || {
        let status = node.phifs(["status", "--json"]).expect_success();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        status["volume"]["unpublished_files"] == 0
    };
    // What was published is still to be sealed and noted; a busy disk takes its time.
    let rested = wait_until(Duration::from_secs(120), || {
        let before = written();
        std::thread::sleep(Duration::from_secs(5));
        is_published() && written() == before
    });
    assert!(rested, "it does not come to rest");
    let (bytes, time) = (written(), ticks());
    std::thread::sleep(WATCHED);
    assert_eq!(written(), bytes, "an idle node writes to the disk");
    // A tick is a hundredth of a second: 0.5 % of a core, as so short a time cannot show less.
    assert!(ticks() - time <= 5, "an idle node used {} ticks in {WATCHED:?}", ticks() - time);
    node.down();
}

#[test]
fn paths_are_pinned_listed_and_let_go() {
    needs_phifs!();
    let node = Node::up(DataMode::Passthrough);
    fs::create_dir(node.dir().join("dir")).unwrap();
    fs::write(node.dir().join("dir/file"), vec![7; 100_000]).unwrap();
    let dir = node.dir().join("dir");
    let told = node.phifs(["pin", dir.to_str().unwrap()]).expect_success().stdout_text();
    assert!(told.starts_with("pinned files: 1, with") && told.contains("all of them are here"), "{told}");
    assert_eq!(node.phifs(["pin", "--list"]).expect_success().stdout_text(), "/dir\n");
    node.phifs(["pin", "--remove", "dir"]).expect_success();
    assert_eq!(node.phifs(["pin", "--list"]).expect_success().stdout_text(), "");
    for (arguments, code) in [(&["pin"][..], 2), (&["pin", "/nowhere"], 1), (&["pin", "--remove", "/dir"], 1)] {
        let ran = node.phifs(arguments);
        assert_eq!(ran.code(), Some(code), "{ran}");
    }
}
