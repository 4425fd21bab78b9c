//! The `phifs` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    phifs_node::cli::run()
}
