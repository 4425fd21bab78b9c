//! `phifs-bench`: the same workloads on two directories, say one on ext4 and one on a phifs mount, row by row.
//!
//! Disks burst and then slow down, and machines are noisy, so figures of two separate runs say little. Here each row
//! runs on one directory and then on the other, in turns, with a rest before each; what counts is the ratio of the
//! medians, and the spread is printed beside it. A row ends when its last call has returned; the time until nothing
//! is written any more ("settled") is measured apart.

mod rows;
mod table;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use rows::{ROWS, Row, Scale};
use table::{Measured, Results};

/// Measure workloads on two directories, side by side
#[derive(Parser)]
#[command(
    name = "phifs-bench",
    after_help = "Examples:\n  phifs-bench /srv/ext4 /phi\n  \
    phifs-bench --scale 0.05 --rest 0 --rows create,unlink /srv/ext4 /phi\n  phifs-bench --list"
)]
struct Arguments {
    /// The directory that is compared with, on a filesystem of the host
    #[arg(required_unless_present = "list")]
    reference: Option<PathBuf>,
    /// The directory under measurement
    #[arg(required_unless_present = "list")]
    measured: Option<PathBuf>,
    /// Run these rows only, by name
    #[arg(long, value_delimiter = ',', value_name = "ROW,..")]
    rows: Vec<String>,
    /// Multiply all sizes and counts
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    scale: f64,
    /// Run each row so many times on each directory
    #[arg(long, default_value_t = 3, value_name = "N")]
    repeat: usize,
    /// Rest this long before each run, for disks that burst
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    rest: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// List the rows
    #[arg(long)]
    list: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.list {
        for row in ROWS {
            println!("{:<22} {}", row.name, row.what);
        }
        return Ok(());
    }
    let (Some(reference), Some(measured)) = (&arguments.reference, &arguments.measured) else {
        unreachable!("clap asks for both");
    };
    ensure!(arguments.scale > 0.0 && arguments.repeat > 0, "--scale and --repeat must be positive");
    let unknown: Vec<&String> =
        arguments.rows.iter().filter(|name| !ROWS.iter().any(|row| row.name == **name)).collect();
    ensure!(unknown.is_empty(), "no such rows: {unknown:?}; `phifs-bench --list` lists them");
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: caches are not dropped, so the cold rows are left out");
    }
    let mut results = Results::new(reference, measured, arguments.scale, arguments.repeat);
    for row in ROWS {
        let wanted = arguments.rows.is_empty() || arguments.rows.iter().any(|name| name == row.name);
        if !wanted || (row.cold && !rustix::process::geteuid().is_root()) {
            continue;
        }
        results.add(measure(row, &arguments, reference, measured)?);
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        print!("{}", results.markdown());
    }
    Ok(())
}

/// One row on both directories in turns, first one and then the other going first.
fn measure(row: &Row, arguments: &Arguments, reference: &Path, measured: &Path) -> Result<Measured> {
    let scale = Scale(arguments.scale);
    let mut seconds = [Vec::new(), Vec::new()];
    let mut settle = [Vec::new(), Vec::new()];
    for repetition in 0..arguments.repeat {
        let order = if repetition % 2 == 0 { [0, 1] } else { [1, 0] };
        for side in order {
            let parent = [reference, measured][side];
            let dir = parent.join(format!("phifs-bench-{}-{}", std::process::id(), row.name));
            std::fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            let run = || -> Result<(f64, f64)> {
                let prepared = (row.prepare)(&dir, scale)?;
                settle_down(&dir)?;
                std::thread::sleep(Duration::from_secs(arguments.rest));
                if row.cold {
                    drop_caches()?;
                }
                let start = Instant::now();
                (row.run)(&dir, scale, prepared)?;
                let took = start.elapsed().as_secs_f64();
                let start = Instant::now();
                settle_down(&dir)?;
                Ok((took, start.elapsed().as_secs_f64()))
            };
            let result = run().with_context(|| format!("{} on {}", row.name, parent.display()));
            std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
            let (took, settled) = result?;
            seconds[side].push(took);
            settle[side].push(settled);
            eprintln!("{:<22} {:<30} {took:9.3} s, settled after {settled:.2} s more", row.name, parent.display());
        }
    }
    let [reference_seconds, measured_seconds] = seconds;
    let [reference_settle, measured_settle] = settle;
    Ok(Measured {
        row: row.name.to_owned(),
        what: row.what.to_owned(),
        reference_seconds,
        measured_seconds,
        reference_settle,
        measured_settle,
    })
}

/// Waits until the machine writes nothing any more: the next row must not pay for this one.
///
/// Everything dirty is written, then the sectors written to all disks must stay the same for a while.
fn settle_down(dir: &Path) -> Result<()> {
    const QUIET: Duration = Duration::from_millis(300);
    const LIMIT: Duration = Duration::from_secs(120);
    let root = std::fs::File::open(dir)?;
    rustix::fs::syncfs(&root)?;
    rustix::fs::sync();
    let deadline = Instant::now() + LIMIT;
    let mut before = sectors_written()?;
    loop {
        std::thread::sleep(QUIET);
        let now = sectors_written()?;
        // A journal commit of an idle filesystem is a few blocks.
        if now - before < 256 || Instant::now() > deadline {
            return Ok(());
        }
        before = now;
    }
}

fn sectors_written() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/diskstats")?;
    // The tenth column of each device: Documentation/admin-guide/iostats.rst.
    Ok(text.lines().filter_map(|line| line.split_whitespace().nth(9)?.parse::<u64>().ok()).sum())
}

fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the caches")
}
