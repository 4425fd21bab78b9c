//! A cluster in which one seed decides everything: what programs do, how long messages take, and what breaks.
//!
//! Events happen one after the other, at times that nobody waits for. After a while of trouble everything is whole again
//! and quiet, and then all nodes must be the same and nothing may be gone that somebody was promised.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use phifs_core::disk::{Disk as _, FileName};
use phifs_core::identity::{NodeKey, NodePublicKey};
use phifs_core::registry::Member;
use phifs_core::volume::Volume as _;
use phifs_core::volume::local::{Head, LocalVolume};

use crate::mutants::Mutant;
use crate::network::{Ends, Link, Open, Reply};
use crate::node::{Node, Outcome, Trouble, seed_of};
use crate::oracle::Oracle;
use crate::reach::Reach;
use crate::rng::Rng;

/// How often there is trouble, and quiet after it.
const ROUNDS: u64 = 2;
const NODES_MAX: usize = 5;
/// So long after everything is whole again all nodes must be the same.
const CALM_MS_MAX: u64 = 240_000;
const TICK_MS: u64 = 1_000;
const LOOK_MS: u64 = 100;

pub enum Event {
    /// A program on this node calls.
    Call(usize),
    /// What was closed is published.
    Settle(usize),
    Tick(usize),
    Restart(usize),
    Fault(Fault),
    Dial(Ends),
    Notes(Ends, u64),
    Answers(Ends, u64),
    Tell(Ends, u64),
    Say(Ends, u64),
    Vouch(Ends, u64),
    GoOn(Ends, u64),
    Ask(Ends, u64, usize, Vec<u8>),
    Reply(Ends, u64, usize, Reply),
}

#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing gets from one of these to the other, in this direction.
    Cut(Vec<(usize, usize)>, u64),
    Reset(Ends),
    Crash(usize),
    CrashAtChange(usize, u64),
    /// Its log of operations is gone, so others get what it has as a state.
    LoseLog(usize),
    Full(usize, u64),
    Clock(usize, i64),
    Liar(usize, u64),
    Honest(usize),
    Collect(usize),
    Checkpoint(usize),
    Snapshot(usize),
    Join,
    Leave(usize, u32),
    Emptied(usize),
}

pub struct World {
    pub seed: u64,
    pub rng: Rng,
    pub now_ms: u64,
    clock: Arc<AtomicU64>,
    events: BTreeMap<(u64, u64), Event>,
    events_so_far: u64,
    pub nodes: Vec<Node>,
    pub links: BTreeMap<Ends, Link>,
    reach: Arc<Reach>,
    /// Whether glyphs are shared out, or everybody holds everything.
    pub has_layout: bool,
    /// How long a message takes at least.
    latencies_ms: BTreeMap<(usize, usize), u64>,
    /// Who vouches for what it does not have.
    pub liars: BTreeSet<usize>,
    /// The heads that were sent: (by whom, to whom).
    pub sent: BTreeMap<(usize, usize), Head>,
    /// Nodes that never came to be, though they may be members.
    stillborn: Vec<NodePublicKey>,
    is_working: bool,
    pub oracle: Oracle,
    pub mutant: Mutant,
    /// Whether what happens is told.
    pub tells: bool,
    /// Of all that happened.
    pub digest: blake3::Hasher,
}

impl Event {
    fn name(&self) -> &'static str {
        match self {
            Self::Call(_) => "a call",
            Self::Settle(_) => "publishing",
            Self::Tick(_) => "a tick",
            Self::Restart(_) => "a start",
            Self::Fault(_) => "a fault",
            Self::Dial(_) => "dialling",
            Self::Notes(..) => "hearing a note",
            Self::Answers(..) => "hearing an answer",
            Self::Tell(..) => "telling",
            Self::Say(..) | Self::Vouch(..) => "a note",
            Self::GoOn(..) => "taking in",
            Self::Ask(..) => "answering",
            Self::Reply(..) => "hearing a reply",
        }
    }
}

