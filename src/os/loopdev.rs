//! Loop devices: attached in one step. They are identified by their backing file (device and inode) and by the kernel's
//! sequence number of that attachment (diskseq), never by a path or a name. A detach is finished only when it is
//! verified.
//!
//! Loop devices are listed from sysfs ([`super::LoopView`]), without I/O. Only devices that may be ours are opened and
//! queried, each alone and with a time limit. LOOP_GET_STATUS64 queries the filesystem of the image, and one that does
//! not respond must not block the others.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use linux_raw_sys::loop_device::{LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO, LO_FLAGS_READ_ONLY, loop_info64};
use nix::fcntl::OFlag;
use nix::sys::stat::makedev;

use super::file_identity::FileIdentity;
use super::loopview::{backing, diskseq, read_number};
use super::{BlockDevice, Call, DevNum, Os, blockdev, ioctl};

/// include/uapi/linux/major.h.
const LOOP_MAJOR: u8 = 7;
/// The number of attempts of LOOP_CONFIGURE when another process takes the free number first.
const ATTACH_TRIES: usize = 64;
/// The number of checks of a detached device, and the pause between them: udev opens devices for a moment.
const CLEAR_LOOKS: u32 = 25;
const CLEAR_PAUSE: Duration = Duration::from_millis(20);
/// The number of attempts of LOOP_GET_STATUS64 when the device gets another image meanwhile.
const STATUS_TRIES: usize = 3;

/// The configuration of a new loop device.
#[derive(Clone, Debug)]
pub struct LoopConfig {
    /// Logical block size, bytes.
    pub block_size: u32,
    /// Text of at most 63 bytes in the kernel (`lo_file_name`): the volume's uuid, for people. It does not identify the
    /// volume: a process that can open the device can change it.
    pub name: String,
    /// The owner of the device, for [`Os::reserve_loop`]: numbers reserved for other owners are skipped.
    pub owner: String,
    /// The value for [`Os::loop_set_discard`]: a device that can no longer pass on discards is created again.
    pub discard: Discard,
    /// Whether the device is writable.
    pub access: LoopAccess,
}

/// Whether a loop device is writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoopAccess {
    /// Yes.
    Writable,
    /// No: the kernel rejects all writes to it (LO_FLAGS_READ_ONLY, which LOOP_SET_STATUS64 cannot change).
    ReadOnly,
}

/// The number of a loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoopDevice(pub(super) u32);

impl LoopDevice {
    /// The device with the name `loopN`; `None` for any other name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let digits = name.strip_prefix("loop").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
        digits.parse().ok().map(Self)
    }

    /// `/dev/loopN`.
    #[must_use]
    pub fn path(self) -> PathBuf {
        PathBuf::from(format!("/dev/loop{}", self.0))
    }

    pub(super) fn sysfs(self) -> PathBuf {
        PathBuf::from(format!("/sys/block/loop{}", self.0))
    }

    /// Its device number, from sysfs; `None` when there is no such device.
    #[must_use]
    pub fn number(self) -> Option<DevNum> {
        fs::read_to_string(self.sysfs().join("dev")).ok()?.trim().parse().ok()
    }

    /// Whether a process wrote 0 to `discard_max_bytes`. The setting outlives the image. It sets the granularity to 0,
    /// so the kernel then rejects every other number (block/blk-sysfs.c, `queue_max_discard_sectors_store`: EINVAL for
    /// `bytes & (granularity - 1)`). Only a device that is created again passes on discards.
    fn discards_for_ever_off(self) -> bool {
        let queue = self.sysfs().join("queue");
        let is = |name| read_number(&queue.join(name)).ok();
        is("discard_max_bytes") == Some(0) && is("discard_max_hw_bytes").is_some_and(|most| most > 0)
    }
}

/// The result of LOOP_GET_STATUS64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopStatus {
    /// Which loop device.
    pub device: LoopDevice,
    /// Device number of the backing file's filesystem, in the kernel's encoding for this ioctl.
    pub backing_device: u64,
    /// Inode of the backing file.
    pub backing_inode: u64,
    /// The number of the backing block device, in the kernel's encoding for this ioctl; 0 for a file.
    pub backing_rdev: u64,
    /// The kernel's sequence number of this attachment: every LOOP_CONFIGURE, LOOP_CLR_FD and LOOP_CHANGE_FD changes it
    /// (BLKGETDISKSEQ; block/genhd.c, `inc_diskseq`). `None` before Linux 5.15.
    pub diskseq: Option<u64>,
    /// The current text, for people.
    pub name: String,
    /// Direct I/O to the backing file.
    pub direct_io: bool,
    /// Read-only.
    pub read_only: bool,
    /// The autoclear flag: detached with its last user.
    pub autoclear: bool,
    /// Offset of the device in the backing file; ours is always 0.
    pub offset: u64,
}

