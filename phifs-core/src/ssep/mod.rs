//! SSEP, what nodes say to each other: messages as data, and how they are written.
//!
//! One request travels on one stream, and what answers it comes back on the same stream. All messages are frames: a length
//! of four bytes, then the message. Which node is at the other end is known from the connection; nothing here says it.
//!
//! | request | answered with | what for |
//! | --- | --- | --- |
//! | `Hello` | `Hello` | version and volume; the first request of each connection |
//! | `Join` | `Joined` | a node that is no member yet becomes one, by the secret of an invitation |
//! | `Members` | `Members` | who takes part |
//! | `Follow` | `Groups`, `Members`, `Settings`, `Behind`, `Hurry`, `Coming`, as long as the link lasts | what the asker does not know, as soon as there is something; meanwhile it sends notes of how far it has come |
//! | `Catch` | `Head`, or `Unchanged` | the state, for who is behind |
//! | `Glyphs` | a `Glyph` for each | the nodes of states, and the bytes of files |
//!
//! Any of them may be answered with `Refused`.
//!
//! What always holds: decoding takes no more memory than a small multiple of the bytes that came, and those are limited
//! before they are read (`REQUEST_BYTES_MAX`, `FRAME_BYTES_MAX`). A message that is not known is an error that says so, and
//! is answered with `Refused`; a peer of a lower minor version is asked for nothing that it does not know.

mod message;
mod moment;
mod receipt;
mod session;
mod token;
mod word;

pub use message::{
    Answer, FRAME_BYTES_MAX, GLYPHS_MAX, Hello, Join, MEMBERS_MAX, MemberEntries, Note, REQUEST_BYTES_MAX, Refusal,
    Request, SettingEntries, hash_of, hash_of_settings,
};
pub use moment::Moment;
pub use receipt::Receipt;
pub use session::{Follower, Next, Progress, Teller, Unbelievable, note_of};
pub use token::{Secret, Token};
pub use word::WordError;

/// Nodes of different major versions have nothing to say to each other: it is part of the name under which they connect.
pub const MAJOR: u16 = 1;
/// Nodes of different minor versions use what both know.
pub const MINOR: u16 = 0;
