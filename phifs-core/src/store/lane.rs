//! The packs of one kind as they are written: a block being filled, blocks on their way to the disk, and the places of
//! what the index does not know yet.
//!
//! What always holds:
//! - `state` is never locked during I/O, so a reader never waits for a writer's disk. `io` is locked before `state`.
//! - Work goes to the disk in the order it was queued and leaves the queue only when it got there. A full disk
//!   therefore loses nothing: the bytes stay in memory, are served from there, and are tried again.
//! - Any other failure of a write or a sync turns the store read-only: what the kernel did with the bytes is unknown.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use super::blocks::Streamed;
use super::pack::{Entry, Pack, START, encode_header};
use super::record::{GLYPH_BYTES_MAX, HEADER_BYTES, Record, padded};
use super::room::{Purpose, Room};
use super::{GlyphKind, Location, StoreError};
use crate::disk::Disk;
use crate::id::GlyphId;

const BLOCK_BYTES: usize = 1 << 20;
const PAGE_BYTES: usize = 4096;
/// Writers wait for the disk when this much waits for it.
const QUEUE_BYTES_MAX: usize = 8 << 20;
const ALLOCATE_BYTES_MIN: u64 = 1 << 20;
const ALLOCATE_BYTES_MAX: u64 = 64 << 20;

/// What the lanes of a store have in common.
pub(super) struct Shared {
    pub disk: Arc<dyn Disk>,
    pub store_id: [u8; 16],
    pub packs: RwLock<BTreeMap<u32, Arc<Pack>>>,
    pub next_pack: AtomicU32,
    pub read_only: AtomicBool,
    pub room: Room,
    pub streamed: Streamed,
}

pub(super) struct Lane {
    pub kind: GlyphKind,
    pack_bytes_max: u32,
    state: Mutex<State>,
    io: Mutex<Io>,
}

struct State {
    active: Option<Active>,
    queue: VecDeque<Work>,
    queued_bytes: usize,
    /// Of data: what the index does not know yet. Of nodes: all.
    places: HashMap<GlyphId, Location>,
    /// Damaged records that are the only copy of their glyph.
    quarantine: HashMap<GlyphId, Location>,
    /// Behind the last record appended, and behind the last one made durable: pack, offset.
    head: (u32, u32),
    synced: (u32, u32),
}

struct Active {
    pack: Arc<Pack>,
    /// What is not queued yet.
    block: Block,
}

/// What follows one another in a pack.
struct Block {
    /// Where it begins in the pack.
    at: u32,
    memory: Vec<u8>,
    /// So many bytes of the memory are before it: pages of the file begin where pages of the memory do, and a disk can
    /// take them from there.
    lead: usize,
}

#[derive(Clone)]
enum Work {
    Write { pack: Arc<Pack>, at: u32, block: Bytes },
    Seal { pack: Arc<Pack> },
}

#[derive(Default)]
struct Io {
    unsynced: BTreeMap<u32, Arc<Pack>>,
    names_unsynced: bool,
    /// Up to where space was reserved in the pack with this number.
    allocated: (u32, u64),
}

impl Shared {
    pub fn pack(&self, number: u32) -> Option<Arc<Pack>> {
        self.packs.read().get(&number).cloned()
    }

    /// The packs of one kind, oldest first.
    pub fn packs_of(&self, kind: GlyphKind) -> Vec<Arc<Pack>> {
        self.packs.read().values().filter(|pack| pack.kind == kind).cloned().collect()
    }

    pub fn check_writable(&self) -> Result<(), StoreError> {
        if self.read_only.load(Ordering::Acquire) { Err(StoreError::ReadOnly) } else { Ok(()) }
    }

    fn failed(&self, doing: &'static str, source: io::Error) -> StoreError {
        self.read_only.store(true, Ordering::Release);
        tracing::error!(doing, error = %source, "the glyph store is read-only now");
        StoreError::Disk { doing, source }
    }
}

