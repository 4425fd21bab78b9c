//! Bytes as one word that people can copy: a prefix, and base32 of the bytes with four bytes of a hash of them.

use data_encoding::BASE32_NOPAD;

use crate::codec::DecodeError;

const CHECK_BYTES: usize = 4;

/// One kind of words.
pub struct Word {
    /// In small letters.
    pub prefix: &'static str,
    /// For the hash: words of different kinds are never taken for each other.
    pub check: &'static str,
    /// None is longer, so nothing longer is looked at.
    pub text_bytes_max: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    #[error("it does not begin with {0}")]
    Foreign(&'static str),
    #[error("it is cut off, or a letter of it is wrong")]
    Damaged,
    #[error("it does not say what such a word says: {0}")]
    Malformed(#[from] DecodeError),
}

impl Word {
    pub fn write(&self, bytes: &[u8]) -> String {
        let bytes = [bytes, &self.check_of(bytes)].concat();
        format!("{}{}", self.prefix, BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }

    /// Letters of either case, and blanks between them: it may have been read aloud, or broken into lines.
    pub fn read(&self, text: &str) -> Result<Vec<u8>, WordError> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).take(self.text_bytes_max + 1).collect();
        let text = text.to_ascii_uppercase();
        let word = text.strip_prefix(&self.prefix.to_ascii_uppercase()).ok_or(WordError::Foreign(self.prefix))?;
        if text.len() > self.text_bytes_max {
            return Err(WordError::Damaged);
        }
        let mut bytes = BASE32_NOPAD.decode(word.as_bytes()).map_err(|_| WordError::Damaged)?;
        let (said, found) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(WordError::Damaged)?;
        if self.check_of(said) != *found {
            return Err(WordError::Damaged);
        }
        bytes.truncate(bytes.len() - CHECK_BYTES);
        Ok(bytes)
    }

    fn check_of(&self, bytes: &[u8]) -> [u8; CHECK_BYTES] {
        let mut check = [0; CHECK_BYTES];
        check.copy_from_slice(&blake3::derive_key(self.check, bytes)[..CHECK_BYTES]);
        check
    }
}
