//! Loop devices: attached in one step, identified by what is behind them (device and inode, and the name we give),
//! never by a path; cleared only to the proof that nothing is attached any more.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{TryLockError, TryLockResult};
use std::thread;
use std::time::Duration;

use linux_raw_sys::loop_device::{LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO, LO_FLAGS_READ_ONLY, loop_info64};

use super::files::FileIdentity;
use super::{BlockDevice, Call, DevNum, Os, blockdev, ioctl};

/// include/uapi/linux/major.h.
const LOOP_MAJOR: u8 = 7;
/// How often LOOP_CONFIGURE is tried on another number when somebody else took the free one first.
const ATTACH_TRIES: usize = 64;
/// How often, and how far apart, a cleared device is looked at: udev opens devices for a moment.
const CLEAR_LOOKS: u32 = 25;
const CLEAR_PAUSE: Duration = Duration::from_millis(20);
/// How often, and how far apart, the gate is tried: whoever is in it may hang in the kernel over a dead disk.
const GATE_TRIES: u32 = 200;
const GATE_PAUSE: Duration = Duration::from_millis(5);

/// What a loop device is made with.
#[derive(Clone, Debug)]
pub struct LoopConfig {
    /// Logical block size, bytes.
    pub block_size: u32,
    /// Free text of at most 63 bytes kept by the kernel (`lo_file_name`): the volume's uuid.
    pub name: String,
    /// What [`Os::loop_set_discard`] will be asked for: a device that can no longer pass discards on is made anew.
    pub discard: Discard,
}

/// The number of a loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoopDevice(u32);

impl LoopDevice {
    /// The one called `loopN`; `None` when that is no such name.
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

    fn sysfs(self) -> PathBuf {
        PathBuf::from(format!("/sys/block/loop{}", self.0))
    }

    /// Whether somebody once wrote 0 to `discard_max_bytes`. The setting outlives the image, and since it makes the
    /// granularity 0 the kernel then refuses every other number (block/blk-sysfs.c, `queue_max_discard_sectors_store`:
    /// EINVAL for `bytes & (granularity - 1)`): only a device made anew passes discards on again.
    fn discards_for_ever_off(self) -> bool {
        let queue = self.sysfs().join("queue");
        let is = |name| read_number(&queue.join(name)).ok();
        is("discard_max_bytes") == Some(0) && is("discard_max_hw_bytes").is_some_and(|most| most > 0)
    }
}

/// What LOOP_GET_STATUS64 says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopStatus {
    /// Which loop device.
    pub device: LoopDevice,
    /// Device number of the filesystem its backing file lies on, as the kernel encodes it for this ioctl.
    pub backing_device: u64,
    /// Inode of the backing file.
    pub backing_inode: u64,
    /// The free text it was made with.
    pub name: String,
    /// Direct I/O to the backing file.
    pub direct_io: bool,
    /// Read-only.
    pub read_only: bool,
    /// Marked to be cleared when its last user goes.
    pub autoclear: bool,
    /// First byte of the backing file it shows; ours always 0.
    pub offset: u64,
}

impl LoopStatus {
    /// Whether the image behind it is this file.
    #[must_use]
    pub fn backs(&self, file: &FileIdentity) -> bool {
        self.backing_inode == file.inode && self.on_filesystem_of(file)
    }

    /// Whether the image behind it lies on the filesystem of this file.
    #[must_use]
    pub fn on_filesystem_of(&self, file: &FileIdentity) -> bool {
        self.backing_device == huge_encode(file.device)
    }

    /// Whether two devices show one image.
    #[must_use]
    pub fn shows_what(&self, other: &Self) -> bool {
        self.backing_inode == other.backing_inode && self.backing_device == other.backing_device
    }
}

impl Os {
    /// Every attached loop device.
    ///
    /// # Errors
    /// Those of reading /sys/block and of opening devices, but not those of a device that went away meanwhile.
    pub fn loops(&self) -> io::Result<Vec<LoopStatus>> {
        let _gate = patiently(|| self.inner.loop_gate.try_read());
        self.call(Call::LoopScan, &"/sys/block", || {
            let mut found = Vec::new();
            for entry in fs::read_dir("/sys/block")? {
                let name = entry?.file_name();
                let number = name.to_str().and_then(|n| n.strip_prefix("loop")).and_then(|n| n.parse().ok());
                let Some(device) = number.map(LoopDevice) else { continue };
                let backing = device.sysfs().join("loop/backing_file");
                if !backing.exists() {
                    continue;
                }
                match status_of(device)? {
                    Some(status) => found.push(status),
                    None if !device.path().exists() && backing.exists() => {
                        return Err(io::Error::new(
                            io::ErrorKind::NotFound,
                            format!(
                                "{} is attached but has no device node here: /dev must be the host's devtmpfs",
                                device.path().display()
                            ),
                        ));
                    }
                    None => {}
                }
            }
            found.sort_unstable_by_key(|status| status.device);
            Ok(found)
        })
    }

