//! Answers of a home node. A result says what changed, so a retry is a normal outcome.

use std::borrow::Cow;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{CapacityQuery, Connection, Source};
use crate::os::Timestamp;
use crate::pool::{Ability, FreeSpace};
use crate::types::{
    Access, AccessMode, Authentication, Bytes, Changed, ClaimName, Error, FsType, FsckPolicy, Kind, NodeId,
    NvmeTcpAddress, PoolId, PoolName, Provisioning, RequestedMode, Result, SnapshotId, VolumeId, VolumeMode,
};

/// The subject of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// A pool or a record that cannot be read.
    Unreadable,
    /// A file, a device or a mount without a record.
    Orphan,
    /// An operation that has not ended: it is running, or was interrupted.
    Unfinished,
    /// The pool is short of bytes or inodes.
    Space,
    /// A pool on a filesystem that other software can fill.
    Shared,
    /// An image that is missing, or differs from its record.
    Image,
    /// A mounted filesystem that stopped: it was shut down, became read-only, or does not answer.
    Filesystem,
    /// A device in a pod that no longer belongs to the pod's volume.
    Device,
    /// The same name in several pools.
    Duplicate,
    /// A node or a pool that is not served, or runs another release.
    Service,
    /// A kind that this release does not know.
    Other,
}

impl FindingKind {
    /// The kinds that a node finds in its own pools.
    pub const OF_A_NODE: [Self; 9] = [
        Self::Unreadable,
        Self::Orphan,
        Self::Unfinished,
        Self::Space,
        Self::Shared,
        Self::Image,
        Self::Filesystem,
        Self::Device,
        Self::Service,
    ];

    /// The kind as it is written in output, in the protocol and in metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Orphan => "orphan",
            Self::Unfinished => "unfinished",
            Self::Space => "space",
            Self::Shared => "shared",
            Self::Image => "image",
            Self::Filesystem => "filesystem",
            Self::Device => "device",
            Self::Duplicate => "duplicate",
            Self::Service => "service",
            Self::Other => "other",
        }
    }

    /// The kind of a word. A word of another release may be unknown.
    #[must_use]
    pub fn of_word(word: &str) -> Self {
        let known = Self::OF_A_NODE.into_iter().chain([Self::Duplicate]);
        known.into_iter().find(|kind| kind.word() == word).unwrap_or(Self::Other)
    }
}

/// A problem in a pool, for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its subject.
    pub kind: FindingKind,
    /// The pool's name.
    pub pool: String,
    /// The problem.
    pub what: String,
    /// Its location.
    pub place: String,
    /// The next step.
    pub remedy: String,
}

/// The result of a create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created<T> {
    /// Created by this call.
    New(T),
    /// An earlier, identical request created it.
    Existing(T),
}

impl<T> Created<T> {
    /// The object, whichever call created it.
    pub fn into_inner(self) -> T {
        match self {
            Self::New(thing) | Self::Existing(thing) => thing,
        }
    }
}

/// What is known about a volume's content (docs/design.md section 8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum FormatState {
    /// Neither formatted nor used as a raw block device yet.
    #[default]
    Never,
    /// Used as a raw block device: its content belongs to the user.
    Raw,
    /// A mkfs began; there can be no user data yet.
    Formatting {
        /// The filesystem that is created.
        fs: FsType,
        /// The UUID it will have.
        planned_uuid: Uuid,
    },
    /// The volume has this filesystem.
    Formatted {
        /// Its type.
        fs: FsType,
        /// The UUID in its superblock.
        uuid: Uuid,
    },
}

/// The state of a copy in a pool without instant clones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Complete.
    Ready,
    /// Running.
    Copying {
        /// 0 to 100.
        percent: u8,
    },
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The identity in its handle.
    pub id: VolumeId,
    /// The node where it was created, for the last part of the handle.
    pub birth_home: NodeId,
    /// The node that has its pool now.
    pub home: NodeId,
    /// Its name in the orchestrator.
    pub name: String,
    /// The claim that it was created for, where it is known.
    pub claim: Option<ClaimName>,
    /// Its size.
    pub size: Bytes,
    /// The source of its initial content.
    pub source: Option<Source>,
    /// The nodes it is attached to.
    pub published: Vec<NodeId>,
    /// Its content.
    pub format: FormatState,
    /// The volume modes of its creation, for ValidateVolumeCapabilities.
    pub modes: Vec<VolumeMode>,
    /// Thick or thin.
    pub provisioning: Provisioning,
    /// When it was created.
    pub created: Timestamp,
    /// How nodes may reach it.
    pub access: Access,
    /// Whether connections to it must be authenticated.
    pub authentication: Authentication,
}

impl Volume {
    /// The mode of the volume that a request means.
    ///
    /// # Errors
    /// `InvalidArgument` for a filesystem of a raw block volume, `Unsupported` for another mode than it was created for.
    pub fn mode_of(&self, requested: RequestedMode) -> Result<VolumeMode> {
        mode_among(&self.id, &self.modes, requested)
    }
}

