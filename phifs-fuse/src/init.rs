//! What is agreed with the kernel at INIT, and what came of it.
//!
//! Left out on purpose: SETXATTR_EXT (fuser 0.18 misreads the request and panics), NO_OPEN (the reply to open carries
//! the passthrough file), POSIX_LOCKS and FLOCK_LOCKS (locks that the kernel keeps are exact within one mount), and
//! OVER_IO_URING, SECURITY_CTX, INODE_DAX and SUBMOUNTS, which fuser cannot serve.

use std::sync::OnceLock;
use std::{fmt, io};

use fuser::{InitFlags, KernelConfig};
use rustix::thread::CapabilitySet;

/// How the bytes of files shall travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataMode {
    /// Passthrough where the kernel and our privileges allow it, else the write-back cache, else plain.
    #[default]
    Auto,
    Passthrough,
    Writeback,
    Plain,
}

/// How the bytes of files travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPath {
    /// The kernel reads and writes the files behind local inodes itself.
    Passthrough,
    /// The kernel collects writes in its cache and passes them on later.
    Writeback,
    /// Every write passes through this process before write(2) returns; reads are cached.
    Plain,
}

impl fmt::Display for DataMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Passthrough => "passthrough",
            Self::Writeback => "writeback",
            Self::Plain => "plain",
        })
    }
}

impl std::str::FromStr for DataMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Auto, Self::Passthrough, Self::Writeback, Self::Plain];
        let found = all.into_iter().find(|mode| mode.to_string() == text);
        found.ok_or_else(|| format!("`{text}` is none of auto, passthrough, writeback and plain"))
    }
}

impl fmt::Display for DataPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passthrough => "passthrough",
            Self::Writeback => "writeback",
            Self::Plain => "plain",
        })
    }
}

/// What a mount got from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    pub data_path: DataPath,
    /// Why no faster one.
    pub data_path_reason: String,
    /// Major and minor version of the kernel's FUSE protocol.
    pub protocol: (u32, u32),
    pub write_bytes_max: u32,
    pub read_ahead_bytes: u32,
    /// What was asked for by name, and whether the kernel has it.
    pub options: Vec<(&'static str, bool)>,
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "data path            {} ({})", self.data_path, self.data_path_reason)?;
        writeln!(f, "protocol             {}.{}", self.protocol.0, self.protocol.1)?;
        writeln!(f, "largest write        {} bytes", self.write_bytes_max)?;
        writeln!(f, "read-ahead           {} bytes", self.read_ahead_bytes)?;
        self.options.iter().try_for_each(|(name, on)| writeln!(f, "{name:<20} {}", if *on { "yes" } else { "no" }))
    }
}

const WRITE_BYTES_MAX: u32 = 1 << 20;
pub(crate) const READ_AHEAD_BYTES: u32 = 1 << 20;
const BACKGROUND_REQUESTS_MAX: u16 = 64;

/// Nice to have: each is asked for by itself, as an older kernel may lack any of them.
const OPTIONS: [(&str, InitFlags); 12] = [
    ("parallel_dirops", InitFlags::FUSE_PARALLEL_DIROPS),
    ("async_dio", InitFlags::FUSE_ASYNC_DIO),
    ("atomic_o_trunc", InitFlags::FUSE_ATOMIC_O_TRUNC),
    ("cache_symlinks", InitFlags::FUSE_CACHE_SYMLINKS),
    ("readdirplus", InitFlags::FUSE_DO_READDIRPLUS),
    ("readdirplus_auto", InitFlags::FUSE_READDIRPLUS_AUTO),
    // Without it every write(2) asks for security.capability first.
    ("handle_killpriv_v2", InitFlags::FUSE_HANDLE_KILLPRIV_V2),
    ("no_opendir", InitFlags::FUSE_NO_OPENDIR_SUPPORT),
    ("direct_io_mmap", InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP),
    ("explicit_inval_data", InitFlags::FUSE_EXPLICIT_INVAL_DATA),
    ("posix_acl", InitFlags::FUSE_POSIX_ACL),
    // A default ACL of the parent replaces the umask, so it is the volume that applies it.
    ("dont_mask", InitFlags::FUSE_DONT_MASK),
];

/// The wish of the user before INIT, and the result behind it.
pub(crate) struct Init {
    mode: DataMode,
    /// Unless the kernel has refused it before.
    passthrough: bool,
    features: OnceLock<Features>,
}

impl Init {
    pub(crate) fn new(mode: DataMode, passthrough: bool) -> Self {
        Self { mode, passthrough, features: OnceLock::new() }
    }

    /// `None` before INIT.
    pub(crate) fn features(&self) -> Option<&Features> {
        self.features.get()
    }

