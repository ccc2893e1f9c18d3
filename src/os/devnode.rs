//! A device opened by its number where /dev has no node for it, or one that shows another device (a container with a /dev of
//! its own, `rm /dev/loop33`). The node is made in a tmpfs that is mounted nowhere: no path, nothing to clean up, and no
//! `nodev` of /run in the way.

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

/// Opens a block device by number: by its usual path if that is the node of this device, else by a node of our own.
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

/// Whether a path is the node of a block device with this number. Opens nothing.
///
/// # Errors
/// Those of lstat(2), but not that it is missing.
pub(super) fn is_node_of(path: &Path, number: DevNum) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) => Ok(meta.file_type().is_block_device() && DevNum::from_dev_t(meta.rdev()) == number),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// fsopen(2), fsconfig(2), fsmount(2): a tmpfs that goes with its descriptor and what is open in it.
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
    // SAFETY: the descriptor was made by this call and is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
