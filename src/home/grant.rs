//! Who may use a volume now: grant, revoke, open, close. One writer (promise 3).

use std::path::Path;

use tracing::{info, warn};

use super::format::usable_raw;
use super::local::{Key, PoolState, Shared};
use super::record::{AttachPath, Attachment, GrantState, Record, VolumeRecord};
use super::{Changed, Coordinates, GrantRequest, Granted, Opened};
use crate::os::MountEntry;
use crate::pool::{Deactivated, Object};
use crate::types::{Bytes, Error, Kind, NodeId, ObjectUuid, OsContext, Provisioning, Result, VolumeId, VolumeMode};

impl Shared {
    /// Grants a volume to a node. One step: the record is written with the grant, or without.
    pub(super) fn grant(&self, id: &VolumeId, request: &GrantRequest) -> Result<Granted> {
        let _lock = self.lock_volume(id, "ControllerPublishVolume")?;
        let mut record = self.ready_volume(id)?;
        if request.node != self.node {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "volume {id} is local to node {} and cannot be attached to node {}: let the pod run on {}",
                    self.node, request.node, self.node
                ),
            ));
        }
        self.not_copied_from(id.pool, Object::Volume(id.uuid))?;
        if let Some(attachment) = record.attachments.first() {
            if attachment.node != request.node || attachment.state != GrantState::Granted {
                return Err(Error::new(
                    Kind::Precondition,
                    format!("volume {id} is attached to node {}; detach it there first", attachment.node),
                ));
            }
            let same = attachment.mode == request.mode
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
        record.epoch = record.epoch.checked_add(1).ok_or_else(|| no_more_epochs(&record))?;
        record.ever_attached = true;
        record.attachments.push(Attachment {
            node: request.node.clone(),
            path: AttachPath::Local,
            mode: request.mode,
            access: request.access,
            read_only: request.read_only,
            epoch: record.epoch,
            state: GrantState::Granted,
            nonce: None,
            boot_id: None,
            unknown: serde_json::Map::new(),
        });
        self.store_volume(&record)?;
        info!(volume = %record.handle, node = %request.node, epoch = record.epoch, "volume attached");
        Ok(Granted { home: self.node.clone(), epoch: record.epoch, changed: Changed::Yes })
    }

    /// Takes a grant back.
    ///
    /// Steps, and what a crash after each leaves:
    /// 1. the device proved idle and taken away: the grant stands without a device; `open` brings it back.
    /// 2. the record written without the grant: done. A local device needs no state between: its proof and the
    ///    record are under one lock.
    pub(super) fn revoke(&self, id: &VolumeId, node: Option<&NodeId>) -> Result<Changed> {
        let state = self.pool(id.pool)?;
        let _lock = self.lock_volume(id, "ControllerUnpublishVolume")?;
        let Some(mut record) = self.volume_record(id)? else { return Ok(Changed::No) };
        let before = record.attachments.len();
        let leaves = |attachment: &Attachment| node.is_none_or(|node| attachment.node == *node);
        if !record.attachments.iter().any(leaves) {
            return Ok(Changed::No);
        }
        if let Some(held) = self.release_device(state, id.uuid)? {
            return Err(Error::new(
                Kind::InUse,
                format!(
                    "volume {id} stays attached to node {}: {held}; stop what uses it, unmount it, then detach again",
                    self.node
                ),
            ));
        }
        record.attachments.retain(|attachment| !leaves(attachment));
        self.store_volume(&record)?;
        info!(volume = %record.handle, node = %self.node, grants = before - record.attachments.len(), "volume detached");
        Ok(Changed::Yes)
    }

    /// Where a granted volume's device is. Finishes a growth that was interrupted and heals a thick image's holes
    /// first, so that every stage gets a whole device.
    pub(super) fn open(&self, id: &VolumeId, node: &NodeId) -> Result<Opened> {
        let state = self.pool(id.pool)?;
        let lock = self.lock_volume(id, "open")?;
        let mut record = self.ready_volume(id)?;
        let attachment = granted_to(&record, node)?.clone();
        if attachment.mode == VolumeMode::Block {
            usable_raw(&record)?;
        }
        self.not_copied_from(id.pool, Object::Volume(id.uuid))?;
        self.check_image(state, record.object(), record.size)?;
        self.finish_growth(state, &mut record);
        if record.provisioning == Provisioning::Thick
            && record.changeable().is_ok()
            && let Err(error) = state.pool.grow(id.uuid, &record.geometry())
        {
            // The data is whole and readable: better served with a warning than not at all.
            warn!(volume = %record.handle, error = %error.chain(), "holes in a thick image could not be filled: writes to them may find the pool full");
        }
        let device = state.pool.activate(id.uuid, &record.geometry())?;
        lock.works_on(&device.path.display());
        Ok(Opened {
            at: Coordinates::Local { device: device.path },
            size: record.size,
            block_size: record.block_size,
            format: record.format.known,
            mode: attachment.mode,
            access: attachment.access,
            read_only: attachment.read_only,
            fsck: record.request.parameters.fsck,
            mkfs_options: record.request.parameters.mkfs_options.clone(),
            epoch: attachment.epoch,
        })
    }

    /// A record whose image is missing or short is never served, and never made long again: what is not there is not
    /// zeroes. Answers the image's length, which is more than `size` where a growth was cut off: a copy of it has to be
    /// as long.
    pub(super) fn check_image(&self, state: &PoolState, object: Object, size: Bytes) -> Result<Bytes> {
        let found = state.pool.facts(object)?;
        let wrong = match found {
            None => "its image is missing".to_owned(),
            Some(facts) if facts.size < size => {
                format!("its image has {} bytes and its record says {}", facts.size.get(), size.get())
            }
            Some(facts) => return Ok(facts.size.round_up_mib().unwrap_or(facts.size)),
        };
        let identity = state.pool.identity();
        Err(Error::new(
            Kind::Corrupt,
            format!(
                "{} is not served: {wrong}; nothing was changed. Restore the image in pool {} ({}) from a backup, or delete it",
                Key { pool: identity.id, object },
                identity.name,
                identity.place
            ),
        ))
    }

    /// Goes on with an expansion that a crash cut off; one that no longer fits is left for the next ControllerExpandVolume,
    /// and one that a newer release began is left to it.
    fn finish_growth(&self, state: &PoolState, record: &mut VolumeRecord) {
        let Some(target) = record.target_size else { return };
        if record.changeable().is_err() {
            return;
        }
        let finished = self.grow_to(state, record, target);
        if let Err(error) = finished {
            warn!(volume = %record.handle, target = target.get(), error = %error.chain(), "an expansion that was cut off could not be finished");
        }
    }

    /// Grows image and device and records the size (steps 3 to 5 of `expand`).
    pub(super) fn grow_to(&self, state: &PoolState, record: &mut VolumeRecord, target: Bytes) -> Result<()> {
        let geometry = record.geometry_at(target);
        state.pool.grow(record.uuid, &geometry)?;
        state.pool.resize_device(record.uuid, &geometry)?;
        let grown = VolumeRecord { size: target, target_size: None, ..record.clone() };
        // Image and device have grown: whatever this error is, it is not that nothing was done.
        self.store_volume(&grown).map_err(|error| error.with_kind(Kind::Internal))?;
        *record = grown;
        state.ledger.enter(record.object(), state.claim_of_volume(record));
        Ok(())
    }

    /// The node has let go.
    pub(super) fn close(&self, id: &VolumeId, node: &NodeId) -> Result<()> {
        let state = self.pool(id.pool)?;
        let _lock = self.lock_volume(id, "close")?;
        match self.release_device(state, id.uuid)? {
            None => Ok(()),
            Some(held) => {
                Err(Error::new(Kind::InUse, format!("the device of volume {id} stays on node {node}: {held}")))
            }
        }
    }

    /// Takes a volume's device away; what holds it, in words, when it cannot be.
    ///
    /// A device node bound into a pod holds nothing in the kernel's eyes, and would show the next image that gets the
    /// loop's number: what mountinfo shows is not even tried.
    pub(super) fn release_device(&self, state: &PoolState, uuid: ObjectUuid) -> Result<Option<String>> {
        let before = state.pool.active(uuid).ok().flatten();
        if let Some(device) = &before {
            let used_at = self.used_at(&device.path)?;
            if !used_at.is_empty() {
                return Ok(Some(format!("{} is mounted at {}", device.path.display(), used_at.join(", "))));
            }
        }
        if state.pool.deactivate(uuid)? == Deactivated::Gone {
            return Ok(None);
        }
        let Some(device) = before.or(state.pool.active(uuid).ok().flatten()) else {
            return Ok(Some("its device is held by somebody".to_owned()));
        };
        let path = device.path.display();
        Ok(Some(format!(
            "{path} is held open, or mounted in another mount namespace (find the process with: fuser -v {path})"
        )))
    }

    /// Where a device is mounted, or its node is bound.
    fn used_at(&self, device: &Path) -> Result<Vec<String>> {
        let bound = |entry: &MountEntry| {
            matches!(entry.fs_type.as_str(), "devtmpfs" | "tmpfs") && entry.root.file_name() == device.file_name()
        };
        let table = self.os.mounts().at(|| "read the table of mounts")?;
        let uses = |entry: &&MountEntry| Path::new(&entry.source) == device || bound(entry);
        Ok(table.entries().iter().filter(uses).map(|entry| entry.mount_point.display().to_string()).collect())
    }
}

/// No record counts so far by itself: 2^64 attachments. It is damaged, and a smaller number would not be the highest.
fn no_more_epochs(record: &VolumeRecord) -> Error {
    Error::new(
        Kind::Corrupt,
        format!(
            "volume {} cannot be attached: its record counts {} attachments, the most there can be, so it was damaged; nothing was changed: restore the record from a backup of the pool",
            record.id(),
            record.epoch
        ),
    )
}

/// The grant of a node.
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
