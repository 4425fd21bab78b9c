//! The map against its definition: `by_definition` makes the nodes of a set of rows straight from the module's text.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use proptest::prelude::*;

use super::node::{Summary, encode_inner, encode_leaf, entry_bytes, row_bytes};
use super::*;
use crate::store::{GlyphKind, GlyphSource};

type Rows = BTreeMap<Bytes, Bytes>;
type Batch = BTreeMap<Bytes, Option<Bytes>>;

/// Nodes in memory.
#[derive(Default)]
struct Nodes {
    stored: Mutex<HashMap<GlyphId, Bytes>>,
}

impl Nodes {
    fn put(&self, plain: &[u8]) -> GlyphId {
        let id = GlyphId::of(plain);
        self.stored.lock().unwrap().insert(id, Bytes::copy_from_slice(plain));
        id
    }

    fn apply(&self, shape: Shape, root: &Root, batch: Batch) -> (Root, Vec<GlyphId>) {
        let mut written = Vec::new();
        let mut sink = |plain: &[u8], _: Option<&Replaced>| {
            let id = self.put(plain);
            written.push(id);
            Ok(id)
        };
        let root = apply(self, &mut sink, shape, root, batch).unwrap();
        (root, written)
    }

    fn build(&self, shape: Shape, rows: &Rows) -> Root {
        build(&mut |plain, _| Ok(self.put(plain)), shape, rows.clone()).unwrap()
    }

    fn reachable(&self, root: &Root) -> BTreeSet<GlyphId> {
        let mut ids = BTreeSet::new();
        walk(self, root, &mut |id, _| ids.insert(*id)).unwrap();
        ids
    }

    fn rows_from(&self, root: &Root, from: &[u8]) -> Vec<(Bytes, Bytes)> {
        scan(self, root, from).collect::<Result<_, _>>().unwrap()
    }
}

impl GlyphSource for Nodes {
    fn read(&self, _: GlyphKind, id: &GlyphId) -> Result<Bytes, StoreError> {
        self.stored.lock().unwrap().get(id).cloned().ok_or(StoreError::Missing(*id))
    }
}

impl NodeSource for Nodes {
    fn node(&self, id: &GlyphId) -> Result<Node, MapError> {
        Node::decode(id, self.read(GlyphKind::Node, id)?)
    }
}

/// One unit of a level: the rows below it, and its node.
#[derive(Clone)]
struct Made {
    bits: Vec<Vec<bool>>,
    first: Bytes,
    summary: Summary,
    id: GlyphId,
}

fn bit_string(key: &[u8]) -> Vec<bool> {
    let byte = |byte: &u8| std::iter::once(true).chain((0..8).map(|bit| byte & (0x80 >> bit) != 0)).collect::<Vec<_>>();
    key.iter().flat_map(byte).chain([false]).collect()
}

fn shared_bits(bits: &[Vec<bool>]) -> usize {
    let (first, last) = (&bits[0], &bits[bits.len() - 1]);
    first.iter().zip(last).position(|(x, y)| x != y).unwrap_or(first.len())
}

/// Splits `units` into the largest subtrees that `fits` accepts; single ones need not fit.
fn largest<T: Clone>(units: &[T], bits: &dyn Fn(&T) -> Vec<Vec<bool>>, fits: &dyn Fn(&[T]) -> bool) -> Vec<Vec<T>> {
    if units.len() == 1 || fits(units) {
        return vec![units.to_vec()];
    }
    let all: Vec<_> = units.iter().flat_map(bits).collect();
    let branch = shared_bits(&all);
    let at = units.iter().position(|unit| bits(unit)[0][branch]).unwrap();
    [largest(&units[..at], bits, fits), largest(&units[at..], bits, fits)].concat()
}

