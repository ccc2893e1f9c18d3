//! Keeps the devices of staged block volumes open. A bind-mounted device node does not keep its loop device attached.
//! If the loop device were detached while a pod uses the node, the pod would see the next image with the same number.
//!
//! The open descriptors are not state: the process opens the devices again from mountinfo when it starts.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::attach::{Attach, ReadOnlyViews};
use crate::linear::Linear;
use crate::os::{BlockDevice, DevNum, Os};
use crate::types::{OsContext, Result, VolumeId};

/// The devices that are held open.
#[derive(Debug, Default)]
pub(super) struct RawDevices {
    held: Mutex<HashMap<VolumeId, BlockDevice>>,
}

impl RawDevices {
    /// Keeps a device open until it is released.
    pub(super) fn hold(&self, volume: VolumeId, device: BlockDevice) {
        let before = self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(volume, device);
        drop(before);
    }

    /// Returns a volume's device for the caller to close. The last close(2) writes back dirty data, which takes time,
    /// or never returns on a dead disk. Never close it under a lock that other volumes need.
    pub(super) fn take(&self, volume: &VolumeId) -> Option<BlockDevice> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(volume)
    }

    /// Whether a volume's device is held open.
    pub(super) fn holds(&self, volume: &VolumeId) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains_key(volume)
    }

    /// Opens every bind-mounted device of a volume again. A failure is logged and does not affect the others.
    ///
    /// # Errors
    /// `Internal` when the mounts cannot be read.
    pub(super) fn recover(&self, os: &Os, attach: &dyn Attach, linear: &Linear, views: &ReadOnlyViews) -> Result<()> {
        let table = os.mounts().at(|| "read the mount table")?;
        let mut devices: Vec<_> = table.entries().iter().filter_map(|entry| table.bound_device(entry)).collect();
        devices.sort_unstable();
        devices.dedup();
        for bound in devices {
            let path = os.device_path(bound);
            let held = volume_of(bound, attach, linear, views).and_then(|found| {
                let Some((volume, device)) = found else { return Ok(()) };
                let path = os.device_path(device);
                let opened = os.open_device(&path).at(|| format!("open {}", path.display()))?;
                // Open: the device keeps its image until it is closed.
                if let Some(volume) = attach.volume_of(device)?.filter(|found| *found == volume) {
                    os.keep_attached(&opened).at(|| format!("clear the autoclear flag of {}", path.display()))?;
                    self.hold(volume, opened);
                }
                Ok(())
            });
            if let Err(error) = held {
                tracing::warn!(device = %path.display(), error = error.chain(), "cannot open the device of a raw block volume in use");
            }
        }
        Ok(())
    }

    /// Before this process exits: no device disappears when our descriptor is closed (LO_FLAGS_AUTOCLEAR).
    pub(super) fn keep_all(&self, os: &Os) {
        for (volume, device) in &*self.held.lock().unwrap_or_else(PoisonError::into_inner) {
            match os.keep_attached(device) {
                Ok(false) => {}
                Ok(true) => {
                    tracing::warn!(%volume, device = %device.path().display(), "a process marked the device to be detached with its last user (losetup -d, or a pod); the node removed the mark");
                }
                Err(error) => {
                    tracing::error!(%volume, device = %device.path().display(), %error, "cannot clear the autoclear flag: the device may disappear when this process exits, while pods use it");
                }
            }
        }
    }
}

/// The volume whose pods use a device, and the volume's own device: the same, or the one below.
fn volume_of(
    bound: DevNum,
    attach: &dyn Attach,
    linear: &Linear,
    views: &ReadOnlyViews,
) -> Result<Option<(VolumeId, DevNum)>> {
    if let Some(volume) = attach.volume_of(bound)? {
        return Ok(Some((volume, bound)));
    }
    let above = match views.volume_of(bound) {
        Some(volume) => Some(volume),
        None => linear.volume_of(bound)?,
    };
    let Some(volume) = above else { return Ok(None) };
    Ok(attach.device_of(&volume)?.map(|device| (volume, device)))
}
