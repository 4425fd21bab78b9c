//! A node: a real volume over a simulated disk.

use std::fmt::Display;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use phifs_core::disk::{Disk, MemDisk};
use phifs_core::id::GlyphId;
use phifs_core::identity::{NodeKey, NodePublicKey};
use phifs_core::placement::Layout;
use phifs_core::registry::Member;
use phifs_core::ssep::Secret;
use phifs_core::store::{GlyphKind, MemIndex};
use phifs_core::time::Env as _;
use phifs_core::volume::local::{Invite, LocalVolume, OpenError, Options, Peer, PeerError};
use phifs_core::volume::{Caller, Handle, Ino, OpenHow, Path, Volume, VolumeError};

use crate::clock::Clock;
use crate::disk::NodeDisk;
use crate::kernel::Kernel;
use crate::reach::{Others, Reach};

pub const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 1 };
pub const READ: OpenHow = OpenHow {
    read: true,
    write: false,
    truncate: false,
    append: false,
    direct: false,
    passthrough: false,
    sync: false,
    exclusive: false,
    execute: false,
};
/// Nobody breaks anything off.
pub const GO_ON: fn(u64) -> ControlFlow<()> = |_| ControlFlow::Continue(());

/// Why something could not be done.
#[derive(Debug)]
pub enum Trouble {
    /// The power of the node is gone.
    Dead,
    /// Its disk is full, or was until a moment ago.
    Full(String),
    /// The other end of a link is to blame, or nobody: it is tried again over another one.
    Peer(String),
    /// This must not happen.
    Bug(String),
}

pub type Outcome<T = ()> = Result<T, Trouble>;

pub struct Node {
    pub seed: [u8; 32],
    pub key: NodePublicKey,
    pub clock: Arc<Clock>,
    pub disk: NodeDisk,
    /// None while it is down.
    pub volume: Option<Arc<LocalVolume>>,
    number: usize,
    reach: Arc<Reach>,
    /// By what placing everything was here that is to be here.
    pub complete: Option<[u8; 32]>,
    pub kernel: Arc<Kernel>,
    pub has_left: bool,
    /// Whether its disk was full since it was started.
    pub was_full: bool,
    /// Whether its log of operations is gone when it starts again.
    pub loses_log: bool,
    /// What programs have open.
    pub open: Vec<(Ino, Handle)>,
    memory_bytes: u64,
}

pub fn seed_of(number: usize, seed: u64) -> [u8; 32] {
    *blake3::hash(&[&seed.to_le_bytes()[..], &(number as u64).to_le_bytes()].concat()).as_bytes()
}

fn options(memory_bytes: u64) -> Options {
    let publish_interval = Duration::from_millis(500);
    Options { publish_interval, memory_bytes, reserve_bytes: Some(1 << 20), ..Options::default() }
}

fn open(disk: Arc<dyn Disk>, clock: &Arc<Clock>, seed: &[u8; 32], memory_bytes: u64) -> Result<LocalVolume, OpenError> {
    LocalVolume::open(disk, Arc::new(MemIndex::default()), clock.clone(), seed, options(memory_bytes), &|_| {})
}

impl Node {
    fn with(number: usize, seed: u64, disk: NodeDisk, world_ms: &Arc<AtomicU64>, reach: &Arc<Reach>) -> Self {
        let key_seed = seed_of(number, seed);
        let clock = Clock::new(world_ms.clone(), seed << 20 | (number as u64) << 16);
        Self {
            seed: key_seed,
            key: NodeKey::from_seed(&key_seed).public(),
            clock,
            disk,
            volume: None,
            number,
            reach: reach.clone(),
            complete: None,
            kernel: Arc::default(),
            has_left: false,
            was_full: false,
            loses_log: false,
            open: Vec::new(),
            memory_bytes: [64 << 20, 0][(seed as usize + number) % 2],
        }
    }

    /// The one that makes the volume.
    pub fn first(seed: u64, world_ms: &Arc<AtomicU64>, reach: &Arc<Reach>) -> Self {
        let mut node = Self::with(0, seed, NodeDisk::over(&MemDisk::new()), world_ms, reach);
        node.start(&MemDisk::new()).expect("a volume is made");
        let volume = node.volume();
        let member = member(0, node.clock.now());
        volume.put_member(volume.node(), &member).expect("the first member");
        node
    }

    /// One that joins by an invitation of another one, and begins with the state of that.
    pub fn joining(number: usize, seed: u64, host: &Self, world_ms: &Arc<AtomicU64>) -> Outcome<Self> {
        let mut node = Self::with(number, seed, NodeDisk::over(&MemDisk::new()), world_ms, &host.reach);
        let (there, secret) = (host.volume(), Secret([number as u8 + 1; 16]));
        let expires_ms = host.clock.now().millis() + 60_000;
        let invite = Invite { role: String::new(), zone: String::new(), expires_ms, used_by: None };
        there.invite(&secret, &invite).map_err(|e| host.trouble(e))?;
        there.admit(node.key, &secret, |_, since| member(number, since)).map_err(|e| host.trouble(e))?;
        let members = there.member_entries().map_err(|e| host.trouble(e))?;
        let head = there.head().map_err(|e| host.trouble(e))?.to_bytes();
        let peer = Peer { node: host.key, volume: there.id().map_err(|e| host.trouble(e))? };
        let to = (Arc::new(node.disk.clone()) as Arc<dyn Disk>, Arc::new(MemIndex::default()) as _);
        let given = |kind, id: &GlyphId| Some((*id, there.glyph_to_send(kind, id).ok().flatten()?));
        let made = LocalVolume::bootstrap_from_peer(
            to,
            &*node.clock,
            &node.seed,
            &options(node.memory_bytes),
            (&peer, &head),
            &mut |kind, ids: &[GlyphId]| Ok(ids.iter().filter_map(|id| given(kind, id)).collect()),
            &GO_ON,
        );
        made.map_err(|error| match error {
            PeerError::ClockAhead(_) => Trouble::Peer(error.to_string()),
            error => Trouble::Bug(format!("a store cannot be made of a head: {error}")),
        })?;
        let image = node.disk.after_power_loss(0);
        node.start(&image).map_err(|e| Trouble::Bug(format!("a new store does not open: {e}")))?;
        let volume = node.volume();
        volume.take_member_entries(members).map_err(|e| node.trouble(e))?;
        Ok(node)
    }

