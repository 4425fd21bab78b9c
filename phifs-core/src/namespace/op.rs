//! Operations: what one call changed, as effects that any replica can apply.
//!
//! An effect adds values under the operation's dot and names the dots that it has seen and replaces, so applying is a
//! pure function of the row and commutes with everything concurrent. The author and number of an operation are not in
//! its bytes: the journal record and the sealed group around it say them.

use crate::codec::{DecodeError, Encode, Reader, Result};
use crate::id::{AuthorId, DirId, Dot, InodeId, LinkId};
use crate::time::{Hlc, Timestamp};
use crate::volume::FileKind;

use super::privilege::{self, Grant};
use super::row::{self, Birth, Owner, Stamp, Version};

const VERSION: u8 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    pub dot: Dot,
    pub hlc: Hlc,
    /// Wall time of the author.
    pub time: Timestamp,
    pub effects: Vec<Effect>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Inode(InodeEffect),
    Link(LinkEffect),
    /// A directory is created or moved.
    ///
    /// `folds` are earlier moves of it, dropped for good. They no longer hold against moves that are concurrent with
    /// this one, so an author drops only what lies before the last move that everybody has seen, and never while a
    /// later move is skipped for closing a cycle with them.
    Move {
        dir: DirId,
        parent: DirId,
        name: Vec<u8>,
        folds: Vec<MoveId>,
    },
    /// `None` removes the attribute.
    Xattr {
        inode: InodeId,
        name: Vec<u8>,
        value: Option<Vec<u8>>,
        drops: Vec<Dot>,
    },
    /// Forgets an inode: what the author saw of its rows. Made only once everybody has seen that nothing names it,
    /// as an edit concurrent with this would bring back a name without attributes, or a directory without position.
    Purge {
        inode: InodeId,
        dots: Vec<Dot>,
        folds: Vec<MoveId>,
    },
}

/// Names one entry of the moves of a directory, and puts it into the order of all moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MoveId {
    pub hlc: Hlc,
    pub dot: Dot,
}

/// A change of an inode's own row: new values, and the replaced dots of each field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InodeEffect {
    pub inode: InodeId,
    pub birth: Option<Birth>,
    pub alive: bool,
    pub mode: Option<Grant>,
    pub owner: Option<Owner>,
    pub mtime: Option<Timestamp>,
    /// The new ctime.
    pub touched: Option<Timestamp>,
    /// A version of the bytes; small ones travel along.
    pub version: Option<(Version, Option<Vec<u8>>)>,
    pub drops: Vec<(Field, Dot)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Field {
    Birth = 0,
    Alive = 1,
    Mode = 2,
    Owner = 3,
    Mtime = 4,
    Touched = 5,
    Version = 6,
}

impl Field {
    const ALL: [Self; 7] =
        [Self::Birth, Self::Alive, Self::Mode, Self::Owner, Self::Mtime, Self::Touched, Self::Version];
}

/// A name comes to be somewhere, stays alive, or (without a place) goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEffect {
    pub link: LinkId,
    pub inode: InodeId,
    pub kind: FileKind,
    pub place: Option<PlaceEffect>,
    pub drops: Vec<Dot>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceEffect {
    /// Set when an old place is re-asserted: it keeps its stamp, so it never overrides a rename.
    pub since: Option<Stamp>,
    pub parent: DirId,
    pub name: Vec<u8>,
}

impl InodeEffect {
    pub fn new(inode: InodeId) -> Self {
        Self {
            inode,
            birth: None,
            alive: false,
            mode: None,
            owner: None,
            mtime: None,
            touched: None,
            version: None,
            drops: Vec::new(),
        }
    }
}

