//! Superseded versions of files, as long as they are kept.
//!
//! They are rows of the local table, outside the root that a snapshot names: `v`, inode, dot of the version -> the
//! version and what a file of it looks like. A row is written in the transaction that publishes the next version, and
//! goes with the inode. A file that never had a second version has none, and costs nothing.

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;

use crate::codec::{self, Encode, Reader};
use crate::content::Content;
use crate::id::{AuthorId, Dot, GlyphId, InodeId, S8Id};
use crate::namespace::derive::dot_of;
use crate::namespace::row::{self, Closure, Evidence, InodeRow, Mode, Owner, Version};
use crate::namespace::tables::{Rows, Table, Tables, malformed};
use crate::namespace::view::{self, Reached, Stat};
use crate::store::StoreError;
use crate::time::{Hlc, Timestamp, utc};
use crate::volume::{FileKind, Ino, Result, VolumeError};

use super::LocalVolume;
use super::files::inline_bytes;
use super::publication::Publication;
use super::state::{Draft, State, local_key};

/// The first byte of the keys.
pub const ABOUT: u8 = b'v';

const ROW_VERSION: u8 = 1;

/// How many of the versions that are kept may be such as were published while the file stayed open: a quarter. A
/// program that writes all day must not push out what people saved.
const OPEN_SHARE: usize = 4;

/// Which versions are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// So many of each file, beside the current one.
    pub versions: u32,
    /// For so long after they were replaced.
    pub age_max: Duration,
}

/// A version that can still be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptVersion {
    pub dot: Dot,
    /// When it was published.
    pub hlc: Hlc,
    /// When the next one was; nothing for the current one.
    pub replaced: Option<Timestamp>,
    /// Who may read it: as the file was until then.
    pub owner: Owner,
    pub mode: Mode,
    pub version: Version,
    /// The bytes of an inline content.
    pub inline: Bytes,
}

impl KeptVersion {
    /// As `.phi/versions` shows it: sorted by name, versions are sorted by time.
    pub fn name(&self) -> String {
        format!("{}Z-{}", utc(self.hlc.millis()).replace(' ', "T"), self.dot)
    }

    /// What was never written shows its birth, if that is asked for: a symlink as a file that says where it leads.
    pub fn of_birth<T: Tables>(rows: &T, id: InodeId, dot: Dot) -> Result<Option<Self>> {
        let row = rows.inode(id)?.ok_or(VolumeError::Stale)?;
        let Some(birth) = row.birth.latest().filter(|birth| birth.dot == dot && row.versions.is_empty()) else {
            return Ok(None);
        };
        let target = &birth.value.target;
        let Stat { owner, mode, mtime, .. } = Stat::of(&row);
        let content = match target.len() as u64 {
            0 => Content::Empty,
            len_bytes => Content::Inline { len_bytes, hash: GlyphId::of(target) },
        };
        let evidence = Evidence::default();
        let version = Version { content, mtime, closure: Closure::Close, evidence, bases: Vec::new() };
        let inline = Bytes::copy_from_slice(target);
        Ok(Some(Self { dot, hlc: birth.hlc, replaced: None, owner, mode, version, inline }))
    }

    fn encode(&self, replaced: Timestamp) -> Vec<u8> {
        let mut out = vec![ROW_VERSION];
        out.put_hlc(self.hlc);
        out.put_time(replaced);
        row::put_owner(&mut out, &self.owner);
        row::put_mode(&mut out, &self.mode);
        row::put_version(&mut out, &self.version);
        out.put_bytes(&self.inline);
        out
    }

    fn decode(dot: Dot, bytes: &[u8]) -> codec::Result<Self> {
        let mut reader = Reader::new(bytes);
        reader.format("a kept version", ROW_VERSION)?;
        Ok(Self {
            dot,
            hlc: reader.hlc()?,
            replaced: Some(reader.time()?),
            owner: row::get_owner(&mut reader)?,
            mode: row::get_mode(&mut reader)?,
            version: row::get_version(&mut reader)?,
            inline: Bytes::copy_from_slice(reader.bytes(reader.remaining())?),
        })
    }
}

