//! What must hold, whatever happens. The oracle sees all operations and all promises of all nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use phifs_core::causal::VersionVector;
use phifs_core::id::{Dot, InodeId, LinkId};
use phifs_core::meta::TableId;
use phifs_core::namespace::derive::dot_of;
use phifs_core::namespace::op::{Field, InodeEffect, LinkEffect};
use phifs_core::namespace::{Effect, InodeRow, LinkRow, Op, Table};
use phifs_core::oplog::SealedGroup;
use phifs_core::volume::local::{LocalVolume, News};
use phifs_core::volume::{FileKind, Ino, Volume, VolumeError};

use crate::node::{CALLER, Outcome};
use crate::world::World;

/// The part of an inode number that is the number of the operation that made it.
const INO_NUMBER: u64 = (1 << 44) - 1;

#[derive(Default)]
pub struct Oracle {
    numbers: usize,
    /// All bytes that were ever written, by their length.
    written: BTreeMap<usize, Vec<u8>>,
    /// What was synced on a node and not overwritten there: the length.
    synced: BTreeMap<(usize, Ino), usize>,
    /// All operations that were seen in the log of their author.
    harvested: VersionVector,
    /// Hashes of the groups that were seen on their way.
    met: BTreeSet<[u8; 32]>,
    everything: VersionVector,
    versions: BTreeMap<Dot, (InodeId, usize)>,
    published: BTreeSet<usize>,
    /// Versions that an operation has replaced or removed.
    dropped: BTreeSet<Dot>,
    /// What those knew who took a name from an inode.
    unlinked: BTreeMap<InodeId, Vec<VersionVector>>,
    /// What must be there after a crash of each node: it has promised that.
    promised: BTreeMap<usize, VersionVector>,
    /// What each node has vouched for.
    vouched: BTreeMap<usize, VersionVector>,
    /// What the state of each context is called.
    roots: BTreeMap<Vec<u8>, [u8; 32]>,
}

/// Bytes of this length.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).update(&len.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

impl Oracle {
    pub fn next_number(&mut self) -> usize {
        self.numbers += 1;
        self.numbers
    }

    pub fn written(&mut self, len: usize, bytes: Vec<u8>) {
        assert!(self.written.insert(len, bytes).is_none(), "lengths are told apart");
    }

    pub fn overwritten(&mut self, node: usize, ino: Ino) {
        self.synced.remove(&(node, ino));
    }

    /// A sync has succeeded: the bytes, and all operations until then, must not be lost.
    pub fn synced(&mut self, node: usize, ino: Ino, len: usize, context: &VersionVector) {
        if self.written.contains_key(&len) {
            self.synced.insert((node, ino), len);
        }
        self.promised.entry(node).or_default().join(context);
    }

    pub fn everything(&self) -> &VersionVector {
        &self.everything
    }

    /// A node is up again after a crash.
    pub fn restarted(&self, node: usize, context: &VersionVector) {
        if let Some(promised) = self.promised.get(&node) {
            assert!(context.covers(promised), "node {node} lost what it promised: {promised:?}, it has {context:?}");
        }
    }

    pub fn left(&mut self, node: usize, host: usize, context: &VersionVector) {
        self.promised.remove(&node);
        self.promised.entry(host).or_default().join(context);
    }

    pub fn check_bytes(&self, bytes: &[u8], who: &str) {
        // A length that nobody chose is that of a file between two calls.
        if let Some(written) = self.written.get(&bytes.len()) {
            let at = written.iter().zip(bytes).position(|(a, b)| a != b);
            let other = self.written.values().find(|other| other.starts_with(bytes)).map(Vec::len);
            assert_eq!(at, None, "{who} reads {} bytes, as if of {other:?}, that nobody wrote so", bytes.len());
        }
    }

