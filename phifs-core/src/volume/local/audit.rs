//! Whether machines that know the same operations have come to the same state, as they must. If ever they have not, nothing is
//! given up any more on this one until people have looked: the other state may be the right one.

use crate::causal::VersionVector;
use crate::identity::NodePublicKey;
use crate::meta::TableId;
use crate::namespace::tables::REPLICATED;

use super::LocalVolume;
use super::peers::Result;

/// Two states that should be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    pub node: NodePublicKey,
    pub context: VersionVector,
    pub ours: [u8; 32],
    pub theirs: [u8; 32],
}

impl LocalVolume {
    /// Compares the state here with what another member says of its own. Says nothing if the two do not know the same.
    pub fn audit(&self, node: NodePublicKey, context: &VersionVector, root: [u8; 32]) -> Result<Option<bool>> {
        if self.context() != *context {
            return Ok(None);
        }
        let head = self.head()?;
        if head.context() != context {
            return Ok(None);
        }
        let ours = head.root();
        if ours == root {
            return Ok(Some(true));
        }
        let roots = head.roots();
        for table in REPLICATED {
            let root = roots.get(TableId(table as u8));
            tracing::error!(%table, ?root, "a map of the state that another node has come to differently");
        }
        tracing::error!(
            %node, ?context, ?ours, theirs = ?root,
            "a node that knows the same has come to another state: nothing is collected until this is looked into"
        );
        *self.divergence.lock() = Some(Divergence { node, context: context.clone(), ours, theirs: root });
        Ok(Some(false))
    }

    /// What was found last, since the start.
    pub fn divergence(&self) -> Option<Divergence> {
        self.divergence.lock().clone()
    }
}
