//! However what was done comes to a machine, it comes to the same: operation by operation in any order, as states, as
//! differences of states, in an export, and after all of it was collected.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use phifs_core::id::Dot;
use phifs_core::meta::superblock::Superblock;
use phifs_core::namespace::apply::{GENESIS_DOT, genesis};
use phifs_core::namespace::tables::REPLICATED;
use phifs_core::namespace::{Op, Table, Tables, TablesMut, apply};
use phifs_core::oplog::{self, Oplog};
use phifs_core::store::StoreError;
use phifs_core::volume::local::{MergeOptions, News, Side};
use phifs_core::volume::{Attr, FileKind, RenameMode, Result, SetAttr};
use proptest::prelude::*;

use super::groups::{give, introduce};
use super::peers::{key_of, tell};
use super::*;
use crate::harness::read_tree;

#[derive(Clone, Copy, Debug)]
enum What {
    Mkdir,
    Write,
    Append,
    Link,
    Symlink,
    Remove,
    Rename,
    Exchange,
    SetMode,
    SetOwner,
    SetXattr,
    /// Another machine hears of everything, as a difference to what it heard before.
    Tell,
    /// It gets the operations, as they were signed.
    Push,
    /// It gets an export of all, and merges that.
    Carry,
    Collect,
    Restart,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    who: usize,
    what: What,
    first: usize,
    second: usize,
    name: usize,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let what = prop_oneof![
        3 => Just(What::Mkdir),
        4 => Just(What::Write),
        2 => Just(What::Append),
        1 => Just(What::Link),
        1 => Just(What::Symlink),
        3 => Just(What::Remove),
        4 => Just(What::Rename),
        1 => Just(What::Exchange),
        2 => Just(What::SetMode),
        1 => Just(What::SetOwner),
        1 => Just(What::SetXattr),
        3 => Just(What::Tell),
        3 => Just(What::Push),
        1 => Just(What::Carry),
        1 => Just(What::Collect),
        1 => Just(What::Restart),
    ];
    let step = (0..3usize, what, 0..64usize, 0..64usize, 0..3usize);
    let step = step.prop_map(|(who, what, first, second, name)| Step { who, what, first, second, name });
    prop::collection::vec(step, 1..40)
}

const NAMES: [&[u8]; 3] = [b"a", b"b", b"c"];

/// Every name below the root: the directory that it is in, and what it means.
fn names(volume: &LocalVolume) -> Vec<(Ino, Vec<u8>, Attr)> {
    let (mut found, mut dirs) = (Vec::new(), vec![Ino::ROOT]);
    while let Some(dir) = dirs.pop() {
        let before = found.len();
        volume
            .readdir(dir, 2, &mut |entry| {
                found.push((dir, entry.name.clone(), entry.attr));
                true
            })
            .unwrap();
        let is_dir = |(_, _, attr): &&(Ino, Vec<u8>, Attr)| attr.kind == FileKind::Directory;
        dirs.extend(found[before..].iter().filter(is_dir).map(|(_, _, attr)| attr.ino));
    }
    found
}

/// Does what the step means here, or nothing if that is not allowed.
fn act(site: &Site, step: Step) -> Result<()> {
    let volume = &site.volume;
    let names = names(volume);
    let mut dirs = vec![Ino::ROOT];
    dirs.extend(names.iter().filter(|(_, _, attr)| attr.kind == FileKind::Directory).map(|(_, _, attr)| attr.ino));
    let (dir, name) = (dirs[step.second % dirs.len()], NAMES[step.name]);
    site.env.advance();
    match step.what {
        What::Mkdir => return volume.make(&CALLER, dir, name, &DIR).map(drop),
        What::Symlink => {
            let link = NewNode { kind: NewKind::Symlink(name), permissions: 0o777, umask: 0 };
            return volume.make(&CALLER, dir, name, &link).map(drop);
        }
        What::Write => {
            let is_dir = volume.lookup(&CALLER, dir, name).is_ok_and(|attr| attr.kind != FileKind::File);
            // Some that lie in their row, and some that do not.
            let len = [5, 300, 9000][step.first % 3];
            if !is_dir {
                site.write(dir, name, &noise(step.first as u64, len));
            }
            return Ok(());
        }
        _ if names.is_empty() => return Ok(()),
        _ => {}
    }
    let (from, old_name, attr) = &names[step.first % names.len()];
    match step.what {
        What::Append if attr.kind == FileKind::File => {
            let handle = volume.open(&CALLER, attr.ino, &WRITE)?.handle;
            volume.write(&CALLER, attr.ino, handle, attr.size_bytes, b"appended", step.name == 0)?;
            volume.release(attr.ino, handle);
            settle(volume);
            Ok(())
        }
        What::Link => volume.link(attr.ino, dir, name).map(drop),
        What::Remove if attr.kind == FileKind::Directory => volume.rmdir(*from, old_name),
        What::Remove => volume.unlink(*from, old_name),
        What::Rename => volume.rename(*from, old_name, dir, name, RenameMode::Replace),
        What::Exchange => volume.rename(*from, old_name, dir, name, RenameMode::Exchange),
        What::SetMode => {
            let permissions = Some([0o644, 0o4755, 0o2711][step.name]);
            volume.setattr(&CALLER, attr.ino, &SetAttr { permissions, ..SetAttr::default() }).map(drop)
        }
        What::SetOwner => {
            let uid = Some(step.second as u32);
            volume.setattr(&CALLER, attr.ino, &SetAttr { uid, ..SetAttr::default() }).map(drop)
        }
        What::SetXattr => {
            let name = [&b"user.a"[..], b"user.b", b"security.capability"][step.name];
            volume.setxattr(&CALLER, attr.ino, name, &[step.second as u8], XattrMode::Set)
        }
        _ => Ok(()),
    }
}

