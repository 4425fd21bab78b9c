//! Links between nodes, driven as the daemon drives them: the follower sends notes and asks for what it lacks, the teller
//! sends what is new. Both directions of a link keep their order; requests travel beside them. What is on the way when a
//! link breaks is lost, and a new one begins with a new note.

use std::collections::btree_map::Entry;
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use phifs_core::causal::VersionVector;
use phifs_core::id::GlyphId;
use phifs_core::identity::NodeKey;
use phifs_core::snapshot::pull::PullError;
use phifs_core::ssep::{Answer, Follower, Next, Note, Receipt, Request, Teller, Unbelievable, note_of};
use phifs_core::store::GlyphKind;
use phifs_core::volume::local::{Merged, PeerError};

use crate::mutants::Mutant;
use crate::node::{GO_ON, Node, Outcome, Trouble};
use crate::oracle::Oracle;
use crate::world::{Event, World};

/// Who follows, and whom.
pub type Ends = (usize, usize);

/// A direction that nothing gets through for so long breaks the link.
const SILENCE_MS: u64 = 10_000;
/// How often what cannot get through is tried again.
const RETRY_MS: u64 = 50;
const REST_MS: u64 = 200;
const VOUCH_MS: u64 = 1_000;
const NOTE_REST_MS: u64 = 10;
const TOGETHER_MS: u64 = 2;
const LOOK_MS: u64 = 2_000;

#[derive(Default)]
pub struct Link {
    /// Counts links between these two: what was sent over an earlier one never arrives.
    pub epoch: u64,
    pub open: Option<Open>,
    stuck_since: Option<u64>,
}

pub struct Open {
    notes: Stream,
    answers: Stream,
    // The follower's end.
    follower: Follower,
    inbox: VecDeque<Answer>,
    doing: Doing,
    /// Whether states were compared because of what the next group lacks.
    is_compared: bool,
    vouched: Option<Receipt>,
    say_at: Option<u64>,
    // The teller's end.
    teller: Option<Teller>,
    began_ms: u64,
    tell_at: Option<u64>,
}

/// Messages on their way, in order.
#[derive(Default)]
struct Stream {
    messages: VecDeque<Vec<u8>>,
    last_arrives_ms: u64,
}

enum Doing {
    Nothing,
    /// Waits for causes, or for the time of a group to come.
    Waiting,
    Fetching {
        asked: BTreeSet<usize>,
    },
    Catching,
}

/// What is answered beside a link.
pub enum Reply {
    Glyphs(Vec<(GlyphId, Option<Bytes>)>),
    Unchanged,
    Head(Bytes),
}

impl Open {
    fn new() -> Self {
        Self {
            notes: Stream::default(),
            answers: Stream::default(),
            follower: Follower::new(),
            inbox: VecDeque::new(),
            doing: Doing::Nothing,
            is_compared: false,
            vouched: None,
            say_at: None,
            teller: None,
            began_ms: 0,
            tell_at: None,
        }
    }

    /// What the follower is at, for people.
    pub fn state(&self) -> String {
        let doing = match &self.doing {
            Doing::Nothing => "nothing",
            Doing::Waiting => "waiting",
            Doing::Fetching { .. } => "fetching",
            Doing::Catching => "catching up",
        };
        let (notes, answers) = (self.notes.messages.len(), self.answers.messages.len());
        format!("{doing}, {} to do, {notes} notes and {answers} answers on the way", self.inbox.len())
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.doing, Doing::Nothing)
            && self.inbox.is_empty()
            && self.follower.is_idle()
            && self.notes.messages.is_empty()
            && self.answers.messages.is_empty()
    }
}

impl Link {
    /// Whether what was sent over the link with this number still arrives.
    pub fn is_at(&self, epoch: u64) -> bool {
        self.open.is_some() && self.epoch == epoch
    }
}

impl World {
    fn open(&mut self, ends: Ends) -> &mut Open {
        self.links.get_mut(&ends).and_then(|link| link.open.as_mut()).expect("the link is open")
    }

