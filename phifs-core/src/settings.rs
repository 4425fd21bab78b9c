//! What can be set for a volume, as text in the registry: it belongs to the volume and goes where the volume goes.
//! What concerns one machine is in its configuration file instead, which also has the defaults of some of these.

use std::time::Duration;

use bytesize::ByteSize;

use crate::durability::{Degraded, Durability};
use crate::merge::Pinned;
use crate::namespace::coherence::Preference;
use crate::placement::COPIES_MAX;
use crate::snapshot::keep::KeepRules;

/// One setting.
pub struct Setting {
    pub name: &'static str,
    /// What its values look like.
    pub takes: &'static str,
    pub about: &'static str,
    set: fn(&mut Settings, &str) -> Result<(), String>,
    show: fn(&Settings) -> String,
}

/// All that is set, or is the default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A file that stays open is published at most this often.
    pub publish_interval: Duration,
    /// A level of zstd; 0: nothing is compressed.
    pub compression: i32,
    /// How many members are to hold each glyph, if there are so many.
    pub copies: u8,
    /// What a sync waits for, and what it does when that is not to be had.
    pub durability: Durability,
    pub fsync_degraded: Degraded,
    /// How much is kept of what only others are to hold; `None`: all.
    pub glyph_cache_bytes: Option<u64>,
    /// Space on the host for plain copies of closed files.
    pub cache_bytes: u64,
    /// How often a snapshot is taken, if something changed; `None`: never.
    pub snapshot_every: Option<Duration>,
    /// Which of those that were taken so are kept. Without a rule all are.
    pub snapshot_keep: KeepRules,
    /// How many older versions of a file are kept, and for how long.
    pub versions_keep: u32,
    pub versions_max_age: Duration,
    /// What is shown of concurrent versions of a file.
    pub prefer: Preference,
    /// How concurrent versions are merged.
    pub merge_drivers: Pinned,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            publish_interval: Duration::from_secs(1),
            compression: 1,
            copies: 3,
            durability: Durability::default(),
            fsync_degraded: Degraded::default(),
            glyph_cache_bytes: None,
            cache_bytes: 1 << 30,
            snapshot_every: None,
            snapshot_keep: KeepRules { hourly: 24, daily: 7, weekly: 4, monthly: 12, ..KeepRules::default() },
            versions_keep: 16,
            versions_max_age: Duration::from_secs(7 * 24 * 3600),
            prefer: Preference::default(),
            merge_drivers: Pinned::default(),
        }
    }
}