impl World {
    pub fn new(seed: u64, mutant: Mutant, tells: bool) -> Self {
        let clock: Arc<AtomicU64> = Arc::default();
        let reach = Reach::new(clock.clone());
        let first = Node::first(seed, &clock, &reach);
        let mut world = Self {
            seed,
            rng: Rng::new(seed),
            now_ms: 0,
            clock,
            events: BTreeMap::new(),
            events_so_far: 0,
            nodes: vec![first],
            links: BTreeMap::new(),
            reach,
            has_layout: false,
            latencies_ms: BTreeMap::new(),
            liars: BTreeSet::new(),
            sent: BTreeMap::new(),
            stillborn: Vec::new(),
            is_working: false,
            oracle: Oracle::default(),
            mutant,
            tells,
            digest: blake3::Hasher::new(),
        };
        world.begin_node(0);
        world.has_layout = world.rng.percent(50);
        if world.has_layout {
            let copies = world.rng.within(1..4).to_string();
            for (name, value) in [("copies", &*copies), ("glyph_cache_size", "0B")] {
                world.nodes[0].volume().change_setting(name, Some(value)).expect("it is one");
            }
            world.trace(|| format!("{copies} copies"));
        }
        for _ in 0..world.rng.within(2..4) {
            world.join();
        }
        world
    }

    /// Trouble and quiet, until the end.
    pub fn run(&mut self) {
        for _ in 0..ROUNDS {
            self.is_working = true;
            let length_ms = self.rng.within(2_000..6_000);
            self.plan(length_ms);
            let until = self.now_ms + length_ms;
            self.run_until(until);
            self.is_working = false;
            self.calm();
        }
    }

    pub fn trace(&mut self, what: impl FnOnce() -> String) {
        let what = what();
        self.digest.update(&self.now_ms.to_le_bytes());
        self.digest.update(what.as_bytes());
        if self.tells {
            eprintln!("{:>8} ms  {what}", self.now_ms);
        }
    }

    pub fn at(&mut self, ms: u64, event: Event) {
        self.events_so_far += 1;
        self.events.insert((ms, self.events_so_far), event);
    }

    pub fn after(&mut self, ms: u64, event: Event) {
        self.at(self.now_ms + ms, event);
    }

    pub fn is_through(&self, from: usize, to: usize) -> bool {
        self.nodes[to].is_up() && !self.reach.is_cut(from, to)
    }

    /// When something arrives that is sent now.
    pub fn arrival(&mut self, from: usize, to: usize) -> u64 {
        let rng = &mut self.rng;
        let least = *self.latencies_ms.entry((from, to)).or_insert_with(|| rng.within(1..60));
        self.now_ms + least + self.rng.within(0..5)
    }

    fn begin_node(&mut self, node: usize) {
        self.nodes[node].kernel.clear();
        if self.mutant == Mutant::AcknowledgeEarly {
            self.nodes[node].kernel.set_slow();
        }
        let (call_ms, tick_ms) = (self.rng.within(10..120), self.rng.within(1..TICK_MS));
        self.after(call_ms, Event::Call(node));
        self.after(tick_ms, Event::Tick(node));
        self.members_changed(node);
    }

    fn run_until(&mut self, until_ms: u64) {
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > until_ms {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            self.now_ms = self.now_ms.max(at);
            self.clock.store(self.now_ms, Ordering::Relaxed);
            self.happen(event);
        }
        self.now_ms = until_ms;
    }

