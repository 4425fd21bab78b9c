//! Core's `GlyphIndex` over sled 0.34: where each data glyph is, kept so that a start need not scan the packs.
//!
//! sled is fast enough for this and not trusted with more. Damaged files make it panic, lose rows or open empty without
//! a word (all were provoked), so:
//! - Every call runs under `catch_unwind`. After the first failure of any kind the index is *damaged* and answers only
//!   errors until `clear`, which begins again in an empty directory; the store then fills it from the packs.
//! - Each value carries a checksum over its key and itself, so a wrong value is never believed.
//! - A record beside the position counts the entries and sums their checksums. It changes in the same atomic batch as
//!   they do, and opening compares it with what is there, so rows that vanish are noticed. That reads the whole
//!   index: 3 s per million glyphs on two busy cores.
//! - `clear` never reuses a directory: what is left of the old sled may still write into its own.
//!
//! Whoever deletes STORE/index while no daemon runs loses nothing but the time to rebuild it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use phifs_core::id::GlyphId;
use phifs_core::store::{GlyphIndex, IndexError, Location, Position};

const CACHE_BYTES: u64 = 32 << 20;
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// How long the end of the process waits for the last flush. What is lost by not waiting is read from the packs again.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(5);

const LOCK_TRIES: u32 = 20;
const LOCK_REST: Duration = Duration::from_millis(25);

/// The first byte of every value; an index with another one is rebuilt.
const FORMAT: u8 = 1;

/// Not 32 bytes long, so no glyph has this key.
const TALLY_KEY: &[u8] = b"tally";

pub struct SledIndex {
    shared: Arc<Shared>,
    /// Tells the flusher that there is something to flush. Dropping the sender asks it to end; it answers by dropping its
    /// own end of `flusher_ended`.
    tell_flusher: Option<SyncSender<()>>,
    flusher_ended: Mutex<mpsc::Receiver<()>>,
}

struct Shared {
    /// Holds one numbered directory per life of the index.
    dir: PathBuf,
    state: Mutex<Result<Arc<Tree>, String>>,
}

struct Tree {
    db: sled::Db,
    tally: Mutex<Tally>,
}

/// What the entries add up to, and the position they reflect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    position: Option<Position>,
    entries: u64,
    /// Exclusive or of the entries' checksums.
    sum: u32,
}

impl SledIndex {
    /// Opens the index in `dir`, or an empty one where there is none or only a damaged one.
    ///
    /// # Errors
    /// When the directory itself cannot be made or emptied.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let latest = numbered(dir)?.into_iter().max();
        let tree = match latest.map(|number| guarded(|| Tree::open(&dir.join(number.to_string())))) {
            Some(Ok(tree)) => tree,
            Some(Err(why)) => {
                tracing::warn!(why, "the glyph index is damaged; it will be rebuilt");
                fresh(dir)?
            }
            None => fresh(dir)?,
        };
        let shared = Arc::new(Shared { dir: dir.to_owned(), state: Mutex::new(Ok(Arc::new(tree))) });
        // One message that waits stands for all changes up to when it is taken.
        let (tell_flusher, told) = mpsc::sync_channel::<()>(1);
        let (ended, flusher_ended) = mpsc::sync_channel::<()>(0);
        let flush = {
            let shared = shared.clone();
            move || {
                while told.recv().is_ok() {
                    collect(&told);
                    shared.flush();
                }
                shared.flush();
                // Before the news of it: whoever hears it may open the same files again.
                drop(shared);
                drop(ended);
            }
        };
        std::thread::Builder::new().name("index-flush".to_owned()).spawn(flush)?;
        Ok(Self { shared, tell_flusher: Some(tell_flusher), flusher_ended: Mutex::new(flusher_ended) })
    }
}

impl Drop for SledIndex {
    fn drop(&mut self) {
        self.tell_flusher = None;
        // A sled that hangs after damage must not keep the daemon from ending.
        let _ = self.flusher_ended.lock().recv_timeout(CLOSE_TIME_MAX);
    }
}

impl GlyphIndex for SledIndex {
    fn get(&self, id: &GlyphId) -> Result<Option<Location>, IndexError> {
        self.shared.with(|tree| tree.get(id))
    }

    fn apply(&self, changes: &[(GlyphId, Option<Location>)], position: Position) -> Result<(), IndexError> {
        self.shared.with(|tree| tree.apply(changes, position))?;
        if let Some(flusher) = &self.tell_flusher {
            // When it is full, the flusher is to come anyhow.
            let _ = flusher.try_send(());
        }
        Ok(())
    }

    fn position(&self) -> Result<Option<Position>, IndexError> {
        self.shared.with(|tree| Ok(tree.tally.lock().position))
    }

