//! `phifs down`: unmounts and stops the daemon, or clears up behind one that died.

use std::time::{Duration, Instant};

use super::Context;
use crate::config::Settings;
use crate::control::{Client, Progress, Request};
use crate::failure::{Failure, Kind};
use crate::store_dir::StoreDir;
use crate::{daemon, show};

/// The daemon has closed its volume by then; what is left is the end of a process.
const END_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a daemon may hold the store without answering.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(5);

/// Unmount the volume and stop the daemon
#[derive(clap::Args)]
#[command(
    after_help = "Everything written is published first. When programs still use the volume, they are listed and \
    nothing is stopped.\n\nExamples:\n  phifs down\n  phifs down --force    Take the volume away from programs that use it"
)]
pub struct Down {
    /// Unmount even while programs use the volume; their open files fail afterwards
    #[arg(long)]
    force: bool,
}

impl Down {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let config = context.config(Settings::default())?;
        let store = StoreDir::find(&config.store)?;
        let mut line = context.output.progress();
        match connect(&store) {
            Ok(client) => {
                client.call::<()>(&Request::Down { force: self.force }, &mut |step| line.show(&step))?;
                line.show(&Progress::step("waiting for the daemon to end"));
                wait_until_free(&store)?;
                drop(line);
                context.output.result(&Ended { was_running: true }, |_| "The volume is down.".to_owned());
                Ok(())
            }
            Err(failure) if failure.kind == Kind::NotRunning => {
                // Whoever holds the lock is starting, checking, or ending: its mount is not dead.
                let _lock = store.lock("down")?;
                if daemon::clear_dead_mounts(&config)? {
                    let text = "No daemon was running; the mount that a dead one had left is cleared.";
                    context.output.result(&Ended { was_running: false }, |_| text.to_owned());
                    return Ok(());
                }
                Err(failure)
            }
            Err(failure) => Err(failure),
        }
    }
}

/// Reaches the daemon. One that holds the store without answering is starting or ending, and soon done with it.
fn connect(store: &StoreDir) -> Result<Client, Failure> {
    let until = Instant::now() + SETTLE_TIME_MAX;
    loop {
        match Client::connect(store) {
            Err(failure) if failure.kind == Kind::NotRunning && store.is_in_use() && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(50));
            }
            connected => return connected,
        }
    }
}

#[derive(serde::Serialize)]
struct Ended {
    was_running: bool,
}

fn wait_until_free(store: &StoreDir) -> Result<(), Failure> {
    let until = Instant::now() + END_TIME_MAX;
    while store.is_in_use() {
        if Instant::now() > until {
            let secs = END_TIME_MAX.as_secs();
            let message = format!("the daemon is unmounted, but has not ended within {secs} seconds");
            return Err(Failure::plain(message).hint(format!("see {}", show::path(&store.log_file()))));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
