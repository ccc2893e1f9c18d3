//! What a home answers. Results say what changed, so a retry is a normal outcome.

use std::borrow::Cow;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{CapacityQuery, Source};
use crate::os::Timestamp;
use crate::pool::Room;
use crate::types::{
    AccessMode, Bytes, FsType, FsckPolicy, NodeId, PoolId, PoolName, Provisioning, SnapshotId, VolumeId, VolumeMode,
};

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// A pool or a record that cannot be read.
    Unreadable,
    /// A file, a device or a mount that no record explains.
    Orphan,
    /// Work that was begun and has not ended: it is under way, or was cut off.
    Unfinished,
    /// Bytes or inodes that run out.
    Space,
    /// A pool on a filesystem that others can fill.
    Shared,
    /// An image that is missing, or is not what its record says.
    Image,
    /// A mounted filesystem that stopped: it was shut down, turned read-only, or does not answer.
    Filesystem,
    /// A device in a pod that is not its volume's any more.
    Device,
    /// One name in several pools.
    Duplicate,
    /// A node or a pool that is not served, or serves another release.
    Service,
    /// Of a kind that this release does not know.
    Other,
}

impl FindingKind {
    /// Those a node finds in its own pools.
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

    /// As it is written in output, on the wire and in metrics.
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

    /// What a word says; one that another release wrote may be unknown.
    #[must_use]
    pub fn of_word(word: &str) -> Self {
        let known = Self::OF_A_NODE.into_iter().chain([Self::Duplicate]);
        known.into_iter().find(|kind| kind.word() == word).unwrap_or(Self::Other)
    }
}

/// Something that is wrong in a pool, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub kind: FindingKind,
    /// The pool's name.
    pub pool: String,
    /// What is wrong.
    pub what: String,
    /// Where.
    pub place: String,
    /// What settles it.
    pub remedy: String,
}

/// The result of making something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created<T> {
    /// Made now.
    New(T),
    /// The same request made it before.
    Existing(T),
}

impl<T> Created<T> {
    /// The thing, whoever made it.
    pub fn into_inner(self) -> T {
        match self {
            Self::New(thing) | Self::Existing(thing) => thing,
        }
    }
}

/// Whether a call changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It did.
    Yes,
    /// It was so already.
    No,
}

/// What is known of a volume's content (docs/design.md section 8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum FormatState {
    /// Never given to anybody.
    #[default]
    Never,
    /// Used as a raw block device: what is on it is the user's.
    Raw,
    /// A mkfs was begun; no user data can exist yet.
    Formatting {
        /// The filesystem being made.
        fs: FsType,
        /// The UUID it will have.
        planned_uuid: Uuid,
    },
    /// It carries this filesystem.
    Formatted {
        /// Which.
        fs: FsType,
        /// With this UUID in its superblock.
        uuid: Uuid,
    },
}

/// A copy on its way, where there are no reflinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// Complete.
    Ready,
    /// So many percent are there.
    Copying {
        /// 0 to 100.
        percent: u8,
    },
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its handle's identity.
    pub id: VolumeId,
    /// The node it was made on, for the handle's last part.
    pub birth_home: NodeId,
    /// The node its pool is on now.
    pub home: NodeId,
    /// What the CO called it.
    pub name: String,
    /// Its size.
    pub size: Bytes,
    /// What it was filled from.
    pub source: Option<Source>,
    /// The nodes it is granted to.
    pub published: Vec<NodeId>,
    /// What is on it.
    pub format: FormatState,
    /// The ways it was made to be used: for ValidateVolumeCapabilities.
    pub modes: Vec<VolumeMode>,
    /// Thick or thin.
    pub provisioning: Provisioning,
    /// When it was made.
    pub created: Timestamp,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its handle's identity.
    pub id: SnapshotId,
    /// The node it was made on, for the handle's last part.
    pub birth_home: NodeId,
    /// The node its pool is on now.
    pub home: NodeId,
    /// What the CO called it.
    pub name: String,
    /// The volume it was cut from, which may be gone.
    pub source: VolumeId,
    /// The birth home of that volume, for its handle.
    pub source_birth_home: NodeId,
    /// What a restore has to ask for at least; the restore is as large as the source was, which may be a little more.
    pub size: Bytes,
    /// When it was cut: the same at every retry.
    pub cut: Timestamp,
    /// Whether its data is complete.
    pub copy: CopyState,
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T, K> {
    /// The entries.
    pub entries: Vec<T>,
    /// The last key seen, when there may be more.
    pub next: Option<K>,
}

