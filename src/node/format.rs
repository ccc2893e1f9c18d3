//! Format once (docs/design.md section 8): the action of a stage for each format state.
//!
//! | state | found on the device | action |
//! |---|---|---|
//! | `never` | | the home node verifies that it is blank, then [`Formatter::make`] |
//! | `formatting` | the planned superblock, and a read-only check succeeds | [`Formatter::finish`] |
//! | `formatting` | nothing valid, or the planned superblock and the check fails | [`Formatter::make`] again |
//! | `formatting` | any other valid superblock | error: an operator decides |
//! | `formatted` | the recorded superblock, not larger than the device | used |
//! | `formatted` | the same, marked with errors | repaired by its own tool, or an error |
//! | `formatted` | anything else, nothing, unreadable, truncated | error, nothing written |
//! | `raw` | | error |
//! | any but `formatted` | read-only stage | error |

use std::path::Path;

use uuid::Uuid;

use super::retry_busy::patiently;
use super::slots::Slots;
use crate::attach::{Attach, Attached, Wanted};
use crate::fs::probe::{self, Contents, Found, Health, Superblock};
use crate::fs::{self, Checked, MkfsOptions, signature};
use crate::home::{DeviceAddress, FormatState, Home, LockGuard, OpenVolume, ReadOnly};
use crate::os::{BlockDevice, Holder, Os};
use crate::types::{Error, FsType, FsckPolicy, Kind, NodeId, OsContext, Result, VolumeId};

/// The input of a stage that needs a filesystem.
pub(super) struct Formatter<'a> {
    pub(super) os: &'a Os,
    pub(super) node: &'a NodeId,
    pub(super) home: &'a dyn Home,
    pub(super) attach: &'a dyn Attach,
    pub(super) slots: &'a Slots,
    pub(super) lock: &'a LockGuard<VolumeId>,
    pub(super) volume: &'a VolumeId,
    pub(super) fs: FsType,
    pub(super) read_only: ReadOnly,
    pub(super) opened: &'a OpenVolume,
}

