//! Streams for those who block: a state is made and read by code that knows of no tasks.

use std::io::{self, Read, Write};
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use tokio::runtime::Handle;

use super::traffic::{self, Path};

/// A peer that reads or says nothing for so long holds up nobody any more.
const STALL_TIME_MAX: Duration = Duration::from_secs(30);

/// To be used where it is allowed to block.
pub struct Incoming {
    stream: RecvStream,
    handle: Handle,
}

pub struct Outgoing {
    stream: SendStream,
    handle: Handle,
}

impl Incoming {
    pub fn new(stream: RecvStream, handle: Handle) -> Self {
        Self { stream, handle }
    }
}

impl Outgoing {
    pub fn new(stream: SendStream, handle: Handle) -> Self {
        Self { stream, handle }
    }

    pub fn into_stream(self) -> SendStream {
        self.stream
    }
}

fn stalled<E>(_: E) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer has stalled")
}

impl Read for Incoming {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let reading = async { tokio::time::timeout(STALL_TIME_MAX, self.stream.read(into)).await };
        let read = self.handle.block_on(reading).map_err(stalled)?.map_err(io::Error::other)?;
        let read = read.unwrap_or(0);
        traffic::received(Path::State, read);
        Ok(read)
    }
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let writing = async { tokio::time::timeout(STALL_TIME_MAX, self.stream.write(bytes)).await };
        let written = self.handle.block_on(writing).map_err(stalled)?.map_err(io::Error::other)?;
        traffic::sent(Path::State, written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
