//! Reads a pool without its driver: the same records, counted by the same rules. Writes nothing.

use std::sync::Arc;

use super::list::report_of;
use super::record::{Record, SnapshotRecord, VolumeRecord};
use super::state::PoolState;
use super::{PoolReport, SpaceLimits};
use crate::pool::{Object, ObjectKind, Pool};
use crate::types::{Error, ObjectUuid, Result};

/// The content of a pool.
#[derive(Debug)]
pub struct Survey {
    /// Its figures, as its driver would report them with these limits.
    pub report: PoolReport,
    /// Every volume whose record can be read.
    pub volumes: Vec<VolumeRecord>,
    /// Every snapshot whose record can be read.
    pub snapshots: Vec<SnapshotRecord>,
    /// The objects that cannot be read, and why.
    pub unreadable: Vec<(Object, Error)>,
}

/// Reads a pool. Objects that are created or removed meanwhile may be included or not.
///
/// # Errors
/// `Internal` when the pool itself cannot be read; a record that cannot be read is listed instead.
pub fn survey(pool: Arc<dyn Pool>, limits: SpaceLimits) -> Result<Survey> {
    let id = pool.identity().id;
    let state = PoolState::new(pool, limits);
    let mut unreadable = Vec::new();
    let volumes: Vec<VolumeRecord> = read_all(&state, ObjectKind::Volume, Object::Volume, &mut unreadable)?;
    let snapshots: Vec<SnapshotRecord> = read_all(&state, ObjectKind::Snapshot, Object::Snapshot, &mut unreadable)?;
    for record in &volumes {
        state.ledger.enter(record.object(), state.claim_of_volume(record));
    }
    for record in &snapshots {
        state.ledger.enter(record.object(), state.claim_of_snapshot(record));
    }
    Ok(Survey { report: report_of(id, &state)?, volumes, snapshots, unreadable })
}

fn read_all<R: Record>(
    state: &PoolState,
    class: ObjectKind,
    object: fn(ObjectUuid) -> Object,
    unreadable: &mut Vec<(Object, Error)>,
) -> Result<Vec<R>> {
    let mut records = Vec::new();
    for object in state.pool.list(class)?.into_iter().map(object) {
        match state.record(object) {
            Ok(Some(record)) => records.push(record),
            // Removed since it was listed.
            Ok(None) => {}
            Err(error) => unreadable.push((object, error)),
        }
    }
    Ok(records)
}