fn by_definition(shape: Shape, rows: &Rows) -> (Root, BTreeSet<GlyphId>) {
    let rows: Vec<(Bytes, Bytes)> = rows.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    if rows.is_empty() {
        return (Root::EMPTY, BTreeSet::new());
    }
    let size = |rows: &[(Bytes, Bytes)]| rows.iter().map(|(key, value)| row_bytes(key.len(), value.len())).sum::<u64>();
    let leaves = largest(&rows, &|row| vec![bit_string(&row.0)], &|rows| size(rows) <= shape.leaf_bytes.into());
    let mut made: Vec<Made> = Vec::new();
    let mut ids = BTreeSet::new();
    for rows in leaves {
        let mut bytes = Vec::new();
        encode_leaf(&mut bytes, rows.iter().map(|(key, value)| (&key[..], &value[..])));
        let bits: Vec<_> = rows.iter().map(|row| bit_string(&row.0)).collect();
        let prefix_bits = shared_bits(&bits) as u16;
        let summary = Summary { rows: rows.len() as u64, size_bytes: size(&rows) as u32, prefix_bits, level: 0 };
        ids.insert(GlyphId::of(&bytes));
        made.push(Made { bits, first: rows[0].0.clone(), summary, id: GlyphId::of(&bytes) });
    }
    for level in 1.. {
        if let [root] = &made[..] {
            return (Root { id: Some(root.id), level: root.summary.level, rows: root.summary.rows }, ids);
        }
        let size = |units: &[Made]| units.iter().map(|unit| entry_bytes(unit.first.len())).sum::<u64>();
        let fits = |units: &[Made]| units.len() == 2 || size(units) <= shape.inner_bytes.into();
        let groups = largest(&made, &|unit| unit.bits.clone(), &fits);
        made = groups
            .into_iter()
            .map(|units| {
                if let [unit] = &units[..] {
                    return unit.clone();
                }
                let mut bytes = Vec::new();
                encode_inner(&mut bytes, level, units.iter().map(|unit| (&unit.first[..], &unit.id, unit.summary)));
                let bits: Vec<_> = units.iter().flat_map(|unit| unit.bits.clone()).collect();
                let rows = units.iter().map(|unit| unit.summary.rows).sum();
                let prefix_bits = shared_bits(&bits) as u16;
                let summary = Summary { rows, size_bytes: size(&units) as u32, prefix_bits, level };
                ids.insert(GlyphId::of(&bytes));
                Made { bits, first: units[0].first.clone(), summary, id: GlyphId::of(&bytes) }
            })
            .collect();
    }
    unreachable!()
}

/// Keys of the kinds that a volume has, and kinds made to be awkward; few enough that histories meet them again.
fn keys() -> impl Strategy<Value = Bytes> {
    let id = |author: u8, n: u64| [&[author; 16][..], &n.to_be_bytes()].concat();
    prop_oneof![
        4 => (0..3u8, 0..60u64).prop_map(move |(author, n)| id(author, n)),
        2 => (0..2u8, 0..40u64).prop_map(move |(author, n)| id(author, n * n * 977)),
        2 => (0..3u64, 0..30u32).prop_map(move |(dir, n)| [id(1, dir), format!("report-{n}.txt").into_bytes()].concat()),
        2 => (0..40usize).prop_map(|len| vec![b'a'; len]),
        1 => (0..40usize, any::<bool>()).prop_map(|(len, high)| [vec![0xff; len], vec![if high { 0xff } else { 0 }]].concat()),
        1 => (0..72usize).prop_map(|bit| { let mut key = vec![0; 9]; key[bit / 8] = 0x80 >> (bit % 8); key }),
        1 => proptest::collection::vec(0..3u8, 0..5),
        1 => (0..8usize).prop_map(|len| vec![7; KEY_BYTES_MAX - len]),
    ]
    .prop_map(Bytes::from)
}

fn values() -> impl Strategy<Value = Bytes> {
    prop_oneof![6 => 0..40usize, 2 => 40..200usize, 1 => 200..3000usize]
        .prop_flat_map(|len| any::<u8>().prop_map(move |byte| Bytes::from(vec![byte % 4; len])))
}

