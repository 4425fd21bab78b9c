//! The record of a snapshot: its eight fields.
//!
//! ```text
//! record = version u8 | volume id 16 | roots | parents | context | theta | delta phi | kappa | coherence | author, label
//! sealed = record | Ed25519 signature 64         id = BLAKE3 of the record, derived for this purpose
//! ```
//!
//! The id leaves the signature out, so that one state has one id whoever looks at it.

use crate::causal::VersionVector;
use crate::codec::{self, DecodeError, Encode, Reader};
use crate::id::{AuthorId, S8Id};
use crate::identity::{Author, BadSignature, NodeKey, Signature};
use crate::meta::{Roots, TableId};
use crate::namespace::apply::GENESIS_DOT;
use crate::namespace::tables::{DERIVED, REPLICATED};
use crate::registry::{Cut, text};
use crate::time::{Hlc, Timestamp};

use super::facts::Facts;

const VERSION: u8 = 1;
const SEAL_CONTEXT: &str = "phifs s8 snapshot v1";
const ID_CONTEXT: &str = "phifs s8 snapshot id v1";
const ROOT_CONTEXT: &str = "phifs volume root v1";

/// When, by the clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Theta {
    pub hlc: Hlc,
    pub time: Timestamp,
    /// How far the author's clock was behind the others', as measured; 0 where there are no others.
    pub lag_micros: i64,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeltaPhi {
    /// The lengths of all files, added up.
    pub logical_bytes: u64,
    /// Plain bytes of the glyphs that the author's store held, each counted once.
    pub unique_bytes: u64,
    /// Bytes in glyphs that changed files have and had not at the parents.
    pub new_bytes: u64,
}

/// What it is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kappa {
    /// Everything that is no directory, hard links counted once.
    pub files: u64,
    pub directories: u64,
    /// Names on the longest path to a directory; 0 for an empty root.
    pub depth: u32,
    pub largest_bytes: u64,
    /// References of files to glyphs.
    pub glyphs: u64,
}

impl Kappa {
    pub fn mean_bytes(&self, logical_bytes: u64) -> u64 {
        logical_bytes.checked_div(self.files).unwrap_or(0)
    }
}

/// How well the replicas agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coherence {
    /// Names and files with concurrent meanings.
    pub conflicts: u64,
    /// The cluster's order parameter in millionths; a million where a node is alone.
    pub r_millionths: u32,
}

/// Everything that a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub volume: [u8; 16],
    /// Of the replicated tables, which are the state, and of the derived ones, for browsing.
    pub roots: Roots,
    pub parents: Vec<S8Id>,
    /// Exactly which operations it contains; and who their authors are.
    pub context: VersionVector,
    pub authors: Vec<Author>,
    pub theta: Theta,
    pub delta_phi: DeltaPhi,
    pub kappa: Kappa,
    pub coherence: Coherence,
    /// Who took it.
    pub author: Author,
    pub label: String,
}

impl Record {
    /// The state that it is about.
    pub fn cut(&self) -> Cut {
        let (roots, context) = (self.roots.clone(), self.context.clone());
        Cut { roots, context, hlc: self.theta.hlc, time: self.theta.time }
    }

    /// What was counted of that state, to go on counting from. What is new since is nothing yet.
    pub fn facts(&self) -> Facts {
        Facts {
            kappa: self.kappa,
            logical_bytes: self.delta_phi.logical_bytes,
            new_bytes: 0,
            conflicts: self.coherence.conflicts,
        }
    }

