//! The process that serves a volume: brings it up in the right order, keeps its background work going, answers the
//! control socket, and takes it down in the reverse order.
//!
//! What always holds:
//! - The store is locked before anything in it is read, and until after the engine closed.
//! - The engine is closed only when no mount can reach it any more, or by force.
//! - However this ends, the /dev/fuse descriptor closes with the process, so a user of the mount gets ENOTCONN and
//!   never hangs.

mod arrival;
mod branches;
mod invitation;
mod membership;
mod metrics;

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use phifs_core::disk::Disk;
use phifs_core::identity::NodePublicKey;
use phifs_core::ssep::Token;
use phifs_core::store::GlyphIndex;
use phifs_core::volume::Volume;
use phifs_fuse::{Mount, MountError, MountOptions};
use rustix::process::Resource;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use arrival::{Arrived, Surroundings, arrive};
use branches::BranchMounts;
use invitation::Invitation;

use crate::config::{Config, Conflicts, DataMode};
use crate::control::{Handed, Handler, Progress, Request, Server, Side};
use crate::engine::{Engine, Merging, Newcomer, Options};
use crate::env::SystemEnv;
use crate::failure::{Failure, Kind};
use crate::file_disk::FileDisk;
use crate::host::Host;
use crate::mounts::{self, MountPoint};
use crate::net::{self, Net, Socket};
use crate::node_key::NodeSeed;
use crate::report::{Features, Ready, Standing, Status};
use crate::show::{self, Name};
use crate::sled_index::SledIndex;
use crate::store_dir::{StoreDir, StoreLock};
use crate::{env, node_key};

/// Two, so that a long file does not hold up the short ones.
const PUBLISHERS: usize = 2;
/// How often what no sync was asked for is made durable: the promise is a second.
const TICK: Duration = Duration::from_millis(700);
/// How long a mount may be busy without any process that uses it.
const LATE_RELEASES_MAX: Duration = Duration::from_secs(5);
/// How often it is looked at whether a checkpoint is due, while the volume changes.
const CHECKPOINT_LOOK: Duration = Duration::from_millis(200);
/// And while it does not: how long it may change before anybody looks.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// After work, when it has been looked this often without seeing a change, free memory goes back to the system.
const LOOKS_BEFORE_TRIM: u32 = 2;

/// How often it is looked whether the schedule wants a snapshot, and whether there is a schedule.
const SCHEDULE_LOOK: Duration = Duration::from_secs(10);
const NO_SCHEDULE_LOOK: Duration = Duration::from_secs(1);

/// How long background work rests after it failed.
const FAILURE_REST: Duration = Duration::from_secs(1);

