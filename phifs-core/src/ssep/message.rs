//! Requests and answers, and their bytes.

use bytes::Bytes;

use crate::causal::VersionVector;
use crate::codec::{self, DecodeError, Encode, Reader};
use crate::id::GlyphId;
use crate::identity::NodePublicKey;
use crate::oplog::GROUP_BYTES_MAX;
use crate::registry::{ADDRESSES_MAX, Entry, NAME_BYTES_MAX, decode_addresses, encode_addresses, flag, word};
use crate::store::GlyphKind;

use super::{Receipt, Secret};

/// The longest request.
pub const REQUEST_BYTES_MAX: usize = 256 << 10;
/// The longest frame of an answer.
pub const FRAME_BYTES_MAX: usize = 4 << 20;
/// How many members a volume has at most, those that left included.
pub const MEMBERS_MAX: usize = 1024;
/// How many settings there are at most, those of newer programs included.
const SETTINGS_MAX: usize = 256;
/// How many glyphs somebody asks for at once.
pub const GLYPHS_MAX: usize = 4096;
/// The groups of one answer, before they are compressed. A single one may be longer than what is sent together.
const GROUPS_BYTES_MAX: usize = GROUP_BYTES_MAX + (1 << 20);
/// How hard groups are compressed.
const PACK_LEVEL: i32 = 1;
/// What a refusal says is cut here.
const TEXT_BYTES_MAX: usize = 1024;
/// The longest entry of a member: three names, the addresses, and what is said of the writing.
const MEMBER_BYTES_MAX: usize = 3 * (NAME_BYTES_MAX + 2) + ADDRESSES_MAX * 19 + 128;

const _: () = assert!(MEMBERS_MAX * MEMBER_BYTES_MAX + 16 <= FRAME_BYTES_MAX);

/// Members, and nodes that were members, as they were written last.
pub type MemberEntries = Vec<(NodePublicKey, Entry)>;

/// Settings of the volume by name, as they were written last.
pub type SettingEntries = Vec<(String, Entry)>;

/// How a conversation begins, on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub major: u16,
    pub minor: u16,
    pub volume: [u8; 16],
    /// The version of its program, for people.
    pub program: String,
    /// What its clock says, in milliseconds since 1970.
    pub clock_ms: u64,
}

/// The wish to become a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    pub secret: Secret,
    /// What the machine is called.
    pub name: String,
    /// Where it will be reached.
    pub addresses: Vec<core::net::SocketAddr>,
}

/// What somebody has who follows: the first says where to begin, later ones how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// All that it knows.
    pub context: VersionVector,
    /// What it knows of the members: see `hash_of`.
    pub members_hash: [u8; 32],
    /// What it knows of the settings: see `hash_of_settings`.
    pub settings_hash: [u8; 32],
    /// What its state with this context is called, now and then: who has the same context has the same state.
    pub root: Option<[u8; 32]>,
    pub receipt: Option<Receipt>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Hello(Hello),
    Join(Join),
    Members,
    /// The asker knows this, and wants the head of the one who is asked, and the nodes below it after that.
    Catch(VersionVector),
    /// The asker goes on sending notes.
    Follow(Note),
    Glyphs(GlyphKind, Vec<GlyphId>),
}

/// Why a request is not answered, for the asker to act on. The text beside it is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is not known in this version.
    Unknown,
    /// It makes no sense.
    Malformed,
    /// The asker is no member.
    NotMember,
    /// The secret is of no invitation, or of one that is expired or used.
    BadInvitation,
    /// Another volume, or another version.
    Mismatch,
    /// It failed here.
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Hello(Hello),
    Joined(MemberEntries),
    Members(MemberEntries),
    Settings(SettingEntries),
    /// The signed record of a state. What it names is there to be asked for, until the next time.
    Head(Bytes),
    /// The asker knows all of it.
    Unchanged,
    /// Groups of operations, each after what its author knew.
    Groups(Vec<Bytes>),
    /// What the asker lacks is not there as groups any more: it has to ask for the state.
    Behind,
    /// Glyphs of a version that is still to come: who is to hold them may fetch them by now.
    Coming(Vec<GlyphId>),
    /// Somebody waits until what was sent is durable with the one who follows.
    Hurry,
    /// One of the glyphs that were asked for, in that order, as it is stored; nothing if it is not there.
    Glyph(Option<Bytes>),
    Refused {
        why: Refusal,
        text: String,
    },
}

impl Refusal {
    const ALL: [Self; 6] =
        [Self::Unknown, Self::Malformed, Self::NotMember, Self::BadInvitation, Self::Mismatch, Self::Failed];

    fn tag(self) -> u8 {
        Self::ALL.iter().position(|why| *why == self).expect("all are listed") as u8
    }