impl LoopStatus {
    /// Whether this file is its image.
    #[must_use]
    pub fn backs(&self, file: &FileIdentity) -> bool {
        self.backing_inode == file.inode && self.on_filesystem_of(file)
    }

    /// Whether its image is on the filesystem of this file.
    #[must_use]
    pub fn on_filesystem_of(&self, file: &FileIdentity) -> bool {
        self.backing_device == huge_encode(file.device)
    }

    /// Whether this block device is its backing device.
    #[must_use]
    pub fn shows_device(&self, number: DevNum) -> bool {
        self.backing_rdev == huge_encode(makedev(number.major, number.minor))
    }

    /// Whether two devices have the same image.
    #[must_use]
    pub fn shows_what(&self, other: &Self) -> bool {
        self.backing_inode == other.backing_inode
            && self.backing_device == other.backing_device
            && self.backing_rdev == other.backing_rdev
    }
}

impl Os {
    /// The image of one loop device; `None` when there is none, or the device does not exist. Queries the filesystem of
    /// its image, so it is only for devices that may be ours. A request that times out is abandoned.
    ///
    /// # Errors
    /// Those of open(2) and the ioctl except ENOENT and ENXIO; `TimedOut` when it does not respond.
    pub fn loop_status(&self, device: LoopDevice) -> io::Result<Option<LoopStatus>> {
        self.call(Call::LoopStatus, &device.path().display(), || self.answered(device, move || status_of(device)))
    }

    /// The loop devices with an image on the filesystem of this file, and before them the loop devices on top of those.
    /// Queries every loop device of the machine, and skips those that do not respond. Only for cleaning up after a
    /// demonstration or a test, never for a decision about a volume.
    ///
    /// # Errors
    /// Those of [`Os::loop_views`].
    pub fn loops_beside(&self, file: &FileIdentity) -> io::Result<Vec<LoopStatus>> {
        let views = self.loop_views(|_| true)?;
        let answers = views.iter().filter_map(|view| self.loop_status(view.device).ok().flatten());
        let (beside, others): (Vec<_>, Vec<_>) = answers.partition(|status| status.on_filesystem_of(file));
        let numbers: Vec<_> = beside.iter().filter_map(|status| status.device.number()).collect();
        let above = others.into_iter().filter(|other| numbers.iter().any(|number| other.shows_device(*number)));
        Ok(above.chain(beside.iter().cloned()).collect())
    }

    /// The loop device of this number; `None` when it is not a loop device. Opens nothing.
    ///
    /// # Errors
    /// Those of readlink(2) in /sys/dev/block except ENOENT.
    pub fn loop_of(&self, number: DevNum) -> io::Result<Option<LoopDevice>> {
        if number.major != u64::from(LOOP_MAJOR) {
            return Ok(None);
        }
        let link = match fs::read_link(format!("/sys/dev/block/{number}")) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(link.file_name().and_then(|name| name.to_str()).and_then(LoopDevice::named))
    }

    /// Whether a device node of this number shows nothing now: there is no such device, or it is a loop device without
    /// an image. Opens nothing.
    ///
    /// # Errors
    /// Those of reading sysfs.
    pub fn is_device_empty(&self, number: DevNum) -> io::Result<bool> {
        match self.loop_of(number)? {
            Some(device) => Ok(self.loop_view(device)?.is_none()),
            None => Ok(!self.is_device(number)),
        }
    }

    /// The loop device that a loop device lies on, by the path of its backing file; `None` when that is no loop device.
    /// Opens nothing.
    ///
    /// # Errors
    /// Those of reading sysfs.
    pub fn loop_below(&self, number: DevNum) -> io::Result<Option<DevNum>> {
        let Some(device) = self.loop_of(number)? else { return Ok(None) };
        Ok(self.loop_view(device)?.and_then(|view| view.below()).and_then(LoopDevice::number))
    }

