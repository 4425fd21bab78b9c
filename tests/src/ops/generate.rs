//! Makes sequences of calls that hit the same few names and files again and again, and are sometimes wrong on purpose.

use fastrand::Rng;
use rustix::fs::{FallocateFlags, OFlags, RenameFlags};

use super::{Call, Name, Op};

pub const SLOTS: usize = 6;
/// Root, and two users who share a group.
const USERS: [u32; 4] = [0, 0, 1001, 1002];

/// A sequence of `count` calls; the same seed gives the same sequence.
pub fn generate(seed: u64, count: usize) -> Vec<Call> {
    let mut rng = Rng::with_seed(seed);
    // Everything about rights is tested with users; much of the rest goes deeper when nothing is forbidden.
    let users = if seed.is_multiple_of(3) { &USERS[..1] } else { &USERS[..] };
    (0..count).map(|_| Call { uid: users[rng.usize(..users.len())], op: op(&mut rng) }).collect()
}

fn op(rng: &mut Rng) -> Op {
    let slot = rng.usize(..SLOTS);
    match rng.u8(..64) {
        0..4 => Op::Mkdir(path(rng), mode(rng)),
        4..6 => Op::Rmdir(path(rng)),
        6..14 => Op::Open { slot, path: path(rng), flags: open_flags(rng), mode: mode(rng) },
        14..16 => Op::Close(slot),
        16..21 => Op::Pwrite { slot, offset: offset(rng), len: len(rng), byte: rng.u8(1..) },
        21..23 => Op::Write { slot, len: len(rng), byte: rng.u8(1..) },
        23..26 => Op::Pread { slot, offset: offset(rng), len: len(rng) },
        26..28 => Op::Ftruncate(slot, offset(rng)),
        28..30 => Op::Fallocate { slot, mode: fallocate_mode(rng), offset: offset(rng), len: len(rng) as u64 },
        30 => {
            let (from, to) = (rng.usize(..SLOTS), slot);
            Op::CopyRange { from, from_offset: offset(rng), to, to_offset: offset(rng), len: len(rng) }
        }
        31 => Op::SeekData(slot, offset(rng)),
        32 => Op::SeekHole(slot, offset(rng)),
        33 => Op::Fsync(slot),
        34 => Op::Fstat(slot),
        35..39 => Op::Unlink(path(rng)),
        39..41 => Op::Link(path(rng), path(rng)),
        41..43 => Op::Symlink { target: target(rng), path: path(rng) },
        43 => Op::Readlink(path(rng)),
        44..49 => Op::Rename { from: path(rng), to: path(rng), flags: rename_flags(rng) },
        49 => {
            // Regular files, fifos, sockets and devices; devices are never opened.
            let kind = [0o100000, 0o010000, 0o140000, 0o020000, 0o060000][rng.usize(..5)];
            Op::Mknod { path: path(rng), kind, mode: mode(rng), device: rng.u64(1..5) << 8 | rng.u64(..300) }
        }
        50..52 => Op::Chmod(path(rng), mode(rng)),
        52..54 => {
            let mut id = || [None, Some(0), Some(1001), Some(1002), Some(2000)][rng.usize(..5)];
            let (uid, gid) = match (id(), id()) {
                // The kernel does not send a chown to nobody to FUSE filesystems, so set-id bits cannot go with it.
                (None, None) => (Some(0), None),
                ids => ids,
            };
            Op::Chown { path: path(rng), uid, gid, follow: rng.bool() }
        }
        54 => Op::Utimens { path: path(rng), atime: time(rng), mtime: time(rng) },
        55..57 => xattr(rng),
        57 => Op::GetXattr(path(rng), xattr_name(rng)),
        58 => Op::ListXattr(path(rng)),
        59 => Op::RemoveXattr(path(rng), xattr_name(rng)),
        60 => Op::Access(path(rng), rng.u32(..8)),
        61 => Op::Stat(path(rng)),
        62 => match rng.u8(..3) {
            0 => Op::Umask([0, 0o022, 0o077, 0o007][rng.usize(..4)]),
            _ => Op::Lstat(path(rng)),
        },
        _ => Op::List(path(rng)),
    }
}

fn path(rng: &mut Rng) -> Name {
    let dirs: [&[u8]; 6] = [b"", b"", b"d/", b"e/", b"d/e/", b"e/d/e/"];
    let leaves: [&[u8]; 12] = [b"a", b"b", b"c", b"d", b"e", b"a", b"b", b"odd\n\xff\xfe", b"a/", b"d/..", b"", b"d/."];
    let mut path = dirs[rng.usize(..dirs.len())].to_vec();
    match rng.u8(..32) {
        0 => path.extend([b'n'; 255]),
        1 => path.extend([b'm'; 256]),
        n => path.extend(leaves[usize::from(n) % if n < 8 { leaves.len() } else { 8 }]),
    }
    Name(path)
}

fn target(rng: &mut Rng) -> Name {
    match rng.u8(..6) {
        0 => Name(b"../a".to_vec()),
        1 => Name(b"d/e".to_vec()),
        2 => Name(vec![b't'; rng.usize(1..4200)]),
        3 => Name(b"..".to_vec()),
        _ => path(rng),
    }
}

