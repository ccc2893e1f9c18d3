//! Detaching a volume's device: after an unstage, at ControllerUnpublishVolume, and before its image is changed or removed.

use super::device::{in_words, is_absent};
use super::local::Shared;
use super::state::PoolState;
use crate::pool::{self, Deactivated};
use crate::types::{Error, Kind, NodeId, ObjectUuid, Result, VolumeId};

impl Shared {
    /// The node has unstaged the volume: its device is detached. If the pool is not served or disappeared, the devices
    /// that are left.
    pub(super) fn close(&self, id: &VolumeId, node: &NodeId) -> Result<()> {
        let released = self.pool(id.pool).and_then(|state| {
            let _lock = self.lock_volume(id, "close")?;
            if *node != self.node {
                // The export stays until the volume is detached from that node.
                return Ok(None);
            }
            let held = self.release_device(state, id.uuid)?;
            if held.is_none() {
                self.unstaged(state, id);
            }
            Ok(held)
        });
        match released {
            Ok(None) => Ok(()),
            Ok(Some(held)) => Err(Error::new(
                Kind::InUse,
                format!(
                    "the device of volume {id} is still attached on node {node}: {held}; stop the processes that use it, then retry"
                ),
            )),
            Err(error) if is_absent(&error) => {
                pool::clear_orphans(&self.os, id.uuid, &|device| self.of_another_pool(id, device))
            }
            Err(error) => Err(error),
        }
    }

    /// Detaches a volume's device; returns the users as text when this is not possible.
    ///
    /// A device node that is bound into a pod does not count as open in the kernel, and would show the next image that
    /// gets the loop number. A device that is mounted or bound here is therefore never detached.
    pub(super) fn release_device(&self, state: &PoolState, uuid: ObjectUuid) -> Result<Option<String>> {
        let before = match state.devices()?.active(uuid) {
            Ok(Some(device)) => Some(device),
            // Every device there is was looked at: to take it away would be the same look again.
            Ok(None) => return Ok(None),
            // Two devices, or one that does not answer: to take them away says what there is, or why not.
            Err(_) => None,
        };
        if let Some(device) = &before {
            let used_at = self.mounted_at(device.number)?;
            if !used_at.is_empty() {
                return Ok(Some(format!("{} is {}", device.path.display(), in_words(&used_at))));
            }
        }
        if state.devices()?.deactivate(uuid)? == Deactivated::Gone {
            return Ok(None);
        }
        let Some(device) = before.or(state.devices()?.active(uuid).ok().flatten()) else {
            return Ok(Some("its device is in use".to_owned()));
        };
        let path = device.path.display();
        let users = self.os.device_users(device.number).unwrap_or_default();
        Ok(Some(if users.is_empty() {
            format!("{path} is open in a process that the driver cannot see; find it on the node: fuser -v {path}")
        } else {
            format!("{path} is {}", in_words(&users))
        }))
    }
}
