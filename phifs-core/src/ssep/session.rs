//! The two ends of a link between two nodes: one tells what it knows, the other one follows.
//!
//! A link carries groups in causal order. What a node has made itself it tells at once; what others made, only when the
//! follower has not heard of it from elsewhere for a while: nearly always it is connected to them as well.
//!
//! Nothing here waits, reads a clock or knows a socket: whoever drives it says what time it is and carries the messages.
//! Messages may be lost together with their link, and a new link begins with what the follower says it knows.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::causal::VersionVector;
use crate::id::{AuthorId, GlyphId};
use crate::identity::NodePublicKey;
use crate::oplog::{GroupError, SealedGroup};
use crate::store::Hold;
use crate::volume::VolumeError;
use crate::volume::local::{GroupRefused, LocalVolume, MergeError, News, Taken};

use super::{Answer, Note, hash_of, hash_of_settings};

/// For so long a follower may hear of an operation from its author.
const RELAY_AFTER: Duration = Duration::from_millis(250);
/// What a follower did not take as a whole it is told again after so long: its clock may have been behind.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// So much goes into one message, if there is more than one group.
const MESSAGE_BYTES: usize = 256 << 10;

/// The end that tells.
pub struct Teller {
    /// What the follower knows, and what is on the way to it.
    known: VersionVector,
    members: Told,
    settings: Told,
    /// Since when the follower is known to lack something of these authors.
    lacks_since: BTreeMap<AuthorId, Duration>,
    /// Groups to be told, in order.
    queue: VecDeque<SealedGroup>,
    /// It was told to ask for the state, and has not said anything since.
    is_behind: bool,
    /// How many lots of glyphs that are coming it was told; nothing before the first look.
    lots: Option<u64>,
    /// Up to where somebody waits for a receipt, and up to where the follower was told so.
    hurried: VersionVector,
}

/// Something that is told as a whole, by hash: what the follower has, and what it was told last and when. It may not take
/// all.
struct Told {
    theirs: [u8; 32],
    told: Option<([u8; 32], Duration)>,
}

impl Told {
    fn is_news(&mut self, hash: [u8; 32], now: Duration) -> bool {
        let is_told = self.told.is_some_and(|(told, at)| told == hash && now.saturating_sub(at) < AGAIN_AFTER);
        let is_news = hash != self.theirs && !is_told;
        if is_news {
            self.told = Some((hash, now));
        }
        is_news
    }
}

impl Teller {
    /// A follower has come, and says what it has.
    pub fn new(note: &Note) -> Self {
        Self {
            known: note.context.clone(),
            members: Told { theirs: note.members_hash, told: None },
            settings: Told { theirs: note.settings_hash, told: None },
            lacks_since: BTreeMap::new(),
            queue: VecDeque::new(),
            is_behind: false,
            lots: None,
            hurried: VersionVector::new(),
        }
    }

    pub fn heard(&mut self, note: &Note) {
        self.known.join(&note.context);
        self.members.theirs = note.members_hash;
        self.settings.theirs = note.settings_hash;
        self.is_behind = false;
    }

    /// What to say now, if there is anything; and else when to look again, should nothing happen before. `now` is the time
    /// since some moment.
    pub fn next(&mut self, volume: &LocalVolume, now: Duration) -> Result<Next, VolumeError> {
        let members = volume.member_entries()?;
        if self.members.is_news(hash_of(&members), now) {
            return Ok(Next::Say(Answer::Members(members)));
        }
        let settings = volume.setting_entries()?;
        if self.settings.is_news(hash_of_settings(&settings), now) {
            return Ok(Next::Say(Answer::Settings(settings)));
        }
        if let Some(lot) = volume.next_lot(self.lots.get_or_insert_with(|| volume.lots_so_far())) {
            return Ok(Next::Say(Answer::Coming(lot.to_vec())));
        }
        if self.is_behind {
            return Ok(Next::Wait(None));
        }
        let wait = self.look(volume, now)?;
        if self.is_behind {
            return Ok(Next::Say(Answer::Behind));
        }
        let groups = self.take_ready();
        if !groups.is_empty() {
            return Ok(Next::Say(Answer::Groups(groups)));
        }
        let urgent = volume.urgent();
        if !self.hurried.covers(&urgent) && self.known.covers(&urgent) {
            self.hurried = urgent;
            return Ok(Next::Say(Answer::Hurry));
        }
        Ok(Next::Wait(wait))
    }

