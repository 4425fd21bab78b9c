//! The answer to a request as a stream of lines: progress, then a result. A starting daemon answers `phifs up` the same
//! way over its standard output.

use std::io::{self, BufRead as _, BufReader, Read, Write};

use serde::de::DeserializeOwned;

use super::{Progress, Reply, decode, encode};
use crate::failure::Failure;

/// A reply is data for a person's command, so even a long listing stays below this.
const REPLY_BYTES_MAX: u64 = 64 << 20;

pub fn write_progress(mut to: impl Write, step: Progress) -> io::Result<()> {
    to.write_all(&encode("reply", &Reply::Progress(step)))
}

/// Ends the answer.
pub fn write_result(mut to: impl Write, result: Result<serde_json::Value, Failure>) -> io::Result<()> {
    let reply = result.map_or_else(Reply::Failed, Reply::Done);
    to.write_all(&encode("reply", &reply))?;
    to.flush()
}

/// Reads up to the result and hands on progress as it comes. `broken` explains an answer that ends without one.
pub fn read_answer<T: DeserializeOwned>(
    from: impl Read,
    progress: &mut dyn FnMut(Progress),
    broken: impl Fn(io::Error) -> Failure,
) -> Result<T, Failure> {
    let mut lines = BufReader::new(from);
    let foreign = |error: &dyn std::fmt::Display| {
        Failure::plain(format!("cannot understand the daemon: {error}"))
            .hint("the daemon may be of another version; restart it with: phifs down, phifs up")
    };
    loop {
        let mut line = Vec::new();
        (&mut lines).take(REPLY_BYTES_MAX).read_until(b'\n', &mut line).map_err(&broken)?;
        if line.last() != Some(&b'\n') {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
        match decode("reply", &line).map_err(|error| foreign(&error))? {
            Reply::Progress(step) => progress(step),
            Reply::Done(value) => return serde_json::from_value(value).map_err(|error| foreign(&error)),
            Reply::Failed(failure) => return Err(failure),
        }
    }
}
