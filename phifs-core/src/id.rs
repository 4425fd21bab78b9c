//! One newtype per kind of id, so that a glyph's id never fits where another id belongs.

use std::fmt;

/// Names an immutable chunk of bytes: the BLAKE3 hash of its plain bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GlyphId(pub [u8; 32]);

impl GlyphId {
    pub const LEN: usize = 32;

    /// The id of these plain bytes.
    pub fn of(plain: &[u8]) -> Self {
        Self(*blake3::hash(plain).as_bytes())
    }
}

/// Names a snapshot: the hash of its record (see `snapshot::Record`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct S8Id(pub [u8; 32]);

/// An author of operations: a node key together with one incarnation of that node.
///
/// It is the first 16 bytes of a domain-separated BLAKE3 hash over both (see `identity::Author`), and is never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthorId(pub [u8; 16]);

impl AuthorId {
    pub const LEN: usize = 16;
    /// The author of what every volume starts with: its root directory.
    pub const GENESIS: Self = Self([0; 16]);
}

/// Names one operation: its author and its number, contiguous from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    pub author: AuthorId,
    pub n: u64,
}

impl Dot {
    pub const LEN: usize = 24;

    /// Author, then number in big-endian order, so that byte order is the order of dots.
    pub fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..16].copy_from_slice(&self.author.0);
        bytes[16..].copy_from_slice(&self.n.to_be_bytes());
        bytes
    }

    pub fn from_bytes(bytes: &[u8; 24]) -> Self {
        let mut author = [0; 16];
        author.copy_from_slice(&bytes[..16]);
        let mut n = [0; 8];
        n.copy_from_slice(&bytes[16..]);
        Self { author: AuthorId(author), n: u64::from_be_bytes(n) }
    }
}

macro_rules! dot_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Dot);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

dot_id! {
    /// Anything with attributes: a file, a directory, a symlink, a special file. The dot of the creating operation.
    InodeId
}
dot_id! {
    /// One name of one inode. The dot of the operation that made the name.
    LinkId
}
dot_id! {
    /// A directory. As it also has attributes, `InodeId` of the same dot names its attribute row.
    DirId
}

impl DirId {
    /// The root directory of every volume.
    pub const ROOT: Self = Self(Dot { author: AuthorId::GENESIS, n: 1 });

    pub fn inode(self) -> InodeId {
        InodeId(self.0)
    }
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.author, self.n)
    }
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The first four bytes in hexadecimal: enough for people to tell authors apart.
impl fmt::Display for AuthorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0[..4])
    }
}

impl fmt::Debug for AuthorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Display for GlyphId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Display for S8Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for S8Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0[..6])
    }
}

impl fmt::Debug for GlyphId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0[..6])
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_of_dots_is_their_order() {
        let a = Dot { author: AuthorId([1; 16]), n: 255 };
        let b = Dot { author: AuthorId([1; 16]), n: 256 };
        assert!(a < b && a.to_bytes() < b.to_bytes());
        assert_eq!(Dot::from_bytes(&b.to_bytes()), b);
    }
}
