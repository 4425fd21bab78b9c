//! Cuts a stream of bytes at content-defined boundaries.
