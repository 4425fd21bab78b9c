//! Snapshots that leave and come, and whether they are whole.

use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use phifs_core::disk::Disk;
use phifs_core::snapshot::stream::StreamError;
use phifs_core::store::GlyphIndex;
use phifs_core::time::Env;
use phifs_core::volume::local::{
    ImportOptions, Imported as CameIn, LocalVolume, Options as VolumeOptions, Sink, TransferError,
};

use super::snapshots::explain;
use super::{Engine, Options, counted, explain_open};
use crate::control::{Handed, Progress};
use crate::failure::{Failure, Kind};
use crate::findings;
use crate::hex;
use crate::node_key::NodeSeed;
use crate::report::{Exported, Imported, Verified};

/// What brings back what is lost of a snapshot.
const REMEDY: &str = "phifs snapshot import of an export that has it: what is missing or damaged here is stored again";

impl Engine {
    /// Writes a snapshot to `file`; `resume` goes on with what is in it.
    pub fn export_snapshot(
        &self,
        name: &str,
        since: Option<&str>,
        mut file: Handed,
        resume: bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Exported, Failure> {
        let progress = Mutex::new(progress);
        let sink = if resume { Sink::File(&mut file) } else { Sink::Pipe(&mut file) };
        let exported = self
            .volume
            .export_snapshot(name, since, sink, &|bytes| self.told(&progress, "exporting", bytes))
            .map_err(refused)?;
        Ok(Exported {
            name: exported.name,
            id: exported.id.to_string(),
            since: exported.since,
            glyphs: exported.glyphs,
            bytes: exported.bytes,
            resumed_bytes: exported.resumed_bytes,
        })
    }

    pub fn import_snapshot(
        &self,
        file: Handed,
        name: Option<String>,
        trust: Option<String>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Imported, Failure> {
        let options = ImportOptions { name, trust, ..ImportOptions::default() };
        self.import(file, &options, progress).map(report)
    }

    pub(super) fn import(
        &self,
        file: Handed,
        options: &ImportOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<CameIn, Failure> {
        let progress = Mutex::new(progress);
        let tell = |bytes| self.told(&progress, "importing", bytes);
        self.volume.import_snapshot(file, options, &tell).map_err(refused)
    }

    /// Whether there is a volume in the store, and not only the beginning of one.
    pub fn is_there(disk: &dyn Disk) -> Result<bool, Failure> {
        LocalVolume::is_there(disk).map_err(explain_open)
    }

    /// Makes a store out of an export, to be opened then.
    pub fn bootstrap(
        to: (Arc<dyn Disk>, Arc<dyn GlyphIndex>),
        env: &dyn Env,
        seed: &NodeSeed,
        options: &Options,
        from: impl Read,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), Failure> {
        let progress = Mutex::new(progress);
        let tell = |bytes| {
            (progress.lock())(counted("importing", bytes, None, "bytes"));
            ControlFlow::Continue(())
        };
        let came = LocalVolume::bootstrap(to, env, &seed.0, &for_new(options), from, &tell).map_err(refused)?;
        tracing::info!(snapshot = came.name, id = %came.id, "the store is made");
        Ok(())
    }

    /// Reads everything that a snapshot names.
    pub fn verify_snapshot(&self, name: &str, progress: &mut dyn FnMut(Progress)) -> Result<Verified, Failure> {
        let progress = Mutex::new(progress);
        let tell = |bytes| (progress.lock())(counted("reading", bytes, None, "bytes"));
        let found = self.volume.verify_snapshot(name, &tell).map_err(explain)?;
        let mut checked = findings::checked(found.report);
        for problem in &mut checked.problems {
            problem.remedy = Some(REMEDY.to_owned());
        }
        Ok(Verified {
            name: found.name,
            id: found.id.to_string(),
            tree_root: found.tree_root.map(|root| hex::encode(&root)),
            checked,
        })
    }

    /// Hands progress on, until the volume is about to be closed.
    fn told(&self, progress: &Mutex<&mut dyn FnMut(Progress)>, doing: &str, bytes: u64) -> ControlFlow<()> {
        (progress.lock())(counted(doing, bytes, None, "bytes"));
        if self.closing.load(Ordering::Acquire) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

pub(super) fn for_new(options: &Options) -> VolumeOptions {
    VolumeOptions { node_cache_bytes: options.cache_bytes, ..VolumeOptions::default() }
}

fn report(imported: CameIn) -> Imported {
    Imported {
        name: imported.name,
        id: imported.id.to_string(),
        was_here: imported.was_here,
        glyphs: imported.received.glyphs,
        new_glyphs: imported.received.new_glyphs,
        new_bytes: imported.received.new_bytes,
    }
}

fn refused(error: TransferError) -> Failure {
    let (kind, hint) = match &error {
        TransferError::Snapshot(_) | TransferError::Open(_) => {
            return match error {
                TransferError::Snapshot(error) => explain(error),
                TransferError::Open(error) => explain_open(error),
                error => Failure::plain(error),
            };
        }
        TransferError::Stream(stream) => match stream {
            StreamError::Foreign => (Kind::Failed, "name a file that `phifs snapshot export` has written".to_owned()),
            StreamError::Newer(_) => (Kind::Failed, "use the version of phifs that wrote it, or a newer one".into()),
            StreamError::Truncated(_) => {
                (Kind::Failed, "copy the file again; or export again, which goes on where it was interrupted".into())
            }
            StreamError::Damaged { .. } | StreamError::Record(_) => {
                (Kind::Failed, "copy the file again, or export again".into())
            }
            StreamError::BrokenOff => (Kind::Failed, "the daemon is stopping; start it, and do the same again".into()),
            StreamError::Store(_) | StreamError::Read(_) | StreamError::Write(_) => return Failure::plain(error),
        },
        TransferError::OtherVolume(_) => {
            (Kind::Failed, "to make a store of that volume: phifs up --store DIR --from FILE".into())
        }
        TransferError::UnknownSigner(node) => {
            let digits = &hex::encode(&node.0)[..16];
            (Kind::Failed, format!("if that is a node of yours: the same with --trust {digits}"))
        }
        TransferError::OtherSigner { .. } => {
            (Kind::Failed, "give 8 or more digits of the right key, as that node has told you".into())
        }
        TransferError::MissingBase(base) => {
            (Kind::Failed, format!("import an export of {:?} first, or one without --since", base.name))
        }
        TransferError::BadParent(_) => (Kind::Failed, "do not trust its node; export again from another one".into()),
        TransferError::ClockAhead(_) => (Kind::Failed, "set the clock of this machine".into()),
        TransferError::HasVolume => {
            (Kind::Failed, "name an empty directory with --store DIR; or leave --from out to serve it".into())
        }
    };
    Failure::new(kind, error).hint(hint)
}
