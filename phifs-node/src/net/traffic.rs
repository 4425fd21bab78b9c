//! What went over the network since this process started, for the metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use phifs_core::ssep::Answer;
use phifs_core::store::GlyphKind;

/// What bytes were for.
#[derive(Clone, Copy)]
pub enum Path {
    /// Operations, as they are made.
    Push,
    /// States, to those for whom the log does not reach back.
    State,
    Glyphs,
    /// Everything else.
    Control,
}

/// Who or what was not let through.
#[derive(Clone, Copy)]
pub enum Refused {
    /// A node that is no member, and was not invited.
    Stranger,
    /// An invitation that is none, or not any more.
    Invitation,
    /// What makes no sense, or is longer than allowed.
    Malformed,
}

const PATHS: [(Path, &str); 4] =
    [(Path::Push, "push"), (Path::State, "state"), (Path::Glyphs, "glyphs"), (Path::Control, "control")];
const REFUSALS: [(Refused, &str); 3] =
    [(Refused::Stranger, "stranger"), (Refused::Invitation, "invitation"), (Refused::Malformed, "malformed")];

static SENT: [AtomicU64; PATHS.len()] = [const { AtomicU64::new(0) }; PATHS.len()];
static RECEIVED: [AtomicU64; PATHS.len()] = [const { AtomicU64::new(0) }; PATHS.len()];
static REFUSED: [AtomicU64; REFUSALS.len()] = [const { AtomicU64::new(0) }; REFUSALS.len()];

impl Path {
    pub fn of(answer: &Answer) -> Self {
        match answer {
            Answer::Groups(_) => Self::Push,
            Answer::Head(_) => Self::State,
            // A stored glyph begins with its kind.
            Answer::Glyph(Some(glyph)) if glyph.first() == Some(&GlyphKind::Node.tag()) => Self::State,
            Answer::Glyph(_) => Self::Glyphs,
            _ => Self::Control,
        }
    }
}

pub fn sent(path: Path, bytes: usize) {
    SENT[path as usize].fetch_add(bytes as u64, Ordering::Relaxed);
}

pub fn received(path: Path, bytes: usize) {
    RECEIVED[path as usize].fetch_add(bytes as u64, Ordering::Relaxed);
}

pub fn refused(what: Refused) {
    REFUSED[what as usize].fetch_add(1, Ordering::Relaxed);
}

/// For each path its name, and the bytes sent and received.
pub fn by_path() -> impl Iterator<Item = (&'static str, u64, u64)> {
    let load = |counters: &[AtomicU64], path: Path| counters[path as usize].load(Ordering::Relaxed);
    PATHS.iter().map(move |(path, name)| (*name, load(&SENT, *path), load(&RECEIVED, *path)))
}

pub fn refusals() -> impl Iterator<Item = (&'static str, u64)> {
    REFUSALS.iter().map(|(what, name)| (*name, REFUSED[*what as usize].load(Ordering::Relaxed)))
}
