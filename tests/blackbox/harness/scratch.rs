//! A filesystem for pools, with the leak check of the black-box tests.

#![expect(clippy::disallowed_methods, reason = "the test removes the mounts that it caused")]

use std::fs;
use std::ops::Deref;
use std::path::Path;

use holdfast::os::{MountTable, Os};
use holdfast::testing::scratch as base;
use nix::mount::{MntFlags, umount2};

use super::leaks;

pub(crate) use base::PoolFs;

/// The scratch filesystem. Dropping it removes everything below it, and fails the test if the driver left something
/// that it should have removed.
#[derive(Debug)]
pub(crate) struct Scratch(base::Scratch);

/// The mounts visible to this thread.
pub(crate) fn mounts() -> MountTable {
    MountTable::parse(&fs::read("/proc/thread-self/mountinfo").unwrap()).unwrap()
}

/// A mount namespace of the thread's own, with shared mounts as on a machine with systemd: the driver stages nothing
/// where other processes would not see it.
pub(crate) fn own_mounts() {
    Os::new().own_mounts().expect("black-box tests need root");
}

impl Scratch {
    /// Creates and mounts one of `size` bytes; sparse, so it needs only the written space.
    pub(crate) fn new(kind: PoolFs, size: u64) -> Self {
        Self::on(kind, size, base::Store::File)
    }

    /// The same, with the disk, and the files beside it, in `store`.
    pub(crate) fn on(kind: PoolFs, size: u64, store: base::Store) -> Self {
        Self(base::Scratch::on(kind, base::Disk { store, cache: base::Cache::Buffered, ..base::Disk::of(size) }))
    }

    /// On a separate disk with such a filesystem, in the mount namespace that the thread already has. Direct I/O:
    /// requests are processed in parallel, and one without an answer blocks no flush.
    pub(crate) fn over(disk: &Path, kind: PoolFs) -> Self {
        Self(base::Scratch::over(disk, kind))
    }

    fn unmount_below(&self, keep: Option<&Path>) {
        let table = mounts();
        let below = table.entries().iter().rev().map(|entry| entry.mount_point.clone());
        // What is mounted on the directory itself is the memory of the disk.
        for point in below.filter(|point| point.starts_with(self.path()) && point != self.path()) {
            if Some(point.as_path()) == keep {
                continue;
            }
            if umount2(&point, MntFlags::UMOUNT_NOFOLLOW).is_err() {
                let _ = umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            }
        }
    }
}

impl Deref for Scratch {
    type Target = base::Scratch;

    fn deref(&self) -> &base::Scratch {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let left = if std::thread::panicking() { Vec::new() } else { leaks::find(self) };
        self.unmount_below(Some(&self.root()));
        leaks::clear_loops(self.device());
        self.unmount_below(None);
        assert!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    }
}
