//! Creation of an object. It is invisible until it is complete and durable.

use std::fs::File;
use std::path::Path;

use super::super::{Ability, Cloning, Fill, Geometry, Object};
use super::FilePool;
use super::filesystem::cannot;
use super::layout::{DATA, class_of, record_name};
use super::plain::Plain;
use super::trash::delete_tree;
use crate::types::{Bytes, Error, Failure, Kind, MIB, OsContext, Provisioning, Result, TOO_LARGE_A_FILE};

impl FilePool {
    /// 1. Check that the object can be created. Nothing was written.
    /// 2. Remove what an earlier attempt left, then create `.tmp-<uuid>`. A crash from here to step 5 leaves it: the
    ///    next create of this object and `sweep` remove it.
    /// 3. Create the image in it and fsync it.
    /// 4. Write the record and fsync it; fsync `.tmp-<uuid>`.
    /// 5. Rename `.tmp-<uuid>` to `<uuid>`. A crash leaves a complete object, or `.tmp-<uuid>` if the rename was not
    ///    yet durable: the caller's retry finds the object or creates it again.
    /// 6. fsync the parent directory.
    ///
    /// An error from step 2 on removes all that exists of the object, under either name.
    pub(super) fn create_object(
        &self,
        object: Object,
        geometry: &Geometry,
        fill: Fill,
        record: &[u8],
    ) -> Result<(), Failure> {
        self.can_create(object, geometry)?;
        let source = match fill {
            Fill::Blank => None,
            Fill::Clone(source) => Some(self.open_source(source, geometry)?),
        };
        self.build(object, geometry, source.as_ref(), record).map_err(|error| match self.undo_create(object) {
            Ok(()) => Failure::Clean(error),
            Err(undo) => Failure::Dirty(error.and_undo_failed(&undo)),
        })
    }

    fn can_create(&self, object: Object, geometry: &Geometry) -> Result<()> {
        let size = geometry.size.get();
        if size == 0 || !size.is_multiple_of(MIB) || i64::try_from(size).is_err() {
            return Err(Error::new(
                Kind::OutOfRange,
                format!("{object} cannot have {size} bytes: sizes are whole MiB, at least 1 and below 8 EiB"),
            ));
        }
        if !matches!(geometry.block_size, 512 | 1024 | 2048 | 4096) {
            return Err(Error::new(
                Kind::Unsupported,
                format!("{object} cannot have blocks of {} bytes: use 512, 1024, 2048 or 4096", geometry.block_size),
            ));
        }
        if geometry.provisioning == Provisioning::Thick && self.abilities.thick == Ability::No {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "{object} cannot be thick in pool {}: its filesystem cannot reserve space for an image; set provisioning: thin",
                    self.identity.name
                ),
            ));
        }
        if self.exists(object)? {
            return Err(Error::new(
                Kind::AlreadyExists,
                format!("{object} exists already in pool {}", self.identity.name),
            ));
        }
        Ok(())
    }

    /// Opens the source of a clone and checks that it can be cloned.
    fn open_source(&self, source: Object, geometry: &Geometry) -> Result<File> {
        let Cloning::Instant { max_extents } = self.abilities.cloning else {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "{source} cannot be cloned in one step: the filesystem of pool {} has no reflinks; detach it and copy it, or create the pool on XFS",
                    self.identity.name
                ),
            ));
        };
        let path = self.layout.data(source);
        let image = self.os.view_image(&path).plain("open", &path)?;
        let image = image.ok_or_else(|| self.not_found(source))?;
        let length = self.os.image_identity(&image, &path).at(|| format!("stat {}", path.display()))?.size;
        if length > geometry.size.get() {
            return Err(Error::new(
                Kind::OutOfRange,
                format!(
                    "a clone of {source} needs at least {}, but {} were requested",
                    Bytes::new(length),
                    geometry.size
                ),
            ));
        }
        let extents = self.os.extent_count(&image, &path).at(|| format!("count the extents of {}", path.display()))?;
        if extents > max_extents {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "{source} has {extents} extents, more than {max_extents}, so a clone would block its writes for seconds; defragment {} (xfs_fsr, btrfs filesystem defragment), or copy its content to a new volume",
                    path.display()
                ),
            ));
        }
        Ok(image)
    }

    /// Steps 2 to 6.
    fn build(&self, object: Object, geometry: &Geometry, source: Option<&File>, record: &[u8]) -> Result<()> {
        let temporary = self.layout.temporary(object);
        delete_tree(&self.os, &self.layout, &temporary)?;
        self.os.create_dir(&temporary).at(|| format!("mkdir {}", temporary.display()))?;
        self.filesystem.prepare(&self.os, &temporary)?;
        self.fill(&temporary.join(DATA), geometry, source)?;
        let record_path = temporary.join(record_name(class_of(object)));
        self.os.write_new(&record_path, record).at(|| format!("write {}", record_path.display()))?;
        self.sync_dir(&temporary)?;
        let place = self.layout.object(object);
        self.os.rename(&temporary, &place).at(|| format!("rename {} to {}", temporary.display(), place.display()))?;
        self.sync_dir(&self.layout.class(class_of(object)))
    }

    fn fill(&self, path: &Path, geometry: &Geometry, source: Option<&File>) -> Result<()> {
        let data = self.os.create_image(path).at(|| format!("create {}", path.display()))?;
        self.filesystem.hint(&self.os, &data, path, self.abilities.cloning)?;
        if let Some(source) = source {
            self.os.clone_file(source, &data, path).at(|| format!("FICLONE to {}", path.display()))?;
        }
        self.stretch(&data, path, geometry)?;
        self.os.sync_file(&data, path).at(|| format!("fsync {}", path.display()))
    }

    /// Extends an image to at least the geometry's length, and allocates every byte of a thick one. Blocks shared by a
    /// reflink count as allocated: the ledger of `home` reserves space for their copies.
    pub(super) fn stretch(&self, data: &File, path: &Path, geometry: &Geometry) -> Result<()> {
        let length = self.os.image_identity(data, path).at(|| format!("stat {}", path.display()))?.size;
        let size = geometry.size.get().max(length);
        let done = match geometry.provisioning {
            // fallocate sets the length last: an image that did not fit does not appear longer.
            Provisioning::Thick => self.os.allocate(data, path, size),
            Provisioning::Thin if size > length => self.os.set_length(data, path, size),
            Provisioning::Thin => Ok(()),
        };
        let shown = Bytes::new(size);
        done.map_err(|error| {
            let kind = match error.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => Kind::NoCapacity,
                Some(libc::EFBIG) => Kind::OutOfRange,
                _ if cannot(&error) => Kind::Unsupported,
                _ => Kind::Internal,
            };
            let message = match kind {
                Kind::NoCapacity => format!(
                    "{shown} do not fit into pool {} ({}); free space, or request a smaller size",
                    self.identity.name, self.identity.place
                ),
                Kind::OutOfRange => format!("set the size of {} to {shown}: {TOO_LARGE_A_FILE}", path.display()),
                _ => format!("set the size of {} to {shown}", path.display()),
            };
            Error::new(kind, message).because(error)
        })
    }

    /// Removes all that exists of an object after a failed create: the error may have come after the rename.
    fn undo_create(&self, object: Object) -> Result<()> {
        delete_tree(&self.os, &self.layout, &self.layout.temporary(object))?;
        if self.exists(object)? { self.remove_object(object) } else { Ok(()) }
    }
}
