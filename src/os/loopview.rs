//! Loop devices in sysfs (Documentation/ABI/testing/sysfs-block-loop; drivers/block/loop.c, `loop_attrs`). Nothing here
//! opens a device or queries the filesystem of an image, so a failing or hanging one blocks nothing.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::read;

use super::{Call, LoopDevice, LoopStatus, Os};

const BLOCK: &str = "/sys/block";
/// The path of the image, below the directory of a device that has one.
const BACKING: &str = "loop/backing_file";
/// Bytes for any attribute of a loop device: the longest path (PATH_MAX) and a suffix.
const ROOM: usize = 8192;
/// The kernel's suffix for the path of a deleted file.
const DELETED: &[u8] = b" (deleted)";

/// An attached loop device, as sysfs shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopView {
    /// The device.
    pub device: LoopDevice,
    /// The path of the image as the kernel prints it for this process. From another mount namespace it may be only the
    /// part below the filesystem's mount. It selects candidates and never identifies an image.
    pub backing: PathBuf,
    /// The kernel's sequence number of this attachment; `None` before Linux 5.15. See [`super::LoopStatus::diskseq`].
    pub diskseq: Option<u64>,
    /// The autoclear flag: detached with its last user.
    pub autoclear: bool,
    /// Offset of the device in the image.
    pub offset: u64,
    /// The size limit in bytes, 0 for none.
    pub size_limit: u64,
    /// Read-only.
    pub read_only: bool,
}

impl LoopView {
    /// The status as far as it is known without a query: everything except the image. Sufficient for [`Os::loop_clear`]
    /// if there is a sequence number.
    #[must_use]
    pub fn unasked(&self) -> LoopStatus {
        LoopStatus {
            device: self.device,
            backing_device: u64::MAX,
            backing_inode: u64::MAX,
            backing_rdev: u64::MAX,
            diskseq: self.diskseq,
            name: String::new(),
            direct_io: false,
            read_only: self.read_only,
            autoclear: self.autoclear,
            offset: self.offset,
        }
    }

    /// The loop device this one lies on, by the name of its backing file; `None` when that is no loop device.
    #[must_use]
    pub fn below(&self) -> Option<LoopDevice> {
        LoopDevice::named(self.backing.file_name()?.to_str()?)
    }

    /// Whether the image's path ends with these components.
    #[must_use]
    pub fn ends_with(&self, tail: &Path) -> bool {
        self.backing.ends_with(tail)
    }
}

impl Os {
    /// The attached loop devices with a selected image path, in the order of their numbers.
    ///
    /// # Errors
    /// Those of reading /sys/block, except for a device that disappears meanwhile.
    pub fn loop_views(&self, chosen: impl Fn(&Path) -> bool) -> io::Result<Vec<LoopView>> {
        self.call(Call::LoopScan, &BLOCK, || {
            let mut found = Vec::new();
            for (device, listed) in self.inner.loop_table.attached()?.iter() {
                if chosen(listed)
                    && let Some(backing) = backing(*device)?.filter(|backing| chosen(backing))
                {
                    found.extend(view(*device, backing)?);
                }
            }
            Ok(found)
        })
    }

    /// One loop device; `None` when it has no image, or does not exist.
    ///
    /// # Errors
    /// Those of reading sysfs.
    pub fn loop_view(&self, device: LoopDevice) -> io::Result<Option<LoopView>> {
        self.call(Call::LoopView, &device.path().display(), || match backing(device)? {
            Some(backing) => view(device, backing),
            None => Ok(None),
        })
    }
}

/// The numbers of all loop devices, attached or not.
pub(super) fn loop_numbers() -> io::Result<Vec<LoopDevice>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(BLOCK)? {
        devices.extend(entry?.file_name().to_str().and_then(LoopDevice::named));
    }
    devices.sort_unstable();
    Ok(devices)
}

/// The path of a loop device's image; `None` when there is none.
pub(super) fn backing(device: LoopDevice) -> io::Result<Option<PathBuf>> {
    Ok(attribute(AT_FDCWD, &device.sysfs().join(BACKING))?.map(image))
}

/// The path of an image from the text of the attribute.
fn image(mut text: Vec<u8>) -> PathBuf {
    if text.ends_with(b"\n") {
        text.pop();
    }
    if text.ends_with(DELETED) {
        text.truncate(text.len() - DELETED.len());
    }
    PathBuf::from(OsString::from_vec(text))
}

/// The kernel's sequence number of a loop device, attached or not.
pub(super) fn diskseq(device: LoopDevice) -> io::Result<Option<u64>> {
    number(AT_FDCWD, &device.sysfs().join("diskseq"))
}

fn view(device: LoopDevice, backing: PathBuf) -> io::Result<Option<LoopView>> {
    let directory = open(&device.sysfs(), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let Some(directory) = there(directory)? else { return Ok(None) };
    let of = |name: &str| number(directory.as_fd(), Path::new(name));
    let before = of("diskseq")?;
    let (Some(autoclear), Some(offset), Some(size_limit), Some(read_only)) =
        (of("loop/autoclear")?, of("loop/offset")?, of("loop/sizelimit")?, of("ro")?)
    else {
        return Ok(None);
    };
    Ok(Some(LoopView {
        device,
        backing,
        diskseq: before,
        autoclear: autoclear != 0,
        offset,
        size_limit,
        read_only: read_only != 0,
    }))
}

/// The text of an attribute, at a path from a directory or from the root; `None` when it does not exist, or was removed
/// while it was read.
fn attribute(directory: BorrowedFd<'_>, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = there(openat(directory, path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()))? else {
        return Ok(None);
    };
    // All of an attribute comes with the first read(2) (Documentation/filesystems/sysfs.rst).
    let mut text = vec![0; ROOM];
    let length = there(read(&file, &mut text))?;
    Ok(length.map(|length| {
        text.truncate(length);
        text
    }))
}

/// The result; `None` when the file does not exist, or was removed meanwhile.
fn there<T>(result: nix::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn number(directory: BorrowedFd<'_>, path: &Path) -> io::Result<Option<u64>> {
    let Some(text) = attribute(directory, path)? else { return Ok(None) };
    parse(path, &text).map(Some)
}

/// A sysfs attribute with one number.
pub(super) fn read_number(path: &Path) -> io::Result<u64> {
    parse(path, &fs::read(path)?)
}

fn parse(path: &Path, text: &[u8]) -> io::Result<u64> {
    let text = std::ffi::OsStr::from_bytes(text).to_string_lossy();
    text.trim().parse().map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} is {:?}, which is not a number", path.display(), text.trim()),
        )
    })
}
