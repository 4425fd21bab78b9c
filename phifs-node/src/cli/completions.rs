//! `phifs completions`: completion scripts for shells.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::failure::Failure;

/// Print a completion script for a shell
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  phifs completions bash > /etc/bash_completion.d/phifs\n  \
    phifs completions zsh > ~/.zfunc/_phifs")]
pub struct Completions {
    /// Shell to write it for
    shell: Shell,
}

impl Completions {
    pub fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "phifs", &mut script);
        std::io::Write::write_all(&mut std::io::stdout(), &script)
            .map_err(|error| Failure::plain(format!("cannot write to standard output: {error}")))
    }
}