    fn epoch(&self, ends: Ends) -> u64 {
        self.links[&ends].epoch
    }

    fn is_link(&self, (follower, teller): Ends) -> bool {
        let knows = |a: usize, b: usize| {
            let key = self.nodes[b].key;
            self.nodes[a].is_up() && matches!(self.nodes[a].volume().member(key), Ok(Some(_)))
        };
        knows(follower, teller) && knows(teller, follower)
    }

    /// Whether a message is due that the teller, or else the follower, was about to send.
    pub fn is_due(&self, ends: Ends, tells: bool) -> bool {
        let open = self.links[&ends].open.as_ref();
        open.and_then(|open| if tells { open.tell_at } else { open.say_at }).is_some_and(|at| at <= self.now_ms)
    }

    /// Tries to open a link; it is tried again until it works.
    pub fn dial(&mut self, ends: Ends) -> Outcome {
        let (f, t) = ends;
        let link = self.links.entry(ends).or_default();
        if link.open.is_some() || self.nodes[f].has_left || self.nodes[t].has_left {
            return Ok(());
        }
        let is_possible = self.is_through(f, t) && self.is_through(t, f) && self.is_link(ends);
        let note = if is_possible { self.note(ends, true).map(Some) } else { Ok(None) };
        let Ok(Some(note)) = note else {
            let rest_ms = REST_MS / 2 + self.rng.within(0..3 * REST_MS);
            self.after(rest_ms, Event::Dial(ends));
            return note.map(drop);
        };
        let link = self.links.get_mut(&ends).expect("it was made");
        link.epoch += 1;
        link.stuck_since = None;
        link.open = Some(Open::new());
        let epoch = link.epoch;
        self.trace(|| format!("{f} follows {t}"));
        self.send_note(ends, note);
        self.after(VOUCH_MS, Event::Vouch(ends, epoch));
        Ok(())
    }

    pub fn break_link(&mut self, ends: Ends, why: &str) {
        let Some(link) = self.links.get_mut(&ends) else { return };
        if link.open.take().is_some() {
            link.epoch += 1;
            self.trace(|| format!("the link of {} to {} breaks: {why}", ends.0, ends.1));
            let rest_ms = REST_MS / 2 + self.rng.within(0..REST_MS);
            self.after(rest_ms, Event::Dial(ends));
        }
    }

    /// The teller has something new, or the follower.
    pub fn changed(&mut self, node: usize) {
        let links: Vec<Ends> =
            self.links.iter().filter(|(_, link)| link.open.is_some()).map(|(ends, _)| *ends).collect();
        for ends in links {
            if ends.1 == node {
                self.tell_within(ends, TOGETHER_MS);
            }
            if ends.0 == node {
                self.say_within(ends, NOTE_REST_MS);
            }
        }
    }

    fn tell_within(&mut self, ends: Ends, ms: u64) {
        let (at, epoch) = (self.now_ms + ms, self.epoch(ends));
        let open = self.open(ends);
        if open.tell_at.is_none_or(|known| at < known) {
            open.tell_at = Some(at);
            self.after(ms, Event::Tell(ends, epoch));
        }
    }

    fn say_within(&mut self, ends: Ends, ms: u64) {
        let (at, epoch) = (self.now_ms + ms, self.epoch(ends));
        let open = self.open(ends);
        if open.say_at.is_none_or(|known| at < known) {
            open.say_at = Some(at);
            self.after(ms, Event::Say(ends, epoch));
        }
    }

    fn send_note(&mut self, ends: Ends, note: Note) {
        let arrives_ms = self.arrival(ends.0, ends.1);
        let epoch = self.epoch(ends);
        let stream = &mut self.open(ends).notes;
        stream.last_arrives_ms = arrives_ms.max(stream.last_arrives_ms);
        stream.messages.push_back(note.encode());
        let at = stream.last_arrives_ms;
        self.at(at, Event::Notes(ends, epoch));
    }