    /// Looks for what the follower lacks. Says when some of it will be due.
    fn look(&mut self, volume: &LocalVolume, now: Duration) -> Result<Option<Duration>, VolumeError> {
        if !self.queue.is_empty() {
            return Ok(None);
        }
        let own = volume.node();
        let (context, mut due_in) = (volume.context(), None::<Duration>);
        let mut due = Vec::new();
        let mut lacks_since = BTreeMap::new();
        for (author, _) in context.missing_from(&self.known) {
            let since = self.lacks_since.get(&author).copied().unwrap_or(now);
            lacks_since.insert(author, since);
            let waited = now.saturating_sub(since);
            if volume.node_of(author).is_none_or(|node| node == own) || waited >= RELAY_AFTER {
                due.push(author);
            } else {
                let left = RELAY_AFTER - waited;
                due_in = Some(due_in.map_or(left, |known| known.min(left)));
            }
        }
        self.lacks_since = lacks_since;
        if !due.is_empty() {
            match volume.news(&self.known, &|author| due.contains(&author))? {
                News::Groups(groups) => self.queue.extend(groups),
                News::State => self.is_behind = true,
            }
        }
        Ok(due_in)
    }

    /// Takes groups out of the queue for one message. One whose author knew of what the follower has still to hear of
    /// waits for that, and so do all behind it.
    fn take_ready(&mut self) -> Vec<Bytes> {
        let (mut groups, mut bytes) = (Vec::new(), 0);
        while bytes < MESSAGE_BYTES
            && let Some(group) = self.queue.pop_front()
        {
            let author = group.author_id();
            if group.last() <= self.known.get(author) {
                continue;
            }
            let others = group.context().clone().with(author, group.before().n);
            if !self.known.covers(&others) {
                self.queue.clear();
                break;
            }
            self.known = std::mem::take(&mut self.known).with(author, group.last());
            bytes += group.encoded().len();
            groups.push(group.encoded().clone());
        }
        groups
    }

    /// What the follower knows, or is about to know.
    pub fn known(&self) -> &VersionVector {
        &self.known
    }
}

/// What a teller has to say.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Say(Answer),
    /// Nothing until something changes, or for so long.
    Wait(Option<Duration>),
}

/// The end that follows.
#[derive(Default)]
pub struct Follower {
    waiting: VecDeque<SealedGroup>,
    /// Keeps the glyphs of waiting groups, and of those that are expected, from collections.
    hold: Option<Hold>,
    /// What nobody has who can be reached: groups need not wait for that.
    away: HashSet<GlyphId>,
}

/// Why nothing more is heard from a node.
#[derive(Debug, thiserror::Error)]
pub enum Unbelievable {
    #[error("it tells what nobody has signed: {0}")]
    Group(#[from] GroupError),
    #[error("it tells of {0}, who is no member")]
    Stranger(NodePublicKey),
    #[error("what it tells is refused: {0}")]
    Refused(#[from] GroupRefused),
}

impl Unbelievable {
    /// Whether this is no fault of the other end: the disk here has no room for what it tells.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Refused(GroupRefused::Merge(MergeError::Volume(error))) => error.is_full(),
            _ => false,
        }
    }
}

