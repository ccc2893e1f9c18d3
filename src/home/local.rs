//! [`LocalHome`] is the home node of this process's pools. This file has what all its operations share: pools, locks,
//! reading and writing records. Each operation has its own file beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use tracing::error;

use super::copies::Copies;
use super::fabric::Fabric;
use super::record::{Phase, Record, SnapshotRecord, VolumeRecord};
use super::slot::Slot;
use super::state::{Key, PoolState};
use super::{
    Capacity, CapacityQuery, Changed, Client, CreateSnapshot, CreateVolume, Created, Expanded, Finding, Formatting,
    GrantRequest, Granted, Home, LockGuard, Locks, OpenVolume, Page, PoolCondition, PoolHealth, PoolReport, Snapshot,
    SnapshotFilter, Source, SpaceLimits, Volume,
};
use crate::os::{DevNum, Os, Timestamp};
use crate::pool::{ActiveDevice, Object, Pool};
use crate::types::{
    CapacityRange, Error, Failure, FsType, Kind, Named, NodeId, ObjectUuid, PoolId, PoolName, Result, SnapshotId,
    SubsystemNqn, VolumeId,
};

/// The home node of this process's pools. Cheap to clone.
#[derive(Clone)]
pub struct LocalHome {
    pub(super) shared: Arc<Shared>,
}

/// The state that the operations and the background copies share.
pub(super) struct Shared {
    pub(super) os: Os,
    pub(super) node: NodeId,
    pub(super) slots: Vec<Slot>,
    /// The ids and locations of the pools that are open or being opened.
    pub(super) entering: Mutex<BTreeMap<PoolId, String>>,
    pub(super) locks: Locks<Key>,
    pub(super) copies: Copies,
    /// Without it nothing is exported.
    pub(super) fabric: Option<Fabric>,
}

impl LocalHome {
    /// Starts to serve open pools: removes incomplete objects, reads every record into the ledger, and resumes the
    /// copies of an earlier run. Returns when every pool can be served.
    ///
    /// # Errors
    /// `InvalidArgument` for two pools with the same name or id; `Internal` when a pool cannot be listed.
    pub fn open(os: Os, node: NodeId, pools: Vec<(Arc<dyn Pool>, SpaceLimits)>) -> Result<Self> {
        Self::open_with(os, node, pools, None)
    }

    /// The same, with the exports of this node.
    ///
    /// # Errors
    /// Those of [`LocalHome::open`].
    pub fn open_with(
        os: Os,
        node: NodeId,
        pools: Vec<(Arc<dyn Pool>, SpaceLimits)>,
        fabric: Option<Fabric>,
    ) -> Result<Self> {
        let slots = pools.iter().map(|(pool, limits)| Slot::opened(&**pool, *limits)).collect();
        let home = Self::of_slots(os, node, slots, fabric)?;
        for (index, (pool, _)) in pools.into_iter().enumerate() {
            home.shared.take_in(index, pool)?;
        }
        Ok(home)
    }

