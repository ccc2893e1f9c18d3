//! DeleteVolume and DeleteSnapshot.

use std::sync::Arc;

use tracing::{info, warn};

use super::Changed;
use super::local::Shared;
use super::record::{Phase, Record, SnapshotRecord, VolumeRecord};
use super::state::{Key, PoolState};
use crate::pool::{Continue, Object, Progress};
use crate::types::{Bytes, Error, Kind, OnDelete, Result, SnapshotId, VolumeId};

impl Shared {
    /// Deletes a volume.
    ///
    /// Steps, and what a crash after each leaves:
    /// 1. lock; an error while it is attached, is the source of a copy, or its device is in use: unchanged.
    /// 2. a copy into it stopped, its idle device detached: unchanged; both come back when needed.
    /// 3. record `deleting`, durable: only this call still sees the volume, and the retry continues. Skipped where the
    ///    pool is full and nothing has to be overwritten.
    /// 4. for `onDelete: zero` the image overwritten, with `erased` recorded: the retry continues there.
    /// 5. renamed to the trash, durable: deleted; the trash is removed at start.
    ///
    /// A retry that finds no record may follow an error in step 5. It repeats that step, so that the delete is durable
    /// and the space is released.
    pub(super) fn delete_volume(self: &Arc<Self>, id: &VolumeId) -> Result<Changed> {
        let state = self.pool(id.pool)?;
        let object = Object::Volume(id.uuid);
        let key = Key::from(*id);
        let _lock = self.lock_volume(id, "DeleteVolume")?;
        let Some(mut record) = self.volume_record(id)? else { return self.gone(state, key) };
        record.changeable()?;
        if let Some(attachment) = record.attachments.first() {
            return Err(Error::new(
                Kind::InUse,
                format!(
                    "volume {id} is attached to node {}: it is unchanged; detach it first (delete the pods that use it)",
                    attachment.node
                ),
            ));
        }
        self.not_copied_from(record.id().into())?;
        self.copies.cancel(key)?;
        let held = match (self.release_device(state, id.uuid)?, &record.still_staged) {
            (None, Some(ended)) => self.still_bound(id, ended)?,
            (held, _) => held,
        };
        if let Some(held) = held {
            return Err(Error::new(
                Kind::InUse,
                format!("volume {id} is in use: {held}; it is unchanged; unmount it first"),
            ));
        }
        state.devices()?.disclaim(id.uuid);
        if record.phase != Phase::Deleting {
            record.phase = Phase::Deleting;
            self.marked(self.store_volume(&mut record), key, record.request.parameters.on_delete)?;
        }
        if record.request.parameters.on_delete == OnDelete::Zero {
            let start = erased(record.erased, record.size);
            state.pool.erase(object, start, &Erasing { shared: self, record: Doomed::Volume(&record) })?;
        }
        state.pool.remove(object)?;
        self.copies.forget(key);
        state.ledger.forget(object);
        info!(volume = %record.handle, name = %record.co_name, "volume deleted");
        Ok(Changed::Yes)
    }

    /// Deletes a snapshot; the steps of [`Shared::delete_volume`] without a device.
    pub(super) fn delete_snapshot(self: &Arc<Self>, id: &SnapshotId) -> Result<Changed> {
        let state = self.pool(id.pool)?;
        let object = Object::Snapshot(id.uuid);
        let key = Key::from(*id);
        let _lock = self.locks.try_lock(&key, "DeleteSnapshot")?;
        let Some(mut record) = self.snapshot_record(id)? else { return self.gone(state, key) };
        record.changeable()?;
        self.not_copied_from(record.id().into())?;
        self.copies.cancel(key)?;
        if record.phase != Phase::Deleting {
            record.phase = Phase::Deleting;
            self.marked(self.store_snapshot(&mut record), key, record.on_delete)?;
        }
        if record.on_delete == OnDelete::Zero {
            let start = erased(record.erased, record.size);
            state.pool.erase(object, start, &Erasing { shared: self, record: Doomed::Snapshot(&record) })?;
        }
        state.pool.remove(object)?;
        self.copies.forget(key);
        state.ledger.forget(object);
        info!(snapshot = %record.handle, name = %record.co_name, "snapshot deleted");
        Ok(Changed::Yes)
    }
}

impl Shared {
    /// Step 5, for an object without a record.
    fn gone(&self, state: &PoolState, key: Key) -> Result<Changed> {
        state.pool.remove(key.object())?;
        self.copies.forget(key);
        state.ledger.forget(key.object());
        Ok(Changed::No)
    }

    /// The result of writing `deleting`. In a full pool it cannot be written, but deleting frees space. Without an
    /// erase that must be resumed, the rename into the trash is sufficient.
    fn marked(&self, written: Result<()>, key: Key, on_delete: OnDelete) -> Result<()> {
        match written {
            Ok(()) => self.copies.forget(key),
            Err(error) if error.kind() == Kind::NoCapacity && on_delete == OnDelete::Unlink => {
                warn!(target = %key, error = key.named().in_text(&error.chain()), "cannot write the phase deleting into the record; the delete continues without it");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Where an erase resumes. If the record says more than the image's size, the erase starts again: otherwise those bytes
/// would stay.
fn erased(said: Option<Bytes>, size: Bytes) -> Bytes {
    said.filter(|erased| *erased <= size).unwrap_or_default()
}

/// Records the progress of an erase, so that it resumes after a crash.
struct Erasing<'a> {
    shared: &'a Arc<Shared>,
    record: Doomed<'a>,
}

enum Doomed<'a> {
    Volume(&'a VolumeRecord),
    Snapshot(&'a SnapshotRecord),
}

impl Progress for Erasing<'_> {
    fn step(&self, done: Bytes, _total: Bytes) -> Continue {
        let written = match self.record {
            Doomed::Volume(record) => {
                self.shared.store_volume(&mut VolumeRecord { erased: Some(done), ..record.clone() })
            }
            Doomed::Snapshot(record) => {
                self.shared.store_snapshot(&mut SnapshotRecord { erased: Some(done), ..record.clone() })
            }
        };
        if let Err(error) = written {
            tracing::warn!(error = %error.chain(), "cannot record the progress of an erase; after a restart it resumes from an earlier point");
        }
        Continue::Yes
    }
}
