//! What nodes really say, to begin with: the encodings of a small volume, and of messages about it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use phifs_core::causal::VersionVector;
use phifs_core::disk::MemDisk;
use phifs_core::id::{AuthorId, GlyphId};
use phifs_core::identity::{NodeKey, NodePublicKey};
use phifs_core::namespace::apply::GENESIS_DOT;
use phifs_core::placement::{Layout, Place};
use phifs_core::registry::{Entry, Member};
use phifs_core::snapshot::stream::{Frame, Header, Reader};
use phifs_core::ssep::{Answer, Hello, Join, Moment, Note, Receipt, Refusal, Request, Secret, Token};
use phifs_core::store::{GlyphKind, MemIndex, StoredGlyph};
use phifs_core::time::{Env, Hlc, Timestamp};
use phifs_core::volume::local::{LocalVolume, News, Options, Sink};
use phifs_core::volume::{Caller, Ino, NewKind, NewNode, OpenHow, Volume as _, XattrMode};

/// A clock that goes on with every look.
#[derive(Default)]
struct Clock(AtomicU64);

impl Env for Clock {
    fn now(&self) -> Timestamp {
        Timestamp::new(1_700_000_000 + self.0.fetch_add(1, Ordering::Relaxed) as i64, 0)
    }

    fn random(&self) -> [u8; 32] {
        *blake3::hash(&self.0.fetch_add(1, Ordering::Relaxed).to_le_bytes()).as_bytes()
    }
}

/// The length of a file of many glyphs.
pub const LONG: usize = 1_000_000;

/// The encodings that a volume sends: its groups, and its state as a stream.
pub struct Sent {
    pub groups: Vec<Bytes>,
    pub stream: Vec<u8>,
    pub header: Header,
    pub glyphs: Vec<StoredGlyph>,
}

/// A volume with a few of everything.
pub fn sent() -> Sent {
    let (caller, options) =
        (Caller { uid: 0, gid: 0, pid: 1 }, Options { reserve_bytes: Some(0), ..Options::default() });
    let disk = Arc::new(MemDisk::new());
    let volume =
        LocalVolume::open(disk, Arc::new(MemIndex::default()), Arc::<Clock>::default(), &[7; 32], options, &|_| {});
    let volume = volume.unwrap();
    let node = |kind| NewNode { kind, permissions: 0o644, umask: 0 };
    let dir = volume.make(&caller, Ino::ROOT, b"dir", &node(NewKind::Directory)).unwrap().ino;
    volume.make(&caller, dir, b"link", &node(NewKind::Symlink(b"../few"))).unwrap();
    let how = OpenHow { write: true, ..OpenHow::default() };
    for (name, len) in [(&b"few"[..], 20), (b"some", 20_000), (b"many", LONG)] {
        let (attr, opened) = volume.create(&caller, dir, name, &node(NewKind::File), &how).unwrap();
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(name).finalize_xof().fill(&mut bytes);
        volume.write(&caller, attr.ino, opened.handle, 0, &bytes, false).unwrap();
        volume.setxattr(&caller, attr.ino, b"user.colour", b"green", XattrMode::Set).unwrap();
        volume.release(attr.ino, opened.handle);
    }
    volume.create_snapshot("seed", vec!["label".into()], false).unwrap();
    volume.unlink(dir, b"few").unwrap();
    let Ok(News::Groups(groups)) = volume.news(&VersionVector::new(), &|author| author != GENESIS_DOT.author) else {
        panic!("all is in the log")
    };
    let mut stream = Vec::new();
    volume.export_snapshot("seed", None, Sink::Pipe(&mut stream), &|_| ControlFlow::Continue(())).unwrap();
    let (header, mut reader) = Reader::open(&stream[..]).unwrap();
    let mut glyphs = Vec::new();
    loop {
        match reader.next().unwrap() {
            Frame::Glyph(glyph) => glyphs.push(glyph),
            Frame::Check => {}
            Frame::End => break,
        }
    }
    let groups = groups.iter().map(|group| group.encoded().clone()).collect();
    Sent { groups, stream, header, glyphs }
}

