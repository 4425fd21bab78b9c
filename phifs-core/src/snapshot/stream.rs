//! The bytes of an exported snapshot.
//!
//! ```text
//! stream = header | frames | end
//! header = "PHIFS-S8" | version u32 | length u32 | body | BLAKE3 of all before 32
//! body   = volume 16 | sealed record blob | count v | count x (snapshot 32, its name blob)     what it builds on
//! frame  = 1 (data) or 2 (node) u8 | codec u8 | plain length u32 | stored length u32 | id 32 | stored bytes
//!        | 3 u8 | glyphs so far u64 | check 32
//! end    =   4 u8 | glyphs u64 | check 32
//! check  = derive_key("phifs snapshot stream v1", the check before, for the first the hash of the header
//!                     | all frames since, and this one up to here)
//! ```
//!
//! What always holds:
//! - A check covers everything before it, and one stands behind every 8 MiB of frames: whoever goes on with an
//!   interrupted stream believes it up to its last check.
//! - Nothing is reserved for a length before the bytes have come.
//! - Which glyphs come, and in which order, follows from the two snapshots (`reach`).

use std::io::{self, Read, Write};

use bytes::Bytes;

use crate::codec::{self, DecodeError, Encode, Reader as Decoder};
use crate::id::{GlyphId, S8Id};
use crate::registry::text;
use crate::store::{StoreError, StoredGlyph};

use super::record::{RecordError, SealedRecord};

const MAGIC: [u8; 8] = *b"PHIFS-S8";
const VERSION: u32 = 1;
const CHECK_CONTEXT: &str = "phifs snapshot stream v1";
const CHECK: u8 = 3;
const END: u8 = 4;
/// Of the body of a header; a record lists all authors there ever were.
const HEADER_BYTES_MAX: u32 = 16 << 20;
/// What stands between two checks, at least.
const SECTION_BYTES: u64 = 8 << 20;
/// The length of the end.
pub const END_BYTES: u64 = 41;
/// What is read at once, so that a claimed length costs nothing.
const READ_BYTES: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("this is no exported snapshot")]
    Foreign,
    #[error("the export is in a newer format: {0}")]
    Newer(DecodeError),
    #[error("the export ends early, at byte {0}")]
    Truncated(u64),
    #[error("the export is damaged before byte {at}: {why}")]
    Damaged { at: u64, why: String },
    #[error("the export is damaged: {0}")]
    Record(#[from] RecordError),
    /// Bytes that are what their name says, yet no part of such a snapshot; or the store has failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot read the export: {0}")]
    Read(io::Error),
    #[error("cannot write the export: {0}")]
    Write(io::Error),
    /// By whoever asked for it.
    #[error("it was broken off")]
    BrokenOff,
}

pub type Result<T> = std::result::Result<T, StreamError>;

/// What a stream is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub sealed: SealedRecord,
    /// What the reader must have: the snapshot that this one is told against.
    pub base: Option<Base>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    pub id: S8Id,
    /// For people.
    pub name: String,
}

impl Header {
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.put_bytes(&self.sealed.record.volume);
        body.put_blob(&self.sealed.encode());
        body.put_varint(u64::from(self.base.is_some()));
        if let Some(base) = &self.base {
            body.put_bytes(&base.id.0);
            body.put_blob(base.name.as_bytes());
        }
        let mut out = MAGIC.to_vec();
        out.put_u32(VERSION);
        out.put_u32(body.len() as u32);
        out.put_bytes(&body);
        let hash = blake3::hash(&out);
        out.put_bytes(hash.as_bytes());
        out
    }

    fn decode_body(body: &[u8]) -> Result<Self> {
        let decode = || -> codec::Result<_> {
            let mut reader = Decoder::new(body);
            let volume: [u8; 16] = reader.array()?;
            let sealed = reader.blob()?;
            let base = match reader.count()? {
                0 => None,
                1 => Some(Base { id: S8Id(reader.array()?), name: text(&mut reader)? }),
                value => return Err(DecodeError::Unknown { what: "a number of bases", value: value as u64 }),
            };
            reader.finish()?;
            Ok((volume, sealed, base))
        };
        let (volume, sealed, base) = decode().map_err(RecordError::Malformed)?;
        let sealed = SealedRecord::decode(sealed)?;
        if sealed.record.volume != volume {
            return Err(RecordError::Malformed(DecodeError::NotCanonical("the volume of an export")).into());
        }
        Ok(Self { sealed, base })
    }
}

