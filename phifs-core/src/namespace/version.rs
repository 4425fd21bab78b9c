//! One published state of a file's bytes, with what the coherence score goes by, and its canonical bytes.
//!
//! What an author found about the bytes is part of the record, so that every node scores alike without reading them.
//! It takes the spare bits of the closure class, and a varint more where it is out of the ordinary:
//!
//! | bits | what |
//! | --- | --- |
//! | 0-1 | closure |
//! | 2-4 | form |
//! | 5-6 | validity: 0 opaque, 1 passes, 2 fails |
//! | 7 | a varint follows: `sessions - 1` above bit 4, lag in bits 1-3, collapsed in bit 0 |

use crate::codec::{DecodeError, Encode, Reader, Result};
use crate::content::Content;
use crate::content::validate::{Form, Verdict};
use crate::id::Dot;
use crate::time::{Hlc, Timestamp};

use super::register::Register;

/// How a version came to be published; larger is better (the K term of the coherence score).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closure {
    CrashRecovered = 0,
    IdleFlush = 1,
    Close = 2,
    SyncAndClose = 3,
}

/// Whether the bytes are what they seem to be; larger is better (the V term).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Validity {
    /// The file was well-formed once and is not any more.
    Fails = 0,
    /// Nothing tells, and nothing ever told.
    #[default]
    Opaque = 1,
    Passes = 2,
}

/// What its author found about a version when it was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The format that the first bytes promise.
    pub form: Form,
    pub validity: Validity,
    /// There is nothing left but zeroes, or nothing at all, of a file that had more.
    pub collapsed: bool,
    /// In how many sessions the file came about, at most one for each minute of the clock.
    pub sessions: u32,
    /// How far behind the others the author was: see [`LAG_MAX`]. A node alone is never behind.
    pub lag: u8,
}

/// The class of an author who has not heard of the others for hours.
pub const LAG_MAX: u8 = 7;

impl Default for Evidence {
    fn default() -> Self {
        Self { form: Form::default(), validity: Validity::default(), collapsed: false, sessions: 1, lag: 0 }
    }
}

/// One published state of a file's bytes. Inline bytes lie in the contents table under the version's dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub content: Content,
    pub mtime: Timestamp,
    pub closure: Closure,
    pub evidence: Evidence,
    /// The versions that its author saw and replaced.
    pub bases: Vec<Dot>,
}

impl Evidence {
    /// What there is to say of bytes that replace these versions at `now`. Without a verdict, as much as before.
    /// `collapsed`: whether nothing is left of bases that had more.
    pub fn after(bases: &Register<Version>, now: Hlc, verdict: Option<Verdict>, collapsed: bool) -> Self {
        let before = bases.latest().map_or_else(Self::default, |base| base.value.evidence);
        let sessions = sessions_after(bases, now);
        let Some(verdict) = verdict else { return Self { sessions, lag: 0, ..before } };
        let passed = bases.entries().iter().any(|base| base.value.evidence.validity != Validity::Opaque);
        let validity = match verdict {
            Verdict { passes: true, .. } => Validity::Passes,
            _ if passed => Validity::Fails,
            _ => Validity::Opaque,
        };
        Self { form: verdict.form, validity, collapsed, sessions, lag: 0 }
    }

    /// What there is to say of the same bytes where they replace these versions at `now`.
    pub fn again(self, bases: &Register<Version>, now: Hlc) -> Self {
        Self { sessions: sessions_after(bases, now), lag: 0, ..self }
    }
}

/// A session counts with the first version that it publishes, unless that is in the same minute as the one before.
fn sessions_after(bases: &Register<Version>, now: Hlc) -> u32 {
    let minute = |hlc: Hlc| hlc.millis() / 60_000;
    let Some(latest) = bases.latest() else { return Evidence::default().sessions };
    let before = bases.entries().iter().map(|base| base.value.evidence.sessions).max().unwrap_or(0);
    // What was published while the file stayed open is the same session still.
    let counts = latest.value.closure != Closure::IdleFlush && minute(now) > minute(latest.hlc);
    before.saturating_add(u32::from(counts))
}

const FORM_SHIFT: u8 = 2;
const VALIDITY_SHIFT: u8 = 5;
const EXTENDED: u8 = 0x80;

pub(crate) fn put_version(out: &mut Vec<u8>, version: &Version) {
    version.content.encode(out);
    out.put_time(version.mtime);
    let Evidence { form, validity, collapsed, sessions, lag } = version.evidence;
    assert!(sessions > 0 && lag <= LAG_MAX, "only such evidence is ever made");
    let validity = match validity {
        Validity::Opaque => 0,
        Validity::Passes => 1,
        Validity::Fails => 2,
    };
    let rest = u64::from(sessions - 1) << 4 | u64::from(lag) << 1 | u64::from(collapsed);
    let extended = if rest > 0 { EXTENDED } else { 0 };
    out.put_u8(version.closure as u8 | (form as u8) << FORM_SHIFT | validity << VALIDITY_SHIFT | extended);
    if rest > 0 {
        out.put_varint(rest);
    }
    out.put_varint(version.bases.len() as u64);
    version.bases.iter().for_each(|base| out.put_dot(*base));
}