/// The file and the version that a row of the local table is about, if it is about one.
pub fn decode_row(key: &[u8], value: &[u8]) -> Option<std::result::Result<(InodeId, KeptVersion), StoreError>> {
    let rest = key.strip_prefix(&[ABOUT])?;
    let decode = || {
        let (inode, version) = dots_of(rest)?;
        let kept = KeptVersion::decode(version, value).map_err(|e| malformed("kept version", rest, e))?;
        Ok((inode, kept))
    };
    Some(decode())
}

fn dots_of(rest: &[u8]) -> std::result::Result<(InodeId, Dot), StoreError> {
    let (inode, version) = rest.split_at_checked(Dot::LEN).unwrap_or((rest, &[]));
    Ok((InodeId(dot_of(inode)?), dot_of(version)?))
}

fn prefix(id: InodeId) -> Vec<u8> {
    local_key(ABOUT, &id.0.to_bytes())
}

fn key(id: InodeId, version: Dot) -> Vec<u8> {
    [&prefix(id)[..], &version.to_bytes()].concat()
}

/// All rows of a file.
pub(super) fn load<T: Tables>(rows: &T, id: InodeId) -> Result<Vec<KeptVersion>> {
    let mut kept = Vec::new();
    for (rest, value) in rows.with_prefix(Table::Local, &prefix(id))? {
        let dot = dot_of(&rest)?;
        kept.push(KeptVersion::decode(dot, &value).map_err(|e| malformed("kept version", &rest, e))?);
    }
    Ok(kept)
}

/// What a file is now, and was until now if somebody is about to replace it.
fn current<T: Tables>(rows: &T, id: InodeId, row: &InodeRow) -> Result<Vec<KeptVersion>> {
    let Stat { owner, mode, .. } = Stat::of(row);
    let kept = row.versions.entries().iter().map(|entry| {
        Ok(KeptVersion {
            dot: entry.dot,
            hlc: entry.hlc,
            replaced: None,
            owner,
            mode: mode.clone(),
            version: entry.value.clone(),
            inline: inline_bytes(rows, id, Some(entry.dot), &entry.value.content)?,
        })
    });
    kept.collect()
}

impl Retention {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_varint(u64::from(self.versions));
        out.put_varint(u64::try_from(self.age_max.as_millis()).unwrap_or(u64::MAX));
    }

    pub fn decode(reader: &mut Reader<'_>) -> codec::Result<Self> {
        Ok(Self { versions: reader.varint_u32()?, age_max: Duration::from_millis(reader.varint()?) })
    }

    /// Takes out what is to be kept no longer, and leaves the rest in the order of time.
    fn take_excess(&self, kept: &mut Vec<KeptVersion>, now: Timestamp) -> Vec<KeptVersion> {
        kept.sort_by_key(|version| (version.hlc, version.dot.author));
        let (mut all, mut open) = (0, 0);
        let (all_max, open_max) = (self.versions as usize, (self.versions as usize).div_ceil(OPEN_SHARE));
        let mut stays = vec![false; kept.len()];
        for (version, stays) in kept.iter().zip(&mut stays).rev() {
            let is_open = version.version.closure == Closure::IdleFlush;
            let replaced = version.replaced.unwrap_or(now);
            let age = Duration::from_millis(now.millis().saturating_sub(replaced.millis()));
            *stays = all < all_max && !(is_open && open >= open_max) && age <= self.age_max;
            all += usize::from(*stays);
            open += usize::from(*stays && is_open);
        }
        let mut stays = stays.into_iter();
        kept.extract_if(.., |_| stays.next() == Some(false)).collect()
    }
}

