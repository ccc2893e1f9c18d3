//! Device-mapper: creates, loads, grows and removes devices by ioctl(2) on its control node.
//!
//! A device is identified by its dm uuid, which only a process with CAP_SYS_ADMIN can set. Devices are listed from
//! sysfs alone: no foreign device is opened or queried. udev may be absent (no device node is awaited) or present (each
//! event has flags that tell its rules to ignore the device: no probing, no links, no LVM scan). Does not know volumes;
//! `attach` does.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use uuid::Uuid;

use super::blockstack::{by_number, number_of, went_away};
use super::dm_ioctl::{AS_LOADED, Command, DmTarget, NO_FLUSH, NO_FREEZE, READ_ONLY, Reply, Request, SUSPENDED};
use super::miscdev::{listed_minor, open_misc};
use super::{Call, DevNum, Os};

/// The path of the control node on a system with devtmpfs or udev.
const CONTROL: &str = "/dev/mapper/control";
/// MAPPER_CTRL_MINOR of include/linux/miscdevice.h. Opening this number loads the module if there is one.
const CONTROL_MINOR: u64 = 236;
/// DM_UDEV_DISABLE_DM_RULES, _SUBSYSTEM_RULES, _DISK_RULES, _OTHER_RULES, _LIBRARY_FALLBACK, and
/// DM_UDEV_PRIMARY_SOURCE_FLAG, without which the rules ignore the others (libdevmapper.h).
const HANDS_OFF: u16 = 0x01 | 0x02 | 0x04 | 0x08 | 0x20 | 0x40;
/// Numbers are drawn at random from this range. The kernel itself takes the lowest free number, so a container that
/// still has the device node of a removed device would open the next volume's device.
const MINORS: std::ops::Range<u64> = 4096..1 << 20;
/// The number of attempts when a drawn number is taken.
const DRAWS: usize = 16;
/// The number of attempts for a removal, and the pause between them: udev opens devices for a moment.
const REMOVE_TRIES: u32 = 25;
const REMOVE_PAUSE: Duration = Duration::from_millis(20);

/// The device-mapper support of this kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DmSupport {
    /// Device-mapper with this version of its interface.
    Yes([u32; 3]),
    /// None that this process can use, with the reason.
    No(String),
}

/// Whether a device is writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmMode {
    /// Yes.
    Writable,
    /// No: the kernel rejects all writes to it.
    ReadOnly,
}

/// A device-mapper device, as sysfs shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmDevice {
    /// Its number.
    pub number: DevNum,
    /// Its name, for `dmsetup`.
    pub name: String,
    /// Its uuid, which identifies it.
    pub uuid: String,
}

/// The state of one device in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmState {
    /// Its number.
    pub number: DevNum,
    /// How many times it is open.
    pub open_count: u32,
    /// Whether requests wait until it is resumed.
    pub is_suspended: bool,
    /// Whether it is read-only.
    pub mode: DmMode,
    /// The live table; empty while it has none.
    pub table: Vec<DmTarget>,
}

/// The result of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmRemoved {
    /// It was removed.
    Now,
    /// There was no device.
    Absent,
    /// It is open, so it remains.
    InUse,
}