    /// With pools that are not open yet.
    pub(super) fn of_slots(os: Os, node: NodeId, slots: Vec<Slot>, fabric: Option<Fabric>) -> Result<Self> {
        let mut names = BTreeSet::new();
        if let Some(twice) = slots.iter().find(|slot| !names.insert(slot.name.clone())) {
            return Err(Error::new(
                Kind::InvalidArgument,
                format!("two pools have the name {}; rename one of them", twice.name),
            ));
        }
        let shared = Shared {
            locks: Locks::new(os.activity().clone()),
            os,
            node,
            slots,
            entering: Mutex::default(),
            copies: Copies::default(),
            fabric,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The pools that are open.
    #[must_use]
    pub fn pools(&self) -> Vec<PoolId> {
        self.shared.slots.iter().filter_map(Slot::state).map(|state| state.pool.identity().id).collect()
    }

    /// The names of the configured pools.
    pub fn names(&self) -> impl Iterator<Item = &PoolName> {
        self.shared.slots.iter().map(|slot| &slot.name)
    }

    /// Puts a pool in quarantine because an operator declared it lost. Nothing in it is served or listed until
    /// [`Home::readmit`]. Staged volumes stay usable and can be unstaged.
    ///
    /// # Errors
    /// `Unavailable` when it is not served here; those of [`Pool::set_quarantine`].
    pub fn quarantine(&self, pool: PoolId) -> Result<Changed> {
        let Some((_, state)) = self.shared.opened(pool) else { return self.shared.pool(pool).map(|_| Changed::No) };
        if state.pool.quarantined().is_some() {
            return Ok(Changed::No);
        }
        state.pool.set_quarantine(Some(Timestamp::now()))?;
        error!(%pool, "the pool was declared lost (lostHomes of a controller): it is in quarantine until an operator readmits it (holdfast pools readmit)");
        Ok(Changed::Yes)
    }

    /// The state of each pool, for the controllers. A pool that cannot be read does not hide the others.
    #[must_use]
    pub fn health(&self) -> Vec<PoolHealth> {
        // A pool that was not opened in this run may belong to another node by now: this node waits for it and does not
        // claim it.
        let slots = self.shared.slots.iter().zip(self.conditions());
        let opened = slots.filter(|(slot, _)| slot.state().is_some()).map(|(_, condition)| condition);
        let known = opened.filter_map(|condition| {
            let PoolCondition { name, id, health, .. } = condition;
            id.map(|id| PoolHealth { id, name, health })
        });
        known.collect()
    }

    /// Stops all background work, as a kill of the process would.
    #[cfg(any(test, feature = "testing"))]
    pub fn abandon(&self) {
        self.shared.copies.abandon();
    }
}

impl Shared {
    /// A pool that is open, served or not, with its slot.
    pub(super) fn opened(&self, id: PoolId) -> Option<(&Slot, &PoolState)> {
        let mut open = self.slots.iter().filter_map(|slot| Some((slot, slot.state()?)));
        open.find(|(_, state)| state.pool.identity().id == id)
    }

    /// A pool by its id, if it is served now.
    pub(super) fn pool(&self, id: PoolId) -> Result<&PoolState> {
        let Some((slot, state)) = self.opened(id) else { return Err(self.not_here(id)) };
        if let Some(since) = state.pool.quarantined() {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "pool {id} on node {} is in quarantine since it was declared lost {} s ago; check its volumes, then run holdfast pools readmit {id}",
                    self.node,
                    since.age().as_secs()
                ),
            ));
        }
        slot.present(state)?;
        Ok(state)
    }

    /// Why a pool is not open.
    fn not_here(&self, id: PoolId) -> Error {
        let mut closed = self.slots.iter().filter(|slot| slot.state().is_none());
        if let Some(slot) = closed.clone().find(|slot| slot.id() == Some(id)) {
            return slot.not_open(&self.node);
        }
        let unknown = Error::new(
            Kind::Unavailable,
            format!(
                "pool {id} is not served by node {}: start the node that has its disks, or add the pool here",
                self.node
            ),
        );
        // It may be a pool that could not be opened so far.
        match closed.find(|slot| slot.id().is_none()) {
            Some(slot) => Error::new(Kind::Unavailable, format!("{unknown}; and {}", slot.not_open(&self.node))),
            None => unknown,
        }
    }

    /// The pools that are open and not in quarantine, in the order of their ids. They may have disappeared.
    pub(super) fn in_use(&self) -> Vec<(PoolId, &Slot, &PoolState)> {
        let open = self.slots.iter().filter_map(|slot| Some((slot, slot.state()?)));
        let used = open.filter(|(_, state)| state.pool.quarantined().is_none());
        let mut used: Vec<_> = used.map(|(slot, state)| (state.pool.identity().id, slot, state)).collect();
        used.sort_by_key(|(id, ..)| *id);
        used
    }

    /// The pools that are open and present, in quarantine or not: a failed pool does not affect the others.
    pub(super) fn there(&self) -> impl Iterator<Item = (PoolId, &PoolState)> {
        let open = self.slots.iter().filter_map(|slot| Some((slot, slot.state()?)));
        let there = open.filter(|(slot, state)| slot.present(state).is_ok());
        there.map(|(_, state)| (state.pool.identity().id, state))
    }

    /// As [`Shared::in_use`], for an answer that must be complete.
    ///
    /// # Errors
    /// `Unavailable`, naming a pool that is not open or disappeared.
    pub(super) fn all_in_use(&self) -> Result<Vec<(PoolId, &PoolState)>> {
        if let Some(closed) = self.slots.iter().find(|slot| slot.state().is_none()) {
            return Err(closed.not_open(&self.node));
        }
        self.in_use().into_iter().map(|(id, slot, state)| slot.present(state).map(|()| (id, state))).collect()
    }

    /// The pool of a StorageClass: by name, or the only one, or the one with the name `default`.
    ///
    /// # Errors
    /// `InvalidArgument` where there is none; `Unavailable` when it is not served now.
    pub(super) fn pool_named(&self, name: Option<&PoolName>) -> Result<&PoolState> {
        let named = |wanted: &str| self.slots.iter().find(|slot| slot.name.as_str() == wanted);
        let found = match name {
            Some(name) => named(name.as_str()),
            None if self.slots.len() == 1 => self.slots.first(),
            None => named("default"),
        };
        let quarantined = |slot: &&Slot| slot.state().is_some_and(|state| state.pool.quarantined().is_some());
        if let Some(slot) = found.filter(|slot| !quarantined(slot)) {
            let state = slot.state().ok_or_else(|| slot.not_open(&self.node))?;
            slot.present(state)?;
            return Ok(state);
        }
        let known: Vec<_> = self.slots.iter().map(|slot| slot.name.to_string()).collect();
        let asked = name.map_or_else(
            || "the StorageClass has no parameter pool, and no pool has the name default".to_owned(),
            |name| format!("there is no pool {name}"),
        );
        Err(Error::new(
            Kind::InvalidArgument,
            format!(
                "{asked} on node {}; its pools are: {}. Set the parameter pool of the StorageClass to one of them",
                self.node,
                known.join(", ")
            ),
        ))
    }

    /// Locks a volume.
    pub(super) fn lock_volume(&self, id: &VolumeId, operation: &'static str) -> Result<LockGuard<Key>> {
        self.locks.try_lock(&Key::from(*id), operation)
    }

    /// A volume's record; `None` when it does not exist.
    pub(super) fn volume_record(&self, id: &VolumeId) -> Result<Option<VolumeRecord>> {
        self.pool(id.pool)?.record(Object::Volume(id.uuid))
    }

    /// A snapshot's record; `None` when it does not exist.
    pub(super) fn snapshot_record(&self, id: &SnapshotId) -> Result<Option<SnapshotRecord>> {
        self.pool(id.pool)?.record(Object::Snapshot(id.uuid))
    }

    /// An object as messages name it. Reads its record: only for errors of a pool that answers.
    pub(super) fn described(&self, key: Key) -> Named {
        let named = match key {
            Key::Volume(id) => self.volume_record(&id).map(|record| record.map(|record| record.named())),
            Key::Snapshot(id) => self.snapshot_record(&id).map(|record| record.map(|record| record.named())),
        };
        named.ok().flatten().unwrap_or_else(|| key.named())
    }

    /// An id with its birth node, if its record can be read.
    pub(super) fn full(&self, id: VolumeId) -> VolumeId {
        self.volume_record(&id).ok().flatten().map_or(id, |record| record.id())
    }

    /// The result of a request, with the object named in its error. The record is read for the claim where the error is
    /// a decision: after a failed or waiting operation, its disk may not answer either.
    fn of<T>(&self, object: impl Into<Key>, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let key = object.into();
            let decided = error.kind().is_refusal() && error.kind() != Kind::NotFound;
            let named = if decided { self.described(key) } else { key.named() };
            named.in_error(error)
        })
    }

    /// The record of a volume that can be used.
    pub(super) fn ready_volume(&self, id: &VolumeId) -> Result<VolumeRecord> {
        let record = self.volume_record(id)?.ok_or_else(|| no_volume(id))?;
        match record.phase {
            Phase::Ready => Ok(record),
            Phase::Creating => Err(self.still_copying(record.id().into())),
            Phase::Deleting => Err(Error::new(Kind::NotFound, format!("volume {id} is being deleted"))),
        }
    }

    /// Writes a volume's record.
    pub(super) fn store_volume(&self, record: &mut VolumeRecord) -> Result<()> {
        self.pool(record.pool)?.store(record)
    }

    /// Writes a snapshot's record.
    pub(super) fn store_snapshot(&self, record: &mut SnapshotRecord) -> Result<()> {
        self.pool(record.pool)?.store(record)
    }

    /// The other pool that has this uuid, if any: a name is unique on a home node. A pool is read only where the ledger
    /// has that name. No other process writes there, and no request for one pool waits for another pool's disk.
    pub(super) fn elsewhere(&self, pool: PoolId, object: Object) -> Result<Option<PoolId>> {
        for (id, _, state) in self.in_use() {
            if id != pool && state.ledger.has(object) && state.pool.read_record(object)?.is_some() {
                return Ok(Some(id));
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

impl From<Source> for Key {
    fn from(source: Source) -> Self {
        match source {
            Source::Volume(id) => Self::Volume(id),
            Source::Snapshot(id) => Self::Snapshot(id),
        }
    }
}

impl Home for LocalHome {
    fn node(&self) -> &NodeId {
        &self.shared.node
    }

    fn create_volume(&self, request: &CreateVolume) -> Result<Created<Volume>, Failure> {
        let made = self.shared.create_volume(request);
        made.map_err(|failure| self.shared.named_new(request, failure))
    }

    fn delete_volume(&self, id: &VolumeId) -> Result<Changed> {
        self.shared.of(*id, self.shared.delete_volume(id))
    }

    fn volume(&self, id: &VolumeId) -> Result<Volume> {
        self.shared.of(*id, self.shared.volume(id))
    }

    fn find_volume(&self, uuid: ObjectUuid) -> Result<Vec<VolumeId>> {
        self.shared.find_volume(uuid)
    }

    fn volumes(&self, after: Option<VolumeId>, limit: usize) -> Result<Page<Volume, VolumeId>> {
        self.shared.volumes(after, limit)
    }

    fn grant_as(&self, id: &VolumeId, request: &GrantRequest, generation: Option<u64>) -> Result<Granted> {
        self.shared.of(*id, self.shared.grant(id, request, generation))
    }

    fn revoke_as(&self, id: &VolumeId, node: Option<&NodeId>, generation: Option<u64>) -> Result<Changed> {
        self.shared.of(*id, self.shared.revoke(id, node, generation))
    }

    fn open_for(&self, id: &VolumeId, node: &NodeId, client: &Client) -> Result<OpenVolume> {
        self.shared.of(*id, self.shared.open(id, node, client))
    }

    fn close(&self, id: &VolumeId, node: &NodeId) -> Result<()> {
        self.shared.of(*id, self.shared.close(id, node))
    }

    fn exports(&self, node: &NodeId, pool: PoolId) -> Result<Vec<SubsystemNqn>> {
        self.shared.exports_to(node, pool)
    }

    fn device_of(&self, id: &VolumeId) -> Result<Option<ActiveDevice>> {
        self.shared.of(*id, self.shared.device_of(id))
    }

    fn volume_of(&self, device: DevNum) -> Result<Option<VolumeId>> {
        Ok(self.shared.volume_of(device)?.map(|id| self.shared.full(id)))
    }

    fn was_given(&self, id: &VolumeId, device: DevNum) -> Result<bool> {
        self.shared.of(*id, self.shared.was_given(id, device))
    }

    fn give_view(&self, id: &VolumeId, node: &NodeId, view: &ActiveDevice) -> Result<()> {
        self.shared.of(*id, self.shared.give_view(id, node, view))
    }

    fn begin_format(&self, id: &VolumeId, node: &NodeId, fs: FsType) -> Result<Formatting> {
        self.shared.of(*id, self.shared.begin_format(id, node, fs))
    }

    fn end_format(&self, id: &VolumeId, node: &NodeId, fs_uuid: uuid::Uuid) -> Result<()> {
        self.shared.of(*id, self.shared.end_format(id, node, fs_uuid))
    }

    fn use_raw(&self, id: &VolumeId, node: &NodeId) -> Result<()> {
        self.shared.of(*id, self.shared.use_raw(id, node))
    }

    fn create_snapshot(&self, request: &CreateSnapshot) -> Result<Created<Snapshot>, Failure> {
        let made = self.shared.create_snapshot(request);
        let id = SnapshotId::new(request.source.pool, ObjectUuid::of_snapshot(&request.name));
        let named = Named::new_snapshot(id, &request.name);
        made.map_err(|failure| failure.map(|error| named.in_error(error)))
    }

    fn delete_snapshot(&self, id: &SnapshotId) -> Result<Changed> {
        self.shared.of(*id, self.shared.delete_snapshot(id))
    }

    fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        self.shared.of(*id, self.shared.snapshot(id))
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
        self.shared.of(*id, self.shared.expand(id, range))
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
        self.examine_pools()
    }
}
