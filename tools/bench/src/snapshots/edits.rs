//! Changes to a large file, the same wherever it lies.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;

use crate::rows::noise;

/// As databases write: whole pages.
const PAGE: u64 = 4096;

/// Overwrites one range, beginning in the middle of a page.
pub fn overwrite(path: &Path, len: usize) -> Result<()> {
    let file = File::options().write(true).open(path)?;
    let at = file.metadata()?.len() * 2 / 3 + 1234;
    file.write_all_at(&noise(1 << 40, len), at.min(file.metadata()?.len() - len as u64))?;
    file.sync_all()?;
    Ok(())
}

/// Overwrites so many ranges of so many bytes, spread at random and none twice.
pub fn scatter(path: &Path, count: usize, len: usize) -> Result<()> {
    let file = File::options().write(true).open(path)?;
    let mut rng = fastrand::Rng::with_seed(2);
    let stride = file.metadata()?.len() / count as u64;
    for n in 0..count as u64 {
        let room = (stride - len as u64) / PAGE;
        file.write_all_at(&noise((1 << 41) + n, len), (n * stride / PAGE + rng.u64(..=room)) * PAGE)?;
    }
    file.sync_all()?;
    Ok(())
}

/// Inserts bytes: what stands behind them moves.
pub fn insert(path: &Path, at: u64, len: usize) -> Result<()> {
    const STEP: u64 = 1 << 20;
    let file = File::options().read(true).write(true).open(path)?;
    let mut end = file.metadata()?.len();
    let mut bytes = vec![0; STEP as usize];
    // From the end, so that nothing is overwritten before it has moved.
    while end > at {
        let start = end.saturating_sub(STEP).max(at);
        let moved = &mut bytes[..(end - start) as usize];
        file.read_exact_at(moved, start)?;
        file.write_all_at(moved, start + len as u64)?;
        end = start;
    }
    file.write_all_at(&noise(1 << 42, len), at)?;
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inserted_moves_the_rest_and_changes_nothing_else() {
        let path = std::env::temp_dir().join(format!("phifs-bench-edits-{}", std::process::id()));
        let before = noise(9, (2 << 20) + 77);
        std::fs::write(&path, &before).expect("a file");
        insert(&path, 1000, 1024).expect("an edit");
        let after = std::fs::read(&path).expect("the file");
        std::fs::remove_file(&path).expect("the file");
        assert!(after[..1000] == before[..1000] && after[2024..] == before[1000..]);
        assert_ne!(after[1000..2024], before[1000..2024]);
    }
}