fn mode(rng: &mut Rng) -> u32 {
    match rng.u8(..8) {
        0 => rng.u32(..0o10000),
        1 => 0o4755,
        2 => 0o2775,
        3 => 0o1777,
        4 => 0o600,
        _ => 0o777 & !(rng.u32(..8) << (3 * rng.u32(..3))),
    }
}

fn open_flags(rng: &mut Rng) -> u32 {
    let mut flags = [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR, OFlags::RDWR][rng.usize(..4)];
    let maybe = [
        (OFlags::CREATE, 2),
        (OFlags::EXCL, 6),
        (OFlags::TRUNC, 6),
        (OFlags::APPEND, 6),
        (OFlags::DIRECTORY, 16),
        (OFlags::NOFOLLOW, 12),
        (OFlags::PATH, 40),
    ];
    for (flag, one_in) in maybe {
        if rng.u8(..one_in) == 0 {
            flags |= flag;
        }
    }
    // What O_EXCL or O_DIRECTORY means without or with O_CREAT is left undefined.
    if !flags.contains(OFlags::CREATE) {
        flags -= OFlags::EXCL;
    } else {
        flags -= OFlags::DIRECTORY;
    }
    flags.bits()
}

fn offset(rng: &mut Rng) -> u64 {
    match rng.u8(..8) {
        0 => rng.u64(..4 << 20),
        1 => rng.u64(..32) << 16,
        2..4 => rng.u64(..64) << 12,
        4 => 0,
        _ => rng.u64(..20_000),
    }
}

fn len(rng: &mut Rng) -> usize {
    match rng.u8(..10) {
        0 => 0,
        1 => rng.usize(..1 << 20),
        2..4 => rng.usize(1..40) << 12,
        _ => rng.usize(1..9000),
    }
}

fn fallocate_mode(rng: &mut Rng) -> u32 {
    let (keep, punch) = (FallocateFlags::KEEP_SIZE, FallocateFlags::PUNCH_HOLE);
    let zero = FallocateFlags::ZERO_RANGE;
    let modes = [FallocateFlags::empty(), keep, punch | keep, punch | keep, zero, zero | keep, punch, zero | punch];
    modes[rng.usize(..modes.len())].bits()
}

fn rename_flags(rng: &mut Rng) -> u32 {
    let (noreplace, exchange) = (RenameFlags::NOREPLACE, RenameFlags::EXCHANGE);
    match rng.u8(..10) {
        0..2 => noreplace.bits(),
        2..4 => exchange.bits(),
        4 => (noreplace | exchange).bits(),
        _ => 0,
    }
}

fn time(rng: &mut Rng) -> (i64, i64) {
    match rng.u8(..8) {
        0 => (0, rustix::fs::UTIME_OMIT),
        // Before 1970, and as far ahead as ext4 can count.
        1 => (-rng.i64(..1 << 31), rng.i64(..1_000_000_000)),
        2 => (rng.i64(..(1 << 34) - (1 << 31)), rng.i64(..1_000_000_000)),
        3 => (1, 1_000_000_000),
        _ => (rng.i64(..2_000_000_000), rng.i64(..1_000_000_000)),
    }
}

const ACL_ACCESS: &str = "system.posix_acl_access";
const ACL_DEFAULT: &str = "system.posix_acl_default";

fn xattr_name(rng: &mut Rng) -> String {
    let long = format!("user.{}", "x".repeat(250));
    let names =
        ["user.a", "user.b", "user.a", "trusted.t", "security.s", ACL_ACCESS, ACL_DEFAULT, "nowhere.x", "user.", &long];
    names[rng.usize(..names.len())].to_owned()
}

fn xattr(rng: &mut Rng) -> Op {
    let name = xattr_name(rng);
    let value = if name.starts_with("system.") { acl(rng) } else { vec![rng.u8(..); rng.usize(..60)] };
    Op::SetXattr { path: path(rng), name, value, flags: [0, 0, 0, 1, 2][rng.usize(..5)] }
}

/// An access list as the kernel takes it (linux/posix_acl_xattr.h): a version, then entries of tag, rights and id.
fn acl(rng: &mut Rng) -> Vec<u8> {
    const NOBODY_IN_PARTICULAR: u32 = u32::MAX;
    let mut bytes = 2u32.to_le_bytes().to_vec();
    let mut entry = |tag: u16, rights: u16, id: u32| {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(rights.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    };
    let named = rng.u8(..4) > 0;
    entry(0x01, rng.u16(..8), NOBODY_IN_PARTICULAR);
    if named {
        entry(0x02, rng.u16(..8), 1001);
    }
    entry(0x04, rng.u16(..8), NOBODY_IN_PARTICULAR);
    if rng.bool() && named {
        entry(0x08, rng.u16(..8), 2000);
    }
    // A list with named entries needs a mask; leaving it out must be refused.
    if named && rng.u8(..8) > 0 {
        entry(0x10, rng.u16(..8), NOBODY_IN_PARTICULAR);
    }
    entry(0x20, rng.u16(..8), NOBODY_IN_PARTICULAR);
    if rng.u8(..16) == 0 {
        bytes.truncate(rng.usize(..bytes.len()));
    }
    bytes
}
