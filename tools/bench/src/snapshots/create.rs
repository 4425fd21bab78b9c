//! How long a snapshot takes, and how long it keeps others waiting.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::changing::Changing;
use super::millis;
use crate::lab::Lab;
use crate::systems::System;
use crate::table::{Figure, Limit, median_of};

pub const MANY_FILES: usize = 1_000_000;
pub const CHANGES: usize = 1_000;
/// Of a changed file.
pub const LEN: usize = 2048;
/// Times of a few milliseconds need more of them than others.
const ROUNDS_EACH: usize = 3;

pub fn million(lab: &Lab) -> Result<Vec<Figure>> {
    let mut volume = Changing::new(lab, "snapshot-million", lab.bench.scale.count(MANY_FILES), 1024..4096)?;
    let (count, changes) = (volume.files.count, lab.bench.scale.count(CHANGES));
    let rounds = ROUNDS_EACH * lab.repeat;
    let (mut settled, mut unchanged, mut diff, mut at_once) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut startup = Vec::new();
    let (_, mut before) = volume.snapshot()?;
    for round in 1..=rounds {
        volume.phifs.settle()?;
        volume.change(changes, LEN)?;
        volume.phifs.settle()?;
        std::thread::sleep(lab.rest / 5);
        let (took, name) = volume.snapshot()?;
        settled.push(millis(took));
        volume.phifs.settle()?;
        unchanged.push(millis(volume.snapshot()?.0));
        startup.push(millis(volume.phifs.startup()?));

        let (took, lines) = volume.phifs.diff(&before, &name)?;
        diff.push(millis(took));
        let modified = lines.lines().filter(|line| line.starts_with('M')).count();
        ensure!(modified == changes, "{changes} files were changed, and `snapshot diff` shows {modified}");

        volume.phifs.settle()?;
        volume.change(changes, LEN)?;
        let (took, name) = volume.snapshot()?;
        at_once.push(millis(took));
        before = name;
        eprintln!("snapshot-million: round {round} of {rounds}");
    }
    let [stall, stall_added] = stalls(&mut volume, changes, rounds)?;

    let how = format!("{changes} of {count} files overwritten");
    let of_it = |how: &str, values: &[f64]| {
        let started = median_of(startup.clone());
        format!("{how}; {}, of it {started:.1} to start the command", spread(values))
    };
    let figure = |what: &str, values: Vec<f64>, floor, goal, how| {
        Figure::new(what, median_of(values), "ms", Limit::AtMost(floor), how).goal(Limit::AtMost(goal))
    };
    let waited = of_it(&format!("{how}, all settled"), &settled);
    let hurried = of_it(&how, &at_once);
    let idle = of_it("all settled", &unchanged);
    let compared = of_it(&format!("{changes} lines"), &diff);
    Ok(vec![
        figure("snapshot of 1,000,000 files after 1,000 changes", settled, 50.0, 10.0, waited),
        figure("the same right after the changes", at_once, 50.0, 10.0, hurried),
        stall,
        stall_added,
        figure("snapshot with nothing changed", unchanged, 5.0, 1.0, idle),
        figure("diff of two such snapshots", diff, 50.0, 10.0, compared),
    ])
}

fn spread(values: &[f64]) -> String {
    let (least, most) =
        (values.iter().copied().fold(f64::INFINITY, f64::min), values.iter().copied().fold(0.0, f64::max));
    format!("{least:.1}-{most:.1} ms")
}

/// What one writer has to wait for in seconds that begin with a snapshot, and in as many without one, in turns. The
/// snapshot is sealed in the background, so such a second is longer than the command. What others do on the machine makes
/// the writer wait as well, in either kind of second.
fn stalls(volume: &mut Changing, changes: usize, rounds: usize) -> Result<[Figure; 2]> {
    const WINDOW: Duration = Duration::from_secs(1);
    let dir = volume.phifs.dir().join("writer");
    fs::create_dir(&dir)?;
    let stop = AtomicBool::new(false);
    let (operations, windows) = std::thread::scope(|scope| -> Result<_> {
        let writer = scope.spawn(|| write_until(&dir, &stop));
        let windows = (0..2 * rounds).map(|n| -> Result<[Instant; 2]> {
            volume.change(changes, LEN)?;
            std::thread::sleep(WINDOW);
            let start = Instant::now();
            if has_snapshot(n) {
                volume.snapshot()?;
            }
            std::thread::sleep(WINDOW.saturating_sub(start.elapsed()));
            Ok([start, Instant::now()])
        });
        let windows: Result<Vec<_>> = windows.collect();
        stop.store(true, Ordering::Relaxed);
        let operations = writer.join().expect("a writer")?;
        Ok((operations, windows?))
    })?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for (n, [start, end]) in windows.into_iter().enumerate() {
        let waits = if has_snapshot(n) { &mut with } else { &mut without };
        waits.push(longest(&operations, start, end));
    }
    let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let (longest, longest_without) = (most(&with), most(&without));
    let added = median_of(with.iter().zip(&without).map(|(with, without)| with - without).collect());
    let detail = format!(
        "{longest_without:.2} ms in as many seconds without a snapshot; create, write, rename and unlink by one thread"
    );
    let medians = format!(
        "longest waits of {rounds} pairs of seconds; medians {:.2} and {:.2} ms",
        median_of(with),
        median_of(without)
    );
    let what = format!("longest wait of a writer in {rounds} seconds with a snapshot each");
    Ok([
        Figure::new(what, longest, "ms", Limit::AtMost(5.0), detail),
        Figure::new("what a snapshot adds to the longest wait of a second", added, "ms", Limit::AtMost(5.0), medians),
    ])
}

