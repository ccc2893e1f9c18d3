//! Pools: where volumes are carved from. A pool makes, copies, grows, blanks, activates and removes images, and
//! keeps each one's record as bytes it does not read. It knows no CSI and no rules: `home` decides, and holds the
//! volume's lock around every call that changes it.
//!
//! A new pool kind is one folder here and one line in [`open`].

pub mod file;

#[cfg(test)]
mod contract;
#[cfg(test)]
pub(crate) mod scratch;
mod spec;

use std::path::PathBuf;
use std::sync::Arc;

pub use spec::{Ground, PoolKind, PoolSpec};

use crate::os::{DevNum, ExtentSummary, Os, Timestamp};
use crate::types::{Bytes, Failure, NodeId, ObjectUuid, PoolId, PoolName, Provisioning, Result};

/// Opens a pool as its owner, making it on first use.
///
/// # Errors
/// What the kind's own `open` says: for image files [`file::FilePool::open`].
pub fn open(os: &Os, spec: &PoolSpec, home: &NodeId) -> Result<Arc<dyn Pool>> {
    match &spec.kind {
        PoolKind::File { root, ground } => Ok(file::FilePool::open(os, &spec.name, root, *ground, home)?),
    }
}

/// The device of a volume that no pool here knows any more. `others` says of a device whether it is another pool's.
///
/// # Errors
/// Those of `others`; `Internal` when a device does not answer.
pub fn orphan(os: &Os, volume: ObjectUuid, others: &dyn Fn(DevNum) -> Result<bool>) -> Result<Option<ActiveDevice>> {
    file::orphan(os, volume, others)
}

/// Takes away the idle devices of a volume that no pool here knows any more.
///
/// # Errors
/// `InUse` naming one that is held; those of [`orphan`].
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

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Volumes.
    Volume,
    /// Snapshots.
    Snapshot,
}

/// Who a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its own id, part of every handle.
    pub id: PoolId,
    /// What people call it.
    pub name: PoolName,
    /// `file`, later `lvm`, `rbd`.
    pub kind: &'static str,
    /// The node that owns it.
    pub home: NodeId,
    /// Where it is, for messages: a file pool's root directory.
    pub place: String,
}

/// What a pool can do. Differences between kinds and filesystems come from here, never from names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// How a snapshot or clone comes to be.
    pub cloning: Cloning,
    /// Whether thick volumes can be made (btrfs: no).
    pub thick: Ability,
    /// What a class without `provisioning` gets.
    pub default_provisioning: Provisioning,
}

/// Yes or no, said in a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// It can.
    Yes,
    /// It cannot.
    No,
}

/// How images are cloned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloning {
    /// In one atomic step that shares the extents; the source may be in use.
    Reflink {
        /// More extents than this in the source and the clone is refused: it holds up writes for too long.
        max_extents: u64,
    },
    /// By copying; the source must not be attached meanwhile.
    Copy,
}

/// What a volume's image must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Length, bytes: a whole number of MiB.
    pub size: Bytes,
    /// Logical block size of its device, bytes.
    pub block_size: u32,
    /// Whether its space is all taken from the start.
    pub provisioning: Provisioning,
}

/// What a new image begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Nothing: blank by allocation.
    Blank,
    /// The content of another object at this moment, by reflink. Only where [`Cloning::Reflink`].
    Clone(Object),
}

/// The room of the filesystem or group a pool lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// All bytes.
    pub total: Bytes,
    /// Bytes that can still be taken.
    pub available: Bytes,
    /// All inodes, `None` where they are not limited.
    pub inodes: Option<u64>,
    /// Free inodes, `None` where they are not limited.
    pub inodes_free: Option<u64>,
}

/// What is known of an image without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    /// Its length.
    pub size: Bytes,
    /// Bytes of storage behind it, shared ones included.
    pub allocated: Bytes,
}

/// Whether an image holds any data, told from its allocation and never from reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blankness {
    /// Nothing was ever written since it was made or blanked: holes and unwritten extents only.
    Proven,
    /// There is data, or the pool cannot tell; the first of it lies at this offset.
    DataAt(u64),
}

/// A volume's device on this node. The path is for people and for mount(2); number and sequence are what it is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveDevice {
    /// Its path, such as `/dev/loop3`.
    pub path: PathBuf,
    /// Its device number.
    pub number: DevNum,
    /// The kernel's number of this attachment (BLKGETDISKSEQ); `None` before Linux 5.15.
    pub diskseq: Option<u64>,
}

