//! Which device a raw block volume's pods get: its device-mapper device where the kernel has device-mapper, else its
//! loop device (docs/adr/0005).
//!
//! One volume is never published as both at a time: the two have page caches of their own, and a pod would not see what
//! another one wrote. So a volume whose loop device is bound somewhere, by a release or on a kernel that did not use
//! device-mapper, goes on with it until it is unstaged.

use std::path::PathBuf;

use super::Node;
use crate::attach::{Attached, Linear, LinearDevice};
use crate::os::DmSupport;
use crate::types::{OsContext, Result, VolumeId};

impl Node {
    /// Gives an attached raw volume its device-mapper device, or lets the one it has take the volume's size; `None` when the
    /// volume is used through its loop device. A crash leaves what [`Linear::ensure`] says.
    ///
    /// # Errors
    /// Those of [`Linear::ensure`]; `Internal`.
    pub(super) fn linear_device(&self, volume: &VolumeId, attached: &Attached) -> Result<Option<LinearDevice>> {
        if let DmSupport::No(_) = self.linear.support()? {
            return Ok(None);
        }
        // Another publish may have made it while the mounts were read.
        if self.linear.device(volume)?.is_none()
            && self.mounts(volume)?.is_bound_as_loop()
            && self.linear.device(volume)?.is_none()
        {
            tracing::info!(%volume, "the volume is already published as its loop device, and stays so until it is unstaged");
            return Ok(None);
        }
        self.linear.ensure(volume, attached.device.number(), attached.size).map(Some)
    }

    /// The node that is bound into a raw volume's pods.
    ///
    /// # Errors
    /// Those of [`Node::linear_device`]; `Internal` when the node cannot be made.
    pub(super) fn raw_node(&self, volume: &VolumeId, attached: &Attached) -> Result<PathBuf> {
        match self.linear_device(volume, attached)? {
            None => Ok(attached.device.path().to_owned()),
            Some(device) => {
                let number = device.number;
                self.os
                    .device_node(number)
                    .at(|| format!("find the device node of block device {number} of volume {volume}"))
            }
        }
    }

    /// Takes a volume's device away: first what lies on it, then the device itself.
    ///
    /// # Errors
    /// `InUse` naming what holds it; those of `Attach::detach`.
    pub(super) fn detach(&self, volume: &VolumeId) -> Result<()> {
        self.views.release(volume)?;
        self.linear.release(volume)?;
        self.attach.detach(volume)
    }
}

/// Says once, when the node starts, what raw block volumes are published as.
pub(super) fn announce(linear: &Linear) {
    match linear.support() {
        Ok(DmSupport::Yes([major, minor, patch])) => {
            tracing::info!(version = %format!("{major}.{minor}.{patch}"), "raw block volumes are published through device-mapper");
        }
        Ok(DmSupport::No(why)) => {
            // There can be no devices to tell of.
            tracing::warn!(%why, "raw block volumes are published as loop devices, which a pod can detach or resize; load the kernel module dm_mod and restart the driver to prevent that");
            return;
        }
        Err(error) => tracing::warn!(
            error = error.chain(),
            "cannot determine whether the kernel has device-mapper; the next stage or publish checks it again"
        ),
    }
    match linear.all() {
        Ok(devices) => {
            for (volume, number) in devices {
                tracing::info!(%volume, device = %number, "a raw block volume is in use, or its unstage was interrupted");
            }
        }
        Err(error) => tracing::warn!(error = error.chain(), "cannot list the devices of raw block volumes"),
    }
}
