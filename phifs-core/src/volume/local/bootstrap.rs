//! A new store out of an exported snapshot: its live state is that of the snapshot, which is there as well. Or out of the
//! head of another machine: then the two are at the same point, and go on from there.
//!
//! Until everything is in it, the superblock says that the store is not finished. Such a store does not open; it can be
//! gone on with, from the same export or another one, and what was stored by then is found.

use std::io::{BufReader, Read};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::content::manifest::Part;
use crate::disk::Disk;
use crate::id::{DirId, InodeId};
use crate::identity::{NodeKey, NodePublicKey};
use crate::merkle::NodeCache;
use crate::meta::superblock::Superblock;
use crate::meta::{Frozen, Lsn, Meta, Roots, TableId};
use crate::namespace::derive;
use crate::namespace::row::InodeRow;
use crate::namespace::tables::{Rows as _, TablesMut as _, malformed};
use crate::namespace::{Table, Tables as _, view};
use crate::registry::{Entry, Key, check_name};
use crate::snapshot::pull::{Ask, Pull};
use crate::snapshot::stream::{Header, Reader};
use crate::snapshot::{Record, SealedRecord, transfer};
use crate::store::{GlyphIndex, GlyphKind, GlyphSink as _, GlyphStore, StoreError, StoreOptions};
use crate::time::{AHEAD_MS_MAX, Env};

use super::incarnation::new_author;
use super::merge::MergeError;
use super::peers::{PeerError, check_origin};
use super::placed::awaited_key;
use super::preview::{AskAnytime, Preview};
use super::recover::{OpenError, UNFINISHED, find_superblock, new_store_id};
use super::snapshots::{SnapshotError, head_key};
use super::state::{State, local_key, merged_key};
use super::transfer::{Imported, Result, Tell, TransferError, entries, go_on};
use super::upkeep::Checkpoint;
use super::{LocalVolume, Options, TABLES};

/// Whose head a store is made of.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub node: NodePublicKey,
    pub volume: [u8; 16],
}

impl LocalVolume {
    /// Whether there is a volume in the store, and not only the beginning of one.
    pub fn is_there(disk: &dyn Disk) -> std::result::Result<bool, OpenError> {
        Ok(find_superblock(disk)?.is_some_and(|(_, payload)| payload[..] != UNFINISHED))
    }

    /// Makes a store on an empty disk out of a full export, ready to be opened.
    pub fn bootstrap(
        to: (Arc<dyn Disk>, Arc<dyn GlyphIndex>),
        env: &dyn Env,
        key_seed: &[u8; 32],
        options: &Options,
        input: impl Read,
        progress: Tell<'_>,
    ) -> Result<Imported> {
        let making = Making::check(&*to.0)?;
        let (Header { sealed, base }, mut reader) = Reader::open(BufReader::with_capacity(1 << 20, input))?;
        if let Some(base) = base {
            return Err(TransferError::MissingBase(base));
        }
        let record = &sealed.record;
        let name = record.label.clone();
        check_name(&name).map_err(|why| SnapshotError::BadName(name.clone(), why))?;
        let ahead_ms = record.theta.hlc.millis().saturating_sub(env.now().millis());
        if ahead_ms > AHEAD_MS_MAX {
            return Err(TransferError::ClockAhead(ahead_ms / 1000));
        }
        let making = making.begin(to, env, key_seed, options)?;
        let progress = &mut |bytes| go_on(progress, bytes);
        let received = transfer::import(&making.store, record, None, &making.state(record), &mut reader, progress)?;
        making.finish(env, record, |state| {
            state.put(Table::Local, &head_key(None), &sealed.id().0);
            entries(&name, &sealed)
        })?;
        Ok(Imported { name, id: sealed.id(), was_here: false, received })
    }

    /// Makes a store on an empty disk that knows what a peer knows, given the bytes of its head. The contents of files come
    /// later: until they are here, this machine vouches for nothing.
    pub fn bootstrap_from_peer(
        to: (Arc<dyn Disk>, Arc<dyn GlyphIndex>),
        env: &dyn Env,
        key_seed: &[u8; 32],
        options: &Options,
        (peer, head): (&Peer, &[u8]),
        ask: Ask<'_>,
        progress: Tell<'_>,
    ) -> std::result::Result<(), PeerError> {
        let aim = Aim::new(env, peer, head)?;
        let newcomer = Newcomer::begin(to, env, key_seed, options)?;
        newcomer.pull(&aim, ask, &AtomicU64::new(0), progress)?;
        newcomer.finish(env, &aim).map(drop)
    }
}

