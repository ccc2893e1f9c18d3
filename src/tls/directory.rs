//! A directory of key files, written all at once: a reader sees the old files or the new ones, never a mixture.

use std::path::{Path, PathBuf};

use crate::os::Os;
use crate::types::{Error, Kind, OsContext, Result};

/// Makes a directory (0700) contain exactly these files (0600). It may exist if it is empty, or contains only
/// `replaced`.
///
/// 1. Write the files beside it, in `.NAME.new`, and sync them. A crash leaves that directory; the next write removes
///    it.
/// 2. Rename it into place, or exchange it with the existing one. A crash leaves the new files, and the old in
///    `.NAME.new`.
/// 3. Remove the old files.
///
/// # Errors
/// `Precondition` when something else is in the directory, or it cannot be exchanged (a mount point); the old files
/// still exist then.
pub fn write_directory(os: &Os, directory: &Path, files: &[(&str, &str)], replaced: &[&str]) -> Result<()> {
    let target = resolve(os, directory)?;
    let shown = target.display();
    let staging = staging(&target)?;
    let there = os.list_dir(&target).at(|| format!("list {shown}"))?;
    if let Some(other) = there.iter().find(|name| !replaced.contains(&name.as_str())) {
        let why =
            format!("{shown} already contains {other}, which is not overwritten; pass an empty or a new directory");
        return Err(Error::new(Kind::Precondition, why));
    }
    let ours: Vec<&str> = files.iter().map(|(name, _)| *name).chain(replaced.iter().copied()).collect();
    clear(os, &staging, &ours)?;
    let written = write(os, &staging, files).and_then(|()| {
        let placed = if there.is_empty() { os.rename(&staging, &target) } else { os.exchange(&staging, &target) };
        placed.at(|| format!("replace {shown} by {}; pass a directory that does not exist yet", staging.display()))
    });
    if let Err(error) = written {
        // The next write removes what is left; the first error is returned.
        let _ = clear(os, &staging, &ours);
        return Err(error.with_kind(Kind::Precondition));
    }
    let parent = target.parent().unwrap_or(&target);
    os.sync_dir(parent).at(|| format!("fsync {}", parent.display()))?;
    clear(os, &staging, &ours)
}

/// The directory without symbolic links; only its last component may be missing.
fn resolve(os: &Os, directory: &Path) -> Result<PathBuf> {
    let canonical = |path: &Path| os.canonical(path).at(|| format!("resolve {}", path.display()));
    if let Some(found) = canonical(directory)? {
        return Ok(found);
    }
    let parent = match directory.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => directory,
    };
    match (canonical(parent)?, directory.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.join(name)),
        _ => Err(Error::new(Kind::Precondition, format!("{} does not exist; create it first", parent.display()))),
    }
}

fn staging(target: &Path) -> Result<PathBuf> {
    match target.file_name().and_then(|name| name.to_str()) {
        Some(name) => Ok(target.with_file_name(format!(".{name}.new"))),
        None => {
            Err(Error::new(Kind::Precondition, format!("{} cannot be used as a directory for keys", target.display())))
        }
    }
}

fn write(os: &Os, staging: &Path, files: &[(&str, &str)]) -> Result<()> {
    os.create_dir(staging).at(|| format!("create {}", staging.display()))?;
    for (name, content) in files {
        let file = staging.join(name);
        os.write_new(&file, content.as_bytes()).at(|| format!("write {}", file.display()))?;
    }
    os.sync_dir(staging).at(|| format!("fsync {}", staging.display()))
}

fn clear(os: &Os, staging: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let file = staging.join(name);
        os.remove_file(&file).at(|| format!("remove {}", file.display()))?;
    }
    os.remove_dir(staging).at(|| format!("remove {}", staging.display())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn all_files_are_replaced_at_once_and_others_are_left_alone() {
        let (os, scratch) = (Os::new(), tempfile::tempdir().unwrap());
        let place = scratch.path().join("certs");
        write_directory(&os, &place, &[("a", "1"), ("b", "1")], &["a", "b"]).unwrap();
        // Leftovers of a crash do not matter.
        fs::create_dir(scratch.path().join(".certs.new")).unwrap();
        fs::write(scratch.path().join(".certs.new/a"), "old").unwrap();
        write_directory(&os, &place, &[("a", "2")], &["a", "b"]).unwrap();
        assert_eq!(os.list_dir(&place).unwrap(), ["a"]);
        assert_eq!(fs::read_to_string(place.join("a")).unwrap(), "2");
        assert_eq!(fs::metadata(place.join("a")).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(os.list_dir(scratch.path()).unwrap(), ["certs"]);

        fs::write(place.join("mine"), "x").unwrap();
        let error = write_directory(&os, &place, &[("a", "3")], &["a", "b"]).unwrap_err();
        assert!(error.kind() == Kind::Precondition && error.to_string().contains("mine"), "{error}");
        assert_eq!(fs::read_to_string(place.join("a")).unwrap(), "2");
    }

    #[test]
    fn a_link_to_the_directory_stays_a_link() {
        let (os, scratch) = (Os::new(), tempfile::tempdir().unwrap());
        let (place, link) = (scratch.path().join("certs"), scratch.path().join("link"));
        write_directory(&os, &place, &[("a", "1")], &["a"]).unwrap();
        std::os::unix::fs::symlink(&place, &link).unwrap();
        write_directory(&os, &link, &[("a", "2")], &["a"]).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(place.join("a")).unwrap(), "2");
        assert!(write_directory(&os, &scratch.path().join("no/where"), &[("a", "1")], &[]).is_err());
    }
}
