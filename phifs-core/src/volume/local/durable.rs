//! How written bytes become durable before they are published.

use crate::content::overlay::Sources;
use crate::durability::Durability;
use crate::namespace::row::Closure;
use crate::volume::{Ino, Result, VolumeError};

use super::LocalVolume;
use super::files::{Data, FileCell, from_io, looking_failed, staging_io};
use super::publication::Publication;
use super::records::Base;
use super::remote::is_lacking;
use super::staged::{Recording, Staging};

impl LocalVolume {
    /// fsync(2): the bytes of the file, its name and everything before it are durable afterwards.
    pub(super) fn sync_file(&self, ino: Ino) -> Result<()> {
        if ino.is_virtual() {
            return Ok(());
        }
        let id = self.state.read().inode_id(ino)?;
        if let Some(user) = self.known(id) {
            self.record(&user.cell)?;
            self.synced(id)?;
        }
        self.commit_journal()?;
        self.sync_elsewhere(id)
    }

    /// The first half of `sync_file`, if only the journal is needed for that and nobody is at work on the file.
    pub(super) fn record_at_once(&self, ino: Ino) -> bool {
        if ino.is_virtual() || self.journal.is_backlogged() {
            return false;
        }
        let Ok(id) = self.state.read().inode_id(ino) else { return false };
        if !matches!(self.durability_of(id), Ok(Durability::Local)) {
            return false;
        }
        let Some(user) = self.known(id) else { return true };
        {
            let Some(data) = user.cell.data.try_lock() else { return false };
            let Some(data) = data.as_ref() else { return true };
            let Some(staging) = data.staging.as_ref() else { return !data.failed };
            if data.failed || staging.is_handed() {
                return false;
            }
            if staging.is_recorded() {
                return true;
            }
            let is_at_hand = match staging.recording(false) {
                Recording::Bytes => staging.in_memory && staging.overlay.is_whole(),
                // What was just written, and not much of it, is in the host's cache.
                Recording::Delta => true,
                Recording::File => false,
            };
            if !is_at_hand {
                return false;
            }
        }
        matches!(self.record_bytes(&user.cell, false), Ok(true)) && self.synced(id).is_ok()
    }

    /// Makes sure that the journal, once committed, stands for the bytes of the file as they are now.
    pub(super) fn record(&self, cell: &FileCell) -> Result<()> {
        self.record_as(cell, false)
    }

    /// Whether no crash can bring deltas back over what is in the staging file.
    pub(super) fn deltas_are_gone(&self, cell: &FileCell) -> bool {
        let data = cell.data.lock();
        let staging = data.as_ref().and_then(|data| data.staging.as_ref());
        let committed = self.journal.committed();
        staging.is_none_or(|staging| staging.in_memory || !staging.records.may_bring_deltas_back(committed))
    }

    /// Puts a base in the place of all deltas, durably.
    pub(super) fn remove_deltas(&self, cell: &FileCell) -> Result<()> {
        let has_deltas = {
            let data = cell.data.lock();
            let staging = data.as_ref().and_then(|data| data.staging.as_ref());
            staging.is_some_and(|staging| staging.records.has_deltas())
        };
        if has_deltas {
            self.record_as(cell, true)?;
        }
        self.commit_journal()
    }

    /// Publishes a file that stays open, if it was not for a while, and one that is closed; what cannot be published is
    /// made durable at least.
    pub(super) fn publish_open(&self, cell: &FileCell) -> Result<()> {
        let is_open = cell.is_open();
        let due = {
            let mut data = cell.data.lock();
            let staging = data.as_mut().and_then(|data| data.staging.as_mut());
            match staging {
                Some(staging) => {
                    staging.observe().map_err(looking_failed)?;
                    let now = self.env.now();
                    let due =
                        staging.is_due(now, self.settings.read().publish_interval) || staging.in_memory && !is_open;
                    if due {
                        staging.tried_at = now;
                    }
                    due
                }
                None => false,
            }
        };
        let closure = if is_open { Closure::IdleFlush } else { Closure::Close };
        if due && matches!(self.publish(cell, closure), Ok(outcome) if outcome != Publication::Changing) {
            return Ok(());
        }
        self.record(cell)
    }