fn batches() -> impl Strategy<Value = Vec<Batch>> {
    // Batches that mostly remove shrink the map again.
    let batch = (0..=4u8).prop_flat_map(|keep| {
        let value = (0..4u8, values()).prop_map(move |(dice, value)| (dice < keep).then_some(value));
        proptest::collection::btree_map(keys(), value, 0..60)
    });
    proptest::collection::vec(batch, 1..12)
}

fn shapes() -> impl Strategy<Value = Shape> {
    let bytes = prop_oneof![0..100u32, 100..1000u32, Just(4096)];
    (bytes.clone(), bytes).prop_map(|(leaf_bytes, inner_bytes)| Shape { leaf_bytes, inner_bytes })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_history_gives_the_map_that_the_rows_define(shape in shapes(), batches in batches(), from in keys()) {
        let nodes = Nodes::default();
        let (mut root, mut rows) = (Root::EMPTY, Rows::new());
        for batch in batches {
            let before = nodes.reachable(&root);
            let (next, written) = nodes.apply(shape, &root, batch.clone());
            for (key, value) in batch {
                match value {
                    Some(value) => rows.insert(key, value),
                    None => rows.remove(&key),
                };
            }
            root = next;
            let (defined, ids) = by_definition(shape, &rows);
            prop_assert_eq!(root, defined);
            let reachable = nodes.reachable(&root);
            prop_assert_eq!(&reachable, &ids);
            let fresh: BTreeSet<_> = reachable.difference(&before).copied().collect();
            prop_assert_eq!(written.len(), fresh.len(), "nothing is written twice or in vain");
            prop_assert_eq!(written.into_iter().collect::<BTreeSet<_>>(), fresh);
        }
        prop_assert_eq!(nodes.build(shape, &rows), root);
        for (key, value) in &rows {
            prop_assert_eq!(get(&nodes, &root, key).unwrap(), Some(value.clone()));
            let neighbours = [&key[..key.len().saturating_sub(1)], &[&key[..], &[0]].concat()];
            for key in neighbours {
                prop_assert_eq!(get(&nodes, &root, key).unwrap(), rows.get(key).cloned());
            }
        }
        prop_assert_eq!(get(&nodes, &root, &from).unwrap(), rows.get(&from).cloned());
        let expected: Vec<_> = rows.range(from.clone()..).map(|(key, value)| (key.clone(), value.clone())).collect();
        prop_assert_eq!(nodes.rows_from(&root, &from), expected);
    }

    #[test]
    fn damaged_nodes_are_refused_or_still_canonical(
        shape in shapes(),
        rows in proptest::collection::btree_map(keys(), values(), 1..80),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..40),
        cut in any::<prop::sample::Index>(),
    ) {
        let nodes = Nodes::default();
        let root = nodes.build(shape, &rows);
        let ids: Vec<_> = nodes.reachable(&root).into_iter().collect();
        for (which, at, byte) in damage {
            let id = ids[which.index(ids.len())];
            let mut bytes = nodes.read(GlyphKind::Node, &id).unwrap().to_vec();
            prop_assert!(Node::decode(&id, Bytes::copy_from_slice(&bytes[..cut.index(bytes.len())])).is_err());
            // Most damage to the many bytes of values and ids is invisible here, so half of it hits the front.
            let reach = if byte % 2 == 0 { bytes.len() } else { bytes.len().min(40) };
            bytes[at.index(reach)] ^= byte;
            let bytes = Bytes::from(bytes);
            if let Ok(node) = Node::decode(&id, bytes.clone()) {
                prop_assert_eq!(&encode_again(&node)[..], &bytes[..], "what is accepted has no other encoding");
                // Whatever the damaged node now claims, using it gives rows or an error.
                nodes.stored.lock().unwrap().insert(id, bytes);
                let _ = scan(&nodes, &root, b"").try_for_each(|row| row.map(drop));
                let _ = get(&nodes, &root, b"a");
                let _ = walk(&nodes, &root, &mut |_, _| true);
                let batch = rows.iter().map(|(key, value)| (key.clone(), (value.len() % 2 == 0).then_some(Bytes::new())));
                let _ = apply(&nodes, &mut |plain, _| Ok(GlyphId::of(plain)), shape, &root, batch);
            }
        }
    }
}