    fn send_answer(&mut self, ends: Ends, answer: &Answer) {
        let arrives_ms = self.arrival(ends.1, ends.0);
        let epoch = self.epoch(ends);
        let stream = &mut self.open(ends).answers;
        stream.last_arrives_ms = arrives_ms.max(stream.last_arrives_ms);
        stream.messages.push_back(answer.encode());
        let at = stream.last_arrives_ms;
        self.at(at, Event::Answers(ends, epoch));
    }

    /// Whether something gets from one node to another now. If not, it is tried again, until the link breaks.
    pub fn gets_through(&mut self, from: usize, to: usize, ends: Ends, again: impl FnOnce() -> Event) -> bool {
        let (is_through, now_ms) = (self.is_through(from, to), self.now_ms);
        let link = self.links.get_mut(&ends).expect("it is open");
        if is_through {
            link.stuck_since = None;
            return true;
        }
        let since = *link.stuck_since.get_or_insert(now_ms);
        if now_ms - since > SILENCE_MS {
            self.break_link(ends, "silence");
        } else {
            self.after(RETRY_MS, again());
        }
        false
    }

    /// What the follower has to say. With `vouch` it vouches for what it has, unless the teller has heard so.
    fn note(&mut self, ends: Ends, vouch: bool) -> Outcome<Note> {
        let f = ends.0;
        let vouched = self.links[&ends].open.as_ref().map(|open| open.vouched.clone()).unwrap_or_default();
        let node = &self.nodes[f];
        let volume = node.volume();
        let mut note = note_of(volume).map_err(|e| node.trouble(e))?;
        if vouch && volume.has_more_to_vouch_for(vouched.as_ref()) {
            let receipt = match self.mutant {
                Mutant::ReceiptBeforeSync => {
                    let id = volume.id().map_err(|e| node.trouble(e))?;
                    Some(Receipt::sign(&NodeKey::from_seed(&node.seed), &id, volume.context(), volume.placing()))
                }
                _ => volume.receipt().map_err(|e| node.trouble(e))?,
            };
            note.receipt = receipt;
        }
        self.check_kernel(f);
        self.nodes[f].kernel.catch_up();
        if let Some(receipt) = note.receipt.clone() {
            self.vouches(f, &receipt.context);
            if let Some(open) = self.links.get_mut(&ends).and_then(|link| link.open.as_mut()) {
                open.vouched = Some(receipt);
            }
        }
        Ok(note)
    }

    pub fn say(&mut self, ends: Ends, vouch: bool) -> Outcome {
        self.open(ends).say_at = None;
        let mut note = self.note(ends, vouch)?;
        if self.liars.contains(&ends.0) {
            // What it never had, as if its signature were over that.
            let node = self.nodes[ends.0].key;
            let id = self.nodes[ends.0].volume().id().map_err(|e| self.nodes[ends.0].trouble(e))?;
            let everything = self.oracle.everything().clone();
            let other = NodeKey::from_seed(&[0; 32]);
            debug_assert_ne!(other.public(), node);
            note.receipt = Some(Receipt::sign(&other, &id, everything, self.nodes[ends.0].volume().placing()));
        }
        self.send_note(ends, note);
        Ok(())
    }

    pub fn vouch(&mut self, ends: Ends, epoch: u64) -> Outcome {
        self.after(VOUCH_MS, Event::Vouch(ends, epoch));
        self.say(ends, true)
    }

    /// A note arrives at the teller.
    pub fn note_arrives(&mut self, ends: Ends) -> Outcome {
        let (f, t) = ends;
        let began_ms = self.now_ms;
        let open = self.open(ends);
        let bytes = open.notes.messages.pop_front().expect("one message for each arrival");
        let note = Note::decode(&bytes).map_err(|e| Trouble::Bug(format!("a note: {e}")))?;
        match &mut open.teller {
            Some(teller) => teller.heard(&note),
            none => {
                *none = Some(Teller::new(&note));
                open.began_ms = began_ms;
                self.nodes[t].volume().forget_receipts(self.nodes[f].key);
            }
        }
        self.tell_within(ends, 0);
        let Some(mut receipt) = note.receipt else { return Ok(()) };
        let teller = &self.nodes[t];
        if self.mutant == Mutant::UnverifiedReceipts {
            let id = teller.volume().id().map_err(|e| teller.trouble(e))?;
            receipt = Receipt::sign(&NodeKey::from_seed(&self.nodes[f].seed), &id, receipt.context, receipt.placing);
        }
        let taken = teller.volume().take_receipt(self.nodes[f].key, receipt);
        taken.map_err(|_| Trouble::Peer("a forged receipt".into()))?;
        self.check_holders(t);
        Ok(())
    }

