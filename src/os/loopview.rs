//! What sysfs says of loop devices (Documentation/ABI/testing/sysfs-block-loop; drivers/block/loop.c, `loop_attrs`). Nothing
//! here opens a device or asks the filesystem of an image, so one that fails or hangs stops nobody.
//!
//! All devices are looked at wherever one volume's is looked for, and each number that was ever in use stays there as a
//! device without an image. So they are looked up in their own directory, which is opened once: /sys/block has symbolic
//! links to them, and a path through one takes more than twice as long.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::read;

use super::{Call, LoopDevice, LoopStatus, Os};

const BLOCK: &str = "/sys/block";
/// In a device's directory, while it has an image: the image's path.
const BACKING: &str = "loop/backing_file";
/// Room for any attribute of a loop device: a path as long as one can be (PATH_MAX), and a word.
const ROOM: usize = 8192;
/// What the kernel adds to the path of a file that has no name any more.
const DELETED: &[u8] = b" (deleted)";

/// An attached loop device, as sysfs shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopView {
    /// Which.
    pub device: LoopDevice,
    /// The path of the image as the kernel prints it for this process: from another mount namespace it may be only what
    /// lies below the filesystem's mount. It makes a candidate, never an identity.
    pub backing: PathBuf,
    /// The kernel's number of this attachment; `None` before Linux 5.15. See [`super::LoopStatus::diskseq`].
    pub diskseq: Option<u64>,
    /// Marked to go with its last user.
    pub autoclear: bool,
    /// First byte of the image it shows.
    pub offset: u64,
    /// How many bytes of the image it shows, 0 for all.
    pub size_limit: u64,
    /// Read-only.
    pub read_only: bool,
}

impl LoopView {
    /// What is known of the device without asking it: all but its image. Good for [`Os::loop_clear`] where there is a
    /// sequence number.
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

    /// Whether the image's path ends with these components.
    #[must_use]
    pub fn ends_with(&self, tail: &Path) -> bool {
        self.backing.ends_with(tail)
    }
}

impl Os {
    /// The attached loop devices whose image's path is chosen, in the order of their numbers.
    ///
    /// # Errors
    /// Those of reading /sys/block, but not that a device went away meanwhile.
    pub fn loop_views(&self, chosen: impl Fn(&Path) -> bool) -> io::Result<Vec<LoopView>> {
        self.call(Call::LoopScan, &BLOCK, || {
            let mut found = Vec::new();
            for (device, backing) in attached_loops()? {
                if chosen(&backing) {
                    found.extend(view(device, backing)?);
                }
            }
            Ok(found)
        })
    }

    /// One loop device; `None` when nothing is attached to it, or it does not exist.
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

/// The numbers of all loop devices there are, attached or not.
pub(super) fn loop_numbers() -> io::Result<Vec<LoopDevice>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir(BLOCK)? {
        devices.extend(entry?.file_name().to_str().and_then(LoopDevice::named));
    }
    devices.sort_unstable();
    Ok(devices)
}

/// The loop devices that have an image, and its path, in the order of their numbers.
pub(super) fn attached_loops() -> io::Result<Vec<(LoopDevice, PathBuf)>> {
    let devices = loop_numbers()?;
    let mut found = Vec::new();
    let Some(directory) = devices.iter().find_map(|device| beside(*device).transpose()).transpose()? else {
        return Ok(found);
    };
    for device in devices {
        let text = attribute(directory.as_fd(), Path::new(&format!("loop{}/{BACKING}", device.0)))?;
        found.extend(text.map(|text| (device, image(text))));
    }
    Ok(found)
}

/// The directory that a loop device's own lies in, and with it those of all others: none has a parent device
/// (drivers/block/loop.c, `loop_add`). `None` when there is no such device any more.
fn beside(device: LoopDevice) -> io::Result<Option<OwnedFd>> {
    there(open(&device.sysfs().join(".."), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()))
}

/// The path of a loop device's image; `None` when nothing is attached.
pub(super) fn backing(device: LoopDevice) -> io::Result<Option<PathBuf>> {
    Ok(attribute(AT_FDCWD, &device.sysfs().join(BACKING))?.map(image))
}

/// What the attribute says of an image's path.
fn image(mut text: Vec<u8>) -> PathBuf {
    if text.ends_with(b"\n") {
        text.pop();
    }
    if text.ends_with(DELETED) {
        text.truncate(text.len() - DELETED.len());
    }
    PathBuf::from(OsString::from_vec(text))
}

/// The kernel's number of what a loop device shows now, attached or not.
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

/// The text of an attribute, at a path from a directory or from the root; `None` when it is not there, or went away while
/// it was read.
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

/// What is there, and does not go away meanwhile.
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

/// An attribute of sysfs that is one number.
pub(super) fn read_number(path: &Path) -> io::Result<u64> {
    parse(path, &fs::read(path)?)
}

fn parse(path: &Path, text: &[u8]) -> io::Result<u64> {
    let text = std::ffi::OsStr::from_bytes(text).to_string_lossy();
    text.trim()
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{} says {:?}", path.display(), text.trim())))
}