/// The hash over a part of a stream, continued from check to check.
struct Chain {
    hasher: blake3::Hasher,
}

impl Chain {
    fn after(check: &[u8; 32]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CHECK_CONTEXT);
        hasher.update(check);
        Self { hasher }
    }

    fn check(&mut self) -> [u8; 32] {
        let check = *self.hasher.finalize().as_bytes();
        *self = Self::after(&check);
        check
    }
}

/// Where an interrupted stream can be gone on with: right behind a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    pub len_bytes: u64,
    /// Those before.
    pub glyphs: u64,
    /// The last of them.
    pub last: Option<GlyphId>,
    check: [u8; 32],
    /// Nothing is missing.
    pub complete: bool,
}

/// How much of what was written of this stream is good; nothing if it was another one.
pub fn look_for_rest(input: impl Read, header: &Header) -> Result<Option<Resume>> {
    match Reader::open(input) {
        Ok((found, mut reader)) if found == *header => {
            let mut good = None;
            let mut last = None;
            loop {
                match reader.next() {
                    Ok(Frame::Glyph(glyph)) => last = Some(glyph.id()),
                    Ok(frame) => {
                        let complete = matches!(frame, Frame::End);
                        let (len_bytes, glyphs) = (reader.at, reader.glyphs);
                        good = Some(Resume { len_bytes, glyphs, last, check: reader.check, complete });
                        if complete {
                            return Ok(good);
                        }
                    }
                    Err(StreamError::Read(error)) => return Err(StreamError::Read(error)),
                    // It broke off, or was damaged: then from the last check on.
                    Err(_) => return Ok(good),
                }
            }
        }
        Err(StreamError::Read(error)) => Err(StreamError::Read(error)),
        Ok(_) | Err(_) => Ok(None),
    }
}

/// Writes a stream.
pub struct Writer<W> {
    out: W,
    chain: Chain,
    /// Since the last check.
    section_bytes: u64,
    glyphs: u64,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    pub fn begin(mut out: W, header: &Header) -> Result<Self> {
        let header = header.encode();
        out.write_all(&header).map_err(StreamError::Write)?;
        let (_, hash) = header.split_last_chunk().expect("a header ends with its hash");
        Ok(Self { out, chain: Chain::after(hash), section_bytes: 0, glyphs: 0, bytes: header.len() as u64 })
    }

    /// Goes on where `out` stands now.
    pub fn resume(out: W, rest: &Resume) -> Self {
        let Resume { glyphs, len_bytes: bytes, check, .. } = *rest;
        Self { out, chain: Chain::after(&check), section_bytes: 0, glyphs, bytes }
    }

    pub fn glyphs(&self) -> u64 {
        self.glyphs
    }

