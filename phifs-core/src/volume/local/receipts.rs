//! Who else has what durably, and waiting for it.
//!
//! What always holds: nobody is taken to hold anything but by its own signed word, and that word is given only after the
//! disk has confirmed.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::causal::VersionVector;
use crate::content::Content;
use crate::content::manifest::{Part, visit_glyphs};
use crate::durability::{Degraded, Durability};
use crate::id::{AuthorId, DirId, Dot, GlyphId, InodeId};
use crate::identity::{BadSignature, NodePublicKey};
use crate::namespace::derive;
use crate::namespace::row::Closure;
use crate::namespace::tables::Rows as _;
use crate::namespace::view;
use crate::registry::Member;
use crate::ssep::Receipt;
use crate::volume::{FileKind, Result, VolumeError};

use super::LocalVolume;
use super::attrs::said_above;
use super::collect::{CollectReport, Confirmed};
use super::publication::Publication;
use super::snapshots::SnapshotError;

/// The attribute of a directory that says what syncs below it wait for. Of a file it tells what was reached.
pub(super) const DURABILITY: &[u8] = b"user.phi.durability";
/// By so many placings the word of a node is kept.
const PLACINGS_MAX: usize = 4;
/// How often it is tried to publish a file that somebody writes to.
const PUBLISH_TRIES: usize = 8;

/// What the other members have said to hold.
#[derive(Default)]
pub(super) struct Receipts {
    held: Mutex<Held>,
    more: Condvar,
    /// Up to where somebody waits.
    urgent: Mutex<VersionVector>,
    /// By what placing everything is here that is to be here.
    complete: Mutex<Option<[u8; 32]>>,
}

/// The words of others: of each the latest few, by different placings. Not all hear of a new one at the same time.
type Held = BTreeMap<NodePublicKey, VecDeque<Receipt>>;

/// Whose word it is by this placing.
fn word<'a>(held: &'a Held, node: &NodePublicKey, placing: [u8; 32]) -> Option<&'a Receipt> {
    held.get(node)?.iter().find(|word| word.placing == placing)
}

/// What somebody waits for others to hold.
struct Needed {
    /// The operations. Of each author all until the last one.
    dots: VersionVector,
    contents: Vec<Content>,
}

impl LocalVolume {
    /// Makes all that is known durable, and vouches for it. Nothing, as long as not all is here that the layout places here.
    pub fn receipt(&self) -> std::result::Result<Option<Receipt>, SnapshotError> {
        let (context, placing) = (self.context(), self.placing());
        if !self.is_complete(placing) {
            return Ok(None);
        }
        self.commit_journal()?;
        Ok(Some(Receipt::sign(&self.key, &self.id()?, context, placing)))
    }

    fn is_complete(&self, placing: [u8; 32]) -> bool {
        !self.is_awaited() && (self.layout().is_none() || *self.receipts.complete.lock() == Some(placing))
    }

    /// Whether there is more to vouch for than somebody was told.
    pub fn has_more_to_vouch_for(&self, told: Option<&Receipt>) -> bool {
        let placing = self.placing();
        let is_told = |told: &Receipt| told.placing == placing && told.context.covers(&self.context());
        !told.is_some_and(is_told) && self.is_complete(placing)
    }

    /// The glyphs that are to be here and are not, as `missing` tells them. When there are none, this node vouches for what it
    /// has from then on.
    pub fn look_for_missing(&self) -> Result<Vec<(GlyphId, u64)>> {
        let placing = self.placing();
        let missing = self.missing()?;
        if missing.is_empty() && self.placing() == placing {
            *self.receipts.complete.lock() = Some(placing);
            self.nothing_is_awaited(placing)?;
        }
        Ok(missing)
    }

    /// Remembers the word of another member.
    pub fn take_receipt(&self, node: NodePublicKey, receipt: Receipt) -> std::result::Result<(), BadSignature> {
        let Ok(volume) = self.id() else { return Ok(()) };
        receipt.verify(&node, &volume)?;
        {
            let mut held = self.receipts.held.lock();
            let words = held.entry(node).or_default();
            // One that was on its way over an older connection says less.
            let is_late = |known: &Receipt| known.placing == receipt.placing && known.context.covers(&receipt.context);
            if !words.iter().any(is_late) {
                words.retain(|known| known.placing != receipt.placing);
                words.push_front(receipt);
                words.truncate(PLACINGS_MAX);
            }
        }
        self.receipts.more.notify_all();
        Ok(())
    }

