//! The seam between the daemon and core's engine: opens it over real files, turns its results into reports and its
//! errors into failures. Nothing else in this crate knows the engine's types.

mod branches;
mod conflicts;
mod merge;
mod newcomer;
mod peers;
mod pins;
mod settings;
mod snapshots;
mod transfer;
mod versions;

pub use merge::Merging;
pub use newcomer::{Broken, Newcomer};
pub use snapshots::name_of;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use phifs_core::disk::{Disk, Space};
use phifs_core::meta::Lsn;
use phifs_core::meta::journal::JournalError;
use phifs_core::meta::superblock::SuperblockError;
use phifs_core::namespace::Effect;
use phifs_core::oplog::OplogError;
use phifs_core::snapshot::keep::KeepRules;
use phifs_core::store::{GlyphIndex, Progress as PackProgress, Stage, StoreError};
use phifs_core::time::Env;
use phifs_core::volume::local::{LocalVolume, OpenError, Opening, Options as VolumeOptions, Progress as OpenProgress};
use phifs_core::volume::{Invalidate, Volume};

use crate::control::Progress;
use crate::failure::{Failure, Kind};
use crate::findings;
use crate::node_key::NodeSeed;
use crate::report::{Checked, Collected, Operation, Usage, UsagePart, VolumeStatus};
use crate::show::{self, Name};
use crate::store_dir::StoreDir;

/// A collection rewrites packs of which less than this share is live.
const LIVE_RATIO_MIN: f64 = 0.9;

/// How to open the engine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for metadata that was read.
    pub cache_bytes: u64,
    /// Disk space for staging files whose bytes are published.
    pub staging_cache_bytes: u64,
    /// A file that stays open is published at most this often.
    pub publish_interval: Duration,
    /// How often a snapshot is taken, and which of those are kept, if the volume does not say.
    pub snapshot_every: Option<Duration>,
    pub snapshot_keep: KeepRules,
    /// Whether the states of disputed files are listed beside them.
    pub siblings: bool,
    /// Drop what cannot be read in the middle of the journal, instead of refusing to open.
    pub repair: bool,
    /// Begin with an empty glyph index.
    pub rebuild_index: bool,
}

/// An open volume. Shared by the mount, the background threads and the control socket.
pub struct Engine {
    disk: Arc<dyn Disk>,
    volume: Arc<LocalVolume>,
    /// No more long work.
    closing: AtomicBool,
}

