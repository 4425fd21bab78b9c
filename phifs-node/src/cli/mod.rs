//! The `phifs` command: one file per subcommand, text in and out. Data goes to standard output, the rest to standard
//! error; `failure::Kind` is the exit code.

mod branch;
mod completions;
mod conflicts;
mod df;
mod down;
mod fsck;
mod gc;
mod invite;
mod join;
mod leave;
mod log;
mod man;
mod member;
mod members;
mod merge;
mod mount;
mod output;
mod paths;
mod pin;
mod resolve;
mod scrub;
mod snapshot;
mod status;
mod token;
mod up;
mod volume;
mod why;

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Settings};
use crate::control::{Client, Progress, Request};
use crate::failure::Failure;
use crate::store_dir::StoreDir;
use output::Output;

/// A distributed filesystem: one volume, mounted on many machines
#[derive(Parser)]
#[command(name = "phifs", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "Examples:\n  phifs up              Serve the volume and mount it on /phi\n  \
    phifs status          See how it is\n  phifs invite          Let another machine have it\n  phifs down            Unmount and stop\n\n\
    Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 no daemon runs,\n\
    4 in use by somebody else, 5 damage found")]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct Global {
    /// Use the store in this directory [default: /var/lib/phifs for root, else ~/.local/share/phifs; env: PHIFS_STORE]
    #[arg(long, global = true, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    store: Option<PathBuf>,
    /// Read settings from this file [default: phifs.toml in the store, if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "PHIFS_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    Up(up::Up),
    Down(down::Down),
    Invite(invite::Invite),
    Join(join::Join),
    Members(members::Members),
    Member(member::One),
    Leave(leave::Leave),
    Token(token::Token),
    Wait(token::Wait),
    Status(status::Status),
    Mount(mount::Mount),
    Fsck(fsck::Fsck),
    Scrub(scrub::Scrub),
    Gc(gc::Gc),
    Df(df::Df),
    Log(log::Log),
    Conflicts(conflicts::Conflicts),
    Why(why::Why),
    Resolve(resolve::Resolve),
    Pin(pin::Pin),
    Snapshot(snapshot::Snapshot),
    Volume(volume::Volume),
    Branch(branch::Branches),
    Merge(merge::Merge),
    Completions(completions::Completions),
    Man(man::Man),
}

/// What every subcommand gets to work with.
struct Context {
    global: Global,
    output: Output,
}

impl Context {
    /// The settings, with `flags` of the subcommand on top.
    fn config(&self, flags: Settings) -> Result<Config, Failure> {
        let flags = Settings { store: self.global.store.clone(), ..flags };
        Ok(Config::load(flags, self.global.config.as_deref())?)
    }

    fn store(&self) -> Result<StoreDir, Failure> {
        Ok(StoreDir::find(&self.config(Settings::default())?.store)?)
    }

    /// Asks the daemon of the store, showing progress while it works.
    fn ask<T: serde::de::DeserializeOwned>(&self, request: &Request) -> Result<T, Failure> {
        let mut line = self.output.progress();
        Client::connect(&self.store()?)?.call(request, &mut |step: Progress| line.show(&step))
    }

    /// The same about a file that this process has open.
    fn ask_with<T: serde::de::DeserializeOwned>(&self, request: &Request, file: BorrowedFd<'_>) -> Result<T, Failure> {
        let mut line = self.output.progress();
        let client = Client::connect(&self.store()?)?;
        client.call_with(request, Some(file), &mut |step: Progress| line.show(&step))
    }
}

/// Parses the command line and does what it says.
pub fn run() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    let output = Output::new(global.json);
    let context = Context { global, output };
    let result = match command {
        Command::Up(command) => command.run(&context),
        Command::Down(command) => command.run(&context),
        Command::Invite(command) => command.run(&context),
        Command::Join(command) => command.run(&context),
        Command::Members(command) => command.run(&context),
        Command::Member(command) => command.run(&context),
        Command::Leave(command) => command.run(&context),
        Command::Token(command) => command.run(&context),
        Command::Wait(command) => command.run(&context),
        Command::Status(command) => command.run(&context),
        Command::Mount(command) => command.run(&context),
        Command::Fsck(command) => command.run(&context),
        Command::Scrub(command) => command.run(&context),
        Command::Gc(command) => command.run(&context),
        Command::Df(command) => command.run(&context),
        Command::Log(command) => command.run(&context),
        Command::Conflicts(command) => command.run(&context),
        Command::Why(command) => command.run(&context),
        Command::Resolve(command) => command.run(&context),
        Command::Pin(command) => command.run(&context),
        Command::Snapshot(command) => command.run(&context),
        Command::Volume(command) => command.run(&context),
        Command::Branch(command) => command.run(&context),
        Command::Merge(command) => command.run(&context),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            context.output.failure(&failure);
            ExitCode::from(failure.kind.exit_code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn command_line_is_sound_and_every_subcommand_has_help_for_its_reader() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && !about.ends_with('.'), "{}: {about:?}", command.get_name());
            assert!(command.get_after_help().is_some(), "{} has no example", command.get_name());
        }
    }
}
