//! Properties of an image, and changes to it in place.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::super::{Ability, Blankness, Geometry, ImageFacts, Object, Stable};
use super::FilePool;
use super::Ownership;
use super::filesystem::cannot;
use super::plain::Plain;
use crate::os::ExtentSummary;
use crate::types::{Bytes, Changed, Error, Kind, ObjectUuid, OsContext, Provisioning, Result};

impl FilePool {
    pub(super) fn facts_of(&self, object: Object) -> Result<Option<ImageFacts>> {
        let path = self.layout.data(object);
        let Some(image) = self.os.view_image(&path).plain("open", &path)? else { return Ok(None) };
        let is = self.os.image_identity(&image, &path).at(|| format!("stat {}", path.display()))?;
        Ok(Some(ImageFacts { size: Bytes::new(is.size), allocated: Bytes::new(is.allocated) }))
    }

    pub(super) fn extents_of(&self, object: Object) -> Result<ExtentSummary> {
        let (image, path) = self.image(object)?;
        self.os.extents(&image, &path).map_err(|error| no_extents(&path, error))
    }

    pub(super) fn count_extents(&self, object: Object) -> Result<u64> {
        let (image, path) = self.image(object)?;
        self.os.extent_count(&image, &path).map_err(|error| no_extents(&path, error))
    }

    /// Searches the image's allocation for data. Before that, the device's cache and then the image's cache are
    /// flushed, so that all earlier writes are visible.
    pub(super) fn blankness_of(&self, volume: ObjectUuid) -> Result<Blankness> {
        if let (Ownership::Owner { .. }, Some(device)) = (&self.ownership, self.attached(volume)?) {
            let shown = device.path.display();
            let node = self.os.open_device(&device.path).at(|| format!("open {shown}"))?;
            self.os.flush_device(&node).at(|| format!("flush {shown}"))?;
        }
        let (image, path) = self.image(Object::Volume(volume))?;
        self.os.sync_file(&image, &path).at(|| format!("fsync {}", path.display()))?;
        let first = self.os.next_data(&image, &path, 0).at(|| format!("look for data in {}", path.display()))?;
        Ok(first.map_or(Blankness::Proven, Blankness::DataAt))
    }

    /// 1. Check that the image backs no device.
    /// 2. Thick: turn every block into an unwritten one, or punch and allocate where the filesystem cannot. Thin: punch
    ///    out everything. A crash leaves some of the old data: the image is not blank, and the next call blanks it
    ///    again.
    /// 3. Extend it to its geometry, which also fills holes that step 2 left, and fsync.
    /// 4. Verify: an image that still has data is an error.
    pub(super) fn blank_image(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<()> {
        self.no_device_shows(volume, "blank")?;
        let (image, path) = self.edit(Object::Volume(volume))?;
        let length = self.os.image_identity(&image, &path).at(|| format!("stat {}", path.display()))?.size;
        if length > 0 {
            let zeroed = match geometry.provisioning {
                Provisioning::Thick => self.os.zero_range(&image, &path, 0, length),
                Provisioning::Thin => self.os.punch_hole(&image, &path, 0, length),
            };
            match zeroed {
                Err(error) if cannot(&error) => self.os.punch_hole(&image, &path, 0, length),
                result => result,
            }
            .at(|| format!("blank {}", path.display()))?;
        }
        self.stretch(&image, &path, geometry)?;
        self.os.sync_file(&image, &path).at(|| format!("fsync {}", path.display()))?;
        match self.blankness_of(volume)? {
            Blankness::Proven => Ok(()),
            Blankness::DataAt(offset) => Err(Error::new(
                Kind::Internal,
                format!(
                    "{} still has data at byte {offset} after it was blanked; the volume was not formatted",
                    path.display()
                ),
            )),
        }
    }

    /// One fallocate (thick) or truncate (thin), then fsync. A crash leaves it partly allocated, perhaps longer (ext4
    /// lengthens as it goes), or complete: the next call reaches the same end. An error removes what is past the old
    /// end: no device has used it yet.
    pub(super) fn grow_image(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<()> {
        let (image, path) = self.edit(Object::Volume(volume))?;
        let before = self.os.image_identity(&image, &path).at(|| format!("stat {}", path.display()))?.size;
        let sync = || self.os.sync_file(&image, &path).at(|| format!("fsync {}", path.display()));
        if let Err(error) = self.stretch(&image, &path, geometry).and_then(|()| sync()) {
            let undone =
                self.os.set_length(&image, &path, before).at(|| format!("truncate {} to its old size", path.display()));
            return Err(match undone {
                Ok(()) => error,
                Err(undo) => error.and_undo_failed(&undo),
            });
        }
        Ok(())
    }

    /// Opens an object's image for reading.
    pub(super) fn image(&self, object: Object) -> Result<(File, PathBuf)> {
        let path = self.layout.data(object);
        let image = self.os.view_image(&path).plain("open", &path)?;
        image.map(|image| (image, path)).ok_or_else(|| self.not_found(object))
    }

    /// Opens an object's image for writing.
    /// FS_SYNC_FL on the image. O_DSYNC on the loop device's descriptor does nothing, and so does a loop device whose
    /// cache is "write through".
    pub(super) fn set_synchronous(&self, volume: ObjectUuid, stable: Stable) -> Result<Changed> {
        let (image, path) = self.edit(Object::Volume(volume))?;
        if stable == Stable::Yes && self.abilities.stable == Ability::No {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "volume {volume} cannot be exported: pool {} is on a filesystem whose writes were not measured to be durable in time; use a pool on XFS or ext4",
                    self.identity.name
                ),
            ));
        }
        let shown = path.display();
        let changed = self.os.set_synchronous(&image, &path, stable == Stable::Yes);
        let changed = changed.map_err(|error| {
            let kind = if cannot(&error) { Kind::Unsupported } else { Kind::Internal };
            Error::new(kind, format!("change the synchronous flag (chattr +S) of {shown}")).because(error)
        })?;
        Ok(if changed { Changed::Yes } else { Changed::No })
    }

    pub(super) fn is_synchronous(&self, volume: ObjectUuid) -> Result<Stable> {
        let (image, path) = self.image(Object::Volume(volume))?;
        let set = self.os.is_synchronous(&image, &path).at(|| format!("read the flags of {}", path.display()))?;
        Ok(if set { Stable::Yes } else { Stable::No })
    }

    pub(super) fn edit(&self, object: Object) -> Result<(File, PathBuf)> {
        let path = self.layout.data(object);
        let image = self.os.open_image(&path).plain("open", &path)?;
        image.map(|image| (image, path)).ok_or_else(|| self.not_found(object))
    }
}

fn no_extents(path: &Path, error: io::Error) -> Error {
    let kind = if cannot(&error) { Kind::Unsupported } else { Kind::Internal };
    Error::new(kind, format!("read the extents of {}", path.display())).because(error)
}
