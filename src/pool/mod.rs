//! Pools store volumes. A pool creates, copies, grows, blanks, activates and removes images. It stores each object's
//! record as bytes that it does not interpret. It knows nothing of CSI and applies no policy: `home` decides, and holds
//! the volume's lock around every call that changes it.
//!
//! A new pool kind is one directory here and one line in [`open`]. What a pool keeps is [`Pool`]; the block devices that
//! it makes of its volumes on this node, if it does, are [`LocalDevices`].

mod file;

#[cfg(test)]
mod contract;
mod spec;

use std::path::PathBuf;
use std::sync::Arc;

pub use file::{Claimed, PoolFile};
pub use spec::{BackingFs, PoolKind, PoolSpec};

use crate::os::{DevNum, ExtentSummary, Os, Timestamp};
use crate::types::{Bytes, Changed, Failure, NodeId, ObjectUuid, PoolId, PoolName, Provisioning, Result};

/// What to do in an empty directory: no pool was ever created there, or its disk is not mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstUse {
    /// Create a pool.
    Make,
    /// Create nothing and wait for the pool. If an id is given, this node served the pool under that id before.
    Wait(Option<PoolId>),
}

/// Opens a pool as its owner and creates it on first use.
///
/// # Errors
/// Those of [`open_or`].
pub fn open(os: &Os, spec: &PoolSpec, home: &NodeId) -> Result<Arc<dyn Pool>> {
    open_or(os, spec, home, FirstUse::Make)
}

/// Opens a pool as its owner.
///
/// # Errors
/// For image files: `NotFound` without the directory; `Unsupported` on a filesystem that no pool may be on;
/// `Precondition` for a directory with other files, and for a pool of another node or name; `InUse` while another
/// process owns it; `Unavailable` where there is no pool and none is to be created, and for a filesystem that fails;
/// `Corrupt` for an incomplete pool; `Internal`.
pub fn open_or(os: &Os, spec: &PoolSpec, home: &NodeId, first: FirstUse) -> Result<Arc<dyn Pool>> {
    match &spec.kind {
        PoolKind::File { root, ground } => Ok(file::FilePool::open(os, &spec.name, root, *ground, home, first)?),
    }
}

/// Opens a pool read-only, whether or not it has an owner: takes no lock and writes nothing. Every method that changes
/// something returns `Unsupported`. The pool that is there may have another name.
///
/// # Errors
/// `NotFound` where there is no pool; `Corrupt`, `Unsupported` when it cannot be read; `Internal`.
pub fn view(os: &Os, spec: &PoolSpec) -> Result<Arc<dyn Pool>> {
    match &spec.kind {
        PoolKind::File { root, .. } => Ok(file::FilePool::view(os, root)?),
    }
}

/// Makes another node the home node of a pool. No process may own the pool meanwhile. An operator uses this after moving
/// the pool's disks.
///
/// # Errors
/// `NotFound` where there is no pool; `InUse` while a process owns it; `Precondition` for a pool with another name;
/// `Corrupt`, `Unsupported` when it cannot be read; `NoCapacity`, `Internal`.
pub fn claim(os: &Os, spec: &PoolSpec, home: &NodeId) -> Result<Claimed> {
    match &spec.kind {
        PoolKind::File { root, .. } => file::FilePool::claim(os, &spec.name, root, home),
    }
}

/// The device of a volume that no pool on this node knows any more. `others` reports whether a device belongs to
/// another pool.
///
/// # Errors
/// Those of `others`; `Internal` when a device cannot be queried.
pub fn orphan(os: &Os, volume: ObjectUuid, others: &dyn Fn(DevNum) -> Result<bool>) -> Result<Option<ActiveDevice>> {
    file::orphan(os, volume, others)
}

/// Detaches the idle devices of a volume that no pool on this node knows any more.
///
/// # Errors
/// `InUse` with the name of a device that is in use; those of [`orphan`].
pub fn clear_orphans(os: &Os, volume: ObjectUuid, others: &dyn Fn(DevNum) -> Result<bool>) -> Result<()> {
    file::clear_orphans(os, volume, others)
}

