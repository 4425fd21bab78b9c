//! One mount from beginning to end: mounting, the threads that serve it, and unmounting.
//!
//! The session's thread owns fuser's loops. When the last of them ends, for whatever reason, the adapter releases and
//! forgets what the kernel still held, notices stop, and only then is the mount finished.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use phifs_core::volume::{Invalidate, Volume};

use crate::adapter::Adapter;
use crate::commits::Commits;
use crate::error::MountError;
use crate::flush::Flusher;
use crate::init::{DataMode, DataPath, Features, Init, READ_AHEAD_BYTES};
use crate::latch::Latch;
use crate::mountpoint::{self, Mounted};
use crate::notify::{Announcer, Line};
use crate::pool::Pool;
use crate::probe;
use crate::requests::Latencies;
use crate::state::State;
use crate::syncer::Syncer;

/// Enough for concurrent fsyncs to share a commit of the journal; a waiting thread costs next to nothing.
const POOL_THREADS: usize = 16;

/// How long a forced unmount waits for the threads when nobody has anything open.
const FORCED_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What mount(8) and df(1) show as the device.
    pub source: String,
    pub data_mode: DataMode,
    /// Whether other users may enter; the default is yes for root and no for everybody else, who need
    /// `user_allow_other` in /etc/fuse.conf for it.
    pub allow_other: bool,
    /// Whether set-id bits and file capabilities of programs count. Only root may ask for it.
    pub suid: bool,
    /// Whether device nodes can be opened. Only root may ask for it.
    pub dev: bool,
    /// Whether the kernel refuses every change by itself.
    pub read_only: bool,
    /// A file beside those in which the volume keeps its bytes. The kernel is asked at the start whether it takes such
    /// ones for passthrough.
    pub sample: Option<Arc<File>>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            source: "phifs".to_owned(),
            data_mode: DataMode::Auto,
            allow_other: rustix::process::geteuid().is_root(),
            suid: false,
            dev: false,
            read_only: false,
            sample: None,
        }
    }
}

/// A mounted filesystem. Dropping it unmounts by force.
pub struct Mount {
    path: PathBuf,
    mounted: Mounted,
    state: Arc<State>,
    features: Features,
    announcer: Arc<Announcer>,
    pool: Arc<Pool>,
    finished: Arc<Latch>,
}

/// Mounts `volume` on the directory `mountpoint` and serves it from threads of its own.
///
/// # Errors
/// Each variant of `MountError` says what to do; nothing stays mounted then.
pub fn mount(volume: Arc<dyn Volume>, mountpoint: &Path, options: &MountOptions) -> Result<Mount, MountError> {
    match mount_once(Arc::clone(&volume), mountpoint, options, None)? {
        Attempt::Mounted(mount) => Ok(*mount),
        Attempt::NoPassthrough(error) => {
            let reason = format!("the kernel does not take the files of this store for passthrough: {error}");
            match mount_once(volume, mountpoint, options, Some(reason))? {
                Attempt::Mounted(mount) => Ok(*mount),
                Attempt::NoPassthrough(_) => unreachable!("it was not asked for"),
            }
        }
    }
}

enum Attempt {
    Mounted(Box<Mount>),
    /// It could be had, but not with these files; nothing is mounted.
    NoPassthrough(io::Error),
}

