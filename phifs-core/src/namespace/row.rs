//! The rows of the replicated tables, and their canonical bytes.
//!
//! A row starts with a format version, then lists the authors that its dots name (its own key's author is number 0 and
//! is not repeated), then the largest clock reading in it, against which the others are written as differences.
//! So a row written by one operation costs some ten bytes of causality, not forty for each field.

use smallvec::{SmallVec, smallvec};

use crate::codec::{DecodeError, Encode, Reader, Result};
use crate::id::{AuthorId, DirId, Dot, InodeId};
use crate::time::{Hlc, Timestamp};
use crate::volume::FileKind;

use super::privilege::{self, Grant};
use super::register::{Entry, Register};
pub use super::version::{Closure, Evidence, Version};
pub(crate) use super::version::{get_version, put_version};

const VERSION: u8 = 1;

/// The longest name of a file or an extended attribute, as for Linux.
pub const NAME_BYTES_MAX: usize = 255;

/// What an inode is for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Birth {
    pub kind: FileKind,
    pub rdev: u32,
    pub time: Timestamp,
    /// Where a symlink points; empty for everything else.
    pub target: Vec<u8>,
    /// Whether who made it was promised that nobody else did (O_EXCL).
    pub exclusive: bool,
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

/// Everything about an inode but its names, extended attributes and bytes. Directories use `alive`, files `versions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InodeRow {
    pub birth: Register<Birth>,
    pub alive: Register<()>,
    pub mode: Register<Grant>,
    pub owner: Register<Owner>,
    pub mtime: Register<Timestamp>,
    /// The last change of anything: ctime.
    pub touched: Register<Timestamp>,
    pub versions: Register<Version>,
}

/// When something was put where it is, and by whom: the order in which the later of two wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    pub hlc: Hlc,
    pub author: AuthorId,
}

/// Where a name is and what it means. What it means is in every place, though a link never changes it: so a row is
/// nothing but the join of its dots, whatever an author claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub inode: InodeId,
    pub kind: FileKind,
    /// The stamp of the operation that chose the place; re-asserting it keeps the old one.
    pub since: Stamp,
    pub parent: DirId,
    pub name: Vec<u8>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkRow {
    pub places: Register<Place>,
}

impl LinkRow {
    /// The one place that the link is at: the latest.
    pub fn place(&self) -> Option<&Place> {
        self.places.entries().iter().map(|entry| &entry.value).max_by_key(|place| place.since)
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
        let mut dots: Vec<Dot> = self.stamps().map(|(dot, _)| dot).collect();
        dots.sort_unstable();
        dots.dedup();
        dots
    }

    /// The dot and the clock reading of every entry, field by field.
    fn stamps(&self) -> impl Iterator<Item = (Dot, Hlc)> + Clone + '_ {
        (self.birth.stamps())
            .chain(self.alive.stamps())
            .chain(self.mode.stamps())
            .chain(self.owner.stamps())
            .chain(self.mtime.stamps())
            .chain(self.touched.stamps())
            .chain(self.versions.stamps())
    }

    pub fn encode(&self, key: Dot) -> Vec<u8> {
        let mut row = RowWriter::new(key, self.stamps());
        row.register(&self.birth, |out, entry| put_birth(out, &entry.value));
        row.register(&self.alive, |_, _| {});
        row.register(&self.mode, |out, entry| put_grant(out, &entry.value));
        row.register(&self.owner, |out, entry| put_owner(out, &entry.value));
        row.register(&self.mtime, |out, entry| out.put_time(entry.value));
        row.register(&self.touched, |out, entry| out.put_time(entry.value));
        row.register(&self.versions, |out, entry| put_version(out, &entry.value));
        row.out
    }

    pub fn decode(key: Dot, bytes: &[u8]) -> Result<Self> {
        let mut row = RowReader::new("an inode", key, bytes)?;
        let decoded = Self {
            birth: row.register(|reader, _| get_birth(reader))?,
            alive: row.register(|_, _| Ok(()))?,
            mode: row.register(|reader, _| get_grant(reader))?,
            owner: row.register(|reader, _| get_owner(reader))?,
            mtime: row.register(|reader, _| reader.time())?,
            touched: row.register(|reader, _| reader.time())?,
            versions: row.register(|reader, _| get_version(reader))?,
        };
        row.finish()?;
        Ok(decoded)
    }
}

