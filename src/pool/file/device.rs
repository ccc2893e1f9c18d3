//! Images as block devices: loop devices with direct I/O. The kernel's answer is authoritative; the state in this
//! process only says where to look first.
//!
//! A device belongs to a volume because the volume's image backs it. The device number and inode of the image prove
//! this, and are read once for each attachment (diskseq). The name in the loop device proves nothing: a pod that has
//! the device can set it. Devices are selected by the end of their image's path in sysfs, so no device of other
//! software is opened or queried.

use std::fs::File;
use std::path::Path;
use std::sync::PoisonError;

use super::super::{ActiveDevice, Deactivated, Geometry, Object};
use super::FilePool;
use super::layout::DATA;
use super::plain::Plain;
use super::presence::is_dead;
use crate::os::{DevNum, Discard, FileIdentity, LoopAccess, LoopConfig, LoopDevice, LoopStatus, LoopView};
use crate::types::{Error, Kind, ObjectUuid, OsContext, Provisioning, Result};

/// What this process knows about a volume's device.
#[derive(Clone, Debug)]
pub(super) struct Known {
    device: LoopDevice,
    diskseq: Option<u64>,
    /// Its status, if it was queried since it was attached.
    status: Option<LoopStatus>,
}

impl Known {
    /// Whether a device is still the same attachment.
    fn is(&self, device: LoopDevice, diskseq: Option<u64>) -> bool {
        self.device == device && diskseq.is_some() && self.diskseq == diskseq
    }
}

/// A difference between a device and the geometry.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Differs {
    Size { is: u64, wanted: u64 },
    BlockSize { is: u32, wanted: u32 },
    BufferedIo,
    Altered,
}

impl std::fmt::Display for Differs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Size { is, wanted } => write!(f, "its size is {is} bytes instead of {wanted}"),
            Self::BlockSize { is, wanted } => write!(f, "its block size is {is} instead of {wanted}"),
            Self::Altered => f.write_str("a process that has it open changed its offset or size limit"),
            Self::BufferedIo => write!(
                f,
                "direct I/O to its image is not available: the pool's disk has larger blocks than the volume, or its filesystem has no direct I/O; move the pool to XFS or ext4 on a disk with blocks of at most 4096 bytes"
            ),
        }
    }
}

