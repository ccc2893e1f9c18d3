//! A filesystem for pools, in a temporary directory and a mount namespace of its own.

#![expect(clippy::disallowed_methods, reason = "the test makes its own mount namespace and cleans it up")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use holdfast::os::MountTable;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::{leaks, run, try_run};

/// The filesystem of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolFs {
    /// XFS with reflinks: everything is supported.
    Xfs,
    /// ext4: no reflinks.
    Ext4,
    /// btrfs: thin only.
    Btrfs,
}

impl PoolFs {
    /// All three.
    pub(crate) const ALL: [Self; 3] = [Self::Xfs, Self::Ext4, Self::Btrfs];

    fn make(self, image: &str) {
        match self {
            Self::Xfs => run("/usr/sbin/mkfs.xfs", &["-q", "-K", "-m", "reflink=1", image]),
            Self::Ext4 => run("/usr/sbin/mkfs.ext4", &["-q", "-E", "nodiscard,assume_storage_prezeroed=1", image]),
            Self::Btrfs => run("/usr/bin/env", &["mkfs.btrfs", "-q", "-K", image]),
        };
    }
}

/// The scratch filesystem. Dropping it removes everything below it, and fails the test if the driver left something
/// that it should have removed.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: TempDir,
    device: u64,
}

/// The mounts visible to this thread.
pub(crate) fn mounts() -> MountTable {
    MountTable::parse(&fs::read("/proc/thread-self/mountinfo").unwrap()).unwrap()
}

/// A mount namespace of the thread's own, with shared mounts as on a machine with systemd: the driver stages nothing
/// where other processes would not see it.
pub(crate) fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("black-box tests need root");
    for propagation in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | propagation, None::<&str>).unwrap();
    }
}

/// Retries if another test has taken the free loop device meanwhile.
fn mount_file(image: &Path, point: &Path) {
    let arguments = ["-o", "loop", image.to_str().unwrap(), point.to_str().unwrap()];
    for _ in 0..20 {
        if try_run("/usr/bin/mount", &arguments).code == Some(0) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    run("/usr/bin/mount", &arguments);
}

impl Scratch {
    /// Creates and mounts one of `size` bytes; sparse, so it needs only the written space.
    pub(crate) fn new(kind: PoolFs, size: u64) -> Self {
        own_mounts();
        let directory = tempfile::Builder::new().prefix("holdfast-test-").tempdir().unwrap();
        let image = directory.path().join("scratch.img");
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        let point = directory.path().join("fs");
        fs::create_dir(&point).unwrap();
        kind.make(image.to_str().unwrap());
        mount_file(&image, &point);
        // Nothing is left even when the test is killed: the loop device goes with the mount, the mount with the
        // namespace.
        fs::remove_file(&image).unwrap();
        let device = fs::metadata(&point).unwrap().dev();
        Self { directory, device }
    }

    /// On a separate disk, in the mount namespace that the thread already has; formatted if a kind is given.
    pub(crate) fn over(disk: &Path, make: Option<PoolFs>) -> Self {
        let directory = tempfile::Builder::new().prefix("holdfast-test-").tempdir().unwrap();
        let point = directory.path().join("fs");
        fs::create_dir(&point).unwrap();
        if let Some(kind) = make {
            kind.make(disk.to_str().unwrap());
        }
        mount_file(disk, &point);
        // Direct I/O: requests are processed in parallel, and one without an answer blocks no flush.
        let source = run("/usr/bin/findmnt", &["-n", "-o", "SOURCE", point.to_str().unwrap()]);
        run("/usr/sbin/losetup", &["--direct-io=on", source.trim()]);
        let device = fs::metadata(&point).unwrap().dev();
        Self { directory, device }
    }

    /// The temporary directory, on the machine's own filesystem.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where the scratch filesystem is mounted.
    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("fs")
    }

    /// The device number of the scratch filesystem.
    pub(crate) fn device(&self) -> u64 {
        self.device
    }

    fn unmount_below(&self, keep: Option<&Path>) {
        let table = mounts();
        let below = table.entries().iter().rev().map(|entry| entry.mount_point.clone());
        for point in below.filter(|point| point.starts_with(self.path()) && Some(point.as_path()) != keep) {
            if umount2(&point, MntFlags::UMOUNT_NOFOLLOW).is_err() {
                let _ = umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let left = if std::thread::panicking() { Vec::new() } else { leaks::find(self) };
        self.unmount_below(Some(&self.root()));
        leaks::clear_loops(self.device);
        self.unmount_below(None);
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    }
}
