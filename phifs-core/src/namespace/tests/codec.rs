//! Canonical bytes: what is written is read back, what is read has no second form, and nonsense is refused.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::super::derive::{Child, Children, DirRow};
use super::super::op::{Effect, Field, InodeEffect, LinkEffect, MoveId, Op, PlaceEffect};
use super::super::position::Move;
use super::super::privilege::{Grant, SEEN_MAX, SET_ID_BITS};
use super::super::register::{Entry, Register};
use super::super::row::{
    Birth, Closure, Evidence, InodeRow, LinkRow, Mode, Owner, Place, Stamp, Version, decode_xattr, encode_xattr,
};
use super::super::row::{get_grant, put_grant};
use super::super::version::{LAG_MAX, Validity, get_version};
use crate::codec::{DecodeError, Reader};
use crate::content::Content;
use crate::content::validate::Form;
use crate::id::{AuthorId, DirId, Dot, GlyphId, InodeId, LinkId};
use crate::time::{Hlc, Timestamp};
use crate::volume::FileKind;

/// Few authors, so that they meet, and numbers at all the edges.
fn dot() -> impl Strategy<Value = Dot> {
    let number = prop_oneof![0..6u64, any::<u64>(), Just(u64::MAX)];
    (0..4u8, number).prop_map(|(author, n)| Dot { author: AuthorId([author; 16]), n })
}

fn hlc() -> impl Strategy<Value = Hlc> {
    prop_oneof![0..9u64, any::<u64>(), Just(u64::MAX)].prop_map(Hlc)
}

fn time() -> impl Strategy<Value = Timestamp> {
    (any::<i64>(), 0..1_000_000_000u32).prop_map(|(secs, nanos)| Timestamp { secs, nanos })
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    vec(b'a'..=b'\xff', 1..12)
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..12)
}

fn link_kind() -> impl Strategy<Value = FileKind> {
    use FileKind::{BlockDevice, CharDevice, Fifo, File, Socket, Symlink};
    prop::sample::select(vec![File, Symlink, Fifo, Socket, CharDevice, BlockDevice])
}

fn kind() -> impl Strategy<Value = FileKind> {
    prop_oneof![link_kind(), Just(FileKind::Directory)]
}

fn birth() -> impl Strategy<Value = Birth> {
    (kind(), any::<u32>(), time(), bytes(), any::<bool>()).prop_map(|(kind, rdev, time, target, exclusive)| Birth {
        kind,
        rdev,
        time,
        target,
        exclusive,
    })
}

fn mode() -> impl Strategy<Value = Grant> {
    (0..=0o7777u16, bytes(), vec(dot(), 0..4)).prop_map(|(permissions, acl, mut seen)| {
        seen.sort_unstable();
        seen.dedup();
        let seen = if permissions & SET_ID_BITS == 0 { Vec::new() } else { seen };
        Grant { mode: Mode { permissions, acl }, seen }
    })
}

fn owner() -> impl Strategy<Value = Owner> {
    any::<(u32, u32)>().prop_map(|(uid, gid)| Owner { uid, gid })
}

fn version() -> impl Strategy<Value = Version> {
    let content = prop_oneof![
        Just(Content::Empty),
        (1..=4096u64).prop_map(|len_bytes| Content::Inline { len_bytes, hash: GlyphId([3; 32]) }),
        (1..=65536u64).prop_map(|len_bytes| Content::Single { len_bytes, glyph: GlyphId([4; 32]) }),
    ];
    use Closure::{Close, CrashRecovered, IdleFlush, SyncAndClose};
    let closure = prop::sample::select(vec![CrashRecovered, IdleFlush, Close, SyncAndClose]);
    (content, time(), closure, evidence(), vec(dot(), 0..3))
        .prop_map(|(content, mtime, closure, evidence, bases)| Version { content, mtime, closure, evidence, bases })
}

fn evidence() -> impl Strategy<Value = Evidence> {
    use Form::{Json, Opaque, Png, Sqlite, Text, Zip};
    use Validity::{Fails, Passes};
    let form = prop::sample::select(vec![Opaque, Text, Json, Zip, Sqlite, Png]);
    let validity = prop::sample::select(vec![Fails, Validity::Opaque, Passes]);
    let sessions = prop_oneof![Just(1), 1..20u32, 1..=u32::MAX, Just(u32::MAX)];
    let drawn = (form, validity, any::<bool>(), sessions, prop_oneof![Just(0), 0..=LAG_MAX]);
    let drawn =
        drawn.prop_filter("what is opaque never passes", |(form, validity, ..)| *form != Opaque || *validity != Passes);
    drawn.prop_map(|(form, validity, collapsed, sessions, lag)| Evidence { form, validity, collapsed, sessions, lag })
}

