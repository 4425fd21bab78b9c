//! The second table: what phifs takes of the machine, and whether its speed depends on the number of files.

mod scale;
mod space;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::lab::{Group, Lab, MIB};
use crate::machine::{self, Work};
use crate::population::Population;
use crate::systems::{Phifs, System, succeed};
use crate::table::{Figure, Limit, median_of};

const MANY_FILES: usize = 1_000_000;

pub const GROUPS: &[Group] = &[
    Group { name: "memory-empty", what: "resident memory of an empty volume", disk_mib: 256, run: memory_empty },
    Group {
        name: "million",
        what: "1,000,000 small files: resident memory, start after down and after kill -9",
        disk_mib: 12 << 10,
        run: million,
    },
    Group {
        name: "space-sources",
        what: "host space of a 10,000-file source tree against its du",
        disk_mib: 1 << 10,
        run: space::sources,
    },
    Group {
        name: "space-gc",
        what: "host space after deleting 10 GiB and phifs gc",
        disk_mib: 26 << 10,
        run: space::after_gc,
    },
    Group { name: "idle", what: "processor time and disk writes of an idle daemon", disk_mib: 512, run: idle },
    Group {
        name: "scale",
        what: "create, stat and rename at 2,000,000 files against 20,000",
        disk_mib: 12 << 10,
        run: scale::speed_by_count,
    },
];

fn memory_empty(lab: &Lab) -> Result<Vec<Figure>> {
    let phifs = lab.phifs("memory-empty")?;
    phifs.settle()?;
    Ok(vec![memory("resident memory, empty", &phifs, 40.0, String::new())?])
}

fn memory(what: &str, phifs: &Phifs, limit_mib: f64, how: String) -> Result<Figure> {
    let mib = machine::resident_bytes(phifs.pid()?)? as f64 / MIB;
    Ok(Figure::new(what, mib, "MiB", Limit::AtMost(limit_mib), how))
}

fn million(lab: &Lab) -> Result<Vec<Figure>> {
    let phifs = lab.phifs("million")?;
    let files = Population::new(phifs.dir(), lab.bench.scale.count(MANY_FILES));
    let count = files.count;
    files.make(0..count, 1024..4096)?;
    phifs.settle()?;
    std::thread::sleep(lab.rest);
    let mut figures = vec![memory("resident memory, 1,000,000 files, idle", &phifs, 400.0, format!("{count} files"))?];

    files.read_all()?;
    figures.push(memory("resident memory, 1,000,000 files, all read", &phifs, 500.0, format!("{count} files"))?);

    let mut seconds = Vec::new();
    for _ in 0..lab.repeat {
        phifs.down()?;
        seconds.push(start(&phifs)?);
    }
    let what = "from phifs up to the first ls, after down";
    figures.push(Figure::new(what, median_of(seconds), "s", Limit::AtMost(2.0), "caches dropped".to_owned()));

    let mut seconds = Vec::new();
    let mut journal_bytes = 0;
    for round in 0..lab.repeat {
        phifs.settle()?;
        // The more a start has to replay, the longer it takes: the changes of this moment are in no checkpoint.
        let dir = phifs.dir().join(format!("more{round}"));
        std::fs::create_dir(&dir)?;
        let more = Population::new(&dir, lab.bench.scale.count(MANY_FILES / 50));
        more.make(0..more.count, 1024..4096)?;
        journal_bytes = phifs.journal_bytes()?;
        phifs.kill()?;
        seconds.push(start(&phifs)?);
    }
    let what = "from phifs up to the first ls, after kill -9";
    let how = format!("caches dropped, {:.1} MiB of journal", journal_bytes as f64 / MIB);
    figures.push(Figure::new(what, median_of(seconds), "s", Limit::AtMost(10.0), how));
    Ok(figures)
}

fn start(phifs: &Phifs) -> Result<f64> {
    machine::drop_caches_if_root()?;
    let start = Instant::now();
    phifs.up()?;
    let listed = succeed(Command::new("ls").arg(phifs.dir()))?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(!listed.is_empty(), "the volume is empty after a start");
    Ok(seconds)
}

fn idle(lab: &Lab) -> Result<Vec<Figure>> {
    let phifs = lab.phifs("idle")?;
    let files = Population::new(phifs.dir(), lab.bench.scale.count(10_000));
    files.make(0..files.count, 1024..4096)?;
    phifs.settle()?;
    let seconds = (60.0 * lab.bench.scale.0).clamp(10.0, 60.0);
    let pids = [phifs.pid()?];
    // Some timers are slower than what settling waits for.
    std::thread::sleep(Duration::from_secs(5));
    // Asked only before and after: a question is work too.
    let before = Work::of(&pids);
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let after = Work::of(&pids);
    let percent = (after.cpu_nanos - before.cpu_nanos) as f64 / (seconds * 1e7);
    let written = (after.written_bytes - before.written_bytes) as f64 / 1024.0;
    let how = format!("in {seconds:.0} s, {} files", files.count);
    Ok(vec![
        Figure::new("idle daemon: processor", percent, "% of a core", Limit::AtMost(0.3), how.clone()),
        Figure::new("idle daemon: written to disk", written, "KiB", Limit::AtMost(0.0), how),
    ])
}