    /// One that a newer peer gives is a failure.
    fn from_tag(tag: u8) -> Self {
        Self::ALL.get(usize::from(tag)).copied().unwrap_or(Self::Failed)
    }
}

impl Hello {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_bytes(&self.major.to_le_bytes());
        out.put_bytes(&self.minor.to_le_bytes());
        out.put_bytes(&self.volume);
        out.put_blob(self.program.as_bytes());
        out.put_varint(self.clock_ms);
    }

    fn decode(reader: &mut Reader<'_>) -> codec::Result<Self> {
        let (major, minor) = (u16::from_le_bytes(reader.array()?), u16::from_le_bytes(reader.array()?));
        Ok(Self { major, minor, volume: reader.array()?, program: word(reader)?, clock_ms: reader.varint()? })
    }
}

impl Request {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Hello(hello) => {
                out.put_u8(1);
                hello.encode(&mut out);
            }
            Self::Join(Join { secret, name, addresses }) => {
                out.put_u8(2);
                out.put_bytes(&secret.0);
                out.put_blob(name.as_bytes());
                encode_addresses(addresses, &mut out);
            }
            Self::Members => out.put_u8(3),
            Self::Catch(context) => {
                out.put_u8(4);
                context.encode(&mut out);
            }
            Self::Follow(note) => {
                out.put_u8(5);
                out.put_bytes(&note.encode());
            }
            Self::Glyphs(kind, ids) => {
                out.put_u8(6);
                out.put_u8(kind.tag());
                encode_glyphs(ids, &mut out);
            }
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        let request = match reader.u8()? {
            1 => Self::Hello(Hello::decode(&mut reader)?),
            2 => {
                let secret = Secret(reader.array()?);
                Self::Join(Join { secret, name: word(&mut reader)?, addresses: decode_addresses(&mut reader)? })
            }
            3 => Self::Members,
            4 => Self::Catch(VersionVector::decode(&mut reader)?),
            5 => Self::Follow(Note::read(&mut reader)?),
            6 => {
                let kind = reader.u8()?;
                let kind = GlyphKind::from_tag(kind).ok_or(unknown("the kind of a glyph", kind))?;
                Self::Glyphs(kind, decode_glyphs(&mut reader)?)
            }
            value => return Err(unknown("a request", value)),
        };
        reader.finish()?;
        Ok(request)
    }
}

impl Answer {
    pub fn encode(&self) -> Vec<u8> {
        let (mut out, glyph) = self.parts();
        out.put_bytes(&glyph);
        out
    }

    /// What `encode` makes of it, in two parts that follow each other: so nobody has to copy a glyph.
    pub fn parts(&self) -> (Vec<u8>, Bytes) {
        let (mut out, mut rest) = (Vec::new(), Bytes::new());
        match self {
            Self::Hello(hello) => {
                out.put_u8(1);
                hello.encode(&mut out);
            }
            Self::Joined(members) => {
                out.put_u8(2);
                encode_members(members, &mut out);
            }
            Self::Members(members) => {
                out.put_u8(3);
                encode_members(members, &mut out);
            }
            Self::Head(sealed) => {
                out.put_u8(4);
                out.put_blob(sealed);
            }
            Self::Unchanged => out.put_u8(5),
            Self::Groups(groups) => {
                out.put_u8(6);
                out.put_bytes(&pack(groups));
            }
            Self::Refused { why, text } => {
                out.put_u8(7);
                out.put_u8(why.tag());
                out.put_blob(&text.as_bytes()[..text.len().min(TEXT_BYTES_MAX)]);
            }
            Self::Behind => out.put_u8(8),
            Self::Hurry => out.put_u8(9),
            Self::Glyph(glyph) => {
                out.put_u8(10);
                rest = glyph.clone().unwrap_or_default();
            }
            Self::Settings(settings) => {
                out.put_u8(11);
                encode_settings(settings, &mut out);
            }
            Self::Coming(ids) => {
                out.put_u8(12);
                encode_glyphs(ids, &mut out);
            }
        }
        (out, rest)
    }

    pub fn decode(bytes: &Bytes) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        let answer = match reader.u8()? {
            1 => Self::Hello(Hello::decode(&mut reader)?),
            2 => Self::Joined(decode_members(&mut reader)?),
            3 => Self::Members(decode_members(&mut reader)?),
            4 => Self::Head(Bytes::copy_from_slice(reader.blob()?)),
            5 => Self::Unchanged,
            6 => Self::Groups(unpack(reader.bytes(reader.remaining())?)?),
            7 => {
                let why = Refusal::from_tag(reader.u8()?);
                let text = String::from_utf8_lossy(reader.blob()?);
                // It is shown to people, on terminals.
                Self::Refused { why, text: text.chars().filter(|c| !c.is_control()).take(TEXT_BYTES_MAX).collect() }
            }
            8 => Self::Behind,
            9 => Self::Hurry,
            10 => {
                let glyph = bytes.slice(bytes.len() - reader.remaining()..);
                reader.bytes(reader.remaining())?;
                // A stored glyph is never empty.
                Self::Glyph((!glyph.is_empty()).then_some(glyph))
            }
            11 => {
                let count = bounded(reader.count()?, SETTINGS_MAX, "a list of settings")?;
                let entry = |_| Ok((word(&mut reader)?, Entry::decode(reader.blob()?)?));
                Self::Settings((0..count).map(entry).collect::<codec::Result<_>>()?)
            }
            12 => Self::Coming(decode_glyphs(&mut reader)?),
            value => return Err(unknown("an answer", value)),
        };
        reader.finish()?;
        Ok(answer)
    }
}

