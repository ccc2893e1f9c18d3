//! Queries: volumes, snapshots, capacity, figures. Records are read for each query; only ids are in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::warn;

use super::local::{Shared, no_snapshot, no_volume};
use super::record::{Phase, Record, SnapshotRecord, VolumeRecord};
use super::state::{Key, PoolState};
use super::{Capacity, CapacityQuery, Changed, CopyState, Page, PoolReport, Snapshot, SnapshotFilter, Volume};
use crate::pool::{Ability, Object, ObjectKind};
use crate::types::{Bytes, Error, Kind, ObjectUuid, PoolId, Provisioning, Result, SnapshotId, VolumeId};

impl Shared {
    pub(super) fn view_volume(&self, record: &VolumeRecord) -> Volume {
        Volume {
            id: record.id(),
            birth_home: record.birth_home.clone(),
            home: self.node.clone(),
            name: record.co_name.clone(),
            claim: record.claim(),
            size: record.size,
            source: record.source,
            published: record.attachments.iter().map(|attachment| attachment.node.clone()).collect(),
            format: record.format.known,
            modes: record.modes(),
            provisioning: record.provisioning,
            created: record.created,
            access: record.access,
            authentication: record.request.parameters.authentication,
        }
    }

    pub(super) fn view_snapshot(&self, record: &SnapshotRecord) -> Snapshot {
        let key = Key::from(record.id());
        let copy = match record.phase {
            Phase::Creating => CopyState::Copying { percent: self.copies.percent_into(key).unwrap_or_default() },
            Phase::Ready | Phase::Deleting => CopyState::Ready,
        };
        Snapshot {
            id: record.id(),
            birth_home: record.birth_home.clone(),
            home: self.node.clone(),
            name: record.co_name.clone(),
            source: record.source.born_on(&record.source_birth_home),
            source_birth_home: record.source_birth_home.clone(),
            size: record.least_request(),
            cut: record.created,
            copy,
        }
    }

    pub(super) fn volume(&self, id: &VolumeId) -> Result<Volume> {
        let record = self.volume_record(id)?.filter(|record| record.phase == Phase::Ready);
        record.map(|record| self.view_volume(&record)).ok_or_else(|| no_volume(id))
    }

