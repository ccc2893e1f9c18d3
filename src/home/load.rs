//! Reads a pool's records into its ledger: all at start, and later those that could not be read then.

use std::sync::{Arc, PoisonError};

use tracing::{error, info};

use super::ledger::{Claim, Debt};
use super::local::Shared;
use super::record::{CopyRecord, Record, SnapshotRecord, VolumeRecord};
use super::state::{Key, PoolState};
use crate::pool::{Object, ObjectKind};
use crate::types::{Bytes, Result};

/// An interrupted copy, and its target.
pub(super) type Unfinished = (Key, CopyRecord);

impl Shared {
    /// Registers every record of a pool in its ledger; returns the copies to resume once the pool is served. A record
    /// that cannot be read affects only its own object: its image counts as it is until [`Shared::read_again`]
    /// succeeds.
    ///
    /// # Errors
    /// `Internal` when the pool cannot be listed.
    pub(super) fn read_in(&self, state: &PoolState) -> Result<Vec<Unfinished>> {
        let mut copies = Vec::new();
        let volumes = state.pool.list(ObjectKind::Volume)?.into_iter().map(Object::Volume);
        let snapshots = state.pool.list(ObjectKind::Snapshot)?.into_iter().map(Object::Snapshot);
        for object in volumes.chain(snapshots) {
            let entered = self.enter(state, object).map(|copy| copies.extend(copy));
            if let (Object::Volume(_), Ok(())) = (object, &entered)
                && self.fabric.is_some()
                // Another operation on the volume does the same.
                && let Ok(_lock) = self.locks.try_lock(&Key::new(state.pool.identity().id, object), "restoring its export")
            {
                self.recall_export(state, object);
            }
            if let Err(error) = entered {
                error!(object = %object, error = %error.chain(), "cannot read a record: this volume or snapshot is not served");
                let size = state.pool.facts(object).ok().flatten().map_or(Bytes::ZERO, |facts| facts.size);
                state.ledger.enter(object, Claim { size, debt: Debt::Shared });
                state.unread.lock().unwrap_or_else(PoisonError::into_inner).insert(object);
            }
        }
        Ok(copies)
    }

    /// Resumes copies.
    pub(super) fn go_on(self: &Arc<Self>, copies: impl IntoIterator<Item = Unfinished>) {
        copies.into_iter().for_each(|(target, copy)| self.start_copy(target, copy));
    }

    /// Reads the records that could not be read before: a temporary disk error must not leave the ledger wrong until
    /// the next start. An object that another operation has locked is skipped.
    pub(super) fn read_again(self: &Arc<Self>, state: &PoolState) {
        let unread = || state.unread.lock().unwrap_or_else(PoisonError::into_inner);
        let objects: Vec<Object> = unread().iter().copied().collect();
        for object in objects {
            let key = Key::new(state.pool.identity().id, object);
            let Ok(_lock) = self.locks.try_lock(&key, "reading its record") else { continue };
            if let Ok(copy) = self.enter(state, object) {
                self.go_on(copy);
                self.recall_export(state, object);
                unread().remove(&object);
                info!(object = %self.described(key), "the record can be read again");
            }
        }
    }

    fn enter(&self, state: &PoolState, object: Object) -> Result<Option<Unfinished>> {
        let found: Option<(Key, Claim, Option<CopyRecord>)> = match object {
            Object::Volume(_) => {
                let record = state.record::<VolumeRecord>(object)?;
                record.map(|record| {
                    self.recall_device(state, &record);
                    (record.id().into(), state.claim_of_volume(&record), record.copy_to_resume())
                })
            }
            Object::Snapshot(_) => {
                let record = state.record::<SnapshotRecord>(object)?;
                record.map(|record| (record.id().into(), state.claim_of_snapshot(&record), record.copy_to_resume()))
            }
        };
        let Some((key, claim, copy)) = found else {
            // Removed since it was listed.
            state.ledger.forget(object);
            return Ok(None);
        };
        state.ledger.enter(object, claim);
        if copy.is_some() {
            // A copy that runs already may have ended since the record was read, and entered its claim before.
            self.claim_again(state, object)?;
        }
        Ok(copy.map(|copy| (key, copy)))
    }

    fn claim_again(&self, state: &PoolState, object: Object) -> Result<()> {
        let claim = match object {
            Object::Volume(_) => state.record::<VolumeRecord>(object)?.map(|record| state.claim_of_volume(&record)),
            Object::Snapshot(_) => {
                state.record::<SnapshotRecord>(object)?.map(|record| state.claim_of_snapshot(&record))
            }
        };
        if let Some(claim) = claim {
            state.ledger.enter(object, claim);
        }
        Ok(())
    }
}
