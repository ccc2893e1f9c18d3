//! Requests to a node and its answers, already parsed by the gRPC layer.

use std::path::PathBuf;

use crate::fs::RequestedOptions;
use crate::home::ReadOnly;
use crate::types::{AccessMode, Bytes, CapacityRange, RequestedMode, VolumeId};

/// NodeStageVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageRequest {
    /// The volume.
    pub volume: VolumeId,
    /// A directory that the CO created; unused for a block volume.
    pub staging: PathBuf,
    /// Block, or a filesystem.
    pub mode: RequestedMode,
    /// The access mode.
    pub access: AccessMode,
    /// Mount options; none for block.
    pub mount: RequestedOptions,
}

/// NodePublishVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRequest {
    /// The volume.
    pub volume: VolumeId,
    /// The staging path; required for a filesystem.
    pub staging: Option<PathBuf>,
    /// The pod's path: a directory, or a file for block, which this call creates.
    pub target: PathBuf,
    /// Block, or a filesystem.
    pub mode: RequestedMode,
    /// The access mode.
    pub access: AccessMode,
    /// Whether this pod has read-only access.
    pub read_only: ReadOnly,
    /// Mount options. Only the flags of a single mount apply here; the filesystem has its options since the stage.
    pub mount: RequestedOptions,
}

/// NodeExpandVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpandRequest {
    /// The volume.
    pub volume: VolumeId,
    /// The staging path or the pod's path.
    pub path: PathBuf,
    /// The staging path, if the CO sends it.
    pub staging: Option<PathBuf>,
    /// The requested size.
    pub range: CapacityRange,
}

/// NodeGetVolumeStats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stats {
    /// A raw block device: only its size is known.
    Block {
        /// Its size.
        total: Bytes,
    },
    /// A filesystem.
    Filesystem {
        /// Bytes.
        bytes: Usage,
        /// Inodes.
        inodes: Usage,
    },
}

/// The usage of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The total.
    pub total: u64,
    /// The part that is available to an unprivileged user.
    pub available: u64,
    /// The part in use.
    pub used: u64,
}