impl FilePool {
    /// 1. Open the image; check that it is long enough.
    /// 2. Look for a loop device that the image backs. If it has the right properties, return it after step 4.
    /// 3. Attach the image to a free loop device: block size, direct I/O and name in one step. A crash leaves it
    ///    attached: the next call finds it in step 2.
    /// 4. Set whether discards reach the image, and read all properties back. A device that differs is detached, unless
    ///    it is in use.
    pub(super) fn attach(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<ActiveDevice> {
        let (image, path) = self.edit(Object::Volume(volume))?;
        let file = self.os.image_identity(&image, &path).at(|| format!("stat {}", path.display()))?;
        if file.size < geometry.size.get() {
            return Err(Error::new(
                Kind::Corrupt,
                format!(
                    "volume {volume} is not attached: {} has {} bytes, but its record says {}; another process truncated it: restore it from a snapshot or backup",
                    path.display(),
                    file.size,
                    geometry.size.get()
                ),
            ));
        }
        if let Some(found) = self.find(volume, Some(&file))? {
            match self.settle(&found, &file, geometry)? {
                None => return self.active_device(volume, &found),
                Some(differs) => self.drop_unfit(volume, &found, &differs.to_string())?,
            }
        }
        self.attach_new(volume, &image, &path, &file, geometry)
    }

    fn attach_new(
        &self,
        volume: ObjectUuid,
        image: &File,
        path: &Path,
        file: &FileIdentity,
        geometry: &Geometry,
    ) -> Result<ActiveDevice> {
        let config = LoopConfig {
            block_size: geometry.block_size,
            name: volume.to_string(),
            owner: self.owner(volume),
            discard: discard_of(geometry.provisioning),
            access: LoopAccess::Writable,
        };
        let shown = path.display();
        let attached = self.os.loop_attach(image, path, &config).at(|| {
            format!("attach {shown} to a loop device; check that /dev is the host's and that the loop module is loaded")
        });
        let attached = match attached {
            Ok(device) => device,
            Err(error) => return Err(self.undo_attach(volume, file, error)),
        };
        let status = match self.os.loop_status(attached).at(|| format!("query {}", attached.path().display())) {
            Ok(Some(status)) if status.backs(file) => status,
            Ok(_) => {
                let gone = format!(
                    "{} was detached from {shown} right after it was attached; retry",
                    attached.path().display()
                );
                return Err(Error::new(Kind::Internal, gone));
            }
            Err(error) => return Err(self.undo_attach(volume, file, error)),
        };
        match self.settle(&status, file, geometry) {
            Ok(None) => {
                self.remember(volume, &status);
                self.active_device(volume, &status)
            }
            Ok(Some(differs)) => {
                let device = attached.path();
                let message = format!("volume {volume} was not attached to {}: {differs}", device.display());
                Err(self.undo_attach(volume, file, Error::new(Kind::Precondition, message)))
            }
            Err(error) => Err(self.undo_attach(volume, file, error)),
        }
    }

    /// Detaches the device that a failed attach left. It is found by its image, since the error may have come after the
    /// effect.
    fn undo_attach(&self, volume: ObjectUuid, file: &FileIdentity, error: Error) -> Error {
        let undone = self.find(volume, Some(file)).and_then(|found| match found {
            None => Ok(()),
            Some(status) => self.drop_unfit(volume, &status, "the attach failed"),
        });
        match undone {
            Ok(()) => error,
            Err(undo) => error.and_undo_failed(&undo),
        }
    }

    /// Detaches a device with wrong properties; `InUse` when it is in use. It then stays known as the volume's, so that
    /// it can be detached later.
    fn drop_unfit(&self, volume: ObjectUuid, status: &LoopStatus, reason: &str) -> Result<()> {
        let device = status.device.path();
        if self.os.loop_clear(status).at(|| format!("detach {}", device.display()))? {
            self.forget(volume);
            return Ok(());
        }
        Err(Error::new(
            Kind::InUse,
            format!(
                "{} is attached to volume {volume}, but {reason}; it is in use, so it stays attached: unmount it or stop the processes that use it, then retry",
                device.display()
            ),
        ))
    }

    /// Adjusts a device's size and discard setting, and returns what still differs.
    fn settle(&self, status: &LoopStatus, file: &FileIdentity, geometry: &Geometry) -> Result<Option<Differs>> {
        let path = status.device.path();
        let shown = path.display();
        let node = self.os.open_device(&path).at(|| format!("open {shown}"))?;
        let now = self.os.held_loop_status(&node).at(|| format!("query {shown}"))?;
        let now = now.filter(|now| now.backs(file)).ok_or_else(|| {
            Error::new(Kind::Internal, format!("{shown} was detached from the image while it was checked; retry"))
        })?;
        if self.os.keep_attached(&node).at(|| format!("clear autoclear on {shown}"))? {
            tracing::warn!(device = %shown, "autoclear was set on a loop device (by losetup -d or a pod); the driver cleared it, so the device stays attached");
        }
        if now.offset != 0 || now.read_only {
            return Ok(Some(Differs::Altered));
        }
        if !now.direct_io {
            return Ok(Some(Differs::BufferedIo));
        }
        let block_size = self.os.device_block_size(&node).at(|| format!("get the block size of {shown}"))?;
        if block_size != geometry.block_size {
            return Ok(Some(Differs::BlockSize { is: block_size, wanted: geometry.block_size }));
        }
        let size = || self.os.device_size(&node).at(|| format!("get the size of {shown}"));
        let wanted = file.size - file.size % 512;
        if size()? < wanted {
            self.os.loop_set_capacity(&node).at(|| format!("resize {shown}"))?;
        }
        let is = size()?;
        if is < wanted {
            return Ok(Some(Differs::Size { is, wanted }));
        }
        self.os
            .loop_set_discard(status.device, discard_of(geometry.provisioning))
            .at(|| format!("set discard limits of {shown}"))?;
        Ok(None)
    }

    pub(super) fn attached(&self, volume: ObjectUuid) -> Result<Option<ActiveDevice>> {
        let file = self.image_if_one(volume)?;
        match self.find(volume, file.as_ref())? {
            Some(status) => self.active_device(volume, &status).map(Some),
            None => Ok(None),
        }
    }

    fn active_device(&self, volume: ObjectUuid, status: &LoopStatus) -> Result<ActiveDevice> {
        let path = status.device.path();
        let number = status.device.number().ok_or_else(|| {
            Error::new(Kind::Internal, format!("{} of volume {volume} was detached; retry", path.display()))
        })?;
        Ok(ActiveDevice { path, number, diskseq: status.diskseq })
    }

    /// The volume whose image backs a device, if it is one of this pool's. Queries the device only if its image's path
    /// is that of a volume here.
    pub(super) fn shown_by(&self, device: DevNum) -> Result<Option<ObjectUuid>> {
        let Some(device) = self.os.loop_of(device).at(|| format!("look up block device {device}"))? else {
            return Ok(None);
        };
        let shown = device.path();
        let view = self.os.loop_view(device).at(|| format!("read the sysfs entry of {}", shown.display()))?;
        let Some(view) = view else { return Ok(None) };
        let Some(volume) = image_of(&view.backing).filter(ImagePath::named).map(|image| image.uuid) else {
            return Ok(None);
        };
        let Some(file) = self.image_if_one(volume)? else { return Ok(None) };
        let status = self.os.loop_status(device).at(|| format!("query {}", shown.display()))?;
        Ok(status.filter(|status| status.backs(&file)).map(|_| volume))
    }

    pub(super) fn all_attached(&self) -> Result<Vec<(ObjectUuid, ActiveDevice)>> {
        let views = self.os.loop_views(|backing| image_of(backing).is_some()).at(|| "list the loop devices")?;
        let place = self.place()?;
        let mut found = Vec::new();
        for view in views {
            let Some(volume) = image_of(&view.backing).map(|image| image.uuid) else { continue };
            let Ok(Some(status)) = self.os.loop_status(view.device) else { continue };
            let file = self.image_if_one(volume)?;
            let ours = match &file {
                Some(file) if status.backs(file) => true,
                _ => status.on_filesystem_of(&place) && self.is_here(&view),
            };
            if ours {
                found.push((volume, self.active_device(volume, &status)?));
            }
        }
        Ok(found)
    }

    /// The record says that the driver attached this device for the volume in this boot. It therefore belongs to the
    /// volume whatever its name is now, and no other volume gets its number.
    pub(super) fn recall(&self, volume: ObjectUuid, device: &ActiveDevice) -> Result<()> {
        let found = self.os.loop_of(device.number).at(|| format!("look up block device {}", device.number))?;
        let Some(device_now) = found.or_else(|| LoopDevice::named(device.path.file_name()?.to_str()?)) else {
            return Ok(());
        };
        self.os.reserve_loop(device_now, &self.owner(volume));
        let known = Known { device: device_now, diskseq: device.diskseq, status: None };
        self.hints.lock().unwrap_or_else(PoisonError::into_inner).entry(volume).or_insert(known);
        Ok(())
    }

    /// Releases the device number: no pod can have the volume's device any more.
    pub(super) fn release_number(&self, volume: ObjectUuid) {
        self.os.release_loops(&self.owner(volume));
    }

    /// The owner's name of a volume's device, unique on this machine.
    fn owner(&self, volume: ObjectUuid) -> String {
        format!("{}_{volume}", self.identity.id)
    }

    /// Returns an error if the image backs a device.
    pub(super) fn no_device_shows(&self, volume: ObjectUuid, what: &str) -> Result<()> {
        match self.attached(volume)? {
            None => Ok(()),
            Some(device) => Err(Error::new(
                Kind::InUse,
                format!(
                    "cannot {what} volume {volume} while {} is attached to it; detach it first",
                    device.path.display()
                ),
            )),
        }
    }

    pub(super) fn resize_attached(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<()> {
        let Some(file) = self.image_file(volume)? else { return Err(self.not_found(Object::Volume(volume))) };
        let Some(status) = self.find(volume, Some(&file))? else { return Ok(()) };
        let shown = status.device.path();
        let shown = shown.display();
        if file.size < geometry.size.get() {
            return Err(Error::new(
                Kind::Internal,
                format!(
                    "{shown} cannot be resized to {}: its image has {} bytes; grow the image first",
                    geometry.size, file.size
                ),
            ));
        }
        match self.settle(&status, &file, geometry)? {
            None => Ok(()),
            Some(differs) => {
                Err(Error::new(Kind::Internal, format!("{shown} of volume {volume} was not resized: {differs}")))
            }
        }
    }

    /// Detaches every device of the volume. They are found by the image or, if the image is missing or was replaced, by
    /// the path of the image. A crash leaves some of them: the next call detaches the rest.
    pub(super) fn detach(&self, volume: ObjectUuid) -> Result<Deactivated> {
        let file = self.image_if_one(volume)?;
        let mut result = Deactivated::Gone;
        for status in self.devices(volume, file.as_ref())? {
            self.refuse_foreign(volume, &status)?;
            let cleared = self.os.loop_clear(&status).at(|| format!("detach {}", status.device.path().display()))?;
            if !cleared {
                result = Deactivated::Held;
            }
        }
        if result == Deactivated::Gone {
            self.forget(volume);
        }
        Ok(result)
    }

    /// The one device that a volume's image backs.
    fn find(&self, volume: ObjectUuid, file: Option<&FileIdentity>) -> Result<Option<LoopStatus>> {
        if let (Some(known), Some(file)) = (self.known(volume), file)
            && let Some(status) = self.still(volume, &known, file)?
        {
            self.refuse_foreign(volume, &status)?;
            self.remember(volume, &status);
            return Ok(Some(status));
        }
        let mut found: Option<LoopStatus> = None;
        for status in self.devices(volume, file)? {
            self.refuse_foreign(volume, &status)?;
            if let Some(other) = found {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!(
                        "{} and {} are both attached to volume {volume}, which damages its data; stop its users, run losetup -d on both and check its filesystem",
                        other.device.path().display(),
                        status.device.path().display()
                    ),
                ));
            }
            found = Some(status);
        }
        match &found {
            Some(status) => self.remember(volume, status),
            None => self.forget(volume),
        }
        Ok(found)
    }

