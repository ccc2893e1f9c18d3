//! [`LocalHome`]: the home of this process's pools. This file holds what all its operations share: pools, locks,
//! reading and writing records. Each operation has a file of its own beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

use tracing::error;

use super::copying::Copies;
use super::ledger::{Claim, Debt, Ledger};
use super::record::{Phase, Record, SnapshotRecord, VolumeRecord};
use super::{
    Capacity, CapacityQuery, Changed, CreateSnapshot, CreateVolume, Created, Expanded, Finding, Formatting,
    GrantRequest, Granted, Home, LockGuard, Locks, Opened, Page, PoolHealth, PoolReport, Snapshot, SnapshotFilter,
    SpaceLimits, Volume,
};
use crate::os::{DevNum, Os, Timestamp};
use crate::pool::{ActiveDevice, Cloning, Object, Pool};
use crate::types::{
    CapacityRange, Error, Failure, FsType, Kind, NodeId, ObjectUuid, PoolId, PoolName, Result, SnapshotId, VolumeId,
};

/// The logical block size of every device (design section 7).
pub(super) const BLOCK_SIZE: u32 = 4096;

/// The home of this process's pools. Cheap to clone.
#[derive(Clone)]
pub struct LocalHome {
    pub(super) shared: Arc<Shared>,
}

/// What the operations and the copies behind them share.
pub(super) struct Shared {
    pub(super) os: Os,
    pub(super) node: NodeId,
    pub(super) pools: BTreeMap<PoolId, PoolState>,
    pub(super) locks: Locks<Key>,
    pub(super) copies: Copies,
    examiner: OnceLock<Examiner>,
}

/// How a home's pools are looked at for people.
pub type Examiner = Box<dyn Fn() -> Result<Vec<Finding>> + Send + Sync>;

/// A pool and its ledger.
pub(super) struct PoolState {
    pub(super) pool: Arc<dyn Pool>,
    pub(super) ledger: Ledger,
    /// What could not be read when it was last tried: its room is a guess until it can be.
    pub(super) unread: Mutex<BTreeSet<Object>>,
}

/// A volume or snapshot among all pools: what locks are keyed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) pool: PoolId,
    pub(super) object: Object,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.object {
            Object::Volume(uuid) => write!(f, "volume {}", VolumeId { pool: self.pool, uuid }),
            Object::Snapshot(uuid) => write!(f, "snapshot {}", SnapshotId { pool: self.pool, uuid }),
        }
    }
}

impl LocalHome {
    /// Takes charge of pools: sweeps what never had a name, reads every record into the ledger, and goes on with
    /// the copies a former life began. Returns when every pool can be served.
    ///
    /// # Errors
    /// `InvalidArgument` for two pools of one name or id; `Internal` when a pool cannot be listed.
    pub fn open(os: Os, node: NodeId, pools: Vec<(Arc<dyn Pool>, SpaceLimits)>) -> Result<Self> {
        let mut states = BTreeMap::new();
        let mut names = BTreeMap::<PoolName, String>::new();
        for (pool, limits) in pools {
            let identity = pool.identity().clone();
            if let Some(other) = names.insert(identity.name.clone(), identity.place.clone()) {
                return Err(Error::new(
                    Kind::InvalidArgument,
                    format!(
                        "two pools are called {}: {other} and {}; give one of them another name",
                        identity.name, identity.place
                    ),
                ));
            }
            // What cannot be swept has no name and is in nobody's way; doctor lists it.
            if let Err(error) = pool.sweep() {
                error!(pool = %identity.name, error = %error.chain(), "something that was removed before is still there");
            }
            let state = PoolState::new(pool, limits);
            if states.insert(identity.id, state).is_some() {
                return Err(Error::new(
                    Kind::InvalidArgument,
                    format!(
                        "{} has the id {} of another pool here: it is a copy; remove one of the two",
                        identity.place, identity.id
                    ),
                ));
            }
        }
        let locks = Locks::new(os.activity().clone());
        let home = Self {
            shared: Arc::new(Shared {
                os,
                node,
                pools: states,
                locks,
                copies: Copies::default(),
                examiner: OnceLock::new(),
            }),
        };
        for (_, state) in home.shared.in_use() {
            home.shared.read_in(state)?;
        }
        Ok(home)
    }

