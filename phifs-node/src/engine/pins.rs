//! Pinned paths, as the control socket asks for them.

use parking_lot::Mutex;

use super::conflicts::explain;
use super::{Engine, counted};
use crate::control::Progress;
use crate::failure::Failure;
use crate::report;
use crate::show::Name;

impl Engine {
    /// Makes a rule, and fetches what is pinned and elsewhere.
    pub fn pin(&self, path: &Name, progress: &mut dyn FnMut(Progress)) -> Result<report::Pin, Failure> {
        self.volume.pin_path(&path.bytes()).map_err(|error| explain(path, &error))?;
        let progress = Mutex::new(progress);
        let tell = |bytes: u64| (progress.lock())(counted("looking at", bytes >> 20, None, "MiB"));
        let here = self.volume.fetch_pinned(&tell).map_err(Failure::plain)?;
        Ok(report::Pin { files: here.files, bytes: here.bytes, incomplete_files: here.incomplete })
    }

    pub fn pins(&self) -> Result<Vec<Name>, Failure> {
        let paths = self.volume.pinned_paths().map_err(Failure::plain)?;
        Ok(paths.iter().map(|path| Name::new(path)).collect())
    }

    pub fn unpin(&self, path: &Name) -> Result<(), Failure> {
        if self.volume.unpin_path(&path.bytes()).map_err(Failure::plain)? {
            return Ok(());
        }
        let failure = Failure::plain(format!("{} is not pinned", path.quoted()));
        Err(failure.hint("phifs pin --list shows what is"))
    }
}
