//! Merge drivers: one content made of several that were written concurrently, where that is plainly right.
//!
//! A driver is a function of bytes: of the version that all sides began with, and of the sides in the order of clock
//! and author. It gives one content or none, and never an attempt: where the sides contradict each other it is left to
//! the coherence score which of them is shown. So all nodes that run the same version of a driver see the same, and
//! none needs to tell the others.
//!
//! | driver | for | merges |
//! | --- | --- | --- |
//! | `append` | `*.log`, `*.jsonl`; by attribute | lines that all sides only added at the end |
//! | `text` | by attribute | changes of lines that neither overlap nor touch |
//! | `json` | by attribute | changes of different keys of objects |
//!
//! What always holds:
//! - The order in which the sides are given plays no part.
//! - Sides that are equal count once, and one that is equal to the base not at all.
//! - Nothing is in the result that is in none of the sides: no marks of a conflict ever.
//!
//! Whoever changes what a driver makes of some bytes gives it another version, also if it is a library that changed:
//! the tests hold examples.

mod append;
mod json;
mod text;

use crate::content::validate::{self, Form};
use crate::id::AuthorId;
use crate::time::Hlc;

/// Text and JSON are merged up to this length.
pub const TEXT_MAX: usize = validate::WHOLE_MAX as usize;
/// Appended files are merged up to this length, which they have in memory.
pub const APPEND_MAX: usize = 16 << 20;

/// The attribute of a directory that says how to merge the files below it, as far as no directory nearer to them says
/// something else: `append`, `text`, `json` or `none`.
pub const ATTRIBUTE: &[u8] = b"user.phi.merge";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Driver {
    Append,
    Text,
    Json,
}

/// One of several concurrent contents, and when and by whom it was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Side<'a> {
    pub hlc: Hlc,
    pub author: AuthorId,
    pub bytes: &'a [u8],
}

impl Driver {
    pub const ALL: [Self; 3] = [Self::Append, Self::Text, Self::Json];

    pub fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Text => "text",
            Self::Json => "json",
        }
    }

    pub fn version(self) -> u32 {
        1
    }

    /// Whether it can do nothing without the version that all sides began with.
    pub fn needs_base(self) -> bool {
        self != Self::Append
    }

    /// The longest content that it takes and makes.
    pub fn len_max(self) -> usize {
        match self {
            Self::Append => APPEND_MAX,
            Self::Text | Self::Json => TEXT_MAX,
        }
    }

    /// The driver for a file of this name, below a directory whose attribute is this. Names that tell of appended
    /// lines count more than what is said of all files, unless that is `none`.
    pub fn of(name: &[u8], attribute: Option<&[u8]>) -> Option<Self> {
        let said = attribute.map(|value| Self::ALL.into_iter().find(|driver| driver.name().as_bytes() == value));
        let is_appended = [&b".log"[..], b".jsonl"].iter().any(|end| name.ends_with(end));
        match said {
            // What a newer program may understand is not guessed at.
            Some(None) => None,
            _ if is_appended => Some(Self::Append),
            Some(driver) => driver,
            None => None,
        }
    }
}

impl std::fmt::Display for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.name(), self.version())
    }
}

/// Merges contents that began as `base`, if that is known. Nothing if they contradict each other, or are none of the
/// driver's.
pub fn merge(driver: Driver, base: Option<&[u8]>, sides: &[Side<'_>]) -> Option<Vec<u8>> {
    let mut sides = sides.to_vec();
    sides.sort_unstable();
    let mut changed: Vec<&[u8]> = Vec::with_capacity(sides.len());
    for side in &sides {
        if Some(side.bytes) != base && !changed.contains(&side.bytes) {
            changed.push(side.bytes);
        }
    }
    match changed[..] {
        [] => return base.map(<[u8]>::to_vec),
        [only] => return Some(only.to_vec()),
        _ => {}
    }
    let Some(base) = base else {
        let is_short = changed.iter().all(|side| side.len() <= driver.len_max());
        let merged = if driver.needs_base() || !is_short { None } else { append::merge_without_base(&changed) };
        return merged.filter(|merged| merged.len() <= driver.len_max());
    };
    if base.len() > driver.len_max() || changed.iter().any(|side| side.len() > driver.len_max()) {
        return None;
    }
    let merged = match driver {
        Driver::Append => append::merge(base, &changed)?,
        Driver::Text => text::merge(texts(base)?, &all_texts(&changed)?)?.into_bytes(),
        Driver::Json => json::merge(texts(base)?, &all_texts(&changed)?)?.into_bytes(),
    };
    let is_good = match driver {
        Driver::Append => true,
        // A merge of lines may be no JSON, though all sides are.
        Driver::Text | Driver::Json => is_like(&merged, &changed),
    };
    (is_good && merged.len() <= driver.len_max()).then_some(merged)
}

fn texts(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

fn all_texts<'a>(sides: &[&'a [u8]]) -> Option<Vec<&'a str>> {
    sides.iter().map(|side| texts(side)).collect()
}

/// Whether all of these are whole, and the merged bytes are what all sides are.
fn is_like(merged: &[u8], sides: &[&[u8]]) -> bool {
    let verdict = validate::validate_bytes(merged);
    let verdicts = sides.iter().map(|side| validate::validate_bytes(side));
    let is_json = verdicts.clone().all(|side| side.form == Form::Json);
    verdict.passes && verdicts.clone().all(|side| side.passes) && (!is_json || verdict.form == Form::Json)
}

/// The drivers that a volume uses, and their versions. They hold for all nodes: one that has not got a driver of this
/// version does without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned(Vec<(String, u32)>);

impl Default for Pinned {
    fn default() -> Self {
        Self(Driver::ALL.map(|driver| (driver.name().to_owned(), driver.version())).to_vec())
    }
}

impl Pinned {
    /// Whether the volume uses a driver that this program has.
    pub fn runs(&self, driver: Driver) -> bool {
        self.0.iter().any(|(name, version)| name == driver.name() && *version == driver.version())
    }

    /// Those that this program has not got.
    pub fn unknown(&self) -> impl Iterator<Item = String> + '_ {
        let is_known = |pinned: &&(String, u32)| {
            Driver::ALL.iter().any(|driver| driver.name() == pinned.0 && driver.version() == pinned.1)
        };
        self.0.iter().filter(move |pinned| !is_known(pinned)).map(|(name, version)| format!("{name}/{version}"))
    }
}

impl std::fmt::Display for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (n, (name, version)) in self.0.iter().enumerate() {
            write!(f, "{}{name}/{version}", if n > 0 { " " } else { "" })?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Pinned {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(Vec::new()));
        }
        let mut pinned: Vec<(String, u32)> = Vec::new();
        for word in text.split_whitespace() {
            let (name, version) = word.split_once('/').ok_or_else(|| format!("{word:?} names no version"))?;
            let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase());
            let version = version.parse().ok().filter(|version| *version > 0 && is_name);
            let version = version.ok_or_else(|| format!("{word:?} is no driver with a version"))?;
            if pinned.iter().any(|(taken, _)| taken == name) {
                return Err(format!("{name:?} is there twice"));
            }
            pinned.push((name.to_owned(), version));
        }
        if pinned.is_empty() { Err("no driver is named".to_owned()) } else { Ok(Self(pinned)) }
    }
}

#[cfg(test)]
mod tests;
