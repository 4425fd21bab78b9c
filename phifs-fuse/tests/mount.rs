//! Through a real mount, with a volume in memory behind it.

mod mem_volume;

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use phifs_core::volume::Ino;
use phifs_fuse::{DataMode, DataPath, Mount, MountError, MountOptions, clear_dead_mount, mount};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, RawDir, RenameFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

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
fn requests_of_the_kernel_are_counted_by_kind() {
    let Some(fs) = Mounted::new(DataMode::Plain) else { return };
    let before = fs.mount.requests();
    for name in ["a", "b"] {
        fs::create_dir(fs.path(name)).unwrap();
    }
    let count = |counts: &[(&str, u64)], kind| counts.iter().find(|(known, _)| *known == kind).map(|(_, n)| *n);
    assert_eq!((count(&before, "mkdir"), count(&fs.mount.requests(), "mkdir")), (None, Some(2)));
}

#[test]
fn reads_and_writes_are_counted_once_whether_they_wait_or_not() {
    for at_once in [false, true] {
        let Some(fs) = Mounted::new(DataMode::Plain) else { return };
        *fs.volume.is_at_hand.lock() = at_once;
        fs.volume.put(Ino::ROOT, "read", b"some bytes");
        assert_eq!(fs::read(fs.path("read")).unwrap(), b"some bytes");
        fs::write(fs.path("written"), b"others").unwrap();
        assert_eq!(fs.volume.content(Ino::ROOT, "written"), b"others");
        for kind in ["read", "write"] {
            let count = fs.mount.requests().iter().find(|(known, _)| *known == kind).map(|(_, count)| *count);
            assert_eq!((count, fs.volume.calls(kind)), (Some(1), usize::from(!at_once)), "{kind}");
        }
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

#[test]
fn passthrough_serves_data_without_this_process() {
    let Some(fs) = Mounted::new(DataMode::Passthrough) else { return };
    assert_eq!(fs.mount.features().data_path, DataPath::Passthrough);
    let path = fs.path("file");
    let mut writer = File::create(&path).unwrap();
    writer.write_all(b"first").unwrap();
    // A second handle while the first is open has to name the same registration.
    let mut reader = File::open(&path).unwrap();
    writer.write_all(b" and second").unwrap();
    let mut read = String::new();
    reader.read_to_string(&mut read).unwrap();
    assert_eq!(read, "first and second");
    assert_eq!(writer.metadata().unwrap().len(), 16);
    drop((reader, writer));
    assert_eq!(fs::read(&path).unwrap(), b"first and second");
    assert_eq!(fs.volume.content(Ino::ROOT, "file"), b"first and second");
    for op in ["read", "write", "flush", "refuse_passthrough"] {
        assert_eq!(fs.volume.calls(op), 0, "{op}");
    }
}

#[test]
fn replaced_file_is_passed_on_after_the_last_close() {
    let Some(fs) = Mounted::new(DataMode::Passthrough) else { return };
    fs.volume.put(Ino::ROOT, "file", b"old");
    let path = fs.path("file");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    let ino = fs.volume.put(Ino::ROOT, "file", b"newer");
    fs.mount.invalidator().inode(ino, true);
    soon("new content", || fs::read(&path).unwrap() == b"newer");
    assert_eq!(fs.volume.calls("read"), 0);
}

#[test]
fn writeback_collects_small_writes_and_reads_through_write_only_handles() {
    let Some(fs) = Mounted::new(DataMode::Writeback) else { return };
    assert_eq!(fs.mount.features().data_path, DataPath::Writeback);
    fs.volume.put(Ino::ROOT, "file", &[b'x'; 10_000]);
    let path = fs.path("file");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for n in 0..1000 {
        file.write_all_at(b"y", 5 * n).unwrap();
    }
    drop(file);
    // A process that another test starts has the descriptor too, for a moment, and closes it.
    assert!(fs.volume.calls("flush") > 0, "closing hands over what was collected");
    assert!(fs.volume.calls("read") > 0, "a page is filled before part of it is written");
    assert!(fs.volume.calls("write") <= 4, "{} writes", fs.volume.calls("write"));
    let content = fs.volume.content(Ino::ROOT, "file");
    assert_eq!(&content[..6], b"yxxxxy");
    assert_eq!(content.len(), 10_000);
}

#[test]
fn writeback_hands_over_what_an_open_file_holds_soon() {
    let Some(fs) = Mounted::new(DataMode::Writeback) else { return };
    let mut file = File::create(fs.path("file")).unwrap();
    let started = Instant::now();
    for round in 1..=3 {
        file.write_all(b"bytes").unwrap();
        soon("the bytes arrive", || fs.volume.content(Ino::ROOT, "file").len() == 5 * round);
    }
    assert!(started.elapsed() < Duration::from_secs(5), "it took {:?}", started.elapsed());
    drop(file);
    soon("nobody uses the mount", || fs.mount.unmount(false).is_ok());
}

#[test]
fn file_renamed_while_it_is_open_has_its_bytes_with_its_new_name() {
    let Some(fs) = Mounted::new(DataMode::Writeback) else { return };
    let content: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8).collect();
    *fs.volume.write_takes.lock() = Duration::from_millis(20);
    for (from, to) in [("a", "b"), ("a", "b"), ("a", "c")] {
        let mut file = File::create(fs.path(from)).unwrap();
        file.write_all(&content).unwrap();
        fs::rename(fs.path(from), fs.path(to)).unwrap();
        assert!(fs.volume.content(Ino::ROOT, to) == content, "bytes are missing in {to}");
    }
}

/// The kernel holds the locks of both directories and of the file while it waits for a rename, and the WRITEs need the
/// threads that renames are carried out by.
#[test]
fn renames_of_many_open_files_wait_for_their_bytes_and_not_for_each_other() {
    let Some(fs) = Mounted::new(DataMode::Writeback) else { return };
    *fs.volume.write_takes.lock() = Duration::from_millis(5);
    for dir in ["one", "two"] {
        fs::create_dir(fs.path(dir)).unwrap();
    }
    let started = Instant::now();
    thread::scope(|scope| {
        for n in 0..40 {
            let path = |dir| fs.path(&format!("{dir}/{n}"));
            let (here, there) = if n % 2 == 0 { (path("one"), path("two")) } else { (path("two"), path("one")) };
            scope.spawn(move || {
                let mut file = File::create(&here).unwrap();
                for _ in 0..5 {
                    file.write_all(&[7; 100_000]).unwrap();
                    fs::rename(&here, &there).unwrap();
                    file.write_all(&[8; 100_000]).unwrap();
                    fs::rename(&there, &here).unwrap();
                }
            });
        }
    });
    // Patience with bytes that never come would take longer.
    assert!(started.elapsed() < Duration::from_secs(60), "it took {:?}", started.elapsed());
    // Who fetches what the kernel holds of open files uses the mount for a moment, too.
    soon("nobody uses the mount", || fs.mount.unmount(false).is_ok());
    assert_eq!(fs.volume.open_handles(), 0);
}

#[test]
fn plain_mode_writes_before_it_returns() {
    let Some(fs) = Mounted::new(DataMode::Plain) else { return };
    assert_eq!(fs.mount.features().data_path, DataPath::Plain);
    let mut file = File::create(fs.path("file")).unwrap();
    file.write_all(b"now").unwrap();
    assert_eq!(fs.volume.content(Ino::ROOT, "file"), b"now");
    drop(file);
    let mut file = File::open(fs.path("file")).unwrap();
    file.read_to_end(&mut Vec::new()).unwrap();
    drop(file);
    assert_eq!(fs.volume.calls("flush"), 0, "closing asks nobody");
}

#[test]
fn kernel_grants_what_the_design_counts_on() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    let features = fs.mount.features();
    let missing: Vec<_> = features.options.iter().filter(|(_, on)| !on).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert_eq!(features.write_bytes_max, 1 << 20);
    assert!(features.to_string().contains("handle_killpriv_v2   yes"), "{features}");
    // One question for security.capability, and none for each further write.
    let file = File::create(fs.path("file")).unwrap();
    (0..100).for_each(|n| file.write_all_at(b"x", n).unwrap());
    assert!(fs.volume.calls("getxattr") <= 2, "{}", fs.volume.calls("getxattr"));
}

