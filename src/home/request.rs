//! What a home is asked, already parsed.

use serde::{Deserialize, Serialize};

use super::sizes;
use crate::types::{
    AccessMode, Bytes, Capability, CapacityRange, NodeId, PoolName, Provisioning, SnapshotId, VolumeId, VolumeMode,
    VolumeParameters,
};

/// What a new volume is filled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A snapshot: restore.
    Snapshot(SnapshotId),
    /// A volume: clone.
    Volume(VolumeId),
}

/// A new volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateVolume {
    /// The CO's name, at most 128 bytes; the uuid is derived from it.
    pub name: String,
    /// How big.
    pub range: CapacityRange,
    /// Every way it must be usable; never empty. All block, or all mounts of one filesystem, or both.
    pub capabilities: Vec<Capability>,
    /// The class's parameters.
    pub parameters: VolumeParameters,
    /// What it is filled from.
    pub source: Option<Source>,
}

/// A node's wish to use a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRequest {
    /// Who.
    pub node: NodeId,
    /// Block or filesystem.
    pub mode: VolumeMode,
    /// Who may write from where.
    pub access: AccessMode,
    /// Whether the CO asked for read-only.
    pub read_only: ReadOnly,
}

/// Whether something is only to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadOnly {
    /// It is.
    Yes,
    /// It may be written.
    #[default]
    No,
}

/// A new snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateSnapshot {
    /// The CO's name, at most 128 bytes; the uuid is derived from it.
    pub name: String,
    /// The volume it is cut from.
    pub source: VolumeId,
}

/// Which snapshots a list is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotFilter {
    /// Only those of this volume.
    pub source: Option<VolumeId>,
}

/// What a GetCapacity asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapacityQuery {
    /// The pool, or the default one.
    pub pool: Option<PoolName>,
    /// The filesystems that must fit, for the minimum size.
    pub capabilities: Vec<Capability>,
    /// Thick or thin, or the pool's default.
    pub provisioning: Option<Provisioning>,
}

impl CapacityQuery {
    /// The smallest volume that can carry what is asked.
    #[must_use]
    pub fn smallest(&self) -> Bytes {
        sizes::minimum(self.capabilities.iter().copied())
    }
}