    /// Names the state: equal for equal sets of operations, whatever happened on the way.
    pub fn root(&self) -> [u8; 32] {
        root_of(&self.roots)
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.put_bytes(&self.volume);
        self.roots.encode(&mut out);
        out.put_varint(self.parents.len() as u64);
        self.parents.iter().for_each(|parent| out.put_bytes(&parent.0));
        out.put_varint(self.authors.len() as u64);
        for author in &self.authors {
            author.encode(&mut out);
            out.put_varint(self.context.get(author.id()));
        }
        out.put_hlc(self.theta.hlc);
        out.put_time(self.theta.time);
        out.put_signed(self.theta.lag_micros);
        for number in [self.delta_phi.logical_bytes, self.delta_phi.unique_bytes, self.delta_phi.new_bytes] {
            out.put_varint(number);
        }
        let Kappa { files, directories, depth, largest_bytes, glyphs } = self.kappa;
        for number in [files, directories, u64::from(depth), largest_bytes, glyphs] {
            out.put_varint(number);
        }
        out.put_varint(self.coherence.conflicts);
        out.put_varint(u64::from(self.coherence.r_millionths));
        self.author.encode(&mut out);
        out.put_blob(self.label.as_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.format("a snapshot", VERSION)?;
        let volume = reader.array()?;
        let roots = Roots::decode(&mut reader)?;
        check_tables(&roots)?;
        let parents = (0..reader.count()?).map(|_| Ok(S8Id(reader.array()?))).collect::<codec::Result<Vec<_>>>()?;
        if parents.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(DecodeError::NotCanonical("the parents of a snapshot"));
        }
        let mut context = VersionVector::new().with(GENESIS_DOT.author, GENESIS_DOT.n);
        let mut authors: Vec<Author> = Vec::new();
        for _ in 0..reader.count()? {
            let author = Author::decode(&mut reader)?;
            let n = reader.varint()?;
            if n == 0 || authors.last().is_some_and(|last| last.id() >= author.id()) {
                return Err(DecodeError::NotCanonical("the authors of a snapshot"));
            }
            context = context.with(author.id(), n);
            authors.push(author);
        }
        let theta = Theta { hlc: reader.hlc()?, time: reader.time()?, lag_micros: reader.signed()? };
        let delta_phi =
            DeltaPhi { logical_bytes: reader.varint()?, unique_bytes: reader.varint()?, new_bytes: reader.varint()? };
        let kappa = Kappa {
            files: reader.varint()?,
            directories: reader.varint()?,
            depth: reader.varint_u32()?,
            largest_bytes: reader.varint()?,
            glyphs: reader.varint()?,
        };
        let coherence = Coherence { conflicts: reader.varint()?, r_millionths: reader.varint_u32()? };
        let author = Author::decode(&mut reader)?;
        let label = text(&mut reader)?;
        reader.finish()?;
        Ok(Self { volume, roots, parents, context, authors, theta, delta_phi, kappa, coherence, author, label })
    }
}

/// Names the state that these roots stand for: a hash over those of the replicated tables.
pub fn root_of(roots: &Roots) -> [u8; 32] {
    let mut replicated = Roots::default();
    for table in REPLICATED {
        let id = TableId(table as u8);
        replicated.set(id, roots.get(id));
    }
    let mut bytes = Vec::new();
    replicated.encode(&mut bytes);
    blake3::derive_key(ROOT_CONTEXT, &bytes)
}

/// The roots of a snapshot among all those of a store.
pub fn roots_of_state(all: &Roots) -> Roots {
    let mut roots = Roots::default();
    for table in REPLICATED.into_iter().chain(DERIVED) {
        let id = TableId(table as u8);
        roots.set(id, all.get(id));
    }
    roots
}

/// The authors behind a context, in the order of their ids; an error names one that is not known.
pub fn authors_of(
    context: &VersionVector,
    author: impl Fn(AuthorId) -> Option<Author>,
) -> Result<Vec<Author>, AuthorId> {
    let known = context.iter().filter(|(id, _)| *id != GENESIS_DOT.author);
    known.map(|(id, _)| author(id).ok_or(id)).collect()
}

fn check_tables(roots: &Roots) -> codec::Result<()> {
    let is_part = |id: TableId| REPLICATED.into_iter().chain(DERIVED).any(|table| table as u8 == id.0);
    match roots.iter().find(|(id, _)| !is_part(*id)) {
        Some((id, _)) => Err(DecodeError::Unknown { what: "a table of a snapshot", value: u64::from(id.0) }),
        None => Ok(()),
    }
}

