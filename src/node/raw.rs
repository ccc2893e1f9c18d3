//! Raw devices of staged block volumes, held open: a bound device node keeps no loop device by itself, and one that
//! was cleared under a pod would show the next image that gets its number.
//!
//! A hold is not state: it is taken again from mountinfo when the process starts.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::os::{BlockDevice, LoopDevice, Os};
use crate::types::{ObjectUuid, OsContext, Result};

/// The held devices.
#[derive(Debug, Default)]
pub(super) struct RawDevices {
    held: Mutex<HashMap<ObjectUuid, BlockDevice>>,
}

impl RawDevices {
    /// Keeps a device open until it is released.
    pub(super) fn hold(&self, uuid: ObjectUuid, device: BlockDevice) {
        let before = self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(uuid, device);
        drop(before);
    }

    /// A volume's device, to be closed by the caller. The last close(2) writes back what is dirty, which takes its
    /// time, or for ever on a dead disk: not under a lock that other volumes need.
    pub(super) fn take(&self, uuid: ObjectUuid) -> Option<BlockDevice> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&uuid)
    }

    /// Whether a volume's device is held.
    pub(super) fn holds(&self, uuid: ObjectUuid) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&uuid)
    }

    /// Holds again every device that is bound somewhere and carries a volume's uuid.
    ///
    /// # Errors
    /// `Internal` when mounts or a device cannot be read; what was taken until then stays held.
    pub(super) fn recover(&self, os: &Os) -> Result<()> {
        let table = os.mounts().at(|| "read the table of mounts")?;
        for entry in table.entries() {
            let Some(device) = loop_of(&entry.root) else { continue };
            let path = device.path();
            let opened = match os.open_device(&path) {
                Ok(opened) => opened,
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENXIO)) => continue,
                Err(error) => return Err(error).at(|| format!("open {}", path.display())),
            };
            let status = os.held_loop_status(&opened).at(|| format!("ask {} what it shows", path.display()))?;
            if let Some(uuid) = status.and_then(|status| status.name.parse().ok()) {
                self.hold(uuid, opened);
            }
        }
        Ok(())
    }
}

fn loop_of(path: &Path) -> Option<LoopDevice> {
    LoopDevice::named(path.file_name()?.to_str()?)
}
