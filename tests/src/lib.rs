//! Shared harness of the tests that look at phifs from outside: real mounts, real processes, real power cuts.
//!
//! Nothing here knows the insides of phifs. A test asks for a [`Place`], a directory on a mounted phifs in one of its
//! two data modes, and works there with ordinary system calls; `PHIFS_TEST_ON=ext4` gives it a directory on a loop
//! mounted ext4 instead, which shows whether a failure lies in phifs or in the test. Every mount, loop device and
//! process is owned by a value whose `Drop` removes it, also when the test panics; what is left of a test that was
//! killed goes with its mount namespace, and its directories at the next run.
//!
//! Environment: `PHIFS_BIN` (the binary under test), `PHIFS_LONG=1` (the long forms), `PHIFS_SEED` (repeat a random
//! run), `PHIFS_NO_SKIP=1` (a test that cannot run here fails instead of being skipped).

pub mod checks;
pub mod differences;
mod ext4;
pub mod load;
mod network;
mod node;
pub mod ops;
pub mod pattern;
mod place;
mod process;
mod scratch;

pub use ext4::Ext4Loop;
pub use network::{Host, Network};
pub use node::{DataMode, Node, is_mounted, phifs_bin};
pub use place::Place;
pub use process::{Background, Ran, run, run_ok, wait_until};
pub use scratch::scratch;

/// Whether the long forms of the tests were asked for.
pub fn long() -> bool {
    std::env::var_os("PHIFS_LONG").is_some_and(|value| value != "0")
}

/// The seed of a random test: `PHIFS_SEED`, else the given one, which is fixed so that a failure in CI can be repeated.
pub fn seed_or(default: u64) -> u64 {
    std::env::var("PHIFS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Whether the tests were told to run on ext4 instead of phifs, to test the tests.
pub fn on_ext4() -> bool {
    std::env::var_os("PHIFS_TEST_ON").is_some_and(|value| value == "ext4")
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Ends a test that cannot run here, with a line that says so; fails it where skipping is forbidden.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        let reason = format!($($reason)*);
        assert!(
            std::env::var_os("PHIFS_NO_SKIP").is_none() || $crate::on_ext4(),
            "cannot run here: {reason}"
        );
        eprintln!("skipped: {reason}");
        return;
    }};
}

/// Defines a test once and runs it in both data modes: `both_modes!(name, |place: &Place| ..)`.
#[macro_export]
macro_rules! both_modes {
    ($(#[$meta:meta])* $name:ident, $body:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn body(place: &mut $crate::Place) {
                let body: fn(&mut $crate::Place) = $body;
                body(place);
            }

            $(#[$meta])*
            #[test]
            fn passthrough() {
                if !$crate::is_root() {
                    $crate::skip!("passthrough and loop devices need root");
                }
                body(&mut $crate::Place::new($crate::DataMode::Passthrough));
            }

            $(#[$meta])*
            #[test]
            fn writeback() {
                if !$crate::is_root() {
                    $crate::skip!("loop devices need root");
                }
                body(&mut $crate::Place::new($crate::DataMode::Writeback));
            }
        }
    };
}
