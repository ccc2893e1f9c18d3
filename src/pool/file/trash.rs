//! Removal: first the name, then the data.

use std::path::Path;

use super::super::{Object, ObjectKind};
use super::FilePool;
use super::layout::{DATA, DIRECTORIES, Layout, TEMPORARY, class_of};
use crate::os::{Entry, Os};
use crate::types::{Error, Kind, OsContext, Result};

/// The names of the files that Holdfast creates in its directories: of an object, and of the test at start.
const OWN: [&str; 7] = [DATA, "volume.json", "volume.json.tmp", "snapshot.json", "snapshot.json.tmp", "from", "to"];

/// Removes a directory of the pool; succeeds if it does not exist. Holdfast's own files and empty directories are
/// removed. If another process put anything else there, the directory is moved to [`Layout::foreign`] and doctor
/// reports it. Nothing in it is removed or followed.
///
/// 1. Unlink the files that Holdfast creates, whatever type they have, except directories.
/// 2. Remove the directory, if it is empty now.
/// 3. Otherwise move it to the foreign files, and fsync both directories. A crash leaves it where it was, without our
///    files, and the next attempt continues with step 2.
pub(super) fn delete_tree(os: &Os, layout: &Layout, directory: &Path) -> Result<()> {
    if os.entry(directory).at(|| format!("stat {}", directory.display()))? != Some(Entry::Directory) {
        os.remove_file(directory).at(|| format!("unlink {}", directory.display()))?;
        return Ok(());
    }
    let mut foreign = false;
    for name in os.list_dir(directory).at(|| format!("list {}", directory.display()))? {
        let path = directory.join(&name);
        match os.entry(&path).at(|| format!("stat {}", path.display()))? {
            Some(Entry::Directory) => {
                let nothing = os.list_dir(&path).is_ok_and(|names| names.is_empty());
                foreign |= !(nothing && os.remove_dir(&path).is_ok());
            }
            _ if OWN.contains(&name.as_str()) => {
                os.remove_file(&path).at(|| format!("unlink {}", path.display()))?;
            }
            _ => foreign = true,
        }
    }
    if !foreign {
        os.remove_dir(directory).at(|| format!("rmdir {}", directory.display()))?;
        return Ok(());
    }
    keep(os, layout, directory)
}

/// Step 3.
fn keep(os: &Os, layout: &Layout, directory: &Path) -> Result<()> {
    let foreign = layout.foreign();
    let sync = |directory: &Path| os.sync_dir(directory).at(|| format!("fsync {}", directory.display()));
    if os.entry(&foreign).at(|| format!("stat {}", foreign.display()))?.is_none() {
        os.create_dir(&foreign).at(|| format!("mkdir {}", foreign.display()))?;
        sync(layout.root())?;
    }
    let kept = layout.foreign_name(directory);
    os.rename(directory, &kept).at(|| format!("rename {} to {}", directory.display(), kept.display()))?;
    sync(&foreign)?;
    sync(directory.parent().unwrap_or(directory))?;
    tracing::warn!(place = %kept.display(), "kept files that Holdfast did not make, from the directory of a deleted volume or snapshot");
    Ok(())
}

impl FilePool {
    /// 1. Check that the image backs no device: otherwise an error, with nothing changed.
    /// 2. Rename the object's directory into the trash. A crash leaves the object complete or without a name. Before
    ///    step 3 a power loss may bring the name back, and the caller's retry removes it again.
    /// 3. fsync its old parent directory and the trash, also when step 2 found nothing: an earlier attempt may have
    ///    stopped here.
    /// 4. Unlink what the trash holds of this object. A crash leaves it in the trash: a retry or `sweep` removes it.
    pub(super) fn remove_object(&self, object: Object) -> Result<()> {
        let directory = self.layout.object(object);
        if let Object::Volume(volume) = object {
            self.no_device_shows(volume, "remove")?;
        }
        match self.os.entry(&directory).at(|| format!("stat {}", directory.display()))? {
            None => {}
            Some(Entry::Directory) => {
                let trash = self.layout.trash_name(object);
                let rename = || format!("rename {} to {}", directory.display(), trash.display());
                self.os.rename(&directory, &trash).at(rename)?;
            }
            Some(_) => {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!(
                        "{object} is not removed: {} is not a directory, so Holdfast did not make it; inspect it and remove it manually",
                        directory.display()
                    ),
                ));
            }
        }
        self.sync_dir(&self.layout.class(class_of(object)))?;
        self.sync_dir(&self.layout.trash())?;
        self.empty_trash(|name| name.starts_with(&Layout::trash_prefix(object)))
    }

    /// Removes all temporary files and the trash. Each removal is a separate step: a crash or an error leaves the rest
    /// for the next call. After all were tried, the first error is returned.
    pub(super) fn sweep_all(&self) -> Result<()> {
        let mut first = self.empty_trash(|_| true);
        let below = DIRECTORIES.iter().map(|name| self.layout.root().join(name));
        for directory in std::iter::once(self.layout.root().to_owned()).chain(below) {
            first = first.and(self.sweep_directory(&directory));
        }
        first
    }

    fn sweep_directory(&self, directory: &Path) -> Result<()> {
        let mut result = Ok(());
        for name in self.os.list_dir(directory).at(|| format!("list {}", directory.display()))? {
            if name.starts_with(TEMPORARY) {
                result = result.and(delete_tree(&self.os, &self.layout, &directory.join(name)));
            }
        }
        result
    }

    fn empty_trash(&self, chosen: impl Fn(&str) -> bool) -> Result<()> {
        let trash = self.layout.trash();
        let mut result = Ok(());
        for name in self.os.list_dir(&trash).at(|| format!("list {}", trash.display()))? {
            if chosen(&name) {
                result = result.and(delete_tree(&self.os, &self.layout, &trash.join(name)));
            }
        }
        result
    }

    pub(super) fn sync_dir(&self, directory: &Path) -> Result<()> {
        self.os.sync_dir(directory).at(|| format!("fsync {}", directory.display()))
    }

    pub(super) fn class_dirs(&self) -> [(ObjectKind, std::path::PathBuf); 2] {
        [ObjectKind::Volume, ObjectKind::Snapshot].map(|class| (class, self.layout.class(class)))
    }
}