    /// What is attached to one loop device; `None` when nothing is, or it does not exist.
    ///
    /// # Errors
    /// Those of open(2) and the ioctl but ENOENT and ENXIO.
    pub fn loop_status(&self, device: LoopDevice) -> io::Result<Option<LoopStatus>> {
        let _gate = patiently(|| self.inner.loop_gate.try_read());
        self.call(Call::LoopStatus, &device.path().display(), || status_of(device))
    }

    /// The path of a loop's backing file as its opener saw it (sysfs), ` (deleted)` at its end when it is: for
    /// messages only, never an identity. `None` when nothing is attached.
    #[must_use]
    pub fn loop_backing_path(&self, device: LoopDevice) -> Option<String> {
        fs::read_to_string(device.sysfs().join("loop/backing_file")).ok().map(|path| path.trim_end().to_owned())
    }

    /// The loop device of this number; `None` when it is no loop device. Opens nothing.
    ///
    /// # Errors
    /// Those of readlink(2) in /sys/dev/block but ENOENT.
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

    /// What is attached to a loop device that is held open; `None` when nothing is.
    ///
    /// # Errors
    /// Those of the ioctl but ENXIO; `InvalidInput` when it is no loop device.
    pub fn held_loop_status(&self, device: &BlockDevice) -> io::Result<Option<LoopStatus>> {
        self.call(Call::LoopStatus, &device.path().display(), || {
            let number = loop_number(device.path())?;
            ask(number, &device.file)
        })
    }

