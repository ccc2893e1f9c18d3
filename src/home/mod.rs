//! The rules of a home node: which node may use a volume, when it may be formatted, what fits, how retries work. There
//! is one home node per machine, and only it writes its pools' records.
//!
//! [`Home`] is the interface for the layers above: [`LocalHome`] in this process, or a client of the same calls over
//! gRPC. All its methods block and finish what they began, whether or not a caller still waits (docs/adr/0001).

mod answer;
mod attached;
mod attachment;
mod authentication;
mod copies;
mod copying;
mod create;
mod delete;
mod detached;
mod device;
mod examine;
mod expand;
mod export;
mod fabric;
mod fence;
mod figures;
mod format;
mod ledger;
mod limits;
mod list;
mod load;
mod local;
mod locks;
mod open;
mod part;
mod patient;
mod pools;
pub mod record;
mod release;
pub mod remote;
mod request;
#[cfg(test)]
mod scenarios;
mod sizes;
mod slot;
mod snapshot;
mod state;
mod survey;
mod view;

pub use crate::types::Changed;
pub use answer::{
    Capacity, CopyState, Created, DeviceAddress, Expanded, Finding, FindingKind, FormatState, Formatting, Granted,
    Health, NodeExpansion, OpenVolume, Page, PoolHealth, PoolReport, Snapshot, Volume,
};
pub use examine::examine;
pub use fabric::Fabric;
pub use limits::{MinFree, Overcommit, SpaceLimits};
pub use local::LocalHome;
pub use locks::{LockGuard, Locks};
pub use part::Part;
pub use pools::PoolCondition;
pub use request::{
    CapacityQuery, Client, Connection, ConnectionState, CreateSnapshot, CreateVolume, GrantRequest, ReadOnly, Renaming,
    SnapshotFilter, Source,
};
pub use slot::{ConfiguredPool, OpenPool};
pub use survey::{Survey, survey};
pub use view::{Kernel, PoolView, unseen_by_kubelet};

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::os::DevNum;
use crate::pool::ActiveDevice;
use crate::types::{
    CapacityRange, Failure, FsType, NodeId, ObjectUuid, PoolId, Result, SnapshotId, SubsystemNqn, VolumeId,
};

/// Finds the home of a pool's volumes: a node uses volumes of its own pools, and may use those of others.
pub trait Homes: Send + Sync {
    /// The home that serves a pool.
    ///
    /// # Errors
    /// `Unavailable` when none is known or it cannot be reached from here.
    fn of(&self, pool: PoolId) -> Result<Arc<dyn Home>>;
}

/// The node that owns pools, and its operations.
///
/// Errors of all methods: `Busy` while another operation on the same object is running (the message has its name, age
/// and child process); `Unavailable` for a pool that is not served here; `NotFound` for an object that is not in its
/// pool.
pub trait Home: Send + Sync {
    /// The node.
    fn node(&self) -> &NodeId;

    /// Creates a volume, or finds that the same request created it before.
    ///
    /// # Errors
    /// `Clean`: `AlreadyExists` (another request created it), `InvalidArgument`, `OutOfRange`, `NotFound` (source,
    /// pool), `NoCapacity`, `Unsupported` (the pool cannot have such volumes; one of another home node may),
    /// `Precondition` (the source cannot be cloned now). `Dirty`, whatever the cause, when something may be left or
    /// running; a running copy returns `Dirty(Busy)` with its percentage.
    fn create_volume(&self, request: &CreateVolume) -> Result<Created<Volume>, Failure>;

    /// Deletes a volume; `Changed::No` when it does not exist.
    ///
    /// # Errors
    /// `InUse`, with nothing changed, while it is attached or its device is in use; `Busy` while it is erased or is the
    /// source of a copy.
    fn delete_volume(&self, id: &VolumeId) -> Result<Changed>;

    /// One volume.
    ///
    /// # Errors
    /// Those of all methods.
    fn volume(&self, id: &VolumeId) -> Result<Volume>;

    /// The volumes with this uuid, at most one in each pool, in any state: whether a name is in use.
    ///
    /// # Errors
    /// `Unavailable` when a pool or a record cannot be read.
    fn find_volume(&self, uuid: ObjectUuid) -> Result<Vec<VolumeId>>;