impl Note {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.context.encode(&mut out);
        out.put_bytes(&self.members_hash);
        out.put_bytes(&self.settings_hash);
        out.put_u8(u8::from(self.root.is_some()));
        out.put_bytes(self.root.as_ref().map_or(&[], |root| &root[..]));
        out.put_u8(u8::from(self.receipt.is_some()));
        if let Some(receipt) = &self.receipt {
            receipt.encode(&mut out);
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        let note = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(note)
    }

    fn read(reader: &mut Reader<'_>) -> codec::Result<Self> {
        let context = VersionVector::decode(reader)?;
        let (members_hash, settings_hash) = (reader.array()?, reader.array()?);
        let root = if flag(reader)? { Some(reader.array()?) } else { None };
        let receipt = if flag(reader)? { Some(Receipt::decode(reader)?) } else { None };
        Ok(Self { context, members_hash, settings_hash, root, receipt })
    }
}

/// Together they compress much better: they say the same again and again.
fn pack(groups: &[Bytes]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(16 + groups.iter().map(|group| group.len() + 4).sum::<usize>());
    plain.put_varint(groups.len() as u64);
    groups.iter().for_each(|group| plain.put_blob(group));
    let packed = zstd::bulk::compress(&plain, PACK_LEVEL).expect("memory can be compressed");
    [&(plain.len() as u32).to_le_bytes()[..], &packed].concat()
}

fn unpack(packed: &[u8]) -> codec::Result<Vec<Bytes>> {
    let damaged = || DecodeError::NotCanonical("packed groups");
    let (len, packed) = packed.split_first_chunk().ok_or(DecodeError::Truncated)?;
    let len = bounded(u32::from_le_bytes(*len) as usize, GROUPS_BYTES_MAX, "packed groups")?;
    let plain = Bytes::from(zstd::bulk::decompress(packed, len).map_err(|_| damaged())?);
    let mut reader = Reader::new(&plain);
    let groups = (0..reader.count()?).map(|_| Ok(plain.slice_ref(reader.blob()?))).collect::<codec::Result<_>>()?;
    reader.finish()?;
    Ok(groups)
}

fn encode_members(members: &MemberEntries, out: &mut Vec<u8>) {
    out.put_varint(members.len() as u64);
    for (key, entry) in members {
        out.put_bytes(&key.0);
        out.put_blob(&entry.encode());
    }
}

fn decode_members(reader: &mut Reader<'_>) -> codec::Result<MemberEntries> {
    let count = bounded(reader.count()?, MEMBERS_MAX, "a list of members")?;
    (0..count).map(|_| Ok((NodePublicKey(reader.array()?), Entry::decode(reader.blob()?)?))).collect()
}

fn encode_glyphs(ids: &[GlyphId], out: &mut Vec<u8>) {
    out.put_varint(ids.len() as u64);
    ids.iter().for_each(|id| out.put_bytes(&id.0));
}

fn decode_glyphs(reader: &mut Reader<'_>) -> codec::Result<Vec<GlyphId>> {
    let count = bounded(reader.count()?, GLYPHS_MAX, "a list of glyphs")?;
    (0..count).map(|_| Ok(GlyphId(reader.array()?))).collect()
}

fn bounded(count: usize, max: usize, what: &'static str) -> codec::Result<usize> {
    if count <= max { Ok(count) } else { Err(DecodeError::NotCanonical(what)) }
}

fn unknown(what: &'static str, value: u8) -> DecodeError {
    DecodeError::Unknown { what, value: u64::from(value) }
}

/// One word for all that is known of the members: who has the same knows the same.
pub fn hash_of(members: &MemberEntries) -> [u8; 32] {
    let mut bytes = Vec::new();
    encode_members(members, &mut bytes);
    *blake3::hash(&bytes).as_bytes()
}

fn encode_settings(settings: &SettingEntries, out: &mut Vec<u8>) {
    out.put_varint(settings.len() as u64);
    for (name, entry) in settings {
        out.put_blob(name.as_bytes());
        out.put_blob(&entry.encode());
    }
}

