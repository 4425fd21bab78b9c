//! Descriptors that travel with a request: the daemon reads or writes what the user who asks has opened, with that
//! user's rights, be it a file or a pipe.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use phifs_core::volume::local::OutFile;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// Sends a line, and a copy of the descriptor with its first bytes.
pub fn send(mut stream: &UnixStream, line: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&files)) {
        unreachable!("there is space for one descriptor");
    }
    let sent = retry_on_intr(|| sendmsg(stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL))?;
    stream.write_all(&line[sent..])
}

/// Receives a line of at most `len_max` bytes without its end, or what there is of it, and the descriptor that came along.
/// Whatever else comes is closed.
pub fn receive_line(stream: &UnixStream, len_max: usize) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let (mut line, mut file) = (Vec::new(), None);
    let mut bytes = [0; 4096];
    while line.len() < len_max {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let want = bytes.len().min(len_max - line.len());
        let received = loop {
            let mut into = [IoSliceMut::new(&mut bytes[..want])];
            match recvmsg(stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                received => break received?,
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                file = files.last().or(file);
            }
        }
        let end = bytes[..received.bytes].iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&bytes[..end.unwrap_or(received.bytes)]);
        if end.is_some() || received.bytes == 0 {
            break;
        }
    }
    Ok((line, file))
}

/// A file or pipe that somebody else has opened, perhaps so that it does not wait by itself.
pub struct Handed(File);

impl Handed {
    pub fn new(descriptor: OwnedFd) -> Self {
        Self(descriptor.into())
    }

    fn waiting<T>(&mut self, flags: PollFlags, mut act: impl FnMut(&mut File) -> io::Result<T>) -> io::Result<T> {
        loop {
            match act(&mut self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    retry_on_intr(|| poll(&mut [PollFd::new(&self.0, flags)], None))?;
                }
                result => return result,
            }
        }
    }
}

impl Read for Handed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.waiting(PollFlags::IN, |file| file.read(buf))
    }
}

impl Write for Handed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.waiting(PollFlags::OUT, |file| file.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Handed {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

impl OutFile for Handed {
    fn set_len(&mut self, len_bytes: u64) -> io::Result<()> {
        self.0.set_len(len_bytes)
    }
}
