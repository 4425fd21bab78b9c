//! What an invitation looks like on its way from one person to another: a word to be copied.
//!
//! ```text
//! phi1-<base32 of: version, volume, key of the inviter, secret, expiry, addresses, four bytes of a hash of all that>
//! ```
//!
//! It says where to ask, which key has to answer there, and the secret that admits one node. Whoever holds it can become
//! that node, so it is to be treated as a password until it is used or expires.

use core::net::SocketAddr;
use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;

use crate::codec::{self, DecodeError, Encode, Reader};
use crate::identity::NodePublicKey;
use crate::registry::{decode_addresses, encode_addresses};

const PREFIX: &str = "phi1-";
const VERSION: u8 = 1;
const CHECK_BYTES: usize = 4;
/// No token is longer, so nothing longer is looked at.
const TEXT_BYTES_MAX: usize = 1024;

/// Admits one node. It has no `Debug` that would show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub [u8; 16]);

impl Secret {
    /// As the inviter remembers it.
    pub fn hash(&self) -> [u8; 32] {
        blake3::derive_key("phifs invitation v1", &self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub volume: [u8; 16],
    /// Who answers at the addresses.
    pub inviter: NodePublicKey,
    pub addresses: Vec<SocketAddr>,
    pub secret: Secret,
    /// Milliseconds since 1970.
    pub expires_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("it does not begin with {PREFIX}")]
    Foreign,
    #[error("it is cut off, or a letter of it is wrong")]
    Damaged,
    #[error("it is not what an invitation says: {0}")]
    Malformed(#[from] DecodeError),
}

impl Token {
    fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.format("an invitation", VERSION)?;
        let (volume, inviter) = (reader.array()?, NodePublicKey(reader.array()?));
        let (secret, expires_ms) = (Secret(reader.array()?), reader.varint()?);
        let addresses = decode_addresses(&mut reader)?;
        reader.finish()?;
        Ok(Self { volume, inviter, addresses, secret, expires_ms })
    }
}

fn check(bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&blake3::derive_key("phifs invitation check v1", bytes)[..CHECK_BYTES]);
    check
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![VERSION];
        bytes.put_bytes(&self.volume);
        bytes.put_bytes(&self.inviter.0);
        bytes.put_bytes(&self.secret.0);
        bytes.put_varint(self.expires_ms);
        encode_addresses(&self.addresses, &mut bytes);
        bytes.extend(check(&bytes));
        write!(f, "{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }
}

impl FromStr for Token {
    type Err = TokenError;

    /// Letters of either case, and blanks between them: it may have been read aloud, or broken into lines.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).take(TEXT_BYTES_MAX + 1).collect();
        let text = text.to_ascii_uppercase();
        let word = text.strip_prefix(&PREFIX.to_ascii_uppercase()).ok_or(TokenError::Foreign)?;
        if text.len() > TEXT_BYTES_MAX {
            return Err(TokenError::Damaged);
        }
        let bytes = BASE32_NOPAD.decode(word.as_bytes()).map_err(|_| TokenError::Damaged)?;
        let (said, found) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(TokenError::Damaged)?;
        if check(said) != *found {
            return Err(TokenError::Damaged);
        }
        Ok(Self::decode(said)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token() -> Token {
        Token {
            volume: [1; 16],
            inviter: NodePublicKey([2; 32]),
            addresses: vec!["192.0.2.7:7447".parse().unwrap(), "[2001:db8::7]:7447".parse().unwrap()],
            secret: Secret([3; 16]),
            expires_ms: 1_800_000_000_000,
        }
    }

    #[test]
    fn tokens_survive_being_copied_by_people() {
        let text = token().to_string();
        assert_eq!(text.parse(), Ok(token()));
        let wrapped = format!(" {}\n {}\n", &text[..40].to_ascii_uppercase(), &text[40..]);
        assert_eq!(wrapped.parse(), Ok(token()));
        assert!(!format!("{:?}", token()).contains("3, 3"), "a log must not hold the secret");
    }

    #[test]
    fn version_1_is_what_it_was() {
        assert_eq!(
            blake3::hash(token().to_string().as_bytes()).to_hex().as_str(),
            "6dda758bcb9f9d8ae42520755dc1f78c403a1498b5224a734b7a4e0339240d87"
        );
    }

    #[test]
    fn truncated_and_mistyped_tokens_are_refused() {
        let text = token().to_string();
        for len in 0..text.len() {
            assert!(text[..len].parse::<Token>().is_err(), "the first {len} letters");
        }
        for at in PREFIX.len()..text.len() {
            let other = if &text[at..=at] == "a" { "b" } else { "a" };
            let wrong = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            assert_eq!(wrong.parse::<Token>(), Err(TokenError::Damaged), "letter {at}");
        }
        assert_eq!("hello".parse::<Token>(), Err(TokenError::Foreign));
        assert_eq!(format!("{PREFIX}{}", "a".repeat(100_000)).parse::<Token>(), Err(TokenError::Damaged));
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_an_error(text in ".{0,80}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = text.parse::<Token>();
            let made = [&bytes[..], &check(&bytes)].concat();
            let word = format!("{PREFIX}{}", BASE32_NOPAD.encode(&made));
            if let Ok(token) = word.parse::<Token>() {
                prop_assert_eq!(token.to_string(), word.to_ascii_lowercase());
            }
        }
    }
}
