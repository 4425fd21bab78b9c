//! A volume on its way here, from machines that have it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use phifs_core::disk::Disk;
use phifs_core::snapshot::pull::{Ask, PullError};
use phifs_core::store::GlyphIndex;
use phifs_core::volume::local::{Aim, AskAnytime, LocalVolume, Newcomer as Store, Peer, PeerError, Preview};

use super::transfer::for_new;
use super::{Engine, Options, describe, explain_open, opened, volume_options};
use crate::control::Progress;
use crate::env::SystemEnv;
use crate::failure::Failure;
use crate::node_key::NodeSeed;

/// Of the memory for metadata, what is read ahead of the pull gets this part.
const PREVIEW_CACHE_SHARE: u64 = 4;

/// A store that is being made of what other machines know.
pub struct Newcomer {
    store: Store,
    disk: Arc<dyn Disk>,
    seed: NodeSeed,
    options: Options,
}

/// How a pull came out that did not bring everything.
pub enum Broken {
    /// Those who are asked do not have all of the state any more, or never had.
    Outdated(Failure),
    /// Nothing more is to be done.
    Failed(Failure),
}

impl Newcomer {
    /// Begins, or goes on with a store that is not finished.
    pub fn begin(
        (disk, index): (Arc<dyn Disk>, Arc<dyn GlyphIndex>),
        seed: NodeSeed,
        options: Options,
    ) -> Result<Self, Failure> {
        let store =
            Store::begin((disk.clone(), index), &SystemEnv, &seed.0, &for_new(&options)).map_err(Failure::plain)?;
        Ok(Self { store, disk, seed, options })
    }

    /// The state of a peer, as it has signed it.
    pub fn aim(peer: &Peer, head: &[u8]) -> Result<Aim, Failure> {
        Aim::new(&SystemEnv, peer, head).map_err(Failure::plain)
    }

    pub fn preview(&self, aim: &Aim, ask: AskAnytime) -> Preview {
        self.store.preview(aim, self.options.cache_bytes / PREVIEW_CACHE_SHARE, ask)
    }

    pub fn pull(
        &self,
        aim: &Aim,
        ask: Ask<'_>,
        rows_here: &AtomicU64,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<(), Broken> {
        self.store.pull(aim, ask, rows_here, &|_| go_on()).map_err(|error| match error {
            PeerError::Pull(PullError::Lacking { .. }) => Broken::Outdated(Failure::plain(error)),
            error => Broken::Failed(Failure::plain(error)),
        })
    }

    /// All is here: makes a volume of it, and opens that.
    pub fn open(self, aim: &Aim, progress: &mut dyn FnMut(Progress)) -> Result<Engine, Failure> {
        let made = self.store.finish(&SystemEnv, aim).map_err(Failure::plain)?;
        tracing::info!("the store is made");
        progress(Progress::step("opening the volume"));
        let progress = Mutex::new(progress);
        let options = volume_options(&self.options);
        let tell = |step| (progress.lock())(describe(step));
        let volume = LocalVolume::open_made(made, self.disk.clone(), Arc::new(SystemEnv), &self.seed.0, options, &tell);
        Ok(opened(self.disk, volume.map_err(explain_open)?))
    }
}

impl Engine {
    /// Whoever still looks at what was shown before the volume was here goes on by way of the volume.
    pub fn take_over(&self, preview: &Preview) {
        preview.leave_to(self.volume.clone());
    }
}