/// Serves until told to stop, by request, by signal or by an unmount from outside. `ready` is called once, when the
/// volume is mounted; when it fails, nobody waits for the volume any more, and it goes down again.
///
/// `origin` is what the volume is made of.
pub fn serve(
    config: &Config,
    origin: Origin,
    progress: &mut dyn FnMut(Progress),
    ready: impl FnOnce(&Ready) -> std::io::Result<()>,
) -> Result<(), Failure> {
    raise_file_limit();
    be_spared();
    // The index library makes files with default permissions; nothing in a store is for others.
    rustix::process::umask(rustix::fs::Mode::from_bits_truncate(0o077));

    let store = StoreDir::create(&config.store)?;
    let role = Role { name: "daemon", repair: false, rebuild_index: false };
    let lock = store.lock(role.name)?;
    lock.clear_leftovers()?;
    let (events, arrivals) = mpsc::channel();
    watch_signals(&events)?;
    let mut ready = Some(ready);
    let origin = match (origin, Invitation::load(&store)?) {
        (Origin::Here, Some(remembered)) => Way::Invited(remembered),
        (Origin::Here, None) => Way::Here,
        (Origin::Export(file), _) => Way::Export(file),
        (Origin::Invitation(token), _) => Way::Invited(Invitation::new(*token)),
    };
    let (engine, mut socket, early) = match origin {
        Way::Here => (open_locked(config, &store, role, None, progress)?, None, None),
        Way::Export(file) => {
            let from = Handed::new(file.into());
            (open_locked(config, &store, role, Some(from), progress)?, None, None)
        }
        Way::Invited(invitation) => {
            let surroundings =
                Surroundings { config, lock: &lock, store: &store, events: &events, arrivals: &arrivals };
            let mut tell = |arriving: &Ready| ready.take().map_or(Ok(()), |ready| ready(arriving));
            match join(surroundings, role, invitation, progress, &mut tell)? {
                Some(Arrived { engine, socket, server }) => (engine, Some(socket), server),
                None => return Ok(()),
            }
        }
    };
    let engine = Arc::new(engine);
    look_at_host(&store);
    if socket.is_none()
        && let Some(address) = config.listen.map_or_else(|| engine.listens_at(), |address| Ok(Some(address)))?
    {
        if engine.standing()? == Standing::Former {
            tracing::warn!("this machine is no member any more, so it does not listen for others");
        } else {
            socket = Some(Socket::bind(address, &load_key(&store)?)?);
        }
    }
    // Before the mount: what is not here can be had then.
    let net = socket.map(|socket| Net::start(socket, engine.clone()).map(Arc::new)).transpose()?;
    Invitation::forget(&store)?;
    progress(Progress::step(format!("mounting on {}", show::path(&config.mount))));
    // Before the mount: whoever finds it served finds out by whom.
    lock.publish_pid()?;
    let mount = mount(config, Place { dir: &config.mount, choice: "with --mount DIR" }, &engine)?;
    engine.set_invalidate(mount.invalidator());

    let background = Background::start(&engine)?;
    let branches = BranchMounts::new(config, engine.clone(), events.clone());
    let daemon = Arc::new(Daemon {
        store: store.clone(),
        engine,
        net: Mutex::new(net),
        branches: Arc::new(branches),
        mount: Arc::new(mount),
        background,
        started: Instant::now(),
        events,
        stopped: Mutex::new(false),
    });
    daemon.watch_mount()?;
    let server = match early {
        Some((server, stage)) => {
            stage.leave_to(daemon.clone());
            server
        }
        None => {
            let socket = store.control_socket();
            Server::start(socket.clone(), daemon.clone())
                .map_err(|error| Failure::plain(format!("cannot listen at {}: {error}", show::path(&socket))))?
        }
    };
    let metrics = daemon.clone();
    let metrics =
        config.metrics.map(|address| crate::metrics::Server::start(address, move || metrics.metrics())).transpose()?;
    let (pid, mount) = (std::process::id(), Name::of_path(&config.mount));
    let features = daemon.mount.features();
    tracing::info!(data_path = %features.data_path, reason = %features.data_path_reason, "how the bytes of files travel");
    tracing::info!(pid, mount = %mount.quoted(), store = %show::path(store.path()), "serving");
    let gone = || Failure::plain("internal error: nobody can stop the daemon");
    let standing = daemon.cluster().standing;
    let is_up = Ready { pid, mount, store: Name::of_path(store.path()), log: None, standing, arriving: None };
    let mut event = match ready.map_or(Ok(()), |ready| ready(&is_up)) {
        Ok(()) => arrivals.recv().map_err(|_| gone())?,
        Err(error) => {
            tracing::warn!(%error, "whoever started this has gone");
            Event::Signal
        }
    };
    let result = loop {
        match event {
            // As long as the volume itself is mounted that is nothing new.
            Event::BranchUnmounted if daemon.is_mounted() => {}
            _ => {
                tracing::info!(?event, "stopping");
                match daemon.end(&event) {
                    Err(failure) if failure.kind == Kind::InUse => tracing::warn!("{failure}; going on with the rest"),
                    result => break result,
                }
            }
        }
        event = arrivals.recv().map_err(|_| gone())?;
    };
    drop(metrics);
    drop(server);
    drop(lock);
    tracing::info!("stopped");
    result
}

/// Says what the filesystem below the store lacks. Everything works without it, only slower.
fn look_at_host(store: &StoreDir) {
    match Host::of(store.path()) {
        Ok(host) => {
            let (filesystem, reserves, punches) = (&host.filesystem, host.reserves, host.punches);
            tracing::info!(filesystem, ?reserves, ?punches, "the filesystem below the store");
            host.shortcomings().iter().for_each(|lack| tracing::warn!("{lack}"));
        }
        Err(error) => tracing::warn!(%error, "the filesystem below the store could not be looked at"),
    }
}

/// What a store is opened for.
#[derive(Clone, Copy, Debug)]
pub struct Role {
    /// As others are told when they find it locked.
    pub name: &'static str,
    pub repair: bool,
    pub rebuild_index: bool,
}

/// What a volume is made of.
pub enum Origin {
    /// What is in the store, or nothing.
    Here,
    /// An exported snapshot; there must be no volume yet.
    Export(File),
    /// Another node, which has invited this one.
    Invitation(Box<Token>),
}

