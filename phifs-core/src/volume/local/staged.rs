//! Staging files: the mutable bytes of files that were written and not published yet, and what the journal knows of
//! them.
//!
//! What always holds:
//! - A number is given out only if neither a file on the disk nor a record in the journal has it, and a file is removed
//!   only after the transaction that made it superfluous is durable. So a record can never name a file that meanwhile
//!   serves another inode.
//! - The local table has a record for an inode from before its first byte is written until it is published; the
//!   operation that publishes it removes the record in the same transaction. So what a crash leaves is either newer
//!   than the version, or not there.
//! - A record made for an fsync describes what had been synced before it was made, never what was written since.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::codec::{self, DecodeError, Encode, Reader};
use crate::content::Content;
use crate::content::overlay::Overlay;
use crate::disk::{Disk, File, FileName, Stamp};
use crate::meta::Lsn;
use crate::time::Timestamp;

const VERSION: u8 = 1;

/// What the journal knows about the unpublished bytes of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Staged {
    /// They are in this staging file, as the overlay says. The file's time is `mtime` for as long as the host's for
    /// the staging file is `host_mtime`; after that the kernel wrote to it.
    File { number: u64, overlay: Overlay, mtime: Timestamp, host_mtime: Timestamp },
    /// They are these: a small file that was synced by writing it to the journal.
    Bytes { bytes: Vec<u8>, mtime: Timestamp },
}

impl Staged {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        match self {
            Self::File { number, overlay, mtime, host_mtime } => {
                out.put_u8(1);
                out.put_varint(*number);
                out.put_time(*mtime);
                out.put_time(*host_mtime);
                overlay.encode(&mut out);
            }
            Self::Bytes { bytes, mtime } => {
                out.put_u8(2);
                out.put_time(*mtime);
                out.put_blob(bytes);
            }
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        let found = reader.u8()?;
        if found != VERSION {
            let (found, known) = (u32::from(found), u32::from(VERSION));
            return Err(DecodeError::NewerVersion { what: "a record about a dirty file", found, known });
        }
        let staged = match reader.u8()? {
            1 => Self::File {
                number: reader.varint()?,
                mtime: reader.time()?,
                host_mtime: reader.time()?,
                overlay: Overlay::decode(&mut reader)?,
            },
            2 => Self::Bytes { mtime: reader.time()?, bytes: reader.blob()?.to_vec() },
            value => return Err(DecodeError::Unknown { what: "a record about a dirty file", value: u64::from(value) }),
        };
        reader.finish()?;
        Ok(staged)
    }
}

/// The staging file of one inode and what is known of it.
pub struct Staging {
    pub number: u64,
    pub file: Arc<dyn File>,
    pub overlay: Overlay,
    /// When it became this inode's. The host's clock may tick later than ours; times shown are never before this.
    pub since: Timestamp,
    pub mtime: Timestamp,
    /// When the bytes changed last.
    pub changed: Timestamp,
    pub dirty: bool,
    /// When its bytes were published last, or it was made.
    pub published_at: Timestamp,
    /// Goes up with every change of the bytes.
    pub generation: u64,
    /// Whether the local table has a record.
    pub has_record: bool,
    /// Its bytes were found when the volume was opened; a crash had kept them from being published.
    pub recovered: bool,
    /// The generation that the record stands for, if it was made after a sync.
    pub recorded: Option<u64>,
    /// The hash of the bytes that the record holds, if it does. Whoever stores through a mapping may change them without
    /// a trace, as its pages stay writable until the staging file is synced.
    pub recorded_bytes: Option<blake3::Hash>,
    /// The generation that was published last.
    pub published: Option<u64>,
    /// That record names the whole staging file, whatever is in it.
    pub recorded_whole: bool,
    stamp: Stamp,
}

impl Staging {
    pub fn new(
        number: u64,
        file: Arc<dyn File>,
        overlay: Overlay,
        now: Timestamp,
        mtime: Timestamp,
    ) -> std::io::Result<Self> {
        let stamp = file.stamp()?;
        Ok(Self {
            number,
            file,
            overlay,
            since: now,
            mtime,
            changed: now,
            dirty: false,
            published_at: now,
            generation: 0,
            has_record: true,
            recovered: false,
            recorded: None,
            recorded_bytes: None,
            published: None,
            recorded_whole: false,
            stamp,
        })
    }

    /// Learns what the kernel did to the file by itself.
    pub fn observe(&mut self) -> std::io::Result<()> {
        let stamp = self.file.stamp()?;
        if (stamp.len_bytes, stamp.mtime) != (self.stamp.len_bytes, self.stamp.mtime) {
            // Which bytes changed is not known, so the file counts as new from end to end.
            self.overlay = Overlay::whole(stamp.len_bytes);
            self.changed = stamp.mtime.max(self.since);
            self.mtime = self.changed;
            self.dirty = true;
            self.generation += 1;
            self.stamp = stamp;
        }
        Ok(())
    }

