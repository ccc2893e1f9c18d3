//! Images as block devices: loop devices with direct I/O. The kernel's answer is the truth; what this process
//! remembers only says where to look first.

use std::fs::File;
use std::path::Path;
use std::sync::PoisonError;

use super::super::{ActiveDevice, Deactivated, Geometry, Object};
use super::FilePool;
use super::plain::Plain;
use crate::os::{Discard, FileIdentity, LoopConfig, LoopDevice, LoopStatus};
use crate::types::{Error, Kind, ObjectUuid, OsContext, Provisioning, Result};

/// How a device is not what the geometry wants.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Differs {
    Size { is: u64, wanted: u64 },
    BlockSize { is: u32, wanted: u32 },
    BufferedIo,
}

impl std::fmt::Display for Differs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Size { is, wanted } => write!(f, "its size is {is} bytes instead of {wanted}"),
            Self::BlockSize { is, wanted } => write!(f, "its block size is {is} instead of {wanted}"),
            Self::BufferedIo => write!(
                f,
                "the kernel gives no direct I/O to its image: the pool's disk has larger blocks than the volume, or its filesystem has no direct I/O; move the pool to XFS or ext4 on a disk with blocks of at most 4096 bytes"
            ),
        }
    }
}

impl FilePool {
    /// 1. Open the image; see that it is long enough.
    /// 2. Look for a loop device that shows it. One that is as it must be is the answer, after 4.
    /// 3. Attach the image to a free loop device: block size, direct I/O and name in one step. A crash leaves it
    ///    attached: the next call finds it in 2.
    /// 4. Set whether discards reach the image, and read everything back. What differs is undone, unless it is held.
    pub(super) fn attach(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<ActiveDevice> {
        let (image, path) = self.edit(Object::Volume(volume))?;
        let file = self.os.image_identity(&image, &path).at(|| format!("stat {}", path.display()))?;
        if file.size < geometry.size.get() {
            return Err(Error::new(
                Kind::Corrupt,
                format!(
                    "volume {volume} is not attached: {} has {} bytes, its record says {}; somebody cut it, restore it from a snapshot or backup",
                    path.display(),
                    file.size,
                    geometry.size.get()
                ),
            ));
        }
        if let Some(found) = self.find(volume, Some(&file))? {
            if found.autoclear {
                self.drop_unfit(volume, &found, "it is marked to go away (losetup -d) when its last user does")?;
            } else {
                match self.settle(&found, &file, geometry)? {
                    None => return Ok(ActiveDevice { path: found.device.path() }),
                    Some(differs) => self.drop_unfit(volume, &found, &differs.to_string())?,
                }
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
            discard: discard_of(geometry.provisioning),
        };
        let shown = path.display();
        let attached = self.os.loop_attach(image, path, &config).at(|| {
            format!("attach {shown} to a loop device; see that /dev is the host's and the loop module is loaded")
        });
        let attached = match attached {
            Ok(device) => device,
            Err(error) => return Err(self.undo_attach(volume, file, error)),
        };
        let status = match self.os.loop_status(attached).at(|| format!("ask {}", attached.path().display())) {
            Ok(Some(status)) if status.backs(file) => status,
            Ok(_) => {
                let gone = format!("{} stopped to show {shown} right after it was attached", attached.path().display());
                return Err(Error::new(Kind::Internal, gone));
            }
            Err(error) => return Err(self.undo_attach(volume, file, error)),
        };
        match self.settle(&status, file, geometry) {
            Ok(None) => {
                self.remember(volume, attached);
                Ok(ActiveDevice { path: attached.path() })
            }
            Ok(Some(differs)) => {
                let device = attached.path();
                let message = format!("volume {volume} was not attached as {}: {differs}", device.display());
                Err(self.undo_attach(volume, file, Error::new(Kind::Precondition, message)))
            }
            Err(error) => Err(self.undo_attach(volume, file, error)),
        }
    }

    /// Takes away whatever an attach that failed left: found by what is behind it, since the error may have come
    /// after the effect.
    fn undo_attach(&self, volume: ObjectUuid, file: &FileIdentity, error: Error) -> Error {
        let undone = self.find(volume, Some(file)).and_then(|found| match found {
            None => Ok(()),
            Some(status) => self.drop_unfit(volume, &status, "it could not be attached as it must be"),
        });
        match undone {
            Ok(()) => error,
            Err(undo) => error.and_undo_failed(&undo),
        }
    }

    /// Clears a device that is not fit for use; `InUse` when somebody holds it.
    fn drop_unfit(&self, volume: ObjectUuid, status: &LoopStatus, reason: &str) -> Result<()> {
        let device = status.device.path();
        self.forget(volume);
        if self.os.loop_clear(status).at(|| format!("clear {}", device.display()))? {
            return Ok(());
        }
        Err(Error::new(
            Kind::InUse,
            format!(
                "{} shows volume {volume}, but {reason}; it is held, so it stays: unmount it or end its users, then try again",
                device.display()
            ),
        ))
    }

    /// Brings a device to its image's size and discard setting, and says what differs all the same.
    fn settle(&self, status: &LoopStatus, file: &FileIdentity, geometry: &Geometry) -> Result<Option<Differs>> {
        let path = status.device.path();
        let shown = path.display();
        let node = self.os.open_device(&path).at(|| format!("open {shown}"))?;
        let now = self.os.held_loop_status(&node).at(|| format!("ask {shown}"))?;
        let now = now.filter(|now| now.backs(file)).ok_or_else(|| {
            Error::new(Kind::Internal, format!("{shown} stopped to show the image while it was looked at; try again"))
        })?;
        if !now.direct_io {
            return Ok(Some(Differs::BufferedIo));
        }
        let block_size = self.os.device_block_size(&node).at(|| format!("block size of {shown}"))?;
        if block_size != geometry.block_size {
            return Ok(Some(Differs::BlockSize { is: block_size, wanted: geometry.block_size }));
        }
        let size = || self.os.device_size(&node).at(|| format!("size of {shown}"));
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
        Ok(self.find(volume, file.as_ref())?.map(|status| ActiveDevice { path: status.device.path() }))
    }

    /// Refuses to touch an image that a device shows.
    pub(super) fn no_device_shows(&self, volume: ObjectUuid, what: &str) -> Result<()> {
        match self.attached(volume)? {
            None => Ok(()),
            Some(device) => Err(Error::new(
                Kind::InUse,
                format!("cannot {what} volume {volume} while {} shows it; detach it first", device.path.display()),
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
                format!("{shown} cannot get {}: its image has {} bytes; grow that first", geometry.size, file.size),
            ));
        }
        match self.settle(&status, &file, geometry)? {
            None => Ok(()),
            Some(differs) => {
                Err(Error::new(Kind::Internal, format!("{shown} of volume {volume} was not resized: {differs}")))
            }
        }
    }

    /// Clears every device of the volume, found by its image or, where that is gone or was replaced, by the name the
    /// device carries. A crash leaves some of them: the next call clears the rest.
    pub(super) fn detach(&self, volume: ObjectUuid) -> Result<Deactivated> {
        let file = self.image_if_one(volume)?;
        let place = self.place()?;
        self.forget(volume);
        let mut result = Deactivated::Gone;
        for status in self.os.loops().at(|| "look at the loop devices")? {
            let shows = file.as_ref().is_some_and(|file| status.backs(file));
            if !shows && !named(&status, volume, &place) {
                continue;
            }
            self.refuse_foreign(volume, &status)?;
            let cleared = self.os.loop_clear(&status).at(|| format!("clear {}", status.device.path().display()))?;
            if !cleared {
                result = Deactivated::Held;
            }
        }
        Ok(result)
    }

    /// The one device that shows a volume: by its image, or by name when there is no image.
    fn find(&self, volume: ObjectUuid, file: Option<&FileIdentity>) -> Result<Option<LoopStatus>> {
        if let (Some(hint), Some(file)) = (self.hint(volume), file) {
            let now = self.os.loop_status(hint).at(|| format!("ask {}", hint.path().display()))?;
            if let Some(status) = now.filter(|now| now.backs(file)) {
                self.refuse_foreign(volume, &status)?;
                return Ok(Some(status));
            }
            self.forget(volume);
        }
        let place = self.place()?;
        let mut found: Option<LoopStatus> = None;
        for status in self.os.loops().at(|| "look at the loop devices")? {
            let ours = match file {
                Some(file) => status.backs(file),
                None => named(&status, volume, &place),
            };
            if !ours {
                continue;
            }
            self.refuse_foreign(volume, &status)?;
            if let Some(other) = found {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!(
                        "{} and {} both show volume {volume}, which tears its data; stop its users, detach both (losetup -d) and check its filesystem",
                        other.device.path().display(),
                        status.device.path().display()
                    ),
                ));
            }
            found = Some(status);
        }
        if let Some(status) = &found {
            self.remember(volume, status.device);
        }
        Ok(found)
    }