/// A volume or a snapshot of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Object {
    /// A volume.
    Volume(ObjectUuid),
    /// A snapshot.
    Snapshot(ObjectUuid),
}

impl Object {
    /// Its uuid.
    #[must_use]
    pub fn uuid(self) -> ObjectUuid {
        match self {
            Self::Volume(uuid) | Self::Snapshot(uuid) => uuid,
        }
    }
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Volume(uuid) => write!(f, "volume {uuid}"),
            Self::Snapshot(uuid) => write!(f, "snapshot {uuid}"),
        }
    }
}

/// The version of a stored record. A record is written with the version that it replaces, so that a pool which several
/// processes may write refuses the second of two writers. Where only one process can write, every version is
/// [`Version::ONE_WRITER`], and the lock of the object is enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version(u64);

impl Version {
    /// Of a pool that has one writer.
    pub const ONE_WRITER: Self = Self(0);
}

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Its bytes.
    pub text: Vec<u8>,
    /// The version to write the next one with.
    pub version: Version,
}

impl std::ops::Deref for StoredRecord {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.text
    }
}

/// The type of an [`Object`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// Volumes.
    Volume,
    /// Snapshots.
    Snapshot,
}

/// What identifies a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The pool id, part of every handle.
    pub id: PoolId,
    /// The name that users give it.
    pub name: PoolName,
    /// `file`, later `lvm`, `rbd`.
    pub kind: &'static str,
    /// The node that owns it.
    pub home: NodeId,
    /// Its location for messages: the root directory of a file pool.
    pub place: String,
}

/// What a pool supports. Differences between pool kinds and filesystems come from here, never from their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// How a snapshot or clone is created.
    pub cloning: Cloning,
    /// The logical block size of its devices, bytes.
    pub block_size: u32,
    /// Sizes of volumes are multiples of this.
    pub growth_unit: Bytes,
    /// Whether the pool supports thick volumes.
    pub thick: Ability,
    /// Whether the pool supports thin volumes.
    pub thin: Ability,
    /// The default for a StorageClass without `provisioning`.
    pub default_provisioning: Provisioning,
    /// Whether volumes can be exported to other nodes: [`LocalDevices::set_stable`] was measured to keep every
    /// acknowledged write through a loss of power.
    pub stable: Ability,
}

/// Whether something is supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// Supported.
    Yes,
    /// Not supported.
    No,
}

/// How volumes are cloned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloning {
    /// In one atomic step that shares the data. The source may be in use.
    Instant {
        /// If the source has more extents than this, the clone is rejected, because it would block writes for too long.
        max_extents: u64,
    },
    /// By copying. The source must not be attached while it is copied.
    Copy,
    /// Not at all: there are no snapshots and no clones.
    None,
}

impl Cloning {
    /// The word for people and in reports.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Instant { .. } => "reflink",
            Self::Copy => "copy",
            Self::None => "none",
        }
    }
}

/// The properties that a volume's image must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Length in bytes: a multiple of 1 MiB.
    pub size: Bytes,
    /// Logical block size of the device, in bytes.
    pub block_size: u32,
    /// Whether all space is allocated at creation.
    pub provisioning: Provisioning,
}

/// The initial content of a new image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Nothing: no block was ever written.
    Blank,
    /// The current content of another object, sharing its data. Only with [`Cloning::Instant`].
    Clone(Object),
}

/// The free space of the filesystem or volume group that holds a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeSpace {
    /// Total bytes.
    pub total: Bytes,
    /// Bytes that can still be allocated.
    pub available: Bytes,
    /// Total inodes; `None` if the filesystem does not limit them.
    pub inodes: Option<u64>,
    /// Free inodes; `None` if the filesystem does not limit them.
    pub inodes_free: Option<u64>,
}

/// Properties of an image that need no read of its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    /// Its length.
    pub size: Bytes,
    /// Allocated bytes, including shared ones.
    pub allocated: Bytes,
}

