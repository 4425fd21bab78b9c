//! `phifs df`: what the volume takes on this machine, and why.

use super::Context;
use super::output::columns;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::Usage;
use crate::show;

/// Show what the volume takes on this machine
#[derive(clap::Args)]
#[command(
    after_help = "All that lies in the store is counted; du(1) says the same of it.\n\nExamples:\n  phifs df\n  phifs df --why"
)]
pub struct Df {
    /// Say of each part why it is there and how it gets free again
    #[arg(long)]
    why: bool,
}

impl Df {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let usage: Usage = context.ask(&Request::Usage)?;
        context.output.result(&usage, |usage| describe(usage, self.why));
        Ok(())
    }
}

fn describe(usage: &Usage, why: bool) -> String {
    let stored: u64 = usage.parts.iter().map(|part| part.bytes).sum();
    let mut rows = vec![
        ("files hold", show::size(usage.logical_bytes)),
        ("store takes", show::size(stored)),
        ("free on disk", format!("{} of {}", show::size(usage.disk_free_bytes), show::size(usage.disk_total_bytes))),
    ];
    if why {
        rows.extend(usage.parts.iter().map(|part| (part.what.as_str(), show::size(part.bytes) + "  " + &part.why)));
    }
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::UsagePart;

    #[test]
    fn reasons_are_shown_when_asked_for() {
        let part = UsagePart { what: "journal".into(), bytes: 1024, why: "recycled".into() };
        let usage = Usage {
            logical_bytes: 4096,
            disk_total_bytes: 2048,
            disk_free_bytes: 1024,
            parts: vec![part.clone(), part],
        };
        let plain = "files hold    4.00 KiB\nstore takes   2.00 KiB\nfree on disk  1.00 KiB of 2.00 KiB\n";
        assert_eq!(describe(&usage, false), plain);
        assert!(describe(&usage, true).ends_with("journal       1.00 KiB  recycled\n"));
    }
}
