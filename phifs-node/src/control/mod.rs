//! How the `phifs` command talks to the daemon: JSON lines over STORE/control.sock.
//!
//! ```text
//! -> {"phifs":1,"request":{"kind":"gc"}}
//! <- {"phifs":1,"reply":{"progress":{"doing":"marking","done":3,"total":10}}}     any number of these
//! <- {"phifs":1,"reply":{"done":{..}}}                                            or {"failed":{..}}, then the end
//! ```
//!
//! A request that names no file but needs one comes with its descriptor (SCM_RIGHTS), opened by the user who asks.
//!
//! One connection carries one request. Every line begins with the version; a line of another version is refused before
//! anything else in it is looked at. The socket belongs to the store's owner, and the peer's user id is checked as well.

mod answer;
mod client;
mod descriptor;
mod server;

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::show::Name;

pub use answer::{read_answer, write_progress, write_result};
pub use client::Client;
pub use descriptor::Handed;
pub use server::{Handler, Server};

pub const VERSION: u32 = 1;

/// What can be asked of a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Answered with `report::Status`.
    Status,
    /// Answered with a list of `report::Operation`, the latest last.
    Log { count: u32 },
    /// What merges came across. Answered with a list of `report::Event`, the latest last.
    Events { count: u32 },
    /// Answered with a list of `report::FileVersion`, the latest last. `inode`: what the path leads to, for the one who
    /// asks; if that is none of this volume, the path is one from its root.
    Versions { path: Name, inode: Option<InodeNumber> },
    /// Answered with `report::Usage`.
    Usage,
    /// Answered with `report::Collected`.
    Gc,
    /// Answered with `report::Checked`.
    Scrub,
    /// Answered with `report::Checked`.
    Fsck { rebuild_index: bool, repair: bool },
    /// Takes a snapshot. Answered with `report::Taken`.
    SnapshotCreate {
        name: String,
        labels: Vec<String>,
        /// Of this branch, and else of the volume.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        branch: Option<String>,
    },
    /// Makes a branch of a snapshot. Answered with `report::Branch`.
    SnapshotClone { name: String, branch: String },
    /// Answered with a list of `report::Branch`, by name.
    BranchList,
    /// Mounts a branch on an absolute path. Answered with `report::BranchMount`.
    BranchMount { branch: String, dir: Name },
    /// Forgets a branch that is not mounted. Answered with null.
    BranchDelete { branch: String },
    /// Answered with a list of `report::Snapshot`, the latest last.
    SnapshotList,
    /// Answered with `report::Snapshot`, counted and signed if it was not yet.
    SnapshotShow { name: String },
    /// Forgets all of these, or none. Answered with their names.
    SnapshotDelete { names: Vec<String> },
    /// Compares a snapshot with another, or with the volume. Answered with a list of `report::Change`.
    SnapshotDiff { from: String, to: Option<String> },
    /// Puts back what a snapshot holds, at and below a path of the volume. Answered with `report::Restored`.
    SnapshotRestore { name: String, path: Option<Name>, dry_run: bool },
    /// What there is to decide about at a path of the volume and below. Answered with a list of `report::Conflict`.
    Conflicts { path: Name },
    /// What the file at a path of the volume means, or may mean. Answered with `report::Conflict`.
    Why { path: Name },
    /// Decides. Answered with a list of `report::Resolution`.
    Resolve { path: Name, how: Decision, recursive: bool, dry_run: bool },
    /// Keeps what is at a path of the volume on this machine. Answered with `report::Pin`, when what is elsewhere was fetched.
    Pin { path: Name },
    /// Answered with a list of paths.
    PinList,
    /// Answered with null.
    PinRemove { path: Name },
    /// Forgets the snapshots that no rule keeps: of all, of those with a label, of those taken by the schedule. Answered
    /// with a list of `report::Pruned`.
    SnapshotPrune { rules: String, label: Option<String>, scheduled: bool, dry_run: bool },
    /// Writes a snapshot, or what it has beyond `since`, to the descriptor that comes along; `resume` goes on with what
    /// is in that file. Answered with `report::Exported`.
    SnapshotExport { name: String, since: Option<String>, resume: bool },
    /// Takes a snapshot from the descriptor that comes along. `trust` is the beginning of the key of a node that is known
    /// from now on, if it has signed. Answered with `report::Imported`.
    SnapshotImport { name: Option<String>, trust: Option<String> },
    /// Merges one side into another; if one of them is a file, its descriptor comes along. `trust` as for an import, `name`
    /// for the snapshot that is made of two. Answered with `report::Merged`.
    Merge {
        source: Side,
        target: Side,
        dry_run: bool,
        unrelated: bool,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        trust: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        name: Option<String>,
    },
    /// Reads everything that a snapshot names. Answered with `report::Verified`.
    SnapshotVerify { name: String },
    /// Answered with a list of `report::SettingValue`.
    VolumeGet { name: Option<String> },
    /// Answered with a list of `report::SettingValue`.
    VolumeSet { name: String, value: Option<String> },
    /// Answered with a list of `report::Member`, by key.
    Members,
    /// The member with this name, or with a key that begins so. Answered with `report::Member`.
    Member { member: String },
    /// Removes the member with this name, or with a key that begins so. Answered with `report::Member`.
    MemberRemove { member: String },
    /// Sees that the others have everything, and is no member any more; `force`: whether they have it or not. Answered with
    /// `report::Left`.
    Leave { force: bool },
    /// A word for what is here now. Answered with `report::SessionToken`.
    Token,
    /// Waits until all of that is here. Answered with `report::Reached`.
    Wait { token: String, timeout_ms: u64 },
    /// Makes an invitation; the node listens for others from now on. Answered with `report::Invitation`.
    Invite { role: String, zone: String, expires_secs: u64 },
    /// Unmounts and stops. Answered with null when nothing is left to do but to end.
    Down { force: bool },
}

