//! The side of the control socket that asks.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::answer::read_answer;
use super::{Progress, Request, descriptor, encode, with_short_path};
use crate::failure::{Failure, Kind};
use crate::show;
use crate::store_dir::StoreDir;

const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);

/// A connection to the daemon of a store, good for one request.
pub struct Client {
    stream: UnixStream,
    log: PathBuf,
}

impl Client {
    /// Fails with `Kind::NotRunning` when no daemon serves the store.
    pub fn connect(store: &StoreDir) -> Result<Self, Failure> {
        let socket = store.control_socket();
        let at = show::path(store.path());
        match with_short_path(&socket, |path| UnixStream::connect(path)) {
            Ok(stream) => Ok(Self { stream, log: store.log_file() }),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                let failure = Failure::new(Kind::NotRunning, format!("no daemon serves the store {at}"));
                Err(failure.hint("start it with: phifs up"))
            }
            Err(error) => {
                let failure = Failure::plain(format!("cannot reach the daemon at {}: {error}", show::path(&socket)));
                Err(failure.hint("run the command as the user who runs the daemon, or as root"))
            }
        }
    }

    /// Sends the request, hands on progress as it comes, and returns the answer.
    pub fn call<T: DeserializeOwned>(
        self,
        request: &Request,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<T, Failure> {
        self.call_with(request, None, progress)
    }

    /// The same for a request about a file: the daemon gets a copy of its descriptor.
    pub fn call_with<T: DeserializeOwned>(
        self,
        request: &Request,
        file: Option<BorrowedFd<'_>>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<T, Failure> {
        let broken = |error: io::Error| {
            let what = match error.kind() {
                io::ErrorKind::WouldBlock => format!("has not answered for {} seconds", ANSWER_TIME_MAX.as_secs()),
                _ => format!("broke off: {error}"),
            };
            let log = show::path(&self.log);
            Failure::plain(format!("the daemon {what}")).hint(format!("look into its log file {log}"))
        };
        let limit = (!request.is_long()).then_some(ANSWER_TIME_MAX);
        self.stream.set_read_timeout(limit).map_err(broken)?;
        descriptor::send(&self.stream, &encode("request", request), file).map_err(broken)?;
        read_answer(&self.stream, progress, broken)
    }
}
