//! Core's `Disk` over real files in the store directory.
//!
//! ```text
//! STORE/superblock   STORE/journal/NNNNNN.log   STORE/packs/NNNNNNNN.pack
//! STORE/oplog/NNNNNN.log   STORE/staging/NNNN
//! STORE/branches/NNNNNN/superblock, NNNNNN.journal, NNNNNN.oplog, NNNN.staging
//! ```
//!
//! What always holds:
//! - Files are reached through directory descriptors held since the start, never by path: a store directory that is
//!   moved stays in use, and one that was deleted gives an error, never an empty listing.
//! - One path per `FileName` and one `FileName` per path: a file whose name is not in canonical form is not listed.
//! - Errors of the system keep their number (ENOSPC stays ENOSPC), and EINTR never reaches the caller.
//!
//! No file is kept open here: descriptors are scarce, and the callers know which files they need again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use phifs_core::disk::{BranchFile, Disk, File, FileName, Space, Stamp};
use phifs_core::time::Timestamp;
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};

use crate::direct::Direct;
use crate::lease;
use crate::write_behind::Writer as WriteBehind;

/// A directory of the store that holds files of one kind.
struct Folder {
    fd: OwnedFd,
    /// Entries came or went since the last `sync_names`.
    dirty: AtomicBool,
}

pub struct FileDisk {
    path: PathBuf,
    folders: [Arc<Folder>; FOLDERS.len()],
    /// The directories of branches, as far as they were needed.
    branches: Mutex<BTreeMap<u32, Arc<Folder>>>,
    writer: WriteBehind,
}

/// Below the store; the first is the store itself.
const FOLDERS: [&str; 6] = [".", "journal", "packs", "oplog", "staging", "branches"];
/// The last of these has a directory for each branch.
const BRANCHES: usize = FOLDERS.len() - 1;

impl FileDisk {
    /// Opens the store directory at `path`, which exists, and makes the directories that are missing in it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let root = open_dir(rustix::fs::CWD, path)?;
        let mut folders = Vec::with_capacity(FOLDERS.len());
        for name in FOLDERS {
            match rustix::fs::mkdirat(&root, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            folders.push(Arc::new(Folder { fd: open_dir(&root, Path::new(name))?, dirty: AtomicBool::new(false) }));
        }
        retry_on_intr(|| rustix::fs::fsync(&root))?;
        let folders = folders.try_into().unwrap_or_else(|_| unreachable!("one folder was opened per name"));
        let disk = Self { path: path.to_owned(), folders, branches: Mutex::default(), writer: WriteBehind::start()? };
        for number in disk.branch_numbers()? {
            // A crash may leave an empty one; others stay.
            disk.remove_branch_folder(number);
        }
        Ok(disk)
    }

    /// Where a file lies; the directory of its branch is made if `make` says so.
    fn folder(&self, name: FileName, make: bool) -> io::Result<Arc<Folder>> {
        let FileName::Branch(number, _) = name else { return Ok(self.folders[place(name).0].clone()) };
        let mut branches = self.branches.lock();
        if let Some(folder) = branches.get(&number) {
            return Ok(folder.clone());
        }
        let all = &self.folders[BRANCHES];
        let path = branch_folder(number);
        if make {
            match rustix::fs::mkdirat(&all.fd, &path, Mode::RWXU) {
                Ok(()) => all.dirty.store(true, Ordering::SeqCst),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(self.explain(all, error)),
            }
        }
        let fd = open_dir(&all.fd, Path::new(&path))?;
        let folder = Arc::new(Folder { fd, dirty: AtomicBool::new(false) });
        branches.insert(number, folder.clone());
        Ok(folder)
    }

