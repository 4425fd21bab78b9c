//! The kernel's mount table as phifs needs it: which mounts are ours, which are dead, what keeps one busy, and taking
//! one away.
//!
//! Nothing here asks a mounted filesystem anything except `is_dead`: the answer could take for ever when its daemon
//! hangs. A mount is recognised by its device number, which further (bind) mounts of it share.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    pub id: u64,
    /// `major:minor`, the same for all mounts of one filesystem.
    pub device: String,
    pub path: PathBuf,
    pub kind: String,
    pub source: String,
}

impl MountPoint {
    pub fn is_phifs(&self) -> bool {
        self.kind == "fuse.phifs"
    }

    /// Whether the process behind this mount is gone (ENOTCONN).
    pub fn is_dead(&self) -> bool {
        // statfs(2) always asks the filesystem, where stat(2) may be answered from a cache.
        self.is_phifs() && rustix::fs::statfs(&self.path).is_err_and(|error| error == Errno::NOTCONN)
    }
}

/// Every mount in this process's view, lowest first where they are stacked.
pub fn list() -> io::Result<Vec<MountPoint>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// The topmost mount exactly at `path`.
pub fn at(path: &Path) -> io::Result<Option<MountPoint>> {
    Ok(list()?.into_iter().rfind(|mount| mount.path == path))
}

/// All mounts of the filesystem with this device number.
pub fn of_device(device: &str) -> io::Result<Vec<MountPoint>> {
    Ok(list()?.into_iter().filter(|mount| mount.device == device).collect())
}

/// Format: proc(5). Lines that do not follow it are left out.
fn parse(table: &[u8]) -> Vec<MountPoint> {
    let line = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let separator = fields.iter().position(|field| *field == b"-")?;
        let text = |field: &[u8]| Some(String::from_utf8_lossy(&unescape(field)).into_owned());
        Some(MountPoint {
            id: std::str::from_utf8(fields.first()?).ok()?.parse().ok()?,
            device: text(fields.get(2)?)?,
            path: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
            kind: text(fields.get(separator + 1)?)?,
            source: text(fields.get(separator + 2)?)?,
        })
    };
    table.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// The kernel writes blanks, line ends and backslashes as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.first_chunk::<3>().and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if byte == b'\\' => {
                out.push(escaped);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

/// Takes the mount at `path` away without waiting for its users (`MNT_DETACH`). What they hold open stays until closed.
pub fn detach(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // A user may take away only what fusermount mounted for them.
        Err(Errno::PERM) => fusermount(path, true),
        result => Ok(result?),
    }
}

/// Takes the mount at `path` away, or fails with `ResourceBusy` while somebody uses it.
pub fn unmount(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
        Err(Errno::PERM) => fusermount(path, false),
        result => Ok(result?),
    }
}

fn fusermount(path: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(path);
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = if text.contains("busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, text))
}

/// Makes the tree mounted at `served` appear at `dir` too.
pub fn bind(served: &Path, dir: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_bind(served, dir)?)
}

/// A process that keeps a mount busy, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pid: u32,
    command: Vec<u8>,
    uses: Vec<&'static str>,
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} ({}): {}", self.pid, crate::show::quote(&self.command), self.uses.join(", "))
    }
}

/// The processes that use these mounts of one filesystem, as far as we may look into them.
///
/// It reads /proc only: `cwd`, `root` and `exe` by their paths, open files by the mount id in `fdinfo`, mappings by the
/// device number in `maps`.
pub fn users(mounts: &[MountPoint]) -> Vec<User> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut users: Vec<User> = pids.filter_map(|pid| uses(pid, mounts)).collect();
    users.sort_by_key(|user| user.pid);
    users
}

