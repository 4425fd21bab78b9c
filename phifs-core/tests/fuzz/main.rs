//! One target for each decoder of what comes from other machines, and from the disk in the same form. Whatever the bytes
//! are: no panic; no more memory than a small multiple of them; and what was understood has no other encoding, where that
//! is promised.
//!
//! As tests they run for a moment each, on changed encodings of a real volume. The same targets run for as long as one
//! likes under a fuzzer that looks for new ways through the code: `docs/src/internals/fuzzing.md`.

mod hostile;
mod seeds;

use std::fmt::Debug;
use std::sync::LazyLock;

use bolero::check;
use bytes::Bytes;
use data_encoding::BASE32_NOPAD;
use phifs_core::codec::Reader;
use phifs_core::content::manifest::visit_glyphs;
use phifs_core::content::{Content, manifest};
use phifs_core::id::{AuthorId, Dot, GlyphId, S8Id};
use phifs_core::merkle::Node;
use phifs_core::namespace::Op;
use phifs_core::oplog::{GROUP_BYTES_MAX, SealedGroup};
use phifs_core::placement::Layout;
use phifs_core::registry::{Branch, Entry, Member, NamedSnapshot};
use phifs_core::snapshot::SealedRecord;
use phifs_core::snapshot::stream::{Frame, Reader as Stream};
use phifs_core::ssep::{Answer, Moment, Note, Receipt, Request, Token};
use phifs_core::store::{GLYPH_BYTES_MAX, GlyphKind, GlyphSource, StoreError, StoredGlyph};
use phifs_core::time::Hlc;

use hostile::Hostile;

/// What may be allocated for each byte that came, and beside that.
const MEMORY_PER_BYTE: u64 = 64;
const MEMORY_BESIDE: u64 = 16 << 10;

static SENT: LazyLock<seeds::Sent> = LazyLock::new(seeds::sent);

/// Decodes within bounds; `more` is what this decoder may take beyond those that hold for all.
fn bounded<T>(bytes: &[u8], more: usize, decode: impl FnOnce(&[u8]) -> T) -> T {
    let mut decoded = None;
    let used = allocation_counter::measure(|| decoded = Some(decode(bytes))).bytes_max;
    let allowed = MEMORY_PER_BYTE * bytes.len() as u64 + MEMORY_BESIDE + more as u64;
    assert!(used <= allowed, "{used} bytes of memory for {} bytes", bytes.len());
    decoded.expect("it has just been set")
}

/// Decodes within bounds; what that gave encodes to the same bytes.
fn canonical<T, E: Debug>(
    bytes: &[u8],
    decode: impl FnOnce(&[u8]) -> Result<T, E>,
    encode: impl FnOnce(&T) -> Vec<u8>,
) {
    if let Ok(decoded) = bounded(bytes, 0, decode) {
        assert!(encode(&decoded) == bytes, "there is more than one encoding");
    }
}

/// All of the bytes.
fn whole<T>(
    bytes: &[u8],
    decode: impl FnOnce(&mut Reader<'_>) -> phifs_core::codec::Result<T>,
) -> phifs_core::codec::Result<T> {
    let mut reader = Reader::new(bytes);
    let decoded = decode(&mut reader)?;
    reader.finish()?;
    Ok(decoded)
}

#[test]
fn request() {
    let seeds = seeds::requests();
    check!().with_type().for_each(|hostile: &Hostile| {
        canonical(&hostile.made_of(&seeds), Request::decode, Request::encode);
    });
}

#[test]
fn answer() {
    let seeds = seeds::answers(&SENT);
    check!().with_type().for_each(|hostile: &Hostile| {
        let bytes = hostile.made_of(&seeds);
        // Groups are packed; how long they say they are is reserved at once.
        let more = if bytes.first() == Some(&6) { 2 * GROUP_BYTES_MAX } else { 0 };
        let answer = bounded(&bytes, more, |bytes| Answer::decode(&Bytes::copy_from_slice(bytes)));
        // There is more than one way to pack, and what a refusal says is cleaned.
        if let Ok(answer) = answer
            && !matches!(answer, Answer::Groups(_) | Answer::Refused { .. })
        {
            assert!(answer.encode() == bytes);
        }
    });
}

#[test]
fn note() {
    let seeds: Vec<_> = seeds::notes().iter().map(Note::encode).collect();
    check!().with_type().for_each(|hostile: &Hostile| {
        canonical(&hostile.made_of(&seeds), Note::decode, Note::encode);
    });
}

fn encoded(receipt: &Receipt) -> Vec<u8> {
    let mut bytes = Vec::new();
    receipt.encode(&mut bytes);
    bytes
}

#[test]
fn receipt() {
    let seeds = [encoded(&seeds::receipt())];
    check!().with_type().for_each(|hostile: &Hostile| {
        canonical(&hostile.made_of(&seeds), |bytes| whole(bytes, Receipt::decode), encoded);
    });
}

/// The bytes in a word that people copy, and the word around such bytes.
fn unwrapped(word: &str) -> Vec<u8> {
    let (_, text) = word.split_once('-').unwrap();
    let mut bytes = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).unwrap();
    bytes.truncate(bytes.len() - 4);
    bytes
}

