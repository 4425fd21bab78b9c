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

use crate::codec::{self, Encode, Reader};
use crate::identity::NodePublicKey;
use crate::registry::{decode_addresses, encode_addresses};

use super::word::{Word, WordError};

const WORD: Word = Word { prefix: "phi1-", check: "phifs invitation check v1", text_bytes_max: 1024 };
const VERSION: u8 = 1;

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

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = vec![VERSION];
        bytes.put_bytes(&self.volume);
        bytes.put_bytes(&self.inviter.0);
        bytes.put_bytes(&self.secret.0);
        bytes.put_varint(self.expires_ms);
        encode_addresses(&self.addresses, &mut bytes);
        f.write_str(&WORD.write(&bytes))
    }
}

impl FromStr for Token {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        Ok(Self::decode(&WORD.read(text)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for at in WORD.prefix.len()..text.len() {
            let other = if &text[at..=at] == "a" { "b" } else { "a" };
            let wrong = format!("{}{other}{}", &text[..at], &text[at + 1..]);
            assert_eq!(wrong.parse::<Token>(), Err(WordError::Damaged), "letter {at}");
        }
        assert_eq!("hello".parse::<Token>(), Err(WordError::Foreign("phi1-")));
        assert_eq!(format!("phi1-{}", "a".repeat(100_000)).parse::<Token>(), Err(WordError::Damaged));
    }
}