    /// A member that was away has come anew: it may be an old copy of itself by now, so its word counts when it is given again.
    pub fn forget_receipts(&self, node: NodePublicKey) {
        self.receipts.held.lock().remove(&node);
    }

    /// What a sync of this file or directory waits for: what the nearest directory says, and else the volume.
    pub(super) fn durability_of(&self, id: InodeId) -> Result<Durability> {
        let state = self.state.read();
        if !state.is_replicated() {
            return Ok(Durability::Local);
        }
        let Some(row) = state.inode(id)? else { return Ok(self.settings.read().durability) };
        let dir = match row.kind() {
            FileKind::Directory => Some(DirId(id.0)),
            kind => view::names_of(&*state, id, kind)?.into_iter().next().map(|(dir, _)| dir),
        };
        let said = dir.map(|dir| said_above(&state, dir, DURABILITY)).transpose()?.flatten();
        let said = said.and_then(|said| std::str::from_utf8(&said).ok()?.parse().ok());
        Ok(said.unwrap_or_else(|| self.settings.read().durability))
    }

    /// The second half of a sync, if more than this machine is to hold the file: it is published, and others have to say
    /// that they hold it.
    pub(super) fn sync_elsewhere(&self, id: InodeId) -> Result<()> {
        let wanted = self.durability_of(id)?;
        if wanted == Durability::Local {
            return Ok(());
        }
        let is_published = self.publish_for_others(id)?;
        let needed = self.needed_for(id)?;
        let (wanted, degraded) = (wanted.machines(self.machines()?), self.settings.read().fsync_degraded);
        let have = if is_published { self.wait_for_machines(&needed, wanted, degraded.patience())? } else { 1 };
        if have >= wanted || degraded == Degraded::Local {
            Ok(())
        } else {
            Err(VolumeError::NotEnoughCopies { have, wanted })
        }
    }

    /// What others have to hold, so that the file is there as it is now: all that was done here, and of the file its versions
    /// and names, whoever made them.
    fn needed_for(&self, id: InodeId) -> Result<Needed> {
        let state = self.state.read();
        let own = state.author_id();
        let mut dots = VersionVector::new().with(own, state.context.get(own));
        let mut contents = Vec::new();
        if let Some(row) = state.inode(id)? {
            for entry in row.versions.entries() {
                dots.join(&VersionVector::new().with(entry.dot.author, entry.dot.n));
                contents.push(entry.value.content);
            }
            for link in derive::links_of(&*state, id)? {
                let places = state.link(link)?.map(|row| row.places);
                let places = places.iter().flat_map(|places| places.dots());
                places.for_each(|dot| dots.join(&VersionVector::new().with(dot.author, dot.n)));
            }
        }
        Ok(Needed { dots, contents })
    }