/// `refused`: why not to try passthrough.
fn mount_once(
    volume: Arc<dyn Volume>,
    mountpoint: &Path,
    options: &MountOptions,
    refused: Option<String>,
) -> Result<Attempt, MountError> {
    let path = mountpoint::check(mountpoint)?;
    let state = Arc::new(State::new(volume));
    let init = Arc::new(Init::new(options.data_mode, refused.is_none()));
    let ended = Arc::new(Latch::default());
    let pool = Arc::new(Pool::new(POOL_THREADS).map_err(MountError::system("starting threads"))?);
    let commits = Commits::start(Arc::clone(&state.volume), Arc::clone(&state.requests))
        .map_err(MountError::system("starting threads"))?;
    let flusher = Arc::new(Flusher::default());
    let announcer = Arc::new(Announcer::new(Arc::clone(&state)));
    let adapter = Adapter {
        state: Arc::clone(&state),
        pool: Arc::clone(&pool),
        commits,
        flusher: Arc::clone(&flusher),
        announcer: Arc::clone(&announcer),
        init: Arc::clone(&init),
        ended: Arc::clone(&ended),
    };

    let device = mountpoint::mount(&path, options)?;
    let unmounted = |error: MountError| {
        if let Err(also) = mountpoint::unmount(&path, true) {
            tracing::warn!(path = %path.display(), error = %also, "could not take back a failed mount");
        }
        error
    };
    let line_device = device.as_fd().try_clone_to_owned().map_err(MountError::system("copying a descriptor"));
    let line_device = line_device.map_err(unmounted)?;
    let session = Session::from_fd(adapter, device, SessionACL::All, loop_config()).map_err(|error| {
        unmounted(match error.kind() {
            std::io::ErrorKind::Unsupported => MountError::Unavailable(options.data_mode),
            _ => MountError::System { doing: "agreeing with the kernel", source: error },
        })
    })?;
    let mut features = init.features().cloned().expect("the handshake is over");
    if let Some(reason) = refused {
        features.data_path_reason = reason;
    }
    if features.data_path == DataPath::Passthrough
        && let Some(sample) = &options.sample
        && let Err(error) = probe::takes(session.as_fd(), sample.as_fd())
    {
        let error_of_mount = unmounted(MountError::Unavailable(DataMode::Passthrough));
        return if options.data_mode == DataMode::Auto {
            Ok(Attempt::NoPassthrough(error))
        } else {
            Err(error_of_mount)
        };
    }
    let mounted = mountpoint::top_mount_at(&path).map_err(unmounted)?;
    let mounted = mounted.ok_or_else(|| MountError::System {
        doing: "looking for the new mount",
        source: std::io::ErrorKind::NotFound.into(),
    })?;

    if let Err(error) = start_flusher(&flusher, &state, Arc::clone(&pool), &mounted) {
        tracing::warn!(%error, "what is written to open files arrives late: no thread can ask the kernel for it");
    }

    let line = Line { notifier: session.notifier(), device: line_device };
    let finished = Arc::new(Latch::default());
    let serve = Serve {
        path: path.clone(),
        mounted: mounted.clone(),
        announcer: Arc::clone(&announcer),
        ended,
        finished: Arc::clone(&finished),
    };
    let thread = thread::Builder::new().name("phifs-session".to_owned());
    thread
        .spawn(move || serve.run(session, &line))
        .map_err(MountError::system("starting threads"))
        .map_err(unmounted)?;
    raise_read_ahead(&mounted);
    Ok(Attempt::Mounted(Box::new(Mount { path, mounted, state, features, announcer, pool, finished })))
}

/// The kernel checks who may enter. fuser's own check would also turn away what the kernel does in its own name,
/// such as writing back times as root on behalf of a user.
fn loop_config() -> Config {
    let mut config = Config::default();
    let cores = thread::available_parallelism().map_or(2, usize::from);
    config.n_threads = Some(cores.max(2));
    config
}

/// The kernel reads ahead 128 KiB whatever INIT says, unless root raises it.
fn raise_read_ahead(mounted: &Mounted) {
    let setting = format!("/sys/class/bdi/{}/read_ahead_kb", mounted.device);
    if let Err(error) = std::fs::write(&setting, (READ_AHEAD_BYTES / 1024).to_string()) {
        tracing::debug!(setting, %error, "read-ahead stays as it is");
    }
}

