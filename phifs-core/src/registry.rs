//! What is known about a volume and is no part of its state: named snapshots, branches, settings, members.
//!
//! It is a small lattice of its own beside the tables, so that taking a snapshot does not change what it names. Each
//! entry is a register in which the latest write wins, by clock and then author; a removed entry stays as an empty
//! value, so that joining two registries never brings it back. Members are registers of another kind: see `Member`.

use core::net::{IpAddr, SocketAddr};

use crate::causal::VersionVector;
use crate::codec::{self, DecodeError, Encode, Reader};
use crate::id::{AuthorId, S8Id};
use crate::identity::NodePublicKey;
use crate::meta::Roots;
use crate::time::{Hlc, Timestamp};

const ENTRY_VERSION: u8 = 1;
const SNAPSHOT_VERSION: u8 = 1;
const BRANCH_VERSION: u8 = 1;
const MEMBER_VERSION: u8 = 1;

/// The longest name of a snapshot, branch or member, in bytes.
pub const NAME_BYTES_MAX: usize = 200;
/// How many addresses a member has at most.
pub const ADDRESSES_MAX: usize = 16;

/// What an entry is about. Names are text without slashes and control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// The id of the volume: 16 bytes.
    Volume,
    /// The sealed record of a snapshot.
    Record(S8Id),
    /// A named snapshot: `NamedSnapshot`.
    Snapshot(String),
    /// `Branch`
    Branch(String),
    /// A setting of the volume: its value as text.
    Setting(String),
    /// A node whose snapshots are believed: nothing.
    Node(NodePublicKey),
    /// A node that has the volume, or had it: `Member`.
    Member(NodePublicKey),
}

impl Key {
    pub const SNAPSHOTS: u8 = b's';
    pub const BRANCHES: u8 = b'b';
    pub const SETTINGS: u8 = b'v';
    pub const NODES: u8 = b'n';
    pub const MEMBERS: u8 = b'm';

    pub fn encode(&self) -> Vec<u8> {
        let (about, which): (u8, &[u8]) = match self {
            Self::Volume => (b'i', &[]),
            Self::Record(id) => (b'8', &id.0),
            Self::Snapshot(name) => (Self::SNAPSHOTS, name.as_bytes()),
            Self::Branch(name) => (Self::BRANCHES, name.as_bytes()),
            Self::Setting(name) => (Self::SETTINGS, name.as_bytes()),
            Self::Node(key) => (Self::NODES, &key.0),
            Self::Member(key) => (Self::MEMBERS, &key.0),
        };
        [&[about], which].concat()
    }
}

/// Checks the name of a snapshot or branch.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("a name is not empty")
    } else if name.len() > NAME_BYTES_MAX {
        Err("a name has at most 200 bytes")
    } else if name.contains('/') {
        Err("a name has no slash")
    } else if name.chars().any(char::is_control) {
        Err("a name has no control characters")
    } else if name.starts_with(['.', '-']) {
        Err("a name does not begin with a dot or a dash")
    } else {
        Ok(())
    }
}

/// One write of an entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub hlc: Hlc,
    pub author: AuthorId,
    /// `None`: removed.
    pub value: Option<Vec<u8>>,
}

impl Entry {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![ENTRY_VERSION];
        out.put_u64(self.hlc.0);
        out.put_bytes(&self.author.0);
        out.put_u8(u8::from(self.value.is_some()));
        out.put_bytes(self.value.as_deref().unwrap_or_default());
        out
    }

    pub fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.format("an entry of the registry", ENTRY_VERSION)?;
        let hlc = Hlc(reader.u64()?);
        let author = AuthorId(reader.array()?);
        let is_there = flag(&mut reader)?;
        let rest = reader.bytes(reader.remaining())?;
        if !is_there && !rest.is_empty() {
            return Err(DecodeError::Trailing(rest.len()));
        }
        Ok(Self { hlc, author, value: is_there.then(|| rest.to_vec()) })
    }

    /// The one of two writes that holds, of the entry with this key.
    #[must_use]
    pub fn join(self, other: Self, key: &[u8]) -> Self {
        if other.overrides(&self, key) { other } else { self }
    }

    /// Whether this write holds rather than the other one, of the entry with this key.
    pub fn overrides(&self, other: &Self, key: &[u8]) -> bool {
        let admission = |entry: &Self| {
            let member = Member::decode(entry.value.as_deref()?).ok()?;
            Some((member.since, member.left))
        };
        let rank = |entry| if key.first() == Some(&Key::MEMBERS) { admission(entry) } else { None };
        // The value decides between equal stamps, which only a broken author makes.
        (rank(self), self) > (rank(other), other)
    }
}

/// A state of a volume that was cut out and can be sealed at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Of the replicated and the derived tables. Of a state whose maps are still to be made there are none: then it is
    /// that of the journal at the place where this was written.
    pub roots: Roots,
    pub context: VersionVector,
    pub hlc: Hlc,
    pub time: Timestamp,
}

impl Cut {
    /// Whether its maps are still to be made. (No state is without rows: there is a root directory.)
    pub fn is_pending(&self) -> bool {
        self.roots == Roots::default()
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        self.roots.encode(out);
        self.context.encode(out);
        out.put_hlc(self.hlc);
        out.put_time(self.time);
    }

