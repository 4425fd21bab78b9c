//! Which snapshots to keep: of each of the latest hours, days, weeks, months and years the last one.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::time::date;

/// Everything that one rule names is kept. Without any rule nothing is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeepRules {
    /// The latest so many.
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
    /// Those that are no older than this when the latest one is taken.
    pub within: Option<Duration>,
    /// Those with one of these labels.
    pub labels: Vec<String>,
}

/// What the rules need to know of a snapshot.
pub struct Candidate<'a> {
    /// When it was taken, since 1970.
    pub millis: u64,
    pub labels: &'a [String],
}

type Number = fn(&KeepRules) -> u32;
type Period = fn(u64) -> u64;

const HOUR_MILLIS: u64 = 3_600_000;
const DAY_MILLIS: u64 = 24 * HOUR_MILLIS;

/// The periods, by their number since 1970 in UTC. Weeks begin on Monday; the first day of 1970 was a Thursday.
const PERIODS: [(&str, Number, Period); 5] = [
    ("hourly", |rules| rules.hourly, |millis| millis / HOUR_MILLIS),
    ("daily", |rules| rules.daily, |millis| millis / DAY_MILLIS),
    ("weekly", |rules| rules.weekly, |millis| (millis / DAY_MILLIS + 3) / 7),
    ("monthly", |rules| rules.monthly, |millis| month(millis / DAY_MILLIS)),
    ("yearly", |rules| rules.yearly, |millis| month(millis / DAY_MILLIS) / 12),
];

impl KeepRules {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Why each of the snapshots is kept; for those that are not, nothing.
    pub fn reasons(&self, snapshots: &[Candidate<'_>]) -> Vec<Vec<String>> {
        let mut newest_first: Vec<usize> = (0..snapshots.len()).collect();
        newest_first.sort_by_key(|at| std::cmp::Reverse((snapshots[*at].millis, *at)));
        let mut reasons = vec![Vec::new(); snapshots.len()];
        for at in newest_first.iter().take(self.last as usize) {
            reasons[*at].push("last".to_owned());
        }
        for (name, number, period) in PERIODS {
            let mut seen = BTreeSet::new();
            for at in &newest_first {
                let is_last_of_its = seen.len() < number(self) as usize && seen.insert(period(snapshots[*at].millis));
                if is_last_of_its {
                    reasons[*at].push(name.to_owned());
                }
            }
        }
        let latest = newest_first.first().map_or(0, |at| snapshots[*at].millis);
        for (snapshot, reasons) in snapshots.iter().zip(&mut reasons) {
            if self.within.is_some_and(|span| u128::from(latest - snapshot.millis) <= span.as_millis()) {
                reasons.push("within".to_owned());
            }
            if let Some(label) = self.labels.iter().find(|label| snapshot.labels.contains(label)) {
                reasons.push(format!("label {label}"));
            }
        }
        reasons
    }
}

/// Months since year 0, of a day since 1970.
fn month(days: u64) -> u64 {
    let (year, month, _) = date(days);
    year * 12 + month - 1
}

/// As in `last=3 hourly=24 daily=7 within=2d label=weekly`.
impl FromStr for KeepRules {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut rules = Self::default();
        for word in text.split_whitespace() {
            let (name, value) =
                word.split_once('=').ok_or_else(|| format!("{word:?} is not of the form RULE=NUMBER"))?;
            let slot = match name {
                "last" => &mut rules.last,
                "hourly" => &mut rules.hourly,
                "daily" => &mut rules.daily,
                "weekly" => &mut rules.weekly,
                "monthly" => &mut rules.monthly,
                "yearly" => &mut rules.yearly,
                "within" => {
                    let span = humantime::parse_duration(value).map_err(|error| format!("{value:?}: {error}"))?;
                    rules.within = Some(span);
                    continue;
                }
                "label" => {
                    rules.labels.push(value.to_owned());
                    continue;
                }
                _ => {
                    return Err(format!(
                        "there is no rule {name:?}; there are last, hourly, daily, weekly, monthly, yearly, within, label"
                    ));
                }
            };
            *slot = value.parse().map_err(|_| format!("{value:?} is not a number"))?;
        }
        Ok(rules)
    }
}

impl fmt::Display for KeepRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = [("last", self.last)].into_iter();
        let numbers = numbers.chain(PERIODS.iter().map(|(name, number, _)| (*name, number(self))));
        let words = numbers.filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name}={n}"));
        let within = self.within.map(|span| format!("within={}", humantime::format_duration(span)).replace(' ', ""));
        let labels = self.labels.iter().map(|label| format!("label={label}"));
        let words: Vec<String> = words.chain(within).chain(labels).collect();
        f.write_str(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = DAY_MILLIS;
    /// Monday, 2024-01-01.
    const NEW_YEAR: u64 = 1_704_067_200_000;

    fn kept(rules: &str, millis: &[u64]) -> Vec<u64> {
        let candidates: Vec<_> = millis.iter().map(|millis| Candidate { millis: *millis, labels: &[] }).collect();
        let reasons = rules.parse::<KeepRules>().unwrap().reasons(&candidates);
        millis.iter().zip(reasons).filter(|(_, reasons)| !reasons.is_empty()).map(|(millis, _)| *millis).collect()
    }

    #[test]
    fn the_last_of_each_period_is_kept() {
        let hours: Vec<u64> = (0..72).map(|hour| NEW_YEAR + hour * HOUR_MILLIS + 60_000).collect();
        assert_eq!(kept("daily=2", &hours), [hours[47], hours[71]]);
        assert_eq!(kept("last=1 daily=2", &hours), [hours[47], hours[71]]);
        assert_eq!(kept("hourly=3", &hours), hours[69..]);
        assert_eq!(kept("within=2h", &hours), hours[69..]);
        assert!(kept("", &hours).is_empty());
    }

    #[test]
    fn weeks_months_and_years_end_where_people_end_them() {
        let at = |day: i64| NEW_YEAR.checked_add_signed(day * DAY as i64).unwrap();
        // Sunday, Monday; the last of January, the first of February; the last of 2023.
        let days: Vec<u64> = [-1, 0, 6, 7, 30, 31].map(at).to_vec();
        assert_eq!(kept("weekly=9", &days), [at(-1), at(6), at(7), at(31)]);
        assert_eq!(kept("monthly=9", &days), [at(-1), at(30), at(31)]);
        assert_eq!(kept("yearly=9", &days), [at(-1), at(31)]);
    }

    #[test]
    fn labels_keep_for_ever() {
        let label = ["gold".to_owned()];
        let candidates = [Candidate { millis: 1, labels: &label }, Candidate { millis: 2, labels: &[] }];
        let rules: KeepRules = "label=gold".parse().unwrap();
        assert_eq!(rules.reasons(&candidates), [vec!["label gold".to_owned()], vec![]]);
    }

    #[test]
    fn rules_are_read_as_they_are_written() {
        let text = "last=3 hourly=24 weekly=4 within=2days label=gold";
        let rules: KeepRules = text.parse().unwrap();
        assert_eq!(rules.to_string(), text);
        for wrong in ["daily", "daily=x", "daily=-1", "fortnightly=2", "within=soon"] {
            assert!(wrong.parse::<KeepRules>().is_err(), "{wrong}");
        }
    }
}