/// How to decide about a disputed name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// The choice with this number.
    Pick(usize),
    KeepBoth,
    Newest,
    Coherent,
}

/// What is merged, or merged into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    Live,
    Branch(String),
    Snapshot(String),
    /// An export.
    File,
}

/// A file, as stat(2) tells it from all others on the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InodeNumber {
    /// `major:minor`
    pub device: String,
    pub number: u64,
}

impl Request {
    /// Whether the answer may take long because of the work, rather than because the daemon hangs.
    pub fn is_long(&self) -> bool {
        match self {
            Self::Status
            | Self::Log { .. }
            | Self::Events { .. }
            | Self::Usage
            | Self::SnapshotList
            | Self::SnapshotDelete { .. } => false,
            Self::Token | Self::Wait { .. } => true,
            Self::Gc | Self::Scrub | Self::Fsck { .. } | Self::Down { .. } | Self::Leave { .. } => true,
            Self::BranchList
            | Self::Why { .. }
            | Self::Members
            | Self::Member { .. }
            | Self::MemberRemove { .. }
            | Self::Invite { .. } => false,
            Self::Conflicts { .. } | Self::Resolve { .. } | Self::Pin { .. } => true,
            Self::PinList | Self::PinRemove { .. } => false,
            Self::SnapshotClone { .. } | Self::BranchMount { .. } | Self::BranchDelete { .. } => true,
            Self::SnapshotExport { .. } | Self::SnapshotImport { .. } | Self::SnapshotVerify { .. } => true,
            Self::SnapshotDiff { .. } | Self::SnapshotRestore { .. } | Self::Merge { .. } => true,
            Self::SnapshotPrune { .. } | Self::VolumeGet { .. } | Self::VolumeSet { .. } => false,
            Self::SnapshotCreate { .. } | Self::SnapshotShow { .. } | Self::Versions { .. } => true,
        }
    }
}

/// How far long work has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// As in "`doing` 3 of 10 `unit`".
    pub doing: String,
    pub done: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub total: Option<u64>,
    /// What is counted; empty when nothing is.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub unit: String,
}

impl Progress {
    /// A step that is not counted.
    pub fn step(doing: impl Into<String>) -> Self {
        Self { doing: doing.into(), done: 0, total: None, unit: String::new() }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Reply {
    Progress(Progress),
    Done(serde_json::Value),
    Failed(crate::failure::Failure),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum LineError {
    #[error("the line is not a message: {0}")]
    Malformed(String),
    #[error("the message is in version {0} of the control protocol; this program knows version {VERSION}")]
    Version(u32),
}

/// One line, with the line end. `body` names what it carries.
fn encode(body: &str, value: &impl Serialize) -> Vec<u8> {
    let value = serde_json::to_string(value).expect("messages are plain data with text keys");
    format!("{{\"phifs\":{VERSION},\"{body}\":{value}}}\n").into_bytes()
}

fn decode<T: DeserializeOwned>(body: &str, line: &[u8]) -> Result<T, LineError> {
    #[derive(Deserialize)]
    struct Version {
        phifs: u32,
    }
    let malformed = |error: serde_json::Error| LineError::Malformed(error.to_string());
    let Version { phifs } = serde_json::from_slice(line).map_err(malformed)?;
    if phifs != VERSION {
        return Err(LineError::Version(phifs));
    }
    let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(line).map_err(malformed)?;
    let value = fields.remove(body).ok_or_else(|| LineError::Malformed(format!("there is no {body:?} in it")))?;
    serde_json::from_value(value).map_err(malformed)
}

/// Calls `act` with a path of `socket` that fits into a socket address (108 bytes), however deep the store lies.
fn with_short_path<T>(socket: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsRawFd as _;
    if socket.as_os_str().len() < 100 {
        return act(socket);
    }
    let (Some(folder), Some(name)) = (socket.parent(), socket.file_name()) else { return act(socket) };
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    act(&Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_documented_form() {
        let line = encode("request", &Request::Log { count: 5 });
        assert_eq!(line, b"{\"phifs\":1,\"request\":{\"kind\":\"log\",\"count\":5}}\n");
        assert_eq!(decode::<Request>("request", &line), Ok(Request::Log { count: 5 }));
    }

    #[test]
    fn other_versions_and_garbage_are_refused() {
        let newer = br#"{"phifs":2,"request":{"kind":"self-destruct"}}"#;
        assert_eq!(decode::<Request>("request", newer), Err(LineError::Version(2)));
        let deep = [b"{\"phifs\":1,\"request\":".to_vec(), vec![b'['; 5000]].concat();
        let lines: [&[u8]; 7] =
            [b"", b"\n", b"\xff\xfe", b"[]", br#"{"phifs":-1}"#, br#"{"phifs":1,"request":{"kind":"x"}}"#, &deep];
        for line in lines {
            assert!(matches!(decode::<Request>("request", line), Err(LineError::Malformed(_))), "{line:?}");
        }
        let surplus = br#"{"phifs":1,"request":{"kind":"down","force":true,"really":1}}"#;
        assert!(decode::<Request>("request", surplus).is_err());
    }
}
