//! Filesystems: what is on a device, and how one is made, checked and grown. Knows no volume, record or CSI.
//!
//! No force flag is ever passed to a tool; whether a device may be written is decided above, from the volume's
//! record (docs/design.md section 8).

mod condition;
mod ext4;
mod mkfs_options;
mod options;
pub mod probe;
pub mod signature;
mod tool;
mod xfs;

pub use condition::{Stopped, stopped};
pub use mkfs_options::MkfsOptions;
pub use options::MountOptions;

use std::path::Path;

use uuid::Uuid;

use crate::os::{BlockDevice, Os};
use crate::types::{Bytes, FsType, Result};

/// What Holdfast does with a filesystem. Everything blocks; children are killed at their limits and listed while they run.
pub trait Filesystem: Send + Sync {
    /// Makes one with this UUID on a device that is proved to read as zeroes all over, for kernels from 5.15 on.
    ///
    /// Killed in between, it leaves no valid superblock, or one whose filesystem fails [`Filesystem::check`].
    ///
    /// # Errors
    /// `Busy` when something holds the device; `NoCapacity`, `OutOfRange`; `Precondition` when the tool is missing or
    /// finds something on the device; `Unsupported` when it is too old; `Timeout`; `Internal`.
    fn make(&self, os: &Os, device: &Path, uuid: Uuid, options: &MkfsOptions) -> Result<()>;

    /// Whether one can be made with these options on a device of this size, as the tool itself says without writing.
    ///
    /// # Errors
    /// `InvalidArgument` with the tool's reason when it cannot; `Precondition`, `Unsupported` as [`Filesystem::make`];
    /// `Timeout`, `Internal` when there is no answer.
    fn rehearse(&self, os: &Os, size: Bytes, options: &MkfsOptions) -> Result<()>;

    /// Checks one that is not mounted, and writes nothing.
    ///
    /// # Errors
    /// `Busy`, `Timeout`, `Internal` when there is no answer: the device could not be read, the tool was killed.
    fn check(&self, os: &Os, device: &Path) -> Result<Checked>;

    /// Repairs one that is not mounted as far as its tool does so without asking; only for a superblock that says errors.
    ///
    /// # Errors
    /// `Corrupt` when a human has to decide (XFS: always); `Busy`, `Timeout`, `Internal`.
    fn repair(&self, os: &Os, device: &Path) -> Result<()>;

    /// Grows a mounted one to `target`, which its device must have, and looks whether it did. Never shrinks.
    ///
    /// # Errors
    /// `Precondition` when it says errors; `Busy` while the last growth is not on disk yet (XFS); `Internal`.
    fn grow_mounted(&self, os: &Os, device: &BlockDevice, mount_point: &Path, target: Bytes) -> Result<Grown>;

    /// Grows one that is not mounted, where that can be done; a check comes first, as resize2fs wants it.
    ///
    /// # Errors
    /// `Corrupt` when the check does not end well; `Busy`, `Timeout`, `Internal`.
    fn grow_unmounted(&self, os: &Os, device: &BlockDevice, target: Bytes) -> Result<Grown>;
}

/// What a read-only check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// Nothing wrong.
    Sound,
    /// Something wrong.
    Unsound {
        /// The first thing the tool said of it.
        said: String,
    },
}

/// How growing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grown {
    /// It is bigger.
    Yes,
    /// It had the size.
    AlreadyThere,
    /// Not this way: the kernel refuses it to this process (ext4 mounted, without CAP_SYS_RESOURCE), or XFS unmounted.
    NotPermitted,
}

/// What is done with filesystems of this kind.
#[must_use]
pub fn of(fs: FsType) -> &'static dyn Filesystem {
    match fs {
        FsType::Ext4 => &ext4::Ext4,
        FsType::Xfs => &xfs::Xfs,
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Kind;

    /// Each with e2fsprogs 1.47.0 and xfsprogs 6.1.0.
    #[test]
    fn options_that_cannot_work_at_a_size_are_known_before_anything_is_made() {
        let tried = |fs, mib, options: &str| {
            let parsed = MkfsOptions::parse(fs, options).unwrap();
            of(fs).rehearse(&Os::new(), Bytes::mib(mib), &parsed).map_err(|error| (error.kind(), error.to_string()))
        };
        for (fs, mib, options) in [
            (FsType::Ext4, 16, "-J size=4"),
            (FsType::Ext4, 1024, "-I 2048 -i 4096 -O quota,project"),
            (FsType::Ext4, 1 << 20, "-i 65536"),
            (FsType::Xfs, 300, "-l size=64m -i size=2048"),
            (FsType::Xfs, 16 << 20, "-n size=65536"),
        ] {
            tried(fs, mib, options).unwrap_or_else(|error| panic!("{fs} {mib} {options}: {error:?}"));
        }
        for (fs, mib, options, reason) in [
            (FsType::Ext4, 16, "-N 100000", "too big for a filesystem with 4096 blocks"),
            (FsType::Ext4, 16, "-i 1024 -I 2048", "too big for a filesystem"),
            (FsType::Ext4, 16, "-J size=8", "Total journal size too big"),
            (FsType::Ext4, 1024, "-J size=900", "Total journal size too big"),
            (FsType::Ext4, 1024, "-J size=40960", "between 1024 and 10240000 blocks"),
            (FsType::Ext4, 1 << 20, "-N 4294967295", "requested number of inodes"),
            (FsType::Xfs, 300, "-l size=200m", "internal log size 51200 too large"),
            (FsType::Xfs, 4096, "-l size=2038m", "too large"),
            (FsType::Xfs, 300, "-i size=512 -i size=1024", "respecified"),
        ] {
            let (kind, said) = tried(fs, mib, options).unwrap_err();
            assert_eq!(kind, Kind::InvalidArgument, "{said}");
            assert!(said.contains(reason) && said.contains(options) && said.contains("StorageClass"), "{said}");
        }
    }
}
