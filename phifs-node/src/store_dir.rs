//! The store directory as a whole: made when missing, refused when it is something else, used by one process at a time.
//!
//! ```text
//! STORE/lock          held with flock(2) while in use; says by whom
//! STORE/phifs.pid     the process that serves the volume
//! STORE/control.sock  where it takes requests
//! STORE/phifs.toml    settings      STORE/phifs.log  what happened      STORE/node.key  who this node is
//! STORE/joining       from whom the volume comes, as long as it is on its way
//! STORE/index/        the glyph index, which can be deleted at any time
//! ```
//!
//! What always holds: whoever changes anything below STORE holds the lock, and the kernel gives it back when that
//! process ends, however it ends. So whoever gets the lock may clear what a dead process left behind.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::{Errno, retry_on_intr};

use crate::show;

/// What may lie in a directory that becomes a store. Anything else in one that is no store yet stops us.
const OURS: [&str; 18] = [
    "superblock",
    "journal",
    "packs",
    "oplog",
    "staging",
    "branches",
    "index",
    "lock",
    "phifs.pid",
    "control.sock",
    "phifs.toml",
    "phifs.log",
    "phifs.log.1",
    "node.key",
    "node.key.new",
    "joining",
    "joining.new",
    "lost+found",
];

#[derive(Debug, thiserror::Error)]
pub enum StoreDirError {
    #[error("cannot {doing} {}: {source}", show::path(path))]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("there is no store at {}", show::path(.0))]
    Absent(PathBuf),
    #[error("{} is not a phifs store and not empty: it holds {found}", show::path(path))]
    NotAStore { path: PathBuf, found: String },
    #[error("the store {} belongs to user {owner}, not to user {user} who runs this", show::path(path))]
    NotOwner { path: PathBuf, owner: u32, user: u32 },
    #[error("the store {} is in use by {by}", show::path(path))]
    InUse { path: PathBuf, by: String },
}

impl StoreDirError {
    /// What its reader may try.
    pub fn hint(&self) -> String {
        match self {
            Self::Io { .. } => "check that the path is right and that you may write there".to_owned(),
            Self::Absent(_) => "name it with --store DIR or PHIFS_STORE, or make one with: phifs up".to_owned(),
            Self::NotAStore { .. } => {
                "give an empty directory, or one that does not exist yet, with --store".to_owned()
            }
            Self::NotOwner { owner, .. } => format!("run the command as user {owner}"),
            Self::InUse { path, .. } => {
                format!(
                    "phifs status --store {0}; phifs down --store {0}; or wait, while it starts or checks",
                    show::path(path)
                )
            }
        }
    }
}

/// A directory that is, or may become, a store. Nobody has locked it yet.
#[derive(Clone, Debug)]
pub struct StoreDir {
    path: PathBuf,
}

impl StoreDir {
    /// Makes the directory where it is missing. An empty one is fine, and so is one with only our own files.
    pub fn create(path: &Path) -> Result<Self, StoreDirError> {
        let io = |source| StoreDirError::Io { doing: "make the store directory", path: path.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io)?;
        Self::find(path)
    }

    /// The store at a path where one has to be.
    pub fn find(path: &Path) -> Result<Self, StoreDirError> {
        let io = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => StoreDirError::Absent(path.to_owned()),
            _ => StoreDirError::Io { doing: "open the store directory", path: path.to_owned(), source },
        };
        let path = &path.canonicalize().map_err(io)?;
        let store = Self { path: path.clone() };
        if !store.is_initialised() {
            let mut foreign = Vec::new();
            for entry in fs::read_dir(path).map_err(io)? {
                let name = entry.map_err(io)?.file_name();
                if !OURS.iter().any(|ours| *ours == name) {
                    foreign.push(show::path(Path::new(&name)));
                }
            }
            if !foreign.is_empty() {
                foreign.sort();
                let more = if foreign.len() > 3 { format!(" and {} more", foreign.len() - 3) } else { String::new() };
                let found = format!("{}{more}", foreign[..foreign.len().min(3)].join(", "));
                return Err(StoreDirError::NotAStore { path: path.clone(), found });
            }
        }
        Ok(store)
    }

    /// Whether a node ever started here.
    pub fn is_initialised(&self) -> bool {
        self.file(crate::node_key::FILE).exists() || self.file("superblock").exists()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn control_socket(&self) -> PathBuf {
        self.file("control.sock")
    }

    pub fn log_file(&self) -> PathBuf {
        self.file("phifs.log")
    }

    pub fn index(&self) -> PathBuf {
        self.file("index")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Takes the store for this process; `role` tells others what for. Only the owner may: files that somebody else
    /// makes in it, root included, would be out of the owner's reach.
    pub fn lock(&self, role: &str) -> Result<StoreLock, StoreDirError> {
        let path = self.file("lock");
        let io = |doing| move |source| StoreDirError::Io { doing, path: self.file("lock"), source };
        let (owner, user) = (self.path.metadata().map_err(io("open"))?.uid(), rustix::process::geteuid().as_raw());
        if owner != user {
            return Err(StoreDirError::NotOwner { path: self.path.clone(), owner, user });
        }
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = file.map_err(io("open"))?;
        let try_lock = || retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive));
        // `is_in_use` of another process holds the lock for an instant; what lasts longer is a user.
        let locked = try_lock().or_else(|_| {
            std::thread::sleep(Duration::from_millis(20));
            try_lock()
        });
        match locked {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let said = io::read_to_string(&file).unwrap_or_default();
                let by = if said.trim().is_empty() { "another process".to_owned() } else { said.trim().to_owned() };
                return Err(StoreDirError::InUse { path: self.path.clone(), by });
            }
            Err(error) => return Err(io("lock")(error.into())),
        }
        file.set_len(0).map_err(io("write"))?;
        writeln!(file, "phifs {role}, process {}", std::process::id()).map_err(io("write"))?;
        Ok(StoreLock { store: self.clone(), _file: file })
    }

    /// What each entry of the store takes on the disk, with all that is in it; the directory itself is the entry "".
    /// Together it is what du(1) says.
    pub fn taken(&self) -> io::Result<BTreeMap<String, u64>> {
        let mut taken = BTreeMap::from([(String::new(), allocated(&self.path)?)]);
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            *taken.entry(entry.file_name().to_string_lossy().into_owned()).or_default() += tree_bytes(&entry.path())?;
        }
        Ok(taken)
    }

    /// Whether some process uses the store now.
    pub fn is_in_use(&self) -> bool {
        let Ok(file) = fs::File::open(self.file("lock")) else { return false };
        retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)) == Err(Errno::WOULDBLOCK)
    }

    /// The process that serves the volume, as far as its file says; it may be dead.
    pub fn serving_pid(&self) -> Option<u32> {
        fs::read_to_string(self.file("phifs.pid")).ok()?.trim().parse().ok()
    }
}

