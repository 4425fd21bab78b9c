//! Whether another state is one that could have come about, before it is joined: whoever made it may be broken or lie.
//!
//! What is asked follows from how operations are made, so a state that nobody tampered with is never refused. The work is
//! proportional to the rows in which the two states differ; the others are ours as well.

use std::collections::HashMap;

use crate::causal::VersionVector;
use crate::id::{DirId, Dot, InodeId, LinkId};
use crate::store::StoreError;
use crate::volume::FileKind;

use super::derive;
use super::join::TheirRow;
use super::position::Move;
use super::privilege;
use super::register::{Entry, Register};
use super::row::{InodeRow, LinkRow, decode_xattr};
use super::tables::{Rows, Table, Tables, malformed};

/// Why another state cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum Suspect {
    #[error("it has the operation {0}, and does not say so")]
    Uncovered(Dot),
    /// Nothing that this one was written for can be told from what the other one was.
    #[error("the operation {0} is another one here")]
    TwoOperations(Dot),
    #[error("it knows the same operations as this one, and has come to something else")]
    OtherState,
    #[error("its file name {} leads to the inode {inode}, which is neither there nor here", .name.escape_ascii())]
    NoInode { name: Vec<u8>, inode: Dot },
    #[error("{} is in the directory {dir}, which is neither there nor here", .name.escape_ascii())]
    NoDirectory { name: Vec<u8>, dir: Dot },
    #[error("it moves the directory {0}, which is neither there nor here")]
    MovesNothing(Dot),
    #[error(transparent)]
    Store(#[from] StoreError),
}

type Result<T> = std::result::Result<T, Suspect>;

/// Looks at their rows before they are joined: they must decode, lie in their context, and say the same as mine of the
/// operations that are in both.
pub fn check_rows<T: Tables + ?Sized>(mine: &T, context: &VersionVector, rows: &[TheirRow]) -> Result<()> {
    for row in rows {
        let Some(theirs) = &row.value else { continue };
        let key = &row.key[..];
        let owner = || derive::dot_of(key.get(..Dot::LEN).unwrap_or_default());
        let check = Check { context };
        match row.table {
            Table::Inodes => {
                let id = check.has(owner()?)?;
                let theirs = InodeRow::decode(id, theirs).map_err(|e| malformed("inode", key, e))?;
                check.all(theirs.dots())?;
                check.all(theirs.mode.entries().iter().flat_map(|entry| entry.value.seen.iter().copied()))?;
                if let Some(mine) = mine.inode(InodeId(id))? {
                    same(&mine.birth, &theirs.birth)?;
                    same(&mine.alive, &theirs.alive)?;
                    same(&mine.mode, &theirs.mode)?;
                    same(&mine.owner, &theirs.owner)?;
                    same(&mine.mtime, &theirs.mtime)?;
                    same(&mine.touched, &theirs.touched)?;
                    same(&mine.versions, &theirs.versions)?;
                }
            }
            Table::Links => {
                let id = check.has(owner()?)?;
                let theirs = LinkRow::decode(id, theirs).map_err(|e| malformed("link", key, e))?;
                let places = theirs.places.entries().iter();
                check.all(places.flat_map(|entry| [entry.dot, entry.value.inode.0, entry.value.parent.0]))?;
                if let Some(mine) = mine.link(LinkId(id))? {
                    same(&mine.places, &theirs.places)?;
                }
            }
            Table::Xattrs => {
                let id = check.has(owner()?)?;
                let theirs = decode_xattr(id, theirs).map_err(|e| malformed("xattr", key, e))?;
                check.all(theirs.dots())?;
                let name = &key[Dot::LEN..];
                super::row::check_xattr_name(name).map_err(|e| malformed("xattr", key, e))?;
                let granted = |entry: &Entry<Vec<u8>>| privilege::seen_by_xattr(name, &entry.value);
                check.all(theirs.entries().iter().flat_map(granted))?;
                same(&mine.xattr(InodeId(id), name)?, &theirs)?;
            }
            Table::Moves => {
                let theirs = Move::decode(key, theirs)?;
                check.all([theirs.id.dot, theirs.dir.0, theirs.parent.0])?;
                if let Some(value) = mine.get(Table::Moves, key)? {
                    let mine = Move::decode(key, &value)?;
                    if mine != theirs {
                        return Err(Suspect::TwoOperations(theirs.id.dot));
                    }
                }
            }
            Table::Contents => {
                check.has(owner()?)?;
                let version = check.has(derive::dot_of(&key[Dot::LEN..])?)?;
                if mine.get(Table::Contents, key)?.is_some_and(|mine| mine != *theirs) {
                    return Err(Suspect::TwoOperations(version));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Looks at their rows where both sides know the same operations: then there is no difference.
pub fn check_same<T: Tables + ?Sized>(mine: &T, rows: &[TheirRow]) -> Result<()> {
    for row in rows {
        if mine.get(row.table, &row.key)? != row.value {
            return Err(Suspect::OtherState);
        }
    }
    Ok(())
}

struct Check<'a> {
    context: &'a VersionVector,
}

impl Check<'_> {
    fn has(&self, dot: Dot) -> Result<Dot> {
        if self.context.contains(dot) { Ok(dot) } else { Err(Suspect::Uncovered(dot)) }
    }

    fn all(&self, dots: impl IntoIterator<Item = Dot>) -> Result<()> {
        dots.into_iter().try_for_each(|dot| self.has(dot).map(drop))
    }
}

fn same<V: PartialEq>(mine: &Register<V>, theirs: &Register<V>) -> Result<()> {
    let differs = |entry: &&Entry<V>| mine.get(entry.dot).is_some_and(|mine| mine != *entry);
    theirs.entries().iter().find(differs).map_or(Ok(()), |entry| Err(Suspect::TwoOperations(entry.dot)))
}

/// Looks at what their rows have become, after they were joined: what names lead to, and what lies where, must be there.
pub fn check_joined<T: Tables + ?Sized>(joined: &T, rows: &[TheirRow]) -> Result<()> {
    let mut kinds: HashMap<Dot, Option<FileKind>> = HashMap::new();
    let mut is_dir = |dir: DirId| -> Result<bool> {
        if let Some(known) = kinds.get(&dir.0) {
            return Ok(*known == Some(FileKind::Directory));
        }
        let kind = joined.inode(dir.inode())?.map(|row| row.kind());
        kinds.insert(dir.0, kind);
        Ok(kind == Some(FileKind::Directory))
    };
    for row in rows.iter().filter(|row| row.value.is_some()) {
        match row.table {
            Table::Links => {
                let Some(link) = joined.link(LinkId(derive::dot_of(&row.key)?))? else { continue };
                let Some(place) = link.place() else { continue };
                let kind = joined.inode(place.inode)?.map(|row| row.kind());
                if kind != Some(place.kind) {
                    return Err(Suspect::NoInode { name: place.name.clone(), inode: place.inode.0 });
                }
                if !is_dir(place.parent)? {
                    return Err(Suspect::NoDirectory { name: place.name.clone(), dir: place.parent.0 });
                }
            }
            Table::Moves => {
                let dir = DirId(derive::dot_of(row.key.get(8 + Dot::LEN..).unwrap_or_default())?);
                // Where it came from may be forgotten by now; where it is may not.
                let Some((parent, name)) = joined.dir(dir)?.and_then(|row| row.position()) else { continue };
                if !is_dir(dir)? {
                    return Err(Suspect::MovesNothing(dir.0));
                }
                if !is_dir(parent)? {
                    return Err(Suspect::NoDirectory { name, dir: parent.0 });
                }
            }
            _ => {}
        }
    }
    Ok(())
}