    /// Attaches an image to a free loop device: block size, direct I/O and name in one LOOP_CONFIGURE.
    ///
    /// The caller has made sure that no other loop shows the image. A crash leaves the device attached; it is
    /// found again by the image's identity.
    ///
    /// # Errors
    /// Those of /dev/loop-control, open(2) and LOOP_CONFIGURE; EBUSY after 64 lost races for a free number.
    pub fn loop_attach(&self, image: &File, path: &Path, config: &LoopConfig) -> io::Result<LoopDevice> {
        self.call(Call::LoopAttach, &path.display(), || {
            let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
            for _ in 0..ATTACH_TRIES {
                let device = LoopDevice(ioctl::loop_ctl_get_free(control.as_fd())?);
                if config.discard == Discard::On && device.discards_for_ever_off() {
                    // Made anew under its own number: the next free one would be as old where many images were thick.
                    let anew = ioctl::loop_ctl_remove(control.as_fd(), device.0)
                        .and_then(|()| ioctl::loop_ctl_add(control.as_fd(), device.0));
                    match anew {
                        Ok(()) => {}
                        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => continue,
                        // In somebody's hands: a thin image without discards is better than none.
                        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                        Err(error) if went_away(&error) => continue,
                        Err(error) => return Err(error),
                    }
                }
                let node = match blockdev::open(&device.path(), 0) {
                    Ok(node) => node,
                    // Being removed, or still being made, by somebody else.
                    Err(error) if went_away(&error) => continue,
                    Err(error) => return Err(error),
                };
                let mut request = ioctl::empty_loop_config();
                request.fd = u32::try_from(image.as_raw_fd()).map_err(io::Error::other)?;
                request.block_size = config.block_size;
                request.info.lo_flags = LO_FLAGS_DIRECT_IO as u32;
                let room = request.info.lo_file_name.len() - 1;
                for (slot, byte) in request.info.lo_file_name.iter_mut().take(room).zip(config.name.bytes()) {
                    *slot = byte;
                }
                match ioctl::loop_configure(node.file.as_fd(), &request) {
                    Ok(()) => return Ok(device),
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(io::Error::from_raw_os_error(libc::EBUSY))
        })
    }

    /// Clears a loop device, if it still shows what `expected` says, and proves it: true when nothing of it is
    /// attached any more, false when somebody holds the device open, and then nothing may touch the image.
    ///
    /// The device is opened with O_EXCL first, so a mounted one is never cleared, not even lazily. One that is open
    /// without O_EXCL (a raw block device in a pod) is marked by LOOP_CLR_FD to go with its last user; the mark is taken
    /// back, or the device would vanish under a volume that stays attached.
    ///
    /// # Errors
    /// Those of open(2) and the ioctls.
    pub fn loop_clear(&self, expected: &LoopStatus) -> io::Result<bool> {
        let _gate = patiently(|| self.inner.loop_gate.try_write());
        let device = expected.device;
        self.call(Call::LoopClear, &device.path().display(), || {
            let same = |now: &LoopStatus| now.shows_what(expected);
            {
                let node = match blockdev::open(&device.path(), libc::O_EXCL) {
                    Ok(node) => node,
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(false),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
                    Err(error) => return Err(error),
                };
                match ask(device, &node.file)? {
                    Some(now) if same(&now) => ioctl::loop_clr_fd(node.file.as_fd())?,
                    _ => return Ok(true),
                }
            }
            for _ in 0..CLEAR_LOOKS {
                if !status_of(device)?.is_some_and(|now| same(&now)) {
                    return Ok(true);
                }
                thread::sleep(CLEAR_PAUSE);
            }
            let node = match blockdev::open(&device.path(), 0) {
                Ok(node) => node,
                Err(error) if went_away(&error) => return Ok(true),
                Err(error) => return Err(error),
            };
            match ioctl::loop_get_status(node.file.as_fd()) {
                Ok(mut info) if same(&decode(device, &info)) => {
                    ioctl::loop_keep(node.file.as_fd(), &mut info).map(|()| false)
                }
                Ok(_) => Ok(true),
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(true),
                Err(error) => Err(error),
            }
        })
    }

    /// LOOP_SET_CAPACITY: the device takes its image's size of now; online.
    ///
    /// # Errors
    /// Those of open(2) and the ioctl.
    pub fn loop_set_capacity(&self, device: &BlockDevice) -> io::Result<()> {
        self.call(Call::LoopSetCapacity, &device.path().display(), || ioctl::loop_set_capacity(device.file.as_fd()))
    }

    /// Whether discards and unmapping zeroes may reach the image. Off outlives the image on the same loop number
    /// (block/blk-sysfs.c), so it is looked at after every attach, both ways. On is what a device begins with; one
    /// that can no longer pass discards on stays as it is, see [`LoopConfig::discard`].
    ///
    /// # Errors
    /// Those of reading and writing the queue's attributes in sysfs, but not that one is missing in this kernel.
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
                    let message = format!("{} says {now} after writing 0", attribute.display());
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

/// Whether a loop passes discards on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// A thin image: freed blocks go back to the pool.
    On,
    /// A thick image: it stays thick.
    Off,
}

/// Comes through the gate of the loop devices, or goes on without it where it does not open: it only keeps a look from
/// making a clear a lazy one, and that is waited for anyway.
fn patiently<G>(try_gate: impl Fn() -> TryLockResult<G>) -> Option<G> {
    for _ in 0..GATE_TRIES {
        match try_gate() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => thread::sleep(GATE_PAUSE),
        }
    }
    None
}

fn status_of(device: LoopDevice) -> io::Result<Option<LoopStatus>> {
    match File::open(device.path()) {
        Ok(file) => ask(device, &file),
        Err(error) if went_away(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn ask(device: LoopDevice, file: &File) -> io::Result<Option<LoopStatus>> {
    match ioctl::loop_get_status(file.as_fd()) {
        Ok(info) => Ok(Some(decode(device, &info))),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}

fn decode(device: LoopDevice, info: &loop_info64) -> LoopStatus {
    let name: Vec<u8> = info.lo_file_name.iter().copied().take_while(|byte| *byte != 0).collect();
    LoopStatus {
        device,
        backing_device: info.lo_device,
        backing_inode: info.lo_inode,
        name: String::from_utf8_lossy(&name).into_owned(),
        direct_io: info.lo_flags & LO_FLAGS_DIRECT_IO as u32 != 0,
        read_only: info.lo_flags & LO_FLAGS_READ_ONLY as u32 != 0,
        autoclear: info.lo_flags & LO_FLAGS_AUTOCLEAR as u32 != 0,
        offset: info.lo_offset,
    }
}

/// What open(2) of a loop device says when the device was removed meanwhile.
fn went_away(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENXIO | libc::ENODEV))
}

/// An attribute of sysfs that is one number.
fn read_number(attribute: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(attribute)?;
    text.trim().parse().map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{} says {:?}", attribute.display(), text.trim()))
    })
}

fn loop_number(path: &Path) -> io::Result<LoopDevice> {
    let name = path.to_str().and_then(|path| path.strip_prefix("/dev/loop"));
    name.and_then(|number| number.parse().ok())
        .map(LoopDevice)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{} is no loop device", path.display())))
}

/// `huge_encode_dev` of include/linux/kdev_t.h, as LOOP_GET_STATUS64 reports `lo_device` (drivers/block/loop.c,
/// `loop_get_status`): `new_encode_dev`, which for 12 bits of major and 20 of minor is also what stat(2) gives.
fn huge_encode(dev: u64) -> u64 {
    let (major, minor) = (nix::sys::stat::major(dev), nix::sys::stat::minor(dev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}