    fn branch_numbers(&self) -> io::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.folders[BRANCHES].fd)? {
            let name = entry?.file_name().to_owned();
            let number = name.to_str().ok().and_then(|name| name.parse().ok());
            numbers.extend(number.filter(|number| branch_folder(*number).as_bytes() == name.as_bytes()));
        }
        Ok(numbers)
    }

    /// Removes the directory of a branch if nothing is in it.
    fn remove_branch_folder(&self, number: u32) {
        let mut branches = self.branches.lock();
        let all = &self.folders[BRANCHES];
        if rustix::fs::unlinkat(&all.fd, branch_folder(number), rustix::fs::AtFlags::REMOVEDIR).is_ok() {
            branches.remove(&number);
            all.dirty.store(true, Ordering::SeqCst);
        }
    }

    /// A missing file is one thing, a missing store another: says which it is.
    fn explain(&self, folder: &Folder, error: Errno) -> io::Error {
        if error == Errno::NOENT && deleted(folder) { self.gone() } else { error.into() }
    }

    fn gone(&self) -> io::Error {
        let message = format!("the store directory {} was deleted while in use", crate::show::path(&self.path));
        io::Error::new(io::ErrorKind::NotFound, message)
    }

    fn open_file(&self, name: FileName, extra: OFlags) -> io::Result<Arc<dyn File>> {
        let folder = &*self.folder(name, extra.contains(OFlags::CREATE))?;
        let shared = matches!(name, FileName::Staging(_) | FileName::Branch(_, BranchFile::Staging(_)));
        let access = if shared { OFlags::RDONLY } else { OFlags::RDWR };
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | extra;
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = retry_on_intr(|| rustix::fs::openat(&folder.fd, place(name).1, flags, mode))
            .map_err(|error| self.explain(folder, error))?;
        let writer = shared.then(|| Mutex::new(Writer::NotYetOpen));
        let file = Arc::new(RealFile { file: fs::File::from(fd), writer, direct: Direct::default() });
        if shared { Ok(Arc::new(self.writer.file(file))) } else { Ok(file) }
    }
}

impl Disk for FileDisk {
    fn list(&self) -> io::Result<Vec<FileName>> {
        let mut names = Vec::new();
        for (index, folder) in self.folders.iter().enumerate() {
            // A deleted directory reads as an empty one, and an empty store must not be what follows from that.
            if deleted(folder) {
                return Err(self.gone());
            }
            each_name(&folder.fd, |text| names.extend(parse(index, text)))?;
        }
        for number in self.branch_numbers()? {
            match open_dir(&self.folders[BRANCHES].fd, Path::new(&branch_folder(number))) {
                Ok(fd) => each_name(&fd, |text| names.extend(parse_in_branch(number, text)))?,
                // Deleted in this moment, or no directory.
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(error),
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        self.open_file(name, OFlags::empty())
    }

    fn create(&self, name: FileName) -> io::Result<Arc<dyn File>> {
        let file = self.open_file(name, OFlags::CREATE | OFlags::EXCL)?;
        self.folder(name, false)?.dirty.store(true, Ordering::SeqCst);
        Ok(file)
    }

    fn remove(&self, name: FileName) -> io::Result<()> {
        let folder = self.folder(name, false)?;
        rustix::fs::unlinkat(&folder.fd, place(name).1, rustix::fs::AtFlags::empty())
            .map_err(|error| self.explain(&folder, error))?;
        folder.dirty.store(true, Ordering::SeqCst);
        if let FileName::Branch(number, BranchFile::Superblock) = name {
            self.remove_branch_folder(number);
        }
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let branches: Vec<_> = self.branches.lock().values().cloned().collect();
        for folder in branches.iter().chain(&self.folders) {
            // Cleared before the sync: a change that comes while it runs is for the next one to make durable.
            if folder.dirty.swap(false, Ordering::SeqCst)
                && let Err(error) = retry_on_intr(|| rustix::fs::fsync(&folder.fd))
            {
                folder.dirty.store(true, Ordering::SeqCst);
                return Err(error.into());
            }
        }
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let stat = retry_on_intr(|| rustix::fs::fstatvfs(&self.folders[0].fd))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space { total_bytes: bytes(stat.f_blocks), free_bytes: bytes(stat.f_bavail) })
    }
}

fn open_dir(at: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(retry_on_intr(|| rustix::fs::openat(&at, path, flags, Mode::empty()))?)
}

fn deleted(folder: &Folder) -> bool {
    rustix::fs::fstat(&folder.fd).is_ok_and(|stat| stat.st_nlink == 0)
}

fn each_name(folder: &OwnedFd, mut each: impl FnMut(&str)) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(folder)? {
        if let Ok(text) = entry?.file_name().to_str() {
            each(text);
        }
    }
    Ok(())
}

