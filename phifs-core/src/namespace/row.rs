//! The rows of the replicated tables, and their canonical bytes.
//!
//! A row starts with a format version, then lists the authors that its dots name (its own key's author is number 0 and
//! is not repeated), then the largest clock reading in it, against which the others are written as differences.
//! So a row written by one operation costs some ten bytes of causality, not forty for each field.

use crate::codec::{DecodeError, Encode, Reader, Result};
use crate::content::Content;
use crate::id::{AuthorId, DirId, Dot, InodeId};
use crate::time::{Hlc, Timestamp};
use crate::volume::FileKind;

use super::register::{Entry, Register};

const VERSION: u8 = 1;

/// What an inode is for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Birth {
    pub kind: FileKind,
    pub rdev: u32,
    pub time: Timestamp,
    /// Where a symlink points; empty for everything else.
    pub target: Vec<u8>,
}

/// Permission bits and access ACL: one register, as chmod(2) changes the ACL's mask and an ACL changes the bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mode {
    pub permissions: u16,
    /// The value of `system.posix_acl_access`; empty when the bits say it all.
    pub acl: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// How a version came to be published; larger is better (the K term of the coherence score).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closure {
    CrashRecovered = 0,
    IdleFlush = 1,
    Close = 2,
    SyncAndClose = 3,
}

/// One published state of a file's bytes. Inline bytes lie in the contents table under the version's dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub content: Content,
    pub mtime: Timestamp,
    pub closure: Closure,
    /// The versions that its author saw and replaced.
    pub bases: Vec<Dot>,
}

/// Everything about an inode but its names, extended attributes and bytes. Directories use `alive`, files `versions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InodeRow {
    pub birth: Register<Birth>,
    pub alive: Register<()>,
    pub mode: Register<Mode>,
    pub owner: Register<Owner>,
    pub mtime: Register<Timestamp>,
    /// The last change of anything: ctime.
    pub touched: Register<Timestamp>,
    pub versions: Register<Version>,
}

/// Where a name is. The clock reading and author decide among several; re-asserting a place keeps its old ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub hlc: Hlc,
    pub author: AuthorId,
    pub parent: DirId,
    pub name: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRow {
    pub inode: InodeId,
    pub kind: FileKind,
    pub places: Register<Place>,
}

impl LinkRow {
    /// The one place that the link is at: the latest by clock, then author.
    pub fn place(&self) -> Option<&Place> {
        self.places.entries().iter().map(|entry| &entry.value).max_by_key(|place| (place.hlc, place.author))
    }
}

/// One extended attribute. Removal leaves no value: the row is gone and the context covers its dots.
pub type XattrRow = Register<Vec<u8>>;

impl InodeRow {
    pub fn is_empty(&self) -> bool {
        self.birth.is_empty()
            && self.alive.is_empty()
            && self.mode.is_empty()
            && self.owner.is_empty()
            && self.mtime.is_empty()
            && self.touched.is_empty()
            && self.versions.is_empty()
    }

    pub fn kind(&self) -> FileKind {
        self.birth.latest().map_or(FileKind::File, |entry| entry.value.kind)
    }

    /// Every dot in the row, each once, in order.
    pub fn dots(&self) -> Vec<Dot> {
        let mut dots: Vec<Dot> = self
            .birth
            .dots()
            .chain(self.alive.dots())
            .chain(self.mode.dots())
            .chain(self.owner.dots())
            .chain(self.mtime.dots())
            .chain(self.touched.dots())
            .chain(self.versions.dots())
            .collect();
        dots.sort_unstable();
        dots.dedup();
        dots
    }

    pub fn encode(&self, key: Dot) -> Vec<u8> {
        let hlcs = self
            .birth
            .entries()
            .iter()
            .map(|entry| entry.hlc)
            .chain(self.alive.entries().iter().map(|entry| entry.hlc))
            .chain(self.mode.entries().iter().map(|entry| entry.hlc))
            .chain(self.owner.entries().iter().map(|entry| entry.hlc))
            .chain(self.mtime.entries().iter().map(|entry| entry.hlc))
            .chain(self.touched.entries().iter().map(|entry| entry.hlc))
            .chain(self.versions.entries().iter().map(|entry| entry.hlc));
        let mut row = RowWriter::new(key, hlcs.max(), self.dots().into_iter());
        row.register(&self.birth, put_birth);
        row.register(&self.alive, |_, ()| {});
        row.register(&self.mode, put_mode);
        row.register(&self.owner, put_owner);
        row.register(&self.mtime, |out, time| out.put_time(*time));
        row.register(&self.touched, |out, time| out.put_time(*time));
        row.register(&self.versions, put_version);
        row.out
    }