    /// The known device of a volume, if it still shows this image. The same attachment (diskseq) needs no query. Another
    /// attachment is not queried here: the program that took the number may not answer, and does not concern this volume.
    fn still(&self, volume: ObjectUuid, known: &Known, file: &FileIdentity) -> Result<Option<LoopStatus>> {
        let shown = known.device.path();
        let view = self.os.loop_view(known.device).at(|| format!("read the sysfs entry of {}", shown.display()))?;
        let Some(view) = view else { return Ok(None) };
        match &known.status {
            // Its offset and flags may be others by now: `settle` queries them before the device is used.
            Some(status) if known.is(view.device, view.diskseq) => {
                Ok(Some(status.clone()).filter(|now| now.backs(file)))
            }
            _ if image_of(&view.backing).is_none_or(|image| image.uuid != volume) => Ok(None),
            _ if known.diskseq.is_some() && known.diskseq != view.diskseq => Ok(None),
            _ => {
                let status = self.os.loop_status(known.device).at(|| format!("query {}", shown.display()))?;
                Ok(status.filter(|status| status.backs(file)))
            }
        }
    }

    /// The devices that a volume's image backs: found by the image or, without one, by the path of the image, which no
    /// other pool on the same filesystem shares.
    fn devices(&self, volume: ObjectUuid, file: Option<&FileIdentity>) -> Result<Vec<LoopStatus>> {
        let candidate = |backing: &Path| image_of(backing).is_some_and(|image| image.uuid == volume);
        let views = self.os.loop_views(candidate).at(|| "list the loop devices")?;
        if views.is_empty() {
            return Ok(Vec::new());
        }
        let place = self.place()?;
        let mut found = Vec::new();
        for view in views {
            let shown = view.device.path();
            let status = match self.os.loop_status(view.device) {
                Ok(Some(status)) => status,
                Ok(None) => continue,
                // The filesystem of our own images failed: path and sequence number identify the attachment.
                Err(_) if file.is_none() && self.is_here(&view) && view.diskseq.is_some() => {
                    found.push(LoopStatus { name: volume.to_string(), ..view.unasked() });
                    continue;
                }
                // Our own image can be read, so a device that cannot be queried has another file, unless it has our
                // path.
                Err(error) if file.is_some() && !self.is_here(&view) => {
                    tracing::warn!(device = %shown.display(), image = %view.backing.display(), %error, "skipped a loop device that cannot be queried: its image has the same name but is in another location");
                    continue;
                }
                Err(error) => return Err(error).at(|| format!("query {} of volume {volume}", shown.display())),
            };
            let ours = match file {
                Some(file) => status.backs(file),
                None => status.on_filesystem_of(&place) && self.is_here(&view),
            };
            if ours {
                found.push(status);
            }
        }
        Ok(found)
    }