impl LinkRow {
    pub fn encode(&self, key: Dot) -> Vec<u8> {
        let mut row = RowWriter::new(key, self.places.stamps());
        row.register(&self.places, |out, entry| put_place(out, key, entry));
        row.out
    }

    pub fn decode(key: Dot, bytes: &[u8]) -> Result<Self> {
        let mut row = RowReader::new("a link", key, bytes)?;
        let places = row.register(|reader, own| get_place(reader, key, own))?;
        row.finish()?;
        Ok(Self { places })
    }
}

pub fn encode_xattr(key: Dot, xattr: &XattrRow) -> Vec<u8> {
    let mut row = RowWriter::new(key, xattr.stamps());
    row.register(xattr, |out, entry| out.put_blob(&entry.value));
    row.out
}

pub fn decode_xattr(key: Dot, bytes: &[u8]) -> Result<XattrRow> {
    let mut row = RowReader::new("an extended attribute", key, bytes)?;
    let xattr = row.register(|reader, _| Ok(reader.blob()?.to_vec()))?;
    row.finish()?;
    Ok(xattr)
}

/// The authors that a row names. Nearly always it is the key's alone, or one more.
type Authors = SmallVec<[AuthorId; 2]>;

struct RowWriter {
    out: Vec<u8>,
    authors: Authors,
    key_n: u64,
    newest: Hlc,
}

impl RowWriter {
    fn new(key: Dot, stamps: impl Iterator<Item = (Dot, Hlc)>) -> Self {
        let mut authors: Authors = smallvec![key.author];
        let mut newest = Hlc::default();
        for (dot, hlc) in stamps {
            newest = newest.max(hlc);
            if !authors.contains(&dot.author) {
                authors.push(dot.author);
            }
        }
        authors[1..].sort_unstable();
        let mut out = Vec::with_capacity(128);
        out.put_u8(VERSION);
        out.put_varint(authors.len() as u64 - 1);
        authors[1..].iter().for_each(|author| out.put_bytes(&author.0));
        out.put_u64(newest.0);
        Self { out, authors, key_n: key.n, newest }
    }

    fn register<V>(&mut self, register: &Register<V>, put: impl Fn(&mut Vec<u8>, &Entry<V>)) {
        self.out.put_varint(register.entries().len() as u64);
        for entry in register.entries() {
            let author = self.authors.iter().position(|author| *author == entry.dot.author);
            self.out.put_varint(author.expect("every author of the row is listed") as u64);
            self.out.put_signed(entry.dot.n.wrapping_sub(self.key_n) as i64);
            self.out.put_varint(self.newest.0 - entry.hlc.0);
            put(&mut self.out, entry);
        }
    }
}

struct RowReader<'a> {
    reader: Reader<'a>,
    authors: Authors,
    /// Which of the authors but the first have been named; all must be.
    named: SmallVec<[bool; 8]>,
    key_n: u64,
    newest: Hlc,
    /// The largest clock reading found; `newest` must be it.
    found: Hlc,
}

impl<'a> RowReader<'a> {
    fn new(what: &'static str, key: Dot, bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.format(what, VERSION)?;
        let others = reader.count()?;
        let mut authors: Authors = smallvec![key.author];
        for at in 0..others {
            let author = AuthorId(reader.array()?);
            if author == key.author || at > 0 && authors[at] >= author {
                return Err(DecodeError::NotCanonical("a list of authors"));
            }
            authors.push(author);
        }
        let newest = Hlc(reader.u64()?);
        let named = smallvec![false; others];
        Ok(Self { reader, authors, named, key_n: key.n, newest, found: Hlc::default() })
    }

