//! Sealed groups: some consecutive operations of one author, under one signature.
//!
//! - Each *operation* extends its author's hash chain. So the chain does not depend on how operations were grouped, and
//!   operations that are sealed again after a crash, in other groups, have the same history as before.
//! - A signature over the chain's value after the last operation vouches for everything up to there. Where a group
//!   begins is not signed: whoever leaves out operations at its front still has a correct group.
//! - A `SealedGroup` in memory was signed by its author: `decode` checks the signature, and its bytes never change
//!   afterwards. Whether it continues what is known of the author is for the log to check.
//! - What an operation says is unknown here; it is a string of bytes with a number.
//!
//! ```text
//! group      u8 1 | author | first n | count | chain before first (32) | context | hlc first | hlc last
//!            | count x (length, bytes) | signature (64)
//! chain(0)   BLAKE3 derive_key("phifs operation chain start v1", author)
//! chain(n)   BLAKE3 derive_key("phifs operation chain v1", chain(n-1) | u64 n | bytes)
//! signed     author | u64 last n | chain(last n) | u64 hlc first | u64 hlc last | context
//! ```

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use crate::causal::VersionVector;
use crate::codec::{DecodeError, Encode, Reader};
use crate::id::AuthorId;
use crate::identity::{Author, BadSignature, NodeKey, Signature};
use crate::time::Hlc;

const VERSION: u8 = 1;
const CONTEXT_SIGNED: &str = "phifs operation group v1";
const CONTEXT_CHAIN: &str = "phifs operation chain v1";
const CONTEXT_CHAIN_START: &str = "phifs operation chain start v1";

/// A group takes no more operations once they fill this much; so it exceeds it by less than one operation.
pub const GROUP_OPS_BYTES: usize = 256 << 10;
/// The largest operation.
pub const OP_BYTES_MAX: usize = 1 << 20;
/// The largest number of an operation; inode numbers have 44 bits for it.
pub const OP_NUMBER_MAX: u64 = (1 << 44) - 1;
/// The most authors in the context of a group.
pub const CONTEXT_AUTHORS_MAX: usize = 1 << 16;
/// No group is longer than this: fixed fields, a full context, and the operations.
pub const GROUP_BYTES_MAX: usize = 256 + CONTEXT_AUTHORS_MAX * 26 + OPS_BYTES_MAX;
/// The operations with their lengths: the last one may begin just below the threshold.
const OPS_BYTES_MAX: usize = GROUP_OPS_BYTES + OP_BYTES_MAX + 3;

