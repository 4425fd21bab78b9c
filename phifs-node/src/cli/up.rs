//! `phifs up`: starts the daemon and waits until the volume is mounted.
//!
//! The daemon is this program again, as a session of its own, with `--background`: it answers over its standard output
//! as it would over the control socket, and logs to its standard error, which is the log file.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Context;
use super::output::columns;
use crate::config::{Conflicts, DataMode, LogFormat, LogLevel, Settings};
use crate::control::{self, Client, Progress, Request};
use crate::daemon::Origin;
use crate::failure::{Failure, Kind};
use crate::report::{Ready, Standing, Status};
use crate::show::{self, Name};
use crate::store_dir::StoreDir;
use crate::{daemon, telemetry};

/// Serve the volume and mount it
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  phifs up\n  phifs up --mount ~/phi --store ~/phi-store\n  \
    phifs up --suid --dev     To run a system from it\n  \
    phifs up --store ~/copy --from monday.phi\n  \
    phifs up --foreground     For systemd and containers")]
pub struct Up {
    #[command(flatten)]
    serving: Serving,
    /// Make the store out of this full export of a snapshot; `-` is standard input. There must be no volume in it yet
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    from: Option<PathBuf>,
}

/// What the daemon finds at its standard input.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    Nothing,
    /// What comes to ours.
    Ours,
    /// This, which is not to be seen on its command line.
    Secret(&'a str),
}

/// How to serve.
#[derive(clap::Args)]
pub struct Serving {
    /// Mount on this directory [default: /phi; env: PHIFS_MOUNT]
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    mount: Option<PathBuf>,
    /// Honour set-id bits and file capabilities of programs on the volume (as root)
    #[arg(long)]
    suid: bool,
    /// Let device nodes on the volume be opened (as root)
    #[arg(long)]
    dev: bool,
    /// Choose how file bytes travel [default: auto]
    #[arg(long, value_name = "MODE")]
    data_mode: Option<DataMode>,
    /// Choose where the states of disputed files are seen that are not shown [default: hidden]
    #[arg(long, value_name = "WHERE")]
    conflicts: Option<Conflicts>,
    /// Listen for other nodes at this address and port (UDP), and remember it [default: as remembered, else nowhere until
    /// `phifs invite` or `phifs join`, then 0.0.0.0:7447; env: PHIFS_LISTEN]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Tell metrics for Prometheus at this address of loopback (TCP) [default: nowhere; env: PHIFS_METRICS]
    #[arg(long, value_name = "ADDR:PORT", value_parser = crate::config::metrics_at)]
    metrics: Option<SocketAddr>,
    /// Log what is at least this important [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
    /// Log as text or JSON [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Stay in the foreground and log to standard error
    #[arg(long)]
    foreground: bool,
    /// Serve as the daemon that `phifs up` started and waits for
    #[arg(long, hide = true, conflicts_with = "foreground")]
    background: bool,
}

impl Up {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let from_input = self.from.as_deref() == Some(Path::new("-"));
        let origin = || Ok(self.open_from()?.map_or(Origin::Here, Origin::Export));
        let input = if from_input { Input::Ours } else { Input::Nothing };
        self.serving.run(context, input, self.from.is_none(), origin)
    }

    fn open_from(&self) -> Result<Option<fs::File>, Failure> {
        let Some(path) = &self.from else { return Ok(None) };
        let opened = match path.as_os_str().as_encoded_bytes() {
            b"-" => rustix::io::dup(rustix::stdio::stdin()).map(fs::File::from).map_err(io::Error::from),
            _ => fs::File::open(path),
        };
        opened.map(Some).map_err(|error| Failure::plain(format!("cannot read {}: {error}", show::path(path))))
    }
}

impl Serving {
    /// Whether this process is to be the daemon that another one has started.
    pub fn is_daemon(&self) -> bool {
        self.background
    }

    /// Starts the daemon, or is it. `may_be_up`: it is as well if the daemon runs already. `origin` is asked for by the
    /// daemon alone.
    pub fn run(
        &self,
        context: &Context,
        input: Input<'_>,
        may_be_up: bool,
        origin: impl FnOnce() -> Result<Origin, Failure>,
    ) -> Result<(), Failure> {
        if self.background {
            return self.serve_in_background(context, origin);
        }
        let config = context.config(self.settings())?;
        let store = StoreDir::create(&config.store)?;
        if let Ok(client) = Client::connect(&store)
            && let Ok(status) = client.call::<Status>(&Request::Status, &mut |_| {})
        {
            if !may_be_up {
                let message = format!("the store {} holds a volume, and serves it", show::path(store.path()));
                return Err(Failure::new(Kind::InUse, message).hint("name an empty directory with --store DIR"));
            }
            return already_up(context, &status, &Name::of_path(&config.mount));
        }
        if self.foreground {
            telemetry::start(&config);
            let mut last = String::new();
            let mut progress = |step: Progress| {
                if step.doing != last {
                    tracing::info!("{}", step.doing);
                    last = step.doing;
                }
            };
            return daemon::serve(&config, origin()?, &mut progress, |ready| {
                context.output.result(ready, describe);
                telemetry::tell_service_manager("READY=1");
                Ok(())
            });
        }
        let ready = start(context, &store, input)?;
        context.output.result(&ready, describe);
        Ok(())
    }

