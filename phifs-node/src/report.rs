//! What the daemon tells about itself and its volume: plain data, the same over the control socket and under `--json`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::show::Name;

/// Answer to `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_secs: u64,
    pub store: Name,
    /// The served mountpoint first, then further mounts of it.
    pub mounts: Vec<Name>,
    /// The branches that are mounted.
    #[serde(default)]
    pub branches: Vec<BranchMount>,
    #[serde(default)]
    pub cluster: Cluster,
    /// Present as long as the volume is on its way here, and can only be read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub arriving: Option<Arriving>,
    pub features: Features,
    /// How many FUSE requests of each kind the kernel has sent since the start.
    #[serde(default)]
    pub requests: BTreeMap<String, u64>,
    pub volume: VolumeStatus,
}

/// How it stands with the other machines, in short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub standing: Standing,
    /// This node included.
    pub members: u64,
    /// Of the others.
    pub connected: u64,
    /// How many operations the one lacks that lacks most, of those who are connected.
    pub behind: u64,
    /// Bytes of files in operations that not all members hold durably, as far as they have said.
    #[serde(default)]
    pub under_replicated_bytes: u64,
    /// Operations that the others know and this node has still to hear of.
    #[serde(default)]
    pub missing_operations: u64,
    /// Contents that are to be here and are being fetched.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to_come: Option<ToCome>,
    /// Why nothing new comes from members that there are connections to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub held_up: Option<String>,
    /// What was found that must never be: another state for the same operations.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub divergence: Option<String>,
}

/// How far a volume is on its way here, without the contents of its files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arriving {
    /// Of the volume.
    pub inodes: u64,
    /// Rows of its tables that are here, and all of them.
    pub rows: u64,
    pub rows_total: u64,
    /// How long it will take about until all are here, by how it has gone so far.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub left_secs: Option<u64>,
    /// Whether all are here, and the volume is being made of them.
    pub complete: bool,
    /// Of the machines that have it.
    pub connected: u64,
}

impl Arriving {
    /// For people.
    pub fn describe(&self) -> String {
        if self.complete || self.rows_total > 0 && self.rows >= self.rows_total {
            return format!("the metadata of {} inodes is here and being checked", self.inodes);
        }
        let percent = u128::from(self.rows) * 100 / u128::from(self.rows_total.max(1));
        let left = match self.left_secs {
            _ if self.connected == 0 => "it goes on when a machine that has it can be reached".to_owned(),
            Some(secs) => format!("about {} to go", crate::show::span(secs)),
            None => "too early to say how long the rest takes".to_owned(),
        };
        format!("{percent} % of the metadata of {} inodes is here, {left}", self.inodes)
    }
}

/// What has still to come, of the contents of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToCome {
    /// What a list of glyphs lists is counted when the list is here.
    pub glyphs: u64,
    /// The bytes of files that they are needed for.
    pub bytes: u64,
}

/// Whether this node is one of those that have the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// There are no others, as far as it knows.
    #[default]
    Alone,
    Member,
    /// It has left, or was removed.
    Former,
}

/// Answer to `leave`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// What this node was called.
    pub name: String,
    /// How many members have heard of it.
    pub heard: u64,
}

/// A node that has the volume, for `members`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub name: String,
    /// Its public key, in hexadecimal.
    pub key: String,
    pub role: String,
    pub zone: String,
    pub addresses: Vec<String>,
    pub since_millis: u64,
    pub this_node: bool,
    #[serde(flatten)]
    pub standing: MemberStanding,
}

/// How it stands with a member. What it has never said to this daemon is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStanding {
    pub connected: bool,
    /// How many operations it did not know that are known here, when it was heard of last. Of this node: that the others
    /// know.
    pub behind: Option<u64>,
    /// The bytes of files in operations that it has not said to hold durably.
    #[serde(default)]
    pub behind_bytes: Option<u64>,
    /// The age of the oldest operation that it did not know.
    #[serde(default)]
    pub behind_secs: Option<u64>,
    /// How long ago it was heard of.
    pub heard_secs: Option<u64>,
    /// What it runs, and how far its clock was ahead of the one here when it connected.
    #[serde(default)]
    pub version: Option<String>,
    #[serde(default)]
    pub clock_ahead_millis: Option<i64>,
    /// How many of its requests are being answered, and how long a packet takes there and back.
    #[serde(default)]
    pub answering: u64,
    #[serde(default)]
    pub round_trip_micros: Option<u64>,
    /// Why there is no connection, or nothing comes over it.
    pub trouble: Option<String>,
}

/// Answer to `token`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionToken {
    pub token: String,
}

/// Answer to `wait`: how many operations have still to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    pub behind: u64,
}

/// Answer to `invite`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    pub token: String,
    pub expires_millis: u64,
    /// Where the one who joins will look for this node.
    pub addresses: Vec<String>,
}

/// A branch that is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchMount {
    pub branch: String,
    /// As with those of the volume.
    pub mounts: Vec<Name>,
}

