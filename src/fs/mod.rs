//! Filesystems: detects, creates, checks and grows them. Does not know volumes, records or CSI.
//!
//! No tool ever gets a force flag. The callers decide from the volume's record whether a device may be written
//! (docs/design.md section 8).

mod condition;
mod ext4;
mod mkfs_options;
mod options;
pub mod probe;
pub mod signature;
mod tool;
pub mod tools;
mod xfs;

pub use condition::{Stopped, stopped};
pub use mkfs_options::MkfsOptions;
pub use options::{MountOptions, RequestedOptions};

use std::path::Path;

use uuid::Uuid;

use crate::os::{BlockDevice, Os};
use crate::types::{Bytes, FsType, Result};

/// The operations on a filesystem. All calls block; children are killed at their time limits and listed while they run.
pub trait Filesystem: Send + Sync {
    /// Creates a filesystem with this UUID, for kernel 5.15 or later, on a device that was verified to read as zeroes.
    ///
    /// If it is killed, it leaves no valid superblock, or one whose filesystem fails [`Filesystem::check`].
    ///
    /// # Errors
    /// `Busy` when the device is in use; `NoCapacity`, `OutOfRange`; `Precondition` when the tool is missing or finds
    /// something on the device; `Unsupported` when it is too old; `Timeout`; `Internal`.
    fn make(&self, os: &Os, device: &Path, uuid: Uuid, options: &MkfsOptions) -> Result<()>;

    /// Checks that a filesystem can be created with these options on a device of this size: a trial run of the tool
    /// itself.
    ///
    /// # Errors
    /// `InvalidArgument` with the tool's reason when it cannot; `Precondition`, `Unsupported` as [`Filesystem::make`];
    /// `Timeout`, `Internal` when the tool gives no result.
    fn rehearse(&self, os: &Os, size: Bytes, options: &MkfsOptions) -> Result<()>;

    /// Checks an unmounted filesystem, and writes nothing.
    ///
    /// # Errors
    /// `Busy`, `Timeout`, `Internal` when there is no result: the device could not be read, the tool was killed.
    fn check(&self, os: &Os, device: &Path) -> Result<Checked>;

    /// Repairs an unmounted filesystem as far as its tool does so without questions; only for a superblock marked with
    /// errors.
    ///
    /// # Errors
    /// `Corrupt` when an operator must decide (XFS: always); `Busy`, `Timeout`, `Internal`.
    fn repair(&self, os: &Os, device: &Path) -> Result<()>;

    /// Grows a mounted filesystem to `target`, which its device must have, and verifies the result. Never shrinks.
    ///
    /// # Errors
    /// `Precondition` when it is marked with errors; `Busy` while the last growth is not on disk yet (XFS); `Internal`.
    fn grow_mounted(&self, os: &Os, device: &BlockDevice, mount_point: &Path, target: Bytes) -> Result<Grown>;

    /// Grows an unmounted filesystem, where that is possible, after the check that resize2fs requires.
    ///
    /// # Errors
    /// `Corrupt` when the check fails; `Busy`, `Timeout`, `Internal`.
    fn grow_unmounted(&self, os: &Os, device: &BlockDevice, target: Bytes) -> Result<Grown>;
}

/// The result of a read-only check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// No errors.
    Sound,
    /// Errors.
    Unsound {
        /// The first message of the tool about them.
        said: String,
    },
}

/// The result of a growth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grown {
    /// It has grown.
    Yes,
    /// It had the size already.
    AlreadyThere,
    /// Not possible this way: the kernel denies it to this process (ext4 mounted, without CAP_SYS_RESOURCE), or XFS
    /// unmounted.
    NotPermitted,
}

/// The operations of this type of filesystem.
#[must_use]
pub fn of(fs: FsType) -> &'static dyn Filesystem {
    match fs {
        FsType::Ext4 => &ext4::Ext4,
        FsType::Xfs => &xfs::Xfs,
    }
}

/// The smallest device for a filesystem.
///
/// ext4: 16 MiB, twice what mke2fs needs for a journal. XFS: 300 MiB, the minimum of mkfs.xfs since 5.19.
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
