//! Single promises, each a test of its own.

use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::process::Command;
use std::time::Duration;

use phifs_tests::{Background, Place, both_modes, run, run_ok, skip, wait_until};
use rustix::fs::{AtFlags, CWD, FallocateFlags, FlockOperation, OFlags, SeekFrom as Seeking, Timespec, Timestamps};
use rustix::io::Errno;

const LIMIT: Duration = Duration::from_secs(60);

both_modes!(sparse_files_reach_eight_tebibytes, |place| {
    let path = place.dir().join("sparse");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let end = (8 << 40) - 4096;
    file.write_all_at(&[9; 4096], end).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 8 << 40);
    assert!(file.metadata().unwrap().blocks() < 4096, "a hole takes space");
    let found = (rustix::fs::seek(&file, Seeking::Hole(0)), rustix::fs::seek(&file, Seeking::Data(0)));
    // With the write-back cache the kernel answers by itself, and takes everything up to the end for data.
    assert!(found == (Ok(0), Ok(end)) || found == (Ok(8 << 40), Ok(0)), "{found:?}");
    drop(file);
    place.restart();
    let file = File::open(&path).unwrap();
    let mut block = [0; 4096];
    file.read_exact_at(&mut block, end).unwrap();
    assert_eq!(block, [9; 4096]);
    file.read_exact_at(&mut block, 4 << 40).unwrap();
    assert_eq!(block, [0; 4096]);
    place.assert_healthy();
});

both_modes!(holes_stay_holes_and_data_stays_data_after_a_restart, |place| {
    let path = place.dir().join("holes");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all_at(&vec![1; 1 << 20], 0).unwrap();
    file.write_all_at(&vec![2; 1 << 20], 3 << 20).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 256 << 10, 512 << 10).unwrap();
    drop(file);
    place.restart();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 4 << 20);
    let expect = |at: usize| match at {
        0..0x4_0000 => 1,
        0x4_0000..0xc_0000 => 0,
        0xc_0000..0x10_0000 => 1,
        0x10_0000..0x30_0000 => 0,
        _ => 2,
    };
    assert!(bytes.iter().enumerate().all(|(at, &byte)| byte == expect(at)), "wrong bytes after a restart");
    place.assert_healthy();
});

both_modes!(times_before_1970_and_after_2038_survive_a_restart, |place| {
    let path = place.dir().join("old");
    fs::write(&path, b"x").unwrap();
    let times = Timestamps {
        last_access: Timespec { tv_sec: 8_000_000_000, tv_nsec: 123_456_789 },
        last_modification: Timespec { tv_sec: -86_400, tv_nsec: 999_999_999 },
    };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
    let read = || {
        let meta = fs::metadata(&path).unwrap();
        (meta.atime(), meta.atime_nsec(), meta.mtime(), meta.mtime_nsec())
    };
    let wanted = (8_000_000_000, 123_456_789, -86_400, 999_999_999);
    assert_eq!(read(), wanted);
    place.restart();
    assert_eq!(read(), wanted);
});

both_modes!(inode_numbers_and_link_counts_survive_a_restart, |place| {
    let dir = place.dir().join("d");
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::write(dir.join("a"), b"a").unwrap();
    fs::hard_link(dir.join("a"), dir.join("b")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.join("s")).unwrap();
    rustix::fs::mkfifoat(CWD, dir.join("fifo"), rustix::fs::Mode::RUSR).unwrap();
    let look = || {
        let names = ["", "a", "b", "s", "sub", "fifo"];
        names.map(|name| {
            let meta = fs::symlink_metadata(dir.join(name)).unwrap();
            (name, meta.ino(), meta.nlink(), meta.mode(), meta.uid(), meta.size() * u64::from(!meta.is_dir()))
        })
    };
    let before = look();
    assert_eq!(before[1].1, before[2].1, "hard links share an inode");
    assert_eq!(before[0].2, 3, "a directory with one subdirectory");
    place.restart();
    assert_eq!(look(), before);
});

both_modes!(open_unlinked_files_live_until_closed, |place| {
    let path = place.dir().join("gone");
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(b"still here").unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all(b", and growing").unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here, and growing");
    assert!(!path.exists());
    place.assert_healthy();
});

