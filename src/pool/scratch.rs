//! Real filesystems for tests. Each is created in a file and mounted through a loop device, in the test's own mount
//! namespace. The guard removes it and fails the test when a loop device leaked. A missing tool or permission fails the
//! test: tests never skip.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::{Pool, PoolSpec, open};
use crate::os::{Discard, LoopAccess, LoopConfig, LoopDevice, MountFlags, Os, Program};
use crate::types::NodeId;

/// The filesystems that a pool may be on, as created for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackingFs {
    Xfs,
    XfsWithoutReflink,
    Ext4,
    Btrfs,
}

impl BackingFs {
    fn mkfs(self) -> (&'static str, &'static [&'static str], &'static str) {
        match self {
            Self::Xfs => ("mkfs.xfs", &["-q", "-m", "reflink=1"], "xfs"),
            Self::XfsWithoutReflink => ("mkfs.xfs", &["-q", "-m", "reflink=0"], "xfs"),
            Self::Ext4 => ("mkfs.ext4", &["-q", "-m", "0"], "ext4"),
            Self::Btrfs => ("mkfs.btrfs", &["-q"], "btrfs"),
        }
    }
}

/// A mounted filesystem of 512 MiB. Create and drop it on one thread: that thread gets its own mount namespace.
pub(crate) struct Scratch {
    os: Os,
    directory: tempfile::TempDir,
    device: LoopDevice,
    disk: Disk,
}

/// Where the disk of a scratch filesystem is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    File,
    /// In memory: fsync costs nothing. Needs direct I/O on tmpfs, Linux 6.6.
    Memory,
}

impl Scratch {
    pub(crate) fn new(ground: BackingFs) -> Self {
        Self::on_blocks(ground, 512)
    }

    /// On a disk with this block size in bytes.
    pub(crate) fn on_blocks(ground: BackingFs, block_size: u32) -> Self {
        Self::make(ground, block_size, 512, Disk::File)
    }

    /// On a disk of this many MiB.
    pub(crate) fn of(ground: BackingFs, mib: u64) -> Self {
        Self::make(ground, 512, mib, Disk::File)
    }

    /// In memory, for tests that write and sync often.
    pub(crate) fn in_memory(ground: BackingFs, mib: u64) -> Self {
        Self::make(ground, 512, mib, Disk::Memory)
    }

    fn make(ground: BackingFs, block_size: u32, mib: u64, disk: Disk) -> Self {
        let os = Os::new();
        os.own_mounts().expect("mounts of our own: run the tests as root");
        let directory = tempfile::tempdir().expect("tempdir");
        if disk == Disk::Memory {
            let size = format!("size={}m", mib + 16);
            let mounted = os.mount(Path::new("tmpfs"), directory.path(), "tmpfs", MountFlags::default(), &size);
            mounted.expect("mount tmpfs");
        }
        let image = directory.path().join("disk");
        File::create(&image).expect("create disk").set_len(mib << 20).expect("size disk");
        let (program, arguments, kind) = ground.mkfs();
        run(&os, program, arguments.iter().copied().chain([image.to_str().expect("path")]));
        let file = os.open_image(&image.canonicalize().expect("path")).expect("open disk").expect("disk");
        let name = format!("scratch-{}", std::process::id());
        let config =
            LoopConfig { block_size, owner: name.clone(), name, discard: Discard::Off, access: LoopAccess::Writable };
        let device = os.loop_attach(&file, &image, &config).expect("attach disk");
        let scratch = Self { os, directory, device, disk };
        fs::create_dir(scratch.mount_point()).expect("mkdir");
        let mounted = scratch.os.mount(&device.path(), &scratch.mount_point(), kind, MountFlags::default(), "");
        mounted.expect("mount scratch filesystem");
        scratch
    }

    /// Retries while it is busy: a process that another test forks has our files open until its exec.
    fn unmount(&self) -> std::io::Result<bool> {
        for _ in 0..100 {
            match self.os.unmount(&self.mount_point()) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => thread::sleep(Duration::from_millis(20)),
                result => return result,
            }
        }
        self.os.unmount(&self.mount_point())
    }

    fn mount_point(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    /// The directory for a pool.
    pub(crate) fn root(&self) -> PathBuf {
        self.mount_point()
    }

    /// A directory beside the filesystem, for mount points and other files.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A pool at its root.
    pub(crate) fn pool(&self) -> Arc<dyn Pool> {
        open(&self.os, &spec(&self.root()), &home()).expect("open pool")
    }

    pub(crate) fn os(&self) -> &Os {
        &self.os
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let inside = self.os.identity(&self.mount_point()).ok().flatten();
        let leaked: Vec<_> = inside.map(|inside| self.os.loops_beside(&inside).expect("loops")).unwrap_or_default();
        for status in &leaked {
            let _ = self.os.loop_clear(status);
        }
        let unmounted = self.unmount();
        let cleared = self.os.loop_status(self.device).map(|status| status.map(|status| self.os.loop_clear(&status)));
        if self.disk == Disk::Memory {
            let _ = self.os.unmount(self.directory.path());
        }
        if !thread::panicking() {
            assert!(leaked.is_empty(), "loop devices leaked: {leaked:?}");
            unmounted.expect("unmount scratch filesystem");
            assert!(matches!(cleared, Ok(None | Some(Ok(true)))), "the scratch disk stays: {cleared:?}");
        }
    }
}

pub(crate) fn spec(root: &Path) -> PoolSpec {
    PoolSpec::file("default".parse().expect("name"), root).expect("spec")
}

pub(crate) fn home() -> NodeId {
    "node-1".parse().expect("node")
}

/// Runs a program that must succeed.
pub(crate) fn run<'a>(os: &Os, program: &str, arguments: impl IntoIterator<Item = &'a str>) {
    let found = Program::find(program, Path::new("/"), Duration::from_secs(60)).expect("find program");
    let output = os.run(&found.args(arguments)).expect("run program");
    assert!(output.success(), "{program}: {}", output.summary());
}
