//! What a store takes on the host.

use std::fs;

use anyhow::Result;

use crate::lab::{Lab, MIB};
use crate::machine;
use crate::rows::write_incompressible;
use crate::systems::System;
use crate::table::{Figure, Limit};

/// The source tree and nothing else: journal, index and log are part of what the store takes.
pub fn sources(lab: &Lab) -> Result<Vec<Figure>> {
    let sources = lab.bench.sources()?;
    let phifs = lab.phifs("space-sources")?;
    sources.unpack(phifs.dir())?;
    phifs.settle()?;
    // It evicts the plain copies of files, which may otherwise stay as long as there is room.
    phifs.gc()?;
    phifs.settle()?;
    let (tree, store) = (machine::disk_usage(&sources.tree)?, machine::disk_usage(phifs.store())?);
    let detail = format!("{:.1} of {:.1} MiB, {} files", store as f64 / MIB, tree as f64 / MIB, sources.files);
    let ratio = store as f64 / tree as f64;
    Ok(vec![Figure::new("host space of a source tree against its du", ratio, "", Limit::AtMost(0.5), detail)])
}

/// Ten gibibytes come and go beside one that stays.
pub fn after_gc(lab: &Lab) -> Result<Vec<Figure>> {
    const FILE_MIB: usize = 64;
    const STAYING_MIB: usize = 1 << 10;
    const LEAVING_MIB: usize = 10 << 10;
    let scale = lab.bench.scale;
    let phifs = lab.phifs("space-gc")?;
    let write = |dir: &str, mib: usize, seed: u64| -> Result<()> {
        let dir = phifs.dir().join(dir);
        fs::create_dir(&dir)?;
        for (n, at) in (0..mib).step_by(FILE_MIB).enumerate() {
            let len = FILE_MIB.min(mib - at) << 20;
            write_incompressible(&dir.join(n.to_string()), len, seed + ((at as u64) << 20))?;
        }
        Ok(())
    };
    write("staying", scale.count(STAYING_MIB), 1 << 60)?;
    phifs.settle()?;
    phifs.gc()?;
    phifs.settle()?;
    let before = machine::disk_usage(phifs.store())?;
    write("leaving", scale.count(LEAVING_MIB), 1 << 61)?;
    phifs.settle()?;
    let full = machine::disk_usage(phifs.store())?;
    fs::remove_dir_all(phifs.dir().join("leaving"))?;
    phifs.settle()?;
    phifs.gc()?;
    phifs.settle()?;
    let after = machine::disk_usage(phifs.store())?;
    let mib = |bytes: u64| bytes as f64 / MIB;
    let detail = format!("{:.1} MiB before, {:.1} with them, {:.1} after", mib(before), mib(full), mib(after));
    let more = (after as f64 / before as f64 - 1.0) * 100.0;
    Ok(vec![Figure::new("host space after deleting 10 GiB and phifs gc", more, "% more", Limit::AtMost(5.0), detail)])
}
