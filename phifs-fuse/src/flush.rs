//! Fetches what was written to files that stay open.
//!
//! On the write-back path, and everywhere where a file is mapped that is not passed through, the kernel keeps bytes to
//! itself until the file is closed or synced, or half a minute has passed.
//! Too long: what nobody syncs is to reach the disk within a second or so, and a file that is renamed while it is open
//! should have its bytes when it has its new name. So one thread asks the kernel for them, every now and then while a
//! file is open for writing, and before such a rename. While none is, it sleeps.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use phifs_core::volume::Ino;

use crate::pool::{Job, Pool};
use crate::state::State;
use crate::syncer::Syncer;

/// With the time that the volume takes until it makes durable what it got, about a second.
const EVERY: Duration = Duration::from_millis(300);

/// How long a rename waits for bytes, at the most: a disk that takes longer has other worries.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Queue {
    on: bool,
    jobs: VecDeque<(Ino, Job)>,
    /// Waits for a file to be opened for writing.
    asleep: bool,
}

/// Off until it is switched on.
#[derive(Default)]
pub(crate) struct Flusher {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Flusher {
    pub(crate) fn is_on(&self) -> bool {
        self.queue.lock().on
    }

    pub(crate) fn switch_on(&self) {
        self.queue.lock().on = true;
    }

    /// Passes the job to the pool when what the kernel held of this inode has arrived. When the flusher is off, which
    /// then means that the mount has gone, the job is dropped.
    ///
    /// It does not wait in the pool meanwhile: the WRITEs need the threads there.
    pub(crate) fn before(&self, job: impl FnOnce() + Send + 'static, ino: Ino) {
        let mut queue = self.queue.lock();
        if queue.on {
            queue.jobs.push_back((ino, Box::new(job)));
            self.wake.notify_one();
        }
    }

    /// No job is passed on any more.
    pub(crate) fn switch_off(&self) {
        let dropped = {
            let mut queue = self.queue.lock();
            queue.on = false;
            std::mem::take(&mut queue.jobs)
        };
        self.wake.notify_one();
        drop(dropped);
    }

    /// A file was opened for writing while none was open so.
    fn rouse(&self) {
        let mut queue = self.queue.lock();
        // Awake, it goes on waiting for its time.
        if std::mem::take(&mut queue.asleep) {
            self.wake.notify_one();
        }
    }

    /// Until it is switched off.
    pub(crate) fn run(self: &Arc<Self>, state: &State, pool: &Pool, syncer: &Syncer) {
        let flusher = Arc::clone(self);
        state.handles.on_first_writer(move || flusher.rouse());
        let mut complained = false;
        while let Some(inodes) = self.next(|| state.handles.any_writer()) {
            if inodes.is_empty() && !state.handles.any_writer() {
                continue;
            }
            if let Err(error) = fetch(state, syncer, &inodes)
                && !std::mem::replace(&mut complained, true)
            {
                tracing::warn!(%error, "what is written to open files arrives late: the kernel cannot be asked for it");
            }
            let mut queue = self.queue.lock();
            if queue.on {
                queue.jobs.drain(..inodes.len()).for_each(|(_, job)| pool.run(job));
            }
        }
    }

    /// The inodes that jobs wait for; none when it is time to ask for everything. The jobs stay in the queue, so that
    /// they can be dropped while the kernel is asked.
    fn next(&self, any_writer: impl Fn() -> bool) -> Option<Vec<Ino>> {
        let mut queue = self.queue.lock();
        // A file that is opened for writing counts as a writer before `rouse` is called. So either it is seen here, or
        // that call, which needs the lock of the queue, comes after this has fallen asleep.
        queue.asleep = !any_writer();
        while queue.on && queue.jobs.is_empty() && queue.asleep {
            self.wake.wait(&mut queue);
        }
        queue.asleep = false;
        // Even if the writer has gone again, so that one file after another does not wake this each time.
        if queue.on && queue.jobs.is_empty() {
            self.wake.wait_for(&mut queue, EVERY);
        }
        queue.on.then(|| queue.jobs.iter().map(|(ino, _)| *ino).collect())
    }
}

/// Makes the kernel hand over what it holds, and waits for what it held of these inodes. After an error, too: it may be
/// about another file.
fn fetch(state: &State, syncer: &Syncer, inodes: &[Ino]) -> io::Result<()> {
    let first = syncer.sync();
    if inodes.is_empty() {
        return first;
    }
    let until = Instant::now() + PATIENCE;
    inodes.iter().for_each(|ino| state.writes.wait_for(*ino, until));
    // The kernel leaves pages out while too many requests are under way, and a WRITE may have been read by a thread
    // that got no further until now.
    let second = syncer.sync();
    inodes.iter().for_each(|ino| state.writes.wait_for(*ino, until));
    first.and(second)
}

/// The WRITEs that were read and are not carried out yet.
#[derive(Default)]
pub(crate) struct Writes {
    under_way: Mutex<HashMap<Ino, usize>>,
    over: Condvar,
}

impl Writes {
    /// Counts a WRITE until what this returns is dropped.
    pub(crate) fn begin(self: &Arc<Self>, ino: Ino) -> UnderWay {
        *self.under_way.lock().entry(ino).or_insert(0) += 1;
        UnderWay { writes: Arc::clone(self), ino }
    }

    fn wait_for(&self, ino: Ino, until: Instant) {
        let mut under_way = self.under_way.lock();
        self.over.wait_while_until(&mut under_way, |under_way| under_way.contains_key(&ino), until);
    }
}

pub(crate) struct UnderWay {
    writes: Arc<Writes>,
    ino: Ino,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut under_way = self.writes.under_way.lock();
        let left = under_way.get_mut(&self.ino).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            under_way.remove(&self.ino);
            self.writes.over.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// What the flusher goes for after `wake` was called while it slept.
    fn woken_by(wake: impl FnOnce(&Flusher)) -> Option<Vec<Ino>> {
        let flusher = Flusher::default();
        flusher.switch_on();
        thread::scope(|scope| {
            let next = scope.spawn(|| flusher.next(|| false));
            while !flusher.queue.lock().asleep {
                thread::yield_now();
            }
            wake(&flusher);
            next.join().unwrap()
        })
    }

    #[test]
    fn sleeping_flusher_is_woken_by_a_writer_by_a_job_and_by_the_end() {
        assert_eq!(woken_by(Flusher::rouse), Some(vec![]));
        assert_eq!(woken_by(|flusher| flusher.before(|| {}, Ino(5))), Some(vec![Ino(5)]));
        assert_eq!(woken_by(Flusher::switch_off), None);
    }

    #[test]
    fn flusher_that_sees_a_writer_or_a_job_does_not_fall_asleep() {
        let flusher = Flusher::default();
        flusher.switch_on();
        assert_eq!(flusher.next(|| true), Some(vec![]));
        flusher.before(|| {}, Ino(5));
        assert_eq!(flusher.next(|| false), Some(vec![Ino(5)]));
    }
}
