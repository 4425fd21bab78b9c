//! Who has the volume: members in the registry, which all of them know, and invitations, which only the inviter knows.
//!
//! What always holds: an invitation admits one node. That it is used and whom it admitted are one transaction; the same
//! node may ask again, as it may not have heard the answer.

use crate::codec::{self, Encode, Reader};
use crate::identity::NodePublicKey;
use crate::namespace::tables::{Rows as _, malformed};
use crate::namespace::{Table, Tables as _};
use crate::registry::{Entry, Key, Member, flag, word};
use crate::ssep::{MEMBERS_MAX, MemberEntries, Secret};
use crate::time::{AHEAD_MS_MAX, Timestamp};
use crate::volume::{Result, VolumeError};

use super::LocalVolume;
use super::snapshots::SnapshotError;
use super::state::{LocalChange, State, local_key};

const INVITE_VERSION: u8 = 1;
/// For how long it is remembered that an invitation expired, to say so.
const REMEMBERED_MS: u64 = 24 * 3_600_000;

/// What an invitation promises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    pub role: String,
    pub zone: String,
    /// Milliseconds since 1970.
    pub expires_ms: u64,
    /// Whom it admitted.
    pub used_by: Option<NodePublicKey>,
}

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("the invitation is not one of this node")]
    Unknown,
    #[error("the invitation has expired")]
    Expired,
    #[error("the invitation was used by another node")]
    Used,
    #[error("this node was a member by this invitation, and is none any more")]
    Removed,
    #[error("the volume has as many members as it can have")]
    TooMany,
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl From<crate::store::StoreError> for JoinError {
    fn from(error: crate::store::StoreError) -> Self {
        Self::Volume(error.into())
    }
}

impl Invite {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![INVITE_VERSION];
        out.put_blob(self.role.as_bytes());
        out.put_blob(self.zone.as_bytes());
        out.put_varint(self.expires_ms);
        out.put_u8(u8::from(self.used_by.is_some()));
        out.put_bytes(self.used_by.as_ref().map_or(&[], |key| &key.0[..]));
        out
    }

    fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.format("an invitation", INVITE_VERSION)?;
        let (role, zone) = (word(&mut reader)?, word(&mut reader)?);
        let expires_ms = reader.varint()?;
        let used_by = if flag(&mut reader)? { Some(NodePublicKey(reader.array()?)) } else { None };
        reader.finish()?;
        Ok(Self { role, zone, expires_ms, used_by })
    }
}

fn invite_key(hash: &[u8; 32]) -> Vec<u8> {
    local_key(b'i', hash)
}

fn listen_key() -> Vec<u8> {
    local_key(b'n', b"listen")
}

impl LocalVolume {
    /// Names the volume, wherever it is.
    pub fn id(&self) -> std::result::Result<[u8; 16], SnapshotError> {
        self.volume_id(&self.registry.read())
    }

    /// Who this node is.
    pub fn node(&self) -> NodePublicKey {
        self.key.public()
    }

    pub fn member(&self, key: NodePublicKey) -> Result<Option<Member>> {
        Ok(self.present_or_past_member(key)?.filter(|member| !member.left))
    }

    /// What is known of a node that is a member, or was one.
    pub fn present_or_past_member(&self, key: NodePublicKey) -> Result<Option<Member>> {
        known_member(&self.registry.read(), key)
    }

    /// The members, by key. To a node that is none any more there are none: it takes part in nothing, and waits for nobody.
    pub fn members(&self) -> Result<Vec<(NodePublicKey, Member)>> {
        let decode = |(key, entry): (NodePublicKey, Entry)| {
            let member = Member::decode(entry.value.as_deref()?).map_err(|e| malformed("member", &key.0, e));
            Some(member.map(|member| (key, member)))
        };
        let all: Vec<_> =
            self.member_entries()?.into_iter().filter_map(decode).collect::<std::result::Result<_, _>>()?;
        let own = self.node();
        let takes_part = !all.iter().any(|(key, member)| *key == own && member.left);
        Ok(all.into_iter().filter(|(_, member)| takes_part && !member.left).collect())
    }

    /// All that is known of who is a member and who is none any more.
    pub fn member_entries(&self) -> Result<MemberEntries> {
        let mut entries = Vec::new();
        for (rest, bytes) in self.registry.read().with_prefix(Table::Registry, &[Key::MEMBERS])? {
            let key = rest[..].try_into().map_err(|_| malformed("member", &rest, codec::DecodeError::Truncated))?;
            entries.push((NodePublicKey(key), Entry::decode(&bytes).map_err(|e| malformed("member", &rest, e))?));
        }
        Ok(entries)
    }

    /// Says what holds of a member now; it does not make one of a node that was removed.
    pub fn put_member(&self, key: NodePublicKey, member: &Member) -> Result<()> {
        let mut state = self.state.write();
        let known = known_member(&state, key)?;
        if known.as_ref() == Some(member) || known.is_some_and(|known| known.left && known.since >= member.since) {
            return Ok(());
        }
        let mut draft = state.draft(self.env.now());
        draft.registry = written(key, member);
        state.commit(draft, &self.journal)?;
        drop(state);
        self.commit_journal()
    }

    /// From now on a node is no member any more. Says whether it was one.
    pub fn remove_member(&self, key: NodePublicKey) -> Result<bool> {
        let mut state = self.state.write();
        let Some(member) = known_member(&state, key)?.filter(|member| !member.left) else { return Ok(false) };
        let mut draft = state.draft(self.env.now());
        draft.registry = written(key, &Member { left: true, ..member });
        state.commit(draft, &self.journal)?;
        drop(state);
        self.commit_journal()?;
        Ok(true)
    }