/// The same for the settings.
pub fn hash_of_settings(settings: &SettingEntries) -> [u8; 32] {
    let mut bytes = Vec::new();
    encode_settings(settings, &mut bytes);
    *blake3::hash(&bytes).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::AuthorId;
    use crate::time::Hlc;

    fn hello() -> Hello {
        Hello { major: 1, minor: 0, volume: [1; 16], program: "0.1.0".into(), clock_ms: 1_800_000_000_000 }
    }

    fn requests() -> Vec<Request> {
        let context = VersionVector::new().with(AuthorId([1; 16]), 7);
        vec![
            Request::Hello(hello()),
            Request::Join(Join {
                secret: Secret([2; 16]),
                name: "b".into(),
                addresses: vec!["192.0.2.7:7447".parse().unwrap()],
            }),
            Request::Members,
            Request::Catch(context.clone()),
            Request::Follow(Note {
                context: context.clone(),
                members_hash: [3; 32],
                settings_hash: [5; 32],
                root: None,
                receipt: None,
            }),
            Request::Glyphs(GlyphKind::Data, vec![GlyphId([8; 32])]),
            Request::Glyphs(GlyphKind::Node, vec![]),
        ]
    }

    fn answers() -> Vec<Answer> {
        let entry = Entry { hlc: Hlc(5), author: AuthorId([6; 16]), value: Some(vec![1, 2]) };
        let setting = Entry { value: Some(b"2".to_vec()), ..entry.clone() };
        let members = vec![(NodePublicKey([7; 32]), entry)];
        vec![
            Answer::Hello(hello()),
            Answer::Joined(members.clone()),
            Answer::Members(members),
            Answer::Head(Bytes::from_static(b"a record")),
            Answer::Unchanged,
            Answer::Groups(vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")]),
            Answer::Refused { why: Refusal::NotMember, text: "no".into() },
            Answer::Behind,
            Answer::Hurry,
            Answer::Glyph(None),
            Answer::Coming(vec![GlyphId([8; 32]), GlyphId([9; 32])]),
            Answer::Settings(vec![("copies".into(), setting)]),
        ]
    }

    #[test]
    fn messages_round_trip_and_every_cut_of_them_is_refused() {
        for request in requests() {
            let bytes = request.encode();
            assert_eq!(Request::decode(&bytes), Ok(request.clone()));
            (0..bytes.len()).for_each(|len| assert!(Request::decode(&bytes[..len]).is_err(), "{request:?} at {len}"));
        }
        for answer in answers() {
            let bytes = answer.encode();
            let bytes = Bytes::from(bytes);
            assert_eq!(Answer::decode(&bytes), Ok(answer.clone()));
            (0..bytes.len())
                .for_each(|len| assert!(Answer::decode(&bytes.slice(..len)).is_err(), "{answer:?} at {len}"));
        }
    }

    #[test]
    fn version_1_is_what_it_was() {
        let requests = requests().iter().flat_map(Request::encode).collect::<Vec<u8>>();
        let answers = answers().iter().flat_map(Answer::encode).collect::<Vec<u8>>();
        let bytes = [requests, answers].concat();
        assert_eq!(
            blake3::hash(&bytes).to_hex().as_str(),
            "6fd0416f698a3ed400f3424ee48bf117eae36e8736da675ce0e6aa65678015a6"
        );
    }

    #[test]
    fn what_a_newer_peer_says_is_told_from_what_makes_no_sense() {
        assert_eq!(Request::decode(&[200, 1, 2]), Err(unknown("a request", 200)));
        assert_eq!(Answer::decode(&Bytes::from_static(&[200, 1, 2])), Err(unknown("an answer", 200)));
        assert_eq!(
            Answer::decode(&Bytes::from_static(&[7, 99, 0])),
            Ok(Answer::Refused { why: Refusal::Failed, text: String::new() })
        );
    }

    #[test]
    fn counts_that_nothing_stands_behind_are_refused_before_anything_is_reserved() {
        for tag in [2, 3] {
            let huge = [&[tag][..], &[0xff, 0xff, 0xff, 0xff, 0x0f]].concat();
            assert_eq!(Answer::decode(&huge.into()), Err(DecodeError::Truncated));
        }
        let mut many = vec![6, GlyphKind::Node.tag()];
        many.put_varint(GLYPHS_MAX as u64 + 1);
        many.resize(many.len() + (GLYPHS_MAX + 2) * 32, 1);
        assert_eq!(Request::decode(&many), Err(DecodeError::NotCanonical("a list of glyphs")));
    }

    #[test]
    fn a_refusal_cannot_write_on_a_terminal() {
        let answer = Answer::Refused { why: Refusal::Failed, text: "\x1b[2Jgone".into() };
        let read = Answer::decode(&answer.encode().into()).unwrap();
        assert_eq!(read, Answer::Refused { why: Refusal::Failed, text: "[2Jgone".into() });
    }
}
