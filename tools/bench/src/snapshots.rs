//! The third table: what it takes to keep the past, and to carry it elsewhere.
//!
//! `create` and `browse` have volumes of very many files of which few change, `export` and `stored` one large file,
//! `versions` a source tree, `keeping` a thousand snapshots. `changing` are the files that change, `edits` the changes to
//! large files, `backups` the programs that do the same work otherwise.
//!
//! Times are those of the whole command, from its start to its end, as somebody at a keyboard waits for it.

mod backups;
mod browse;
mod changing;
mod create;
mod edits;
mod export;
mod keeping;
mod stored;
mod versions;

use crate::lab::Group;

pub const GROUPS: &[Group] = &[
    Group {
        name: "snapshot-million",
        what: "1,000,000 files, 1,000 changed: snapshot create and diff, how long writers wait meanwhile",
        disk_mib: 12 << 10,
        run: create::million,
    },
    Group {
        name: "snapshot-growth",
        what: "snapshot create after 1,000 changes at 100,000, 1,000,000 and 4,000,000 files",
        disk_mib: 12 << 10,
        run: create::growth,
    },
    Group {
        name: "snapshot-browse",
        what: "first ls inside a snapshot of 1,000,000 files, and the memory it takes",
        disk_mib: 12 << 10,
        run: browse::first_ls,
    },
    Group {
        name: "export-incremental",
        what: "bytes of an export after 10 MiB changed in 1 GiB, after 1 KiB came to its front",
        disk_mib: 6 << 10,
        run: export::incremental,
    },
    Group {
        name: "stored-growth",
        what: "stored bytes for each changed byte of a 1 GiB file, beside restic, borg and btrfs send",
        disk_mib: 10 << 10,
        run: stored::growth,
    },
    Group {
        name: "source-versions",
        what: "a source tree and its next version: space and time, beside restic, borg and btrfs send",
        disk_mib: 2 << 10,
        run: versions::space_and_time,
    },
    Group {
        name: "thousand-snapshots",
        what: "1,000 snapshots with 100 of 100,000 files changed between each: space, create and stat",
        disk_mib: 8 << 10,
        run: keeping::thousand,
    },
];

fn millis(time: std::time::Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
