//! Requests and answers on the streams of a connection.

use std::time::Duration;

use phifs_core::codec::DecodeError;
use phifs_core::ssep::{Answer, FRAME_BYTES_MAX, REQUEST_BYTES_MAX, Refusal, Request};
use quinn::{Connection, ReadExactError, RecvStream, SendStream};

/// How long a peer that is there may take for anything but what it is to wait for.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
const REQUEST_TIME_MAX: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("the connection ended: {0}")]
    Lost(String),
    #[error("no answer in time")]
    Silent,
    #[error("it says what makes no sense: {0}")]
    Malformed(#[from] DecodeError),
    #[error("it sends {0} bytes at once, which is more than is allowed")]
    TooLong(usize),
    #[error("it refuses: {text}")]
    Refused { why: Refusal, text: String },
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
    // A stream only knows that its connection was lost.
    let failed = |error: &dyn std::fmt::Display| match connection.close_reason() {
        Some(reason) => lost(reason),
        None => lost(error),
    };
    let (mut send, stream) = connection.open_bi().await.map_err(|error| failed(&error))?;
    send.write_all(&request.encode()).await.map_err(|error| failed(&error))?;
    send.finish().map_err(|error| failed(&error))?;
    Ok(Answers { stream })
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
        let mut len = [0; 4];
        self.read(&mut len).await?;
        let len = u32::from_le_bytes(len) as usize;
        if len > FRAME_BYTES_MAX {
            return Err(WireError::TooLong(len));
        }
        let mut bytes = vec![0; len];
        self.read(&mut bytes).await?;
        match Answer::decode(&bytes)? {
            Answer::Refused { why, text } => Err(WireError::Refused { why, text }),
            answer => Ok(answer),
        }
    }

    async fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.stream.read_exact(bytes).await.map_err(|error| match error {
            ReadExactError::FinishedEarly(_) => lost("it says less than it announced"),
            ReadExactError::ReadError(error) => lost(error),
        })
    }
}

/// Reads what a peer asks for.
pub async fn request(stream: &mut RecvStream) -> Result<Request> {
    let reading = tokio::time::timeout(REQUEST_TIME_MAX, stream.read_to_end(REQUEST_BYTES_MAX));
    let bytes = reading.await.map_err(|_| WireError::Silent)?.map_err(|error| match error {
        quinn::ReadToEndError::TooLong => WireError::TooLong(REQUEST_BYTES_MAX + 1),
        quinn::ReadToEndError::Read(error) => lost(error),
    })?;
    Ok(Request::decode(&bytes)?)
}

pub async fn answer(stream: &mut SendStream, answer: &Answer) -> Result<()> {
    let bytes = answer.encode();
    let len = u32::try_from(bytes.len()).expect("answers are limited").to_le_bytes();
    stream.write_all(&len).await.map_err(lost)?;
    stream.write_all(&bytes).await.map_err(lost)
}