impl Formatter<'_> {
    /// The volume's device with the requested filesystem, recorded as `formatted` and ready to be mounted.
    ///
    /// # Errors
    /// Those of the table. Every such row writes nothing.
    pub(super) fn ready(&self) -> Result<Attached> {
        let writable = self.read_only == ReadOnly::No;
        match self.opened.format {
            FormatState::Never if writable => self.make(),
            FormatState::Never => Err(self.refuse("was never formatted, and a read-only stage does not format; stage it writable first")),
            FormatState::Raw => {
                Err(self.refuse("was used as a raw block device and may hold user data, so it is never formatted; use volumeMode: Block"))
            }
            FormatState::Formatting { fs, .. } | FormatState::Formatted { fs, .. } if fs != self.fs => {
                Err(self.refuse(&format!("has the filesystem {fs}; stage it as {fs}")))
            }
            FormatState::Formatting { planned_uuid, .. } if writable => self.resume(planned_uuid),
            FormatState::Formatting { .. } => {
                Err(self.refuse("was not completely formatted, and a read-only stage does not format; stage it writable first"))
            }
            FormatState::Formatted { uuid, .. } => self.verify(uuid),
        }
    }

    /// Creates the filesystem.
    ///
    /// 1. The home node verifies that the volume is blank, or makes it blank, and records `formatting` with a new UUID.
    ///    A crash leaves a blank device; the next stage comes here through [`Formatter::resume`].
    /// 2. Run mkfs. A crash leaves an incomplete filesystem without data; the check of the next stage fails and it
    ///    comes here again.
    /// 3. Flush, and read the superblock back from the image. After a crash the next stage finishes.
    /// 4. The home node records `formatted`. The filesystem is mounted only after this, so no data can be lost before.
    fn make(&self) -> Result<Attached> {
        let minimum = fs::minimum_size(self.fs);
        if self.opened.size < minimum {
            let size = self.opened.size.get();
            return Err(Error::new(
                Kind::OutOfRange,
                format!(
                    "volume {} is too small: it has {size} bytes, and {} needs at least {}; make it larger",
                    self.volume,
                    self.fs,
                    minimum.get()
                ),
            ));
        }
        let options = MkfsOptions::parse(self.fs, &self.opened.mkfs_options)?;

        if let DeviceAddress::NvmeTcp(_) = self.opened.at {
            // The home node ends the export, which proves that nothing is in flight, and answers with another one.
            self.attach.detach(self.volume)?;
        }
        let formatting = self.home.begin_format(self.volume, self.node, self.fs)?;
        let wanted = Wanted { at: formatting.at, connection: None, ..Wanted::from(self.opened) };
        let attached = self.attach(&wanted)?;
        let path = attached.device.path().to_owned();
        let contents = probe::probe(self.os, &attached.device)?;
        if (&contents.ext4, &contents.xfs) != (&Found::Absent, &Found::Absent) {
            return Err(self.corrupt(&attached.device, &contents, "was verified to be blank"));
        }

        self.alone(&path)?;
        {
            let _slot = self.slots.take(self.os)?;
            // A tool that finds the device busy has written nothing.
            patiently(|| fs::of(self.fs).make(self.os, &path, formatting.planned_uuid, &options))?;
        }
        self.os.flush_device(&attached.device).at(|| format!("flush the new {} on {}", self.fs, path.display()))?;
        // The device may have grown since it was attached (ControllerExpandVolume).
        let size = self.os.device_size(&attached.device).at(|| format!("read the size of {}", path.display()))?;
        let contents = probe::probe(self.os, &attached.device)?;
        match contents.of(self.fs) {
            Found::Valid(made)
                if made.uuid == formatting.planned_uuid && made.health == Health::Clean && made.bytes() <= size => {}
            _ => return Err(self.corrupt(&attached.device, &contents, "has just been formatted")),
        }
        self.home.end_format(self.volume, self.node, formatting.planned_uuid)?;
        Ok(attached)
    }

    /// State `formatting`: an earlier stage was killed, or its answer was lost.
    fn resume(&self, planned: Uuid) -> Result<Attached> {
        let attached = self.attach(&Wanted::from(self.opened))?;
        let path = attached.device.path().to_owned();
        let contents = probe::probe(self.os, &attached.device)?;
        let foreign = contents.valid().any(|found| found.fs != self.fs || found.uuid != planned);
        if foreign {
            return Err(self.corrupt(&attached.device, &contents, &format!("was being formatted with UUID {planned}")));
        }
        self.alone(&path)?;
        if let Found::Valid(_) = contents.of(self.fs)
            && let Checked::Sound = patiently(|| fs::of(self.fs).check(self.os, &path))?
        {
            return self.finish(attached, planned);
        }
        // The home node makes the whole device blank again, which requires it to be closed.
        drop(attached);
        self.make()
    }

    /// The filesystem is complete, but the record does not say so yet.
    fn finish(&self, attached: Attached, planned: Uuid) -> Result<Attached> {
        let path = attached.device.path().display();
        self.os.flush_device(&attached.device).at(|| format!("flush the {} on {path}", self.fs))?;
        self.home.end_format(self.volume, self.node, planned)?;
        Ok(attached)
    }

    /// State `formatted`: the recorded filesystem must be there and complete. Nothing else may ever be written here.
    fn verify(&self, uuid: Uuid) -> Result<Attached> {
        let attached = self.attach(&Wanted::from(self.opened))?;
        let path = attached.device.path().to_owned();
        let mut contents = probe::probe(self.os, &attached.device)?;
        if !matches!(contents.of(self.fs), Found::Valid(_)) {
            // A repair or resize that outlives its daemon may still be running.
            self.alone(&path)?;
            contents = probe::probe(self.os, &attached.device)?;
        }
        let recorded = format!("is recorded as {} with UUID {uuid}", self.fs);
        let other = contents.valid().any(|found| found.fs != self.fs);
        let superblock = match contents.of(self.fs) {
            Found::Valid(superblock) if superblock.uuid == uuid && !other => *superblock,
            _ => return Err(self.corrupt(&attached.device, &contents, &recorded)),
        };
        if superblock.bytes() > attached.size.get() {
            return Err(Error::new(
                Kind::Corrupt,
                format!(
                    "volume {}: its {} covers {} bytes, but {} has only {}: the image was truncated; nothing was written; bring the image back to its full size, or restore the volume from a snapshot",
                    self.volume,
                    self.fs,
                    superblock.bytes(),
                    path.display(),
                    attached.size.get()
                ),
            ));
        }
        if superblock.health == Health::Errors && self.read_only == ReadOnly::No {
            self.repair(&attached, &superblock)?;
        }
        Ok(attached)
    }

    /// The superblock is marked with errors: the only reason to check a filesystem with data before a mount.
    fn repair(&self, attached: &Attached, superblock: &Superblock) -> Result<()> {
        let path = attached.device.path();
        if self.opened.fsck == FsckPolicy::Never {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "volume {}: its {superblock} on {} is marked with errors, and its StorageClass sets fsck: never; check it manually, or stage it read-only to save the data",
                    self.volume,
                    path.display()
                ),
            ));
        }
        self.alone(path)?;
        // A repair or resize that outlived its daemon leaves the error mark until it is done, which it is now.
        let contents = probe::probe(self.os, &attached.device)?;
        if matches!(contents.of(self.fs), Found::Valid(now) if now.uuid == superblock.uuid && now.health != Health::Errors)
        {
            return Ok(());
        }
        patiently(|| fs::of(self.fs).repair(self.os, path))?;
        self.os.flush_device(&attached.device).at(|| format!("flush the repaired {}", path.display()))?;
        let contents = probe::probe(self.os, &attached.device)?;
        match contents.of(self.fs) {
            Found::Valid(now) if now.uuid == superblock.uuid && now.health != Health::Errors => Ok(()),
            _ => Err(self.corrupt(&attached.device, &contents, "has just been repaired")),
        }
    }

    fn attach(&self, wanted: &Wanted) -> Result<Attached> {
        let attached = self.attach.attach(self.volume, wanted)?;
        self.lock.works_on(&attached.device.path().display());
        Ok(attached)
    }

    /// Checks that no mount and no tool uses the device: a tool of a killed daemon may still be running.
    fn alone(&self, path: &Path) -> Result<()> {
        patiently(|| match self.os.open_exclusive(path).at(|| format!("open {} exclusively", path.display()))? {
            Some(_) => Ok(()),
            None => Err(self.held(path)),
        })
    }

    fn held(&self, path: &Path) -> Error {
        let holders = self.os.holders(path).unwrap_or_default();
        let who =
            Holder::list(&holders).unwrap_or_else(|| "a mount or a process that is not visible from here".to_owned());
        Error::new(
            Kind::Busy,
            format!("{} of volume {} is in use by {who}; retry when it is released", path.display(), self.volume),
        )
    }

    fn refuse(&self, why: &str) -> Error {
        Error::new(Kind::Precondition, format!("volume {} {why}; nothing was written", self.volume))
    }

    fn corrupt(&self, device: &BlockDevice, found: &Contents, recorded: &str) -> Error {
        let shown = signature::describe(self.os, device, found);
        Error::new(
            Kind::Corrupt,
            format!(
                "volume {} {recorded}, but {} has {shown}; nothing more is written to it; find out what wrote to the image, or restore the volume from a snapshot",
                self.volume,
                device.path().display()
            ),
        )
    }
}
