//! Opening a volume: the superblock says where the last checkpoint is, the journal what happened since.
//!
//! What always holds afterwards:
//! - Everything that a sync promised is there; nothing is there that nobody wrote.
//! - After an unclean stop operations are made under a new incarnation, so no dot ever names two operations, even if
//!   a peer has seen some that were lost here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};

use crate::causal::VersionVector;
use crate::codec::Reader;
use crate::content::Content;
use crate::content::overlay::Overlay;
use crate::content::reader::ContentReader;
use crate::disk::{Disk, FileName};
use crate::id::{DirId, InodeId};
use crate::identity::{Author, NodeKey};
use crate::merkle::NodeCache;
use crate::meta::journal::{self, Journal, JournalError, Repair};
use crate::meta::superblock::{StoreId, Superblock, SuperblockError};
use crate::meta::{Frozen, Lsn, Meta, Roots};
use crate::namespace::Effect;
use crate::namespace::apply::GENESIS_DOT;
use crate::namespace::op::{Field, InodeEffect};
use crate::namespace::plan;
use crate::namespace::row::Owner;
use crate::namespace::tables::{Rows, Table, malformed};
use crate::namespace::view::{self, Stat};
use crate::oplog::{self, Oplog, OplogError};
use crate::settings::Settings;
use crate::snapshot::record::roots_of_state;
use crate::store::{self, GlyphIndex, GlyphKind, GlyphSink, GlyphStore, StoreError, StoreOptions};
use crate::time::{Env, Hlc};
use crate::volume::VolumeError;

use super::ballast::Ballast;
use super::bootstrap::Made;
use super::branches::Branches;
use super::files::FileCell;
use super::groups::RECORD_GROUP;
use super::incarnation::{self, new_author};
use super::join::RECORD_MERGE;
use super::peers::LastHead;
use super::receipts::Receipts;
use super::records::{Base, Delta, Records, Staged, base_inode, delta_number, delta_prefix};
use super::remote::Remote;
use super::staged::{MEMORY_BYTES_MAX, Place, Staging, StagingPool};
use super::state::{RECORD_TRANSACTION, State, local_key};
use super::transfer::InUse;
use super::upkeep::{Cache, Checkpoint, Checkpoints, Counters};
use super::{LocalVolume, Options, TABLES, names};

/// What the superblock holds instead of a checkpoint while a store is made out of an export. It begins with a version that
/// no checkpoint has.
pub(super) const UNFINISHED: [u8; 11] = *b"\0unfinished";

