//! Block devices: identity, size and content.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, major, minor};

use super::{Call, LoopDevice, Os, devnode, ioctl};

/// The alignment of O_DIRECT, bytes: the largest possible logical block size.
pub(super) const DIRECT: usize = 4096;

/// A device number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevNum {
    /// The driver.
    pub major: u64,
    /// The device.
    pub minor: u64,
}

impl DevNum {
    /// From the `dev_t` of stat(2).
    #[must_use]
    pub fn from_dev_t(dev: u64) -> Self {
        Self { major: major(dev), minor: minor(dev) }
    }
}

impl std::str::FromStr for DevNum {
    type Err = io::Error;

    /// `7:3`, as sysfs and mountinfo write it.
    fn from_str(text: &str) -> io::Result<Self> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is not a device number"));
        let (major, minor) = text.split_once(':').ok_or_else(wrong)?;
        Ok(Self { major: major.parse().map_err(|_| wrong())?, minor: minor.parse().map_err(|_| wrong())? })
    }
}

impl fmt::Display for DevNum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// An open block device: while it is open, the kernel cannot give a loop device to another image.
#[derive(Debug)]
pub struct BlockDevice {
    pub(super) file: File,
    path: PathBuf,
    number: DevNum,
}

impl BlockDevice {
    /// Its path, such as `/dev/loop3`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> DevNum {
        self.number
    }
}

/// Reads with O_DIRECT: `offset` and `length` are multiples of [`DIRECT`].
pub(super) fn read_direct(path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    // O_DIRECT also requires aligned memory.
    let mut room = vec![0; length.saturating_add(DIRECT)];
    let start = room.as_ptr().align_offset(DIRECT);
    let aligned = room.get_mut(start..start.saturating_add(length)).ok_or(io::ErrorKind::InvalidInput)?;
    file.read_exact_at(aligned, offset)?;
    Ok(aligned.to_vec())
}

impl Os {
    /// Opens a block device to read and write.
    ///
    /// # Errors
    /// Those of open(2); ENOTBLK when it is not a block device.
    pub fn open_device(&self, path: &Path) -> io::Result<BlockDevice> {
        self.call(Call::OpenDevice, &path.display(), || by_path(path, OFlag::empty()))
    }

    /// Opens a block device to read only.
    ///
    /// # Errors
    /// As [`Os::open_device`].
    pub fn open_device_to_read(&self, path: &Path) -> io::Result<BlockDevice> {
        self.call(Call::OpenDevice, &path.display(), || by_path_as(path, OFlag::O_RDONLY))
    }