    /// The teller tells what there is.
    pub fn tell(&mut self, ends: Ends) -> Outcome {
        let (now_ms, t) = (self.now_ms, ends.1);
        self.open(ends).tell_at = None;
        loop {
            self.harvest(t)?;
            let open = self.links.get_mut(&ends).and_then(|link| link.open.as_mut()).expect("it is open");
            let Some(teller) = &mut open.teller else { return Ok(()) };
            let node = &self.nodes[t];
            let since = Duration::from_millis(now_ms - open.began_ms);
            match teller.next(node.volume(), since).map_err(|e| node.trouble(e))? {
                Next::Say(answer) => {
                    let answer = self.mutate(answer);
                    self.send_answer(ends, &answer);
                }
                Next::Wait(patience) => {
                    let ms = patience.map_or(LOOK_MS, |patience| patience.as_millis() as u64);
                    self.tell_within(ends, ms.clamp(1, LOOK_MS));
                    return Ok(());
                }
            }
        }
    }

    fn mutate(&self, answer: Answer) -> Answer {
        match answer {
            Answer::Groups(mut groups) if self.mutant == Mutant::OutOfOrder => {
                groups.reverse();
                Answer::Groups(groups)
            }
            answer => answer,
        }
    }

    /// An answer arrives at the follower.
    pub fn answer_arrives(&mut self, ends: Ends) -> Outcome {
        let open = self.open(ends);
        let bytes = open.answers.messages.pop_front().expect("one message for each arrival");
        let answer = Answer::decode(&bytes.into()).map_err(|e| Trouble::Bug(format!("an answer: {e}")))?;
        if let Answer::Groups(groups) = &answer {
            self.oracle.heard(groups);
        }
        self.open(ends).inbox.push_back(answer);
        self.advance(ends)
    }

    /// The follower goes through what has come, one after the other.
    fn advance(&mut self, ends: Ends) -> Outcome {
        let f = ends.0;
        while matches!(self.open(ends).doing, Doing::Nothing) {
            let Some(answer) = self.open(ends).inbox.pop_front() else { return Ok(()) };
            let node = &self.nodes[f];
            match answer {
                Answer::Groups(groups) => {
                    if self.tells {
                        Oracle::told(&groups).into_iter().for_each(|op| self.trace(|| format!("{f} hears {op}")));
                    }
                    if self.mutant == Mutant::ContextBeforeData {
                        let raised = self.oracle.context_of(&groups);
                        self.raise_context(ends, raised)?;
                    }
                    let open = self.open(ends);
                    let taken = std::mem::take(&mut open.follower);
                    let mut follower = taken;
                    let node = &self.nodes[f];
                    let heard = follower.take(node.volume(), groups);
                    self.open(ends).follower = follower;
                    heard.map_err(|error| match error {
                        // It may be that nobody has told this node of a new member yet.
                        Unbelievable::Stranger(_) => Trouble::Peer(error.to_string()),
                        error => self.nodes[f].trouble(error),
                    })?;
                    self.take_in(ends)?;
                }
                Answer::Members(members) => {
                    node.volume().take_member_entries(members).map_err(|e| node.trouble(e))?;
                    self.members_changed(f);
                    self.say_within(ends, 0);
                }
                Answer::Settings(settings) => {
                    node.volume().take_setting_entries(settings).map_err(|e| node.trouble(e))?;
                    self.say_within(ends, 0);
                }
                Answer::Behind => self.catch_up(ends),
                Answer::Hurry => self.say(ends, true)?,
                Answer::Coming(_) => {}
                other => return Err(Trouble::Bug(format!("a teller says {other:?}"))),
            }
        }
        Ok(())
    }

