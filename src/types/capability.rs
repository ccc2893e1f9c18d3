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

/// One way a volume may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Capability {
    /// Block or which filesystem.
    pub mode: VolumeMode,
    /// The access mode.
    pub access: AccessMode,
}