/// A record with the signature of its author.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedRecord {
    pub record: Record,
    bytes: Vec<u8>,
    signature: Signature,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("the record of a snapshot is malformed: {0}")]
    Malformed(#[from] DecodeError),
    #[error("the record of a snapshot is forged: {0}")]
    Forged(#[from] BadSignature),
}

impl SealedRecord {
    /// # Panics
    /// If the key is not the author's.
    pub fn seal(record: Record, key: &NodeKey) -> Self {
        assert_eq!(record.author.node, key.public(), "a snapshot is sealed by who took it");
        let bytes = record.encode();
        let signature = key.sign(SEAL_CONTEXT, &bytes);
        Self { record, bytes, signature }
    }

    pub fn id(&self) -> S8Id {
        S8Id(blake3::derive_key(ID_CONTEXT, &self.bytes))
    }

    pub fn encode(&self) -> Vec<u8> {
        [&self.bytes[..], &self.signature.0].concat()
    }

    /// Checks the signature as well.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let at = bytes.len().checked_sub(Signature::LEN).ok_or(DecodeError::Truncated)?;
        let (bytes, mut signature) = (&bytes[..at], Reader::new(&bytes[at..]));
        let signature = Signature(signature.array()?);
        let record = Record::decode(bytes)?;
        record.author.node.verify(SEAL_CONTEXT, bytes, &signature)?;
        Ok(Self { record, bytes: bytes.to_vec(), signature })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::GlyphId;
    use crate::merkle::Root;
    use crate::namespace::Table;

    fn key() -> NodeKey {
        NodeKey::from_seed(&[5; 32])
    }

    fn record() -> Record {
        let author = Author { node: key().public(), incarnation: 7 };
        let mut roots = Roots::default();
        roots.set(TableId(Table::Inodes as u8), Root { id: Some(GlyphId([1; 32])), level: 2, rows: 1000 });
        roots.set(TableId(Table::Children as u8), Root { id: Some(GlyphId([2; 32])), level: 1, rows: 900 });
        Record {
            volume: [3; 16],
            roots,
            parents: vec![S8Id([4; 32])],
            context: VersionVector::new().with(GENESIS_DOT.author, 1).with(author.id(), 99),
            authors: vec![author],
            theta: Theta {
                hlc: Hlc::from_millis(1_700_000_000_000),
                time: Timestamp::new(1_700_000_000, 5),
                lag_micros: -3,
            },
            delta_phi: DeltaPhi { logical_bytes: 5000, unique_bytes: 4000, new_bytes: 300 },
            kappa: Kappa { files: 10, directories: 2, depth: 1, largest_bytes: 900, glyphs: 12 },
            coherence: Coherence { conflicts: 0, r_millionths: 1_000_000 },
            author,
            label: "before".into(),
        }
    }

    #[test]
    fn a_sealed_record_round_trips() {
        let sealed = SealedRecord::seal(record(), &key());
        let decoded = SealedRecord::decode(&sealed.encode()).unwrap();
        assert_eq!((decoded.id(), &decoded.record), (sealed.id(), &record()));
    }

    /// Snapshots are kept for years: what they are called and how they are written must never change.
    #[test]
    fn version_1_is_what_it_was() {
        let sealed = SealedRecord::seal(record(), &key());
        assert_eq!(format!("{}", sealed.id()), "a7c969bd58f0b44df2dde227835b52bcd46e4c208d95a52bc80ea55084e1bee6");
        assert_eq!(
            blake3::hash(&sealed.encode()).to_hex().as_str(),
            "9042b5b3d21f1d5fb2d931add3553861e9c9410c50a2f206ffd419347966f5ba"
        );
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_refused() {
        let bytes = SealedRecord::seal(record(), &key()).encode();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            assert!(SealedRecord::decode(&damaged).is_err(), "byte {at}");
            assert!(SealedRecord::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_seal_of_somebody_else_is_forged() {
        let mut record = record();
        let sealed = SealedRecord::seal(record.clone(), &key());
        record.label = "after".into();
        let forged = [record.encode(), sealed.signature.0.to_vec()].concat();
        assert!(matches!(SealedRecord::decode(&forged), Err(RecordError::Forged(_))));
    }

    #[test]
    fn the_root_is_that_of_the_state_alone() {
        let (record, mut other) = (record(), record());
        other.roots.set(TableId(Table::Children as u8), Root::EMPTY);
        assert_eq!(record.root(), other.root(), "what follows from the state adds nothing to it");
        other.roots.set(TableId(Table::Inodes as u8), Root::EMPTY);
        assert_ne!(record.root(), other.root());
    }
}