/// The same, with what is remembered in the store.
enum Way {
    Here,
    Export(File),
    Invited(Invitation),
}

/// Locks and opens a store. Drop the engine before the lock.
pub fn open(
    config: &Config,
    store: &StoreDir,
    role: Role,
    progress: &mut dyn FnMut(Progress),
) -> Result<(StoreLock, Engine), Failure> {
    let lock = store.lock(role.name)?;
    lock.clear_leftovers()?;
    let engine = open_locked(config, store, role, None, progress)?;
    Ok((lock, engine))
}

fn load_key(store: &StoreDir) -> Result<NodeSeed, Failure> {
    Ok(node_key::load_or_create(store.path(), env::random)?)
}

/// Becomes a member, and gets the volume unless it is here already. Nothing comes of it if the daemon is told to stop.
fn join(
    surroundings: Surroundings<'_>,
    role: Role,
    mut invitation: Invitation,
    progress: &mut dyn FnMut(Progress),
    ready: &mut dyn FnMut(&Ready) -> std::io::Result<()>,
) -> Result<Option<Arrived>, Failure> {
    let Surroundings { config, store, .. } = surroundings;
    let disk = open_disk(store)?;
    let here = if Engine::is_there(&disk)? { Some(open_locked(config, store, role, None, progress)?) } else { None };
    if let Some(engine) = &here
        && engine.volume_id()? != invitation.token.volume
    {
        let message = format!("the store {} holds another volume", show::path(store.path()));
        return Err(Failure::new(Kind::InUse, message).hint("name an empty directory with --store DIR"));
    }
    let listen = match &here {
        Some(engine) => config.listen.or(engine.listens_at()?),
        None => config.listen,
    };
    let socket = Socket::bind(listen.unwrap_or(net::DEFAULT_LISTEN), &load_key(store)?)?;
    progress(Progress::step("asking to be let in"));
    let known = |(key, addresses): &(NodePublicKey, Vec<SocketAddr>)| socket.rejoin(*key, addresses);
    let admitted = socket.join(&invitation.token).or_else(|failure| {
        // Who has let this node in may be gone; the others know of it.
        invitation.members.iter().find_map(known).ok_or(failure)
    })?;
    if let Some(engine) = here {
        engine.take_member_entries(admitted.members)?;
        engine.place()?;
        return Ok(Some(Arrived { engine, socket, server: None }));
    }
    invitation.members = net::addresses_of(&admitted).collect();
    invitation.remember(store)?;
    ignore_lease_signals()?;
    let newcomer = Newcomer::begin((Arc::new(disk), open_index(store)?), load_key(store)?, options(config, role))?;
    arrive(surroundings, newcomer, socket, (&invitation, admitted), progress, ready)
}

fn open_disk(store: &StoreDir) -> Result<FileDisk, Failure> {
    FileDisk::open(store.path()).map_err(|error| {
        Failure::plain(format!("cannot open the files of the store {}: {error}", show::path(store.path())))
    })
}

/// Asking whether a staging file has writers may bring a signal whose default action would end the process.
fn ignore_lease_signals() -> Result<(), Failure> {
    signal_hook::flag::register(signal_hook::consts::SIGIO, Arc::new(AtomicBool::new(false)))
        .map_err(|error| Failure::plain(format!("cannot ignore SIGIO: {error}")))
        .map(drop)
}

fn open_index(store: &StoreDir) -> Result<Arc<dyn GlyphIndex>, Failure> {
    let index = SledIndex::open(&store.index()).map_err(|error| {
        let index = show::path(&store.index());
        Failure::plain(format!("cannot open the glyph index {index}: {error}")).hint("delete it; it will be rebuilt")
    })?;
    Ok(Arc::new(index))
}

fn options(config: &Config, role: Role) -> Options {
    Options {
        cache_bytes: u64::from(config.cache_mib) << 20,
        staging_cache_bytes: u64::from(config.staging_cache_mib) << 20,
        publish_interval: config.publish_interval,
        snapshot_every: config.snapshot_every,
        snapshot_keep: config.snapshot_keep.clone(),
        siblings: config.conflicts == Conflicts::Siblings,
        repair: role.repair,
        rebuild_index: role.rebuild_index,
    }
}

