//! mount(2) and umount(2). Each call is listed while it runs, so one that hangs is visible with path and age.
//!
//! mount(2) is called through sys_mount, umount2(2) through nix: sys_mount's `UnmountFlags::NOFOLLOW` is O_NOFOLLOW
//! (0x20000) instead of UMOUNT_NOFOLLOW (8), and the kernel answers EINVAL to it, which here means "nothing is mounted".

#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "this is the only module that mounts")]

use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use sys_mount::{Mount, MountFlags as Bits, PropagationType};

use super::{Call, Os};

/// MS_LAZYTIME, which sys_mount does not name.
const LAZYTIME: Bits = Bits::from_bits_retain(1 << 25);

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
    fn bits(self) -> Bits {
        [
            (self.read_only, Bits::RDONLY),
            (self.no_suid, Bits::NOSUID),
            (self.no_dev, Bits::NODEV),
            (self.no_exec, Bits::NOEXEC),
            (self.no_atime, Bits::NOATIME),
            (self.no_dir_atime, Bits::NODIRATIME),
            (self.relatime, Bits::RELATIME),
            (self.lazytime, LAZYTIME),
            (self.synchronous, Bits::SYNCHRONOUS),
            (self.dir_sync, Bits::DIRSYNC),
        ]
        .into_iter()
        .filter(|(set, _)| *set)
        .fold(Bits::empty(), |bits, (_, bit)| bits | bit)
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
            let filesystem = Mount::builder().fstype(fs_type).flags(flags.bits()).data(options);
            filesystem.mount(device, point).map(drop).map_err(of_mount)
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
            for propagation in [PropagationType::PRIVATE, PropagationType::SHARED] {
                let flags = Bits::REC | Bits::from_bits_retain(propagation.bits());
                Mount::builder().fstype("").flags(flags).mount("", "/").map(drop).map_err(of_mount)?;
            }
            Ok(())
        })
    }
}

/// The error of mount(2); a text with a NUL byte, which never reaches it, is EINVAL as well.
fn of_mount(error: io::Error) -> io::Error {
    if error.raw_os_error().is_some() { error } else { Errno::EINVAL.into() }
}
