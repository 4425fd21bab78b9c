//! Bad disks below the store: full, read-only, gone.

use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

use phifs_tests::{DataMode, Ext4Loop, Node, is_root, on_ext4, run, skip, wait_until};
use rustix::io::Errno;

use super::needs_phifs;

const LIMIT: Duration = Duration::from_secs(60);

fn is_no_space(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOSPC.raw_os_error())
}

fn full_disk(mode: DataMode) {
    needs_phifs!();
    let host = Ext4Loop::new(256 << 20);
    let mut node = Node::with_store(mode, host.dir().join("store"));
    node.start();
    fs::write(node.dir().join("first"), b"was here before").unwrap();
    let mut full = false;
    let mut written = Vec::new();
    for n in 0..400 {
        let name = node.dir().join(format!("f{n}"));
        let bytes = phifs_tests::pattern::content(7, n, 1 << 20);
        let stored = File::create(&name).and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()));
        match stored {
            Ok(()) => written.push(n),
            Err(error) => {
                assert!(is_no_space(&error), "a full disk gives {error}");
                full = true;
                break;
            }
        }
    }
    assert!(full && written.len() > 20, "{} MiB fit on a disk of 256 MiB", written.len());
    assert!(node.alive(), "a full disk ended the daemon\n{}", node.log());
    // Everything that was acknowledged is there, and metadata and deletes go on.
    assert_eq!(fs::read(node.dir().join("first")).unwrap(), b"was here before");
    fs::rename(node.dir().join("first"), node.dir().join("renamed")).unwrap();
    fs::create_dir(node.dir().join("dir")).unwrap();
    let (gone, kept) = written.split_at(written.len() / 2);
    for n in kept {
        let bytes = fs::read(node.dir().join(format!("f{n}"))).unwrap();
        assert!(bytes == phifs_tests::pattern::content(7, *n, 1 << 20), "f{n} has other bytes on a full disk");
    }
    for n in gone {
        fs::remove_file(node.dir().join(format!("f{n}"))).expect("deleting on a full disk");
    }
    node.phifs(["gc"]).expect_success();
    let again = wait_until(LIMIT, || {
        let bytes = phifs_tests::pattern::content(8, 1, 4 << 20);
        fs::write(node.dir().join("again"), bytes)
            .and_then(|()| File::open(node.dir().join("again"))?.sync_all())
            .is_ok()
    });
    assert!(again, "space that was freed cannot be used\n{}", node.log());
    node.down();
    node.start();
    for n in kept {
        let bytes = fs::read(node.dir().join(format!("f{n}"))).unwrap();
        assert!(bytes == phifs_tests::pattern::content(7, *n, 1 << 20), "f{n} has other bytes after a full disk");
    }
    node.down();
    node.phifs(["fsck"]).expect_success();
    node.assert_no_panic();
}

#[test]
fn a_full_disk_refuses_data_and_still_deletes_in_passthrough() {
    full_disk(DataMode::Passthrough);
}

#[test]
fn a_full_disk_refuses_data_and_still_deletes_in_writeback() {
    full_disk(DataMode::Writeback);
}

#[test]
fn a_read_only_disk_is_a_clear_error_at_the_start() {
    needs_phifs!();
    let host = Ext4Loop::new(256 << 20);
    let mut node = Node::with_store(DataMode::Passthrough, host.dir().join("store"));
    node.start();
    fs::write(node.dir().join("f"), b"x").unwrap();
    node.down();
    host.remount("ro");
    let ran = run(node.command(["up"]).arg("--mount").arg(node.dir()), LIMIT).expect_clear_failure();
    assert!(ran.stderr_text().to_lowercase().contains("read-only"), "{ran}");
    host.remount("rw");
    node.start();
    assert_eq!(fs::read(node.dir().join("f")).unwrap(), b"x");
}

/// Every write to the disk fails: fsync must say so, reads and the daemon go on, nothing hangs.
#[test]
fn a_disk_that_fails_is_told_by_fsync() {
    needs_phifs!();
    let mut host = Ext4Loop::new(512 << 20);
    let mut node = Node::with_store(DataMode::Passthrough, host.dir().join("store"));
    node.start();
    fs::write(node.dir().join("safe"), b"safe").unwrap();
    File::open(node.dir().join("safe")).unwrap().sync_all().unwrap();
    host.cut_power();
    let failed = File::create(node.dir().join("lost"))
        .and_then(|mut file| file.write_all(b"these bytes have no disk").and_then(|()| file.sync_all()));
    assert!(failed.is_err(), "fsync acknowledges what no disk has");
    assert!(node.alive(), "{}", node.log());
    node.kill();
    node.unmount_dead();
    host.unmount();
    host.mount();
    node.start();
    assert_eq!(fs::read(node.dir().join("safe")).unwrap(), b"safe");
    node.assert_no_panic();
}

/// The store directory is removed under a live daemon: errors, no hang, and `down` still works.
#[test]
fn a_removed_store_gives_errors_and_no_hang() {
    needs_phifs!();
    let mut node = Node::up(DataMode::Passthrough);
    fs::write(node.dir().join("before"), vec![1; 200_000]).unwrap();
    // Whoever removes a directory while somebody makes files in it may find it not empty; nothing of phifs is special
    // there. It keeps staging files ready, and an index, until the directories themselves are gone.
    assert!(wait_until(LIMIT, || fs::remove_dir_all(node.store()).is_ok() || !node.store().exists()));
    let dir = node.dir().to_owned();
    let (done, told) = std::sync::mpsc::channel();
    let user = std::thread::spawn(move || {
        let mut failures = 0;
        for n in 0..50 {
            let stored = File::create(dir.join(format!("after{n}")))
                .and_then(|mut file| file.write_all(&[2; 100_000]).and_then(|()| file.sync_all()));
            failures += u32::from(stored.is_err());
        }
        let _ = fs::read(dir.join("before"));
        done.send(failures).unwrap();
    });
    let failures = told.recv_timeout(LIMIT).expect("a user of the mount hangs");
    user.join().unwrap();
    assert!(failures > 0, "50 files were acknowledged as durable in a store that is gone");
    assert!(!node.log().contains("panicked at"), "{}", node.log());
    // The control socket is gone with the store; the signal of every service manager is what is left.
    if node.alive() {
        let _ = rustix::process::kill_process(node.pid(), rustix::process::Signal::TERM);
        assert!(wait_until(LIMIT, || !node.alive()), "the daemon does not end\n{}", node.log());
    }
}
