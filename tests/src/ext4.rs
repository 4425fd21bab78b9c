//! An ext4 filesystem in a file, loop mounted: the reference that phifs is compared with, and a host for stores that
//! can lose power.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use tempfile::TempDir;

use crate::process::{run, run_ok, wait_until};
use crate::scratch::scratch;

const LIMIT: Duration = Duration::from_secs(60);

/// `FS_IOC_SHUTDOWN`, `_IOR('X', 125, __u32)` of linux/fs.h: the filesystem stops at once, as if the power went.
const FS_IOC_SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
/// `FS_SHUTDOWN_FLAGS_NOLOGFLUSH`: what is only in memory, the running journal transaction included, is lost.
const NO_LOG_FLUSH: u32 = 2;

/// A loop mounted ext4, unmounted and removed on drop.
pub struct Ext4Loop {
    image: PathBuf,
    mount: PathBuf,
    mounted: bool,
    _home: TempDir,
}

impl Ext4Loop {
    /// Makes and mounts one of about the given size.
    #[track_caller]
    pub fn new(size_bytes: u64) -> Ext4Loop {
        let home = scratch("ext4");
        let (image, mount) = (home.path().join("image"), home.path().join("mnt"));
        File::create(&image).and_then(|file| file.set_len(size_bytes)).expect("an image file");
        fs::create_dir(&mount).expect("a mountpoint");
        run_ok(Command::new("mkfs.ext4").args(["-q", "-F", "-m0", "-I256"]).arg(&image), LIMIT);
        let mut ext4 = Ext4Loop { image, mount, mounted: false, _home: home };
        ext4.mount();
        ext4
    }

    pub fn dir(&self) -> &Path {
        &self.mount
    }

    #[track_caller]
    pub fn mount(&mut self) {
        assert!(!self.mounted);
        run_ok(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mount), LIMIT);
        self.mounted = true;
    }

    /// Mounts it again with other options, for example `ro`.
    #[track_caller]
    pub fn remount(&self, options: &str) {
        run_ok(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.mount), LIMIT);
    }

    #[track_caller]
    pub fn unmount(&mut self) {
        // The kernel drops the last references to files of a dead daemon a moment after the daemon.
        let unmounted = wait_until(LIMIT, || unmount(&self.mount, UnmountFlags::empty()).is_ok());
        if !unmounted {
            let users = run(Command::new("fuser").args(["-vm"]).arg(&self.mount), LIMIT);
            panic!("{} stays busy: {users}", self.mount.display());
        }
        self.mounted = false;
    }

    /// The power goes: nothing more reaches the image, and what had not reached it is lost.
    /// `unmount` and `mount` bring the filesystem back as it is after the lights come on.
    #[track_caller]
    pub fn cut_power(&self) {
        let root = File::open(&self.mount).expect("the root of the mount");
        // SAFETY: the opcode takes a pointer to a u32, which is what `Setter` passes.
        let request = unsafe { rustix::ioctl::Setter::<FS_IOC_SHUTDOWN, u32>::new(NO_LOG_FLUSH) };
        // SAFETY: the request only reads its argument.
        unsafe { rustix::ioctl::ioctl(&root, request) }.expect("shutting ext4 down");
    }
}

impl Drop for Ext4Loop {
    fn drop(&mut self) {
        if self.mounted && unmount(&self.mount, UnmountFlags::empty()).is_err() {
            let _ = unmount(&self.mount, UnmountFlags::DETACH);
        }
    }
}
