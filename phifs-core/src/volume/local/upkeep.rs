//! What background threads do for a volume: publish closed files, sync within a second, seal, checkpoint, tidy up.
//!
//! Core spawns no thread; the daemon gives each of `run_publisher`, `tick` and `checkpoint` one of its own.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::causal::VersionVector;
use crate::codec::{self, DecodeError, Encode, Reader};
use crate::disk::Disk;
use crate::id::{Dot, InodeId};
use crate::identity::Author;
use crate::merkle::Replaced;
use crate::meta::journal::JournalError;
use crate::meta::{CheckpointJob, Lsn, Roots, TableId};
use crate::namespace::{Effect, Op, Table};
use crate::oplog::{GroupBuilder, Head};
use crate::registry::Key;
use crate::snapshot::record::roots_of_state;
use crate::store::{GlyphKind, GlyphSink, StoreError};
use crate::time::{Hlc, Timestamp};
use crate::volume::{Result, StatFs, VolumeError};

use super::LocalVolume;
use super::ballast::BALLAST_BYTES;
use super::names::NAME_BYTES_MAX;
use super::state::{State, Unsealed};

/// Closed files are settled together, after this: many of them are removed or written again at once, and whoever closes
/// many has use for the processor.
const REST: Duration = Duration::from_millis(300);
/// Where other machines wait for them, a few files are settled after this.
const REST_FOLLOWED: Duration = Duration::from_millis(2);
const FEW: usize = 8;

const CHECKPOINT_VERSION: u8 = 1;
/// A checkpoint is due after this many changed rows or bytes, or this much journal, whatever comes first: random
/// changes cost three times less when a hundred thousand are written together.
const CHECKPOINT_ROWS: usize = 200_000;
const CHECKPOINT_BYTES: usize = 48 << 20;
const CHECKPOINT_JOURNAL_BYTES: u64 = 20 << 20;
/// Removing a file can take the host a millisecond. Whoever publishes a file removes more than one that is superfluous,
/// so that they never pile up; the tick, on which durability within a second depends, does only so many.
const RETIRED_PER_FILE: usize = 4;
const RETIRED_PER_TICK: usize = 64;

/// What the superblock stands for: a state of all tables, and where to go on in the journal.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub context: VersionVector,
    pub hlc: Hlc,
    /// Who makes operations; a clean stop lets the next start go on as the same author.
    pub author: Author,
    pub clean: bool,
    pub lsn: Lsn,
    pub roots: Roots,
}

impl Checkpoint {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![CHECKPOINT_VERSION];
        out.put_u8(u8::from(self.clean));
        self.author.encode(&mut out);
        out.put_hlc(self.hlc);
        out.put_varint(self.lsn.0);
        self.context.encode(&mut out);
        self.roots.encode(&mut out);
        out
    }

    pub fn decode(reader: &mut Reader<'_>) -> codec::Result<Self> {
        let found = reader.u8()?;
        if found != CHECKPOINT_VERSION {
            let (found, known) = (u32::from(found), u32::from(CHECKPOINT_VERSION));
            return Err(DecodeError::NewerVersion { what: "the checkpoint", found, known });
        }
        let clean = reader.u8()? == 1;
        let author = Author::decode(reader)?;
        let hlc = reader.hlc()?;
        let lsn = Lsn(reader.varint()?);
        let context = VersionVector::decode(reader)?;
        let roots = Roots::decode(reader)?;
        Ok(Self { context, hlc, author, clean, lsn, roots })
    }
}

/// What the two copies of the superblock stand for.
pub struct Checkpoints {
    pub last: Checkpoint,
    pub previous_roots: Roots,
    /// The maps of the last snapshot that was taken here: the nodes that are made next can be told by theirs, which stay.
    pub kept: Roots,
    /// A snapshot that was promised and whose maps are still to be made.
    pub pending: Option<PendingCut>,
    /// States that the journal names at these places, because they were merged there.
    pub merged: Vec<(Lsn, Roots)>,
}