fn stamp() -> impl Strategy<Value = Stamp> {
    (hlc(), dot()).prop_map(|(hlc, dot)| Stamp { hlc, author: dot.author })
}

fn register<V: Clone + std::fmt::Debug>(value: impl Strategy<Value = V>) -> impl Strategy<Value = Register<V>> {
    vec((dot(), hlc(), value), 0..4).prop_map(|entries| {
        let mut register = Register::default();
        for (dot, hlc, value) in entries {
            register.insert(Entry { dot, hlc, value });
        }
        register
    })
}

fn inode_row() -> impl Strategy<Value = InodeRow> {
    let owned = (register(birth()), register(Just(())), register(mode()), register(owner()));
    (owned, register(time()), register(time()), register(version())).prop_map(|(owned, mtime, touched, versions)| {
        let (birth, alive, mode, owner) = owned;
        InodeRow { birth, alive, mode, owner, mtime, touched, versions }
    })
}

fn link_row(key: Dot) -> impl Strategy<Value = LinkRow> {
    let inode = prop_oneof![Just(key), dot()];
    let place = (inode, link_kind(), option::of(stamp()), dot(), name());
    register(place).prop_map(|drawn| {
        let mut places = Register::default();
        for entry in drawn.entries() {
            let (inode, kind, since, parent, name) = entry.value.clone();
            let own = Stamp { hlc: entry.hlc, author: entry.dot.author };
            let (inode, since, parent) = (InodeId(inode), since.unwrap_or(own), DirId(parent));
            let value = Place { inode, kind, since, parent, name };
            places.insert(Entry { dot: entry.dot, hlc: entry.hlc, value });
        }
        LinkRow { places }
    })
}

fn move_id() -> impl Strategy<Value = MoveId> {
    (hlc(), dot()).prop_map(|(hlc, dot)| MoveId { hlc, dot })
}

fn placed_dir() -> impl Strategy<Value = DirId> {
    dot().prop_filter("the root never moves", |dot| *dot != DirId::ROOT.0).prop_map(DirId)
}

fn effect() -> impl Strategy<Value = Effect> {
    use Field::{Alive, Birth, Mode, Mtime, Owner, Touched};
    let field = prop::sample::select(vec![Birth, Alive, Mode, Owner, Mtime, Touched, Field::Version]);
    let set = (option::of(birth()), any::<bool>(), option::of(mode()), option::of(owner()));
    let rest = (option::of(time()), option::of(time()), option::of((version(), option::of(bytes()))));
    let inode = (dot(), set, rest, vec((field, dot()), 0..3)).prop_map(|(id, set, rest, drops)| {
        let ((birth, alive, mode, owner), (mtime, touched, version)) = (set, rest);
        Effect::Inode(InodeEffect { inode: InodeId(id), birth, alive, mode, owner, mtime, touched, version, drops })
    });
    let place = (option::of(stamp()), dot(), name()).prop_map(|(since, parent, name)| {
        let parent = DirId(parent);
        PlaceEffect { since, parent, name }
    });
    let link = (dot(), dot(), link_kind(), option::of(place), vec(dot(), 0..3));
    let link = link.prop_map(|(link, inode, kind, place, drops)| {
        Effect::Link(LinkEffect { link: LinkId(link), inode: InodeId(inode), kind, place, drops })
    });
    let moved = (placed_dir(), dot(), name(), vec(move_id(), 0..3));
    let moved = moved.prop_map(|(dir, parent, name, folds)| Effect::Move { dir, parent: DirId(parent), name, folds });
    let xattr = (dot(), name(), option::of(bytes()), vec(dot(), 0..3));
    let xattr =
        xattr.prop_map(|(inode, name, value, drops)| Effect::Xattr { inode: InodeId(inode), name, value, drops });
    let purge = (dot(), vec(dot(), 0..3), vec(move_id(), 0..3));
    let purge = purge.prop_map(|(inode, dots, folds)| Effect::Purge { inode: InodeId(inode), dots, folds });
    prop_oneof![inode, link, moved, xattr, purge]
}

fn op() -> impl Strategy<Value = Op> {
    (dot(), hlc(), time(), vec(effect(), 0..4)).prop_map(|(dot, hlc, time, effects)| Op { dot, hlc, time, effects })
}

fn dir_row() -> impl Strategy<Value = DirRow> {
    (dot(), bytes(), any::<u64>(), any::<u64>(), any::<bool>(), prop::collection::btree_set(move_id(), 0..4)).prop_map(
        |(parent, name, entries, subdirs, shown, moves)| {
            let moves = moves.into_iter().collect();
            DirRow { parent: DirId(parent), name, entries, subdirs, shown, moves }
        },
    )
}

