//! Asking the other members, again and again, what they know and this node does not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use phifs_core::id::GlyphId;
use phifs_core::identity::NodePublicKey;
use phifs_core::ssep::{Answer, Follower, Note, Progress, Receipt, Request};
use quinn::{Connection, SendStream};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::socket::dial_any;
use super::wire::{self, ANSWER_TIME_MAX, WireError};
use super::{Peer, Shared, fetch, serve};
use crate::env;
use crate::failure::Failure;

/// How often it is looked who the members are, if nobody says that it changed.
const MEMBERS_LOOK: Duration = Duration::from_secs(5);
/// How long to rest after a failure: at first, and at most.
const REST_MIN: Duration = Duration::from_millis(200);
const REST_MAX: Duration = Duration::from_secs(5);
/// When there is hope for many at once, they are not all tried in the same moment.
const HOPE_JITTER: Duration = Duration::from_millis(200);
/// How often the peers hear that what came is durable, unless somebody waits for it.
const VOUCH_EVERY: Duration = Duration::from_secs(1);
/// How often they compare their states.
const AUDIT_EVERY: Duration = Duration::from_secs(60);
/// How often it is tried to take in what the disk had no room for.
const FULL_REST: Duration = Duration::from_secs(1);
/// So many lots of glyphs that are coming are fetched at a time, and may wait for that.
const LOTS_AT_ONCE: usize = 3;
const LOTS_WAITING_MAX: usize = 1024;
/// They hear of many changes together.
const NOTE_REST: Duration = Duration::from_millis(10);

impl Shared {
    pub(super) fn peer(&self, key: NodePublicKey) -> Option<Arc<Peer>> {
        if key == self.engine.node() {
            return None;
        }
        Some(self.peers.lock().entry(key).or_insert_with(|| Arc::new(Peer::new(key))).clone())
    }
}

/// Follows everybody who is a member, for as long as they are.
pub async fn follow_members(shared: Arc<Shared>) {
    let mut following: BTreeMap<NodePublicKey, AbortHandle> = BTreeMap::new();
    while !shared.is_stopping() {
        match shared.blocking(|engine| engine.members()).await {
            // The others are to hear of it over the connections that there are.
            Ok(_) if shared.is_leaving() => {}
            Ok(members) => {
                let members: BTreeSet<NodePublicKey> = members.into_iter().map(|(key, _)| key).collect();
                if !members.contains(&shared.engine.node()) {
                    following.values().for_each(AbortHandle::abort);
                    return shared.was_removed().await;
                }
                following.retain(|key, task| {
                    let stays = members.contains(key);
                    if !stays {
                        task.abort();
                        shared.shut_out(key);
                    }
                    stays
                });
                for key in members {
                    if let (false, Some(peer)) = (following.contains_key(&key), shared.peer(key)) {
                        following.insert(key, tokio::spawn(follow(shared.clone(), peer)).abort_handle());
                    }
                }
            }
            Err(error) => tracing::error!(%error, "cannot look up the members"),
        }
        let _ = timeout(MEMBERS_LOOK, shared.members_changed.notified()).await;
    }
}

/// Follows one of them.
async fn follow(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut rest = REST_MIN;
    let mut hope = shared.hope.subscribe();
    loop {
        hope.borrow_and_update();
        let (trouble, is_reached) = match connection(&shared, &peer).await {
            Ok(connection) => {
                tracing::info!(node = %peer.key, at = %connection.remote_address(), "connected");
                peer.state.lock().trouble = None;
                let began = Instant::now();
                let outcome = listen(&shared, &peer, &connection).await;
                // What waited for room is told anew.
                peer.state.lock().finds_no_room = false;
                if outcome.is_ok() || began.elapsed() > REST_MAX {
                    rest = REST_MIN;
                }
                let Err(error) = outcome else { continue };
                if !shared.is_stopping() {
                    tracing::warn!(node = %peer.key, %error, "cannot learn from a node; it is tried again");
                }
                (error.message, true)
            }
            Err(error) => {
                tracing::debug!(node = %peer.key, %error, "cannot reach a node");
                (error.to_string(), false)
            }
        };
        if shared.is_stopping() {
            return;
        }
        peer.state.lock().trouble = Some(trouble);
        // Whoever was reached has another reason, and coming back would give hope to the others each time.
        let hope = (!is_reached).then_some(&mut hope);
        rest = rest_after(rest, &peer.arrived, hope).await;
    }
}