/// The tables as they were when a snapshot was taken. They stay frozen until its maps are made, whatever fails.
pub struct PendingCut {
    pub name: String,
    pub frozen: FrozenState,
}

/// All that a checkpoint needs, taken at one moment.
pub struct FrozenState {
    pub job: Option<CheckpointJob>,
    pub next: Checkpoint,
    inodes: u64,
}

#[derive(Default)]
pub struct Counters {
    pub published: AtomicU64,
    pub checkpoints: AtomicU64,
    pub sealed_ops: AtomicU64,
    /// Where the last checkpoint is in the journal: to be read while the next one is made, which takes a while.
    pub checkpoint_lsn: AtomicU64,
}

/// Which closed files keep their staging file, the latest last.
#[derive(Default)]
pub struct Cache {
    inner: Mutex<(u64, VecDeque<(InodeId, u64)>)>,
}

impl Cache {
    /// Whether this file may keep its staging file in a cache of `bytes_max`; it then counts as used now.
    pub fn admit(&self, id: InodeId, len_bytes: u64, bytes_max: u64) -> bool {
        if len_bytes > bytes_max {
            return false;
        }
        let (total, files) = &mut *self.inner.lock();
        if let Some(at) = files.iter().position(|(known, _)| *known == id) {
            *total -= files.remove(at).map_or(0, |(_, len)| len);
        }
        files.push_back((id, len_bytes));
        *total += len_bytes;
        true
    }

    /// Files that must give theirs back.
    fn excess(&self, bytes_max: u64) -> Vec<InodeId> {
        let (total, files) = &mut *self.inner.lock();
        let mut excess = Vec::new();
        while *total > bytes_max {
            let Some((id, len)) = files.pop_front() else { break };
            *total -= len;
            excess.push(id);
        }
        excess
    }
}

/// How a volume is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub store_id: String,
    /// The first bytes of this node's public key, in hexadecimal.
    pub node: String,
    pub author: String,
    pub operations: u64,
    pub inodes: u64,
    pub open_handles: u64,
    /// Files that are open, or whose bytes lie in a staging file, if only as a cache.
    pub dirty_files: u64,
    /// Files that are written to, or whose bytes are not published yet.
    pub unpublished_files: u64,
    /// Files that wait to be published.
    pub queued_files: u64,
    pub unsealed_operations: u64,
    pub published_versions: u64,
    pub checkpoints: u64,
    pub journal_bytes: u64,
    /// What is in the journal and not durable yet.
    pub uncommitted_bytes: u64,
    pub journal_syncs: u64,
    /// A checkpoint is due or being made.
    pub checkpoint_pending: bool,
    pub oplog_bytes: u64,
    pub pack_count: u64,
    pub data_stored_bytes: u64,
    pub node_stored_bytes: u64,
    pub read_only: bool,
    pub quarantined_glyphs: u64,
}

/// One operation, for people.
#[derive(Clone, Debug)]
pub struct RecentOp {
    pub dot: Dot,
    pub hlc: Hlc,
    pub time: Timestamp,
    pub effects: Vec<Effect>,
}

impl LocalVolume {
    pub(super) fn enqueue(&self, id: InodeId) {
        let mut queue = self.queue.lock();
        queue.push_back(id);
        let wake = queue.len() == 1 || self.staging.memory_is_short();
        drop(queue);
        if wake {
            self.queued.notify_one();
        }
    }

    pub(super) fn enqueue_later(&self, id: InodeId) {
        self.retries.lock().insert(id);
    }

    /// Publishes closed files until the volume stops. Several threads may do so.
    pub fn run_publisher(&self) {
        while let Some(id) = self.next_to_settle() {
            self.settle_logged(id);
            if let Err(error) = self.remove_retired(RETIRED_PER_FILE) {
                tracing::warn!(%error, "a staging file could not be removed");
            }
            if self.staging.is_low()
                && let Err(error) = self.staging.refill()
            {
                tracing::warn!(%error, "no staging files could be made ready");
            }
        }
    }