/// Whether an image holds data. The pool derives this from the allocation, never from reading the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blankness {
    /// Nothing was written since the image was created or blanked: it has only holes and unwritten extents.
    Proven,
    /// There is data, or the pool cannot tell. The first data is at this offset.
    DataAt(u64),
}

/// A volume's device on this node. The path is for messages and mount(2); the number and the sequence number identify
/// the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveDevice {
    /// Its path, for example `/dev/loop3`.
    pub path: PathBuf,
    /// Its device number.
    pub number: DevNum,
    /// The kernel's sequence number of this attachment (BLKGETDISKSEQ); `None` before Linux 5.15.
    pub diskseq: Option<u64>,
}

/// The result of a deactivation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deactivated {
    /// No device is backed by the image. This was verified afterwards.
    Gone,
    /// Another process has the device open or mounted. The device is unchanged, and the image must not be modified.
    Held,
}

/// Whether each write is durable before it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stable {
    /// Each write is.
    Yes,
    /// Only what was flushed is.
    No,
}

/// Receives the progress of a copy or an erase, and can stop it.
pub trait Progress: Send + Sync {
    /// `done` of `total` bytes are durable. [`Continue::No`] stops the work after this step.
    fn step(&self, done: Bytes, total: Bytes) -> Continue;
}

/// Whether to continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continue {
    /// Continue.
    Yes,
    /// Stop. What is done stays done.
    No,
}

/// Something in a pool's storage that no record explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// What it is.
    pub kind: StrayKind,
    /// What was found, as text for a person.
    pub what: String,
    /// Its location.
    pub place: String,
    /// The command or action that resolves it.
    pub remedy: String,
}

/// The kind of a [`Stray`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrayKind {
    /// It does not belong there.
    Foreign,
    /// An object without its image.
    Missing,
    /// Work in progress, or remnants of interrupted work, which [`Pool::sweep`] removes.
    Unfinished,
}

/// Storage for volumes.
///
/// All calls block. Each call is idempotent: repeated after a crash or error with the same arguments, it reaches the
/// same result as one undisturbed call. The caller serialises calls for the same object.
pub trait Pool: Send + Sync {
    /// What identifies the pool.
    fn identity(&self) -> &Identity;

    /// Whether the pool is still at the path where it was opened, and is the same pool. Cheap: called before each
    /// answer that concerns the pool.
    ///
    /// # Errors
    /// `Unavailable` when the pool disappeared, was moved, was hidden by a mount, or was replaced. The error names the
    /// pool and the next step.
    fn present(&self) -> Result<()>;

    /// Reopens a pool that [`Pool::present`] found missing, if it is back. Until then the pool is closed, so that its
    /// filesystem can be unmounted and mounted again.
    ///
    /// # Errors
    /// `Unavailable` while the pool is not there.
    fn find_again(&self) -> Result<()>;

    /// The time since which the pool is in quarantine because it was declared lost; see docs/design.md section 10.
    fn quarantined(&self) -> Option<Timestamp>;

    /// Puts the pool in quarantine, or readmits it, durably. The state moves with the pool to other nodes.
    ///
    /// # Errors
    /// `NoCapacity`, `Internal`. The state is then unchanged, unless only the last fsync failed.
    fn set_quarantine(&self, since: Option<Timestamp>) -> Result<()>;

    /// What the pool supports.
    fn abilities(&self) -> Abilities;

    /// The free space now.
    ///
    /// # Errors
    /// `Internal` when the system call fails.
    fn room(&self) -> Result<FreeSpace>;

    /// The uuids of all objects of a class whose name exists, sorted. An object without a record is included;
    /// [`Pool::read_record`] then reports the error.
    ///
    /// # Errors
    /// `Internal` when the directory cannot be read.
    fn list(&self, class: ObjectKind) -> Result<Vec<ObjectUuid>>;

    /// The first `most` of [`Pool::list`] after `after`.
    ///
    /// # Errors
    /// Those of [`Pool::list`].
    fn list_after(&self, class: ObjectKind, after: Option<ObjectUuid>, most: usize) -> Result<Vec<ObjectUuid>>;

