//! The versions of a file, as the control socket asks for them.

use phifs_core::namespace::row::Closure;
use phifs_core::namespace::version::Validity;
use phifs_core::volume::local::FileVersion;
use phifs_core::volume::{Ino, VolumeError};

use super::Engine;
use crate::failure::Failure;
use crate::report;
use crate::show::Name;

impl Engine {
    /// The latest last. `number`: the inode, if it is known; else the path leads there from the root of the volume.
    pub fn file_versions(&self, path: &Name, number: Option<u64>) -> Result<Vec<report::FileVersion>, Failure> {
        let found = number.map_or_else(|| self.volume.inode_at(&path.bytes()), |number| Ok(Ino(number)));
        let versions = found.and_then(|ino| self.volume.file_versions(ino));
        let versions = versions.map_err(|error| explain(path, &error))?;
        Ok(versions.into_iter().map(describe).collect())
    }
}

fn describe(version: FileVersion) -> report::FileVersion {
    let closure = match version.closure {
        Closure::Close | Closure::SyncAndClose => "close",
        Closure::IdleFlush => "open",
        Closure::CrashRecovered => "recovery",
    };
    let defect = match version.evidence {
        evidence if evidence.collapsed => Some("blank"),
        evidence if evidence.validity == Validity::Fails => Some("torn"),
        _ => None,
    };
    let snapshots = version.snapshots.into_iter();
    report::FileVersion {
        dot: version.dot.to_string(),
        author: version.author.to_string(),
        millis: version.published.millis(),
        mtime_millis: version.mtime.millis(),
        bytes: version.len_bytes,
        closure: closure.into(),
        defect: defect.map(str::to_owned),
        current: version.is_current,
        kept: version.is_kept,
        snapshots: snapshots
            .map(|(name, id)| report::HoldingSnapshot { name, id: id.map(|id| id.to_string()) })
            .collect(),
    }
}

fn explain(path: &Name, error: &VolumeError) -> Failure {
    let path = path.quoted();
    match error {
        VolumeError::NotFound | VolumeError::NotDirectory => Failure::plain(format!(
            "there is no {path} in the volume"
        ))
        .hint("a path through the mount, or one from the root of the volume; what was removed may be in a snapshot"),
        VolumeError::IsDirectory | VolumeError::Invalid(_) => Failure::plain(format!("{path} is no regular file"))
            .hint("only regular files have versions; phifs snapshot list shows what is kept of directories"),
        VolumeError::Stale => Failure::plain(format!("{path} is no file of the volume as it is now"))
            .hint("ask about the file outside of .phi"),
        error => Failure::plain(format!("cannot tell the versions of {path}: {error}")),
    }
}
