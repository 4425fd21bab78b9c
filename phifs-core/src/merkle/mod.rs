//! History-independent ordered Merkle map.