    /// Waits for a file to settle; `None` when the volume stops and none is left.
    fn next_to_settle(&self) -> Option<InodeId> {
        let stopping = || self.stopping.load(Ordering::Acquire);
        let mut queue = self.queue.lock();
        while queue.is_empty() && !stopping() {
            self.queued.wait(&mut queue);
            if !stopping() && !self.staging.memory_is_short() && !self.hurried.load(Ordering::Acquire) {
                // Cut short by the stop, by a snapshot, and by an `enqueue` when memory gets short.
                let is_followed = self.followers.load(Ordering::Relaxed) > 0;
                let was_cut = is_followed && !self.queued.wait_for(&mut queue, REST_FOLLOWED).timed_out();
                if !is_followed || !was_cut && queue.len() > FEW {
                    self.queued.wait_for(&mut queue, REST);
                }
            }
        }
        let next = queue.pop_front();
        if !queue.is_empty() {
            self.queued.notify_one();
        }
        next
    }

    /// While `work` goes on, publishers do not let files rest.
    pub(super) fn hurry<T>(&self, work: impl FnOnce() -> T) -> T {
        {
            let _queue = self.queue.lock();
            self.hurried.store(true, Ordering::Release);
        }
        self.queued.notify_all();
        let done = work();
        self.hurried.store(false, Ordering::Release);
        done
    }

    /// Makes `run_publisher` return once its queue is empty.
    pub fn stop_publishers(&self) {
        {
            // Under the lock of the queue: whoever saw no reason to stop waits by now, and hears of it.
            let _queue = self.queue.lock();
            let _wanted = self.seal_wanted.lock();
            self.stopping.store(true, Ordering::Release);
        }
        self.queued.notify_all();
        self.seal_asked.notify_all();
    }

    fn settle_logged(&self, id: InodeId) {
        if let Err(error) = self.settle(id) {
            tracing::error!(%error, inode = %id.0, "a file could not be published; its bytes are kept in staging");
            self.enqueue_later(id);
        }
    }

    /// Gives up every staging file that is only a cache, and its space on the host with it.
    pub(super) fn evict_all(&self) -> Result<()> {
        self.evict_excess(0)?;
        self.commit_journal()?;
        self.remove_retired(usize::MAX)
    }

    fn remove_retired(&self, files_max: usize) -> Result<()> {
        let removed = self.staging.maintain(self.journal.committed(), files_max);
        removed.map_err(|source| VolumeError::Disk { doing: "removing staging files", source })
    }

    pub(super) fn commit_journal(&self) -> Result<()> {
        let commit = || self.journal.commit(self.journal.appended());
        let full = |error: &JournalError| matches!(error, JournalError::Full | JournalError::Barrier(StoreError::Full));
        let committed = match commit() {
            Err(error) if full(&error) && self.ballast.release(&*self.disk) => commit(),
            committed => committed,
        };
        committed.map_err(|error| match error {
            JournalError::Full => VolumeError::NoSpace("the journal cannot grow"),
            JournalError::Barrier(source) => VolumeError::Store(source),
            error => {
                tracing::error!(%error, "the journal cannot be written; the volume is read-only");
                VolumeError::ReadOnly
            }
        })
    }