    /// Notes a change made through here, at `now`.
    pub fn changed(&mut self, now: Timestamp) -> std::io::Result<()> {
        self.changed = now.max(self.since);
        self.mtime = self.changed;
        self.dirty = true;
        self.generation += 1;
        self.restamp()
    }

    /// Accepts the file as it is now for what is known of it.
    pub fn restamp(&mut self) -> std::io::Result<()> {
        self.stamp = self.file.stamp()?;
        Ok(())
    }

    /// Notes that all bytes are in this version. Its publication removed the record, or (`kept`) made it name the whole
    /// staging file.
    pub fn published(&mut self, content: Content, now: Timestamp, kept: bool) {
        self.overlay.published(content);
        self.dirty = false;
        self.published_at = now;
        self.has_record = kept;
        self.recovered = false;
        self.recorded = None;
        self.recorded_whole = kept;
        self.published = Some(self.generation);
    }

    /// Whether the file is what the staging file holds, whatever that is: it started empty, or the kernel wrote to it.
    pub fn is_all_there_is(&self) -> bool {
        *self.overlay.base() == Content::Empty
    }

    pub fn record(&self) -> Staged {
        Staged::File {
            number: self.number,
            overlay: self.overlay.clone(),
            mtime: self.mtime,
            host_mtime: self.stamp.mtime,
        }
    }

    /// A record that names the whole staging file, whatever the kernel makes of it.
    pub fn record_of_all(&self) -> Staged {
        Staged::File {
            number: self.number,
            overlay: Overlay::whole(self.overlay.len_bytes()),
            mtime: self.mtime,
            host_mtime: self.stamp.mtime,
        }
    }
}

/// How many staging files are kept ready, so that making a file does not wait for the host to make one.
const POOL: usize = 128;

/// Hands out staging files and takes them back.
pub struct StagingPool {
    disk: Arc<dyn Disk>,
    inner: Mutex<Pool>,
}

struct Pool {
    next: u64,
    /// Names of files with a smaller number are durable.
    named: u64,
    ready: VecDeque<(u64, Arc<dyn File>)>,
    /// To be removed once the journal is durable up to the LSN.
    retired: VecDeque<(Lsn, u64)>,
}

impl StagingPool {
    /// `next` is larger than the number of any staging file there is.
    pub fn new(disk: Arc<dyn Disk>, next: u64) -> Self {
        Self { disk, inner: Mutex::new(Pool { next, named: next, ready: VecDeque::new(), retired: VecDeque::new() }) }
    }

    /// An empty file. Its name is durable only after `name_is_durable`.
    pub fn take(&self) -> std::io::Result<(u64, Arc<dyn File>)> {
        let ready = self.inner.lock().ready.pop_front();
        ready.map_or_else(|| self.make(), Ok)
    }

    /// Whether few files are ready.
    pub fn is_low(&self) -> bool {
        self.inner.lock().ready.len() < POOL / 2
    }

    /// Makes the name of a staging file durable, if it is not yet.
    pub fn name_is_durable(&self, number: u64) -> std::io::Result<()> {
        let next = {
            let inner = self.inner.lock();
            if number < inner.named {
                return Ok(());
            }
            inner.next
        };
        self.disk.sync_names()?;
        let mut inner = self.inner.lock();
        inner.named = inner.named.max(next);
        Ok(())
    }

    fn make(&self) -> std::io::Result<(u64, Arc<dyn File>)> {
        // Made under the lock, so that all below `next` are there when `name_is_durable` syncs their names.
        let mut inner = self.inner.lock();
        inner.next += 1;
        let number = inner.next - 1;
        Ok((number, self.disk.create(FileName::Staging(number))?))
    }

    pub fn retire(&self, number: u64, after: Lsn) {
        self.inner.lock().retired.push_back((after, number));
    }

    /// Background work: removes what is superfluous.
    pub fn maintain(&self, committed: Lsn) -> std::io::Result<()> {
        loop {
            let next = self.inner.lock().retired.front().copied().filter(|(lsn, _)| *lsn <= committed);
            let Some((_, number)) = next else { return Ok(()) };
            match self.disk.remove(FileName::Staging(number)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            self.inner.lock().retired.pop_front();
        }
    }

    /// Background work: makes files ready, a few at a time.
    pub fn refill(&self) -> std::io::Result<()> {
        for _ in 0..POOL / 4 {
            let made = self.make()?;
            self.inner.lock().ready.push_back(made);
        }
        Ok(())
    }

    /// Gives back what was kept ready, for a clean stop.
    pub fn drain(&self) -> std::io::Result<()> {
        let mut inner = self.inner.lock();
        let ready: Vec<u64> = inner.ready.drain(..).map(|(number, _)| number).collect();
        let retired: Vec<u64> = inner.retired.drain(..).map(|(_, number)| number).collect();
        drop(inner);
        for number in ready.into_iter().chain(retired) {
            match self.disk.remove(FileName::Staging(number)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}
