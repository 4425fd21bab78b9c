//! A volume on its way here: while its metadata is fetched from other machines, their state can be read at the mountpoint.
//!
//! One thread fetches (`fetch`); the one that runs the daemon waits for it, and shows the state once that takes long.
//! What always holds: at most one of the preview and the volume is mounted, and the store is written to by one of them.

use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use phifs_core::identity::NodePublicKey;
use phifs_core::ssep::MemberEntries;
use phifs_core::volume::local::{Aim, Peer, Preview};
use phifs_fuse::{Mount, MountOptions};

use super::invitation::Invitation;
use super::{Event, Place, features_of, mount_volume, mounts_of, spawn, unmount};
use crate::config::Config;
use crate::control::{Handler, Progress, Request, Server};
use crate::engine::{Broken, Engine, Newcomer};
use crate::failure::{Failure, Kind};
use crate::mounts;
use crate::net::{self, Admitted, Givers, Socket};
use crate::report::{Arriving, Cluster, Ready, Standing, Status, VolumeStatus};
use crate::show::{self, Name};
use crate::store_dir::{StoreDir, StoreLock};

/// A volume that is here so soon is mounted at once.
const PREVIEW_AFTER: Duration = Duration::from_millis(400);
/// How long whoever joins waits for a volume that can be written to.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);
/// An estimate needs to have seen something: what comes first has few rows in it.
const ESTIMATE_AFTER: Duration = Duration::from_secs(3);
/// That is, this part of all.
const ESTIMATE_PART: u64 = 50;
/// So often a state is begun anew that nobody has as a whole any more.
const TRIES_MAX: u32 = 5;
const REST: Duration = Duration::from_secs(1);

/// What came of it.
pub struct Arrived {
    pub engine: Engine,
    pub socket: Socket,
    /// The control socket, if it was opened already.
    pub server: Option<(Server, Arc<Stage>)>,
}

/// Who answers at the control socket, as that changes.
pub struct Stage(RwLock<Arc<dyn Handler>>);

impl Stage {
    pub fn new(handler: Arc<dyn Handler>) -> Self {
        Self(RwLock::new(handler))
    }

    pub fn leave_to(&self, handler: Arc<dyn Handler>) {
        *self.0.write() = handler;
    }
}

impl Handler for Stage {
    fn handle(
        &self,
        request: Request,
        file: Option<OwnedFd>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<serde_json::Value, Failure> {
        let handler = self.0.read().clone();
        handler.handle(request, file, progress)
    }
}

/// What all threads know of it.
struct Arrival {
    config: Config,
    store: StoreDir,
    node: NodePublicKey,
    members: u64,
    givers: Givers,
    events: Sender<Event>,
    began: Instant,
    inodes: AtomicU64,
    rows_total: AtomicU64,
    rows_here: AtomicU64,
    /// Whether all rows are here.
    complete: AtomicBool,
    /// When rows began to come, and how many were here.
    pulling: Mutex<Option<(Instant, u64)>>,
    preview: Mutex<Option<Arc<Preview>>>,
    shown: Mutex<Option<Shown>>,
}

/// A preview that is mounted.
struct Shown {
    preview: Arc<Preview>,
    mount: Arc<Mount>,
    /// It was taken away because something better takes its place.
    replaced: Arc<AtomicBool>,
}

/// What the daemon has to do with while it waits.
pub struct Surroundings<'a> {
    pub config: &'a Config,
    pub lock: &'a StoreLock,
    pub store: &'a StoreDir,
    pub events: &'a Sender<Event>,
    pub arrivals: &'a Receiver<Event>,
}

