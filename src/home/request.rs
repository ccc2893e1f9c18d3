//! Requests to a home node, already parsed.

use serde::{Deserialize, Serialize};

use super::sizes;
use crate::os::Dhchap;
use crate::types::{
    Access, AccessMode, Bytes, Capability, CapacityRange, NodeId, PoolName, Provisioning, RequestedMode, SnapshotId,
    SubsystemNqn, VolumeId, VolumeParameters,
};

/// The source of a new volume's content.
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
    /// The name in the orchestrator, at most 128 bytes; the uuid is derived from it.
    pub name: String,
    /// The requested size.
    pub range: CapacityRange,
    /// All capabilities that it must support; never empty. All block, or all mounts of one filesystem, or both.
    pub capabilities: Vec<Capability>,
    /// The parameters of the StorageClass.
    pub parameters: VolumeParameters,
    /// The source of its content.
    pub source: Option<Source>,
}

/// A request to attach a volume to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRequest {
    /// The node.
    pub node: NodeId,
    /// Block or filesystem: the home node finds out which, and whether the volume was created for it.
    pub mode: RequestedMode,
    /// The access mode: which nodes may read and write.
    pub access: AccessMode,
    /// Whether the orchestrator requested read-only.
    pub read_only: ReadOnly,
}

/// What the home node must know of the node that opens a volume, where the volume is exported to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Its connection to an export of the volume.
    pub connection: Option<Connection>,
    /// Whether it can authenticate.
    pub authenticates: Dhchap,
    /// Whether it may get an export with other names than that of its connection.
    pub renaming: Renaming,
}

/// Whether a node that opens a volume may get an export with new names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Renaming {
    /// It may.
    #[default]
    Allowed,
    /// It only connects again, to the export that it knows.
    Refused,
}

/// The connection of a node to an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The export.
    pub export: SubsystemNqn,
    /// Whether it works.
    pub state: ConnectionState,
}

/// Whether a connection works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// It does.
    Live,
    /// It is lost, and reads and writes of the node wait for another one. The controller has this number, if it has any.
    Waiting(Option<u16>),
}

/// Whether access is read-only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadOnly {
    /// Read-only.
    Yes,
    /// Writable.
    #[default]
    No,
}

/// A new snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateSnapshot {
    /// The name in the orchestrator, at most 128 bytes; the uuid is derived from it.
    pub name: String,
    /// The source volume.
    pub source: VolumeId,
}

/// The snapshots in a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotFilter {
    /// Only those of this volume.
    pub source: Option<VolumeId>,
}

/// The content of a GetCapacity request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapacityQuery {
    /// The pool, or the default one.
    pub pool: Option<PoolName>,
    /// The filesystems that must fit, for the minimum size.
    pub capabilities: Vec<Capability>,
    /// Thick or thin, or the pool's default.
    pub provisioning: Option<Provisioning>,
    /// How nodes may reach the volumes. Only the controller needs it: it selects the nodes.
    pub access: Access,
}

impl CapacityQuery {
    /// The smallest volume with the requested capabilities.
    #[must_use]
    pub fn smallest(&self) -> Bytes {
        sizes::minimum(self.capabilities.iter().copied())
    }
}
