//! The side of the control socket that answers.
//!
//! Each connection has a thread, at most `CONNECTIONS_MAX` of them. A peer can cost one thread for `REQUEST_TIME_MAX`
//! and one line of memory, no more; a panic while answering becomes a failure for the one who asked.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::answer::{write_progress, write_result};
use super::{LineError, Progress, Request, decode, descriptor, with_short_path};
use crate::failure::{Failure, Kind};

const CONNECTIONS_MAX: usize = 32;
const REQUEST_BYTES_MAX: usize = 64 << 10;
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
const ENDING_TIME_MAX: Duration = Duration::from_secs(2);
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Answers one request; called from many threads at once.
pub trait Handler: Send + Sync + 'static {
    /// `file` came along with the request.
    fn handle(
        &self,
        request: Request,
        file: Option<OwnedFd>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<serde_json::Value, Failure>;
}

/// Listens until dropped, which waits a moment for answers under way.
pub struct Server {
    listener: Arc<UnixListener>,
    stopping: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Takes `socket`, which must not exist, and answers only root and the user who runs this process.
    pub fn start(socket: PathBuf, handler: Arc<dyn Handler>) -> io::Result<Self> {
        let listener = Arc::new(with_short_path(&socket, |path| UnixListener::bind(path))?);
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
        let stopping = Arc::new(AtomicBool::new(false));
        let connections = Arc::new(AtomicUsize::new(0));
        let accept = {
            let (listener, stopping, connections) = (listener.clone(), stopping.clone(), connections.clone());
            move || accept(&listener, &stopping, &connections, &handler)
        };
        let thread = std::thread::Builder::new().name("control".to_owned()).spawn(accept)?;
        Ok(Self { listener, stopping, connections, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread out of accept(2).
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Whoever asked for the end shall hear of it. A peer that says nothing is not waited for.
        let until = Instant::now() + ENDING_TIME_MAX;
        while self.connections.load(Ordering::SeqCst) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn accept(listener: &UnixListener, stopping: &AtomicBool, connections: &Arc<AtomicUsize>, handler: &Arc<dyn Handler>) {
    while !stopping.load(Ordering::SeqCst) {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) if stopping.load(Ordering::SeqCst) => return,
            Err(error) => {
                // Descriptors may have run out; they come back.
                tracing::warn!(%error, "cannot accept a control connection");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let slot = Slot::take(connections);
        let handler = handler.clone();
        let serve = move || {
            let full = slot.is_none();
            // The peer has gone, or was never allowed to ask: nobody is left to tell.
            if let Err(error) = serve(&stream, full, &*handler) {
                tracing::debug!(%error, "a control connection ended early");
            }
            drop(slot);
        };
        if let Err(error) = std::thread::Builder::new().name("control-peer".to_owned()).spawn(serve) {
            tracing::warn!(%error, "cannot serve a control connection");
        }
    }
}

/// One of the `CONNECTIONS_MAX` places.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        let slot = Self(taken.clone());
        (taken.fetch_add(1, Ordering::SeqCst) < CONNECTIONS_MAX).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn serve(stream: &UnixStream, full: bool, handler: &dyn Handler) -> io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_TIME_MAX))?;
    stream.set_write_timeout(Some(REQUEST_TIME_MAX))?;
    let failed = |failure| write_result(stream, Err(failure));
    let peer = rustix::net::sockopt::socket_peercred(stream)?.uid;
    if !peer.is_root() && peer != rustix::process::geteuid() {
        let message = format!("user {} may not control this daemon", peer.as_raw());
        return failed(Failure::plain(message).hint("run the command as the user who runs the daemon, or as root"));
    }
    if full {
        return failed(Failure::new(Kind::InUse, "too many control connections").hint("wait, then ask again"));
    }
    let (line, file) = descriptor::receive_line(stream, REQUEST_BYTES_MAX)?;
    if line.len() == REQUEST_BYTES_MAX {
        return failed(Failure::plain(format!("the request is longer than {REQUEST_BYTES_MAX} bytes")));
    }
    let request: Request = match decode("request", &line) {
        Ok(request) => request,
        Err(error) => {
            let hint = match error {
                LineError::Version(_) => "use the phifs command that belongs to the daemon",
                LineError::Malformed(_) => "the form of requests is in the documentation of the control socket",
            };
            return failed(Failure::plain(error).hint(hint));
        }
    };
    let mut last: Option<(Instant, String)> = None;
    let mut progress = |step: Progress| {
        let news = last.as_ref().is_none_or(|(at, doing)| *doing != step.doing || at.elapsed() >= PROGRESS_INTERVAL);
        if news {
            last = Some((Instant::now(), step.doing.clone()));
            // The work goes on when the one who asked has gone: it is worth doing all the same.
            let _ = write_progress(stream, step);
        }
    };
    let answer = catch_unwind(AssertUnwindSafe(|| handler.handle(request, file, &mut progress)));
    let internal = || Failure::plain("internal error").hint("look into the log file, and report it");
    write_result(stream, answer.unwrap_or_else(|_| Err(internal())))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;

    use super::super::{Client, Handed};
    use super::*;
    use crate::store_dir::StoreDir;

    struct Echo;

    impl Handler for Echo {
        fn handle(
            &self,
            request: Request,
            file: Option<OwnedFd>,
            progress: &mut dyn FnMut(Progress),
        ) -> Result<serde_json::Value, Failure> {
            match request {
                Request::SnapshotImport { .. } => {
                    let mut text = String::new();
                    let mut file = Handed::new(file.expect("it came along"));
                    file.read_to_string(&mut text).unwrap();
                    Ok(text.into())
                }
                Request::Gc => {
                    for doing in ["marking", "sweeping"] {
                        progress(Progress::step(doing));
                    }
                    Ok(serde_json::json!(42))
                }
                Request::Scrub => panic!("for the test"),
                request => Err(Failure::new(Kind::InUse, format!("{request:?}")).hint("wait")),
            }
        }
    }

    fn served() -> (tempfile::TempDir, StoreDir, Server) {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreDir::create(dir.path()).unwrap();
        let server = Server::start(store.control_socket(), Arc::new(Echo)).unwrap();
        (dir, store, server)
    }

    /// What the server says to these bytes.
    fn say(store: &StoreDir, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(store.control_socket()).unwrap();
        // The server may close before it has read everything.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    #[test]
    fn a_request_brings_the_file_that_it_is_about() {
        let (_dir, store, _server) = served();
        let (reader, mut writer) = std::io::pipe().unwrap();
        let said = std::thread::spawn(move || {
            let request = Request::SnapshotImport { name: None, trust: None };
            Client::connect(&store).unwrap().call_with::<String>(&request, Some(reader.as_fd()), &mut |_| {})
        });
        // The pipe's end comes only once nobody else has a copy of this side.
        writer.write_all(b"through the daemon").unwrap();
        drop(writer);
        assert_eq!(said.join().unwrap().unwrap(), "through the daemon");
    }

    #[test]
    fn work_reports_its_steps_and_then_its_result() {
        let (_dir, store, _server) = served();
        let mut steps = Vec::new();
        let answer = Client::connect(&store).unwrap().call(&Request::Gc, &mut |step| steps.push(step.doing));
        assert_eq!((answer, steps), (Ok(42), vec!["marking".to_owned(), "sweeping".to_owned()]));
    }

    #[test]
    fn failures_arrive_whole_and_a_panic_is_one() {
        let (_dir, store, _server) = served();
        let ask = |request| Client::connect(&store).unwrap().call::<()>(&request, &mut |_| {}).unwrap_err();
        let failure = ask(Request::Down { force: true });
        assert_eq!((failure.kind, failure.hint.as_deref()), (Kind::InUse, Some("wait")));
        assert_eq!(ask(Request::Scrub).message, "internal error");
        assert_eq!(ask(Request::Status).message, "Status", "the daemon goes on after a panic");
    }

    #[test]
    fn hostile_lines_get_one_failure_each() {
        let (_dir, store, _server) = served();
        assert!(say(&store, &vec![b'x'; 1 << 20]).contains("longer than 65536 bytes"));
        assert!(say(&store, b"GET / HTTP/1.1\r\n\r\n").contains("not a message"));
        assert!(say(&store, b"").contains("not a message"));
        assert!(say(&store, br#"{"phifs":99}"#).contains("version 99"));
        assert!(say(&store, &[0xff; 100]).contains("not a message"));
    }

    #[test]
    fn store_without_daemon_is_not_running() {
        let (_dir, store, server) = served();
        drop(server);
        assert_eq!(Client::connect(&store).err().unwrap().kind, Kind::NotRunning, "a socket that nobody listens at");
        std::fs::remove_file(store.control_socket()).unwrap();
        assert_eq!(Client::connect(&store).err().unwrap().kind, Kind::NotRunning);
    }

    #[test]
    fn socket_of_a_deep_store_can_be_reached() {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreDir::create(&dir.path().join("deep".repeat(30)).join("er".repeat(60))).unwrap();
        let _server = Server::start(store.control_socket(), Arc::new(Echo)).unwrap();
        let answer = Client::connect(&store).unwrap().call(&Request::Gc, &mut |_| {});
        assert_eq!(answer, Ok(42));
        let mode = std::fs::metadata(store.control_socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
