//! mount(2) and umount(2). Each call is listed while it runs, so one that hangs is visible with path and age.

#![expect(clippy::disallowed_methods, reason = "this is the only module that mounts")]

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::{Call, Os};

/// Flags of a mount, as mount(2) calls them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountFlags {
    /// MS_RDONLY.
    pub read_only: bool,
    /// MS_NOSUID.
    pub no_suid: bool,
    /// MS_NODEV.
    pub no_dev: bool,
    /// MS_NOEXEC.
    pub no_exec: bool,
    /// MS_NOATIME.
    pub no_atime: bool,
    /// MS_NODIRATIME.
    pub no_dir_atime: bool,
    /// MS_RELATIME.
    pub relatime: bool,
    /// MS_LAZYTIME.
    pub lazytime: bool,
    /// MS_SYNCHRONOUS.
    pub synchronous: bool,
    /// MS_DIRSYNC.
    pub dir_sync: bool,
}

impl MountFlags {
    fn bits(self) -> MsFlags {
        [
            (self.read_only, MsFlags::MS_RDONLY),
            (self.no_suid, MsFlags::MS_NOSUID),
            (self.no_dev, MsFlags::MS_NODEV),
            (self.no_exec, MsFlags::MS_NOEXEC),
            (self.no_atime, MsFlags::MS_NOATIME),
            (self.no_dir_atime, MsFlags::MS_NODIRATIME),
            (self.relatime, MsFlags::MS_RELATIME),
            (self.lazytime, MsFlags::MS_LAZYTIME),
            (self.synchronous, MsFlags::MS_SYNCHRONOUS),
            (self.dir_sync, MsFlags::MS_DIRSYNC),
        ]
        .into_iter()
        .filter(|(set, _)| *set)
        .fold(MsFlags::empty(), |bits, (_, bit)| bits | bit)
    }
}

impl Os {
    /// Mounts a filesystem. `options` are the filesystem's own, comma-separated.
    ///
    /// # Errors
    /// Those of mount(2).
    pub fn mount(
        &self,
        device: &Path,
        point: &Path,
        fs_type: &str,
        flags: MountFlags,
        options: &str,
    ) -> io::Result<()> {
        let _ongoing = self.activity().enter("mount", &point.display().to_string(), None);
        self.call(Call::Mount, &point.display(), || {
            mount(Some(device), point, Some(fs_type), flags.bits(), Some(options)).map_err(Into::into)
        })
    }

    /// Unmounts the topmost mount at a path; false when there is none (EINVAL of umount(2), ENOENT).
    ///
    /// Never lazy: a busy filesystem fails with EBUSY, and stays mounted.
    ///
    /// # Errors
    /// Those of umount(2).
    pub fn unmount(&self, point: &Path) -> io::Result<bool> {
        let _ongoing = self.activity().enter("umount", &point.display().to_string(), None);
        self.call(Call::Unmount, &point.display(), || match umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => Ok(true),
            Err(Errno::EINVAL | Errno::ENOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        })
    }

    /// Gives this thread, and every thread and child it starts later, its own mount namespace. Its mounts are invisible
    /// to others and disappear with the last of these threads. Inside it mounts are shared as on a machine with
    /// systemd. Call it before any thread is started.
    ///
    /// # Errors
    /// Those of unshare(2) and mount(2): EPERM without CAP_SYS_ADMIN.
    pub fn own_mounts(&self) -> io::Result<()> {
        self.call(Call::OwnMounts, &"/", || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            for propagation in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
                mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | propagation, None::<&str>)?;
            }
            Ok(())
        })
    }
}
