//! Tables, journal and superblock together, in the order that the module comment asks for.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::journal::{Geometry, Journal, JournalError, Lsn, Options, Repair};
use super::superblock::{StoreId, Superblock};
use super::{Meta, Roots, TableId, TableSpec};
use crate::codec::{Encode, Reader};
use crate::disk::{CrashDisk, Disk, FileName, MemDisk, PowerLoss};
use crate::id::GlyphId;
use crate::merkle::{MapError, Node, NodeSource, Shape};
use crate::store::StoreError;

const TABLE: TableId = TableId(1);
static SPECS: [TableSpec; 1] =
    [TableSpec { id: TABLE, name: "rows", replicated: true, shape: Shape { leaf_bytes: 256, inner_bytes: 256 } }];
const STORE: StoreId = StoreId([1; 16]);

/// Nodes that never get lost: packs have crash tests of their own.
#[derive(Default)]
struct Nodes(Mutex<HashMap<GlyphId, Bytes>>);

impl NodeSource for Nodes {
    fn node(&self, id: &GlyphId) -> Result<Node, MapError> {
        let plain = self.0.lock().get(id).cloned().ok_or(StoreError::Missing(*id))?;
        Node::decode(id, plain)
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Rows = BTreeMap<u8, u8>;

struct Database {
    nodes: Arc<Nodes>,
    meta: Meta,
    journal: Journal,
    superblock: Superblock,
    /// The journal position in the newer slot of the superblock.
    checkpoint: Lsn,
}

impl Database {
    fn create(disk: &MemDisk) {
        let mut payload = Vec::new();
        payload.put_u64(0);
        Roots::default().encode(&mut payload);
        Superblock::create(disk, STORE, &payload).unwrap();
    }

    fn open<D: Disk + Clone + 'static>(disk: &D, nodes: &Arc<Nodes>) -> Result<Self, Failure> {
        let (superblock, payload) = Superblock::open(disk)?;
        let mut reader = Reader::new(&payload);
        let after = Lsn(reader.u64()?);
        let mut meta = Meta::open(nodes.clone(), &SPECS, Roots::decode(&mut reader)?)?;
        let geometry = Geometry { segment_bytes: 1536, segments_min: 2, segments_max: 8 };
        let options = Options { store: STORE, after, geometry, repair: Repair::Refuse };
        let journal = Journal::open(Arc::new(disk.clone()), options, Box::new(|| Ok(())), &mut |_, kind, payload| {
            match (kind, payload) {
                (1, [key, value]) => meta.put(TABLE, &[*key], &[*value]),
                (2, [key]) => meta.delete(TABLE, &[*key]),
                _ => return Err("garbage".into()),
            }
            Ok(())
        })?;
        Ok(Self { nodes: nodes.clone(), meta, journal, superblock, checkpoint: after })
    }

    fn put(&mut self, key: u8, value: u8) -> Lsn {
        self.meta.put(TABLE, &[key], &[value]);
        self.journal.append(1, &[key, value])
    }

    fn delete(&mut self, key: u8) -> Lsn {
        self.meta.delete(TABLE, &[key]);
        self.journal.append(2, &[key])
    }

    fn checkpoint(&mut self) -> Result<(), Failure> {
        let Some(job) = self.meta.freeze() else { return Ok(()) };
        let position = self.journal.appended();
        let done = job.run(&Roots::default(), &mut |plain, _| {
            let id = GlyphId::of(plain);
            self.nodes.0.lock().insert(id, Bytes::copy_from_slice(plain));
            Ok(id)
        })?;
        let mut payload = Vec::new();
        payload.put_u64(position.0);
        done.roots().encode(&mut payload);
        self.superblock.write(&payload)?;
        drop(self.meta.install(done));
        // Up to the older slot, so that a start from there finds what it needs.
        self.journal.recycle(std::mem::replace(&mut self.checkpoint, position))?;
        Ok(())
    }

    fn rows(&self) -> Rows {
        let mut rows = Rows::new();
        let visit = &mut |key: &[u8], value: &Bytes| {
            rows.insert(key[0], value[0]);
            ControlFlow::Continue(())
        };
        self.meta.scan(TABLE, b"", visit).unwrap();
        rows
    }
}

/// What the table held after each record, and how far that was acknowledged.
struct Expected {
    states: BTreeMap<Lsn, Rows>,
    acknowledged: Lsn,
}

impl Expected {
    fn check(&mut self, database: &Database) {
        let end = database.journal.appended();
        assert!(end >= self.acknowledged, "acknowledged up to {}, found {end}", self.acknowledged);
        assert_eq!(Some(&database.rows()), self.states.get(&end), "the state at {end}");
        self.states.retain(|lsn, _| *lsn <= end);
        self.acknowledged = end;
    }

