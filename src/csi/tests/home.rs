//! A home in memory. The name of a volume selects what creating it does.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use uuid::Uuid;

use crate::home::{
    Capacity, CapacityQuery, Changed, Client, CreateSnapshot, CreateVolume, Created, Expanded, Finding, FormatState,
    Formatting, GrantRequest, Granted, Home, NodeExpansion, OpenVolume, Page, PoolReport, Snapshot, SnapshotFilter,
    Volume,
};
use crate::os::Timestamp;
use crate::pool::{Ability, FreeSpace};
use crate::types::{
    Access, Authentication, Bytes, CapacityRange, Error, Failure, FsType, Kind, NodeId, ObjectUuid, PoolId,
    Provisioning, RequestedMode, Result, SnapshotId, SubsystemNqn, VolumeId,
};

/// Keeps volumes in a map.
pub(super) struct MemoryHome {
    node: NodeId,
    pool: PoolId,
    volumes: Mutex<BTreeMap<VolumeId, Volume>>,
    gate: Mutex<Gate>,
    moved: Condvar,
    /// Whether it rejects an attachment without a filesystem type, as 0.1.0 does.
    must_be_told: bool,
    /// The modes that were asked for.
    asked: Mutex<Vec<RequestedMode>>,
}

/// Where volumes whose name begins with `slow` wait.
#[derive(Default)]
struct Gate {
    open: bool,
    waiting: usize,
}

impl MemoryHome {
    pub(super) fn new() -> Self {
        Self {
            node: "n1".parse().unwrap(),
            pool: "00000000000000aa".parse().unwrap(),
            volumes: Mutex::default(),
            gate: Mutex::default(),
            moved: Condvar::new(),
            must_be_told: false,
            asked: Mutex::default(),
        }
    }

    /// As a home node of release 0.1.0.
    pub(super) fn of_0_1_0() -> Self {
        Self { must_be_told: true, ..Self::new() }
    }

    /// The modes of all attachments that were asked for.
    pub(super) fn asked(&self) -> Vec<RequestedMode> {
        self.asked.lock().unwrap().clone()
    }

    /// Lets the slow ones continue.
    pub(super) fn open_gate(&self) {
        self.gate.lock().unwrap().open = true;
        self.moved.notify_all();
    }

    /// How many wait at the gate.
    pub(super) fn waiting(&self) -> usize {
        self.gate.lock().unwrap().waiting
    }

    /// How many volumes there are.
    pub(super) fn len(&self) -> usize {
        self.volumes.lock().unwrap().len()
    }

    pub(super) fn pool(&self) -> PoolId {
        self.pool
    }

    fn wait_at_gate(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.waiting += 1;
        // With a limit: a test that fails must end.
        let (mut gate, _) = self.moved.wait_timeout_while(gate, Duration::from_secs(10), |gate| !gate.open).unwrap();
        gate.waiting -= 1;
    }

    fn with<T>(&self, id: &VolumeId, act: impl FnOnce(&mut Volume) -> T) -> Result<T> {
        let mut volumes = self.volumes.lock().unwrap();
        volumes.get_mut(id).map(act).ok_or_else(|| Error::new(Kind::NotFound, format!("volume {id} does not exist")))
    }
}

fn not_here<T>() -> Result<T> {
    Err(Error::new(Kind::Unsupported, "not in this home"))
}

impl Home for MemoryHome {
    fn node(&self) -> &NodeId {
        &self.node
    }

    fn create_volume(&self, request: &CreateVolume) -> Result<Created<Volume>, Failure> {
        match request.name.as_str() {
            "panics" => panic!("as its name requests"),
            "unfinished" => return Err(Failure::Dirty(Error::new(Kind::NoCapacity, "half of it is there"))),
            "broken" => return Err(Failure::Clean(Error::new(Kind::Internal, "this is unexpected"))),
            slow if slow.starts_with("slow") => self.wait_at_gate(),
            _ => {}
        }
        let id = VolumeId::new(self.pool, ObjectUuid::of_volume(&request.name)).born_on(&self.node);
        let volume = Volume {
            id,
            birth_home: self.node.clone(),
            home: self.node.clone(),
            name: request.name.clone(),
            claim: None,
            size: request.range.required.unwrap_or(Bytes::mib(1)),
            source: request.source,
            published: Vec::new(),
            format: FormatState::Never,
            modes: request.capabilities.iter().map(|one| one.mode).collect(),
            provisioning: Provisioning::Thin,
            created: Timestamp::now(),
            access: Access::Local,
            authentication: Authentication::Auto,
        };
        match self.volumes.lock().unwrap().insert(id, volume.clone()) {
            None => Ok(Created::New(volume)),
            Some(_) => Ok(Created::Existing(volume)),
        }
    }

    fn delete_volume(&self, id: &VolumeId) -> Result<Changed> {
        let gone = self.volumes.lock().unwrap().remove(id);
        Ok(if gone.is_some() { Changed::Yes } else { Changed::No })
    }

    fn volume(&self, id: &VolumeId) -> Result<Volume> {
        self.with(id, |volume| volume.clone())
    }

    fn find_volume(&self, uuid: ObjectUuid) -> Result<Vec<VolumeId>> {
        let id = VolumeId::new(self.pool, uuid);
        Ok(self.volumes.lock().unwrap().contains_key(&id).then_some(id).into_iter().collect())
    }