    fn settings(&self) -> Settings {
        Settings {
            mount: self.mount.clone(),
            suid: self.suid.then_some(true),
            dev: self.dev.then_some(true),
            data_mode: self.data_mode,
            conflicts: self.conflicts,
            listen: self.listen,
            metrics: self.metrics,
            log_level: self.log_level,
            log_format: self.log_format,
            ..Settings::default()
        }
    }

    fn serve_in_background(
        &self,
        context: &Context,
        origin: impl FnOnce() -> Result<Origin, Failure>,
    ) -> Result<(), Failure> {
        // Fails only when this process leads a group, and then nothing of the terminal reaches it either.
        let _ = rustix::process::setsid();
        let mut told = false;
        let result = context.config(self.settings()).and_then(|config| {
            telemetry::start(&config);
            let origin = origin()?;
            // A daemon that stands in a directory would keep its filesystem from being unmounted.
            std::env::set_current_dir("/").map_err(Failure::plain)?;
            // A parent that has gone is noticed when the volume is ready.
            let mut progress = |step| drop(control::write_progress(io::stdout(), step));
            daemon::serve(&config, origin, &mut progress, |ready| {
                control::write_result(io::stdout(), Ok(serde_json::to_value(ready)?))?;
                told = true;
                // The parent has its answer; nothing that prints later may find a closed pipe.
                let nothing = fs::OpenOptions::new().write(true).open("/dev/null")?;
                Ok(rustix::stdio::dup2_stdout(nothing)?)
            })
        });
        if let (Err(failure), false) = (&result, told) {
            // Without a parent the log has it.
            let _ = control::write_result(io::stdout(), Err(failure.clone()));
        }
        result
    }
}

fn already_up(context: &Context, status: &Status, wanted: &Name) -> Result<(), Failure> {
    if !status.mounts.contains(wanted) {
        let at = status.mounts.first().map_or_else(|| "no directory".to_owned(), Name::quoted);
        let message = format!("the volume is up already, mounted on {at} by process {}", status.pid);
        let hint = format!("to mount it on {0} as well: phifs mount {0}", wanted.quoted());
        return Err(Failure::new(Kind::InUse, message).hint(hint));
    }
    context.output.note("The volume is up already.");
    let ready = Ready {
        pid: status.pid,
        mount: wanted.clone(),
        store: status.store.clone(),
        log: None,
        standing: status.cluster.standing,
        arriving: status.arriving.clone(),
    };
    context.output.result(&ready, describe);
    Ok(())
}

fn start(context: &Context, store: &StoreDir, input: Input<'_>) -> Result<Ready, Failure> {
    let log_path = store.log_file();
    let unlogged = |error| Failure::plain(format!("cannot open the log file {}: {error}", show::path(&log_path)));
    let mut log = telemetry::open_log(&log_path).map_err(unlogged)?;
    let log_start = log.seek(SeekFrom::End(0)).map_err(unlogged)?;
    let unstarted = |error| Failure::plain(format!("cannot start the daemon: {error}"));
    let mut command = Command::new(std::env::current_exe().map_err(unstarted)?);
    let is_secret = |word: &OsString| matches!(input, Input::Secret(secret) if word == secret);
    let words = std::env::args_os().skip(1).map(|word| if is_secret(&word) { "-".into() } else { word });
    command.args(words).arg("--background").stdin(match input {
        Input::Nothing => Stdio::null(),
        Input::Ours => Stdio::inherit(),
        Input::Secret(_) => Stdio::piped(),
    });
    let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().map_err(unstarted)?;
    if let (Input::Secret(secret), Some(mut to)) = (input, child.stdin.take()) {
        // One that has ended already says why in its answer.
        let _ = to.write_all(secret.as_bytes());
    }

    let broken = |_| {
        // It ended without a word, so something went wrong that it did not foresee.
        let said = fs::File::open(&log_path).and_then(|log| tail(log, log_start)).unwrap_or_default();
        let said = if said.is_empty() { "nothing".to_owned() } else { format!("\n{said}") };
        Failure::plain(format!("the daemon ended before it could serve; it logged {said}"))
            .hint(format!("see {}", show::path(&log_path)))
    };
    let mut line = context.output.progress();
    let answers = child.stdout.take().expect("it is piped");
    let answer = control::read_answer::<Ready>(answers, &mut |step: Progress| line.show(&step), broken);
    drop(line);
    if answer.is_err() {
        // It is about to end; only then is the store free for another try.
        let _ = child.wait();
    }
    Ok(Ready { log: Some(Name::of_path(&log_path)), ..answer? })
}

/// What was logged since byte `from`, at most the last 4 KiB of it.
fn tail(mut log: fs::File, from: u64) -> io::Result<String> {
    const TAIL_BYTES_MAX: u64 = 4096;
    let end = log.seek(SeekFrom::End(0))?;
    log.seek(SeekFrom::Start(from.max(end.saturating_sub(TAIL_BYTES_MAX)).min(end)))?;
    let mut bytes = Vec::new();
    log.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

fn describe(ready: &Ready) -> String {
    let mut rows = vec![("mounted on", ready.mount.quoted()), ("store", ready.store.quoted())];
    rows.push(("process", ready.pid.to_string()));
    rows.extend(ready.log.as_ref().map(|log| ("log file", log.quoted())));
    if let Some(arriving) = &ready.arriving {
        rows.push(("read-only", format!("for now: {}", arriving.describe())));
        rows.push(("progress", "phifs status --watch".to_owned()));
    } else if ready.standing != Standing::Former {
        rows.push(("others", "to let another machine in: phifs invite".to_owned()));
    }
    columns(&rows)
}