    fn clear(&self) -> Result<(), IndexError> {
        let mut state = self.shared.state.lock();
        let old = std::mem::replace(&mut *state, Err("it is being cleared".to_owned()));
        // Closing a damaged sled may panic as well.
        let _ = guarded(|| {
            drop(old);
            Ok(())
        });
        let tree = fresh(&self.shared.dir).map_err(|error| error.to_string());
        *state = tree.map(Arc::new);
        state.as_ref().map(drop).map_err(|why| IndexError(why.clone()))
    }
}

impl Shared {
    /// Runs `call` on the tree; whatever goes wrong makes the index damaged.
    fn with<T>(&self, call: impl FnOnce(&Tree) -> Result<T, String>) -> Result<T, IndexError> {
        // The lock is not held during the call: a sled that hangs must not take everybody with it.
        let tree = self.state.lock().clone().map_err(IndexError)?;
        guarded(|| call(&tree)).map_err(|why| {
            let mut state = self.state.lock();
            // Unless it was cleared meanwhile.
            if state.as_ref().is_ok_and(|now| Arc::ptr_eq(now, &tree)) {
                tracing::warn!(why, "the glyph index is damaged; it will be rebuilt");
                *state = Err(why.clone());
            }
            IndexError(why)
        })
    }

    fn flush(&self) {
        // A failure has been noted by `with`, and the next caller hears of it.
        let _ = self.with(|tree| tree.db.flush().map(drop).map_err(|error| error.to_string()));
    }
}

impl Tree {
    fn open(dir: &Path) -> Result<Self, String> {
        let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let mut tries = 0;
        let db = loop {
            match config.open() {
                // sled gives its lock back a little after it was closed.
                Err(sled::Error::Io(error)) if error.kind() == io::ErrorKind::Other && tries < LOCK_TRIES => {
                    tries += 1;
                    std::thread::sleep(LOCK_REST);
                }
                result => break result.map_err(|error| error.to_string())?,
            }
        };
        let mut found = Tally::default();
        let mut recorded = None;
        for row in db.iter() {
            let (key, value) = row.map_err(|error| error.to_string())?;
            if *key == *TALLY_KEY {
                recorded = Some(Tally::decode(&value)?);
            } else {
                decode(&key, &value)?;
                found.change(&value, true);
            }
        }
        let tally = recorded.unwrap_or_default();
        if (found.entries, found.sum) != (tally.entries, tally.sum) {
            return Err(format!("{} entries are there, {} were recorded", found.entries, tally.entries));
        }
        Ok(Self { db, tally: Mutex::new(tally) })
    }

    fn get(&self, id: &GlyphId) -> Result<Option<Location>, String> {
        let value = self.db.get(id.0).map_err(|error| error.to_string())?;
        value.map(|value| decode(&id.0, &value)).transpose()
    }

    fn apply(&self, changes: &[(GlyphId, Option<Location>)], position: Position) -> Result<(), String> {
        // The last change of a glyph counts.
        let changes: BTreeMap<&[u8; 32], Option<Location>> = changes.iter().map(|(id, to)| (&id.0, *to)).collect();
        let mut tally = self.tally.lock();
        let mut next = Tally { position: Some(position), ..*tally };
        let mut batch = sled::Batch::default();
        for (key, to) in changes {
            if let Some(old) = self.db.get(key).map_err(|error| error.to_string())? {
                next.change(&old, false);
            }
            match to {
                Some(location) => {
                    let value = encode(key, location);
                    next.change(&value, true);
                    batch.insert(key, value.as_slice());
                }
                None => batch.remove(key),
            }
        }
        batch.insert(TALLY_KEY, next.encode());
        self.db.apply_batch(batch).map_err(|error| error.to_string())?;
        *tally = next;
        Ok(())
    }
}

/// Format, location, and the checksum of both and the key.
fn encode(key: &[u8; 32], location: Location) -> Vec<u8> {
    let mut value = vec![FORMAT];
    value.extend(location.to_bytes());
    let check = checksum(key, &value);
    value.extend(check.to_le_bytes());
    value
}

fn decode(key: &[u8], value: &[u8]) -> Result<Location, String> {
    let body = checked(key, value)?;
    let location = body.try_into().map_err(|_| "an entry has the wrong length".to_owned())?;
    Ok(Location::from_bytes(location))
}

/// What lies between the format and the checksum.
fn checked<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], String> {
    let (rest, check) = value.split_last_chunk::<4>().ok_or("an entry is too short")?;
    if checksum(key, rest) != u32::from_le_bytes(*check) {
        return Err("an entry does not match its checksum".to_owned());
    }
    match rest.split_first() {
        Some((&FORMAT, body)) => Ok(body),
        _ => Err("it is written in another format".to_owned()),
    }
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), value)
}