#[test]
fn large_directory_is_listed_once_each() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    fs::create_dir(fs.path("dir")).unwrap();
    let dir = fs.volume.ino(Ino::ROOT, "dir");
    let expected: HashSet<_> = (0..10_000).map(|n| format!("{n}-{}", "long".repeat(n % 50))).collect();
    for name in &expected {
        fs.volume.put(dir, name, b"");
    }
    // Without the fstat(2) of opendir(3), which would show the kernel that the directory changed.
    let list = || {
        let (dir, mut buf, mut names) = (File::open(fs.path("dir")).unwrap(), Vec::with_capacity(1 << 16), Vec::new());
        let mut entries = RawDir::new(&dir, buf.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            names.push(entry.unwrap().file_name().to_str().unwrap().to_owned());
        }
        names.retain(|name| name != "." && name != "..");
        names
    };
    let listed = list();
    assert_eq!(listed.len(), expected.len());
    assert_eq!(listed.into_iter().collect::<HashSet<_>>(), expected);
    // The kernel keeps the listing, and drops it when a name is announced that it has never seen.
    list();
    let listed_without_asking = || {
        let listings = fs.volume.calls("readdir");
        assert_eq!(list().len(), expected.len());
        fs.volume.calls("readdir") == listings
    };
    // A kernel that reclaims idle pages of its own accord (DAMON) may have taken some of these between two listings.
    assert!((0..3).any(|_| listed_without_asking()), "each listing was asked for anew");
    fs.volume.put(dir, "new", b"");
    fs.mount.invalidator().entry(dir, b"new");
    soon("new name in the listing", || list().contains(&"new".to_owned()));
}