    /// Whether the path of a device's image can be in this pool. If its mount is not visible here, the kernel prints
    /// only the part below that mount.
    pub(super) fn is_here(&self, view: &LoopView) -> bool {
        image_of(&view.backing).is_some_and(|image| self.layout.root().ends_with(image.root))
    }

    /// Whether the driver attached a device: it has the driver's name, or it is a known attachment.
    pub(super) fn is_ours(&self, volume: ObjectUuid, status: &LoopStatus) -> bool {
        status.name == volume.to_string()
            || self.known(volume).is_some_and(|known| known.is(status.device, status.diskseq))
    }

    /// Returns an error for a device over one of our images that the driver did not attach.
    fn refuse_foreign(&self, volume: ObjectUuid, status: &LoopStatus) -> Result<()> {
        // A process that may open the device can change its offset: it still belongs to the volume. `settle` refuses to
        // use it.
        let known = self.known(volume).is_some_and(|known| known.is(status.device, status.diskseq));
        let reason = if known {
            return Ok(());
        } else if status.offset != 0 {
            format!("from byte {}", status.offset)
        } else if status.read_only {
            "read-only".to_owned()
        } else if !self.is_ours(volume, status) {
            format!("under the name {:?}", status.name)
        } else {
            return Ok(());
        };
        let device = status.device.path();
        let device = device.display();
        Err(Error::new(
            Kind::Precondition,
            format!(
                "{device} is attached to the image of volume {volume} {reason}: Holdfast did not attach it; stop the processes that use it and run losetup -d {device}"
            ),
        ))
    }