/// A branch, for `branch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    pub name: String,
    /// What the snapshot was called that it began as, and when that was taken.
    pub base: String,
    pub base_millis: u64,
    pub mounts: Vec<Name>,
}

/// What the mount got from the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    pub data_path: String,
    /// Why no faster one.
    #[serde(default)]
    pub data_path_reason: String,
    pub protocol: String,
    pub write_bytes_max: u32,
    pub read_ahead_bytes: u32,
    /// What was asked for by name, and whether the kernel has it.
    pub options: Vec<(String, bool)>,
}

impl Features {
    /// For people.
    pub fn describe_data_path(&self) -> String {
        format!("{}: {}", self.data_path, self.data_path_reason)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// The node's public key and its current author, in hexadecimal.
    pub node: String,
    pub author: String,
    /// Operations of this author so far.
    pub operations: u64,
    pub inodes: u64,
    pub open_files: u64,
    /// Files that are open for writing, or written and not yet published.
    pub unpublished_files: u64,
    /// Of these, files that are closed and wait for a publisher.
    #[serde(default)]
    pub queued_files: u64,
    /// Operations that are not in the log of operations yet, from which others get them.
    #[serde(default)]
    pub unsealed_operations: u64,
    /// Journal that is not durable yet.
    #[serde(default)]
    pub uncommitted_bytes: u64,
    /// Journal behind the last checkpoint: what a start after a crash would replay.
    pub journal_bytes: u64,
    /// Syncs of the journal since the start; one serves all who wait for it.
    #[serde(default)]
    pub journal_syncs: u64,
    /// Whether a checkpoint is due or being written.
    #[serde(default)]
    pub checkpoint_pending: bool,
    /// Why nothing more is accepted, if that is so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub read_only: Option<String>,
}

/// One operation of the volume, for `log`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Author and number.
    pub dot: String,
    pub millis: u64,
    /// As in "rename".
    pub what: String,
    /// Where it happened, as the path is now; absent when it has none any more.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub path: Option<Name>,
}

/// One version of a file, for `log PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileVersion {
    /// The operation that published it: author and number.
    pub dot: String,
    pub author: String,
    /// When it was published.
    pub millis: u64,
    /// The mtime that the file had.
    pub mtime_millis: u64,
    pub bytes: u64,
    /// How it came to be published: `close`, `open` (while the file stayed open) or `recovery`.
    pub closure: String,
    /// What became of a file that was in order before: `blank` (empty, or zeroes) or `torn` (of no valid format).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub defect: Option<String>,
    pub current: bool,
    /// Whether it is in `.phi/versions`. Others are in snapshots only.
    pub kept: bool,
    /// The snapshots that hold it, the oldest first.
    pub snapshots: Vec<HoldingSnapshot>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldingSnapshot {
    pub name: String,
    /// Absent as long as it is not sealed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<String>,
}

/// Answer to `df`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Sum of all file sizes.
    pub logical_bytes: u64,
    /// The filesystem below the store.
    pub disk_total_bytes: u64,
    pub disk_free_bytes: u64,
    /// What the store's own files take, by purpose.
    pub parts: Vec<UsagePart>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsagePart {
    pub what: String,
    pub bytes: u64,
    /// Why this space is used and how it gets free again.
    pub why: String,
}

/// Answer to `pin`: about all pinned paths together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    pub files: u64,
    /// What is here of them.
    pub bytes: u64,
    /// Files of which not all could be fetched.
    pub incomplete_files: u64,
}

/// Answer to `snapshot create`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    pub name: String,
    /// When.
    pub millis: u64,
}

/// A snapshot, for `snapshot`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    pub name: String,
    /// When it was taken.
    pub millis: u64,
    /// Names the state that it holds.
    pub root: String,
    pub labels: Vec<String>,
    /// Taken by the schedule.
    pub scheduled: bool,
    /// What was counted and signed; absent as long as that is still to be done.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub seal: Option<Seal>,
}

/// The fields of a sealed snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    pub id: String,
    pub parents: Vec<String>,
    /// Author and number: everything up to these is in it.
    pub context: Vec<(String, u64)>,
    /// The author's clock: milliseconds and a counter.
    pub theta: String,
    pub lag_micros: i64,
    pub logical_bytes: u64,
    pub unique_bytes: u64,
    pub new_bytes: u64,
    pub files: u64,
    pub directories: u64,
    pub depth: u32,
    pub mean_bytes: u64,
    pub largest_bytes: u64,
    pub glyphs: u64,
    pub conflicts: u64,
    /// From 0 to 1.
    pub coherence: String,
    pub author: String,
    pub node: String,
    pub volume: String,
}

/// One line of a comparison of two states.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `A` added, `M` modified, `D` deleted, `R` renamed.
    pub what: char,
    /// As in "file" or "directory".
    pub kind: String,
    pub path: Name,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub old_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new_bytes: Option<u64>,
    /// Whether the bytes are others, or only attributes.
    pub content: bool,
}