#[test]
fn attributes_of_listed_entries_need_no_lookup() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    for n in 0..100 {
        fs.volume.put(Ino::ROOT, &n.to_string(), b"four");
    }
    for entry in fs::read_dir(fs.path("")).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().len(), 4);
    }
    assert_eq!(fs.volume.calls("lookup"), 0);
}

#[test]
fn attributes_are_set_measured_listed_and_removed() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    let path = fs.path("file");
    fs::write(&path, b"").unwrap();
    let (value, mut room) = (vec![7; 3000], vec![0; 4000]);
    rustix::fs::setxattr(&path, "user.a", &value, XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(&path, "user.b", b"", XattrFlags::CREATE).unwrap();
    assert_eq!(rustix::fs::setxattr(&path, "user.b", b"", XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(rustix::fs::setxattr(&path, "user.c", b"", XattrFlags::REPLACE), Err(Errno::NODATA));
    assert_eq!(rustix::fs::getxattr_query(&path, "user.a"), Ok(3000));
    assert_eq!(rustix::fs::getxattr(&path, "user.a", &mut [0u8; 10][..]), Err(Errno::RANGE));
    assert_eq!(rustix::fs::getxattr(&path, "user.a", &mut room[..]), Ok(3000));
    assert_eq!(room[..3000], value);
    assert_eq!(rustix::fs::listxattr(&path, &mut room[..]), Ok(14));
    assert_eq!(&room[..14], b"user.a\0user.b\0");
    rustix::fs::removexattr(&path, "user.a").unwrap();
    assert_eq!(rustix::fs::getxattr(&path, "user.a", &mut room[..]), Err(Errno::NODATA));
}

#[test]
fn ls_is_told_once_that_there_are_no_labels() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return;
    }
    let path = fs.path("file");
    fs::write(&path, b"").unwrap();
    let mut room = [0; 16];
    assert_eq!(rustix::fs::getxattr(&path, "security.selinux", &mut room[..]), Err(Errno::OPNOTSUPP));
    rustix::fs::setxattr(&path, "security.selinux", b"label", XattrFlags::empty()).unwrap();
    assert_eq!(rustix::fs::getxattr(&path, "security.selinux", &mut room[..]), Ok(5));
}