impl Os {
    /// Whether this kernel has device-mapper and this process may use it. Loads the module if there is one.
    ///
    /// # Errors
    /// Those of opening the control node and of DM_VERSION, except that there is none, or that it is not permitted.
    pub fn dm_support(&self) -> io::Result<DmSupport> {
        self.call(Call::DmSupport, &CONTROL, || {
            let control = match control() {
                Ok(Some(control)) => control,
                Ok(None) => return Ok(DmSupport::No("this kernel has no device-mapper (module dm_mod)".to_owned())),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EROFS)) => {
                    return Ok(DmSupport::No(format!("cannot open {CONTROL}: {error}")));
                }
                Err(error) => return Err(error),
            };
            Request::new()?.send(control.as_fd(), Command::Version).map(|reply| DmSupport::Yes(reply.version()))
        })
    }

    /// The state of the device with this uuid; `None` when there is none.
    ///
    /// # Errors
    /// Those of the control node and of DM_TABLE_STATUS except ENXIO.
    pub fn dm_state(&self, uuid: &str) -> io::Result<Option<DmState>> {
        self.call(Call::DmState, &uuid, || match status(control_must_be()?.as_fd(), uuid) {
            Ok(reply) => Ok(Some(DmState {
                number: reply.number(),
                open_count: reply.open_count(),
                is_suspended: reply.has(SUSPENDED),
                mode: if reply.has(READ_ONLY) { DmMode::ReadOnly } else { DmMode::Writable },
                table: reply.targets()?,
            })),
            Err(error) if absent(&error) => Ok(None),
            Err(error) => Err(error),
        })
    }

    /// Creates a device without a table, with a random number.
    ///
    /// # Errors
    /// Those of the control node and of DM_DEV_CREATE: EBUSY when the name or the uuid is taken.
    pub fn dm_create(&self, name: &str, uuid: &str) -> io::Result<DevNum> {
        self.call(Call::DmCreate, &uuid, || {
            let control = control_must_be()?;
            let mut result = Err(io::Error::from_raw_os_error(libc::EBUSY));
            for _ in 0..DRAWS {
                let request = Request::about(uuid)?.name(name)?.minor(drawn_minor()?);
                result = request.send(control.as_fd(), Command::Create).map(|reply| reply.number());
                // EBUSY means that the name, the uuid or the number is taken: only for the number is another attempt
                // useful.
                let is_taken = matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EBUSY));
                if !is_taken || status(control.as_fd(), uuid).is_ok() {
                    break;
                }
            }
            result
        })
    }

    /// Loads a table beside the live one; [`Os::dm_resume`] makes it live. The devices below are open from here on.
    ///
    /// # Errors
    /// Those of the control node and of DM_TABLE_LOAD: EBUSY when the device below is in exclusive use, EINVAL for a
    /// table that the kernel rejects.
    pub fn dm_load(&self, uuid: &str, table: &[DmTarget], mode: DmMode) -> io::Result<()> {
        self.call(Call::DmLoad, &uuid, || {
            let flags = if mode == DmMode::ReadOnly { READ_ONLY } else { 0 };
            let request = Request::about(uuid)?.flags(flags).targets(table)?;
            request.send(control_must_be()?.as_fd(), Command::Load).map(drop)
        })
    }

    /// Makes the loaded table live in one step; requests that have not started wait for it. Without a loaded table,
    /// resumes a suspended device.
    ///
    /// # Errors
    /// Those of the control node and of DM_DEV_SUSPEND.
    pub fn dm_resume(&self, uuid: &str) -> io::Result<()> {
        self.call(Call::DmResume, &uuid, || {
            let request = Request::about(uuid)?.flags(NO_FLUSH | NO_FREEZE).udev(HANDS_OFF);
            request.send(control_must_be()?.as_fd(), Command::Resume).map(drop)
        })
    }

    /// Removes a device if it is not open. This closes the devices below.
    ///
    /// # Errors
    /// Those of the control node and of DM_DEV_REMOVE except ENXIO and EBUSY.
    pub fn dm_remove(&self, uuid: &str) -> io::Result<DmRemoved> {
        self.call(Call::DmRemove, &uuid, || {
            let control = control_must_be()?;
            for _ in 0..REMOVE_TRIES {
                match Request::about(uuid)?.udev(HANDS_OFF).send(control.as_fd(), Command::Remove) {
                    Ok(_) => return Ok(DmRemoved::Now),
                    Err(error) if absent(&error) => return Ok(DmRemoved::Absent),
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => thread::sleep(REMOVE_PAUSE),
                    Err(error) => return Err(error),
                }
            }
            Ok(DmRemoved::InUse)
        })
    }

    /// Every device whose uuid has this prefix, from sysfs: no device is opened.
    ///
    /// # Errors
    /// Those of reading /sys/block, except for a device that disappears meanwhile.
    pub fn dm_devices(&self, prefix: &str) -> io::Result<Vec<DmDevice>> {
        self.call(Call::DmList, &"/sys/block", || {
            let mut found = Vec::new();
            for entry in fs::read_dir("/sys/block")? {
                let entry = entry?;
                if entry.file_name().as_encoded_bytes().starts_with(b"dm-") {
                    found.extend(shown(&entry.path())?.filter(|device| device.uuid.starts_with(prefix)));
                }
            }
            found.sort_unstable_by(|one, other| one.uuid.cmp(&other.uuid));
            Ok(found)
        })
    }

    /// The device-mapper device with this number, from sysfs; `None` when it is another kind of device, or missing.
    ///
    /// # Errors
    /// Those of reading sysfs except ENOENT.
    pub fn dm_device(&self, number: DevNum) -> io::Result<Option<DmDevice>> {
        self.call(Call::DmList, &number, || shown(&by_number(number)))
    }
}

