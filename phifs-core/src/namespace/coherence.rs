//! Which of several concurrent states of a file is shown: the one with the best coherence score.
//!
//! A version that was published by somebody who saw another one replaces that; the score decides among those that did
//! not see each other. Its terms are compared one after the other, in integers, and each is a function of replicated
//! records alone: so all nodes show the same, and what one has at hand, or heard first, plays no part. The first terms
//! are about defects; then comes who did more, and was less behind; usually the clock decides.
//!
//! | term | what | better |
//! | --- | --- | --- |
//! | A | admissible: its author is trusted | 1 |
//! | K | closure: how it came to be published | 3 synced and closed, 2 closed, 1 still open, 0 found after a crash |
//! | V | validity: whether the bytes are what they seem to be | 2 yes, 1 nothing tells, 0 not any more |
//! | E | extant: the file did not become empty, or nothing but zeroes | 1 |
//! | P | phase: whether its author had heard of the others lately | 7 within seconds .. 0 hours behind |
//! | D | depth: sessions of work, as a power of two | 7 |
//! | H | clock reading | later |
//! | T | hash of the record: none else decides | larger |
//!
//! A volume that prefers recency does without P and D.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::codec::Encode;
use crate::content::Content;
use crate::id::{DirId, Dot, InodeId};
use crate::store::StoreError;
use crate::time::Hlc;
use crate::volume::FileKind;

use super::derive::Child;
use super::register::Entry;
use super::row::{Birth, InodeRow, put_birth};
use super::tables::{Rows, Tables};
use super::version::{Closure, LAG_MAX, Validity, Version, put_version};
use super::view::{self, mode_of};

/// What a volume wants to be shown of concurrent versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// What is whole, and took more work by somebody who was in touch.
    #[default]
    Coherence,
    /// What is whole, and newest.
    Recency,
}

/// How good a candidate is. The fields are in the order in which they are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score {
    /// Nobody distrusts an author yet, so this is always so.
    pub admissible: bool,
    pub closure: Closure,
    pub validity: Validity,
    pub extant: bool,
    /// Nothing, for all alike, where the volume prefers recency; and so for the depth.
    pub phase: Option<u8>,
    pub depth: Option<u8>,
    pub hlc: Hlc,
    pub tie: Tie,
}

/// The hash of a record. People are shown the first 52 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tie([u8; 32]);

impl Tie {
    pub fn bits(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(first) >> 12
    }
}

/// One term of a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// As in the table above.
    pub letter: char,
    pub name: &'static str,
    pub value: u64,
}

impl Score {
    /// The terms that count, in the order in which they are compared.
    pub fn terms(&self) -> impl Iterator<Item = Term> {
        [
            ('A', "admissible", Some(u64::from(self.admissible))),
            ('K', "closure", Some(self.closure as u64)),
            ('V', "validity", Some(self.validity as u64)),
            ('E', "extant", Some(u64::from(self.extant))),
            ('P', "phase", self.phase.map(u64::from)),
            ('D', "depth", self.depth.map(u64::from)),
            ('H', "clock", Some(self.hlc.0)),
            ('T', "tie", Some(self.tie.bits())),
        ]
        .into_iter()
        .filter_map(|(letter, name, value)| value.map(|value| Term { letter, name, value }))
    }

    /// The first term in which this differs from another score: the one that decides between them.
    pub fn deciding(&self, other: &Self) -> Option<Term> {
        self.terms().zip(other.terms()).find(|(own, other)| own.value != other.value).map(|(own, _)| own)
    }
}

/// One of several concurrent states.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    pub inode: InodeId,
    pub dot: Dot,
    pub hlc: Hlc,
    pub state: State<'a>,
}

#[derive(Clone, Copy, Debug)]
pub enum State<'a> {
    Version(&'a Version),
    /// Of a file that was never written, and of what never is.
    Birth(&'a Birth),
}

/// The states of an inode.
pub fn candidates(inode: InodeId, row: &InodeRow) -> impl Iterator<Item = Candidate<'_>> {
    let of = move |dot, hlc, state| Candidate { inode, dot, hlc, state };
    let versions = row.versions.entries().iter();
    let versions = versions.map(move |entry| of(entry.dot, entry.hlc, State::Version(&entry.value)));
    let born = if row.versions.is_empty() { row.birth.latest() } else { None };
    versions.chain(born.map(move |entry| of(entry.dot, entry.hlc, State::Birth(&entry.value))))
}

/// What the score goes by, beside the clock.
struct Facts {
    closure: Closure,
    validity: Validity,
    extant: bool,
    phase: u8,
    sessions: u32,
}

