//! Devices of a volume whose pool or record is not here any more: all that is left is the path of the image.

use super::super::ActiveDevice;
use super::device::image_of;
use crate::os::{DevNum, LoopStatus, Os};
use crate::types::{Error, Kind, ObjectUuid, OsContext, Result};

/// The loop devices over an image with this volume's path, but for those `others` says are another pool's. One that does
/// not answer is known by its sequence number.
fn find(os: &Os, volume: ObjectUuid, others: &dyn Fn(DevNum) -> Result<bool>) -> Result<Vec<LoopStatus>> {
    let candidate = |backing: &std::path::Path| image_of(backing).is_some_and(|image| image.uuid == volume);
    let mut found = Vec::new();
    for view in os.loop_views(candidate).at(|| "look at the loop devices")? {
        let Some(number) = view.device.number() else { continue };
        if others(number)? {
            continue;
        }
        match os.loop_status(view.device) {
            Ok(status) => found.extend(status),
            // Its filesystem failed: the sequence number says which attachment it is.
            Err(_) if view.diskseq.is_some() => found.push(view.unasked()),
            Err(error) => return Err(error).at(|| format!("ask {}", view.device.path().display())),
        }
    }
    Ok(found)
}

/// The device of a volume that no pool here knows.
///
/// # Errors
/// Those of `others`; `Internal` when a device does not answer.
pub(in crate::pool) fn orphan(
    os: &Os,
    volume: ObjectUuid,
    others: &dyn Fn(DevNum) -> Result<bool>,
) -> Result<Option<ActiveDevice>> {
    // sysfs alone says which: its filesystem may be what failed.
    let candidate = |backing: &std::path::Path| image_of(backing).is_some_and(|image| image.uuid == volume);
    for view in os.loop_views(candidate).at(|| "look at the loop devices")? {
        let Some(number) = view.device.number() else { continue };
        if !others(number)? {
            return Ok(Some(ActiveDevice { path: view.device.path(), number, diskseq: view.diskseq }));
        }
    }
    Ok(None)
}

/// Clears every idle device of a volume that no pool here knows.
///
/// # Errors
/// `InUse` naming one that is held; those of [`orphan`].
pub(in crate::pool) fn clear_orphans(
    os: &Os,
    volume: ObjectUuid,
    others: &dyn Fn(DevNum) -> Result<bool>,
) -> Result<()> {
    let mounts = os.mounts().at(|| "read the table of mounts")?;
    for status in find(os, volume, others)? {
        let path = status.device.path();
        // Mounted or bound: the caller has seen that its own is neither, so it is another driver's.
        if status.device.number().is_some_and(|number| !mounts.uses(number).is_empty()) {
            continue;
        }
        let gone = os.loop_clear(&status).at(|| format!("clear {} of volume {volume}", path.display()))?;
        if !gone {
            return Err(Error::new(
                Kind::InUse,
                format!(
                    "volume {volume}, which this node does not know any more, is still held through {}; unmount or close what uses it",
                    path.display()
                ),
            ));
        }
    }
    Ok(())
}