    /// # Errors
    /// `Unsupported` when the wanted data path is not to be had.
    pub(crate) fn negotiate(&self, config: &mut KernelConfig) -> io::Result<DataPath> {
        let (privileged, kernel) = (self.passthrough && may_pass_through(), config.capabilities());
        let data_path =
            choose(self.mode, privileged, kernel).ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
        match data_path {
            DataPath::Passthrough => {
                add(config, InitFlags::FUSE_PASSTHROUGH);
                // One level: the files behind the inodes lie on an ordinary filesystem.
                config.set_max_stack_depth(1).map_err(|_| io::Error::from(io::ErrorKind::Unsupported))?;
            }
            DataPath::Writeback => {
                add(config, InitFlags::FUSE_WRITEBACK_CACHE);
            }
            DataPath::Plain => {}
        }
        let options = OPTIONS.map(|(name, flag)| (name, add(config, flag))).to_vec();
        // A limit that the kernel will not go to is replaced by the nearest that it will.
        let write_bytes_max = nearest(WRITE_BYTES_MAX, |bytes| config.set_max_write(bytes));
        let read_ahead_bytes = nearest(READ_AHEAD_BYTES, |bytes| config.set_max_readahead(bytes));
        nearest(BACKGROUND_REQUESTS_MAX, |requests| config.set_max_background(requests));
        let protocol = (config.kernel_abi().0, config.kernel_abi().1);
        let data_path_reason = reason(self.mode, data_path, privileged).to_owned();
        let features = Features { data_path, data_path_reason, protocol, write_bytes_max, read_ahead_bytes, options };
        // INIT comes once in the life of a connection.
        let _ = self.features.set(features);
        Ok(data_path)
    }
}

fn choose(mode: DataMode, privileged: bool, kernel: InitFlags) -> Option<DataPath> {
    let passthrough = privileged && kernel.contains(InitFlags::FUSE_PASSTHROUGH);
    let writeback = kernel.contains(InitFlags::FUSE_WRITEBACK_CACHE);
    match mode {
        DataMode::Auto if passthrough => Some(DataPath::Passthrough),
        DataMode::Auto if writeback => Some(DataPath::Writeback),
        DataMode::Auto | DataMode::Plain => Some(DataPath::Plain),
        DataMode::Passthrough => passthrough.then_some(DataPath::Passthrough),
        DataMode::Writeback => writeback.then_some(DataPath::Writeback),
    }
}

/// Why this path was chosen and no faster one.
fn reason(mode: DataMode, chosen: DataPath, privileged: bool) -> &'static str {
    match chosen {
        _ if mode != DataMode::Auto => "as asked for",
        DataPath::Passthrough => "the fastest there is",
        DataPath::Writeback if !privileged => "passthrough takes root",
        DataPath::Writeback => "passthrough takes Linux 6.9",
        DataPath::Plain => "this kernel has no write-back cache for FUSE",
    }
}

/// The kernel takes files for passthrough from CAP_SYS_ADMIN only.
fn may_pass_through() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

fn add(config: &mut KernelConfig, flag: InitFlags) -> bool {
    config.add_capabilities(flag).is_ok()
}

fn nearest<N: Copy>(wanted: N, mut set: impl FnMut(N) -> Result<N, N>) -> N {
    match set(wanted) {
        Ok(_) => wanted,
        Err(possible) => {
            // It is what the setter itself named.
            let _ = set(possible);
            possible
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_takes_the_best_that_there_is() {
        let both = InitFlags::FUSE_PASSTHROUGH | InitFlags::FUSE_WRITEBACK_CACHE;
        assert_eq!(choose(DataMode::Auto, true, both), Some(DataPath::Passthrough));
        assert_eq!(choose(DataMode::Auto, false, both), Some(DataPath::Writeback));
        assert_eq!(choose(DataMode::Auto, true, InitFlags::FUSE_WRITEBACK_CACHE), Some(DataPath::Writeback));
        assert_eq!(choose(DataMode::Auto, true, InitFlags::empty()), Some(DataPath::Plain));
    }

    #[test]
    fn reason_says_what_a_faster_path_would_take() {
        assert_eq!(reason(DataMode::Auto, DataPath::Writeback, false), "passthrough takes root");
        assert_eq!(reason(DataMode::Auto, DataPath::Writeback, true), "passthrough takes Linux 6.9");
        assert_eq!(reason(DataMode::Plain, DataPath::Plain, true), "as asked for");
    }

    #[test]
    fn forced_mode_is_had_or_refused() {
        let both = InitFlags::FUSE_PASSTHROUGH | InitFlags::FUSE_WRITEBACK_CACHE;
        assert_eq!(choose(DataMode::Passthrough, false, both), None);
        assert_eq!(choose(DataMode::Writeback, true, both), Some(DataPath::Writeback));
        assert_eq!(choose(DataMode::Writeback, true, InitFlags::empty()), None);
        assert_eq!(choose(DataMode::Plain, true, both), Some(DataPath::Plain));
    }

    #[test]
    fn mode_names_are_read_back() {
        for mode in [DataMode::Auto, DataMode::Passthrough, DataMode::Writeback, DataMode::Plain] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("fast".parse::<DataMode>().is_err());
    }
}