// The length of an operation fits in a varint of three bytes.
const _: () = assert!(OP_BYTES_MAX < 1 << 21);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    #[error("the group is malformed: {0}")]
    Malformed(#[from] DecodeError),
    /// Not by its author, or changed since.
    #[error("the group is not authentic: {0}")]
    Forged(#[from] BadSignature),
    #[error("the group's {what} are {found}, more than {limit}")]
    TooLarge { what: &'static str, found: usize, limit: usize },
    #[error("the group contradicts itself: {0}")]
    Inconsistent(&'static str),
}

/// The value of an author's hash chain after one of its operations; it stands for all up to there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ChainHash(pub [u8; 32]);

impl ChainHash {
    pub const LEN: usize = 32;

    /// Before the first operation.
    pub fn start(author: &Author) -> Self {
        Self(blake3::derive_key(CONTEXT_CHAIN_START, &author.to_bytes()))
    }

    /// After operation `n`, where `self` is the value before it.
    #[must_use]
    pub fn after(&self, n: u64, op: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT_CHAIN);
        hasher.update(&self.0).update(&n.to_le_bytes()).update(op);
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How far an author's history goes, and which history it is. The number is 0 before the first operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub n: u64,
    pub chain: ChainHash,
}

impl Head {
    pub fn start(author: &Author) -> Self {
        Self { n: 0, chain: ChainHash::start(author) }
    }

    #[must_use]
    fn after(self, op: &[u8]) -> Self {
        let n = self.n + 1;
        Self { n, chain: self.chain.after(n, op) }
    }
}

/// Collects operations of one author and seals them, group after group.
#[derive(Debug)]
pub struct GroupBuilder {
    author: Author,
    before: Head,
    head: Head,
    hlc: Option<(Hlc, Hlc)>,
    ops: Vec<u8>,
}

impl GroupBuilder {
    /// Continues the author's history after `head`: the log's, or `Head::start` for a new author.
    pub fn new(author: Author, head: Head) -> Self {
        Self { author, before: head, head, hlc: None, ops: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.hlc.is_none()
    }

    /// Seal before adding more.
    pub fn is_full(&self) -> bool {
        self.ops.len() >= GROUP_OPS_BYTES
    }

    /// After the last operation added.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Adds the author's next operation.
    ///
    /// # Panics
    /// If `n` is not the next number, time goes back, the operation exceeds `OP_BYTES_MAX`, or the group is full:
    /// all of them are the caller's bugs, and none may get a signature.
    pub fn push(&mut self, n: u64, hlc: Hlc, op: &[u8]) {
        assert!(n == self.head.n + 1, "operation {n} does not follow {}", self.head.n);
        assert!(n <= OP_NUMBER_MAX, "the author has used up its numbers");
        assert!(op.len() <= OP_BYTES_MAX, "operation {n} has {} bytes", op.len());
        assert!(!self.is_full(), "the group is full");
        let (first, last) = self.hlc.unwrap_or((hlc, hlc));
        assert!(last <= hlc, "operation {n} is stamped before its predecessor");
        self.hlc = Some((first, hlc));
        self.head = self.head.after(op);
        self.ops.put_blob(op);
    }

    /// Signs what was added, and goes on with an empty group. Costs a signature, some 20 microseconds.
    ///
    /// `context` is what the author knew at its last operation, or later; the author's own number in it is set here.
    ///
    /// # Errors
    /// `TooLarge` for a context of more than `CONTEXT_AUTHORS_MAX` authors; the operations stay.
    ///
    /// # Panics
    /// If nothing was added, or the key is not the author's.
    pub fn seal(&mut self, key: &NodeKey, context: VersionVector) -> Result<SealedGroup, GroupError> {
        let hlc = self.hlc.expect("a group has at least one operation");
        assert_eq!(key.public(), self.author.node, "only the author signs its groups");
        let context = context.with(self.author.id(), self.head.n);
        check_limit("authors", context.len(), CONTEXT_AUTHORS_MAX)?;

        let mut bytes = Vec::with_capacity(256 + context.len() * 26 + self.ops.len());
        bytes.put_u8(VERSION);
        self.author.encode(&mut bytes);
        bytes.put_varint(self.before.n + 1);
        bytes.put_varint(self.head.n - self.before.n);
        bytes.put_bytes(&self.before.chain.0);
        context.encode(&mut bytes);
        bytes.put_hlc(hlc.0);
        bytes.put_hlc(hlc.1);
        let ops = bytes.len()..bytes.len() + self.ops.len();
        bytes.append(&mut self.ops);
        let signature = key.sign(CONTEXT_SIGNED, &signed_message(&self.author, self.head, hlc, &context));
        bytes.put_bytes(&signature.0);

        let (author, before, head) = (self.author, self.before, self.head);
        self.before = head;
        self.hlc = None;
        Ok(SealedGroup { bytes: bytes.into(), author, id: author.id(), before, head, context, hlc, ops })
    }
}

/// Some consecutive operations of one author, signed by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedGroup {
    /// The whole encoding; it travels and is kept verbatim.
    bytes: Bytes,
    author: Author,
    id: AuthorId,
    before: Head,
    head: Head,
    context: VersionVector,
    hlc: (Hlc, Hlc),
    /// Where in `bytes` the operations are.
    ops: Range<usize>,
}

impl SealedGroup {
    /// Reads a group that a peer or a disk handed over, and checks that its author signed it (some 50 microseconds).
    pub fn decode(bytes: Bytes) -> Result<Self, GroupError> {
        let group = Self::parse(bytes)?;
        group.verify()?;
        Ok(group)
    }

    /// The part of `decode` that `parse` leaves out.
    pub(crate) fn verify(&self) -> Result<(), BadSignature> {
        let (_, signature) = self.bytes.split_last_chunk().expect("parse found a signature");
        let message = signed_message(&self.author, self.head, self.hlc, &self.context);
        self.author.node.verify(CONTEXT_SIGNED, &message, &Signature(*signature))
    }

    /// Reads a group without checking the signature: for recovery, which reads what this node checked before and must
    /// not take a minute for it. No such group may leave this node.
    pub(crate) fn parse(bytes: Bytes) -> Result<Self, GroupError> {
        check_limit("bytes", bytes.len(), GROUP_BYTES_MAX)?;
        let mut reader = Reader::new(&bytes);
        match reader.u8()? {
            VERSION => (),
            0 => return Err(DecodeError::Unknown { what: "the group's version", value: 0 }.into()),
            found => {
                let (what, known) = ("an operation group", VERSION.into());
                return Err(DecodeError::NewerVersion { what, found: found.into(), known }.into());
            }
        }
        let author = Author::decode(&mut reader)?;
        let first = reader.varint()?;
        let count = reader.count()?;
        let before_n = first.checked_sub(1).ok_or(GroupError::Inconsistent("operations count from 1"))?;
        if count == 0 {
            return Err(GroupError::Inconsistent("it has no operation"));
        }
        if count as u64 > OP_NUMBER_MAX.saturating_sub(before_n) {
            return Err(GroupError::Inconsistent("its numbers are too large"));
        }
        let before = Head { n: before_n, chain: ChainHash(reader.array()?) };
        let context = VersionVector::decode(&mut reader)?;
        check_limit("authors", context.len(), CONTEXT_AUTHORS_MAX)?;
        let hlc = (reader.hlc()?, reader.hlc()?);
        if hlc.0 > hlc.1 {
            return Err(GroupError::Inconsistent("its time goes back"));
        }

        let ops_start = bytes.len() - reader.remaining();
        let mut head = before;
        for _ in 0..count {
            let op = reader.blob()?;
            check_limit("bytes of one operation", op.len(), OP_BYTES_MAX)?;
            head = head.after(op);
        }
        let ops = ops_start..bytes.len() - reader.remaining();
        check_limit("bytes of operations", ops.len(), OPS_BYTES_MAX)?;
        reader.array::<{ Signature::LEN }>()?;
        reader.finish()?;

        let id = author.id();
        if context.get(id) != head.n {
            return Err(GroupError::Inconsistent("its context does not end with it"));
        }
        if before.n == 0 && before.chain != ChainHash::start(&author) {
            return Err(GroupError::Inconsistent("its chain does not start with its author"));
        }
        Ok(Self { author, id, before, head, context, hlc, ops, bytes })
    }

    /// The encoding, always the same bytes.
    pub fn encoded(&self) -> &Bytes {
        &self.bytes
    }

    pub fn author(&self) -> &Author {
        &self.author
    }

    pub fn author_id(&self) -> AuthorId {
        self.id
    }

    pub fn first(&self) -> u64 {
        self.before.n + 1
    }

    pub fn last(&self) -> u64 {
        self.head.n
    }

    /// The author's history before the first operation.
    pub fn before(&self) -> Head {
        self.before
    }

    /// The author's history after the last operation.
    pub fn head(&self) -> Head {
        self.head
    }

    /// What must be applied before the group, and the group itself.
    pub fn context(&self) -> &VersionVector {
        &self.context
    }

    /// The times of the first and of the last operation.
    pub fn hlc(&self) -> (Hlc, Hlc) {
        self.hlc
    }

    /// Every operation with its number.
    pub fn ops(&self) -> impl Iterator<Item = (u64, Bytes)> + '_ {
        let mut reader = Reader::new(&self.bytes[self.ops.clone()]);
        (self.first()..=self.last()).map(move |n| {
            let op = reader.blob().expect("every operation was read once when the group was made");
            (n, self.bytes.slice_ref(op))
        })
    }

    /// The chain after operation `n`, where the group has it: from before its first operation to its last.
    pub fn chain_at(&self, n: u64) -> Option<ChainHash> {
        match n {
            n if n == self.head.n => Some(self.head.chain),
            n if n < self.before.n || n > self.head.n => None,
            n => {
                let known = self.ops().take((n - self.before.n) as usize);
                Some(known.fold(self.before, |head, (_, op)| head.after(&op)).chain)
            }
        }
    }

    /// The number up to which both groups sign different histories of one author, if they do.
    ///
    /// As both are signed, the two together prove to anyone that the author told two stories (or was copied).
    pub fn contradicts(&self, other: &Self) -> Option<u64> {
        let n = self.last().min(other.last());
        let (ours, theirs) = (self.chain_at(n)?, other.chain_at(n)?);
        (self.author == other.author && ours != theirs).then_some(n)
    }
}

fn check_limit(what: &'static str, found: usize, limit: usize) -> Result<(), GroupError> {
    if found > limit { Err(GroupError::TooLarge { what, found, limit }) } else { Ok(()) }
}

fn signed_message(author: &Author, head: Head, hlc: (Hlc, Hlc), context: &VersionVector) -> Vec<u8> {
    let mut message = Vec::with_capacity(104 + context.len() * 26);
    author.encode(&mut message);
    message.put_u64(head.n);
    message.put_bytes(&head.chain.0);
    message.put_u64(hlc.0.0);
    message.put_u64(hlc.1.0);
    context.encode(&mut message);
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Dot;
    use proptest::prelude::*;

    fn key() -> NodeKey {
        NodeKey::from_seed(&[3; 32])
    }

    fn author() -> Author {
        Author { node: key().public(), incarnation: 5 }
    }

    /// Seals the operations in groups that end where `ends` says.
    fn seal_all(ops: &[Vec<u8>], ends: impl Fn(usize) -> bool) -> Vec<SealedGroup> {
        let mut builder = GroupBuilder::new(author(), Head::start(&author()));
        let mut groups = Vec::new();
        let mut seen = VersionVector::new();
        seen.advance(Dot { author: AuthorId([9; 16]), n: 1 });
        for (i, op) in ops.iter().enumerate() {
            builder.push(i as u64 + 1, Hlc(100 + i as u64), op);
            if ends(i) || i + 1 == ops.len() {
                groups.push(builder.seal(&key(), seen.clone()).unwrap());
            }
        }
        groups
    }

    fn some_group() -> SealedGroup {
        let ops = [b"mkdir".to_vec(), b"create".to_vec(), Vec::new(), b"unlink".to_vec()];
        seal_all(&ops, |i| i == 0).pop().unwrap()
    }

    #[test]
    fn group_tells_what_was_sealed() {
        let group = SealedGroup::decode(some_group().encoded().clone()).unwrap();
        assert_eq!(group, some_group());
        assert_eq!((group.first(), group.last(), group.hlc()), (2, 4, (Hlc(101), Hlc(103))));
        assert_eq!(group.author_id(), author().id());
        assert_eq!(group.context().get(author().id()), 4);
        assert_eq!(group.context().get(AuthorId([9; 16])), 1);
        let ops: Vec<_> = group.ops().map(|(n, op)| (n, op.to_vec())).collect();
        assert_eq!(ops, [(2, b"create".to_vec()), (3, vec![]), (4, b"unlink".to_vec())]);
        assert_eq!(group.chain_at(4), Some(group.head().chain));
        assert_eq!(group.chain_at(3).unwrap().after(4, b"unlink"), group.head().chain);
        assert_eq!((group.chain_at(0), group.chain_at(5)), (None, None));
    }

    /// Groups are kept and sent for years, and signatures depend on every byte of the rules.
    #[test]
    fn format_is_fixed() {
        let group = some_group();
        let hash = blake3::hash(group.encoded()).to_hex();
        assert_eq!((group.encoded().len(), &hash[..16]), (191, "33b65d25960483c3"));
    }

    #[test]
    fn tampering_with_any_byte_is_noticed() {
        let sealed = some_group();
        for i in 0..sealed.encoded().len() {
            for mask in [0x01, 0x80, 0xff] {
                let mut bytes = sealed.encoded().to_vec();
                bytes[i] ^= mask;
                assert!(SealedGroup::decode(bytes.into()).is_err(), "byte {i}, mask {mask:x}");
            }
            assert!(SealedGroup::decode(sealed.encoded().slice(..i)).is_err(), "cut at {i}");
        }
    }

    #[test]
    fn another_nodes_signature_is_refused() {
        let stranger = NodeKey::from_seed(&[4; 32]);
        let sealed = some_group();
        let message = signed_message(&sealed.author, sealed.head, sealed.hlc, &sealed.context);
        let mut bytes = sealed.encoded().to_vec();
        let at = bytes.len() - Signature::LEN;
        bytes[at..].copy_from_slice(&stranger.sign(CONTEXT_SIGNED, &message).0);
        assert_eq!(SealedGroup::decode(bytes.into()), Err(GroupError::Forged(BadSignature(author().node))));
    }

    #[test]
    fn newer_version_is_refused_by_name() {
        let mut bytes = some_group().encoded().to_vec();
        bytes[0] = VERSION + 1;
        let newer = DecodeError::NewerVersion { what: "an operation group", found: 2, known: 1 };
        assert_eq!(SealedGroup::decode(bytes.into()), Err(GroupError::Malformed(newer)));
    }

    #[test]
    fn oversized_groups_are_refused_before_they_are_read() {
        let bytes = Bytes::from(vec![VERSION; GROUP_BYTES_MAX + 1]);
        assert!(matches!(SealedGroup::decode(bytes), Err(GroupError::TooLarge { what: "bytes", .. })));
    }

    #[test]
    fn full_group_with_the_largest_operation_decodes() {
        let mut builder = GroupBuilder::new(author(), Head::start(&author()));
        builder.push(1, Hlc(1), &vec![7; GROUP_OPS_BYTES - 4]);
        assert!(!builder.is_full());
        builder.push(2, Hlc(1), &vec![8; OP_BYTES_MAX]);
        assert!(builder.is_full());
        let group = builder.seal(&key(), VersionVector::new()).unwrap();
        assert_eq!(SealedGroup::decode(group.encoded().clone()).as_ref(), Ok(&group));
        assert!(builder.is_empty() && !builder.is_full());
    }

    #[test]
    fn crowded_context_is_refused_and_keeps_the_operations() {
        let mut crowd = VersionVector::new();
        for i in 0..CONTEXT_AUTHORS_MAX as u128 {
            crowd.advance(Dot { author: AuthorId(i.to_be_bytes()), n: 1 });
        }
        let mut builder = GroupBuilder::new(author(), Head::start(&author()));
        builder.push(1, Hlc(1), b"op");
        assert!(matches!(builder.seal(&key(), crowd), Err(GroupError::TooLarge { what: "authors", .. })));
        assert_eq!(builder.seal(&key(), VersionVector::new()).unwrap().last(), 1);
    }

    #[test]
    #[should_panic(expected = "does not follow")]
    fn skipped_number_is_never_signed() {
        GroupBuilder::new(author(), Head::start(&author())).push(2, Hlc(1), b"op");
    }

    #[test]
    fn two_stories_of_one_author_prove_equivocation() {
        let story = |third: &[u8]| [b"a".to_vec(), b"b".to_vec(), third.to_vec(), b"d".to_vec()];
        let ours = seal_all(&story(b"c"), |i| i == 1);
        let theirs = seal_all(&story(b"x"), |i| i == 1);
        assert_eq!(ours[0].contradicts(&theirs[0]), None);
        assert_eq!(ours[1].contradicts(&theirs[1]), Some(4));
        assert_eq!(ours[0].contradicts(&theirs[1]), None, "they agree on what is before");
        // The fork also shows where one group ends and the other only names its past.
        let later = seal_all(&story(b"x"), |_| true);
        assert_eq!(seal_all(&story(b"c"), |i| i == 2)[0].contradicts(&later[3]), Some(3));
    }

    #[test]
    fn other_authors_never_contradict() {
        let other = Author { incarnation: 6, ..author() };
        let mut builder = GroupBuilder::new(other, Head::start(&other));
        builder.push(1, Hlc(1), b"x");
        let theirs = builder.seal(&key(), VersionVector::new()).unwrap();
        assert_eq!(seal_all(&[b"a".to_vec()], |_| true)[0].contradicts(&theirs), None);
    }

    proptest! {
        #[test]
        fn chain_does_not_depend_on_grouping(
            ops in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 1..12),
            ends in proptest::collection::vec(any::<bool>(), 12),
            other_ends in proptest::collection::vec(any::<bool>(), 12),
        ) {
            let groups = seal_all(&ops, |i| ends[i]);
            let others = seal_all(&ops, |i| other_ends[i]);
            prop_assert_eq!(groups.last().unwrap().head(), others.last().unwrap().head());
            for (a, b) in groups.iter().flat_map(|a| others.iter().map(move |b| (a, b))) {
                prop_assert_eq!(a.contradicts(b), None);
            }
            for pair in groups.windows(2) {
                prop_assert_eq!(pair[0].head(), pair[1].before());
            }
        }

        #[test]
        fn any_bytes_decode_or_fail_cleanly(mut bytes: Vec<u8>, cut in 0usize..300, flips: [(u16, u8); 2]) {
            let group = some_group();
            prop_assert!(SealedGroup::parse(bytes.clone().into()).is_err());
            bytes = group.encoded()[..cut.min(group.encoded().len())].to_vec();
            for (at, mask) in flips {
                let at = usize::from(at) % group.encoded().len();
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= mask;
                }
            }
            if let Ok(decoded) = SealedGroup::decode(bytes.into()) {
                prop_assert_eq!(decoded, group);
            }
        }
    }
}