#[test]
fn unlinked_file_lives_until_it_is_closed_and_is_then_forgotten() {
    for mode in [DataMode::Passthrough, DataMode::Plain] {
        let Some(fs) = Mounted::new(mode) else { return };
        let path = fs.path("file");
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let ino = Ino(file.metadata().unwrap().ino());
        file.write_all(b"still here").unwrap();
        fs::remove_file(&path).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "still here");
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        assert!(!fs.volume.forgotten().contains(&ino));
        drop(file);
        soon("forget", || fs.volume.forgotten() == [ino]);
        assert_eq!(fs.volume.open_handles(), 0, "released before it was forgotten");
    }
}

#[test]
fn every_inode_handed_out_is_forgotten_once() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    fs.volume.put(Ino::ROOT, "a", b"");
    fs::write(fs.path("b"), b"").unwrap();
    fs::create_dir(fs.path("c")).unwrap();
    fs::hard_link(fs.path("b"), fs.path("d")).unwrap();
    std::os::unix::fs::symlink("nowhere", fs.path("e")).unwrap();
    assert_eq!(fs::read_dir(fs.path("")).unwrap().count(), 5);
    assert_eq!(fs::read(fs.path("a")).unwrap(), b"");
    let mut expected: Vec<_> = ["a", "b", "c", "e"].iter().map(|name| fs.volume.ino(Ino::ROOT, name)).collect();
    fs.mount.unmount(false).unwrap();
    let mut forgotten = fs.volume.forgotten();
    forgotten.sort();
    expected.sort();
    assert_eq!(forgotten, expected);
}

#[test]
fn what_was_listed_is_forgotten_when_it_is_removed() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    fs::create_dir(fs.path("dir")).unwrap();
    fs::create_dir(fs.path("dir/below")).unwrap();
    let dir = fs.volume.ino(Ino::ROOT, "dir");
    let below = fs.volume.ino(dir, "below");
    let file = fs.volume.put(dir, "file", b"");
    for path in ["", "dir", "dir/below"] {
        // "." and ".." come along, and are no references.
        assert!(fs::read_dir(fs.path(path)).unwrap().all(|entry| entry.unwrap().metadata().is_ok()));
    }
    fs::remove_file(fs.path("dir/file")).unwrap();
    fs::remove_dir(fs.path("dir/below")).unwrap();
    fs::remove_dir(fs.path("dir")).unwrap();
    soon("forget", || fs.volume.forgotten() == [file, below, dir]);
}

#[test]
fn panic_costs_one_request_and_not_the_mount() {
    let Some(fs) = Mounted::new(DataMode::Plain) else { return };
    fs::write(fs.path("file"), b"content").unwrap();
    let file = File::open(fs.path("file")).unwrap();
    fs.mount.invalidator().inode(fs.volume.ino(Ino::ROOT, "file"), true);
    // On the threads that read requests and on those of the pool, more often than there are of either.
    for n in 0..40 {
        fs.volume.panic_in(Some("lookup"));
        assert_eq!(errno(fs::metadata(fs.path(&format!("none{n}")))), Errno::IO);
        fs.volume.panic_in(Some("fsync"));
        assert_eq!(errno(file.sync_all()), Errno::IO);
        fs.volume.panic_in(Some("readdir"));
        let first = fs::read_dir(fs.path("")).and_then(|mut entries| entries.next().unwrap());
        assert_eq!(errno(first), Errno::IO);
    }
    fs.volume.panic_in(None);
    assert_eq!(fs::read(fs.path("file")).unwrap(), b"content");
    file.sync_all().unwrap();
    assert_eq!(fs::read_dir(fs.path("")).unwrap().count(), 1);
}

