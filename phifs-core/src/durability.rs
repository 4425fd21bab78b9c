//! How many machines have to hold something durably before a sync of it returns.

use std::str::FromStr;
use std::time::Duration;

/// What a sync waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// The disk of this machine.
    #[default]
    Local,
    /// The disks of more than half of the machines that are to hold it.
    Quorum,
    /// The disks of all of them.
    All,
}

impl Durability {
    pub const ALL: [Self; 3] = [Self::Local, Self::Quorum, Self::All];

    pub fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Quorum => "quorum",
            Self::All => "all",
        }
    }

    /// How many machines that are, this one included, if so many are to hold it.
    pub fn machines(self, holders: usize) -> usize {
        match self {
            Self::Local => 1,
            Self::Quorum => holders / 2 + 1,
            Self::All => holders.max(1),
        }
    }

    /// The most that holds if so many of them hold it.
    pub fn achieved(machines: usize, holders: usize) -> Self {
        let holds = |level: &&Self| machines >= level.machines(holders);
        Self::ALL.iter().rev().find(holds).copied().unwrap_or_default()
    }
}

impl FromStr for Durability {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|level| level.word() == text).ok_or_else(|| "not local, quorum or all".to_owned())
    }
}

/// What a sync does when the others cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Degraded {
    /// It waits for so long, and then fails.
    Block(Duration),
    /// It fails, after the moment that others take when they are there.
    Error,
    /// It succeeds after that moment with what this machine has.
    Local,
}

/// The moment.
const MOMENT: Duration = Duration::from_secs(5);
const BLOCK: Duration = Duration::from_secs(60);
const BLOCK_MAX: Duration = Duration::from_secs(3600);

impl Default for Degraded {
    fn default() -> Self {
        Self::Block(BLOCK)
    }
}

impl Degraded {
    pub fn patience(self) -> Duration {
        match self {
            Self::Block(patience) => patience,
            Self::Error | Self::Local => MOMENT,
        }
    }

    pub fn show(self) -> String {
        match self {
            Self::Block(patience) => format!("block {}", humantime::format_duration(patience)),
            Self::Error => "error".to_owned(),
            Self::Local => "local".to_owned(),
        }
    }
}

impl FromStr for Degraded {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(' ').unwrap_or((text, "")) {
            ("block", "") => Ok(Self::default()),
            ("block", span) => {
                let span = humantime::parse_duration(span).map_err(|error| error.to_string())?;
                let is_sensible = (Duration::from_millis(1)..=BLOCK_MAX).contains(&span);
                if is_sensible { Ok(Self::Block(span)) } else { Err("not from 1ms to 1h".to_owned()) }
            }
            ("error", "") => Ok(Self::Error),
            ("local", "") => Ok(Self::Local),
            _ => Err("not block, error or local".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_count_machines() {
        let machines = |level: Durability| [1, 2, 3, 4, 5].map(|holders| level.machines(holders));
        assert_eq!(machines(Durability::Local), [1; 5]);
        assert_eq!(machines(Durability::Quorum), [1, 2, 2, 3, 3]);
        assert_eq!(machines(Durability::All), [1, 2, 3, 4, 5]);
        assert_eq!([1, 2, 3].map(|n| Durability::achieved(n, 3).word()), ["local", "quorum", "all"]);
        assert_eq!(Durability::achieved(1, 1), Durability::All);
    }

    #[test]
    fn settings_are_written_as_they_are_read() {
        for text in ["block 1m", "block 10s", "error", "local"] {
            assert_eq!(text.parse::<Degraded>().unwrap().show(), text);
        }
        assert_eq!("block".parse(), Ok(Degraded::default()));
        for text in ["", "block 0s", "block 2h", "error 5s", "quorum", "block x"] {
            assert!(text.parse::<Degraded>().is_err(), "{text}");
        }
        assert!("most".parse::<Durability>().is_err());
    }
}
