//! What was measured, as tables for people and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

use crate::rows::Row;
use crate::workloads::{Sample, Side};

/// More than this is a second copy. Metadata and the journal are cached as well.
pub const COPIES_MAX: f64 = 1.1;

#[derive(Serialize)]
pub struct Report {
    pub scale: f64,
    pub repeat: usize,
    pub rest_seconds: u64,
    pub machine: String,
    /// Which phifs was measured, and how the bytes of files travel in it.
    pub phifs: String,
    /// Why there is no column for JuiceFS, if that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_juicefs: Option<String>,
    pub workloads: Vec<Workload>,
    pub resources: Vec<Figure>,
    pub snapshots: Vec<Figure>,
    pub merges: Vec<Figure>,
    pub cluster: Vec<Figure>,
}

/// How far a figure has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    Goal,
    Met,
    Missed,
}

impl Mark {
    fn of(value: f64, floor: f64, goal: f64) -> Mark {
        if value >= goal {
            Mark::Goal
        } else if value >= floor {
            Mark::Met
        } else {
            Mark::Missed
        }
    }

    fn text(self) -> &'static str {
        match self {
            Mark::Goal => "goal",
            Mark::Met => "met",
            Mark::Missed => "**missed**",
        }
    }
}

/// A ratio of speeds with what it should be; more than 1 is faster.
#[derive(Serialize)]
pub struct Ratio {
    pub value: f64,
    pub floor: f64,
    pub goal: f64,
    pub mark: Mark,
}

impl Ratio {
    fn new(reference: &Side, measured: &Side, (floor, goal): (f64, f64)) -> Ratio {
        let value = median(reference, |sample| sample.seconds) / median(measured, |sample| sample.seconds);
        Ratio { value, floor, goal, mark: Mark::of(value, floor, goal) }
    }

    fn text(&self) -> String {
        format!("{:.2} | {} / {} {}", self.value, self.floor, self.goal, self.mark.text())
    }
}

/// A row of the first table: the host, phifs, and JuiceFS if it is there.
#[derive(Serialize)]
pub struct Workload {
    pub name: &'static str,
    pub what: &'static str,
    pub sides: Vec<Side>,
    pub operations: usize,
    pub flushes_min: usize,
    pub to_host: Ratio,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_juicefs: Option<Ratio>,
    /// Systems that said "on disk" without a flush of the disk. They are not to be joined.
    pub unflushed: Vec<&'static str>,
    /// The most copies of the bytes that the host's cache held in the end, for the row that asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies: Option<f64>,
}

impl Workload {
    pub fn new(row: &Row, sides: Vec<Side>, operations: usize, flushes_min: usize) -> Workload {
        let mut to_host = Ratio::new(&sides[0], &sides[1], (row.floor, row.goal));
        let copies = sides[1].samples.iter().filter_map(|sample| sample.copies).reduce(f64::max);
        if copies.is_some_and(|copies| copies > COPIES_MAX) {
            to_host.mark = Mark::Missed;
        }
        let to_juicefs = sides.get(2).map(|juicefs| Ratio::new(juicefs, &sides[1], row.kind.against_juicefs()));
        let short = |sample: &Sample| sample.flushes.is_some_and(|flushes| flushes < flushes_min as u64);
        let unflushed = sides.iter().filter(|side| side.samples.iter().any(short)).map(|side| side.system).collect();
        Workload {
            name: row.name,
            what: row.what,
            sides,
            operations,
            flushes_min,
            to_host,
            to_juicefs,
            unflushed,
            copies,
        }
    }

    fn line(&self) -> String {
        let [host, phifs] = [&self.sides[0], &self.sides[1]];
        let copies = self.copies.map_or_else(String::new, |copies| format!(" ({copies:.1} copies)"));
        let mut line = format!(
            "| {}{copies} | {} | {} | {:.1} | {} |",
            self.what,
            spread(host),
            spread(phifs),
            median(phifs, |sample| sample.settle_seconds),
            self.to_host.text(),
        );
        if let (Some(side), Some(ratio)) = (self.sides.get(2), &self.to_juicefs) {
            // Who does not write to the disk is no measure for those who do.
            let ratio = match self.unflushed.contains(&side.system) {
                true => format!("{:.2} | not flushed", ratio.value),
                false => ratio.text(),
            };
            let _ = write!(line, " {} | {ratio} |", spread(side));
        }
        line
    }

    fn requests_line(&self) -> Option<String> {
        let phifs = &self.sides[1];
        let last = phifs.samples.last()?;
        if self.operations == 0 || last.requests.is_empty() {
            return None;
        }
        let each = |count: u64| count as f64 / self.operations as f64;
        let mut kinds: Vec<(&String, u64)> = last.requests.iter().map(|(kind, count)| (kind, *count)).collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let total = each(kinds.iter().map(|(_, count)| count).sum());
        // What comes less than once in a hundred operations is not theirs.
        let shown = kinds.iter().filter(|(_, count)| each(*count) >= 0.01);
        let shown: Vec<String> = shown.map(|(kind, count)| format!("{kind} {:.2}", each(*count))).collect();
        Some(format!("| {} | {total:.2} | {} |", self.name, shown.join(", ")))
    }

