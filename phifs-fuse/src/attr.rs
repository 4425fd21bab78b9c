//! Translations between what the kernel says and what `Volume` means: attributes, times, modes and flags.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, RenameFlags, TimeOrNow};
use phifs_core::time::Timestamp;
use phifs_core::volume::{
    Allocate, Attr, FileKind, Ino, Lasts, NewKind, OpenHow, RenameMode, Result, Seek, SetTime, VolumeError, XattrMode,
};
use rustix::fs::{OFlags, RawMode};

/// How long the kernel may keep names and attributes: as good as forever, because every change is pushed.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How long the kernel may keep a list that is always there: nobody is told of a change of its mode, but whoever reaches
/// it has just passed the directory that it is about.
const A_WHILE: Duration = Duration::from_secs(1);

/// The directory that resolves everywhere and is listed nowhere.
const PHI_DIRECTORY: &[u8] = b".phi";

/// The permission bits of a mode, set-id and sticky bits included.
pub(crate) const PERMISSIONS: u32 = 0o7777;
pub(crate) const SET_ID: u32 = 0o6000;
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

/// The block size that stat(2) reports: a good size for reads and writes.
const IO_BLOCK_BYTES: u32 = 4096;

/// How long the kernel may keep the attributes of this inode, and a name that leads to it.
pub(crate) fn ttl_of(ino: Ino) -> Duration {
    match ino.lasts() {
        Lasts::Moment => Duration::ZERO,
        Lasts::Itself => A_WHILE,
        Lasts::Ever => FOREVER,
    }
}

/// How long the kernel may keep the fact that there is no such name.
pub(crate) fn negative_ttl(parent: Ino, name: &[u8]) -> Duration {
    if parent.lasts() != Lasts::Ever || name == PHI_DIRECTORY { Duration::ZERO } else { FOREVER }
}

/// What the kernel wants in an entry that says "there is nothing by that name".
pub(crate) fn no_attr() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: IO_BLOCK_BYTES,
        flags: 0,
    }
}

pub(crate) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size_bytes,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: (attr.permissions & PERMISSIONS) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: IO_BLOCK_BYTES,
        flags: 0,
    }
}

pub(crate) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// A time on its way to the kernel. One that `SystemTime` cannot hold becomes 1970 rather than a panic.
fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let seconds = if time.secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    let exact = seconds.and_then(|seconds| seconds.checked_add(Duration::from_nanos(time.nanos.into())));
    exact.unwrap_or(UNIX_EPOCH)
}

/// A time as fuser 0.18 decoded it.
///
/// For times before 1970 it subtracts the nanoseconds that it should add. The two halves are still there, so the
/// true value can be had back: the kernel's seconds and nanoseconds are those of the distance to 1970.
fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp::new(after.as_secs().try_into().unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            Timestamp::new(0i64.checked_sub_unsigned(before.as_secs()).unwrap_or(i64::MIN), before.subsec_nanos())
        }
    }
}

pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

/// What mknod(2) asks for.
pub(crate) fn node_kind(mode: u32, rdev: u32) -> Result<NewKind<'static>> {
    match rustix::fs::FileType::from_raw_mode(mode as RawMode) {
        rustix::fs::FileType::RegularFile => Ok(NewKind::File),
        rustix::fs::FileType::Fifo => Ok(NewKind::Fifo),
        rustix::fs::FileType::Socket => Ok(NewKind::Socket),
        rustix::fs::FileType::CharacterDevice => Ok(NewKind::CharDevice(rdev)),
        rustix::fs::FileType::BlockDevice => Ok(NewKind::BlockDevice(rdev)),
        _ => Err(VolumeError::Invalid("mknod cannot make a node of this type")),
    }
}

/// What the kernel adds to the flags of a file that it opens in order to run it.
const FOR_EXECUTION: u32 = 0x20;

/// What an open asks for, in a mount whose write-back cache is on or off.
///
/// With the cache on, the kernel fills pages by reading through handles that were opened for writing only.
pub(crate) fn open_how(flags: i32, writeback: bool) -> OpenHow {
    let flags = OFlags::from_bits_retain(flags as u32);
    let access = flags & OFlags::RWMODE;
    let write = access == OFlags::WRONLY || access == OFlags::RDWR;
    OpenHow {
        read: access != OFlags::WRONLY || writeback,
        write,
        truncate: flags.contains(OFlags::TRUNC),
        append: flags.contains(OFlags::APPEND),
        direct: flags.contains(OFlags::DIRECT),
        sync: flags.intersects(OFlags::SYNC | OFlags::DSYNC),
        exclusive: flags.contains(OFlags::EXCL),
        execute: flags.bits() & FOR_EXECUTION != 0,
        passthrough: false,
    }
}

pub(crate) fn rename_mode(flags: RenameFlags) -> Result<RenameMode> {
    if flags.is_empty() {
        Ok(RenameMode::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameMode::Exchange)
    } else {
        Err(VolumeError::Invalid("rename flags"))
    }
}