/// Rests until it is time to try again, or there is reason to. Says how long to rest after the next failure.
async fn rest_after(rest: Duration, arrived: &Notify, hope: Option<&mut watch::Receiver<u64>>) -> Duration {
    let hoped = async {
        match hope {
            Some(hope) => drop(hope.changed().await),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = arrived.notified() => {}
        () = hoped => {
            sleep(HOPE_JITTER.mul_f64(f64::from(env::random()[0]) / 256.0)).await;
            return REST_MIN;
        }
        // So that nodes that lost each other at the same time do not all come back at the same time.
        () = sleep(jittered(rest)) => {}
    }
    (rest * 2).min(REST_MAX)
}

/// Between half and all of it.
fn jittered(rest: Duration) -> Duration {
    rest / 2 + rest.mul_f64(f64::from(env::random()[0]) / 512.0)
}

/// The connection that there is, or a new one.
async fn connection(shared: &Arc<Shared>, peer: &Arc<Peer>) -> wire::Result<Connection> {
    if let Some(connection) = peer.connection() {
        return Ok(connection);
    }
    let key = peer.key;
    let addresses = shared.blocking(move |engine| engine.addresses_of(key)).await.map_err(wire::lost)?;
    let config = shared.identity.client(key).map_err(wire::lost)?;
    tokio::select! {
        dialled = dial_any(&shared.endpoint, &config, &addresses) => {
            let connection = dialled.map_err(unreachable)?;
            shared.connected(peer, &connection);
            tokio::spawn(serve::serve(shared.clone(), connection.clone(), key));
            Ok(connection)
        }
        () = peer.arrived.notified() => peer.connection().ok_or(WireError::Silent),
    }
}

/// One reason for all addresses.
fn unreachable(failures: Vec<(SocketAddr, WireError)>) -> WireError {
    let told = failures.iter().map(|(address, error)| format!("{address}: {error}"));
    match &told.collect::<Vec<_>>()[..] {
        [] => WireError::Unreachable("it has no address".to_owned()),
        told => WireError::Unreachable(told.join("; ")),
    }
}

/// Learns from a peer until that does not work any more, or there is a better connection.
async fn listen(shared: &Arc<Shared>, peer: &Arc<Peer>, connection: &Connection) -> Result<(), Failure> {
    greet(shared, peer, connection).await.map_err(Failure::plain)?;
    let first = shared.blocking(|engine| engine.note(false)).await?;
    let begun = wire::begin(connection, &Request::Follow(first)).await;
    let (send, answers) = begun.map_err(Failure::plain)?;
    let mut link = Link {
        shared,
        peer,
        connection,
        send,
        vouched: None,
        follower: Follower::new(),
        expected: JoinSet::new(),
        turns: Arc::new(Semaphore::new(LOTS_AT_ONCE)),
    };
    let mut changes = shared.changes.subscribe();
    let (mut answers, _reading) = answers.ahead();
    let mut vouch_at = Instant::now() + VOUCH_EVERY;
    let mut audit_at = Instant::now() + AUDIT_EVERY;
    loop {
        let (mut say, mut vouch) = (false, false);
        tokio::select! {
            answer = answers.recv() => match answer {
                Some(answer) => (say, vouch) = link.take(answer.map_err(Failure::plain)?).await?,
                None => return Ok(()),
            },
            // Others are to know that this one has heard of it, and need not tell it again.
            _ = changes.changed() => {
                sleep(NOTE_REST).await;
                say = true;
            }
            () = tokio::time::sleep_until(vouch_at) => vouch = true,
            () = tokio::time::sleep_until(audit_at) => {
                audit_at = Instant::now() + AUDIT_EVERY;
                link.say_root().await?;
            }
            // It has a better connection, so nothing may come over this one any more.
            () = peer.arrived.notified() => return Ok(()),
        }
        if vouch {
            vouch_at = Instant::now() + VOUCH_EVERY;
        }
        if say || vouch {
            changes.borrow_and_update();
            link.say(vouch).await?;
        }
    }
}

fn lost(glyphs: usize) -> Failure {
    Failure::plain(format!("nobody who can be reached has {glyphs} glyphs that what it tells needs"))
}

/// Following one peer over one connection.
struct Link<'a> {
    shared: &'a Arc<Shared>,
    peer: &'a Arc<Peer>,
    connection: &'a Connection,
    send: SendStream,
    /// What the peer was told last to be durable here.
    vouched: Option<Receipt>,
    follower: Follower,
    /// What is fetched before the version is told that it belongs to.
    expected: JoinSet<()>,
    turns: Arc<Semaphore>,
}

