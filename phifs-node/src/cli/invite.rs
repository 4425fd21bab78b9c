//! `phifs invite`: a word that lets one machine in.

use std::time::Duration;

use phifs_core::registry::check_name;
use phifs_core::time::utc;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;

use super::Context;
use crate::control::Request;
use crate::failure::{Failure, Kind};
use crate::report::Invitation;

/// Let another machine have the volume
#[derive(clap::Args)]
#[command(
    after_help = "What is printed admits one machine, whoever brings it: treat it as a password until it is used or \
    expires.\n\nExamples:\n  phifs invite\n  phifs invite --expires 10min --zone cellar\n  \
    phifs invite --quiet | ssh other phifs join -"
)]
pub struct Invite {
    /// Say what the machine is for
    #[arg(long, value_name = "ROLE", default_value = "", hide_default_value = true)]
    role: String,
    /// Say where it stands
    #[arg(long, value_name = "ZONE", default_value = "", hide_default_value = true)]
    zone: String,
    /// How long the invitation holds, at most a day
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    expires: Duration,
    /// Print nothing but the invitation
    #[arg(short, long)]
    quiet: bool,
    /// Print it as a picture as well, for a camera
    #[arg(long, conflicts_with = "quiet")]
    qr: bool,
}

const EXPIRES_MAX: Duration = Duration::from_secs(24 * 3600);

impl Invite {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        for (flag, word) in [("--role", &self.role), ("--zone", &self.zone)] {
            if !word.is_empty() {
                check_name(word).map_err(|why| Failure::new(Kind::Usage, format!("{flag} {word:?}: {why}")))?;
            }
        }
        if self.expires.is_zero() || self.expires > EXPIRES_MAX {
            return Err(Failure::new(Kind::Usage, "an invitation holds for a second at least, and a day at most"));
        }
        let expires_secs = self.expires.as_secs().max(1);
        let invitation: Invitation =
            context.ask(&Request::Invite { role: self.role, zone: self.zone, expires_secs })?;
        context.output.result(&invitation, |invitation| {
            if self.quiet { invitation.token.clone() } else { describe(invitation, self.qr) }
        });
        Ok(())
    }
}

fn describe(invitation: &Invitation, with_picture: bool) -> String {
    let Invitation { token, expires_millis, addresses } = invitation;
    // Capitals take less room in such a picture, and mean the same.
    let picture = QrCode::new(token.to_ascii_uppercase()).map(|code| code.render::<Dense1x2>().build());
    let picture = picture.ok().filter(|_| with_picture).map(|picture| format!("\n{picture}\n")).unwrap_or_default();
    format!(
        "On the other machine, until {} UTC:\n\n  phifs join {token}\n{picture}\nIt will look for this one at {} (UDP).",
        utc(*expires_millis),
        addresses.join(", "),
    )
}
