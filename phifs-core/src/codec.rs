//! Canonical bytes: one value has one encoding, and hostile bytes decode to an error, never to a panic.
//!
//! Integers that are usually small are LEB128 varints in their shortest form; a longer form is refused.

use crate::id::{AuthorId, Dot, GlyphId};
use crate::time::{Hlc, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the bytes end early")]
    Truncated,
    #[error("{0} is not in canonical form")]
    NotCanonical(&'static str),
    #[error("{what} has the unknown value {value}")]
    Unknown { what: &'static str, value: u64 },
    #[error("{0} bytes follow the end")]
    Trailing(usize),
    #[error("{what} is written in format version {found}; this program knows versions up to {known}")]
    NewerVersion { what: &'static str, found: u32, known: u32 },
}

pub type Result<T> = std::result::Result<T, DecodeError>;

/// Appends canonical encodings to a byte vector.
pub trait Encode {
    fn put_u8(&mut self, value: u8);
    fn put_bytes(&mut self, bytes: &[u8]);

    fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.put_u8(value as u8);
    }

    /// Zigzag, so that small negative numbers stay short.
    fn put_signed(&mut self, value: i64) {
        self.put_varint(((value << 1) ^ (value >> 63)) as u64);
    }

    /// A length, then the bytes.
    fn put_blob(&mut self, bytes: &[u8]) {
        self.put_varint(bytes.len() as u64);
        self.put_bytes(bytes);
    }

    fn put_u32(&mut self, value: u32) {
        self.put_bytes(&value.to_le_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.put_bytes(&value.to_le_bytes());
    }

    fn put_dot(&mut self, dot: Dot) {
        self.put_bytes(&dot.author.0);
        self.put_varint(dot.n);
    }

    fn put_glyph_id(&mut self, id: &GlyphId) {
        self.put_bytes(&id.0);
    }

    fn put_hlc(&mut self, hlc: Hlc) {
        self.put_varint(hlc.0);
    }

    fn put_time(&mut self, time: Timestamp) {
        self.put_signed(time.secs);
        self.put_varint(u64::from(time.nanos));
    }
}

impl Encode for Vec<u8> {
    fn put_u8(&mut self, value: u8) {
        self.push(value);
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Reads canonical encodings from the front of a byte slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Checks that nothing is left over.
    pub fn finish(self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.rest.len())) }
    }

    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    /// Reads the version of the format that `what` is written in, of which one is known.
    pub fn format(&mut self, what: &'static str, known: u8) -> Result<()> {
        match self.u8()? {
            found if found == known => Ok(()),
            found if found > known => {
                Err(DecodeError::NewerVersion { what, found: u32::from(found), known: u32::from(known) })
            }
            found => Err(DecodeError::Unknown { what: "a format version", value: u64::from(found) }),
        }
    }

    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    #[inline]
    pub fn varint(&mut self) -> Result<u64> {
        // Most numbers are small.
        if let [byte @ ..0x80, rest @ ..] = self.rest {
            self.rest = rest;
            return Ok(u64::from(*byte));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::NotCanonical("a number"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(DecodeError::NotCanonical("a number"));
                }
                return Ok(value);
            }
        }
        Err(DecodeError::NotCanonical("a number"))
    }

    pub fn varint_u32(&mut self) -> Result<u32> {
        u32::try_from(self.varint()?).map_err(|_| DecodeError::NotCanonical("a 32-bit number"))
    }

    pub fn signed(&mut self) -> Result<i64> {
        let raw = self.varint()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    pub fn blob(&mut self) -> Result<&'a [u8]> {
        let len = self.count()?;
        self.bytes(len)
    }

    /// A number of things still to come, each at least one byte long, so it can never exceed what is left.
    pub fn count(&mut self) -> Result<usize> {
        let count = self.varint()?;
        if count > self.rest.len() as u64 { Err(DecodeError::Truncated) } else { Ok(count as usize) }
    }

    pub fn dot(&mut self) -> Result<Dot> {
        let author = AuthorId(self.array()?);
        Ok(Dot { author, n: self.varint()? })
    }

    pub fn glyph_id(&mut self) -> Result<GlyphId> {
        Ok(GlyphId(self.array()?))
    }

    pub fn hlc(&mut self) -> Result<Hlc> {
        Ok(Hlc(self.varint()?))
    }

    pub fn time(&mut self) -> Result<Timestamp> {
        let secs = self.signed()?;
        let nanos = self.varint_u32()?;
        if nanos >= 1_000_000_000 {
            return Err(DecodeError::NotCanonical("a time"));
        }
        Ok(Timestamp { secs, nanos })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_round_trip(value: u64, signed: i64) {
            let mut bytes = Vec::new();
            bytes.put_varint(value);
            bytes.put_signed(signed);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varint(), Ok(value));
            prop_assert_eq!(reader.signed(), Ok(signed));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn any_bytes_decode_or_fail_cleanly(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            if let Ok(value) = reader.varint() {
                let mut again = Vec::new();
                again.put_varint(value);
                prop_assert_eq!(&bytes[..again.len()], &again[..], "one value, one encoding");
            }
        }
    }

    #[test]
    fn longer_forms_of_a_number_are_refused() {
        assert_eq!(Reader::new(&[0x80, 0x00]).varint(), Err(DecodeError::NotCanonical("a number")));
    }
}
