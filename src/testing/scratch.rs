//! Real filesystems for tests, each in a file on a loop device, in the test's own mount namespace. This is the only
//! builder: the tests of this crate, tests/, benches/ and fuzz/ use it. A missing tool or permission fails the test:
//! tests never skip.
//!
//! Nothing is left when a test is killed: the loop device is removed with its mount, and the mount with the namespace.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::os::{Discard, FileIdentity, LoopAccess, LoopConfig, LoopStatus, MountFlags, Os, Program};
use crate::pool::{Pool, PoolSpec, open};
use crate::types::{MIB, NodeId};

/// How long an unmount or a detach may take: a process that another test forks has our files open until its exec.
const ATTEMPTS: usize = 100;
const PAUSE: Duration = Duration::from_millis(20);
const MOUNT_POINT: &str = "fs";

/// The filesystems that a pool may be on, as created for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolFs {
    /// XFS with reflinks: everything is supported.
    Xfs,
    /// XFS without reflinks.
    XfsWithoutReflink,
    /// ext4: no reflinks.
    Ext4,
    /// btrfs: thin only.
    Btrfs,
}

impl PoolFs {
    /// One of each type.
    pub const ALL: [Self; 3] = [Self::Xfs, Self::Ext4, Self::Btrfs];

    fn mkfs(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Xfs => ("mkfs.xfs", &["-q", "-K", "-m", "reflink=1"]),
            Self::XfsWithoutReflink => ("mkfs.xfs", &["-q", "-K", "-m", "reflink=0"]),
            Self::Ext4 => ("mkfs.ext4", &["-q", "-m", "0", "-E", "nodiscard,assume_storage_prezeroed=1"]),
            Self::Btrfs => ("mkfs.btrfs", &["-q", "-K"]),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Xfs | Self::XfsWithoutReflink => "xfs",
            Self::Ext4 => "ext4",
            Self::Btrfs => "btrfs",
        }
    }

    /// Formats a disk, which is all zeroes.
    pub fn make(self, disk: &Path) {
        let (program, arguments) = self.mkfs();
        run(&Os::new(), program, arguments.iter().copied().chain([text(disk)]));
    }
}

/// The disk of a scratch filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Bytes; only what is written takes space.
    pub size: u64,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Where its file is.
    pub store: Store,
    /// Whether it goes through the page cache of the filesystem below.
    pub cache: Cache,
}

/// Where the file of a disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// In the temporary directory.
    File,
    /// In a tmpfs: fsync costs nothing. Needs direct I/O on tmpfs, Linux 6.6.
    Memory,
}

/// The I/O of a disk's loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Direct I/O.
    Direct,
    /// Buffered I/O, as `mount -o loop` has it.
    Buffered,
}

impl Disk {
    /// A sparse file of so many bytes, with direct I/O.
    #[must_use]
    pub const fn of(size: u64) -> Self {
        Self { size, block_size: 512, store: Store::File, cache: Cache::Direct }
    }
}

/// A mounted filesystem. Create and drop it on one thread. Dropping it fails the test if a loop device of a file on it
/// was left.
#[derive(Debug)]
pub struct Scratch {
    os: Os,
    directory: tempfile::TempDir,
    device: LoopStatus,
    inside: FileIdentity,
    store: Store,
}

impl Scratch {
    /// On a disk of 512 MiB. This thread gets its own mount namespace.
    #[must_use]
    pub fn new(kind: PoolFs) -> Self {
        Self::of(kind, 512)
    }

    /// On a disk of this many MiB. This thread gets its own mount namespace.
    #[must_use]
    pub fn of(kind: PoolFs, mib: u64) -> Self {
        Self::on(kind, Disk::of(mib * MIB))
    }

    /// In memory, for tests that write and sync often. This thread gets its own mount namespace.
    #[must_use]
    pub fn in_memory(kind: PoolFs, mib: u64) -> Self {
        Self::on(kind, Disk { store: Store::Memory, ..Disk::of(mib * MIB) })
    }

    /// On a new disk. This thread gets its own mount namespace.
    #[must_use]
    pub fn on(kind: PoolFs, disk: Disk) -> Self {
        let os = Os::new();
        os.own_mounts().expect("mounts of our own: run the tests as root");
        let directory = directory();
        if disk.store == Store::Memory {
            let size = format!("mode=0700,size={}", disk.size + 16 * MIB);
            let mounted = os.mount(Path::new("tmpfs"), directory.path(), "tmpfs", MountFlags::default(), &size);
            mounted.expect("mount tmpfs");
        }
        let image = directory.path().join("disk");
        File::create(&image).expect("create disk").set_len(disk.size).expect("size disk");
        kind.make(&image);
        let scratch = Self::mounted(os, directory, &image, kind, disk);
        // The loop device has it.
        fs::remove_file(&image).expect("remove disk");
        scratch
    }