#[test]
fn missing_name_is_asked_for_once_until_it_is_announced() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    for _ in 0..5 {
        assert_eq!(errno(fs::metadata(fs.path("later"))), Errno::NOENT);
    }
    assert_eq!(fs.volume.calls("lookup"), 1);
    fs.volume.put(Ino::ROOT, "later", b"here");
    fs.mount.invalidator().entry(Ino::ROOT, b"later");
    soon("announced name", || fs::read(fs.path("later")).is_ok_and(|content| content == b"here"));
    let lookups = fs.volume.calls("lookup");
    for _ in 0..3 {
        assert_eq!(errno(fs::metadata(fs.path(".phi"))), Errno::NOENT);
    }
    assert_eq!(fs.volume.calls("lookup"), lookups + 3, ".phi is never remembered as missing");
}

#[test]
fn attributes_are_kept_until_a_change_is_announced() {
    let Some(fs) = Mounted::new(DataMode::Plain) else { return };
    fs.volume.put(Ino::ROOT, "file", b"old");
    let path = fs.path("file");
    assert_eq!(fs::metadata(&path).unwrap().len(), 3);
    let ino = fs.volume.put(Ino::ROOT, "file", b"newer");
    assert_eq!(fs::metadata(&path).unwrap().len(), 3);
    fs.mount.invalidator().inode(ino, true);
    soon("new length", || fs::metadata(&path).unwrap().len() == 5);
    soon("new content", || fs::read(&path).unwrap() == b"newer");
}

#[test]
fn flood_of_changes_still_drops_every_name() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    if fs.mount.features().protocol < (7, 44) {
        return eprintln!("skipped: this kernel cannot drop all names at once");
    }
    assert_eq!(errno(fs::metadata(fs.path("later"))), Errno::NOENT);
    fs.volume.put(Ino::ROOT, "later", b"");
    let invalidator = fs.mount.invalidator();
    // More than is kept waiting, whatever the thread that sends them takes away meanwhile: it is held up here.
    fs::create_dir(fs.path("dir")).unwrap();
    let dir = fs.volume.ino(Ino::ROOT, "dir");
    soon("name that was not announced by itself", || {
        (0..200_000u32).for_each(|n| invalidator.entry(dir, &n.to_ne_bytes()));
        fs::metadata(fs.path("later")).is_ok()
    });
}

#[test]
fn longest_name_fits_and_one_more_byte_does_not() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    let longest = "n".repeat(255);
    fs::write(fs.path(&longest), b"x").unwrap();
    assert_eq!(fs::read_dir(fs.path("")).unwrap().next().unwrap().unwrap().file_name(), *longest);
    assert_eq!(errno(fs::write(fs.path(&"n".repeat(256)), b"x")), Errno::NAMETOOLONG);
}

#[test]
fn times_before_1970_are_kept_exactly() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    let path = fs.path("file");
    fs::write(&path, b"").unwrap();
    for (secs, nanos) in [(-5, 300_000_000), (i64::MIN, 0)] {
        let time = Timespec { tv_sec: secs, tv_nsec: nanos };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        fs.mount.invalidator().inode(fs.volume.ino(Ino::ROOT, "file"), false);
        let asked = fs.volume.calls("getattr");
        soon("attributes read back", || {
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (secs, nanos));
            assert_eq!((metadata.atime(), metadata.atime_nsec()), (secs, nanos));
            fs.volume.calls("getattr") > asked
        });
    }
}