/// The right to change the store, until dropped.
pub struct StoreLock {
    store: StoreDir,
    _file: fs::File,
}

impl StoreLock {
    /// Removes the pid file and socket of a daemon that ended without doing so.
    pub fn clear_leftovers(&self) -> Result<(), StoreDirError> {
        for path in [self.store.file("phifs.pid"), self.store.control_socket()] {
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreDirError::Io { doing: "remove", path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Says that this process serves the volume. Dropping the lock takes it back.
    pub fn publish_pid(&self) -> Result<(), StoreDirError> {
        let path = self.store.file("phifs.pid");
        fs::write(&path, format!("{}\n", std::process::id())).map_err(|source| StoreDirError::Io {
            doing: "write",
            path,
            source,
        })
    }
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        if self.store.serving_pid() == Some(std::process::id()) {
            // Nothing depends on it: the next one to get the lock clears it as well.
            let _ = self.clear_leftovers();
        }
    }
}

/// What a file or a tree of them takes on the disk. What vanishes meanwhile takes nothing.
fn tree_bytes(path: &Path) -> io::Result<u64> {
    let mut bytes = allocated(path)?;
    if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
        for entry in fs::read_dir(path)? {
            bytes += tree_bytes(&entry?.path())?;
        }
    }
    Ok(bytes)
}

fn allocated(path: &Path) -> io::Result<u64> {
    match path.symlink_metadata() {
        Ok(meta) => Ok(meta.blocks() * 512),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_empty_directories_become_stores_and_others_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        assert!(matches!(StoreDir::find(&deep), Err(StoreDirError::Absent(_))));
        StoreDir::create(&deep).unwrap();
        assert_eq!(deep.metadata().unwrap().mode() & 0o777, 0o700);
        StoreDir::create(&deep).unwrap();
        fs::write(deep.join("phifs.toml"), "").unwrap();
        StoreDir::create(&deep).unwrap();
        fs::write(deep.join("holiday.jpg"), "").unwrap();
        let refused = StoreDir::create(&deep).unwrap_err();
        assert!(refused.to_string().ends_with("it holds holiday.jpg"), "{refused}");
        fs::write(deep.join("node.key"), "").unwrap();
        StoreDir::create(&deep).expect("a store stays one, whatever else lies in it");
    }

    #[test]
    fn everything_in_the_store_is_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreDir::create(dir.path()).unwrap();
        fs::create_dir(dir.path().join("packs")).unwrap();
        fs::write(dir.path().join("packs/00000001.pack"), vec![1; 100_000]).unwrap();
        fs::write(dir.path().join("ballast"), vec![1; 10_000]).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("elsewhere")).unwrap();
        let taken = store.taken().unwrap();
        assert!(taken["packs"] >= 100_000 && taken["ballast"] >= 10_000, "{taken:?}");
        let du = std::process::Command::new("du").args(["-s", "--block-size=1"]).arg(dir.path()).output().unwrap();
        let du = String::from_utf8(du.stdout).unwrap();
        let du: u64 = du.split_whitespace().next().unwrap().parse().unwrap();
        assert_eq!(taken.values().sum::<u64>(), du, "{taken:?}");
    }

    #[test]
    fn second_user_of_a_store_hears_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreDir::create(dir.path()).unwrap();
        assert!(!store.is_in_use());
        let lock = store.lock("daemon").unwrap();
        assert!(store.is_in_use());
        let refused = store.lock("fsck").err().unwrap().to_string();
        assert!(refused.ends_with(&format!("in use by phifs daemon, process {}", std::process::id())), "{refused}");
        drop(lock);
        assert!(!store.is_in_use());
        store.lock("fsck").unwrap();
    }

    #[test]
    fn leftovers_of_a_dead_daemon_are_cleared_and_the_lock_takes_its_own_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreDir::create(dir.path()).unwrap();
        fs::write(dir.path().join("phifs.pid"), "4194305\n").unwrap();
        fs::write(store.control_socket(), "").unwrap();
        let lock = store.lock("daemon").unwrap();
        lock.clear_leftovers().unwrap();
        assert_eq!(store.serving_pid(), None);
        lock.publish_pid().unwrap();
        assert_eq!(store.serving_pid(), Some(std::process::id()));
        drop(lock);
        assert_eq!(store.serving_pid(), None);
    }
}