    /// From now on [`Home::examine`] answers with this. The first one stays.
    pub fn examined_by(&self, examiner: Examiner) {
        let _ = self.shared.examiner.set(examiner);
    }

    /// The pools it serves.
    #[must_use]
    pub fn pools(&self) -> Vec<PoolId> {
        self.shared.pools.keys().copied().collect()
    }

    /// Puts a pool in quarantine because a human declared it lost: nothing in it is served any more, or listed, until
    /// [`Home::readmit`]. What is staged stays usable and can be unstaged.
    ///
    /// # Errors
    /// `Unavailable` when it is not here; those of [`Pool::set_quarantine`].
    pub fn quarantine(&self, pool: PoolId) -> Result<Changed> {
        let Some(state) = self.shared.pools.get(&pool) else { return self.shared.pool(pool).map(|_| Changed::No) };
        if state.pool.quarantined().is_some() {
            return Ok(Changed::No);
        }
        state.pool.set_quarantine(Some(Timestamp::now()))?;
        error!(%pool, "declared lost (lostHomes of a controller): in quarantine until it is readmitted");
        Ok(Changed::Yes)
    }

    /// How each pool is, for the controllers. A pool that cannot be read does not hide the others.
    #[must_use]
    pub fn health(&self) -> Vec<PoolHealth> {
        self.shared.health()
    }

    /// Ends what goes on behind callers' backs, as a kill of the process would.
    #[cfg(test)]
    pub(crate) fn abandon(&self) {
        self.shared.copies.abandon();
    }
}

impl PoolState {
    /// A pool nothing of which is counted yet.
    pub(super) fn new(pool: Arc<dyn Pool>, limits: SpaceLimits) -> Self {
        Self { ledger: Ledger::new(Arc::clone(&pool), limits), pool, unread: Mutex::default() }
    }

    /// What a volume may come to: an image that shares blocks, or may, owes what it does not have for itself.
    pub(super) fn claim_of_volume(&self, record: &VolumeRecord) -> Claim {
        let size = record.target_size.unwrap_or(record.size).max(record.size);
        let debt = match self.pool.abilities().cloning {
            Cloning::Reflink { .. } if record.source.is_some() => Debt::Shared,
            _ if record.phase == Phase::Creating => Debt::Unallocated,
            _ => Debt::None,
        };
        Claim { size, debt: self.ledger.debt_of(record.provisioning, debt) }
    }

    /// What a snapshot may come to: where extents are shared, its full size; where it is a copy, that copy.
    pub(super) fn claim_of_snapshot(&self, record: &SnapshotRecord) -> Claim {
        let debt = match self.pool.abilities().cloning {
            Cloning::Reflink { .. } => Debt::Shared,
            Cloning::Copy if record.phase == Phase::Creating => Debt::Unallocated,
            Cloning::Copy => Debt::None,
        };
        Claim { size: record.size, debt: self.ledger.debt_of(record.provisioning, debt) }
    }
}

