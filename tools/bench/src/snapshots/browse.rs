//! Looking into a snapshot.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::changing::Changing;
use super::create::{CHANGES, LEN, MANY_FILES};
use super::millis;
use crate::lab::Lab;
use crate::machine;
use crate::systems::{System, succeed, timed};
use crate::table::{Figure, Limit, median_of};

pub fn first_ls(lab: &Lab) -> Result<Vec<Figure>> {
    let phifs = lab.phifs("snapshot-browse")?;
    phifs.ensure_browses()?;
    let mut volume = Changing::fill(phifs, lab.bench.scale.count(MANY_FILES), 1024..4096)?;
    let mut names = Vec::new();
    for _ in 0..3 * lab.repeat {
        volume.change(lab.bench.scale.count(CHANGES), LEN)?;
        names.push(volume.snapshot()?.1);
        volume.phifs.settle()?;
    }
    // Changes made files, not names: all have the same.
    let expected = succeed(&mut ls(volume.phifs.dir()))?;
    let (mut first, mut below, mut grown) = (Vec::new(), Vec::new(), Vec::new());
    for name in &names {
        volume.phifs.settle()?;
        std::thread::sleep(lab.rest / 5);
        let dir = volume.phifs.browse(name);
        let before = machine::resident_bytes(volume.phifs.pid()?)?;
        let (took, listed) = timed(&mut ls(&dir))?;
        ensure!(listed == expected, "{} lists other names than the volume had", dir.display());
        first.push(millis(took));
        below.push(millis(timed(&mut ls(&dir.join("d0")))?.0));
        let after = machine::resident_bytes(volume.phifs.pid()?)?;
        grown.push((after as f64 - before as f64) / 1e6);
    }
    let count = volume.files.count;
    let detail = format!("{count} files; {:.1} ms then for a directory of {}", median_of(below), count / 100);
    let most = grown.into_iter().fold(0.0, f64::max);
    let looks = format!("the most of {} snapshots", names.len());
    Ok(vec![
        Figure::new(
            "first ls inside a snapshot of 1,000,000 files",
            median_of(first),
            "ms",
            Limit::AtMost(20.0),
            detail,
        )
        .goal(Limit::AtMost(5.0)),
        Figure::new("memory that both take", most, "MB", Limit::AtMost(10.0), looks),
    ])
}

fn ls(dir: &Path) -> Command {
    let mut ls = Command::new("ls");
    ls.arg(dir);
    ls
}
