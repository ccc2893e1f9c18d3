//! Paths from the CO: absolute, without `..`, and resolved up to their last component before they are compared with
//! mountinfo.

use std::path::{Component, Path, PathBuf};

use crate::os::Os;
use crate::types::{Error, Kind, OsContext, Result};

/// Checks a path and resolves symbolic links in its parent. The last component is not accessed: it may be a dead mount,
/// and access would fail or hang. `None` when the parent does not exist, so nothing can be there.
///
/// # Errors
/// `InvalidArgument` for a path that is relative, has `..` or is the root; `Internal` when the parent cannot be
/// resolved.
pub(super) fn resolve(os: &Os, path: &Path) -> Result<Option<PathBuf>> {
    let bad = |why: &str| Error::new(Kind::InvalidArgument, format!("path {} is not allowed: {why}", path.display()));
    if !path.is_absolute() {
        return Err(bad("it is not absolute"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(bad("it contains .."));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(bad("it is the root directory"));
    };
    let parent = os.canonical(parent).at(|| format!("resolve {}", parent.display()))?;
    Ok(parent.map(|parent| parent.join(name)))
}

/// The same for a path whose mount is to be removed. If the parent does not exist, the path is used as written, because
/// a mount may be listed there under another mount that has no such directory.
///
/// # Errors
/// As [`resolve`].
pub(super) fn known(os: &Os, path: &Path) -> Result<PathBuf> {
    Ok(resolve(os, path)?.unwrap_or_else(|| path.components().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_paths_that_stay_where_they_say() {
        let os = Os::new();
        for path in ["relative/path", "/a/../b", "/", ""] {
            assert_eq!(resolve(&os, Path::new(path)).unwrap_err().kind(), Kind::InvalidArgument, "{path}");
        }
        assert_eq!(resolve(&os, Path::new("/no-such-directory/x/y")).unwrap(), None);
    }

    #[test]
    fn links_above_are_followed_and_the_last_part_is_not_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("real");
        std::fs::create_dir(&real).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let resolved = resolve(&Os::new(), &link.join("absent/")).unwrap().unwrap();
        assert_eq!(resolved, real.canonicalize().unwrap().join("absent"));
    }
}