/// The journal keeps what two checkpoints cover, and grows while one is made. (One MiB each.)
const JOURNAL_SEGMENTS_MAX: u32 = 128;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Oplog(#[from] OplogError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A store that is being made out of an export; that was interrupted.
    #[error("the store is not finished: it was being made out of an exported snapshot")]
    Unfinished,
    #[error("the disk failed while {doing}: {source}")]
    Disk { doing: &'static str, source: std::io::Error },
}

/// How far opening has come.
#[derive(Clone, Copy, Debug)]
pub enum Progress {
    Packs(store::Progress),
    /// Records of the journal done so far.
    Replaying(u64),
    /// Files whose unpublished bytes were found.
    Recovering(u64),
}

/// What opening found.
#[derive(Clone, Debug, Default)]
pub struct Opening {
    /// The store is new.
    pub created: bool,
    /// The last stop was a clean one.
    pub clean: bool,
    pub replayed: u64,
    /// Files whose bytes were not published when the daemon stopped.
    pub recovered_files: u64,
    pub store: store::OpenReport,
    pub oplog_damaged: bool,
}

/// What all lines of changes in a store have in common.
pub(super) struct Common {
    pub env: Arc<dyn Env>,
    pub store: Arc<GlyphStore>,
    pub nodes: Arc<NodeCache>,
    pub store_id: StoreId,
    pub key: Arc<NodeKey>,
    pub ballast: Arc<Ballast>,
    pub settings: Arc<RwLock<Settings>>,
    pub remote: Arc<Remote>,
}

/// Where a branch comes from.
pub(super) struct Descent {
    pub name: String,
    /// Who made what the branch began with.
    pub ancestors: Vec<Author>,
    pub registry: Arc<RwLock<State>>,
}

impl LocalVolume {
    /// Opens the volume on this disk, or makes a new one on an empty disk.
    pub fn open(
        disk: Arc<dyn Disk>,
        index: Arc<dyn GlyphIndex>,
        env: Arc<dyn Env>,
        key_seed: &[u8; 32],
        options: Options,
        progress: &dyn Fn(Progress),
    ) -> Result<Self, OpenError> {
        let open_store = |store_id: StoreId| {
            let store_options = StoreOptions { reserve_bytes: options.reserve_bytes, ..StoreOptions::new(store_id.0) };
            let (store, report) =
                GlyphStore::open(disk.clone(), index, &store_options, &|p| progress(Progress::Packs(p)))?;
            Ok((Arc::new(store), report))
        };
        Self::open_over(open_store, disk.clone(), env, key_seed, options.clone(), progress)
    }

    /// Opens what was made just now. Whoever reads its glyphs already goes on with that.
    pub fn open_made(
        made: Made,
        disk: Arc<dyn Disk>,
        env: Arc<dyn Env>,
        key_seed: &[u8; 32],
        options: Options,
        progress: &dyn Fn(Progress),
    ) -> Result<Self, OpenError> {
        let store = |_| Ok((made.store, store::OpenReport::default()));
        Self::open_over(store, disk, env, key_seed, options, progress)
    }

    fn open_over(
        store: impl FnOnce(StoreId) -> Result<(Arc<GlyphStore>, store::OpenReport), OpenError>,
        disk: Arc<dyn Disk>,
        env: Arc<dyn Env>,
        key_seed: &[u8; 32],
        options: Options,
        progress: &dyn Fn(Progress),
    ) -> Result<Self, OpenError> {
        let key = Arc::new(NodeKey::from_seed(key_seed));
        let mut opened = Opening::default();
        let (superblock, checkpoint) = open_superblock(&*disk, &*env, &key, &mut opened)?;
        let store_id = superblock.store();
        let (store, report) = store(store_id)?;
        opened.store = report;
        let nodes = Arc::new(NodeCache::new(store.clone(), options.node_cache_bytes));
        let (ballast, settings, remote) = Default::default();
        let common = Common { env, store, nodes, store_id, key, ballast, settings, remote };
        let volume = Self::open_line(common, None, disk, (superblock, checkpoint), opened, options, progress)?;
        volume.load_settings()?;
        volume.load_layout()?;
        volume.remove_unregistered_branches()?;
        Ok(volume)
    }

    /// Opens one line of changes: the main one, or a branch.
    pub(super) fn open_line(
        common: Common,
        descent: Option<Descent>,
        disk: Arc<dyn Disk>,
        (mut superblock, checkpoint): (Superblock, Checkpoint),
        mut opened: Opening,
        options: Options,
        progress: &dyn Fn(Progress),
    ) -> Result<Self, OpenError> {
        let Common { env, store, nodes, store_id, key, ballast, settings, remote } = common;
        opened.clean = checkpoint.clean;
        let meta = Meta::open(nodes.clone(), &TABLES, checkpoint.roots.clone())
            .map_err(|source| StoreError::Malformed { what: "the superblock".into(), source })?;
        let (oplog, oplog_report) = Oplog::open(disk.clone(), store_id.0, oplog::SEGMENT_BYTES)?;
        opened.oplog_damaged = !oplog_report.is_intact();

        let mut state = State::new(meta, checkpoint.context.clone(), checkpoint.hlc, checkpoint.author);
        if state.context.is_empty() {
            state.begin();
        }
        state.load_authors()?;
        let (branch, ancestors, registry) = match descent {
            Some(Descent { name, ancestors, registry }) => {
                state.follow(registry.read().known());
                (Some(name), ancestors, Some(registry))
            }
            None => (None, Vec::new(), None),
        };
        state.settings = settings.clone();
        let mut replayed = 0;
        let mut merged = Vec::new();
        let journal = {
            let glyphs = store.clone();
            let store = store.clone();
            let journal_options = journal::Options {
                store: store_id,
                after: checkpoint.lsn,
                geometry: journal::Geometry { segments_max: JOURNAL_SEGMENTS_MAX, ..journal::Geometry::default() },
                repair: if options.repair { Repair::DropAfterDamage } else { Repair::Refuse },
            };
            Journal::open(disk.clone(), journal_options, Box::new(move || store.sync()), &mut |lsn, kind, payload| {
                if kind == RECORD_TRANSACTION
                    && let Some(name) = state.replay(lsn, payload)?
                {
                    make_cut(&mut state, &glyphs, &name)?;
                }
                if kind == RECORD_GROUP {
                    state.replay_group(lsn, payload)?;
                }
                if kind == RECORD_MERGE {
                    let frozen = |roots: &Roots| Frozen::new(nodes.clone(), roots.clone());
                    merged.extend(state.replay_merge(lsn, payload, frozen)?.map(|roots| (lsn, roots)));
                }
                replayed += 1;
                if replayed % 4096 == 0 {
                    progress(Progress::Replaying(replayed));
                }
                Ok(())
            })?
        };
        opened.replayed = replayed;
        if branch.is_none() {
            state.look_at_registry()?;
        }
        let heads = oplog.heads();
        state.unsealed.retain(|op| heads.get(&op.dot.author).is_none_or(|head| op.dot.n > head.n));

        // From here on the store counts as unclean until it is closed.
        let in_use = Checkpoint { clean: false, ..checkpoint.clone() }.encode();
        superblock.write(&in_use)?;
        if checkpoint.clean {
            // In both copies: one that still said otherwise could be what the next start finds, after damage.
            superblock.write(&in_use)?;
        }
        let mut author = checkpoint.author;
        if opened.created || !incarnation::goes_on(&checkpoint, &state) {
            author = new_author(&*env, &key);
        }
        let now = env.now();
        let mut changes = state.meet(&ancestors);
        changes.extend(state.become_author(author));
        if !changes.is_empty() {
            state.commit_local(changes, now, &journal)?;
        }
        // Until there is an operation: the making of the volume may have been interrupted just before this.
        let is_untouched = state.context.iter().all(|(author, _)| author == GENESIS_DOT.author);
        if is_untouched {
            own_root(&mut state, options.root_owner, &*env, &journal)?;
        }

        let next_staging = next_staging_number(&*disk, &state)?;
        let checkpoint_lsn = checkpoint.lsn;
        let state = Arc::new(RwLock::new(state));
        let volume = Self {
            staging: StagingPool::new(disk.clone(), next_staging, options.memory_bytes),
            staging_cache: Cache::default(),
            env,
            disk,
            store,
            nodes,
            store_id,
            key,
            branch,
            branches: Branches::default(),
            options,
            opened: Opening::default(),
            journal,
            oplog,
            superblock: Mutex::new(superblock),
            sealing: Mutex::new(()),
            sealing_snapshots: Mutex::new(()),
            in_use: InUse::default(),
            head: LastHead::default(),
            receipts: Receipts::default(),
            backlogs: super::backlog::Backlogs::default(),
            divergence: Mutex::default(),
            showing: RwLock::default(),
            followers: AtomicUsize::new(0),
            coming: super::coming::Coming::default(),
            seal_wanted: Mutex::new(true),
            seal_asked: Condvar::new(),
            housekeeping: Mutex::new(()),
            // Saying that the store is in use has just made both copies alike.
            cut_pending: AtomicBool::new(false),
            checkpoint: Mutex::new(Checkpoints {
                previous_roots: checkpoint.roots.clone(),
                last: checkpoint,
                kept: Roots::default(),
                pending: None,
                merged,
            }),
            registry: registry.unwrap_or_else(|| state.clone()),
            state,
            files: Mutex::new(HashMap::new()),
            handles: RwLock::new(HashMap::new()),
            next_handle: AtomicU64::new(1),
            cached_versions: Mutex::default(),
            misjudged: Mutex::default(),
            writing_to_disk: Mutex::default(),
            queue: Mutex::default(),
            queued: Condvar::new(),
            hurried: AtomicBool::new(false),
            departed: Mutex::default(),
            removed_dirs: Mutex::default(),
            reserved: super::reserved::Reserved::default(),
            retries: Mutex::default(),
            synced_in_groups: Mutex::default(),
            room: AtomicBool::new(true),
            tight: AtomicBool::new(false),
            ballast,
            stopping: AtomicBool::new(false),
            invalidate: RwLock::new(None),
            settings,
            merged: super::drivers::Remembered::default(),
            remote,
            unreadable: Mutex::default(),
            counters: Counters { checkpoint_lsn: AtomicU64::new(checkpoint_lsn.0), ..Counters::default() },
        };
        opened.recovered_files = volume.recover_files(progress)?;
        volume.forget_orphans()?;
        volume.commit_journal()?;
        volume.check_room();
        if replayed > 0 {
            // The page cache may show journal bytes that a failed sync never brought to the disk.
            volume.make_checkpoint(false)?;
        }
        Ok(Self { opened, ..volume })
    }

    /// Takes up the files that were dirty at the last stop; removes staging files that nothing names.
    fn recover_files(&self, progress: &dyn Fn(Progress)) -> Result<u64, OpenError> {
        let records = self.state.read().with_prefix(Table::Local, b"s")?;
        let mut recovered = 0;
        let mut kept = Vec::new();
        for (key, value) in records {
            let id = base_inode(&key).map_err(|e| malformed("dirty file", &key, e))?;
            let staged = Staged::decode(&value).map_err(|e| malformed("dirty file", &key, e))?;
            if let Some(number) = self.recover_file(id, staged)? {
                kept.extend(number);
                recovered += 1;
                progress(Progress::Recovering(recovered));
            }
        }
        let names = self.disk.list().map_err(|source| OpenError::Disk { doing: "listing the store", source })?;
        for name in names {
            if let FileName::Staging(number) = name
                && !kept.contains(&number)
            {
                self.staging.retire(number, Lsn::default());
            }
        }
        Ok(recovered)
    }

    /// Takes up the bytes of a dirty file, if they are still wanted. Says which staging files they need.
    fn recover_file(&self, id: InodeId, staged: Staged) -> Result<Option<Vec<u64>>, OpenError> {
        let mut state = self.state.write();
        let (deltas, found) = find_deltas(&state, id, &staged)?;
        let drop_records = |state: &mut State| -> Result<Option<Vec<u64>>, OpenError> {
            state.commit_local(found.replacing(id, None), self.env.now(), &self.journal)?;
            Ok(None)
        };
        let Some(row) = state.inode(id)? else { return drop_records(&mut state) };
        let stat = Stat::in_tables(&*state, &row);
        let (version, content) =
            stat.version.map_or((None, Content::Empty), |(dot, version)| (Some(dot), version.content));
        let inline = super::files::inline_bytes(&*state, id, version, &content)?;
        let in_journal = matches!(staged, Staged::Bytes { .. }) || !deltas.is_empty();
        let failed = |doing| move |source| OpenError::Disk { doing, source };
        let mut needed = Vec::new();
        let (place, mut overlay, mut mtime) = match staged {
            Staged::Bytes { bytes, mtime } => {
                let end = deltas.iter().map(Delta::end).fold(bytes.len() as u64, u64::max);
                let place = if end <= MEMORY_BYTES_MAX { self.staging.take_short() } else { self.staging.take_file() };
                let place = place.map_err(failed("making a staging file"))?;
                place.file.write_at(&bytes, 0).map_err(failed("writing a staging file"))?;
                (place, Overlay::whole(bytes.len() as u64), mtime)
            }
            Staged::File { number, overlay, mtime, host_mtime } => {
                let file = match self.disk.open(FileName::Staging(number)) {
                    Ok(file) => Some(file),
                    // It was never synced, so nothing was promised about it.
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
                    Err(e) => return Err(failed("opening a staging file")(e)),
                };
                // A file that started empty is what is in its staging file: the kernel wrote to it until the end.
                // Of one that started as a version, only what was recorded after a sync is known to be there; and the
                // record of an older version is none of ours, as publishing removes the record.
                let new = *overlay.base() == Content::Empty;
                let wanted = new || overlay.is_dirty() && *overlay.base() == content;
                let Some(file) = file.filter(|_| wanted) else { return drop_records(&mut state) };
                let stamp = file.stamp().map_err(failed("looking at a staging file"))?;
                let mtime = if stamp.mtime == host_mtime { mtime } else { stamp.mtime };
                let overlay = if new {
                    Overlay::whole(stamp.len_bytes)
                } else {
                    // It was as long as that when it was recorded. If it is shorter now it was cut since, and what was
                    // behind is gone.
                    let mut overlay = overlay;
                    let len = overlay.len_bytes().min(stamp.len_bytes);
                    overlay.truncate(&*file, len).map_err(VolumeError::from)?;
                    overlay
                };
                (Place { number, file, in_memory: false }, overlay, mtime)
            }
        };
        // The deltas stay in the journal until the file is published: over what they make of the staging file they can
        // be applied again.
        for delta in deltas {
            for (offset, bytes) in &delta.writes {
                overlay.write(&*place.file, bytes, *offset).map_err(VolumeError::from)?;
            }
            mtime = delta.mtime;
        }
        if !place.in_memory {
            needed.push(place.number);
        }
        let mut staging =
            Staging::new(place, overlay, self.env.now(), mtime).map_err(failed("looking at a staging file"))?;
        staging.changed = staging.mtime;
        staging.dirty = true;
        staging.recovered = true;
        staging.records = found;
        // Bytes that are in the journal are safer there.
        if !in_journal {
            let record = staging.record().map_err(failed("looking at a staging file"))?;
            let changes = staging.records.replacing(id, Some(&record));
            state.commit_local(changes, self.env.now(), &self.journal)?;
        }
        let reader = ContentReader::new(content, inline.clone()).map_err(VolumeError::from)?;
        // Which versions it was made of is known only from the bytes under it; a file that was rewritten has none.
        let base = *staging.overlay.base();
        let mut seen: Vec<_> =
            row.versions.entries().iter().filter(|entry| entry.value.content == base).map(|entry| entry.dot).collect();
        if seen.is_empty() && row.versions.entries().len() == 1 {
            seen.extend(row.versions.dots());
        }
        let cell = FileCell::recovered(id, (version, seen), inline, reader, staging);
        drop(state);
        self.files.lock().insert(id, Arc::new(cell));
        self.enqueue(id);
        Ok(Some(needed))
    }

    /// Files that were unlinked while open: nobody can have them open any more.
    fn forget_orphans(&self) -> Result<(), OpenError> {
        let orphans = self.state.read().with_prefix(Table::Local, b"o")?;
        for (key, _) in orphans {
            let id = InodeId(crate::namespace::derive::dot_of(&key)?);
            self.purge_orphan(id)?;
            self.enqueue(id);
        }
        Ok(())
    }

    /// Forgets an inode that has no name and that nobody has open any more.
    pub(super) fn purge_orphan(&self, id: InodeId) -> crate::volume::Result<()> {
        let mut state = self.state.write();
        let mut draft = state.draft(self.env.now());
        match state.inode(id)? {
            Some(row) if view::nlink(&*state, id, row.kind())? == 0 => {
                names::purge(&state, &*state, &mut draft, id, &row)?;
            }
            // It has got a name again.
            _ => draft.local.push((local_key(b'o', &id.0.to_bytes()), None)),
        }
        state.commit(draft, &self.journal)?;
        Ok(())
    }
}

/// The deltas over this base, in order, and the records that all of them are.
fn find_deltas(state: &State, id: InodeId, base: &Staged) -> Result<(Vec<Delta>, Records), OpenError> {
    let (mut deltas, mut numbers, mut bytes) = (Vec::new(), 0..0, 0);
    for (rest, value) in state.with_prefix(Table::Local, &delta_prefix(id))? {
        let number = delta_number(&rest).map_err(|e| malformed("dirty file", &rest, e))?;
        if deltas.is_empty() {
            numbers.start = number;
        }
        numbers.end = number.saturating_add(1);
        bytes += value.len() as u64;
        deltas.push(Delta::decode(&value).map_err(|e| malformed("dirty file", &rest, e))?);
    }
    let base = match base {
        Staged::File { .. } => Base::File,
        Staged::Bytes { .. } => Base::Bytes,
    };
    Ok((deltas, Records::found(base, numbers, bytes)))
}

fn open_superblock(
    disk: &dyn Disk,
    env: &dyn Env,
    key: &NodeKey,
    opened: &mut Opening,
) -> Result<(Superblock, Checkpoint), OpenError> {
    if let Some((superblock, payload)) = find_superblock(disk)? {
        if payload[..] == UNFINISHED {
            return Err(OpenError::Unfinished);
        }
        let checkpoint = Checkpoint::decode(&mut Reader::new(&payload))
            .map_err(|source| StoreError::Malformed { what: "the superblock".into(), source })?;
        return Ok((superblock, checkpoint));
    }
    opened.created = true;
    let checkpoint = Checkpoint {
        context: VersionVector::new(),
        hlc: Hlc::default(),
        author: new_author(env, key),
        clean: false,
        lsn: Lsn::default(),
        roots: Roots::default(),
    };
    let superblock = Superblock::create(disk, new_store_id(env), &checkpoint.encode())?;
    Ok((superblock, checkpoint))
}

/// The superblock of the store; nothing if the disk is empty.
pub(super) fn find_superblock(disk: &dyn Disk) -> Result<Option<(Superblock, Bytes)>, OpenError> {
    let names = disk.list().map_err(|source| OpenError::Disk { doing: "listing the store", source })?;
    let others = names.iter().any(|name| *name != FileName::Superblock);
    match Superblock::open(disk) {
        Ok(found) => Ok(Some(found)),
        Err(SuperblockError::Missing) if !others => Ok(None),
        // The making of the store was interrupted before anything else was in it.
        Err(SuperblockError::Damaged(..)) if !others => {
            disk.remove(FileName::Superblock)
                .map_err(|source| OpenError::Disk { doing: "removing a half-made superblock", source })?;
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

pub(super) fn new_store_id(env: &dyn Env) -> StoreId {
    let mut store_id = [0; 16];
    store_id.copy_from_slice(&env.random()[..16]);
    StoreId(store_id)
}

/// The root of a new volume belongs to whoever makes the volume, and is as old as that.
fn own_root(state: &mut State, owner: (u32, u32), env: &dyn Env, journal: &Journal) -> Result<(), StoreError> {
    let root = DirId::ROOT.inode();
    let Some(row) = state.inode(root)? else { return Ok(()) };
    let mut draft = state.draft(env.now());
    draft.effects.push(Effect::Inode(InodeEffect {
        owner: Some(Owner { uid: owner.0, gid: owner.1 }),
        mtime: Some(draft.time),
        touched: Some(draft.time),
        drops: plan::drops(Field::Owner, &row.owner)
            .chain(plan::drops(Field::Mtime, &row.mtime))
            .chain(plan::drops(Field::Touched, &row.touched))
            .collect(),
        ..InodeEffect::new(root)
    }));
    state.commit(draft, journal)?;
    Ok(())
}

/// Above all that are on the disk, and all that a record names though they are not: their names were not durable.
fn next_staging_number(disk: &dyn Disk, state: &State) -> Result<u64, OpenError> {
    let mut named = 0;
    for (key, value) in state.with_prefix(Table::Local, b"s")? {
        if let Staged::File { number, .. } = Staged::decode(&value).map_err(|e| malformed("dirty file", &key, e))? {
            named = named.max(number);
        }
    }
    let names = disk.list().map_err(|source| OpenError::Disk { doing: "listing the store", source })?;
    let numbers = names.iter().filter_map(|name| if let FileName::Staging(n) = name { Some(*n) } else { None });
    numbers.fold(named, u64::max).checked_add(1).ok_or_else(|| {
        let source = crate::codec::DecodeError::NotCanonical("the number of a staging file");
        OpenError::Store(StoreError::Malformed { what: "a record about a dirty file".into(), source })
    })
}

/// Makes the maps of a snapshot that was taken at this place of the journal.
fn make_cut(state: &mut State, glyphs: &GlyphStore, name: &str) -> Result<(), StoreError> {
    if let Some(job) = state.meta.freeze() {
        let done = job.run(&Roots::default(), &mut |plain, _| glyphs.write(GlyphKind::Node, plain))?;
        drop(state.meta.install(done));
    }
    let Some(mut snapshot) = state.snapshot(name)? else { return Ok(()) };
    snapshot.cut.roots = roots_of_state(state.meta.roots());
    state.show_snapshot(name, &snapshot)
}
