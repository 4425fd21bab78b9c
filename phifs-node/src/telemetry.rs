//! Logging setup, once per process, and the word to the service manager.
//!
//! Everything goes to standard error: `phifs up` makes that STORE/phifs.log for a daemon in the background, and under
//! systemd it is the journal, which keeps its own times.

use std::fs;
use std::io::{self, IsTerminal as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;

use tracing_subscriber::filter::LevelFilter;

use crate::config::{Config, LogFormat, LogLevel};

/// A log that has grown beyond this is put aside at the next start; one old log is kept.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Starts logging. Of two calls in one process the first holds.
pub fn start(config: &Config) {
    let level = match config.log_level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(config.log_level >= LogLevel::Debug);
    // A failure only means that logging runs already.
    let _ = match (config.log_format, in_journal) {
        (LogFormat::Json, _) => builder.json().try_init(),
        (LogFormat::Text, true) => builder.without_time().try_init(),
        (LogFormat::Text, false) => builder.try_init(),
    };
}

/// Opens the log file for a daemon in the background, after putting a long one aside.
pub fn open_log(path: &Path) -> io::Result<fs::File> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_BYTES_MAX) {
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        fs::rename(path, old)?;
    }
    fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Tells systemd, if that is who started us, what it waits for. Protocol: sd_notify(3).
pub fn tell_service_manager(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&socket),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot tell the service manager that the volume is up");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_log_is_put_aside_and_a_short_one_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("phifs.log");
        open_log(&path).unwrap().set_len(LOG_BYTES_MAX + 1).unwrap();
        assert_eq!(open_log(&path).unwrap().metadata().unwrap().len(), 0);
        assert_eq!(fs::metadata(dir.path().join("phifs.log.1")).unwrap().len(), LOG_BYTES_MAX + 1);
        io::Write::write_all(&mut open_log(&path).unwrap(), b"a\n").unwrap();
        io::Write::write_all(&mut open_log(&path).unwrap(), b"b\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"a\nb\n");
    }
}