impl Link<'_> {
    /// Says whether the peer is to be told how far this node has come, and whether that is durable.
    async fn take(&mut self, answer: Answer) -> Result<(bool, bool), Failure> {
        match answer {
            Answer::Groups(groups) => {
                let mut follower = std::mem::take(&mut self.follower);
                let heard = self.shared.blocking(move |engine| {
                    engine.hear(&mut follower, groups)?;
                    Ok(follower)
                });
                self.follower = heard.await?;
                self.take_in().await?;
                Ok((true, false))
            }
            Answer::Members(members) => {
                self.shared.blocking(move |engine| engine.take_member_entries(members)).await?;
                self.shared.members_changed.notify_one();
                Ok((true, false))
            }
            Answer::Settings(settings) => {
                self.shared.blocking(move |engine| engine.take_setting_entries(settings)).await?;
                Ok((true, false))
            }
            Answer::Behind => {
                self.catch_up().await?;
                Ok((true, false))
            }
            Answer::Hurry => Ok((true, true)),
            Answer::Coming(lot) => {
                self.expect(lot).await?;
                Ok((false, false))
            }
            _ => Err(Failure::plain(WireError::Unexpected)),
        }
    }

    /// Fetches what will be needed soon, while other things come.
    async fn expect(&mut self, lot: Vec<GlyphId>) -> Result<(), Failure> {
        while self.expected.try_join_next().is_some() {}
        if self.expected.len() >= LOTS_WAITING_MAX {
            return Ok(());
        }
        let mut follower = std::mem::take(&mut self.follower);
        let expected = self.shared.blocking(move |engine| {
            let missing = engine.expect(&mut follower, lot);
            Ok((follower, missing))
        });
        let missing;
        (self.follower, missing) = expected.await?;
        if !missing.is_empty() {
            let (shared, teller, turns) = (self.shared.clone(), self.peer.key, self.turns.clone());
            self.expected.spawn(async move {
                let _turn = turns.acquire_owned().await;
                if let Err(error) = fetch::fetch(&shared, Some(teller), missing).await {
                    // It is fetched with what names it, or that fails with a reason.
                    tracing::debug!(node = %teller, %error, "what is coming cannot be fetched yet");
                }
            });
        }
        Ok(())
    }

    /// Takes in all that has come, and fetches what it needs. As long as the disk is full, all of it waits.
    async fn take_in(&mut self) -> Result<(), Failure> {
        let mut is_compared = false;
        loop {
            let mut follower = std::mem::take(&mut self.follower);
            let went_on = self.shared.blocking(move |engine| {
                let progress = engine.take_in(&mut follower);
                Ok((follower, progress))
            });
            let progress;
            (self.follower, progress) = went_on.await?;
            let done = match progress {
                // Some of it may be on its way.
                Ok(progress) if !progress.missing.is_empty() && !self.expected.is_empty() => {
                    while self.expected.join_next().await.is_some() {}
                    continue;
                }
                Ok(progress) if !progress.missing.is_empty() => self.fetch(progress.missing).await,
                Ok(progress) if progress.lost > 0 && is_compared => return Err(lost(progress.lost)),
                Ok(progress) if progress.lost > 0 => {
                    let caught_up = self.catch_up().await;
                    is_compared = caught_up.is_ok();
                    caught_up
                }
                Ok(Progress { later: Some(later), .. }) => {
                    sleep(later).await;
                    Ok(())
                }
                Ok(_) => return Ok(()),
                Err(failure) => Err(failure),
            };
            if let Err(failure) = done {
                self.has_room(Some(failure))?;
                sleep(FULL_REST).await;
                if let Some(reason) = self.connection.close_reason() {
                    return Err(Failure::plain(wire::lost(reason)));
                }
            }
        }
    }

    /// What nobody has who can be reached comes later.
    async fn fetch(&mut self, missing: Vec<GlyphId>) -> Result<(), Failure> {
        let away = fetch::fetch(self.shared, Some(self.peer.key), missing).await?;
        if let Some(reason) = self.connection.close_reason() {
            return Err(Failure::plain(wire::lost(reason)));
        }
        if let Some(first) = away.first() {
            tracing::warn!(glyphs = away.len(), %first, "contents of others cannot be had now; they are awaited");
        }
        self.follower.do_without(away);
        Ok(())
    }

    /// Notes whether there was room for what has come. Any other failure than that ends the link.
    fn has_room(&self, failure: Option<Failure>) -> Result<(), Failure> {
        let is_full = match failure {
            Some(failure) if !failure.is_full() => return Err(failure),
            other => other.is_some(),
        };
        let was_full = std::mem::replace(&mut self.peer.state.lock().finds_no_room, is_full);
        match (was_full, is_full) {
            (false, true) => tracing::error!(node = %self.peer.key, "the disk is full: what is new elsewhere waits"),
            (true, false) => tracing::info!(node = %self.peer.key, "the disk has room again for what is new elsewhere"),
            _ => {}
        }
        Ok(())
    }

    /// Learns the state of the peer.
    async fn catch_up(&self) -> Result<(), Failure> {
        let key = self.peer.key;
        let context = self.shared.blocking(|engine| Ok(engine.context())).await?;
        let asked = wire::ask_one(self.connection, &Request::Catch(context), ANSWER_TIME_MAX).await;
        match asked.map_err(Failure::plain)? {
            Answer::Unchanged => Ok(()),
            Answer::Head(head) => {
                let (shared, handle) = (self.shared.clone(), Handle::current());
                let mut ask = move |kind, ids: &[GlyphId]| {
                    handle.block_on(fetch::gather(&fetch::connections(&shared, Some(key)), kind, ids))
                };
                let operations = self.shared.blocking(move |engine| engine.learn(&key, &head, &mut ask)).await?;
                tracing::info!(node = %key, operations, "learned the state of a node");
                Ok(())
            }
            _ => Err(Failure::plain(WireError::Unexpected)),
        }
    }

    /// Tells the peer what the state here is called: if it knows the same, it has to have come to the same. And what is durable
    /// here, as it may not have believed what it heard before.
    async fn say_root(&mut self) -> Result<(), Failure> {
        let note = self.shared.blocking(|engine| engine.note_with_root()).await?;
        self.tell(note).await
    }

    /// Tells the peer how far this node has come; with `vouch` also what is durable, unless it has been told.
    async fn say(&mut self, vouch: bool) -> Result<(), Failure> {
        let vouched = self.vouched.clone();
        let noted =
            self.shared.blocking(move |engine| engine.note(vouch && engine.has_more_to_vouch_for(vouched.as_ref())));
        let noted = noted.await;
        let note = match noted {
            Err(failure) if vouch => {
                self.has_room(Some(failure))?;
                self.shared.blocking(|engine| engine.note(false)).await?
            }
            noted => {
                let note = noted?;
                if vouch {
                    self.has_room(None)?;
                }
                note
            }
        };
        self.tell(note).await
    }

    async fn tell(&mut self, note: Note) -> Result<(), Failure> {
        if let Some(receipt) = &note.receipt {
            self.vouched = Some(receipt.clone());
        }
        wire::note(&mut self.send, &note).await.map_err(Failure::plain)
    }
}

