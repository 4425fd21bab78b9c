//! File, environment and flags become one checked `Config`, once.
//!
//! Later sources win: defaults, then the file (`--config`, PHIFS_CONFIG, else STORE/phifs.toml if it is there), then
//! PHIFS_* variables, then flags. Each value is checked where it enters, so that its error can say where it came from;
//! what concerns several values is checked at the end. `KEYS` is the one table of settings.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use phifs_core::settings;
use phifs_core::snapshot::keep::KeepRules;

use crate::show;

/// Everything the daemon may be told, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Absolute.
    pub store: PathBuf,
    /// Absolute.
    pub mount: PathBuf,
    /// Whether users other than the one who mounts may use the mount.
    pub allow_other: bool,
    /// Whether set-id bits and file capabilities of programs count.
    pub suid: bool,
    /// Whether device nodes can be opened.
    pub dev: bool,
    pub data_mode: DataMode,
    pub conflicts: Conflicts,
    /// Where to listen for other nodes. `None`: where it was told to once, and else nowhere.
    pub listen: Option<SocketAddr>,
    /// Where to tell metrics, on loopback.
    pub metrics: Option<SocketAddr>,
    /// Memory for glyphs and metadata that were read.
    pub cache_mib: u32,
    /// Disk space for materialised files whose bytes are published.
    pub staging_cache_mib: u32,
    /// At most this long until what was written to an open file is published.
    pub publish_interval: Duration,
    /// How often a snapshot is taken, if something changed; `None`: never.
    pub snapshot_every: Option<Duration>,
    /// Which of those that were taken so are kept.
    pub snapshot_keep: KeepRules,
    pub log_format: LogFormat,
    pub log_level: LogLevel,
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
        pub enum $name { $($(#[$variant_doc])* #[value(name = $word)] $variant),+ }

        impl FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("{word:?} is not one of: {}", [$($word),+].join(", "))),
                }
            }
        }
    };
}

words! {
    /// How file bytes travel between programs and the store.
    DataMode {
        /// Passthrough where the kernel and our privileges allow it, else the write-back cache
        Auto = "auto",
        /// Passthrough, or refuse to mount
        Passthrough = "passthrough",
        /// The kernel's write-back cache
        Writeback = "writeback",
        /// Every write comes to the daemon at once
        Plain = "plain",
    }
}

words! {
    /// Where the states of disputed files are seen that are not shown.
    Conflicts {
        /// In .phi/conflicts alone
        Hidden = "hidden",
        /// Beside the files as well, as read-only files
        Siblings = "siblings",
    }
}

words! {
    LogFormat {
        /// One line for people
        Text = "text",
        /// One JSON object a line
        Json = "json",
    }
}

words! {
    LogLevel {
        /// What an operator must act on
        Error = "error",
        /// What an operator may have to act on
        Warn = "warn",
        /// Changes of state
        Info = "info",
        /// Single decisions
        Debug = "debug",
        /// Every request
        Trace = "trace",
    }
}

/// One source of settings: what it says, and nothing about the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub store: Option<PathBuf>,
    pub mount: Option<PathBuf>,
    pub allow_other: Option<bool>,
    pub suid: Option<bool>,
    pub dev: Option<bool>,
    pub data_mode: Option<DataMode>,
    pub conflicts: Option<Conflicts>,
    pub listen: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    pub cache_mib: Option<u32>,
    pub staging_cache_mib: Option<u32>,
    pub publish_interval_ms: Option<u32>,
    pub snapshot_every: Option<Option<Duration>>,
    pub snapshot_keep: Option<KeepRules>,
    pub log_format: Option<LogFormat>,
    pub log_level: Option<LogLevel>,
}

