//! Which listings that the kernel keeps may be wrong.
//!
//! The kernel (fs/fuse/readdir.c, seen in Linux 6.18) remembers the version of a directory whenever somebody begins to
//! list it and nothing is kept of it yet. So when one reader got its first entries, then somebody changed the
//! directory, and then a second reader began before the first one took its entries in, the entries of the first are
//! kept under the version of the second, until the directory changes again. This is where it is noticed that a
//! directory was changed between two beginnings. The listing is complete for the kernel once it has been told that
//! there is nothing more; when it asks for that, the entries are in its pages. So that is the moment to drop them: the
//! next reader misses the pages and asks again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use phifs_core::volume::{Ino, Lasts};

/// After this, whoever got entries is taken to have taken them in.
const TAKEN_IN_AFTER: Duration = Duration::from_secs(2);

/// Beyond this many, directories that are above suspicion are not remembered any longer than they have to.
const REMEMBERED: usize = 1 << 12;

struct Listing {
    begun: Instant,
    /// Since then.
    changed: bool,
    /// When somebody began to list what had changed since somebody else did.
    suspect: Option<Instant>,
}

#[derive(Default)]
pub(crate) struct Listings(Mutex<HashMap<Ino, Listing>>);

impl Listings {
    /// Somebody lists `dir` from its beginning. To be called before the first entry is looked up.
    pub(crate) fn begin(&self, dir: Ino) {
        let now = Instant::now();
        let mut listings = self.0.lock();
        if listings.len() >= REMEMBERED {
            listings.retain(|_, listing| listing.suspect.is_some() || now - listing.begun < TAKEN_IN_AFTER);
        }
        match listings.entry(dir) {
            Entry::Vacant(unknown) => {
                unknown.insert(Listing { begun: now, changed: false, suspect: None });
            }
            Entry::Occupied(mut known) => {
                let listing = known.get_mut();
                if listing.changed && now - listing.begun < TAKEN_IN_AFTER {
                    listing.suspect = Some(now);
                }
                (listing.begun, listing.changed) = (now, false);
            }
        }
    }

    /// The names in `dir` have changed. To be called between the change and the reply to whoever made it.
    pub(crate) fn changed(&self, dir: Ino) {
        if let Some(listing) = self.0.lock().get_mut(&dir) {
            listing.changed = true;
        }
    }

    /// Somebody is about to be told that `dir` has no more entries. Whether what the kernel keeps of it has to be
    /// dropped before that.
    pub(crate) fn is_suspect_at_end(&self, dir: Ino) -> bool {
        // Nobody tells when such a list changes.
        if dir.lasts() != Lasts::Ever {
            return true;
        }
        let mut listings = self.0.lock();
        let Some(listing) = listings.get_mut(&dir) else { return false };
        let Some(since) = listing.suspect else { return false };
        if since.elapsed() > TAKEN_IN_AFTER {
            listing.suspect = None;
        }
        true
    }

    pub(crate) fn forget(&self, dir: Ino) {
        self.0.lock().remove(&dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: Ino = Ino(7);

    #[test]
    fn listings_of_an_unchanged_directory_are_kept() {
        let listings = Listings::default();
        listings.changed(DIR);
        listings.begin(DIR);
        listings.begin(DIR);
        listings.changed(Ino(8));
        listings.begin(DIR);
        assert!(!listings.is_suspect_at_end(DIR));
    }

    #[test]
    fn change_between_two_beginnings_makes_both_suspect() {
        let listings = Listings::default();
        listings.begin(DIR);
        listings.changed(DIR);
        assert!(!listings.is_suspect_at_end(DIR), "the kernel sees by itself that it is out of date");
        listings.begin(DIR);
        assert!(listings.is_suspect_at_end(DIR));
        assert!(listings.is_suspect_at_end(DIR), "there is a second reader");
        listings.forget(DIR);
        assert!(!listings.is_suspect_at_end(DIR));
    }

    #[test]
    fn lists_that_change_by_themselves_are_never_kept() {
        let listings = Listings::default();
        for list in [Lasts::Moment, Lasts::Itself].map(|lasts| Ino::new_virtual(7, lasts)) {
            listings.begin(list);
            assert!(listings.is_suspect_at_end(list));
        }
        assert!(!listings.is_suspect_at_end(Ino::new_virtual(7, Lasts::Ever)));
    }

    #[test]
    fn directories_above_suspicion_are_not_remembered_for_ever() {
        let listings = Listings::default();
        listings.begin(DIR);
        listings.changed(DIR);
        listings.begin(DIR);
        for n in 0..2 * REMEMBERED as u64 {
            let ino = Ino(100 + n);
            listings.begin(ino);
            listings.0.lock().get_mut(&ino).unwrap().begun -= TAKEN_IN_AFTER;
        }
        assert!(listings.0.lock().len() <= REMEMBERED);
        assert!(listings.is_suspect_at_end(DIR));
    }
}