#[test]
fn nodes_of_every_kind_are_made() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    let make = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, fs.path(name), kind, Mode::from_raw_mode(0o600), device).unwrap();
        fs::symlink_metadata(fs.path(name)).unwrap()
    };
    assert!(make("fifo", FileType::Fifo, 0).file_type().is_fifo());
    assert!(make("socket", FileType::Socket, 0).file_type().is_socket());
    assert!(make("file", FileType::RegularFile, 0).is_file());
    let device = make("device", FileType::CharacterDevice, rustix::fs::makedev(300, 70_000));
    assert!(device.file_type().is_char_device());
    assert_eq!(device.rdev(), rustix::fs::makedev(300, 70_000));
    std::os::unix::fs::symlink("to nowhere", fs.path("symlink")).unwrap();
    assert_eq!(fs::read_link(fs.path("symlink")).unwrap(), Path::new("to nowhere"));
    fs::hard_link(fs.path("file"), fs.path("again")).unwrap();
    assert_eq!(fs::metadata(fs.path("again")).unwrap().nlink(), 2);
    fs::create_dir(fs.path("dir")).unwrap();
    fs::write(fs.path("dir/inside"), b"").unwrap();
    assert_eq!(errno(fs::remove_dir(fs.path("dir"))), Errno::NOTEMPTY);
    fs::remove_file(fs.path("dir/inside")).unwrap();
    fs::remove_dir(fs.path("dir")).unwrap();
}

#[test]
fn rename_flags_reach_the_volume() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    let (a, b) = (fs.path("a"), fs.path("b"));
    fs::write(&a, b"a").unwrap();
    fs::write(&b, b"b").unwrap();
    let rename = |flags| rustix::fs::renameat_with(CWD, &a, CWD, &b, flags);
    assert_eq!(rename(RenameFlags::NOREPLACE), Err(Errno::EXIST));
    assert_eq!(rename(RenameFlags::WHITEOUT), Err(Errno::INVAL));
    rename(RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(&a).unwrap(), b"b");
    assert_eq!(fs::read(&b).unwrap(), b"a");
}

#[test]
fn ranges_are_reserved_punched_sought_and_copied() {
    for mode in [DataMode::Passthrough, DataMode::Plain] {
        let Some(fs) = Mounted::new(mode) else { return };
        fs::write(fs.path("from"), b"0123456789").unwrap();
        let from = OpenOptions::new().read(true).write(true).open(fs.path("from")).unwrap();
        rustix::fs::fallocate(&from, FallocateFlags::empty(), 0, 20).unwrap();
        assert_eq!(from.metadata().unwrap().len(), 20);
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&from, punch, 1, 2).unwrap();
        assert_eq!(rustix::fs::fallocate(&from, FallocateFlags::ZERO_RANGE, 0, 1), Err(Errno::OPNOTSUPP));
        assert_eq!(rustix::fs::seek(&from, rustix::fs::SeekFrom::Hole(3)), Ok(20));
        assert_eq!(rustix::fs::seek(&from, rustix::fs::SeekFrom::Data(99)), Err(Errno::NXIO));
        let to = File::create(fs.path("to")).unwrap();
        assert_eq!(rustix::fs::copy_file_range(&from, Some(&mut 2), &to, Some(&mut 1), 5), Ok(5));
        assert_eq!(fs::read(fs.path("to")).unwrap(), b"\0\x003456");
        assert_eq!(fs.volume.calls("copy_range"), 1);
    }
}

#[test]
fn concurrent_fsyncs_meet_in_the_volume() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    *fs.volume.fsyncs_meet.lock() = Some(Arc::new(Barrier::new(8)));
    thread::scope(|scope| {
        for n in 0..8 {
            let file = File::create(fs.path(&n.to_string())).unwrap();
            scope.spawn(move || file.sync_all().unwrap());
        }
        // Names are still answered while all of them wait.
        fs::create_dir(fs.path("dir")).unwrap();
    });
    *fs.volume.fsyncs_meet.lock() = None;
    File::open(fs.path("dir")).unwrap().sync_all().unwrap();
    assert_eq!(fs.volume.calls("fsyncdir"), 1);
}

