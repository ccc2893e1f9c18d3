//! The users of a block device: the only answer to this question for home, node and doctor.
//!
//! A use is identified by the device number of what is really mounted, bind-mounted or open, never by a name: a tmpfs
//! directory can have the name `loop3`, and a device node any name. No lookup queries a device or a filesystem
//! (statx(2) with AT_STATX_DONT_SYNC), and no path leads through a network or FUSE mount.

#![expect(unsafe_code, reason = "the C library's statx has no safe wrapper")]

use std::collections::HashSet;
use std::ffi::CString;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::loopview::{backing, loop_numbers};
use super::{Call, DevNum, MountEntry, MountTable, Os};

/// The most processes that are named.
const NAMED: usize = 5;
/// Filesystems with device nodes. A device node elsewhere is found only as an open descriptor.
const NODE_FILESYSTEMS: [&str; 2] = ["devtmpfs", "tmpfs"];
/// Filesystems on which a path lookup may hang.
const REMOTE: [&str; 8] = ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "virtiofs"];

/// A process, for a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid in our PID namespace.
    pub pid: u32,
    /// The name of its command, at most 15 bytes.
    pub command: String,
}

/// One use of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceUse {
    /// Its filesystem is mounted here, or in the mount namespace of a process.
    Mounted(PathBuf, Option<Process>),
    /// Its device node is bind-mounted at this path, or is in the mount namespace of a process.
    Bound(PathBuf, Option<Process>),
    /// Another block device is on top of it: device-mapper, md, or a loop device.
    Below(String),
    /// A process has it open.
    Open(Process),
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {})", self.command, self.pid)
    }
}

impl fmt::Display for DeviceUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inside = |process: &Option<Process>| {
            process.as_ref().map(|process| format!(" in the mount namespace of {process}")).unwrap_or_default()
        };
        match self {
            Self::Mounted(at, process) => write!(f, "mounted at {}{}", at.display(), inside(process)),
            Self::Bound(at, process) => write!(f, "bound to {}{}", at.display(), inside(process)),
            Self::Below(device) => write!(f, "below {device}"),
            Self::Open(process) => write!(f, "open in {process}"),
        }
    }
}

impl MountTable {
    /// The block device whose device node a mount binds; `None` for every other mount, and for one that another mount
    /// covers.
    #[must_use]
    pub fn bound_device(&self, entry: &MountEntry) -> Option<DevNum> {
        self.bound_below(Path::new("/"), entry)
    }

    /// The mounts of a device or of its device node in this table.
    #[must_use]
    pub fn uses(&self, device: DevNum) -> Vec<DeviceUse> {
        self.uses_below(Path::new("/"), device, None)
    }

    fn uses_below(&self, root: &Path, device: DevNum, process: Option<&Process>) -> Vec<DeviceUse> {
        let of = |entry: &MountEntry| {
            let process = process.cloned();
            if entry.device == device {
                Some(DeviceUse::Mounted(entry.mount_point.clone(), process))
            } else if self.bound_below(root, entry) == Some(device) {
                Some(DeviceUse::Bound(entry.mount_point.clone(), process))
            } else {
                None
            }
        };
        self.entries().iter().filter_map(of).collect()
    }

    fn bound_below(&self, root: &Path, entry: &MountEntry) -> Option<DevNum> {
        let node = NODE_FILESYSTEMS.contains(&entry.fs_type.as_str()) && entry.root != Path::new("/");
        if !node || self.leads_through_remote(entry) {
            return None;
        }
        let at = root.join(entry.mount_point.strip_prefix("/").unwrap_or(&entry.mount_point));
        let found = stat(&at, Follow::No).ok()?;
        // Another device number: there is a mount over it.
        found.block.filter(|_| found.filesystem == entry.device)
    }

    /// Whether the path of a mount crosses a filesystem that may not respond.
    fn leads_through_remote(&self, entry: &MountEntry) -> bool {
        let mut at = entry;
        // A table that was read while mounts changed may contain a cycle.
        for _ in self.entries() {
            let Some(below) = self.entries().iter().find(|other| other.id == at.parent && other.id != at.id) else {
                return false;
            };
            if REMOTE.contains(&below.fs_type.as_str()) || below.fs_type.starts_with("fuse") {
                return true;
            }
            at = below;
        }
        false
    }
}

impl Os {
    /// Whether there is a block device with this number.
    #[must_use]
    pub fn is_device(&self, device: DevNum) -> bool {
        fs::symlink_metadata(format!("/sys/dev/block/{device}")).is_ok()
    }

    /// The path of a device in a devtmpfs, such as `/dev/loop3`; `/dev/block/7:3` when there is no such device.
    #[must_use]
    pub fn device_path(&self, device: DevNum) -> PathBuf {
        let link = fs::read_link(format!("/sys/dev/block/{device}")).ok();
        let name = link.as_deref().and_then(Path::file_name);
        name.map_or_else(|| PathBuf::from(format!("/dev/block/{device}")), |name| Path::new("/dev").join(name))
    }

