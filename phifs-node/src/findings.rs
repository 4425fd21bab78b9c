//! What a check found, as people need it: which files have lost what, and what helps. Nothing is suggested that does not.

use phifs_core::store::Damage;
use phifs_core::volume::local::{CheckReport, LostFile, LostRows, Problem as Found};

use crate::report::{Affected, Checked, LostBytes, Problem};
use crate::show::{self, Name};

const BYTES_REMEDY: &str = "there is no other copy of these bytes here: put the files back from a backup, or delete them; \
    the rest of each can still be read";
const ROWS_REMEDY: &str = "there is no other copy of these rows here: save what can still be read, and put a backup of \
    the store in its place, or begin a new one";
const DERIVED_REMEDY: &str = "phifs fsck --repair";
const DERIVED_LOST_REMEDY: &str =
    "it could be made anew, but other tables that this takes are damaged as well, see above";
const INDEX_REMEDY: &str = "phifs fsck --rebuild-index";
const OPLOG_REMEDY: &str =
    "nothing is needed: `phifs log` shows less, and the damaged part goes when the log is next trimmed";
const BRANCH_REMEDY: &str = "`phifs fsck --repair` gives up what is damaged in its journal; where that does not help, \
    put a backup of the store in its place, or give the branch up with phifs branch delete";

pub fn checked(report: CheckReport) -> Checked {
    let rows_are_lost = report.problems.iter().any(|found| matches!(found, Found::Rows(_)));
    let mut problems = Vec::new();
    let mut files = Vec::new();
    for found in report.problems {
        match found {
            Found::Bytes(file) => files.push(affected(&file)),
            Found::Rows(rows) => problems.push(lost_rows(&rows)),
            Found::Derived { what, repaired } => {
                let remedy = if rows_are_lost { DERIVED_LOST_REMEDY } else { DERIVED_REMEDY };
                problems.push(Problem { repaired, ..problem(what, remedy) });
            }
            Found::Index => {
                problems.push(problem("the glyph index does not know of glyphs that are stored".into(), INDEX_REMEDY));
            }
            Found::Oplog { places } => {
                let what = format!("the log of operations cannot be read in {}", count(places, "place"));
                problems.push(problem(what, OPLOG_REMEDY));
            }
            Found::Branch { name, why } => {
                let what = format!("the branch {} cannot be opened: {why}", show::quote(name.as_bytes()));
                problems.push(problem(what, BRANCH_REMEDY));
            }
        }
    }
    if !files.is_empty() {
        let what = format!("{} with lost bytes; reading these gives an I/O error", count(files.len() as u64, "file"));
        problems.insert(0, Problem { files, ..problem(what, BYTES_REMEDY) });
    }
    Checked {
        checked_glyphs: report.glyphs,
        checked_bytes: report.bytes,
        problems,
        unused_damage: report.unused.iter().map(place).collect(),
    }
}

fn problem(what: String, remedy: &str) -> Problem {
    Problem { what, files: Vec::new(), repaired: false, remedy: Some(remedy.to_owned()) }
}

fn affected(file: &LostFile) -> Affected {
    let lost =
        file.lost.iter().map(|range| LostBytes { offset_bytes: range.start, len_bytes: range.end - range.start });
    Affected { path: Name::new(&file.path), lost: lost.collect(), why: Some(file.why.clone()) }
}

fn lost_rows(rows: &LostRows) -> Problem {
    let files = rows.paths.iter().map(|path| Affected { path: Name::new(path), lost: Vec::new(), why: None }).collect();
    let more = if rows.is_partial { "; there may be more than these, as names are lost as well" } else { "" };
    let what = format!("a part of the table of {} is lost: {}{more}", rows.table, rows.why);
    Problem { files, ..problem(what, ROWS_REMEDY) }
}

fn place(damage: &Damage) -> String {
    let id = damage.id.map(|id| format!(" (glyph {id})")).unwrap_or_default();
    format!("{} bytes of pack {} at byte {}{id}", damage.len_bytes, damage.pack, damage.offset_bytes)
}

pub fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use phifs_core::namespace::Table;

    fn rows() -> Found {
        let paths = vec![b"/d/a".to_vec()];
        Found::Rows(LostRows {
            table: Table::Inodes,
            why: "glyph 00 is not stored here".into(),
            paths,
            is_partial: false,
        })
    }

    fn derived() -> Found {
        Found::Derived { what: "wrong".into(), repaired: false }
    }

    fn remedies(problems: Vec<Found>) -> Vec<Option<String>> {
        let report = CheckReport { problems, ..CheckReport::default() };
        checked(report).problems.into_iter().map(|problem| problem.remedy).collect()
    }

    #[test]
    fn repair_is_suggested_only_where_it_helps() {
        let is_repair = |remedy: &Option<String>| remedy.as_deref().is_some_and(|remedy| remedy.contains("--repair"));
        assert!(remedies(vec![derived()]).iter().all(is_repair));
        assert!(!remedies(vec![derived(), rows()]).iter().any(is_repair));
        let lost = LostFile { path: b"/f".to_vec(), len_bytes: 10, lost: vec![2..5, 7..9], why: "gone".into() };
        assert!(!remedies(vec![Found::Bytes(lost)]).iter().any(is_repair));
    }

    #[test]
    fn files_with_lost_bytes_are_one_problem_that_comes_first() {
        let lost = |path: &[u8]| {
            Found::Bytes(LostFile { path: path.to_vec(), len_bytes: 10, lost: vec![2..5, 7..9], why: "gone".into() })
        };
        let report = CheckReport { problems: vec![rows(), lost(b"/f"), lost(b"/g")], ..CheckReport::default() };
        let checked = checked(report);
        assert_eq!((checked.problems.len(), checked.unrepaired()), (2, 2));
        assert!(checked.problems[0].what.starts_with("2 files with lost bytes"));
        assert_eq!(
            checked.problems[0].files[1].lost,
            [LostBytes { offset_bytes: 2, len_bytes: 3 }, LostBytes { offset_bytes: 7, len_bytes: 2 }]
        );
    }
}
