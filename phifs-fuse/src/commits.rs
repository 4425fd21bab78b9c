//! Answers fsync for many at once.
//!
//! What a sync is to make durable is put into the volume's journal on the thread that read the request, where that
//! takes no waiting. One thread then commits the journal for all whose requests have come so far, while the next ones
//! come: a flush of the disk never waits for somebody to wake up and ask for it.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use fuser::ReplyEmpty;
use parking_lot::{Condvar, Mutex};
use phifs_core::volume::{Ino, Volume};

use crate::answer::Answer;
use crate::guard::guarded;
use crate::requests::{Begun, Requests};

#[derive(Default)]
struct Queue {
    replies: Vec<(ReplyEmpty, Begun)>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

pub(crate) struct Commits {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Commits {
    /// # Errors
    /// The system's, when the thread cannot be started.
    pub(crate) fn start(volume: Arc<dyn Volume>, requests: Arc<Requests>) -> io::Result<Self> {
        let shared: Arc<Shared> = Arc::default();
        let running = Arc::clone(&shared);
        let thread = thread::Builder::new().name("phifs-commit".to_owned());
        let thread = thread.spawn(move || running.run(&*volume, &requests))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Answers once everything that is in the volume's journal now is durable.
    pub(crate) fn answer_when_durable(&self, reply: ReplyEmpty, begun: Begun) {
        let mut queue = self.shared.queue.lock();
        queue.replies.push((reply, begun));
        drop(queue);
        self.shared.wake.notify_one();
    }

    /// Returns when all are answered that came before.
    pub(crate) fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            // It catches the panics of the volume, so there is no panic to pass on.
            let _ = thread.join();
        }
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn run(&self, volume: &dyn Volume, requests: &Requests) {
        while let Some(replies) = self.next() {
            let outcome = guarded("fsync", Ino::ROOT, || volume.commit());
            for (reply, begun) in replies {
                requests.end(begun);
                reply.answer(outcome);
            }
        }
    }

    /// Who waits; nobody does for ever.
    fn next(&self) -> Option<Vec<(ReplyEmpty, Begun)>> {
        let mut queue = self.queue.lock();
        while queue.replies.is_empty() && !queue.closed {
            self.wake.wait(&mut queue);
        }
        if queue.replies.is_empty() { None } else { Some(std::mem::take(&mut queue.replies)) }
    }
}