pub(crate) fn xattr_mode(flags: i32) -> Result<XattrMode> {
    use rustix::fs::XattrFlags;
    let flags = XattrFlags::from_bits_retain(flags as u32);
    if flags.is_empty() {
        Ok(XattrMode::Set)
    } else if flags == XattrFlags::CREATE {
        Ok(XattrMode::Create)
    } else if flags == XattrFlags::REPLACE {
        Ok(XattrMode::Replace)
    } else {
        Err(VolumeError::Invalid("flags of a set attribute"))
    }
}

pub(crate) fn allocate_mode(mode: i32) -> Result<Allocate> {
    use rustix::fs::FallocateFlags as Flags;
    let mode = Flags::from_bits_retain(mode as u32);
    if mode.is_empty() {
        Ok(Allocate::Reserve)
    } else if mode == Flags::KEEP_SIZE {
        Ok(Allocate::ReserveKeepSize)
    } else if mode == Flags::KEEP_SIZE | Flags::PUNCH_HOLE {
        Ok(Allocate::PunchHole)
    } else if mode == Flags::ZERO_RANGE {
        Ok(Allocate::ZeroRange)
    } else if mode == Flags::ZERO_RANGE | Flags::KEEP_SIZE {
        Ok(Allocate::ZeroRangeKeepSize)
    } else {
        Err(VolumeError::NotSupported("this mode of fallocate"))
    }
}

/// SEEK_DATA and SEEK_HOLE of lseek(2); the kernel answers the others itself.
pub(crate) fn seek_kind(whence: i32) -> Result<Seek> {
    const SEEK_DATA: i32 = 3;
    const SEEK_HOLE: i32 = 4;
    match whence {
        SEEK_DATA => Ok(Seek::Data),
        SEEK_HOLE => Ok(Seek::Hole),
        _ => Err(VolumeError::Invalid("whence")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `system_time_from_time` of fuser 0.18.0.
    fn as_fuser_decodes(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs as u64, nanos)
        } else {
            UNIX_EPOCH - Duration::new(secs.wrapping_neg() as u64, nanos)
        }
    }

    #[test]
    fn times_before_1970_survive_the_decoder() {
        for (secs, nanos) in
            [(0, 0), (7, 5), (-1, 0), (-1, 999_999_999), (-2, 1), (i64::MIN, 0), (i64::MAX, 999_999_999)]
        {
            assert_eq!(timestamp(as_fuser_decodes(secs, nanos)), Timestamp::new(secs, nanos), "{secs}.{nanos:09}");
        }
    }

    #[test]
    fn times_before_1970_reach_the_kernel() {
        assert_eq!(system_time(Timestamp::new(-2, 800_000_000)), UNIX_EPOCH - Duration::new(1, 200_000_000));
        assert_eq!(system_time(Timestamp::new(i64::MIN, 0)), UNIX_EPOCH - Duration::from_secs(1 << 63));
        assert_eq!(system_time(Timestamp::new(i64::MAX, u32::MAX)), UNIX_EPOCH);
    }

    #[test]
    fn of_phi_only_what_lasts_is_cached() {
        let [moment, itself, ever] =
            [Lasts::Moment, Lasts::Itself, Lasts::Ever].map(|lasts| Ino::new_virtual(9, lasts));
        assert_eq!([moment, itself, ever].map(ttl_of), [Duration::ZERO, A_WHILE, FOREVER]);
        let negative = [moment, itself, ever].map(|parent| negative_ttl(parent, b"x"));
        assert_eq!(negative, [Duration::ZERO, Duration::ZERO, FOREVER]);
        assert_eq!(negative_ttl(Ino::ROOT, b".phi"), Duration::ZERO);
        assert_eq!(negative_ttl(Ino::ROOT, b"x"), FOREVER);
        assert_eq!(ttl_of(Ino(0xf_fffe << 44)), FOREVER);
    }

    #[test]
    fn writeback_reads_through_write_only_handles() {
        let flags = (OFlags::WRONLY | OFlags::APPEND).bits() as i32;
        let cached = open_how(flags, true);
        assert!(cached.read && cached.write && cached.append);
        let plain = open_how(flags, false);
        assert!(!plain.read && plain.write && plain.append && !plain.execute);
    }

    #[test]
    fn unknown_flags_are_refused() {
        assert!(rename_mode(RenameFlags::RENAME_WHITEOUT).is_err());
        assert!(rename_mode(RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE).is_err());
        assert!(xattr_mode(3).is_err());
        assert!(matches!(allocate_mode(0x08), Err(VolumeError::NotSupported(_))));
        assert!(matches!(allocate_mode(0x02), Err(VolumeError::NotSupported(_))));
        assert!(seek_kind(0).is_err());
        assert!(node_kind(0o040_755, 0).is_err());
    }
}
