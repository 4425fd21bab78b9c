//! What an export that builds on an earlier snapshot carries.

use std::fs;

use anyhow::Result;

use super::edits;
use crate::lab::Lab;
use crate::rows::write_incompressible;
use crate::systems::{Phifs, System};
use crate::table::{Figure, Limit};

pub fn incremental(lab: &Lab) -> Result<Vec<Figure>> {
    let phifs = lab.phifs("export-incremental")?;
    phifs.ensure_exports()?;
    let scale = lab.bench.scale;
    let large = phifs.dir().join("large");
    write_incompressible(&large, scale.bytes(1 << 10), 0)?;
    keep(&phifs, "whole")?;

    let changed = scale.count(10 << 20);
    edits::overwrite(&large, changed)?;
    keep(&phifs, "overwritten")?;
    let overwritten = exported_bytes(lab, &phifs, "overwritten", "whole")?;
    edits::insert(&large, 0, 1 << 10)?;
    keep(&phifs, "inserted")?;
    let inserted = exported_bytes(lab, &phifs, "inserted", "overwritten")?;

    let ratio = overwritten as f64 / changed as f64;
    let kib = inserted as f64 / 1024.0;
    let detail = format!("{overwritten} bytes for {changed}");
    Ok(vec![
        Figure::new("export after 10 MiB overwritten in 1 GiB, for each byte", ratio, "", Limit::AtMost(1.15), detail)
            .goal(Limit::AtMost(1.02)),
        Figure::new("export after 1 KiB inserted at its front", kib, "KiB", Limit::AtMost(260.0), String::new())
            .goal(Limit::AtMost(100.0)),
    ])
}

fn keep(phifs: &Phifs, name: &str) -> Result<()> {
    phifs.settle()?;
    phifs.snapshot(name)?;
    phifs.settle().map(drop)
}

fn exported_bytes(lab: &Lab, phifs: &Phifs, name: &str, since: &str) -> Result<u64> {
    let file = lab.bench.scratch.join("export");
    phifs.export(name, &file, Some(since))?;
    let bytes = fs::metadata(&file)?.len();
    fs::remove_file(&file)?;
    Ok(bytes)
}