    /// An object's record and its version; `None` when the object does not exist.
    ///
    /// # Errors
    /// `Internal` when it cannot be read; `Corrupt` when the object exists without a record.
    fn read_record(&self, object: Object) -> Result<Option<StoredRecord>>;

    /// Replaces an object's record durably: after a crash the old or the new record is there. The pool reserves space
    /// for this, so that it works in a full pool too. `replaces` is the version that was read; returns the new one.
    ///
    /// # Errors
    /// `Busy` when another process has written since; `NotFound` when the object does not exist; `NoCapacity`, `Internal` when the record was not written. The old
    /// record is then in place, unless only the last fsync failed.
    fn write_record(&self, object: Object, record: &[u8], replaces: Version) -> Result<Version>;

    /// Creates an object: first its data, durably, then its record, then its name, durably. It is invisible until the
    /// last step.
    ///
    /// Remnants of an earlier attempt are removed first. The caller must not call it for an object that exists. With
    /// `Fill::Clone` of a smaller source, the rest is blank. Thick images are fully allocated, whatever the fill.
    ///
    /// # Errors
    /// `Failure::Clean` when nothing of the object is left; `Failure::Dirty` when the cleanup failed. `NoCapacity` when
    /// it does not fit; `AlreadyExists` when it exists; `OutOfRange` for a size that the pool can never hold or that is
    /// below the source's; `Unsupported` for a fill or provisioning that the pool does not support; `NotFound` when the
    /// source does not exist; `Precondition` when the source has too many extents to be cloned.
    fn create(&self, object: Object, geometry: &Geometry, fill: Fill, record: &[u8]) -> Result<(), Failure>;

    /// Copies the data of `from` into the blank image `to`, starting at byte `start`. Holes stay holes. The data is
    /// durable before each [`Progress::step`]. Returns early without an error when `progress` stops it.
    ///
    /// # Errors
    /// `NoCapacity`, `Internal`. What was reported as done is done.
    fn copy(&self, from: Object, to: Object, start: Bytes, progress: &dyn Progress) -> Result<()>;

    /// Overwrites an image with zeroes, starting at byte `start`, durably. Returns early without an error when
    /// `progress` stops it.
    ///
    /// # Errors
    /// `Internal`. What was reported as done is done.
    fn erase(&self, object: Object, start: Bytes, progress: &dyn Progress) -> Result<()>;

    /// Removes an object: first its name (durably), then its data. Succeeds if the object does not exist.
    ///
    /// # Errors
    /// `InUse`, with nothing changed, while a device is backed by it; `Internal`. After an error the object is complete
    /// or has no name.
    fn remove(&self, object: Object) -> Result<()>;

    /// Removes temporary files and the trash. The owner calls it at start.
    ///
    /// # Errors
    /// `Internal`. The rest is removed by the next call.
    fn sweep(&self) -> Result<()>;

    /// Properties of an image that need no read of its data; `None` when the object or its image does not exist.
    ///
    /// # Errors
    /// `Internal`.
    fn facts(&self, object: Object) -> Result<Option<ImageFacts>>;

    /// Its extents: exclusive, shared, unwritten. Takes time for each extent.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` where the filesystem does not report extents; `Internal`.
    fn extents(&self, object: Object) -> Result<ExtentSummary>;

    /// The number of its image's extents, without listing them.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` where the filesystem does not report extents; `Internal`.
    fn extent_count(&self, object: Object) -> Result<u64>;

    /// Whether a volume's image is blank, from its allocation (docs/design.md section 8.1). The caller ensures that no
    /// writes are in flight.
    ///
    /// # Errors
    /// `NotFound`, `Internal`. The caller must treat an error as "not blank".
    fn blankness(&self, volume: ObjectUuid) -> Result<Blankness>;