fn children() -> impl Strategy<Value = Children> {
    let link = (dot(), option::of(dot()), link_kind()).prop_map(|(link, inode, kind)| Child::Link {
        link: LinkId(link),
        inode: InodeId(inode.unwrap_or(link)),
        kind,
    });
    vec(prop_oneof![dot().prop_map(|dot| Child::Dir(DirId(dot))), link], 0..4).prop_map(|drawn| {
        let mut children = Children::default();
        for child in drawn {
            children.set(child, true);
        }
        children
    })
}

/// Decodes and encodes again, in every format.
type Again = fn(&[u8]) -> Result<Vec<u8>, DecodeError>;

const KEY: Dot = Dot { author: AuthorId([1; 16]), n: 5 };
const FORMATS: [(&str, Again); 6] = [
    ("inode", |bytes| InodeRow::decode(KEY, bytes).map(|row| row.encode(KEY))),
    ("link", |bytes| LinkRow::decode(KEY, bytes).map(|row| row.encode(KEY))),
    ("xattr", |bytes| decode_xattr(KEY, bytes).map(|row| encode_xattr(KEY, &row))),
    ("operation", |bytes| Op::decode(KEY, bytes).map(|op| op.encode())),
    ("directory", |bytes| DirRow::decode(bytes).map(|row| row.encode())),
    ("children", |bytes| Children::decode(bytes).map(|row| row.encode())),
];

fn check_one_form(bytes: &[u8]) {
    for (what, again) in FORMATS {
        if let Ok(again) = again(bytes) {
            assert_eq!(again, bytes, "{what}: one value, one encoding");
        }
    }
    if let Ok(row) = Move::decode(&[7; 56], bytes) {
        assert_eq!(row.encode(), bytes);
    }
}

/// Bytes of some format, so that changing one of them stays close to what is accepted.
fn written() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        inode_row().prop_map(|row| row.encode(KEY)),
        link_row(KEY).prop_map(|row| row.encode(KEY)),
        register(bytes()).prop_map(|row| encode_xattr(KEY, &row)),
        op().prop_map(|op| Op { dot: KEY, ..op }.encode()),
        dir_row().prop_map(|row| row.encode()),
        children().prop_map(|row| row.encode()),
    ]
}

proptest! {
    #[test]
    fn rows_and_operations_are_read_back(
        key in dot(),
        inode in inode_row(),
        link in dot().prop_flat_map(|key| (Just(key), link_row(key))),
        xattr in register(bytes()),
        op in op(),
        dir in dir_row(),
        children in children(),
        moved in (move_id(), placed_dir(), dot(), name()),
    ) {
        prop_assert_eq!(InodeRow::decode(key, &inode.encode(key)), Ok(inode));
        prop_assert_eq!(LinkRow::decode(link.0, &link.1.encode(link.0)), Ok(link.1));
        prop_assert_eq!(decode_xattr(key, &encode_xattr(key, &xattr)), Ok(xattr));
        prop_assert_eq!(Op::decode(op.dot, &op.encode()), Ok(op));
        prop_assert_eq!(DirRow::decode(&dir.encode()), Ok(dir));
        prop_assert_eq!(Children::decode(&children.encode()), Ok(children));
        let (id, dir, parent, name) = moved;
        let moved = Move { id, dir, parent: DirId(parent), name };
        prop_assert_eq!(Move::decode(&moved.key(), &moved.encode()).unwrap(), moved);
    }

    #[test]
    fn any_bytes_decode_or_fail_cleanly(mut bytes in vec(0..9u8, 0..60)) {
        check_one_form(&bytes);
        bytes.insert(0, 1);
        check_one_form(&bytes);
    }

    #[test]
    fn changed_bytes_have_one_form(mut bytes in written(), at: prop::sample::Index, to in prop_oneof![0..4u8, any::<u8>()]) {
        check_one_form(&bytes[..at.index(bytes.len())]);
        let at = at.index(bytes.len());
        bytes[at] = to;
        check_one_form(&bytes);
    }

    #[test]
    fn other_versions_are_refused(bytes in written()) {
        for (what, again) in FORMATS {
            let with_version = |version: u8| again(&[&[version], &bytes[1..]].concat());
            let newer = with_version(2);
            prop_assert!(matches!(newer, Err(DecodeError::NewerVersion { found: 2, known: 1, .. })), "{} {:?}", what, newer);
            prop_assert_eq!(with_version(0), Err(DecodeError::Unknown { what: "a format version", value: 0 }));
        }
    }
}