    /// A device over one of our images that we did not make.
    fn refuse_foreign(&self, volume: ObjectUuid, status: &LoopStatus) -> Result<()> {
        let reason = if status.offset != 0 {
            format!("from byte {} on", status.offset)
        } else if status.read_only {
            "read-only".to_owned()
        } else if status.name != volume.to_string() {
            format!("under the name {:?}", status.name)
        } else {
            return Ok(());
        };
        let device = status.device.path();
        let device = device.display();
        Err(Error::new(
            Kind::Precondition,
            format!(
                "{device} shows the image of volume {volume} {reason}: it was not attached by Holdfast; end its users and run losetup -d {device}"
            ),
        ))
    }

    /// Which file a volume's image is; `None` when it is gone.
    fn image_file(&self, volume: ObjectUuid) -> Result<Option<FileIdentity>> {
        let path = self.layout.data(Object::Volume(volume));
        let Some(image) = self.os.view_image(&path).plain("open", &path)? else { return Ok(None) };
        self.os.image_identity(&image, &path).at(|| format!("stat {}", path.display())).map(Some)
    }

    /// The same; `None` also when something else is in its place: a device of the volume is then known by its name.
    fn image_if_one(&self, volume: ObjectUuid) -> Result<Option<FileIdentity>> {
        match self.image_file(volume) {
            Err(error) if error.kind() == Kind::Corrupt => Ok(None),
            file => file,
        }
    }

    /// The pool's root, for the device number its images have.
    pub(super) fn place(&self) -> Result<FileIdentity> {
        let root = self.layout.root();
        let place = self.os.identity(root).at(|| format!("stat {}", root.display()))?;
        place.ok_or_else(|| Error::new(Kind::Unavailable, format!("the pool's directory {} is gone", root.display())))
    }

    fn hint(&self, volume: ObjectUuid) -> Option<LoopDevice> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner).get(&volume).copied()
    }

    fn remember(&self, volume: ObjectUuid, device: LoopDevice) {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner).insert(volume, device);
    }

    fn forget(&self, volume: ObjectUuid) {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner).remove(&volume);
    }
}

fn discard_of(provisioning: Provisioning) -> Discard {
    match provisioning {
        Provisioning::Thick => Discard::Off,
        Provisioning::Thin => Discard::On,
    }
}

/// Whether a device carries a volume's name and lies on the pool's filesystem: another pool's may carry it too.
fn named(status: &LoopStatus, volume: ObjectUuid, place: &FileIdentity) -> bool {
    status.name == volume.to_string() && status.on_filesystem_of(place)
}
