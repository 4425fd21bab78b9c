//! `.phi`: what the filesystem says about itself. It resolves in every directory and is listed in none.

use std::sync::atomic::Ordering;

use crate::volume::{Attr, Entry, FileKind, Handle, Ino, OpenHow, Opened, Path, Result, VolumeError};

use super::LocalVolume;
use super::state::VIRTUAL_AUTHOR;

pub const NAME: &[u8] = b".phi";

const fn virtual_ino(n: u64) -> Ino {
    Ino(VIRTUAL_AUTHOR << 44 | n)
}

const DIRECTORY: Ino = virtual_ino(1);
const STATUS: Ino = virtual_ino(2);
const STATUS_NAME: &[u8] = b"status.json";

/// Whether the inode belongs to `.phi`.
pub fn is_virtual(ino: Ino) -> bool {
    ino.0 >> 44 == VIRTUAL_AUTHOR
}

impl LocalVolume {
    pub(super) fn reserved_lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        let ino = match (parent, name) {
            (DIRECTORY, b"." | NAME) => DIRECTORY,
            // It is below every directory at once; the root stands for all of them.
            (DIRECTORY, b"..") => return crate::volume::Volume::getattr(self, Ino::ROOT, None),
            (DIRECTORY, STATUS_NAME) => STATUS,
            (DIRECTORY, _) => return Err(VolumeError::NotFound),
            (STATUS, _) => return Err(VolumeError::NotDirectory),
            (_, NAME) => DIRECTORY,
            _ => return Err(VolumeError::NotFound),
        };
        self.reserved_attr(ino)
    }

    pub(super) fn reserved_attr(&self, ino: Ino) -> Result<Attr> {
        let now = self.env.now();
        let (kind, permissions, nlink, size_bytes) = match ino {
            DIRECTORY => (FileKind::Directory, 0o555, 2, 4096),
            STATUS => (FileKind::File, 0o444, 1, self.status_json().len() as u64),
            _ => return Err(VolumeError::Stale),
        };
        Ok(Attr {
            ino,
            kind,
            permissions,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
            size_bytes,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
        })
    }

    pub(super) fn reserved_list(&self, ino: Ino, after: u64, each: &mut dyn FnMut(&Entry) -> bool) -> Result<()> {
        if ino != DIRECTORY {
            return Err(VolumeError::NotDirectory);
        }
        let root = crate::volume::Volume::getattr(self, Ino::ROOT, None)?;
        let entries: [(&[u8], Attr); 3] =
            [(b".", self.reserved_attr(DIRECTORY)?), (b"..", root), (STATUS_NAME, self.reserved_attr(STATUS)?)];
        for (next, (name, attr)) in (1..).zip(entries) {
            if next > after && !each(&Entry { name: name.to_vec(), attr, next }) {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn reserved_open(&self, ino: Ino, how: &OpenHow) -> Result<Opened> {
        if how.write || how.truncate {
            return Err(VolumeError::NotPermitted(".phi is read-only"));
        }
        match ino {
            STATUS => {
                let handle = Handle(self.next_handle.fetch_add(1, Ordering::Relaxed));
                Ok(Opened { handle, path: Path::Direct })
            }
            _ => Err(VolumeError::IsDirectory),
        }
    }

    pub(super) fn reserved_read(&self, ino: Ino, offset: u64, len: u32) -> Result<Vec<u8>> {
        if ino != STATUS {
            return Err(VolumeError::IsDirectory);
        }
        let bytes = self.status_json().into_bytes();
        let from = bytes.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
        let to = bytes.len().min(from.saturating_add(len as usize));
        Ok(bytes[from..to].to_vec())
    }
}
