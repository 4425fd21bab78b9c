use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::id::GlyphId;
use crate::merkle::{Node, Replaced};
use crate::store::StoreError;

const LINKS: TableId = TableId(1);
const NAMES: TableId = TableId(7);
const SHAPE: Shape = Shape { leaf_bytes: 256, inner_bytes: 256 };
static SPECS: [TableSpec; 2] = [
    TableSpec { id: LINKS, name: "links", replicated: true, shape: SHAPE },
    TableSpec { id: NAMES, name: "names", replicated: false, shape: SHAPE },
];

#[test]
fn only_nodes_of_maps_that_others_keep_are_told_what_they_replace() {
    let nodes = Arc::new(Nodes::default());
    let mut meta = open(&nodes, Roots::default());
    let change = |meta: &mut Meta, row: &[u8], kept: &Roots| {
        meta.put(LINKS, b"key", row);
        meta.put(NAMES, b"key", row);
        let mut told = Vec::new();
        let mut sink = |plain: &[u8], replaced: Option<&Replaced>| {
            told.push(replaced.map(|replaced| replaced.id));
            nodes.sink()(plain, replaced)
        };
        let done = meta.freeze().unwrap().run(kept, &mut sink).unwrap();
        drop(meta.install(done));
        told
    };
    change(&mut meta, b"one", &Roots::default());
    let mut kept = meta.roots().clone();
    kept.set(NAMES, merkle::Root::EMPTY);
    assert_eq!(change(&mut meta, b"two", &kept), [kept.get(LINKS).id, None]);
    assert_eq!(change(&mut meta, b"three", &kept), [None, None], "those of the second state go");
}

#[derive(Default)]
struct Nodes(Mutex<HashMap<GlyphId, Bytes>>);

impl Nodes {
    fn sink(&self) -> impl FnMut(&[u8], Option<&Replaced>) -> Result<GlyphId, StoreError> {
        |plain, _| {
            let id = GlyphId::of(plain);
            self.0.lock().insert(id, Bytes::copy_from_slice(plain));
            Ok(id)
        }
    }
}

impl NodeSource for Nodes {
    fn node(&self, id: &GlyphId) -> Result<Node, MapError> {
        let plain = self.0.lock().get(id).cloned().ok_or(StoreError::Missing(*id))?;
        Node::decode(id, plain)
    }
}

fn open(nodes: &Arc<Nodes>, roots: Roots) -> Meta {
    Meta::open(nodes.clone(), &SPECS, roots).unwrap()
}

fn scanned(meta: &Meta, table: TableId, from: &[u8]) -> Vec<(Vec<u8>, Bytes)> {
    let mut rows = Vec::new();
    meta.scan(table, from, &mut |key, value| {
        rows.push((key.to_vec(), value.clone()));
        ControlFlow::Continue(())
    })
    .unwrap();
    rows
}

#[derive(Clone, Debug)]
enum Step {
    Put(TableId, Vec<u8>, Vec<u8>),
    Delete(TableId, Vec<u8>),
    Get(TableId, Vec<u8>),
    Scan(TableId, Vec<u8>, usize),
    Freeze,
    Run,
    RunAndFail(usize),
    Install,
    Abandon,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let table = || prop_oneof![Just(LINKS), Just(NAMES)];
    // Few keys, so that steps meet.
    let key =
        || prop_oneof![3 => (0u8..60).prop_map(|n| vec![n / 10, n % 10]), 1 => prop::collection::vec(0u8..3, 0..4)];
    let value = prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        10 => (table(), key(), value).prop_map(|(table, key, value)| Step::Put(table, key, value)),
        5 => (table(), key()).prop_map(|(table, key)| Step::Delete(table, key)),
        3 => (table(), key()).prop_map(|(table, key)| Step::Get(table, key)),
        2 => (table(), key(), 0usize..9).prop_map(|(table, key, rows)| Step::Scan(table, key, rows)),
        2 => Just(Step::Freeze),
        2 => Just(Step::Run),
        1 => (0usize..4).prop_map(Step::RunAndFail),
        2 => Just(Step::Install),
        1 => Just(Step::Abandon),
        1 => Just(Step::Reopen),
    ]
}

type Model = BTreeMap<(TableId, Vec<u8>), Bytes>;

