//! What the inodes below `.phi` stand for, and which numbers they have.
//!
//! No table knows these numbers: each is made when something is looked up or listed, and kept as long as the kernel
//! knows it. It is a hash of what it stands for, so that it is the same again if it is asked for later; where two
//! hashes are equal, the later one moves on to the next free number.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::id::{AuthorId, DirId, Dot, InodeId, LinkId};
use crate::registry::Cut;
use crate::volume::{Ino, Lasts, Result, VolumeError};

use super::inside::View;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// `DIR/.phi`
    Phi(DirId),
    /// `DIR/.phi/status.json`, the same for all.
    Status,
    /// `DIR/.phi/snapshots`
    Snapshots(DirId),
    /// `DIR/.phi/snapshots/NAME`
    Top { view: ViewId, dir: DirId },
    /// What is below that.
    Inside { view: ViewId, inode: InodeId },
    /// `DIR/.phi/versions`
    Versions(DirId),
    /// `DIR/.phi/versions/FILE`
    VersionsOf(LinkId),
    /// `FROM/.phi/conflicts`, and the directories below.
    Conflicts { from: DirId, dir: DirId },
    /// `FROM/.phi/conflicts/PATH`
    Choices { from: DirId, link: LinkId },
    /// `DIR/.phi/orphans`, the same for all but for where it is.
    Orphans(DirId),
    /// A file in `.phi/versions/FILE` or `.phi/conflicts/PATH`.
    Version { inode: InodeId, version: Dot },
}

/// A snapshot as it is entered from one directory. A directory has one place in the kernel's tree, so what is reached
/// from two directories must be two inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewId(pub u32);

impl Node {
    fn lasts(self) -> Lasts {
        match self {
            Self::Phi(_) | Self::Snapshots(_) | Self::Versions(_) | Self::Orphans(_) => Lasts::Itself,
            Self::Status | Self::Top { .. } | Self::VersionsOf(_) | Self::Version { .. } => Lasts::Moment,
            Self::Conflicts { .. } | Self::Choices { .. } => Lasts::Moment,
            Self::Inside { .. } => Lasts::Ever,
        }
    }

    fn view(self) -> Option<ViewId> {
        match self {
            Self::Top { view, .. } | Self::Inside { view, .. } => Some(view),
            _ => None,
        }
    }
}

/// The kernel may know millions of them, so authors are replaced by numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Packed {
    Phi(u64),
    Status,
    Snapshots(u64),
    Top(ViewId, u64),
    Inside(ViewId, u64),
    Versions(u64),
    VersionsOf(u64),
    Version(u64, u64),
    Conflicts(u64, u64),
    Choices(u64, u64),
    Orphans(u64),
}

const _: () = assert!(size_of::<Packed>() <= 24);

/// Bits of a packed dot that hold the operation's number; above them is the number of its author.
const N_BITS: u32 = 44;

#[derive(Default)]
struct Authors {
    by_number: Vec<AuthorId>,
    numbers: HashMap<AuthorId, u64>,
}

impl Authors {
    fn pack(&mut self, dot: Dot) -> Result<u64> {
        let next = self.by_number.len() as u64;
        let number = *self.numbers.entry(dot.author).or_insert(next);
        if number == next {
            self.by_number.push(dot.author);
        }
        if number >> (64 - N_BITS) != 0 || dot.n >> N_BITS != 0 {
            return Err(VolumeError::Internal(format!("{dot} does not fit into an inode number")));
        }
        Ok(number << N_BITS | dot.n)
    }

    fn unpack(&self, packed: u64) -> Dot {
        Dot { author: self.by_number[(packed >> N_BITS) as usize], n: packed & ((1 << N_BITS) - 1) }
    }

