//! `phifs token` and `phifs wait`: to find on one machine what was written on another.

use std::time::Duration;

use super::Context;
use crate::control::Request;
use crate::failure::{Failure, Kind};
use crate::report::{Reached, SessionToken};

/// Print a word for what is here now, for `phifs wait` on another machine
#[derive(clap::Args)]
#[command(after_help = "What is closed counts; of files that are open, what was last published.\n\nExample:\n  \
    ssh cellar phifs wait --for $(phifs token) && ssh cellar make -C /phi/project")]
pub struct Token {}

/// Wait until everything is here that was where a token was made
#[derive(clap::Args)]
#[command(after_help = "Whoever reads or writes here afterwards sees all of that.\n\nExamples:\n  \
    phifs wait --for phit1-ae3d...\n  phifs wait --for phit1-ae3d... --timeout 10s")]
pub struct Wait {
    /// What `phifs token` has printed
    #[arg(long = "for", value_name = "TOKEN")]
    token: String,
    /// Give up after this
    #[arg(long, value_name = "SPAN", default_value = "1m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

impl Token {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let token: SessionToken = context.ask(&Request::Token)?;
        context.output.result(&token, |token| token.token.clone());
        Ok(())
    }
}

impl Wait {
    pub fn run(self, context: &Context) -> Result<(), Failure> {
        let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        let reached: Reached = context.ask(&Request::Wait { token: self.token, timeout_ms })?;
        if reached.behind > 0 {
            let text = format!("{} operations have not arrived in time", reached.behind);
            return Err(Failure::new(Kind::Failed, text).hint("phifs members shows who is connected"));
        }
        context.output.result(&reached, |_| String::new());
        Ok(())
    }
}