    pub fn decode(key: Dot, bytes: &[u8]) -> Result<Self> {
        let mut row = RowReader::new("an inode", key, bytes)?;
        let decoded = Self {
            birth: row.register(get_birth)?,
            alive: row.register(|_| Ok(()))?,
            mode: row.register(get_mode)?,
            owner: row.register(get_owner)?,
            mtime: row.register(Reader::time)?,
            touched: row.register(Reader::time)?,
            versions: row.register(get_version)?,
        };
        row.finish()?;
        Ok(decoded)
    }
}

impl LinkRow {
    pub fn encode(&self, key: Dot) -> Vec<u8> {
        let hlcs = self.places.entries().iter().map(|entry| entry.hlc);
        let mut row = RowWriter::new(key, hlcs.max(), self.places.dots());
        row.out.put_dot(self.inode.0);
        row.out.put_u8(kind_to_byte(self.kind));
        row.register(&self.places, put_place);
        row.out
    }

    pub fn decode(key: Dot, bytes: &[u8]) -> Result<Self> {
        let mut row = RowReader::new("a link", key, bytes)?;
        let inode = InodeId(row.reader.dot()?);
        let kind = kind_from_byte(row.reader.u8()?)?;
        let places = row.register(get_place)?;
        row.finish()?;
        Ok(Self { inode, kind, places })
    }
}

pub fn encode_xattr(key: Dot, xattr: &XattrRow) -> Vec<u8> {
    let hlcs = xattr.entries().iter().map(|entry| entry.hlc);
    let mut row = RowWriter::new(key, hlcs.max(), xattr.dots());
    row.register(xattr, |out, value| out.put_blob(value));
    row.out
}

pub fn decode_xattr(key: Dot, bytes: &[u8]) -> Result<XattrRow> {
    let mut row = RowReader::new("an extended attribute", key, bytes)?;
    let xattr = row.register(|reader| Ok(reader.blob()?.to_vec()))?;
    row.finish()?;
    Ok(xattr)
}

struct RowWriter {
    out: Vec<u8>,
    authors: Vec<AuthorId>,
    key_n: u64,
    newest: Hlc,
}

impl RowWriter {
    fn new(key: Dot, newest: Option<Hlc>, dots: impl Iterator<Item = Dot>) -> Self {
        let mut others: Vec<AuthorId> = dots.map(|dot| dot.author).filter(|author| *author != key.author).collect();
        others.sort_unstable();
        others.dedup();
        let newest = newest.unwrap_or_default();
        let mut out = Vec::with_capacity(128);
        out.put_u8(VERSION);
        out.put_varint(others.len() as u64);
        others.iter().for_each(|author| out.put_bytes(&author.0));
        out.put_u64(newest.0);
        let mut authors = vec![key.author];
        authors.append(&mut others);
        Self { out, authors, key_n: key.n, newest }
    }

    fn register<V>(&mut self, register: &Register<V>, put: impl Fn(&mut Vec<u8>, &V)) {
        self.out.put_varint(register.entries().len() as u64);
        for entry in register.entries() {
            let author = self.authors.iter().position(|author| *author == entry.dot.author);
            self.out.put_varint(author.expect("every author of the row is listed") as u64);
            self.out.put_signed(entry.dot.n.wrapping_sub(self.key_n) as i64);
            self.out.put_varint(self.newest.0 - entry.hlc.0);
            put(&mut self.out, &entry.value);
        }
    }
}

struct RowReader<'a> {
    reader: Reader<'a>,
    authors: Vec<AuthorId>,
    key_n: u64,
    newest: Hlc,
}

impl<'a> RowReader<'a> {
    fn new(what: &'static str, key: Dot, bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8()?;
        if version != VERSION {
            return Err(DecodeError::NewerVersion { what, found: u32::from(version), known: u32::from(VERSION) });
        }
        let others = reader.count()?;
        let mut authors = vec![key.author];
        for _ in 0..others {
            authors.push(AuthorId(reader.array()?));
        }
        let newest = Hlc(reader.u64()?);
        Ok(Self { reader, authors, key_n: key.n, newest })
    }

