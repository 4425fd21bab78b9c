//! The list of intended differences from ext4, `expected-differences.toml`, and the probes that keep it honest.

use std::fs::{self, File};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::Deserialize;

use crate::DataMode;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Differences {
    #[serde(default)]
    pub pjdfstest: Vec<CaseDifference>,
    #[serde(default)]
    pub syscall: Vec<SyscallDifference>,
}

/// A conformance case that only ext4 passes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseDifference {
    pub case: String,
    pub modes: Vec<String>,
    pub reason: String,
}

/// A system call that only ext4 carries out.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyscallDifference {
    pub probe: String,
    pub errno: String,
    pub reason: String,
}

impl Differences {
    #[track_caller]
    pub fn load() -> Differences {
        let text = include_str!("../expected-differences.toml");
        let list: Differences = toml::from_str(text).expect("expected-differences.toml");
        for reason in list.pjdfstest.iter().map(|d| &d.reason).chain(list.syscall.iter().map(|d| &d.reason)) {
            assert!(!reason.trim().is_empty(), "a difference without a reason");
        }
        list
    }

    /// The conformance cases that may fail in this data mode.
    pub fn cases(&self, mode: DataMode) -> Vec<&str> {
        let listed = self.pjdfstest.iter().filter(|d| d.modes.iter().any(|listed| listed == mode.name()));
        listed.map(|d| d.case.as_str()).collect()
    }
}

/// Tries the call that a listed difference is about, in an empty directory.
pub fn probe(name: &str, dir: &Path) -> Result<(), Errno> {
    let file = |name: &str| {
        let path = dir.join(name);
        fs::write(&path, vec![7; 16384]).expect("a file to probe with");
        File::options().write(true).open(path).expect("a file to probe with")
    };
    match name {
        "o_tmpfile" => rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR).map(drop),
        "rename_whiteout" => {
            drop(file("from"));
            rustix::fs::renameat_with(CWD, dir.join("from"), CWD, dir.join("to"), RenameFlags::WHITEOUT)
        }
        "collapse_range" => rustix::fs::fallocate(file("c"), FallocateFlags::COLLAPSE_RANGE, 4096, 4096),
        "insert_range" => rustix::fs::fallocate(file("i"), FallocateFlags::INSERT_RANGE, 4096, 4096),
        "birth_time" => {
            drop(file("b"));
            let wanted = rustix::fs::StatxFlags::BTIME;
            let stat = rustix::fs::statx(CWD, dir.join("b"), AtFlags::empty(), wanted)?;
            if stat.stx_mask & wanted.bits() != 0 { Ok(()) } else { Err(Errno::OPNOTSUPP) }
        }
        "set_id_programs" => {
            let flags = rustix::fs::statvfs(dir)?.f_flag;
            if flags.contains(rustix::fs::StatVfsMountFlags::NOSUID) { Err(Errno::PERM) } else { Ok(()) }
        }
        "device_open" => {
            let zero = rustix::fs::makedev(1, 5);
            rustix::fs::mknodat(CWD, dir.join("zero"), rustix::fs::FileType::CharacterDevice, Mode::RUSR, zero)?;
            rustix::fs::open(dir.join("zero"), OFlags::RDONLY, Mode::empty()).map(drop)
        }
        other => panic!("no probe named {other}"),
    }
}

/// The errno that a name in the list means.
pub fn errno_named(name: &str) -> Errno {
    match name {
        "EOPNOTSUPP" => Errno::OPNOTSUPP,
        "EINVAL" => Errno::INVAL,
        "EACCES" => Errno::ACCESS,
        "EPERM" => Errno::PERM,
        "ENOTTY" => Errno::NOTTY,
        "ENOSYS" => Errno::NOSYS,
        other => panic!("unknown errno {other} in expected-differences.toml"),
    }
}