fn encode_again(node: &Node) -> Vec<u8> {
    let mut bytes = Vec::new();
    let keys: Vec<_> = node.keys().collect();
    if node.is_leaf() {
        let values: Vec<_> = (0..node.count()).map(|index| node.value(index)).collect();
        encode_leaf(&mut bytes, keys.iter().zip(&values).map(|(key, value)| (&key[..], &value[..])));
    } else {
        let children: Vec<_> = (0..node.count()).map(|index| node.child(index)).collect();
        let children = keys.iter().zip(&children).map(|(key, (id, summary))| (&key[..], id, *summary));
        encode_inner(&mut bytes, node.level(), children);
    }
    bytes
}

/// Rows as a volume makes them: 24-byte ids of three authors, with gaps.
fn inode_rows(count: u64) -> Rows {
    let row = |n: u64| {
        let key = [&[n as u8 % 3; 16][..], &(n / 3 * 2).to_be_bytes()].concat();
        (Bytes::from(key), Bytes::from(blake3::hash(&n.to_le_bytes()).as_bytes()[..(n % 33) as usize].to_vec()))
    };
    (0..count).map(row).collect()
}

#[test]
fn large_maps_built_and_grown_are_the_same() {
    let shape = Shape { leaf_bytes: 300, inner_bytes: 500 };
    let rows = inode_rows(12_000);
    let nodes = Nodes::default();
    let built = nodes.build(shape, &rows);
    assert_eq!(built, by_definition(shape, &rows).0);

    let mut grown = Root::EMPTY;
    for part in 0..7 {
        let batch = rows.iter().enumerate().filter(|(index, _)| index * 31 % 7 == part);
        let batch = batch.map(|(_, (key, value))| (key.clone(), Some(value.clone()))).collect();
        grown = nodes.apply(shape, &grown, batch).0;
    }
    assert_eq!(grown, built);

    let remove_all = rows.keys().map(|key| (key.clone(), None)).collect();
    assert_eq!(nodes.apply(shape, &grown, remove_all).0, Root::EMPTY);
}

#[test]
fn changes_that_change_nothing_write_nothing() {
    let shape = Shape { leaf_bytes: 300, inner_bytes: 500 };
    let rows = inode_rows(500);
    let nodes = Nodes::default();
    let root = nodes.build(shape, &rows);
    let mut batch: Batch = rows.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
    batch.insert(Bytes::from_static(b"absent"), None);
    assert_eq!(nodes.apply(shape, &root, batch), (root, Vec::new()));
}

/// Keys that branch at every bit: 0, 10, 110, ... as deep as a trie can be.
fn chain() -> Rows {
    let key = |bit: usize| {
        let mut key = vec![0xff; bit / 8 + 1];
        key[bit / 8] = !(0xff >> (bit % 8));
        (Bytes::from(key), Bytes::new())
    };
    (0..KEY_BYTES_MAX * 8).map(key).collect()
}