/// A store gets an export of all that another one has, and merges it.
fn carry(from: &Site, to: &Site) {
    from.snapshot("carried");
    let trust = Some(key_of(from).to_string()[..8].to_owned());
    let options = ImportOptions { trust, under_any_name: true, ..ImportOptions::default() };
    to.volume.import_snapshot(&from.export("carried", None)[..], &options, &GO_ON).unwrap();
    to.volume.merge(&Side::Snapshot("carried".into()), &Side::Live, &MergeOptions::default()).unwrap();
    [from, to].iter().for_each(|site| site.volume.delete_snapshots(&["carried".into()]).unwrap());
}

fn push(from: &Site, to: &Site) {
    let is_given = match from.volume.news(&to.volume.context(), &|_| true).unwrap() {
        News::Groups(groups) => give(from, to, groups).is_some(),
        // The log has nothing of what came in another way.
        News::State => false,
    };
    if !is_given {
        tell_all(from, to);
    }
}

fn restarted(site: Site) -> Site {
    site.volume.tick().unwrap();
    let Site { disk, env, key, volume } = site;
    drop(volume);
    let volume = open(Arc::new(disk.clone()), &env, &key).unwrap();
    Site { disk, env, key, volume }
}

/// Names the state of all replicated tables.
fn root_of(site: &Site) -> [u8; 32] {
    site.snapshot("root");
    site.volume.seal_snapshots().unwrap();
    let id = site.volume.find_snapshot("root").unwrap().1.id.unwrap();
    let root = site.volume.sealed_record(id).unwrap().unwrap().record.root();
    site.volume.delete_snapshots(&["root".into()]).unwrap();
    root
}

fn tell_all(from: &Site, to: &Site) {
    tell(from, to);
}

/// Tells all to all.
fn settle_all(sites: &[Site]) {
    let [first, others @ ..] = sites else { return };
    others.iter().for_each(|other| tell_all(other, first));
    others.iter().for_each(|other| tell_all(first, other));
}

fn check_all_same(sites: &[Site], how: &str) {
    let root = root_of(&sites[0]);
    let shown = read_tree(&sites[0].volume).unwrap();
    for site in sites {
        assert_eq!(site.volume.fsck(false, &|_| {}).unwrap().problems, [], "{how}");
        assert_eq!(site.volume.context(), sites[0].volume.context(), "{how}");
        assert!(root_of(site) == root, "the rows differ {how}");
        assert!(read_tree(&site.volume).unwrap() == shown, "what is shown differs {how}");
    }
}

#[derive(Default)]
struct MapTables(BTreeMap<(Table, Vec<u8>), Bytes>);

impl Tables for MapTables {
    fn get(&self, table: Table, key: &[u8]) -> std::result::Result<Option<Bytes>, StoreError> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        table: Table,
        from: &[u8],
        visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
    ) -> std::result::Result<(), StoreError> {
        let from = (Bound::Included((table, from.to_vec())), Bound::Unbounded);
        for ((_, key), value) in self.0.range(from).take_while(|((at, _), _)| *at == table) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl TablesMut for MapTables {
    fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.0.insert((table, key.to_vec()), Bytes::copy_from_slice(value));
    }

    fn delete(&mut self, table: Table, key: &[u8]) {
        self.0.remove(&(table, key.to_vec()));
    }
}

