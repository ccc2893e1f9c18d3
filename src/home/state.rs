//! A pool in use, and the keys of volumes and snapshots among all pools.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::SpaceLimits;
use super::ledger::{Claim, Debt, Ledger};
use super::record::{Phase, Record, SnapshotRecord, VolumeRecord};
use crate::pool::{Cloning, LocalDevices, Object, Pool};
use crate::types::{Error, Kind, Named, PoolId, Result, SnapshotId, VolumeId};

/// A pool and its ledger.
pub(super) struct PoolState {
    pub(super) pool: Arc<dyn Pool>,
    pub(super) ledger: Ledger,
    /// Objects that could not be read at the last attempt: their reserved space is an estimate until they can be read.
    pub(super) unread: Mutex<BTreeSet<Object>>,
    /// The pool disappeared, and its records have not been read since it came back.
    pub(super) to_read: AtomicBool,
}

/// A volume or snapshot, unique among all pools: the key of the locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Volume(VolumeId),
    Snapshot(SnapshotId),
}

impl Key {
    /// Where only the identity is known.
    pub(super) fn new(pool: PoolId, object: Object) -> Self {
        match object {
            Object::Volume(uuid) => Self::Volume(VolumeId::new(pool, uuid)),
            Object::Snapshot(uuid) => Self::Snapshot(SnapshotId::new(pool, uuid)),
        }
    }

    /// The object as messages name it, without its record.
    pub(super) fn named(self) -> Named {
        match self {
            Self::Volume(id) => Named::volume(id, None),
            Self::Snapshot(id) => Named::snapshot(id),
        }
    }

    pub(super) fn pool(self) -> PoolId {
        match self {
            Self::Volume(id) => id.pool,
            Self::Snapshot(id) => id.pool,
        }
    }

    pub(super) fn object(self) -> Object {
        match self {
            Self::Volume(id) => Object::Volume(id.uuid),
            Self::Snapshot(id) => Object::Snapshot(id.uuid),
        }
    }
}

impl From<VolumeId> for Key {
    fn from(id: VolumeId) -> Self {
        Self::Volume(id)
    }
}

impl From<SnapshotId> for Key {
    fn from(id: SnapshotId) -> Self {
        Self::Snapshot(id)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(id) => write!(f, "volume {id}"),
            Self::Snapshot(id) => write!(f, "snapshot {id}"),
        }
    }
}

impl PoolState {
    /// A pool with nothing counted yet.
    pub(super) fn new(pool: Arc<dyn Pool>, limits: SpaceLimits) -> Self {
        Self {
            ledger: Ledger::new(Arc::clone(&pool), limits),
            pool,
            unread: Mutex::default(),
            to_read: AtomicBool::new(false),
        }
    }

    /// Its block devices on this node.
    ///
    /// # Errors
    /// `Unsupported` for a pool without any.
    pub(super) fn devices(&self) -> Result<&dyn LocalDevices> {
        self.pool.devices().ok_or_else(|| {
            let identity = self.pool.identity();
            let message = format!("the {} pool {} has no block devices on this node", identity.kind, identity.name);
            Error::new(Kind::Unsupported, message)
        })
    }

    /// An object's record, whether or not the pool is served; `None` when the object does not exist.
    ///
    /// # Errors
    /// Those of [`Pool::read_record`] and [`Record::decode`].
    pub(super) fn record<R: Record>(&self, object: Object) -> Result<Option<R>> {
        let Some(stored) = self.pool.read_record(object)? else { return Ok(None) };
        let mut record = R::decode(object, self.pool.identity().id, &stored)?;
        record.set_version(stored.version);
        Ok(Some(record))
    }

    /// Writes a record in the place of the version that was read.
    ///
    /// # Errors
    /// Those of [`Pool::write_record`] and [`Record::encode`].
    pub(super) fn store<R: Record>(&self, record: &mut R) -> Result<()> {
        let version = self.pool.write_record(record.object(), &record.encode()?, record.version())?;
        record.set_version(version);
        Ok(())
    }

    /// The space a volume may take: an image that shares blocks, or may share them, also needs space for its own
    /// copies.
    pub(super) fn claim_of_volume(&self, record: &VolumeRecord) -> Claim {
        let size = record.target_size.unwrap_or(record.size).max(record.size);
        let debt = match self.pool.abilities().cloning {
            Cloning::Instant { .. } if record.source.is_some() => Debt::Shared,
            _ if record.phase == Phase::Creating => Debt::Unallocated,
            _ => Debt::None,
        };
        Claim { size, debt: self.ledger.debt_of(record.provisioning, debt) }
    }

    /// The space a snapshot may take: its full size where extents are shared, otherwise its copy.
    pub(super) fn claim_of_snapshot(&self, record: &SnapshotRecord) -> Claim {
        let debt = match self.pool.abilities().cloning {
            Cloning::Instant { .. } => Debt::Shared,
            Cloning::Copy if record.phase == Phase::Creating => Debt::Unallocated,
            Cloning::Copy | Cloning::None => Debt::None,
        };
        Claim { size: record.size, debt: self.ledger.debt_of(record.provisioning, debt) }
    }
}
