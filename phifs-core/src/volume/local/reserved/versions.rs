//! `.phi/versions`: the published versions of the files of a directory, each a file.

use crate::content::reader::ContentReader;
use crate::id::{DirId, Dot, InodeId, LinkId};
use crate::namespace::derive::Child;
use crate::namespace::row::Place;
use crate::namespace::tables::Rows;
use crate::namespace::view;
use crate::time::Timestamp;
use crate::volume::local::LocalVolume;
use crate::volume::local::attrs::blocks;
use crate::volume::local::history::KeptVersion;
use crate::volume::local::names::{BATCH, pass_on};
use crate::volume::local::state::State;
use crate::volume::{Attr, Entry, FileKind, Ino, Result, VolumeError};

use super::nodes::Node;
use super::{Listed, read_only};

/// The file that a name stands for, wherever that is by now.
pub fn place_of(state: &State, link: LinkId) -> Result<Place> {
    let row = state.link(link)?.ok_or(VolumeError::Stale)?;
    row.place().cloned().ok_or(VolumeError::Stale)
}

impl LocalVolume {
    pub(super) fn versions_named(&self, dir: DirId, name: &[u8]) -> Result<Node> {
        match view::child(&*self.state.read(), dir, name)? {
            Some(Child::Link { link, kind: FileKind::File, .. }) => Ok(Node::VersionsOf(link)),
            _ => Err(VolumeError::NotFound),
        }
    }

    pub(super) fn version_named(&self, link: LinkId, name: &[u8]) -> Result<Node> {
        let state = self.state.read();
        let inode = place_of(&state, link)?.inode;
        let kept = self.kept_versions(&state, inode)?;
        let found = kept.iter().find(|version| version.name().as_bytes() == name).ok_or(VolumeError::NotFound)?;
        Ok(Node::Version { inode, version: found.dot })
    }

    pub(super) fn versions_in(&self, link: LinkId) -> Result<Vec<(Vec<u8>, Listed)>> {
        let state = self.state.read();
        let inode = place_of(&state, link)?.inode;
        let kept = self.kept_versions(&state, inode)?;
        let listed = |version: &KeptVersion| {
            (version.name().into_bytes(), Listed::Node(Node::Version { inode, version: version.dot }))
        };
        Ok(kept.iter().map(listed).collect())
    }

    /// Lists the files of a directory, each as a directory of its versions.
    pub(super) fn list_files(&self, dir: DirId, after: u64, each: &mut dyn FnMut(&Entry) -> bool) -> Result<()> {
        let Some(mut after) = self.list_above(Node::Versions(dir), after, each)? else { return Ok(()) };
        loop {
            let state = self.state.read();
            let mut listed = view::list(&*state, dir, after + 1, BATCH)?;
            let Some(last) = listed.last().map(|last| last.hash) else { return Ok(()) };
            listed.retain(|item| item.child.kind() == FileKind::File);
            let mut has_room = true;
            let attr = &mut |child| match child {
                Child::Link { link, .. } => {
                    self.attr_of_list(&state, dir, 2, || self.reserved.nodes.number(Node::VersionsOf(link)))
                }
                Child::Dir(_) => Err(VolumeError::NotFound),
            };
            pass_on(&listed, &mut after, attr, &mut |name, attr, next| {
                has_room = each(&Entry { name: name.to_vec(), attr, next });
                has_room
            })?;
            if !has_room {
                return Ok(());
            }
            after = last;
        }
    }

    pub(super) fn kept_version(&self, state: &State, inode: InodeId, version: Dot) -> Result<KeptVersion> {
        let kept = self.kept_versions(state, inode)?;
        match kept.into_iter().find(|kept| kept.dot == version) {
            Some(kept) => Ok(kept),
            None => KeptVersion::of_birth(state, inode, version)?.ok_or(VolumeError::Stale),
        }
    }

    pub(super) fn attr_of_version(
        &self,
        inode: InodeId,
        version: Dot,
        ino: impl FnOnce() -> Result<Ino>,
    ) -> Result<Attr> {
        let state = self.state.read();
        self.attr_of_version_in(&state, inode, version, ino)
    }

    pub(super) fn attr_of_version_in(
        &self,
        state: &State,
        inode: InodeId,
        version: Dot,
        ino: impl FnOnce() -> Result<Ino>,
    ) -> Result<Attr> {
        let kept = self.kept_version(state, inode, version)?;
        let content = kept.version.content;
        let millis = kept.hlc.millis();
        let published = Timestamp::new((millis / 1000) as i64, (millis % 1000) as u32 * 1_000_000);
        Ok(Attr {
            ino: ino()?,
            kind: FileKind::File,
            permissions: read_only(&kept.mode),
            nlink: 1,
            uid: kept.owner.uid,
            gid: kept.owner.gid,
            rdev: 0,
            size_bytes: content.len_bytes(),
            blocks: blocks(content.allocated_bytes()),
            atime: kept.version.mtime,
            mtime: kept.version.mtime,
            ctime: published,
            btime: published,
        })
    }

    pub(super) fn open_version(&self, inode: InodeId, version: Dot) -> Result<ContentReader> {
        let kept = self.kept_version(&self.state.read(), inode, version)?;
        Ok(ContentReader::new(kept.version.content, kept.inline)?)
    }
}