/// All operations that were made on a machine, as it signed them.
fn operations(site: &Site) -> Vec<Op> {
    site.volume.tick().unwrap();
    let disk = site.disk.snapshot();
    let store = Superblock::open(&disk).unwrap().0.store();
    let (log, report) = Oplog::open(Arc::new(disk), store.0, oplog::SEGMENT_BYTES).unwrap();
    assert!(report.is_intact());
    let mut ops = Vec::new();
    for group in log.recent() {
        let group = group.unwrap();
        ops.extend(group.ops().map(|(n, bytes)| Op::decode(Dot { author: group.author_id(), n }, &bytes).unwrap()));
    }
    ops
}

/// Carries out operations in some order in which each comes after those of its author that were before, and after all
/// that it names.
fn carried_out(mut todo: Vec<Op>, mut order: impl Iterator<Item = usize>) -> MapTables {
    let mut tables = MapTables::default();
    genesis(&mut tables);
    let mut done = BTreeSet::from([GENESIS_DOT]);
    while !todo.is_empty() {
        let is_ready = |op: &Op| {
            (op.dot.n == 1 || done.contains(&Dot { n: op.dot.n - 1, ..op.dot }))
                && op.names_only(|dot| done.contains(&dot))
        };
        let ready: Vec<usize> = (0..todo.len()).filter(|at| is_ready(&todo[*at])).collect();
        assert!(!ready.is_empty(), "operations are missing");
        let op = todo.swap_remove(ready[order.next().unwrap() % ready.len()]);
        apply(&mut tables, &op).unwrap();
        done.insert(op.dot);
    }
    tables
}

/// The replicated rows of a machine.
fn rows(site: &Site) -> BTreeMap<(Table, Vec<u8>), Bytes> {
    site.snapshot("rows");
    let tables = site.volume.frozen(&site.volume.find_snapshot("rows").unwrap().1.cut);
    let mut rows = BTreeMap::new();
    for table in REPLICATED {
        let visit = &mut |key: &[u8], value: &Bytes| {
            rows.insert((table, key.to_vec()), value.clone());
            ControlFlow::Continue(())
        };
        tables.scan(table, &[], visit).unwrap();
    }
    site.volume.delete_snapshots(&["rows".into()]).unwrap();
    rows
}

fn config() -> ProptestConfig {
    let cases = if std::env::var_os("PHIFS_LONG").is_some() { 5000 } else { 96 };
    ProptestConfig { cases, max_shrink_iters: 200, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn operations_states_differences_exports_and_collections_come_to_the_same(
        steps in steps(),
        order in prop::collection::vec(0..1000usize, 8),
    ) {
        let first = Site::new(0);
        first.snapshot("begin");
        let begin = first.export("begin", None);
        first.volume.delete_snapshots(&["begin".into()]).unwrap();
        let mut sites = vec![first, Site::out_of(1, &begin), Site::out_of(2, &begin)];
        introduce(&sites);
        for site in &sites[1..] {
            let names = site.names();
            site.volume.delete_snapshots(&names).unwrap();
        }
        for step in steps {
            let other = (step.who + 1 + step.first % 2) % 3;
            match step.what {
                What::Tell => tell_all(&sites[step.who], &sites[other]),
                What::Push => push(&sites[step.who], &sites[other]),
                What::Carry => carry(&sites[step.who], &sites[other]),
                What::Collect => drop(sites[step.who].volume.collect(1.0, &|_| {}).unwrap()),
                What::Restart => {
                    let site = sites.remove(step.who);
                    sites.insert(step.who, restarted(site));
                }
                _ => drop(act(&sites[step.who], step)),
            }
        }
        settle_all(&sites);
        check_all_same(&sites, "after all was told");
        sites[1].snapshot("end");
        let exported = Site::out_of(3, &sites[1].export("end", None));
        prop_assert!(root_of(&exported) == root_of(&sites[0]), "an export brings other rows");
        prop_assert!(read_tree(&exported.volume).unwrap() == read_tree(&sites[0].volume).unwrap());
        sites[1].volume.delete_snapshots(&["end".into()]).unwrap();

        // What nobody needs any more is forgotten, which others hear of.
        sites.iter().for_each(|site| drop(site.volume.collect(1.0, &|_| {}).unwrap()));
        settle_all(&sites);
        check_all_same(&sites, "after a collection");
        sites = sites.into_iter().map(restarted).collect();
        check_all_same(&sites, "after a restart");

        let ops: BTreeMap<Dot, Op> = sites.iter().flat_map(operations).map(|op| (op.dot, op)).collect();
        let wanted = rows(&sites[2]);
        for order in [&order[..], &[0]] {
            let mut tables = carried_out(ops.values().cloned().collect(), order.iter().copied().cycle());
            tables.0.retain(|(table, _), _| REPLICATED.contains(table));
            prop_assert!(tables.0 == wanted, "the operations come to other rows");
        }
    }
}