    fn register<V>(&mut self, get: impl Fn(&mut Reader<'a>, Stamp) -> Result<V>) -> Result<Register<V>> {
        let count = self.reader.count()?;
        let mut register = Register::default();
        let mut before = None;
        for _ in 0..count {
            let at = self.reader.varint()? as usize;
            let author = *self.authors.get(at).ok_or(DecodeError::NotCanonical("an author number"))?;
            if at > 0 {
                self.named[at - 1] = true;
            }
            let n = self.key_n.wrapping_add(self.reader.signed()? as u64);
            let dot = Dot { author, n };
            if before.is_some_and(|before| before >= dot) {
                return Err(DecodeError::NotCanonical("the order of dots"));
            }
            before = Some(dot);
            let age = self.reader.varint()?;
            let hlc = Hlc(self.newest.0.checked_sub(age).ok_or(DecodeError::NotCanonical("a clock reading"))?);
            self.found = self.found.max(hlc);
            let value = get(&mut self.reader, Stamp { hlc, author })?;
            register.push(Entry { dot, hlc, value });
        }
        Ok(register)
    }

    fn finish(self) -> Result<()> {
        if self.named.contains(&false) {
            return Err(DecodeError::NotCanonical("a list of authors"));
        }
        if self.found != self.newest {
            return Err(DecodeError::NotCanonical("a clock reading"));
        }
        self.reader.finish()
    }
}

pub(crate) fn kind_to_byte(kind: FileKind) -> u8 {
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

/// A bit of a birth's first byte above the kind of inode.
const BIRTH_IS_EXCLUSIVE: u8 = 0x10;

pub(super) fn put_birth(out: &mut Vec<u8>, birth: &Birth) {
    out.put_u8(kind_to_byte(birth.kind) | if birth.exclusive { BIRTH_IS_EXCLUSIVE } else { 0 });
    out.put_varint(u64::from(birth.rdev));
    out.put_time(birth.time);
    out.put_blob(&birth.target);
}

pub(super) fn get_birth(reader: &mut Reader<'_>) -> Result<Birth> {
    let first = reader.u8()?;
    Ok(Birth {
        kind: kind_from_byte(first & !BIRTH_IS_EXCLUSIVE)?,
        exclusive: first & BIRTH_IS_EXCLUSIVE != 0,
        rdev: reader.varint_u32()?,
        time: reader.time()?,
        target: reader.blob()?.to_vec(),
    })
}

pub(crate) fn put_mode(out: &mut Vec<u8>, mode: &Mode) {
    out.put_varint(u64::from(mode.permissions));
    out.put_blob(&mode.acl);
}

pub(crate) fn get_mode(reader: &mut Reader<'_>) -> Result<Mode> {
    Ok(Mode { permissions: permissions(reader.varint()?)?, acl: reader.blob()?.to_vec() })
}

fn permissions(value: u64) -> Result<u16> {
    let permissions = u16::try_from(value).ok().filter(|permissions| *permissions <= 0o7777);
    permissions.ok_or(DecodeError::Unknown { what: "permissions", value })
}

/// A bit of a mode's number above the permissions: what its set-id bits are for comes behind it.
const MODE_IS_FOR: u64 = 0x1000;

pub(super) fn put_grant(out: &mut Vec<u8>, grant: &Grant) {
    let Grant { mode, seen } = grant;
    out.put_varint(u64::from(mode.permissions) | if seen.is_empty() { 0 } else { MODE_IS_FOR });
    out.put_blob(&mode.acl);
    if !seen.is_empty() {
        privilege::put_seen(out, seen);
    }
}

pub(super) fn get_grant(reader: &mut Reader<'_>) -> Result<Grant> {
    let first = reader.varint()?;
    let mode = Mode { permissions: permissions(first & !MODE_IS_FOR)?, acl: reader.blob()?.to_vec() };
    let seen = if first & MODE_IS_FOR != 0 { privilege::get_seen(reader)? } else { Vec::new() };
    if !seen.is_empty() && !privilege::has_set_id(&mode) {
        return Err(DecodeError::NotCanonical("a mode"));
    }
    Ok(Grant { mode, seen })
}

pub(crate) fn put_owner(out: &mut Vec<u8>, owner: &Owner) {
    out.put_varint(u64::from(owner.uid));
    out.put_varint(u64::from(owner.gid));
}

pub(crate) fn get_owner(reader: &mut Reader<'_>) -> Result<Owner> {
    Ok(Owner { uid: reader.varint_u32()?, gid: reader.varint_u32()? })
}

/// Bits of a place's first byte above the kind of inode.
const PLACE_IS_OLDER: u8 = 0x10;
const PLACE_OF_OTHER_INODE: u8 = 0x20;

/// The link's own inode and the operation's own stamp, which are the rule, are not written.
fn put_place(out: &mut Vec<u8>, key: Dot, entry: &Entry<Place>) {
    let place = &entry.value;
    let is_older = place.since != Stamp { hlc: entry.hlc, author: entry.dot.author };
    let of_other = place.inode.0 != key;
    let bits = if is_older { PLACE_IS_OLDER } else { 0 } | if of_other { PLACE_OF_OTHER_INODE } else { 0 };
    out.put_u8(kind_to_byte(place.kind) | bits);
    if is_older {
        put_stamp(out, place.since);
    }
    if of_other {
        out.put_dot(place.inode.0);
    }
    out.put_dot(place.parent.0);
    out.put_blob(&place.name);
}

fn get_place(reader: &mut Reader<'_>, key: Dot, own: Stamp) -> Result<Place> {
    let first = reader.u8()?;
    let kind = get_link_kind(first & !(PLACE_IS_OLDER | PLACE_OF_OTHER_INODE))?;
    let since = if first & PLACE_IS_OLDER != 0 { get_stamp(reader)? } else { own };
    let inode = InodeId(if first & PLACE_OF_OTHER_INODE != 0 { reader.dot()? } else { key });
    if (first & PLACE_IS_OLDER != 0 && since == own) || (first & PLACE_OF_OTHER_INODE != 0 && inode.0 == key) {
        return Err(DecodeError::NotCanonical("a place"));
    }
    Ok(Place { inode, kind, since, parent: DirId(reader.dot()?), name: get_name(reader)? })
}

fn put_stamp(out: &mut Vec<u8>, stamp: Stamp) {
    out.put_u64(stamp.hlc.0);
    out.put_bytes(&stamp.author.0);
}

fn get_stamp(reader: &mut Reader<'_>) -> Result<Stamp> {
    Ok(Stamp { hlc: Hlc(reader.u64()?), author: AuthorId(reader.array()?) })
}

/// What a link may lead to: a directory has a position instead.
pub(super) fn get_link_kind(byte: u8) -> Result<FileKind> {
    match kind_from_byte(byte)? {
        FileKind::Directory => Err(DecodeError::Unknown { what: "a kind of link", value: u64::from(byte) }),
        kind => Ok(kind),
    }
}

/// A name as a directory can hold it: what no system call could have made must not come from a peer either.
pub(super) fn get_name(reader: &mut Reader<'_>) -> Result<Vec<u8>> {
    let name = reader.blob()?;
    let bad = name.is_empty() || name.len() > NAME_BYTES_MAX || name == b"." || name == b"..";
    if bad || name.contains(&b'/') || name.contains(&0) {
        return Err(DecodeError::NotCanonical("a file name"));
    }
    Ok(name.to_vec())
}

/// The name of an extended attribute.
pub(super) fn check_xattr_name(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(&0) {
        return Err(DecodeError::NotCanonical("the name of an extended attribute"));
    }
    Ok(())
}