    /// Says that this node has what has come, before it is taken in.
    fn raise_context(&mut self, ends: Ends, raised: VersionVector) -> Outcome {
        let node = &self.nodes[ends.0];
        let mut note = note_of(node.volume()).map_err(|e| node.trouble(e))?;
        note.context.join(&raised);
        let id = node.volume().id().map_err(|e| node.trouble(e))?;
        note.receipt =
            Some(Receipt::sign(&NodeKey::from_seed(&node.seed), &id, note.context.clone(), node.volume().placing()));
        self.vouches(ends.0, &note.context.clone());
        self.send_note(ends, note);
        Ok(())
    }

    fn ask(&mut self, ends: Ends, whom: usize, request: &Request) {
        let (arrives_ms, epoch) = (self.arrival(ends.0, whom), self.epoch(ends));
        self.at(arrives_ms, Event::Ask(ends, epoch, whom, request.encode()));
    }

    fn catch_up(&mut self, ends: Ends) {
        let (f, t) = ends;
        let catch = Request::Catch(self.nodes[f].volume().context());
        self.open(ends).doing = Doing::Catching;
        self.trace(|| format!("{f} asks {t} for its state"));
        self.ask(ends, t, &catch);
    }

    fn take_in(&mut self, ends: Ends) -> Outcome {
        let (f, t) = ends;
        let mut follower = std::mem::take(&mut self.open(ends).follower);
        let went_on = follower.go_on(self.nodes[f].volume());
        self.open(ends).follower = follower;
        let progress = went_on.map_err(|error| self.nodes[f].trouble(error))?;
        let was_compared = std::mem::replace(&mut self.open(ends).is_compared, progress.lost > 0);
        if progress.applied > 0 {
            self.trace(|| format!("{f} takes in {} of {t}", progress.applied));
            self.changed(f);
        }
        if !progress.missing.is_empty() {
            self.open(ends).doing = Doing::Fetching { asked: BTreeSet::from([t]) };
            self.ask(ends, t, &Request::Glyphs(GlyphKind::Data, progress.missing));
        } else if progress.lost > 0 && was_compared {
            return Err(Trouble::Peer(format!("{} glyphs are with nobody", progress.lost)));
        } else if progress.lost > 0 {
            self.catch_up(ends);
        } else if let Some(later) = progress.later {
            self.open(ends).doing = Doing::Waiting;
            let epoch = self.epoch(ends);
            self.after(later.as_millis().max(1) as u64, Event::GoOn(ends, epoch));
        } else {
            self.open(ends).doing = Doing::Nothing;
            self.say_within(ends, 0);
        }
        Ok(())
    }

    /// What the follower waited for may have come.
    pub fn go_on(&mut self, ends: Ends) -> Outcome {
        self.take_in(ends)?;
        self.advance(ends)
    }

    /// A request arrives at whom it was sent to.
    pub fn answer_request(&mut self, ends: Ends, whom: usize, request: &[u8]) -> Outcome {
        let request = Request::decode(request).map_err(|e| Trouble::Bug(format!("a request: {e}")))?;
        let node = &self.nodes[whom];
        let volume = node.volume();
        let reply = match request {
            Request::Glyphs(kind, ids) => {
                let glyph = |id: GlyphId| Ok((id, volume.glyph_to_send(kind, &id).map_err(|e| node.trouble(e))?));
                Reply::Glyphs(ids.into_iter().map(glyph).collect::<Outcome<_>>()?)
            }
            Request::Catch(context) => {
                self.harvest(whom)?;
                let node = &self.nodes[whom];
                let volume = node.volume();
                if context.covers(&volume.context()) {
                    Reply::Unchanged
                } else {
                    let head = volume.head().map_err(|e| node.trouble(e))?;
                    let bytes = head.to_bytes();
                    self.sent.insert((whom, ends.0), head);
                    self.changed(whom);
                    Reply::Head(bytes)
                }
            }
            other => return Err(Trouble::Bug(format!("nobody asks {other:?}"))),
        };
        let (arrives_ms, epoch) = (self.arrival(whom, ends.0), self.epoch(ends));
        self.at(arrives_ms, Event::Reply(ends, epoch, whom, reply));
        Ok(())
    }