/// A store that is being made of what other machines know: step by step, for those who want to see something meanwhile.
pub struct Newcomer {
    disk: Arc<dyn Disk>,
    begun: Begun,
}

/// The state that a store is to have: the head of a peer.
pub struct Aim {
    record: Record,
}

impl Aim {
    pub fn new(env: &dyn Env, peer: &Peer, head: &[u8]) -> std::result::Result<Self, PeerError> {
        let record = SealedRecord::decode(head)?.record;
        check_origin(&record, &peer.node, env.now().millis())?;
        if record.volume != peer.volume {
            return Err(MergeError::OtherVolume(record.volume).into());
        }
        Ok(Self { record })
    }

    pub fn inodes(&self) -> u64 {
        self.record.roots.get(TableId(Table::Inodes as u8)).rows
    }

    /// Of all tables together.
    pub fn rows(&self) -> u64 {
        self.record.roots.iter().map(|(_, root)| root.rows).sum()
    }

    /// How many operations are in it.
    pub fn operations(&self) -> u64 {
        self.record.context.iter().map(|(_, n)| n).sum()
    }
}

/// The glyphs of a store that is finished and open.
pub struct Made {
    pub(super) store: Arc<GlyphStore>,
}

impl Newcomer {
    /// Begins, or goes on with a store that is not finished.
    pub fn begin(
        to: (Arc<dyn Disk>, Arc<dyn GlyphIndex>),
        env: &dyn Env,
        key_seed: &[u8; 32],
        options: &Options,
    ) -> std::result::Result<Self, PeerError> {
        let disk = to.0.clone();
        Ok(Self { begun: Making::check(&*disk)?.begin(to, env, key_seed, options)?, disk })
    }

    /// The aim as a filesystem. What is not here yet is asked for when somebody looks at it.
    pub fn preview(&self, aim: &Aim, cache_bytes: u64, ask: AskAnytime) -> Preview {
        Preview::new(self.disk.clone(), self.begun.store.clone(), cache_bytes, &aim.record, ask)
    }

    /// Brings all of the aim here but for the bytes of files. `rows_here` counts how much of it that is.
    pub fn pull(
        &self,
        aim: &Aim,
        ask: Ask<'_>,
        rows_here: &AtomicU64,
        progress: Tell<'_>,
    ) -> std::result::Result<(), PeerError> {
        let (record, store) = (&aim.record, &*self.begun.store);
        let after = self.begun.state(record);
        let nothing = after.clone().without_rows();
        let progress = &mut |bytes| go_on(progress, bytes);
        let mut pull = Pull::new(store, ask, progress).counting(rows_here);
        let pulled = pull.nodes(&nothing, &record.roots).and_then(|()| {
            let is_list = |part, _: &_| part == Part::Page;
            pull.contents(&nothing, record, &after, &is_list)
        });
        // The next try goes on from what has come.
        store.sync()?;
        Ok(pulled?)
    }

    /// Makes a volume of what was pulled, ready to be opened.
    pub fn finish(self, env: &dyn Env, aim: &Aim) -> std::result::Result<Made, PeerError> {
        let record = &aim.record;
        let made = Made { store: self.begun.store.clone() };
        self.begun.finish(env, record, |state| {
            let mut elsewhere = Vec::new();
            record.context.encode(&mut elsewhere);
            state.put(Table::Local, &merged_key(), &elsewhere);
            state.put(Table::Local, &awaited_key(), &[]);
            Vec::new()
        })?;
        Ok(made)
    }
}

/// A store in the making.
struct Making {
    found: Option<Superblock>,
}

struct Begun {
    superblock: Superblock,
    store: Arc<GlyphStore>,
    nodes: Arc<NodeCache>,
    key: NodeKey,
}

impl Making {
    fn check(disk: &dyn Disk) -> Result<Self> {
        match find_superblock(disk)? {
            Some((_, payload)) if payload[..] != UNFINISHED => Err(TransferError::HasVolume),
            found => Ok(Self { found: found.map(|(superblock, _)| superblock) }),
        }
    }

