//! Filesystems: what is on a device, and how one is made, checked and grown. Knows no volume, record or CSI.

mod mkfs_options;
mod options;

pub use mkfs_options::MkfsOptions;
pub use options::MountOptions;

use crate::types::{Bytes, FsType};

/// The smallest device a filesystem is made on.
///
/// ext4: 16 MiB, twice what mke2fs wants for a journal. XFS: 300 MiB, the least mkfs.xfs makes since 5.19.
#[must_use]
pub const fn minimum_size(fs: FsType) -> Bytes {
    match fs {
        FsType::Ext4 => Bytes::mib(16),
        FsType::Xfs => Bytes::mib(300),
    }
}