#[test]
fn changed_node_is_told_which_one_it_replaces() {
    let nodes = Nodes::default();
    let key = |n: u32| Bytes::copy_from_slice(&n.to_be_bytes());
    let rows = (0..5000).map(|n| (key(n), Bytes::from_static(b"a row of some length"))).collect();
    let old = nodes.build(Shape::default(), &rows);
    let mut replaced = Vec::new();
    let mut sink = |plain: &[u8], it: Option<&Replaced>| {
        replaced.push(it.expect("there was one in this place").clone());
        Ok(nodes.put(plain))
    };
    let changes = [1, 2500].map(|n| (key(n), Some(Bytes::from_static(b"another row"))));
    let new = apply(&nodes, &mut sink, Shape::default(), &old, changes).unwrap();
    let gone: BTreeSet<_> = nodes.reachable(&old).difference(&nodes.reachable(&new)).copied().collect();
    assert_eq!(replaced.iter().map(|it| it.id).collect::<BTreeSet<_>>(), gone);
    assert!(replaced.iter().all(|it| GlyphId::of(&it.bytes) == it.id));
}

#[test]
fn deepest_possible_map_works_on_a_small_stack() {
    // Pages for two entries only: one level for each branching.
    let shape = Shape { leaf_bytes: 0, inner_bytes: 0 };
    let work = move || {
        let nodes = Nodes::default();
        let rows = chain();
        let root = nodes.build(shape, &rows);
        assert_eq!(usize::from(root.level), rows.len() - 1);
        let (last, _) = rows.last_key_value().unwrap();
        assert!(get(&nodes, &root, last).unwrap().is_some());
        let change = Batch::from([(last.clone(), Some(Bytes::from_static(b"new")))]);
        let (changed, written) = nodes.apply(shape, &root, change);
        assert_eq!(written.len(), rows.len());
        assert_eq!(nodes.rows_from(&changed, last), [(last.clone(), Bytes::from_static(b"new"))]);
        let back = Batch::from([(last.clone(), Some(Bytes::new()))]);
        assert_eq!(nodes.apply(shape, &changed, back).0, root);
    };
    std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap();
}

#[test]
fn lopsided_keys_cost_depth_but_not_space() {
    let rows = chain();
    let nodes = Nodes::default();
    let root = nodes.build(Shape::default(), &rows);
    // Nearly every row is a leaf of its own, but no unit is wrapped in nodes of higher levels.
    assert!(nodes.reachable(&root).len() < rows.len() * 3 / 2);
    // A neighbour that shares no bit with the chain stays at the top.
    let neighbours: Rows = (0..200u8).map(|n| (Bytes::from(vec![0, n]), Bytes::from(vec![n; 100]))).collect();
    let batch = neighbours.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
    let (root, _) = nodes.apply(Shape::default(), &root, batch);
    let counting = Counting { nodes: &nodes, loads: Mutex::new(0) };
    assert!(get(&counting, &root, &[0, 77]).unwrap().is_some());
    assert!(*counting.loads.lock().unwrap() <= 4);
}

struct Counting<'a> {
    nodes: &'a Nodes,
    loads: Mutex<u32>,
}

impl NodeSource for Counting<'_> {
    fn node(&self, id: &GlyphId) -> Result<Node, MapError> {
        *self.loads.lock().unwrap() += 1;
        self.nodes.node(id)
    }
}

#[test]
fn pages_are_well_filled_and_bounded() {
    let nodes = Nodes::default();
    let rows = inode_rows(20_000);
    let root = nodes.build(Shape::default(), &rows);
    let (mut leaves, mut leaf_bytes) = (0, 0);
    for id in nodes.reachable(&root) {
        let summary = nodes.node(&id).unwrap().summary();
        assert!(summary.size_bytes <= 4096);
        if summary.level == 0 {
            leaves += 1;
            leaf_bytes += summary.size_bytes;
        }
    }
    assert!(leaf_bytes / leaves > 2048, "leaves hold {} bytes", leaf_bytes / leaves);
}