    /// Volumes in the order of (pool, uuid), after `after`, at most `limit` (0: all).
    ///
    /// # Errors
    /// `Unavailable` when a pool or a record cannot be read: never a partial list.
    fn volumes(&self, after: Option<VolumeId>, limit: usize) -> Result<Page<Volume, VolumeId>>;

    /// Attaches a volume to a node (ControllerPublishVolume), or finds the same attachment.
    ///
    /// # Errors
    /// `Precondition`, naming the node, when the volume is attached to another node or cannot be used on the requested
    /// one, or when it is detached but its node still uses it in another way; `AlreadyExists` when it is attached to
    /// the same node with another mode or read-only flag; `Busy` while it is copied.
    fn grant(&self, id: &VolumeId, request: &GrantRequest) -> Result<Granted>;

    /// Removes the attachment of a node (or of all nodes); `Changed::No` when there was none. An idle device is
    /// detached. A device that the home node still uses stays until it is unstaged. Until then the volume can only be
    /// attached to that node again: see `detached.rs`.
    ///
    /// # Errors
    /// Those of all methods.
    fn revoke(&self, id: &VolumeId, node: Option<&NodeId>) -> Result<Changed>;

    /// The location of the volume's device for a node that the volume is attached to. Idempotent. For another node
    /// without a live connection the export gets new names, after nothing of its earlier connections is in flight any
    /// more: what they sent must not arrive under a mount that is made later.
    ///
    /// # Errors
    /// `Precondition` when it is not attached to the node; `Corrupt` when image and record disagree; `Busy` when
    /// requests of an earlier connection do not end.
    fn open_for(&self, id: &VolumeId, node: &NodeId, client: &Client) -> Result<OpenVolume>;

    /// The same for a node without connections.
    ///
    /// # Errors
    /// Those of [`Home::open_for`].
    fn open(&self, id: &VolumeId, node: &NodeId) -> Result<OpenVolume> {
        self.open_for(id, node, &Client::default())
    }

    /// The node has unstaged the volume: its device is detached if idle. Idempotent. For a volume that does not exist
    /// any more it succeeds when no device is left.
    ///
    /// # Errors
    /// `InUse`, naming the users of the device.
    fn close(&self, id: &VolumeId, node: &NodeId) -> Result<()>;

    /// The exports of a pool that a node may use now: those of its attachments. A node that was cut off finds out here
    /// that an attachment was removed.
    ///
    /// # Errors
    /// Never a partial list: `Unavailable` when the pool is not served or a record cannot be read; `Precondition` from a
    /// home node that was started without exports, while the kernel may still have some; `Unsupported` from one of a
    /// release without exports.
    fn exports(&self, node: &NodeId, pool: PoolId) -> Result<Vec<SubsystemNqn>>;

    /// The device of a volume on this machine now, whether or not its record or its pool is here. The image behind the
    /// device proves it.
    ///
    /// # Errors
    /// `Unsupported` for a home node on another machine; `Corrupt` when there are two devices; `Precondition` when
    /// Holdfast did not attach it; `Internal`, also when the device cannot be queried.
    fn device_of(&self, id: &VolumeId) -> Result<Option<ActiveDevice>>;

    /// The volume whose image backs a device of this machine, if it is one of this home node's. Opens no device of
    /// other software.
    ///
    /// # Errors
    /// As [`Home::device_of`].
    fn volume_of(&self, device: DevNum) -> Result<Option<VolumeId>>;

    /// Whether pods of a local raw block volume may have this device, whatever backs it now. The record says that it
    /// was handed out in this boot, or says nothing because an older release published the volume.
    ///
    /// # Errors
    /// Those of all methods; `Unsupported` for a home node on another machine.
    fn was_given(&self, id: &VolumeId, device: DevNum) -> Result<bool>;

    /// Records that read-only pods may have a loop device over a raw volume's own device from now on;
    /// [`Home::was_given`] reads this.
    ///
    /// # Errors
    /// Those of all methods; `Precondition` when the volume is not attached to the node; `Unsupported` for a home node
    /// on another machine.
    fn give_view(&self, id: &VolumeId, node: &NodeId, view: &ActiveDevice) -> Result<()>;

