//! The rules: who may have a volume, when it may be formatted, what fits, what a retry means. One home per node; it
//! alone writes its pools' records.
//!
//! [`Home`] is what the layers above know: [`LocalHome`] in process, later a thin client of the same words over gRPC.
//! All its methods block and finish what they began whether or not anybody still waits (docs/adr/0001).

mod answer;
mod copying;
mod create;
mod delete;
mod detached;
mod device;
mod expand;
mod format;
mod grant;
mod ledger;
mod limits;
mod list;
mod local;
mod locks;
mod part;
mod patient;
mod pools;
mod reading;
pub mod record;
pub mod remote;
mod request;
#[cfg(test)]
mod scenarios;
mod sizes;
mod snapshot;
mod survey;

pub use answer::{
    Capacity, Changed, Coordinates, CopyState, Created, Expanded, Finding, FindingKind, FormatState, Formatting,
    Granted, Health, NodeExpansion, Opened, Page, PoolHealth, PoolReport, Snapshot, Volume,
};
pub use limits::{MinFree, Overcommit, SpaceLimits};
pub use local::{Examiner, LocalHome};
pub use locks::{LockGuard, Locks};
pub use part::Part;
pub use pools::{ConfiguredPool, OpenPool, PoolCondition};
pub use request::{CapacityQuery, CreateSnapshot, CreateVolume, GrantRequest, ReadOnly, SnapshotFilter, Source};
pub use survey::{Survey, survey};

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::os::DevNum;
use crate::pool::ActiveDevice;
use crate::types::{CapacityRange, Failure, FsType, NodeId, ObjectUuid, PoolId, Result, SnapshotId, VolumeId};

/// The node that owns pools, and what it can be asked.
///
/// Errors common to all: `Busy` when another operation on the same object is under way (its name, age and child are
/// in the message); `Unavailable` for a pool that is not here; `NotFound` for an object that is not in its pool.
pub trait Home: Send + Sync {
    /// The node.
    fn node(&self) -> &NodeId;

    /// Makes a volume, or finds that the same request made it before.
    ///
    /// # Errors
    /// `Clean`: `AlreadyExists` (another request made it), `InvalidArgument`, `OutOfRange`, `NotFound` (source, pool),
    /// `NoCapacity`, `Precondition` (source cannot be cloned now). `Dirty` whatever the cause when something may be
    /// left or under way; a copy that runs answers `Dirty(Busy)` with its percentage.
    fn create_volume(&self, request: &CreateVolume) -> Result<Created<Volume>, Failure>;

    /// Deletes a volume; `Changed::No` when it is gone already.
    ///
    /// # Errors
    /// `InUse`, unchanged, while it is granted or its device is held; `Busy` while it is erased or copied from.
    fn delete_volume(&self, id: &VolumeId) -> Result<Changed>;

    /// One volume.
    ///
    /// # Errors
    /// The common ones.
    fn volume(&self, id: &VolumeId) -> Result<Volume>;

    /// The volumes with this uuid, one at most in each pool and in any phase of their lives: whether a name is taken.
    ///
    /// # Errors
    /// `Unavailable` when a pool or a record cannot be read.
    fn find_volume(&self, uuid: ObjectUuid) -> Result<Vec<VolumeId>>;

    /// Volumes in the order of (pool, uuid), after `after`, at most `limit` (0: all).
    ///
    /// # Errors
    /// `Unavailable` when a pool or a record cannot be read: never a partial list.
    fn volumes(&self, after: Option<VolumeId>, limit: usize) -> Result<Page<Volume, VolumeId>>;

    /// Grants a volume to a node (ControllerPublish), or finds the same grant.
    ///
    /// # Errors
    /// `Precondition` naming the node when another node holds it or it cannot be had there, or when it still uses the
    /// volume another way although it was detached; `AlreadyExists` when the same node holds it with another mode or
    /// read-only flag; `Busy` while it is copied.
    fn grant(&self, id: &VolumeId, request: &GrantRequest) -> Result<Granted>;

    /// Takes a node's grant (or all) back; `Changed::No` when there was none. The device is taken away if it is idle. One
    /// that the home node still uses stays until it is unstaged, and keeps the volume from everything but a grant to
    /// that node: see `detached.rs`.
    ///
    /// # Errors
    /// The common ones.
    fn revoke(&self, id: &VolumeId, node: Option<&NodeId>) -> Result<Changed>;

    /// Where a node that holds a grant finds the volume's device now. Idempotent.
    ///
    /// # Errors
    /// `Precondition` when the node holds no grant; `Corrupt` when image and record disagree.
    fn open(&self, id: &VolumeId, node: &NodeId) -> Result<Opened>;

    /// The node has let go of the device (NodeUnstage): it is taken away if idle. Idempotent; a volume that does not
    /// exist any more is success once no device shows it.
    ///
    /// # Errors
    /// `InUse` naming what holds the device.
    fn close(&self, id: &VolumeId, node: &NodeId) -> Result<()>;

    /// The device that shows a volume on this machine now, whether or not its record or its pool is here; proved by the
    /// image behind it.
    ///
    /// # Errors
    /// `Unsupported` of a home on another machine; `Corrupt` when two devices do; `Precondition` when one does that is
    /// not ours; `Internal`, also when the device does not answer.
    fn device_of(&self, id: &VolumeId) -> Result<Option<ActiveDevice>>;