    /// Every use of a device: mounts and bind-mounted device nodes in all readable mount namespaces, devices on top of
    /// it, and at most five processes that have it open. For decisions about one device and for messages: it reads all
    /// of /proc.
    ///
    /// # Errors
    /// Those of reading our own mounts. Uses that start, end or hide meanwhile are missed.
    pub fn device_users(&self, device: DevNum) -> io::Result<Vec<DeviceUse>> {
        self.call(Call::DeviceUsers, &device, || {
            let mut found = Vec::new();
            for namespace in namespaces()? {
                found.extend(namespace.table.uses_below(&namespace.root, device, namespace.process.as_ref()));
            }
            found.extend(on_top_of(device, &found)?.into_iter().map(DeviceUse::Below));
            found.extend(with_it_open(device).into_iter().map(DeviceUse::Open));
            Ok(found)
        })
    }
}

/// The block devices whose device nodes are bind-mounted in any readable mount namespace.
pub(super) fn bound_block_devices() -> io::Result<HashSet<DevNum>> {
    let mut found = HashSet::new();
    for namespace in namespaces()? {
        let table = &namespace.table;
        found.extend(table.entries().iter().filter_map(|entry| table.bound_below(&namespace.root, entry)));
    }
    Ok(found)
}

/// The mounts of one namespace.
struct Namespace {
    table: MountTable,
    /// The path of its root from this process.
    root: PathBuf,
    /// One of its processes; `None` for our own.
    process: Option<Process>,
}

/// Our own mount namespace first, then every other one of a visible process.
fn namespaces() -> io::Result<Vec<Namespace>> {
    let ours = fs::read_link("/proc/thread-self/ns/mnt")?;
    let table = MountTable::parse(&fs::read("/proc/thread-self/mountinfo")?)?;
    let mut all = vec![Namespace { table, root: PathBuf::from("/"), process: None }];
    let mut seen = HashSet::from([ours]);
    for (pid, directory) in processes() {
        let Ok(namespace) = fs::read_link(directory.join("ns/mnt")) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        let Ok(text) = fs::read(directory.join("mountinfo")) else { continue };
        let Ok(table) = MountTable::parse(&text) else { continue };
        all.push(Namespace { table, root: directory.join("root"), process: Some(process(pid, &directory)) });
    }
    Ok(all)
}

fn processes() -> impl Iterator<Item = (u32, PathBuf)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
}

fn process(pid: u32, directory: &Path) -> Process {
    let command = fs::read_to_string(directory.join("comm")).unwrap_or_default();
    Process { pid, command: command.trim().to_owned() }
}

/// Devices on top of this one: those in sysfs, and loop devices over its device node or over a path of a bind mount of
/// it.
fn on_top_of(device: DevNum, uses: &[DeviceUse]) -> io::Result<Vec<String>> {
    let sysfs = PathBuf::from(format!("/sys/dev/block/{device}"));
    let holders = fs::read_dir(sysfs.join("holders")).into_iter().flatten().flatten();
    let mut found: Vec<_> = holders.map(|holder| format!("/dev/{}", holder.file_name().to_string_lossy())).collect();
    let name = fs::read_link(&sysfs).ok();
    let node = name.as_deref().and_then(Path::file_name).map(|name| Path::new("/dev").join(name));
    let bound = |path: &Path| uses.iter().any(|used| matches!(used, DeviceUse::Bound(at, _) if at == path));
    for other in loop_numbers()? {
        let Some(backing) = backing(other)? else { continue };
        if node.as_ref() == Some(&backing) || bound(&backing) {
            found.push(format!("{} (a loop device over {})", other.path().display(), backing.display()));
        }
    }
    Ok(found)
}

/// Other processes that have the device open.
fn with_it_open(device: DevNum) -> Vec<Process> {
    let me = std::process::id();
    let mut found = Vec::new();
    for (pid, directory) in processes().filter(|(pid, _)| *pid != me) {
        let descriptors = fs::read_dir(directory.join("fd")).into_iter().flatten().flatten();
        let mut open = descriptors.map(|entry| entry.path()).filter_map(|fd| stat(&fd, Follow::Yes).ok()?.block);
        if open.any(|number| number == device) {
            found.push(process(pid, &directory));
        }
        if found.len() == NAMED {
            break;
        }
    }
    found
}

/// Whether a symbolic link at the end of a path is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    Yes,
    No,
}

/// The identity of a file, without a query to its filesystem.
struct Found {
    filesystem: DevNum,
    /// Its number, for a block device.
    block: Option<DevNum>,
}

fn stat(path: &Path, follow: Follow) -> io::Result<Found> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::AT_STATX_DONT_SYNC
        | libc::AT_NO_AUTOMOUNT
        | if follow == Follow::No { libc::AT_SYMLINK_NOFOLLOW } else { 0 };
    // SAFETY: statx is plain numbers, for which all zeroes is a value.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel reads a NUL-terminated path and writes one statx; both outlive the call.
    let result = unsafe { libc::statx(libc::AT_FDCWD, name.as_ptr(), flags, libc::STATX_TYPE, &raw mut found) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let number = |major: u32, minor: u32| DevNum { major: u64::from(major), minor: u64::from(minor) };
    let is_block = u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFBLK;
    Ok(Found {
        filesystem: number(found.stx_dev_major, found.stx_dev_minor),
        block: is_block.then(|| number(found.stx_rdev_major, found.stx_rdev_minor)),
    })
}