    /// What groups do, for people.
    pub fn told(groups: &[Bytes]) -> Vec<String> {
        let groups = groups.iter().filter_map(|group| SealedGroup::decode(group.clone()).ok());
        let ops = groups.flat_map(|group| {
            let id = group.author_id();
            group.ops().filter_map(|(n, bytes)| Op::decode(Dot { author: id, n }, &bytes).ok()).collect::<Vec<_>>()
        });
        ops.map(|op| format!("{}: {}", op.dot, op.effects.iter().map(effect).collect::<Vec<_>>().join(", "))).collect()
    }

    pub fn context_of(&self, groups: &[Bytes]) -> VersionVector {
        let mut context = VersionVector::new();
        for group in groups {
            let group = SealedGroup::decode(group.clone()).expect("a group that was sealed");
            context.join(&VersionVector::new().with(group.author_id(), group.last()));
        }
        context
    }

    fn note_root(&mut self, context: &VersionVector, root: [u8; 32], who: usize) {
        let mut key = Vec::new();
        context.encode(&mut key);
        let known = *self.roots.entry(key).or_insert(root);
        assert_eq!(known, root, "node {who} knows what another one knew, and has another state");
    }

    /// Groups are under way. Their author may have lost them since, and its log.
    pub fn heard(&mut self, groups: &[Bytes]) {
        for group in groups {
            if self.met.insert(*blake3::hash(group).as_bytes()) {
                self.harvest(&SealedGroup::decode(group.clone()).expect("a group that was sealed"));
            }
        }
    }

    fn harvest(&mut self, group: &SealedGroup) {
        for (n, bytes) in group.ops() {
            let dot = Dot { author: group.author_id(), n };
            if self.harvested.contains(dot) {
                continue;
            }
            let op = Op::decode(dot, &bytes).expect("an operation that was sealed");
            for effect in op.effects {
                match effect {
                    Effect::Inode(effect) => {
                        let dropped = effect.drops.iter().filter(|(field, _)| *field == Field::Version);
                        self.dropped.extend(dropped.map(|(_, dot)| *dot));
                        if let Some((version, _)) = effect.version {
                            let len = version.content.len_bytes() as usize;
                            self.versions.insert(dot, (effect.inode, len));
                            self.published.insert(len);
                        }
                    }
                    Effect::Link(effect) if effect.place.is_none() => {
                        let knew = group.context().clone().with(dot.author, n - 1);
                        self.unlinked.entry(effect.inode).or_default().push(knew);
                    }
                    Effect::Purge { dots, .. } => self.dropped.extend(dots),
                    _ => {}
                }
            }
        }
        let known = self.harvested.get(group.author_id());
        if group.first() <= known + 1 && group.last() > known {
            self.harvested = std::mem::take(&mut self.harvested).with(group.author_id(), group.last());
        }
    }
}

fn effect(effect: &Effect) -> String {
    match effect {
        Effect::Inode(effect) => {
            let InodeEffect { inode, birth, version, drops, .. } = effect;
            let len = version.as_ref().map(|(version, _)| version.content.len_bytes());
            format!("inode {} (born: {}, bytes: {len:?}, drops {})", inode.0, birth.is_some(), drops.len())
        }
        Effect::Link(LinkEffect { link, inode, place, .. }) => match place {
            Some(place) => format!("name {} in {} of {}", place.name.escape_ascii(), place.parent.0, inode.0),
            None => format!("no name {} of {}", link.0, inode.0),
        },
        Effect::Move { dir, parent, name, .. } => format!("dir {} at {} in {}", dir.0, name.escape_ascii(), parent.0),
        Effect::Xattr { inode, .. } => format!("xattr of {}", inode.0),
        Effect::Purge { inode, .. } => format!("purge of {}", inode.0),
    }
}