/// `export`: what the store is made of first.
fn open_locked(
    config: &Config,
    store: &StoreDir,
    role: Role,
    export: Option<Handed>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Engine, Failure> {
    ignore_lease_signals()?;
    let seed = load_key(store)?;
    let disk: Arc<dyn Disk> = Arc::new(open_disk(store)?);
    let (index, options) = (open_index(store)?, options(config, role));
    if let Some(export) = export {
        Engine::bootstrap((disk.clone(), index.clone()), &SystemEnv, &seed, &options, export, progress)?;
    }
    Engine::open(disk, index, Arc::new(SystemEnv), &seed, &options, progress)
}

/// Where to mount, and how its user chooses that.
#[derive(Clone, Copy)]
struct Place<'a> {
    dir: &'a Path,
    choice: &'static str,
}

fn mount(config: &Config, place: Place<'_>, engine: &Engine) -> Result<Mount, Failure> {
    mount_volume(config, place, engine.volume(), &mount_options(config))
}

fn mount_volume(
    config: &Config,
    Place { dir, choice }: Place<'_>,
    volume: Arc<dyn Volume>,
    options: &MountOptions,
) -> Result<Mount, Failure> {
    let at = show::path(dir);
    clear_dead_mounts(config)?;
    if !dir.exists() {
        // Its parent must be there: a mistyped path must not grow directories.
        std::fs::create_dir(dir).map_err(|error| {
            Failure::plain(format!("cannot make the mountpoint {at}: {error}")).hint(match error.kind() {
                std::io::ErrorKind::NotFound => {
                    format!("make the directory above it first, or choose another {choice}")
                }
                _ => format!("give a directory that you may write {choice}, or make it as root"),
            })
        })?;
    }
    let free = mounts::at(dir).is_ok_and(|mount| mount.is_none());
    if free && std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure::plain(format!("the mountpoint {at} is not empty"))
            .hint(format!("what is in it would be hidden; choose another directory {choice}")));
    }
    if (config.suid || config.dev) && !rustix::process::geteuid().is_root() {
        return Err(Failure::new(Kind::Usage, "only root can mount with suid or dev").hint("leave these settings out"));
    }
    phifs_fuse::mount(volume, dir, options).map_err(|error| explain(error, choice))
}

fn mount_options(config: &Config) -> MountOptions {
    MountOptions {
        source: source(config),
        data_mode: match config.data_mode {
            DataMode::Auto => phifs_fuse::DataMode::Auto,
            DataMode::Passthrough => phifs_fuse::DataMode::Passthrough,
            DataMode::Writeback => phifs_fuse::DataMode::Writeback,
            DataMode::Plain => phifs_fuse::DataMode::Plain,
        },
        allow_other: config.allow_other,
        suid: config.suid,
        dev: config.dev,
        read_only: false,
        // Any file will do; this one is always there.
        sample: File::open(config.store.join("superblock")).ok().map(Arc::new),
    }
}

/// What mount(8) shows as the device: which store it is, where its path can be written there.
pub fn source(config: &Config) -> String {
    let store = config.store.to_str().filter(|path| !path.contains([',', '\\']) && !path.contains(char::is_control));
    store.map_or_else(|| "phifs".to_owned(), |store| format!("phifs:{store}"))
}

/// Takes away the mounts of this store that a dead daemon left, further ones included. Says whether there were any.
/// To be called with the store locked: nobody serves it then.
pub fn clear_dead_mounts(config: &Config) -> Result<bool, Failure> {
    let source = source(config);
    let unlisted = |error| Failure::plain(format!("cannot read the mount table: {error}"));
    let mut dead = mounts::list().map_err(unlisted)?;
    dead.retain(|mount| (mount.source == source || mount.path == config.mount) && mount.is_dead());
    for mount in dead.iter().rev() {
        let at = show::path(&mount.path);
        mounts::detach(&mount.path).map_err(|error| Failure::plain(format!("cannot unmount {at}: {error}")))?;
        tracing::warn!(mount = %at, "cleared a mount that a dead daemon had left");
    }
    Ok(!dead.is_empty())
}

fn explain(error: MountError, choice: &str) -> Failure {
    let (kind, hint) = match &error {
        MountError::Busy(_) | MountError::AlreadyMounted { .. } => {
            (Kind::InUse, format!("choose another mountpoint {choice}, or unmount what is there"))
        }
        MountError::NoPermission { why, .. } => (Kind::Failed, way_past_refusal(why, choice)),
        MountError::Missing(_) | MountError::NotDirectory(_) => (Kind::Failed, format!("choose a directory {choice}")),
        MountError::Unavailable(_) => (Kind::Failed, "use data_mode \"auto\"".to_owned()),
        _ => (Kind::Failed, "see the log for what came before".to_owned()),
    };
    Failure::new(kind, error).hint(hint)
}

