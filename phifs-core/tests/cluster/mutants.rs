//! Mistakes that must be found out.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::world::World;

/// Of so many seeds at least one must find each mistake.
const SEEDS: u64 = 40;

/// What the driver of the sessions does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Nothing.
    None,
    /// Groups are told in another order than that of their causes.
    OutOfOrder,
    /// What has come counts as known before it is taken in.
    ContextBeforeData,
    /// What has come is acknowledged before the kernel has dropped what it cached.
    AcknowledgeEarly,
    /// The word of another node counts whoever signed it.
    UnverifiedReceipts,
    /// A node vouches for what has not reached its disk.
    ReceiptBeforeSync,
}

/// Fails unless it is found out, by the promise that it breaks.
fn dies(mutant: Mutant, promise: &str) {
    let found = (0..SEEDS).find_map(|seed| {
        let lived = catch_unwind(AssertUnwindSafe(|| World::new(seed, mutant, false).run()));
        lived.err().map(|why| why.downcast_ref::<String>().cloned().unwrap_or_default())
    });
    let found = found.unwrap_or_else(|| panic!("{mutant:?} is not found out by {SEEDS} seeds"));
    assert!(found.contains(promise), "{mutant:?} is found out by something else: {found}");
}

#[test]
fn groups_told_out_of_causal_order_are_found_out() {
    dies(Mutant::OutOfOrder, "do not come to be the same");
}

#[test]
fn a_context_that_is_raised_before_the_data_is_found_out() {
    dies(Mutant::ContextBeforeData, "lost what it promised");
}

#[test]
fn an_acknowledgement_before_the_invalidation_is_found_out() {
    dies(Mutant::AcknowledgeEarly, "was not told");
}

#[test]
fn receipts_that_count_before_they_are_verified_are_found_out() {
    dies(Mutant::UnverifiedReceipts, "counts on");
}

#[test]
fn receipts_that_are_given_before_the_sync_are_found_out() {
    dies(Mutant::ReceiptBeforeSync, "lost what it promised");
}
