//! The devices of this home node's volumes: their owners, their users, and how they are detached.

use tracing::warn;

use super::local::Shared;
use super::record::{Attachment, DeviceMark, Record, VolumeRecord};
use super::state::PoolState;
use crate::os::{DevNum, DeviceUse};
use crate::pool::{self, ActiveDevice};
use crate::types::{Error, Kind, NodeId, OsContext, Result, VolumeId, VolumeMode};

impl Shared {
    /// The device of a volume now. If the pool is not served or disappeared, a device over an image with the volume's
    /// name: a mounted device must still be unmounted.
    pub(super) fn device_of(&self, id: &VolumeId) -> Result<Option<ActiveDevice>> {
        match self.pool(id.pool).and_then(|state| state.devices()?.active(id.uuid)) {
            Err(error) if is_absent(&error) => {
                pool::orphan(&self.os, id.uuid, &|device| self.of_another_pool(id, device))
            }
            found => found,
        }
    }

    /// The volume whose image backs a device of this machine, if it is one of this home node's.
    pub(super) fn volume_of(&self, device: DevNum) -> Result<Option<VolumeId>> {
        for (pool, state) in self.there() {
            match state.devices()?.volume_of(device) {
                Ok(Some(uuid)) => return Ok(Some(VolumeId::new(pool, uuid))),
                Ok(None) => {}
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Two pools may have the same uuid: disks that were moved, or two drivers with the same volume names.
    pub(super) fn of_another_pool(&self, id: &VolumeId, device: DevNum) -> Result<bool> {
        for (_, state) in self.there().filter(|(pool, _)| *pool != id.pool) {
            match state.devices()?.volume_of(device) {
                Ok(found) if found == Some(id.uuid) => return Ok(true),
                Ok(_) => {}
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Where a device is mounted or bound, as this process sees it.
    pub(super) fn mounted_at(&self, device: DevNum) -> Result<Vec<DeviceUse>> {
        let table = self.os.mounts().at(|| "read the mount table")?;
        Ok(table.uses(device))
    }

    /// Records the device of a raw block volume, which may be in a pod from now on. After any restart in this boot its
    /// number is then given to no other volume. One step: the record is written before the node gets the device.
    pub(super) fn mark_device(
        &self,
        state: &PoolState,
        record: &mut VolumeRecord,
        node: &NodeId,
        device: &ActiveDevice,
    ) -> Result<()> {
        let boot_id = self.boot()?;
        let mark = DeviceMark::of(device);
        let Some(attachment) = record.attachments.iter_mut().find(|attachment| attachment.node == *node) else {
            return Ok(());
        };
        if attachment.boot_id != Some(boot_id) || attachment.device.as_ref() != Some(&mark) {
            if attachment.boot_id != Some(boot_id) {
                attachment.view = None;
            }
            attachment.boot_id = Some(boot_id);
            attachment.device = Some(mark);
            self.store_volume(record)?;
        }
        state.devices()?.claim(record.uuid, device)
    }

    /// The same for the device of read-only pods. One step: the record is written before a pod gets the device. The mark
    /// stays when the device is removed, and its number may be another volume's then: see [`Shared::still_bound`]. While
    /// it is bound, the node keeps its number from other volumes.
    pub(super) fn give_view(&self, id: &VolumeId, node: &NodeId, view: &ActiveDevice) -> Result<()> {
        let _lock = self.lock_volume(id, "NodePublishVolume")?;
        let mut record = self.ready_volume(id)?;
        let boot_id = self.boot()?;
        let mark = Some(DeviceMark::of(view));
        let uses = record.attachments.iter_mut().chain(record.still_staged.as_mut());
        let Some(attachment) = uses.into_iter().find(|attachment| attachment.node == *node) else {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "volume {id} is not attached to node {node}; attach it (ControllerPublishVolume) before it is published"
                ),
            ));
        };
        // Marks of another boot do not apply. The volume's own device is marked when it is opened, which comes first.
        if attachment.boot_id == Some(boot_id) && attachment.view != mark {
            attachment.view = mark;
            self.store_volume(&mut record)?;
        }
        Ok(())
    }

    /// Whether pods of a raw block volume may have this device.
    pub(super) fn was_given(&self, id: &VolumeId, device: DevNum) -> Result<bool> {
        let record = match self.volume_record(id) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(false),
            Err(error) if is_absent(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        let boot_id = self.boot()?;
        let uses = record.attachments.iter().chain(&record.still_staged);
        let mut block = uses.filter(|attachment| attachment.mode == VolumeMode::Block);
        Ok(block.any(|attachment| match &attachment.device {
            Some(_) => attachment.boot_id == Some(boot_id) && attachment.marks().any(|mark| mark.is(device)),
            None => true,
        }))
    }

    /// Where the device that pods got is bound although it was detached: its users would see the next image that gets
    /// its number.
    pub(super) fn still_bound(&self, id: &VolumeId, ended: &Attachment) -> Result<Option<String>> {
        if ended.marks().next().is_none() || ended.boot_id != Some(self.boot()?) {
            return Ok(None);
        }
        for mark in ended.marks() {
            let Ok(number) = mark.number.parse::<DevNum>() else { continue };
            // Only a bind mount of the node can be a pod's: another program may have the number by now, with a mount.
            let mut uses = self.mounted_at(number)?;
            uses.retain(|used| matches!(used, DeviceUse::Bound(..)));
            let is_view = Some(mark) == ended.view.as_ref();
            let of_another = is_view && self.is_of_another(id, number)?;
            if !uses.is_empty() && !of_another {
                return Ok(Some(format!("block device {number} is {}", in_words(&uses))));
            }
        }
        Ok(None)
    }

    /// Whether a device shows another volume than this one: its image, or its device as a read-only view does.
    fn is_of_another(&self, id: &VolumeId, device: DevNum) -> Result<bool> {
        let shown = match self.volume_of(device)? {
            Some(shown) => Some(shown),
            None => match self.os.loop_below(device).at(|| format!("look up block device {device}"))? {
                Some(below) => self.volume_of(below)?,
                None => None,
            },
        };
        Ok(shown.is_some_and(|shown| shown != *id))
    }

    /// Loads the devices that pods may have from a record: called for each record when the home node starts.
    pub(super) fn recall_device(&self, state: &PoolState, record: &VolumeRecord) {
        let Ok(boot_id) = self.boot() else { return };
        let of_this_boot = |found: &&Attachment| found.boot_id == Some(boot_id);
        for attachment in record.attachments.iter().chain(&record.still_staged).filter(of_this_boot) {
            let Some(mark) = &attachment.device else { continue };
            let Ok(number) = mark.number.parse::<DevNum>() else { continue };
            let path = self.os.device_path(number);
            let device = ActiveDevice { path, number, diskseq: mark.diskseq };
            if let Err(error) = state.devices().and_then(|devices| devices.claim(record.uuid, &device)) {
                warn!(volume = %record.handle, device = %number, error = record.named().in_text(&error.chain()), "cannot look up the device of a raw block volume");
            }
        }
    }

    fn boot(&self) -> Result<uuid::Uuid> {
        let text = self.os.boot_id().at(|| "read the boot id")?;
        text.parse().map_err(|error| Error::new(Kind::Internal, format!("{text:?} is not a boot id: {error}")))
    }
}

/// Whether a pool is not on this node, or disappeared.
pub(super) fn is_absent(error: &Error) -> bool {
    matches!(error.kind(), Kind::NotFound | Kind::Unavailable)
}

pub(super) fn in_words(uses: &[DeviceUse]) -> String {
    uses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
