//! Where groups of figures are measured: the machine's disk, the phifs that is measured, and how large it all is.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::machine::Disk;
use crate::rows::Bench;
use crate::systems::Phifs;
use crate::table::Figure;

pub const MIB: f64 = (1 << 20) as f64;

/// Figures that are measured together, on volumes of their own. Sizes follow the scale, the limits do not: they hold at
/// full size.
pub struct Group {
    pub name: &'static str,
    pub what: &'static str,
    /// Room it needs on the disk at full size.
    pub disk_mib: usize,
    pub run: fn(&Lab) -> Result<Vec<Figure>>,
}

pub struct Lab<'a> {
    pub bench: &'a Bench,
    pub disk: Rc<Disk>,
    pub program: &'a Path,
    pub home: &'a Path,
    pub repeat: usize,
    pub rest: Duration,
}

impl Lab<'_> {
    /// A phifs with a store of its own.
    pub fn phifs(&self, name: &str) -> Result<Phifs> {
        Phifs::start(self.program, &self.home.join(name), Rc::clone(&self.disk))
    }

    /// What is measured.
    pub fn describe(&self) -> Result<String> {
        self.phifs("described")?.describe()
    }

    pub fn run(&self, group: &Group) -> Result<Vec<Figure>> {
        let bytes = self.bench.scale.bytes(group.disk_mib) as u64;
        self.disk.ensure_free(bytes, group.name)?;
        eprintln!("{}: {}", group.name, group.what);
        (group.run)(self).context(group.name)
    }
}