#[test]
fn names_that_no_call_can_make_are_refused() {
    for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
        let moved = Effect::Move { dir: DirId(KEY), parent: DirId::ROOT, name: bad.to_vec(), folds: Vec::new() };
        let place = Some(PlaceEffect { since: None, parent: DirId::ROOT, name: bad.to_vec() });
        let (link, inode, kind) = (LinkId(KEY), InodeId(KEY), FileKind::File);
        let linked = Effect::Link(LinkEffect { link, inode, kind, place, drops: Vec::new() });
        for effect in [moved, linked] {
            let op = Op { dot: KEY, hlc: Hlc(1), time: Timestamp::default(), effects: vec![effect] };
            assert_eq!(Op::decode(KEY, &op.encode()), Err(DecodeError::NotCanonical("a file name")), "{bad:?}");
        }
    }
}

#[test]
fn a_move_of_the_root_and_a_link_to_a_directory_are_refused() {
    let moved = Effect::Move { dir: DirId::ROOT, parent: DirId(KEY), name: b"x".to_vec(), folds: Vec::new() };
    let (link, inode, kind) = (LinkId(KEY), InodeId(KEY), FileKind::Directory);
    let linked = Effect::Link(LinkEffect { link, inode, kind, place: None, drops: Vec::new() });
    for effect in [moved, linked] {
        let op = Op { dot: KEY, hlc: Hlc(1), time: Timestamp::default(), effects: vec![effect] };
        assert!(Op::decode(KEY, &op.encode()).is_err());
    }
}

#[test]
fn evidence_that_no_author_can_have_is_refused() {
    let refused = |bits: u8, rest: &[u8]| {
        let bytes = [&[1, 0, 0, 0, bits], rest, &[0]].concat();
        let mut reader = Reader::new(&bytes);
        get_version(&mut reader).and_then(|_| reader.finish()).unwrap_err()
    };
    assert_eq!(refused(0b1_1010, &[]), DecodeError::Unknown { what: "the form of a version", value: 6 });
    assert_eq!(refused(0b110_0010, &[]), DecodeError::Unknown { what: "the validity of a version", value: 3 });
    assert_eq!(refused(0b010_0010, &[]), DecodeError::NotCanonical("the validity of a version"));
    assert_eq!(refused(0b1000_0010, &[0]), DecodeError::NotCanonical("the evidence of a version"));
    let too_many = [0xf0, 0xff, 0xff, 0xff, 0xff, 0x01];
    assert_eq!(refused(0b1000_0010, &too_many), DecodeError::NotCanonical("the sessions of a version"));
}

/// What a create costs on disk, as the tables hold a row of each for every file.
#[test]
fn only_a_mode_with_set_id_bits_says_what_they_are_for() {
    let dot = |n| Dot { author: AuthorId([1; 16]), n };
    let written = |permissions, seen: &[u64]| {
        let mut out = Vec::new();
        let seen = seen.iter().map(|n| dot(*n)).collect();
        put_grant(&mut out, &Grant { mode: Mode { permissions, acl: Vec::new() }, seen });
        out
    };
    let read = |bytes: &[u8]| get_grant(&mut Reader::new(bytes));
    assert_eq!(written(0o644, &[]), [0xa4, 3, 0], "as ever");
    // As it was before there was such a list: for nothing, then.
    let old = read(&[0xed, 0x13, 0]).unwrap();
    assert_eq!((old.mode.permissions, old.seen), (0o4755, Vec::new()));
    let good = written(0o4755, &[3, 7]);
    assert_eq!(read(&good).unwrap().seen, [dot(3), dot(7)]);
    let many: Vec<u64> = (0..=SEEN_MAX as u64).collect();
    read(&written(0o4755, &many[1..])).unwrap();
    for bad in [written(0o755, &[3]), written(0o4755, &[7, 3]), written(0o4755, &[3, 3]), written(0o4755, &many)] {
        assert!(matches!(read(&bad), Err(DecodeError::NotCanonical(_))), "{bad:?}");
    }
    assert!(matches!(read(&[0xed, 0x33, 0, 0]), Err(DecodeError::NotCanonical(_))), "a list of nothing");
    assert!(matches!(read(&[0x80, 0x80, 1, 0]), Err(DecodeError::Unknown { .. })));
}

#[test]
fn rows_of_a_fresh_file_are_small() {
    let mut replica = super::Replica::new(1);
    let before = replica.tables.0.len();
    replica.create(FileKind::File, DirId::ROOT, "name");
    let rows = replica.tables.0.iter().filter(|((_, key), _)| key.starts_with(&[1; 16]));
    let sizes: Vec<usize> = rows.map(|(_, value)| value.len()).collect();
    assert_eq!(replica.tables.0.len() - before, 3, "inode, link, child");
    assert!(sizes.iter().sum::<usize>() <= 115, "{sizes:?}");
}