impl Op {
    /// Everything but the dot.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer { out: Vec::with_capacity(160), authors: vec![self.dot.author] };
        writer.out.put_varint(self.effects.len() as u64);
        self.effects.iter().for_each(|effect| writer.effect(effect));
        let mut out = Vec::with_capacity(writer.out.len() + 32);
        out.put_u8(VERSION);
        out.put_u64(self.hlc.0);
        out.put_time(self.time);
        out.put_varint(writer.authors.len() as u64 - 1);
        writer.authors[1..].iter().for_each(|author| out.put_bytes(&author.0));
        out.put_bytes(&writer.out);
        out
    }

    pub fn decode(dot: Dot, bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.format("an operation", VERSION)?;
        let hlc = Hlc(reader.u64()?);
        let time = reader.time()?;
        let mut authors = vec![dot.author];
        for _ in 0..reader.count()? {
            authors.push(AuthorId(reader.array()?));
        }
        let count = reader.count()?;
        let mut body = Body { reader, authors, named: 1 };
        let effects = (0..count).map(|_| body.effect()).collect::<Result<Vec<_>>>()?;
        body.finish()?;
        Ok(Self { dot, hlc, time, effects })
    }

    /// Whether everything that the operation names is its own or was seen by its author.
    ///
    /// One that drops what its author cannot have seen would apply differently in different orders, so whoever
    /// receives an operation asks this of it, with the context that came along, before applying it. For the same
    /// reason nothing moves into a directory that the operation itself makes.
    pub fn names_only(&self, seen: impl Fn(Dot) -> bool) -> bool {
        let seen = |dot: &Dot| *dot == self.dot || seen(*dot) && (dot.author != self.dot.author || dot.n < self.dot.n);
        let moves = |ids: &[MoveId]| ids.iter().all(|id| seen(&id.dot));
        self.effects.iter().all(|effect| match effect {
            Effect::Inode(effect) => {
                let bases = effect.version.iter().flat_map(|(version, _)| &version.bases);
                let granted = effect.mode.iter().flat_map(|grant| &grant.seen);
                seen(&effect.inode.0) && effect.drops.iter().all(|(_, dot)| seen(dot)) && bases.chain(granted).all(seen)
            }
            Effect::Link(effect) => {
                seen(&effect.link.0)
                    && seen(&effect.inode.0)
                    && effect.place.as_ref().is_none_or(|place| seen(&place.parent.0))
                    && effect.drops.iter().all(seen)
            }
            Effect::Move { dir, parent, folds, .. } => {
                seen(&dir.0) && parent.0 != self.dot && seen(&parent.0) && moves(folds)
            }
            Effect::Xattr { inode, name, value, drops } => {
                let granted = value.as_ref().map_or_else(Vec::new, |value| privilege::seen_by_xattr(name, value));
                seen(&inode.0) && drops.iter().chain(&granted).all(seen)
            }
            Effect::Purge { inode, dots, folds } => seen(&inode.0) && dots.iter().all(seen) && moves(folds),
        })
    }
}

/// Writes dots as a number into the list of authors, and the operation's number.
struct Writer {
    out: Vec<u8>,
    authors: Vec<AuthorId>,
}

impl Writer {
    fn author(&mut self, author: AuthorId) {
        let at = self.authors.iter().position(|known| *known == author).unwrap_or_else(|| {
            self.authors.push(author);
            self.authors.len() - 1
        });
        self.out.put_varint(at as u64);
    }

    fn dot(&mut self, dot: Dot) {
        self.author(dot.author);
        self.out.put_varint(dot.n);
    }

    fn dots(&mut self, dots: &[Dot]) {
        self.out.put_varint(dots.len() as u64);
        dots.iter().for_each(|dot| self.dot(*dot));
    }

    fn move_ids(&mut self, ids: &[MoveId]) {
        self.out.put_varint(ids.len() as u64);
        ids.iter().for_each(|id| self.move_id(*id));
    }

    fn move_id(&mut self, id: MoveId) {
        self.out.put_u64(id.hlc.0);
        self.dot(id.dot);
    }

