//! What the scratch filesystem lies on: the machine's disk, or memory, where nothing hides what the driver costs.

#![expect(clippy::disallowed_methods, reason = "the benchmark makes its own mount namespace and cleans it up")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::harness::{PoolFs, World, driver_binary};

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
        // What the run needs may lie below the temporary directory, as with a clone in it: it is bound back.
        let binary = Path::new(driver_binary()).parent().unwrap();
        let needed = [Path::new(env!("CARGO_MANIFEST_DIR")), binary].map(|path| (path, File::open(path).unwrap()));
        mount(Some("tmpfs"), &place, Some("tmpfs"), MsFlags::empty(), Some("size=6g")).unwrap();
        for (path, held) in &needed {
            if !path.exists() {
                std::fs::create_dir_all(path).unwrap();
                let held = format!("/proc/self/fd/{}", held.as_raw_fd());
                mount(Some(held.as_str()), *path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            }
        }
        Self(place)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