/// What helps a user to whom fusermount3 refuses a mount, or to take one away.
fn way_past_refusal(why: &str, choice: &str) -> String {
    let way = if why.contains("not installed") {
        "install fusermount3 (package fuse3), or run as root"
    } else if why.contains("/dev/fuse") {
        "as root: chmod 666 /dev/fuse"
    } else if why.contains("/etc/mtab") {
        "fusermount3 wants that file; as root: ln -s ../proc/self/mounts /etc/mtab"
    } else if why.contains("user_allow_other") {
        "as root, put the line `user_allow_other` into /etc/fuse.conf; or leave allow_other out"
    } else {
        return format!("choose a directory of your own {choice}, or run as root");
    };
    way.to_owned()
}

/// What ends a daemon.
#[derive(Debug)]
enum Event {
    Signal,
    /// Somebody unmounted it.
    Unmounted,
    /// The same with a branch.
    BranchUnmounted,
    /// `phifs down` has done all but the end.
    Down,
    /// What was being fetched is here, or will not be.
    Arrived,
}

struct Daemon {
    store: StoreDir,
    engine: Arc<Engine>,
    /// Once somebody is to know of this node.
    net: Mutex<Option<Arc<Net>>>,
    mount: Arc<Mount>,
    branches: Arc<BranchMounts>,
    background: Background,
    started: Instant,
    events: Sender<Event>,
    /// Whether the engine is closed. Held while stopping, so that two who stop it take turns.
    stopped: Mutex<bool>,
}

impl Daemon {
    /// Turns an unmount, by whomever, into an event.
    fn watch_mount(&self) -> Result<(), Failure> {
        let (mount, events) = (self.mount.clone(), self.events.clone());
        let watch = move || {
            mount.wait();
            // The daemon may be stopping already, for this reason or another.
            let _ = events.send(Event::Unmounted);
        };
        spawn("mount-watch", watch).map(drop)
    }

    fn end(&self, event: &Event) -> Result<(), Failure> {
        let mut log = |step: Progress| tracing::info!("{}", step.doing);
        match event {
            Event::Signal => self.stop(false, &mut log).or_else(|failure| match failure.kind {
                Kind::InUse => {
                    tracing::warn!("{failure}; unmounting by force, as a signal asked for the end");
                    self.stop(true, &mut log)
                }
                _ => Err(failure),
            }),
            Event::Unmounted | Event::BranchUnmounted | Event::Down | Event::Arrived => self.stop(false, &mut log),
        }
    }

    /// Unmounts and closes the engine. Without `force` a mount in use stays, and so does everything else.
    fn stop(&self, force: bool, progress: &mut dyn FnMut(Progress)) -> Result<(), Failure> {
        let mut stopped = self.stopped.lock();
        if *stopped {
            return Ok(());
        }
        progress(Progress::step("unmounting"));
        if !force {
            self.check_unused()?;
        }
        self.branches.unmount(force)?;
        unmount(&self.mount, force)?;
        progress(Progress::step("waiting for background work"));
        self.stop_net();
        self.background.stop();
        *stopped = true;
        self.engine.shutdown(progress)
    }

    /// Nothing is taken away as long as something else is in use: all or nothing.
    fn check_unused(&self) -> Result<(), Failure> {
        if self.branches.is_empty() {
            // Unmounting tells.
            return Ok(());
        }
        let ours = [mounts_of(&self.mount), self.branches.mount_points()].concat();
        if mounts::users(&ours).is_empty() { Ok(()) } else { Err(busy(&ours)) }
    }

    fn is_mounted(&self) -> bool {
        !mounts_of(&self.mount).is_empty()
    }

    fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_secs: self.started.elapsed().as_secs(),
            store: Name::of_path(self.store.path()),
            mounts: mounts_of(&self.mount).iter().map(|mount| Name::of_path(&mount.path)).collect(),
            branches: self.branches.report(),
            cluster: self.cluster(),
            arriving: None,
            features: features_of(&self.mount),
            requests: self.mount.requests().into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect(),
            volume: self.engine.status(),
        }
    }
}