/// The other side refuses if it is of another version or volume.
async fn greet(shared: &Arc<Shared>, peer: &Peer, connection: &Connection) -> wire::Result<()> {
    let asked = Instant::now();
    match wire::ask_one(connection, &Request::Hello(shared.hello()), ANSWER_TIME_MAX).await? {
        Answer::Hello(hello) if hello.volume == shared.volume => {
            // It said so half-way between question and answer, more or less.
            let now = shared.hello().clock_ms.saturating_sub(asked.elapsed().as_millis() as u64 / 2);
            peer.state.lock().program = Some((hello.program, hello.clock_ms.cast_signed() - now.cast_signed()));
            Ok(())
        }
        Answer::Members(own) => {
            shared.hear_of_end(own).await;
            Err(WireError::NoMember)
        }
        _ => Err(WireError::Unexpected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn hope_cuts_a_rest_short_and_the_next_one_is_the_shortest() {
        let (arrived, hope) = (Notify::new(), watch::Sender::new(0));
        let mut hopes = hope.subscribe();
        let began = Instant::now();
        assert_eq!(rest_after(REST_MAX, &arrived, Some(&mut hopes)).await, REST_MAX);
        assert!(began.elapsed() >= REST_MAX / 2, "there was none");

        hope.send_modify(|n| *n += 1);
        let began = Instant::now();
        assert_eq!(rest_after(REST_MAX, &arrived, Some(&mut hopes)).await, REST_MIN);
        assert!(began.elapsed() <= HOPE_JITTER, "it came while the node was being tried");

        let began = Instant::now();
        let (next, ()) = tokio::join!(rest_after(REST_MAX, &arrived, Some(&mut hopes)), async {
            sleep(REST_MIN).await;
            hope.send_modify(|n| *n += 1);
        });
        assert_eq!(next, REST_MIN);
        assert!(began.elapsed() <= REST_MIN + HOPE_JITTER, "it came during the rest");
    }

    #[tokio::test(start_paused = true)]
    async fn rests_grow_while_there_is_no_hope() {
        let (arrived, mut rest) = (Notify::new(), REST_MIN);
        let began = Instant::now();
        for _ in 0..3 {
            rest = rest_after(rest, &arrived, None).await;
        }
        assert_eq!(rest, REST_MIN * 8);
        assert!(began.elapsed() >= REST_MIN * 7 / 2);
    }
}