both_modes!(a_running_program_cannot_be_emptied, |place| {
    let path = place.dir().join("program");
    let program = fs::canonicalize("/bin/sleep").unwrap();
    fs::copy(&program, &path).unwrap();
    let running = Background::start(Command::new(&path).arg("60"));
    // An open for writing never reaches the filesystem; one for reading that truncates does.
    let open = |flags| rustix::fs::open(&path, flags, rustix::fs::Mode::empty());
    for flags in [OFlags::RDONLY | OFlags::TRUNC, OFlags::WRONLY | OFlags::TRUNC, OFlags::RDWR] {
        assert_eq!(open(flags).err(), Some(Errno::TXTBSY), "{flags:?}");
    }
    assert!(fs::read(&path).unwrap() == fs::read(&program).unwrap(), "the program was changed");
    drop(running);
    // The kernel lets go of the file a moment after its last user.
    assert!(wait_until(LIMIT, || open(OFlags::RDONLY | OFlags::TRUNC).is_ok()));
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    place.assert_healthy();
});

both_modes!(names_may_be_any_255_bytes, |place| {
    let dir = place.dir().join("names");
    fs::create_dir(&dir).unwrap();
    let mut names: Vec<Vec<u8>> = (1..=255u8).filter(|&byte| byte != b'/' && byte != b'.').map(|b| vec![b]).collect();
    names.push(vec![0xff; 255]);
    names.push("\u{3a6}".repeat(127).into_bytes());
    names.push(b"new\nline and \xfe\xff".to_vec());
    for name in &names {
        fs::write(dir.join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    let error = fs::write(dir.join("x".repeat(256)), b"").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::NAMETOOLONG.raw_os_error()));
    place.restart();
    let mut listed: Vec<Vec<u8>> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
    listed.sort();
    names.sort();
    assert_eq!(listed, names);
    for name in &names {
        assert_eq!(&fs::read(dir.join(std::ffi::OsStr::from_bytes(name))).unwrap(), name);
    }
});

both_modes!(a_large_directory_lists_each_name_once_while_it_changes, |place| {
    let dir = place.dir().join("many");
    fs::create_dir(&dir).unwrap();
    for n in 0..5000 {
        File::create(dir.join(format!("stays-{n}"))).unwrap();
    }
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for (n, entry) in fs::read_dir(&dir).unwrap().enumerate() {
        *seen.entry(entry.unwrap().file_name().into_string().unwrap()).or_default() += 1;
        if n % 10 == 0 {
            File::create(dir.join(format!("comes-{n}"))).unwrap();
            let _ = fs::remove_file(dir.join(format!("comes-{}", n.wrapping_sub(100))));
        }
    }
    let stays = seen.iter().filter(|(name, _)| name.starts_with("stays")).count();
    assert_eq!(stays, 5000, "names that were there all the time are missing");
    let twice: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "listed twice: {twice:?}");
});

both_modes!(locks_of_both_kinds_exclude_other_processes, |place| {
    let path = place.dir().join("locked");
    let file = File::create(&path).unwrap();
    rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
    let path = path.to_str().unwrap();
    let try_lock = || run(Command::new("flock").args(["-n", path, "true"]), LIMIT).success();
    assert!(!try_lock(), "flock is not exclusive");
    rustix::fs::flock(&file, FlockOperation::Unlock).unwrap();
    assert!(try_lock(), "flock stays after unlock");

    rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
    let script = "import fcntl,sys\nf=open(sys.argv[1],'r+')\ntry:\n fcntl.lockf(f,fcntl.LOCK_EX|fcntl.LOCK_NB)\nexcept OSError: sys.exit(3)";
    let try_fcntl = || run(Command::new("python3").args(["-c", script, path]), LIMIT).code();
    assert_eq!(try_fcntl(), Some(3), "fcntl locks are not exclusive");
    drop(file);
    assert_eq!(try_fcntl(), Some(0), "an fcntl lock stays after close");
});

both_modes!(direct_io_and_cached_io_see_the_same_bytes, |place| {
    let path = place.dir().join("direct");
    fs::write(&path, vec![1; 64 << 10]).unwrap();
    let direct = OFlags::DIRECT.bits() as i32;
    let script = "import os,mmap,sys\nf=os.open(sys.argv[1],os.O_RDWR|os.O_DIRECT)\nm=mmap.mmap(-1,4096)\nos.preadv(f,[m],4096)\nassert m[:]==b'\\x01'*4096\nm[:]=b'\\x05'*4096\nos.pwritev(f,[m],8192)";
    run_ok(Command::new("python3").args(["-c", script]).arg(&path), LIMIT);
    let bytes = fs::read(&path).unwrap();
    assert!(bytes[8192..12288].iter().all(|&byte| byte == 5), "a direct write is not seen by a cached read");
    assert!(bytes[12288..].iter().all(|&byte| byte == 1));
    assert!(File::options().read(true).custom_flags(direct).open(&path).is_ok());
    place.assert_healthy();
});

