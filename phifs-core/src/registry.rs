//! What is known about a volume and is no part of its state: named snapshots, branches, settings.
//!
//! It is a small lattice of its own beside the tables, so that taking a snapshot does not change what it names. Each
//! entry is a register in which the latest write wins, by clock and then author; a removed entry stays as an empty
//! value, so that joining two registries never brings it back.

use crate::causal::VersionVector;
use crate::codec::{self, DecodeError, Encode, Reader};
use crate::id::{AuthorId, S8Id};
use crate::identity::NodePublicKey;
use crate::meta::Roots;
use crate::time::{Hlc, Timestamp};

const ENTRY_VERSION: u8 = 1;
const SNAPSHOT_VERSION: u8 = 1;
const BRANCH_VERSION: u8 = 1;

/// The longest name of a snapshot or branch, in bytes.
pub const NAME_BYTES_MAX: usize = 200;

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
}

impl Key {
    pub const SNAPSHOTS: u8 = b's';
    pub const BRANCHES: u8 = b'b';
    pub const SETTINGS: u8 = b'v';
    pub const NODES: u8 = b'n';

    pub fn encode(&self) -> Vec<u8> {
        let (about, which): (u8, &[u8]) = match self {
            Self::Volume => (b'i', &[]),
            Self::Record(id) => (b'8', &id.0),
            Self::Snapshot(name) => (Self::SNAPSHOTS, name.as_bytes()),
            Self::Branch(name) => (Self::BRANCHES, name.as_bytes()),
            Self::Setting(name) => (Self::SETTINGS, name.as_bytes()),
            Self::Node(key) => (Self::NODES, &key.0),
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

    /// The later of two writes of one entry.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        // The value decides between equal stamps, which only a broken author makes.
        self.max(other)
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
        (0..4u64, 0..3u8, proptest::option::of(proptest::collection::vec(any::<u8>(), 0..3)))
            .prop_map(|(hlc, author, value)| Entry { hlc: Hlc(hlc), author: AuthorId([author; 16]), value })
    }

    fn snapshot() -> NamedSnapshot {
        let context = VersionVector::new().with(AuthorId([1; 16]), 7);
        let cut = Cut { roots: Roots::default(), context, hlc: Hlc(5), time: Timestamp::new(3, 4) };
        NamedSnapshot { cut, id: Some(S8Id([9; 32])), scheduled: true, labels: vec!["x".into(), "long one".into()] }
    }

    proptest! {
        #[test]
        fn joins_in_any_order_and_grouping_agree(a in entry(), b in entry(), c in entry()) {
            let join = |x: &Entry, y: &Entry| x.clone().join(y.clone());
            prop_assert_eq!(join(&a, &b), join(&b, &a));
            prop_assert_eq!(join(&join(&a, &b), &c), join(&a, &join(&b, &c)));
            prop_assert_eq!(join(&a, &a), a);
        }

        #[test]
        fn any_bytes_decode_to_their_only_encoding_or_fail(kind in 0..3u8, bytes in proptest::collection::vec(0..4u8, 0..90)) {
            let bytes = [&[1][..], &bytes].concat();
            let again = match kind {
                0 => Entry::decode(&bytes).map(|value| value.encode()),
                1 => NamedSnapshot::decode(&bytes).map(|value| value.encode()),
                _ => Branch::decode(&bytes).map(|value| value.encode()),
            };
            if let Ok(again) = again {
                prop_assert_eq!(again, bytes);
            }
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

    #[test]
    fn values_round_trip() {
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