    fn happen(&mut self, event: Event) {
        let (node, ends) = match &event {
            Event::Call(node) | Event::Settle(node) | Event::Tick(node) | Event::Restart(node) => (*node, None),
            Event::Fault(_) => (0, None),
            Event::Dial(ends) => (ends.0, None),
            Event::Notes(ends, epoch) | Event::Tell(ends, epoch) => (ends.1, Some((*ends, *epoch))),
            Event::Answers(ends, epoch)
            | Event::Say(ends, epoch)
            | Event::Vouch(ends, epoch)
            | Event::GoOn(ends, epoch)
            | Event::Reply(ends, epoch, ..) => (ends.0, Some((*ends, *epoch))),
            Event::Ask(ends, epoch, whom, _) => (*whom, Some((*ends, *epoch))),
        };
        if ends.is_some_and(|(ends, epoch)| !self.links.get(&ends).is_some_and(|link| link.is_at(epoch))) {
            return;
        }
        let what = event.name();
        match self.try_happen(event) {
            Ok(()) => {}
            Err(Trouble::Dead) => self.crash(node),
            Err(Trouble::Full(why) | Trouble::Peer(why)) => {
                if let Some((ends, _)) = ends {
                    self.break_link(ends, &why);
                }
            }
            Err(Trouble::Bug(why)) => panic!("node {node}: {what}: {why}"),
        }
        if self.nodes[node].is_up() && self.nodes[node].disk.is_dead() {
            self.crash(node);
        }
    }

    fn try_happen(&mut self, event: Event) -> Outcome {
        match event {
            Event::Call(node) => {
                if self.is_working {
                    let rest_ms = self.rng.within(5..150);
                    self.after(rest_ms, Event::Call(node));
                    if self.nodes[node].is_up() {
                        return self.call(node);
                    }
                }
                Ok(())
            }
            Event::Settle(node) => self.settle(node),
            Event::Tick(node) => self.tick(node),
            Event::Restart(node) => {
                self.restart(node);
                Ok(())
            }
            Event::Fault(fault) => {
                if self.is_working {
                    self.fail(fault);
                }
                Ok(())
            }
            Event::Dial(ends) if self.nodes[ends.0].is_up() => self.dial(ends),
            Event::Dial(ends) => {
                // Until it is up again.
                self.after(500, Event::Dial(ends));
                Ok(())
            }
            Event::Notes(ends, epoch) => {
                let through = self.gets_through(ends.0, ends.1, ends, || Event::Notes(ends, epoch));
                if through { self.note_arrives(ends) } else { Ok(()) }
            }
            Event::Answers(ends, epoch) => {
                let through = self.gets_through(ends.1, ends.0, ends, || Event::Answers(ends, epoch));
                if through { self.answer_arrives(ends) } else { Ok(()) }
            }
            Event::Tell(ends, _) if self.is_due(ends, true) => self.tell(ends),
            Event::Say(ends, _) if self.is_due(ends, false) => self.say(ends, false),
            Event::Tell(..) | Event::Say(..) => Ok(()),
            Event::Vouch(ends, epoch) => self.vouch(ends, epoch),
            Event::GoOn(ends, _) => self.go_on(ends),
            Event::Ask(ends, epoch, whom, request) => {
                if self.is_through(ends.0, whom) {
                    return self.answer_request(ends, whom, &request);
                }
                self.gets_through(ends.0, whom, ends, || Event::Ask(ends, epoch, whom, request));
                Ok(())
            }
            Event::Reply(ends, epoch, from, reply) => {
                if self.is_through(from, ends.0) {
                    return self.reply_arrives(ends, reply);
                }
                self.gets_through(from, ends.0, ends, || Event::Reply(ends, epoch, from, reply));
                Ok(())
            }
        }
    }

    pub fn settle(&mut self, node: usize) -> Outcome {
        if self.nodes[node].is_up() {
            let before = self.nodes[node].volume().context();
            self.nodes[node].volume().run_publisher();
            if self.nodes[node].volume().context() != before {
                self.changed(node);
            }
        }
        Ok(())
    }

    fn tick(&mut self, n: usize) -> Outcome {
        if self.nodes[n].has_left {
            return Ok(());
        }
        self.after(TICK_MS, Event::Tick(n));
        if !self.nodes[n].is_up() {
            return Ok(());
        }
        let node = &self.nodes[n];
        let volume = node.volume();
        let before = volume.context();
        volume.tick().map_err(|e| node.trouble(e))?;
        volume.run_publisher();
        if volume.context() != before {
            self.changed(n);
        }
        self.harvest(n)?;
        self.nodes[n].keep_complete(self.has_layout)?;
        if self.rng.percent(4) {
            self.compare_state(n)?;
        }
        if self.rng.percent(1) {
            self.check_crashed_copy(n);
        }
        Ok(())
    }