    /// The volume that a device of this machine shows, if it is one of this home's. Opens no device of others.
    ///
    /// # Errors
    /// As [`Home::device_of`].
    fn volume_of(&self, device: DevNum) -> Result<Option<VolumeId>>;

    /// Whether pods of a local raw block volume may have the node of this device, whatever it shows by now: the record says
    /// that it was given out in this boot, or says nothing of a volume that an older release published.
    ///
    /// # Errors
    /// The common ones; `Unsupported` of a home on another machine.
    fn was_given(&self, id: &VolumeId, device: DevNum) -> Result<bool>;

    /// A loop device over a raw volume's own may be in pods that only read, from now on: the record says which it is, as
    /// [`Home::was_given`] answers.
    ///
    /// # Errors
    /// The common ones; `Precondition` when the node has no attachment; `Unsupported` of a home on another machine.
    fn give_view(&self, id: &VolumeId, node: &NodeId, view: &ActiveDevice) -> Result<()>;

    /// Proves the volume blank and records `formatting` (docs/design.md section 8.1); called again in that state, makes it
    /// blank again first (8.3). The caller must not hold the device open: taking it away is the proof that nobody writes.
    ///
    /// # Errors
    /// `Precondition` when blankness cannot be proved, or the volume is raw or formatted: nothing was written.
    fn begin_format(&self, id: &VolumeId, node: &NodeId, fs: FsType) -> Result<Formatting>;

    /// Records `formatted`: the node has found the planned filesystem on the device, complete.
    ///
    /// # Errors
    /// `Precondition` unless the state is `formatting` with this UUID, or `formatted` with it already.
    fn end_format(&self, id: &VolumeId, node: &NodeId, fs_uuid: Uuid) -> Result<()>;

    /// The first use as a raw block device: `never` becomes `raw` for good. Idempotent.
    ///
    /// # Errors
    /// `Precondition` when it carries a filesystem.
    fn use_raw(&self, id: &VolumeId, node: &NodeId) -> Result<()>;

    /// Makes a snapshot, or finds that the same request made it. It may not be ready yet where it is a copy.
    ///
    /// # Errors
    /// As [`Home::create_volume`]; `Precondition` where an attached volume cannot be snapshotted.
    fn create_snapshot(&self, request: &CreateSnapshot) -> Result<Created<Snapshot>, Failure>;

    /// Deletes a snapshot; `Changed::No` when it is gone already.
    ///
    /// # Errors
    /// `Busy` while it is copied from.
    fn delete_snapshot(&self, id: &SnapshotId) -> Result<Changed>;

    /// One snapshot, ready or not.
    ///
    /// # Errors
    /// The common ones.
    fn snapshot(&self, id: &SnapshotId) -> Result<Snapshot>;

    /// The snapshots with this uuid; as [`Home::find_volume`].
    ///
    /// # Errors
    /// As [`Home::find_volume`].
    fn find_snapshot(&self, uuid: ObjectUuid) -> Result<Vec<SnapshotId>>;

    /// Snapshots in the order of (pool, uuid), after `after`, at most `limit` (0: all), that pass the filter.
    ///
    /// # Errors
    /// `Unavailable` when a pool or a record cannot be read: never a partial list.
    fn snapshots(
        &self,
        filter: &SnapshotFilter,
        after: Option<SnapshotId>,
        limit: usize,
    ) -> Result<Page<Snapshot, SnapshotId>>;

    /// Grows a volume to satisfy the range; a size that does already is `Changed::No`. Image and device grow here,
    /// the filesystem on the node.
    ///
    /// # Errors
    /// `OutOfRange` for what can never be; `NoCapacity`, then the size is as before; `Busy` while it is copied.
    fn expand(&self, id: &VolumeId, range: &CapacityRange) -> Result<Expanded>;

    /// What could still be made here.
    ///
    /// # Errors
    /// `InvalidArgument` for a pool name that is ambiguous; an unknown one has no capacity.
    fn capacity(&self, query: &CapacityQuery) -> Result<Capacity>;

    /// Extents of each volume's image, where the pool can tell: what a reflink clone costs. Reads every image's map.
    ///
    /// # Errors
    /// `Internal` when a pool cannot be listed.
    fn extents(&self) -> Result<BTreeMap<VolumeId, u64>>;

    /// Figures of every pool, for metrics, readiness and people. Cheap.
    ///
    /// # Errors
    /// `Internal` when a pool cannot be read.
    fn report(&self) -> Result<Vec<PoolReport>>;

    /// Takes a pool out of the quarantine it was put in when it was declared lost; `Changed::No` when it is in none.
    ///
    /// # Errors
    /// `Unavailable` when it is not here; `NoCapacity`, `Internal` when that cannot be written down.
    fn readmit(&self, pool: PoolId) -> Result<Changed>;

    /// What is wrong in its own pools, for people: what `holdfast doctor` finds there. Changes nothing.
    ///
    /// # Errors
    /// `Unsupported` where nobody looks (in a test); `Internal` when the kernel cannot be asked.
    fn examine(&self) -> Result<Vec<Finding>>;
}