    pub fn volume(&self) -> &LocalVolume {
        self.volume.as_deref().expect("it is up")
    }

    pub fn is_up(&self) -> bool {
        self.volume.is_some()
    }

    pub fn start(&mut self, files: &MemDisk) -> Result<(), OpenError> {
        self.disk = NodeDisk::over(files);
        let volume = open(Arc::new(self.disk.clone()), &self.clock, &self.seed, self.memory_bytes)?;
        self.kernel = Arc::default();
        volume.set_invalidate(self.kernel.clone());
        // Files are published as if there were threads for it.
        volume.stop_publishers();
        volume.count_follower(1);
        volume.set_peers(Some(Arc::new(Others { reach: self.reach.clone(), node: self.number })));
        let volume = Arc::new(volume);
        self.reach.is_up(self.number, &volume);
        (self.volume, self.complete) = (Some(volume), None);
        (self.was_full, self.open) = (false, Vec::new());
        Ok(())
    }

    /// The power goes. Nothing is closed.
    pub fn stop(&mut self) {
        self.disk.cut_power();
        self.volume = None;
    }

    /// What would be found if the power went now, and nothing reached the disk that was not synced.
    pub fn crashed_copy(&self) -> Result<LocalVolume, OpenError> {
        open(Arc::new(self.disk.after_power_loss(0)), &self.clock, &self.seed, self.memory_bytes)
    }

    /// What an error of the volume means. A call may fail for want of room, and when the power goes; else never.
    pub fn trouble(&self, error: impl Display) -> Trouble {
        if self.disk.is_dead() {
            Trouble::Dead
        } else if self.was_full {
            Trouble::Full(error.to_string())
        } else {
            Trouble::Bug(error.to_string())
        }
    }

    /// Places what the members are to hold, and fetches what is to be here.
    pub fn keep_complete(&mut self, has_layout: bool) -> Outcome {
        let volume = self.volume.clone().expect("it is up");
        let members = volume.members().map_err(|e| self.trouble(e))?;
        if has_layout && members.iter().any(|(key, _)| *key == self.key) {
            let layout = Layout::of_members(&members);
            if volume.layout().is_none_or(|known| *known != layout) {
                volume.set_layout(Some(layout)).map_err(|e| self.trouble(e))?;
            }
        }
        let placing = volume.placing();
        if self.complete == Some(placing) && !volume.is_awaited() {
            return Ok(());
        }
        let missing = volume.look_for_missing().map_err(|e| self.trouble(e))?;
        let around = self.reach.around(self.number);
        for (id, _) in &missing {
            let found = around.iter().find_map(|other| other.glyph_to_send(GlyphKind::Data, id).ok().flatten());
            if let Some(glyph) = found {
                volume.take_glyph(*id, &glyph).map_err(|e| self.trouble(e))?;
            }
        }
        self.complete = missing.is_empty().then_some(placing);
        Ok(())
    }

    /// Whether contents may not be here.
    pub fn may_lack(&self) -> bool {
        self.volume().is_awaited() || self.volume().layout().is_some()
    }

    /// What programs have open is closed.
    pub fn close_all(&mut self) {
        let open = std::mem::take(&mut self.open);
        open.into_iter().for_each(|(ino, handle)| self.volume().release(ino, handle));
    }

    pub fn has_open(&self, ino: Ino) -> bool {
        self.open.iter().any(|(open, _)| *open == ino)
    }

    /// All of a file, and whether the kernel may keep it.
    pub fn read_file(&self, ino: Ino) -> Result<(Vec<u8>, bool), VolumeError> {
        let volume = self.volume();
        let opened = volume.open(&CALLER, ino, &READ)?;
        let read = self.read_handle(ino, opened.handle);
        volume.release(ino, opened.handle);
        Ok((read?, !matches!(opened.path, Path::Direct)))
    }

    /// All of a file, as long as it is for those who have it open: they may see an older version.
    pub fn read_handle(&self, ino: Ino, handle: Handle) -> Result<Vec<u8>, VolumeError> {
        let len = self.volume().getattr(ino, Some(handle))?.size_bytes;
        self.volume().read(ino, handle, 0, len as u32)
    }
}

fn member(number: usize, since: phifs_core::time::Timestamp) -> Member {
    Member {
        name: format!("n{number}"),
        role: String::new(),
        zone: String::new(),
        addresses: Vec::new(),
        since,
        left: false,
        leaving: false,
    }
}