impl Lane {
    /// `active`: a pack that is not sealed and goes on to be filled.
    pub fn new(
        kind: GlyphKind,
        pack_bytes_max: u32,
        active: Option<Arc<Pack>>,
        head: (u32, u32),
        places: HashMap<GlyphId, Location>,
    ) -> Self {
        let active = active.map(|pack| Active { block: Block::at(pack.totals().end), pack });
        let state = State {
            active,
            queue: VecDeque::new(),
            queued_bytes: 0,
            places,
            quarantine: HashMap::new(),
            head,
            synced: head,
        };
        Self { kind, pack_bytes_max, state: Mutex::new(state), io: Mutex::default() }
    }

    /// Where a glyph is that the index need not know.
    pub fn place(&self, id: &GlyphId) -> Option<Location> {
        self.state.lock().places.get(id).copied()
    }

    /// The first `len` bytes of the record at this place, if it is not on the disk yet.
    pub fn in_memory(&self, location: Location, len: usize) -> Option<Bytes> {
        self.state.lock().in_memory(location, len)
    }

    /// Appends a record, unless its glyph has a place here already, other than `instead_of`, which is known to be bad.
    pub fn append(
        &self,
        shared: &Shared,
        record: &Record<'_>,
        purpose: Purpose,
        instead_of: Option<Location>,
    ) -> Result<(), StoreError> {
        shared.check_writable()?;
        let len = padded(record.header.stored_bytes);
        shared.room.admit(&*shared.disk, purpose, len.into())?;
        if self.state.lock().queued_bytes >= QUEUE_BYTES_MAX {
            self.drain(shared, &mut self.io.lock())?;
        }
        let mut state = self.state.lock();
        let id = record.header.id;
        if state.places.get(&id).is_some_and(|place| Some(*place) != instead_of) {
            return Ok(());
        }
        let fits = |active: &Active| active.end() == START || active.end() + len <= self.pack_bytes_max;
        if state.active.as_ref().is_some_and(|active| !fits(active)) {
            state.seal_active();
        }
        let active = state.active.get_or_insert_with(|| shared.new_pack(self.kind));
        let offset = active.end();
        let number = active.pack.number;
        active.block.append(&record.header.encode(number, offset));
        active.block.append(&record.stored);
        active.block.fill_to(offset + len);
        let (stored_bytes, plain_bytes) = (record.header.stored_bytes, record.header.plain_bytes);
        let entry = Entry { id, offset, stored_bytes, plain_bytes };
        active.pack.note(entry);
        let block_is_full = active.block.bytes().len() >= BLOCK_BYTES;
        state.places.insert(id, entry.location(number));
        state.quarantine.remove(&id);
        state.head = (number, offset + len);
        if block_is_full {
            state.queue_block();
            drop(state);
            // Whoever holds the lock is busy with this queue already. A full disk is no failure of this glyph, which
            // is safe in memory; it will be one of the next glyph or of the next sync.
            if let Some(mut io) = self.io.try_lock() {
                match self.drain(shared, &mut io) {
                    Err(StoreError::Full) | Ok(()) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Makes durable what was appended before the call. Concurrent callers share one pass over the disk.
    pub fn sync(&self, shared: &Shared) -> Result<(), StoreError> {
        let wanted = self.state.lock().head;
        if self.state.lock().synced >= wanted {
            return Ok(());
        }
        let mut io = self.io.lock();
        if self.state.lock().synced >= wanted {
            return Ok(());
        }
        shared.check_writable()?;
        let head = {
            let mut state = self.state.lock();
            state.queue_block();
            state.head
        };
        self.drain(shared, &mut io)?;
        for pack in io.unsynced.values() {
            sync_file(shared, pack)?;
            if self.kind == GlyphKind::Data {
                forget_all_but_the_end(pack);
            }
        }
        io.unsynced.clear();
        if io.names_unsynced {
            shared.disk.sync_names().map_err(|error| shared.failed("syncing the names of packs", error))?;
            io.names_unsynced = false;
        }
        let mut state = self.state.lock();
        state.synced = state.synced.max(head);
        Ok(())
    }

    /// Ends the pack with this number if it is the one being filled, and writes what it still waits for.
    pub fn seal(&self, shared: &Shared, number: u32) -> Result<(), StoreError> {
        let mut io = self.io.lock();
        {
            let mut state = self.state.lock();
            if state.active.as_ref().is_some_and(|active| active.pack.number == number) {
                state.seal_active();
            }
        }
        self.drain(shared, &mut io)
    }

    pub fn remove_file(&self, shared: &Shared, number: u32) -> Result<(), StoreError> {
        let mut io = self.io.lock();
        io.unsynced.remove(&number);
        io.names_unsynced = true;
        let removed = shared.disk.remove(crate::disk::FileName::Pack(number));
        removed.map_err(|source| StoreError::Disk { doing: "removing a pack", source })
    }

    /// Behind the last durable record: pack, offset.
    pub fn synced(&self) -> (u32, u32) {
        self.state.lock().synced
    }

    /// Up to where a pack of this lane is in its file.
    pub fn written(&self, pack: u32) -> u32 {
        let state = self.state.lock();
        let queued = state.queue.iter().find_map(|work| match work {
            Work::Write { pack: of, at, .. } if of.number == pack => Some(*at),
            _ => None,
        });
        let active = state.active.as_ref().filter(|active| active.pack.number == pack);
        queued.or(active.map(|active| active.block.at)).unwrap_or(u32::MAX)
    }

    /// The places of durable records.
    pub fn synced_places(&self) -> Vec<(GlyphId, Location)> {
        let state = self.state.lock();
        let durable = |place: &Location| (place.pack, place.offset_bytes) < state.synced;
        state.places.iter().filter(|(_, place)| durable(place)).map(|(id, place)| (*id, *place)).collect()
    }

    pub fn places(&self) -> usize {
        self.state.lock().places.len()
    }

    /// Notes where a glyph is, unless it has a place already, other than the wrong one.
    pub fn correct_place(&self, id: GlyphId, wrong: Option<Location>, right: Location) {
        let mut state = self.state.lock();
        if state.places.get(&id).is_none_or(|place| Some(*place) == wrong) {
            state.places.insert(id, right);
        }
    }

    /// Forgets places, except of glyphs that have moved on.
    pub fn forget_places<'a>(&self, places: impl IntoIterator<Item = &'a (GlyphId, Location)>) {
        let mut state = self.state.lock();
        for (id, location) in places {
            if state.places.get(id) == Some(location) {
                state.places.remove(id);
            }
            if state.quarantine.get(id) == Some(location) {
                state.quarantine.remove(id);
            }
        }
    }

    pub fn quarantine(&self, id: GlyphId, location: Location) {
        self.state.lock().quarantine.insert(id, location);
    }

    pub fn quarantined(&self, id: &GlyphId) -> Option<Location> {
        self.state.lock().quarantine.get(id).copied()
    }

    pub fn quarantine_len(&self) -> usize {
        self.state.lock().quarantine.len()
    }

    fn drain(&self, shared: &Shared, io: &mut Io) -> Result<(), StoreError> {
        loop {
            let Some(work) = self.state.lock().queue.front().cloned() else { return Ok(()) };
            shared.check_writable()?;
            let (pack, done) = match &work {
                Work::Write { pack, at, block } => (pack, self.write(shared, io, pack, *at, block)),
                Work::Seal { pack } => {
                    // A trailer vouches for the records before it, so they must not be able to get lost behind its
                    // back: a put would find them listed and write nothing.
                    if io.unsynced.contains_key(&pack.number) {
                        sync_file(shared, pack)?;
                    }
                    (pack, pack.seal(&shared.store_id))
                }
            };
            done.map_err(|error| match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full,
                _ => shared.failed("writing a pack", error),
            })?;
            io.unsynced.insert(pack.number, pack.clone());
            let mut state = self.state.lock();
            if let Some(Work::Write { pack, at, block }) = state.queue.pop_front() {
                state.queued_bytes -= block.len();
                shared.streamed.written(&pack, at, block);
            }
        }
    }

    fn write(&self, shared: &Shared, io: &mut Io, pack: &Arc<Pack>, at: u32, block: &[u8]) -> io::Result<()> {
        let (file, created) = pack.file_or_create(&*shared.disk)?;
        io.names_unsynced |= created;
        let end = u64::from(at) + block.len() as u64;
        if io.allocated.0 != pack.number {
            io.allocated = (pack.number, at.into());
        }
        if end > io.allocated.1 {
            // What is reserved and not used counts as used on the host: a quarter at most, once a pack has some length.
            let step = (io.allocated.1 / 4).clamp(ALLOCATE_BYTES_MIN, ALLOCATE_BYTES_MAX);
            let until = (io.allocated.1 + step).min(self.pack_bytes_max.into()).max(end);
            // Only a hint: where it fails, the write itself says whether there is room for these bytes.
            if file.allocate(io.allocated.1, until - io.allocated.1, true).is_ok() {
                io.allocated.1 = until;
            }
        }
        if block.len() >= BLOCK_BYTES {
            file.write_past_cache(block, at.into())
        } else {
            file.write_at(block, at.into())
        }
    }
}

/// Where a record is in a block that begins at this offset of this pack, if it is in there: blocks have whole records.
pub(super) fn within(location: Location, (pack, at): (u32, u32), block_bytes: usize) -> Option<Range<usize>> {
    let from = location.offset_bytes.checked_sub(at)? as usize;
    let end = from + HEADER_BYTES + location.stored_bytes as usize;
    (pack == location.pack && end <= block_bytes).then_some(from..end)
}

fn sync_file(shared: &Shared, pack: &Pack) -> Result<(), StoreError> {
    let file = pack.file().expect("a pack that was written has a file");
    file.sync().map_err(|error| shared.failed("syncing a pack", error))
}

/// Whoever wrote these bytes has them in a cache nearer by. The next record goes into the last block.
fn forget_all_but_the_end(pack: &Pack) {
    let end = u64::from(pack.totals().end) / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    if let Some(file) = pack.file()
        && end > 0
    {
        file.forget(0, end);
    }
}

impl Shared {
    fn new_pack(&self, kind: GlyphKind) -> Active {
        let number = self.next_pack.fetch_add(1, Ordering::Relaxed);
        let pack = Arc::new(Pack::new(number, kind));
        self.packs.write().insert(number, pack.clone());
        let mut block = Block::at(0);
        block.append(&encode_header(&self.store_id, number, kind));
        Active { pack, block }
    }
}

impl Active {
    fn end(&self) -> u32 {
        self.block.at + self.block.bytes().len() as u32
    }
}

impl Block {
    fn at(at: u32) -> Self {
        Self { at, memory: Vec::new(), lead: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.lead..]
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.memory.is_empty() {
            self.memory.reserve_exact(BLOCK_BYTES + 2 * PAGE_BYTES + HEADER_BYTES + GLYPH_BYTES_MAX);
            let page_at = self.memory.as_ptr().align_offset(PAGE_BYTES);
            self.lead = (page_at + self.at as usize % PAGE_BYTES) % PAGE_BYTES;
            self.memory.resize(self.lead, 0);
        }
        self.memory.extend_from_slice(bytes);
    }

    /// With zeroes, to this offset in the pack.
    fn fill_to(&mut self, end: u32) {
        self.memory.resize(self.lead + (end - self.at) as usize, 0);
    }

    fn into_bytes(self) -> Bytes {
        Bytes::from(self.memory).slice(self.lead..)
    }
}

impl State {
    fn in_memory(&self, location: Location, len: usize) -> Option<Bytes> {
        if let Some(active) = &self.active
            && let Some(range) = within(location, (active.pack.number, active.block.at), active.block.bytes().len())
        {
            return Some(Bytes::copy_from_slice(&active.block.bytes()[range][..len]));
        }
        self.queue.iter().find_map(|work| match work {
            Work::Write { pack, at, block } => {
                let range = within(location, (pack.number, *at), block.len())?;
                Some(block.slice(range.start..range.start + len))
            }
            Work::Seal { .. } => None,
        })
    }

    fn queue_block(&mut self) {
        if let Some(active) = &mut self.active
            && !active.block.bytes().is_empty()
        {
            let next = Block::at(active.end());
            let block = std::mem::replace(&mut active.block, next);
            self.queued_bytes += block.bytes().len();
            self.queue.push_back(Work::Write { pack: active.pack.clone(), at: block.at, block: block.into_bytes() });
        }
    }

    fn seal_active(&mut self) {
        self.queue_block();
        if let Some(active) = self.active.take() {
            self.queue.push_back(Work::Seal { pack: active.pack });
        }
    }
}