fn features_of(mount: &Mount) -> Features {
    let features = mount.features();
    Features {
        data_path: features.data_path.to_string(),
        data_path_reason: features.data_path_reason,
        protocol: format!("{}.{}", features.protocol.0, features.protocol.1),
        write_bytes_max: features.write_bytes_max,
        read_ahead_bytes: features.read_ahead_bytes,
        options: features.options.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect(),
    }
}

/// The served mount first, then those made of it.
fn mounts_of(served: &Mount) -> Vec<MountPoint> {
    let mount = mounts::at(served.path()).ok().flatten().filter(MountPoint::is_phifs);
    let device = mount.map(|mount| mount.device);
    let mut all = device.and_then(|device| mounts::of_device(&device).ok()).unwrap_or_default();
    all.sort_by_key(|mount| mount.path != served.path());
    all
}

fn unmount(served: &Mount, force: bool) -> Result<(), Failure> {
    let ours = mounts_of(served);
    // Further mounts go first: as long as one is left, the filesystem is.
    for further in ours.iter().filter(|mount| mount.path != served.path()) {
        let result = if force { mounts::detach(&further.path) } else { mounts::unmount(&further.path) };
        result.map_err(|error| match error.kind() {
            std::io::ErrorKind::ResourceBusy => busy(std::slice::from_ref(further)),
            _ => Failure::plain(format!("cannot unmount {}: {error}", show::path(&further.path))),
        })?;
    }
    let until = Instant::now() + LATE_RELEASES_MAX;
    loop {
        match served.unmount(force) {
            // The kernel still writes back or releases files that their programs have closed.
            Err(MountError::Busy(_)) if mounts::users(&ours).is_empty() && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(MountError::Busy(_)) => return Err(busy(&ours)),
            result => return result.map_err(|error| explain(error, "with --mount DIR")),
        }
    }
}

/// Says who keeps these mounts busy.
fn busy(mounts: &[MountPoint]) -> Failure {
    let paths: Vec<String> = mounts.iter().map(|mount| show::path(&mount.path)).collect();
    let users: String = mounts::users(mounts).iter().map(|user| format!("\n  {user}")).collect();
    let users = if users.is_empty() { "\n  (no process that we may look into)".to_owned() } else { users };
    Failure::new(Kind::InUse, format!("the volume on {} is in use by{users}", paths.join(", ")))
        .hint("end these processes, or: phifs down --force")
}