fn uses(pid: u32, mounts: &[MountPoint]) -> Option<User> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let below = |link: &str| {
        let target = fs::read_link(proc.join(link));
        target.is_ok_and(|target| mounts.iter().any(|mount| target.starts_with(&mount.path)))
    };
    let mut uses = Vec::new();
    uses.extend(below("cwd").then_some("its working directory"));
    uses.extend(below("root").then_some("its root directory"));
    uses.extend(below("exe").then_some("its program"));
    if fs::read_dir(proc.join("fdinfo")).is_ok_and(|fds| fds.flatten().any(|fd| opened(&fd.path(), mounts))) {
        uses.push("an open file");
    }
    let maps = fs::read(proc.join("maps")).unwrap_or_default();
    if maps.split(|byte| *byte == b'\n').any(|line| mapped(line, mounts)) {
        uses.push("a mapped file");
    }
    let command = || fs::read(proc.join("comm")).unwrap_or_default().trim_ascii_end().to_vec();
    (!uses.is_empty()).then(|| User { pid, command: command(), uses })
}

fn opened(fdinfo: &Path, mounts: &[MountPoint]) -> bool {
    let text = fs::read_to_string(fdinfo).unwrap_or_default();
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
    id.is_some_and(|id| mounts.iter().any(|mount| mount.id == id))
}

/// A line of maps is `range perms offset major:minor inode path`, the numbers in hexadecimal.
fn mapped(line: &[u8], mounts: &[MountPoint]) -> bool {
    let device = || {
        let device = std::str::from_utf8(line.split(|byte| *byte == b' ').nth(3)?).ok()?;
        let (major, minor) = device.split_once(':')?;
        Some(format!("{}:{}", u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?))
    };
    device().is_some_and(|device| mounts.iter().any(|mount| mount.device == device))
}

/// The path as the mount table writes it. The last component is not asked for anything, as it may be a dead mount.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(path) };
    if path.as_os_str().as_bytes().ends_with(b"/..") {
        return path.canonicalize();
    }
    Ok(match parent.canonicalize() {
        Ok(parent) => parent.join(name),
        Err(_) => path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        91 22 0:57 / /mnt/a\\040b\\012c rw,nosuid shared:9 master:1 - fuse.phifs phifs:/s rw,user_id=0\n\
        garbage\n95 22 0:57 /sub /second rw - fuse.phifs phifs:/s rw\n";

    #[test]
    fn mount_table_is_read_with_its_escapes_and_optional_fields() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 3);
        assert!(!mounts[0].is_phifs() && mounts[1].is_phifs());
        assert_eq!(mounts[1].path, Path::new("/mnt/a b\nc"));
        assert_eq!((mounts[1].id, mounts[1].device.as_str(), mounts[1].source.as_str()), (91, "0:57", "phifs:/s"));
        assert_eq!(mounts[2].device, mounts[1].device);
    }

    #[test]
    fn mapped_files_are_known_by_their_device() {
        let mounts = parse(TABLE);
        assert!(mapped(b"7f00-7f01 r--p 00000000 00:39 12 /mnt/x", &mounts));
        assert!(!mapped(b"7f00-7f01 r--p 00000000 00:3a 12 /mnt/x", &mounts));
        assert!(!mapped(b"7f00-7f01 rw-p 00000000 00:00 0", &mounts));
        assert!(!mapped(b"", &mounts));
    }

    #[test]
    fn process_with_an_open_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::File::create(dir.path().join("f")).unwrap();
        let fdinfo =
            fs::read_to_string(format!("/proc/self/fdinfo/{}", std::os::fd::AsRawFd::as_raw_fd(&file))).unwrap();
        let id = fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap().trim().parse().unwrap();
        let nowhere = PathBuf::from("/nowhere");
        let mount =
            MountPoint { id, device: "0:0".into(), path: nowhere, kind: "fuse.phifs".into(), source: String::new() };
        let us = uses(std::process::id(), &[mount]).expect("this process holds a file there");
        assert!(us.uses.contains(&"an open file"), "{us}");
    }

    #[test]
    fn root_is_mounted_and_a_missing_directory_is_not() {
        assert!(at(Path::new("/")).unwrap().is_some());
        assert_eq!(at(Path::new("/no/such/place")).unwrap(), None);
    }
}