    fn join(&mut self) {
        let up: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].is_up()).collect();
        if self.nodes.len() >= NODES_MAX || up.is_empty() {
            return;
        }
        let (number, host) = (self.nodes.len(), self.rng.pick(&up));
        if self.nodes[host].was_full {
            return;
        }
        match Node::joining(number, self.seed, &self.nodes[host], &self.clock) {
            Ok(node) => {
                self.nodes.push(node);
                self.trace(|| format!("{number} joins by {host}"));
                self.begin_node(number);
                self.changed(host);
            }
            Err(Trouble::Bug(what)) => panic!("node {number} joins: {what}"),
            // It may have been admitted.
            Err(_) => self.stillborn.push(NodeKey::from_seed(&seed_of(number, self.seed)).public()),
        }
    }

    pub fn crash(&mut self, node: usize) {
        if !self.nodes[node].is_up() {
            return;
        }
        self.trace(|| format!("{node} loses power"));
        self.nodes[node].stop();
        let links: Vec<Ends> = self.links.keys().copied().filter(|ends| ends.0 == node || ends.1 == node).collect();
        links.into_iter().for_each(|ends| self.break_link(ends, "it is down"));
        self.sent.retain(|(by, _), _| *by != node);
        let rest_ms = self.rng.within(100..3_000);
        self.after(rest_ms, Event::Restart(node));
    }

    fn restart(&mut self, n: usize) {
        if self.nodes[n].is_up() || self.nodes[n].has_left {
            return;
        }
        let what_survives = self.rng.next();
        let image = self.nodes[n].disk.after_power_loss(what_survives % 16);
        if std::mem::take(&mut self.nodes[n].loses_log) {
            let logs = image.list().expect("a disk in memory").into_iter();
            logs.filter(|name| matches!(name, FileName::Oplog(_)))
                .for_each(|log| image.remove(log).expect("it is there"));
        }
        self.nodes[n].start(&image).unwrap_or_else(|error| panic!("node {n} does not start again: {error}"));
        let context = self.nodes[n].volume().context();
        self.oracle.restarted(n, &context);
        if self.mutant == Mutant::AcknowledgeEarly {
            self.nodes[n].kernel.set_slow();
        }
        self.trace(|| format!("{n} is up again and knows {}", operations(&context)));
        self.members_changed(n);
        let _ = self.settle(n);
    }

    /// Decides what goes wrong from now on.
    fn plan(&mut self, length_ms: u64) {
        for node in 0..self.nodes.len() {
            self.after(1, Event::Call(node));
        }
        for _ in 0..self.rng.within(2..7) {
            let at = self.now_ms + self.rng.within(0..length_ms);
            let node = self.rng.below(self.nodes.len());
            let other = self.rng.below(self.nodes.len());
            let lasts_ms = self.rng.within(200..8_000);
            match self.rng.below(21) {
                0..3 => {
                    // One side of the nodes from the other.
                    let sides: Vec<bool> = self.nodes.iter().map(|_| self.rng.percent(50)).collect();
                    let apart = self.pairs(|a, b| sides[a] != sides[b]);
                    self.at(at, Event::Fault(Fault::Cut(apart, lasts_ms)));
                }
                3 => {
                    let alone = self.pairs(|a, b| a == node || b == node);
                    self.at(at, Event::Fault(Fault::Cut(alone, lasts_ms)));
                }
                4 => self.at(at, Event::Fault(Fault::Cut(vec![(node, other), (other, node)], lasts_ms))),
                5 => self.at(at, Event::Fault(Fault::Cut(vec![(node, other)], lasts_ms))),
                6 => {
                    let apart = self.pairs(|a, b| a == node || b == node);
                    for n in 0..5 {
                        self.at(at + n * 400, Event::Fault(Fault::Cut(apart.clone(), 200)));
                    }
                }
                7 => self.at(at, Event::Fault(Fault::Reset((node, other)))),
                8..10 => self.at(at, Event::Fault(Fault::Crash(node))),
                10..12 => {
                    let change = self.rng.within(1..200);
                    self.at(at, Event::Fault(Fault::CrashAtChange(node, change)));
                }
                12 => self.at(at, Event::Fault(Fault::Full(node, lasts_ms))),
                13 => {
                    let off_ms = self.rng.pick(&[-90_000, -2_000, 500, 30_000, 65_000, 90_000]);
                    self.at(at, Event::Fault(Fault::Clock(node, off_ms)));
                }
                14 => self.at(at, Event::Fault(Fault::Liar(node, lasts_ms))),
                15 => self.at(at, Event::Fault(Fault::Collect(node))),
                16 => self.at(at, Event::Fault(Fault::Checkpoint(node))),
                17 => self.at(at, Event::Fault(Fault::Snapshot(node))),
                18 => self.at(at, Event::Fault(Fault::Join)),
                19 => self.at(at, Event::Fault(Fault::LoseLog(node))),
                _ => self.at(at, Event::Fault(Fault::Leave(node, 20))),
            }
        }
    }

    fn pairs(&self, is_cut: impl Fn(usize, usize) -> bool) -> Vec<(usize, usize)> {
        let all = (0..self.nodes.len()).flat_map(|a| (0..self.nodes.len()).map(move |b| (a, b)));
        all.filter(|(a, b)| a != b && is_cut(*a, *b)).collect()
    }

    fn fail(&mut self, fault: Fault) {
        self.trace(|| format!("fault: {fault:?}"));
        let outcome = match &fault {
            Fault::Collect(n) | Fault::Checkpoint(n) | Fault::Snapshot(n) if self.nodes[*n].is_up() => {
                let node = &self.nodes[*n];
                let before = node.volume().context();
                let done = match fault {
                    Fault::Collect(_) => {
                        node.volume().collect_confirmed(0.7, &|_| {}).map(drop).map_err(|e| e.to_string())
                    }
                    Fault::Checkpoint(_) => node.volume().make_checkpoint(false).map_err(|e| e.to_string()),
                    _ => {
                        let name = format!("s{}", self.now_ms);
                        let taken = node.volume().create_snapshot(&name, Vec::new(), false);
                        taken.map(drop).map_err(|e| e.to_string())
                    }
                };
                let outcome = done.map_err(|e| (*n, node.trouble(e)));
                if node.volume().context() != before {
                    self.changed(*n);
                }
                outcome
            }
            Fault::Collect(_) | Fault::Checkpoint(_) | Fault::Snapshot(_) => Ok(()),
            Fault::Cut(pairs, ms) => {
                let until = self.now_ms + ms;
                pairs.iter().for_each(|pair| self.reach.cut(*pair, until));
                Ok(())
            }
            Fault::Reset((a, b)) => {
                self.break_link((*a, *b), "reset");
                self.break_link((*b, *a), "reset");
                Ok(())
            }
            Fault::Crash(node) => {
                self.crash(*node);
                Ok(())
            }
            Fault::LoseLog(node) => {
                self.nodes[*node].loses_log = true;
                self.crash(*node);
                Ok(())
            }
            Fault::CrashAtChange(node, change) => {
                self.nodes[*node].disk.cut_power_at(*change);
                Ok(())
            }
            Fault::Full(node, ms) => {
                if self.nodes[*node].is_up() {
                    self.nodes[*node].disk.set_full(true);
                    self.nodes[*node].was_full = true;
                    self.after(*ms, Event::Fault(Fault::Emptied(*node)));
                }
                Ok(())
            }
            Fault::Emptied(node) => {
                self.emptied(*node);
                Ok(())
            }
            Fault::Clock(node, off_ms) => {
                self.nodes[*node].clock.set_off(*off_ms);
                Ok(())
            }
            Fault::Liar(node, ms) => {
                self.liars.insert(*node);
                self.after(*ms, Event::Fault(Fault::Honest(*node)));
                Ok(())
            }
            Fault::Honest(node) => {
                self.liars.remove(node);
                Ok(())
            }
            Fault::Join => {
                self.join();
                Ok(())
            }
            Fault::Leave(node, tries) => self.leave(*node, *tries).map_err(|trouble| (*node, trouble)),
        };
        match outcome {
            Ok(()) | Err((_, Trouble::Full(_) | Trouble::Peer(_))) => {}
            Err((node, Trouble::Dead)) => self.crash(node),
            Err((node, Trouble::Bug(what))) => panic!("node {node}: {fault:?}: {what}"),
        }
    }

    fn emptied(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.disk.set_full(false);
        if node.is_up() && node.volume().status().read_only {
            self.trace(|| format!("{n} is read-only and starts again"));
            self.crash(n);
        } else {
            // It finds out at the next tick.
            self.nodes[n].was_full = self.nodes[n].is_up() && self.nodes[n].was_full;
        }
    }

    /// A node leaves once somebody else has all that it has.
    fn leave(&mut self, n: usize, tries: u32) -> Outcome {
        let up = self.nodes.iter().filter(|node| node.is_up()).count();
        if !self.nodes[n].is_up() || self.nodes[n].has_left {
            return Ok(());
        }
        if up < 3 || self.nodes[n].was_full || tries == 0 {
            return self.set_leaving(n, false);
        }
        self.nodes[n].close_all();
        self.set_leaving(n, true)?;
        let node = &self.nodes[n];
        node.volume().run_publisher();
        node.volume().tick().map_err(|e| node.trouble(e))?;
        self.changed(n);
        self.harvest(n)?;
        let volume = self.nodes[n].volume();
        let (context, members) = (volume.context(), volume.member_entries().map_err(|e| self.nodes[n].trouble(e))?);
        let has_all = |other: &usize| {
            let volume = self.nodes[*other].volume.as_deref();
            let has_all = |volume: &LocalVolume| {
                volume.context().covers(&context) && volume.member_entries().is_ok_and(|known| known == members)
            };
            let key = self.nodes[*other].key;
            let vouches = self.nodes[n].volume().held_by(key).covers(&context);
            vouches && !self.nodes[*other].was_full && volume.is_some_and(has_all)
        };
        // Whoever is left must know the others, or nobody will let it in.
        let mut others = self.living().into_iter().filter(|other| *other != n);
        let host = if others.all(|other| has_all(&other)) {
            self.living().into_iter().find(|other| *other != n)
        } else {
            None
        };
        let Some(host) = host else {
            self.after(200, Event::Fault(Fault::Leave(n, tries - 1)));
            return Ok(());
        };
        let there = &self.nodes[host];
        // What it has vouched for has to be durable elsewhere.
        there.volume().commit().map_err(|e| there.trouble(e))?;
        there.volume().remove_member(self.nodes[n].key).map_err(|e| there.trouble(e))?;
        self.trace(|| format!("{n} leaves, {host} has all"));
        self.oracle.left(n, host, &context);
        self.nodes[n].stop();
        self.nodes[n].has_left = true;
        let links: Vec<Ends> = self.links.keys().copied().filter(|ends| ends.0 == n || ends.1 == n).collect();
        links.into_iter().for_each(|ends| self.break_link(ends, "it has left"));
        self.changed(host);
        Ok(())
    }

    /// Nothing is placed with a node that is about to leave.
    fn set_leaving(&mut self, n: usize, leaving: bool) -> Outcome {
        let node = &self.nodes[n];
        let own = node.volume().member(node.key).map_err(|e| node.trouble(e))?;
        if let Some(own) = own.filter(|own| own.leaving != leaving) {
            let changed = node.volume().put_member(node.key, &Member { leaving, ..own });
            changed.map_err(|e| node.trouble(e))?;
            self.changed(n);
        }
        self.nodes[n].keep_complete(self.has_layout)
    }

    /// Everything is whole again; what was going on comes to its end, and all are the same.
    fn calm(&mut self) {
        self.trace(|| "calm".into());
        self.reach.heal();
        self.liars.clear();
        for n in 0..self.nodes.len() {
            self.nodes[n].disk.cut_power_at(0);
            if self.nodes[n].disk.is_full() {
                self.emptied(n);
            }
            if self.nodes[n].is_up() {
                self.nodes[n].close_all();
            } else {
                self.restart(n);
            }
            self.after(1, Event::Settle(n));
        }
        self.tidy_members();
        let give_up = self.now_ms + CALM_MS_MAX;
        // Everything that is under way is to have its second, and every file its tick.
        self.run_until(self.now_ms + 2 * TICK_MS);
        while !self.is_quiet() {
            assert!(self.now_ms < give_up, "the nodes do not come to be the same: {}", self.differences());
            self.run_until(self.now_ms + LOOK_MS);
            if !self.stillborn.is_empty() {
                self.tidy_members();
            }
        }
        self.nodes.iter_mut().for_each(|node| node.was_full = false);
        self.trace(|| "quiet".into());
        self.check_quiet();
    }

    /// What people do about members that are not there, and about one that did not get to leave.
    fn tidy_members(&mut self) {
        let living = self.living();
        let volume = self.nodes[living[0]].volume();
        let removed = |key: &NodePublicKey| {
            let is_born = self.nodes.iter().any(|node| node.key == *key);
            // Somebody whose clock was ahead may be the only one who knows of it so far.
            is_born || volume.remove_member(*key).unwrap_or_else(|e| panic!("a member cannot be removed: {e}"))
        };
        let (gone, _): (Vec<_>, Vec<_>) = self.stillborn.iter().partition(|key| removed(key));
        if !gone.is_empty() {
            self.stillborn.retain(|key| !gone.contains(key));
            self.changed(living[0]);
        }
        for n in living {
            self.set_leaving(n, false).unwrap_or_else(|e| panic!("node {n} cannot stay: {e:?}"));
        }
    }

    pub fn living(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| !self.nodes[*n].has_left).collect()
    }

    fn is_quiet(&self) -> bool {
        let living = self.living();
        let volume = |n: &usize| self.nodes[*n].volume.as_deref();
        let context = |n: &usize| volume(n).map(LocalVolume::context);
        let linked =
            |ends: &Ends| self.links.get(ends).is_some_and(|link| link.open.as_ref().is_some_and(|o| o.is_idle()));
        let pairs = living.iter().flat_map(|a| living.iter().map(move |b| (*a, *b)));
        let is_complete = |volume: &LocalVolume| {
            volume.status().unpublished_files == 0
                && !volume.is_awaited()
                && volume.under_replicated_bytes().is_ok_and(|bytes| bytes == 0)
        };
        living.iter().all(|n| volume(n).is_some_and(is_complete))
            && living.windows(2).all(|pair| context(&pair[0]) == context(&pair[1]))
            && pairs.filter(|(a, b)| a != b).all(|ends| linked(&ends))
    }

    fn differences(&self) -> String {
        let state = |n: &usize| {
            let node = &self.nodes[*n];
            let known = node.volume.as_ref().map(|volume| {
                let (known, unpublished) = (operations(&volume.context()), volume.status().unpublished_files);
                let (lacks, under) = (volume.missing().map(|ids| ids.len()), volume.under_replicated_bytes());
                let (awaits, placing) = (volume.is_awaited(), volume.placing()[0]);
                format!(
                    "{known}, {unpublished} unpublished, lacks {lacks:?} glyphs (awaits: {awaits}, by {placing}), {under:?} \
                     bytes not everywhere"
                )
            });
            let busy = self.links.iter().filter(|(ends, link)| {
                ends.0 == *n && !self.nodes[ends.1].has_left && !link.open.as_ref().is_some_and(Open::is_idle)
            });
            let busy: Vec<String> = busy
                .map(|(ends, link)| format!("{ends:?} {}", link.open.as_ref().map_or("closed".into(), Open::state)))
                .collect();
            format!("{n} knows {known:?}, busy: {busy:?}")
        };
        self.living().iter().map(state).collect::<Vec<_>>().join("; ")
    }
}

/// How many operations of each author.
fn operations(context: &phifs_core::causal::VersionVector) -> String {
    let each = context.iter().map(|(author, n)| format!("{}:{n}", &author.to_string()[..4]));
    each.collect::<Vec<_>>().join(" ")
}
