//! Receipts: somebody vouches for what it holds durably.

use crate::causal::VersionVector;
use crate::codec::{self, Encode, Reader};
use crate::identity::{BadSignature, NodeKey, NodePublicKey, Signature};

const CONTEXT_SIGNED: &str = "phifs receipt v1";

/// A node's word that all of these operations, and of the bytes that they name those that it is to hold, are durable with
/// it. Transferable: it is signed together with the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub context: VersionVector,
    /// What decides what it is to hold: see `LocalVolume::placing`.
    pub placing: [u8; 32],
    signature: Signature,
}

impl Receipt {
    pub fn sign(key: &NodeKey, volume: &[u8; 16], context: VersionVector, placing: [u8; 32]) -> Self {
        let signature = key.sign(CONTEXT_SIGNED, &message(volume, &context, &placing));
        Self { context, placing, signature }
    }

    /// Whether this node has given it for this volume.
    pub fn verify(&self, node: &NodePublicKey, volume: &[u8; 16]) -> Result<(), BadSignature> {
        node.verify(CONTEXT_SIGNED, &message(volume, &self.context, &self.placing), &self.signature)
    }

    pub fn encode(&self, out: &mut Vec<u8>) {
        self.context.encode(out);
        out.put_bytes(&self.placing);
        out.put_bytes(&self.signature.0);
    }

    pub fn decode(reader: &mut Reader<'_>) -> codec::Result<Self> {
        let (context, placing) = (VersionVector::decode(reader)?, reader.array()?);
        Ok(Self { context, placing, signature: Signature(reader.array()?) })
    }
}

fn message(volume: &[u8; 16], context: &VersionVector, placing: &[u8; 32]) -> Vec<u8> {
    let mut message = [&volume[..], placing].concat();
    context.encode(&mut message);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::AuthorId;

    #[test]
    fn a_receipt_is_of_one_node_for_one_volume_and_one_state() {
        let (key, other) = (NodeKey::from_seed(&[1; 32]), NodeKey::from_seed(&[2; 32]));
        let context = VersionVector::new().with(AuthorId([3; 16]), 9);
        let receipt = Receipt::sign(&key, &[4; 16], context, [5; 32]);
        let mut bytes = Vec::new();
        receipt.encode(&mut bytes);
        let read = Receipt::decode(&mut Reader::new(&bytes)).unwrap();
        assert_eq!(read, receipt);
        assert!(read.verify(&key.public(), &[4; 16]).is_ok());
        assert!(read.verify(&other.public(), &[4; 16]).is_err());
        assert!(read.verify(&key.public(), &[5; 16]).is_err());
        let more = Receipt { context: VersionVector::new().with(AuthorId([3; 16]), 10), ..read.clone() };
        assert!(more.verify(&key.public(), &[4; 16]).is_err());
        let other = Receipt { placing: [6; 32], ..read };
        assert!(other.verify(&key.public(), &[4; 16]).is_err());
    }
}
