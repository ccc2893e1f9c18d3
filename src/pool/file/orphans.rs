//! Devices of a volume whose pool or record is not here any more: all that is left is the path of the image.

use super::super::ActiveDevice;
use super::device::image_of;
use crate::os::{DevNum, LoopStatus, Os};
use crate::types::{Error, Kind, ObjectUuid, OsContext, Result};

/// The loop devices over an image with this volume's path, but for those `others` says are another pool's. One that does
/// not answer is passed over: whatever it is, it is not idle.
fn find(os: &Os, volume: ObjectUuid, others: &dyn Fn(DevNum) -> Result<bool>) -> Result<Vec<LoopStatus>> {
    let candidate = |backing: &std::path::Path| image_of(backing).is_some_and(|image| image.uuid == volume);
    let mut found = Vec::new();
    for view in os.loop_views(candidate).at(|| "look at the loop devices")? {
        let Some(number) = view.device.number() else { continue };
        if others(number)? {
            continue;
        }
        let asked = os.loop_status(view.device).at(|| format!("ask {}", view.device.path().display()))?;
        found.extend(asked);
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
    let found = find(os, volume, others)?.into_iter().find_map(|status| {
        let number = status.device.number()?;
        Some(ActiveDevice { path: status.device.path(), number, diskseq: status.diskseq })
    });
    Ok(found)
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
    for status in find(os, volume, others)? {
        let path = status.device.path();
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