    /// Learns what others know of the members. What they wrote in the future is left until it is the present. Says whether
    /// there was any news.
    pub fn take_member_entries(&self, entries: MemberEntries) -> Result<bool> {
        let horizon = self.env.now().millis() + AHEAD_MS_MAX;
        let mut state = self.state.write();
        let mut news = Vec::new();
        for (node, entry) in entries {
            if entry.value.as_deref().is_none_or(|value| Member::decode(value).is_err()) {
                continue;
            }
            let key = Key::Member(node);
            let known = state.written_entry(&key)?;
            let key = key.encode();
            if entry.hlc.millis() <= horizon && known.is_none_or(|known| entry.overrides(&known, &key)) {
                news.push((Key::Node(node).encode(), Entry { value: Some(Vec::new()), ..entry.clone() }));
                news.push((key, entry));
            }
        }
        if news.is_empty() {
            return Ok(false);
        }
        state.commit_entries(news, &self.journal)?;
        drop(state);
        self.commit_journal()?;
        Ok(true)
    }

    /// Remembers an invitation by its secret; forgets those of long ago.
    pub fn invite(&self, secret: &Secret, invite: &Invite) -> Result<()> {
        let now = self.env.now();
        {
            let mut state = self.state.write();
            let old = invites(&state)?
                .into_iter()
                .filter(|(_, old)| old.expires_ms.saturating_add(REMEMBERED_MS) < now.millis());
            let mut changes: Vec<LocalChange> = old.map(|(hash, _)| (invite_key(&hash), None)).collect();
            changes.push((invite_key(&secret.hash()), Some(invite.encode())));
            state.commit_local(changes, now, &self.journal)?;
        }
        self.commit_journal()
    }

    /// Whether somebody who is no member may have something to say. One who comes too late is to hear why it is not let
    /// in, as long as that is remembered.
    pub fn has_invited(&self) -> Result<bool> {
        let now = self.env.now().millis();
        let invites = invites(&self.state.read())?;
        Ok(invites.iter().any(|(_, invite)| now < invite.expires_ms.saturating_add(REMEMBERED_MS)))
    }

    /// Admits a node that knows a secret, durably.
    pub fn admit(
        &self,
        key: NodePublicKey,
        secret: &Secret,
        member: impl FnOnce(&Invite, Timestamp) -> Member,
    ) -> std::result::Result<(), JoinError> {
        {
            let now = self.env.now();
            let mut state = self.state.write();
            let row = invite_key(&secret.hash());
            let bytes = state.get(Table::Local, &row)?.ok_or(JoinError::Unknown)?;
            let invite = Invite::decode(&bytes).map_err(|e| malformed("invitation", &row, e))?;
            let known = known_member(&state, key)?;
            let since = match (invite.used_by, &known) {
                (Some(by), _) if by != key => return Err(JoinError::Used),
                (Some(_), Some(known)) if known.left => return Err(JoinError::Removed),
                (Some(_), Some(known)) => known.since,
                (None, _) if now.millis() >= invite.expires_ms => return Err(JoinError::Expired),
                (_, Some(known)) => now.max(just_after(known.since)),
                (_, None) => now,
            };
            let members = state.entries(Key::MEMBERS)?.len();
            if members >= MEMBERS_MAX && known.is_none() {
                return Err(JoinError::TooMany);
            }
            let mut draft = state.draft(now);
            draft.registry = written(key, &member(&invite, since));
            draft.local = vec![(row, Some(Invite { used_by: Some(key), ..invite }.encode()))];
            state.commit(draft, &self.journal)?;
        }
        Ok(self.commit_journal()?)
    }

    /// Where this node listens, as it was told once.
    pub fn listens_at(&self) -> Result<Option<String>> {
        let value = self.state.read().get(Table::Local, &listen_key())?;
        Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    /// `None`: nowhere any more.
    pub fn listen_at(&self, address: Option<&str>) -> Result<()> {
        if self.listens_at()?.as_deref() == address {
            return Ok(());
        }
        let change = (listen_key(), address.map(|address| address.as_bytes().to_vec()));
        self.state.write().commit_local(vec![change], self.env.now(), &self.journal)?;
        self.commit_journal()
    }
}

fn known_member(state: &State, key: NodePublicKey) -> Result<Option<Member>> {
    let Some(value) = state.entry(&Key::Member(key))? else { return Ok(None) };
    Ok(Some(Member::decode(&value).map_err(|e| malformed("member", &key.0, e))?))
}

/// What a member has signed is believed also when it is none any more: it is part of what all have.
fn written(key: NodePublicKey, member: &Member) -> Vec<(Key, Option<Vec<u8>>)> {
    vec![(Key::Member(key), Some(member.encode())), (Key::Node(key), Some(Vec::new()))]
}

fn just_after(time: Timestamp) -> Timestamp {
    match time.nanos {
        999_999_999 => Timestamp::new(time.secs.saturating_add(1), 0),
        nanos => Timestamp::new(time.secs, nanos + 1),
    }
}

fn invites(state: &State) -> Result<Vec<([u8; 32], Invite)>> {
    let mut invites = Vec::new();
    for (rest, bytes) in state.with_prefix(Table::Local, b"i")? {
        let hash = rest[..].try_into().map_err(|_| malformed("invitation", &rest, codec::DecodeError::Truncated))?;
        invites.push((hash, Invite::decode(&bytes).map_err(|e| malformed("invitation", &rest, e))?));
    }
    Ok(invites)
}