impl Sent {
    /// Plain bytes of all glyphs of this kind, short ones first.
    pub fn plain(&self, kind: GlyphKind) -> Vec<Vec<u8>> {
        let mut plain: Vec<Vec<u8>> = self
            .glyphs
            .iter()
            .filter(|glyph| glyph.kind() == kind)
            .map(|glyph| glyph.plain().unwrap().into())
            .collect();
        plain.sort_by_key(Vec::len);
        plain
    }
}

fn context() -> VersionVector {
    VersionVector::new().with(AuthorId([1; 16]), 7).with(AuthorId([2; 16]), 70_000)
}

pub fn receipt() -> Receipt {
    Receipt::sign(&NodeKey::from_seed(&[1; 32]), &[1; 16], context(), [5; 32])
}

pub fn notes() -> Vec<Note> {
    let plain = Note { context: context(), members_hash: [3; 32], settings_hash: [5; 32], root: None, receipt: None };
    vec![Note { root: Some([6; 32]), receipt: Some(receipt()), ..plain.clone() }, plain]
}

fn hello() -> Hello {
    Hello { major: 1, minor: 0, volume: [1; 16], program: "0.1.0".into(), clock_ms: 1_800_000_000_000 }
}

pub fn requests() -> Vec<Vec<u8>> {
    let addresses = vec!["192.0.2.7:7447".parse().unwrap(), "[2001:db8::7]:7447".parse().unwrap()];
    let mut requests = vec![
        Request::Hello(hello()),
        Request::Join(Join { secret: Secret([2; 16]), name: "b".into(), addresses }),
        Request::Members,
        Request::Catch(context()),
        Request::Glyphs(GlyphKind::Data, vec![GlyphId([8; 32]); 3]),
        Request::Glyphs(GlyphKind::Node, vec![]),
    ];
    requests.extend(notes().into_iter().map(Request::Follow));
    requests.iter().map(Request::encode).collect()
}

pub fn answers(sent: &Sent) -> Vec<Vec<u8>> {
    let entry = Entry { hlc: Hlc(5), author: AuthorId([6; 16]), value: Some(member().encode()) };
    let members =
        vec![(NodePublicKey([7; 32]), entry.clone()), (NodePublicKey([8; 32]), Entry { value: None, ..entry })];
    let setting = Entry { hlc: Hlc(5), author: AuthorId([6; 16]), value: Some(b"2".to_vec()) };
    let glyph = sent.glyphs.iter().min_by_key(|glyph| glyph.bytes().len()).unwrap();
    let answers = [
        Answer::Hello(hello()),
        Answer::Joined(members.clone()),
        Answer::Members(members),
        Answer::Head(sent.header.sealed.encode().into()),
        Answer::Unchanged,
        Answer::Groups(sent.groups.clone()),
        Answer::Refused { why: Refusal::NotMember, text: "no".into() },
        Answer::Behind,
        Answer::Hurry,
        Answer::Glyph(None),
        Answer::Coming(vec![GlyphId([8; 32])]),
        Answer::Glyph(Some(glyph.encode())),
        Answer::Settings(vec![("copies".into(), setting)]),
    ];
    answers.iter().map(Answer::encode).collect()
}

pub fn member() -> Member {
    Member {
        name: "attic".into(),
        role: "store".into(),
        zone: "home".into(),
        addresses: vec!["192.0.2.7:7447".parse().unwrap(), "[2001:db8::7]:7447".parse().unwrap()],
        since: Timestamp::new(1_700_000_000, 5),
        left: false,
        leaving: false,
    }
}

pub fn layout() -> Layout {
    let place = |n: u8| Place { key: NodePublicKey([n; 32]), weight: n.into(), zone: "a".into(), class: String::new() };
    Layout::new(3, (0..4).map(place).collect())
}

pub fn token() -> Token {
    Token {
        volume: [1; 16],
        inviter: NodePublicKey([2; 32]),
        addresses: member().addresses,
        secret: Secret([3; 16]),
        expires_ms: 1_800_000_000_000,
    }
}

pub fn moment() -> Moment {
    Moment { volume: [1; 16], context: context() }
}
