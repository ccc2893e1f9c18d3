//! Opens a device by its number if /dev has no device node for it, or a wrong one (a container with its own /dev, `rm
//! /dev/loop33`). The device node is created in a tmpfs that is not mounted anywhere: it has no path, needs no cleanup,
//! and is not affected by `nodev` on /run.

#![expect(unsafe_code, reason = "the C library has no wrappers for these system calls")]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use linux_raw_sys::general::{FSMOUNT_CLOEXEC, FSOPEN_CLOEXEC, fsconfig_command};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, makedev, mknodat};

use super::DevNum;

const NODE: &str = "node";

/// Opens a block device by number: by its usual path if that is its device node, otherwise by a device node of our own.
///
/// # Errors
/// Those of open(2) on the device; of fsopen(2), fsmount(2) and mknodat(2), which need CAP_SYS_ADMIN and CAP_MKNOD.
pub(super) fn open_numbered(path: &Path, number: DevNum, flags: OFlag) -> io::Result<File> {
    let flags = flags | OFlag::O_CLOEXEC;
    if is_node_of(path, number)? {
        return Ok(File::from(nix::fcntl::open(path, flags, Mode::empty())?));
    }
    let tmpfs = unmounted_tmpfs()?;
    let device = makedev(number.major, number.minor);
    mknodat(&tmpfs, NODE, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, device)?;
    Ok(File::from(openat(&tmpfs, NODE, flags, Mode::empty())?))
}

/// Whether a path is the device node of a block device with this number. Opens nothing.
///
/// # Errors
/// Those of lstat(2), except that it is missing.
pub(super) fn is_node_of(path: &Path, number: DevNum) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) => Ok(meta.file_type().is_block_device() && DevNum::from_dev_t(meta.rdev()) == number),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// fsopen(2), fsconfig(2), fsmount(2): a tmpfs that disappears when its descriptor and its open files are closed.
fn unmounted_tmpfs() -> io::Result<OwnedFd> {
    const NO_TEXT: *const libc::c_char = std::ptr::null();
    let kind: &CStr = c"tmpfs";
    // SAFETY: the kernel reads a NUL-terminated name, which outlives the call.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) };
    let context = owned(context)?;
    let create = fsconfig_command::FSCONFIG_CMD_CREATE as libc::c_uint;
    // SAFETY: FSCONFIG_CMD_CREATE takes neither key nor value: both are null.
    let made = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), create, NO_TEXT, NO_TEXT, 0) };
    checked(made)?;
    // SAFETY: takes a descriptor and two numbers.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(checked(result)?).map_err(io::Error::other)?;
    // SAFETY: the descriptor was made by this call and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
