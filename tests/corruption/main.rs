//! A small store damaged one byte, or one truncation, at a time: never a panic, never a hang, never wrong bytes.
//! What is damaged is repaired, or is an error that names the file.
//!
//! Each damage costs a start of the daemon, so the short form takes samples of every file of the store; the engine's
//! own tests do every byte in memory. The long form takes every `PHIFS_EVERY`th byte (61 if not said).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use phifs_tests::{DataMode, Node, is_root, long, on_ext4, pattern, run, run_ok, skip};

const LIMIT: Duration = Duration::from_secs(60);
/// A damaged store may take this long to come up or to say why not.
const PATIENCE: Duration = Duration::from_secs(20);
/// What belongs to a daemon or a person, not to the data.
const NOT_DATA: [&str; 5] = ["lock", "phifs.pid", "control.sock", "phifs.log", "phifs.toml"];

/// The files of the store under test: 64 KiB that do not compress, 64 KiB that do, and small ones.
fn contents() -> BTreeMap<&'static str, Vec<u8>> {
    BTreeMap::from([
        ("one-glyph", pattern::noise(1, 64 << 10)),
        ("text", b"the same line again and again\n".repeat(2185)),
        ("small", b"a few bytes\n".to_vec()),
        ("dir/below", pattern::noise(3, 3000)),
        ("empty", Vec::new()),
    ])
}

/// A store that was written, used a little and stopped in good order.
fn build(node: &mut Node) {
    node.start();
    fs::create_dir(node.dir().join("dir")).unwrap();
    for (name, bytes) in contents() {
        fs::write(node.dir().join(name), bytes).unwrap();
    }
    std::os::unix::fs::symlink("one-glyph", node.dir().join("link")).unwrap();
    fs::write(node.dir().join("deleted"), b"gone").unwrap();
    fs::remove_file(node.dir().join("deleted")).unwrap();
    node.down();
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    run_ok(Command::new("cp").arg("-a").arg(from).arg(to), LIMIT);
}