    fn record_as(&self, cell: &FileCell, rebase: bool) -> Result<()> {
        loop {
            let recording = {
                let mut data = cell.data.lock();
                let Some(data) = data.as_mut() else { return Ok(()) };
                if data.failed {
                    return Err(VolumeError::LostWrite);
                }
                let Some(staging) = data.staging.as_mut() else { return Ok(()) };
                staging.observe().map_err(looking_failed)?;
                if staging.is_recorded() && !(rebase && staging.records.has_deltas()) {
                    return Ok(());
                }
                let recording = staging.recording(rebase);
                if recording == Recording::Bytes && !staging.overlay.is_whole() {
                    self.complete(data)?
                } else {
                    recording
                }
            };
            let done = match recording {
                Recording::File => self.record_file(cell)?,
                Recording::Bytes | Recording::Delta => self.record_bytes(cell, rebase)?,
            };
            if done {
                return Ok(());
            }
        }
    }

    /// By the journal alone. False if that turned out not to be possible any more.
    fn record_bytes(&self, cell: &FileCell, rebase: bool) -> Result<bool> {
        let mut state = self.state.write();
        let mut data = cell.data.lock();
        let Some(Data { staging: Some(staging), .. }) = data.as_mut() else { return Ok(true) };
        staging.observe().map_err(looking_failed)?;
        let read = staging_io("reading a staging file");
        let (generation, mtime) = (staging.generation, staging.mtime);
        match staging.recording(rebase) {
            Recording::Bytes if staging.overlay.is_whole() => {
                let (base, deltas) = staging.bytes().map_err(read)?;
                let mut changes = staging.records.replacing(cell.id, Some(&base));
                changes.extend(staging.records.adding(cell.id, &deltas));
                let lsn = state.commit_local(changes, self.env.now(), &self.journal)?;
                staging.records.replaced(Base::Bytes, lsn);
                staging.records.added(&deltas);
                staging.retire_replaced(&self.staging, lsn);
            }
            Recording::Delta => {
                let deltas = [staging.delta().map_err(read)?];
                let changes = staging.records.adding(cell.id, &deltas).collect();
                state.commit_local(changes, self.env.now(), &self.journal)?;
                staging.records.added(&deltas);
            }
            Recording::Bytes | Recording::File => return Ok(false),
        }
        staging.recorded(generation, mtime);
        Ok(true)
    }

    /// By a sync of the staging file, and a record of what was in it before. False if it has to be tried again.
    fn record_file(&self, cell: &FileCell) -> Result<bool> {
        let (file, number, generation, mtime, synced, base, records) = {
            let mut data = cell.data.lock();
            let Some(Data { staging: Some(staging), .. }) = data.as_mut() else { return Ok(true) };
            staging.observe().map_err(looking_failed)?;
            if staging.in_memory {
                return Ok(false);
            }
            // As it is before the sync: what is written during it may not be on the disk.
            let synced = staging.record().map_err(looking_failed)?;
            if !synced.fits() {
                // Written at too many places for one row. As a version it has none.
                drop(data);
                return Ok(self.publish(cell, Closure::IdleFlush)? != Publication::Changing);
            }
            let base = if staging.is_all_there_is() { Base::WholeFile } else { Base::File };
            let Staging { file, number, generation, mtime, records, .. } = &*staging;
            (file.clone(), *number, *generation, *mtime, synced, base, records.clone())
        };
        if let Err(source) = self.staging.name_is_durable(number).and_then(|()| file.sync()) {
            if let Some(data) = cell.data.lock().as_mut() {
                data.failed = true;
            }
            return Err(from_io("syncing a staging file", source));
        }
        let mut state = self.state.write();
        let mut data = cell.data.lock();
        let Some(Data { staging: Some(staging), .. }) = data.as_mut() else { return Ok(true) };
        if staging.number != number || staging.records != records {
            // Published or recorded by somebody else meanwhile, perhaps with newer bytes than were synced here.
            return Ok(staging.is_recorded());
        }
        if staging.published >= Some(generation) {
            return Ok(true);
        }
        // The kernel's writes to a whole file change nothing that the record says.
        if !staging.is_recorded_whole() {
            let changes = staging.records.replacing(cell.id, Some(&synced));
            let lsn = state.commit_local(changes, self.env.now(), &self.journal)?;
            staging.records.replaced(base, lsn);
            staging.retire_replaced(&self.staging, lsn);
        }
        staging.recorded(generation, mtime);
        Ok(true)
    }