    /// The identity of a volume's image; `None` when there is no image.
    fn image_file(&self, volume: ObjectUuid) -> Result<Option<FileIdentity>> {
        let path = self.layout.data(Object::Volume(volume));
        let Some(image) = self.os.view_image(&path).plain("open", &path)? else { return Ok(None) };
        self.os.image_identity(&image, &path).at(|| format!("stat {}", path.display())).map(Some)
    }

    /// The same; also `None` when something else is at its path: a device of the volume is then known by its path.
    fn image_if_one(&self, volume: ObjectUuid) -> Result<Option<FileIdentity>> {
        match self.image_file(volume) {
            // A mounted device must still be unmounted: it is then known by the path of its image.
            Err(error) if error.kind() == Kind::Corrupt || is_dead(&error) => Ok(None),
            file => file,
        }
    }

    /// The pool's root, for the device number of its images.
    pub(super) fn place(&self) -> Result<FileIdentity> {
        let root = self.layout.root();
        let place = self.os.identity(root).at(|| format!("stat {}", root.display()))?;
        place.ok_or_else(|| {
            Error::new(
                Kind::Unavailable,
                format!("the pool's directory {} does not exist; mount its filesystem there", root.display()),
            )
        })
    }

    fn known(&self, volume: ObjectUuid) -> Option<Known> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner).get(&volume).cloned()
    }

    fn remember(&self, volume: ObjectUuid, status: &LoopStatus) {
        let known = Known { device: status.device, diskseq: status.diskseq, status: Some(status.clone()) };
        self.hints.lock().unwrap_or_else(PoisonError::into_inner).insert(volume, known);
    }

    fn forget(&self, volume: ObjectUuid) {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner).remove(&volume);
    }
}

