//! The settings of the volume, as the control socket asks for them.

use phifs_core::settings::{SETTINGS, Setting};
use phifs_core::volume::local::SettingError;

use super::Engine;
use crate::failure::{Failure, Kind};
use crate::report::SettingValue;

impl Engine {
    /// All settings, or the one of this name.
    pub fn settings(&self, name: Option<&str>) -> Result<Vec<SettingValue>, Failure> {
        if let Some(name) = name
            && Setting::find(name).is_none()
        {
            return Err(explain(SettingError::Unknown(name.to_owned())));
        }
        let settings = self.volume.settings();
        let wanted = SETTINGS.iter().filter(|setting| name.is_none_or(|name| name == setting.name));
        wanted
            .map(|setting| {
                Ok(SettingValue {
                    name: setting.name.to_owned(),
                    value: setting.show(&settings),
                    is_default: !self.volume.is_set(setting.name).map_err(Failure::plain)?,
                    takes: setting.takes.to_owned(),
                    about: setting.about.to_owned(),
                })
            })
            .collect()
    }

    /// Sets one; `None` makes it the default again. Returns it as it is then.
    pub fn change_setting(&self, name: &str, value: Option<&str>) -> Result<Vec<SettingValue>, Failure> {
        self.volume.change_setting(name, value).map_err(explain)?;
        self.settings(Some(name))
    }
}

fn explain(error: SettingError) -> Failure {
    match &error {
        SettingError::Unknown(_) => Failure::new(Kind::Usage, error).hint("phifs volume get shows what there is"),
        SettingError::Value { .. } => Failure::new(Kind::Usage, error),
        SettingError::Volume(_) => Failure::plain(error),
    }
}
