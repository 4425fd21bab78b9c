//! The volume among those of other machines, as the network sees it.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use phifs_core::causal::VersionVector;
use phifs_core::id::GlyphId;
use phifs_core::identity::NodePublicKey;
use phifs_core::placement::Layout;
use phifs_core::registry::Member;
use phifs_core::snapshot::pull::Ask;
use phifs_core::ssep::{
    Follower, Join, MemberEntries, Moment, Next, Note, Progress, Receipt, Refusal, Secret, SettingEntries, Teller,
    Token, note_of,
};
use phifs_core::store::{GlyphKind, Stream};
use phifs_core::time::Env as _;
use phifs_core::volume::local::{Backlog, Head, Invite, JoinError, PeerGlyphs, SnapshotError};

use super::{Engine, snapshots};
use crate::env::{self, SystemEnv};
use crate::failure::{Failure, Kind};
use crate::hex;
use crate::report::{Invitation, Reached, SessionToken, Standing};

/// How often it is looked whether what somebody waits for has come.
const LOOK: Duration = Duration::from_millis(2);

impl Engine {
    pub fn volume_id(&self) -> Result<[u8; 16], Failure> {
        self.volume.id().map_err(snapshots::explain)
    }

    /// Who this node is.
    pub fn node(&self) -> NodePublicKey {
        self.volume.node()
    }

    pub fn members(&self) -> Result<Vec<(NodePublicKey, Member)>, Failure> {
        self.volume.members().map_err(Failure::plain)
    }

    pub fn is_member(&self, key: NodePublicKey) -> Result<bool, Failure> {
        Ok(self.volume.member(key).map_err(Failure::plain)?.is_some())
    }

    /// Whether it is one, or was one.
    pub fn was_member(&self, key: NodePublicKey) -> Result<bool, Failure> {
        Ok(self.volume.present_or_past_member(key).map_err(Failure::plain)?.is_some())
    }

    pub fn standing(&self) -> Result<Standing, Failure> {
        let own = self.volume.present_or_past_member(self.node()).map_err(Failure::plain)?;
        Ok(own.map_or(Standing::Alone, |own| if own.left { Standing::Former } else { Standing::Member }))
    }

    /// What is written of a node that was a member, and is none any more.
    pub fn former_member(&self, key: NodePublicKey) -> Result<MemberEntries, Failure> {
        let member = self.volume.present_or_past_member(key).map_err(Failure::plain)?;
        if !member.is_some_and(|member| member.left) {
            return Ok(Vec::new());
        }
        let mut entries = self.member_entries()?;
        entries.retain(|(node, _)| *node == key);
        Ok(entries)
    }

    /// Says whether this node is about to be no member any more: then nothing is placed with it.
    pub fn set_leaving(&self, leaving: bool) -> Result<(), Failure> {
        let key = self.node();
        if let Some(own) = self.volume.member(key).map_err(Failure::plain)? {
            self.volume.put_member(key, &Member { leaving, ..own }).map_err(Failure::plain)?;
        }
        self.place().map(drop)
    }

    /// Says whether it was a member.
    pub fn remove_member(&self, key: NodePublicKey) -> Result<bool, Failure> {
        self.volume.remove_member(key).map_err(Failure::plain)
    }

    /// Publishes all that was written, and says what this node knows then. The others are asked for receipts.
    pub fn publish_all(&self) -> Result<VersionVector, Failure> {
        self.volume.publish_all().map_err(Failure::plain)?;
        let context = self.context();
        self.volume.ask_for_receipts(&context);
        Ok(context)
    }

    /// A word for what is here now. What was closed counts.
    pub fn session_token(&self) -> Result<SessionToken, Failure> {
        self.volume.publish_closed().map_err(Failure::plain)?;
        let moment = Moment { volume: self.volume_id()?, context: self.context() };
        Ok(SessionToken { token: moment.to_string() })
    }