/// Adds to the draft of the next version of a file that those it replaces are kept.
pub fn keep_replaced<T: Tables>(
    rows: &T,
    draft: &mut Draft,
    id: InodeId,
    row: &InodeRow,
    retention: Retention,
) -> Result<()> {
    if row.versions.is_empty() || retention.versions == 0 {
        return Ok(());
    }
    let mut kept = load(rows, id)?;
    let replaced = draft.time;
    let new = current(rows, id, row)?;
    kept.extend(new.iter().cloned().map(|version| KeptVersion { replaced: Some(replaced), ..version }));
    let excess = retention.take_excess(&mut kept, replaced);
    for version in &excess {
        draft.local.push((key(id, version.dot), None));
    }
    for version in new.iter().filter(|new| !excess.iter().any(|excess| excess.dot == new.dot)) {
        draft.local.push((key(id, version.dot), Some(version.encode(replaced))));
    }
    Ok(())
}

/// Adds to the draft that decides for one of several files that what another one was is kept among its versions.
pub fn adopt<T: Tables>(
    rows: &T,
    draft: &mut Draft,
    id: InodeId,
    (other, row): (InodeId, &InodeRow),
    retention: Retention,
) -> Result<()> {
    if retention.versions == 0 {
        return Ok(());
    }
    let replaced = draft.time;
    let mut adopted = load(rows, other)?;
    adopted.extend(current(rows, other, row)?);
    for version in adopted {
        draft.local.push((key(id, version.dot), Some(version.encode(version.replaced.unwrap_or(replaced)))));
    }
    Ok(())
}

/// Reads what `keep_replaced` will.
pub fn read_ahead<T: Tables>(rows: &T, id: InodeId, row: &InodeRow) -> Result<()> {
    load(rows, id)?;
    current(rows, id, row)?;
    Ok(())
}

/// Adds to the draft that forgets an inode that its versions go as well.
pub fn forget<T: Tables>(rows: &T, draft: &mut Draft, id: InodeId, row: &InodeRow) -> Result<()> {
    // Only what replaced another version leaves one behind.
    if row.versions.entries().iter().all(|entry| entry.value.bases.is_empty()) {
        return Ok(());
    }
    for (rest, _) in rows.with_prefix(Table::Local, &prefix(id))? {
        draft.local.push((key(id, dot_of(&rest)?), None));
    }
    Ok(())
}

/// A version of a file, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileVersion {
    pub dot: Dot,
    pub author: AuthorId,
    pub published: Hlc,
    pub mtime: Timestamp,
    pub len_bytes: u64,
    pub closure: Closure,
    pub evidence: Evidence,
    pub is_current: bool,
    /// Whether `.phi/versions` has it. Others are in snapshots alone.
    pub is_kept: bool,
    /// The snapshots that hold it: names, and ids of those that are sealed. The oldest first.
    pub snapshots: Vec<(String, Option<S8Id>)>,
}

impl LocalVolume {
    pub(super) fn retention(&self) -> Retention {
        let settings = self.settings.read();
        Retention { versions: settings.versions_keep, age_max: settings.versions_max_age }
    }

    /// The versions of a file that can be read, the current one last.
    pub(super) fn kept_versions(&self, state: &State, id: InodeId) -> Result<Vec<KeptVersion>> {
        let row = state.inode(id)?.ok_or(VolumeError::Stale)?;
        let mut kept = load(state, id)?;
        self.retention().take_excess(&mut kept, self.env.now());
        kept.extend(current(state, id, &row)?);
        Ok(kept)
    }