    /// Makes what was done so far durable, publishes files that stay open, and tidies up. To be called about once a
    /// second, at most: what no sync was asked for reaches the disk by this.
    pub fn tick(&self) -> Result<()> {
        self.check_room();
        for id in std::mem::take(&mut *self.retries.lock()) {
            self.enqueue(id);
        }
        // One file's trouble is no reason to neglect the others, nor is one step's for the next.
        for cell in self.cells() {
            match self.publish_open(&cell) {
                // Its writer is told by fsync and close.
                Ok(()) | Err(VolumeError::LostWrite) => {}
                Err(error) => tracing::error!(%error, inode = %cell.id.0, "a file's bytes could not be made durable"),
            }
        }
        // When it was told at the close, the kernel may still have had a hand on the file.
        for id in self.still_misjudged().into_iter().filter(|id| !self.is_open(*id)) {
            self.forget_in_kernel(&self.state.read(), id)?;
        }
        let grouped = self.publish_synced_groups();
        let committed = if self.journal.appended() > self.journal.committed() { self.commit_journal() } else { Ok(()) };
        let sealed = self.seal();
        let cache_bytes = if self.tight.load(Ordering::Relaxed) { 0 } else { self.settings.read().cache_bytes };
        let evicted = self.evict_excess(cache_bytes);
        let tidied = self.remove_retired(RETIRED_PER_TICK);
        self.store.flush_index();
        if let Err(error) = self.journal.prepare() {
            tracing::warn!(%error, "no spare journal file could be made");
        }
        grouped.and(committed).and(sealed).and(evicted).and(tidied)
    }

    /// Gives back the staging files of closed files, the oldest first, until they take no more than this.
    fn evict_excess(&self, bytes_max: u64) -> Result<()> {
        let evicted = self.staging_cache.excess(bytes_max).into_iter().map(|id| self.evict(id));
        evicted.fold(Ok(()), Result::and)
    }

    /// Signs what is not in the oplog yet.
    pub fn seal(&self) -> Result<()> {
        let failed = |error: crate::oplog::OplogError| {
            tracing::error!(%error, "the operation log cannot be written");
            VolumeError::ReadOnly
        };
        // One at a time, so that groups reach the log in order.
        let _sealing = self.sealing.lock();
        let (ops, context) = {
            let mut state = self.state.write();
            (std::mem::take(&mut state.unsealed), state.context.clone())
        };
        let mut ops = ops.into_iter().peekable();
        let mut sealed = Ok(());
        while let Some(first) = ops.peek() {
            let id = first.dot.author;
            let author = self.state.read().author_of(id);
            let Some(author) = author.filter(|author| author.node == self.key.public()) else {
                ops.next();
                continue;
            };
            let head = self.oplog.head(id).unwrap_or_else(|| Head::start(&author));
            if head.n + 1 != first.dot.n {
                // The log lost its end; peers get these operations as state.
                tracing::warn!(author = %id, from = head.n + 1, to = first.dot.n, "operations are missing in the log");
                ops.next();
                continue;
            }
            let mut builder = GroupBuilder::new(author, head);
            let mut members: Vec<Unsealed> = Vec::new();
            let mut known = None;
            while known.is_none()
                && let Some(op) = ops.next_if(|op| op.dot.author == id && !builder.is_full())
            {
                builder.push(op.dot.n, op.hlc, &op.bytes);
                known.clone_from(&op.context);
                members.push(op);
            }
            let group = builder.seal(&self.key, known.unwrap_or_else(|| context.clone()));
            let group = group.map_err(|error| VolumeError::Internal(error.to_string()));
            sealed = group.and_then(|group| self.oplog.append(&group).map(drop).map_err(failed));
            if sealed.is_err() {
                // They come first next time: without them the chain could never go on.
                let unsealed = &mut self.state.write().unsealed;
                for op in members.into_iter().chain(ops).rev() {
                    unsealed.push_front(op);
                }
                break;
            }
            self.counters.sealed_ops.fetch_add(members.len() as u64, Ordering::Relaxed);
        }
        sealed
    }

    /// Up to where the journal goes: it moves with every change.
    pub fn journal_end(&self) -> Lsn {
        self.journal.appended()
    }

    /// Whether enough has changed for a checkpoint.
    pub fn needs_checkpoint(&self) -> bool {
        let since = Lsn(self.counters.checkpoint_lsn.load(Ordering::Relaxed));
        let state = self.state.read();
        state.meta.changed_rows() >= CHECKPOINT_ROWS
            || state.meta.changed_bytes() >= CHECKPOINT_BYTES
            || self.journal.bytes_since(since) >= CHECKPOINT_JOURNAL_BYTES
    }