    pub(super) fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        let record = self.snapshot_record(id)?.filter(|record| record.phase != Phase::Deleting);
        record.map(|record| self.view_snapshot(&record)).ok_or_else(|| no_snapshot(id))
    }

    pub(super) fn find_volume(&self, uuid: ObjectUuid) -> Result<Vec<VolumeId>> {
        let object = Object::Volume(uuid);
        let id = |(pool, text): (PoolId, Vec<u8>)| {
            // A record that cannot be read exists too.
            let record = VolumeRecord::decode(object, pool, &text);
            record.map_or_else(|_| VolumeId::new(pool, uuid), |record| record.id())
        };
        Ok(self.find(object)?.into_iter().map(id).collect())
    }

    pub(super) fn find_snapshot(&self, uuid: ObjectUuid) -> Result<Vec<SnapshotId>> {
        let object = Object::Snapshot(uuid);
        let id = |(pool, text): (PoolId, Vec<u8>)| {
            let record = SnapshotRecord::decode(object, pool, &text);
            record.map_or_else(|_| SnapshotId::new(pool, uuid), |record| record.id())
        };
        Ok(self.find(object)?.into_iter().map(id).collect())
    }

    /// The pools with a record of this object, readable or not, and the record. A pool is read only where its ledger has the name: a
    /// pool that does not answer and cannot have the object does not block the query. A pool that was never opened is
    /// skipped, like an unreachable node.
    fn find(&self, object: Object) -> Result<Vec<(PoolId, Vec<u8>)>> {
        let mut found = Vec::new();
        for (id, slot, state) in self.in_use() {
            if state.to_read.load(Ordering::SeqCst) {
                let name = &state.pool.identity().name;
                let message = format!("pool {name} is served again, and its records are being read; retry");
                return Err(Error::new(Kind::Unavailable, message));
            }
            if !state.ledger.has(object) {
                continue;
            }
            slot.present(state)?;
            let read = state.pool.read_record(object).map_err(|error| {
                let message = format!("cannot determine whether {object} is in pool {}", state.pool.identity().name);
                error.with_kind(Kind::Unavailable).context(message)
            });
            found.extend(read?.map(|stored| (id, stored.text)));
        }
        Ok(found)
    }

    pub(super) fn volumes(&self, after: Option<VolumeId>, limit: usize) -> Result<Page<Volume, VolumeId>> {
        self.page(ObjectKind::Volume, after.map(|id| (id.pool, id.uuid)), limit, |pool, uuid| {
            let id = VolumeId::new(pool, uuid);
            let record = self.volume_record(&id)?.filter(|record| record.phase == Phase::Ready);
            Ok(record.map(|record| (id, self.view_volume(&record))))
        })
    }

    pub(super) fn snapshots(
        &self,
        filter: &SnapshotFilter,
        after: Option<SnapshotId>,
        limit: usize,
    ) -> Result<Page<Snapshot, SnapshotId>> {
        if let Some(source) = filter.source {
            // If its pool is not served, its snapshots are unknown: that is not "no snapshots".
            self.pool(source.pool)?;
        }
        self.page(ObjectKind::Snapshot, after.map(|id| (id.pool, id.uuid)), limit, |pool, uuid| {
            let id = SnapshotId::new(pool, uuid);
            let record = self.snapshot_record(&id)?.filter(|record| record.phase != Phase::Deleting);
            let wanted = record.filter(|record| filter.source.is_none_or(|source| record.source == source));
            Ok(wanted.map(|record| (id, self.view_snapshot(&record))))
        })
    }

    /// Reads all pools in order of (pool, uuid), after `after`, and stops one entry past `limit` to know whether there
    /// are more. An object that is deleted meanwhile is left out; one that cannot be read fails the list.
    fn page<T, K: Copy>(
        &self,
        class: ObjectKind,
        after: Option<(PoolId, ObjectUuid)>,
        limit: usize,
        look: impl Fn(PoolId, ObjectUuid) -> Result<Option<(K, T)>>,
    ) -> Result<Page<T, K>> {
        let incomplete = |error: Error| {
            let message = "the list would be incomplete, so the request fails; run holdfast doctor to find the cause";
            error.with_kind(Kind::Unavailable).context(message)
        };
        let mut page = Page { entries: Vec::new(), next: None };
        let mut last = None;
        let most = if limit == 0 { usize::MAX } else { limit.saturating_add(1) };
        for (pool, state) in self.all_in_use().map_err(incomplete)? {
            if after.is_some_and(|(seen, _)| seen > pool) {
                continue;
            }
            let mut from = after.filter(|(seen, _)| *seen == pool).map(|(_, uuid)| uuid);
            loop {
                let wanted = most - page.entries.len();
                let found = state.pool.list_after(class, from, wanted).map_err(incomplete)?;
                for uuid in &found {
                    let Some((key, entry)) = look(pool, *uuid).map_err(incomplete)? else { continue };
                    if limit != 0 && page.entries.len() == limit {
                        page.next = last;
                        return Ok(page);
                    }
                    page.entries.push(entry);
                    last = Some(key);
                }
                // Some may have been deleted meanwhile or filtered out: then read more.
                if found.len() < wanted {
                    break;
                }
                from = found.last().copied();
            }
        }
        Ok(page)
    }

    pub(super) fn capacity(self: &Arc<Self>, query: &CapacityQuery) -> Result<Capacity> {
        let smallest = query.smallest();
        let state = match self.pool_named(query.pool.as_ref()) {
            Ok(state) => state,
            // A node without that pool has no capacity in it: the scheduler then selects another node.
            Err(error) if error.kind() == Kind::InvalidArgument => {
                return Ok(Capacity { available: Bytes::ZERO, largest: Bytes::ZERO, smallest });
            }
            Err(error) => return Err(error),
        };
        self.read_again(state);
        state.ledger.count_lately();
        let provisioning = query.provisioning.unwrap_or(state.pool.abilities().default_provisioning);
        let available = state.ledger.available(provisioning)?;
        Ok(Capacity { available, largest: available, smallest })
    }

    /// Leaves out a volume whose extents cannot be counted: the figure is only for display.
    pub(super) fn extents(&self) -> Result<BTreeMap<VolumeId, u64>> {
        let mut counts = BTreeMap::new();
        for (pool, slot, state) in self.in_use() {
            // A pool that disappeared has no figures.
            if slot.present(state).is_err() {
                continue;
            }
            for uuid in state.pool.list(ObjectKind::Volume)? {
                if let Ok(count) = state.pool.extent_count(Object::Volume(uuid)) {
                    counts.insert(self.full(VolumeId::new(pool, uuid)), count);
                }
            }
        }
        Ok(counts)
    }

    pub(super) fn report(self: &Arc<Self>) -> Result<Vec<PoolReport>> {
        self.all_in_use()?.into_iter().map(|(_, state)| self.report_one(state)).collect()
    }

    /// The figures of one pool, which is served.
    pub(super) fn report_one(self: &Arc<Self>, state: &PoolState) -> Result<PoolReport> {
        state.pool.present()?;
        self.read_again(state);
        let report = report_of(state.pool.identity().id, state)?;
        let network = if self.fabric.is_some() { report.network } else { Ability::No };
        Ok(PoolReport { network, ..report })
    }

    /// Takes a pool out of quarantine. Its records are read first, so that its reserved space is counted before it is
    /// served.
    pub(super) fn readmit(self: &Arc<Self>, pool: PoolId) -> Result<Changed> {
        let Some((slot, state)) = self.opened(pool) else { return self.pool(pool).map(|_| Changed::No) };
        slot.present(state)?;
        if state.pool.quarantined().is_none() {
            return Ok(Changed::No);
        }
        let copies = self.read_in(state)?;
        self.go_on(copies);
        state.pool.set_quarantine(None)?;
        warn!(%pool, "pool readmitted: its volumes are served again");
        Ok(Changed::Yes)
    }
}

/// The figures of a pool, whether or not its node exports volumes.
pub(super) fn report_of(id: PoolId, state: &PoolState) -> Result<PoolReport> {
    let identity = state.pool.identity();
    let (totals, abilities) = (state.ledger.totals(), state.pool.abilities());
    let available = |provisioning| state.ledger.available(provisioning);
    Ok(PoolReport {
        id,
        name: identity.name.clone(),
        kind: identity.kind.into(),
        place: identity.place.clone(),
        room: state.pool.room()?,
        available: available(abilities.default_provisioning)?,
        available_thick: (abilities.thick == Ability::Yes).then(|| available(Provisioning::Thick)).transpose()?,
        available_thin: available(Provisioning::Thin)?,
        default_provisioning: abilities.default_provisioning,
        promised: totals.promised,
        provisioned: totals.provisioned,
        volumes: totals.volumes,
        snapshots: totals.snapshots,
        network: abilities.stable,
    })
}