    fn register<V>(&mut self, get: impl Fn(&mut Reader<'a>) -> Result<V>) -> Result<Register<V>> {
        let count = self.reader.count()?;
        let mut register = Register::default();
        let mut before = None;
        for _ in 0..count {
            let author = self.reader.varint()? as usize;
            let author = *self.authors.get(author).ok_or(DecodeError::NotCanonical("an author number"))?;
            let n = self.key_n.wrapping_add(self.reader.signed()? as u64);
            let dot = Dot { author, n };
            if before.is_some_and(|before| before >= dot) {
                return Err(DecodeError::NotCanonical("the order of dots"));
            }
            before = Some(dot);
            let age = self.reader.varint()?;
            let hlc = Hlc(self.newest.0.checked_sub(age).ok_or(DecodeError::NotCanonical("a clock reading"))?);
            register.insert(Entry { dot, hlc, value: get(&mut self.reader)? });
        }
        Ok(register)
    }

    fn finish(self) -> Result<()> {
        self.reader.finish()
    }
}

pub(super) fn kind_to_byte(kind: FileKind) -> u8 {
    match kind {
        FileKind::File => 0,
        FileKind::Directory => 1,
        FileKind::Symlink => 2,
        FileKind::Fifo => 3,
        FileKind::Socket => 4,
        FileKind::CharDevice => 5,
        FileKind::BlockDevice => 6,
    }
}

pub(super) fn kind_from_byte(byte: u8) -> Result<FileKind> {
    Ok(match byte {
        0 => FileKind::File,
        1 => FileKind::Directory,
        2 => FileKind::Symlink,
        3 => FileKind::Fifo,
        4 => FileKind::Socket,
        5 => FileKind::CharDevice,
        6 => FileKind::BlockDevice,
        value => return Err(DecodeError::Unknown { what: "a kind of inode", value: u64::from(value) }),
    })
}

pub(super) fn put_birth(out: &mut Vec<u8>, birth: &Birth) {
    out.put_u8(kind_to_byte(birth.kind));
    out.put_varint(u64::from(birth.rdev));
    out.put_time(birth.time);
    out.put_blob(&birth.target);
}

pub(super) fn get_birth(reader: &mut Reader<'_>) -> Result<Birth> {
    Ok(Birth {
        kind: kind_from_byte(reader.u8()?)?,
        rdev: reader.varint_u32()?,
        time: reader.time()?,
        target: reader.blob()?.to_vec(),
    })
}

pub(super) fn put_mode(out: &mut Vec<u8>, mode: &Mode) {
    out.put_varint(u64::from(mode.permissions));
    out.put_blob(&mode.acl);
}

pub(super) fn get_mode(reader: &mut Reader<'_>) -> Result<Mode> {
    let permissions = reader.varint()?;
    if permissions > 0o7777 {
        return Err(DecodeError::Unknown { what: "permissions", value: permissions });
    }
    Ok(Mode { permissions: permissions as u16, acl: reader.blob()?.to_vec() })
}

pub(super) fn put_owner(out: &mut Vec<u8>, owner: &Owner) {
    out.put_varint(u64::from(owner.uid));
    out.put_varint(u64::from(owner.gid));
}

pub(super) fn get_owner(reader: &mut Reader<'_>) -> Result<Owner> {
    Ok(Owner { uid: reader.varint_u32()?, gid: reader.varint_u32()? })
}

pub(super) fn put_version(out: &mut Vec<u8>, version: &Version) {
    version.content.encode(out);
    out.put_time(version.mtime);
    out.put_u8(version.closure as u8);
    out.put_varint(version.bases.len() as u64);
    version.bases.iter().for_each(|base| out.put_dot(*base));
}

pub(super) fn get_version(reader: &mut Reader<'_>) -> Result<Version> {
    let content = Content::decode(reader)?;
    let mtime = reader.time()?;
    let closure = match reader.u8()? {
        0 => Closure::CrashRecovered,
        1 => Closure::IdleFlush,
        2 => Closure::Close,
        3 => Closure::SyncAndClose,
        value => return Err(DecodeError::Unknown { what: "a closure class", value: u64::from(value) }),
    };
    let count = reader.count()?;
    let bases = (0..count).map(|_| reader.dot()).collect::<Result<Vec<_>>>()?;
    Ok(Version { content, mtime, closure, bases })
}

pub(super) fn put_place(out: &mut Vec<u8>, place: &Place) {
    out.put_u64(place.hlc.0);
    out.put_bytes(&place.author.0);
    out.put_dot(place.parent.0);
    out.put_blob(&place.name);
}

pub(super) fn get_place(reader: &mut Reader<'_>) -> Result<Place> {
    Ok(Place {
        hlc: Hlc(reader.u64()?),
        author: AuthorId(reader.array()?),
        parent: DirId(reader.dot()?),
        name: reader.blob()?.to_vec(),
    })
}