/// Answer to `snapshot restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// What was, or would be, changed.
    pub changes: Vec<Change>,
    /// The snapshot of how it was before; absent if nothing was changed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<String>,
}

/// A file, and what it means or may mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    pub path: Name,
    /// `content`: versions of one file. `name`: files of one name. `type`: a file with the name of a directory. Absent if
    /// there is nothing to decide.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub matter: Option<String>,
    /// The row of the table in the documentation that says what comes of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub row: Option<u8>,
    /// Of several versions of a file, in the answer to `why`: `merged` if a driver makes one of them, else why none does.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub merge: Option<String>,
    /// The first is shown, unless they are merged.
    pub choices: Vec<Choice>,
}

/// One of the things that a disputed name may mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    pub dot: String,
    pub author: String,
    pub millis: u64,
    /// As in "file" or "symlink".
    pub kind: String,
    pub bytes: u64,
    /// Whether its maker was promised to be the only one to make the file (O_EXCL).
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub exclusive: bool,
    /// Where a symlink leads.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<Name>,
    /// The terms of its score, in the order in which they are compared.
    pub score: Vec<Term>,
    /// The term that puts it before the next choice; absent for the last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ahead_by: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    pub name: String,
    pub value: u64,
    pub words: String,
}

/// What was decided about a name, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    pub path: Name,
    pub kept: Choice,
    /// The new names of the others.
    pub beside: Vec<Name>,
}

/// Answer to `merge`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merged {
    /// Operations that the target did not know; 0 if there was nothing to do.
    pub operations: u64,
    /// Names that mean something else now, and files and directories that look different.
    pub names: u64,
    pub inodes: u64,
    /// What would change; present only if it was only to be told.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub changes: Option<Vec<Change>>,
    /// What both sides had changed, and what comes of it.
    pub events: Vec<Event>,
    /// What there is to decide about since.
    pub conflicts: Vec<Conflict>,
    /// The snapshot that was made of two.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub snapshot: Option<String>,
}

/// Something that two sides had changed without knowing of each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it was merged; absent in the answer to `merge`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub millis: Option<u64>,
    /// As the table in the documentation calls it, and the row of that.
    pub what: String,
    pub row: u8,
    pub path: Name,
    /// The place that did not hold.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub other: Option<Name>,
}

/// A setting of the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingValue {
    pub name: String,
    pub value: String,
    /// Whether the volume says nothing, so that the configuration of this machine or else the default of phifs holds.
    pub is_default: bool,
    pub takes: String,
    pub about: String,
}

/// Answer to `snapshot prune`: each snapshot that was looked at, the latest last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    pub name: String,
    pub millis: u64,
    /// Why it is kept; nothing if it was, or would be, forgotten.
    pub kept_for: Vec<String>,
}

/// Answer to `snapshot export`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    pub name: String,
    pub id: String,
    /// What the reader must have; absent for a full export.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub since: Option<String>,
    pub glyphs: u64,
    /// The length of the export.
    pub bytes: u64,
    /// As much of it was there from a try that was interrupted.
    pub resumed_bytes: u64,
}

/// Answer to `snapshot import`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    pub name: String,
    pub id: String,
    /// It was known before; what was missing or damaged of it was stored again.
    pub was_here: bool,
    pub glyphs: u64,
    /// Those of them that were not stored here, and their plain length.
    pub new_glyphs: u64,
    pub new_bytes: u64,
}

/// Answer to `snapshot verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    pub name: String,
    pub id: String,
    /// The same for all trees that look the same; absent where damage keeps it from being told.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tree_root: Option<String>,
    #[serde(flatten)]
    pub checked: Checked,
}

/// Answer to `gc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    pub live_glyphs: u64,
    pub packs_removed: u64,
    pub packs_rewritten: u64,
    pub freed_bytes: u64,
    pub rewritten_bytes: u64,
}

/// Answer to `scrub` and `fsck`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    pub checked_glyphs: u64,
    pub checked_bytes: u64,
    pub problems: Vec<Problem>,
    /// Damaged places in packs that nothing needs. Nothing is lost with them.
    pub unused_damage: Vec<String>,
}

impl Checked {
    pub fn unrepaired(&self) -> usize {
        self.problems.iter().filter(|problem| !problem.repaired).count()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub what: String,
    /// The files and directories that it concerns.
    pub files: Vec<Affected>,
    pub repaired: bool,
    /// What helps, if it is not repaired.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remedy: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Affected {
    pub path: Name,
    /// The bytes that are lost, where some are: reading them fails, reading others does not.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub lost: Vec<LostBytes>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostBytes {
    pub offset_bytes: u64,
    pub len_bytes: u64,
}

/// Answer of a starting daemon once it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    pub pid: u32,
    pub mount: Name,
    pub store: Name,
    /// Absent in the foreground, where the log goes to standard error.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub log: Option<Name>,
    #[serde(default)]
    pub standing: Standing,
    /// Present if the volume can only be read for now.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub arriving: Option<Arriving>,
}