#[test]
fn a_child_that_is_not_what_its_parent_tells_is_refused() {
    let shape = Shape { leaf_bytes: 300, inner_bytes: 500 };
    let nodes = Nodes::default();
    let rows = inode_rows(300);
    let root = nodes.build(shape, &rows);
    let mut leaves = Vec::new();
    walk(&nodes, &root, &mut |id, level| {
        if level == 0 {
            leaves.push(*id);
        }
        true
    })
    .unwrap();
    let told = nodes.node(&leaves[2]).unwrap();
    let key = told.key(1);
    let mut shorter = Vec::new();
    encode_leaf(&mut shorter, std::iter::once((&told.key(0)[..], &told.value(0)[..])));
    // The store is trusted to check names, so what remains is a parent that names a node of another place, or one
    // that differs only in what is below its smallest key.
    for other in [nodes.read(GlyphKind::Node, &leaves[5]).unwrap(), Bytes::from(shorter)] {
        nodes.stored.lock().unwrap().insert(leaves[2], other);
        let refused = |error: MapError| matches!(error, MapError::Malformed { node, .. } if node == leaves[2]);
        assert!(refused(get(&nodes, &root, &key).unwrap_err()));
        assert!(refused(scan(&nodes, &root, b"").find_map(Result::err).unwrap()));
        let change = [(key.clone(), None)];
        assert!(refused(apply(&nodes, &mut |plain, _| Ok(nodes.put(plain)), shape, &root, change).unwrap_err()));
    }
    let wrong_root = Root { rows: root.rows + 1, ..root };
    assert!(matches!(get(&nodes, &wrong_root, b"").unwrap_err(), MapError::Malformed { .. }));
}

#[test]
fn rows_beyond_the_limits_are_refused() {
    let put = |key: usize, value: usize| {
        let row = (Bytes::from(vec![0; key]), Some(Bytes::from(vec![0; value])));
        apply(&Nodes::default(), &mut |plain, _| Ok(GlyphId::of(plain)), Shape::default(), &Root::EMPTY, [row])
    };
    assert_eq!(put(KEY_BYTES_MAX, VALUE_BYTES_MAX).unwrap().rows, 1);
    assert!(matches!(put(KEY_BYTES_MAX + 1, 0), Err(MapError::RowTooLarge { .. })));
    assert!(matches!(put(0, VALUE_BYTES_MAX + 1), Err(MapError::RowTooLarge { .. })));
}

#[test]
fn roots_round_trip() {
    let root = Root { id: Some(GlyphId([7; 32])), level: 300, rows: 1 << 40 };
    for root in [root, Root::EMPTY] {
        let mut bytes = Vec::new();
        root.encode(&mut bytes);
        let mut reader = Reader::new(&bytes);
        assert_eq!(Root::decode(&mut reader), Ok(root));
        reader.finish().unwrap();
    }
}

#[test]
fn cached_reads_load_each_node_once() {
    let nodes = std::sync::Arc::new(Nodes::default());
    let rows = inode_rows(2000);
    let root = nodes.build(Shape::default(), &rows);
    let cache = NodeCache::new(nodes.clone(), 1 << 20);
    assert_eq!(scan(&cache, &root, b"").count(), rows.len());
    // With the store gone, all of it comes from memory.
    nodes.stored.lock().unwrap().clear();
    for (key, value) in &rows {
        assert_eq!(get(&cache, &root, key).unwrap().as_ref(), Some(value));
    }
}

/// The root of fixed rows. If this fails, existing volumes no longer match: make a new node version instead.
#[test]
fn nodes_of_version_1_stay_as_they_are() {
    let rows = inode_rows(2000);
    let root = Nodes::default().build(Shape::default(), &rows);
    assert_eq!(
        (root.level, root.id.unwrap().to_string().as_str()),
        (1, "20160f1b810090b3f1688a5b5f414d1f45a6d717865d0cb0dd6735083f2281c8")
    );
}