    fn effect(&mut self, effect: &Effect) {
        match effect {
            Effect::Inode(effect) => {
                self.out.put_u8(1);
                self.inode(effect);
            }
            Effect::Link(effect) => {
                self.out.put_u8(2);
                self.link(effect);
            }
            Effect::Move { dir, parent, name, folds } => {
                self.out.put_u8(3);
                self.dot(dir.0);
                self.dot(parent.0);
                self.out.put_blob(name);
                self.move_ids(folds);
            }
            Effect::Xattr { inode, name, value, drops } => {
                self.out.put_u8(4);
                self.dot(inode.0);
                self.out.put_blob(name);
                self.out.put_u8(u8::from(value.is_some()));
                if let Some(value) = value {
                    self.out.put_blob(value);
                }
                self.dots(drops);
            }
            Effect::Purge { inode, dots, folds } => {
                self.out.put_u8(5);
                self.dot(inode.0);
                self.dots(dots);
                self.move_ids(folds);
            }
        }
    }

    fn inode(&mut self, effect: &InodeEffect) {
        self.dot(effect.inode.0);
        let flags = [
            effect.birth.is_some(),
            effect.alive,
            effect.mode.is_some(),
            effect.owner.is_some(),
            effect.mtime.is_some(),
            effect.touched.is_some(),
            effect.version.is_some(),
        ];
        self.out.put_u8(flags.iter().rev().fold(0, |bits, flag| bits << 1 | u8::from(*flag)));
        if let Some(birth) = &effect.birth {
            row::put_birth(&mut self.out, birth);
        }
        if let Some(mode) = &effect.mode {
            row::put_grant(&mut self.out, mode);
        }
        if let Some(owner) = &effect.owner {
            row::put_owner(&mut self.out, owner);
        }
        if let Some(mtime) = effect.mtime {
            self.out.put_time(mtime);
        }
        if let Some(touched) = effect.touched {
            self.out.put_time(touched);
        }
        if let Some((version, inline)) = &effect.version {
            row::put_version(&mut self.out, version);
            self.out.put_u8(u8::from(inline.is_some()));
            if let Some(inline) = inline {
                self.out.put_blob(inline);
            }
        }
        self.out.put_varint(effect.drops.len() as u64);
        for (field, dot) in &effect.drops {
            self.out.put_u8(*field as u8);
            self.dot(*dot);
        }
    }

    fn link(&mut self, effect: &LinkEffect) {
        self.dot(effect.link.0);
        self.dot(effect.inode.0);
        self.out.put_u8(row::kind_to_byte(effect.kind));
        match &effect.place {
            None => self.out.put_u8(0),
            Some(place) => {
                self.out.put_u8(if place.since.is_some() { 2 } else { 1 });
                if let Some(since) = place.since {
                    self.out.put_u64(since.hlc.0);
                    self.author(since.author);
                }
                self.dot(place.parent.0);
                self.out.put_blob(&place.name);
            }
        }
        self.dots(&effect.drops);
    }
}

struct Body<'a> {
    reader: Reader<'a>,
    authors: Vec<AuthorId>,
    /// How many of the authors have been named; they are listed in the order in which they are.
    named: usize,
}

