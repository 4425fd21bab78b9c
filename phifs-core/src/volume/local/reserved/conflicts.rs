//! `.phi/conflicts`: the directories that have something to decide about, and in place of each disputed file a directory
//! with a readable file for every choice; and `.phi/orphans`: directories that are nowhere.

use std::ops::ControlFlow;

use crate::id::{DirId, LinkId};
use crate::namespace::conflict::{self, Conflict};
use crate::namespace::derive::{Child, DirRow, dot_of, name_hash};
use crate::namespace::tables::{Table, Tables};
use crate::namespace::{union, view};
use crate::volume::local::LocalVolume;
use crate::volume::local::conflicts::{name_of, tag_of};
use crate::volume::local::state::State;
use crate::volume::{Attr, Result, VolumeError};

use super::nodes::Node;
use super::{Listed, versions};

/// Rows of the table of directories that are looked at while the state is held.
const DIRS_AT_ONCE: usize = 4096;

impl LocalVolume {
    /// The states that are not shown of the disputed files of a directory, if such are to be listed there: each by the
    /// hash of its name, in order.
    pub(in crate::volume::local) fn siblings_in(&self, dir: DirId) -> Result<Vec<(u64, Vec<u8>, Node)>> {
        if !self.options.siblings {
            return Ok(Vec::new());
        }
        let state = self.state.read();
        let dir = union::members(&*state, dir)?[0];
        let mut siblings = Vec::new();
        for conflict in self.disputed(&state)?.iter().filter(|conflict| conflict.dir == dir) {
            for choice in &conflict.choices[1..] {
                let name = name_of(&conflict.name, choice, 0);
                let node = Node::Version { inode: choice.inode, version: choice.dot };
                siblings.push((name_hash(&name), name, node));
            }
        }
        siblings.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        Ok(siblings)
    }

    pub(in crate::volume::local) fn sibling_named(&self, dir: DirId, name: &[u8]) -> Result<Attr> {
        let found = self.siblings_in(dir)?.into_iter().find(|(_, known, _)| known == name);
        let (_, _, node) = found.ok_or(VolumeError::NotFound)?;
        self.sibling_attr(&self.state.read(), node)
    }

    pub(in crate::volume::local) fn sibling_attr(&self, state: &State, node: Node) -> Result<Attr> {
        match node {
            Node::Version { inode, version } => {
                self.attr_of_version_in(state, inode, version, || self.reserved.nodes.number(node))
            }
            _ => Err(VolumeError::NotFound),
        }
    }

    pub(super) fn conflicts_named(&self, from: DirId, dir: DirId, name: &[u8]) -> Result<Node> {
        let state = self.state.read();
        if let Some(Child::Dir(below)) = view::child(&*state, dir, name)? {
            return Ok(Node::Conflicts { from, dir: below });
        }
        let conflict = conflict::at(&*state, dir, name)?.filter(|conflict| conflict.seen_name() == name);
        conflict.as_ref().and_then(|conflict| node_of(from, conflict)).ok_or(VolumeError::NotFound)
    }

    /// What is disputed in a directory, and those below that have something in them.
    pub(super) fn conflicts_in(&self, from: DirId, dir: DirId) -> Result<Vec<(Vec<u8>, Listed)>> {
        let state = self.state.read();
        let dir = union::members(&*state, dir)?[0];
        let Some(above) = view::path_of_dir(&*state, dir)? else { return Ok(Vec::new()) };
        let mut listed: Vec<(Vec<u8>, Listed)> = Vec::new();
        for conflict in self.disputed(&state)? {
            if conflict.dir == dir {
                listed.extend(node_of(from, &conflict).map(|node| (conflict.seen_name(), Listed::Node(node))));
                continue;
            }
            let Some(path) = view::path_of_dir(&*state, conflict.dir)? else { continue };
            let below = path.strip_prefix(&above[..]).and_then(|rest| rest.strip_prefix(b"/"));
            let Some(name) = below.and_then(|rest| rest.split(|byte| *byte == b'/').next()) else { continue };
            if let Some(Child::Dir(next)) = view::child(&*state, dir, name)? {
                listed.push((name.to_vec(), Listed::Node(Node::Conflicts { from, dir: next })));
            }
        }
        listed.sort_by(|a, b| a.0.cmp(&b.0));
        listed.dedup_by(|a, b| a.0 == b.0);
        Ok(listed)
    }

    pub(super) fn choice_named(&self, link: LinkId, name: &[u8]) -> Result<Node> {
        let found = self.choices_of(link)?.into_iter().find(|(known, _)| known == name);
        found.map(|(_, node)| node).ok_or(VolumeError::NotFound)
    }

    pub(super) fn choices_in(&self, link: LinkId) -> Result<Vec<(Vec<u8>, Listed)>> {
        Ok(self.choices_of(link)?.into_iter().map(|(name, node)| (name, Listed::Node(node))).collect())
    }

    fn choices_of(&self, link: LinkId) -> Result<Vec<(Vec<u8>, Node)>> {
        let conflict = disputed(&self.state.read(), link)?;
        let choices = conflict.choices.iter().enumerate();
        let named = choices.map(|(rank, choice)| {
            let name = format!("{rank}~{}", tag_of(choice.dot, choice.hlc));
            (name.into_bytes(), Node::Version { inode: choice.inode, version: choice.dot })
        });
        Ok(named.collect())
    }

    pub(super) fn orphan_named(&self, name: &[u8]) -> Result<Attr> {
        let found = self.orphans()?.into_iter().find(|(known, _)| known == name);
        match found {
            Some((_, Listed::Real(dir))) => self.attr(&self.state.read(), dir.inode()),
            _ => Err(VolumeError::NotFound),
        }
    }

    /// The directories that something lies in, and that lie nowhere themselves.
    pub(super) fn orphans(&self) -> Result<Vec<(Vec<u8>, Listed)>> {
        let mut orphans = Vec::new();
        let mut next = Vec::new();
        loop {
            let from = std::mem::take(&mut next);
            let mut looked = 0;
            let mut failed = None;
            self.state.read().scan(Table::Dirs, &from, &mut |key, value| {
                let orphan = DirRow::decode(value).ok().filter(|row| row.shown && !row.is_placed());
                match orphan.map(|_| dot_of(key)).transpose() {
                    Ok(Some(dot)) if DirId(dot) != DirId::ROOT => {
                        orphans.push((dot.to_string().into_bytes(), Listed::Real(DirId(dot))));
                    }
                    Ok(_) => {}
                    Err(error) => failed = Some(error),
                }
                looked += 1;
                next = [key, &[0]].concat();
                if looked < DIRS_AT_ONCE { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            if let Some(error) = failed {
                return Err(error.into());
            }
            if looked < DIRS_AT_ONCE {
                return Ok(orphans);
            }
        }
    }
}

/// The directory that stands for a disputed name: by its first link, as the best choice may become another one.
fn node_of(from: DirId, conflict: &Conflict) -> Option<Node> {
    let first = conflict.choices.iter().map(|choice| choice.link).min();
    first.map(|link| Node::Choices { from, link })
}

/// What there is to decide about at the name that a link has by now.
fn disputed(state: &State, link: LinkId) -> Result<Conflict> {
    let place = versions::place_of(state, link)?;
    conflict::at(state, place.parent, &place.name)?.ok_or(VolumeError::Stale)
}
