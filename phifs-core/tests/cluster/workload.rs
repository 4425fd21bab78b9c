//! What programs do on a node. Every file that is written gets a length that no other one ever has, so that its bytes can
//! be told wherever they turn up.

use phifs_core::store::StoreError;
use phifs_core::volume::{
    FileKind, Ino, NewKind, NewNode, OpenHow, RenameMode, SetAttr, Volume, VolumeError, XattrMode,
};

use crate::node::{CALLER, Outcome, READ, Trouble};
use crate::oracle::noise;
use crate::world::{Event, World};

const FILES: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"e\xff", b"f"];
const DIRS: [&[u8]; 3] = [b"x", b"y", b"z"];
/// Lengths of files whose bytes lie beside the version, in one glyph, and in several.
const SHORT: usize = 16;
const SINGLE: usize = 10_000;
const LONG: usize = 160_000;
const WRITE: OpenHow = OpenHow { write: true, ..READ };
const FILE: NewNode<'_> = NewNode { kind: NewKind::File, permissions: 0o644, umask: 0 };
const DIR: NewNode<'_> = NewNode { kind: NewKind::Directory, permissions: 0o755, umask: 0 };

type Result<T = ()> = std::result::Result<T, VolumeError>;

impl World {
    /// One call, or a few that belong together.
    pub fn call(&mut self, n: usize) -> Outcome {
        let before = self.nodes[n].volume().context();
        if self.rng.percent(50) {
            self.nodes[n].close_all();
        }
        let called = self.any_call(n);
        let node = &self.nodes[n];
        if node.volume().context() != before {
            self.changed(n);
        }
        let rest_ms = self.rng.within(2..300);
        self.after(rest_ms, Event::Settle(n));
        use VolumeError as E;
        match called {
            Ok(()) => Ok(()),
            // What a filesystem may always say.
            Err(
                E::NotFound
                | E::Exists
                | E::NotDirectory
                | E::IsDirectory
                | E::NotEmpty
                | E::NoAttribute
                | E::Invalid(_),
            ) => Ok(()),
            // What is elsewhere cannot always be had.
            Err(E::Store(StoreError::Missing(_))) if self.nodes[n].may_lack() => Ok(()),
            Err(error) => match self.nodes[n].trouble(error) {
                // Programs are told, and go on.
                Trouble::Full(_) => Ok(()),
                trouble => Err(trouble),
            },
        }
    }

    fn any_call(&mut self, n: usize) -> Result {
        let dir = self.any_dir(n)?;
        let name = self.rng.pick(&FILES);
        match self.rng.below(100) {
            0..26 => self.write(n, dir, name, false),
            26..30 => self.write(n, dir, name, true),
            30..40 => self.overwrite(n, dir, name),
            40..46 => self.sync(n, dir, name),
            46..58 => self.look(n, dir, name),
            58..68 => self.rename(n, dir),
            68..72 => {
                let (to, other) = (self.any_dir(n)?, self.rng.pick(&FILES));
                let ino = self.find(n, dir, name)?;
                self.calls(n);
                self.nodes[n].volume().link(ino, to, other).map(drop)
            }
            72..82 => self.unlink(n, dir, name),
            82..89 => {
                let name = self.rng.pick(&DIRS);
                self.calls(n);
                self.nodes[n].volume().make(&CALLER, dir, name, &DIR).map(drop)
            }
            89..93 => {
                let name = self.rng.pick(&DIRS);
                self.calls(n);
                self.nodes[n].volume().rmdir(dir, name)
            }
            93..96 => {
                let ino = self.find(n, dir, name)?;
                let permissions = Some(0o600 | self.rng.below(0o100) as u32);
                self.calls(n);
                let change = SetAttr { permissions, ..SetAttr::default() };
                self.nodes[n].volume().setattr(&CALLER, ino, &change).map(drop)
            }
            96..99 => {
                let ino = self.find(n, dir, name)?;
                self.calls(n);
                let value = self.rng.next().to_le_bytes();
                self.nodes[n].volume().setxattr(&CALLER, ino, b"user.x", &value, XattrMode::Set)
            }
            _ => {
                self.calls(n);
                let link = NewNode { kind: NewKind::Symlink(b"../a"), permissions: 0o777, umask: 0 };
                self.nodes[n].volume().make(&CALLER, dir, name, &link).map(drop)
            }
        }
    }