impl Body<'_> {
    fn author(&mut self) -> Result<AuthorId> {
        let at = self.reader.varint()? as usize;
        if at > self.named {
            return Err(DecodeError::NotCanonical("an author number"));
        }
        let author = *self.authors.get(at).ok_or(DecodeError::NotCanonical("an author number"))?;
        self.named = self.named.max(at + 1);
        Ok(author)
    }

    fn finish(mut self) -> Result<()> {
        let listed = self.authors.len();
        self.authors.sort_unstable();
        self.authors.dedup();
        if self.authors.len() != listed || self.named != listed {
            return Err(DecodeError::NotCanonical("a list of authors"));
        }
        self.reader.finish()
    }

    fn dot(&mut self) -> Result<Dot> {
        Ok(Dot { author: self.author()?, n: self.reader.varint()? })
    }

    fn dots(&mut self) -> Result<Vec<Dot>> {
        let count = self.reader.count()?;
        (0..count).map(|_| self.dot()).collect()
    }

    fn move_id(&mut self) -> Result<MoveId> {
        Ok(MoveId { hlc: Hlc(self.reader.u64()?), dot: self.dot()? })
    }

    fn move_ids(&mut self) -> Result<Vec<MoveId>> {
        let count = self.reader.count()?;
        (0..count).map(|_| self.move_id()).collect()
    }

    fn flag(&mut self) -> Result<bool> {
        match self.reader.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::Unknown { what: "a flag", value: u64::from(value) }),
        }
    }

    fn effect(&mut self) -> Result<Effect> {
        Ok(match self.reader.u8()? {
            1 => Effect::Inode(self.inode()?),
            2 => Effect::Link(self.link()?),
            3 => {
                let dir = DirId(self.dot()?);
                if dir == DirId::ROOT {
                    return Err(DecodeError::NotCanonical("a move of the root directory"));
                }
                let (parent, name) = (DirId(self.dot()?), row::get_name(&mut self.reader)?);
                Effect::Move { dir, parent, name, folds: self.move_ids()? }
            }
            4 => {
                let (inode, name) = (InodeId(self.dot()?), self.reader.blob()?.to_vec());
                row::check_xattr_name(&name)?;
                let value = if self.flag()? { Some(self.reader.blob()?.to_vec()) } else { None };
                Effect::Xattr { inode, name, value, drops: self.dots()? }
            }
            5 => Effect::Purge { inode: InodeId(self.dot()?), dots: self.dots()?, folds: self.move_ids()? },
            value => return Err(DecodeError::Unknown { what: "an effect", value: u64::from(value) }),
        })
    }

    fn inode(&mut self) -> Result<InodeEffect> {
        let inode = InodeId(self.dot()?);
        let flags = self.reader.u8()?;
        let has = |field: Field| flags & (1 << field as u8) != 0;
        if flags & 0x80 != 0 {
            return Err(DecodeError::Unknown { what: "inode fields", value: u64::from(flags) });
        }
        let reader = &mut self.reader;
        let birth = if has(Field::Birth) { Some(row::get_birth(reader)?) } else { None };
        let mode = if has(Field::Mode) { Some(row::get_grant(reader)?) } else { None };
        let owner = if has(Field::Owner) { Some(row::get_owner(reader)?) } else { None };
        let mtime = if has(Field::Mtime) { Some(reader.time()?) } else { None };
        let touched = if has(Field::Touched) { Some(reader.time()?) } else { None };
        let version = if has(Field::Version) {
            let version = row::get_version(reader)?;
            let inline = if self.flag()? { Some(self.reader.blob()?.to_vec()) } else { None };
            Some((version, inline))
        } else {
            None
        };
        let count = self.reader.count()?;
        let mut drops = Vec::new();
        for _ in 0..count {
            let field = self.reader.u8()?;
            let unknown = DecodeError::Unknown { what: "a field", value: u64::from(field) };
            drops.push((*Field::ALL.get(usize::from(field)).ok_or(unknown)?, self.dot()?));
        }
        let alive = has(Field::Alive);
        Ok(InodeEffect { inode, birth, alive, mode, owner, mtime, touched, version, drops })
    }

    fn link(&mut self) -> Result<LinkEffect> {
        let link = LinkId(self.dot()?);
        let inode = InodeId(self.dot()?);
        let kind = row::get_link_kind(self.reader.u8()?)?;
        let place = match self.reader.u8()? {
            0 => None,
            has @ (1 | 2) => {
                let since = match has {
                    1 => None,
                    _ => Some(Stamp { hlc: Hlc(self.reader.u64()?), author: self.author()? }),
                };
                Some(PlaceEffect { since, parent: DirId(self.dot()?), name: row::get_name(&mut self.reader)? })
            }
            value => return Err(DecodeError::Unknown { what: "a place", value: u64::from(value) }),
        };
        Ok(LinkEffect { link, inode, kind, place, drops: self.dots()? })
    }
}