    pub fn decode(reader: &mut Reader<'_>) -> codec::Result<Self> {
        Ok(Self {
            roots: Roots::decode(reader)?,
            context: VersionVector::decode(reader)?,
            hlc: reader.hlc()?,
            time: reader.time()?,
        })
    }
}

/// What a name of a snapshot stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedSnapshot {
    pub cut: Cut,
    /// The sealed record; nothing until it is made.
    pub id: Option<S8Id>,
    /// Taken by the schedule.
    pub scheduled: bool,
    pub labels: Vec<String>,
}

impl NamedSnapshot {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![SNAPSHOT_VERSION];
        self.cut.encode(&mut out);
        out.put_u8(u8::from(self.id.is_some()));
        out.put_bytes(self.id.as_ref().map_or(&[], |id| &id.0[..]));
        out.put_u8(u8::from(self.scheduled));
        out.put_varint(self.labels.len() as u64);
        self.labels.iter().for_each(|label| out.put_blob(label.as_bytes()));
        out
    }

    pub fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.format("a named snapshot", SNAPSHOT_VERSION)?;
        let cut = Cut::decode(&mut reader)?;
        let id = if flag(&mut reader)? { Some(S8Id(reader.array()?)) } else { None };
        let scheduled = flag(&mut reader)?;
        let labels = (0..reader.count()?).map(|_| text(&mut reader)).collect::<codec::Result<_>>()?;
        reader.finish()?;
        Ok(Self { cut, id, scheduled, labels })
    }
}

/// A line of changes of its own that began as a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Names its files in the store.
    pub number: u32,
    /// What it began as. Everybody else knows as much.
    pub base: Cut,
    /// The name that the base had.
    pub base_name: String,
}

impl Branch {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![BRANCH_VERSION];
        out.put_varint(u64::from(self.number));
        self.base.encode(&mut out);
        out.put_blob(self.base_name.as_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.format("a branch", BRANCH_VERSION)?;
        let number = reader.varint_u32()?;
        let base = Cut::decode(&mut reader)?;
        let base_name = text(&mut reader)?;
        reader.finish()?;
        Ok(Self { number, base, base_name })
    }
}

/// A node that has the volume and takes part in its changes, or did so once.
///
/// Of what different members say of one, the latest admission holds, and of one admission that it has ended; only then the
/// clock decides. So nothing that is written about an admission undoes its end, be it later, and no end undoes a later
/// admission that it did not know of, be the clock of whoever admits behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What its machine is called.
    pub name: String,
    /// What it is for and where it stands, in the words of whoever invited it. Both may be empty.
    pub role: String,
    pub zone: String,
    /// Where it may be reached.
    pub addresses: Vec<SocketAddr>,
    /// When it became one. No two admissions of a node have the same.
    pub since: Timestamp,
    /// Whether it is none any more.
    pub left: bool,
    /// Whether it is about to be none any more, and nothing is to be placed with it.
    pub leaving: bool,
}

impl Member {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![MEMBER_VERSION];
        [&self.name, &self.role, &self.zone].into_iter().for_each(|text| out.put_blob(text.as_bytes()));
        encode_addresses(&self.addresses, &mut out);
        out.put_time(self.since);
        out.put_u8(u8::from(self.left));
        out.put_u8(u8::from(self.leaving));
        out
    }

    pub fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.format("a member", MEMBER_VERSION)?;
        let (name, role, zone) = (word(&mut reader)?, word(&mut reader)?, word(&mut reader)?);
        let addresses = decode_addresses(&mut reader)?;
        let since = reader.time()?;
        let (left, leaving) = (flag(&mut reader)?, flag(&mut reader)?);
        reader.finish()?;
        Ok(Self { name, role, zone, addresses, since, left, leaving })
    }
}

/// A name, or nothing.
pub(crate) fn word(reader: &mut Reader<'_>) -> codec::Result<String> {
    let word = text(reader)?;
    if word.is_empty() || check_name(&word).is_ok() { Ok(word) } else { Err(DecodeError::NotCanonical("a name")) }
}

pub(crate) fn encode_addresses(addresses: &[SocketAddr], out: &mut impl Encode) {
    out.put_varint(addresses.len() as u64);
    for address in addresses {
        match address.ip() {
            IpAddr::V4(ip) => {
                out.put_u8(4);
                out.put_bytes(&ip.octets());
            }
            IpAddr::V6(ip) => {
                out.put_u8(6);
                out.put_bytes(&ip.octets());
            }
        }
        out.put_bytes(&address.port().to_le_bytes());
    }
}

pub(crate) fn decode_addresses(reader: &mut Reader<'_>) -> codec::Result<Vec<SocketAddr>> {
    let count = reader.count()?;
    if count > ADDRESSES_MAX {
        return Err(DecodeError::NotCanonical("a list of addresses"));
    }
    let address = |_| {
        let ip = match reader.u8()? {
            4 => IpAddr::from(reader.array::<4>()?),
            6 => IpAddr::from(reader.array::<16>()?),
            value => return Err(DecodeError::Unknown { what: "a family of addresses", value: u64::from(value) }),
        };
        Ok(SocketAddr::new(ip, u16::from_le_bytes(reader.array()?)))
    };
    (0..count).map(address).collect()
}