fn wrapped(prefix: &str, check: &str, bytes: &[u8]) -> String {
    let bytes = [bytes, &blake3::derive_key(check, bytes)[..4]].concat();
    format!("{prefix}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
}

#[test]
fn token() {
    let seeds = [unwrapped(&seeds::token().to_string())];
    check!().with_type().for_each(|hostile: &Hostile| {
        let bytes = hostile.made_of(&seeds);
        let word = wrapped("phi1-", "phifs invitation check v1", &bytes);
        canonical(word.as_bytes(), |_| word.parse::<Token>(), |token| token.to_string().into());
        let text = String::from_utf8_lossy(&bytes);
        let _ = bounded(text.as_bytes(), 0, |_| text.parse::<Token>());
    });
}

#[test]
fn moment() {
    let seeds = [unwrapped(&seeds::moment().to_string())];
    check!().with_type().for_each(|hostile: &Hostile| {
        let bytes = hostile.made_of(&seeds);
        let word = wrapped("phit1-", "phifs moment check v1", &bytes);
        canonical(word.as_bytes(), |_| word.parse::<Moment>(), |moment| moment.to_string().into());
        let text = String::from_utf8_lossy(&bytes);
        let _ = bounded(text.as_bytes(), 0, |_| text.parse::<Moment>());
    });
}

#[test]
fn group() {
    let seeds: Vec<Vec<u8>> = SENT.groups.iter().map(|group| group.to_vec()).collect();
    check!().with_type().for_each(|hostile: &Hostile| {
        let bytes = hostile.made_of(&seeds);
        let shared = Bytes::from(bytes.clone());
        canonical(&bytes, |_| SealedGroup::decode(shared), |group| group.encoded().to_vec());
    });
}

#[test]
fn operation() {
    let (mut seeds, mut dots) = (Vec::new(), Vec::new());
    for group in &SENT.groups {
        let group = SealedGroup::decode(group.clone()).unwrap();
        for (n, op) in group.ops() {
            dots.push(Dot { author: group.author_id(), n });
            seeds.push(op.to_vec());
        }
    }
    check!().with_type().for_each(|hostile: &Hostile| {
        let bytes = hostile.made_of(&seeds);
        canonical(&bytes, |bytes| Op::decode(dots[0], bytes), Op::encode);
    });
}

#[test]
fn sealed_record() {
    let seeds = [SENT.header.sealed.encode()];
    check!().with_type().for_each(|hostile: &Hostile| {
        canonical(&hostile.made_of(&seeds), SealedRecord::decode, SealedRecord::encode);
    });
}

#[test]
fn snapshot_record() {
    let seeds = [SENT.header.sealed.record.encode()];
    check!().with_type().for_each(|hostile: &Hostile| {
        canonical(&hostile.made_of(&seeds), phifs_core::snapshot::Record::decode, |record| record.encode());
    });
}

/// Before the body of a header: what it is, the version, the length.
const HEADER_FRONT: usize = 16;

#[test]
fn stream_header() {
    let header = SENT.header.encode();
    let seeds = [header[HEADER_FRONT..header.len() - 32].to_vec()];
    check!().with_type().for_each(|hostile: &Hostile| {
        let body = hostile.made_of(&seeds);
        let mut bytes = [&header[..HEADER_FRONT - 4], &(body.len() as u32).to_le_bytes(), &body].concat();
        bytes.extend(blake3::hash(&bytes).as_bytes());
        canonical(&bytes, |bytes| Stream::open(bytes).map(|(header, _)| header), |header| header.encode());
    });
}

#[test]
fn stream() {
    let seeds = [SENT.stream.clone(), SENT.stream[..20_000].to_vec(), SENT.header.encode()];
    check!().with_type().for_each(|hostile: &Hostile| {
        let bytes = hostile.made_of(&seeds);
        bounded(&bytes, GLYPH_BYTES_MAX, |bytes| {
            let Ok((_, mut reader)) = Stream::open(bytes) else { return };
            while let Ok(Frame::Glyph(_) | Frame::Check) = reader.next() {}
        });
    });
}

#[test]
fn stored_glyph() {
    let mut glyphs: Vec<&StoredGlyph> = SENT.glyphs.iter().collect();
    glyphs.sort_by_key(|glyph| glyph.bytes().len());
    glyphs.truncate(40);
    let seeds: Vec<Vec<u8>> = glyphs.iter().map(|glyph| glyph.encode().to_vec()).collect();
    check!().with_type().for_each(|hostile: &Hostile| {
        let bytes = hostile.made_of(&seeds);
        canonical(
            &bytes,
            |bytes| StoredGlyph::decode(GlyphId([0; 32]), &Bytes::copy_from_slice(bytes)),
            |glyph| glyph.encode().to_vec(),
        );
        // It says how long it will be.
        let plain = |bytes: &[u8]| {
            StoredGlyph::decode(GlyphId([0; 32]), &Bytes::copy_from_slice(bytes)).ok().and_then(|glyph| glyph.plain())
        };
        bounded(&bytes, 2 * GLYPH_BYTES_MAX, plain);
    });
}

#[test]
fn map_node() {
    let seeds = SENT.plain(GlyphKind::Node);
    check!().with_type().for_each(|hostile: &Hostile| {
        let bytes = hostile.made_of(&seeds);
        let shared = Bytes::from(bytes.clone());
        bounded(&bytes, 0, |_| {
            let Ok(node) = Node::decode(&GlyphId([0; 32]), shared) else { return };
            for (key, value) in node.rows() {
                assert_eq!(node.get(&key), Some(value));
            }
        });
    });
}

/// One page; whatever it lists is not there.
struct Page(Bytes);

impl GlyphSource for Page {
    fn read(&self, _: GlyphKind, id: &GlyphId) -> Result<Bytes, StoreError> {
        if *id == PAGE { Ok(self.0.clone()) } else { Err(StoreError::Missing(*id)) }
    }
}

const PAGE: GlyphId = GlyphId([9; 32]);
/// Of the file whose page it is.
const LEN_BYTES: u64 = seeds::LONG as u64;

#[test]
fn manifest_page() {
    let contents = SENT.plain(GlyphKind::Data);
    let is_page = |bytes: &Vec<u8>| (0..2).any(|depth| visits(bytes, LEN_BYTES, depth) > 0);
    let seeds: Vec<Vec<u8>> = contents.into_iter().filter(is_page).collect();
    assert!(!seeds.is_empty(), "a long file has a list of glyphs");
    check!().with_type().for_each(|(hostile, depth): &(Hostile, u8)| {
        let bytes = hostile.made_of(&seeds);
        bounded(&bytes, 0, |bytes| visits(bytes, LEN_BYTES, depth % (manifest::DEPTH_MAX + 1)));
    });
}

/// How many glyphs a page lists, if it is one of a file of this length.
fn visits(page: &[u8], len_bytes: u64, depth: u8) -> usize {
    let content = Content::Manifest { len_bytes, allocated_bytes: len_bytes, root: PAGE, depth };
    let (mut visits, mut is_root) = (0, true);
    let source = Page(Bytes::copy_from_slice(page));
    let visited = visit_glyphs(&source, &content, &mut |_, _| {
        visits += usize::from(!is_root);
        std::mem::take(&mut is_root)
    });
    visited.map_or(0, |()| visits)
}

#[test]
fn layout() {
    let seeds = [seeds::layout().encode()];
    check!().with_type().for_each(|hostile: &Hostile| {
        canonical(&hostile.made_of(&seeds), Layout::decode, Layout::encode);
    });
}

#[test]
fn registry_entry() {
    let member = seeds::member().encode();
    let entry = Entry { hlc: Hlc(7), author: AuthorId([6; 16]), value: Some(member.clone()) };
    let cut = SENT.header.sealed.record.cut();
    let branch = Branch { number: 300, base: cut.clone(), base_name: "seed".into() };
    let snapshot = NamedSnapshot { cut, id: Some(S8Id([4; 32])), scheduled: true, labels: vec!["label".into()] };
    let seeds = [member, entry.encode(), snapshot.encode(), branch.encode()];
    check!().with_type().for_each(|hostile: &Hostile| {
        let bytes = hostile.made_of(&seeds);
        canonical(&bytes, Member::decode, Member::encode);
        canonical(&bytes, Entry::decode, Entry::encode);
        canonical(&bytes, NamedSnapshot::decode, NamedSnapshot::encode);
        canonical(&bytes, Branch::decode, Branch::encode);
    });
}