both_modes!(mapped_writes_are_seen_by_readers_and_kept, |place| {
    let path = place.dir().join("mapped");
    fs::write(&path, vec![1; 256 << 10]).unwrap();
    let script = "import mmap,os,sys\nf=os.open(sys.argv[1],os.O_RDWR)\nm=mmap.mmap(f,0)\nm[100000:100010]=b'0123456789'\nassert os.pread(f,10,100000)==b'0123456789'\nm.close()\nos.close(f)";
    run_ok(Command::new("python3").args(["-c", script]).arg(&path), LIMIT);
    assert_eq!(&fs::read(&path).unwrap()[100_000..100_010], b"0123456789");
    place.restart();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(&bytes[99_999..100_011], b"\x010123456789\x01");
});

both_modes!(access_lists_are_enforced_for_other_users, |place| {
    let path = place.dir().join("guarded");
    fs::write(&path, b"for some").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let read_as = |user: &str| {
        let mut command = Command::new("runuser");
        command.args(["-u", user, "--", "cat"]).arg(&path).current_dir("/");
        run(&mut command, LIMIT).success()
    };
    assert!(!read_as("nobody"));
    run_ok(Command::new("setfacl").args(["-m", "u:nobody:r"]).arg(&path), LIMIT);
    assert!(read_as("nobody"), "a named user of the access list may not read");
    assert!(!read_as("daemon"));
    place.restart();
    assert!(read_as("nobody") && !read_as("daemon"), "the access list is lost by a restart");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert!(!read_as("nobody"), "chmod does not narrow the mask of the access list");
});

both_modes!(names_of_trusted_attributes_are_for_root_alone, |place| {
    let path = place.dir().join("attributes");
    fs::write(&path, b"").unwrap();
    for name in ["trusted.a", "user.b"] {
        rustix::fs::setxattr(&path, name, b"value", rustix::fs::XattrFlags::empty()).unwrap();
    }
    let script = "import os,sys\nprint(sorted(os.listxattr(sys.argv[1])))";
    let list = |command: &mut Command| run_ok(command.arg(&path).current_dir("/"), LIMIT).stdout_text();
    assert_eq!(list(Command::new("python3").args(["-c", script])), "['trusted.a', 'user.b']\n");
    let other = list(Command::new("runuser").args(["-u", "nobody", "--", "python3", "-c", script]));
    assert_eq!(other, "['user.b']\n");
});

both_modes!(space_and_usage_are_told_truly, |place| {
    let before = rustix::fs::statvfs(place.dir()).unwrap();
    assert!(before.f_blocks > 0 && before.f_bavail <= before.f_bfree && before.f_bfree <= before.f_blocks);
    assert_eq!(before.f_namemax, 255);
    let path = place.dir().join("full");
    let mut bytes = vec![0; 1 << 20];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    fs::write(&path, &bytes).unwrap();
    File::open(&path).unwrap().sync_all().unwrap();
    let blocks = fs::metadata(&path).unwrap().blocks();
    assert!((1948..=2148).contains(&blocks), "st_blocks of a file of 1 MiB is {blocks}");
});

/// The reserved name: not listed anywhere, resolved everywhere, and never an obstacle to removing a directory.
#[test]
fn reserved_names_resolve_but_are_not_listed() {
    if phifs_tests::on_ext4() || !phifs_tests::is_root() {
        skip!("about phifs, as root");
    }
    let place = Place::new(phifs_tests::DataMode::Passthrough);
    let dir = place.dir().join("d");
    fs::create_dir(&dir).unwrap();
    for at in [place.dir(), &dir] {
        let status = fs::read(at.join(".phi/status.json")).expect("the status of the filesystem");
        serde_json::from_slice::<serde_json::Value>(&status).expect("JSON");
        let listed = fs::read_dir(at).unwrap().any(|entry| entry.unwrap().file_name() == ".phi");
        assert!(!listed, ".phi is listed in {}", at.display());
    }
    assert!(fs::create_dir(dir.join(".phi")).is_err(), "the reserved name can be taken");
    fs::remove_dir(&dir).unwrap();
}