    /// On a file that has a filesystem, in the mount namespace that this thread has.
    #[must_use]
    pub fn over(disk: &Path, kind: PoolFs) -> Self {
        Self::mounted(Os::new(), directory(), disk, kind, Disk::of(0))
    }

    fn mounted(os: Os, directory: tempfile::TempDir, image: &Path, kind: PoolFs, disk: Disk) -> Self {
        let image = image.canonicalize().expect("path of disk");
        let file = os.open_image(&image).expect("open disk").expect("disk");
        let name = format!("scratch-{}", std::process::id());
        let config = LoopConfig {
            block_size: disk.block_size,
            owner: name.clone(),
            name,
            discard: Discard::Off,
            access: LoopAccess::Writable,
        };
        let device = os.loop_attach(&file, &image, &config).expect("attach disk");
        let device = os.loop_status(device).expect("status of disk").expect("an attached disk");
        let path = device.device.path();
        if disk.cache == Cache::Buffered {
            run(&os, "losetup", ["--direct-io=off", text(&path)]);
        }
        let root = directory.path().join(MOUNT_POINT);
        fs::create_dir(&root).expect("mkdir");
        os.mount(&path, &root, kind.name(), MountFlags::default(), "").expect("mount scratch filesystem");
        // A device in use is detached by its last user.
        run(&os, "losetup", ["--detach", text(&path)]);
        let inside = os.identity(&root).expect("stat").expect("the scratch filesystem");
        Self { os, directory, device, inside, store: disk.store }
    }

    /// The mount point, for a pool.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.path().join(MOUNT_POINT)
    }

    /// The directory around the mount point, on the filesystem below: for kubelet's directories and other files.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A path beside the filesystem.
    #[must_use]
    pub fn beside(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A pool at its root.
    #[must_use]
    pub fn pool(&self) -> Arc<dyn Pool> {
        open(&self.os, &spec(&self.root()), &home()).expect("open pool")
    }

    /// The device number of the filesystem.
    #[must_use]
    pub fn device(&self) -> u64 {
        self.inside.device
    }

    /// System calls without faults.
    #[must_use]
    pub fn os(&self) -> &Os {
        &self.os
    }

    /// The loop devices of files on it.
    #[must_use]
    pub fn loops(&self) -> Vec<LoopStatus> {
        self.os.loops_beside(&self.inside).expect("loops")
    }

    fn unmount(&self) -> std::io::Result<bool> {
        for _ in 1..ATTEMPTS {
            match self.os.unmount(&self.root()) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => thread::sleep(PAUSE),
                result => return result,
            }
        }
        self.os.unmount(&self.root())
    }

    /// Whether the loop device still has our disk.
    fn has_disk(&self) -> bool {
        matches!(self.os.loop_status(self.device.device), Ok(Some(now)) if now.diskseq == self.device.diskseq)
    }

    /// Whether the loop device has another disk, or none, after a while.
    fn is_detached(&self) -> bool {
        (0..ATTEMPTS).any(|_| {
            let still = self.has_disk();
            if still {
                thread::sleep(PAUSE);
            }
            !still
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Where the test unmounted it, the disk is detached already, and its number may be another test's disk.
        let leaked = if self.has_disk() { self.os.loops_beside(&self.inside) } else { Ok(Vec::new()) };
        let leaked = if thread::panicking() { leaked.unwrap_or_default() } else { leaked.expect("loops") };
        for status in &leaked {
            let _ = self.os.loop_clear(status);
        }
        // Nothing is mounted where the test itself took it away, which may be lazily.
        let unmounted = self.unmount();
        let is_detached = thread::panicking() || !matches!(unmounted, Ok(true)) || self.is_detached();
        if self.store == Store::Memory {
            let _ = self.os.unmount(self.path());
        }
        if !thread::panicking() {
            assert!(leaked.is_empty(), "loop devices leaked: {leaked:?}");
            unmounted.expect("unmount scratch filesystem");
            assert!(is_detached, "the scratch disk stays: {:?}", self.device);
        }
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("holdfast-test-").tempdir().expect("tempdir")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A pool of files in this directory.
#[must_use]
pub fn spec(root: &Path) -> PoolSpec {
    PoolSpec::file("default".parse().expect("name"), root).expect("spec")
}

/// The node of the pools.
#[must_use]
pub fn home() -> NodeId {
    "node-1".parse().expect("node")
}

/// Runs a program that must succeed.
pub fn run<'a>(os: &Os, program: &str, arguments: impl IntoIterator<Item = &'a str>) {
    let found = Program::find(program, Path::new("/"), Duration::from_secs(60)).expect("find program");
    let output = os.run(&found.args(arguments)).expect("run program");
    assert!(output.success(), "{program}: {}", output.summary());
}
