//! Bind mounts that appear in one step with their flags: open_tree(2), mount_setattr(2), move_mount(2).
//!
//! The older way, a bind mount and then a remount, leaves a writable bind mount if the process is killed in between. A
//! bind mount without flags is one step either way, and uses mount(2). With a descriptor, a child that another thread
//! starts at that moment would have a copy until its exec, and the mount would be busy (EBUSY) meanwhile.

#![expect(unsafe_code, reason = "the C library has no wrappers for these system calls")]
#![expect(clippy::disallowed_methods, reason = "binds are mounts")]

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use linux_raw_sys::general::{
    MOUNT_ATTR__ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MOUNT_ATTR_SIZE_VER0, MOVE_MOUNT_F_EMPTY_PATH, OPEN_TREE_CLONE, mount_attr,
};
use nix::mount::{MsFlags, mount};

use super::{Call, MountFlags, Os};

impl Os {
    /// Bind-mounts `from` on `to`. Adds the flags of a single mount (`ro`, `nosuid`, `nodev`, `noexec`, `noatime`,
    /// `nodiratime`) to those of the mount at `from`, and removes none.
    ///
    /// Atomic: until the last of three system calls the bind mount is attached nowhere, and disappears with our
    /// process. `to` is not followed if it is a symbolic link.
    ///
    /// # Errors
    /// Those of mount(2), open_tree(2), mount_setattr(2) and move_mount(2): ENOENT when `from` or `to` is missing.
    pub fn bind(&self, from: &Path, to: &Path, flags: MountFlags) -> io::Result<()> {
        let _ongoing = self.activity().enter("bind mount", &to.display().to_string(), None);
        self.call(Call::Bind, &to.display(), || {
            let attributes = attributes(flags);
            if attributes.attr_set == 0 {
                return bind_plainly(from, to);
            }
            let tree = open_tree(from)?;
            set_attributes(&tree, &attributes)?;
            move_mount(&tree, to)
        })
    }
}

fn attributes(flags: MountFlags) -> mount_attr {
    let set = [
        (flags.read_only, MOUNT_ATTR_RDONLY),
        (flags.no_suid, MOUNT_ATTR_NOSUID),
        (flags.no_dev, MOUNT_ATTR_NODEV),
        (flags.no_exec, MOUNT_ATTR_NOEXEC),
        (flags.no_atime, MOUNT_ATTR_NOATIME),
        (flags.no_dir_atime, MOUNT_ATTR_NODIRATIME),
    ];
    let set = set.into_iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, bit)| all | u64::from(bit));
    // The kinds of atime are one field, not bits: to set one, the field is cleared in the same call (mount_setattr(2)).
    let clear = if flags.no_atime { u64::from(MOUNT_ATTR__ATIME) } else { 0 };
    mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 }
}

fn bind_plainly(from: &Path, to: &Path) -> io::Result<()> {
    let place = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(to)?;
    let to = format!("/proc/self/fd/{}", place.as_raw_fd());
    mount(Some(from), to.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(Into::into)
}

fn open_tree(from: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(from.as_os_str().as_bytes())?;
    let flags = libc::c_uint::try_from(libc::O_CLOEXEC).map_err(io::Error::other)? | OPEN_TREE_CLONE;
    // SAFETY: the kernel reads a NUL-terminated path, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = i32::try_from(checked(result)?).map_err(io::Error::other)?;
    // SAFETY: the descriptor was made by this call and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_attributes(tree: &OwnedFd, attributes: &mount_attr) -> io::Result<()> {
    let fd = tree.as_raw_fd();
    let attributes: *const mount_attr = attributes;
    // SAFETY: the kernel reads an empty path and one mount_attr of MOUNT_ATTR_SIZE_VER0 bytes; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            attributes,
            libc::size_t::try_from(MOUNT_ATTR_SIZE_VER0).map_err(io::Error::other)?,
        )
    };
    checked(result).map(drop)
}

fn move_mount(tree: &OwnedFd, to: &Path) -> io::Result<()> {
    let path = CString::new(to.as_os_str().as_bytes())?;
    let fd = tree.as_raw_fd();
    // SAFETY: the kernel reads two NUL-terminated paths, which outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_move_mount, fd, c"".as_ptr(), libc::AT_FDCWD, path.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH)
    };
    checked(result).map(drop)
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
