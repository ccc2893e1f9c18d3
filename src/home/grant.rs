//! Attachments of a volume: grant, revoke, open, close. At most one node can write (promise 3).

use tracing::{info, warn};

use super::answer::mode_among;
use super::format::usable_raw;
use super::local::{Key, PoolState, Shared};
use super::record::{AttachPath, Attachment, DeviceMark, GrantState, Record, VolumeRecord};
use super::{Changed, DeviceAddress, GrantRequest, Granted, OpenVolume};
use crate::types::{Bytes, Error, Kind, NodeId, Provisioning, Result, VolumeId, VolumeMode};

impl Shared {
    /// Attaches a volume to a node. One step: the record is written with the attachment, or not at all.
    pub(super) fn grant(&self, id: &VolumeId, request: &GrantRequest) -> Result<Granted> {
        let _lock = self.lock_volume(id, "ControllerPublishVolume")?;
        let mut record = self.ready_volume(id)?;
        if request.node != self.node {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "volume {id} is local to node {} and cannot be attached to node {}: schedule the pod on {}",
                    self.node, request.node, self.node
                ),
            ));
        }
        let mode = mode_among(&record.id(), &record.modes(), request.mode)?;
        self.not_copied_from(record.id().into())?;
        if let Some(attachment) = record.attachments.first() {
            if attachment.node != request.node || attachment.state != GrantState::Granted {
                return Err(Error::new(
                    Kind::Precondition,
                    format!("volume {id} is attached to node {}; detach it there first", attachment.node),
                ));
            }
            let same = attachment.mode == mode
                && attachment.access == request.access
                && attachment.read_only == request.read_only;
            if !same {
                return Err(Error::new(
                    Kind::AlreadyExists,
                    format!(
                        "volume {id} is attached to node {} with another capability; detach it first",
                        attachment.node
                    ),
                ));
            }
            return Ok(Granted { home: self.node.clone(), epoch: attachment.epoch, changed: Changed::No });
        }
        let epoch = record.epoch.checked_add(1).ok_or_else(|| no_more_epochs(&record))?;
        // A pod may still have the device: its number stays reserved for the volume.
        let before = record.still_staged.clone();
        self.attach_again(self.pool(id.pool)?, &mut record, request, mode)?;
        let before_view = before.as_ref().and_then(|before| before.view.clone());
        record.epoch = epoch;
        record.ever_attached = true;
        record.attachments.push(Attachment {
            node: request.node.clone(),
            path: AttachPath::Local,
            mode,
            access: request.access,
            read_only: request.read_only,
            epoch: record.epoch,
            state: GrantState::Granted,
            nonce: None,
            boot_id: before.as_ref().and_then(|before| before.boot_id),
            device: before
                .and_then(|before| before.device)
                .or_else(|| (mode == VolumeMode::Block).then(DeviceMark::none)),
            view: before_view,
            unknown: serde_json::Map::new(),
        });
        self.store_volume(&mut record)?;
        info!(volume = %record.handle, node = %request.node, epoch = record.epoch, "volume attached");
        Ok(Granted { home: self.node.clone(), epoch: record.epoch, changed: Changed::Yes })
    }

    /// Removes an attachment.
    ///
    /// Steps, and what a crash after each leaves:
    /// 1. the device detached, if it is idle: the attachment stays without a device; `open` attaches the device again.
    /// 2. the record written without the attachment, and with `still_staged` if the home node uses the device
    ///    (`detached.rs`): done. A local device needs no state in between: its check and the record are under one lock.
    pub(super) fn revoke(&self, id: &VolumeId, node: Option<&NodeId>) -> Result<Changed> {
        let state = self.pool(id.pool)?;
        let _lock = self.lock_volume(id, "ControllerUnpublishVolume")?;
        let Some(mut record) = self.volume_record(id)? else { return Ok(Changed::No) };
        let leaves = |attachment: &Attachment| node.is_none_or(|node| attachment.node == *node);
        let (ended, stay): (Vec<_>, Vec<_>) = record.attachments.drain(..).partition(leaves);
        let Some(last) = ended.last() else { return Ok(Changed::No) };
        record.attachments = stay;
        record.still_staged = None;
        let held = match self.release_device(state, id.uuid)? {
            None => self.still_bound(id, last)?,
            held => held,
        };
        let released = held.is_none();
        if let Some(held) = held {
            self.detach_in_use(&mut record, last, &held);
        }
        self.store_volume(&mut record)?;
        if released {
            state.devices()?.disclaim(id.uuid);
        }
        info!(volume = %record.handle, node = %self.node, grants = ended.len(), "volume detached");
        Ok(Changed::Yes)
    }

    /// The location of an attached volume's device. First finishes an interrupted expansion and fills a thick image's
    /// holes, so that every stage gets a complete device.
    pub(super) fn open(&self, id: &VolumeId, node: &NodeId) -> Result<OpenVolume> {
        let state = self.pool(id.pool)?;
        let lock = self.lock_volume(id, "open")?;
        let mut record = self.ready_volume(id)?;
        let attachment = granted_to(&record, node)?.clone();
        if attachment.mode == VolumeMode::Block {
            usable_raw(&record)?;
        }
        self.not_copied_from(record.id().into())?;
        self.check_image(state, record.id().into(), record.size)?;
        self.finish_growth(state, &mut record);
        if record.provisioning == Provisioning::Thick
            && record.changeable().is_ok()
            && let Err(error) = state.pool.grow(id.uuid, &record.geometry())
        {
            // The data is complete and readable: serve it with a warning.
            warn!(volume = %record.handle, error = record.named().in_text(&error.chain()), "holes in a thick image could not be filled: writes to them may fail when the pool is full");
        }
        let device = state.devices()?.activate(id.uuid, &record.geometry())?;
        lock.works_on(&device.path.display());
        if attachment.mode == VolumeMode::Block {
            let marked = self.mark_device(state, &mut record, node, &device);
            marked.map_err(|error| match self.release_device(state, id.uuid) {
                // The device was in use before.
                Ok(_) => error,
                Err(undo) => error.and_undo_failed(&undo),
            })?;
        }
        Ok(OpenVolume {
            at: DeviceAddress::Local { device: device.path },
            size: record.size,
            block_size: record.block_size,
            format: record.format.known,
            mode: attachment.mode,
            access: attachment.access,
            read_only: attachment.read_only,
            fsck: record.request.parameters.fsck,
            mkfs_options: record.request.parameters.mkfs_options.clone(),
            epoch: attachment.epoch,
            claim: record.claim(),
        })
    }

    /// A volume whose image is missing or too short is never served, and the image is never extended: missing data is
    /// not zeroes. Returns the image's length, which is more than `size` after an interrupted expansion: a copy of it
    /// needs the same length.
    pub(super) fn check_image(&self, state: &PoolState, key: Key, size: Bytes) -> Result<Bytes> {
        let found = state.pool.facts(key.object())?;
        let wrong = match found {
            None => "its image is missing".to_owned(),
            Some(facts) if facts.size < size => {
                format!("its image has {} bytes, but its record says {}", facts.size.get(), size.get())
            }
            Some(facts) => return Ok(facts.size.round_up_mib().unwrap_or(facts.size)),
        };
        let identity = state.pool.identity();
        Err(Error::new(
            Kind::Corrupt,
            format!(
                "{} is not served: {wrong}; nothing was changed. Restore the image in pool {} ({}) from a backup, or delete it",
                self.described(key),
                identity.name,
                identity.place
            ),
        ))
    }

    /// Continues an expansion that a crash interrupted. One that no longer fits is left to the next
    /// ControllerExpandVolume, and one of a newer release is left to that release.
    fn finish_growth(&self, state: &PoolState, record: &mut VolumeRecord) {
        let Some(target) = record.target_size else { return };
        if record.changeable().is_err() {
            return;
        }
        let finished = self.grow_to(state, record, target);
        if let Err(error) = finished {
            warn!(volume = %record.handle, target = target.get(), error = record.named().in_text(&error.chain()), "an interrupted expansion could not be finished; the next ControllerExpandVolume continues it");
        }
    }

    /// Extends image and device and records the size (steps 3 to 5 of `expand`).
    pub(super) fn grow_to(&self, state: &PoolState, record: &mut VolumeRecord, target: Bytes) -> Result<()> {
        let geometry = record.geometry_at(target);
        state.pool.grow(record.uuid, &geometry)?;
        state.devices()?.resize(record.uuid, &geometry)?;
        let mut grown = VolumeRecord { size: target, target_size: None, ..record.clone() };
        // Image and device are extended: the error must not say that nothing was done.
        self.store_volume(&mut grown).map_err(|error| error.with_kind(Kind::Internal))?;
        *record = grown;
        state.ledger.enter(record.object(), state.claim_of_volume(record));
        Ok(())
    }
}

/// A correct record never reaches 2^64 attachments. It is damaged, and a smaller number would not be the highest.
fn no_more_epochs(record: &VolumeRecord) -> Error {
    Error::new(
        Kind::Corrupt,
        format!(
            "volume {} cannot be attached: its record has attachment number {}, the highest possible, so the record is damaged; nothing was changed; restore the record from a backup of the pool",
            record.id(),
            record.epoch
        ),
    )
}

/// The attachment of a node.
pub(super) fn granted_to<'r>(record: &'r VolumeRecord, node: &NodeId) -> Result<&'r Attachment> {
    let found = record.attachments.iter().find(|a| a.node == *node && a.state == GrantState::Granted);
    found.ok_or_else(|| {
        Error::new(
            Kind::Precondition,
            format!(
                "volume {} is not attached to node {node}: attach it (ControllerPublishVolume) before it is staged",
                record.id()
            ),
        )
    })
}
