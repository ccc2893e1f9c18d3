//! Requests with sane defaults; a test changes the field under test.

use std::collections::HashMap;

use holdfast::csi::proto::volume_capability::access_mode::Mode;
use holdfast::csi::proto::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use holdfast::csi::proto::{CapacityRange, CreateVolumeRequest, Topology, VolumeCapability};

use super::MIB;

/// The use of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Ext4,
    Xfs,
    Block,
}

impl Use {
    /// All three.
    pub(crate) const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Block];
    /// The two filesystems.
    pub(crate) const FILESYSTEMS: [Self; 2] = [Self::Ext4, Self::Xfs];

    /// A small size that is sufficient for it.
    pub(crate) fn size(self) -> i64 {
        match self {
            Self::Ext4 => 32 * MIB,
            Self::Xfs => 300 * MIB,
            Self::Block => 16 * MIB,
        }
    }

    /// The filesystem's name; empty for block.
    pub(crate) fn fs_type(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Block => "",
        }
    }
}

/// A capability as the sidecars send it for ReadWriteOnce.
pub(crate) fn capability(kind: Use) -> VolumeCapability {
    let access_type = match kind {
        Use::Block => AccessType::Block(BlockVolume {}),
        Use::Ext4 | Use::Xfs => {
            AccessType::Mount(MountVolume { fs_type: kind.fs_type().into(), ..MountVolume::default() })
        }
    };
    VolumeCapability { access_type: Some(access_type), access_mode: Some(mode(Mode::SingleNodeMultiWriter)) }
}

/// The same with another access mode.
pub(crate) fn with_mode(kind: Use, wanted: Mode) -> VolumeCapability {
    VolumeCapability { access_mode: Some(mode(wanted)), ..capability(kind) }
}

/// An access mode as a message.
fn mode(mode: Mode) -> AccessMode {
    AccessMode { mode: mode.into() }
}

/// A request for exactly `size` bytes.
pub(crate) fn create_request(name: &str, kind: Use, size: i64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes: size, limit_bytes: size }),
        volume_capabilities: vec![capability(kind)],
        ..CreateVolumeRequest::default()
    }
}

/// A topology of these segments.
pub(crate) fn segments(pairs: &[(&str, &str)]) -> Topology {
    let segments: HashMap<_, _> = pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    Topology { segments }
}
