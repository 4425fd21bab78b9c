//! Filesystems below the store that lack what the fast path needs: everything works, and the log says what is lacking.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use phifs_tests::{DataMode, Node, is_root, on_ext4, pattern, run_ok, scratch, skip};

use super::{LIMIT, needs_phifs};

/// Its mount is gone with the namespace of the test's thread.
struct Host {
    home: tempfile::TempDir,
}

impl Host {
    fn new(kind: &str) -> Self {
        let host = Self { home: scratch(kind) };
        fs::create_dir(host.dir()).unwrap();
        host
    }

    fn dir(&self) -> PathBuf {
        self.home.path().join("host")
    }

    fn mount(&self, arguments: &[&str], device: &Path) {
        run_ok(Command::new("mount").args(arguments).arg(device).arg(self.dir()), LIMIT);
    }
}

/// Lives on a store there for a while. Gives the data path and the log.
fn live_on(host: &Host) -> (String, String) {
    let mut node = Node::with_store(DataMode::Auto, host.dir().join("store"));
    node.start();
    let small = |n: u64| node.dir().join(format!("small-{n}"));
    for n in 0..200 {
        fs::write(small(n), pattern::content(1, n, 3000)).unwrap();
    }
    let large = node.dir().join("large");
    let mut bytes = pattern::content(2, 0, 5 << 20);
    fs::write(&large, &bytes).unwrap();
    File::open(&large).unwrap().sync_all().unwrap();
    node.down();

    // An old file is changed in place: on passthrough the kernel does it.
    node.start();
    let change = pattern::content(3, 0, 100_000);
    let file = File::options().read(true).write(true).open(&large).unwrap();
    file.write_all_at(&change, 1_000_000).unwrap();
    bytes[1_000_000..1_100_000].copy_from_slice(&change);
    file.sync_all().unwrap();
    run_ok(Command::new("fallocate").args(["-p", "-o", "2000000", "-l", "1000000"]).arg(&large), LIMIT);
    bytes[2_000_000..3_000_000].fill(0);
    assert!(fs::read(&large).unwrap() == bytes);
    let status: serde_json::Value =
        serde_json::from_slice(&node.phifs(["status", "--json"]).expect_success().stdout).unwrap();
    drop(file);
    File::open(&large).unwrap().sync_all().unwrap();
    node.kill();
    node.unmount_dead();

    node.start();
    assert!(fs::read(node.dir().join("large")).unwrap() == bytes, "other bytes after a kill");
    for n in 0..200 {
        assert!(fs::read(node.dir().join(format!("small-{n}"))).unwrap() == pattern::content(1, n, 3000));
    }
    node.down();
    node.phifs(["fsck"]).expect_success();
    node.assert_no_panic();
    (status["features"]["data_path"].as_str().unwrap().to_owned(), node.log())
}

#[test]
fn a_store_in_memory_works_and_is_warned_of() {
    needs_phifs!();
    let host = Host::new("tmpfs");
    host.mount(&["-t", "tmpfs"], Path::new("none"));
    let (data_path, log) = live_on(&host);
    assert!(log.contains("everything is lost when the machine stops"), "{log}");
    assert_eq!(data_path, "passthrough", "{log}");
}

#[test]
fn a_host_without_preallocation_works_and_is_told_of() {
    needs_phifs!();
    let host = Host::new("ext2");
    let image = host.home.path().join("image");
    File::create(&image).and_then(|file| file.set_len(256 << 20)).unwrap();
    run_ok(
        Command::new("mkfs.ext4").args(["-q", "-F", "-m0", "-O", "^extents,^has_journal,^64bit"]).arg(&image),
        LIMIT,
    );
    host.mount(&["-o", "loop"], &image);
    let (_, log) = live_on(&host);
    assert!(log.contains("cannot reserve space"), "{log}");
}

#[test]
fn a_host_whose_files_the_kernel_does_not_pass_through_gets_another_data_path() {
    needs_phifs!();
    let host = Host::new("overlay");
    let layers = host.home.path().join("layers");
    fs::create_dir(&layers).unwrap();
    run_ok(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&layers), LIMIT);
    for layer in ["lower", "upper", "work"] {
        fs::create_dir(layers.join(layer)).unwrap();
    }
    let at = layers.display();
    let options = format!("lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work");
    host.mount(&["-t", "overlay", "-o", &options], Path::new("none"));
    let (data_path, log) = live_on(&host);
    assert_eq!(data_path, "writeback", "{log}");
    assert!(log.contains("does not take the files of this store for passthrough"), "{log}");
}
