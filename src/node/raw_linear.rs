//! Selects the device for the pods of a raw block volume: its device-mapper device where the kernel has device-mapper,
//! otherwise its loop device (docs/adr/0005).
//!
//! A volume is never published as both at the same time. Each has its own page cache, so one pod would not see what
//! another one wrote. If the loop device of a volume is bind-mounted already, by an older release or under a kernel
//! without device-mapper, the volume uses it until it is unstaged.

use std::path::PathBuf;

use super::Node;
use crate::attach::{Attach, Attached};
use crate::home::{Changed, Home};
use crate::linear::{Linear, LinearDevice};
use crate::os::DmSupport;
use crate::types::{Kind, OsContext, Result, VolumeId};

impl Node {
    /// Creates the device-mapper device of an attached raw volume, or resizes it to the volume's size. `None` when the
    /// volume is used through its loop device. [`Linear::ensure`] says what a crash leaves.
    ///
    /// # Errors
    /// Those of [`Linear::ensure`]; `Internal`.
    pub(super) fn linear_device(&self, volume: &VolumeId, attached: &Attached) -> Result<Option<LinearDevice>> {
        if let DmSupport::No(_) = self.linear.support()? {
            return Ok(None);
        }
        // Another publish may have created it while the mounts were read.
        if self.linear.device(volume)?.is_none()
            && self.mounts(volume)?.is_bound_as_loop()?
            && self.linear.device(volume)?.is_none()
        {
            tracing::info!(%volume, "the volume is already published as its loop device, and stays so until it is unstaged");
            return Ok(None);
        }
        self.linear.ensure(volume, attached.device.number(), attached.size).map(Some)
    }

    /// The device node that is bind-mounted for the pods of a raw volume.
    ///
    /// # Errors
    /// Those of [`Node::linear_device`]; `Internal` when the device node cannot be created.
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

    /// Detaches a volume's device: first the devices on top of it, then the device itself.
    ///
    /// # Errors
    /// `InUse` naming the user; those of `Attach::detach`.
    pub(super) fn detach(&self, volume: &VolumeId) -> Result<()> {
        self.views.release(volume)?;
        self.linear.release(volume)?;
        match self.attach.detach(volume) {
            // By a view that was not known, if there is one.
            Err(held) if held.kind() == Kind::InUse => match self.attach.device_of(volume)? {
                Some(below) if self.views.release_over(volume, below)? == Changed::Yes => self.attach.detach(volume),
                _ => Err(held),
            },
            detached => detached,
        }?;
        self.forget_source(volume);
        Ok(())
    }
}

/// Logs once, when the node starts, which kind of device raw block volumes are published as.
pub(super) fn announce(linear: &Linear, home: &dyn Home) {
    match linear.support() {
        Ok(DmSupport::Yes([major, minor, patch])) => {
            tracing::info!(version = %format!("{major}.{minor}.{patch}"), "raw block volumes are published through device-mapper");
        }
        Ok(DmSupport::No(why)) => {
            // Without device-mapper there are no devices to log.
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
                // The kernel has no birth node. Without its pool, the volume is named as the kernel does.
                let volume = home.volume(&volume).map_or(volume, |known| known.id);
                tracing::info!(%volume, device = %number, "a raw block volume is in use, or its unstage was interrupted");
            }
        }
        Err(error) => tracing::warn!(error = error.chain(), "cannot list the devices of raw block volumes"),
    }
}
