//! STORE/node.key: the secret that makes this node this node.
//!
//! ```text
//! phifs-node-key 1
//! secret <64 hexadecimal digits>
//! check <crc32c of the secret, 8 digits>
//! ```
//!
//! The file is made once, complete or not at all, and only its owner may read it. A key that others could have read,
//! or whose digits do not match their check, is refused: going on under a wrong identity cannot be undone.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

pub const FILE: &str = "node.key";
const VERSION: u32 = 1;

/// The 32 secret bytes of an Ed25519 key. It has no `Debug`, so that no log can hold it.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeSeed(pub [u8; 32]);

#[derive(Debug, thiserror::Error)]
pub enum NodeKeyError {
    #[error("cannot {doing} {}: {source}", crate::show::path(path))]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("{} can be read by others (mode {mode:03o})", crate::show::path(path))]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{} belongs to user {owner}, not to user {user} who runs this", crate::show::path(path))]
    NotOwner { path: PathBuf, owner: u32, user: u32 },
    #[error("{} is written in version {found}; this program knows versions up to {VERSION}", crate::show::path(path))]
    Newer { path: PathBuf, found: u32 },
    #[error("{} is damaged: {why}", crate::show::path(path))]
    Damaged { path: PathBuf, why: &'static str },
}

impl NodeKeyError {
    /// What its reader may try.
    pub fn hint(&self) -> String {
        match self {
            Self::Io { .. } => "check that the store directory is yours and not read-only".to_owned(),
            Self::Exposed { path, .. } => {
                format!("if nobody else has read it: chmod 600 {}", crate::show::path(path))
            }
            Self::NotOwner { owner, .. } => format!("run the command as user {owner}"),
            Self::Newer { .. } => "use the phifs version that wrote it, or a newer one".to_owned(),
            Self::Damaged { .. } => "restore it from a backup of the store; a new key would be a new node".to_owned(),
        }
    }
}

/// Reads the key of the store in `dir`, or makes one if there is none; `fresh` gives the bytes of a new one.
pub fn load_or_create(dir: &Path, fresh: impl FnOnce() -> [u8; 32]) -> Result<NodeSeed, NodeKeyError> {
    let path = dir.join(FILE);
    match load(&path) {
        Err(NodeKeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let seed = NodeSeed(fresh());
            create(&path, &seed).map_err(|source| NodeKeyError::Io { doing: "create", path: path.clone(), source })?;
            Ok(seed)
        }
        result => result,
    }
}

fn load(path: &Path) -> Result<NodeSeed, NodeKeyError> {
    let io = |source| NodeKeyError::Io { doing: "read", path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    let (user, mode) = (rustix::process::geteuid().as_raw(), meta.permissions().mode() & 0o777);
    if meta.uid() != user {
        return Err(NodeKeyError::NotOwner { path: path.to_owned(), owner: meta.uid(), user });
    }
    if mode & 0o077 != 0 {
        return Err(NodeKeyError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, 4096), &mut text).map_err(io)?;
    parse(path, &text)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<NodeSeed, NodeKeyError> {
    let damaged = |why| NodeKeyError::Damaged { path: path.to_owned(), why };
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("it is not text"))?;
    let mut lines = text.lines();
    let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
    let version = field("phifs-node-key").ok_or_else(|| damaged("it does not begin as a node key"))?;
    match version.parse() {
        Ok(VERSION) => {}
        Ok(found) if found > VERSION => return Err(NodeKeyError::Newer { path: path.to_owned(), found }),
        _ => return Err(damaged("its version is not a number")),
    }
    let secret = field("secret").and_then(crate::hex::decode).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let secret = secret.ok_or_else(|| damaged("its secret is not 64 hexadecimal digits"))?;
    if field("check") != Some(check(&secret).as_str()) {
        return Err(damaged("its secret does not match its check"));
    }
    Ok(NodeSeed(secret))
}

fn check(secret: &[u8; 32]) -> String {
    format!("{:08x}", crc32c::crc32c(secret))
}

/// Writes beside the place and then renames, so that a crash leaves either no key or all of it.
fn create(path: &Path, seed: &NodeSeed) -> io::Result<()> {
    let unfinished = path.with_extension("key.new");
    // Left behind by a crash; nobody was ever told of the key in it.
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    let secret = crate::hex::encode(&seed.0);
    writeln!(file, "phifs-node-key {VERSION}\nsecret {secret}\ncheck {}", check(&seed.0))?;
    file.sync_all()?;
    let cwd = rustix::fs::CWD;
    rustix::fs::renameat_with(cwd, &unfinished, cwd, path, rustix::fs::RenameFlags::NOREPLACE)?;
    fs::File::open(path.parent().expect("the key lies in a directory"))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_made_once_and_only_for_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let made = load_or_create(dir.path(), || [7; 32]).ok().unwrap();
        let read = load_or_create(dir.path(), || unreachable!("there is one")).ok().unwrap();
        assert!(made == read && made == NodeSeed([7; 32]));
        let path = dir.path().join(FILE);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load(&path), Err(NodeKeyError::Exposed { mode: 0o640, .. })));
    }

    #[test]
    fn unfinished_key_of_a_crash_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("node.key.new"), "phifs-no").unwrap();
        assert!(load_or_create(dir.path(), || [7; 32]).is_ok());
    }

    #[test]
    fn damaged_and_newer_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path(), || [7; 32]).ok().unwrap();
        let path = dir.path().join(FILE);
        let good = fs::read_to_string(&path).unwrap();
        let verdict = |text: &str| parse(&path, text.as_bytes()).err();
        assert!(verdict(&good).is_none());
        assert!(matches!(verdict(&good.replace("07", "08")), Some(NodeKeyError::Damaged { .. })));
        assert!(matches!(verdict(&good.replace("key 1", "key 2")), Some(NodeKeyError::Newer { found: 2, .. })));
        for len in 0..good.len() - 1 {
            assert!(verdict(&good[..len]).is_some(), "cut to {len} bytes");
        }
        assert!(parse(&path, b"\xff\xfe").is_err());
    }
}