/// The mode that a request means, among those a volume was created for.
///
/// # Errors
/// Those of [`Volume::mode_of`].
pub(super) fn mode_among(volume: &VolumeId, modes: &[VolumeMode], requested: RequestedMode) -> Result<VolumeMode> {
    if let Some(mode) = modes.iter().find_map(|mode| requested.of(*mode)) {
        return Ok(mode);
    }
    if requested == RequestedMode::Mount(None) {
        return Err(Error::new(
            Kind::InvalidArgument,
            format!("volume {volume} was created as a raw block volume; set volumeMode: Block to use it"),
        ));
    }
    let made: Vec<_> = modes.iter().map(ToString::to_string).collect();
    Err(Error::new(
        Kind::Unsupported,
        format!("volume {volume} was created for use as {}, not as {requested}", made.join(", ")),
    ))
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The identity in its handle.
    pub id: SnapshotId,
    /// The node where it was created, for the last part of the handle.
    pub birth_home: NodeId,
    /// The node that has its pool now.
    pub home: NodeId,
    /// Its name in the orchestrator.
    pub name: String,
    /// Its source volume, which may have been deleted.
    pub source: VolumeId,
    /// The node where that volume was created, for its handle.
    pub source_birth_home: NodeId,
    /// The minimum size to request for a restore. The restored volume has the size of the source, which may be a little
    /// more.
    pub size: Bytes,
    /// When the snapshot was taken: the same in every retry.
    pub cut: Timestamp,
    /// Whether its data is complete.
    pub copy: CopyState,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T, K> {
    /// The entries.
    pub entries: Vec<T>,
    /// The last key, when there may be more entries.
    pub next: Option<K>,
}

/// An attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The home node that created it.
    pub home: NodeId,
    /// The number of the attachment, counted for each volume.
    pub epoch: u64,
    /// Whether this call changed anything.
    pub changed: Changed,
}

/// Where the device of an attached volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceAddress {
    /// On this node: the pool's own device.
    Local {
        /// Its path, for example `/dev/loop3`.
        device: PathBuf,
    },
    /// On the home node, which exports it over NVMe/TCP. Boxed: it is much larger than a path.
    NvmeTcp(Box<NvmeTcpAddress>),
}

/// Everything a node needs to use a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenVolume {
    /// Where its device is.
    pub at: DeviceAddress,
    /// The connection that its node had, as the request said.
    pub connection: Option<Connection>,
    /// The size the device must have.
    pub size: Bytes,
    /// The logical block size the device must have.
    pub block_size: u32,
    /// Its content.
    pub format: FormatState,
    /// The volume mode of the attachment.
    pub mode: VolumeMode,
    /// The access mode of the attachment.
    pub access: AccessMode,
    /// Whether the attachment is read-only.
    pub read_only: super::ReadOnly,
    /// Whether a filesystem with errors may be repaired.
    pub fsck: FsckPolicy,
    /// The extra mkfs options of the StorageClass.
    pub mkfs_options: String,
    /// The number of the attachment.
    pub epoch: u64,
    /// The claim that it was created for, where it is known.
    pub claim: Option<ClaimName>,
}

/// What a node must format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formatting {
    /// Where the device is now: it may have been detached and attached elsewhere.
    pub at: DeviceAddress,
    /// The UUID the filesystem must have.
    pub planned_uuid: Uuid,
}

/// The result of an expansion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expanded {
    /// The size now.
    pub size: Bytes,
    /// Whether the node must grow a filesystem on it.
    pub node_expansion: NodeExpansion,
    /// Whether the size changed.
    pub changed: Changed,
}

/// Whether the node has work after an expansion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeExpansion {
    /// The filesystem must grow.
    Needed,
    /// A raw block device: no more work.
    NotNeeded,
}

/// The capacity for new volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Total bytes for new volumes.
    pub available: Bytes,
    /// The largest single volume.
    pub largest: Bytes,
    /// The smallest volume with the requested capabilities.
    pub smallest: Bytes,
}

/// A pool as its home node reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolHealth {
    /// Its id.
    pub id: PoolId,
    /// Its name.
    pub name: PoolName,
    /// Its state.
    pub health: Health,
}

/// The state of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Served, with these figures.
    Served(Box<PoolReport>),
    /// Served, but its figures cannot be read; the reason.
    Failing(String),
    /// In quarantine since it was declared lost, until an operator readmits it.
    Quarantined(Timestamp),
}

impl Capacity {
    /// The capacity of the queried pool on a node with these pools; zero where the node has no such pool, so that the
    /// scheduler selects another node.
    #[must_use]
    pub fn of_pools(pools: &[PoolReport], query: &CapacityQuery) -> Self {
        let named = |wanted: &str| pools.iter().find(|pool| pool.name.as_str() == wanted);
        let pool = match &query.pool {
            Some(name) => named(name.as_str()),
            None if pools.len() == 1 => pools.first(),
            None => named("default"),
        };
        let pool = pool.filter(|pool| query.access == Access::Local || pool.network == Ability::Yes);
        let available =
            pool.map_or(Bytes::ZERO, |pool| match query.provisioning.unwrap_or(pool.default_provisioning) {
                Provisioning::Thick => pool.available_thick.unwrap_or_default(),
                Provisioning::Thin => pool.available_thin,
            });
        Self { available, largest: available, smallest: query.smallest() }
    }
}

/// Figures of one pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolReport {
    /// Its id.
    pub id: PoolId,
    /// Its name.
    pub name: PoolName,
    /// Its kind.
    pub kind: Cow<'static, str>,
    /// Its location.
    pub place: String,
    /// Space as the filesystem reports it.
    pub room: FreeSpace,
    /// Capacity for new volumes with the pool's default provisioning.
    pub available: Bytes,
    /// Capacity for thick volumes, where the pool supports them.
    pub available_thick: Option<Bytes>,
    /// Capacity for thin volumes.
    pub available_thin: Bytes,
    /// The default for a StorageClass without `provisioning`.
    pub default_provisioning: Provisioning,
    /// Bytes reserved for volumes and snapshots and not yet allocated in the filesystem.
    pub promised: Bytes,
    /// Sum of the sizes of all volumes.
    pub provisioned: Bytes,
    /// Number of volumes.
    pub volumes: u64,
    /// Number of snapshots.
    pub snapshots: u64,
    /// Whether volumes with `access: network` can be created in it.
    pub network: Ability,
}