/// How far a follower has come.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Operations that are seen by everybody now.
    pub applied: u64,
    /// What has to be fetched before it can go on.
    pub missing: Vec<GlyphId>,
    /// So many glyphs that the next group needs are with nobody who can be reached, and its author may have them no more: it may
    /// be that they were of what is gone since. States are to be compared before it can go on.
    pub lost: usize,
    /// When to go on without any of that: the next group is of a time that is still to come, or of causes.
    pub later: Option<Duration>,
}

/// How long to wait for causes that are to come over another link.
const CAUSES_WAIT: Duration = Duration::from_millis(20);

impl Follower {
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether everything that came was taken in.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// These glyphs will be needed soon. Says which of them are to be fetched; they are kept until the next group was taken in.
    pub fn expect(&mut self, volume: &LocalVolume, lot: Vec<GlyphId>) -> Vec<GlyphId> {
        self.hold.get_or_insert_with(|| volume.hold_glyphs());
        volume.missing_of_lot(lot)
    }

    /// Groups have come: their signatures are looked at here, and by whom they are.
    pub fn take(&mut self, volume: &LocalVolume, groups: Vec<Bytes>) -> Result<(), Unbelievable> {
        for bytes in groups {
            let group = SealedGroup::parse(bytes)?;
            if group.last() <= volume.context().get(group.author_id()) {
                // It has come another way, and was looked at then.
                continue;
            }
            group.verify().map_err(GroupError::from)?;
            let node = group.author().node;
            if !volume.has_met(node).map_err(GroupRefused::from)? {
                return Err(Unbelievable::Stranger(node));
            }
            self.waiting.push_back(group);
        }
        Ok(())
    }

    /// Nobody who can be reached has these: what needs them is taken in without, and they are awaited from then on.
    pub fn do_without(&mut self, away: Vec<GlyphId>) {
        self.away.extend(away);
    }

    /// Takes in what can be taken in.
    pub fn go_on(&mut self, volume: &LocalVolume) -> Result<Progress, Unbelievable> {
        let mut progress = Progress::default();
        while let Some(group) = self.waiting.front() {
            self.hold.get_or_insert_with(|| volume.hold_glyphs());
            let missing = volume.missing_in_group(group)?;
            let lacks = missing.len();
            progress.missing = missing.into_iter().filter(|id| !self.away.contains(id)).collect();
            if !progress.missing.is_empty() {
                return Ok(progress);
            }
            if lacks > 0 {
                if !volume.may_come_later(group).map_err(GroupRefused::from)? {
                    progress.lost = lacks;
                    return Ok(progress);
                }
                volume.await_contents().map_err(GroupRefused::from)?;
            }
            match volume.take_group(group)? {
                Taken::Applied(operations) => progress.applied += operations,
                Taken::Known => {}
                Taken::Early => {
                    progress.later = Some(CAUSES_WAIT);
                    return Ok(progress);
                }
                Taken::Future(ms) => {
                    progress.later = Some(Duration::from_millis(ms));
                    return Ok(progress);
                }
            }
            self.waiting.pop_front();
        }
        (self.hold, self.away) = (None, HashSet::new());
        Ok(progress)
    }
}

/// What to tell the other end, as things are.
pub fn note_of(volume: &LocalVolume) -> Result<Note, VolumeError> {
    let members_hash = hash_of(&volume.member_entries()?);
    let settings_hash = hash_of_settings(&volume.setting_entries()?);
    Ok(Note { context: volume.visible_context(), members_hash, settings_hash, root: None, receipt: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_taken_is_told_again_after_a_while() {
        let (mut told, hash) = (Told { theirs: [0; 32], told: None }, [1; 32]);
        assert!(told.is_news(hash, Duration::ZERO));
        assert!(!told.is_news(hash, Duration::from_secs(1)), "it is on its way");
        assert!(told.is_news(hash, AGAIN_AFTER));
        assert!(!told.is_news(hash, AGAIN_AFTER + Duration::from_secs(1)));
        told.theirs = hash;
        assert!(!told.is_news(hash, 3 * AGAIN_AFTER));
    }
}
