//! A panic while answering one request becomes EIO for that request. The mount lives and the log has the story.
//!
//! Locks held inside this crate are those of parking_lot, which a panic does not poison.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fuser::Errno;
use phifs_core::volume::{self, Ino};

use crate::errno::{errno_of, is_our_fault};

/// Runs the work of one request and turns what went wrong into a number.
pub(crate) fn guarded<T>(op: &'static str, ino: Ino, work: impl FnOnce() -> volume::Result<T>) -> Result<T, Errno> {
    // What the closure borrows is shared state behind locks; each lock's holder leaves it whole at every step.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            if is_our_fault(&error) {
                tracing::error!(op, ino = ino.0, %error, "request failed");
            } else {
                tracing::trace!(op, ino = ino.0, %error, "request refused");
            }
            Err(errno_of(&error))
        }
        Err(panic) => {
            tracing::error!(op, ino = ino.0, panic = panic_text(&*panic), "request panicked");
            Err(Errno::EIO)
        }
    }
}

/// What was said to `panic!`.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "no message"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_becomes_eio() {
        let outcome: Result<(), Errno> = guarded("read", Ino::ROOT, || panic!("deliberate {}", 1));
        assert_eq!(outcome, Err(Errno::EIO));
    }
}
