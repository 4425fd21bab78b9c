//! The tree that some state has, read where it lies: what is the same for all who show one.

use bytes::Bytes;

use crate::content::Content;
use crate::content::reader::ContentReader;
use crate::id::{DirId, InodeId};
use crate::meta::Frozen;
use crate::namespace::derive::Child;
use crate::namespace::tables::Rows as _;
use crate::namespace::view::{self, Stat};
use crate::volume::{FileKind, Result, VolumeError};

use super::files::inline_bytes;
use super::names::{ABOVE, BATCH, SELF, pass_on};

pub fn stat_of(tables: &Frozen, inode: InodeId) -> Result<Stat> {
    let row = tables.inode(inode)?.ok_or(VolumeError::NotFound)?;
    Ok(view::stat(tables, inode, &row)?)
}

/// What is said of an inode, and how many links it has.
pub fn looked_at(tables: &Frozen, inode: InodeId) -> Result<(Stat, u32)> {
    let stat = stat_of(tables, inode)?;
    let nlink = view::nlink(tables, inode, stat.kind)?;
    Ok((stat, nlink))
}

/// The same of what a name in a directory stands for.
pub fn child_looked_at(tables: &Frozen, child: Child) -> Result<(Stat, u32)> {
    Ok((stat_of(tables, child.inode())?, view::nlink_of_child(tables, child)?))
}

/// Lists a directory from behind `after`, as `Volume::readdir`: `above` finds "." and "..", `look` the rest.
pub fn list<T>(
    tables: &Frozen,
    dir: DirId,
    mut after: u64,
    above: &mut dyn FnMut(&[u8]) -> Result<T>,
    look: &mut dyn FnMut(Child) -> Result<T>,
    each: &mut dyn FnMut(&[u8], T, u64) -> bool,
) -> Result<()> {
    if tables.dir(dir)?.is_none() && dir != DirId::ROOT {
        return Err(VolumeError::NotDirectory);
    }
    for (name, next) in [(&b"."[..], SELF), (b"..", ABOVE)] {
        if after < next {
            if !each(name, above(name)?, next) {
                return Ok(());
            }
            after = next;
        }
    }
    loop {
        let listed = view::list(tables, dir, after + 1, BATCH)?;
        if !pass_on(&listed, &mut after, look, each)? {
            return Ok(());
        }
    }
}

/// A reader of the bytes of a file.
pub fn open(tables: &Frozen, inode: InodeId) -> Result<ContentReader> {
    let stat = stat_of(tables, inode)?;
    match stat.kind {
        FileKind::File => {}
        FileKind::Directory => return Err(VolumeError::IsDirectory),
        _ => return Err(VolumeError::Invalid("not a regular file")),
    }
    let Some((dot, version)) = stat.version else {
        return Ok(ContentReader::new(Content::Empty, Bytes::new())?);
    };
    let inline = inline_bytes(tables, inode, Some(dot), &version.content)?;
    Ok(ContentReader::new(version.content, inline)?)
}