proptest! {
    #[test]
    fn diff_names_exactly_the_rows_that_differ(shape in shapes(), batches in batches()) {
        let nodes = Nodes::default();
        let mut states = vec![(Root::EMPTY, Rows::new())];
        for batch in batches {
            let (root, mut rows) = states.last().unwrap().clone();
            let (root, _) = nodes.apply(shape, &root, batch.clone());
            for (key, value) in batch {
                match value {
                    Some(value) => rows.insert(key, value),
                    None => rows.remove(&key),
                };
            }
            states.push((root, rows));
        }
        let (new, after) = states.last().unwrap();
        for (old, before) in &states {
            let keys: BTreeSet<&Bytes> = before.keys().chain(after.keys()).collect();
            let row = |key: &Bytes| (before.get(key).cloned(), after.get(key).cloned());
            let mut expected: Vec<Difference> = keys
                .into_iter()
                .map(|key| (key, row(key)))
                .map(|(key, (old, new))| Difference { key: key.clone(), old, new })
                .collect();
            expected.retain(|row| row.old != row.new);
            let mut found = Vec::new();
            let visit = &mut |row| {
                found.push(row);
                ControlFlow::Continue(())
            };
            diff(&nodes, old, new, visit).unwrap();
            prop_assert_eq!(found, expected);
        }
    }
}

proptest! {
    #[test]
    fn added_names_each_node_that_the_other_lacks_once_and_shows_each_leaf(shape in shapes(), batches in batches()) {
        let nodes = Nodes::default();
        let mut roots = vec![Root::EMPTY];
        for batch in batches {
            roots.push(nodes.apply(shape, roots.last().unwrap(), batch).0);
        }
        for (old, new) in roots.iter().flat_map(|old| roots.iter().map(move |new| (old, new))) {
            let (mut named, mut leaves) = (Vec::new(), 0);
            added::<StoreError>(&nodes, old, new, &mut |added| {
                match added {
                    Added::Node(id) => named.push(*id),
                    Added::Leaf(leaf) => {
                        assert!(leaf.is_leaf());
                        leaves += 1;
                    }
                }
                Ok(())
            })
            .unwrap();
            let mut wanted: BTreeSet<_> = nodes.reachable(new).difference(&nodes.reachable(old)).copied().collect();
            // A map that is a subtree of the other one still has its own topmost node named.
            wanted.extend(new.id.filter(|_| old != new));
            prop_assert_eq!(named.iter().copied().collect::<BTreeSet<_>>(), wanted);
            prop_assert_eq!(leaves, named.iter().filter(|id| nodes.node(id).unwrap().is_leaf()).count());
            let once: BTreeSet<_> = named.iter().collect();
            prop_assert_eq!(once.len(), named.len());
        }
    }
}

#[test]
fn diff_of_a_few_changes_loads_few_nodes() {
    let nodes = Counted::default();
    let key = |n: u32| Bytes::from(n.to_be_bytes().to_vec());
    let rows: Rows = (0..20_000).map(|n| (key(n), Bytes::from_static(b"value"))).collect();
    let shape = Shape { leaf_bytes: 256, inner_bytes: 1024 };
    let old = nodes.nodes.build(shape, &rows);
    let batch = [7, 9_999, 19_000].map(|n| (key(n), None)).into_iter().collect();
    let (new, _) = nodes.nodes.apply(shape, &old, batch);
    let mut found = 0;
    let visit = &mut |_| {
        found += 1;
        ControlFlow::Continue(())
    };
    diff(&nodes, &old, &new, visit).unwrap();
    assert_eq!(found, 3);
    let (loaded, all) = (nodes.loads.load(Ordering::Relaxed), nodes.nodes.reachable(&new).len());
    assert!(loaded <= 8 * usize::from(new.level + 1), "{loaded} of {all} nodes");
}

/// Counts how many nodes are asked for.
#[derive(Default)]
struct Counted {
    nodes: Nodes,
    loads: AtomicUsize,
}

impl NodeSource for Counted {
    fn node(&self, id: &GlyphId) -> Result<Node, MapError> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.nodes.node(id)
    }
}