/// Where a value came from, for people who have to find it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    File { path: PathBuf, line: usize, column: usize },
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", show::path(path)),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}", show::path(path))]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{origin}: {message}")]
    Syntax { origin: Origin, message: String },
    #[error("{origin}: there is no setting {key:?}")]
    UnknownKey { origin: Origin, key: String, nearest: Option<&'static str> },
    #[error("{origin}: {key} cannot be {value}: {why}")]
    Value { origin: Origin, key: &'static str, value: String, why: String },
    #[error("{0}")]
    Together(String),
}

impl ConfigError {
    /// What its reader may try.
    pub fn hint(&self) -> String {
        match self {
            Self::Read { .. } => "check --config and PHIFS_CONFIG".to_owned(),
            Self::Syntax { .. } => "the file is TOML: one `key = value` a line, text in double quotes".to_owned(),
            Self::UnknownKey { nearest: Some(key), .. } => format!("did you mean {key:?}?"),
            Self::UnknownKey { nearest: None, .. } => format!("the settings are: {}", key_names().join(", ")),
            Self::Value { origin: Origin::Variable(name), .. } => format!("change {name} or unset it"),
            Self::Value { .. } => "see the page on configuration for what each setting takes".to_owned(),
            Self::Together(_) => "see the page on configuration".to_owned(),
        }
    }
}

/// One setting: its name in the file (a dot separates table and key), and how to set it from text.
struct Key {
    name: &'static str,
    set: fn(&mut Settings, &str) -> Result<(), String>,
}

const KEYS: &[Key] = &[
    Key { name: "store", set: |s, v| put(&mut s.store, directory(v)) },
    Key { name: "mount", set: |s, v| put(&mut s.mount, directory(v)) },
    Key { name: "allow_other", set: |s, v| put(&mut s.allow_other, parse(v, "true or false")) },
    Key { name: "suid", set: |s, v| put(&mut s.suid, parse(v, "true or false")) },
    Key { name: "dev", set: |s, v| put(&mut s.dev, parse(v, "true or false")) },
    Key { name: "data_mode", set: |s, v| put(&mut s.data_mode, v.parse()) },
    Key { name: "conflicts", set: |s, v| put(&mut s.conflicts, v.parse()) },
    Key { name: "listen", set: |s, v| put(&mut s.listen, parse(v, "an address and a port, as in 0.0.0.0:7447")) },
    Key { name: "metrics", set: |s, v| put(&mut s.metrics, metrics_at(v)) },
    Key { name: "cache_mib", set: |s, v| put(&mut s.cache_mib, within(v, 8, 1 << 20)) },
    Key { name: "staging_cache_mib", set: |s, v| put(&mut s.staging_cache_mib, within(v, 0, 1 << 24)) },
    Key { name: "publish_interval_ms", set: |s, v| put(&mut s.publish_interval_ms, within(v, 10, 3_600_000)) },
    Key { name: "snapshot.every", set: |s, v| put(&mut s.snapshot_every, settings::every(v)) },
    Key { name: "snapshot.keep", set: |s, v| put(&mut s.snapshot_keep, settings::keep(v)) },
    Key { name: "log.format", set: |s, v| put(&mut s.log_format, v.parse()) },
    Key { name: "log.level", set: |s, v| put(&mut s.log_level, v.parse()) },
];

fn key_names() -> Vec<&'static str> {
    KEYS.iter().map(|key| key.name).collect()
}

fn put<T>(slot: &mut Option<T>, value: Result<T, String>) -> Result<(), String> {
    *slot = Some(value?);
    Ok(())
}

fn parse<T: FromStr>(text: &str, expected: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("it takes {expected}"))
}

/// An address and a port of this machine alone.
pub fn metrics_at(text: &str) -> Result<SocketAddr, String> {
    parse(text, "an address and a port, as in 127.0.0.1:9447").and_then(crate::metrics::check_address)
}

fn within(text: &str, min: u32, max: u32) -> Result<u32, String> {
    let expected = format!("a whole number from {min} to {max}");
    parse(text, &expected)
        .and_then(|n| if (min..=max).contains(&n) { Ok(n) } else { Err(format!("it takes {expected}")) })
}

fn directory(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("it takes a directory".to_owned()) } else { Ok(PathBuf::from(text)) }
}