/// A path that can be a volume's image: `<root>/volumes/<uuid>/data`, or in the trash.
pub(super) struct ImagePath<'a> {
    /// The volume.
    pub(super) uuid: ObjectUuid,
    /// The pool's root, as far as the path shows it, without a leading slash.
    root: &'a Path,
    directory: &'a str,
}

impl ImagePath<'_> {
    /// Whether the volume is in `volumes`, not in the trash.
    pub(super) fn named(&self) -> bool {
        self.directory == "volumes"
    }
}

/// The parts of the path of a loop device's image.
pub(super) fn image_of(backing: &Path) -> Option<ImagePath<'_>> {
    if backing.file_name()? != DATA {
        return None;
    }
    let object = backing.parent()?;
    let directory = object.parent()?;
    let root = directory.parent()?;
    let name = object.file_name()?.to_str()?;
    let directory = directory.file_name()?.to_str()?;
    let uuid = match directory {
        "volumes" => name,
        // volume-<uuid>-<random>
        "trash" => name.strip_prefix("volume-")?.rsplit_once('-')?.0,
        _ => return None,
    };
    Some(ImagePath { uuid: uuid.parse().ok()?, root: root.strip_prefix("/").unwrap_or(root), directory })
}

fn discard_of(provisioning: Provisioning) -> Discard {
    match provisioning {
        Provisioning::Thick => Discard::Off,
        Provisioning::Thin => Discard::On,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::BackingFs;
    use super::super::tests::{THICK, make, volume};
    use super::*;
    use crate::pool::FirstUse;
    use crate::testing::scratch::{PoolFs, Scratch, home};

    /// LOOP_SET_STATUS64 changes an offset in place. A device is read-only when another process detached ours and
    /// attached the image again since the lookup.
    #[test]
    fn a_device_that_another_process_changed_since_the_lookup_is_not_used() {
        let scratch = Scratch::new(PoolFs::Ext4);
        let (os, root) = (scratch.os(), scratch.root());
        let name = "default".parse().unwrap();
        let pool = FilePool::open(os, &name, &root, BackingFs::Known, &home(), FirstUse::Make).unwrap();
        make(&*pool);
        let uuid = volume().uuid();
        let (image, path) = pool.edit(volume()).unwrap();
        let file = pool.image_file(uuid).unwrap().unwrap();
        for access in [LoopAccess::Writable, LoopAccess::ReadOnly] {
            let config = LoopConfig {
                block_size: THICK.block_size,
                name: uuid.to_string(),
                owner: pool.owner(uuid),
                discard: Discard::Off,
                access,
            };
            let device = os.loop_attach(&image, &path, &config).unwrap();
            let found = os.loop_status(device).unwrap().unwrap();
            let changed = (access == LoopAccess::ReadOnly).then_some(Differs::Altered);
            assert_eq!(pool.settle(&found, &file, &THICK).unwrap(), changed, "{access:?}");
            if access == LoopAccess::Writable {
                os.shift_loop(&device.path(), 4096).unwrap();
                assert_eq!(pool.settle(&found, &file, &THICK).unwrap(), Some(Differs::Altered));
            }
            assert!(os.loop_clear(&found).unwrap());
        }
    }
}
