//! Under which author this node makes its operations (research/crdt-fs.md, section 1.5: reusing one is the one fatal error).
//!
//! What always holds: no operation is made under a number that an older run of this store may have used for another one. A
//! store on the disk does not tell whether it is an old copy, so one that others have as well begins each run as a new author;
//! and whoever hears of operations of its own that it did not make goes on as another one.

use crate::causal::VersionVector;
use crate::identity::{Author, NodeKey};
use crate::store::StoreError;
use crate::time::Env;

use super::LocalVolume;
use super::state::State;
use super::upkeep::Checkpoint;

pub(super) fn new_author(env: &dyn Env, key: &NodeKey) -> Author {
    let mut incarnation = [0; 8];
    incarnation.copy_from_slice(&env.random()[..8]);
    Author { node: key.public(), incarnation: u64::from_le_bytes(incarnation) }
}

/// Whether a new run may go on as the author of the one before.
pub(super) fn goes_on(before: &Checkpoint, state: &State) -> bool {
    before.clean && !state.is_replicated() && !state.is_known_to_have_done_more(before.author.id())
}

impl LocalVolume {
    /// Goes on as another author if somebody who knows this knows more of what this one did than it knows itself.
    pub(super) fn change_author_if_behind(&self, state: &mut State, theirs: &VersionVector) -> Result<(), StoreError> {
        let author = state.author_id();
        if theirs.get(author) > state.context.get(author) { self.change_author(state) } else { Ok(()) }
    }

    pub(super) fn change_author(&self, state: &mut State) -> Result<(), StoreError> {
        let (old, new) = (state.author_id(), new_author(&*self.env, &self.key));
        let changes = state.become_author(new);
        state.commit_local(changes, self.env.now(), &self.journal)?;
        tracing::warn!(%old, new = %new.id(), "this store is an old copy of itself: it goes on as a new author");
        Ok(())
    }
}