    /// Waits until all of that is here, and is seen.
    pub fn wait_for(&self, token: &str, timeout: Duration) -> Result<Reached, Failure> {
        let moment: Moment = token.parse().map_err(|error| {
            Failure::new(Kind::Usage, format!("the token is not one: {error}")).hint("phifs token prints one")
        })?;
        if moment.volume != self.volume_id()? {
            return Err(Failure::new(Kind::Usage, "the token is of another volume"));
        }
        let until = Instant::now().checked_add(timeout);
        loop {
            let behind = moment.context.count_missing_from(&self.volume.visible_context());
            let is_late = until.is_some_and(|until| Instant::now() >= until);
            if behind == 0 || is_late || self.go_on().is_break() {
                return Ok(Reached { behind });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// How many operations of these a member does not hold, as far as it has said.
    pub fn lacks(&self, key: NodePublicKey, target: &VersionVector) -> u64 {
        target.count_missing_from(&self.volume.held_by(key))
    }

    pub fn addresses_of(&self, key: NodePublicKey) -> Result<Vec<SocketAddr>, Failure> {
        let member = self.volume.member(key).map_err(Failure::plain)?;
        Ok(member.map(|member| member.addresses).unwrap_or_default())
    }

    pub fn member_entries(&self) -> Result<MemberEntries, Failure> {
        self.volume.member_entries().map_err(Failure::plain)
    }

    /// Says whether there was any news.
    pub fn take_member_entries(&self, entries: MemberEntries) -> Result<bool, Failure> {
        self.volume.take_member_entries(entries).map_err(Failure::plain)
    }

    pub fn take_setting_entries(&self, entries: SettingEntries) -> Result<(), Failure> {
        self.volume.take_setting_entries(entries).map_err(Failure::plain).map(drop)
    }

    /// Tells the members where this one is found.
    pub fn announce(&self, name: &str, addresses: &[SocketAddr]) -> Result<(), Failure> {
        let key = self.node();
        let known = self.volume.member(key).map_err(Failure::plain)?;
        let new = || Member {
            name: String::new(),
            role: String::new(),
            zone: String::new(),
            addresses: Vec::new(),
            since: SystemEnv.now(),
            left: false,
            leaving: false,
        };
        let known = known.unwrap_or_else(new);
        let member = Member { name: name.to_owned(), addresses: addresses.to_vec(), ..known };
        self.volume.put_member(key, &member).map_err(Failure::plain)
    }

    /// Where this node listens, if it was told once.
    pub fn listens_at(&self) -> Result<Option<SocketAddr>, Failure> {
        let address = self.volume.listens_at().map_err(Failure::plain)?;
        Ok(address.and_then(|address| address.parse().ok()))
    }

    pub fn listen_at(&self, address: Option<SocketAddr>) -> Result<(), Failure> {
        self.volume.listen_at(address.map(|address| address.to_string()).as_deref()).map_err(Failure::plain)
    }

    /// Makes an invitation for one node, which finds this one at these addresses.
    pub fn invite(
        &self,
        role: String,
        zone: String,
        lasts: Duration,
        addresses: Vec<SocketAddr>,
    ) -> Result<Invitation, Failure> {
        let lasts_ms = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
        let expires_ms = SystemEnv.now().millis().saturating_add(lasts_ms);
        let secret = Secret(*env::random().first_chunk().expect("32 bytes are more than 16"));
        self.volume.invite(&secret, &Invite { role, zone, expires_ms, used_by: None }).map_err(Failure::plain)?;
        let token = Token { volume: self.volume_id()?, inviter: self.node(), addresses, secret, expires_ms };
        let addresses = token.addresses.iter().map(ToString::to_string).collect();
        Ok(Invitation { token: token.to_string(), expires_millis: expires_ms, addresses })
    }

    /// Whether somebody who is no member may have something to say.
    pub fn has_invited(&self) -> Result<bool, Failure> {
        self.volume.has_invited().map_err(Failure::plain)
    }

    /// Makes a node a member. Says who the others are, or why not.
    pub fn admit(&self, key: NodePublicKey, join: &Join) -> Result<MemberEntries, (Refusal, String)> {
        let failed = |error: &dyn std::fmt::Display| (Refusal::Failed, error.to_string());
        let admitted = self.volume.admit(key, &join.secret, |invite, since| Member {
            name: join.name.clone(),
            role: invite.role.clone(),
            zone: invite.zone.clone(),
            addresses: join.addresses.clone(),
            since,
            left: false,
            leaving: false,
        });
        admitted.map_err(|error| match error {
            JoinError::Unknown | JoinError::Expired | JoinError::Used | JoinError::Removed => {
                (Refusal::BadInvitation, error.to_string())
            }
            JoinError::TooMany | JoinError::Volume(_) => failed(&error),
        })?;
        self.volume.member_entries().map_err(|error| failed(&error))
    }

    /// What this node knows.
    pub fn context(&self) -> VersionVector {
        self.volume.context()
    }

    /// The state of this node, for others.
    pub fn head(&self) -> Result<Head, Failure> {
        self.volume.head().map_err(Failure::plain)
    }

    /// Learns what a peer knows, given its head. Says how many operations that were.
    pub fn learn(&self, peer: &NodePublicKey, head: &[u8], ask: Ask<'_>) -> Result<u64, Failure> {
        let merged = self.volume.learn(peer, head, ask, &|_| self.go_on()).map_err(Failure::plain)?;
        Ok(merged.operations)
    }

    /// From now on told whenever there are more operations.
    pub fn set_on_change(&self, tell: Option<Arc<dyn Fn() + Send + Sync>>) {
        self.volume.set_on_change(tell);
    }

    /// A member follows over a new link. While this lives, what is new here is told at once.
    pub fn followed(self: &Arc<Self>, by: NodePublicKey) -> Followed {
        self.volume.forget_receipts(by);
        self.volume.count_follower(1);
        Followed(self.clone())
    }

    /// What to tell somebody who follows.
    pub fn tell(&self, teller: &mut Teller, now: Duration) -> Result<Next, Failure> {
        teller.next(&self.volume, now).map_err(Failure::plain)
    }

    /// Groups have come from somebody whom this node follows.
    pub fn hear(&self, follower: &mut Follower, groups: Vec<Bytes>) -> Result<(), Failure> {
        follower.take(&self.volume, groups).map_err(Failure::plain)
    }

    /// Glyphs will be needed soon: those of them that are to be fetched.
    pub fn expect(&self, follower: &mut Follower, lot: Vec<GlyphId>) -> Vec<GlyphId> {
        follower.expect(&self.volume, lot)
    }

    /// Takes in what can be taken in of what has come.
    pub fn take_in(&self, follower: &mut Follower) -> Result<Progress, Failure> {
        follower.go_on(&self.volume).map_err(|error| {
            let kind = if error.is_full() { Kind::NoSpace } else { Kind::Failed };
            Failure::new(kind, error)
        })
    }

    /// Whether there is more to vouch for than somebody was told.
    pub fn has_more_to_vouch_for(&self, told: Option<&Receipt>) -> bool {
        self.volume.has_more_to_vouch_for(told)
    }

    /// What this node has, for whomever it follows; with `vouch`, all of it is made durable first.
    pub fn note(&self, vouch: bool) -> Result<Note, Failure> {
        let failed = |error| match error {
            SnapshotError::Volume(error) => error.into(),
            error => snapshots::explain(error),
        };
        let receipt = vouch.then(|| self.volume.receipt().map_err(failed)).transpose()?.flatten();
        Ok(Note { receipt, ..note_of(&self.volume).map_err(Failure::plain)? })
    }

    /// The same with what the state here is called.
    pub fn note_with_root(&self) -> Result<Note, Failure> {
        let head = self.volume.head().map_err(Failure::plain)?;
        let note = self.note(true).or_else(|_| self.note(false))?;
        let root = (note.context == *head.context()).then(|| head.root());
        Ok(Note { root, ..note })
    }

    /// Compares what another member says of its state with the one here.
    pub fn audit(&self, node: NodePublicKey, context: &VersionVector, root: [u8; 32]) -> Result<(), Failure> {
        self.volume.audit(node, context, root).map_err(Failure::plain).map(drop)
    }

    pub fn divergence(&self) -> Option<String> {
        let found = self.volume.divergence()?;
        Some(format!("node {} knows the same and has another state", hex::encode(&found.node.0[..4])))
    }

    /// How far a member is behind. `heard`: what it has said to know.
    pub fn backlog_of(&self, key: NodePublicKey, heard: Option<&VersionVector>) -> Result<Backlog, Failure> {
        self.volume.backlog_of(key, heard).map_err(Failure::plain)
    }

    /// The bytes of files that not all members have vouched for.
    pub fn under_replicated_bytes(&self) -> Result<u64, Failure> {
        self.volume.under_replicated_bytes().map_err(Failure::plain)
    }

    /// Fetches what is pinned, and gives up what the cache has too much of.
    pub fn keep_cache(&self) -> Result<(), Failure> {
        if !self.volume.pinned_paths().map_err(Failure::plain)?.is_empty() {
            self.volume.fetch_pinned(&|_| {}).map_err(snapshots::explain)?;
        }
        if self.volume.settings().glyph_cache_bytes.is_some() {
            self.gc(&mut |_| {})?;
        }
        Ok(())
    }

    pub fn take_receipt(&self, node: NodePublicKey, receipt: Receipt) -> Result<(), Failure> {
        self.volume.take_receipt(node, receipt).map_err(Failure::plain)
    }

    pub fn stream_glyphs(&self) -> Stream {
        self.volume.stream_glyphs()
    }

    pub fn glyphs_to_send(&self, kind: GlyphKind, ids: &[GlyphId]) -> Result<Vec<Option<Bytes>>, Failure> {
        ids.iter().map(|id| self.volume.glyph_to_send(kind, id).map_err(Failure::plain)).collect()
    }

    pub fn take_glyphs(&self, glyphs: Vec<(GlyphId, Bytes)>) -> Result<(), Failure> {
        Ok(glyphs.iter().try_for_each(|(id, bytes)| self.volume.take_glyph(*id, bytes))?)
    }

    /// Says where glyphs are to be, by who the members are. One alone holds everything.
    pub fn place(&self) -> Result<bool, Failure> {
        let members = self.members()?;
        let is_member = members.iter().any(|(key, _)| *key == self.node());
        if !is_member || members.len() < 2 && self.volume.layout().is_none() {
            return Ok(false);
        }
        let before = self.volume.placing();
        let layout = Layout::of_members(&members);
        if self.volume.layout().is_none_or(|known| *known != layout) {
            self.volume.set_layout(Some(layout)).map_err(Failure::plain)?;
        }
        Ok(self.volume.placing() != before)
    }

    /// Whether something that is to be here has still to come.
    pub fn is_awaited(&self) -> bool {
        self.volume.is_awaited()
    }

    /// The glyphs that are to be here and are not, with the bytes of files that they are needed for.
    pub fn look_for_missing(&self) -> Result<Vec<(GlyphId, u64)>, Failure> {
        self.volume.look_for_missing().map_err(Failure::plain)
    }

    /// Where glyphs come from that are not here.
    pub fn set_peers(&self, peers: Option<Arc<dyn PeerGlyphs>>) {
        self.volume.set_peers(peers);
    }

    /// Until the volume is about to be closed.
    fn go_on(&self) -> ControlFlow<()> {
        if self.closing.load(Ordering::Acquire) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// See `Engine::followed`.
pub struct Followed(Arc<Engine>);

impl Drop for Followed {
    fn drop(&mut self) {
        self.0.volume.count_follower(-1);
    }
}