    /// The image of an open loop device; `None` when there is none.
    ///
    /// # Errors
    /// Those of the ioctl except ENXIO; `InvalidInput` when it is not a loop device.
    pub fn held_loop_status(&self, device: &BlockDevice) -> io::Result<Option<LoopStatus>> {
        self.call(Call::LoopStatus, &device.path().display(), || {
            let number = loop_number(device.path())?;
            ask(number, &device.file)
        })
    }

    /// Attaches an image to a free loop device: block size, direct I/O and name in one LOOP_CONFIGURE.
    ///
    /// The caller must ensure that no other loop device has the image. A crash leaves the device attached; it is found
    /// again by the image's identity.
    ///
    /// A number is skipped if it is reserved for another owner, or if its device node is still bind-mounted: a
    /// container with that device node would see this image.
    ///
    /// # Errors
    /// Those of /dev/loop-control, open(2) and LOOP_CONFIGURE; EBUSY after 64 lost races for a free number.
    pub fn loop_attach(&self, image: &File, path: &Path, config: &LoopConfig) -> io::Result<LoopDevice> {
        self.attach_loop(image, path, config)
    }

    /// The same over a block device instead of an image: the loop device shows that device, with its current size.
    ///
    /// # Errors
    /// As [`Os::loop_attach`].
    pub fn loop_attach_over(&self, below: &BlockDevice, config: &LoopConfig) -> io::Result<LoopDevice> {
        self.attach_loop(&below.file, below.path(), config)
    }

