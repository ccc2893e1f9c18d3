//! Volumes whose pool is on this node: the pool's own loop device.

use std::sync::Arc;

use super::{Attach, Attached, Wanted};
use crate::home::{Coordinates, Home};
use crate::os::{DevNum, Os};
use crate::types::{Bytes, Error, Kind, NodeId, OsContext, Result, VolumeId};

/// Reaches volumes of the home in this process.
pub struct Local {
    os: Os,
    node: NodeId,
    home: Arc<dyn Home>,
}

impl Local {
    /// For volumes of `home`, used by `node`, which is the same machine.
    #[must_use]
    pub fn new(os: Os, node: NodeId, home: Arc<dyn Home>) -> Self {
        Self { os, node, home }
    }
}

impl Attach for Local {
    fn attach(&self, volume: &VolumeId, wanted: &Wanted) -> Result<Attached> {
        let Coordinates::Local { device: path } = &wanted.at;
        let shown = path.display();
        let moved = |why: &str| {
            Error::new(
                Kind::Busy,
                format!("{shown} was the device of volume {volume} a moment ago, and now {why}; ask again"),
            )
        };
        let device = self.os.open_device(path).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => moved("is gone").because(error),
            _ => Error::new(Kind::Internal, format!("{shown} of volume {volume} cannot be opened")).because(error),
        })?;
        if self.os.is_misnamed(&device).at(|| format!("look at {shown}"))? {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "{shown} is not the node of block device {}: volume {volume} is not used through it, and nothing was written; remove {shown}, or give the driver the host's /dev",
                    device.number()
                ),
            ));
        }
        // The descriptor is open: from here on the number is not given to another image, and what the home says it shows
        // stays true as long as the sequence number does.
        let diskseq = self.os.disk_sequence(&device).at(|| format!("ask {shown} for its sequence number"))?;
        match self.home.device_of(volume)? {
            Some(now) if now.number == device.number() && now.diskseq == diskseq => {}
            Some(_) => return Err(moved("shows something else")),
            None => return Err(moved("shows nothing")),
        }
        if self.os.loop_keep(&device).at(|| format!("keep {shown}"))? {
            tracing::warn!(%volume, device = %shown, "the device was to go away with its last user (losetup -d, or a pod); it stays");
        }
        let size = Bytes::new(self.os.device_size(&device).at(|| format!("ask {shown} for its size"))?);
        if size < wanted.size {
            return Err(Error::new(
                Kind::Corrupt,
                format!(
                    "{shown} of volume {volume} has {} bytes and its record says {}: it was cut short; nothing was written; bring the image back to its size or restore it",
                    size.get(),
                    wanted.size.get()
                ),
            ));
        }
        let block_size = self.os.device_block_size(&device).at(|| format!("ask {shown} for its block size"))?;
        if block_size != wanted.block_size {
            return Err(Error::new(
                Kind::Corrupt,
                format!(
                    "{shown} of volume {volume} has blocks of {block_size} bytes and its record says {}; nothing was written; detach the volume and attach it again",
                    wanted.block_size
                ),
            ));
        }
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