    /// Says whether the bytes are in a version now.
    fn publish_for_others(&self, id: InodeId) -> Result<bool> {
        for _ in 0..PUBLISH_TRIES {
            let Some(user) = self.known(id) else { return Ok(true) };
            let closure = if user.cell.has_writers() { Closure::IdleFlush } else { Closure::Close };
            if self.publish(&user.cell, closure)? != Publication::Changing {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// How many machines are to hold each file.
    fn machines(&self) -> Result<usize> {
        let staying = self.members()?.into_iter().filter(|(_, member)| !member.leaving).count();
        Ok(staying.min(usize::from(self.settings.read().copies)).max(1))
    }

    /// How many machines hold a version durably, as far as is known here, and what that amounts to.
    pub(super) fn achieved(&self, version: Dot, content: &Content) -> Result<(usize, Durability)> {
        let members = self.members()?;
        let dots = VersionVector::new().with(version.author, version.n);
        let needed = Needed { dots, contents: vec![*content] };
        let machines = self.holding(&self.receipts.held.lock(), &members, &needed)?;
        Ok((machines, Durability::achieved(machines, self.machines()?)))
    }

    /// What another member has said to hold, by what decides it now.
    pub fn held_by(&self, node: NodePublicKey) -> VersionVector {
        let placing = self.placing();
        let held = self.receipts.held.lock();
        word(&held, &node, placing).map(|word| word.context.clone()).unwrap_or_default()
    }

    /// Whether a node has ever said that it holds these operations of its own.
    pub(super) fn has_vouched_for(&self, node: NodePublicKey, author: AuthorId, last: u64) -> bool {
        let held = self.receipts.held.lock();
        held.get(&node).is_some_and(|words| words.iter().any(|word| word.context.get(author) >= last))
    }

    /// Asks the others to say soon whether they hold all of this.
    pub fn ask_for_receipts(&self, context: &VersionVector) {
        self.receipts.urgent.lock().join(context);
        self.state.read().tell_change();
    }

    /// A collection that gives up, as far as the cache is too large, what all other machines that are to hold it have
    /// vouched for.
    pub fn collect_confirmed(&self, min_live_ratio: f64, progress: &dyn Fn(u64)) -> Result<CollectReport> {
        let Some(layout) = self.layout() else { return self.collect(min_live_ratio, progress) };
        let (copies, placing) = (self.settings.read().copies, self.placing());
        let confirmed = |context: &VersionVector| -> Confirmed {
            let held = self.receipts.held.lock();
            let vouches =
                |key: &&NodePublicKey| word(&held, key, placing).is_some_and(|word| word.context.covers(context));
            let vouching = held.keys().filter(vouches).copied();
            let (vouching, layout): (BTreeSet<NodePublicKey>, _) = (vouching.collect(), layout.clone());
            Box::new(move |id| layout.holders(id, copies).iter().all(|key| vouching.contains(key)))
        };
        self.collect_cached(&confirmed, min_live_ratio, progress)
    }

    /// How many machines hold these operations durably, and each part of these contents; this one counts.
    fn holding(&self, held: &Held, members: &[(NodePublicKey, Member)], needed: &Needed) -> Result<usize> {
        let (layout, copies, placing) = (self.layout(), self.settings.read().copies, self.placing());
        let own = self.key.public();
        let vouches = |key: &NodePublicKey| {
            *key == own || word(held, key, placing).is_some_and(|word| word.context.covers(&needed.dots))
        };
        let mut least = members.iter().filter(|(key, _)| vouches(key) && *key != own).count() + 1;
        // Where not everybody holds everything, it is the glyph that the fewest hold. What lists glyphs, all hold.
        if let Some(layout) = layout.filter(|_| self.shares_out()) {
            let (mut met, mut pages) = (HashSet::new(), HashSet::new());
            for content in &needed.contents {
                visit_glyphs(&*self.store, content, &mut |part, id| {
                    if part == Part::Data && met.insert(*id) {
                        // What is written here is here, whoever is to hold it.
                        let holders = layout.holders(id, copies);
                        let others = holders.iter().filter(|key| **key != own && vouches(key)).count();
                        least = least.min(others + 1);
                    }
                    part == Part::Page && pages.insert(*id)
                })?;
            }
        }
        Ok(least.min(usize::from(copies).max(1)))
    }

    /// Up to where somebody waits for the receipts of others.
    pub fn urgent(&self) -> VersionVector {
        self.receipts.urgent.lock().clone()
    }

    /// Waits until so many machines hold all of this. Says how many do.
    fn wait_for_machines(&self, needed: &Needed, wanted: usize, patience: Duration) -> Result<usize> {
        let late_ms = self.env.now().millis().saturating_add(patience.as_millis() as u64);
        let mut is_asked = false;
        loop {
            let members = self.members()?;
            let mut held = self.receipts.held.lock();
            let found = self.holding(&held, &members, needed)?;
            let left = Duration::from_millis(late_ms.saturating_sub(self.env.now().millis()));
            if found >= wanted || left.is_zero() {
                return Ok(found);
            }
            if !is_asked {
                is_asked = true;
                drop(held);
                self.ask_for_receipts(&needed.dots);
            } else if self.receipts.more.wait_for(&mut held, left).timed_out() {
                return self.holding(&held, &members, needed);
            }
        }
    }
}
