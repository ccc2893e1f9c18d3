//! DeleteVolume and DeleteSnapshot.

use std::sync::Arc;

use tracing::{info, warn};

use super::Changed;
use super::local::{Key, PoolState, Shared};
use super::record::{Phase, Record, SnapshotRecord, VolumeRecord};
use crate::pool::{Continue, Object, Progress};
use crate::types::{Bytes, Error, Kind, OnDelete, Result, SnapshotId, VolumeId};

impl Shared {
    /// Deletes a volume.
    ///
    /// Steps, and what a crash after each leaves:
    /// 1. lock; refuse while attached, copied from, or its device held: unchanged.
    /// 2. a copy into it stopped, its idle device taken away: unchanged; both come back when asked for.
    /// 3. record `deleting`, durable: it is gone for everything but this call, which goes on at the retry. Left out
    ///    where the pool is full and nothing has to be overwritten.
    /// 4. for `onDelete: zero` the image overwritten, `erased` recorded on the way: goes on from there.
    /// 5. renamed to the trash, durable: gone; the trash is swept at start.
    ///
    /// A retry that finds no record may follow an error in step 5: it goes through that step again, so that gone is
    /// durably gone and its room is given back.
    pub(super) fn delete_volume(self: &Arc<Self>, id: &VolumeId) -> Result<Changed> {
        let state = self.pool(id.pool)?;
        let object = Object::Volume(id.uuid);
        let key = Key { pool: id.pool, object };
        let _lock = self.lock_volume(id, "DeleteVolume")?;
        let Some(mut record) = self.volume_record(id)? else { return self.gone(state, key) };
        record.changeable()?;
        if let Some(attachment) = record.attachments.first() {
            return Err(Error::new(
                Kind::InUse,
                format!("volume {id} is attached to node {}: it was not touched; detach it first", attachment.node),
            ));
        }
        self.not_copied_from(id.pool, object)?;
        self.copies.cancel(key)?;
        let held = match (self.release_device(state, id.uuid)?, &record.still_staged) {
            (None, Some(ended)) => self.still_bound(ended)?,
            (held, _) => held,
        };
        if let Some(held) = held {
            return Err(Error::new(
                Kind::InUse,
                format!("volume {id} is in use: {held}; it was not touched; unmount it first"),
            ));
        }
        state.pool.disclaim_device(id.uuid);
        if record.phase != Phase::Deleting {
            record.phase = Phase::Deleting;
            self.marked(self.store_volume(&record), key, record.request.parameters.on_delete)?;
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
        let key = Key { pool: id.pool, object };
        let _lock = self.locks.try_lock(&key, "DeleteSnapshot")?;
        let Some(mut record) = self.snapshot_record(id)? else { return self.gone(state, key) };
        record.changeable()?;
        self.not_copied_from(id.pool, object)?;
        self.copies.cancel(key)?;
        if record.phase != Phase::Deleting {
            record.phase = Phase::Deleting;
            self.marked(self.store_snapshot(&record), key, record.on_delete)?;
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
    /// Step 5, of something without a record.
    fn gone(&self, state: &PoolState, key: Key) -> Result<Changed> {
        state.pool.remove(key.object)?;
        self.copies.forget(key);
        state.ledger.forget(key.object);
        Ok(Changed::No)
    }

    /// What writing `deleting` came to. In a full pool it cannot be written, and deleting is what makes room: without
    /// an erase that has to be gone on with, the rename into the trash is mark enough.
    fn marked(&self, written: Result<()>, key: Key, on_delete: OnDelete) -> Result<()> {
        match written {
            Ok(()) => self.copies.forget(key),
            Err(error) if error.kind() == Kind::NoCapacity && on_delete == OnDelete::Unlink => {
                warn!(target = %key, error = %error.chain(), "deleted without a mark in its record");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// Where an erase goes on. A record that says more than there is has its erase begun anew: the bytes that it is about would
/// stay.
fn erased(said: Option<Bytes>, size: Bytes) -> Bytes {
    said.filter(|erased| *erased <= size).unwrap_or_default()
}

/// Records how far an erase is, so that a crash does not begin it anew.
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
            Doomed::Volume(record) => self.shared.store_volume(&VolumeRecord { erased: Some(done), ..record.clone() }),
            Doomed::Snapshot(record) => {
                self.shared.store_snapshot(&SnapshotRecord { erased: Some(done), ..record.clone() })
            }
        };
        if let Err(error) = written {
            tracing::warn!(error = %error.chain(), "progress of an erase not recorded");
        }
        Continue::Yes
    }
}
