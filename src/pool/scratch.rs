//! Real filesystems for tests: made in a file, mounted by loop in a mount namespace of the test's own, and gone with
//! the guard. A tool or right that is missing fails the test: it never skips.

#![expect(clippy::disallowed_methods, reason = "the guard mounts outside of what it tests")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::os::{Discard, LoopConfig, LoopDevice, Os, Program};
use crate::pool::{Pool, PoolSpec, open};
use crate::types::NodeId;

use std::sync::Arc;

/// The filesystems a pool may lie on, as made for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ground {
    Xfs,
    XfsWithoutReflink,
    Ext4,
    Btrfs,
}

impl Ground {
    fn mkfs(self) -> (&'static str, &'static [&'static str], &'static str) {
        match self {
            Self::Xfs => ("mkfs.xfs", &["-q", "-m", "reflink=1"], "xfs"),
            Self::XfsWithoutReflink => ("mkfs.xfs", &["-q", "-m", "reflink=0"], "xfs"),
            Self::Ext4 => ("mkfs.ext4", &["-q", "-m", "0"], "ext4"),
            Self::Btrfs => ("mkfs.btrfs", &["-q"], "btrfs"),
        }
    }
}

/// A mounted filesystem of its own. Must be made and dropped on one thread: the mount is that thread's alone.
pub(crate) struct Scratch {
    os: Os,
    directory: tempfile::TempDir,
    device: LoopDevice,
}

impl Scratch {
    /// Of 512 MiB.
    pub(crate) fn new(ground: Ground) -> Self {
        Self::of(ground, 512)
    }

    /// Of so many MiB.
    pub(crate) fn of(ground: Ground, mib: u64) -> Self {
        let os = Os::new();
        unshare(CloneFlags::CLONE_NEWNS).expect("unshare: run the tests as root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("make / private");
        let directory = tempfile::tempdir().expect("tempdir");
        let image = directory.path().join("disk");
        File::create(&image).expect("create disk").set_len(mib << 20).expect("size disk");
        let (program, arguments, kind) = ground.mkfs();
        let program = Program::find(program, &image, Duration::from_secs(60)).expect("find mkfs");
        let output = os.run(&program.args(arguments.iter().copied()).arg(image.display().to_string())).expect("mkfs");
        assert!(output.success(), "{}", output.summary());
        let file = os.open_image(&image.canonicalize().expect("path")).expect("open disk").expect("disk");
        let config =
            LoopConfig { block_size: 512, name: format!("scratch-{}", std::process::id()), discard: Discard::Off };
        let device = os.loop_attach(&file, &image, &config).expect("attach disk");
        let scratch = Self { os, directory, device };
        fs::create_dir(scratch.mount_point()).expect("mkdir");
        mount(Some(&device.path()), &scratch.mount_point(), Some(kind), MsFlags::empty(), None::<&str>)
            .expect("mount scratch filesystem");
        scratch
    }

    fn mount_point(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    /// Where a pool may be made: an empty directory, or the filesystem's root.
    pub(crate) fn root(&self) -> PathBuf {
        self.mount_point()
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
        let leaked: Vec<_> = inside
            .map(|inside| self.os.loops().expect("loops").into_iter().filter(|l| l.on_filesystem_of(&inside)).collect())
            .unwrap_or_default();
        for status in &leaked {
            let _ = self.os.loop_clear(status);
        }
        let unmounted = umount2(&self.mount_point(), MntFlags::empty());
        let cleared = self.os.loop_status(self.device).map(|status| status.map(|status| self.os.loop_clear(&status)));
        if !std::thread::panicking() {
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
