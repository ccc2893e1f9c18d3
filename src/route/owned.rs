//! [`OwnedHome`]: a home whose answers are accepted only about its own objects.
//!
//! A node with a valid certificate may name its own pools, objects in them, and itself as their home node. An answer
//! about anything else is not used, and is logged with the node's name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use tracing::warn;
use uuid::Uuid;

use crate::home::{
    Capacity, CapacityQuery, Changed, Client, CreateSnapshot, CreateVolume, Created, Expanded, Finding, Formatting,
    GrantRequest, Granted, Home, OpenVolume, Page, PoolReport, Snapshot, SnapshotFilter, Volume,
};
use crate::types::{
    CapacityRange, Error, Failure, FsType, Kind, NodeId, ObjectUuid, PoolId, Result, SnapshotId, SubsystemNqn, VolumeId,
};
use crate::wire::RateLimitedLog;

/// The most nodes that a volume may be attached to in an accepted answer.
const MOST_PUBLISHED: usize = 1024;

/// The pools in the last heartbeat of a home node. Cheap to clone; clones share their content.
#[derive(Clone, Debug, Default)]
pub(super) struct Pools(Arc<RwLock<BTreeSet<PoolId>>>);

impl Pools {
    /// With these pools.
    pub(super) fn of(pools: &BTreeSet<PoolId>) -> Self {
        Self(Arc::new(RwLock::new(pools.clone())))
    }

    /// Replaces the pools.
    pub(super) fn set(&self, pools: &BTreeSet<PoolId>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).clone_from(pools);
    }

    fn has(&self, pool: PoolId) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&pool)
    }
}

/// A home whose answers are checked.
pub(super) struct OwnedHome {
    inner: Arc<dyn Home>,
    pools: Pools,
    complaints: RateLimitedLog,
}

impl fmt::Debug for OwnedHome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedHome").field("node", self.inner.node()).finish_non_exhaustive()
    }
}

impl OwnedHome {
    /// A home that serves these pools.
    pub(super) fn new(inner: Arc<dyn Home>, pools: Pools) -> Self {
        Self { inner, pools, complaints: RateLimitedLog::default() }
    }

    /// The error for an answer about something that is not the home node's own.
    fn foreign(&self, what: &'static str, why: &str) -> Error {
        let node = self.inner.node();
        if let Some(unsaid) = self.complaints.may_say(node.as_str(), what) {
            warn!(%node, what, unsaid, "an answer is not used: {why}; check that node, and whether its key was stolen");
        }
        let message =
            format!("{what}: the answer of node {node} is not used: {why}; check the log and the release of that node");
        Error::new(Kind::Unavailable, message)
    }

    fn pool(&self, what: &'static str, pool: PoolId) -> Result<()> {
        if self.pools.has(pool) {
            return Ok(());
        }
        Err(self.foreign(what, &format!("it names pool {pool}, which it does not serve")))
    }

    fn home(&self, what: &'static str, home: &NodeId) -> Result<()> {
        if home == self.inner.node() {
            return Ok(());
        }
        Err(self.foreign(what, &format!("it names node {home} as the home node")))
    }

    fn checked_volume(&self, what: &'static str, volume: Volume) -> Result<Volume> {
        self.pool(what, volume.id.pool)?;
        self.home(what, &volume.home)?;
        if volume.published.len() > MOST_PUBLISHED {
            return Err(self.foreign(what, "it names too many nodes that the volume is attached to"));
        }
        Ok(volume)
    }

    fn checked_snapshot(&self, what: &'static str, snapshot: Snapshot) -> Result<Snapshot> {
        self.pool(what, snapshot.id.pool)?;
        self.home(what, &snapshot.home)?;
        if snapshot.source.pool != snapshot.id.pool {
            return Err(self.foreign(what, "it names a snapshot of a volume in another pool"));
        }
        Ok(snapshot)
    }

