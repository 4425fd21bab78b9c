//! Names that people have to decide about: what each of those who changed one meant by it, and what is shown until then.

use std::collections::BTreeSet;

use crate::content::Content;
use crate::id::{DirId, Dot, InodeId, LinkId};
use crate::store::StoreError;
use crate::time::Hlc;
use crate::volume::FileKind;

use super::coherence::{self, Candidate, Score, State};
use super::derive::{self, Child, child_key};
use super::row::{InodeRow, Version};
use super::tables::{Rows, Table, Tables};
use super::union;
use super::view;

type Result<T> = std::result::Result<T, StoreError>;

/// What the matter is with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Matter {
    /// Several versions of one file (row 6 of the table of conflicts).
    Content,
    /// Several files of one name (rows 1, 4, 5, 13 and 16).
    Name,
    /// A file that has the name of a directory (rows 2 and 29).
    Type,
}

impl Matter {
    /// The row of the table of conflicts in the documentation that says what comes of it.
    pub fn row(self, choices: &[Choice]) -> u8 {
        match self {
            Self::Content => 6,
            Self::Name if is_exclusive_broken(choices) => 33,
            Self::Name => 1,
            Self::Type => 2,
        }
    }
}

/// One of the states that a name may mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub link: LinkId,
    pub inode: InodeId,
    pub kind: FileKind,
    pub dot: Dot,
    pub hlc: Hlc,
    pub score: Score,
    /// Nothing where nobody wrote, as with a symlink.
    pub version: Option<Version>,
    /// Where a symlink leads.
    pub target: Vec<u8>,
    /// Whether its maker was promised that nobody else made a file of the name.
    pub exclusive: bool,
}

impl Choice {
    pub fn content(&self) -> Content {
        self.version.as_ref().map_or(Content::Empty, |version| version.content)
    }

    pub fn as_child(&self) -> Child {
        Child::Link { link: self.link, inode: self.inode, kind: self.kind }
    }
}

/// A name with more than one choice, or beside a directory of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub matter: Matter,
    /// The canonical directory of the union that the name is in.
    pub dir: DirId,
    /// As it was given; a file beside a directory is seen by another one.
    pub name: Vec<u8>,
    /// The best first: it is the one that is shown.
    pub choices: Vec<Choice>,
}

/// Whether several were promised to be the only one to make the file.
pub fn is_exclusive_broken(choices: &[Choice]) -> bool {
    let makers: BTreeSet<InodeId> =
        choices.iter().filter(|choice| choice.exclusive).map(|choice| choice.inode).collect();
    makers.len() > 1
}

impl Conflict {
    /// The name by which the file is seen.
    pub fn seen_name(&self) -> Vec<u8> {
        match (self.matter, self.choices.iter().map(|choice| choice.link).min()) {
            (Matter::Type, Some(first)) => view::display_name(&self.name, first),
            _ => self.name.clone(),
        }
    }
}

/// All that files of a name may mean, the best first. Versions and files that look alike are told apart here.
pub fn choices<T: Tables + ?Sized>(tables: &T, links: &[Child]) -> Result<Vec<Choice>> {
    let mut rows: Vec<(LinkId, InodeId, InodeRow)> = Vec::new();
    for child in links {
        if let Child::Link { link, inode, .. } = *child
            && !rows.iter().any(|(_, known, _)| *known == inode)
        {
            rows.push((link, inode, tables.inode(inode)?.unwrap_or_default()));
        }
    }
    let candidates = rows.iter().flat_map(|(_, inode, row)| coherence::candidates(*inode, row));
    let ranked = coherence::rank(candidates, tables.preference());
    let choice = |(score, candidate): (Score, Candidate<'_>)| {
        let (link, inode, row) = rows.iter().find(|(_, inode, _)| *inode == candidate.inode)?;
        let (version, target) = match candidate.state {
            State::Version(version) => (Some(version.clone()), Vec::new()),
            State::Birth(birth) => (None, birth.target.clone()),
        };
        Some(Choice {
            link: *link,
            inode: *inode,
            kind: row.kind(),
            dot: candidate.dot,
            hlc: candidate.hlc,
            score,
            version,
            target,
            exclusive: row.birth.latest().is_some_and(|birth| birth.value.exclusive),
        })
    };
    Ok(ranked.into_iter().filter_map(choice).collect())
}

/// What there is to decide about a name; the name by which a file beside a directory is seen will do as well.
pub fn at<T: Tables + ?Sized>(tables: &T, dir: DirId, name: &[u8]) -> Result<Option<Conflict>> {
    let members = union::members(tables, dir)?;
    let given = match union::meanings(tables, &members, name)? {
        all if all.all().is_empty() => view::name_seen_as(tables, &members, name)?,
        _ => Some(name.to_vec()),
    };
    match given {
        Some(name) => of_name(tables, &members, &name),
        None => Ok(None),
    }
}

fn of_name<T: Tables + ?Sized>(tables: &T, members: &[DirId], name: &[u8]) -> Result<Option<Conflict>> {
    let all = union::meanings(tables, members, name)?;
    let (links, beside) = (all.links(), all.dirs().next().is_some());
    let matter = match links {
        [] => return Ok(None),
        _ if beside => Matter::Type,
        [_] => Matter::Content,
        _ if coherence::coalesce(tables, links)? => return Ok(None),
        _ => Matter::Name,
    };
    let mut choices = choices(tables, links)?;
    if let (Matter::Name, Some(shown)) = (matter, choices.first().map(|best| best.inode)) {
        // A file that has another name is not hidden by losing this one.
        let mut hidden = Vec::new();
        for link in links {
            let here = links.iter().filter(|other| other.inode() == link.inode()).count();
            if derive::links_of(tables, link.inode())?.len() == here {
                hidden.push(link.inode());
            }
        }
        choices.retain(|choice| choice.inode == shown || hidden.contains(&choice.inode));
    }
    if choices.len() < 2 && matter != Matter::Type {
        return Ok(None);
    }
    Ok(Some(Conflict { matter, dir: members[0], name: name.to_vec(), choices }))
}

/// Everything that there is to decide about. The work is proportional to that.
pub fn all<T: Tables + ?Sized>(tables: &T) -> Result<Vec<Conflict>> {
    let mut names: BTreeSet<(DirId, Vec<u8>)> = BTreeSet::new();
    for (key, _) in tables.with_prefix(Table::Conflicts, &[])? {
        for (dir, name) in union::disputed_names(tables, &key)? {
            names.insert((union::members(tables, dir)?[0], name));
        }
    }
    let mut conflicts = Vec::new();
    for (dir, name) in names {
        let members = union::members(tables, dir)?;
        conflicts.extend(of_name(tables, &members, &name)?);
    }
    Ok(conflicts)
}

/// The other files that have one of an inode's names: a write to it that has seen them decides about them.
pub fn rivals<T: Tables + ?Sized>(tables: &T, inode: InodeId) -> Result<Vec<Child>> {
    let mut rivals = Vec::new();
    for (dir, name) in view::names_of(tables, inode, FileKind::File)? {
        if tables.get(Table::Conflicts, &child_key(dir, &name))?.is_some() {
            let members = union::members(tables, dir)?;
            let all = union::meanings(tables, &members, &name)?;
            rivals.extend(all.links().iter().filter(|child| child.inode() != inode).copied());
        }
    }
    Ok(rivals)
}
