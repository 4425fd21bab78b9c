//! Makes the kernel hand over the bytes of files that it has in its write-back cache.
//!
//! syncfs(2) on the root of the mount does it, and waits in the kernel for WRITEs and SETATTRs that this very process
//! answers. No signal reaches such a thread, not even SIGKILL. When the process is killed, only the end of the
//! connection wakes it, and that comes with the last descriptor of the device; which a waiting thread would keep, as
//! the threads of a process share one table of descriptors. So the call is made by a thread with a table of its own,
//! in which nothing is left of this process. It is one that answers no request and holds no lock.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rustix::fs::{Mode, OFlags};

use crate::mountpoint::Mounted;

pub(crate) struct Syncer {
    asked: Sender<()>,
    answers: Receiver<io::Result<()>>,
}

impl Syncer {
    /// # Errors
    /// The system's, when there can be no such thread: it takes Linux 5.9.
    pub(crate) fn start(mounted: Mounted) -> io::Result<Self> {
        let (asked, questions) = channel();
        let (answer, answers) = channel();
        let serve = move || {
            let own_table = leave_descriptors();
            let started = own_table.is_ok();
            // Whoever asks may have gone; then there is nothing to do any more.
            if answer.send(own_table).is_err() || !started {
                return;
            }
            for () in questions {
                if answer.send(hand_over(&mounted)).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("phifs-sync".to_owned()).spawn(serve)?;
        let syncer = Self { asked, answers };
        syncer.answer()?;
        Ok(syncer)
    }

    /// Returns when the kernel has put everything that it held into WRITEs, and these were read from the device. They
    /// may not be carried out yet. Once the mount is no longer seen at its path, nothing happens.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.asked.send(()).map_err(|_| gone())?;
        self.answer()
    }

    fn answer(&self) -> io::Result<()> {
        self.answers.recv().map_err(|_| gone())?
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that syncs has ended")
}

/// Gives this thread a table of descriptors with nothing in it but the standard streams.
fn leave_descriptors() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: the table of the other threads stays as it is. In that of this thread all numbers from 3 on become
    // free, and this thread uses no descriptor but those that it opens in `hand_over`.
    let result = unsafe { libc::close_range(FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE as libc::c_int) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The descriptor keeps the mount busy, but only while somebody has a file open for writing, who does so too.
fn hand_over(mounted: &Mounted) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(&mounted.path, flags, Mode::empty())?;
    let device = rustix::fs::fstat(&root)?.st_dev;
    // Unmounted by now, or hidden by another mount, which is not ours to sync.
    if format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device)) != mounted.device {
        return Ok(());
    }
    let synced = rustix::fs::syncfs(&root);
    // The kernel may not wait until the WRITEs are read. This request is always sent, and it queues up behind them. An
    // error of the sync may be about one file of many: the others were handed over all the same.
    rustix::fs::fstatfs(&root)?;
    Ok(synced?)
}