/// The settings there are, in the order of their names.
pub static SETTINGS: [Setting; 13] = [
    Setting {
        name: "cache_size",
        takes: "a size, as in 4GiB",
        about: "space on the host for plain copies of files that were in use",
        set: |settings, text| {
            settings.cache_bytes = text.parse::<ByteSize>().map_err(|_| "not a size".to_owned())?.as_u64();
            Ok(())
        },
        show: |settings| exact(settings.cache_bytes),
    },
    Setting {
        name: "compression",
        takes: "off, or a level of zstd from 1 to 19",
        about: "how hard to compress what is stored from now on",
        set: |settings, text| {
            settings.compression = match text {
                "off" => 0,
                _ => text.parse().ok().filter(|level| (1..=19).contains(level)).ok_or("no such level")?,
            };
            Ok(())
        },
        show: |settings| match settings.compression {
            0 => "off".to_owned(),
            level => level.to_string(),
        },
    },
    Setting {
        name: "copies",
        takes: "a number from 1 to 16",
        about: "how many members hold each part of a file, if there are so many",
        set: |settings, text| {
            let copies = text.parse().ok().filter(|copies| (1..=COPIES_MAX).contains(copies));
            settings.copies = copies.ok_or("no such number of copies")?;
            Ok(())
        },
        show: |settings| settings.copies.to_string(),
    },
    Setting {
        name: "durability",
        takes: "local, quorum or all",
        about: "how many of the members that hold a file have it on disk before fsync returns",
        set: |settings, text| {
            settings.durability = text.parse()?;
            Ok(())
        },
        show: |settings| settings.durability.word().to_owned(),
    },
    Setting {
        name: "fsync_degraded",
        takes: "block (with a time span, as in \"block 10s\"), error or local",
        about: "what fsync does when the other members cannot be reached: wait, fail, or be content with this machine",
        set: |settings, text| {
            settings.fsync_degraded = text.parse()?;
            Ok(())
        },
        show: |settings| settings.fsync_degraded.show(),
    },
    Setting {
        name: "glyph_cache_size",
        takes: "a size, as in 100GiB, or unlimited",
        about: "how much a member keeps of what it has read or written and only others are to hold",
        set: |settings, text| {
            settings.glyph_cache_bytes = match text {
                "unlimited" => None,
                _ => Some(text.parse::<ByteSize>().map_err(|_| "not a size".to_owned())?.as_u64()),
            };
            Ok(())
        },
        show: |settings| settings.glyph_cache_bytes.map_or("unlimited".to_owned(), exact),
    },
    Setting {
        name: "merge.drivers",
        takes: "drivers with their versions, as in \"append/1 text/1 json/1\", or none",
        about: "which concurrent versions of files to merge, on all machines alike",
        set: |settings, text| {
            settings.merge_drivers = text.parse()?;
            Ok(())
        },
        show: |settings| settings.merge_drivers.to_string(),
    },
    Setting {
        name: "prefer",
        takes: "coherence or recency",
        about: "which of concurrent versions of a file to show: the one with more behind it, or the newest",
        set: |settings, text| {
            settings.prefer = match text {
                "coherence" => Preference::Coherence,
                "recency" => Preference::Recency,
                _ => return Err("neither of the two".to_owned()),
            };
            Ok(())
        },
        show: |settings| match settings.prefer {
            Preference::Coherence => "coherence".to_owned(),
            Preference::Recency => "recency".to_owned(),
        },
    },
    Setting {
        name: "publish_interval",
        takes: "a time span from 10ms to 1h",
        about: "how often a file that stays open is published at most",
        set: |settings, text| {
            settings.publish_interval = span(text, Duration::from_millis(10), Duration::from_secs(3600))?;
            Ok(())
        },
        show: |settings| humantime::format_duration(settings.publish_interval).to_string(),
    },
    Setting {
        name: "snapshot.every",
        takes: "off, or a time span from 1s on",
        about: "how often to take a snapshot, if something changed",
        set: |settings, text| {
            settings.snapshot_every = every(text)?;
            Ok(())
        },
        show: |settings| {
            settings.snapshot_every.map_or("off".to_owned(), |span| humantime::format_duration(span).to_string())
        },
    },
    Setting {
        name: "snapshot.keep",
        takes: "rules, as in \"last=3 hourly=24 daily=7 weekly=4 monthly=12\", or all",
        about: "which of the snapshots taken by the schedule to keep",
        set: |settings, text| {
            settings.snapshot_keep = keep(text)?;
            Ok(())
        },
        show: |settings| match settings.snapshot_keep.to_string() {
            rules if rules.is_empty() => "all".to_owned(),
            rules => rules,
        },
    },
    Setting {
        name: "versions.keep",
        takes: "a number from 0 to 1000",
        about: "how many older versions of a file to keep",
        set: |settings, text| {
            settings.versions_keep = text.parse().ok().filter(|n| *n <= 1000).ok_or("no such number")?;
            Ok(())
        },
        show: |settings| settings.versions_keep.to_string(),
    },
    Setting {
        name: "versions.max_age",
        takes: "a time span, as in 7days",
        about: "for how long to keep older versions of a file",
        set: |settings, text| {
            settings.versions_max_age = span(text, Duration::ZERO, Duration::MAX)?;
            Ok(())
        },
        show: |settings| humantime::format_duration(settings.versions_max_age).to_string(),
    },
];

impl Setting {
    pub fn find(name: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| setting.name == name)
    }

    /// Sets it from text; the error says what is wrong with the text.
    pub fn set(&self, settings: &mut Settings, text: &str) -> Result<(), String> {
        (self.set)(settings, text.trim())
    }

    /// Its value as text that `set` takes.
    pub fn show(&self, settings: &Settings) -> String {
        (self.show)(settings)
    }
}

/// A size in the largest unit that does not round it.
fn exact(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let divisions = if bytes == 0 { 0 } else { bytes.trailing_zeros() as usize / 10 };
    let unit = divisions.min(units.len() - 1);
    format!("{}{}", bytes >> (10 * unit), units[unit])
}

fn span(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let span = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (min..=max).contains(&span) { Ok(span) } else { Err("out of range".to_owned()) }
}

/// The value of `snapshot.every`.
pub fn every(text: &str) -> Result<Option<Duration>, String> {
    if text == "off" { Ok(None) } else { span(text, Duration::from_secs(1), Duration::MAX).map(Some) }
}

/// The value of `snapshot.keep`.
pub fn keep(text: &str) -> Result<KeepRules, String> {
    if text == "all" { Ok(KeepRules::default()) } else { text.parse() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_takes_what_it_shows_and_refuses_nonsense() {
        let values = [
            "4GiB",
            "off",
            "19",
            "16",
            "250ms",
            "15m",
            "off",
            "last=2 daily=7",
            "all",
            "0",
            "3h",
            "recency",
            "text/1 json/7",
            "local",
        ];
        for setting in &SETTINGS {
            let mut settings = Settings::default();
            let mut taken = 0;
            for value in values {
                if setting.set(&mut settings, value).is_ok() {
                    taken += 1;
                    let shown = setting.show(&settings);
                    let mut again = Settings::default();
                    setting.set(&mut again, &shown).unwrap_or_else(|why| panic!("{} {shown}: {why}", setting.name));
                    assert_eq!(again, settings, "{} {shown}", setting.name);
                }
            }
            assert!(taken > 0, "{} takes none of the examples", setting.name);
            assert!(setting.set(&mut settings, "nonsense").is_err(), "{}", setting.name);
            assert!(setting.set(&mut settings, "").is_err() || setting.name == "snapshot.keep", "{}", setting.name);
        }
        assert!(SETTINGS.windows(2).all(|pair| pair[0].name < pair[1].name));
    }
}
