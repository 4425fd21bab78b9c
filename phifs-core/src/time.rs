//! Wall-clock timestamps and hybrid logical clocks, as plain values. Where the time comes from is the caller's affair.

use std::fmt;

/// A POSIX time: seconds since 1970 (negative before) and nanoseconds in `0..1_000_000_000`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    pub secs: i64,
    pub nanos: u32,
}

impl Timestamp {
    pub const fn new(secs: i64, nanos: u32) -> Self {
        Self { secs, nanos }
    }

    /// Milliseconds since 1970; 0 for times before.
    pub fn millis(self) -> u64 {
        u64::try_from(self.secs).map_or(0, |secs| secs.saturating_mul(1000) + u64::from(self.nanos) / 1_000_000)
    }
}

/// A hybrid logical clock reading: 48 bits of milliseconds since 1970, then a 16-bit counter.
///
/// Kulkarni et al., "Logical Physical Clocks", OPODIS 2014. With the author it is a total order of operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hlc(pub u64);

impl Hlc {
    pub fn from_millis(millis: u64) -> Self {
        Self(millis << 16)
    }

    pub fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// The reading for an event at wall time `now` on a node whose largest known reading is `self`.
    ///
    /// The result is larger than `self` even when the wall clock stands still or goes back.
    #[must_use]
    pub fn tick(self, now: Timestamp) -> Self {
        Self(Self::from_millis(now.millis()).0.max(self.0 + 1))
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.millis(), self.0 & 0xffff)
    }
}

/// Year, month and day of a day since 1970.
///
/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
pub fn date(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// Milliseconds since 1970 as UTC, `2026-11-23 00:18:27.042`.
pub fn utc(millis: u64) -> String {
    let (days, in_day) = (millis / 86_400_000, millis % 86_400_000);
    let (year, month, day) = date(days);
    let (secs, ms) = (in_day / 1000, in_day % 1000);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{ms:03}", secs / 3600, secs / 60 % 60, secs % 60)
}

/// How far ahead of a machine's clock what others made may be, in milliseconds; what is later waits.
pub const AHEAD_MS_MAX: u64 = 60_000;

/// The world outside, as far as core may ask for it. Implemented by the daemon, and by a fixed one in tests.
pub trait Env: Send + Sync {
    fn now(&self) -> Timestamp;
    /// Random bytes fit for ids that must never repeat.
    fn random(&self) -> [u8; 32];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_never_goes_back() {
        let first = Hlc::default().tick(Timestamp::new(10, 0));
        assert_eq!(first.millis(), 10_000);
        let second = first.tick(Timestamp::new(5, 0));
        assert!(second > first);
        assert_eq!(second.millis(), 10_000);
    }

    #[test]
    fn times_are_told_in_utc() {
        assert_eq!(utc(0), "1970-01-01 00:00:00.000");
        assert_eq!(utc(1_709_164_800_123), "2024-02-29 00:00:00.123");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00.000");
    }
}