    /// Takes in the head of the other end, and asks whoever is reachable for what is below it, so many times at most.
    fn learn(&self, (f, t): Ends, head: &[u8], times_max: usize) -> Outcome<Merged> {
        let node = &self.nodes[f];
        let reachable = |n: &usize| *n != f && self.is_through(f, *n) && self.is_through(*n, f);
        let givers: Vec<&Node> =
            (0..self.nodes.len()).filter(|n| self.nodes[*n].is_up() && reachable(n)).map(|n| &self.nodes[n]).collect();
        let mut times = 0;
        let mut ask = |kind, ids: &[GlyphId]| {
            times += 1;
            if times > times_max {
                return Err(std::io::Error::other("it breaks off"));
            }
            let found = |id: &GlyphId| givers.iter().find_map(|n| n.volume().glyph_to_send(kind, id).ok().flatten());
            Ok(ids.iter().filter_map(|id| Some((*id, found(id)?))).collect())
        };
        node.volume().learn(&self.nodes[t].key, head, &mut ask, &GO_ON).map_err(|error| match error {
            PeerError::ClockAhead(_) | PeerError::Pull(PullError::Ask(_) | PullError::Lacking { .. }) => {
                Trouble::Peer(error.to_string())
            }
            error => node.trouble(error),
        })
    }

    /// The answer to a request arrives at the follower.
    pub fn reply_arrives(&mut self, ends: Ends, reply: Reply) -> Outcome {
        let (f, t) = ends;
        let node = &self.nodes[f];
        let volume = node.volume();
        match reply {
            Reply::Unchanged => {}
            Reply::Head(head) => {
                let breaks_off_after = if self.rng.percent(30) { self.rng.below(4) } else { usize::MAX };
                let merged = self.learn(ends, &head, breaks_off_after)?;
                self.trace(|| format!("{f} learns {} of the state of {t}", merged.operations));
                self.changed(f);
            }
            Reply::Glyphs(glyphs) => {
                let mut missing = Vec::new();
                for (id, bytes) in glyphs {
                    match bytes {
                        Some(bytes) => volume.take_glyph(id, &bytes).map_err(|e| node.trouble(e))?,
                        None => missing.push(id),
                    }
                }
                if let Some(id) = missing.first() {
                    let Doing::Fetching { asked } = &self.links[&ends].open.as_ref().expect("it is open").doing else {
                        return Err(Trouble::Bug("glyphs that nobody asked for".into()));
                    };
                    let others = (0..self.nodes.len()).filter(|n| *n != f && !asked.contains(n));
                    let other = others.into_iter().find(|n| {
                        self.nodes[*n].is_up()
                            && self.is_through(f, *n)
                            && self.is_through(*n, f)
                            && self.is_link((f, *n))
                    });
                    let Some(other) = other else {
                        self.trace(|| format!("{f} does without {} glyphs, {id} first", missing.len()));
                        self.open(ends).follower.do_without(missing);
                        return self.go_on(ends);
                    };
                    if let Doing::Fetching { asked } = &mut self.open(ends).doing {
                        asked.insert(other);
                    }
                    self.ask(ends, other, &Request::Glyphs(GlyphKind::Data, missing));
                    return Ok(());
                }
            }
        }
        self.go_on(ends)
    }

    /// Every one who is a member is followed.
    pub fn members_changed(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            if other != node && !self.nodes[other].has_left {
                for ends in [(node, other), (other, node)] {
                    if let Entry::Vacant(entry) = self.links.entry(ends) {
                        entry.insert(Link::default());
                        self.after(1, Event::Dial(ends));
                    }
                }
            }
        }
    }
}