    /// The kernel of the node makes a call that changes something, and knows what that does to its cache.
    fn calls(&mut self, n: usize) {
        self.nodes[n].kernel.clear();
    }

    fn any_dir(&mut self, n: usize) -> Result<Ino> {
        let mut dir = Ino::ROOT;
        for _ in 0..self.rng.below(3) {
            let name = self.rng.pick(&DIRS);
            match self.nodes[n].volume().lookup(&CALLER, dir, name) {
                Ok(attr) if attr.kind == FileKind::Directory => {
                    self.nodes[n].kernel.saw_name(dir, name, Some(attr.ino));
                    dir = attr.ino;
                }
                Ok(_) | Err(VolumeError::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(dir)
    }

    fn find(&self, n: usize, dir: Ino, name: &[u8]) -> Result<Ino> {
        Ok(self.nodes[n].volume().lookup(&CALLER, dir, name)?.ino)
    }

    fn find_file(&self, n: usize, dir: Ino, name: &[u8]) -> Result<Ino> {
        let attr = self.nodes[n].volume().lookup(&CALLER, dir, name)?;
        if attr.kind == FileKind::File { Ok(attr.ino) } else { Err(VolumeError::Exists) }
    }

    /// A length of its own: mostly short, sometimes one glyph, and sometimes several.
    fn new_len(&mut self) -> usize {
        let number = self.oracle.next_number();
        match self.rng.below(40) {
            0..30 => SHORT + number,
            30..38 => SINGLE + number,
            _ => LONG + number,
        }
    }

    /// Writes a file anew.
    fn write(&mut self, n: usize, dir: Ino, name: &[u8], exclusive: bool) -> Result {
        let len = self.new_len();
        let bytes = noise(self.seed, len);
        self.calls(n);
        let volume = self.nodes[n].volume();
        let (ino, opened) = match volume.lookup(&CALLER, dir, name) {
            Ok(_) if exclusive => return Err(VolumeError::Exists),
            Ok(attr) if attr.kind != FileKind::File => return Err(VolumeError::Exists),
            Ok(attr) => (attr.ino, volume.open(&CALLER, attr.ino, &OpenHow { truncate: true, ..WRITE })?),
            Err(VolumeError::NotFound) => {
                let (attr, opened) = volume.create(&CALLER, dir, name, &FILE, &OpenHow { exclusive, ..WRITE })?;
                (attr.ino, opened)
            }
            Err(error) => return Err(error),
        };
        self.oracle.overwritten(n, ino);
        let written = volume.write(&CALLER, ino, opened.handle, 0, &bytes, false);
        self.finish(n, ino, opened.handle, len, bytes, written.map(drop))
    }

    /// Changes a part of a file, and its length.
    fn overwrite(&mut self, n: usize, dir: Ino, name: &[u8]) -> Result {
        let ino = self.find_file(n, dir, name)?;
        self.calls(n);
        // What was read before it was opened for writing may have been older.
        let opened = self.nodes[n].volume().open(&CALLER, ino, &WRITE)?;
        let read = self.nodes[n].read_handle(ino, opened.handle);
        let mut bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                self.nodes[n].volume().release(ino, opened.handle);
                return Err(error);
            }
        };
        if !self.nodes[n].has_open(ino) {
            self.oracle.check_bytes(&bytes, &format!("node {n} at {} ms of {ino:?}, to write", self.now_ms));
        }
        let sort = [LONG, SINGLE, SHORT].into_iter().find(|sort| *sort <= bytes.len()).unwrap_or(SHORT);
        let len = sort + self.oracle.next_number();
        let at = self.rng.below(bytes.len().min(len) + 1);
        let patch = noise(!self.seed, (len - at).min(1 + self.rng.below(9_000)));
        let end = at + patch.len();
        bytes.resize(len, 0);
        bytes[at..end].copy_from_slice(&patch);
        let volume = self.nodes[n].volume();
        self.oracle.overwritten(n, ino);
        let change = SetAttr { size_bytes: Some(len as u64), handle: Some(opened.handle), ..SetAttr::default() };
        let written = volume
            .write(&CALLER, ino, opened.handle, at as u64, &patch, false)
            .and_then(|_| volume.setattr(&CALLER, ino, &change));
        self.finish(n, ino, opened.handle, len, bytes, written.map(drop))
    }

    fn finish(
        &mut self,
        n: usize,
        ino: Ino,
        handle: phifs_core::volume::Handle,
        len: usize,
        bytes: Vec<u8>,
        written: Result,
    ) -> Result {
        self.trace(|| format!("{n} writes {len} bytes to {ino:?}: {:?}", written.is_ok()));
        self.oracle.written(len, bytes);
        let synced = if written.is_ok() && self.rng.percent(40) {
            let volume = self.nodes[n].volume();
            let synced = volume.fsync(ino, Some(handle), false);
            if synced.is_ok() {
                let context = volume.context();
                self.oracle.synced(n, ino, len, &context);
            }
            synced
        } else {
            Ok(())
        };
        // Long ones are closed: nobody waits for those.
        if len < 60_000 && self.rng.percent(20) {
            self.nodes[n].open.push((ino, handle));
        } else {
            self.nodes[n].volume().release(ino, handle);
        }
        written.and(synced)
    }

    fn sync(&mut self, n: usize, dir: Ino, name: &[u8]) -> Result {
        let ino = self.find_file(n, dir, name)?;
        let volume = self.nodes[n].volume();
        volume.fsync(ino, None, false)?;
        let (len, context) = (volume.getattr(ino, None)?.size_bytes as usize, volume.context());
        self.oracle.synced(n, ino, len, &context);
        Ok(())
    }

    /// What the kernel then has in its cache, it is to hear of when it changes.
    fn look(&mut self, n: usize, dir: Ino, name: &[u8]) -> Result {
        match self.nodes[n].volume().lookup(&CALLER, dir, name) {
            Ok(attr) => {
                self.nodes[n].kernel.saw_name(dir, name, Some(attr.ino));
                if attr.kind == FileKind::File {
                    let (bytes, is_cached) = self.read_checked(n, attr.ino)?;
                    if is_cached && !self.nodes[n].has_open(attr.ino) {
                        self.nodes[n].kernel.saw_bytes(attr.ino, &bytes);
                    }
                }
                Ok(())
            }
            Err(VolumeError::NotFound) => {
                self.nodes[n].kernel.saw_name(dir, name, None);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Whatever can be seen can be read, and is what somebody wrote. Says whether the kernel may keep it.
    pub fn read_checked(&mut self, n: usize, ino: Ino) -> Result<(Vec<u8>, bool)> {
        let (bytes, is_cached) = self.nodes[n].read_file(ino)?;
        if !self.nodes[n].has_open(ino) {
            self.oracle.check_bytes(&bytes, &format!("node {n} at {} ms of {ino:?}", self.now_ms));
        }
        Ok((bytes, is_cached))
    }

    fn rename(&mut self, n: usize, dir: Ino) -> Result {
        let to = self.any_dir(n)?;
        let (name, new) = match self.rng.percent(25) {
            true => (self.rng.pick(&DIRS), self.rng.pick(&DIRS)),
            false => (self.rng.pick(&FILES), self.rng.pick(&FILES)),
        };
        let mode =
            self.rng.pick(&[RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]);
        self.calls(n);
        let volume = self.nodes[n].volume();
        let over = volume.lookup(&CALLER, to, new).map(|attr| attr.ino);
        volume.rename(dir, name, to, new, mode)?;
        if let (Ok(over), RenameMode::Replace) = (over, mode) {
            self.oracle.overwritten(n, over);
        }
        self.trace(|| format!("{n} renames {} to {}", name.escape_ascii(), new.escape_ascii()));
        Ok(())
    }

    fn unlink(&mut self, n: usize, dir: Ino, name: &[u8]) -> Result {
        let ino = self.find(n, dir, name)?;
        self.calls(n);
        self.nodes[n].volume().unlink(dir, name)?;
        self.oracle.overwritten(n, ino);
        self.trace(|| format!("{n} unlinks {}", name.escape_ascii()));
        Ok(())
    }
}