/// The name of the directory of a branch.
fn branch_folder(number: u32) -> String {
    format!("{number:06}")
}

/// The folder of a file (an index into `FOLDERS`) and its name there.
fn place(name: FileName) -> (usize, String) {
    match name {
        FileName::Superblock => (0, "superblock".to_owned()),
        FileName::Journal(n) => (1, format!("{n:06}.log")),
        FileName::Pack(n) => (2, format!("{n:08}.pack")),
        FileName::Oplog(n) => (3, format!("{n:06}.log")),
        FileName::Ballast => (0, "ballast".to_owned()),
        FileName::Staging(n) => (4, format!("{n:04}")),
        FileName::Branch(_, file) => (BRANCHES, branch_file(file)),
    }
}

/// The name of a file in the directory of its branch.
fn branch_file(file: BranchFile) -> String {
    match file {
        BranchFile::Superblock => "superblock".to_owned(),
        BranchFile::Journal(n) => format!("{n:06}.journal"),
        BranchFile::Oplog(n) => format!("{n:06}.oplog"),
        BranchFile::Staging(n) => format!("{n:04}.staging"),
    }
}

/// The inverse of `branch_file`.
fn parse_in_branch(number: u32, text: &str) -> Option<FileName> {
    let file = match text.split_once('.') {
        None => BranchFile::Superblock,
        Some((n, "journal")) => BranchFile::Journal(n.parse().ok()?),
        Some((n, "oplog")) => BranchFile::Oplog(n.parse().ok()?),
        Some((n, _)) => BranchFile::Staging(n.parse().ok()?),
    };
    (branch_file(file) == text).then_some(FileName::Branch(number, file))
}

/// The inverse of `place`.
fn parse(folder: usize, text: &str) -> Option<FileName> {
    let number = |suffix: &str| text.strip_suffix(suffix)?.parse::<u64>().ok();
    let small = |suffix: &str| u32::try_from(number(suffix)?).ok();
    let name = match folder {
        0 if text == "ballast" => FileName::Ballast,
        0 => FileName::Superblock,
        1 => FileName::Journal(small(".log")?),
        2 => FileName::Pack(small(".pack")?),
        3 => FileName::Oplog(small(".log")?),
        BRANCHES => return None,
        _ => FileName::Staging(number("")?),
    };
    (place(name) == (folder, text.to_owned())).then_some(name)
}

struct RealFile {
    file: fs::File,
    /// Of a staging file `file` is good for reading only. Once it was handed out for passthrough, each change opens the
    /// file again for itself: it then has no writers but those whom the kernel serves, and `has_writers` can tell
    /// whether there are any.
    writer: Option<Mutex<Writer>>,
    direct: Direct,
}

/// How a staging file is changed.
enum Writer {
    Kept(Arc<fs::File>),
    NotYetOpen,
    OpenedForEachChange,
}

impl RealFile {
    /// Runs a change on a descriptor that is good for writing.
    fn change<T>(&self, change: impl FnOnce(&fs::File) -> io::Result<T>) -> io::Result<T> {
        let Some(writer) = &self.writer else { return change(&self.file) };
        let file = {
            let mut writer = writer.lock();
            match &*writer {
                Writer::Kept(file) => Arc::clone(file),
                Writer::OpenedForEachChange => Arc::new(self.open_for_writing()?),
                Writer::NotYetOpen => {
                    let file = Arc::new(self.open_for_writing()?);
                    *writer = Writer::Kept(Arc::clone(&file));
                    file
                }
            }
        };
        change(&file)
    }

