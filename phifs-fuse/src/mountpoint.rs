//! Mounts and unmounts a directory.
//!
//! It is done here and not by fuser because fuser 0.18 unmounts again whatever is mounted at the same path after
//! somebody else unmounted us, and does not fall back to fusermount3 where /dev/fuse is closed to us.
//!
//! Root mounts by itself. Everybody else asks fusermount3, which opens the device and passes it back over a socket.

use std::ffi::{CString, OsString};
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

use crate::error::MountError;
use crate::session::MountOptions;

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mounted {
    pub(crate) id: u64,
    /// "major:minor".
    pub(crate) device: String,
    pub(crate) fs_type: String,
    pub(crate) path: PathBuf,
}

/// The directory to mount on, free of symlinks.
///
/// # Errors
/// When it is not there, no directory, or something is mounted on it.
pub(crate) fn check(path: &Path) -> Result<PathBuf, MountError> {
    let unfit = |error: io::Error| match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NOTDIR) => MountError::Missing(path.to_owned()),
        Some(errno) if means_dead(errno) => MountError::Dead(path.to_owned()),
        Some(Errno::ACCESS) => refused(path, error.to_string()),
        _ => MountError::System { doing: "looking at the mountpoint", source: error },
    };
    let path = path.canonicalize().map_err(unfit)?;
    if !path.metadata().map_err(unfit)?.is_dir() {
        return Err(MountError::NotDirectory(path));
    }
    match top_mount_at(&path)? {
        Some(mounted) if is_dead(&mounted) => Err(MountError::Dead(path)),
        Some(mounted) => Err(MountError::AlreadyMounted { path, fs_type: mounted.fs_type }),
        None => Ok(path),
    }
}

/// Whether the process behind a FUSE mount is gone. Attributes may still come from the kernel's cache; the sizes of
/// the filesystem never do.
pub(crate) fn is_dead(mounted: &Mounted) -> bool {
    mounted.fs_type.starts_with("fuse") && rustix::fs::statvfs(&mounted.path).is_err_and(means_dead)
}

fn means_dead(error: Errno) -> bool {
    error == Errno::NOTCONN || error == Errno::CONNABORTED
}

/// Mounts, and returns the device over which the kernel speaks.
pub(crate) fn mount(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let source = options.source.as_str();
    if source.is_empty() || source.contains([',', '\\']) || source.contains(char::is_control) {
        return Err(MountError::BadSource(source.to_owned()));
    }
    if let Some(device) = mount_directly(path, options)? {
        return Ok(device);
    }
    mount_by_helper(path, options)
}

/// `None` when only the helper may.
fn mount_directly(path: &Path, options: &MountOptions) -> Result<Option<OwnedFd>, MountError> {
    let device = match rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(device) => device,
        Err(Errno::NOENT | Errno::NODEV | Errno::NXIO) => return Err(MountError::NoDevice),
        Err(Errno::ACCESS | Errno::PERM) => return Ok(None),
        Err(error) => return Err(MountError::system("opening /dev/fuse")(error)),
    };
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid},default_permissions", device.as_raw_fd());
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).expect("numbers and names hold no NUL");
    // Bytes may come from other nodes: unless told so, nobody believes what they say about set-id programs and devices.
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    flags.set(MountFlags::RDONLY, options.read_only);
    match rustix::mount::mount(&options.source, path, "fuse.phifs", flags, Some(data.as_c_str())) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::PERM) => Ok(None),
        Err(Errno::ACCESS) => Err(refused(path, Errno::ACCESS.to_string())),
        Err(Errno::NODEV) => Err(MountError::NoDevice),
        Err(error) => Err(MountError::system("mounting")(error)),
    }
}

fn mount_by_helper(path: &Path, options: &MountOptions) -> Result<OwnedFd, MountError> {
    let mut list = format!("fsname={},subtype=phifs,default_permissions,noatime", options.source);
    // It mounts nosuid and nodev unless root tells it otherwise.
    let (ro, suid, dev) = (options.read_only, options.suid, options.dev);
    for (name, wanted) in [(",allow_other", options.allow_other), (",suid", suid), (",dev", dev), (",ro", ro)] {
        list.push_str(if wanted { name } else { "" });
    }
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(MountError::system("making a socket pair"))?;
    let child = Command::new(HELPER)
        .args(["-o", &list, "--"])
        .arg(path)
        // The socket is its standard input.
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => refused(path, format!("only root may mount, and {HELPER} is not installed")),
        _ => MountError::System { doing: "starting fusermount3", source: error },
    })?;
    let device = receive_descriptor(&ours);
    let mut complaint = String::new();
    if let Some(stderr) = &mut child.stderr {
        // What it says only makes our error clearer.
        let _ = stderr.read_to_string(&mut complaint);
    }
    child.wait().map_err(MountError::system("waiting for fusermount3"))?;
    match device.map_err(MountError::system("receiving the device from fusermount3"))? {
        Some(device) => Ok(device),
        None => Err(refused(path, complaint.trim().to_owned())),
    }
}

