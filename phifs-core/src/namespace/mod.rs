//! The directory-tree CRDT.
