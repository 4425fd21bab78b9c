//! Through a real mount, with a volume in memory behind it.

mod mem_volume;

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use phifs_core::volume::Ino;
use phifs_fuse::{DataMode, DataPath, Mount, MountError, MountOptions, clear_dead_mount, mount};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use mem_volume::MemVolume;

/// A mount that goes away with the test, whichever way that ends.
struct Mounted {
    // Dropped in this order: the directory must not be cleared while it shows the volume.
    mount: Mount,
    volume: Arc<MemVolume>,
    _dir: tempfile::TempDir,
}

impl Mounted {
    /// `None`, with a word about it, where this machine cannot mount.
    fn new(data_mode: DataMode) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("skipped: mounting needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let volume = MemVolume::new();
        let options = MountOptions { data_mode, ..MountOptions::default() };
        match mount(Arc::clone(&volume) as _, dir.path(), &options) {
            Ok(mount) => Some(Self { mount, volume, _dir: dir }),
            Err(error @ (MountError::NoPermission { .. } | MountError::Unavailable(_))) => {
                eprintln!("skipped: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount.path().join(name)
    }
}

fn errno<T: std::fmt::Debug>(outcome: std::io::Result<T>) -> Errno {
    Errno::from_io_error(&outcome.unwrap_err()).unwrap()
}

/// Notices to the kernel are sent by a thread of their own.
fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(10), "never happened: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn files_are_kept_whichever_way_the_bytes_travel() {
    for mode in [DataMode::Passthrough, DataMode::Writeback, DataMode::Plain] {
        let Some(fs) = Mounted::new(mode) else { return };
        let (one, two) = (fs.path("one"), fs.path("two"));
        let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        fs::write(&one, &content).unwrap();
        fs::rename(&one, &two).unwrap();
        assert_eq!(errno(fs::metadata(&one)), Errno::NOENT);
        assert_eq!(fs::metadata(&two).unwrap().len(), content.len() as u64);
        assert!(fs::read(&two).unwrap() == content, "bytes differ in mode {mode}");
        OpenOptions::new().append(true).open(&two).unwrap().write_all(b"tail").unwrap();
        assert!(fs::read(&two).unwrap().ends_with(b"tail"));
        OpenOptions::new().write(true).open(&two).unwrap().set_len(5).unwrap();
        assert_eq!(fs::read(&two).unwrap(), content[..5]);
        fs::write(&two, b"short").unwrap();
        assert_eq!(fs::read(&two).unwrap(), b"short");
        fs::remove_file(&two).unwrap();
        assert_eq!(errno(fs::read(&two)), Errno::NOENT);
        fs.mount.unmount(false).unwrap();
        assert_eq!(fs.volume.open_handles(), 0);
    }
}
