//! One pack file: a header, records, and once it is sealed a footer that lists them and a trailer that says so.
//!
//! What always holds:
//! - Records are only ever appended. A pack can be read without its footer by scanning it.
//! - A trailer is written once every record before it is durable, so a valid one vouches for them. The pack then gets
//!   no more records.
//! - Nothing is dropped silently: a scan that meets bad bytes looks for valid records behind them. If there are any,
//!   the bad bytes are damage, which is reported and skipped; if there are none, they are a torn tail.
//!
//! ```text
//! header   0 magic  8 version  12 kind  16 store id  32 pack  60 CRC32C
//! footer   per record, by id: id 32, offset 4, stored length 4, plain length 4
//! trailer  0 magic  8 store id  24 pack  28 kind  32 footer offset  36 records  40 CRC32C of the footer
//!          44 plain bytes  52 zero  60 CRC32C
//! ```

use std::io;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::record::{ALIGN, HEADER_BYTES, Header, padded};
use super::{Damage, GlyphKind, Location, StoreError};
use crate::codec::DecodeError;
use crate::disk::{Disk, File, FileName};
use crate::id::GlyphId;

pub(super) const FORMAT_VERSION: u32 = 1;
/// The length of the pack's header: where the first record begins.
pub(super) const START: u32 = 64;
const TRAILER_BYTES: u32 = 64;
const ENTRY_BYTES: usize = 44;
const MAGIC: [u8; 8] = *b"PhiFPack";
const END_MAGIC: [u8; 8] = *b"PhiFSeal";
const WINDOW_BYTES: usize = 1 << 20;

const _: () = assert!((START as usize).is_multiple_of(ALIGN) && HEADER_BYTES.is_multiple_of(ALIGN));

/// One line of a pack's list of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub id: GlyphId,
    pub offset: u32,
    pub stored_bytes: u32,
    pub plain_bytes: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub records: u64,
    pub plain_bytes: u64,
    /// Where the records end: the length of the pack without its footer.
    pub end: u32,
}

pub(super) struct Pack {
    pub number: u32,
    pub kind: GlyphKind,
    /// Not there before the first block of a new pack is written: until then every record is served from memory.
    file: OnceLock<Arc<dyn File>>,
    body: Mutex<Body>,
}

struct Body {
    totals: Totals,
    list: List,
}

enum List {
    /// In order of offset.
    Memory(Vec<Entry>),
    Footer(Footer),
}

#[derive(Clone, Copy)]
struct Footer {
    offset: u32,
    records: u32,
    crc: u32,
}

/// A pack as it was found when the store was opened.
pub(super) struct Found {
    pub pack: Pack,
    pub damage: Vec<Damage>,
    /// Bytes at the end that hold no record.
    pub tail_bytes: u64,
    pub sealed: bool,
    pub header_intact: bool,
}

impl Entry {
    pub fn location(&self, pack: u32) -> Location {
        Location { pack, offset_bytes: self.offset, stored_bytes: self.stored_bytes }
    }

    fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.id.0);
        for number in [self.offset, self.stored_bytes, self.plain_bytes] {
            to.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn decode(bytes: &[u8; ENTRY_BYTES]) -> Self {
        let mut id = [0; 32];
        id.copy_from_slice(&bytes[..32]);
        Self {
            id: GlyphId(id),
            offset: u32_at(bytes, 32),
            stored_bytes: u32_at(bytes, 36),
            plain_bytes: u32_at(bytes, 40),
        }
    }
}

