//! `phifs volume`: the settings of the volume.

use clap::Subcommand;

use super::Context;
use super::output::columns;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::SettingValue;

/// Show and change the settings of the volume
#[derive(clap::Args)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "They belong to the volume, not to this machine: what is set here holds before its configuration \
    file.\n\nExamples:\n  phifs volume get\n  phifs volume set snapshot.every 15m"
)]
pub struct Volume {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the settings, or one of them
    #[command(after_help = "Examples:\n  phifs volume get\n  phifs volume get compression")]
    Get {
        /// Only this one, and nothing but its value
        name: Option<String>,
    },
    /// Change a setting
    #[command(after_help = "Examples:\n  phifs volume set snapshot.every 15m\n  \
        phifs volume set snapshot.keep 'hourly=24 daily=7 weekly=4'\n  phifs volume set compression off")]
    Set {
        name: String,
        /// What it takes is shown by `phifs volume get`
        value: String,
    },
    /// Make a setting the default again
    #[command(after_help = "Examples:\n  phifs volume unset compression")]
    Unset { name: String },
}

impl Volume {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let (request, one) = match self.command {
            Command::Get { name } => (Request::VolumeGet { name: name.clone() }, name.is_some()),
            Command::Set { name, value } => (Request::VolumeSet { name, value: Some(value) }, false),
            Command::Unset { name } => (Request::VolumeSet { name, value: None }, false),
        };
        let settings: Vec<SettingValue> = context.ask(&request)?;
        context.output.result(&settings, |settings| if one { settings[0].value.clone() } else { table(settings) });
        Ok(())
    }
}

fn table(settings: &[SettingValue]) -> String {
    let width = settings.iter().map(|setting| setting.value.len()).max().unwrap_or(0);
    let row = |setting: &SettingValue| {
        let default = if setting.is_default { " (default)" } else { "" };
        format!("{:<width$}  {}: {}{default}", setting.value, setting.about, setting.takes)
    };
    let rows: Vec<(&str, String)> = settings.iter().map(|setting| (setting.name.as_str(), row(setting))).collect();
    columns(&rows)
}