impl Settings {
    /// What the text of a file says.
    pub fn from_toml(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let origin = |at: usize| {
            let before = text.get(..at).unwrap_or(text);
            let line_start = before.rfind('\n').map_or(0, |end| end + 1);
            let line = before.matches('\n').count() + 1;
            Origin::File { path: path.to_owned(), line, column: before[line_start..].chars().count() + 1 }
        };
        let document = toml::de::DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            origin: origin(error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        })?;
        let mut settings = Self::default();
        settings.take_table("", document.get_ref(), &origin)?;
        Ok(settings)
    }

    fn take_table(
        &mut self,
        prefix: &str,
        table: &toml::de::DeTable<'_>,
        origin: &dyn Fn(usize) -> Origin,
    ) -> Result<(), ConfigError> {
        // In the order of the text, so that the first mistake is the one reported.
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let name = format!("{prefix}{}", key.get_ref());
            if let toml::de::DeValue::Table(inner) = value.get_ref()
                && KEYS.iter().any(|key| key.name.starts_with(&format!("{name}.")))
            {
                self.take_table(&format!("{name}."), inner, origin)?;
                continue;
            }
            let Some(known) = KEYS.iter().find(|key| key.name == name) else {
                let (origin, nearest) = (origin(key.span().start), nearest(&name));
                return Err(ConfigError::UnknownKey { origin, key: name, nearest });
            };
            let text = scalar(value.get_ref());
            let result = text.clone().ok_or_else(|| "it takes a single value".to_owned());
            result.and_then(|text| (known.set)(self, &text)).map_err(|why| ConfigError::Value {
                origin: origin(value.span().start),
                key: known.name,
                value: text.map_or_else(|| "a list or table".to_owned(), |text| format!("{text:?}")),
                why,
            })?;
        }
        Ok(())
    }

    /// What the environment says. Variables that name no setting are other people's affair.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut settings = Self::default();
        for key in KEYS {
            let name = variable(key.name);
            if let Some(text) = get(&name).filter(|text| !text.is_empty()) {
                (key.set)(&mut settings, &text).map_err(|why| ConfigError::Value {
                    origin: Origin::Variable(name),
                    key: key.name,
                    value: format!("{text:?}"),
                    why,
                })?;
            }
        }
        Ok(settings)
    }

    /// These settings, and those of `other` where these say nothing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            store: self.store.or(other.store),
            mount: self.mount.or(other.mount),
            allow_other: self.allow_other.or(other.allow_other),
            suid: self.suid.or(other.suid),
            dev: self.dev.or(other.dev),
            data_mode: self.data_mode.or(other.data_mode),
            conflicts: self.conflicts.or(other.conflicts),
            listen: self.listen.or(other.listen),
            metrics: self.metrics.or(other.metrics),
            cache_mib: self.cache_mib.or(other.cache_mib),
            staging_cache_mib: self.staging_cache_mib.or(other.staging_cache_mib),
            publish_interval_ms: self.publish_interval_ms.or(other.publish_interval_ms),
            snapshot_every: self.snapshot_every.or(other.snapshot_every),
            snapshot_keep: self.snapshot_keep.or(other.snapshot_keep),
            log_format: self.log_format.or(other.log_format),
            log_level: self.log_level.or(other.log_level),
        }
    }
}

/// `log.format` is PHIFS_LOG_FORMAT.
fn variable(key: &str) -> String {
    format!("PHIFS_{}", key.replace('.', "_").to_uppercase())
}

/// A value as it would be written in a variable. Numbers are taken as they stand, so that one check serves all sources.
fn scalar(value: &toml::de::DeValue<'_>) -> Option<String> {
    match value {
        toml::de::DeValue::String(text) => Some(text.to_string()),
        toml::de::DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        toml::de::DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
        }
        toml::de::DeValue::Float(number) => Some(number.as_str().to_owned()),
        toml::de::DeValue::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// The setting that a misspelt name most likely meant: at most a third of its letters wrong.
fn nearest(name: &str) -> Option<&'static str> {
    let last = |key: &'static str| key.rsplit('.').next().unwrap_or(key);
    let distance = |key: &'static str| edits(name, key).min(edits(name, last(key)));
    key_names().into_iter().min_by_key(|key| distance(key)).filter(|key| distance(key) * 3 <= name.len().max(3))
}

/// Levenshtein's distance, one row at a time.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[row.len() - 1]
}

/// What decides the defaults: who runs us, and where their data lives.
#[derive(Clone, Debug)]
pub struct Host {
    pub is_root: bool,
    /// $XDG_DATA_HOME, else $HOME/.local/share.
    pub data_home: Option<PathBuf>,
}

impl Host {
    pub fn current() -> Self {
        let directory = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data_home = directory("XDG_DATA_HOME").or_else(|| Some(directory("HOME")?.join(".local/share")));
        Self { is_root: rustix::process::geteuid().is_root(), data_home }
    }

    fn store(&self) -> Result<PathBuf, ConfigError> {
        if self.is_root {
            return Ok(PathBuf::from("/var/lib/phifs"));
        }
        let home = self.data_home.as_ref();
        home.map(|home| home.join("phifs")).ok_or_else(|| {
            ConfigError::Together(
                "no place for the store: neither HOME nor XDG_DATA_HOME is set; use --store".to_owned(),
            )
        })
    }
}

