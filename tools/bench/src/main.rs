//! `phifs-bench`: every figure that the project promises about speed and resources, from one command.
//!
//! Disks burst and then slow down, and machines are noisy, so figures of two separate runs say little. Here each row
//! runs on the host's filesystem, on a phifs that keeps its store there, and on JuiceFS on the same disk, in turns,
//! with a rest before each; what counts is the ratio of the medians, and the spread is printed beside it.
//!
//! `workloads` runs the rows of `rows`; `resources` and `snapshots` measure what it takes to keep files and what it
//! takes to keep their past, `merges` what it takes to bring two of it together, `cluster` what it takes that several
//! machines have it; `systems` are the filesystems, `network` makes machines out of this one, `machine` asks the host,
//! `table` prints.
//! `tools/bench/run` builds all of it, makes the directory to work in and clears it away, however the run ends.

mod cluster;
mod lab;
mod machine;
mod merges;
mod network;
mod population;
mod resources;
mod rows;
mod snapshots;
mod sources;
mod speeds;
mod systems;
mod table;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;

use lab::{Group, Lab};
use machine::Disk;
use rows::{Bench, ROWS, Row, Scale};
use systems::{Host, JuiceFs, Phifs, System};
use table::{Report, Workload};
use workloads::Workloads;

/// Measure phifs against the filesystem of the host and against JuiceFS, its snapshots beside restic, borg and btrfs
#[derive(Parser)]
#[command(
    name = "phifs-bench",
    after_help = "Examples:\n  tools/bench/run\n  tools/bench/run --quick --only create,unlink\n  \
    tools/bench/run --table snapshots --scale 0.05\n  \
    tools/bench/run --table cluster --scale 0.1 --rest 1\n  tools/bench/run --list\n\nBENCH_DIR is where to work (default: /var/tmp), PHIFS_BIN the phifs to measure."
)]
struct Arguments {
    /// Measure these rows only, by name
    #[arg(long, value_delimiter = ',', value_name = "ROW,..")]
    only: Vec<String>,
    /// Print this table only [default: all; quick: workloads]
    #[arg(long, value_name = "TABLE")]
    table: Option<Table>,
    /// Finish in two or three minutes: a tenth of the size, no rests, no JuiceFS, workloads only
    #[arg(long)]
    quick: bool,
    /// Multiply all sizes and counts [default: 1, quick: 0.1]
    #[arg(long, value_name = "FACTOR")]
    scale: Option<f64>,
    /// Run each row so many times on each system [default: 3, quick: 2]
    #[arg(long, value_name = "N")]
    repeat: Option<usize>,
    /// Rest this long before each run, for disks that burst [default: 10, quick: 0]
    #[arg(long, value_name = "SECONDS")]
    rest: Option<u64>,
    /// Measure JuiceFS as well [default: yes, quick: no]
    #[arg(long, value_name = "yes|no", value_parser = clap::builder::BoolishValueParser::new())]
    juicefs: Option<bool>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// List the rows
    #[arg(long)]
    list: bool,
    /// Work in this directory, which is new and cleared away by the caller
    #[arg(long, hide = true, default_value = "")]
    home: PathBuf,
    /// Measure this phifs
    #[arg(long, hide = true, default_value = "phifs")]
    phifs: PathBuf,
    /// Keep the virtual environment of JuiceFS here
    #[arg(long, hide = true, default_value = "")]
    tools: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Table {
    /// Speed of programs, against the host and JuiceFS
    Workloads,
    /// Memory, disk space, starts, and speed with very many files
    Resources,
    /// Snapshots and exports: time, space, those who write meanwhile
    Snapshots,
    /// Merges: time and memory of the join, without a mount
    Merge,
    /// Several machines with one volume: delay, speed beside peers, bulk against rsync, bytes sent
    Cluster,
}

/// The tables that are made of groups.
const GROUPED: [(Table, &[Group]); 4] = [
    (Table::Resources, resources::GROUPS),
    (Table::Snapshots, snapshots::GROUPS),
    (Table::Merge, merges::GROUPS),
    (Table::Cluster, cluster::GROUPS),
];

impl Arguments {
    fn scale(&self) -> Scale {
        Scale(self.scale.unwrap_or(if self.quick { 0.1 } else { 1.0 }))
    }

    fn repeat(&self) -> usize {
        self.repeat.unwrap_or(if self.quick { 2 } else { 3 })
    }

    fn rest(&self) -> Duration {
        Duration::from_secs(self.rest.unwrap_or(if self.quick { 0 } else { 10 }))
    }

