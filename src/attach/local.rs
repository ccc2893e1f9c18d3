//! Volumes whose pool is on this node: the pool's own loop device.

use std::sync::Arc;

use super::{Attach, Attached, Wanted};
use crate::home::{Coordinates, Home};
use crate::os::Os;
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

    /// Clears every idle loop device that carries the volume's uuid: what is left when record or pool are gone.
    fn clear_orphans(&self, volume: &VolumeId) -> Result<()> {
        let name = volume.uuid.to_string();
        let loops = self.os.loops().at(|| format!("look for loop devices of volume {volume}"))?;
        for status in loops.iter().filter(|status| status.name == name) {
            let path = status.device.path();
            let gone = self.os.loop_clear(status).at(|| format!("clear {} of volume {volume}", path.display()))?;
            if !gone {
                return Err(Error::new(
                    Kind::InUse,
                    format!(
                        "volume {volume}, which its home does not know any more, is still held through {}; unmount or close what uses it",
                        path.display()
                    ),
                ));
            }
        }
        Ok(())
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
        // Through the open descriptor: from here on the number is not given to another image.
        let status = self.os.held_loop_status(&device).at(|| format!("ask {shown} what it shows"))?;
        match status {
            Some(status) if status.name == volume.uuid.to_string() && status.offset == 0 => {}
            Some(_) => return Err(moved("shows something else")),
            None => return Err(moved("shows nothing")),
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
        Ok(Attached { device, size })
    }

    fn detach(&self, volume: &VolumeId) -> Result<()> {
        match self.home.close(volume, &self.node) {
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unavailable) => self.clear_orphans(volume),
            result => result,
        }
    }
}
