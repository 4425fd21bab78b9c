//! Who wrote something: node keys, their signatures, and authors.
//!
//! A node is an Ed25519 key. What is signed is always a 32-byte BLAKE3 hash that was derived under the context string
//! of one kind of message, so a signature made for one purpose never serves another. (The same key also signs TLS
//! handshakes, whose messages are longer than 32 bytes.)
//!
//! An *author* is a node key and one incarnation of that node. A new incarnation starts whenever it is uncertain which
//! numbers the last one has used up; that way an author's number never names two operations.

use std::fmt;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

use crate::codec::{self, Encode, Reader};
use crate::id::AuthorId;

/// The bytes do not carry the signature of the key that they name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature is not one of node {0}")]
pub struct BadSignature(pub NodePublicKey);

/// An Ed25519 signature (RFC 8032).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl Signature {
    pub const LEN: usize = 64;
}

/// The secret half of a node's identity.
pub struct NodeKey(SigningKey);

impl NodeKey {
    /// The key that this secret stands for. The seed must come from a source fit for keys.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    pub fn public(&self) -> NodePublicKey {
        NodePublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs a message of the kind that `context` names. Costs some 20 microseconds.
    pub fn sign(&self, context: &'static str, message: &[u8]) -> Signature {
        Signature(self.0.sign(&blake3::derive_key(context, message)).to_bytes())
    }
}

/// Shows the public half only.
impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.public())
    }
}

/// Names a node, and checks what it signed. Any 32 bytes may stand here; bytes that are no key verify nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePublicKey(pub [u8; 32]);

impl NodePublicKey {
    /// Checks that this node signed the message as one of the kind that `context` names.
    ///
    /// Weak keys, under which one signature fits many messages, are refused ("strict" verification).
    pub fn verify(&self, context: &'static str, message: &[u8], signature: &Signature) -> Result<(), BadSignature> {
        let key = VerifyingKey::from_bytes(&self.0).map_err(|_| BadSignature(*self))?;
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.verify_strict(&blake3::derive_key(context, message), &signature).map_err(|_| BadSignature(*self))
    }
}

/// The first four bytes in hexadecimal: enough for people to tell nodes apart.
impl fmt::Display for NodePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A node key and one incarnation, a random number, of that node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Author {
    pub node: NodePublicKey,
    pub incarnation: u64,
}

impl Author {
    pub const LEN: usize = 40;

    /// The short name that dots carry. Only this function makes one, so no author is ever called `GENESIS`.
    pub fn id(&self) -> AuthorId {
        let hash = blake3::derive_key("phifs author id v1", &self.to_bytes());
        let mut id = [0; AuthorId::LEN];
        id.copy_from_slice(&hash[..AuthorId::LEN]);
        assert_ne!(AuthorId(id), AuthorId::GENESIS, "a hash began with sixteen zero bytes");
        AuthorId(id)
    }

    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..32].copy_from_slice(&self.node.0);
        bytes[32..].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes
    }

    pub fn encode(&self, out: &mut impl Encode) {
        out.put_bytes(&self.to_bytes());
    }

    pub fn decode(reader: &mut Reader<'_>) -> codec::Result<Self> {
        Ok(Self { node: NodePublicKey(reader.array()?), incarnation: reader.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_holds_for_its_key_context_and_message_only() {
        let key = NodeKey::from_seed(&[1; 32]);
        let other = NodeKey::from_seed(&[2; 32]).public();
        let signature = key.sign("phifs test a", b"message");
        assert_eq!(key.public().verify("phifs test a", b"message", &signature), Ok(()));

        let refused = Err(BadSignature(key.public()));
        assert_eq!(key.public().verify("phifs test b", b"message", &signature), refused);
        assert_eq!(key.public().verify("phifs test a", b"massage", &signature), refused);
        assert_eq!(other.verify("phifs test a", b"message", &signature), Err(BadSignature(other)));
        for byte in 0..Signature::LEN {
            let mut tampered = signature;
            tampered.0[byte] ^= 0x20;
            assert_eq!(key.public().verify("phifs test a", b"message", &tampered), refused, "byte {byte}");
        }
    }

    #[test]
    fn weak_key_verifies_nothing() {
        // The neutral point: a zero signature over it satisfies the lenient check for every message.
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let mut signature = Signature([0; 64]);
        signature.0[0] = 1;
        assert!(NodePublicKey(neutral).verify("phifs test a", b"anything", &signature).is_err());
    }

    #[test]
    fn each_incarnation_is_another_author() {
        let node = NodeKey::from_seed(&[1; 32]).public();
        let author = Author { node, incarnation: 1 };
        assert_ne!(author.id(), Author { node, incarnation: 2 }.id());
        assert_ne!(author.id(), Author { node: NodePublicKey([9; 32]), incarnation: 1 }.id());
        assert_eq!(Author::decode(&mut Reader::new(&author.to_bytes())), Ok(author));
    }

    /// Author ids are stored and sent: the way they are made must never change.
    #[test]
    fn author_id_is_fixed() {
        let author = Author { node: NodePublicKey([7; 32]), incarnation: 42 };
        assert_eq!(format!("{:?}", author.id()), "9b78b49d1256c0ae01a5691e834ebc6b");
    }

    #[test]
    fn secret_is_not_shown() {
        let key = NodeKey::from_seed(&[0xab; 32]);
        assert!(!format!("{key:?}").contains("abab"));
    }
}
