//! A source tree as programmers have them: files of the crates that cargo has fetched for building this very program.
//!
//! It is made once for each run and is the same on every machine with the same crates. Where there are not enough of
//! them, files come again with their lines in another order, so that no two are alike.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::systems::succeed;

/// Longer ones are made by programs.
const SOURCE_BYTES_MAX: u64 = 128 << 10;

pub struct Sources {
    pub archive: PathBuf,
    pub tree: PathBuf,
    pub files: usize,
}

impl Sources {
    pub fn make(home: &Path, files: usize) -> Result<Sources> {
        let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let cargo = cargo.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
        let registry = cargo.context("neither CARGO_HOME nor HOME is set")?.join("registry/src");
        let mut found = Vec::new();
        for index in fs::read_dir(&registry).with_context(|| format!("cannot read {}", registry.display()))? {
            let index = index?.path();
            collect(&index, &mut |path| found.push((index.clone(), path)))?;
        }
        ensure!(!found.is_empty(), "no source files in {}", registry.display());
        found.sort_by(|a, b| a.1.cmp(&b.1));

        let tree = home.join("tree");
        for n in 0..files {
            // Spread over all crates; each round over them turns the lines once more.
            let (round, nth) = (n / found.len(), n % found.len());
            let at = if files < found.len() { n * found.len() / files } else { nth };
            let (index, path) = &found[at];
            let text = fs::read(index.join(path))?;
            let to = if round == 0 { tree.join(path) } else { tree.join(format!("again{round}")).join(path) };
            fs::create_dir_all(to.parent().context("a file lies in a directory")?)?;
            fs::write(&to, turned(&text, round))?;
        }
        let archive = home.join("sources.tar");
        succeed(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(home).arg("tree"))?;
        Ok(Sources { archive, tree, files })
    }

    /// Unpacks them below `dir`.
    pub fn unpack(&self, dir: &Path) -> Result<()> {
        succeed(Command::new("tar").arg("-xf").arg(&self.archive).arg("-C").arg(dir)).map(drop)
    }
}

/// Makes the next version of such a tree out of it, the same of each copy: some lines change in some files, and a few
/// files come, move and go, until about so many bytes are written. Tells how many.
pub fn next_version(tree: &Path, version: u64, bytes: usize) -> Result<usize> {
    let mut paths = Vec::new();
    collect(tree, &mut |path| paths.push(path))?;
    paths.sort();
    let mut rng = fastrand::Rng::with_seed(version);
    let mut written = 0;
    while written < bytes {
        let nth = rng.usize(..paths.len());
        let path = tree.join(paths.swap_remove(nth));
        let kind = rng.u8(..10);
        let beside = |what: &str| path.with_extension(format!("{what}{version}"));
        match kind {
            0 => fs::remove_file(&path)?,
            1 => fs::rename(&path, beside("moved"))?,
            _ => {
                let text = edited(&fs::read(&path)?, &mut rng);
                fs::write(if kind == 2 { beside("new") } else { path.clone() }, &text)?;
                written += text.len();
            }
        }
        ensure!(!paths.is_empty(), "{bytes} bytes are more than {} has", tree.display());
    }
    Ok(written)
}

/// A text with one line in twenty another one.
fn edited(text: &[u8], rng: &mut fastrand::Rng) -> Vec<u8> {
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    let lines = lines.map(|line| match rng.u8(..20) {
        0 => format!("    let edited_{:016x} = {};\n", rng.u64(..), rng.u16(..)).into_bytes(),
        _ => line.to_owned(),
    });
    lines.flatten().collect()
}

/// Calls `each` with every source file below `top`, by its path from there.
fn collect(top: &Path, each: &mut dyn FnMut(PathBuf)) -> Result<()> {
    let mut below = vec![PathBuf::new()];
    while let Some(dir) = below.pop() {
        for entry in fs::read_dir(top.join(&dir))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                below.push(path);
            } else if kind.is_file() && entry.metadata()?.len() <= SOURCE_BYTES_MAX {
                each(path);
            }
        }
    }
    Ok(())
}

/// The lines of a text, beginning with another one.
fn turned(text: &[u8], by: usize) -> Vec<u8> {
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let mut turned = Vec::with_capacity(text.len());
    if let Some(at) = (by * 7).checked_rem(lines.len()) {
        turned.extend(lines[at..].iter().chain(&lines[..at]).flat_map(|line| line.iter()));
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edited_lines_are_few_and_the_same_for_the_same_seed() {
        let text = b"line\n".repeat(1000);
        let edit = || edited(&text, &mut fastrand::Rng::with_seed(4));
        let kept = edit().split(|byte| *byte == b'\n').filter(|line| *line == b"line").count();
        assert!((900..990).contains(&kept), "{kept} of 1000 lines are left");
        assert_eq!(edit(), edit());
    }

    #[test]
    fn turned_lines_are_all_there_from_another_start() {
        assert_eq!(turned(b"", 3), b"");
        assert_eq!(turned(b"1\n2\n3\n", 0), b"1\n2\n3\n");
        assert_eq!(turned(b"1\n2\n3\n", 1), b"2\n3\n1\n");
    }
}