    fn pack_node(&mut self, node: Node) -> Result<Packed> {
        Ok(match node {
            Node::Phi(dir) => Packed::Phi(self.pack(dir.0)?),
            Node::Status => Packed::Status,
            Node::Snapshots(dir) => Packed::Snapshots(self.pack(dir.0)?),
            Node::Top { view, dir } => Packed::Top(view, self.pack(dir.0)?),
            Node::Inside { view, inode } => Packed::Inside(view, self.pack(inode.0)?),
            Node::Versions(dir) => Packed::Versions(self.pack(dir.0)?),
            Node::VersionsOf(link) => Packed::VersionsOf(self.pack(link.0)?),
            Node::Version { inode, version } => Packed::Version(self.pack(inode.0)?, self.pack(version)?),
            Node::Conflicts { from, dir } => Packed::Conflicts(self.pack(from.0)?, self.pack(dir.0)?),
            Node::Choices { from, link } => Packed::Choices(self.pack(from.0)?, self.pack(link.0)?),
            Node::Orphans(dir) => Packed::Orphans(self.pack(dir.0)?),
        })
    }

    fn unpack_node(&self, packed: Packed) -> Node {
        match packed {
            Packed::Phi(dir) => Node::Phi(DirId(self.unpack(dir))),
            Packed::Status => Node::Status,
            Packed::Snapshots(dir) => Node::Snapshots(DirId(self.unpack(dir))),
            Packed::Top(view, dir) => Node::Top { view, dir: DirId(self.unpack(dir)) },
            Packed::Inside(view, inode) => Node::Inside { view, inode: InodeId(self.unpack(inode)) },
            Packed::Versions(dir) => Node::Versions(DirId(self.unpack(dir))),
            Packed::VersionsOf(link) => Node::VersionsOf(LinkId(self.unpack(link))),
            Packed::Conflicts(from, dir) => {
                Node::Conflicts { from: DirId(self.unpack(from)), dir: DirId(self.unpack(dir)) }
            }
            Packed::Choices(from, link) => {
                Node::Choices { from: DirId(self.unpack(from)), link: LinkId(self.unpack(link)) }
            }
            Packed::Orphans(dir) => Node::Orphans(DirId(self.unpack(dir))),
            Packed::Version(inode, version) => {
                Node::Version { inode: InodeId(self.unpack(inode)), version: self.unpack(version) }
            }
        }
    }
}

struct Held {
    view: Arc<View>,
    /// How many nodes are in it. Without any it goes.
    nodes: usize,
}

#[derive(Default)]
struct Table {
    authors: Authors,
    nodes: HashMap<u64, Packed>,
    /// Nodes that do not have the number that their hash says.
    displaced: HashMap<Packed, u64>,
    views: HashMap<ViewId, Held>,
    view_ids: HashMap<(String, DirId), ViewId>,
    next_view: u32,
}

/// All nodes that the kernel knows.
#[derive(Default)]
pub struct Nodes(Mutex<Table>);

impl Nodes {
    /// The number of a node, which stands for it until it is forgotten.
    pub fn number(&self, node: Node) -> Result<Ino> {
        self.0.lock().hold(node)
    }

    pub fn get(&self, ino: Ino) -> Result<Node> {
        let table = self.0.lock();
        let packed = *table.nodes.get(&ino.0).ok_or(VolumeError::Stale)?;
        Ok(table.authors.unpack_node(packed))
    }

    pub fn forget(&self, ino: Ino) {
        let table = &mut *self.0.lock();
        let Some(packed) = table.nodes.remove(&ino.0) else { return };
        table.displaced.remove(&packed);
        if let Some(id) = table.authors.unpack_node(packed).view() {
            table.leave(id);
        }
    }

    pub fn view(&self, id: ViewId) -> Result<Arc<View>> {
        self.0.lock().views.get(&id).map(|held| held.view.clone()).ok_or(VolumeError::Stale)
    }