impl World {
    /// Notes all that a node has made since it was looked at last.
    pub fn harvest(&mut self, n: usize) -> Outcome {
        let node = &self.nodes[n];
        let volume = node.volume();
        self.oracle.everything.join(&volume.context());
        let own = |author| volume.node_of(author) == Some(node.key);
        let news = volume.news(&self.oracle.harvested, &own).map_err(|e| node.trouble(e))?;
        if let News::Groups(groups) = news {
            groups.iter().for_each(|group| self.oracle.harvest(group));
        }
        Ok(())
    }

    /// A node has signed that it has this.
    pub fn vouches(&mut self, n: usize, context: &VersionVector) {
        self.oracle.promised.entry(n).or_default().join(context);
        self.oracle.vouched.entry(n).or_default().join(context);
        if self.rng.percent(2) {
            let copy = self.check_crashed_copy(n);
            let missing = copy.missing().unwrap_or_else(|e| panic!("node {n} could not be read: {e}"));
            assert_eq!(missing, [], "node {n} has vouched for these");
        }
    }

    /// If the power went now, nothing of what the node promised would be gone.
    pub fn check_crashed_copy(&mut self, n: usize) -> LocalVolume {
        let copy = self.nodes[n].crashed_copy().unwrap_or_else(|e| panic!("node {n} would not start again: {e}"));
        self.oracle.restarted(n, &copy.context());
        let report = copy.fsck(false, &|_| {}).unwrap_or_else(|e| panic!("node {n} could not be read: {e}"));
        assert_eq!(report.problems, [], "node {n} would have lost this");
        copy
    }

    /// Nobody is taken to have what it has not vouched for.
    pub fn check_holders(&self, n: usize) {
        for (other, node) in self.nodes.iter().enumerate() {
            let held = self.nodes[n].volume().held_by(node.key);
            let vouched = self.oracle.vouched.get(&other).cloned().unwrap_or_default();
            assert!(vouched.covers(&held), "node {n} counts on {other} for {held:?}, which vouched for {vouched:?}");
        }
    }

    /// The kernel has been told of all that it has cached and that is not so any more.
    pub fn check_kernel(&mut self, n: usize) {
        let node = &self.nodes[n];
        let volume = node.volume();
        for ((parent, name), cached) in node.kernel.names() {
            let found = match volume.lookup(&CALLER, parent, &name) {
                Ok(attr) => Some(attr.ino),
                Err(VolumeError::NotFound) => None,
                Err(_) => continue,
            };
            assert_eq!(cached, found, "the kernel of node {n} was not told of {parent:?}/{}", name.escape_ascii());
        }
        for (ino, cached) in node.kernel.bytes().into_iter().filter(|(ino, _)| !node.has_open(*ino)) {
            // An older version, for want of the newest, is read past its cache.
            if let Ok((bytes, true)) = node.read_file(ino) {
                assert!(bytes == cached, "the kernel of node {n} was not told that {ino:?} has other bytes");
            }
        }
    }

    /// Who knows the same has the same.
    pub fn compare_state(&mut self, n: usize) -> Outcome {
        let node = &self.nodes[n];
        let before = node.volume().context();
        let head = node.volume().head().map_err(|e| node.trouble(e))?;
        self.oracle.note_root(head.context(), head.record().root(), n);
        if *head.context() != before {
            self.changed(n);
        }
        Ok(())
    }