    fn open_for_writing(&self) -> io::Result<fs::File> {
        // By descriptor, as the name may be gone.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        fs::OpenOptions::new().read(true).write(true).open(path)
    }
}

impl File for RealFile {
    fn read_at(&self, buf: &mut [u8], offset_bytes: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.file.read_at(&mut buf[filled..], offset_bytes + filled as u64) {
                Ok(0) => break,
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.change(|file| file.write_all_at(buf, offset_bytes))
    }

    fn write_past_cache(&self, buf: &[u8], offset_bytes: u64) -> io::Result<()> {
        if self.writer.is_some() || !self.direct.write_at(&self.file, buf, offset_bytes)? {
            self.write_at(buf, offset_bytes)?;
            self.begin_writeback(offset_bytes, buf.len() as u64);
        }
        Ok(())
    }

    fn read_past_cache(&self, len_bytes: usize, offset_bytes: u64) -> io::Result<Bytes> {
        if let Some(bytes) = self.direct.read_at(&self.file, len_bytes, offset_bytes)? {
            return Ok(bytes);
        }
        let mut bytes = vec![0; len_bytes];
        let got = self.read_at(&mut bytes, offset_bytes)?;
        bytes.truncate(got);
        Ok(bytes.into())
    }

    fn sync(&self) -> io::Result<()> {
        // fdatasync leaves out only what is not needed to read the bytes back (times); a new length is needed.
        Ok(retry_on_intr(|| rustix::fs::fdatasync(&self.file))?)
    }

    fn begin_writeback(&self, offset_bytes: u64, len_bytes: u64) {
        // Linux starts to write what is dirty, and drops from memory only what is not. Where it does neither, the sync
        // has more to do.
        self.forget(offset_bytes, len_bytes);
    }

    fn forget(&self, offset_bytes: u64, len_bytes: u64) {
        self.direct.close();
        let len = NonZeroU64::new(len_bytes);
        let _ = rustix::fs::fadvise(&self.file, offset_bytes, len, rustix::fs::Advice::DontNeed);
    }

    fn stamp(&self) -> io::Result<Stamp> {
        let meta = self.file.metadata()?;
        Ok(Stamp {
            len_bytes: meta.len(),
            allocated_bytes: meta.blocks().saturating_mul(512),
            mtime: Timestamp::new(meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0)),
        })
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.change(|file| Ok(retry_on_intr(|| rustix::fs::ftruncate(file, len_bytes))?))
    }

    /// A host filesystem that cannot reserve (NFS before 4.2, some network mounts) only gets the new length: a later
    /// write may then meet a full disk, and reports it.
    fn allocate(&self, offset_bytes: u64, len_bytes: u64, keep_len: bool) -> io::Result<()> {
        if len_bytes == 0 {
            return Ok(());
        }
        let flags = if keep_len { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
        match self.reserve(flags, offset_bytes, len_bytes)? {
            Err(error) if unsupported(error) => {
                let end = offset_bytes.checked_add(len_bytes).ok_or(Errno::FBIG)?;
                if !keep_len && self.file.metadata()?.len() < end { self.set_len(end) } else { Ok(()) }
            }
            result => Ok(result?),
        }
    }

    fn punch_hole(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        if len_bytes == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match self.reserve(flags, offset_bytes, len_bytes)? {
            Err(error) if unsupported(error) => self.write_zeroes(offset_bytes, len_bytes),
            result => Ok(result?),
        }
    }

    fn seek_data(&self, offset_bytes: u64) -> io::Result<Option<u64>> {
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset_bytes)) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NXIO) => Ok(None),
            // A host that knows no holes: everything up to the end is data.
            Err(Errno::INVAL) => Ok((offset_bytes < self.file.metadata()?.len()).then_some(offset_bytes)),
            Err(error) => Err(error.into()),
        }
    }

    fn seek_hole(&self, offset_bytes: u64) -> io::Result<u64> {
        match rustix::fs::seek(&self.file, SeekFrom::Hole(offset_bytes)) {
            Ok(found) => Ok(found),
            Err(Errno::NXIO | Errno::INVAL) => Ok(offset_bytes.max(self.file.metadata()?.len())),
            Err(error) => Err(error.into()),
        }
    }

    fn has_writers(&self) -> io::Result<bool> {
        let Some(writer) = &self.writer else { return Ok(false) };
        *writer.lock() = Writer::OpenedForEachChange;
        lease::is_open_for_writing(&self.file)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        if let Some(writer) = &self.writer {
            *writer.lock() = Writer::OpenedForEachChange;
        }
        Some(self.file.as_fd())
    }
}