fn status(control: BorrowedFd<'_>, uuid: &str) -> io::Result<Reply> {
    Request::about(uuid)?.flags(AS_LOADED | NO_FLUSH).send(control, Command::Status)
}

/// Whether the error of an ioctl means that there is no such device.
fn absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENXIO)
}

fn drawn_minor() -> io::Result<u64> {
    let length = MINORS.end.checked_sub(MINORS.start).ok_or(io::ErrorKind::InvalidInput)?;
    let drawn = Uuid::new_v4().as_u64_pair().1.checked_rem(length).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(MINORS.start.saturating_add(drawn))
}

/// Opens the control node: that of /dev if it is correct, otherwise one of our own; `None` when the kernel has none.
fn control() -> io::Result<Option<File>> {
    match open_misc(Path::new(CONTROL), control_minor()?) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn control_must_be() -> io::Result<File> {
    control()?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

/// The minor of the control node in /proc/misc. While the module is not loaded: its fixed minor since Linux 2.6.36.
fn control_minor() -> io::Result<u64> {
    Ok(listed_minor("device-mapper")?.unwrap_or(CONTROL_MINOR))
}

/// The device of a sysfs directory; `None` when it is not device-mapper's, or disappeared.
fn shown(directory: &Path) -> io::Result<Option<DmDevice>> {
    let read = |attribute: &str| match fs::read_to_string(directory.join(attribute)) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if went_away(&error) => Ok(None),
        Err(error) => Err(error),
    };
    let (Some(uuid), Some(name), Some(number)) = (read("dm/uuid")?, read("dm/name")?, read("dev")?) else {
        return Ok(None);
    };
    Ok(Some(DmDevice { number: number_of(&number)?, name, uuid }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_numbers_are_in_the_range_and_differ() {
        let drawn: Vec<_> = (0..64).map(|_| drawn_minor().unwrap()).collect();
        assert!(drawn.iter().all(|minor| MINORS.contains(minor)), "{drawn:?}");
        assert!(drawn.iter().any(|minor| *minor != drawn[0]));
    }

    #[test]
    fn a_kernel_is_asked_whether_it_has_device_mapper() {
        // In both cases the answer agrees with the kernel's list, and nothing stays in /dev.
        let support = Os::new().dm_support().unwrap();
        let listed = listed_minor("device-mapper").unwrap().is_some();
        assert_eq!(matches!(support, DmSupport::Yes(_)), listed, "{support:?}");
        let ours = format!(".holdfast-{}-", std::process::id());
        let left = fs::read_dir("/dev").unwrap().flatten();
        assert!(!left.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(&ours)));
    }

    #[test]
    fn what_is_no_device_of_device_mapper_is_none() {
        assert_eq!(Os::new().dm_device(DevNum { major: 7, minor: 0 }).unwrap(), None);
        assert_eq!(Os::new().dm_device(DevNum { major: 4095, minor: 0 }).unwrap(), None);
        assert_eq!(Os::new().dm_devices("HOLDFAST-TEST-OF-NOBODY-").unwrap(), Vec::new());
    }
}