    /// The length of the stream so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn put(&mut self, glyph: &StoredGlyph) -> Result<()> {
        if self.section_bytes >= SECTION_BYTES {
            self.put_check(CHECK)?;
        }
        let mut head = Vec::with_capacity(42);
        let (kind, codec) = glyph.tags();
        head.put_u8(kind);
        head.put_u8(codec);
        head.put_u32(glyph.plain_bytes());
        head.put_u32(glyph.bytes().len() as u32);
        head.put_glyph_id(&glyph.id());
        self.write(&head)?;
        self.write(glyph.bytes())?;
        self.glyphs += 1;
        Ok(())
    }

    /// Says that all is there.
    pub fn finish(mut self) -> Result<W> {
        self.put_check(END)?;
        self.out.flush().map_err(StreamError::Write)?;
        Ok(self.out)
    }

    fn put_check(&mut self, tag: u8) -> Result<()> {
        let mut head = vec![tag];
        head.put_u64(self.glyphs);
        self.write(&head)?;
        let check = self.chain.check();
        self.out.write_all(&check).map_err(StreamError::Write)?;
        self.bytes += check.len() as u64;
        self.section_bytes = 0;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.chain.hasher.update(bytes);
        self.out.write_all(bytes).map_err(StreamError::Write)?;
        self.section_bytes += bytes.len() as u64;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// What a stream holds next.
#[derive(Debug)]
pub enum Frame {
    /// Its lengths are sound; that it is what its id says is still to be found out.
    Glyph(StoredGlyph),
    /// Everything up to here is as it was written.
    Check,
    /// So is all of it, and nothing follows.
    End,
}

/// Reads a stream, whatever its bytes are.
pub struct Reader<R> {
    input: R,
    chain: Chain,
    /// The last one, for the first the hash of the header.
    check: [u8; 32],
    at: u64,
    glyphs: u64,
}

impl<R: Read> Reader<R> {
    /// Reads the header. Its record carries a good signature, of whomever.
    pub fn open(input: R) -> Result<(Header, Self)> {
        let mut reader = Self { input, chain: Chain::after(&[0; 32]), check: [0; 32], at: 0, glyphs: 0 };
        let mut bytes = reader.read(16).map_err(|error| match error {
            StreamError::Truncated(_) => StreamError::Foreign,
            error => error,
        })?;
        let mut decoder = Decoder::new(&bytes);
        let magic: [u8; 8] = decoder.array().map_err(RecordError::Malformed)?;
        if magic != MAGIC {
            return Err(StreamError::Foreign);
        }
        match decoder.u32().map_err(RecordError::Malformed)? {
            VERSION => {}
            found if found > VERSION => {
                return Err(StreamError::Newer(DecodeError::NewerVersion { what: "an export", found, known: VERSION }));
            }
            _ => return Err(StreamError::Foreign),
        }
        let len = decoder.u32().map_err(RecordError::Malformed)?;
        if len > HEADER_BYTES_MAX {
            return Err(reader.damaged("the header is too long"));
        }
        let body = reader.read(len as usize)?;
        bytes.extend_from_slice(&body);
        let hash = *blake3::hash(&bytes).as_bytes();
        if reader.read(32)? != hash {
            return Err(reader.damaged("the header does not match its hash"));
        }
        let header = Header::decode_body(&body)?;
        (reader.chain, reader.check) = (Chain::after(&hash), hash);
        Ok((header, reader))
    }

    /// How much of the stream was read.
    pub fn bytes(&self) -> u64 {
        self.at
    }

    pub fn glyphs(&self) -> u64 {
        self.glyphs
    }

    #[expect(clippy::should_implement_trait, reason = "an iterator would go on behind an error")]
    pub fn next(&mut self) -> Result<Frame> {
        let tag = self.read_chained(1)?[0];
        match tag {
            CHECK | END => {
                let glyphs = self.read_chained(8)?;
                let check = self.chain.check();
                if self.read(32)? != check {
                    return Err(self.damaged("a part does not match its check"));
                }
                if Decoder::new(&glyphs).u64() != Ok(self.glyphs) {
                    return Err(self.damaged("glyphs are missing, or there are too many"));
                }
                self.check = check;
                if tag == CHECK {
                    return Ok(Frame::Check);
                }
                match self.input.read(&mut [0]) {
                    Ok(0) => Ok(Frame::End),
                    Ok(_) => Err(self.damaged("something follows its end")),
                    Err(error) => Err(StreamError::Read(error)),
                }
            }
            _ => {
                let head = self.read_chained(41)?;
                let malformed = |at| move |error: DecodeError| StreamError::Damaged { at, why: error.to_string() };
                let mut decoder = Decoder::new(&head);
                let mut fields = || -> codec::Result<_> {
                    let (codec, plain_bytes, stored_bytes) = (decoder.u8()?, decoder.u32()?, decoder.u32()?);
                    StoredGlyph::check_lengths(plain_bytes, stored_bytes.into())?;
                    Ok((codec, plain_bytes, stored_bytes, decoder.glyph_id()?))
                };
                let (codec, plain_bytes, stored_bytes, id) = fields().map_err(malformed(self.at))?;
                let bytes = Bytes::from(self.read_chained(stored_bytes as usize)?);
                let glyph = StoredGlyph::new((tag, codec), id, plain_bytes, bytes).map_err(malformed(self.at))?;
                self.glyphs += 1;
                Ok(Frame::Glyph(glyph))
            }
        }
    }

    /// What is wrong with the stream here.
    pub(super) fn damaged(&self, why: impl Into<String>) -> StreamError {
        StreamError::Damaged { at: self.at, why: why.into() }
    }

    fn read_chained(&mut self, len: usize) -> Result<Vec<u8>> {
        let bytes = self.read(len)?;
        self.chain.hasher.update(&bytes);
        Ok(bytes)
    }

    /// Exactly so many bytes.
    fn read(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len.min(READ_BYTES));
        let got = (&mut self.input).take(len as u64).read_to_end(&mut bytes).map_err(StreamError::Read)?;
        self.at += got as u64;
        if got == len { Ok(bytes) } else { Err(StreamError::Truncated(self.at)) }
    }
}
