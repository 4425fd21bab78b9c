//! The hash of what people see: names, attributes and bytes, and nothing of how they came about. Equal trees have equal
//! hashes, whatever their histories; times of access and of the last change of attributes are no part of it.

use std::collections::HashMap;

use crate::codec::Encode;
use crate::content::Content;
use crate::id::{DirId, InodeId};
use crate::namespace::derive::Child;
use crate::namespace::tables::{Rows, Tables};
use crate::namespace::view;
use crate::store::StoreError;
use crate::volume::FileKind;

type Result<T> = std::result::Result<T, StoreError>;

const CONTEXT: &str = "phifs tree v1";
const BATCH: usize = 1024;

/// The hash of the whole tree. Visits every name.
pub fn tree_root<T: Tables>(tables: &T) -> Result<[u8; 32]> {
    let mut walk = Walk { tables, links: HashMap::new() };
    // The directories on the way down: the bytes that describe each, and where its listing goes on.
    let mut path = vec![Level::new(DirId::ROOT, walk.describe(DirId::ROOT.inode(), Some(DirId::ROOT))?)];
    loop {
        let level = path.last_mut().expect("the root is the last to go");
        match level.next(tables)? {
            Some((name, Child::Dir(dir))) => {
                let described = walk.describe(dir.inode(), Some(dir))?;
                level.bytes.put_blob(&name);
                path.push(Level::new(dir, described));
            }
            Some((name, Child::Link { inode, .. })) => {
                let described = walk.describe(inode, None)?;
                level.bytes.put_blob(&name);
                level.bytes.put_blob(&described);
            }
            None => {
                let level = path.pop().expect("it was just looked at");
                let hash = blake3::derive_key(CONTEXT, &level.bytes);
                match path.last_mut() {
                    Some(above) => above.bytes.put_bytes(&hash),
                    None => return Ok(hash),
                }
            }
        }
    }
}

struct Level {
    dir: DirId,
    bytes: Vec<u8>,
    listed: std::vec::IntoIter<view::Listed>,
    /// The first hash that was not listed yet; nothing when all were.
    from: Option<u64>,
}

impl Level {
    fn new(dir: DirId, bytes: Vec<u8>) -> Self {
        Self { dir, bytes, listed: Vec::new().into_iter(), from: Some(0) }
    }

    /// Names come in the order of their hashes, which depends on nothing but them.
    fn next<T: Tables>(&mut self, tables: &T) -> Result<Option<(Vec<u8>, Child)>> {
        loop {
            if let Some(listed) = self.listed.next() {
                return Ok(Some((listed.name, listed.child)));
            }
            let Some(from) = self.from else { return Ok(None) };
            let listed = view::list(tables, self.dir, from, BATCH)?;
            self.from = listed.last().filter(|_| listed.len() >= BATCH).map(|last| last.hash + 1);
            self.listed = listed.into_iter();
        }
    }
}

struct Walk<'a, T> {
    tables: &'a T,
    /// Files with several names, numbered as they are met.
    links: HashMap<InodeId, u64>,
}

impl<T: Tables> Walk<'_, T> {
    fn describe(&mut self, id: InodeId, dir: Option<DirId>) -> Result<Vec<u8>> {
        let row = self.tables.inode(id)?.unwrap_or_default();
        let stat = view::stat(self.tables, id, &row)?;
        let mut out = Vec::with_capacity(128);
        let kind = if dir.is_some() { FileKind::Directory } else { stat.kind };
        out.put_u8(crate::namespace::row::kind_to_byte(kind));
        out.put_varint(u64::from(stat.mode.permissions));
        out.put_blob(&stat.mode.acl);
        out.put_varint(u64::from(stat.owner.uid));
        out.put_varint(u64::from(stat.owner.gid));
        out.put_time(stat.mtime);
        out.put_varint(u64::from(stat.rdev));
        out.put_blob(&stat.target);
        if kind == FileKind::File {
            // One that nobody has written to yet is as empty as one that was cut short.
            stat.version.map_or(Content::Empty, |(_, version)| version.content).encode(&mut out);
        }
        for (name, value) in view::xattrs(self.tables, id)? {
            out.put_blob(&name);
            out.put_blob(&value);
        }
        if dir.is_none() && view::nlink(self.tables, id, kind)? > 1 {
            let next = self.links.len() as u64;
            let number = *self.links.entry(id).or_insert(next);
            out.put_varint(number);
        }
        Ok(out)
    }
}
