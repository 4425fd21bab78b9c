//! Printing: results to standard output as text or JSON, progress and failures to standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::control::Progress;
use crate::failure::Failure;
use crate::show;

/// How often something is shown that is watched.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

pub struct Output {
    json: bool,
}

impl Output {
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints a result: one line of JSON, or `text` of it.
    pub fn result<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) {
        let text = self.shown(value, text);
        if !text.is_empty() {
            print(&text);
        }
    }

    /// What `result` would print.
    pub fn shown<T: Serialize>(&self, value: &T, text: impl FnOnce(&T) -> String) -> String {
        if self.json {
            serde_json::to_string(value).expect("reports are plain data with text keys")
        } else {
            text(value).trim_end().to_owned()
        }
    }

    /// Prints what `look` shows, once or again and again: on a terminal in the same place, and elsewhere one below the
    /// other. It ends when nobody reads it any more.
    pub fn watch(&self, again: bool, mut look: impl FnMut() -> Result<String, Failure>) -> Result<(), Failure> {
        let clear = if again && !self.json && io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
        loop {
            let text = look()?;
            if !again {
                if !text.is_empty() {
                    print(&text);
                }
                return Ok(());
            }
            match writeln!(io::stdout(), "{clear}{text}") {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(Failure::plain(format!("cannot write to standard output: {error}"))),
                Ok(()) => std::thread::sleep(WATCH_INTERVAL),
            }
        }
    }

    pub fn failure(&self, failure: &Failure) {
        if self.json {
            let failure = serde_json::to_string(failure).expect("failures are plain data");
            eprintln!("{{\"error\":{failure}}}");
        } else {
            eprintln!("{}", failure.text());
        }
    }

    /// What is worth saying, but is not the result.
    pub fn note(&self, text: &str) {
        if !self.json {
            eprintln!("{text}");
        }
    }

    pub fn progress(&self) -> ProgressLine {
        let place = match (self.json, io::stderr().is_terminal()) {
            (true, _) => Place::Nowhere,
            (false, true) => Place::Terminal,
            (false, false) => Place::File,
        };
        ProgressLine { place, last: None }
    }
}

/// A reader that has seen enough and closed the pipe is no failure.
fn print(text: &str) {
    if let Err(error) = writeln!(io::stdout(), "{text}")
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        eprintln!("error: cannot write to standard output: {error}");
    }
}

enum Place {
    Terminal,
    File,
    Nowhere,
}

/// The line that tells how far long work has come: rewritten in place on a terminal, and elsewhere a new line for each
/// step and every few seconds. It is wiped when dropped.
pub struct ProgressLine {
    place: Place,
    last: Option<(Instant, String)>,
}

impl ProgressLine {
    pub fn show(&mut self, step: &Progress) {
        let news =
            self.last.as_ref().is_none_or(|(at, doing)| *doing != step.doing || at.elapsed() >= Duration::from_secs(5));
        match self.place {
            Place::Terminal => eprint!("\r\x1b[K{}", describe(step)),
            Place::File if news => eprintln!("{}", describe(step)),
            Place::File | Place::Nowhere => {}
        }
        if news {
            self.last = Some((Instant::now(), step.doing.clone()));
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if matches!(self.place, Place::Terminal) && self.last.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}

/// `checking 3 of 10 glyphs (30 %)`.
fn describe(step: &Progress) -> String {
    let amount = |n: u64| match step.unit.as_str() {
        "bytes" => show::size(n),
        "" => n.to_string(),
        unit => format!("{n} {unit}"),
    };
    match step.total {
        Some(total) if total > 0 => {
            let percent = u128::from(step.done) * 100 / u128::from(total);
            let done = if step.unit == "bytes" { show::size(step.done) } else { step.done.to_string() };
            format!("{} {done} of {} ({percent} %)", step.doing, amount(total))
        }
        _ if step.done > 0 => format!("{} {}", step.doing, amount(step.done)),
        _ => step.doing.clone(),
    }
}

/// Rows of name and value, the values in one column.
pub fn columns(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:<width$}  {value}\n")).collect()
}

/// Rows of text, with the columns below each other; those whose numbers are named are flush right.
pub fn table<const N: usize>(rows: &[[String; N]], right: &[usize]) -> String {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cell = |at: usize| {
            let (cell, width) = (&row[at], widths[at]);
            if right.contains(&at) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        };
        let cells: Vec<String> = (0..N).map(cell).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_as_a_sentence() {
        let step = |done, total, unit: &str| Progress { doing: "checking".into(), done, total, unit: unit.into() };
        assert_eq!(describe(&step(0, None, "")), "checking");
        assert_eq!(describe(&step(7, None, "glyphs")), "checking 7 glyphs");
        assert_eq!(describe(&step(3, Some(10), "glyphs")), "checking 3 of 10 glyphs (30 %)");
        assert_eq!(describe(&step(1024, Some(4096), "bytes")), "checking 1.00 KiB of 4.00 KiB (25 %)");
        assert_eq!(describe(&step(u64::MAX, Some(0), "")), format!("checking {}", u64::MAX));
    }
}
