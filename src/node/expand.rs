//! NodeExpandVolume.

use super::mounts::Shown;
use super::publish::has_stopped;
use super::{ExpandRequest, Node};
use crate::attach::{Attach, Attached, Wanted};
use crate::fs::{self, Grown};
use crate::home::OpenVolume;
use crate::types::{Bytes, Error, Kind, OsContext, Result, VolumeId, VolumeMode};

impl Node {
    /// Grows a volume's filesystem, or the device-mapper device of a raw block volume, to the size of the volume's loop
    /// device (NodeExpandVolume). The path shows whether it is a filesystem: the CO need not say so. Returns the size
    /// of the device.
    ///
    /// One step, journalled by the filesystem: a crash leaves the old size or the new.
    ///
    /// # Errors
    /// `Busy`; `NotFound` when the volume is not at that path; `OutOfRange` when the device is smaller than requested,
    /// because ControllerExpandVolume must come first; `Precondition` when the filesystem has errors or the kernel does
    /// not allow this process to grow it; `Internal`.
    pub fn expand(&self, request: &ExpandRequest) -> Result<Bytes> {
        let volume = &request.volume;
        let lock = self.volumes.try_lock(volume, "NodeExpandVolume")?;
        lock.works_on(&request.path.display());
        let (path, shown) = match self.used_at(volume, &request.path) {
            Ok((path, shown)) => (path, Some(shown)),
            // A block volume is staged without a mount.
            Err(error) if error.kind() == Kind::NotFound && request.staging.as_ref() == Some(&request.path) => {
                let opened = self.open(volume)?;
                if opened.mode != VolumeMode::Block {
                    return Err(error);
                }
                (request.path.clone(), None)
            }
            Err(error) => return Err(error),
        };
        let opened = self.open(volume)?;
        let attached = self.attach.attach(volume, &Wanted::from(&opened))?;
        if let Some(required) = request.range.required.filter(|required| attached.size < *required) {
            return Err(Error::new(
                Kind::OutOfRange,
                format!(
                    "volume {volume} cannot grow to {} bytes: its device {} has {}; call ControllerExpandVolume first, then retry",
                    required.get(),
                    attached.device.path().display(),
                    attached.size.get()
                ),
            ));
        }
        if let Some(Shown::Filesystem(_)) = shown {
            self.grow(volume, &path, &opened, &attached)?;
        } else {
            let (below, size) = (attached.device.number(), attached.size);
            self.linear.resize(volume, below, size)?;
            self.views.resize(volume, below, size)?;
        }
        Ok(opened.size)
    }

    fn grow(&self, volume: &VolumeId, path: &std::path::Path, opened: &OpenVolume, attached: &Attached) -> Result<()> {
        let VolumeMode::Mount(fs) = opened.mode else {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "the filesystem at {} cannot grow: its volume is attached to this node as a raw block device; detach the volume and attach it as a filesystem",
                    path.display()
                ),
            ));
        };
        let mounts = self.os.mounts().at(|| "read the mount table")?;
        if let Some(entry) = mounts.at(path)
            && let Some(why) = fs::stopped(&self.os, &[entry])
        {
            return Err(has_stopped(volume, entry, why));
        }
        if mounts.at(path).is_some_and(|entry| entry.super_read_only()) {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "the filesystem at {} cannot grow: it is read-only; stage the volume writable, and the node grows the filesystem",
                    path.display()
                ),
            ));
        }
        match fs::of(fs).grow_mounted(&self.os, &attached.device, path, opened.size)? {
            Grown::Yes | Grown::AlreadyThere => Ok(()),
            Grown::NotPermitted => Err(Error::new(
                Kind::Precondition,
                format!(
                    "the kernel does not allow this process to grow the mounted {fs} at {}; give the node plugin CAP_SYS_RESOURCE, or stop every pod that uses the volume: the node grows the filesystem at the next stage",
                    path.display()
                ),
            )),
        }
    }
}
