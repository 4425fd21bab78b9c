//! Rules on source text: what core must not reach for, ASCII, length, leftovers.
//!
//! Text rules are crude on purpose: a line of a comment is skipped, everything else counts. Code under `#[cfg(test)]`
//! may use clocks, threads and files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A module longer than this does not fit in one head.
const LINES_MAX: usize = 1500;
/// Core computes and its caller acts: it gets time, paths, threads and sockets from nobody but its traits.
const FORBIDDEN_IN_CORE: [(&str, &str); 8] = [
    ("SystemTime", "a clock"),
    ("Instant::now", "a clock"),
    ("thread::spawn", "a thread"),
    ("thread::Builder", "a thread"),
    ("std::net", "the network"),
    ("std::env", "the environment"),
    ("std::fs", "files"),
    ("std::path", "paths"),
];
const LEFTOVERS: [&str; 3] = ["todo!(", "unimplemented!(", "dbg!("];
const SKIPPED_DIRS: [&str; 2] = ["target", ".git"];

/// Every broken rule, as `path:line: what`.
pub fn problems(root: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for path in sources(root)? {
        let shown = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        let bytes = fs::read(&path).with_context(|| shown.clone())?;
        let text = String::from_utf8_lossy(&bytes);
        problems.extend(check(&shown, &text));
    }
    Ok(problems)
}

/// All source files below a folder, in order.
pub fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut dirs) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_owned();
            if path.is_dir() {
                if !SKIPPED_DIRS.iter().any(|skipped| name == *skipped) {
                    dirs.push(path);
                }
            } else if path.extension().is_some_and(|end| end == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn check(shown: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > LINES_MAX {
        problems.push(format!("{shown}: {} lines, at most {LINES_MAX}", lines.len()));
    }
    // The lists above would find themselves.
    let own = shown == "tools/xtask/src/tidy.rs";
    let core = is_core(shown);
    let shipped = shipped_lines(&lines);
    for (at, line) in lines.iter().enumerate() {
        let place = format!("{shown}:{}", at + 1);
        if !line.is_ascii() {
            problems.push(format!("{place}: not ASCII"));
        }
        if own || line.trim_start().starts_with("//") {
            continue;
        }
        let leftovers = LEFTOVERS.iter().filter(|leftover| line.contains(*leftover));
        problems.extend(leftovers.map(|leftover| format!("{place}: {leftover} is left")));
        if core && shipped[at] {
            let reached = FORBIDDEN_IN_CORE.iter().filter(|(word, _)| line.contains(word));
            problems.extend(reached.map(|(word, what)| format!("{place}: core reaches for {what} ({word})")));
        }
    }
    problems
}

/// Core's own code: not its integration tests, benches, examples, nor a module that is only compiled for tests.
fn is_core(shown: &str) -> bool {
    let Some(rest) = shown.strip_prefix("phifs-core/src/") else { return false };
    !rest.split('/').any(|part| matches!(part.trim_end_matches(".rs"), "tests" | "testing"))
}

/// For each line whether it is outside `#[cfg(test)]`. The attribute covers the block that opens next, or one line.
fn shipped_lines(lines: &[&str]) -> Vec<bool> {
    let mut shipped = Vec::with_capacity(lines.len());
    // The indentation of the attribute while inside of what it covers: rustfmt closes the block at the same column.
    let mut covered: Option<usize> = None;
    for line in lines {
        let indent = line.len() - line.trim_start().len();
        let word = line.trim();
        match covered {
            None if word.starts_with("#[cfg(test)]") || word.starts_with("#[cfg(any(test") => {
                covered = Some(indent);
                shipped.push(false);
            }
            None => shipped.push(true),
            Some(column) => {
                shipped.push(false);
                let ends = word == "}" || word.ends_with(';') || word.ends_with("{}");
                if indent == column && ends {
                    covered = None;
                }
            }
        }
    }
    shipped
}

#[cfg(test)]
mod tests {
    use super::*;

    const CORE: &str = "phifs-core/src/a.rs";

    #[test]
    fn core_may_not_reach_for_the_world() {
        let found = check(CORE, "fn now() {\n    let t = std::time::Instant::now();\n}\n");
        assert_eq!(found, ["phifs-core/src/a.rs:2: core reaches for a clock (Instant::now)"]);
        assert_eq!(check("phifs-node/src/a.rs", "use std::fs;\n"), Vec::<String>::new());
    }

    #[test]
    fn tests_and_comments_of_core_may_name_the_world() {
        let text = "// std::fs is not used\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\nuse std::env;\n";
        assert_eq!(check(CORE, text), ["phifs-core/src/a.rs:6: core reaches for the environment (std::env)"]);
        assert_eq!(check("phifs-core/src/a/tests.rs", "use std::thread::spawn;\n"), Vec::<String>::new());
        assert_eq!(check(CORE, "#[cfg(test)]\nuse std::fs;\nfn a() {}\n"), Vec::<String>::new());
    }

    #[test]
    fn leftovers_odd_letters_and_length_are_found() {
        assert_eq!(check("a.rs", "fn a() { todo!() }\n"), ["a.rs:1: todo!( is left"]);
        assert_eq!(check("a.rs", "let phi = \"\u{3a6}\";\n"), ["a.rs:1: not ASCII"]);
        assert_eq!(check("a.rs", &"\n".repeat(LINES_MAX + 1)).len(), 1);
    }
}
