//! Paths that a user gives: of a file below a mount of the volume, or of the volume itself.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use super::Context;
use crate::control::Request;
use crate::failure::Failure;
use crate::report::Status;

/// The path within the volume, beginning with a slash. One below a mount of the volume is taken as what it is there, and
/// so is a relative one in a shell that stands there; any other is taken as a path of the volume. Nothing is followed, and
/// nothing need exist.
pub(super) fn in_volume(context: &Context, path: &Path) -> Result<Vec<u8>, Failure> {
    let status: Status = context.ask(&Request::Status)?;
    let mounts: Vec<PathBuf> =
        status.mounts.iter().map(|mount| PathBuf::from(std::ffi::OsStr::from_bytes(&mount.bytes()))).collect();
    Ok(within(&mounts, std::env::current_dir().ok().as_deref(), path))
}

fn within(mounts: &[PathBuf], here: Option<&Path>, path: &Path) -> Vec<u8> {
    let absolute = match here {
        Some(here) if mounts.iter().any(|mount| here.starts_with(mount)) => here.join(path),
        _ => Path::new("/").join(path),
    };
    let absolute = without_dots(&absolute);
    let below =
        mounts.iter().filter_map(|mount| absolute.strip_prefix(mount).ok()).min_by_key(|rest| rest.as_os_str().len());
    let rest = below.unwrap_or_else(|| absolute.strip_prefix("/").unwrap_or(&absolute));
    Path::new("/").join(rest).as_os_str().as_bytes().to_vec()
}

fn without_dots(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_volume() {
        let mounts = [PathBuf::from("/phi"), PathBuf::from("/phi2/x")];
        let at = |here: &str, path: &str| {
            String::from_utf8(within(&mounts, Some(Path::new(here)), Path::new(path))).unwrap()
        };
        assert_eq!(at("/root", "/phi/a/b"), "/a/b");
        assert_eq!(at("/root", "/phi"), "/");
        assert_eq!(at("/root", "/phi2/x/./a/../b"), "/b");
        assert_eq!(at("/phi/dir", "file"), "/dir/file");
        assert_eq!(at("/phi/dir", "../file"), "/file");
        assert_eq!(at("/root", "a/b"), "/a/b");
        assert_eq!(at("/root", "/etc/x"), "/etc/x");
        assert_eq!(at("/root", "/../.."), "/");
    }
}
