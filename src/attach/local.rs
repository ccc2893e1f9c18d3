//! Volumes whose pool is on this node: the pool's own loop device.

use std::sync::Arc;

use super::{Attach, Attached, Wanted, verified};
use crate::home::{DeviceAddress, Home};
use crate::os::{DevNum, Os};
use crate::types::{Error, Kind, NodeId, OsContext, Result, VolumeId};

/// Attaches volumes of the home node in this process.
pub struct Local {
    os: Os,
    node: NodeId,
    home: Arc<dyn Home>,
}

impl Local {
    /// For volumes of `home`, used by `node`, on the same machine.
    #[must_use]
    pub fn new(os: Os, node: NodeId, home: Arc<dyn Home>) -> Self {
        Self { os, node, home }
    }
}

impl Attach for Local {
    fn attach(&self, volume: &VolumeId, wanted: &Wanted) -> Result<Attached> {
        let DeviceAddress::Local { device: path } = &wanted.at else {
            return Err(Error::new(Kind::Internal, format!("volume {volume} is on another node")));
        };
        let shown = path.display();
        let moved = |why: &str| {
            Error::new(Kind::Busy, format!("{shown} is no longer the device of volume {volume}: it {why}; retry"))
        };
        let device = self.os.open_device(path).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => moved("is gone").because(error),
            _ => Error::new(Kind::Internal, format!("cannot open {shown} of volume {volume}")).because(error),
        })?;
        if self.os.is_misnamed(&device).at(|| format!("check the device node {shown}"))? {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "{shown} is not the device node of block device {} of volume {volume}; nothing was written; remove {shown}, or give the driver the /dev of the host",
                    device.number()
                ),
            ));
        }
        // The descriptor is open: from here on the kernel does not give the number to another image. The home's answer
        // stays valid as long as the sequence number is the same.
        let diskseq = self.os.disk_sequence(&device).at(|| format!("read the sequence number of {shown}"))?;
        match self.home.device_of(volume)? {
            Some(now) if now.number == device.number() && now.diskseq == diskseq => {}
            Some(_) => return Err(moved("has another image")),
            None => return Err(moved("has no image")),
        }
        if self.os.keep_attached(&device).at(|| format!("clear the autoclear flag of {shown}"))? {
            tracing::warn!(%volume, device = %shown, "a process marked the device to be detached with its last user (losetup -d, or a pod); the node removed the mark");
        }
        let truncated =
            "the image was truncated; bring it back to its full size, or restore the volume from a snapshot";
        let size = verified(&self.os, &device, volume, wanted, truncated)?;
        Ok(Attached { device, size, diskseq })
    }

    fn detach(&self, volume: &VolumeId) -> Result<()> {
        self.home.close(volume, &self.node)
    }

    fn device_of(&self, volume: &VolumeId) -> Result<Option<DevNum>> {
        Ok(self.home.device_of(volume)?.map(|device| device.number))
    }

    fn volume_of(&self, device: DevNum) -> Result<Option<VolumeId>> {
        self.home.volume_of(device)
    }
}
