//! Real programs on a real mount.

mod databases;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use phifs_tests::{both_modes, pattern, run, run_ok, skip};

const LIMIT: Duration = Duration::from_secs(240);

/// A crate of this workspace's own dependencies, as cargo keeps it after a download.
fn packed_crate(name: &str) -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))?;
    let registries = fs::read_dir(home.join("registry/cache")).ok()?;
    let mut packed = registries.flatten().flat_map(|registry| fs::read_dir(registry.path()).into_iter().flatten());
    packed.find_map(|entry| {
        let version = entry.ok()?.path();
        let rest = version.file_name()?.to_str()?.strip_prefix(name)?.strip_prefix('-')?;
        rest.starts_with(|first: char| first.is_ascii_digit()).then_some(version.clone())
    })
}

both_modes!(cargo_unpacks_and_builds_a_crate, |place| {
    let dir = place.dir().join("app");
    let vendor = dir.join("vendor");
    fs::create_dir_all(&vendor).unwrap();
    let mut dependencies = String::new();
    // Three that depend on nothing, not even optionally.
    for name in ["heck", "strsim", "unicode-ident"] {
        let Some(packed) = packed_crate(name) else { skip!("cargo keeps no {name} here") };
        run_ok(Command::new("tar").arg("-xzf").arg(&packed).arg("-C").arg(&vendor), LIMIT);
        let unpacked = packed.file_stem().unwrap().to_str().unwrap().to_owned();
        dependencies.push_str(&format!("{name} = {{ path = \"vendor/{unpacked}\" }}\n"));
    }
    let manifest = format!(
        "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\nexclude = [\"vendor\"]\n[dependencies]\n{dependencies}"
    );
    fs::write(dir.join("Cargo.toml"), manifest).unwrap();
    fs::create_dir(dir.join("src")).unwrap();
    let main = "use heck::ToSnakeCase;
        fn main() { println!(\"{} {}\", \"GlyphStore\".to_snake_case(), strsim::hamming(\"abc\", \"abd\").unwrap()); }";
    fs::write(dir.join("src/main.rs"), main).unwrap();
    let cargo = |verb: &str| {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
        command.arg(verb).arg("--offline").current_dir(&dir).env("CARGO_TARGET_DIR", dir.join("target"));
        command.env_remove("RUSTFLAGS").env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_PKG_NAME");
        run_ok(&mut command, LIMIT)
    };
    cargo("build");
    // Nothing changed: whatever cargo knows from times and sizes must still hold.
    let again = cargo("build").stderr_text();
    assert!(!again.contains("Compiling"), "cargo builds again although nothing changed: {again}");
    assert_eq!(cargo("run").stdout_text(), "glyph_store 1\n");
    place.assert_healthy();
});

fn git(dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "gc.auto=0"]).args(arguments);
    command.current_dir(dir).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    run_ok(&mut command, LIMIT).stdout_text()
}

/// Source-like files in a few directories; the same for the same seed.
fn source_tree(dir: &Path, seed: u64, files: u64) {
    for n in 0..files {
        let below = dir.join(format!("src{}/module{}", n % 7, n % 23));
        fs::create_dir_all(&below).unwrap();
        fs::write(below.join(format!("file{n}.rs")), pattern::content(seed, n, pattern::length(seed, n, 60_000)))
            .unwrap();
    }
}

both_modes!(git_clones_checks_and_packs, |place| {
    let outside = tempfile::tempdir().unwrap();
    git(outside.path(), &["init", "-q", "-b", "main", "origin"]);
    let origin = outside.path().join("origin");
    for round in 0..4 {
        source_tree(&origin, round / 2, 200 + 100 * round);
        git(&origin, &["add", "-A"]);
        git(&origin, &["commit", "-q", "-m", &format!("round {round}")]);
    }
    git(place.dir(), &["clone", "-q", "--no-hardlinks", origin.to_str().unwrap(), "clone"]);
    let clone = place.dir().join("clone");
    git(&clone, &["fsck", "--full", "--strict"]);
    assert_eq!(git(&clone, &["status", "--porcelain"]), "");
    git(&clone, &["checkout", "-q", "HEAD~2"]);
    source_tree(&clone, 9, 150);
    git(&clone, &["add", "-A"]);
    git(&clone, &["commit", "-q", "-m", "made on the mount"]);
    git(&clone, &["gc", "-q", "--prune=now"]);
    git(&clone, &["fsck", "--full", "--strict"]);
    place.restart();
    git(&clone, &["fsck", "--full", "--strict"]);
    assert_eq!(git(&clone, &["status", "--porcelain"]), "");
    assert_eq!(git(&clone, &["rev-parse", "main"]), git(&origin, &["rev-parse", "main"]));
    place.assert_healthy();
});

