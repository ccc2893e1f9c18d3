//! What the scratch filesystem lies on: the machine's disk, or memory, where nothing hides what the driver costs.

#![expect(clippy::disallowed_methods, reason = "the benchmark makes its own mount namespace and cleans it up")]

use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::harness::{PoolFs, World};

/// Where the scratch filesystem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ground {
    /// A file in the temporary directory (TMPDIR chooses the disk).
    Disk,
    /// A file in a tmpfs: a disk that is as fast as disks come, and whose flushes cost nothing.
    Memory,
}

impl Ground {
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
        let memory = (self == Self::Memory).then(Memory::over_temporary_directory);
        let mut world = World::with_arguments(PoolFs::Xfs, size, &["--log-level", "info"]);
        part(&mut world);
        world.finish();
        drop(memory);
    }
}

/// A tmpfs over the temporary directory, for this thread's mount namespace only.
struct Memory(PathBuf);

impl Memory {
    fn over_temporary_directory() -> Self {
        let place = std::env::temp_dir();
        unshare(CloneFlags::CLONE_NEWNS).expect("the benchmark needs root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), Some("size=6g")).unwrap();
        Self(place)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