    fn volumes(&self, after: Option<VolumeId>, limit: usize) -> Result<Page<Volume, VolumeId>> {
        let volumes = self.volumes.lock().unwrap();
        let mut entries: Vec<_> =
            volumes.values().filter(|volume| after.is_none_or(|after| volume.id > after)).cloned().collect();
        let more = limit != 0 && entries.len() > limit;
        if more {
            entries.truncate(limit);
        }
        let next = if more { entries.last().map(|volume| volume.id) } else { None };
        Ok(Page { entries, next })
    }

    fn grant(&self, id: &VolumeId, request: &GrantRequest) -> Result<Granted> {
        self.asked.lock().unwrap().push(request.mode);
        if self.must_be_told && request.mode == RequestedMode::Mount(None) {
            return Err(Error::new(Kind::Unsupported, "filesystem number 0 is missing or unknown to this release"));
        }
        self.with(id, |volume| {
            volume.mode_of(request.mode)?;
            volume.published = vec![request.node.clone()];
            Ok(())
        })??;
        Ok(Granted { home: self.node.clone(), epoch: 1, changed: Changed::Yes })
    }

    fn revoke(&self, id: &VolumeId, _node: Option<&NodeId>) -> Result<Changed> {
        self.with(id, |volume| volume.published.clear()).map(|()| Changed::Yes)
    }

    fn open_for(&self, _id: &VolumeId, _node: &NodeId, _: &Client) -> Result<OpenVolume> {
        not_here()
    }

    fn close(&self, _id: &VolumeId, _node: &NodeId) -> Result<()> {
        not_here()
    }

    fn device_of(&self, _: &VolumeId) -> Result<Option<crate::pool::ActiveDevice>> {
        not_here()
    }

    fn volume_of(&self, _: crate::os::DevNum) -> Result<Option<VolumeId>> {
        not_here()
    }

    fn was_given(&self, _: &VolumeId, _: crate::os::DevNum) -> Result<bool> {
        not_here()
    }

    fn give_view(&self, _: &VolumeId, _: &NodeId, _: &crate::pool::ActiveDevice) -> Result<()> {
        not_here()
    }

    fn begin_format(&self, _id: &VolumeId, _node: &NodeId, _fs: FsType) -> Result<Formatting> {
        not_here()
    }

    fn end_format(&self, _id: &VolumeId, _node: &NodeId, _fs_uuid: Uuid) -> Result<()> {
        not_here()
    }

    fn use_raw(&self, _id: &VolumeId, _node: &NodeId) -> Result<()> {
        not_here()
    }

    fn create_snapshot(&self, _request: &CreateSnapshot) -> Result<Created<Snapshot>, Failure> {
        Err(Failure::Clean(Error::new(Kind::Precondition, "attached")))
    }

    fn delete_snapshot(&self, _id: &SnapshotId) -> Result<Changed> {
        Ok(Changed::No)
    }

    fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot> {
        Err(Error::new(Kind::NotFound, format!("snapshot {id} does not exist")))
    }

    fn find_snapshot(&self, _uuid: ObjectUuid) -> Result<Vec<SnapshotId>> {
        Ok(Vec::new())
    }

    fn snapshots(
        &self,
        _filter: &SnapshotFilter,
        _after: Option<SnapshotId>,
        _limit: usize,
    ) -> Result<Page<Snapshot, SnapshotId>> {
        Ok(Page { entries: Vec::new(), next: None })
    }

    fn expand(&self, id: &VolumeId, range: &CapacityRange) -> Result<Expanded> {
        let size = self.with(id, |volume| {
            volume.size = range.required.unwrap_or(volume.size).max(volume.size);
            volume.size
        })?;
        Ok(Expanded { size, node_expansion: NodeExpansion::Needed, changed: Changed::Yes })
    }

    fn capacity(&self, _query: &CapacityQuery) -> Result<Capacity> {
        Ok(Capacity { available: Bytes::mib(100), largest: Bytes::mib(50), smallest: Bytes::mib(1) })
    }

    fn exports(&self, _: &NodeId, _: PoolId) -> Result<Vec<SubsystemNqn>> {
        Ok(Vec::new())
    }

    fn extents(&self) -> Result<BTreeMap<VolumeId, u64>> {
        Ok(BTreeMap::new())
    }

    fn examine(&self) -> Result<Vec<Finding>> {
        not_here()
    }

    fn readmit(&self, _pool: PoolId) -> Result<Changed> {
        Ok(Changed::No)
    }

    fn report(&self) -> Result<Vec<PoolReport>> {
        Ok(vec![PoolReport {
            id: self.pool,
            name: "default".parse().unwrap(),
            kind: "memory".into(),
            place: String::new(),
            room: FreeSpace { total: Bytes::mib(100), available: Bytes::mib(100), inodes: None, inodes_free: None },
            available: Bytes::mib(100),
            available_thick: None,
            available_thin: Bytes::mib(100),
            default_provisioning: Provisioning::Thin,
            promised: Bytes::ZERO,
            provisioned: Bytes::ZERO,
            volumes: u64::try_from(self.len()).unwrap(),
            snapshots: 0,
            network: Ability::No,
        }])
    }
}