    fn begin(
        self,
        (disk, index): (Arc<dyn Disk>, Arc<dyn GlyphIndex>),
        env: &dyn Env,
        key_seed: &[u8; 32],
        options: &Options,
    ) -> Result<Begun> {
        let superblock = match self.found {
            Some(superblock) => superblock,
            None => Superblock::create(&*disk, new_store_id(env), &UNFINISHED).map_err(OpenError::from)?,
        };
        let store_options =
            StoreOptions { reserve_bytes: options.reserve_bytes, ..StoreOptions::new(superblock.store().0) };
        let (store, _) = GlyphStore::open(disk, index, &store_options, &|_| {})?;
        let store = Arc::new(store);
        let nodes = Arc::new(NodeCache::new(store.clone(), options.node_cache_bytes));
        Ok(Begun { superblock, store, nodes, key: NodeKey::from_seed(key_seed) })
    }
}

impl Begun {
    /// The state that it is to have.
    fn state(&self, record: &Record) -> Frozen {
        Frozen::new(self.nodes.clone(), record.roots.clone())
    }

    /// All nodes are here. `local` adds what is this machine's own, and gives what else there is to say in the registry.
    fn finish(
        mut self,
        env: &dyn Env,
        record: &Record,
        local: impl FnOnce(&mut State) -> Vec<(Key, Option<Vec<u8>>)>,
    ) -> Result<()> {
        check_derived(&self.state(record))?;
        let meta = Meta::open(self.nodes, &TABLES, record.roots.clone())
            .map_err(|source| StoreError::Malformed { what: "the record of the snapshot".into(), source })?;
        let author = new_author(env, &self.key);
        let mut state = State::new(meta, record.context.clone(), record.theta.hlc, author);
        settle_in(&mut state, record)?;
        // As if the exporter had said so at that moment: nothing that is said of them later is older.
        let by = record.author.id();
        let mut known =
            vec![(Key::Volume, Some(record.volume.to_vec())), (Key::Node(record.author.node), Some(Vec::new()))];
        known.extend(local(&mut state));
        for (key, value) in known {
            let entry = Entry { hlc: record.theta.hlc, author: by, value };
            state.put(Table::Registry, &key.encode(), &entry.encode());
        }

        let store = &self.store;
        let job = state.meta.freeze().expect("there are changes");
        let done =
            job.run(&Roots::default(), &mut |node, _| store.write(GlyphKind::Node, node)).map_err(StoreError::from)?;
        store.sync()?;
        store.flush_index();
        let checkpoint = Checkpoint {
            context: record.context.clone(),
            hlc: record.theta.hlc,
            author,
            clean: true,
            lsn: Lsn::default(),
            roots: done.roots().clone(),
        };
        // In both copies: one that still said otherwise could be what is found after damage.
        for _ in 0..2 {
            self.superblock.write(&checkpoint.encode()).map_err(OpenError::from)?;
        }
        Ok(())
    }
}

/// Names and directories follow from the rest, or the live state would contradict itself.
fn check_derived(tables: &Frozen) -> std::result::Result<(), StoreError> {
    let differences = derive::differences(&derive::kept(tables)?, &derive::recompute(tables)?);
    match differences.first() {
        None => Ok(()),
        Some(row) => {
            let source = crate::codec::DecodeError::NotCanonical("a derived row");
            Err(StoreError::Malformed { what: format!("the snapshot at {row}"), source })
        }
    }
}

/// Local rows of a volume that begins with this state: its authors, our own included, and the inodes that have no names
/// (somebody had them open, or a snapshot knows them) for the collection to look at.
fn settle_in(state: &mut State, record: &Record) -> std::result::Result<(), StoreError> {
    let mut met = state.meet(&record.authors);
    met.extend(state.become_author(state.author));
    for (key, value) in met {
        state.put(Table::Local, &key, &value.unwrap_or_default());
    }
    let mut nameless = Vec::new();
    let mut outcome = Ok(());
    state.scan(Table::Inodes, &[], &mut |key, row| {
        match has_name(state, key, row) {
            Ok(true) => {}
            Ok(false) => nameless.push(key.to_vec()),
            Err(error) => outcome = Err(error),
        }
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    outcome?;
    for key in nameless {
        state.put(Table::Local, &local_key(b'g', &key), &[]);
    }
    Ok(())
}

fn has_name(state: &State, key: &[u8], row: &[u8]) -> std::result::Result<bool, StoreError> {
    let id = InodeId(derive::dot_of(key)?);
    let row = InodeRow::decode(id.0, row).map_err(|e| malformed("inode", key, e))?;
    let is_dir_shown = state.dir(DirId(id.0))?.is_some_and(|row| row.shown);
    Ok(is_dir_shown || view::nlink(state, id, row.kind())? > 0)
}
