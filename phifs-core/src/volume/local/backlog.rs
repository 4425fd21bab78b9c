//! What other members lack: how many bytes, and since when, as far as the log of operations reaches back.
//!
//! Who is away for long lacks ever more, and somebody may look every second. What was counted is therefore kept, and only
//! what came since is read; whoever says that it has more is counted anew, and is nearly always about to have all.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::causal::VersionVector;
use crate::identity::NodePublicKey;
use crate::namespace::apply::GENESIS_DOT;
use crate::namespace::tables::malformed;
use crate::time::Hlc;
use crate::volume::Result;

use super::LocalVolume;
use super::groups::weigh;

/// How far a member is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Bytes of files in operations that it has not vouched for.
    pub bytes: u64,
    /// When the oldest operation was made that it has not heard of. Nothing if there is none, or if that is not known:
    /// the log does not reach back so far, or the member has not been heard of.
    pub oldest: Option<Hlc>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    UnderReplicated,
    Unconfirmed(NodePublicKey),
    Unheard(NodePublicKey),
}

/// All between two states of knowledge.
#[derive(Clone)]
struct Counted {
    from: VersionVector,
    upto: VersionVector,
    /// Whether the log had all of it.
    is_all: bool,
    bytes: u64,
    oldest: Option<Hlc>,
}

#[derive(Default)]
pub(super) struct Backlogs(Mutex<BTreeMap<What, Counted>>);

impl LocalVolume {
    /// How far a member is behind. `heard`: what it has said to know.
    pub fn backlog_of(&self, node: NodePublicKey, heard: Option<&VersionVector>) -> Result<Backlog> {
        let not_heard = heard.map(|heard| self.count(What::Unheard(node), heard)).transpose()?.flatten();
        Ok(Backlog {
            bytes: self.bytes_beyond(What::Unconfirmed(node), &self.held_by(node))?,
            oldest: not_heard.and_then(|counted| counted.oldest),
        })
    }

    /// The bytes of files in operations that not all members have vouched for.
    pub fn under_replicated_bytes(&self) -> Result<u64> {
        let mut floor = self.context();
        for (key, _) in self.members()?.into_iter().filter(|(key, _)| *key != self.key.public()) {
            let held = self.held_by(key);
            floor =
                floor.iter().fold(VersionVector::new(), |all, (author, n)| all.with(author, n.min(held.get(author))));
        }
        self.bytes_beyond(What::UnderReplicated, &floor)
    }

    /// All that there is, if the log does not tell.
    fn bytes_beyond(&self, what: What, floor: &VersionVector) -> Result<u64> {
        let counted = self.count(what, floor)?;
        Ok(counted.map_or_else(|| self.store.usage().data_plain_bytes, |counted| counted.bytes))
    }

    /// What is beyond `floor`; nothing if the log does not have all of it.
    fn count(&self, what: What, floor: &VersionVector) -> Result<Option<Counted>> {
        let context = self.context();
        self.seal()?;
        let known = self.backlogs.0.lock().remove(&what).filter(|known| known.from == *floor);
        let new = || Counted { from: floor.clone(), upto: floor.clone(), is_all: true, bytes: 0, oldest: None };
        let mut counted = known.unwrap_or_else(new);
        if counted.is_all {
            self.count_on(&mut counted, &context)?;
        }
        self.backlogs.0.lock().insert(what, counted.clone());
        Ok(Some(counted).filter(|counted| counted.is_all))
    }

    fn count_on(&self, counted: &mut Counted, context: &VersionVector) -> Result<()> {
        let beyond = context.missing_from(&counted.upto);
        let beyond: Vec<_> = beyond.filter(|(author, _)| *author != GENESIS_DOT.author).collect();
        let Ok(Some(groups)) = self.oplog.ranges(&beyond) else {
            counted.is_all = false;
            return Ok(());
        };
        for group in groups {
            let author = group.author_id();
            let weight = weigh(&group, counted.upto.get(author) + 1);
            let (bytes, first) = weight.map_err(|e| malformed("group", &author.0, e))?;
            counted.bytes += bytes;
            counted.oldest = [counted.oldest, first].into_iter().flatten().min();
        }
        counted.upto.join(context);
        Ok(())
    }
}
