//! The devices below and above a block device, its size and its device node: from sysfs, so that no device is opened.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::{Call, DevNum, Os};

impl Os {
    /// The devices below a device (sysfs `slaves`): for dm over a loop, the loop.
    ///
    /// # Errors
    /// Those of reading sysfs except ENOENT.
    pub fn devices_below(&self, number: DevNum) -> io::Result<Vec<DevNum>> {
        self.call(Call::DeviceStack, &number, || linked(&by_number(number).join("slaves")))
    }

    /// The devices on top of a device (sysfs `holders`).
    ///
    /// # Errors
    /// Those of reading sysfs except ENOENT.
    pub fn devices_above(&self, number: DevNum) -> io::Result<Vec<DevNum>> {
        self.call(Call::DeviceStack, &number, || linked(&by_number(number).join("holders")))
    }

    /// A block device's size in bytes, from sysfs.
    ///
    /// # Errors
    /// Those of reading sysfs; `InvalidData` when it is not a number.
    pub fn device_size_shown(&self, number: DevNum) -> io::Result<u64> {
        self.call(Call::DeviceStack, &number, || {
            let text = fs::read_to_string(by_number(number).join("size"))?;
            let sectors: u64 = text.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
            Ok(sectors.saturating_mul(512))
        })
    }

    /// Whether a block device is read-only for the kernel (sysfs `ro`).
    ///
    /// # Errors
    /// Those of reading sysfs; `InvalidData` when it is not a number.
    pub fn device_refuses_writes(&self, number: DevNum) -> io::Result<bool> {
        self.call(Call::DeviceStack, &number, || {
            let text = fs::read_to_string(by_number(number).join("ro"))?;
            text.trim().parse::<u32>().map(|value| value != 0).map_err(|_| io::ErrorKind::InvalidData.into())
        })
    }

    /// The device node of a block device under the kernel's name; created if neither devtmpfs nor udev did. The kernel
    /// uses such a name for one number only, so an old device node never leads to another device.
    ///
    /// # Errors
    /// ENOENT when there is no such device; `AlreadyExists` when the name is used for something else; those of
    /// mknod(2).
    pub fn device_node(&self, number: DevNum) -> io::Result<PathBuf> {
        self.call(Call::DeviceNode, &number, || {
            let link = fs::read_link(by_number(number))?;
            let name = link.file_name().and_then(|name| name.to_str()).ok_or(io::ErrorKind::InvalidData)?;
            let path = Path::new("/dev").join(name.replace('!', "/"));
            let device = makedev(number.major, number.minor);
            match mknod(&path, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, device) {
                Ok(()) => return Ok(path),
                Err(nix::errno::Errno::EEXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            let meta = fs::symlink_metadata(&path)?;
            if meta.file_type().is_block_device() && meta.rdev() == device {
                return Ok(path);
            }
            let message = format!("{} exists and is not block device {number}", path.display());
            Err(io::Error::new(io::ErrorKind::AlreadyExists, message))
        })
    }
}

/// A device's directory in sysfs.
pub(super) fn by_number(number: DevNum) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{number}"))
}

/// The error of reading an attribute of a device that was removed meanwhile: EIO, because the device has lost its name.
pub(super) fn went_away(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::EIO | libc::ENOTDIR))
}

/// The numbers of the devices in a sysfs directory of links.
fn linked(directory: &Path) -> io::Result<Vec<DevNum>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if went_away(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        match fs::read_to_string(entry?.path().join("dev")) {
            Ok(text) => found.push(number_of(text.trim_end())?),
            Err(error) if went_away(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// `major:minor`.
pub(super) fn number_of(text: &str) -> io::Result<DevNum> {
    let parts = text.split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} is not a device number"));
    parts.map(|(major, minor)| DevNum { major, minor }).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_two_numbers() {
        assert_eq!(number_of("252:70000").unwrap(), DevNum { major: 252, minor: 70000 });
        for bad in ["", "252", "a:b", "1:2:3"] {
            assert!(number_of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_not_there_has_neither_stack_nor_node() {
        let (os, nothing) = (Os::new(), DevNum { major: 4095, minor: 0 });
        assert_eq!(os.devices_below(nothing).unwrap(), Vec::new());
        assert_eq!(os.devices_above(nothing).unwrap(), Vec::new());
        assert!(os.device_size_shown(nothing).is_err() && os.device_node(nothing).is_err());
    }
}