    /// Whether a crash is sure to find whatever the kernel writes to the staging file and syncs by itself.
    pub(super) fn is_findable(&self, staging: &Staging) -> bool {
        let records = &staging.records;
        records.are_of_all() && records.are_durable(self.journal.committed()) && self.staging.is_named(staging.number)
    }

    /// Makes a durable record of the staging file that the kernel is about to have, before anybody is promised a sync
    /// that is not heard of here. If the file gets another one meanwhile, it is to be tried again.
    ///
    /// The record will be believed whatever it finds there, so what is there now is synced first.
    pub(super) fn make_findable(&self, cell: &FileCell) -> Result<()> {
        let (file, number, records) = {
            let data = cell.data.lock();
            let Some(Data { staging: Some(staging), failed, .. }) = data.as_ref() else { return Ok(()) };
            if *failed {
                return Err(VolumeError::LostWrite);
            }
            (staging.file.clone(), staging.number, staging.records.clone())
        };
        let is_recorded = records.are_of_all();
        let synced = self.staging.name_is_durable(number).and_then(|()| if is_recorded { Ok(()) } else { file.sync() });
        if let Err(source) = synced {
            if let Some(data) = cell.data.lock().as_mut() {
                data.failed = true;
            }
            // A copy of what is published is given up, and made anew by the next open.
            self.enqueue(cell.id);
            return Err(from_io("syncing a staging file", source));
        }
        if !is_recorded {
            let mut state = self.state.write();
            let mut data = cell.data.lock();
            let Some(Data { staging: Some(staging), .. }) = data.as_mut() else { return Ok(()) };
            // Otherwise somebody else published or recorded it, perhaps with newer bytes than were synced here.
            if staging.number == number && staging.records == records && staging.is_handed() {
                let record = staging.record().map_err(looking_failed)?;
                let changes = staging.records.replacing(cell.id, Some(&record));
                let lsn = state.commit_local(changes, self.env.now(), &self.journal)?;
                staging.records.replaced(Base::WholeFile, lsn);
                staging.retire_replaced(&self.staging, lsn);
            }
        }
        self.commit_journal()
    }

    /// Brings over what a short file still lacks of its version, and says how the file becomes durable then. What is not
    /// here is not waited for: without it, the file is recorded as one that lies over its version.
    fn complete(&self, data: &mut Data) -> Result<Recording> {
        let Data { staging: Some(staging), reader, .. } = data else { return Ok(Recording::Bytes) };
        let completed = self.alter(staging, |staging| {
            let mut sources = Sources { file: &*staging.file, base: reader, glyphs: &*self.store };
            Ok(staging.overlay.materialise(&mut sources, 0..u64::MAX)?)
        });
        match completed {
            Err(error) if is_lacking(&error) => {
                if staging.in_memory {
                    self.spill(staging)?;
                }
                Ok(Recording::File)
            }
            completed => completed.map(|()| Recording::Bytes),
        }
    }
}