    /// Opens it with O_EXCL: `None` when a filesystem, another O_EXCL opener or device-mapper holds it (EBUSY). While
    /// the result exists, nothing can mount the device.
    ///
    /// # Errors
    /// Those of open(2) except EBUSY.
    pub fn open_exclusive(&self, path: &Path) -> io::Result<Option<BlockDevice>> {
        self.call(Call::OpenExclusive, &path.display(), || match by_path(path, OFlag::O_EXCL) {
            Ok(device) => Ok(Some(device)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(None),
            Err(error) => Err(error),
        })
    }

    /// Whether a device's path leads to another device than the open one: mount(2) and tools take paths. A missing path
    /// is not misnamed: the tools report it themselves. Opens nothing.
    ///
    /// # Errors
    /// Those of lstat(2), except for a missing path.
    pub fn is_misnamed(&self, device: &BlockDevice) -> io::Result<bool> {
        self.call(Call::Identity, &device.path.display(), || {
            Ok(device.path.symlink_metadata().is_ok() && !devnode::is_node_of(&device.path, device.number)?)
        })
    }

    /// The kernel's sequence number of a device's content (BLKGETDISKSEQ); it changes when another image is attached.
    /// `None` before Linux 5.15.
    ///
    /// # Errors
    /// Those of the ioctl.
    pub fn disk_sequence(&self, device: &BlockDevice) -> io::Result<Option<u64>> {
        self.call(Call::DiskSequence, &device.path.display(), || ioctl::disk_sequence(device.file.as_fd()))
    }

    /// BLKGETSIZE64, bytes.
    ///
    /// # Errors
    /// Those of the ioctl.
    pub fn device_size(&self, device: &BlockDevice) -> io::Result<u64> {
        self.call(Call::DeviceSize, &device.path.display(), || ioctl::block_size64(device.file.as_fd()))
    }

    /// BLKSSZGET, the logical block size in bytes.
    ///
    /// # Errors
    /// Those of the ioctl.
    pub fn device_block_size(&self, device: &BlockDevice) -> io::Result<u32> {
        self.call(Call::DeviceBlockSize, &device.path.display(), || ioctl::logical_block_size(device.file.as_fd()))
    }

    /// Reads exactly `buffer.len()` bytes at `offset`: a short read is an error, never treated as zeroes.
    ///
    /// # Errors
    /// Those of pread(2); `UnexpectedEof` at the end of the device.
    pub fn read_device(&self, device: &BlockDevice, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.call(Call::ReadDevice, &device.path.display(), || device.file.read_exact_at(buffer, offset))
    }

    /// Reads with O_DIRECT, bypassing the page cache: the content of the device even while a filesystem on it is
    /// mounted. `offset` and `length` are multiples of 4096.
    ///
    /// # Errors
    /// Those of open(2) and pread(2); `UnexpectedEof` at the end of the device.
    pub fn read_device_direct(&self, device: &BlockDevice, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.call(Call::ReadDevice, &device.path.display(), || read_direct(&device.path, offset, length))
    }

    /// Makes all writes durable and drops the device's page cache (fsync(2), then BLKFLSBUF), so that the next read
    /// comes from the image.
    ///
    /// # Errors
    /// Those of fsync(2) and the ioctl.
    pub fn flush_device(&self, device: &BlockDevice) -> io::Result<()> {
        self.call(Call::FlushDevice, &device.path.display(), || {
            device.file.sync_all()?;
            ioctl::flush_buffers(device.file.as_fd())
        })
    }

    /// Grows a mounted ext4 to this number of blocks (EXT4_IOC_RESIZE_FS); journalled by the kernel.
    ///
    /// # Errors
    /// Those of the ioctl: EPERM without CAP_SYS_RESOURCE, or when the superblock is marked with errors.
    pub fn grow_ext4(&self, mount_point: &Path, blocks: u64) -> io::Result<()> {
        self.call(Call::GrowExt4, &mount_point.display(), || {
            ioctl::ext4_resize(File::open(mount_point)?.as_fd(), blocks)
        })
    }

    /// The size of a mounted XFS from the kernel: the superblock on the device is outdated while it is mounted.
    ///
    /// # Errors
    /// Those of the ioctl; ENOTTY when it is not XFS.
    pub fn xfs_geometry(&self, mount_point: &Path) -> io::Result<XfsGeometry> {
        self.call(Call::XfsGeometry, &mount_point.display(), || {
            let (block_size, blocks, inode_percent) = ioctl::xfs_geometry(File::open(mount_point)?.as_fd())?;
            Ok(XfsGeometry { block_size, blocks, inode_percent })
        })
    }

    /// Grows a mounted XFS to this number of blocks (XFS_IOC_FSGROWFSDATA); `imaxpct` as in its superblock.
    ///
    /// # Errors
    /// Those of the ioctl.
    pub fn grow_xfs(&self, mount_point: &Path, blocks: u64, imaxpct: u32) -> io::Result<()> {
        self.call(Call::GrowXfs, &mount_point.display(), || {
            ioctl::xfs_growfs(File::open(mount_point)?.as_fd(), blocks, imaxpct)
        })
    }
}

/// The geometry of a mounted XFS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XfsGeometry {
    /// Bytes per block.
    pub block_size: u32,
    /// Blocks of its data section.
    pub blocks: u64,
    /// The share that inodes may use, percent.
    pub inode_percent: u32,
}

/// Opens a device for reading and writing. A loop device is opened by its number, so a missing or wrong device node in
/// /dev does not matter.
fn by_path(path: &Path, flags: OFlag) -> io::Result<BlockDevice> {
    by_path_as(path, flags | OFlag::O_RDWR)
}

fn by_path_as(path: &Path, flags: OFlag) -> io::Result<BlockDevice> {
    let named = path.parent().filter(|parent| *parent == Path::new("/dev")).and(path.file_name());
    match named.and_then(|name| name.to_str()).and_then(LoopDevice::named).and_then(LoopDevice::number) {
        Some(number) => open_numbered(path, number, flags),
        None => of(File::from(nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, Mode::empty())?), path),
    }
}

/// Opens a device by its number, even if the path has no device node, or that of another device.
pub(super) fn open_numbered(path: &Path, number: DevNum, flags: OFlag) -> io::Result<BlockDevice> {
    of(devnode::open_numbered(path, number, flags)?, path)
}

fn of(file: File, path: &Path) -> io::Result<BlockDevice> {
    let meta = file.metadata()?;
    if !meta.file_type().is_block_device() {
        return Err(io::Error::from_raw_os_error(libc::ENOTBLK));
    }
    Ok(BlockDevice { file, path: path.to_owned(), number: DevNum::from_dev_t(meta.rdev()) })
}