fn refused(path: &Path, why: String) -> MountError {
    MountError::NoPermission { path: path.to_owned(), why }
}

/// `None` when the other end closed without sending one.
fn receive_descriptor(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(descriptors.flatten().next())
}

/// Unmounts; with `detach` from the view of new users only, while whoever has files open may finish.
pub(crate) fn unmount(path: &Path, detach: bool) -> Result<(), MountError> {
    let flags = if detach { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(MountError::Busy(path.to_owned())),
        Err(Errno::PERM) => unmount_by_helper(path, detach),
        Err(error) => Err(MountError::system("unmounting")(error)),
    }
}

/// Unmounts, and fails every request that waits for an answer: nobody is left to give it.
pub(crate) fn abort(path: &Path) -> Result<(), MountError> {
    match rustix::mount::unmount(path, UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => unmount_by_helper(path, true),
        Err(error) => Err(MountError::system("aborting the mount")(error)),
    }
}

fn unmount_by_helper(path: &Path, detach: bool) -> Result<(), MountError> {
    let mut command = Command::new(HELPER);
    command.arg("-u");
    if detach {
        command.arg("-z");
    }
    let output = command.arg("--").arg(path).output().map_err(MountError::system("starting fusermount3"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(())
    } else if complaint.contains("busy") {
        Err(MountError::Busy(path.to_owned()))
    } else {
        Err(refused(path, complaint.trim().to_owned()))
    }
}

/// Takes away a FUSE mount whose server is gone, as a crash leaves it. Says whether there was one.
///
/// # Errors
/// Those of unmounting it.
pub fn clear_dead_mount(path: &Path) -> Result<bool, MountError> {
    // The dead directory itself may not be resolvable, but the way to it is.
    let resolved = match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            parent.canonicalize().map_err(MountError::system("resolving the mountpoint"))?.join(name)
        }
        _ => path.to_owned(),
    };
    let mut cleared = false;
    // A crash, a mount over it and a crash again leave several.
    while top_mount_at(&resolved)?.is_some_and(|mounted| is_dead(&mounted)) {
        unmount(&resolved, true)?;
        cleared = true;
    }
    Ok(cleared)
}

/// What one sees at exactly this path, if it is a mount.
pub(crate) fn top_mount_at(path: &Path) -> Result<Option<Mounted>, MountError> {
    let table = std::fs::read("/proc/self/mountinfo").map_err(MountError::system("reading the table of mounts"))?;
    Ok(parse_mounts(&table).filter(|mounted| mounted.path == path).last())
}

fn parse_mounts(table: &[u8]) -> impl Iterator<Item = Mounted> {
    table.split(|&byte| byte == b'\n').filter_map(parse_mount)
}

/// proc_pid_mountinfo(5): id, parent, device, root, path, options, optional fields, "-", type, source, options.
fn parse_mount(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = String::from_utf8(fields.nth(1)?.to_vec()).ok()?;
    let path = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    let fs_type = String::from_utf8_lossy(fields.skip_while(|&field| field != b"-").nth(1)?).into_owned();
    Some(Mounted { id, device, fs_type, path })
}

/// Undoes the octal escapes of spaces, tabs, newlines and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if byte == b'\\' => {
                plain.push(escaped);
                rest = &tail[3..];
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"22 28 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
        91 28 0:44 / /mnt/with\\040space\\134 rw,noatime - fuse.phifs phifs rw,user_id=0\n\
        garbage\n";

    #[test]
    fn mount_table_is_read_with_its_escapes() {
        let mounts: Vec<_> = parse_mounts(TABLE).collect();
        assert_eq!(mounts.len(), 2);
        let expected = Mounted {
            id: 91,
            device: "0:44".into(),
            fs_type: "fuse.phifs".into(),
            path: PathBuf::from("/mnt/with space\\"),
        };
        assert_eq!(mounts[1], expected);
        assert_eq!(mounts[0].fs_type, "sysfs");
    }

    #[test]
    fn unfit_mountpoints_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(matches!(check(&dir.path().join("none")), Err(MountError::Missing(_))));
        assert!(matches!(check(&file), Err(MountError::NotDirectory(_))));
        assert!(
            matches!(check(Path::new("/proc")), Err(MountError::AlreadyMounted { fs_type, .. }) if fs_type == "proc")
        );
        assert!(check(dir.path()).is_ok());
    }

    #[test]
    fn source_that_would_add_options_is_refused() {
        for source in ["", "a,allow_other", "a\\b", "a\nb"] {
            let options = MountOptions { source: source.to_owned(), ..MountOptions::default() };
            assert!(matches!(mount(Path::new("/"), &options), Err(MountError::BadSource(_))), "{source:?}");
        }
    }

    #[test]
    fn live_directory_is_no_dead_mount() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!clear_dead_mount(dir.path()).unwrap());
        assert!(!clear_dead_mount(&dir.path().join("none")).unwrap());
    }
}
