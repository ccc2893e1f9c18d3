//! Removing: the name first, then the data.

use std::path::Path;

use super::super::{Class, Object};
use super::FilePool;
use super::layout::{DATA, DIRECTORIES, Layout, TEMPORARY, class_of};
use crate::os::{Entry, Os};
use crate::types::{Error, Kind, OsContext, Result};

/// The names of the files that Holdfast makes in its directories: of an object, and of what is tried at the start.
const OWN: [&str; 7] = [DATA, "volume.json", "volume.json.tmp", "snapshot.json", "snapshot.json.tmp", "from", "to"];

/// Removes a directory of ours; gone already is success. Its own files go, and directories that are empty. What else is
/// there, somebody put there: it is moved to [`Layout::foreign`], whole, and doctor names it. Nothing of it is removed or
/// followed.
///
/// 1. Unlink the files that Holdfast makes, whatever lies under their names but a directory.
/// 2. Remove the directory, if it is empty now.
/// 3. Or move it among the foreign things, and fsync both sides. A crash leaves it where it was, without the files of
///    ours, and the next try goes on at 2.
pub(super) fn delete_tree(os: &Os, layout: &Layout, directory: &Path) -> Result<()> {
    if os.entry(directory).at(|| format!("look at {}", directory.display()))? != Some(Entry::Directory) {
        os.remove_file(directory).at(|| format!("unlink {}", directory.display()))?;
        return Ok(());
    }
    let mut foreign = false;
    for name in os.list_dir(directory).at(|| format!("list {}", directory.display()))? {
        let path = directory.join(&name);
        match os.entry(&path).at(|| format!("look at {}", path.display()))? {
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
    if os.entry(&foreign).at(|| format!("look at {}", foreign.display()))?.is_none() {
        os.create_dir(&foreign).at(|| format!("mkdir {}", foreign.display()))?;
        sync(layout.root())?;
    }
    let kept = layout.foreign_name(directory);
    os.rename(directory, &kept).at(|| format!("rename {} to {}", directory.display(), kept.display()))?;
    sync(&foreign)?;
    sync(directory.parent().unwrap_or(directory))?;
    tracing::warn!(place = %kept.display(), "what was in a removed directory and was not made by Holdfast is kept");
    Ok(())
}

impl FilePool {
    /// 1. See that no device shows the image: refused otherwise, nothing changed.
    /// 2. Rename the object's directory into the trash. A crash leaves the object whole or without a name; before 3
    ///    a power loss may bring the name back, and the caller's retry removes it again.
    /// 3. fsync the directory it left and the trash, also when 2 found nothing: an earlier try may have stopped here.
    /// 4. Unlink what the trash holds of this object. A crash leaves it in the trash: a retry or `sweep` removes it.
    pub(super) fn remove_object(&self, object: Object) -> Result<()> {
        let directory = self.layout.object(object);
        if let Object::Volume(volume) = object {
            self.no_device_shows(volume, "remove")?;
        }
        match self.os.entry(&directory).at(|| format!("look at {}", directory.display()))? {
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
                        "{object} is not removed: {} is not a directory, so it was not made by Holdfast; look at it and remove it by hand",
                        directory.display()
                    ),
                ));
            }
        }
        self.sync_dir(&self.layout.class(class_of(object)))?;
        self.sync_dir(&self.layout.trash())?;
        self.empty_trash(|name| name.starts_with(&Layout::trash_prefix(object)))
    }

    /// Removes everything that never had a name or has none any more. Each removal is a step of its own: a crash or
    /// an error leaves the rest for the next time, and the first error is answered after all were tried.
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

    pub(super) fn class_dirs(&self) -> [(Class, std::path::PathBuf); 2] {
        [Class::Volume, Class::Snapshot].map(|class| (class, self.layout.class(class)))
    }
}
