//! What was measured, as a table for people and as JSON.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

#[derive(Serialize)]
pub struct Results {
    pub reference: String,
    pub measured: String,
    pub scale: f64,
    pub repetitions: usize,
    pub rows: Vec<Measured>,
}

/// Seconds of each repetition on both sides.
#[derive(Serialize)]
pub struct Measured {
    pub row: String,
    pub what: String,
    pub reference_seconds: Vec<f64>,
    pub measured_seconds: Vec<f64>,
    pub reference_settle: Vec<f64>,
    pub measured_settle: Vec<f64>,
}

impl Measured {
    /// How fast the measured side is against the reference; more than 1 is faster.
    fn ratio(&self) -> f64 {
        median(&self.reference_seconds) / median(&self.measured_seconds)
    }

    /// The same until everything was settled on both sides.
    fn settled_ratio(&self) -> f64 {
        let whole = |seconds: &[f64], settle: &[f64]| {
            median(&seconds.iter().zip(settle).map(|(run, rest)| run + rest).collect::<Vec<_>>())
        };
        whole(&self.reference_seconds, &self.reference_settle) / whole(&self.measured_seconds, &self.measured_settle)
    }
}

impl Results {
    pub fn new(reference: &Path, measured: &Path, scale: f64, repetitions: usize) -> Results {
        let name = |path: &Path| path.display().to_string();
        Results { reference: name(reference), measured: name(measured), scale, repetitions, rows: Vec::new() }
    }

    pub fn add(&mut self, measured: Measured) {
        self.rows.push(measured);
    }

    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let (scale, repetitions) = (self.scale, self.repetitions);
        let _ = writeln!(out, "Medians of {repetitions} (spread from least to most), sizes times {scale}.");
        let _ = writeln!(out, "Reference {}, measured {}; a ratio over 1 is faster.\n", self.reference, self.measured);
        let _ =
            writeln!(out, "| workload | reference s | measured s | ratio | settled |\n| --- | --- | --- | --- | --- |");
        for row in &self.rows {
            let _ = writeln!(
                out,
                "| {} | {} | {} | {:.2} | {:.2} |",
                row.what,
                spread(&row.reference_seconds),
                spread(&row.measured_seconds),
                row.ratio(),
                row.settled_ratio()
            );
        }
        out
    }
}

fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{:.3} ({least:.3}-{most:.3})", median(values))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (count, half) if count % 2 == 0 => (sorted[half - 1] + sorted[half]) / 2.0,
        (_, half) => sorted[half],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians_and_above_one_is_faster() {
        let row = Measured {
            row: "r".into(),
            what: "w".into(),
            reference_seconds: vec![2.0, 9.0, 1.0],
            measured_seconds: vec![1.0, 1.0],
            reference_settle: vec![0.0; 3],
            measured_settle: vec![3.0, 3.0],
        };
        assert_eq!((row.ratio(), row.settled_ratio()), (2.0, 0.5));
        assert_eq!(spread(&row.reference_seconds), "2.000 (1.000-9.000)");
    }
}
