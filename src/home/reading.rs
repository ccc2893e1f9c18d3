//! Reading a pool's records into its ledger: all at start, and what could not be read then before room is counted.

use std::sync::{Arc, PoisonError};

use tracing::{error, info};

use super::ledger::{Claim, Debt};
use super::local::{Key, PoolState, Shared};
use super::record::{CopyRecord, Record, SnapshotRecord, VolumeRecord};
use crate::pool::{Class, Object};
use crate::types::{Bytes, Result};

/// A copy that was begun, and its target.
pub(super) type Unfinished = (Key, CopyRecord);

impl Shared {
    /// Enters every record of a pool into its ledger; the copies to go on with once the pool is served. A record that
    /// cannot be read holds up nothing but its own object: its image is counted as it lies there until
    /// [`Shared::read_again`] succeeds.
    ///
    /// # Errors
    /// `Internal` when the pool cannot be listed.
    pub(super) fn read_in(&self, state: &PoolState) -> Result<Vec<Unfinished>> {
        let mut copies = Vec::new();
        let volumes = state.pool.list(Class::Volume)?.into_iter().map(Object::Volume);
        let snapshots = state.pool.list(Class::Snapshot)?.into_iter().map(Object::Snapshot);
        for object in volumes.chain(snapshots) {
            let entered = self.enter(state, object).map(|copy| copies.extend(copy));
            if let Err(error) = entered {
                error!(object = %object, error = %error.chain(), "not served");
                let size = state.pool.facts(object).ok().flatten().map_or(Bytes::ZERO, |facts| facts.size);
                state.ledger.enter(object, Claim { size, debt: Debt::Shared });
                state.unread.lock().unwrap_or_else(PoisonError::into_inner).insert(object);
            }
        }
        Ok(copies)
    }

    /// Goes on with copies that were found.
    pub(super) fn go_on(self: &Arc<Self>, copies: impl IntoIterator<Item = Unfinished>) {
        copies.into_iter().for_each(|(target, copy)| self.start_copy(target, copy));
    }

    /// Reads what could not be read before: a disk that failed for a moment must not make the ledger wrong for the
    /// rest of this life. What is being worked on is left to whoever does.
    pub(super) fn read_again(self: &Arc<Self>, state: &PoolState) {
        let unread = || state.unread.lock().unwrap_or_else(PoisonError::into_inner);
        let objects: Vec<Object> = unread().iter().copied().collect();
        for object in objects {
            let key = Key { pool: state.pool.identity().id, object };
            let Ok(_lock) = self.locks.try_lock(&key, "reading its record") else { continue };
            if let Ok(copy) = self.enter(state, object) {
                self.go_on(copy);
                unread().remove(&object);
                info!(object = %key, "its record can be read again");
            }
        }
    }

    fn enter(&self, state: &PoolState, object: Object) -> Result<Option<Unfinished>> {
        let pool = state.pool.identity().id;
        let found: Option<(Claim, Option<CopyRecord>)> = match object {
            Object::Volume(_) => {
                let record = read(state, object, |text| VolumeRecord::decode(object, pool, text))?;
                record.map(|record| {
                    self.recall_device(state, &record);
                    (state.claim_of_volume(&record), record.copy_to_resume())
                })
            }
            Object::Snapshot(_) => {
                let record = read(state, object, |text| SnapshotRecord::decode(object, pool, text))?;
                record.map(|record| (state.claim_of_snapshot(&record), record.copy_to_resume()))
            }
        };
        let Some((claim, copy)) = found else {
            // Removed since it was listed.
            state.ledger.forget(object);
            return Ok(None);
        };
        state.ledger.enter(object, claim);
        Ok(copy.map(|copy| (Key { pool, object }, copy)))
    }
}

/// A record as it lies there, whether its pool is served or not.
fn read<R>(state: &PoolState, object: Object, decode: impl Fn(&[u8]) -> Result<R>) -> Result<Option<R>> {
    state.pool.read_record(object)?.map(|text| decode(&text)).transpose()
}