/// All data files of a store, the longest paths last, so that a failure is found in the same order every time.
fn data_files(store: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![store.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = entry.file_name();
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_file() && !NOT_DATA.iter().any(|not| name == **not) {
                found.push(path.strip_prefix(store).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(u64),
    Truncate(u64),
}

fn apply(path: &Path, damage: &Damage) {
    let mut bytes = fs::read(path).unwrap();
    match damage {
        Damage::Flip(at) => bytes[*at as usize] ^= 1 << (at % 8),
        Damage::Truncate(len) => bytes.truncate(*len as usize),
    }
    fs::write(path, bytes).unwrap();
}

/// Where to damage a file of this length.
fn damages(len: u64) -> Vec<Damage> {
    let every = std::env::var("PHIFS_EVERY").ok().and_then(|text| text.parse().ok()).unwrap_or(61);
    let step = if long() { every } else { (len / 9).max(1) };
    let mut flips: Vec<u64> = (0..len).step_by(step as usize).collect();
    // Headers and footers are where a byte means most.
    flips.extend([8, 9, 13, 21, 40, len.saturating_sub(1), len.saturating_sub(9)].into_iter().filter(|&at| at < len));
    flips.sort();
    flips.dedup();
    let truncations = [0, 1, len / 3, len / 2, len.saturating_sub(1)];
    let mut truncations: Vec<u64> = truncations.into_iter().filter(|&to| to < len).collect();
    truncations.dedup();
    flips.into_iter().map(Damage::Flip).chain(truncations.into_iter().map(Damage::Truncate)).collect()
}

/// Whether the damaged store behaved, and if not, how.
fn judge(node: &mut Node) -> Result<(), String> {
    let before = node.log().len();
    let started = node.try_start(PATIENCE);
    let said = node.log()[before..].to_owned();
    if said.contains("panicked at") {
        return Err(format!("it panicked:\n{said}"));
    }
    if let Err(why) = started {
        // Refusing is fine if it says why; taking too long is not.
        let clear = why.contains("ended with") && !why.contains("signal") && !said.trim().is_empty();
        return if clear { Ok(()) } else { Err(format!("{why}:\n{said}")) };
    }
    let mut unreadable = Vec::new();
    for (name, wanted) in contents() {
        match fs::read(node.dir().join(name)) {
            Ok(bytes) if bytes == wanted => {}
            Ok(bytes) => return Err(format!("{name} reads as {} wrong bytes", bytes.len())),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => unreadable.push(name),
            Err(error) => return Err(format!("{name}: {error}")),
        }
    }
    if node.dir().join("deleted").exists() {
        return Err("a deleted file is back".to_owned());
    }
    if !unreadable.is_empty() {
        let fsck = node.phifs(["fsck"]);
        let said = node.log()[before..].to_owned() + &fsck.stdout_text() + &fsck.stderr_text();
        // Where the metadata of a directory is gone, nobody knows what was in it; then it is the directory that is named.
        // In so small a store it may be all of them.
        let named = |name: &str| {
            if said.contains("names are lost as well") || said.contains("phifs fsck --repair") {
                return true;
            }
            let mut lines = Path::new(name).ancestors().filter(|path| *path != Path::new(""));
            lines.any(|path| said.contains(&*path.to_string_lossy()))
        };
        if let Some(silent) = unreadable.iter().find(|name| !named(name)) {
            return Err(format!("{silent} cannot be read and nobody says so: {fsck}"));
        }
    }
    let alive = node.alive();
    let said = node.log()[before..].to_owned();
    if !alive || said.contains("panicked at") {
        return Err(format!("the daemon failed while reading:\n{said}"));
    }
    node.kill();
    Ok(())
}

#[test]
fn damage_gives_right_bytes_or_a_clear_error() {
    if on_ext4() || !is_root() {
        skip!("about phifs, as root");
    }
    let mut built = Node::new(DataMode::Passthrough);
    build(&mut built);
    let mut node = Node::new(DataMode::Passthrough);
    let (mut tried, mut failures) = (0, Vec::new());
    for file in data_files(built.store()) {
        let len = built.store().join(&file).metadata().unwrap().len();
        for damage in damages(len) {
            copy(built.store(), node.store());
            apply(&node.store().join(&file), &damage);
            tried += 1;
            if let Err(why) = judge(&mut node) {
                failures.push(format!("{} of {len} bytes, {damage:?}: {why}", file.display()));
                node = Node::new(DataMode::Passthrough);
            }
            node.unmount_dead();
        }
    }
    assert!(tried > 30, "only {tried} damages were tried");
    assert!(
        failures.is_empty(),
        "{} of {tried} damages:\n{}",
        failures.len(),
        failures[..failures.len().min(10)].join("\n")
    );
    eprintln!("{tried} damages, each with right bytes or a clear error");
}

/// The command that checks a store must see what was done to the bytes of a file.
#[test]
fn fsck_and_scrub_find_a_damaged_glyph() {
    if on_ext4() || !is_root() {
        skip!("about phifs, as root");
    }
    let mut node = Node::new(DataMode::Passthrough);
    build(&mut node);
    assert!(node.phifs(["fsck"]).success(), "a good store is not found good");
    let packs: Vec<PathBuf> = data_files(node.store()).into_iter().filter(|path| path.starts_with("packs")).collect();
    let largest = packs.into_iter().max_by_key(|path| node.store().join(path).metadata().unwrap().len());
    let pack = node.store().join(largest.expect("a pack"));
    // Somewhere in the bytes of a file that does not compress: found, whatever a pack looks like.
    let bytes = fs::read(&pack).unwrap();
    let wanted = contents();
    let needle = wanted.values().find_map(|content| {
        let needle = content.get(1000..1032)?;
        bytes.windows(32).position(|window| window == needle)
    });
    let at = needle.expect("the plain bytes of one of the files in a pack") as u64;
    apply(&pack, &Damage::Flip(at));
    for command in ["fsck", "scrub"] {
        let mut ran = run(&mut node.command([command]), LIMIT);
        if command == "scrub" {
            node.start();
            ran = run(&mut node.command([command]), LIMIT);
        }
        assert!(ran.code().is_some_and(|code| code != 0), "{command} does not see a flipped byte: {ran}");
        let said = ran.stdout_text() + &ran.stderr_text();
        assert!(said.contains("glyph"), "{command} does not say what is damaged: {ran}");
    }
}

/// One glyph of a long file: exactly its range cannot be read, and log, fsck and scrub name the file and the range.
#[test]
fn a_lost_glyph_costs_its_range_and_is_named_everywhere() {
    if on_ext4() || !is_root() {
        skip!("about phifs, as root");
    }
    const BLOCK: usize = 4096;
    for mode in [DataMode::Passthrough, DataMode::Writeback] {
        let mut node = Node::new(mode);
        node.start();
        let wanted = pattern::noise(9, 2 << 20);
        fs::write(node.dir().join("long"), &wanted).unwrap();
        fs::write(node.dir().join("other"), pattern::noise(10, 100_000)).unwrap();
        node.down();
        let middle = &wanted[1 << 20..(1 << 20) + 32];
        let found = data_files(node.store()).into_iter().filter(|path| path.starts_with("packs")).find_map(|path| {
            let path = node.store().join(path);
            let at = fs::read(&path).unwrap().windows(32).position(|window| window == middle)?;
            Some((path, at as u64))
        });
        let (pack, at) = found.expect("the plain bytes of the file in a pack");
        apply(&pack, &Damage::Flip(at));
        node.start();
        let file = fs::File::open(node.dir().join("long")).unwrap();
        let mut lost = Vec::new();
        for at in (0..wanted.len()).step_by(BLOCK) {
            let mut bytes = [0; BLOCK];
            match std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, at as u64) {
                Ok(()) => assert!(bytes == wanted[at..at + BLOCK], "wrong bytes at {at}"),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
                    lost.push(at);
                }
            }
        }
        drop(file);
        // A glyph is 256 KiB at most, and its ends do not lie on blocks.
        assert!(lost.contains(&(1 << 20)) && lost.len() <= 65, "{} blocks are lost", lost.len());
        assert!(node.log().contains("/long"), "the log does not name the file: {}", node.log());
        for command in ["scrub", "fsck"] {
            let ran = run(node.command([command]).arg("--json"), LIMIT);
            assert_eq!(ran.code(), Some(5), "{ran}");
            let answer: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
            let problems = answer["problems"].as_array().unwrap();
            assert_eq!((problems.len(), problems[0]["files"].as_array().unwrap().len()), (1, 1), "{answer}");
            let file = &problems[0]["files"][0];
            assert_eq!(file["path"]["text"], "/long", "{answer}");
            let number = |name: &str| file["lost"][0][name].as_u64().unwrap() as usize;
            let (from, len) = (number("offset_bytes"), number("len_bytes"));
            assert_eq!(lost[0], from / BLOCK * BLOCK, "{answer}");
            assert_eq!(lost[lost.len() - 1], (from + len - 1) / BLOCK * BLOCK, "{answer}");
            assert!(!problems[0]["remedy"].as_str().unwrap().contains("--repair"), "{answer}");
            let text = run(&mut node.command([command]), LIMIT);
            assert!(text.stdout_text().contains(&format!("/long: bytes {from} to {}", from + len - 1)), "{text}");
        }
        // The same bytes again heal it.
        fs::write(node.dir().join("again"), &wanted).unwrap();
        node.down();
        node.phifs(["fsck"]).expect_success();
    }
}
