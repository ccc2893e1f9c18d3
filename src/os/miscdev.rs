//! Character devices of the kernel's misc class: found by name, opened by number. /dev may have no device node for them,
//! or a wrong one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// MISC_MAJOR of include/uapi/linux/major.h.
const MISC_MAJOR: u64 = 10;

/// The minor of a device that is registered now.
pub(super) fn listed_minor(name: &str) -> io::Result<Option<u64>> {
    match fs::read_to_string("/proc/misc") {
        Ok(table) => Ok(minor_in(&table, name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The minor of a name in the text of /proc/misc.
fn minor_in(table: &str, name: &str) -> Option<u64> {
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    fields.into_iter().find_map(|fields| match fields.as_slice() {
        [minor, found] if *found == name => minor.parse().ok(),
        _ => None,
    })
}

/// Opens a device to read and write: through its usual path if that is correct, otherwise through a device node of our
/// own.
///
/// # Errors
/// Those of open(2) and mknod(2): ENODEV or ENXIO when there is no such device.
pub(super) fn open_misc(path: &Path, minor: u64) -> io::Result<File> {
    let wanted = makedev(MISC_MAJOR, minor);
    match fs::metadata(path) {
        Ok(meta) if meta.file_type().is_char_device() && meta.rdev() == wanted => {
            OpenOptions::new().read(true).write(true).open(path)
        }
        _ => through_private_node(wanted),
    }
}

/// Opens a character device through a device node of our own, which is then removed. It is in /dev, because other
/// filesystems are often mounted `nodev`.
fn through_private_node(device: u64) -> io::Result<File> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = PathBuf::from(format!("/dev/.holdfast-{}-{count}", std::process::id()));
    let made = || mknod(&path, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, device);
    match made() {
        // Left by a killed process with the same process id.
        Err(nix::errno::Errno::EEXIST) => fs::remove_file(&path).and_then(|()| made().map_err(Into::into))?,
        result => result?,
    }
    let opened = OpenOptions::new().read(true).write(true).open(&path);
    fs::remove_file(&path)?;
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minor_is_read_from_proc_misc() {
        let table = "235 autofs\n234 btrfs-control\n 61 device-mapper\n";
        assert_eq!(minor_in(table, "device-mapper"), Some(61));
        assert_eq!(minor_in("235 autofs\n", "device-mapper"), None);
        assert_eq!(minor_in("x device-mapper\n", "device-mapper"), None);
    }
}
