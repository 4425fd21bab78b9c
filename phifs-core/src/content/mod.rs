//! File content: manifests, reading, publishing.