pub(crate) fn flag(reader: &mut Reader<'_>) -> codec::Result<bool> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(DecodeError::Unknown { what: "a flag", value: u64::from(value) }),
    }
}

pub(crate) fn text(reader: &mut Reader<'_>) -> codec::Result<String> {
    String::from_utf8(reader.blob()?.to_vec()).map_err(|_| DecodeError::NotCanonical("a text"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry() -> impl Strategy<Value = Entry> {
        let admission = (0..3i64, any::<bool>());
        let member =
            admission.prop_map(|(secs, left)| Member { since: Timestamp::new(secs, 0), left, ..member() }.encode());
        let value = prop_oneof![member, proptest::collection::vec(any::<u8>(), 0..3)];
        (0..4u64, 0..3u8, proptest::option::of(value)).prop_map(|(hlc, author, value)| Entry {
            hlc: Hlc(hlc),
            author: AuthorId([author; 16]),
            value,
        })
    }

    fn snapshot() -> NamedSnapshot {
        let context = VersionVector::new().with(AuthorId([1; 16]), 7);
        let cut = Cut { roots: Roots::default(), context, hlc: Hlc(5), time: Timestamp::new(3, 4) };
        NamedSnapshot { cut, id: Some(S8Id([9; 32])), scheduled: true, labels: vec!["x".into(), "long one".into()] }
    }

    proptest! {
        #[test]
        fn joins_in_any_order_and_grouping_agree(
            key in prop_oneof![Just(Key::MEMBERS), Just(Key::SETTINGS)],
            a in entry(),
            b in entry(),
            c in entry(),
        ) {
            let join = |x: &Entry, y: &Entry| x.clone().join(y.clone(), &[key]);
            prop_assert_eq!(join(&a, &b), join(&b, &a));
            prop_assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
            prop_assert_eq!(join(&a, &a), a);
        }

    }

    /// Registries are kept for years: how they are written must never change.
    #[test]
    fn version_1_is_what_it_was() {
        let snapshot = snapshot();
        let branch = Branch { number: 3, base: snapshot.cut.clone(), base_name: "before".into() };
        let entry = Entry { hlc: Hlc(5), author: AuthorId([6; 16]), value: Some(snapshot.encode()) };
        let keys = [
            Key::Volume,
            Key::Record(S8Id([7; 32])),
            Key::Snapshot("s".into()),
            Key::Branch("b".into()),
            Key::Setting("x".into()),
            Key::Node(NodePublicKey([8; 32])),
        ];
        let keys: Vec<u8> = keys.iter().flat_map(Key::encode).collect();
        let bytes = [snapshot.encode(), branch.encode(), entry.encode(), keys].concat();
        assert_eq!(
            blake3::hash(&bytes).to_hex().as_str(),
            "69da1090dc714200a7f081d89d42d71bbba2f8b0f6ade5b82ec3db6c0934c0fa"
        );
    }

    fn member() -> Member {
        let addresses = vec!["192.0.2.7:7447".parse().unwrap(), "[2001:db8::7]:1".parse().unwrap()];
        let since = Timestamp::new(3, 4);
        Member {
            name: "a".into(),
            role: "b".into(),
            zone: String::new(),
            addresses,
            since,
            left: false,
            leaving: false,
        }
    }

    #[test]
    fn members_of_version_1_are_what_they_were() {
        let bytes = [Key::Member(NodePublicKey([8; 32])).encode(), member().encode()].concat();
        assert_eq!(
            blake3::hash(&bytes).to_hex().as_str(),
            "358a5bcdf8c430eefce84fe77e64a96a91020ab7ff66a21a3000d1be69396ef4"
        );
    }

    #[test]
    fn members_have_few_addresses_and_names_that_do_not_mislead() {
        let many = Member { addresses: vec!["192.0.2.7:7447".parse().unwrap(); ADDRESSES_MAX + 1], ..member() };
        assert!(Member::decode(&many.encode()).is_err());
        let escape = Member { name: "\x1b[2J".into(), ..member() };
        assert!(Member::decode(&escape.encode()).is_err());
    }

    #[test]
    fn values_round_trip() {
        assert_eq!(Member::decode(&member().encode()), Ok(member()));
        let snapshot = snapshot();
        assert_eq!(NamedSnapshot::decode(&snapshot.encode()), Ok(snapshot.clone()));
        let branch = Branch { number: 3, base: snapshot.cut, base_name: "before".into() };
        assert_eq!(Branch::decode(&branch.encode()), Ok(branch));
    }

    #[test]
    fn names_that_would_mislead_are_refused() {
        for name in ["", "a/b", "a\nb", ".hidden", "..", "-rf", &"x".repeat(201)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        for name in ["a", "2026-11-23T10:00:00Z", "before upgrade", &"x".repeat(200)] {
            assert_eq!(check_name(name), Ok(()));
        }
    }
}