/// Fetches the volume. Nothing comes of it if the daemon is told to stop meanwhile. `ready` is called if the volume can be
/// read and it will take longer until it can be written to.
pub fn arrive(
    Surroundings { config, lock, store, events, arrivals }: Surroundings<'_>,
    newcomer: Newcomer,
    socket: Socket,
    (invitation, admitted): (&Invitation, Admitted),
    progress: &mut dyn FnMut(Progress),
    ready: &mut dyn FnMut(&Ready) -> std::io::Result<()>,
) -> Result<Option<Arrived>, Failure> {
    let arrival = Arc::new(Arrival {
        config: config.clone(),
        store: store.clone(),
        node: socket.node(),
        members: net::addresses_of(&admitted).count() as u64,
        givers: Givers::new(&socket, &admitted, &invitation.token.addresses),
        events: events.clone(),
        began: Instant::now(),
        inodes: AtomicU64::new(0),
        rows_total: AtomicU64::new(0),
        rows_here: AtomicU64::new(0),
        complete: AtomicBool::new(false),
        pulling: Mutex::new(None),
        preview: Mutex::new(None),
        shown: Mutex::new(None),
    });
    let mut server = None;
    let (volume, members) = (invitation.token.volume, admitted.members);
    let fetched = thread::scope(|scope| {
        let (fetching, entries) = (arrival.clone(), members);
        let worker = thread::Builder::new().name("arrival".to_owned()).spawn_scoped(scope, move || {
            let fetched = fetching.fetch(newcomer, volume, entries);
            // Whoever waits for it is there until this thread ends.
            let _ = fetching.events.send(Event::Arrived);
            fetched
        });
        let worker = worker.map_err(|error| Failure::plain(format!("cannot start a thread: {error}")))?;
        let waited = arrival.wait(lock, arrivals, &mut server, progress, ready);
        if !matches!(waited, Ok(true)) {
            arrival.givers.stop();
        }
        let fetched = worker.join().unwrap_or_else(|_| Err(Failure::plain("internal error: see the log")));
        if waited? { fetched.map(Some) } else { Ok(None) }
    });
    let fetched = fetched.inspect_err(|_| arrival.hide());
    let Some(engine) = fetched? else {
        arrival.hide();
        return Ok(None);
    };
    arrival.replace(None, |preview| engine.take_over(preview))?;
    Ok(Some(Arrived { engine, socket, server }))
}