    /// Writes the state of all tables to the store and points the superblock at it. Writers go on meanwhile.
    pub fn make_checkpoint(&self, clean: bool) -> Result<()> {
        self.make_checkpoint_after(&mut self.checkpoint.lock(), clean)
    }

    /// The same, by somebody who keeps others from making the next one.
    pub(super) fn make_checkpoint_after(&self, checkpoints: &mut Checkpoints, clean: bool) -> Result<()> {
        self.finish_cut(checkpoints)?;
        let _hold = self.store.hold();
        let frozen = self.freeze(&mut self.state.write(), clean);
        let written = self.write_checkpoint(checkpoints, frozen);
        if written.is_err() {
            // Unless the maps were made all the same.
            self.state.write().meta.abandon();
        }
        written
    }

    /// Begins a checkpoint, in no time.
    pub(super) fn freeze(&self, state: &mut State, clean: bool) -> FrozenState {
        let job = state.meta.freeze();
        let next = Checkpoint {
            context: state.context.clone(),
            hlc: state.hlc,
            author: state.author,
            clean,
            lsn: self.journal.appended(),
            // Not those of the last checkpoint: if its superblock failed, the tables are ahead of it.
            roots: state.meta.roots().clone(),
        };
        FrozenState { job, next, inodes: state.inodes() }
    }

    /// Makes the maps of the snapshot that was promised, if there is one, and enters their roots.
    pub(super) fn finish_cut(&self, checkpoints: &mut Checkpoints) -> Result<()> {
        let Some(PendingCut { name, frozen }) = &checkpoints.pending else { return Ok(()) };
        let _hold = self.store.hold();
        let name = name.clone();
        let frozen = FrozenState { job: frozen.job.clone(), next: frozen.next.clone(), inodes: frozen.inodes };
        let written = self.write_checkpoint(checkpoints, frozen);
        // Freeing very many rows takes a while, and comes after the lock is given back.
        let _done;
        let mut state = self.state.write();
        if state.meta.is_frozen() {
            // It is tried again; the rows stay where they are.
            return written;
        }
        _done = checkpoints.pending.take();
        self.cut_pending.store(false, Ordering::Release);
        let Some(mut snapshot) = state.snapshot(&name)?.filter(|snapshot| snapshot.cut.is_pending()) else {
            return written;
        };
        snapshot.cut.roots = roots_of_state(state.meta.roots());
        checkpoints.kept = snapshot.cut.roots.clone();
        if written.is_err() {
            // Nothing becomes durable any more, but the maps are right; the next start makes them again.
            state.show_snapshot(&name, &snapshot)?;
            return written;
        }
        let mut draft = state.draft(self.env.now());
        draft.registry.push((Key::Snapshot(name), Some(snapshot.encode())));
        state.commit(draft, &self.journal)?;
        Ok(())
    }

    /// Makes sure that every snapshot that was taken has its maps.
    pub(super) fn settle_cuts(&self) -> Result<()> {
        // A checkpoint may take long, and is mostly none of the caller's business.
        if self.cut_pending.load(Ordering::Acquire) { self.finish_cut(&mut self.checkpoint.lock()) } else { Ok(()) }
    }