impl Shared {
    /// A pool by id.
    pub(super) fn pool(&self, id: PoolId) -> Result<&PoolState> {
        let state = self.pools.get(&id);
        if let Some(since) = state.and_then(|state| state.pool.quarantined()) {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "pool {id} on node {} is in quarantine since it was declared lost {} s ago; look at it and readmit it: holdfast pools readmit {id}",
                    self.node,
                    since.age().as_secs()
                ),
            ));
        }
        state.ok_or_else(|| {
            Error::new(
                Kind::Unavailable,
                format!(
                    "pool {id} is not served by node {}: start the node that has its disks, or add the pool here",
                    self.node
                ),
            )
        })
    }

    /// The pools that are not in quarantine.
    pub(super) fn in_use(&self) -> impl Iterator<Item = (&PoolId, &PoolState)> {
        self.pools.iter().filter(|(_, state)| state.pool.quarantined().is_none())
    }

    /// The pool a class means: by name, or the only one, or the one called `default`.
    pub(super) fn pool_named(&self, name: Option<&PoolName>) -> Result<&PoolState> {
        let named = |wanted: &str| {
            self.in_use().map(|(_, state)| state).find(|state| state.pool.identity().name.as_str() == wanted)
        };
        let found = match name {
            Some(name) => named(name.as_str()),
            None if self.pools.len() == 1 => self.in_use().map(|(_, state)| state).next(),
            None => named("default"),
        };
        found.ok_or_else(|| {
            let known: Vec<_> = self.pools.values().map(|state| state.pool.identity().name.to_string()).collect();
            let asked = name.map_or_else(
                || "the class names no pool and none is called default".to_owned(),
                |name| format!("there is no pool {name}"),
            );
            Error::new(
                Kind::InvalidArgument,
                format!(
                    "{asked} on node {}; the pools here are: {}. Set the class's parameter pool to one of them",
                    self.node,
                    known.join(", ")
                ),
            )
        })
    }

    /// Takes a volume's lock.
    pub(super) fn lock_volume(&self, id: &VolumeId, operation: &'static str) -> Result<LockGuard<Key>> {
        self.locks.try_lock(&Key { pool: id.pool, object: Object::Volume(id.uuid) }, operation)
    }

    /// A volume's record; `None` when it does not exist.
    pub(super) fn volume_record(&self, id: &VolumeId) -> Result<Option<VolumeRecord>> {
        let object = Object::Volume(id.uuid);
        let text = self.pool(id.pool)?.pool.read_record(object)?;
        text.map(|text| VolumeRecord::decode(object, id.pool, &text)).transpose()
    }

    /// A snapshot's record; `None` when it does not exist.
    pub(super) fn snapshot_record(&self, id: &SnapshotId) -> Result<Option<SnapshotRecord>> {
        let object = Object::Snapshot(id.uuid);
        let text = self.pool(id.pool)?.pool.read_record(object)?;
        text.map(|text| SnapshotRecord::decode(object, id.pool, &text)).transpose()
    }

    /// The record of a volume that can be used.
    pub(super) fn ready_volume(&self, id: &VolumeId) -> Result<VolumeRecord> {
        let record = self.volume_record(id)?.ok_or_else(|| no_volume(id))?;
        match record.phase {
            Phase::Ready => Ok(record),
            Phase::Creating => Err(self.still_copying(Key { pool: id.pool, object: Object::Volume(id.uuid) })),
            Phase::Deleting => Err(Error::new(Kind::NotFound, format!("volume {id} is being deleted"))),
        }
    }

    /// Writes a volume's record.
    pub(super) fn store_volume(&self, record: &VolumeRecord) -> Result<()> {
        self.pool(record.pool)?.pool.write_record(record.object(), &record.encode()?)
    }

    /// Writes a snapshot's record.
    pub(super) fn store_snapshot(&self, record: &SnapshotRecord) -> Result<()> {
        self.pool(record.pool)?.pool.write_record(record.object(), &record.encode()?)
    }

    /// Whether a uuid exists in another pool than `pool`: a name is one thing in all of a home.
    pub(super) fn elsewhere(&self, pool: PoolId, object: Object) -> Result<Option<PoolId>> {
        for (id, state) in self.in_use() {
            if *id != pool && state.pool.read_record(object)?.is_some() {
                return Ok(Some(*id));
            }
        }
        Ok(None)
    }
}

pub(super) fn no_volume(id: &VolumeId) -> Error {
    Error::new(Kind::NotFound, format!("volume {id} does not exist"))
}

