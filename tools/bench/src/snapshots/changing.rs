//! A volume of very many files, few of which change before each snapshot.

use std::fs;
use std::ops::Range;
use std::time::Duration;

use anyhow::Result;

use crate::lab::Lab;
use crate::population::Population;
use crate::rows::noise;
use crate::systems::{Phifs, System};

pub struct Changing {
    pub phifs: Phifs,
    pub files: Population,
    rng: fastrand::Rng,
    taken: usize,
}

impl Changing {
    pub fn new(lab: &Lab, name: &str, count: usize, lengths: Range<usize>) -> Result<Changing> {
        let phifs = lab.phifs(name)?;
        Changing::fill(phifs, count, lengths)
    }

    pub fn fill(phifs: Phifs, count: usize, lengths: Range<usize>) -> Result<Changing> {
        let files = Population::new(phifs.dir(), count);
        files.make(0..count, lengths)?;
        phifs.settle()?;
        Ok(Changing { phifs, files, rng: fastrand::Rng::with_seed(count as u64), taken: 0 })
    }

    /// Overwrites so many files, spread at random over all and no one twice, each with so many bytes.
    pub fn change(&mut self, count: usize, len: usize) -> Result<()> {
        let stride = self.files.count / count;
        for n in 0..count {
            let which = n * stride + self.rng.usize(..stride);
            fs::write(self.files.path(which), noise(self.rng.u64(..), len))?;
        }
        Ok(())
    }

    /// The same, all in one directory.
    pub fn change_together(&mut self, count: usize, len: usize) -> Result<()> {
        let mut there: Vec<_> = self.files.of_directory(0).collect();
        self.rng.shuffle(&mut there);
        for which in &there[..count] {
            fs::write(self.files.path(*which), noise(self.rng.u64(..), len))?;
        }
        Ok(())
    }

    /// Takes the next snapshot, and tells its name.
    pub fn snapshot(&mut self) -> Result<(Duration, String)> {
        self.taken += 1;
        let name = format!("n{}", self.taken);
        Ok((self.phifs.snapshot(&name)?, name))
    }
}