fn of_table(model: &Model, table: TableId, from: &[u8]) -> Vec<(Vec<u8>, Bytes)> {
    let rows = model.range((table, from.to_vec())..).take_while(|((of, _), _)| *of == table);
    rows.map(|((_, key), value)| (key.clone(), value.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn tables_behave_as_ordered_maps_whatever_checkpoints_do(steps in prop::collection::vec(step(), 1..150)) {
        let nodes = Arc::new(Nodes::default());
        let mut meta = open(&nodes, Roots::default());
        let mut model = Model::new();
        // What a restart from the installed roots would see, and what the checkpoint under way would make of it.
        let (mut installed, mut frozen) = (Model::new(), Model::new());
        let (mut job, mut done) = (None, None);
        for step in steps {
            match step {
                Step::Put(table, key, value) => {
                    meta.put(table, &key, &value);
                    model.insert((table, key), value.into());
                }
                Step::Delete(table, key) => {
                    meta.delete(table, &key);
                    model.remove(&(table, key));
                }
                Step::Get(table, key) => {
                    prop_assert_eq!(meta.get(table, &key).unwrap(), model.get(&(table, key)).cloned());
                }
                Step::Scan(table, from, rows) => {
                    let mut found = Vec::new();
                    meta.scan(table, &from, &mut |key, value| {
                        found.push((key.to_vec(), value.clone()));
                        if found.len() > rows { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                    })
                    .unwrap();
                    let mut expected = of_table(&model, table, &from);
                    expected.truncate(rows + 1);
                    prop_assert_eq!(found, expected);
                }
                Step::Freeze => {
                    if let Some(started) = meta.freeze() {
                        prop_assert!(job.is_none() && done.is_none(), "one at a time");
                        prop_assert_eq!((meta.changed_rows(), meta.changed_bytes()), (0, 0));
                        job = Some(started);
                        frozen = model.clone();
                    }
                }
                Step::Run => {
                    if let Some(job) = job.take() {
                        done = Some(job.run(&Roots::default(), &mut nodes.sink()).unwrap());
                    }
                }
                Step::RunAndFail(written) => {
                    if let Some(job) = job.take() {
                        let (mut left, mut sink) = (written, nodes.sink());
                        let ran = job.run(&Roots::default(), &mut |plain, _| {
                            left = left.checked_sub(1).ok_or(StoreError::Full)?;
                            sink(plain, None)
                        });
                        match ran {
                            Ok(finished) => done = Some(finished),
                            Err(_) => meta.abandon(),
                        }
                    }
                }
                Step::Install => {
                    if let Some(done) = done.take() {
                        drop(meta.install(done));
                        installed = frozen.clone();
                    }
                }
                Step::Abandon => {
                    // Sometimes while the job still runs, sometimes when the superblock could not be written.
                    meta.abandon();
                    (job, done) = (None, None);
                }
                Step::Reopen => {
                    let mut bytes = Vec::new();
                    meta.roots().encode(&mut bytes);
                    let roots = Roots::decode(&mut crate::codec::Reader::new(&bytes)).unwrap();
                    let reopened = open(&nodes, roots);
                    for table in [LINKS, NAMES] {
                        prop_assert_eq!(scanned(&reopened, table, b""), of_table(&installed, table, b""));
                    }
                }
            }
        }
        for table in [LINKS, NAMES] {
            prop_assert_eq!(scanned(&meta, table, b""), of_table(&model, table, b""));
        }
    }
}

#[test]
fn equal_rows_have_equal_roots_however_they_were_checkpointed() {
    let nodes = Arc::new(Nodes::default());
    let roots = [1, 7, 500].map(|batch| {
        let mut meta = open(&nodes, Roots::default());
        for n in 0..500u32 {
            meta.put(LINKS, &n.to_be_bytes(), b"row");
            if (n + 1) % batch == 0 {
                let done = meta.freeze().unwrap().run(&Roots::default(), &mut nodes.sink()).unwrap();
                drop(meta.install(done));
            }
        }
        if let Some(job) = meta.freeze() {
            let done = job.run(&Roots::default(), &mut nodes.sink()).unwrap();
            drop(meta.install(done));
        }
        meta.roots().clone()
    });
    assert!(roots[0] == roots[1] && roots[1] == roots[2]);
    assert_eq!(roots[0].get(LINKS).rows, 500);
}

#[test]
fn abandoned_changes_stay_under_newer_ones() {
    let nodes = Arc::new(Nodes::default());
    let mut meta = open(&nodes, Roots::default());
    meta.put(LINKS, b"a", b"old");
    meta.put(LINKS, b"b", b"kept");
    let job = meta.freeze().unwrap();
    meta.put(LINKS, b"a", b"new");
    assert!(meta.freeze().is_none(), "one checkpoint at a time");
    assert!(job.run(&Roots::default(), &mut |_, _| Err(StoreError::Full)).is_err());
    meta.abandon();
    assert_eq!(meta.changed_rows(), 2);
    assert_eq!(meta.get(LINKS, b"a").unwrap().unwrap(), &b"new"[..]);
    assert_eq!(meta.get(LINKS, b"b").unwrap().unwrap(), &b"kept"[..]);
    assert!(meta.freeze().is_some());
}

#[test]
fn a_table_of_a_newer_program_is_refused() {
    let mut roots = Roots::default();
    roots.set(TableId(99), merkle::Root { id: Some(GlyphId([1; 32])), level: 0, rows: 1 });
    let refused = Meta::open(Arc::new(Nodes::default()), &SPECS, roots).map(|_| ());
    assert_eq!(refused, Err(DecodeError::Unknown { what: "a table of the store", value: 99 }));
}