    fn write_checkpoint(&self, checkpoints: &mut Checkpoints, frozen: FrozenState) -> Result<()> {
        let last = &mut checkpoints.last;
        let FrozenState { job, mut next, inodes } = frozen;
        let mut done = None;
        if let Some(job) = job {
            let mut sink = |plain: &[u8], replaced: Option<&Replaced>| match replaced {
                Some(Replaced { id, bytes }) => self.store.write_node_after(plain, id, bytes),
                None => self.store.write(GlyphKind::Node, plain),
            };
            let result = job.run(&checkpoints.kept, &mut sink).map_err(StoreError::from)?;
            next.roots = result.roots().clone();
            let stored = next.roots.get(TableId(Table::Inodes as u8)).rows;
            debug_assert_eq!(stored, inodes, "the number of inodes was kept right");
            done = Some(result);
        }
        // Glyphs, journal and oplog first: the superblock makes the journal up to here superfluous.
        let durable = self.make_durable(next.lsn).and_then(|()| {
            self.superblock.lock().write(&next.encode()).map_err(|error| {
                tracing::error!(%error, "the superblock cannot be written");
                VolumeError::ReadOnly
            })
        });
        if let Some(done) = done {
            // Even if the superblock failed the new maps are right and readable.
            let superseded = self.state.write().meta.install(done);
            drop(superseded);
        }
        durable?;
        // Up to the checkpoint before this one, so that the other copy of the superblock can be started from too.
        if let Err(error) = self.journal.recycle(last.lsn) {
            tracing::warn!(%error, "journal files could not be recycled");
        }
        self.counters.checkpoint_lsn.store(next.lsn.0, Ordering::Relaxed);
        let previous = std::mem::replace(last, next);
        // Either copy of the superblock may be what the next start finds.
        checkpoints.merged.retain(|(lsn, _)| *lsn > previous.lsn);
        checkpoints.previous_roots = previous.roots;
        if let Err(error) = self.oplog.trim(self.options.oplog_bytes) {
            tracing::warn!(%error, "the operation log could not be trimmed");
        }
        self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn make_durable(&self, lsn: Lsn) -> Result<()> {
        debug_assert!(lsn <= self.journal.appended());
        self.commit_journal()?;
        self.seal()?;
        self.oplog.sync().map_err(|error| {
            tracing::error!(%error, "the operation log cannot be synced");
            VolumeError::ReadOnly
        })?;
        match self.store.sync() {
            Err(StoreError::Full) if self.ballast.release(&*self.disk) => Ok(self.store.sync()?),
            synced => Ok(synced?),
        }
    }

    /// Publishes everything and leaves the store as clean as can be. The volume must not be used afterwards.
    ///
    /// # Errors
    /// What could not be published is kept in staging; the store is closed cleanly all the same, if it can be.
    pub fn shut_down(&self) -> Result<()> {
        self.stop_publishers();
        let mut published = Ok(());
        for id in self.cells().into_iter().map(|cell| cell.id) {
            let closed = self.close_down(id).inspect_err(|error| {
                tracing::error!(%error, inode = %id.0, "a file could not be published; its bytes are kept in staging");
            });
            published = published.and(closed);
        }
        let closed = self.close_store();
        published.and(closed)
    }

    fn close_store(&self) -> Result<()> {
        self.evict_excess(0)?;
        self.commit_journal()?;
        self.staging.drain().map_err(|source| VolumeError::Disk { doing: "tidying staging files", source })?;
        self.store.flush_index();
        // The second one makes both copies of the superblock alike, so that the whole journal can be given back.
        self.make_checkpoint(true)?;
        self.make_checkpoint(true)
    }

    /// Looks how full the disk is, and holds space back or gives it up accordingly.
    pub(super) fn check_room(&self) {
        // An unknown amount of space is no reason to refuse; the write itself will tell.
        let Ok(space) = self.disk.space() else { return };
        let reserve = self.store.reserve_bytes();
        let tight = space.free_bytes < 2 * reserve + BALLAST_BYTES;
        self.room.store(space.free_bytes > reserve, Ordering::Relaxed);
        self.tight.store(tight, Ordering::Relaxed);
        if tight {
            self.ballast.hold(&*self.disk);
        } else {
            self.ballast.release(&*self.disk);
        }
    }

    pub(super) fn stat_fs(&self) -> Result<StatFs> {
        stat_fs(&*self.disk, self.store.reserve_bytes(), self.state.read().inodes())
    }

    pub fn opening(&self) -> &super::Opening {
        &self.opened
    }

    pub fn status(&self) -> Status {
        let usage = self.store.usage();
        let journal = self.journal.stats();
        let cells: Vec<_> = self.files.lock().values().cloned().collect();
        let queued: BTreeSet<InodeId> = self.queue.lock().iter().copied().collect();
        let unpublished = cells.iter().filter(|cell| queued.contains(&cell.id) || cell.is_unpublished()).count();
        let lsn = Lsn(self.counters.checkpoint_lsn.load(Ordering::Relaxed));
        let checkpoint_pending = self.checkpoint.is_locked() || self.needs_checkpoint();
        let state = self.state.read();
        Status {
            store_id: self.store_id.to_string(),
            node: self.key.public().to_string(),
            author: state.author_id().to_string(),
            operations: state.context.iter().map(|(_, n)| n).sum(),
            inodes: state.inodes(),
            open_handles: self.handles.read().len() as u64,
            dirty_files: cells.len() as u64,
            unpublished_files: unpublished as u64,
            queued_files: queued.len() as u64,
            unsealed_operations: state.unsealed.len() as u64,
            published_versions: self.counters.published.load(Ordering::Relaxed),
            checkpoints: self.counters.checkpoints.load(Ordering::Relaxed),
            journal_bytes: self.journal.bytes_since(lsn),
            uncommitted_bytes: self.journal.bytes_since(self.journal.committed()),
            journal_syncs: journal.syncs,
            checkpoint_pending,
            oplog_bytes: self.oplog.size_bytes(),
            pack_count: usage.packs,
            data_stored_bytes: usage.data_stored_bytes,
            node_stored_bytes: usage.node_stored_bytes,
            read_only: self.journal.is_failed() || !self.store.is_writable(),
            quarantined_glyphs: usage.quarantined,
        }
    }

    /// The status as `.phi/status.json` shows it.
    pub(super) fn status_json(&self) -> String {
        let s = self.status();
        format!(
            concat!(
                "{{\"format\":1,\"store\":\"{}\",\"author\":\"{}\",\"operations\":{},\"inodes\":{},",
                "\"open_handles\":{},\"dirty_files\":{},\"read_only\":{},\"quarantined_glyphs\":{}}}\n"
            ),
            s.store_id,
            s.author,
            s.operations,
            s.inodes,
            s.open_handles,
            s.dirty_files,
            s.read_only,
            s.quarantined_glyphs
        )
    }

    /// The latest operations, newest first.
    pub fn recent_ops(&self, limit: usize) -> Result<Vec<RecentOp>> {
        self.seal()?;
        let mut recent = Vec::new();
        if limit == 0 {
            return Ok(recent);
        }
        for group in self.oplog.recent() {
            let group = match group {
                Ok(group) => group,
                Err(error) => {
                    tracing::warn!(%error, "a part of the operation log cannot be read");
                    continue;
                }
            };
            let ops: Vec<_> = group.ops().collect();
            for (n, bytes) in ops.into_iter().rev() {
                let dot = Dot { author: group.author_id(), n };
                let op = Op::decode(dot, &bytes)
                    .map_err(|source| StoreError::Malformed { what: format!("operation {dot}"), source })?;
                recent.push(RecentOp { dot, hlc: op.hlc, time: op.time, effects: op.effects });
                if recent.len() >= limit {
                    return Ok(recent);
                }
            }
        }
        Ok(recent)
    }
}

/// What a filesystem of so many inodes has room for.
pub(super) fn stat_fs(disk: &dyn Disk, reserve_bytes: u64, inodes: u64) -> Result<StatFs> {
    const BLOCK_BYTES: u64 = 4096;
    let space = disk.space().map_err(|source| VolumeError::Disk { doing: "asking for free space", source })?;
    let free = space.free_bytes.saturating_sub(reserve_bytes) / BLOCK_BYTES;
    Ok(StatFs {
        block_bytes: BLOCK_BYTES as u32,
        blocks: space.total_bytes / BLOCK_BYTES,
        blocks_free: free,
        blocks_available: free,
        inodes: inodes + free,
        inodes_free: free,
        name_bytes_max: NAME_BYTES_MAX as u32,
    })
}