    /// Proves that the volume is blank and records `formatting` (docs/design.md section 8.1). Called again in that
    /// state, it first makes the volume blank again (8.3). The caller must not have the device open: detaching it
    /// proves that no process writes to it.
    ///
    /// # Errors
    /// `Precondition` when the volume is not provably blank, or is raw or formatted: nothing was written.
    fn begin_format(&self, id: &VolumeId, node: &NodeId, fs: FsType) -> Result<Formatting>;

    /// Records `formatted`: the node found the planned filesystem on the device, complete.
    ///
    /// # Errors
    /// `Precondition` unless the state is `formatting` with this UUID, or `formatted` with it already.
    fn end_format(&self, id: &VolumeId, node: &NodeId, fs_uuid: Uuid) -> Result<()>;

    /// The first use as a raw block device: `never` becomes `raw` permanently. Idempotent.
    ///
    /// # Errors
    /// `Precondition` when it contains a filesystem.
    fn use_raw(&self, id: &VolumeId, node: &NodeId) -> Result<()>;

    /// Creates a snapshot, or finds that the same request created it. A snapshot that is a copy may not be ready yet.
    ///
    /// # Errors
    /// As [`Home::create_volume`]; `Precondition` where an attached volume cannot be snapshotted.
    fn create_snapshot(&self, request: &CreateSnapshot) -> Result<Created<Snapshot>, Failure>;

    /// Deletes a snapshot; `Changed::No` when it does not exist.
    ///
    /// # Errors
    /// `Busy` while it is the source of a copy.
    fn delete_snapshot(&self, id: &SnapshotId) -> Result<Changed>;

    /// One snapshot, ready or not.
    ///
    /// # Errors
    /// Those of all methods.
    fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot>;

    /// The snapshots with this uuid; as [`Home::find_volume`].
    ///
    /// # Errors
    /// As [`Home::find_volume`].
    fn find_snapshot(&self, uuid: ObjectUuid) -> Result<Vec<SnapshotId>>;

    /// Snapshots that pass the filter, in the order of (pool, uuid), after `after`, at most `limit` (0: all).
    ///
    /// # Errors
    /// `Unavailable` when a pool or a record cannot be read: never a partial list.
    fn snapshots(
        &self,
        filter: &SnapshotFilter,
        after: Option<SnapshotId>,
        limit: usize,
    ) -> Result<Page<Snapshot, SnapshotId>>;

    /// Grows a volume to satisfy the range; `Changed::No` if its size already does. Grows image and device here; the
    /// node grows the filesystem.
    ///
    /// # Errors
    /// `OutOfRange` for an impossible size; `NoCapacity`, with the size unchanged; `Busy` while it is copied.
    fn expand(&self, id: &VolumeId, range: &CapacityRange) -> Result<Expanded>;

    /// The capacity for new volumes on this node.
    ///
    /// # Errors
    /// `InvalidArgument` for an ambiguous pool name; an unknown pool has no capacity.
    fn capacity(&self, query: &CapacityQuery) -> Result<Capacity>;

    /// The extents of each volume's image, where the pool reports them: the cost of an instant clone. Reads every
    /// image's map.
    ///
    /// # Errors
    /// `Internal` when a pool cannot be listed.
    fn extents(&self) -> Result<BTreeMap<VolumeId, u64>>;

    /// Figures of every pool, for metrics, readiness and display. Cheap.
    ///
    /// # Errors
    /// `Internal` when a pool cannot be read.
    fn report(&self) -> Result<Vec<PoolReport>>;

    /// Takes a pool out of quarantine; `Changed::No` when it is not in quarantine.
    ///
    /// # Errors
    /// `Unavailable` when it is not served here; `NoCapacity`, `Internal` when the change cannot be stored.
    fn readmit(&self, pool: PoolId) -> Result<Changed>;

    /// The problems in its own pools, as `holdfast doctor` reports them. Changes nothing.
    ///
    /// # Errors
    /// `Internal` when the state of the kernel cannot be read. A pool that cannot be read is a finding.
    fn examine(&self) -> Result<Vec<Finding>>;
}
