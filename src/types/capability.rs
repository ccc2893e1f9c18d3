//! How a volume may be used: CSI's VolumeCapability without the fields that only a mount needs.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::FsType;

/// The access modes of a volume on one node (CSI `VolumeCapability.AccessMode.Mode`). `csi` rejects the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessMode {
    /// SINGLE_NODE_WRITER: one node; a second pod only where the CO uses MULTI_WRITER.
    SingleNodeWriter,
    /// SINGLE_NODE_READER_ONLY: one node, never written, therefore never formatted.
    SingleNodeReaderOnly,
    /// SINGLE_NODE_SINGLE_WRITER: one node, one target path (ReadWriteOncePod).
    SingleNodeSingleWriter,
    /// SINGLE_NODE_MULTI_WRITER: one node, many target paths (ReadWriteOnce).
    SingleNodeMultiWriter,
}

impl AccessMode {
    /// Whether a second target path on the same node is rejected.
    #[must_use]
    pub fn one_target(self) -> bool {
        matches!(self, Self::SingleNodeWriter | Self::SingleNodeSingleWriter)
    }

    /// Whether writing is forbidden.
    #[must_use]
    pub fn read_only(self) -> bool {
        self == Self::SingleNodeReaderOnly
    }
}

/// A raw block device, or a filesystem of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeMode {
    /// The device itself, bound to a file.
    Block,
    /// A mounted filesystem.
    Mount(FsType),
}

impl fmt::Display for VolumeMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block => f.write_str("block"),
            Self::Mount(fs) => write!(f, "{fs}"),
        }
    }
}

/// The mode in a request, which may leave the filesystem to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestedMode {
    /// The device itself.
    Block,
    /// A filesystem; `None` is the volume's own.
    Mount(Option<FsType>),
}

impl RequestedMode {
    /// The mode of the volume that this request means; `None` when it is of another kind.
    #[must_use]
    pub fn of(self, volume: VolumeMode) -> Option<VolumeMode> {
        let matches = match (self, volume) {
            (Self::Block, VolumeMode::Block) | (Self::Mount(None), VolumeMode::Mount(_)) => true,
            (Self::Mount(Some(named)), VolumeMode::Mount(own)) => named == own,
            (Self::Block, VolumeMode::Mount(_)) | (Self::Mount(_), VolumeMode::Block) => false,
        };
        matches.then_some(volume)
    }
}

impl From<VolumeMode> for RequestedMode {
    fn from(mode: VolumeMode) -> Self {
        match mode {
            VolumeMode::Block => Self::Block,
            VolumeMode::Mount(fs) => Self::Mount(Some(fs)),
        }
    }
}

impl fmt::Display for RequestedMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block => f.write_str("block"),
            Self::Mount(Some(fs)) => write!(f, "{fs}"),
            Self::Mount(None) => f.write_str("a filesystem"),
        }
    }
}

/// One way a volume may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Capability {
    /// Block or which filesystem.
    pub mode: VolumeMode,
    /// The access mode.
    pub access: AccessMode,
}