    fn flushes_line(&self) -> Option<String> {
        if self.flushes_min == 0 {
            return None;
        }
        let mut line = format!("| {} | {} |", self.name, self.flushes_min);
        for side in &self.sides {
            let flushes = side.samples.iter().filter_map(|sample| sample.flushes).min();
            let flushes = flushes.map_or_else(|| "unknown".to_owned(), |flushes| flushes.to_string());
            let note = if self.unflushed.contains(&side.system) { " **not flushed**" } else { "" };
            let _ = write!(line, " {flushes}{note} |");
        }
        Some(line)
    }
}

/// A figure of one of the other tables.
#[derive(Serialize)]
pub struct Figure {
    pub what: String,
    pub value: f64,
    pub unit: &'static str,
    /// What it must keep to; without one it stands beside another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Limit>,
    /// Whether it keeps to its limit, or reaches the goal, where one of them is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<Mark>,
    /// How the value came about.
    pub detail: String,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl Limit {
    fn holds(self, value: f64) -> bool {
        match self {
            Limit::AtMost(most) => value <= most,
            Limit::AtLeast(least) => value >= least,
        }
    }

    fn bound(self) -> f64 {
        match self {
            Limit::AtMost(bound) | Limit::AtLeast(bound) => bound,
        }
    }

    fn direction(self) -> &'static str {
        match self {
            Limit::AtMost(_) => "at most",
            Limit::AtLeast(_) => "at least",
        }
    }
}

impl Figure {
    pub fn new(what: impl Into<String>, value: f64, unit: &'static str, limit: Limit, detail: String) -> Figure {
        let mut figure = Figure::unlimited(what, value, unit, detail);
        figure.limit = Some(limit);
        figure.marked()
    }

    /// A value of which nothing is asked.
    pub fn unlimited(what: impl Into<String>, value: f64, unit: &'static str, detail: String) -> Figure {
        Figure { what: what.into(), value, unit, limit: None, goal: None, mark: None, detail }
    }

    /// The same with what is wished for.
    pub fn goal(mut self, goal: Limit) -> Figure {
        self.goal = Some(goal);
        self.marked()
    }

    fn marked(mut self) -> Figure {
        let holds = |limit: Option<Limit>| limit.map(|limit| limit.holds(self.value));
        self.mark = match (holds(self.limit), holds(self.goal)) {
            (Some(false), _) => Some(Mark::Missed),
            (_, Some(true)) => Some(Mark::Goal),
            (Some(true), _) => Some(Mark::Met),
            // A goal that is not reached is no failure.
            (None, _) => None,
        };
        self
    }

    fn line(&self) -> String {
        let decimals = if self.value.abs() < 10.0 { 3 } else { 1 };
        let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
        let limit = match (self.limit, self.goal) {
            (None, None) => String::new(),
            (Some(limit), None) => format!("{} {}{unit}", limit.direction(), limit.bound()),
            (None, Some(goal)) => format!("{} - / {}{unit}", goal.direction(), goal.bound()),
            (Some(limit), Some(goal)) => {
                format!("{} {} / {}{unit}", limit.direction(), limit.bound(), goal.bound())
            }
        };
        let mark = self.mark.map_or_else(String::new, |mark| format!(" {}", mark.text()));
        format!("| {} | {:.decimals$}{unit} | {limit}{mark} | {} |", self.what, self.value, self.detail)
    }
}

impl Report {
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "Medians of {} (least to most); sizes and counts times {}; {} s of rest before each run. A ratio over 1 is \
             faster.\n{}; {}.\n\n",
            self.repeat, self.scale, self.rest_seconds, self.machine, self.phifs
        );
        if let Some(why) = &self.without_juicefs {
            let _ = writeln!(out, "Without JuiceFS: {why}.\n");
        }
        if !self.workloads.is_empty() {
            self.workload_tables(&mut out);
        }
        for (title, figures) in [
            ("resource", &self.resources),
            ("snapshots", &self.snapshots),
            ("merges", &self.merges),
            ("cluster", &self.cluster),
        ] {
            if !figures.is_empty() {
                let _ = writeln!(out, "| {title} | value | limit / goal | how |\n| --- | --- | --- | --- |");
                lines(&mut out, figures.iter().map(Figure::line));
            }
        }
        out
    }

    fn workload_tables(&self, out: &mut String) {
        let juicefs = self.workloads.iter().any(|row| row.to_juicefs.is_some());
        let more = |text: &'static str| if juicefs { text } else { "" };
        let _ = writeln!(
            out,
            "| workload | host s | phifs s | then settled s | phifs/host | floor / goal |{}\n\
             | --- | --- | --- | --- | --- | --- |{}",
            more(" JuiceFS s | phifs/JuiceFS | floor / goal |"),
            more(" --- | --- | --- |")
        );
        lines(out, self.workloads.iter().map(Workload::line));
        let flushes: Vec<String> = self.workloads.iter().filter_map(Workload::flushes_line).collect();
        if !flushes.is_empty() {
            let _ = writeln!(
                out,
                "Flushes of the disk's cache, by any program of the machine, the fewest of all runs.\n\n\
                 | row | needed | host | phifs |{}\n| --- | --- | --- | --- |{}",
                more(" JuiceFS |"),
                more(" --- |")
            );
            lines(out, flushes);
        }
        let requests: Vec<String> = self.workloads.iter().filter_map(Workload::requests_line).collect();
        if !requests.is_empty() {
            out.push_str("FUSE requests for each operation.\n\n| row | requests | of which |\n| --- | --- | --- |\n");
            lines(out, requests);
        }
    }
}