impl Handler for Daemon {
    fn handle(
        &self,
        request: Request,
        file: Option<OwnedFd>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<serde_json::Value, Failure> {
        let file = || {
            let missing = || Failure::new(Kind::Usage, "the request came without the file that it is about");
            file.map(Handed::new).ok_or_else(missing)
        };
        tracing::debug!(?request, "asked over the control socket");
        let json = |value: serde_json::Result<serde_json::Value>| value.map_err(Failure::plain);
        match request {
            Request::Status => json(serde_json::to_value(self.status())),
            Request::Events { count } => json(serde_json::to_value(self.engine.events(count)?)),
            Request::Log { count } => json(serde_json::to_value(self.engine.recent_ops(count)?)),
            Request::Versions { path, inode } => {
                let device = mounts_of(&self.mount).first().map(|mount| mount.device.clone());
                let inode = inode.filter(|inode| device.as_ref() == Some(&inode.device));
                let number = inode.map(|inode| inode.number);
                json(serde_json::to_value(self.engine.file_versions(&path, number)?))
            }
            Request::Usage => json(serde_json::to_value(self.engine.usage(&self.store)?)),
            Request::Gc => json(serde_json::to_value(self.engine.gc(progress)?)),
            Request::Scrub => json(serde_json::to_value(self.engine.scrub(progress)?)),
            Request::Fsck { rebuild_index, repair } => {
                json(serde_json::to_value(self.engine.fsck(rebuild_index, repair, progress)?))
            }
            Request::SnapshotCreate { name, labels, branch: None } => {
                json(serde_json::to_value(self.engine.create_snapshot(&name, labels)?))
            }
            Request::SnapshotCreate { name, labels, branch: Some(branch) } => {
                json(serde_json::to_value(self.engine.snapshot_branch(&branch, &name, labels)?))
            }
            Request::SnapshotClone { name, branch } => {
                json(serde_json::to_value(self.engine.clone_snapshot(&name, &branch)?))
            }
            Request::BranchList => json(serde_json::to_value(self.branches.list()?)),
            Request::BranchMount { branch, dir } => {
                // Nothing new is mounted while all is taken away.
                let stopped = self.stopped.lock();
                if *stopped {
                    return Err(Failure::plain("the daemon is going down"));
                }
                json(serde_json::to_value(self.branches.mount(&branch, &dir, progress)?))
            }
            Request::BranchDelete { branch } => json(serde_json::to_value(self.branches.delete(&branch)?)),
            Request::SnapshotList => json(serde_json::to_value(self.engine.snapshots()?)),
            Request::SnapshotShow { name } => json(serde_json::to_value(self.engine.snapshot(&name)?)),
            Request::SnapshotDelete { names } => json(serde_json::to_value(self.engine.delete_snapshots(&names)?)),
            Request::SnapshotDiff { from, to } => {
                json(serde_json::to_value(self.engine.snapshot_diff(&from, to.as_deref())?))
            }
            Request::SnapshotRestore { name, path, dry_run } => {
                let path = path.map(|path| path.bytes());
                let restored = self.engine.restore_snapshot(&name, path.as_deref(), dry_run, progress)?;
                json(serde_json::to_value(restored))
            }
            Request::Conflicts { path } => json(serde_json::to_value(self.engine.conflicts(&path)?)),
            Request::Why { path } => json(serde_json::to_value(self.engine.why(&path)?)),
            Request::Pin { path } => json(serde_json::to_value(self.engine.pin(&path, progress)?)),
            Request::PinList => json(serde_json::to_value(self.engine.pins()?)),
            Request::PinRemove { path } => json(serde_json::to_value(self.engine.unpin(&path)?)),
            Request::Resolve { path, how, recursive, dry_run } => {
                json(serde_json::to_value(self.engine.resolve(&path, how, recursive, dry_run)?))
            }
            Request::SnapshotPrune { rules, label, scheduled, dry_run } => {
                let pruned = self.engine.prune_snapshots(&rules, label.as_deref(), scheduled, dry_run)?;
                json(serde_json::to_value(pruned))
            }
            Request::SnapshotExport { name, since, resume } => {
                let exported = self.engine.export_snapshot(&name, since.as_deref(), file()?, resume, progress)?;
                json(serde_json::to_value(exported))
            }
            Request::SnapshotImport { name, trust } => {
                json(serde_json::to_value(self.engine.import_snapshot(file()?, name, trust, progress)?))
            }
            Request::Merge { source, target, dry_run, unrelated, trust, name } => {
                let file = if [&source, &target].contains(&&Side::File) { Some(file()?) } else { None };
                let options = Merging { dry_run, unrelated, trust, name };
                json(serde_json::to_value(self.engine.merge(source, target, file, options, progress)?))
            }
            Request::SnapshotVerify { name } => {
                json(serde_json::to_value(self.engine.verify_snapshot(&name, progress)?))
            }
            Request::VolumeGet { name } => json(serde_json::to_value(self.engine.settings(name.as_deref())?)),
            Request::VolumeSet { name, value } => {
                json(serde_json::to_value(self.engine.change_setting(&name, value.as_deref())?))
            }
            Request::Members => json(serde_json::to_value(self.members()?)),
            Request::Member { member } => json(serde_json::to_value(membership::find(self.members()?, &member)?)),
            Request::MemberRemove { member } => json(serde_json::to_value(self.remove_member(&member)?)),
            Request::Token => json(serde_json::to_value(self.engine.session_token()?)),
            Request::Wait { token, timeout_ms } => {
                json(serde_json::to_value(self.engine.wait_for(&token, Duration::from_millis(timeout_ms))?))
            }
            Request::Leave { force } => json(serde_json::to_value(self.leave(force, progress)?)),
            Request::Invite { role, zone, expires_secs } => {
                json(serde_json::to_value(self.invite(role, zone, Duration::from_secs(expires_secs))?))
            }
            Request::Down { force } => {
                let result = self.stop(force, progress);
                if *self.stopped.lock() {
                    // A send fails only when the end has begun.
                    let _ = self.events.send(Event::Down);
                }
                result.map(|()| serde_json::Value::Null)
            }
        }
    }
}

/// Work that is done again and again. It says how long to rest.
type Work = Box<dyn FnMut(&Engine) -> Result<Duration, Failure> + Send>;

/// The threads that do the engine's background work.
struct Background {
    engine: Arc<Engine>,
    ending: Arc<(Mutex<bool>, Condvar)>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Background {
    fn start(engine: &Arc<Engine>) -> Result<Self, Failure> {
        let ending = Arc::new((Mutex::new(false), Condvar::new()));
        let repeat = |name, mut work: Work| {
            let (engine, ending) = (engine.clone(), ending.clone());
            spawn(name, move || repeat_until(&ending, || work(&engine)))
        };
        let (mut seen, mut idle_looks) = (None, 0_u32);
        let checkpoint = move |engine: &Engine| {
            let end = engine.journal_end();
            engine.checkpoint_if_due()?;
            idle_looks = if seen.replace(end) == Some(end) { idle_looks.saturating_add(1) } else { 0 };
            if idle_looks == LOOKS_BEFORE_TRIM {
                give_back_memory();
            }
            Ok(if idle_looks > 0 { IDLE_LOOK } else { CHECKPOINT_LOOK })
        };
        let mut threads = vec![
            repeat("tick", Box::new(|engine| engine.tick().map(|()| TICK)))?,
            repeat("checkpoint", Box::new(checkpoint))?,
        ];
        if !engine.is_branch() {
            let schedule: Work = Box::new(|engine| {
                let wait = engine.snapshot_by_schedule()?;
                // The setting may change meanwhile. To see that there is none costs nothing.
                Ok(wait.map_or(NO_SCHEDULE_LOOK, |wait| wait.min(SCHEDULE_LOOK)))
            });
            threads.push(repeat("schedule", schedule)?);
            let sealer = engine.clone();
            threads.push(spawn("seal", move || keep_on("sealing snapshots", || sealer.run_sealer()))?);
        }
        for _ in 0..PUBLISHERS {
            let engine = engine.clone();
            threads.push(spawn("publish", move || keep_on("publishing", || engine.run_publisher()))?);
        }
        Ok(Self { engine: engine.clone(), ending, threads: Mutex::new(threads) })
    }

    /// Waits for what runs.
    fn stop(&self) {
        *self.ending.0.lock() = true;
        self.ending.1.notify_all();
        self.engine.stop_publishers();
        for thread in self.threads.lock().drain(..) {
            // Panics are caught inside.
            let _ = thread.join();
        }
    }
}

/// The allocator keeps what was freed for later. What a million new files take for a moment is more than ever before and
/// perhaps ever after.
fn give_back_memory() {
    // SAFETY: it may be called at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Goes on after a panic: the engine ends the work when it is told to stop.
fn keep_on(what: &str, work: impl Fn()) {
    while catch_unwind(AssertUnwindSafe(&work)).is_err() {
        tracing::error!("{what} panicked; it goes on with the next one");
    }
}

fn repeat_until((ending, changed): &(Mutex<bool>, Condvar), mut work: impl FnMut() -> Result<Duration, Failure>) {
    let mut ended = ending.lock();
    while !*ended {
        drop(ended);
        let rest = match catch_unwind(AssertUnwindSafe(&mut work)) {
            Ok(Ok(rest)) => rest,
            Ok(Err(failure)) => {
                tracing::error!("background work failed: {failure}");
                FAILURE_REST
            }
            Err(_) => {
                tracing::error!("background work panicked; it is tried again");
                FAILURE_REST
            }
        };
        ended = ending.lock();
        if !*ended {
            changed.wait_for(&mut ended, rest);
        }
    }
}

/// The first signal asks for a clean end; a second one ends the process at once, which costs nothing but a replay.
fn watch_signals(events: &Sender<Event>) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::plain(format!("cannot watch for signals: {error}"));
    let signals = [SIGTERM, SIGINT, SIGHUP];
    let asked = Arc::new(AtomicBool::new(false));
    for signal in signals {
        signal_hook::flag::register_conditional_shutdown(signal, 1, asked.clone()).map_err(failed)?;
    }
    let mut arrivals = signal_hook::iterator::Signals::new(signals).map_err(failed)?;
    let events = events.clone();
    let watch = move || {
        for signal in arrivals.forever() {
            tracing::info!(signal, "asked to stop by a signal");
            asked.store(true, Ordering::SeqCst);
            // Fails only when the end has begun.
            let _ = events.send(Event::Signal);
        }
    };
    spawn("signals", watch).map(drop)
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Failure> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map_err(|error| Failure::plain(format!("cannot start a thread: {error}")))
}

/// Every open file of the volume may need a descriptor here.
fn raise_file_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
}

/// Programs lose their files when this process is killed for want of memory, so others go first; but not all others,
/// as a daemon that eats the memory must not survive the machine.
fn be_spared() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-250") {
        tracing::debug!(%error, "the kernel may choose this process when memory runs out");
    }
}