/// A tree with something of everything that rsync and tar can carry.
fn rich_tree(dir: &Path) {
    source_tree(dir, 3, 300);
    fs::write(dir.join("big"), pattern::content(3, 1 << 40, 9_000_001)).unwrap();
    fs::hard_link(dir.join("big"), dir.join("same")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", dir.join("link")).unwrap();
    fs::create_dir(dir.join("empty")).unwrap();
    let script = "setfacl -m u:1001:rw big; setfacl -d -m g:1002:rx empty; setfattr -n user.note -v text same; \
        chmod 2750 empty; chown 1001:1002 link -h; mkfifo fifo; touch -d 1969-07-20T20:17:40.5Z src0; \
        truncate -s 5000001 sparse; touch -d 2040-01-01 sparse; mknod null c 1 3";
    run_ok(Command::new("sh").args(["-ec", script]).current_dir(dir), LIMIT);
}

/// All attributes and contents, by an independent program.
fn rsync_differences(from: &Path, to: &Path) -> String {
    let mut command = Command::new("rsync");
    command.args(["-aHAXn", "--checksum", "--delete", "--itemize-changes"]);
    run_ok(command.arg(format!("{}/", from.display())).arg(format!("{}/", to.display())), LIMIT).stdout_text()
}

both_modes!(rsync_goes_there_and_back_unchanged, |place| {
    let outside = tempfile::tempdir().unwrap();
    let (from, back) = (outside.path().join("from"), outside.path().join("back"));
    fs::create_dir(&from).unwrap();
    rich_tree(&from);
    let there = place.dir().join("there");
    let rsync = |from: &Path, to: &Path| {
        let (from, to) = (format!("{}/", from.display()), format!("{}/", to.display()));
        run_ok(Command::new("rsync").args(["-aHAXS", &from, &to]), LIMIT);
    };
    rsync(&from, &there);
    assert_eq!(rsync_differences(&from, &there), "");
    place.restart();
    assert_eq!(rsync_differences(&from, &there), "", "after a restart");
    rsync(&there, &back);
    assert_eq!(rsync_differences(&from, &back), "");
    place.assert_healthy();
});

both_modes!(tar_packs_and_unpacks_on_the_mount, |place| {
    let outside = tempfile::tempdir().unwrap();
    let from = outside.path().join("from");
    fs::create_dir(&from).unwrap();
    rich_tree(&from);
    let (there, archive) = (place.dir().join("there"), place.dir().join("a.tar"));
    fs::create_dir(&there).unwrap();
    let tar = || {
        let mut command = Command::new("tar");
        command.args(["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "-S"]);
        command
    };
    run_ok(tar().arg("-cf").arg(&archive).arg("-C").arg(&from).arg("."), LIMIT);
    run_ok(tar().arg("-xpf").arg(&archive).arg("-C").arg(&there), LIMIT);
    run_ok(Command::new("tar").arg("-df").arg(&archive).arg("-C").arg(&there), LIMIT);
    assert_eq!(rsync_differences(&from, &there), "");
    run_ok(Command::new("rm").arg("-rf").arg(&there), LIMIT);
    assert!(!there.exists());
    place.assert_healthy();
});

both_modes!(other_users_work_in_their_own_directories, |place| {
    let dir = place.dir().join("home");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(65534), Some(65534)).unwrap();
    let script = "umask 022; echo mine > a; mkdir d; mv a d/b; chmod 600 d/b; ln d/b c; cat c; test -O c";
    let mut command = Command::new("runuser");
    command.args(["-u", "nobody", "--", "sh", "-ec", script]).current_dir(&dir);
    assert_eq!(run_ok(&mut command, LIMIT).stdout_text(), "mine\n");
    let mut command = Command::new("runuser");
    command.args(["-u", "daemon", "--", "cat"]).arg(dir.join("c")).current_dir("/");
    assert!(!run(&mut command, LIMIT).success(), "a private file is read by another user");
});
