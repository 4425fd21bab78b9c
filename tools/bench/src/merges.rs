//! The fourth table: what it takes to merge. `phifs-bench-merge` does the merges, each in a process of its own, without
//! a mount: what is measured is the join.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::lab::{Group, Lab};
use crate::table::{Figure, Limit, median_of};

pub const GROUPS: &[Group] = &[
    Group {
        name: "merge-branches",
        what: "two branches with 100,000 operations each, 10 % on the same names; twice as many",
        disk_mib: 2 << 10,
        run: branches,
    },
    Group {
        name: "merge-moves",
        what: "two branches that moved 20,000 directories into each other, in opposite order",
        disk_mib: 1 << 10,
        run: moves,
    },
    Group { name: "merge-few", what: "10 changes into a volume of 1,000,000 files", disk_mib: 4 << 10, run: few },
    Group {
        name: "merge-after",
        what: "create, rename and publish after merges, and where nothing was ever merged, in turns",
        disk_mib: 2 << 10,
        run: after,
    },
];

/// What an operation took, in microseconds: create, rename, publish.
#[derive(Deserialize)]
struct Worked {
    none: [f64; 3],
    merged: [f64; 3],
}

/// What one merge took.
#[derive(Deserialize)]
struct Took {
    seconds: f64,
    grown_kib: u64,
    before_kib: u64,
}

/// Runs it as often as rows are repeated, each time from the start.
fn runs<T: DeserializeOwned>(lab: &Lab, what: &str, count: usize) -> Result<Vec<T>> {
    let program = std::env::current_exe()?.with_file_name("phifs-bench-merge");
    (0..lab.repeat)
        .map(|_| {
            std::thread::sleep(lab.rest / 5);
            let store = lab.home.join(format!("merge-{what}"));
            std::fs::create_dir(&store)?;
            let mut command = Command::new(&program);
            let ran = command.args([what, "--count", &count.to_string(), "--store"]).arg(&store).output();
            let ran = ran.with_context(|| format!("cannot run {}", program.display()))?;
            std::fs::remove_dir_all(&store)?;
            ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
            Ok(serde_json::from_slice(&ran.stdout)?)
        })
        .collect()
}

fn millis(took: &[Took]) -> f64 {
    median_of(took.iter().map(|took| took.seconds * 1e3).collect())
}

fn branches(lab: &Lab) -> Result<Vec<Figure>> {
    let count = lab.bench.scale.count(100_000);
    let (once, twice) = (runs(lab, "branches", count)?, runs(lab, "branches", 2 * count)?);
    let (time, growth) = (millis(&once), millis(&twice) / millis(&once));
    let peak = median_of(once.iter().map(|took| (took.before_kib + took.grown_kib) as f64 / 1024.0).collect());
    let grown = median_of(once.iter().map(|took| took.grown_kib as f64 / 1024.0).collect());
    let figure = |what: &str, value, unit, floor, goal, detail| {
        Figure::new(what, value, unit, Limit::AtMost(floor), detail).goal(Limit::AtMost(goal))
    };
    let how = format!("{count} operations each, 10 % on the same names");
    Ok(vec![
        figure("merge of two branches", time, "ms", 2000.0, 500.0, how.clone()),
        figure("the same with twice as many operations", growth, "x", 2.3, 2.1, format!("{:.0} ms", millis(&twice))),
        figure(
            "memory at the peak of it",
            peak,
            "MiB",
            300.0,
            150.0,
            format!("{how}; {grown:.0} MiB more than before"),
        ),
    ])
}

fn moves(lab: &Lab) -> Result<Vec<Figure>> {
    let count = lab.bench.scale.count(20_000);
    let time = millis(&runs(lab, "moves", count)?);
    let how = format!("{count} of them on each side");
    let figure = Figure::new("merge of directories moved into each other", time, "ms", Limit::AtMost(2000.0), how);
    Ok(vec![figure.goal(Limit::AtMost(500.0))])
}

fn few(lab: &Lab) -> Result<Vec<Figure>> {
    let count = lab.bench.scale.count(1_000_000);
    let time = millis(&runs(lab, "few", count)?);
    let how = format!("files overwritten in a branch, merged into {count} files");
    let figure = Figure::new("merge of 10 changes into 1,000,000 files", time, "ms", Limit::AtMost(50.0), how);
    Ok(vec![figure.goal(Limit::AtMost(10.0))])
}

fn after(lab: &Lab) -> Result<Vec<Figure>> {
    let count = lab.bench.scale.count(100_000);
    let runs: Vec<Worked> = runs(lab, "after", count)?;
    let kinds = ["create", "rename", "write and publish"].into_iter().enumerate();
    let figures = kinds.map(|(at, kind)| {
        let median = |side: fn(&Worked) -> &[f64; 3]| median_of(runs.iter().map(|run| side(run)[at]).collect());
        let (none, merged) = (median(|run| &run.none), median(|run| &run.merged));
        let ratio = median_of(runs.iter().map(|run| run.none[at] / run.merged[at]).collect());
        let how = format!("{merged:.1} us of processor time, {none:.1} us where nothing was merged");
        let what = format!("speed of {kind} after a merge of {count} operations of each side");
        Figure::new(what, ratio, "x", Limit::AtLeast(0.95), how).goal(Limit::AtLeast(1.0))
    });
    Ok(figures.collect())
}