impl Totals {
    fn of(entries: &[Entry], end: u32) -> Self {
        let plain_bytes = entries.iter().map(|entry| u64::from(entry.plain_bytes)).sum();
        Self { records: entries.len() as u64, plain_bytes, end }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The first bytes of a pack.
pub(super) fn encode_header(store_id: &[u8; 16], number: u32, kind: GlyphKind) -> [u8; START as usize] {
    let mut bytes = [0; START as usize];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[12] = kind.tag();
    bytes[16..32].copy_from_slice(store_id);
    bytes[32..36].copy_from_slice(&number.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The kind of a pack, `None` if its header is damaged, an error if the pack must not be touched.
fn decode_header(bytes: &[u8], store_id: &[u8; 16], number: u32) -> Result<Option<GlyphKind>, StoreError> {
    let malformed = |source| StoreError::Malformed { what: format!("pack {number}"), source };
    if bytes.len() < START as usize || bytes[..8] != MAGIC || u32_at(bytes, 60) != crc32c::crc32c(&bytes[..60]) {
        return Ok(None);
    }
    let version = u32_at(bytes, 8);
    if version > FORMAT_VERSION {
        return Err(malformed(DecodeError::NewerVersion { what: "the pack", found: version, known: FORMAT_VERSION }));
    }
    if bytes[16..32] != *store_id {
        return Err(malformed(DecodeError::NotCanonical("the store id (the pack belongs to another store)")));
    }
    if u32_at(bytes, 32) != number {
        return Err(malformed(DecodeError::NotCanonical("the pack number (the file was renamed)")));
    }
    GlyphKind::from_tag(bytes[12])
        .map(Some)
        .ok_or_else(|| malformed(DecodeError::Unknown { what: "the kind", value: bytes[12].into() }))
}

fn decode_trailer(bytes: &[u8], store_id: &[u8; 16], number: u32, len: u32) -> Option<(GlyphKind, Totals, Footer)> {
    let intact = bytes[..8] == END_MAGIC && u32_at(bytes, 60) == crc32c::crc32c(&bytes[..60]);
    if !intact || bytes[8..24] != *store_id || u32_at(bytes, 24) != number {
        return None;
    }
    let kind = GlyphKind::from_tag(u32_at(bytes, 28).try_into().ok()?)?;
    let footer = Footer { offset: u32_at(bytes, 32), records: u32_at(bytes, 36), crc: u32_at(bytes, 40) };
    let plain_bytes = u64::from(u32_at(bytes, 44)) | u64::from(u32_at(bytes, 48)) << 32;
    let end = u64::from(footer.offset) + u64::from(footer.records) * ENTRY_BYTES as u64 + u64::from(TRAILER_BYTES);
    let totals = Totals { records: footer.records.into(), plain_bytes, end: footer.offset };
    (end == u64::from(len) && footer.offset >= START).then_some((kind, totals, footer))
}

impl Pack {
    pub fn new(number: u32, kind: GlyphKind) -> Self {
        let body = Body { totals: Totals { end: START, ..Totals::default() }, list: List::Memory(Vec::new()) };
        Self { number, kind, file: OnceLock::new(), body: Mutex::new(body) }
    }

    /// Opens a pack and finds its records: from its trailer if it has one, otherwise by scanning.
    pub fn open(disk: &dyn Disk, number: u32, store_id: &[u8; 16]) -> Result<Found, StoreError> {
        let failed = |source| StoreError::Disk { doing: "opening a pack", source };
        let file = disk.open(FileName::Pack(number)).map_err(failed)?;
        let file_bytes = file.stamp().map_err(failed)?.len_bytes;
        let len = u32::try_from(file_bytes).unwrap_or(u32::MAX) / ALIGN as u32 * ALIGN as u32;
        let mut head = vec![0; START as usize];
        let got = file.read_at(&mut head, 0).map_err(failed)?;
        let kind = decode_header(&head[..got], store_id, number)?;
        let bad_header = kind.is_none().then_some(Damage { pack: number, offset_bytes: 0, len_bytes: START, id: None });
        if let Some(trailer_at) = u64::from(START + TRAILER_BYTES).le(&file_bytes).then(|| file_bytes - 64) {
            let mut bytes = [0; TRAILER_BYTES as usize];
            file.read_exact_at(&mut bytes, trailer_at).map_err(failed)?;
            let exact = u32::try_from(file_bytes).ok();
            let trailer = exact.and_then(|len| decode_trailer(&bytes, store_id, number, len));
            if let Some((sealed_kind, totals, footer)) = trailer
                && kind.is_none_or(|kind| kind == sealed_kind)
            {
                let pack = Self::with(number, sealed_kind, file, totals, List::Footer(footer));
                let damage = Vec::from_iter(bad_header);
                return Ok(Found { pack, damage, tail_bytes: 0, sealed: true, header_intact: kind.is_some() });
            }
        }
        let scan = scan(&*file, number, kind, len).map_err(failed)?;
        // Without any record, a bad header is that of a pack whose creation was torn.
        let mut damage = Vec::from_iter(bad_header.filter(|_| !scan.entries.is_empty()));
        damage.extend(scan.damage);
        let totals = Totals::of(&scan.entries, scan.end);
        let tail_bytes = file_bytes.saturating_sub(scan.end.into());
        let pack = Self::with(number, scan.kind, file, totals, List::Memory(scan.entries));
        Ok(Found { pack, damage, tail_bytes, sealed: false, header_intact: kind.is_some() })
    }

    fn with(number: u32, kind: GlyphKind, file: Arc<dyn File>, totals: Totals, list: List) -> Self {
        Self { number, kind, file: OnceLock::from(file), body: Mutex::new(Body { totals, list }) }
    }

    /// The file, once there is one.
    pub fn file(&self) -> Option<&Arc<dyn File>> {
        self.file.get()
    }

    /// The file, made if there was none yet; true if it was.
    pub fn file_or_create(&self, disk: &dyn Disk) -> io::Result<(&Arc<dyn File>, bool)> {
        if let Some(file) = self.file.get() {
            return Ok((file, false));
        }
        let file = disk.create(FileName::Pack(self.number))?;
        Ok((self.file.get_or_init(|| file), true))
    }

    pub fn totals(&self) -> Totals {
        self.body.lock().totals
    }

    pub fn is_sealed(&self) -> bool {
        matches!(self.body.lock().list, List::Footer(_))
    }

    /// Notes a record that was appended to a pack that is not sealed.
    pub fn note(&self, entry: Entry) {
        let mut body = self.body.lock();
        body.totals.records += 1;
        body.totals.plain_bytes += u64::from(entry.plain_bytes);
        body.totals.end = entry.offset + padded(entry.stored_bytes);
        match &mut body.list {
            List::Memory(entries) => entries.push(entry),
            List::Footer(_) => unreachable!("a sealed pack gets no records"),
        }
    }

    /// All records, in order of offset. A damaged footer is replaced by a scan.
    pub fn entries(&self) -> Result<Vec<Entry>, StoreError> {
        let footer = match &self.body.lock().list {
            List::Memory(entries) => return Ok(entries.clone()),
            List::Footer(footer) => *footer,
        };
        let failed = |source| StoreError::Disk { doing: "reading the list of a pack", source };
        let file = self.file().expect("a sealed pack has a file");
        if let Some(entries) = read_footer(&**file, footer).map_err(failed)? {
            return Ok(entries);
        }
        tracing::warn!(pack = self.number, "the footer of a pack is damaged; its records are found by a scan");
        let scan = scan(&**file, self.number, Some(self.kind), footer.offset).map_err(failed)?;
        let mut body = self.body.lock();
        body.totals = Totals::of(&scan.entries, footer.offset);
        body.list = List::Memory(scan.entries.clone());
        Ok(scan.entries)
    }

    /// Where this pack says that it keeps a glyph, oldest copy first. One that was damaged and stored again has several.
    pub fn find(&self, id: &GlyphId) -> io::Result<Vec<Location>> {
        let footer = match &self.body.lock().list {
            List::Memory(entries) => {
                let copies = entries.iter().filter(|entry| entry.id == *id);
                return Ok(copies.map(|entry| entry.location(self.number)).collect());
            }
            List::Footer(footer) => *footer,
        };
        let file = self.file().expect("a sealed pack has a file");
        let entry = |index: u32| -> io::Result<Entry> {
            let mut bytes = [0; ENTRY_BYTES];
            file.read_exact_at(&mut bytes, u64::from(footer.offset) + u64::from(index) * ENTRY_BYTES as u64)?;
            Ok(Entry::decode(&bytes))
        };
        let (mut low, mut high) = (0, footer.records);
        while low < high {
            let middle = low + (high - low) / 2;
            if entry(middle)?.id < *id {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let mut copies = Vec::new();
        for index in low..footer.records {
            match entry(index)? {
                copy if copy.id == *id => copies.push(copy.location(self.number)),
                _ => break,
            }
        }
        Ok(copies)
    }

    /// Writes the footer and the trailer behind the records, which must be durable. They are so themselves after the
    /// next sync of the file.
    pub fn seal(&self, store_id: &[u8; 16]) -> io::Result<()> {
        let (totals, mut entries) = {
            let body = self.body.lock();
            match &body.list {
                List::Memory(entries) => (body.totals, entries.clone()),
                List::Footer(_) => return Ok(()),
            }
        };
        entries.sort_unstable_by_key(|entry| (entry.id, entry.offset));
        let mut bytes = Vec::with_capacity(entries.len() * ENTRY_BYTES + TRAILER_BYTES as usize);
        entries.iter().for_each(|entry| entry.encode(&mut bytes));
        let footer = Footer { offset: totals.end, records: entries.len() as u32, crc: crc32c::crc32c(&bytes) };
        let mut trailer = [0; TRAILER_BYTES as usize];
        trailer[..8].copy_from_slice(&END_MAGIC);
        trailer[8..24].copy_from_slice(store_id);
        let numbers = [self.number, self.kind.tag().into(), footer.offset, footer.records, footer.crc];
        for (at, number) in (24..).step_by(4).zip(numbers) {
            trailer[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        trailer[44..52].copy_from_slice(&totals.plain_bytes.to_le_bytes());
        let crc = crc32c::crc32c(&trailer[..60]);
        trailer[60..].copy_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&trailer);
        let file = self.file().ok_or(io::ErrorKind::NotFound)?;
        file.write_at(&bytes, totals.end.into())?;
        // Gives back what was reserved behind the end, and cuts off what a torn tail left there.
        file.set_len(u64::from(totals.end) + bytes.len() as u64)?;
        self.body.lock().list = List::Footer(footer);
        Ok(())
    }
}

fn read_footer(file: &dyn File, footer: Footer) -> io::Result<Option<Vec<Entry>>> {
    let mut bytes = vec![0; footer.records as usize * ENTRY_BYTES];
    match file.read_exact_at(&mut bytes, footer.offset.into()) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        result => result?,
    }
    if crc32c::crc32c(&bytes) != footer.crc {
        return Ok(None);
    }
    let mut entries: Vec<Entry> = bytes.as_chunks::<ENTRY_BYTES>().0.iter().map(Entry::decode).collect();
    entries.sort_unstable_by_key(|entry| entry.offset);
    Ok(Some(entries))
}

struct Scan {
    kind: GlyphKind,
    entries: Vec<Entry>,
    damage: Vec<Damage>,
    /// Behind the last valid record.
    end: u32,
}

/// Finds every valid record before `len`. Without a known kind, the first record decides it.
fn scan(file: &dyn File, number: u32, mut kind: Option<GlyphKind>, len: u32) -> io::Result<Scan> {
    let mut window = Window { file, start: 0, bytes: Vec::new() };
    let mut entries = Vec::new();
    let mut damage = Vec::new();
    let mut end = START;
    // The start of bytes that are no record, while they last.
    let mut bad_since = None;
    let mut at = START;
    while at.saturating_add(HEADER_BYTES as u32) <= len {
        let header = Header::decode(window.get(at, HEADER_BYTES)?, number, at);
        let Some(header) = header.filter(|header| kind.is_none_or(|kind| kind == header.kind)) else {
            bad_since.get_or_insert(at);
            at += ALIGN as u32;
            continue;
        };
        if let Some(since) = bad_since.take() {
            damage.push(Damage { pack: number, offset_bytes: since, len_bytes: at - since, id: None });
        }
        let stored = window.get(at + HEADER_BYTES as u32, header.stored_bytes as usize)?;
        if header.stored_is_intact(stored) {
            kind = Some(header.kind);
            let (stored_bytes, plain_bytes) = (header.stored_bytes, header.plain_bytes);
            entries.push(Entry { id: header.id, offset: at, stored_bytes, plain_bytes });
            at += padded(header.stored_bytes);
            end = at;
        } else {
            let len_bytes = padded(header.stored_bytes);
            damage.push(Damage { pack: number, offset_bytes: at, len_bytes, id: Some(header.id) });
            at = at.saturating_add(len_bytes);
        }
    }
    // What follows the last valid record is a torn tail, not damage.
    damage.retain(|damage| damage.offset_bytes < end);
    Ok(Scan { kind: kind.unwrap_or(GlyphKind::Data), entries, damage, end })
}

/// Reads a file from front to back in large pieces.
struct Window<'a> {
    file: &'a dyn File,
    start: u32,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// The bytes at a place, fewer at the end of the file.
    fn get(&mut self, at: u32, len: usize) -> io::Result<&[u8]> {
        let held = self.start..self.start.saturating_add(self.bytes.len() as u32);
        if !held.contains(&at) || (held.end - at) < len as u32 {
            self.bytes.resize(len.max(WINDOW_BYTES), 0);
            let mut filled = 0;
            while filled < self.bytes.len() {
                match self.file.read_at(&mut self.bytes[filled..], u64::from(at) + filled as u64)? {
                    0 => break,
                    got => filled += got,
                }
            }
            self.bytes.truncate(filled);
            self.start = at;
        }
        let from = (at - self.start) as usize;
        Ok(&self.bytes[from..self.bytes.len().min(from + len)])
    }
}