    /// A page in the requested order, no longer than requested.
    fn page<T, K: Ord + Copy>(
        &self,
        what: &'static str,
        page: Page<T, K>,
        (after, limit): (Option<K>, usize),
        key: impl Fn(&T) -> K,
        check: impl Fn(T) -> Result<T>,
    ) -> Result<Page<T, K>> {
        let keys = page.entries.iter().map(&key);
        let all: Vec<K> = after.into_iter().chain(keys).chain(page.next).collect();
        // The token is the last entry's key, or a later one.
        let last = all.len().checked_sub(2).filter(|_| page.next.is_some());
        let is_ordered = all.windows(2).enumerate().all(|(at, pair)| match pair {
            [one, other] => one < other || (Some(at) == last && one == other),
            _ => true,
        });
        if !is_ordered || (limit != 0 && page.entries.len() > limit) {
            return Err(self.foreign(what, "its list is not in order, or longer than requested"));
        }
        let entries = page.entries.into_iter().map(check).collect::<Result<_>>()?;
        Ok(Page { entries, next: page.next })
    }

    fn ids<I: Copy>(
        &self,
        what: &'static str,
        ids: Vec<I>,
        wanted: ObjectUuid,
        part: impl Fn(I) -> (PoolId, ObjectUuid),
    ) -> Result<Vec<I>> {
        let mut seen = BTreeSet::new();
        for id in &ids {
            let (pool, uuid) = part(*id);
            self.pool(what, pool)?;
            if uuid != wanted || !seen.insert(pool) {
                return Err(self.foreign(what, "it names an object that was not requested"));
            }
        }
        Ok(ids)
    }
}

impl Home for OwnedHome {
    fn node(&self) -> &NodeId {
        self.inner.node()
    }

    fn create_volume(&self, request: &CreateVolume) -> Result<Created<Volume>, Failure> {
        const WHAT: &str = "CreateVolume";
        let check = |volume: Volume| {
            let volume = self.checked_volume(WHAT, volume)?;
            if volume.name != request.name || volume.id.uuid != ObjectUuid::of_volume(&request.name) {
                return Err(self.foreign(WHAT, "it names another volume"));
            }
            Ok(volume)
        };
        // Whatever it did, something may exist there.
        Ok(match self.inner.create_volume(request)? {
            Created::New(volume) => Created::New(check(volume).map_err(Failure::Dirty)?),
            Created::Existing(volume) => Created::Existing(check(volume).map_err(Failure::Dirty)?),
        })
    }

    fn delete_volume(&self, id: &VolumeId) -> Result<Changed> {
        self.inner.delete_volume(id)
    }

    fn volume(&self, id: &VolumeId) -> Result<Volume> {
        const WHAT: &str = "GetVolume";
        let volume = self.checked_volume(WHAT, self.inner.volume(id)?)?;
        if volume.id == *id { Ok(volume) } else { Err(self.foreign(WHAT, "it names another volume")) }
    }

    fn find_volume(&self, uuid: ObjectUuid) -> Result<Vec<VolumeId>> {
        self.ids("FindVolume", self.inner.find_volume(uuid)?, uuid, |id| (id.pool, id.uuid))
    }

    fn volumes(&self, after: Option<VolumeId>, limit: usize) -> Result<Page<Volume, VolumeId>> {
        const WHAT: &str = "ListVolumes";
        let page = self.inner.volumes(after, limit)?;
        self.page(WHAT, page, (after, limit), |volume| volume.id, |volume| self.checked_volume(WHAT, volume))
    }

    fn grant_as(&self, id: &VolumeId, request: &GrantRequest, generation: Option<u64>) -> Result<Granted> {
        let granted = self.inner.grant_as(id, request, generation)?;
        self.home("Grant", &granted.home).map(|()| granted)
    }

    fn revoke_as(&self, id: &VolumeId, node: Option<&NodeId>, generation: Option<u64>) -> Result<Changed> {
        self.inner.revoke_as(id, node, generation)
    }

    fn open_for(&self, id: &VolumeId, node: &NodeId, client: &Client) -> Result<OpenVolume> {
        self.inner.open_for(id, node, client)
    }

    fn close(&self, id: &VolumeId, node: &NodeId) -> Result<()> {
        self.inner.close(id, node)
    }

    fn device_of(&self, id: &VolumeId) -> Result<Option<crate::pool::ActiveDevice>> {
        self.inner.device_of(id)
    }

    fn volume_of(&self, device: crate::os::DevNum) -> Result<Option<VolumeId>> {
        self.inner.volume_of(device)
    }

