//! Where the scratch filesystem is: on the machine's disk, or in memory, where nothing hides what the driver costs.

use holdfast::testing::scratch::Store;

use crate::harness::{PoolFs, Scratch, World};

/// Where the scratch filesystem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScratchPlace {
    /// A file in the temporary directory (TMPDIR chooses the disk).
    Disk,
    /// A file in a tmpfs: a disk that is as fast as disks come, and whose flushes cost nothing.
    Memory,
}

impl ScratchPlace {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Disk, Self::Memory];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
        }
    }

    /// Runs a part with a driver on a pool of so many bytes (sparse).
    pub(crate) fn with(self, size: u64, part: impl FnOnce(&mut World)) {
        let store = match self {
            Self::Disk => Store::File,
            Self::Memory => Store::Memory,
        };
        let mut world = World::started(Scratch::on(PoolFs::Xfs, size, store), &["--log-level", "info"]);
        part(&mut world);
        world.finish();
    }
}