    fn run(&mut self, database: &mut Database, random: &mut u64, steps: u32) -> Result<(), Failure> {
        let mut next = |below: u64| {
            *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*random >> 33) % below
        };
        for _ in 0..steps {
            let mut rows = self.states.last_key_value().expect("there is a first state").1.clone();
            let key = next(60) as u8;
            match next(20) {
                0..12 => {
                    let value = next(256) as u8;
                    rows.insert(key, value);
                    self.states.insert(database.put(key, value), rows);
                }
                12..15 => {
                    rows.remove(&key);
                    self.states.insert(database.delete(key), rows);
                }
                15 => {
                    database.checkpoint()?;
                    self.acknowledged = self.acknowledged.max(database.checkpoint);
                }
                _ => match database.journal.commit(database.journal.appended()) {
                    Ok(()) => self.acknowledged = database.journal.committed(),
                    Err(JournalError::Full) => database.checkpoint()?,
                    Err(other) => return Err(other.into()),
                },
            }
        }
        Ok(())
    }
}

#[test]
fn a_restart_finds_every_acknowledged_row_whenever_the_power_goes() {
    for seed in 0..60 {
        let mut random = seed;
        let nodes = Arc::new(Nodes::default());
        let mut files = MemDisk::new();
        Database::create(&files);
        let mut expected = Expected { states: BTreeMap::from([(Lsn(0), Rows::new())]), acknowledged: Lsn(0) };
        for generation in 0..12 {
            let disk = CrashDisk::over(&files, PowerLoss::AtOp((seed * 7 + generation * 13) % 90));
            match Database::open(&disk, &nodes) {
                Ok(mut database) => {
                    expected.check(&database);
                    _ = expected.run(&mut database, &mut random, 100);
                }
                Err(error) => assert!(disk.is_dead(), "seed {seed}: {error}"),
            }
            files = disk.after_power_loss(seed + generation);
        }
        expected.check(&Database::open(&files, &nodes).unwrap());
    }
}

#[test]
fn a_damaged_newest_superblock_costs_nothing() {
    let nodes = Arc::new(Nodes::default());
    let disk = MemDisk::new();
    Database::create(&disk);
    let mut database = Database::open(&disk, &nodes).unwrap();
    let mut expected = Expected { states: BTreeMap::from([(Lsn(0), Rows::new())]), acknowledged: Lsn(0) };
    let mut random = 5;
    for _ in 0..20 {
        expected.run(&mut database, &mut random, 60).unwrap();
        database.checkpoint().unwrap();
        expected.run(&mut database, &mut random, 10).unwrap();
        // Whatever is pending is part of the expected state.
        database.journal.commit(database.journal.appended()).unwrap();
        let copy = disk.snapshot();
        let newest = (database.superblock.sequence() % 2) << 20;
        copy.flip(FileName::Superblock, newest + 50, 1).unwrap();
        let from_older = Database::open(&copy, &nodes).unwrap();
        assert!(from_older.checkpoint < database.checkpoint);
        assert_eq!(from_older.rows(), database.rows());
    }
}