impl Config {
    /// Reads file and environment, puts `flags` on top, and checks the whole. `file` is what `--config` or PHIFS_CONFIG
    /// named; without it STORE/phifs.toml is read if it exists.
    pub fn load(flags: Settings, file: Option<&Path>) -> Result<Self, ConfigError> {
        let variables = Settings::from_variables(|name| std::env::var(name).ok())?;
        Self::resolve(flags.or(variables), file, &Host::current())
    }

    fn resolve(given: Settings, file: Option<&Path>, host: &Host) -> Result<Self, ConfigError> {
        let settings = match file {
            Some(path) => given.or(Self::read(path)?),
            None => {
                let store = given.store.clone().map_or_else(|| host.store(), Ok)?;
                let own = store.join("phifs.toml");
                match Self::read_optional(&own)? {
                    Some(Settings { store: Some(_), .. }) => {
                        let own = show::path(&own);
                        return Err(ConfigError::Together(format!(
                            "{own} sets `store`, but it is found only because the store is known already; remove that line"
                        )));
                    }
                    found => Settings { store: Some(store), ..given }.or(found.unwrap_or_default()),
                }
            }
        };
        Self::check(settings, host)
    }

    fn read(path: &Path) -> Result<Settings, ConfigError> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Settings::from_toml(path, &text)
    }

    fn read_optional(path: &Path) -> Result<Option<Settings>, ConfigError> {
        match Self::read(path) {
            Err(ConfigError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
            result => result.map(Some),
        }
    }

    fn check(settings: Settings, host: &Host) -> Result<Self, ConfigError> {
        let absolute =
            |path: PathBuf| crate::mounts::absolute(&path).map_err(|source| ConfigError::Read { path, source });
        let store = absolute(settings.store.map_or_else(|| host.store(), Ok)?)?;
        let mount = absolute(settings.mount.unwrap_or_else(|| PathBuf::from("/phi")))?;
        if store.starts_with(&mount) || mount.starts_with(&store) {
            let (store, mount) = (show::path(&store), show::path(&mount));
            return Err(ConfigError::Together(format!(
                "the store {store} and the mountpoint {mount} lie inside each other; keep them apart"
            )));
        }
        Ok(Self {
            store,
            mount,
            allow_other: settings.allow_other.unwrap_or(host.is_root),
            suid: settings.suid.unwrap_or(false),
            dev: settings.dev.unwrap_or(false),
            data_mode: settings.data_mode.unwrap_or(DataMode::Auto),
            conflicts: settings.conflicts.unwrap_or(Conflicts::Hidden),
            listen: settings.listen,
            metrics: settings.metrics,
            cache_mib: settings.cache_mib.unwrap_or(64),
            staging_cache_mib: settings.staging_cache_mib.unwrap_or(4096),
            publish_interval: Duration::from_millis(settings.publish_interval_ms.unwrap_or(1000).into()),
            snapshot_every: settings.snapshot_every.flatten(),
            snapshot_keep: settings.snapshot_keep.unwrap_or_else(|| settings::Settings::default().snapshot_keep),
            log_format: settings.log_format.unwrap_or(LogFormat::Text),
            log_level: settings.log_level.unwrap_or(LogLevel::Info),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Settings, ConfigError> {
        Settings::from_toml(Path::new("/s/phifs.toml"), text)
    }

    fn complaint(text: &str) -> (String, String) {
        let error = file(text).unwrap_err();
        (error.to_string(), error.hint())
    }

    #[test]
    fn every_key_can_be_set_from_the_file_and_from_the_environment() {
        let text = "store='/s'\nmount='/m'\nallow_other=false\nsuid=true\ndev=true\ndata_mode='plain'\nconflicts='siblings'\n\
            listen='[::1]:7'\nmetrics='127.0.0.1:9'\ncache_mib=0x10\n\
            staging_cache_mib=0\npublish_interval_ms=50\nsnapshot.every='15m'\nsnapshot.keep='last=2'\nlog.format='json'\n\
            log.level='debug'";
        let from_file = file(text).unwrap();
        let values = [
            "/s",
            "/m",
            "false",
            "true",
            "true",
            "plain",
            "siblings",
            "[::1]:7",
            "127.0.0.1:9",
            "16",
            "0",
            "50",
            "15m",
            "last=2",
            "json",
            "debug",
        ];
        let from_variables = Settings::from_variables(|name| {
            let index = KEYS.iter().position(|key| variable(key.name) == name)?;
            Some(values[index].to_owned())
        });
        assert_eq!(from_file, from_variables.unwrap());
        assert_eq!(from_file.log_level, Some(LogLevel::Debug));
        assert_eq!(from_file.cache_mib, Some(16));
        assert_eq!(file("[log]\nformat = \"json\"").unwrap().log_format, Some(LogFormat::Json));
    }

    #[test]
    fn mistakes_are_shown_with_line_column_and_a_way_out() {
        assert_eq!(
            complaint("mount = '/m'\n\n  cach_mib = 5"),
            ("/s/phifs.toml:3:3: there is no setting \"cach_mib\"".into(), "did you mean \"cache_mib\"?".into())
        );
        assert!(complaint("zzz = 1").1.starts_with("the settings are: store, mount, "));
        assert_eq!(complaint("[log]\nlevl = 'info'").1, "did you mean \"log.level\"?");
        assert_eq!(complaint("level = 'info'").1, "did you mean \"log.level\"?");
        assert_eq!(
            complaint("# \u{e9}\ncache_mib = 5").0,
            "/s/phifs.toml:2:13: cache_mib cannot be \"5\": it takes a whole number from 8 to 1048576"
        );
        assert_eq!(
            complaint("data_mode = 'fast'").0,
            "/s/phifs.toml:1:13: data_mode cannot be \"fast\": \"fast\" is not one of: auto, passthrough, writeback, plain"
        );
        assert!(complaint("store = ['/a']").0.ends_with("store cannot be a list or table: it takes a single value"));
        assert!(complaint("log = 'info'").0.contains("no setting \"log\""));
        assert!(complaint("mount = '/m'\nmount = '/n'").0.starts_with("/s/phifs.toml:2:1: "));
        assert!(complaint("mount = ").0.starts_with("/s/phifs.toml:1:"));
    }

    #[test]
    fn bad_variable_is_named() {
        let error =
            Settings::from_variables(|name| (name == "PHIFS_LOG_LEVEL").then(|| "loud".to_owned())).unwrap_err();
        assert!(error.to_string().starts_with("PHIFS_LOG_LEVEL: log.level cannot be \"loud\""), "{error}");
        assert_eq!(error.hint(), "change PHIFS_LOG_LEVEL or unset it");
    }

    const USER: Host = Host { is_root: false, data_home: None };

    #[test]
    fn flags_win_over_the_file_and_defaults_fill_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("phifs.toml"), "mount = '/from-file'\ncache_mib = 64").unwrap();
        let store = Some(dir.path().to_owned());
        let flags = Settings { store, mount: Some("/from-flag".into()), ..Settings::default() };
        let config = Config::resolve(flags, None, &USER).unwrap();
        assert_eq!((config.mount.as_path(), config.cache_mib), (Path::new("/from-flag"), 64));
        assert_eq!((config.data_mode, config.allow_other), (DataMode::Auto, false));
        assert!(!config.suid && !config.dev);
    }

    #[test]
    fn defaults_depend_on_who_asks() {
        let root = Host { is_root: true, data_home: None };
        let config = Config::check(Settings::default(), &root).unwrap();
        assert_eq!((config.store.as_path(), config.mount.as_path()), (Path::new("/var/lib/phifs"), Path::new("/phi")));
        let user = Host { is_root: false, data_home: Some("/home/u/.local/share".into()) };
        let config = Config::check(Settings::default(), &user).unwrap();
        assert_eq!(config.store, Path::new("/home/u/.local/share/phifs"));
        assert!(Config::resolve(Settings::default(), None, &USER).unwrap_err().to_string().contains("use --store"));
    }

    #[test]
    fn store_and_mountpoint_inside_each_other_are_refused() {
        for (store, mount) in [("/phi/store", "/phi"), ("/s", "/s/mnt"), ("/s", "/s")] {
            let settings = Settings { store: Some(store.into()), mount: Some(mount.into()), ..Settings::default() };
            assert!(Config::check(settings, &USER).is_err(), "{store} {mount}");
        }
    }

    #[test]
    fn named_file_must_exist_and_the_stores_own_file_may_not_name_the_store() {
        let missing = Config::resolve(Settings::default(), Some(Path::new("/no/such.toml")), &USER).unwrap_err();
        assert!(missing.to_string().contains("/no/such.toml"));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("phifs.toml"), "store = '/elsewhere'").unwrap();
        let settings = Settings { store: Some(dir.path().to_owned()), ..Settings::default() };
        assert!(Config::resolve(settings, None, &USER).unwrap_err().to_string().contains("remove that line"));
    }
}