impl Candidate<'_> {
    fn facts(&self) -> Facts {
        match self.state {
            State::Version(version) => Facts {
                closure: version.closure,
                validity: version.evidence.validity,
                extant: !version.evidence.collapsed,
                phase: LAG_MAX - version.evidence.lag,
                sessions: version.evidence.sessions,
            },
            // Nobody has closed it with anything in it, so all that was counts more.
            State::Birth(Birth { kind: FileKind::File, .. }) => {
                let (closure, validity) = (Closure::IdleFlush, Validity::Opaque);
                Facts { closure, validity, extant: true, phase: LAG_MAX, sessions: 0 }
            }
            State::Birth(_) => {
                let (closure, validity) = (Closure::Close, Validity::Opaque);
                Facts { closure, validity, extant: true, phase: LAG_MAX, sessions: 1 }
            }
        }
    }

    fn tie(&self) -> Tie {
        let mut record = Vec::with_capacity(128);
        record.put_dot(self.dot);
        record.put_hlc(self.hlc);
        match self.state {
            State::Version(version) => put_version(&mut record, version),
            State::Birth(birth) => put_birth(&mut record, birth),
        }
        Tie(*blake3::hash(&record).as_bytes())
    }
}

/// The candidates with their scores, the best first. Equal scores, as two inodes have that were written alike by one
/// operation, leave it to the smaller inode.
pub fn rank<'a>(
    candidates: impl IntoIterator<Item = Candidate<'a>>,
    preference: Preference,
) -> Vec<(Score, Candidate<'a>)> {
    let candidates: Vec<_> = candidates.into_iter().map(|candidate| (candidate.facts(), candidate)).collect();
    let common = candidates.iter().map(|(facts, _)| facts.sessions).min().unwrap_or(0);
    let score = |(facts, candidate): (Facts, Candidate<'a>)| {
        let depth = (1 + u64::from(facts.sessions - common)).ilog2().min(7) as u8;
        let coherence = preference == Preference::Coherence;
        let score = Score {
            admissible: true,
            closure: facts.closure,
            validity: facts.validity,
            extant: facts.extant,
            phase: coherence.then_some(facts.phase),
            depth: coherence.then_some(depth),
            hlc: candidate.hlc,
            tie: candidate.tie(),
        };
        (score, candidate)
    };
    let mut ranked: Vec<_> = candidates.into_iter().map(score).collect();
    ranked.sort_by_key(|(score, candidate)| (Reverse(*score), candidate.inode));
    ranked
}

/// The version of a file that is shown.
pub fn best(row: &InodeRow, preference: Preference) -> Option<&Entry<Version>> {
    // Nearly always there is but one, and nothing to compare it with.
    if let [] | [_] = row.versions.entries() {
        return row.versions.entries().first();
    }
    // Which inode it is plays no part among the versions of one.
    let ranked = rank(candidates(DirId::ROOT.inode(), row), preference);
    ranked.first().and_then(|(_, best)| row.versions.get(best.dot))
}

/// The meaning of a name that is shown, of all that it has: a directory; else the file whose best state is best. Files
/// that look the same count as one, whose link is the smallest. `children` are in order.
pub fn shown<T: Tables + ?Sized>(tables: &T, children: &[Child]) -> Result<Option<Child>, StoreError> {
    let links = match children {
        [] => return Ok(None),
        [only] => return Ok(Some(*only)),
        [dir @ Child::Dir(_), ..] => return Ok(Some(*dir)),
        links => links,
    };
    let rows = rows_of(tables, links)?;
    let ranked = rank(rows.iter().flat_map(|(inode, row)| candidates(*inode, row)), tables.preference());
    let Some(best) = ranked.first().map(|(_, best)| best.inode) else { return Ok(links.first().copied()) };
    for link in links {
        if link.inode() == best || looks_alike(tables, (link.inode(), &rows), best)? {
            return Ok(Some(*link));
        }
    }
    Ok(None)
}

/// Whether several meanings of a name are no conflict, as they are files that look the same.
pub fn coalesce<T: Tables + ?Sized>(tables: &T, children: &[Child]) -> Result<bool, StoreError> {
    let Some(first) = children.first() else { return Ok(true) };
    if children.iter().any(|child| matches!(child, Child::Dir(_))) {
        return Ok(children.len() == 1);
    }
    let rows = rows_of(tables, children)?;
    for child in &children[1..] {
        if !looks_alike(tables, (child.inode(), &rows), first.inode())? {
            return Ok(false);
        }
    }
    Ok(true)
}

type RowsOf = BTreeMap<InodeId, InodeRow>;

fn rows_of<T: Tables + ?Sized>(tables: &T, links: &[Child]) -> Result<RowsOf, StoreError> {
    links.iter().map(|link| Ok((link.inode(), tables.inode(link.inode())?.unwrap_or_default()))).collect()
}

/// Whether two inodes cannot be told apart but by their times. One with concurrent versions is like no other.
fn looks_alike<T: Tables + ?Sized>(tables: &T, (a, rows): (InodeId, &RowsOf), b: InodeId) -> Result<bool, StoreError> {
    if a == b {
        return Ok(true);
    }
    let looks = |id: InodeId| {
        let row = rows.get(&id)?;
        let content = match row.versions.entries() {
            [] => Content::Empty,
            [version] => version.value.content,
            _ => return None,
        };
        let birth = row.birth.latest().map(|entry| (entry.value.kind, entry.value.rdev, &entry.value.target));
        Some((birth, content, mode_of(row), row.owner.latest().map(|entry| entry.value)))
    };
    let Some(pair) = looks(a).zip(looks(b)) else { return Ok(false) };
    if pair.0 != pair.1 {
        return Ok(false);
    }
    Ok(view::xattrs(tables, a)? == view::xattrs(tables, b)?)
}
