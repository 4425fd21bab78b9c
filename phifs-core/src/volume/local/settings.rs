//! What is set for the volume: the defaults of this machine, and over them what the registry says.

use crate::namespace::Table;
use crate::namespace::tables::{Rows as _, malformed};
use crate::placement::Layout;
use crate::registry::{Entry, Key};
use crate::settings::{SETTINGS, Setting, Settings};
use crate::ssep::SettingEntries;
use crate::time::AHEAD_MS_MAX;
use crate::volume::{Result, VolumeError};

use super::LocalVolume;

#[derive(Debug, thiserror::Error)]
pub enum SettingError {
    #[error("there is no setting {0:?}")]
    Unknown(String),
    #[error("{name} cannot be {value:?}: {why}; it takes {takes}")]
    Value { name: &'static str, value: String, why: String, takes: &'static str },
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl LocalVolume {
    pub fn settings(&self) -> Settings {
        self.settings.read().clone()
    }

    /// Whether the volume has a value of its own for this setting.
    pub fn is_set(&self, name: &str) -> Result<bool> {
        Ok(self.registry.read().entry(&Key::Setting(name.into()))?.is_some())
    }

    /// Sets a value for the volume, durably; `None` makes it the default again.
    pub fn change_setting(&self, name: &str, value: Option<&str>) -> std::result::Result<(), SettingError> {
        let setting = Setting::find(name).ok_or_else(|| SettingError::Unknown(name.into()))?;
        let value = value.map(str::trim);
        if let Some(value) = value {
            let refused =
                |why| SettingError::Value { name: setting.name, value: value.into(), why, takes: setting.takes };
            setting.set(&mut self.settings(), value).map_err(refused)?;
        }
        {
            let mut state = self.state.write();
            let mut draft = state.draft(self.env.now());
            draft.registry.push((Key::Setting(name.into()), value.map(|value| value.as_bytes().to_vec())));
            state.commit(draft, &self.journal).map_err(VolumeError::from)?;
        }
        self.apply_settings()?;
        self.commit_journal()?;
        Ok(())
    }

    /// What is set, as it was written last.
    pub fn setting_entries(&self) -> Result<SettingEntries> {
        let mut entries = Vec::new();
        for (name, bytes) in self.registry.read().with_prefix(Table::Registry, &[Key::SETTINGS])? {
            let entry = Entry::decode(&bytes).map_err(|e| malformed("setting", &name, e))?;
            entries.push((String::from_utf8_lossy(&name).into_owned(), entry));
        }
        Ok(entries)
    }

    /// Learns what others have set. Says whether there was any news.
    pub fn take_setting_entries(&self, entries: SettingEntries) -> Result<bool> {
        let horizon = self.env.now().millis() + AHEAD_MS_MAX;
        {
            let mut state = self.state.write();
            let mut news = Vec::new();
            for (name, entry) in entries.into_iter().filter(|(_, entry)| entry.hlc.millis() <= horizon) {
                let key = Key::Setting(name);
                let known = state.written_entry(&key)?;
                let key = key.encode();
                if known.is_none_or(|known| entry.overrides(&known, &key)) {
                    news.push((key, entry));
                }
            }
            if news.is_empty() {
                return Ok(false);
            }
            state.commit_entries(news, &self.journal)?;
        }
        // Also where the disk has no room for them now.
        self.apply_settings()?;
        self.commit_journal()?;
        Ok(true)
    }

    /// Makes what the registry says hold.
    /// What is set is in force from now on.
    fn apply_settings(&self) -> Result<()> {
        let copies = self.settings.read().copies;
        self.load_settings()?;
        match self.layout().filter(|_| self.settings.read().copies != copies) {
            Some(layout) => self.set_layout(Some(Layout::clone(&layout))),
            None => Ok(()),
        }
    }

    pub(super) fn load_settings(&self) -> Result<()> {
        let mut settings = Settings {
            publish_interval: self.options.publish_interval,
            cache_bytes: self.options.staging_cache_bytes,
            snapshot_every: self.options.snapshot_every,
            snapshot_keep: self.options.snapshot_keep.clone(),
            versions_keep: self.options.versions_keep,
            versions_max_age: self.options.versions_max_age,
            ..Settings::default()
        };
        for setting in &SETTINGS {
            let Some(value) = self.state.read().entry(&Key::Setting(setting.name.into()))? else { continue };
            // One that a newer program understands is left to that.
            if let Err(why) = setting.set(&mut settings, &String::from_utf8_lossy(&value)) {
                tracing::warn!(
                    name = setting.name,
                    why,
                    "a setting of the volume is not understood; the default holds"
                );
            }
        }
        self.store.set_data_level(settings.compression);
        *self.settings.write() = settings;
        Ok(())
    }
}
