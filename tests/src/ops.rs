//! Random sequences of system calls, carried out on two directories and compared call by call.
//!
//! A sequence is plain data, made from a seed, so that it can be run again, on fresh directories, and made shorter
//! while it still shows a difference. Results, errnos and the resulting trees (names, kinds, modes, owners, link
//! counts, sizes, contents, targets, extended attributes) must be equal; inode numbers, times not set by the sequence,
//! block counts, directory sizes and the grain of holes may differ.

mod generate;
mod side;

use std::path::Path;
use std::time::{Duration, Instant};

pub use generate::generate;
use side::Side;

/// A path below the directory under test; any bytes.
#[derive(Clone)]
pub struct Name(pub Vec<u8>);

impl std::ops::Deref for Name {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "\"{}\"", self.0.escape_ascii())
    }
}

/// One call, made as one of several users.
#[derive(Clone, Debug)]
pub struct Call {
    pub uid: u32,
    pub op: Op,
}

/// The calls. `slot` names one of a few open files; raw numbers are those of the system call.
#[derive(Clone, Debug)]
pub enum Op {
    Mkdir(Name, u32),
    Rmdir(Name),
    Open { slot: usize, path: Name, flags: u32, mode: u32 },
    Close(usize),
    Pwrite { slot: usize, offset: u64, len: usize, byte: u8 },
    Write { slot: usize, len: usize, byte: u8 },
    Pread { slot: usize, offset: u64, len: usize },
    Ftruncate(usize, u64),
    Fallocate { slot: usize, mode: u32, offset: u64, len: u64 },
    CopyRange { from: usize, from_offset: u64, to: usize, to_offset: u64, len: usize },
    SeekData(usize, u64),
    SeekHole(usize, u64),
    Fsync(usize),
    Fstat(usize),
    Unlink(Name),
    Link(Name, Name),
    Symlink { target: Name, path: Name },
    Readlink(Name),
    Rename { from: Name, to: Name, flags: u32 },
    Mknod { path: Name, kind: u32, mode: u32, device: u64 },
    Chmod(Name, u32),
    Chown { path: Name, uid: Option<u32>, gid: Option<u32>, follow: bool },
    Utimens { path: Name, atime: (i64, i64), mtime: (i64, i64) },
    SetXattr { path: Name, name: String, value: Vec<u8>, flags: u32 },
    GetXattr(Name, String),
    ListXattr(Name),
    RemoveXattr(Name, String),
    Access(Name, u32),
    Stat(Name),
    Lstat(Name),
    List(Name),
    Umask(u32),
}

/// How often the whole trees are compared, beside at the end.
const CALLS_PER_COMPARISON: usize = 40;

/// Where two directories first differ under a sequence.
#[derive(Debug)]
pub struct Divergence {
    /// The call after which it showed.
    pub at: usize,
    pub what: String,
}

/// Runs a sequence in a fresh directory below each of the two; the first difference, if there is one.
///
/// Must run as root, in a thread of its own: it changes the thread's users and file mode mask.
#[track_caller]
pub fn compare(left: &Path, right: &Path, calls: &[Call]) -> Option<Divergence> {
    let (left, right) = (left.to_owned(), right.to_owned());
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            let (mut left, mut right) = (Side::new(&left), Side::new(&right));
            for (at, call) in calls.iter().enumerate() {
                let (on_left, on_right) = (left.call(call), right.call(call));
                if on_left != on_right {
                    return Some(Divergence { at, what: format!("reference {on_left:?}\nhere      {on_right:?}") });
                }
                if (at + 1) % CALLS_PER_COMPARISON == 0 || at + 1 == calls.len() {
                    let (tree_left, tree_right) = (left.tree(), right.tree());
                    if tree_left != tree_right {
                        let lost = tree_left.iter().filter(|line| !tree_right.contains(line));
                        let extra = tree_right.iter().filter(|line| !tree_left.contains(line));
                        let lines = lost.map(|line| format!("reference {line}\n"));
                        let lines = lines.chain(extra.map(|line| format!("here      {line}\n")));
                        return Some(Divergence { at, what: lines.collect() });
                    }
                }
            }
            None
        });
        run.join().expect("a sequence of calls")
    })
}

/// Leaves calls out for as long as the rest still shows a difference, for a limited time.
pub fn shorten(left: &Path, right: &Path, mut calls: Vec<Call>, budget: Duration) -> Vec<Call> {
    let deadline = Instant::now() + budget;
    let mut piece = calls.len().div_ceil(2);
    while piece > 0 {
        let mut from = 0;
        while from < calls.len() {
            if Instant::now() > deadline {
                return calls;
            }
            let mut fewer = calls.clone();
            fewer.drain(from..(from + piece).min(calls.len()));
            match compare(left, right, &fewer) {
                Some(divergence) => {
                    fewer.truncate(divergence.at + 1);
                    calls = fewer;
                }
                None => from += piece,
            }
        }
        piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
    }
    calls
}
