//! An attached volume's device is given to its node: the data behind it is complete and has its size.

use tracing::warn;

use super::attachment::usable_raw;
use super::local::Shared;
use super::record::{AttachPath, Record, VolumeRecord};
use super::state::{Key, PoolState};
use super::{Client, DeviceAddress, OpenVolume};
use crate::pool::Stable;
use crate::types::{Access, Bytes, Error, Kind, NodeId, Provisioning, Result, VolumeId, VolumeMode};

impl Shared {
    /// The location of an attached volume's device. First finishes an interrupted expansion and fills a thick image's
    /// holes, so that every stage gets a complete device.
    pub(super) fn open(&self, id: &VolumeId, node: &NodeId, client: &Client) -> Result<OpenVolume> {
        let state = self.pool(id.pool)?;
        let lock = self.lock_volume(id, "open")?;
        let mut record = self.ready_volume(id)?;
        let attachment = record.granted_to(node)?.clone();
        if attachment.mode == VolumeMode::Block {
            usable_raw(&record)?;
        }
        self.not_copied_from(record.id().into())?;
        self.check_image(state, record.id().into(), record.size)?;
        self.finish_growth(state, &mut record);
        // A node that is connected, or lost its connection, had this before; now it could wait for what that one left.
        if client.connection.is_none()
            && record.provisioning == Provisioning::Thick
            && record.changeable().is_ok()
            && let Err(error) = state.pool.grow(id.uuid, &record.geometry())
        {
            // The data is complete and readable: serve it with a warning.
            warn!(volume = %record.handle, error = record.named().in_text(&error.chain()), "holes in a thick image could not be filled: writes to them may fail when the pool is full");
        }
        let at = match attachment.path {
            AttachPath::Local => {
                if record.access == Access::Network {
                    state.devices()?.set_stable(id.uuid, Stable::No)?;
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
                DeviceAddress::Local { device: device.path }
            }
            AttachPath::NvmeTcp => self.export_for(state, &mut record, node, client)?,
        };
        Ok(OpenVolume {
            at,
            connection: client.connection,
            size: record.size,
            block_size: record.block_size,
            format: record.format.known,
            mode: attachment.mode,
            access: attachment.access,
            read_only: attachment.read_only,
            fsck: record.request.parameters.fsck,
            mkfs_options: record.request.parameters.mkfs_options.clone(),
            // A new export has a new number.
            epoch: record.granted_to(node)?.epoch,
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
        self.export_resized(record)?;
        let mut grown = VolumeRecord { size: target, target_size: None, ..record.clone() };
        // Image and device are extended: the error must not say that nothing was done.
        self.store_volume(&mut grown).map_err(|error| error.with_kind(Kind::Internal))?;
        *record = grown;
        state.ledger.enter(record.object(), state.claim_of_volume(record));
        Ok(())
    }
}
