//! The fifth table: what it takes that several machines have one volume.
//!
//! The machines are namespaces of the network on this one (`crate::network`), so they share its processors and its disk:
//! what the others do is paid for here as well. `machines` starts them; each of the other files is a group of figures.

mod bulk;
mod machines;
mod text;
mod throughput;
mod visible;
mod wire;

use crate::lab::Group;

pub const GROUPS: &[Group] = &[
    Group {
        name: "cluster-visible",
        what: "how long after its close a small file can be read on another machine",
        disk_mib: 512,
        run: visible::small_files,
    },
    Group {
        name: "cluster-speed",
        what: "untar, sequential write and fsync with two peers that follow, against alone, in turns",
        disk_mib: 12 << 10,
        run: throughput::beside_peers,
    },
    Group {
        name: "cluster-bulk",
        what: "1 GiB until two other machines have it on disk, against rsync to both, in turns",
        disk_mib: 16 << 10,
        run: bulk::against_rsync,
    },
    Group {
        name: "cluster-wire",
        what: "bytes sent for 10,000 small files, and for 10 MiB changed in 1 GiB, with two receivers",
        disk_mib: 12 << 10,
        run: wire::bytes_sent,
    },
];

/// As a spread behind a median.
fn span(values: &[f64], decimals: usize) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{least:.decimals$}-{most:.decimals$}")
}
