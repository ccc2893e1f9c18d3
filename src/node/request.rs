//! What a node is asked and what it answers, already parsed by the gRPC edge.

use std::path::PathBuf;

use crate::fs::MountOptions;
use crate::home::ReadOnly;
use crate::types::{AccessMode, Bytes, CapacityRange, VolumeId, VolumeMode};

/// NodeStageVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageRequest {
    /// Which volume.
    pub volume: VolumeId,
    /// A directory the CO has made; for a block volume nothing is put there.
    pub staging: PathBuf,
    /// Block or which filesystem.
    pub mode: VolumeMode,
    /// Who may write from where.
    pub access: AccessMode,
    /// Mount options; the default for block.
    pub mount: MountOptions,
}

/// NodePublishVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishRequest {
    /// Which volume.
    pub volume: VolumeId,
    /// Where it is staged; needed for a filesystem.
    pub staging: Option<PathBuf>,
    /// Where the pod finds it: a directory, or a file for block, that is made here.
    pub target: PathBuf,
    /// Block or which filesystem.
    pub mode: VolumeMode,
    /// Who may write from where.
    pub access: AccessMode,
    /// Whether this pod only reads.
    pub read_only: ReadOnly,
    /// Mount options; of these the flags of a single mount count here, the filesystem has its own since the stage.
    pub mount: MountOptions,
}

/// NodeExpandVolume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpandRequest {
    /// Which volume.
    pub volume: VolumeId,
    /// Where it is staged or published.
    pub path: PathBuf,
    /// Where it is staged, if the CO says so.
    pub staging: Option<PathBuf>,
    /// How big it should be now.
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

/// How much of something there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// All of it.
    pub total: u64,
    /// What an unprivileged user may still take.
    pub available: u64,
    /// What is taken.
    pub used: u64,
}