impl Arrival {
    /// Waits until all is here, and says whether it is; if not, the daemon is to stop.
    fn wait(
        self: &Arc<Self>,
        lock: &StoreLock,
        arrivals: &Receiver<Event>,
        server: &mut Option<(Server, Arc<Stage>)>,
        progress: &mut dyn FnMut(Progress),
        ready: &mut dyn FnMut(&Ready) -> std::io::Result<()>,
    ) -> Result<bool, Failure> {
        let mut is_told = false;
        loop {
            match arrivals.recv_timeout(LOOK) {
                Ok(Event::Arrived) => return Ok(true),
                Ok(event) => {
                    tracing::info!(?event, "stopping before all is here; phifs up goes on with it");
                    return Ok(false);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
            }
            progress(self.progress());
            let preview = self.preview.lock().clone();
            if let Some(preview) = preview
                && self.shown.lock().is_none()
                && self.began.elapsed() >= PREVIEW_AFTER
            {
                // Before the mount: whoever finds it served finds out by whom.
                lock.publish_pid()?;
                *self.shown.lock() = Some(self.show(preview)?);
                *server = Some(self.listen()?);
                tracing::info!("read-only until the metadata is here: {}", self.report().describe());
            }
            if server.is_some() && !is_told && self.began.elapsed() >= PATIENCE {
                is_told = true;
                if let Err(error) = ready(&self.ready()) {
                    tracing::warn!(%error, "whoever started this has gone");
                    return Ok(false);
                }
            }
        }
    }

    fn listen(self: &Arc<Self>) -> Result<(Server, Arc<Stage>), Failure> {
        let stage = Arc::new(Stage::new(self.clone()));
        let socket = self.store.control_socket();
        let server = Server::start(socket.clone(), stage.clone())
            .map_err(|error| Failure::plain(format!("cannot listen at {}: {error}", show::path(&socket))))?;
        Ok((server, stage))
    }

    fn ready(&self) -> Ready {
        Ready {
            pid: std::process::id(),
            mount: Name::of_path(&self.config.mount),
            store: Name::of_path(self.store.path()),
            log: None,
            standing: Standing::Member,
            arriving: Some(self.report()),
        }
    }

    fn report(&self) -> Arriving {
        let (rows, rows_total) = (self.rows_here.load(Ordering::Relaxed), self.rows_total.load(Ordering::Relaxed));
        let complete = self.complete.load(Ordering::Relaxed);
        let left_secs = self.pulling.lock().and_then(|(began, at_first)| {
            let (secs, came) = (began.elapsed().as_secs_f64(), rows.saturating_sub(at_first));
            let left = rows_total.saturating_sub(rows) as f64 * secs / came as f64;
            let has_seen = began.elapsed() >= ESTIMATE_AFTER && came >= rows_total / ESTIMATE_PART && came > 0;
            (!complete && has_seen).then_some(left.ceil() as u64)
        });
        Arriving {
            inodes: self.inodes.load(Ordering::Relaxed),
            rows,
            rows_total,
            left_secs,
            complete,
            connected: self.givers.connected() as u64,
        }
    }

    fn progress(&self) -> Progress {
        let Arriving { rows, rows_total, complete, .. } = self.report();
        match (complete, rows_total) {
            (true, _) => Progress::step("checking what has come"),
            (false, 0) => Progress::step("learning what there is"),
            _ => Progress {
                doing: "fetching the metadata".into(),
                done: rows,
                total: Some(rows_total),
                unit: "rows".into(),
            },
        }
    }

    /// Makes the volume, and says who the members are.
    fn fetch(&self, newcomer: Newcomer, volume: [u8; 16], members: MemberEntries) -> Result<Engine, Failure> {
        let mut tries = 0;
        let aim = loop {
            let (node, head) = self.givers.head()?;
            let aim = Newcomer::aim(&Peer { node, volume }, &head)?;
            match self.pull(&newcomer, &aim) {
                Ok(()) => break aim,
                Err(Broken::Outdated(failure)) if tries < TRIES_MAX => {
                    tries += 1;
                    tracing::info!("{failure}; beginning anew with the state as it is now");
                    thread::sleep(REST);
                }
                Err(Broken::Outdated(failure) | Broken::Failed(failure)) => return Err(failure),
            }
        };
        self.complete.store(true, Ordering::Relaxed);
        let engine = newcomer.open(&aim, &mut |step| tracing::info!("{}", step.doing))?;
        engine.take_member_entries(members)?;
        // Not everything is here that its files are made of.
        engine.place()?;
        Ok(engine)
    }

    fn pull(&self, newcomer: &Newcomer, aim: &Aim) -> Result<(), Broken> {
        self.inodes.store(aim.inodes(), Ordering::Relaxed);
        self.rows_total.store(aim.rows(), Ordering::Relaxed);
        self.rows_here.store(0, Ordering::Relaxed);
        *self.pulling.lock() = None;
        let preview = Arc::new(newcomer.preview(aim, Arc::new(self.givers.ask_now())));
        *self.preview.lock() = Some(preview.clone());
        if self.shown.lock().is_some() {
            self.replace(Some(preview), |_| {}).map_err(Broken::Failed)?;
        }
        let go_on = || {
            let here = self.rows_here.load(Ordering::Relaxed);
            self.pulling.lock().get_or_insert((Instant::now(), here));
            if self.givers.is_stopping() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        newcomer.pull(aim, &mut |kind, ids| self.givers.ask(kind, ids), &self.rows_here, &go_on)
    }

    fn show(&self, preview: Arc<Preview>) -> Result<Shown, Failure> {
        let options = MountOptions {
            data_mode: phifs_fuse::DataMode::Plain,
            read_only: true,
            ..super::mount_options(&self.config)
        };
        let place = Place { dir: &self.config.mount, choice: "with --mount DIR" };
        let mount = Arc::new(mount_volume(&self.config, place, preview.clone(), &options)?);
        let replaced = Arc::new(AtomicBool::new(false));
        let (watched, is_replaced, events) = (mount.clone(), replaced.clone(), self.events.clone());
        spawn("preview-watch", move || {
            watched.wait();
            if !is_replaced.load(Ordering::Acquire) {
                // The daemon may be stopping already, for this reason or another.
                let _ = events.send(Event::Unmounted);
            }
        })?;
        Ok(Shown { preview, mount, replaced })
    }

    /// Takes the preview away, without waiting for those who are in it, and shows another one in its place. Between the
    /// two, `go_on` says by way of what they go on.
    fn replace(&self, by: Option<Arc<Preview>>, go_on: impl FnOnce(&Preview)) -> Result<(), Failure> {
        let mut shown = self.shown.lock();
        let Some(Shown { preview, mount, replaced }) = shown.take() else { return Ok(()) };
        go_on(&preview);
        replaced.store(true, Ordering::Release);
        for point in mounts_of(&mount).iter().rev() {
            mounts::detach(&point.path)
                .map_err(|error| Failure::plain(format!("cannot unmount {}: {error}", show::path(&point.path))))?;
        }
        *shown = by.map(|preview| self.show(preview)).transpose()?;
        Ok(())
    }

    /// Nothing comes of it.
    fn hide(&self) {
        let shown = self.shown.lock().take();
        if let Some(Shown { mount, replaced, .. }) = shown {
            replaced.store(true, Ordering::Release);
            if let Err(failure) = unmount(&mount, true) {
                tracing::warn!("{failure}");
            }
        }
    }

    fn status(&self) -> Status {
        let arriving = self.report();
        let shown = self.shown.lock();
        let mount = shown.as_ref().map(|shown| &shown.mount);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_secs: self.began.elapsed().as_secs(),
            store: Name::of_path(self.store.path()),
            mounts: mount.iter().flat_map(|mount| mounts_of(mount)).map(|point| Name::of_path(&point.path)).collect(),
            branches: Vec::new(),
            cluster: Cluster {
                standing: Standing::Member,
                members: self.members,
                connected: arriving.connected,
                ..Cluster::default()
            },
            features: mount.map(|mount| features_of(mount)).unwrap_or_default(),
            requests: mount.iter().flat_map(|mount| mount.requests()).map(|(kind, n)| (kind.to_owned(), n)).collect(),
            volume: VolumeStatus {
                node: crate::hex::encode(&self.node.0),
                inodes: arriving.inodes,
                read_only: Some("until its metadata is here".to_owned()),
                ..VolumeStatus::default()
            },
            arriving: Some(arriving),
        }
    }

    fn stop(&self, force: bool, progress: &mut dyn FnMut(Progress)) -> Result<(), Failure> {
        progress(Progress::step("unmounting"));
        let shown = self.shown.lock();
        if let Some(Shown { mount, .. }) = &*shown {
            unmount(mount, force)?;
        }
        self.givers.stop();
        // Fails only when the end has begun.
        let _ = self.events.send(Event::Down);
        Ok(())
    }
}

impl Handler for Arrival {
    fn handle(
        &self,
        request: Request,
        _: Option<OwnedFd>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<serde_json::Value, Failure> {
        match request {
            Request::Status => serde_json::to_value(self.status()).map_err(Failure::plain),
            Request::Down { force } => self.stop(force, progress).map(|()| serde_json::Value::Null),
            _ => {
                let message = format!("the volume is on its way here: {}", self.report().describe());
                Err(Failure::new(Kind::InUse, message)
                    .hint("it can be read meanwhile; phifs status --watch shows how far it is"))
            }
        }
    }
}