    fn attach_loop(&self, image: &File, path: &Path, config: &LoopConfig) -> io::Result<LoopDevice> {
        self.call(Call::LoopAttach, &path.display(), || {
            let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
            let mut numbers = self.free_numbers(&config.owner);
            for _ in 0..ATTACH_TRIES {
                let device = numbers.next(&control)?;
                if config.discard == Discard::On && device.discards_for_ever_off() {
                    // Created again under its own number: the next free one may have the same setting.
                    let anew = ioctl::loop_ctl_remove(control.as_fd(), device.0)
                        .and_then(|()| ioctl::loop_ctl_add(control.as_fd(), device.0));
                    match anew {
                        Ok(()) => {}
                        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => continue,
                        // The device is in use: a thin image without discards is better than none.
                        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                        Err(error) if went_away(&error) => continue,
                        Err(error) => return Err(error),
                    }
                }
                let node = match open_loop(device, OFlag::O_RDWR) {
                    Ok(node) => node,
                    // Another process is removing or creating it.
                    Err(error) if went_away(&error) => continue,
                    Err(error) => return Err(error),
                };
                let mut request = ioctl::empty_loop_config();
                request.fd = u32::try_from(image.as_raw_fd()).map_err(io::Error::other)?;
                request.block_size = config.block_size;
                request.info.lo_flags = LO_FLAGS_DIRECT_IO as u32;
                if config.access == LoopAccess::ReadOnly {
                    request.info.lo_flags |= LO_FLAGS_READ_ONLY as u32;
                }
                let room = request.info.lo_file_name.len() - 1;
                for (slot, byte) in request.info.lo_file_name.iter_mut().take(room).zip(config.name.bytes()) {
                    *slot = byte;
                }
                match ioctl::loop_configure(node.file.as_fd(), &request) {
                    Ok(()) => {
                        self.inner.loop_table.changed(device);
                        return Ok(device);
                    }
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(io::Error::from_raw_os_error(libc::EBUSY))
        })
    }

    /// Detaches a loop device if it still matches `expected`, and verifies the result. True: the device is detached.
    /// False: a process has the device open, and the image must not be touched.
    ///
    /// The device is opened with O_EXCL first, so a mounted one is never detached, not even lazily. If a process has it
    /// open without O_EXCL (a raw block device in a pod), LOOP_CLR_FD sets its autoclear flag. The flag is then
    /// removed, because otherwise the device would disappear while its volume stays attached.
    ///
    /// # Errors
    /// Those of open(2) and the ioctls.
    pub fn loop_clear(&self, expected: &LoopStatus) -> io::Result<bool> {
        let device = expected.device;
        self.call(Call::LoopClear, &device.path().display(), || {
            let same = |now: &LoopStatus| now.shows_what(expected);
            // The same attachment is recognized without a query: its filesystem may be what failed.
            let sequence = expected.diskseq;
            {
                let node = match open_loop(device, OFlag::O_RDWR | OFlag::O_EXCL) {
                    Ok(node) => node,
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(false),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
                    Err(error) => return Err(error),
                };
                let is_it = sequence.is_some() && ioctl::disk_sequence(node.file.as_fd())? == sequence;
                if !is_it && !ask(device, &node.file)?.is_some_and(|now| same(&now)) {
                    return Ok(true);
                }
                ioctl::loop_clr_fd(node.file.as_fd())?;
            }
            for _ in 0..CLEAR_LOOKS {
                let still = if backing(device)?.is_none() {
                    false
                } else if sequence.is_some() && diskseq(device)? == sequence {
                    true
                } else {
                    status_of(device)?.is_some_and(|now| same(&now))
                };
                if !still {
                    self.inner.loop_table.changed(device);
                    self.cleared(device);
                    return Ok(true);
                }
                thread::sleep(CLEAR_PAUSE);
            }
            let node = match open_loop(device, OFlag::O_RDWR) {
                Ok(node) => node,
                Err(error) if went_away(&error) => return Ok(true),
                Err(error) => return Err(error),
            };
            let still = sequence.is_some() && ioctl::disk_sequence(node.file.as_fd())? == sequence;
            match ioctl::loop_get_status(node.file.as_fd()) {
                Ok(mut info) if still || same(&decode(device, &info, None)) => {
                    ioctl::loop_keep(node.file.as_fd(), &mut info).map(|()| false)
                }
                Ok(_) => Ok(true),
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(true),
                Err(error) => Err(error),
            }
        })
    }

    /// Removes the autoclear flag of a loop device (LO_FLAGS_AUTOCLEAR). LOOP_CLR_FD sets it on a device in use, and
    /// every process that can open the device can do that. False when it was not set, and for any other device.
    ///
    /// # Errors
    /// Those of LOOP_GET_STATUS64 and LOOP_SET_STATUS64.
    pub fn keep_attached(&self, device: &BlockDevice) -> io::Result<bool> {
        let Some(number) = self.loop_of(device.number())? else { return Ok(false) };
        if !self.loop_view(number)?.is_some_and(|view| view.autoclear) {
            return Ok(false);
        }
        self.call(Call::LoopKeep, &device.path().display(), || {
            let mut info = ioctl::loop_get_status(device.file.as_fd())?;
            ioctl::loop_keep(device.file.as_fd(), &mut info).map(|()| true)
        })
    }

    /// Changes the name of a loop device (LOOP_SET_STATUS64), as every process that can open it can.
    #[cfg(test)]
    pub(crate) fn rename_loop(&self, path: &Path, name: &str) -> io::Result<()> {
        let device = File::open(path)?;
        let mut info = ioctl::loop_get_status(device.as_fd())?;
        info.lo_file_name = [0; 64];
        for (slot, byte) in info.lo_file_name.iter_mut().zip(name.bytes()) {
            *slot = byte;
        }
        ioctl::loop_keep(device.as_fd(), &mut info)
    }

    /// Changes the offset of a loop device (LOOP_SET_STATUS64), as every process that can open it can.
    #[cfg(test)]
    pub(crate) fn shift_loop(&self, path: &Path, offset: u64) -> io::Result<()> {
        let device = File::open(path)?;
        let mut info = ioctl::loop_get_status(device.as_fd())?;
        info.lo_offset = offset;
        ioctl::loop_keep(device.as_fd(), &mut info)
    }

    /// Gives a read-only loop device another file (LOOP_CHANGE_FD), as every process that may open it can.
    #[cfg(test)]
    pub(crate) fn change_loop(&self, path: &Path, image: &Path) -> io::Result<()> {
        ioctl::loop_change_fd(File::open(path)?.as_fd(), &File::open(image)?)
    }

    /// LOOP_SET_CAPACITY: resizes the device online to the current size of its image.
    ///
    /// # Errors
    /// Those of open(2) and the ioctl.
    pub fn loop_set_capacity(&self, device: &BlockDevice) -> io::Result<()> {
        self.call(Call::LoopSetCapacity, &device.path().display(), || ioctl::loop_set_capacity(device.file.as_fd()))
    }

    /// Sets whether discards and unmapping zeroes may reach the image. Off outlives the image on the same loop number
    /// (block/blk-sysfs.c), so it is checked after every attach, for both values. On is the initial state of a device;
    /// one that can no longer pass on discards stays as it is, see [`LoopConfig::discard`].
    ///
    /// # Errors
    /// Those of reading and writing the queue's attributes in sysfs, except for one that this kernel does not have.
    pub fn loop_set_discard(&self, device: LoopDevice, discard: Discard) -> io::Result<()> {
        self.call(Call::LoopSetDiscard, &device.path().display(), || {
            let queue = device.sysfs().join("queue");
            for limit in ["discard_max_bytes", "write_zeroes_unmap_max_bytes"] {
                let attribute = queue.join(limit);
                if discard == Discard::On || !attribute.exists() || read_number(&attribute)? == 0 {
                    continue;
                }
                fs::write(&attribute, "0")?;
                let now = read_number(&attribute)?;
                if now != 0 {
                    let message = format!("{} is {now} after 0 was written to it", attribute.display());
                    return Err(io::Error::other(message));
                }
            }
            let unmap = queue.join("write_zeroes_unmap_max_bytes");
            if discard == Discard::On && unmap.exists() {
                let most = read_number(&queue.join("write_zeroes_unmap_max_hw_bytes"))?;
                if read_number(&unmap)? != most {
                    fs::write(&unmap, most.to_string())?;
                }
            }
            Ok(())
        })
    }
}

/// Whether a loop device passes on discards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// A thin image: freed blocks are returned to the pool.
    On,
    /// A thick image: it stays thick.
    Off,
}

/// Opens a loop device, even if its device node in /dev is missing or wrong.
fn open_loop(device: LoopDevice, flags: OFlag) -> io::Result<BlockDevice> {
    let number = device.number().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
    blockdev::open_numbered(&device.path(), number, flags)
}

/// OpenVolume read-only: udev probes a device again after every close of a writable descriptor.
fn status_of(device: LoopDevice) -> io::Result<Option<LoopStatus>> {
    match open_loop(device, OFlag::O_RDONLY) {
        Ok(node) => ask(device, &node.file),
        Err(error) if went_away(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The result is of one attachment: the sequence number is the same before and after it.
fn ask(device: LoopDevice, file: &File) -> io::Result<Option<LoopStatus>> {
    for _ in 0..STATUS_TRIES {
        let before = ioctl::disk_sequence(file.as_fd())?;
        let info = match ioctl::loop_get_status(file.as_fd()) {
            Ok(info) => info,
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
            Err(error) => return Err(error),
        };
        if ioctl::disk_sequence(file.as_fd())? == before {
            return Ok(Some(decode(device, &info, before)));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        format!("other processes attach one image after another to {}", device.path().display()),
    ))
}

fn decode(device: LoopDevice, info: &loop_info64, diskseq: Option<u64>) -> LoopStatus {
    let name: Vec<u8> = info.lo_file_name.iter().copied().take_while(|byte| *byte != 0).collect();
    LoopStatus {
        device,
        backing_device: info.lo_device,
        backing_inode: info.lo_inode,
        backing_rdev: info.lo_rdevice,
        diskseq,
        name: String::from_utf8_lossy(&name).into_owned(),
        direct_io: info.lo_flags & LO_FLAGS_DIRECT_IO as u32 != 0,
        read_only: info.lo_flags & LO_FLAGS_READ_ONLY as u32 != 0,
        autoclear: info.lo_flags & LO_FLAGS_AUTOCLEAR as u32 != 0,
        offset: info.lo_offset,
    }
}

/// Whether the error of open(2) means that the loop device was removed meanwhile.
fn went_away(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENXIO | libc::ENODEV))
}

fn loop_number(path: &Path) -> io::Result<LoopDevice> {
    let name = path.to_str().and_then(|path| path.strip_prefix("/dev/loop"));
    name.and_then(|number| number.parse().ok())
        .map(LoopDevice)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a loop device", path.display())))
}

/// `huge_encode_dev` of include/linux/kdev_t.h, as LOOP_GET_STATUS64 reports `lo_device` (drivers/block/loop.c,
/// `loop_get_status`): `new_encode_dev`, which for 12 bits of major and 20 of minor equals the format of stat(2).
fn huge_encode(dev: u64) -> u64 {
    let (major, minor) = (nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}