    /// All messages have arrived: all nodes are the same, and nothing is gone.
    pub fn check_quiet(&mut self) {
        let living = self.living();
        let mut tree_roots = BTreeSet::new();
        for n in living.iter().copied() {
            self.harvest(n).and_then(|()| self.compare_state(n)).unwrap_or_else(|e| panic!("node {n}: {e:?}"));
            let volume = self.nodes[n].volume();
            tree_roots.insert(volume.tree_root().unwrap_or_else(|e| panic!("node {n}: {e}")));
            // It checks all signatures again, which takes as long as everything else.
            if self.rng.percent(40) {
                let report = volume.fsck(false, &|_| {}).unwrap_or_else(|e| panic!("node {n}: {e}"));
                assert_eq!(report.problems, [], "node {n}");
            }
            assert_eq!(volume.missing().unwrap_or_else(|e| panic!("node {n}: {e}")), [], "node {n} is to hold these");
        }
        assert_eq!(tree_roots.len(), 1, "people see the same everywhere");
        let context = self.nodes[living[0]].volume().context();
        for (n, promised) in &self.oracle.promised {
            assert!(context.covers(promised), "what node {n} promised is gone: {promised:?}, all have {context:?}");
        }
        for ((n, ino), len) in &self.oracle.synced {
            // What nobody has seen in a log may have been told as a state.
            let is_published = self.oracle.published.contains(len) || !self.oracle.harvested.covers(&context);
            // Whoever unlinks a disputed name unlinks all that it means, also what was not published yet.
            let is_unlinked = || self.oracle.unlinked.keys().any(|id| id.0.n == ino.0 & INO_NUMBER);
            assert!(is_published || is_unlinked(), "{len} bytes that were synced on node {n} as {ino:?} are gone");
        }
        self.check_versions(living[0], &context);
        let reader = self.rng.pick(&living);
        self.read_all(reader);
    }

    /// Every version is there, unless somebody who knew it has replaced or removed it.
    fn check_versions(&self, n: usize, context: &VersionVector) {
        let volume = self.nodes[n].volume();
        let head = volume.head().unwrap_or_else(|e| panic!("node {n}: {e}"));
        let tables = volume.frozen(&head.record().cut());
        let (mut versions, mut named) = (BTreeSet::new(), BTreeSet::new());
        let visit = |table: Table, row: &mut dyn FnMut(Dot, &[u8])| {
            let scanned = tables.scan_rows(TableId(table as u8), &[], &mut |key, value| {
                row(dot_of(key).expect("the key of a row"), value);
                ControlFlow::Continue(())
            });
            scanned.unwrap_or_else(|e| panic!("node {n}: {e}"));
        };
        visit(Table::Inodes, &mut |id, row| {
            versions.extend(InodeRow::decode(id, row).expect("a row").versions.dots());
        });
        visit(Table::Links, &mut |id, row| {
            let row = LinkRow::decode(LinkId(id).0, row).expect("a row");
            named.extend(row.places.entries().iter().map(|place| place.value.inode));
        });
        let oracle = &self.oracle;
        for (dot, (inode, len)) in oracle.versions.iter().filter(|(dot, _)| context.contains(**dot)) {
            let is_there = versions.contains(dot);
            // What nobody has seen in a log may have replaced it.
            let is_explained = oracle.dropped.contains(dot) || !oracle.harvested.covers(context);
            assert!(is_there || is_explained, "version {dot} of {len} bytes is gone, and nobody has replaced it");
            let knew = oracle.unlinked.get(inode).into_iter().flatten();
            let is_nameless = is_there && !named.contains(inode);
            let is_removed = knew.into_iter().any(|knew| knew.contains(*dot)) || !oracle.harvested.covers(context);
            assert!(
                !is_nameless || is_removed,
                "version {dot} of {len} bytes has no name, and nobody who knew it unlinked it"
            );
        }
    }

    /// Everything that can be seen can be read.
    fn read_all(&mut self, n: usize) {
        let mut todo = vec![Ino::ROOT];
        while let Some(dir) = todo.pop() {
            let mut files = Vec::new();
            let listed = self.nodes[n].volume().readdir(dir, 2, &mut |entry| {
                match entry.attr.kind {
                    FileKind::Directory => todo.push(entry.attr.ino),
                    FileKind::File => files.push(entry.attr.ino),
                    _ => {}
                }
                true
            });
            listed.unwrap_or_else(|e| panic!("node {n}: listing {dir:?}: {e}"));
            for ino in files {
                self.read_checked(n, ino).unwrap_or_else(|e| panic!("node {n}: reading {ino:?}: {e}"));
            }
        }
    }
}