    fn wants(&self, table: Table, name: &str) -> bool {
        let named = self.only.iter().any(|wanted| wanted == name);
        match (self.table, self.only.is_empty()) {
            (Some(only), true) => table == only,
            (Some(only), false) => table == only && named,
            (None, true) => table == Table::Workloads || !self.quick,
            (None, false) => named,
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if arguments.list {
        for row in ROWS {
            println!("{:<18} {}", row.name, row.what);
        }
        for group in GROUPED.iter().flat_map(|(_, groups)| *groups) {
            println!("{:<18} {}", group.name, group.what);
        }
        return Ok(());
    }
    ensure!(arguments.scale().0 > 0.0 && arguments.repeat() > 0, "--scale and --repeat must be positive");
    let groups = GROUPED.iter().flat_map(|(_, groups)| *groups);
    let names: Vec<&str> = ROWS.iter().map(|row| row.name).chain(groups.map(|group| group.name)).collect();
    let unknown: Vec<&String> = arguments.only.iter().filter(|name| !names.contains(&name.as_str())).collect();
    ensure!(unknown.is_empty(), "no such rows: {unknown:?}; --list lists them");
    ensure!(arguments.home.is_absolute(), "start it as tools/bench/run, which makes a directory to work in");
    let report = measure(arguments)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.markdown());
    }
    Ok(())
}

fn measure(arguments: &Arguments) -> Result<Report> {
    let home = &arguments.home;
    let disk = Rc::new(Disk::below(home)?);
    let scratch = home.join("scratch");
    std::fs::create_dir(&scratch)?;
    let bench = Bench::new(arguments.scale(), scratch);
    let mut report = Report {
        scale: arguments.scale().0,
        repeat: arguments.repeat(),
        rest_seconds: arguments.rest().as_secs(),
        machine: machine::describe(home)?,
        phifs: String::new(),
        without_juicefs: None,
        workloads: Vec::new(),
        resources: Vec::new(),
        snapshots: Vec::new(),
        merges: Vec::new(),
        cluster: Vec::new(),
    };
    let lab = Lab {
        bench: &bench,
        disk: Rc::clone(&disk),
        program: &arguments.phifs,
        home,
        repeat: arguments.repeat(),
        rest: arguments.rest(),
    };
    report.phifs = lab.describe()?;
    let rows: Vec<&Row> = ROWS.iter().filter(|row| arguments.wants(Table::Workloads, row.name)).collect();
    if !rows.is_empty() {
        measure_rows(arguments, &rows, &bench, &disk, &mut report)?;
    }
    for (table, groups) in GROUPED {
        let figures = match table {
            Table::Merge => &mut report.merges,
            Table::Snapshots => &mut report.snapshots,
            Table::Cluster => &mut report.cluster,
            Table::Resources | Table::Workloads => &mut report.resources,
        };
        for group in groups.iter().filter(|group| arguments.wants(table, group.name)) {
            figures.extend(lab.run(group)?);
        }
    }
    Ok(report)
}

fn measure_rows(
    arguments: &Arguments,
    rows: &[&Row],
    bench: &Bench,
    disk: &Rc<Disk>,
    report: &mut Report,
) -> Result<()> {
    // A file, its packed form and what has not been collected yet, on each of the systems.
    disk.ensure_free(bench.scale.bytes(6 << 10) as u64, "the first table")?;
    let home = &arguments.home;
    let phifs = Phifs::start(&arguments.phifs, &home.join("phifs"), Rc::clone(disk))?;
    let mut systems: Vec<Box<dyn System>> =
        vec![Box::new(Host::new(home.join("host"), Rc::clone(disk))?), Box::new(phifs)];
    match juicefs(arguments, disk) {
        Ok(juicefs) => systems.push(Box::new(juicefs)),
        Err(why) => report.without_juicefs = Some(format!("{why:#}")),
    }
    let workloads = Workloads { bench, disk, systems: &systems, repeat: arguments.repeat(), rest: arguments.rest() };
    for row in rows {
        if row.cold && !machine::is_root() {
            eprintln!("{}: left out, as only root can drop the caches", row.name);
            continue;
        }
        let sides = workloads.measure(row)?;
        report.workloads.push(Workload::new(row, sides, (row.operations)(bench), (row.flushes_min)(bench)));
    }
    Ok(())
}

fn juicefs(arguments: &Arguments, disk: &Rc<Disk>) -> Result<JuiceFs> {
    ensure!(arguments.juicefs.unwrap_or(!arguments.quick), "it was not asked for");
    let program = JuiceFs::install(&arguments.tools)?;
    JuiceFs::start(&program, &arguments.home.join("juicefs"), Rc::clone(disk))
}