#[test]
fn statfs_shows_the_volume() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    let stat = rustix::fs::statvfs(fs.mount.path()).unwrap();
    assert_eq!((stat.f_blocks, stat.f_bfree, stat.f_bavail, stat.f_frsize), (1000, 500, 400, 4096));
    assert_eq!((stat.f_files, stat.f_ffree, stat.f_namemax), (99, 9, 255));
}

#[test]
fn busy_mount_stays_unless_forced() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    let mut file = File::create(fs.path("file")).unwrap();
    assert!(matches!(fs.mount.unmount(false), Err(MountError::Busy(_))));
    let again = mount(Arc::clone(&fs.volume) as _, fs.mount.path(), &MountOptions::default());
    assert!(matches!(again, Err(MountError::AlreadyMounted { fs_type, .. }) if fs_type == "fuse.phifs"));
    fs.mount.unmount(true).unwrap();
    assert!(!fs.path("file").exists());
    assert!(!fs.mount.is_finished());
    // Whoever has it open goes on.
    file.write_all(b"late").unwrap();
    drop(file);
    fs.mount.wait();
    assert_eq!(fs.volume.content(Ino::ROOT, "file"), b"late");
    assert_eq!(fs.volume.open_handles(), 0);
}

#[test]
fn unmount_from_outside_ends_the_session_and_leaves_the_next_mount_alone() {
    let Some(fs) = Mounted::new(DataMode::Auto) else { return };
    fs::write(fs.path("file"), b"x").unwrap();
    assert!(!fs.mount.is_finished());
    assert!(Command::new("umount").arg(fs.mount.path()).status().unwrap().success());
    let next = mount(MemVolume::new() as _, fs.mount.path(), &MountOptions::default()).unwrap();
    fs.mount.wait();
    fs.mount.unmount(true).unwrap();
    assert_eq!(fs.volume.open_handles(), 0);
    fs::write(next.path().join("file"), b"y").unwrap();
    next.unmount(false).unwrap();
}

/// Runs in a process of its own, for the next test to kill.
#[test]
#[ignore = "serves until it is killed"]
fn serve_until_killed() {
    let Some(dir) = std::env::var_os("PHIFS_TEST_MOUNTPOINT") else { return };
    mount(MemVolume::new() as _, Path::new(&dir), &MountOptions::default()).unwrap().wait();
}

/// A mountpoint whose server is another process.
struct Elsewhere {
    path: PathBuf,
    server: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
    }
}

#[test]
fn dead_mount_is_named_and_cleared() {
    if Mounted::new(DataMode::Auto).is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mount point");
    fs::create_dir(&path).unwrap();
    let server = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "serve_until_killed", "--ignored"])
        .env("PHIFS_TEST_MOUNTPOINT", &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut elsewhere = Elsewhere { path: path.clone(), server, _dir: dir };
    let device = fs::metadata(path.parent().unwrap()).unwrap().dev();
    soon("mount", || fs::metadata(&path).is_ok_and(|metadata| metadata.dev() != device));
    let alive = mount(MemVolume::new() as _, &path, &MountOptions::default());
    assert!(matches!(alive, Err(MountError::AlreadyMounted { .. })));
    assert!(!clear_dead_mount(&path).unwrap());
    elsewhere.server.kill().unwrap();
    elsewhere.server.wait().unwrap();
    assert!(rustix::fs::statvfs(&path).is_err_and(|error| error == Errno::NOTCONN));
    let dead = mount(MemVolume::new() as _, &path, &MountOptions::default());
    assert!(matches!(dead, Err(MountError::Dead(_))));
    assert!(clear_dead_mount(&path).unwrap());
    assert!(!clear_dead_mount(&path).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().dev(), device);
}
