//! Requests and answers on the streams of a connection.

use std::time::Duration;

use bytes::Bytes;
use phifs_core::codec::DecodeError;
use phifs_core::ssep::{Answer, FRAME_BYTES_MAX, Note, REQUEST_BYTES_MAX, Refusal, Request};
use quinn::{Connection, ReadExactError, RecvStream, SendStream};
use tokio::sync::mpsc;

use super::AbortOnDrop;
use super::traffic::{self, Path};

/// How long a peer that is there may take for anything but what it is to wait for.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
const REQUEST_TIME_MAX: Duration = Duration::from_secs(20);
const TOO_LITTLE: &str = "it says less than it announced";

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the connection ended: {0}")]
    Lost(String),
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    #[error("no answer in time")]
    Silent,
    #[error("it says what makes no sense: {0}")]
    Malformed(#[from] DecodeError),
    #[error("it sends {0} bytes at once, which is more than is allowed")]
    TooLong(usize),
    #[error("it refuses: {text}")]
    Refused { why: Refusal, text: String },
    #[error("it says that this node is no member any more")]
    NoMember,
    #[error("it answers with something else than was asked for")]
    Unexpected,
}

pub type Result<T> = std::result::Result<T, WireError>;

pub fn lost(error: impl std::fmt::Display) -> WireError {
    WireError::Lost(error.to_string())
}

/// What comes back.
pub struct Answers {
    pub stream: RecvStream,
}

/// Asks for something.
pub async fn ask(connection: &Connection, request: &Request) -> Result<Answers> {
    let (mut send, answers) = begin(connection, request).await?;
    send.finish().map_err(|error| failed(connection, error))?;
    Ok(answers)
}

/// Asks for something, with more to say about it later.
pub async fn begin(connection: &Connection, request: &Request) -> Result<(SendStream, Answers)> {
    let (mut send, stream) = connection.open_bi().await.map_err(|error| failed(connection, error))?;
    write(&mut send, &request.encode()).await.map_err(|error| failed(connection, error))?;
    Ok((send, Answers { stream }))
}

/// A stream only knows that its connection was lost.
fn failed(connection: &Connection, error: impl std::fmt::Display) -> WireError {
    match connection.close_reason() {
        Some(reason) => lost(reason),
        None => lost(error),
    }
}

/// Asks for something that has one answer.
pub async fn ask_one(connection: &Connection, request: &Request, patience: Duration) -> Result<Answer> {
    let asking = async { ask(connection, request).await?.next().await };
    let answer = tokio::time::timeout(patience, asking).await.map_err(|_| WireError::Silent)?;
    answer.map_err(|error| match (error, connection.close_reason()) {
        (WireError::Lost(_), Some(reason)) => lost(reason),
        (error, _) => error,
    })
}

impl Answers {
    /// The next answer. There has to be one, and a refusal is an error.
    pub async fn next(&mut self) -> Result<Answer> {
        decode_answer(&read(&mut self.stream, FRAME_BYTES_MAX).await?)
    }

    /// All that come.
    pub fn ahead(self) -> (Ahead<Answer>, AbortOnDrop) {
        read_ahead(self.stream, FRAME_BYTES_MAX, decode_answer)
    }
}

fn decode_answer(bytes: &Bytes) -> Result<Answer> {
    let answer = Answer::decode(bytes)?;
    traffic::received(Path::of(&answer), bytes.len());
    match answer {
        Answer::Refused { why, text } => Err(WireError::Refused { why, text }),
        answer => Ok(answer),
    }
}

/// Messages as they come, and how it ended.
pub type Ahead<T> = mpsc::Receiver<Result<T>>;

/// Reads in a task of its own: reading must not be broken off in the middle of a message. No more than a few are read
/// ahead, so whoever says too much has to wait.
fn read_ahead<T: Send + 'static>(
    mut stream: RecvStream,
    bytes_max: usize,
    decode: fn(&Bytes) -> Result<T>,
) -> (Ahead<T>, AbortOnDrop) {
    let (out, received) = mpsc::channel(4);
    let reading = tokio::spawn(async move {
        loop {
            let message = read(&mut stream, bytes_max).await.and_then(|bytes| decode(&bytes));
            let is_last = message.is_err();
            if out.send(message).await.is_err() || is_last {
                return;
            }
        }
    });
    (received, AbortOnDrop(reading.abort_handle()))
}

/// Reads what a peer asks for.
pub async fn request(stream: &mut RecvStream) -> Result<Request> {
    let reading = tokio::time::timeout(REQUEST_TIME_MAX, read(stream, REQUEST_BYTES_MAX));
    Ok(Request::decode(&reading.await.map_err(|_| WireError::Silent)??)?)
}

pub async fn answer(stream: &mut SendStream, answer: &Answer) -> Result<()> {
    let (head, rest) = answer.parts();
    let len = head.len() + rest.len();
    traffic::sent(Path::of(answer), len);
    let mut frame = [Bytes::copy_from_slice(&frame_len(len)), head.into(), rest];
    stream.write_all_chunks(&mut frame).await.map_err(lost)
}

/// The notes of somebody who follows.
pub fn notes_ahead(stream: RecvStream) -> (Ahead<Note>, AbortOnDrop) {
    read_ahead(stream, REQUEST_BYTES_MAX, |bytes| Ok(Note::decode(bytes)?))
}

pub async fn note(stream: &mut SendStream, note: &Note) -> Result<()> {
    write(stream, &note.encode()).await
}

/// Messages are frames: a length, then so many bytes.
async fn write(stream: &mut SendStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(&frame_len(bytes.len())).await.map_err(lost)?;
    stream.write_all(bytes).await.map_err(lost)
}

fn frame_len(len: usize) -> [u8; 4] {
    u32::try_from(len).expect("messages are limited").to_le_bytes()
}

async fn read(stream: &mut RecvStream, bytes_max: usize) -> Result<Bytes> {
    let mut len = [0; 4];
    let early = |error| match error {
        ReadExactError::FinishedEarly(_) => lost(TOO_LITTLE),
        ReadExactError::ReadError(error) => lost(error),
    };
    stream.read_exact(&mut len).await.map_err(early)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > bytes_max {
        return Err(WireError::TooLong(len));
    }
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let chunk = stream.read_chunk(len - bytes.len(), true).await.map_err(lost)?;
        bytes.extend_from_slice(&chunk.ok_or_else(|| lost(TOO_LITTLE))?.bytes);
    }
    Ok(bytes.into())
}