pub(super) fn no_snapshot(id: &SnapshotId) -> Error {
    Error::new(Kind::NotFound, format!("snapshot {id} does not exist"))
}

impl Home for LocalHome {
    fn node(&self) -> &NodeId {
        &self.shared.node
    }

    fn create_volume(&self, request: &CreateVolume) -> Result<Created<Volume>, Failure> {
        self.shared.create_volume(request)
    }

    fn delete_volume(&self, id: &VolumeId) -> Result<Changed> {
        self.shared.delete_volume(id)
    }

    fn volume(&self, id: &VolumeId) -> Result<Volume> {
        self.shared.volume(id)
    }

    fn find_volume(&self, uuid: ObjectUuid) -> Result<Vec<VolumeId>> {
        self.shared.find_volume(uuid)
    }

    fn volumes(&self, after: Option<VolumeId>, limit: usize) -> Result<Page<Volume, VolumeId>> {
        self.shared.volumes(after, limit)
    }

    fn grant(&self, id: &VolumeId, request: &GrantRequest) -> Result<Granted> {
        self.shared.grant(id, request)
    }

    fn revoke(&self, id: &VolumeId, node: Option<&NodeId>) -> Result<Changed> {
        self.shared.revoke(id, node)
    }

    fn open(&self, id: &VolumeId, node: &NodeId) -> Result<Opened> {
        self.shared.open(id, node)
    }

    fn close(&self, id: &VolumeId, node: &NodeId) -> Result<()> {
        self.shared.close(id, node)
    }

    fn device_of(&self, id: &VolumeId) -> Result<Option<ActiveDevice>> {
        self.shared.device_of(id)
    }

    fn volume_of(&self, device: DevNum) -> Result<Option<VolumeId>> {
        self.shared.volume_of(device)
    }

    fn begin_format(&self, id: &VolumeId, node: &NodeId, fs: FsType) -> Result<Formatting> {
        self.shared.begin_format(id, node, fs)
    }

    fn end_format(&self, id: &VolumeId, node: &NodeId, fs_uuid: uuid::Uuid) -> Result<()> {
        self.shared.end_format(id, node, fs_uuid)
    }

    fn use_raw(&self, id: &VolumeId, node: &NodeId) -> Result<()> {
        self.shared.use_raw(id, node)
    }

    fn create_snapshot(&self, request: &CreateSnapshot) -> Result<Created<Snapshot>, Failure> {
        self.shared.create_snapshot(request)
    }

    fn delete_snapshot(&self, id: &SnapshotId) -> Result<Changed> {
        self.shared.delete_snapshot(id)
    }

    fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        self.shared.snapshot(id)
    }

    fn find_snapshot(&self, uuid: ObjectUuid) -> Result<Vec<SnapshotId>> {
        self.shared.find_snapshot(uuid)
    }

    fn snapshots(
        &self,
        filter: &SnapshotFilter,
        after: Option<SnapshotId>,
        limit: usize,
    ) -> Result<Page<Snapshot, SnapshotId>> {
        self.shared.snapshots(filter, after, limit)
    }

    fn expand(&self, id: &VolumeId, range: &CapacityRange) -> Result<Expanded> {
        self.shared.expand(id, range)
    }

    fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        self.shared.capacity(query)
    }

    fn extents(&self) -> Result<BTreeMap<VolumeId, u64>> {
        self.shared.extents()
    }

    fn report(&self) -> Result<Vec<PoolReport>> {
        self.shared.report()
    }

    fn readmit(&self, pool: PoolId) -> Result<Changed> {
        self.shared.readmit(pool)
    }

    fn examine(&self) -> Result<Vec<Finding>> {
        let nobody = || Error::new(Kind::Unsupported, "nobody looks at the pools of this home");
        self.shared.examiner.get().ok_or_else(nobody)?()
    }
}
