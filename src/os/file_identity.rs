//! What identifies a file.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// The identity of a file, independent of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// The filesystem's device number, as stat(2) gives it.
    pub device: u64,
    /// The inode.
    pub inode: u64,
    /// Length, bytes.
    pub size: u64,
    /// Allocated bytes (`st_blocks` x 512).
    pub allocated: u64,
}

impl FileIdentity {
    pub(super) fn of(meta: &Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino(), size: meta.len(), allocated: meta.blocks().saturating_mul(512) }
    }
}