/// How a deactivation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deactivated {
    /// No device shows the image: proved after the fact.
    Gone,
    /// Somebody holds the device open or mounted; it was left as it is and the image must not be touched.
    Held,
}

/// Follows a copy or an erase, and can stop it.
pub trait Progress: Send + Sync {
    /// `done` of `total` bytes are durable; false stops the work after this piece.
    fn step(&self, done: Bytes, total: Bytes) -> Continue;
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continue {
    /// Go on.
    Yes,
    /// Stop here; what is done stays done.
    No,
}

/// Something in a pool's place that no record explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stray {
    /// Whether an image is missing, rather than something there that should not be.
    pub missing: bool,
    /// What it is, in words.
    pub what: String,
    /// Where it is.
    pub place: String,
    /// The command or act that settles it.
    pub remedy: String,
}

/// A place volumes are carved from.
///
/// All calls block. Each is idempotent: called again after any crash or error with the same arguments it ends as one
/// undisturbed call would. The caller serialises calls on the same object.
pub trait Pool: Send + Sync {
    /// Who it is.
    fn identity(&self) -> &Identity;

    /// Since when it is kept out of use because a human declared it lost; see docs/design.md section 10.
    fn quarantined(&self) -> Option<Timestamp>;

    /// Puts it in quarantine, or readmits it, durably: with the pool it moves to other nodes.
    ///
    /// # Errors
    /// `NoCapacity`, `Internal`; then it is as before, unless only the last fsync failed.
    fn set_quarantine(&self, since: Option<Timestamp>) -> Result<()>;

    /// What it can do.
    fn abilities(&self) -> Abilities;

    /// How much room there is now.
    ///
    /// # Errors
    /// `Internal` when the system cannot tell.
    fn room(&self) -> Result<Room>;

    /// The uuids of all objects of a class that have a name in place, sorted: also of one whose record is missing, which
    /// [`Pool::read_record`] then says.
    ///
    /// # Errors
    /// `Internal` when the place cannot be read.
    fn list(&self, class: Class) -> Result<Vec<ObjectUuid>>;

    /// The first `most` of [`Pool::list`] after `after`.
    ///
    /// # Errors
    /// Those of [`Pool::list`].
    fn list_after(&self, class: Class, after: Option<ObjectUuid>, most: usize) -> Result<Vec<ObjectUuid>>;

    /// An object's record; `None` when the object does not exist.
    ///
    /// # Errors
    /// `Internal` when it cannot be read; `Corrupt` when the object is there without a record.
    fn read_record(&self, object: Object) -> Result<Option<Vec<u8>>>;

    /// Replaces an object's record durably, old or new after a crash. Room for that is held ready, so a pool that is
    /// full of other things replaces records all the same.
    ///
    /// # Errors
    /// `NotFound` when the object does not exist; `NoCapacity`, `Internal` when it could not be written: the
    /// old record is then in place, unless only the last fsync failed.
    fn write_record(&self, object: Object, record: &[u8]) -> Result<()>;

    /// Makes an object: data, durable, then its record, then its name, durable. Invisible until the last step.
    ///
    /// Left-overs of an earlier try are removed first. An object that is there already is an error of the caller.
    /// `Fill::Clone` of a smaller source leaves the rest blank. Thick images are allocated whole, whatever the fill.
    ///
    /// # Errors
    /// `Failure::Clean` when nothing is left, and the place is as before; `Failure::Dirty` when undoing failed.
    /// `NoCapacity` when it does not fit; `AlreadyExists` when it is there; `OutOfRange` for a size the pool can never
    /// hold or one below the source's; `Unsupported` for a fill or provisioning the pool cannot serve; `NotFound` when
    /// the source does not exist; `Precondition` when it has too many extents to be cloned.
    fn create(&self, object: Object, geometry: &Geometry, fill: Fill, record: &[u8]) -> Result<(), Failure>;

    /// Copies the data of `from` into the blank image `to`, from byte `start` on, holes staying holes; made durable
    /// before each [`Progress::step`]. Ends early, without an error, when told to.
    ///
    /// # Errors
    /// `NoCapacity`, `Internal`; what was reported done is done.
    fn copy(&self, from: Object, to: Object, start: Bytes, progress: &dyn Progress) -> Result<()>;