    /// All versions of a file: those that are kept, and those that snapshots hold. The latest comes last.
    pub fn file_versions(&self, ino: Ino) -> Result<Vec<FileVersion>> {
        let id = {
            let state = self.state.read();
            let id = state.inode_id(ino)?;
            match state.inode(id)?.ok_or(VolumeError::NotFound)?.kind() {
                FileKind::File => id,
                FileKind::Directory => return Err(VolumeError::IsDirectory),
                _ => return Err(VolumeError::Invalid("not a regular file")),
            }
        };
        if let Some(user) = self.known(id).filter(|user| !user.cell.is_open()) {
            // What was just written counts.
            let _: Publication = self.publish(&user.cell, Closure::Close)?;
        }
        let describe = |dot: Dot, hlc: Hlc, version: &Version| FileVersion {
            dot,
            author: dot.author,
            published: hlc,
            mtime: version.mtime,
            len_bytes: version.content.len_bytes(),
            closure: version.closure,
            evidence: version.evidence,
            is_current: false,
            is_kept: false,
            snapshots: Vec::new(),
        };
        let kept = self.kept_versions(&self.state.read(), id)?;
        let mut versions: Vec<FileVersion> = kept
            .iter()
            .map(|kept| FileVersion {
                is_current: kept.replaced.is_none(),
                is_kept: true,
                ..describe(kept.dot, kept.hlc, &kept.version)
            })
            .collect();
        let snapshots = self.snapshots().map_err(|error| VolumeError::Internal(error.to_string()))?;
        for (name, snapshot) in snapshots {
            let Some(row) = self.frozen(&snapshot.cut).inode(id)? else { continue };
            let Some((dot, version)) = Stat::of(&row).version else { continue };
            let hlc = row.versions.get(dot).map_or_else(Hlc::default, |entry| entry.hlc);
            let at = versions.iter().position(|kept| kept.dot == dot).unwrap_or_else(|| {
                versions.push(describe(dot, hlc, &version));
                versions.len() - 1
            });
            versions[at].snapshots.push((name, snapshot.id));
        }
        versions.sort_by_key(|version| (version.published, version.dot.author));
        Ok(versions)
    }

    /// What is at a path from the root. Symlinks are not followed.
    pub fn inode_at(&self, path: &[u8]) -> Result<Ino> {
        let state = self.state.read();
        match view::follow(&*state, path)? {
            Reached::Child(child) => Ok(state.ino(child.inode())),
            Reached::Nothing => Err(VolumeError::NotFound),
            Reached::NotDirectory => Err(VolumeError::NotDirectory),
        }
    }

