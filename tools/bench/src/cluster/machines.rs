//! Daemons on machines of their own that have one volume.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::XattrFlags;

use crate::lab::Lab;
use crate::machine;
use crate::network::Network;
use crate::systems::{Phifs, System};

/// Syncs in this directory wait until all machines have what was done before on their disks.
const EVERYWHERE: &str = "everywhere";

pub struct Cluster {
    /// The first one is that on which programs work.
    pub nodes: Vec<Phifs>,
    pub network: Network,
    marks: Cell<u64>,
}

impl Cluster {
    /// As many machines as there are entries: the processor to which each daemon keeps, if it keeps to one.
    pub fn start(lab: &Lab, name: &str, processors: &[Option<usize>]) -> Result<Cluster> {
        let network = Network::new(processors.len());
        let mut nodes: Vec<Phifs> = Vec::new();
        for (n, (processor, seat)) in processors.iter().zip(&network.seats).enumerate() {
            let invitation = nodes.first().map(Phifs::invite).transpose()?;
            let _pinned = processor.map(machine::pin).transpose()?;
            let home = lab.home.join(format!("{name}-{n}"));
            nodes.push(Phifs::start_on(lab.program, &home, Rc::clone(&lab.disk), seat, invitation.as_deref())?);
        }
        let cluster = Cluster { nodes, network, marks: Cell::new(0) };
        cluster.wait_connected()?;
        // Machines that share two processors may take longer than the minute that is usual.
        cluster.first().set("fsync_degraded", "block 30m")?;
        cluster.make_durable_dir(EVERYWHERE)?;
        cluster.settle()?;
        Ok(cluster)
    }

    pub fn first(&self) -> &Phifs {
        &self.nodes[0]
    }

    fn wait_connected(&self) -> Result<()> {
        let start = Instant::now();
        for node in &self.nodes {
            while node.connected()? < self.nodes.len() - 1 {
                ensure!(start.elapsed() < Duration::from_secs(60), "the machines do not find each other");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// A directory in which syncs wait until all machines have it on their disks.
    pub fn make_durable_dir(&self, name: &str) -> Result<()> {
        let dir = self.first().dir().join(name);
        fs::create_dir(&dir)?;
        rustix::fs::setxattr(&dir, "user.phi.durability", b"all", XattrFlags::empty())?;
        Ok(())
    }

    /// Waits until everything is published, all machines have it on their disks, and none of them does anything.
    pub fn settle(&self) -> Result<()> {
        self.first().settle()?;
        let mark = self.marks.replace(self.marks.get() + 1);
        let mut file = File::create_new(self.first().dir().join(EVERYWHERE).join(mark.to_string()))?;
        file.write_all(b"all that was done before")?;
        file.sync_all().context("the other machines do not say that they have everything")?;
        drop(file);
        self.nodes.iter().try_for_each(|node| node.settle().map(drop))
    }

    /// Gives up on all machines what removed files have left.
    pub fn forget_removed(&self) -> Result<()> {
        self.settle()?;
        self.nodes.iter().try_for_each(Phifs::gc)?;
        self.settle()
    }

    /// Fails unless all machines are known to have this file on their disks.
    pub fn ensure_everywhere(&self, path: &Path) -> Result<()> {
        let mut value = [0; 16];
        let len = rustix::fs::getxattr(path, "user.phi.replicas", &mut value)?;
        let (replicas, wanted) = (String::from_utf8_lossy(&value[..len]), self.nodes.len().to_string());
        ensure!(replicas == wanted, "{} is on {replicas} of {wanted} machines", path.display());
        Ok(())
    }
}