/// The lines of a table and the empty one behind it.
fn lines(out: &mut String, lines: impl IntoIterator<Item = String>) {
    for line in lines {
        out.push_str(&line);
        out.push('\n');
    }
    out.push('\n');
}

fn spread(side: &Side) -> String {
    let seconds = || side.samples.iter().map(|sample| sample.seconds);
    let (least, most) = (seconds().fold(f64::INFINITY, f64::min), seconds().fold(0.0, f64::max));
    format!("{:.3} ({least:.3}-{most:.3})", median_of(seconds().collect()))
}

fn median(side: &Side, value: impl Fn(&Sample) -> f64) -> f64 {
    median_of(side.samples.iter().map(value).collect())
}

pub fn median_of(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => f64::NAN,
        (count, half) if count % 2 == 0 => (values[half - 1] + values[half]) / 2.0,
        (_, half) => values[half],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::ROWS;

    fn side(system: &'static str, seconds: &[f64], flushes: u64) -> Side {
        let sample = |seconds: &f64| Sample { seconds: *seconds, flushes: Some(flushes), ..Sample::default() };
        Side { system, samples: seconds.iter().map(sample).collect() }
    }

    #[test]
    fn ratios_are_of_medians_and_above_one_is_faster() {
        let sides = vec![side("host", &[2.0, 9.0, 1.0], 5), side("phifs", &[1.0, 1.0], 5)];
        let row = Workload::new(&ROWS[0], sides, 0, 5);
        assert_eq!((row.to_host.value, row.to_host.mark), (2.0, Mark::Goal));
        assert!(row.unflushed.is_empty() && row.to_juicefs.is_none());
        assert_eq!(spread(&row.sides[0]), "2.000 (1.000-9.000)");
    }

    #[test]
    fn who_acknowledges_without_a_flush_is_named() {
        let sides = vec![side("host", &[1.0], 5), side("phifs", &[1.0], 5), side("juicefs", &[1.0], 4)];
        let row = Workload::new(&ROWS[0], sides, 0, 5);
        assert_eq!(row.unflushed, ["juicefs"]);
        assert!(row.flushes_line().is_some_and(|line| line.contains("4 **not flushed**")));
    }

    #[test]
    fn marks_say_whether_floor_and_goal_are_reached() {
        assert_eq!([0.4, 0.5, 0.8].map(|value| Mark::of(value, 0.5, 0.8)), [Mark::Missed, Mark::Met, Mark::Goal]);
        let figure = |value, limit| Figure::new("", value, "", limit, String::new());
        assert_eq!(figure(2.0, Limit::AtMost(2.0)).mark, Some(Mark::Met));
        assert_eq!(figure(0.7, Limit::AtLeast(0.8)).mark, Some(Mark::Missed));
    }

    #[test]
    fn a_goal_counts_only_beside_a_limit_that_is_kept_or_where_there_is_none() {
        let figure = |value, limit| Figure::new("", value, "", Limit::AtMost(limit), String::new());
        let goal = Limit::AtMost(1.0);
        assert_eq!(figure(1.0, 5.0).goal(goal).mark, Some(Mark::Goal));
        assert_eq!(figure(2.0, 5.0).goal(goal).mark, Some(Mark::Met));
        assert_eq!(figure(6.0, 5.0).goal(goal).mark, Some(Mark::Missed));
        let unlimited = |value| Figure::unlimited("", value, "s", String::new()).goal(goal);
        assert_eq!([unlimited(0.5).mark, unlimited(1.5).mark], [Some(Mark::Goal), None]);
        assert_eq!(unlimited(0.5).line(), "|  | 0.500 s | at most - / 1 s goal |  |");
        assert_eq!(figure(2.0, 5.0).goal(goal).line(), "|  | 2.000 | at most 5 / 1 met |  |");
    }
}
