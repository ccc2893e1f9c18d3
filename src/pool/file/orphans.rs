//! Devices of a volume whose pool or record is not on this node any more: only the path of the image is left.

use super::super::ActiveDevice;
use super::device::image_of;
use crate::os::{DevNum, LoopStatus, Os};
use crate::types::{Error, Kind, ObjectUuid, OsContext, Result};

/// The loop devices over an image with this volume's path, except those that `others` assigns to another pool. A device
/// that cannot be queried is identified by its sequence number.
fn find(os: &Os, volume: ObjectUuid, others: &dyn Fn(DevNum) -> Result<bool>) -> Result<Vec<LoopStatus>> {
    let candidate = |backing: &std::path::Path| image_of(backing).is_some_and(|image| image.uuid == volume);
    let mut found = Vec::new();
    for view in os.loop_views(candidate).at(|| "list the loop devices")? {
        let Some(number) = view.device.number() else { continue };
        if others(number)? {
            continue;
        }
        match os.loop_status(view.device) {
            Ok(status) => found.extend(status),
            // Its filesystem failed: the sequence number identifies the attachment.
            Err(_) if view.diskseq.is_some() => found.push(view.unasked()),
            Err(error) => return Err(error).at(|| format!("query {}", view.device.path().display())),
        }
    }
    Ok(found)
}

/// The device of a volume that no pool on this node knows.
///
/// # Errors
/// Those of `others`; `Internal` when a device cannot be queried.
pub(in crate::pool) fn orphan(
    os: &Os,
    volume: ObjectUuid,
    others: &dyn Fn(DevNum) -> Result<bool>,
) -> Result<Option<ActiveDevice>> {
    // Uses only sysfs: the device's filesystem may have failed.
    let candidate = |backing: &std::path::Path| image_of(backing).is_some_and(|image| image.uuid == volume);
    for view in os.loop_views(candidate).at(|| "list the loop devices")? {
        let Some(number) = view.device.number() else { continue };
        if !others(number)? {
            return Ok(Some(ActiveDevice { path: view.device.path(), number, diskseq: view.diskseq }));
        }
    }
    Ok(None)
}

/// Detaches every idle device of a volume that no pool on this node knows.
///
/// # Errors
/// `InUse` with the name of a device that is in use; those of [`orphan`].
pub(in crate::pool) fn clear_orphans(
    os: &Os,
    volume: ObjectUuid,
    others: &dyn Fn(DevNum) -> Result<bool>,
) -> Result<()> {
    let mounts = os.mounts().at(|| "read the mount table")?;
    for status in find(os, volume, others)? {
        let path = status.device.path();
        // The caller verified that its own device is neither mounted nor bound, so this one belongs to another driver.
        if status.device.number().is_some_and(|number| !mounts.uses(number).is_empty()) {
            continue;
        }
        let gone = os.loop_clear(&status).at(|| format!("detach {} of volume {volume}", path.display()))?;
        if !gone {
            return Err(Error::new(
                Kind::InUse,
                format!(
                    "volume {volume}, which this node does not know any more, is still in use through {}; unmount it or stop the processes that use it",
                    path.display()
                ),
            ));
        }
    }
    Ok(())
}