    /// Overwrites an image with zeroes from byte `start` on, durably. Ends early, without an error, when told to.
    ///
    /// # Errors
    /// `Internal`; what was reported done is done.
    fn erase(&self, object: Object, start: Bytes, progress: &dyn Progress) -> Result<()>;

    /// Removes an object: its name first (durable), then its data. Gone already is success.
    ///
    /// # Errors
    /// `InUse`, unchanged, while a device shows it; `Internal`. After one the object is whole or without a name.
    fn remove(&self, object: Object) -> Result<()>;

    /// Removes what never had a name or has none any more: temporaries and the trash. Called by the owner at start.
    ///
    /// # Errors
    /// `Internal`; the rest is left for the next time.
    fn sweep(&self) -> Result<()>;

    /// What is known of an image without reading it; `None` when the object or its image does not exist.
    ///
    /// # Errors
    /// `Internal`.
    fn facts(&self, object: Object) -> Result<Option<ImageFacts>>;

    /// Its extents: exclusive, shared, unwritten. Costs time per extent.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` where the pool cannot tell; `Internal`.
    fn extents(&self, object: Object) -> Result<ExtentSummary>;

    /// How many extents its image has, without listing them.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` where the pool cannot tell; `Internal`.
    fn extent_count(&self, object: Object) -> Result<u64>;

    /// Whether a volume's image is blank, by allocation (docs/design.md section 8.1). Writes in flight must have ended.
    ///
    /// # Errors
    /// `NotFound`, `Internal`: not blank, for all purposes.
    fn blankness(&self, volume: ObjectUuid) -> Result<Blankness>;

    /// Makes a volume's image blank again, thick staying thick. Only for an image no device shows.
    ///
    /// # Errors
    /// `NotFound`, `InUse`, `Internal`.
    fn blank(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<()>;

    /// Brings an image to at least this geometry: longer, and for thick without a hole. Never shorter. Also what
    /// heals holes in a thick image.
    ///
    /// # Errors
    /// `NoCapacity`: the image may be longer than before, or allocated further; the data is untouched. `Internal`.
    fn grow(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<()>;

    /// Shows a volume as a block device on this node; the same one when it is active already. Checks size, block
    /// size and direct I/O of what it made, and undoes it when one differs.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` when the image is shorter than the geometry or two devices show it; `Precondition` when a
    /// device that is not ours shows it, or the pool's storage cannot give direct I/O; `InUse` when its device differs
    /// from the geometry and is held; `Internal`.
    fn activate(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<ActiveDevice>;

    /// The device that shows a volume now, if one does.
    ///
    /// # Errors
    /// `Corrupt` when two do; `Precondition` when one does that is not ours; `Internal`.
    fn active(&self, volume: ObjectUuid) -> Result<Option<ActiveDevice>>;

    /// The volume a device of this machine shows, if it is one of this pool's. No device of others is opened.
    ///
    /// # Errors
    /// `Internal`, also when the device does not answer.
    fn volume_of(&self, device: DevNum) -> Result<Option<ObjectUuid>>;

    /// A pod may have this device's node, now or since an earlier life of this process in the same boot: its number is
    /// given to no other volume until [`Pool::disclaim_device`]. The device counts as ours whatever was changed on it.
    ///
    /// # Errors
    /// `Internal` when the device cannot be looked up.
    fn claim_device(&self, volume: ObjectUuid, device: &ActiveDevice) -> Result<()>;

    /// No pod can have the device's node any more.
    fn disclaim_device(&self, volume: ObjectUuid);

    /// The devices that show this pool's images, each with its volume, whether or not that has a record.
    ///
    /// # Errors
    /// `Internal`. A device that does not answer is left out; [`Pool::strays`] names it.
    fn active_devices(&self) -> Result<Vec<(ObjectUuid, ActiveDevice)>>;

    /// Gives an active device the size of its image; nothing to do when it is not active.
    ///
    /// # Errors
    /// `Internal`, also when the device does not have the size afterwards.
    fn resize_device(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<()>;

    /// Takes a volume's device away if nobody uses it, and proves it. Works without image and record too.
    ///
    /// # Errors
    /// `Precondition` when a device that is not ours shows the image; `Internal`.
    fn deactivate(&self, volume: ObjectUuid) -> Result<Deactivated>;

    /// Everything in the pool's place that should not be there. Reads only.
    ///
    /// # Errors
    /// `Internal`.
    fn strays(&self) -> Result<Vec<Stray>>;
}