impl Tally {
    /// Counts an entry in or out.
    fn change(&mut self, value: &[u8], there: bool) {
        self.entries = if there { self.entries.wrapping_add(1) } else { self.entries.wrapping_sub(1) };
        self.sum ^= value.last_chunk::<4>().map_or(0, |check| u32::from_le_bytes(*check));
    }

    fn encode(&self) -> Vec<u8> {
        let mut value = vec![FORMAT];
        value.extend(self.entries.to_le_bytes());
        value.extend(self.sum.to_le_bytes());
        value.extend(self.position.iter().flat_map(|position| position.to_bytes()));
        let check = checksum(TALLY_KEY, &value);
        value.extend(check.to_le_bytes());
        value
    }

    fn decode(value: &[u8]) -> Result<Self, String> {
        let short = || "the tally has the wrong length".to_owned();
        let body = checked(TALLY_KEY, value)?;
        let (entries, rest) = body.split_first_chunk::<8>().ok_or_else(short)?;
        let (sum, position) = rest.split_first_chunk::<4>().ok_or_else(short)?;
        let position: &[u8; Position::LEN] = position.try_into().map_err(|_| short())?;
        Ok(Self {
            position: Some(Position::from_bytes(position)),
            entries: u64::from_le_bytes(*entries),
            sum: u32::from_le_bytes(*sum),
        })
    }
}

/// Lets more changes come in that the same flush can take, unless the end does.
fn collect(told: &mpsc::Receiver<()>) {
    let until = Instant::now() + FLUSH_INTERVAL;
    while told.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok() {}
}

/// Runs `call`; a panic becomes an error.
fn guarded<T>(call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // What a panic leaves half done inside sled is given up together with it.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("sled panicked: {}", text.as_deref().unwrap_or("without a word")))
    })
}

/// An empty tree in a directory that none had before; the others are removed.
fn fresh(dir: &Path) -> io::Result<Tree> {
    let used = numbered(dir)?;
    let number = used.iter().max().map_or(0, |latest| latest + 1);
    for old in used {
        // What stays is removed the next time; it is never opened, as it is not the latest.
        if let Err(error) = fs::remove_dir_all(dir.join(old.to_string())) {
            tracing::debug!(%error, number = old, "cannot remove an old glyph index");
        }
    }
    guarded(|| Tree::open(&dir.join(number.to_string()))).map_err(io::Error::other)
}