    /// The number of the directory through which a snapshot is entered. `make` gives what is to be seen then.
    pub fn enter(&self, name: &str, cut: &Cut, dir: DirId, make: impl FnOnce() -> View) -> Result<Ino> {
        let table = &mut *self.0.lock();
        let key = (name.to_owned(), dir);
        let known = table.view_ids.get(&key).copied();
        // Another snapshot may have got the name.
        let known = known.filter(|id| table.views.get(id).is_some_and(|held| held.view.cut == *cut));
        let id = known.unwrap_or_else(|| {
            let id = ViewId(table.next_view);
            table.next_view = table.next_view.wrapping_add(1);
            table.view_ids.insert(key, id);
            table.views.insert(id, Held { view: Arc::new(make()), nodes: 0 });
            id
        });
        table.hold(Node::Top { view: id, dir }).inspect_err(|_| table.drop_if_empty(id))
    }

    /// All snapshots that somebody looks into.
    pub fn views(&self) -> Vec<(ViewId, Arc<View>)> {
        self.0.lock().views.iter().map(|(id, held)| (*id, held.view.clone())).collect()
    }

    /// All nodes in one of them.
    pub fn within(&self, id: ViewId) -> Vec<Ino> {
        let table = self.0.lock();
        let is_in = |packed: &Packed| matches!(packed, Packed::Top(view, _) | Packed::Inside(view, _) if *view == id);
        table.nodes.iter().filter(|(_, packed)| is_in(packed)).map(|(number, _)| Ino(*number)).collect()
    }
}

impl Table {
    fn hold(&mut self, node: Node) -> Result<Ino> {
        let packed = self.authors.pack_node(node)?;
        let number = self.find(node, packed);
        if self.nodes.insert(number, packed).is_none() {
            if number != hashed(node, packed) {
                self.displaced.insert(packed, number);
            }
            if let Some(held) = node.view().and_then(|id| self.views.get_mut(&id)) {
                held.nodes += 1;
            }
        }
        Ok(Ino(number))
    }

    /// The number of a node, or the first that is free for it.
    fn find(&self, node: Node, packed: Packed) -> u64 {
        if let Some(number) = self.displaced.get(&packed) {
            return *number;
        }
        let mut number = hashed(node, packed);
        while self.nodes.get(&number).is_some_and(|other| *other != packed) {
            number = Ino(number).virtual_after().0;
        }
        number
    }

    fn leave(&mut self, id: ViewId) {
        if let Some(held) = self.views.get_mut(&id) {
            held.nodes -= 1;
        }
        self.drop_if_empty(id);
    }

    fn drop_if_empty(&mut self, id: ViewId) {
        if self.views.get(&id).is_none_or(|held| held.nodes > 0) {
            return;
        }
        if let Some(Held { view, .. }) = self.views.remove(&id) {
            let key = (view.name.clone(), view.dir);
            if self.view_ids.get(&key) == Some(&id) {
                self.view_ids.remove(&key);
            }
        }
    }
}