/// Of each two seconds one has a snapshot, and neither kind always comes first.
fn has_snapshot(nth: usize) -> bool {
    matches!(nth % 4, 0 | 3)
}

/// When operations began and how long each took.
fn write_until(dir: &Path, stop: &AtomicBool) -> Result<Vec<(Instant, Duration)>> {
    let mut operations = Vec::new();
    let (path, renamed, bytes) = (dir.join("new"), dir.join("renamed"), [7; LEN]);
    while !stop.load(Ordering::Relaxed) {
        let mut start = Instant::now();
        let mut done = || {
            operations.push((start, start.elapsed()));
            start = Instant::now();
        };
        let mut file = File::create(&path)?;
        done();
        file.write_all(&bytes)?;
        done();
        drop(file);
        done();
        fs::rename(&path, &renamed)?;
        done();
        fs::remove_file(&renamed)?;
        done();
    }
    Ok(operations)
}

/// The longest of the operations that were at work between two moments, in milliseconds.
fn longest(operations: &[(Instant, Duration)], from: Instant, to: Instant) -> f64 {
    let there = operations.iter().filter(|(start, took)| *start < to && *start + *took > from);
    there.map(|(_, took)| millis(*took)).fold(0.0, f64::max)
}

pub fn growth(lab: &Lab) -> Result<Vec<Figure>> {
    const COUNTS: [usize; 3] = [100_000, MANY_FILES, 4_000_000];
    let scale = lab.bench.scale;
    // The largest takes long, and a smaller scale is for a quick look.
    let counts = if scale.0 < 1.0 { &COUNTS[..2] } else { &COUNTS[..] };
    let changes = scale.count(CHANGES);
    let volumes = counts.iter().map(|count| {
        let count = scale.count(*count);
        Changing::new(lab, &format!("snapshot-growth-{count}"), count, 64..65)
    });
    let mut volumes = volumes.collect::<Result<Vec<_>>>()?;
    let (mut startup, mut times) = (Vec::new(), vec![Vec::new(); volumes.len()]);
    let rounds = ROUNDS_EACH * lab.repeat;
    for round in 0..rounds {
        for turn in 0..volumes.len() {
            let at = (round + turn) % volumes.len();
            let volume = &mut volumes[at];
            volume.change(changes, 64)?;
            volume.phifs.settle()?;
            std::thread::sleep(lab.rest / 5);
            startup.push(millis(volume.phifs.startup()?));
            times[at].push(millis(volume.snapshot()?.0));
            volume.phifs.settle()?;
        }
        eprintln!("snapshot-growth: round {} of {rounds}", round + 1);
    }
    // The start of the command is the same at all counts and would hide what is not.
    let startup = median_of(startup);
    let times: Vec<f64> = times.into_iter().map(|times| median_of(times) - startup).collect();
    let shown: Vec<String> =
        times.iter().zip(&volumes).map(|(ms, volume)| format!("{ms:.2} ms at {} files", volume.files.count)).collect();
    let detail = format!("{}; without the {startup:.1} ms to start the command", shown.join(", "));
    let (least, most) =
        (times.iter().copied().fold(f64::INFINITY, f64::min), times.iter().copied().fold(0.0, f64::max));
    let what = "growth of a snapshot after 1,000 changes, slowest over fastest";
    Ok(vec![Figure::new(what, most / least, "", Limit::AtMost(1.5), detail).goal(Limit::AtMost(1.2))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_is_of_operations_at_work_meanwhile() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let operations = [(start, ms(9)), (start + ms(10), ms(20)), (start + ms(40), ms(3)), (start + ms(50), ms(30))];
        assert_eq!(longest(&operations, start + ms(29), start + ms(50)), 20.0);
        assert_eq!(longest(&operations, start + ms(31), start + ms(50)), 3.0);
    }
}