/// The thread ends by itself: after the mount, it may still be about to leave the kernel.
fn start_flusher(flusher: &Arc<Flusher>, state: &Arc<State>, pool: Arc<Pool>, mounted: &Mounted) -> io::Result<()> {
    let syncer = Syncer::start(mounted.clone())?;
    let (running, state) = (Arc::clone(flusher), Arc::clone(state));
    flusher.switch_on();
    let thread = thread::Builder::new().name("phifs-flush".to_owned());
    let run = move || running.run(&state, &pool, &syncer);
    thread.spawn(run).map(drop).inspect_err(|_| flusher.switch_off())
}

/// What the session's thread needs.
struct Serve {
    path: PathBuf,
    mounted: Mounted,
    announcer: Arc<Announcer>,
    ended: Arc<Latch>,
    finished: Arc<Latch>,
}

impl Serve {
    fn run(self, session: Session<Adapter>, line: &Line) {
        thread::scope(|scope| {
            scope.spawn(|| self.announcer.run(line));
            scope.spawn(|| self.announcer.run_listings(line));
            if let Err(error) = session.run() {
                tracing::error!(path = %self.path.display(), %error, "a thread that reads requests ended");
                // Its request is never answered, and its caller cannot even be killed until the mount is aborted.
                self.abort();
            }
            // The other loops end when the kernel is gone.
            self.ended.wait();
            self.announcer.close();
        });
        // A live mount here is the next one: the kernel gives the ids of mounts that are gone to new ones.
        if mountpoint::is_dead(&self.mounted) {
            self.abort();
        }
        self.finished.open();
    }

    /// Takes away what is still mounted although nobody reads requests.
    fn abort(&self) {
        if is_at(&self.path, &self.mounted) {
            tracing::error!(path = %self.path.display(), "aborting the mount");
            if let Err(error) = mountpoint::abort(&self.path) {
                tracing::error!(path = %self.path.display(), %error, "could not unmount");
            }
        }
    }
}

fn is_at(path: &Path, mounted: &Mounted) -> bool {
    mountpoint::top_mount_at(path).is_ok_and(|top| top.is_some_and(|top| top.id == mounted.id))
}

impl Mount {
    /// Unmounts and waits until the volume has been told of every close.
    ///
    /// With `force` the filesystem disappears from view at once even when it is in use; it goes on serving what is
    /// open, and `wait` returns after the last close.
    ///
    /// # Errors
    /// `Busy` without `force` when something is in use; the filesystem then stays mounted.
    pub fn unmount(&self, force: bool) -> Result<(), MountError> {
        if !self.is_finished() && is_at(&self.path, &self.mounted) {
            mountpoint::unmount(&self.path, force)?;
        }
        if force {
            self.finished.wait_for(FORCED_PATIENCE);
        } else {
            self.wait();
        }
        Ok(())
    }

    /// Waits until the filesystem is unmounted, by whomever, and the volume has been told of every close.
    pub fn wait(&self) {
        self.finished.wait();
    }

    pub fn is_finished(&self) -> bool {
        self.finished.is_open()
    }

    /// What the mount got from the kernel.
    pub fn features(&self) -> Features {
        let mut features = self.features.clone();
        if features.data_path == DataPath::Passthrough && !self.state.backings.is_on() {
            features.data_path = DataPath::Plain;
            features.data_path_reason = "the kernel refused a file for passthrough; see the log".to_owned();
        }
        features
    }

    /// How many requests of each kind the kernel has sent so far, those that came at all.
    pub fn requests(&self) -> Vec<(&'static str, u64)> {
        self.state.requests.counts()
    }

    /// How long those took that are answered.
    pub fn latencies(&self) -> Vec<Latencies> {
        self.state.requests.latencies()
    }

    /// How many requests wait for a thread.
    pub fn waiting_requests(&self) -> usize {
        self.pool.waiting()
    }

    /// Where the volume reports changes that did not come through this mount.
    pub fn invalidator(&self) -> Arc<dyn Invalidate> {
        Arc::clone(&self.announcer) as Arc<dyn Invalidate>
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount(true) {
            tracing::warn!(path = %self.path.display(), %error, "could not unmount");
        }
    }
}