fn hashed(node: Node, packed: Packed) -> u64 {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(packed);
    Ino::new_virtual(hash, node.lasts()).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::causal::VersionVector;
    use crate::meta::{Frozen, Roots};
    use crate::time::{Hlc, Timestamp};

    fn dot(author: u8, n: u64) -> Dot {
        Dot { author: AuthorId([author; 16]), n }
    }

    fn cut(hlc: u64) -> Cut {
        Cut { roots: Roots::default(), context: VersionVector::new(), hlc: Hlc(hlc), time: Timestamp::default() }
    }

    struct NoNodes;

    impl crate::merkle::NodeSource for NoNodes {
        fn node(&self, id: &crate::id::GlyphId) -> std::result::Result<crate::merkle::Node, crate::merkle::MapError> {
            Err(crate::store::StoreError::Missing(*id).into())
        }
    }

    fn enter(nodes: &Nodes, name: &str, cut: &Cut, dir: DirId) -> (Ino, ViewId) {
        let tables = Frozen::new(Arc::new(NoNodes), cut.roots.clone());
        let ino = nodes.enter(name, cut, dir, || View::new(name.into(), cut.clone(), dir, tables)).unwrap();
        match nodes.get(ino).unwrap() {
            Node::Top { view, .. } => (ino, view),
            other => panic!("{other:?}"),
        }
    }

    fn is_empty(nodes: &Nodes) -> bool {
        let table = nodes.0.lock();
        table.nodes.is_empty() && table.displaced.is_empty() && table.views.is_empty() && table.view_ids.is_empty()
    }

    #[test]
    fn numbers_lead_back_until_they_are_forgotten_and_are_the_same_again() {
        let nodes = Nodes::default();
        let all = [
            Node::Phi(DirId(dot(1, 7))),
            Node::Status,
            Node::Snapshots(DirId(dot(1, 7))),
            Node::Versions(DirId(dot(2, 7))),
            Node::VersionsOf(LinkId(dot(1, 7))),
            Node::Conflicts { from: DirId(dot(1, 7)), dir: DirId(dot(1, 8)) },
            Node::Choices { from: DirId(dot(1, 7)), link: LinkId(dot(1, 8)) },
            Node::Orphans(DirId(dot(1, 7))),
            Node::Version { inode: InodeId(dot(1, 7)), version: dot(3, 1 << 43) },
        ];
        for _ in 0..2 {
            let numbers = all.map(|node| nodes.number(node).unwrap());
            for (node, ino) in all.into_iter().zip(numbers) {
                assert!(ino.is_virtual() && ino.lasts() != Lasts::Ever);
                assert_eq!(nodes.get(ino).unwrap(), node);
                assert_eq!(nodes.number(node).unwrap(), ino);
            }
            numbers.into_iter().for_each(|ino| nodes.forget(ino));
            assert!(is_empty(&nodes) && matches!(nodes.get(numbers[0]), Err(VolumeError::Stale)));
        }
        assert!(nodes.number(Node::Phi(DirId(dot(1, 1 << 44)))).is_err(), "it would lead to another");
    }

    #[test]
    fn a_view_lives_as_long_as_anything_in_it() {
        let nodes = Nodes::default();
        let (top, view) = enter(&nodes, "s", &cut(1), DirId::ROOT);
        assert_eq!(enter(&nodes, "s", &cut(1), DirId::ROOT), (top, view));
        assert_ne!(enter(&nodes, "s", &cut(1), DirId(dot(1, 7))).1, view, "entered elsewhere");
        let inside = nodes.number(Node::Inside { view, inode: InodeId(dot(1, 9)) }).unwrap();
        assert!(inside.is_virtual());
        assert_eq!((inside.lasts(), top.lasts()), (Lasts::Ever, Lasts::Moment));
        let mut within = nodes.within(view);
        within.sort_unstable();
        let mut wanted = [top, inside];
        wanted.sort_unstable();
        assert_eq!(within, wanted);
        nodes.forget(top);
        assert_eq!(nodes.view(view).unwrap().name, "s");
        let (_, other) = enter(&nodes, "s", &cut(2), DirId::ROOT);
        assert_ne!(other, view, "another snapshot of that name");
        nodes.forget(inside);
        assert!(nodes.view(view).is_err());
        assert!(nodes.view(other).is_ok());
        for (id, _) in nodes.views() {
            nodes.within(id).into_iter().for_each(|ino| nodes.forget(ino));
        }
        assert!(is_empty(&nodes));
    }

    #[test]
    fn nodes_whose_hashes_collide_have_numbers_of_their_own() {
        let nodes = Nodes::default();
        let (first, second) = (Node::Phi(DirId(dot(1, 7))), Node::Status);
        // The place of the first is taken by the second.
        let place = nodes.number(first).unwrap();
        nodes.forget(place);
        let packed = nodes.0.lock().authors.pack_node(second).unwrap();
        nodes.0.lock().nodes.insert(place.0, packed);
        let moved = nodes.number(first).unwrap();
        assert_eq!(moved, place.virtual_after());
        nodes.forget(place);
        assert_eq!(nodes.number(first).unwrap(), moved, "it stays where the kernel knows it");
        nodes.forget(moved);
        assert_eq!(nodes.number(first).unwrap(), place);
        nodes.forget(place);
        assert!(is_empty(&nodes));
    }
}