impl RealFile {
    /// fallocate(2), with its own error beside that of getting to a descriptor.
    fn reserve(&self, flags: FallocateFlags, offset_bytes: u64, len_bytes: u64) -> io::Result<Result<(), Errno>> {
        self.change(|file| Ok(retry_on_intr(|| rustix::fs::fallocate(file, flags, offset_bytes, len_bytes))))
    }

    /// What a hole reads as, without the hole. Nothing behind the end is touched, so the length stays.
    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> io::Result<()> {
        static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
        let end = offset_bytes.saturating_add(len_bytes).min(self.file.metadata()?.len());
        let mut at = offset_bytes;
        while at < end {
            let step = (end - at).min(ZEROES.len() as u64);
            self.write_at(&ZEROES[..step as usize], at)?;
            at += step;
        }
        Ok(())
    }
}

fn unsupported(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn disk() -> (tempfile::TempDir, FileDisk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(dir.path()).unwrap();
        (dir, disk)
    }

    const ONE_OF_EACH: [FileName; 10] = [
        FileName::Superblock,
        FileName::Journal(1_234_567),
        FileName::Pack(7),
        FileName::Oplog(0),
        FileName::Ballast,
        FileName::Staging(u64::MAX),
        FileName::Branch(1, BranchFile::Superblock),
        FileName::Branch(1, BranchFile::Journal(3)),
        FileName::Branch(1, BranchFile::Oplog(4)),
        FileName::Branch(1_000_000, BranchFile::Staging(5)),
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn writes_past_the_cache_are_read_like_others(
            writes in prop::collection::vec((0..200_000_usize, 1..100_000_usize, any::<bool>()), 1..8),
        ) {
            let (_dir, disk) = disk();
            let file = disk.create(FileName::Pack(1)).unwrap();
            let mut model = Vec::new();
            for (n, (at, len, past_cache)) in writes.into_iter().enumerate() {
                let bytes = vec![n as u8 + 1; len];
                if past_cache {
                    file.write_past_cache(&bytes, at as u64).unwrap();
                } else {
                    file.write_at(&bytes, at as u64).unwrap();
                }
                model.resize(model.len().max(at + len), 0);
                model[at..at + len].copy_from_slice(&bytes);
                let mut read = vec![0; model.len() + 1];
                prop_assert_eq!(file.read_at(&mut read, 0).unwrap(), model.len());
                prop_assert!(read[..model.len()] == model[..]);
            }
        }
    }

    #[test]
    fn every_kind_of_file_is_made_once_listed_in_order_and_removed() {
        let (_dir, disk) = disk();
        for name in ONE_OF_EACH.iter().rev() {
            disk.create(*name).unwrap();
            assert_eq!(disk.create(*name).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
        }
        disk.sync_names().unwrap();
        assert_eq!(disk.list().unwrap(), ONE_OF_EACH);
        assert_eq!(disk.list().unwrap(), ONE_OF_EACH, "listing again starts from the beginning");
        disk.remove(FileName::Pack(7)).unwrap();
        assert_eq!(disk.open(FileName::Pack(7)).err().unwrap().kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.remove(FileName::Pack(7)).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.list().unwrap().len(), ONE_OF_EACH.len() - 1);
    }

    #[test]
    fn files_of_other_people_are_not_listed() {
        let (dir, disk) = disk();
        for stray in [
            "packs/7.pack",
            "packs/00000007.pack~",
            "journal/-00001.log",
            "staging/1",
            "packs/99999999999.pack",
            "branches/1",
        ] {
            fs::write(dir.path().join(stray), b"").unwrap();
        }
        assert_eq!(disk.list().unwrap(), []);
    }

    #[test]
    fn directory_of_a_branch_goes_with_its_superblock_or_at_the_next_start() {
        let (dir, disk) = disk();
        let there = || dir.path().join("branches/000003").exists();
        let (superblock, journal) =
            (FileName::Branch(3, BranchFile::Superblock), FileName::Branch(3, BranchFile::Journal(0)));
        for _ in 0..2 {
            disk.create(superblock).unwrap();
            disk.create(journal).unwrap();
            disk.remove(journal).unwrap();
            assert!(there());
            disk.remove(superblock).unwrap();
            disk.sync_names().unwrap();
            assert!(!there());
        }
        disk.create(journal).unwrap();
        disk.remove(journal).unwrap();
        drop(disk);
        assert!(there());
        FileDisk::open(dir.path()).unwrap();
        assert!(!there());
    }

    #[test]
    fn only_the_owner_may_read_the_store() {
        let (dir, disk) = disk();
        disk.create(FileName::Pack(7)).unwrap();
        let mode = |path: &str| dir.path().join(path).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("packs"), mode("packs/00000007.pack")), (0o700, 0o600));
        disk.create(FileName::Branch(1, BranchFile::Superblock)).unwrap();
        assert_eq!((mode("branches/000001"), mode("branches/000001/superblock")), (0o700, 0o600));
    }

    #[test]
    fn deleted_store_is_an_error_and_not_an_empty_one() {
        let (dir, disk) = disk();
        let path = dir.keep();
        fs::remove_dir_all(&path).unwrap();
        let listing = disk.list().unwrap_err();
        assert!(listing.to_string().contains("deleted while in use"), "{listing}");
        let making = disk.create(FileName::Pack(1)).err().unwrap();
        assert!(making.to_string().contains("deleted while in use"), "{making}");
    }

    #[test]
    fn holes_are_found_and_the_end_counts_as_one() {
        let (_dir, disk) = disk();
        let file = disk.create(FileName::Staging(1)).unwrap();
        file.write_at(&[1; 65536], 1 << 20).unwrap();
        assert_eq!(file.seek_data(0).unwrap(), Some(1 << 20));
        assert_eq!(file.seek_hole(1 << 20).unwrap(), (1 << 20) + 65536);
        assert_eq!(file.seek_data((1 << 20) + 65536).unwrap(), None);
        assert_eq!(file.seek_hole(0).unwrap(), 0);
        assert_eq!(file.seek_hole((1 << 20) + 65536).unwrap(), (1 << 20) + 65536);
    }

    #[test]
    fn reserved_space_counts_as_allocated_and_keeps_the_length_if_asked() {
        let (_dir, disk) = disk();
        let file = disk.create(FileName::Staging(1)).unwrap();
        file.allocate(0, 1 << 20, true).unwrap();
        let stamp = file.stamp().unwrap();
        assert_eq!((stamp.len_bytes, stamp.allocated_bytes >= 1 << 20), (0, true));
        file.allocate(0, 1 << 20, false).unwrap();
        assert_eq!(file.stamp().unwrap().len_bytes, 1 << 20);
        file.allocate(5, 0, false).unwrap();
    }

    #[test]
    fn every_write_changes_the_stamp() {
        let (_dir, disk) = disk();
        let file = disk.create(FileName::Staging(1)).unwrap();
        let before = file.stamp().unwrap();
        file.write_at(b"x", 0).unwrap();
        assert_ne!(file.stamp().unwrap(), before);
    }

    #[test]
    fn disk_says_how_much_room_it_has() {
        let (_dir, disk) = disk();
        let space = disk.space().unwrap();
        assert!(0 < space.free_bytes && space.free_bytes <= space.total_bytes);
    }

    #[test]
    fn what_is_written_past_the_cache_is_read_in_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        let options = fs::OpenOptions::new().read(true).write(true).create_new(true).open(dir.path().join("f"));
        let file = RealFile { file: options.unwrap(), writer: None, direct: Direct::default() };
        let bytes: Vec<u8> = (0..3_000_001u32).map(|n| ((n / 7) ^ (n >> 11)) as u8).collect();
        let (mut at, mut len) = (0, 1_000);
        while at < bytes.len() {
            let end = bytes.len().min(at + len);
            file.write_past_cache(&bytes[at..end], at as u64).unwrap();
            (at, len) = (end, len * 3 % 700_001 + 1);
        }
        for at in [0, 1 << 20, 2 << 20, 3 << 20] {
            let block = file.read_past_cache(1 << 20, at as u64).unwrap();
            assert!(block == bytes[at.min(bytes.len())..bytes.len().min(at + (1 << 20))], "{at}");
        }
        assert!(file.read_past_cache(1_000, 5_001).unwrap() == bytes[5_001..6_001], "no whole pages");
        let mut read = vec![0; bytes.len()];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == bytes);
    }

    #[derive(Clone, Debug)]
    enum Act {
        Write(Vec<u8>, u64),
        SetLen(u64),
        Punch(u64, u64),
        WriteZeroes(u64, u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        let at = 0..200_000u64;
        prop_oneof![
            (proptest::collection::vec(any::<u8>(), 0..5000), at.clone()).prop_map(|(bytes, at)| Act::Write(bytes, at)),
            at.clone().prop_map(Act::SetLen),
            (at.clone(), at.clone()).prop_map(|(from, len)| Act::Punch(from, len)),
            (at.clone(), at).prop_map(|(from, len)| Act::WriteZeroes(from, len)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn file_behaves_as_a_vector_of_bytes(acts in proptest::collection::vec(act(), 0..12)) {
            let dir = tempfile::tempdir().unwrap();
            let options = fs::OpenOptions::new().read(true).write(true).create_new(true).open(dir.path().join("f"));
            let file = RealFile { file: options.unwrap(), writer: None, direct: Direct::default() };
            let mut model = Vec::new();
            for act in acts {
                match act {
                    Act::Write(bytes, at) => {
                        file.write_at(&bytes, at).unwrap();
                        let end = at as usize + bytes.len();
                        if !bytes.is_empty() {
                            model.resize(model.len().max(end), 0);
                            model[at as usize..end].copy_from_slice(&bytes);
                        }
                    }
                    Act::SetLen(len) => {
                        file.set_len(len).unwrap();
                        model.resize(len as usize, 0);
                    }
                    Act::Punch(from, len) | Act::WriteZeroes(from, len) => {
                        if matches!(act, Act::Punch(..)) {
                            file.punch_hole(from, len).unwrap();
                        } else {
                            file.write_zeroes(from, len).unwrap();
                        }
                        let end = model.len().min((from + len) as usize);
                        model[end.min(from as usize)..end].fill(0);
                    }
                }
            }
            let mut bytes = vec![0xee; model.len() + 10];
            let got = file.read_at(&mut bytes, 0).unwrap();
            prop_assert_eq!(&bytes[..got], &model[..]);
            prop_assert_eq!(file.stamp().unwrap().len_bytes, model.len() as u64);
        }
    }
}
