//! What the daemon tells those who watch many machines: numbers in the text format of Prometheus, over HTTP.
//!
//! It listens on loopback alone: nothing in it is secret, but nobody is asked who they are. One connection is answered at
//! a time, each within `TIME_MAX`, whatever it sends or does not read.

use std::fmt::{Display, Write as _};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::failure::{Failure, Kind};

/// How long one who asks may take to say what, and then to read.
const TIME_MAX: Duration = Duration::from_secs(2);
const REQUEST_BYTES_MAX: usize = 4096;
/// How often it is looked whether all ends.
const LOOK: Duration = Duration::from_millis(100);

/// Answers until dropped.
pub struct Server {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// `page` makes what is told.
    pub fn start(address: SocketAddr, page: impl Fn() -> String + Send + 'static) -> Result<Self, Failure> {
        let unbound = |error: io::Error| {
            let kind = if error.kind() == io::ErrorKind::AddrInUse { Kind::InUse } else { Kind::Failed };
            Failure::new(kind, format!("cannot listen at {address} (TCP) for the metrics: {error}"))
                .hint("choose another port with --metrics ADDR:PORT")
        };
        let listener = TcpListener::bind(address).map_err(unbound)?;
        listener.set_nonblocking(true).map_err(unbound)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
            while !stop.load(Ordering::Acquire) {
                match listener.accept() {
                    // Whoever goes away too early is not missed.
                    Ok((stream, _)) => drop(answer(&stream, &page)),
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        });
        tracing::info!(%address, "metrics");
        Ok(Self { stopping, thread: Some(thread.map_err(unbound)?) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(mut stream: &TcpStream, page: &impl Fn() -> String) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let until = Instant::now() + TIME_MAX;
    let mut asked = Vec::new();
    while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut piece = [0; 512];
        stream.set_read_timeout(Some(left(until)?))?;
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            len => asked.extend_from_slice(&piece[..len]),
        }
        if asked.len() > REQUEST_BYTES_MAX {
            return Ok(());
        }
    }
    let (status, kind, body) = if asked.starts_with(b"GET /metrics ") {
        ("200 OK", "text/plain; version=0.0.4; charset=utf-8", page())
    } else {
        ("404 Not Found", "text/plain; charset=utf-8", "see /metrics\n".to_owned())
    };
    let head = format!(
        "HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let told = [head.as_bytes(), body.as_bytes()].concat();
    let (until, mut rest) = (Instant::now() + TIME_MAX, &told[..]);
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left(until)?))?;
        rest = &rest[stream.write(rest)?..];
    }
    Ok(())
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Checks what a setting says.
pub fn check_address(address: SocketAddr) -> Result<SocketAddr, String> {
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err("metrics are told on loopback alone, as in 127.0.0.1:9447, because nobody is asked who they are".to_owned())
    }
}

/// A page under way.
#[derive(Default)]
pub struct Page(String);

impl Page {
    /// Begins a metric; its values have to follow. `kind` is `counter`, `gauge` or `histogram`.
    pub fn metric(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    pub fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if at == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    /// Times of something, as a histogram: how many took at most so long, how many there were, and how long all took.
    pub fn times(&mut self, name: &str, labels: &[(&str, &str)], within: &[(Duration, u64)], all: (u64, Duration)) {
        let bounds = within.iter().map(|(time, count)| (time.as_secs_f64().to_string(), *count));
        for (bound, count) in bounds.chain([("+Inf".to_owned(), all.0)]) {
            self.value(&format!("{name}_bucket"), &[labels, &[("le", &bound)]].concat(), count);
        }
        self.value(&format!("{name}_sum"), labels, all.1.as_secs_f64());
        self.value(&format!("{name}_count"), labels, all.0);
    }

    /// One that has one value.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.metric(name, kind, help);
        self.value(name, &[], value);
    }

    pub fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served() -> (SocketAddr, Server) {
        // The port is free an instant before.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        (address, Server::start(address, || "up 1\n".to_owned()).unwrap())
    }

    fn say(address: SocketAddr, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn metrics_are_told_to_those_who_ask_and_to_nobody_else() {
        let (address, _server) = served();
        let told = say(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(told.starts_with("HTTP/1.0 200 OK\r\n") && told.ends_with("\r\n\r\nup 1\n"), "{told}");
        assert!(say(address, b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.0 404"));
        assert_eq!(say(address, &[b'x'; 100_000]), "");
    }

    #[test]
    fn whoever_says_nothing_holds_up_others_for_a_moment_only() {
        let (address, _server) = served();
        let silent = TcpStream::connect(address).unwrap();
        let began = Instant::now();
        assert!(say(address, b"GET /metrics HTTP/1.0\r\n\r\n").contains("up 1"));
        assert!(began.elapsed() < TIME_MAX * 3);
        drop(silent);
    }

    #[test]
    fn labels_cannot_end_their_line() {
        let mut page = Page::default();
        page.value("a", &[("x", "1"), ("y", "\"}\n\\")], 7);
        assert_eq!(page.finish(), "a{x=\"1\",y=\"\\\"}\\n\\\\\"} 7\n");
    }

    #[test]
    fn times_are_a_histogram() {
        let (mut page, ms) = (Page::default(), Duration::from_millis(1));
        page.times("a_seconds", &[("kind", "read")], &[(ms / 100, 1), (ms * 100, 3)], (4, ms * 2500));
        assert_eq!(
            page.finish(),
            "a_seconds_bucket{kind=\"read\",le=\"0.00001\"} 1\na_seconds_bucket{kind=\"read\",le=\"0.1\"} 3\n\
             a_seconds_bucket{kind=\"read\",le=\"+Inf\"} 4\na_seconds_sum{kind=\"read\"} 2.5\n\
             a_seconds_count{kind=\"read\"} 4\n"
        );
    }

    #[test]
    fn only_loopback_is_listened_to() {
        assert!(check_address("127.0.0.1:1".parse().unwrap()).is_ok());
        assert!(check_address("[::1]:1".parse().unwrap()).is_ok());
        assert!(check_address("0.0.0.0:1".parse().unwrap()).is_err());
        assert!(check_address("192.0.2.7:1".parse().unwrap()).is_err());
    }
}