fn numbered(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    fs::create_dir_all(dir)?;
    for entry in fs::read_dir(dir)? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After this many batches.
    fn position(batches: u32) -> Position {
        let mut bytes = [0; Position::LEN];
        bytes[..4].copy_from_slice(&batches.to_be_bytes());
        Position::from_bytes(&bytes)
    }

    fn batches(position: Position) -> u32 {
        u32::from_be_bytes(*position.to_bytes().first_chunk().unwrap())
    }

    const BATCH: u32 = 100;

    fn id(n: u32) -> GlyphId {
        GlyphId::of(&n.to_le_bytes())
    }

    fn location(n: u32) -> Location {
        Location { pack: n / 100, offset_bytes: n * 64, stored_bytes: n }
    }

    fn fill(dir: &Path, entries: u32) {
        let index = SledIndex::open(dir).unwrap();
        for number in 0..entries / BATCH {
            let ids = number * BATCH..(number + 1) * BATCH;
            let batch: Vec<_> = ids.map(|n| (id(n), Some(location(n)))).collect();
            index.apply(&batch, position(number + 1)).unwrap();
        }
    }

    /// Opens what is in `dir`, and says whether all is there. It may also be an older state, or fail and be rebuilt;
    /// anything else is a bug.
    fn survives(dir: &Path, entries: u32) -> bool {
        let index = SledIndex::open(dir).unwrap();
        let recorded = index.position().unwrap_or_default().map_or(0, batches) * BATCH;
        let mut failed = false;
        for n in 0..entries {
            match index.get(&id(n)) {
                Ok(Some(found)) => assert_eq!((found, n < recorded), (location(n), true), "a wrong value for {n}"),
                Ok(None) => assert!(n >= recorded || failed, "entry {n} of {recorded} is lost and nobody knows"),
                Err(_) => failed = true,
            }
        }
        if failed {
            index.clear().unwrap();
            assert_eq!(index.position().unwrap(), None);
            index.apply(&[(id(1), Some(location(1)))], position(1)).unwrap();
            assert_eq!(index.get(&id(1)).unwrap(), Some(location(1)));
        }
        recorded == entries && !failed
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(dir).unwrap().flatten() {
            if entry.path().is_dir() { found.extend(files(&entry.path())) } else { found.push(entry.path()) }
        }
        found.sort();
        found
    }

    #[test]
    fn entries_and_position_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let index = SledIndex::open(dir.path()).unwrap();
        assert_eq!(index.position().unwrap(), None);
        let changes = [(id(1), Some(location(1))), (id(2), Some(location(2))), (id(1), Some(location(9)))];
        index.apply(&changes, position(1)).unwrap();
        index.apply(&[(id(2), None), (id(3), None)], position(2)).unwrap();
        drop(index);
        let index = SledIndex::open(dir.path()).unwrap();
        assert_eq!(index.position().unwrap(), Some(position(2)));
        assert_eq!(index.get(&id(1)).unwrap(), Some(location(9)));
        assert_eq!((index.get(&id(2)).unwrap(), index.get(&id(3)).unwrap()), (None, None));
        index.clear().unwrap();
        assert_eq!((index.get(&id(1)).unwrap(), index.position().unwrap()), (None, None));
    }

    #[test]
    fn changes_reach_the_files_soon_while_the_index_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live");
        let index = SledIndex::open(&live).unwrap();
        let started = Instant::now();
        // The second one has to tell the flusher again.
        for round in 1..=2 {
            index.apply(&[(id(round), Some(location(round)))], position(round)).unwrap();
            for copies in 0.. {
                let copy = dir.path().join(format!("{round} {copies}"));
                for file in files(&live) {
                    let to = copy.join(file.strip_prefix(&live).unwrap());
                    fs::create_dir_all(to.parent().unwrap()).unwrap();
                    fs::copy(file, to).unwrap();
                }
                if SledIndex::open(&copy).unwrap().position().unwrap() == Some(position(round)) {
                    break;
                }
                assert!(started.elapsed() < Duration::from_secs(20), "round {round} is not in the files");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    #[test]
    fn deleted_index_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), 300);
        assert!(survives(dir.path(), 300));
        for file in files(dir.path()) {
            fs::remove_file(file).unwrap();
        }
        assert!(!survives(dir.path(), 300));
        fs::remove_dir_all(dir.path()).unwrap();
        assert!(!survives(dir.path(), 300));
    }

    #[test]
    fn truncated_index_is_an_older_one_or_rebuilt() {
        let dir = tempfile::tempdir().unwrap();
        for keep in [0, 1, 30, 50, 75, 99] {
            let dir = dir.path().join(keep.to_string());
            fill(&dir, 2000);
            for file in files(&dir) {
                let len = file.metadata().unwrap().len();
                fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(len * keep / 100).unwrap();
            }
            survives(&dir, 2000);
        }
    }

    #[test]
    fn flipped_bytes_end_in_a_rebuild_and_never_in_a_wrong_value() {
        let dir = tempfile::tempdir().unwrap();
        let good = dir.path().join("good");
        fill(&good, 2000);
        let used = |file: &Path| fs::read(file).unwrap().iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        let mut rebuilt = 0;
        for step in 0..24 {
            let bad = dir.path().join(step.to_string());
            for file in files(&good) {
                let copy = bad.join(file.strip_prefix(&good).unwrap());
                fs::create_dir_all(copy.parent().unwrap()).unwrap();
                let mut bytes = fs::read(&file).unwrap();
                if file.ends_with("db") {
                    // Spread over what sled has written.
                    let at = used(&file) * step / 24 + 7 * step;
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 0x10;
                    }
                }
                fs::write(copy, bytes).unwrap();
            }
            rebuilt += u32::from(!survives(&bad, 2000));
        }
        assert!(rebuilt > 0, "no flip did any harm: the test does not reach the data");
    }

    #[test]
    fn entry_of_another_glyph_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let index = SledIndex::open(dir.path()).unwrap();
        index.apply(&[(id(1), Some(location(1)))], position(2)).unwrap();
        let tree = index.shared.state.lock().clone().unwrap();
        let value = tree.db.get(id(1).0).unwrap().unwrap();
        tree.db.insert(id(2).0, value).unwrap();
        assert!(index.get(&id(2)).is_err());
        assert!(index.get(&id(1)).is_err(), "an index that failed once is not trusted again");
        index.clear().unwrap();
        assert_eq!(index.get(&id(2)).unwrap(), None);
    }

    #[test]
    fn entry_that_vanished_is_noticed_at_the_next_open() {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path(), 300);
        let index = SledIndex::open(dir.path()).unwrap();
        let tree = index.shared.state.lock().clone().unwrap();
        tree.db.remove(id(7).0).unwrap();
        drop(tree);
        drop(index);
        let index = SledIndex::open(dir.path()).unwrap();
        assert_eq!(index.position().unwrap(), None, "it begins again, and the store fills it");
        assert_eq!(index.get(&id(8)).unwrap(), None);
    }
}
