//! All that programs can see of a tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// One name, and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub mode: u32,
    pub owner: (u32, u32),
    pub size: u64,
    pub blocks: u64,
    pub nlink: u64,
    pub rdev: u64,
    pub mtime: (i64, i64),
    pub ctime: (i64, i64),
    /// All names of the same inode.
    pub links: BTreeSet<PathBuf>,
    /// Names and hashes of the values.
    pub xattrs: BTreeMap<Vec<u8>, u64>,
    pub target: Option<PathBuf>,
    /// A hash, for files.
    pub bytes: Option<u64>,
}

impl Seen {
    /// What a copy has as well.
    pub fn copied(&self) -> Seen {
        let size = if self.bytes.is_some() { self.size } else { 0 };
        Seen { size, blocks: 0, nlink: 0, ctime: (0, 0), ..self.clone() }
    }
}

/// By path below `top`.
pub fn seen(top: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut all = BTreeMap::new();
    let mut links: BTreeMap<u64, BTreeSet<PathBuf>> = BTreeMap::new();
    let mut numbers = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let at = top.join(&path);
        let found = fs::symlink_metadata(&at).unwrap_or_else(|error| panic!("{}: {error}", at.display()));
        if found.is_dir() {
            let entries = fs::read_dir(&at).unwrap().map(Result::unwrap);
            todo.extend(entries.map(|entry| path.join(entry.file_name())));
        }
        let is_listed_under_its_number = || {
            let above = at.parent().unwrap();
            let mut entries = fs::read_dir(above).unwrap().map(Result::unwrap);
            let entry = entries.find(|entry| Some(entry.file_name().as_os_str()) == at.file_name());
            std::os::unix::fs::DirEntryExt::ino(&entry.unwrap()) == found.ino()
        };
        assert!(path.as_os_str().is_empty() || all.len() % 50 > 0 || is_listed_under_its_number(), "{}", at.display());
        let one = Seen {
            mode: found.mode(),
            owner: (found.uid(), found.gid()),
            size: found.size(),
            blocks: found.blocks(),
            nlink: found.nlink(),
            rdev: found.rdev(),
            mtime: (found.mtime(), found.mtime_nsec()),
            ctime: (found.ctime(), found.ctime_nsec()),
            links: BTreeSet::new(),
            xattrs: xattrs(&at),
            target: found.is_symlink().then(|| fs::read_link(&at).unwrap()),
            bytes: found.is_file().then(|| hash(&fs::read(&at).unwrap())),
        };
        links.entry(found.ino()).or_default().insert(path.clone());
        numbers.insert(path.clone(), found.ino());
        all.insert(path, one);
    }
    for (path, one) in &mut all {
        one.links.clone_from(&links[&numbers[path]]);
    }
    all
}

/// Whether the tree at `top` is what was seen before, name by name.
#[track_caller]
pub fn assert_same(top: &Path, was: &BTreeMap<PathBuf, Seen>) {
    let now = seen(top);
    for (path, was) in was {
        assert_eq!(now.get(path), Some(was), "{} in {}", path.display(), top.display());
    }
    assert!(now.keys().eq(was.keys()), "more names in {}", top.display());
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, u64> {
    let mut list = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let len = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value[..]).unwrap();
        hash(&value[..len])
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}
