//! fsck: reads every row and holds the tables against each other and against the store.

use crate::id::{DirId, InodeId};
use crate::merkle;
use crate::namespace::derive;
use crate::namespace::tables::Rows;
use crate::store::GlyphKind;
use crate::volume::{Result, VolumeError};

use super::LocalVolume;

#[derive(Clone, Debug)]
pub struct Problem {
    /// The file concerned, where one is.
    pub path: Option<Vec<u8>>,
    pub what: String,
}

#[derive(Clone, Debug, Default)]
pub struct FsckReport {
    pub nodes: u64,
    pub problems: Vec<Problem>,
    /// Problems that were mended.
    pub repaired: u64,
}

impl LocalVolume {
    /// Checks all metadata (`scrub` reads the files); `repair` derives anew what can be derived.
    pub fn fsck(&self, repair: bool) -> Result<FsckReport> {
        let mut report = FsckReport::default();
        self.check_nodes(&mut report)?;
        if report.problems.is_empty() {
            self.check_derived(repair, &mut report)?;
        }
        let oplog = self.oplog.check().map_err(|error| VolumeError::Internal(error.to_string()))?;
        if !oplog.is_intact() {
            let what = format!("the operation log has {} damaged places", oplog.damage.len().max(1));
            report.problems.push(Problem { path: None, what });
        }
        Ok(report)
    }

    /// Builds the index of glyph locations anew from the packs.
    pub fn rebuild_index(&self, progress: &dyn Fn(crate::store::Progress)) -> Result<()> {
        Ok(self.store.rebuild_index(progress)?)
    }

    fn check_nodes(&self, report: &mut FsckReport) -> Result<()> {
        let checkpoint = self.checkpoint.lock();
        for (table, root) in checkpoint.last.roots.iter() {
            let mut nodes = Vec::new();
            let walked = merkle::walk(&*self.nodes, &root, &mut |id, _| {
                nodes.push(*id);
                true
            });
            report.nodes += nodes.len() as u64;
            let mut broken: Vec<String> = walked.err().into_iter().map(|error| error.to_string()).collect();
            // Leaves are named by their parents; reading them is what shows whether they are there.
            broken.extend(nodes.iter().filter_map(|id| {
                crate::store::GlyphSource::read(&*self.store, GlyphKind::Node, id).err().map(|error| error.to_string())
            }));
            let problem = |what| Problem { path: None, what: format!("table {}: {what}", table.0) };
            report.problems.extend(broken.into_iter().map(problem));
        }
        Ok(())
    }

    fn check_derived(&self, repair: bool, report: &mut FsckReport) -> Result<()> {
        let mut state = self.state.write();
        let differences = derive::differences(&derive::kept(&*state)?, &derive::recompute(&*state)?);
        if differences.is_empty() {
            return Ok(());
        }
        if repair {
            report.repaired += differences.len() as u64;
            derive::rebuild(&mut *state)?;
            drop(state);
            // The rebuilt rows are in no journal, so they must be in a checkpoint.
            return self.make_checkpoint(false);
        }
        let problem =
            |row| Problem { path: None, what: format!("a derived row does not follow from the others: {row}") };
        report.problems.extend(differences.into_iter().map(problem));
        Ok(())
    }

    /// A path from the root to the inode, one of them if it has several names.
    pub fn path_of(&self, id: InodeId) -> Result<Vec<u8>> {
        let state = self.state.read();
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut dir = DirId(id.0);
        if state.dir(dir)?.is_none() {
            let link = derive::links_of(&*state, id)?.into_iter().next();
            let row = link.map(|link| state.link(link)).transpose()?.flatten();
            let Some(place) = row.as_ref().and_then(|row| row.place()) else {
                return Ok(format!("(unlinked inode {})", id.0).into_bytes());
            };
            names.push(place.name.clone());
            dir = place.parent;
        }
        while dir != DirId::ROOT {
            let row = state.dir(dir)?.ok_or(VolumeError::Stale)?;
            names.push(row.name);
            dir = row.parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        Ok(if path.is_empty() { b"/".to_vec() } else { path })
    }
}
