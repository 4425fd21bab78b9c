//! A load that can be interrupted by a crash, and the checker that knows what must be there afterwards.
//!
//! Each worker changes files of its own and keeps, in the memory of the test (outside the machine that dies), the
//! history of every file: a state is noted before the call that makes it, and a state is *durable* once an fsync or
//! msync that covers it has returned. After a crash a file must be in its last durable state or in a later one of its history:
//!
//! - what a sync acknowledged is there, with the right bytes;
//! - a replacement by rename, a page, a renamed directory is there entirely or not at all;
//! - no file has bytes that were never written to it.
//!
//! What is found becomes the start of the next history, so that rounds of crashes add up on one store.

mod workers;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use workers::{Appends, Creates, Pages, Replacements, Stores, Trees};

/// Whether the workers really call fsync. A load that only claims to is how the checker itself is checked.
#[derive(Clone, Copy, Debug)]
pub enum Syncing {
    Real,
    Pretended,
    /// On a filesystem of the host: those that return once the flag is set count as interrupted, and every replacement
    /// is synced before its rename, as only phifs promises whole bytes without.
    OfHostUntil(&'static AtomicBool),
}

impl Syncing {
    fn with(self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self {
            Syncing::Pretended => return Ok(()),
            Syncing::Real | Syncing::OfHostUntil(_) => sync()?,
        }
        match self {
            Syncing::OfHostUntil(flag) if flag.load(Ordering::SeqCst) => Err(io::ErrorKind::Interrupted.into()),
            _ => Ok(()),
        }
    }

    fn is_of_host(self) -> bool {
        matches!(self, Syncing::OfHostUntil(_))
    }

    fn file(self, file: &File) -> io::Result<()> {
        self.with(|| file.sync_all())
    }

    fn data(self, file: &File) -> io::Result<()> {
        self.with(|| file.sync_data())
    }

    fn dir(self, dir: &Path) -> io::Result<()> {
        self.file(&File::open(dir)?)
    }
}

/// What the unsynced end of a file that was appended to may look like after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Bytes that were written, or nothing: what phifs promises when only the daemon dies.
    Written,
    /// Zeroes too, in the last block of a file that grew or in all of a new one: ext4 makes the new size durable before
    /// the bytes where the last block was there already (seen here in every second power cut), and where the writing
    /// of new blocks had begun, which are marked as written only afterwards (seen in one of thirty). So it is with the
    /// staging files of phifs, which are files of the host, whoever writes to them: the journal does not know how much
    /// of one was synced last.
    MayBeZero,
}

impl Tail {
    /// The part of an unsynced file that must be what was written.
    fn written(self, bytes: &[u8]) -> &[u8] {
        let zeroes = bytes.iter().rev().take_while(|byte| self == Tail::MayBeZero && **byte == 0).count();
        &bytes[..bytes.len() - zeroes]
    }
}

/// All states that one thing may be found in after a crash: the last durable one and everything after it.
#[derive(Debug)]
struct History<T> {
    states: Vec<T>,
}

impl<T> History<T> {
    fn starting_at(state: T) -> History<T> {
        History { states: vec![state] }
    }

    /// To be called before the change is tried: it may be found from now on.
    fn issue(&mut self, state: T) {
        self.states.push(state);
    }

    fn latest(&self) -> &T {
        self.states.last().expect("a history is never empty")
    }

    /// The latest state was acknowledged by an fsync: no earlier one may be found any more.
    fn acknowledge(&mut self) {
        self.states.drain(..self.states.len() - 1);
    }

    /// Each possible state, and whether it is the durable one, which must be complete.
    fn possible(&self) -> impl Iterator<Item = (bool, &T)> {
        self.states.iter().enumerate().map(|(at, state)| (at == 0, state))
    }
}

trait Worker: Send {
    /// Makes the directory and the durable first state.
    fn prepare(&mut self) -> io::Result<()>;
    /// One change, with or without a sync; how many syncs were acknowledged.
    fn step(&mut self) -> io::Result<u64>;
    /// Compares what is there with what may be there, and starts the next history from it.
    fn verify(&mut self) -> Vec<String>;
}

/// What a worker did between two crashes.
#[derive(Debug)]
pub struct Report {
    pub steps: u64,
    pub acknowledged: u64,
    /// Errors that came before the crash, when nothing may fail.
    pub early_errors: Vec<String>,
}

pub struct Load {
    workers: Vec<Box<dyn Worker>>,
}

impl Load {
    /// Sets the workers up below an empty directory.
    #[track_caller]
    pub fn prepare(dir: &Path, seed: u64, syncing: Syncing, tail: Tail) -> Load {
        let place = |name: &str| dir.join(name);
        let mut workers: Vec<Box<dyn Worker>> = vec![
            Box::new(Appends::new(place("appends"), seed, syncing, tail)),
            Box::new(Replacements::new(place("replacements"), seed + 1, syncing)),
            Box::new(Creates::new(place("creates"), seed + 2, syncing, tail)),
            Box::new(Pages::new(place("pages"), seed + 3, syncing, 64)),
            Box::new(Pages::new(place("many-pages"), seed + 4, syncing, 2560)),
            Box::new(Trees::new(place("trees"), seed + 5, syncing)),
            Box::new(Stores::new(place("stores"), seed + 6, syncing)),
        ];
        for worker in &mut workers {
            worker.prepare().expect("preparing the load");
        }
        File::open(dir).and_then(|dir| dir.sync_all()).expect("preparing the load");
        Load { workers }
    }

    /// Lets the workers run until `crash` has returned. It decides when; from its start on errors are expected.
    pub fn run_until_crash(&mut self, before: std::time::Duration, crash: impl FnOnce()) -> Report {
        let (crashing, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let (steps, acknowledged) = (AtomicU64::new(0), AtomicU64::new(0));
        let early_errors = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for worker in &mut self.workers {
                scope.spawn(|| {
                    while !over.load(Ordering::SeqCst) {
                        match worker.step() {
                            Ok(syncs) => {
                                steps.fetch_add(1, Ordering::Relaxed);
                                acknowledged.fetch_add(syncs, Ordering::Relaxed);
                            }
                            Err(_) if crashing.load(Ordering::SeqCst) => break,
                            Err(error) => {
                                early_errors.lock().expect("no poisoned lock").push(error.to_string());
                                break;
                            }
                        }
                    }
                });
            }
            std::thread::sleep(before);
            crashing.store(true, Ordering::SeqCst);
            crash();
            over.store(true, Ordering::SeqCst);
        });
        let early_errors = early_errors.into_inner().expect("no poisoned lock");
        Report { steps: steps.into_inner(), acknowledged: acknowledged.into_inner(), early_errors }
    }

    /// Everything that is not as it must be; empty when all is well.
    pub fn verify(&mut self) -> Vec<String> {
        self.workers.iter_mut().flat_map(|worker| worker.verify()).collect()
    }
}

/// The content of a file, or `None` if there is no such name; any other error is a problem of its own.
fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// A short description of bytes that should not be there.
fn describe(found: &Option<Vec<u8>>) -> String {
    match found {
        None => "nothing".to_owned(),
        Some(bytes) => {
            let zeroes = bytes.iter().filter(|&&byte| byte == 0).count();
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(48)]).into_owned();
            format!("{} bytes, {zeroes} of them zero, starting {start:?}", bytes.len())
        }
    }
}

fn child(dir: &Path, name: impl std::fmt::Display) -> PathBuf {
    dir.join(name.to_string())
}