pub(crate) fn get_version(reader: &mut Reader<'_>) -> Result<Version> {
    let content = Content::decode(reader)?;
    let mtime = reader.time()?;
    let bits = reader.u8()?;
    let closure = match bits & 3 {
        0 => Closure::CrashRecovered,
        1 => Closure::IdleFlush,
        2 => Closure::Close,
        _ => Closure::SyncAndClose,
    };
    let form = bits >> FORM_SHIFT & 7;
    let form = Form::from_number(form)
        .ok_or(DecodeError::Unknown { what: "the form of a version", value: u64::from(form) })?;
    let validity = match bits >> VALIDITY_SHIFT & 3 {
        0 => Validity::Opaque,
        1 if form != Form::Opaque => Validity::Passes,
        1 => return Err(DecodeError::NotCanonical("the validity of a version")),
        2 => Validity::Fails,
        value => return Err(DecodeError::Unknown { what: "the validity of a version", value: u64::from(value) }),
    };
    let mut rest = 0;
    if bits & EXTENDED != 0 {
        rest = reader.varint()?;
        if rest == 0 {
            return Err(DecodeError::NotCanonical("the evidence of a version"));
        }
    }
    let sessions = u32::try_from(rest >> 4).ok().and_then(|sessions| sessions.checked_add(1));
    let sessions = sessions.ok_or(DecodeError::NotCanonical("the sessions of a version"))?;
    let evidence = Evidence { form, validity, collapsed: rest & 1 != 0, sessions, lag: (rest >> 1 & 7) as u8 };
    let count = reader.count()?;
    let bases = (0..count).map(|_| reader.dot()).collect::<Result<Vec<_>>>()?;
    Ok(Version { content, mtime, closure, evidence, bases })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::AuthorId;
    use crate::namespace::register::Entry;

    const PLAIN: Verdict = Verdict { form: Form::Opaque, passes: false };

    fn version(closure: Closure, evidence: Evidence) -> Version {
        Version { content: Content::Empty, mtime: Timestamp::default(), closure, evidence, bases: Vec::new() }
    }

    /// Versions of several authors, published at these seconds.
    fn bases(versions: &[(u64, Version)]) -> Register<Version> {
        let mut register = Register::default();
        for (n, (secs, version)) in versions.iter().enumerate() {
            let dot = Dot { author: AuthorId([n as u8; 16]), n: 1 };
            register.insert(Entry { dot, hlc: Hlc::from_millis(secs * 1000), value: version.clone() });
        }
        register
    }

    fn after(versions: &[(u64, Version)], secs: u64, verdict: Verdict) -> Evidence {
        Evidence::after(&bases(versions), Hlc::from_millis(secs * 1000), Some(verdict), false)
    }

    #[test]
    fn the_bytes_of_a_plain_version_are_what_they_were_before_there_was_evidence() {
        let mut bytes = Vec::new();
        put_version(&mut bytes, &version(Closure::Close, Evidence::default()));
        assert_eq!(bytes, [1, 0, 0, 0, Closure::Close as u8, 0]);
        assert_eq!(get_version(&mut Reader::new(&bytes)), Ok(version(Closure::Close, Evidence::default())));
    }

    #[test]
    fn sessions_count_once_a_minute_and_saturate() {
        let closed = |sessions| version(Closure::Close, Evidence { sessions, ..Evidence::default() });
        let open = |sessions| version(Closure::IdleFlush, Evidence { sessions, ..Evidence::default() });
        assert_eq!(after(&[], 30, PLAIN).sessions, 1);
        assert_eq!(after(&[(30, closed(4))], 59, PLAIN).sessions, 4);
        assert_eq!(after(&[(30, closed(4))], 60, PLAIN).sessions, 5);
        assert_eq!(after(&[(30, open(4))], 600, PLAIN).sessions, 4, "it is the session that began before");
        assert_eq!(after(&[(30, closed(9)), (50, closed(2))], 60, PLAIN).sessions, 10);
        assert_eq!(after(&[(30, closed(u32::MAX))], 600, PLAIN).sessions, u32::MAX);
    }

    #[test]
    fn what_was_well_formed_once_fails_until_it_is_again() {
        let of = |validity| version(Closure::Close, Evidence { validity, ..Evidence::default() });
        let torn = Verdict { form: Form::Png, passes: false };
        let whole = Verdict { form: Form::Png, passes: true };
        for (base, verdict, expected) in [
            (Validity::Opaque, torn, Validity::Opaque),
            (Validity::Passes, torn, Validity::Fails),
            (Validity::Passes, PLAIN, Validity::Fails),
            (Validity::Fails, PLAIN, Validity::Fails),
            (Validity::Fails, whole, Validity::Passes),
            (Validity::Opaque, whole, Validity::Passes),
        ] {
            assert_eq!(after(&[(0, of(base))], 0, verdict).validity, expected, "{base:?} {verdict:?}");
        }
        assert_eq!(after(&[], 0, torn).validity, Validity::Opaque);
    }

    #[test]
    fn without_a_look_at_the_bytes_all_stays_as_it_was() {
        let seen = Evidence { form: Form::Zip, validity: Validity::Fails, collapsed: true, ..Evidence::default() };
        let bases = bases(&[(0, version(Closure::Close, seen))]);
        assert_eq!(Evidence::after(&bases, Hlc::default(), None, false), seen);
    }
}