    /// Forgets the versions that are to be kept no longer, and those of files that are gone.
    pub(super) fn forget_old_versions(&self) -> Result<()> {
        let retention = self.retention();
        let mut next = vec![ABOUT];
        loop {
            let mut found = None;
            self.state.read().scan(Table::Local, &next, &mut |key, _| {
                found = key.strip_prefix(&[ABOUT]).map(<[u8]>::to_vec);
                ControlFlow::Break(())
            })?;
            let Some(rest) = found else { return Ok(()) };
            let (id, _) = dots_of(&rest)?;
            let excess = |state: &State| {
                let mut kept = load(state, id)?;
                let is_there = state.inode(id)?.is_some();
                Ok::<_, VolumeError>(if is_there { retention.take_excess(&mut kept, self.env.now()) } else { kept })
            };
            // Nobody is held up where there is nothing to do.
            let is_any = !excess(&self.state.read())?.is_empty();
            if is_any {
                let mut state = self.state.write();
                let changes = excess(&state)?.iter().map(|version| (key(id, version.dot), None)).collect();
                state.commit_local(changes, self.env.now(), &self.journal)?;
            }
            // Behind all rows of this file.
            next = prefix(id);
            next.extend([0xff; Dot::LEN + 1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(hlc: u64, closure: Closure) -> KeptVersion {
        KeptVersion {
            dot: Dot { author: AuthorId([1; 16]), n: hlc },
            hlc: Hlc::from_millis(hlc),
            replaced: Some(Timestamp::new(hlc as i64 + 1, 0)),
            owner: Owner { uid: 3, gid: 4 },
            mode: Mode { permissions: 0o640, acl: vec![1, 2] },
            version: Version {
                content: Content::Empty,
                mtime: Timestamp::new(-5, 6),
                closure,
                evidence: Evidence::default(),
                bases: Vec::new(),
            },
            inline: Bytes::from_static(b"abc"),
        }
    }

    #[test]
    fn rows_round_trip() {
        let kept = version(7, Closure::IdleFlush);
        assert_eq!(KeptVersion::decode(kept.dot, &kept.encode(kept.replaced.unwrap())), Ok(kept));
    }

    proptest! {
        #[test]
        fn hostile_rows_are_errors(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let dot = Dot { author: AuthorId([1; 16]), n: 1 };
            let _ = KeptVersion::decode(dot, &bytes);
            let _ = KeptVersion::decode(dot, &[&[ROW_VERSION][..], &bytes].concat());
            let _ = decode_row(&[&[ABOUT][..], &bytes].concat(), &bytes);
        }
    }

    /// Local rows, and how often somebody looked for one.
    struct LocalRows(Vec<Vec<u8>>, std::cell::Cell<usize>);

    impl Tables for LocalRows {
        fn get(&self, _: Table, _: &[u8]) -> std::result::Result<Option<Bytes>, StoreError> {
            panic!("there is nothing to get")
        }

        fn scan(
            &self,
            table: Table,
            from: &[u8],
            visit: &mut dyn FnMut(&[u8], &Bytes) -> ControlFlow<()>,
        ) -> std::result::Result<(), StoreError> {
            assert_eq!(table, Table::Local);
            self.1.set(self.1.get() + 1);
            let _ = self.0.iter().filter(|key| key[..] >= *from).try_for_each(|key| visit(key, &Bytes::new()));
            Ok(())
        }
    }

    #[test]
    fn only_a_file_that_had_a_second_version_has_any_to_forget() {
        let dot = |n| Dot { author: AuthorId([1; 16]), n };
        let (file, next) = (InodeId(dot(5)), InodeId(dot(6)));
        let rows = LocalRows(vec![key(file, dot(7)), key(file, dot(8)), key(next, dot(9))], Default::default());
        let draft = || Draft {
            dot: dot(20),
            hlc: Hlc(1),
            time: Timestamp::default(),
            effects: Vec::new(),
            local: Vec::new(),
            registry: Vec::new(),
        };
        let row = |bases| {
            let version = Version { bases, ..version(1, Closure::Close).version };
            let mut row = InodeRow::default();
            row.versions.insert(crate::namespace::register::Entry { dot: dot(10), hlc: Hlc(1), value: version });
            row
        };
        let mut first = draft();
        forget(&rows, &mut first, file, &row(Vec::new())).unwrap();
        assert!(first.local.is_empty() && rows.1.get() == 0, "no row is looked for");
        let mut second = draft();
        forget(&rows, &mut second, file, &row(vec![dot(8)])).unwrap();
        assert_eq!(second.local, [(key(file, dot(7)), None), (key(file, dot(8)), None)]);
    }

    #[test]
    fn number_share_and_age_are_bounded() {
        use Closure::{Close, IdleFlush};
        let retention = Retention { versions: 4, age_max: Duration::from_secs(50) };
        let mut kept: Vec<_> =
            [(9, IdleFlush), (1, Close), (8, IdleFlush), (7, Close), (6, Close), (5, Close), (4, Close)]
                .map(|(hlc, closure)| version(hlc, closure))
                .into();
        let numbers = |versions: &[KeptVersion]| versions.iter().map(|version| version.dot.n).collect::<Vec<_>>();
        let excess = retention.take_excess(&mut kept, Timestamp::new(10, 0));
        assert_eq!((numbers(&kept), numbers(&excess)), (vec![5, 6, 7, 9], vec![1, 4, 8]));
        let excess = retention.take_excess(&mut kept, Timestamp::new(58, 0));
        assert_eq!((numbers(&kept), numbers(&excess)), (vec![7, 9], vec![5, 6]));
    }
}