    /// Makes a volume's image blank again; a thick image stays thick. Only for an image that backs no device.
    ///
    /// # Errors
    /// `NotFound`, `InUse`, `Internal`.
    fn blank(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<()>;

    /// Extends an image to at least this geometry: its length, and for a thick image its allocation. Never shrinks it.
    /// Also repairs holes in a thick image.
    ///
    /// # Errors
    /// `NoCapacity`: the image may be longer or have more allocated space than before, but its data is unchanged.
    /// `Internal`.
    fn grow(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<()>;

    /// The block devices that this pool makes of its volumes on this node; `None` for a pool whose volumes are attached
    /// over a network.
    fn devices(&self) -> Option<&dyn LocalDevices>;

    /// The same pool, opened again as [`view`] does: a disk that hangs then blocks only that reader.
    ///
    /// # Errors
    /// Those of [`view`].
    fn view(&self) -> Result<Arc<dyn Pool>>;

    /// The location of an object, for messages: the directory of a file pool's object.
    fn locate(&self, object: Object) -> String;

    /// Everything in the pool's storage that no record explains. Reads only.
    ///
    /// # Errors
    /// `Internal`.
    fn strays(&self) -> Result<Vec<Stray>>;
}

/// The block devices of a pool's volumes on this node. All calls block and are idempotent; the caller serialises calls
/// for the same volume.
pub trait LocalDevices: Send + Sync {
    /// Attaches a volume as a block device on this node; returns the same device if it is active already. Verifies
    /// size, block size and direct I/O of the new device, and detaches it when one of them differs.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` when the image is shorter than the geometry or backs two devices; `Precondition` when it
    /// backs a device that Holdfast did not attach, or when the pool's storage does not support direct I/O; `InUse`
    /// when its device differs from the geometry and is in use; `Internal`.
    fn activate(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<ActiveDevice>;

    /// The device that the volume's image backs now, if any.
    ///
    /// # Errors
    /// `Corrupt` when there are two; `Precondition` when Holdfast did not attach it; `Internal`.
    fn active(&self, volume: ObjectUuid) -> Result<Option<ActiveDevice>>;

    /// The volume whose image backs a device of this machine, if it is one of this pool's. Opens no device of other
    /// software.
    ///
    /// # Errors
    /// `Internal`, also when the device cannot be queried.
    fn volume_of(&self, device: DevNum) -> Result<Option<ObjectUuid>>;

    /// Records that a pod may have this device, from this or an earlier run of the driver in the same boot. No other
    /// volume gets its number until [`LocalDevices::disclaim`]. The device counts as attached by Holdfast, whatever was
    /// changed on it.
    ///
    /// # Errors
    /// `Internal` when the device cannot be looked up.
    fn claim(&self, volume: ObjectUuid, device: &ActiveDevice) -> Result<()>;

    /// Records that no pod can have the device any more.
    fn disclaim(&self, volume: ObjectUuid);

    /// The devices that this pool's images back, each with its volume, whether or not the volume has a record.
    ///
    /// # Errors
    /// `Internal`. A device that cannot be queried is left out; [`Pool::strays`] reports it.
    fn all(&self) -> Result<Vec<(ObjectUuid, ActiveDevice)>>;

    /// Sets the size of an active device to the size of its image. Does nothing when it is not active.
    ///
    /// # Errors
    /// `Internal`, also when the device does not have the size afterwards.
    fn resize(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<()>;

    /// Makes every write to the volume's device durable before it is acknowledged, or no longer. Needed while another
    /// node uses the device: it sends only writes in flight again, so what was acknowledged and not durable would be
    /// lost without an error. Verified, and repeated before each use: nothing else keeps it.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` where the pool cannot do it; `Internal`.
    fn set_stable(&self, volume: ObjectUuid, stable: Stable) -> Result<Changed>;

    /// Whether each write to the volume's device is durable before it is acknowledged.
    ///
    /// # Errors
    /// `NotFound`, `Internal`.
    fn stable(&self, volume: ObjectUuid) -> Result<Stable>;

    /// Detaches a volume's device if it is not in use, and verifies this. Also works without image and record.
    ///
    /// # Errors
    /// `Precondition` when the image backs a device that Holdfast did not attach; `Internal`.
    fn deactivate(&self, volume: ObjectUuid) -> Result<Deactivated>;
}