impl Engine {
    /// Recovers the store on `disk` and opens its volume; `progress` hears of replay and rebuild.
    pub fn open(
        disk: Arc<dyn Disk>,
        index: Arc<dyn GlyphIndex>,
        env: Arc<dyn Env>,
        seed: &NodeSeed,
        options: &Options,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, Failure> {
        progress(Progress::step("opening the volume"));
        if options.rebuild_index {
            index.clear().map_err(|error| Failure::plain(format!("cannot clear the glyph index: {error}")))?;
        }
        let progress = Mutex::new(progress);
        let tell = |step: OpenProgress| (progress.lock())(describe(step));
        let volume = LocalVolume::open(disk.clone(), index, env, &seed.0, volume_options(options), &tell)
            .map_err(explain_open)?;
        Ok(opened(disk, volume))
    }

    pub fn volume(&self) -> Arc<dyn Volume> {
        self.volume.clone()
    }

    /// Where changes that the kernel may have cached are told.
    pub fn set_invalidate(&self, sink: Arc<dyn Invalidate>) {
        self.volume.set_invalidate(sink);
    }

    pub fn status(&self) -> VolumeStatus {
        let status = self.volume.status();
        VolumeStatus {
            node: status.node,
            author: status.author,
            operations: status.operations,
            inodes: status.inodes,
            open_files: status.open_handles,
            unpublished_files: status.unpublished_files,
            queued_files: status.queued_files,
            unsealed_operations: status.unsealed_operations,
            uncommitted_bytes: status.uncommitted_bytes,
            journal_bytes: status.journal_bytes,
            journal_syncs: status.journal_syncs,
            checkpoint_pending: status.checkpoint_pending,
            read_only: status.read_only.then(|| "bytes could not be made durable; see the log".to_owned()),
        }
    }

    /// The last `count` operations, the latest last.
    pub fn recent_ops(&self, count: u32) -> Result<Vec<Operation>, Failure> {
        let recent = self.volume.recent_ops(count as usize).map_err(Failure::plain)?;
        let operation = |op: &phifs_core::volume::local::RecentOp| {
            let (what, inode) = phrase(&op.effects);
            let path = inode.and_then(|inode| self.volume.path_of(inode).ok());
            Operation {
                dot: op.dot.to_string(),
                millis: op.time.millis(),
                what: what.to_owned(),
                path: path.filter(|path| path.starts_with(b"/")).map(|path| Name::new(&path)),
            }
        };
        Ok(recent.iter().rev().map(operation).collect())
    }

    /// What the files of the store take, every byte of them in one of the parts.
    pub fn usage(&self, store: &StoreDir) -> Result<Usage, Failure> {
        let Space { total_bytes, free_bytes } = self.disk.space().map_err(Failure::plain)?;
        let status = self.volume.status();
        let unreadable = |error| Failure::plain(format!("cannot look through {}: {error}", show::path(store.path())));
        let mut taken = store.taken().map_err(unreadable)?;
        let mut of = |name: &str| taken.remove(name).unwrap_or_default();
        let packs = of("packs");
        let (data, metadata) = (status.data_stored_bytes, status.node_stored_bytes);
        let part = |what: &str, bytes, why: &str| UsagePart { what: what.into(), bytes, why: why.into() };
        let mut parts = vec![
            part(
                "data",
                data,
                "bytes of files, of their older versions and of snapshots, compressed and shared; `phifs gc` frees what \
                 none of them needs",
            ),
            part("metadata", metadata, "names and attributes, also of snapshots; `phifs gc` frees what was superseded"),
            part(
                "packs ahead",
                packs.saturating_sub(data + metadata),
                "reserved in packs for what is stored next; given back when a pack is full",
            ),
            part(
                "plain copies",
                of("staging"),
                "of files in use or written lately; at most `staging_cache_mib` beyond what is not published yet",
            ),
            part("oplog", of("oplog"), "signed operations for `phifs log` and other nodes; bounded"),
            part("journal", of("journal"), "changes since the last checkpoint, and files kept for reuse; bounded"),
            part("glyph index", of("index"), "where each glyph is; made anew if it is deleted"),
            part(
                "branches",
                of("branches"),
                "journals, logs and plain copies of branches; what they hold of their own is under data and metadata",
            ),
            part("superblock", of("superblock"), "where the last checkpoint is"),
        ];
        let ballast = of("ballast");
        if ballast > 0 {
            parts.push(part("ballast", ballast, "held back while the disk is nearly full, so that deleting has room"));
        }
        let others = taken.into_values().sum();
        parts.push(part("others", others, "the log, the key, settings, and whatever else lies in the store"));
        let logical_bytes = self.volume.logical_bytes().map_err(Failure::plain)?;
        Ok(Usage { logical_bytes, disk_total_bytes: total_bytes, disk_free_bytes: free_bytes, parts })
    }

    pub fn gc(&self, progress: &mut dyn FnMut(Progress)) -> Result<Collected, Failure> {
        let progress = Mutex::new(progress);
        let tell = |inodes| (progress.lock())(counted("looking at", inodes, None, "inodes"));
        let report = self.volume.collect_confirmed(LIVE_RATIO_MIN, &tell).map_err(Failure::plain)?;
        Ok(Collected {
            live_glyphs: report.live_glyphs,
            packs_removed: report.sweep.packs_removed,
            packs_rewritten: report.sweep.packs_rewritten,
            freed_bytes: report.sweep.bytes_removed.saturating_sub(report.sweep.bytes_copied),
            rewritten_bytes: report.sweep.bytes_copied,
        })
    }

    /// Reads and verifies every glyph.
    pub fn scrub(&self, progress: &mut dyn FnMut(Progress)) -> Result<Checked, Failure> {
        let progress = Mutex::new(progress);
        let tell = |bytes: u64| (progress.lock())(counted("reading", bytes >> 20, None, "MiB"));
        self.volume.scrub(&tell).map(findings::checked).map_err(Failure::plain)
    }

    /// Reads everything there is, and checks that maps, glyphs and index agree; `repair` mends what can be.
    /// `rebuild_index` builds the glyph index anew first.
    pub fn fsck(
        &self,
        rebuild_index: bool,
        repair: bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Checked, Failure> {
        if rebuild_index {
            let progress = Mutex::new(&mut *progress);
            let tell = |step| (progress.lock())(describe(OpenProgress::Packs(step)));
            self.volume.rebuild_index(&tell).map_err(Failure::plain)?;
        }
        progress(Progress::step("checking the metadata"));
        let progress = Mutex::new(progress);
        let tell = |bytes: u64| (progress.lock())(counted("reading", bytes >> 20, None, "MiB"));
        self.volume.fsck(repair, &tell).map(findings::checked).map_err(Failure::plain)
    }

    /// Publishes closed files until `stop_publishers`.
    pub fn run_publisher(&self) {
        self.volume.run_publisher();
    }

    /// Seals snapshots until `stop_publishers`.
    pub fn run_sealer(&self) {
        self.volume.run_sealer();
    }

    pub fn stop_publishers(&self) {
        self.closing.store(true, Ordering::Release);
        self.volume.stop_publishers();
    }

    /// Makes durable what no sync was asked for, and tidies up.
    pub fn tick(&self) -> Result<(), Failure> {
        self.volume.tick().map_err(Failure::plain)
    }

    /// Up to where the journal goes: it moves with every change.
    pub fn journal_end(&self) -> Lsn {
        self.volume.journal_end()
    }

    pub fn checkpoint_if_due(&self) -> Result<(), Failure> {
        if self.volume.needs_checkpoint() { self.volume.make_checkpoint(false).map_err(Failure::plain) } else { Ok(()) }
    }

    /// Publishes, checkpoints and closes; nothing is accepted afterwards. Called once.
    pub fn shutdown(&self, progress: &mut dyn FnMut(Progress)) -> Result<(), Failure> {
        progress(Progress::step("closing the volume"));
        self.volume.shut_down().map_err(Failure::plain)
    }
}

fn volume_options(options: &Options) -> VolumeOptions {
    VolumeOptions {
        node_cache_bytes: options.cache_bytes,
        staging_cache_bytes: options.staging_cache_bytes,
        root_owner: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
        publish_interval: options.publish_interval,
        snapshot_every: options.snapshot_every,
        snapshot_keep: options.snapshot_keep.clone(),
        siblings: options.siblings,
        repair: options.repair,
        ..VolumeOptions::default()
    }
}

fn opened(disk: Arc<dyn Disk>, volume: LocalVolume) -> Engine {
    report_opening(volume.opening());
    Engine { disk, volume: Arc::new(volume), closing: AtomicBool::new(false) }
}

fn counted(doing: &str, done: u64, total: Option<u64>, unit: &str) -> Progress {
    Progress { doing: doing.into(), done, total, unit: unit.into() }
}

fn describe(step: OpenProgress) -> Progress {
    match step {
        OpenProgress::Packs(PackProgress { stage, done, total }) => {
            let doing = match stage {
                Stage::OpeningPacks => "opening",
                Stage::BuildingIndex => "rebuilding the glyph index from",
            };
            counted(doing, done, Some(total), "packs")
        }
        OpenProgress::Replaying(records) => counted("replaying", records, None, "journal records"),
        OpenProgress::Recovering(files) => counted("recovering", files, None, "files"),
    }
}

fn report_opening(opening: &Opening) {
    tracing::info!(
        clean = opening.clean,
        replayed = opening.replayed,
        recovered_files = opening.recovered_files,
        index_rebuilt = opening.store.index_rebuilt,
        "the volume is open"
    );
    for damage in &opening.store.damage {
        tracing::error!(pack = damage.pack, offset = damage.offset_bytes, "a pack is damaged; run phifs scrub");
    }
    if opening.oplog_damaged {
        tracing::warn!("the operation log is damaged; older operations are missing from `phifs log`");
    }
}

fn explain_open(error: OpenError) -> Failure {
    use phifs_core::codec::DecodeError::NewerVersion;
    let failure = Failure::new(Kind::Failed, &error);
    let hint = match error {
        OpenError::Journal(JournalError::DamagedMiddle { .. } | JournalError::Gone { .. }) => {
            "`phifs fsck --repair` gives up what is damaged and what was done after it; make a copy of the store first"
        }
        OpenError::Unfinished => {
            "phifs up --from FILE goes on with it; to begin anew, remove the directory of the store"
        }
        OpenError::Superblock(SuperblockError::Newer(_))
        | OpenError::Journal(JournalError::Malformed(NewerVersion { .. }))
        | OpenError::Oplog(OplogError::Newer { .. })
        | OpenError::Store(StoreError::Malformed { source: NewerVersion { .. }, .. }) => {
            "use the version of phifs that wrote it, or a newer one"
        }
        OpenError::Superblock(SuperblockError::Missing | SuperblockError::Damaged(..) | SuperblockError::Mixed(..))
        | OpenError::Journal(JournalError::ForeignStore { .. })
        | OpenError::Oplog(OplogError::OtherStore { .. })
        | OpenError::Store(StoreError::Missing(_) | StoreError::Corrupt { .. } | StoreError::Malformed { .. }) => {
            "nothing here can replace it: put a backup of the store in its place"
        }
        _ => return failure,
    };
    failure.hint(hint)
}

/// What an operation did, in a word, and to which inode.
fn phrase(effects: &[Effect]) -> (&'static str, Option<phifs_core::id::InodeId>) {
    use phifs_core::id::InodeId;
    let mut removed = None;
    for effect in effects {
        match effect {
            Effect::Inode(inode) if inode.birth.is_some() => return ("create", Some(inode.inode)),
            Effect::Move { dir, .. } => return ("rename", Some(InodeId(dir.0))),
            Effect::Link(link) if link.place.as_ref().is_some_and(|place| place.since.is_none()) => {
                return (if link.drops.is_empty() { "link" } else { "rename" }, Some(link.inode));
            }
            Effect::Link(link) if link.place.is_none() => removed = Some(link.inode),
            Effect::Inode(inode) if inode.version.is_some() => return ("write", Some(inode.inode)),
            Effect::Xattr { inode, .. } => return ("setxattr", Some(*inode)),
            Effect::Purge { inode, .. } => removed = removed.or(Some(*inode)),
            Effect::Inode(_) | Effect::Link(_) => {}
        }
    }
    if removed.is_some() {
        return ("remove", removed);
    }
    let changed =
        effects.iter().find_map(|effect| if let Effect::Inode(inode) = effect { Some(inode.inode) } else { None });
    ("setattr", changed)
}