/// A grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The home that gave it.
    pub home: NodeId,
    /// Counts the grants of the volume.
    pub epoch: u64,
    /// Whether it was there before.
    pub changed: Changed,
}

/// Where a granted volume is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coordinates {
    /// On this node: the pool's own device.
    Local {
        /// Its path, such as `/dev/loop3`.
        device: PathBuf,
    },
}

/// Everything a node needs to use a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Where its device is.
    pub at: Coordinates,
    /// The size the device must have.
    pub size: Bytes,
    /// The logical block size the device must have.
    pub block_size: u32,
    /// What is on it.
    pub format: FormatState,
    /// What the grant says it is used as.
    pub mode: VolumeMode,
    /// What the grant says of writers.
    pub access: AccessMode,
    /// Whether the grant is read-only.
    pub read_only: super::ReadOnly,
    /// Whether a filesystem with errors may be checked.
    pub fsck: FsckPolicy,
    /// The class's extra mkfs options.
    pub mkfs_options: String,
    /// The grant's number.
    pub epoch: u64,
}

/// What a node is to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Formatting {
    /// Where the device is now: it may have been taken away and come back elsewhere.
    pub at: Coordinates,
    /// The UUID the filesystem must have.
    pub planned_uuid: Uuid,
}

/// What an expansion came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expanded {
    /// The size now.
    pub size: Bytes,
    /// Whether a filesystem on it has to follow on the node.
    pub node_expansion: NodeExpansion,
    /// Whether the size changed.
    pub changed: Changed,
}

/// Whether the node has something to do after an expansion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeExpansion {
    /// The filesystem has to grow.
    Needed,
    /// A raw block device: nothing more to do.
    NotNeeded,
}

/// What could still be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes that new volumes may take in all.
    pub available: Bytes,
    /// The largest single volume.
    pub largest: Bytes,
    /// The smallest volume of the capabilities asked about.
    pub smallest: Bytes,
}

/// A pool as its home sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolHealth {
    /// Its id.
    pub id: PoolId,
    /// Its name.
    pub name: PoolName,
    /// How it is.
    pub health: Health,
}

/// How a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Served, with these figures.
    Served(Box<PoolReport>),
    /// Served, and its figures cannot be read: why.
    Failing(String),
    /// Kept out since it was declared lost, until a human readmits it.
    Quarantined(Timestamp),
}

impl Capacity {
    /// What a node with these pools has for the pool a query means; nothing where it has no such pool, so that the
    /// scheduler looks elsewhere.
    #[must_use]
    pub fn of_pools(pools: &[PoolReport], query: &CapacityQuery) -> Self {
        let named = |wanted: &str| pools.iter().find(|pool| pool.name.as_str() == wanted);
        let pool = match &query.pool {
            Some(name) => named(name.as_str()),
            None if pools.len() == 1 => pools.first(),
            None => named("default"),
        };
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
    /// Where it is.
    pub place: String,
    /// What the filesystem below says.
    pub room: Room,
    /// What new volumes may still take, provisioned as the pool's default.
    pub available: Bytes,
    /// What thick ones may, where the pool can make them.
    pub available_thick: Option<Bytes>,
    /// What thin ones may.
    pub available_thin: Bytes,
    /// What a class without `provisioning` gets.
    pub default_provisioning: Provisioning,
    /// Bytes promised to volumes and snapshots and not yet taken from the filesystem.
    pub promised: Bytes,
    /// Sum of the sizes of all volumes.
    pub provisioned: Bytes,
    /// Number of volumes.
    pub volumes: u64,
    /// Number of snapshots.
    pub snapshots: u64,
}
