//! `phifs man`: manual pages, made from the same text as `--help`.

use std::path::PathBuf;

use clap::CommandFactory as _;

use crate::failure::Failure;
use crate::show;

/// Write manual pages into a directory
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  phifs man /usr/local/share/man/man1")]
pub struct Man {
    /// Directory to write into; made when missing
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: PathBuf,
}

impl Man {
    pub fn run(self) -> Result<(), Failure> {
        std::fs::create_dir_all(&self.dir)
            .and_then(|()| clap_mangen::generate_to(super::Cli::command(), &self.dir))
            .map_err(|error| Failure::plain(format!("cannot write manual pages to {}: {error}", show::path(&self.dir))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subcommand_gets_a_page() {
        let dir = tempfile::tempdir().unwrap();
        Man { dir: dir.path().join("man1") }.run().unwrap();
        for page in ["phifs.1", "phifs-up.1", "phifs-fsck.1"] {
            assert!(dir.path().join("man1").join(page).exists(), "{page}");
        }
    }
}