    fn was_given(&self, id: &VolumeId, device: crate::os::DevNum) -> Result<bool> {
        self.inner.was_given(id, device)
    }

    fn give_view(&self, id: &VolumeId, node: &NodeId, view: &crate::pool::ActiveDevice) -> Result<()> {
        self.inner.give_view(id, node, view)
    }

    fn begin_format(&self, id: &VolumeId, node: &NodeId, fs: FsType) -> Result<Formatting> {
        self.inner.begin_format(id, node, fs)
    }

    fn end_format(&self, id: &VolumeId, node: &NodeId, fs_uuid: Uuid) -> Result<()> {
        self.inner.end_format(id, node, fs_uuid)
    }

    fn use_raw(&self, id: &VolumeId, node: &NodeId) -> Result<()> {
        self.inner.use_raw(id, node)
    }

    fn create_snapshot(&self, request: &CreateSnapshot) -> Result<Created<Snapshot>, Failure> {
        const WHAT: &str = "CreateSnapshot";
        let check = |snapshot: Snapshot| {
            let snapshot = self.checked_snapshot(WHAT, snapshot)?;
            let is_it = snapshot.name == request.name
                && snapshot.id.uuid == ObjectUuid::of_snapshot(&request.name)
                && snapshot.source == request.source;
            if is_it { Ok(snapshot) } else { Err(self.foreign(WHAT, "it names another snapshot")) }
        };
        Ok(match self.inner.create_snapshot(request)? {
            Created::New(snapshot) => Created::New(check(snapshot).map_err(Failure::Dirty)?),
            Created::Existing(snapshot) => Created::Existing(check(snapshot).map_err(Failure::Dirty)?),
        })
    }

    fn delete_snapshot(&self, id: &SnapshotId) -> Result<Changed> {
        self.inner.delete_snapshot(id)
    }

    fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        const WHAT: &str = "GetSnapshot";
        let snapshot = self.checked_snapshot(WHAT, self.inner.snapshot(id)?)?;
        if snapshot.id == *id { Ok(snapshot) } else { Err(self.foreign(WHAT, "it names another snapshot")) }
    }

    fn find_snapshot(&self, uuid: ObjectUuid) -> Result<Vec<SnapshotId>> {
        self.ids("FindSnapshot", self.inner.find_snapshot(uuid)?, uuid, |id| (id.pool, id.uuid))
    }

    fn snapshots(
        &self,
        filter: &SnapshotFilter,
        after: Option<SnapshotId>,
        limit: usize,
    ) -> Result<Page<Snapshot, SnapshotId>> {
        const WHAT: &str = "ListSnapshots";
        let page = self.inner.snapshots(filter, after, limit)?;
        self.page(
            WHAT,
            page,
            (after, limit),
            |snapshot| snapshot.id,
            |snapshot| {
                let snapshot = self.checked_snapshot(WHAT, snapshot)?;
                if filter.source.is_some_and(|source| source != snapshot.source) {
                    return Err(self.foreign(WHAT, "it names snapshots of another volume"));
                }
                Ok(snapshot)
            },
        )
    }

    fn expand(&self, id: &VolumeId, range: &CapacityRange) -> Result<Expanded> {
        self.inner.expand(id, range)
    }

    fn capacity(&self, query: &CapacityQuery) -> Result<Capacity> {
        self.inner.capacity(query)
    }

    fn exports(&self, node: &NodeId, pool: PoolId) -> Result<Vec<SubsystemNqn>> {
        let exports = self.inner.exports(node, pool)?;
        exports.iter().try_for_each(|export| self.pool("ListExports", export.volume.pool))?;
        Ok(exports)
    }

    fn extents(&self) -> Result<BTreeMap<VolumeId, u64>> {
        let extents = self.inner.extents()?;
        extents.keys().try_for_each(|id| self.pool("ListExtents", id.pool))?;
        Ok(extents)
    }

    fn report(&self) -> Result<Vec<PoolReport>> {
        let reports = self.inner.report()?;
        reports.iter().try_for_each(|report| self.pool("Report", report.id))?;
        Ok(reports)
    }

    fn readmit(&self, pool: PoolId) -> Result<Changed> {
        self.inner.readmit(pool)
    }

    fn examine(&self) -> Result<Vec<Finding>> {
        self.inner.examine()
    }
}
