//! What the kernel of a node has cached, and must be told of when it changes.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use phifs_core::volume::{Ino, Invalidate};

/// A name in a directory.
type NameAt = (Ino, Vec<u8>);

#[derive(Default)]
pub struct Kernel {
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    names: BTreeMap<NameAt, Option<Ino>>,
    bytes: BTreeMap<Ino, Vec<u8>>,
    /// What it was told and has not acted on, if it is slow to do so.
    told: Option<Vec<Told>>,
}

enum Told {
    Name(Ino, Vec<u8>),
    Bytes(Ino),
}

impl Cache {
    fn tell(&mut self, told: Told) {
        match &mut self.told {
            Some(later) => later.push(told),
            None => self.forget(told),
        }
    }

    fn forget(&mut self, told: Told) {
        match told {
            Told::Name(parent, name) => {
                // With a directory goes all that is below it.
                let mut todo: Vec<Ino> = self.names.remove(&(parent, name)).flatten().into_iter().collect();
                while let Some(dir) = todo.pop() {
                    self.names.retain(|(parent, _), ino| {
                        let stays = *parent != dir;
                        todo.extend(ino.filter(|_| !stays));
                        stays
                    });
                }
            }
            Told::Bytes(ino) => drop(self.bytes.remove(&ino)),
        }
    }
}

impl Kernel {
    /// Whether it acts on what it is told only when it is asked to (`catch_up`).
    pub fn set_slow(&self) {
        self.cache.lock().told = Some(Vec::new());
    }

    pub fn catch_up(&self) {
        let mut cache = self.cache.lock();
        let told = cache.told.as_mut().map(std::mem::take);
        told.into_iter().flatten().for_each(|told| cache.forget(told));
    }

    pub fn saw_name(&self, parent: Ino, name: &[u8], found: Option<Ino>) {
        self.cache.lock().names.insert((parent, name.to_vec()), found);
    }

    pub fn saw_bytes(&self, ino: Ino, bytes: &[u8]) {
        self.cache.lock().bytes.insert(ino, bytes.to_vec());
    }

    /// It has called itself, and knows what that changed.
    pub fn clear(&self) {
        let mut cache = self.cache.lock();
        cache.names.clear();
        cache.bytes.clear();
        cache.told.as_mut().map(Vec::clear);
    }

    pub fn names(&self) -> Vec<(NameAt, Option<Ino>)> {
        self.cache.lock().names.iter().map(|(at, ino)| (at.clone(), *ino)).collect()
    }

    pub fn bytes(&self) -> Vec<(Ino, Vec<u8>)> {
        self.cache.lock().bytes.iter().map(|(ino, bytes)| (*ino, bytes.clone())).collect()
    }
}

impl Invalidate for Kernel {
    fn inode(&self, ino: Ino, data: bool) {
        if data {
            self.cache.lock().tell(Told::Bytes(ino));
        }
    }

    fn entry(&self, parent: Ino, name: &[u8]) {
        self.cache.lock().tell(Told::Name(parent, name.to_vec()));
    }

    fn file(&self, _: Ino) {}
}
