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
use std::sync::Arc;

use super::nvmet::exports_of;
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
    /// The NVMe target has it as a namespace of this subsystem, ours or another one. O_EXCL does not see that.
    Exported(String),
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
            Self::Exported(subsystem) => write!(f, "exported over NVMe as {subsystem}"),
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
        if !entry.is_part_of(&NODE_FILESYSTEMS) || self.leads_through_remote(entry) {
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
    /// it, its exports over NVMe, and at most five processes that have it open. For decisions about one device and for messages: it reads all
    /// of /proc.
    ///
    /// # Errors
    /// Those of reading our own mounts, and configfs. Uses that start, end or hide meanwhile are missed.
    pub fn device_users(&self, device: DevNum) -> io::Result<Vec<DeviceUse>> {
        self.call(Call::DeviceUsers, &device, || {
            let mut found = Vec::new();
            each_namespace(|namespace| {
                let process = namespace.process();
                found.extend(namespace.table()?.uses_below(&namespace.root, device, process.as_ref()));
                Ok(())
            })?;
            found.extend(exports_of(device)?.into_iter().map(DeviceUse::Exported));
            found.extend(self.on_top_of(device, &found)?.into_iter().map(DeviceUse::Below));
            found.extend(with_it_open(device).into_iter().map(DeviceUse::Open));
            Ok(found)
        })
    }

    /// The devices whose device nodes are bind-mounted in any readable mount namespace now: a container with such a node
    /// sees the next device with that number.
    ///
    /// # Errors
    /// Those of reading our own mounts.
    pub fn bound_devices(&self) -> io::Result<Arc<HashSet<DevNum>>> {
        self.call(Call::BoundDevices, &"/proc", || self.inner.bound_nodes.share(bound_block_devices))
    }

    /// Devices on top of this one: those in sysfs, and loop devices over its device node or over a path of a bind mount of
    /// it.
    fn on_top_of(&self, device: DevNum, uses: &[DeviceUse]) -> io::Result<Vec<String>> {
        let sysfs = PathBuf::from(format!("/sys/dev/block/{device}"));
        let mut found = holders(&sysfs);
        let name = fs::read_link(&sysfs).ok();
        let node = name.as_deref().and_then(Path::file_name).map(|name| Path::new("/dev").join(name));
        let bound = |path: &Path| uses.iter().any(|used| matches!(used, DeviceUse::Bound(at, _) if at == path));
        for (other, backing) in self.inner.loop_table.attached()?.iter() {
            if node.as_ref() == Some(backing) || bound(backing) {
                found.push(format!("{} (a loop device over {})", other.path().display(), backing.display()));
            }
        }
        Ok(found)
    }
}

/// The devices that the kernel knows to be on top of a device with this directory in sysfs: device-mapper, md.
fn holders(sysfs: &Path) -> Vec<String> {
    let holders = fs::read_dir(sysfs.join("holders")).into_iter().flatten().flatten();
    holders.map(|holder| format!("/dev/{}", holder.file_name().to_string_lossy())).collect()
}

/// The block devices whose device nodes are bind-mounted in any readable mount namespace.
pub(super) fn bound_block_devices() -> io::Result<HashSet<DevNum>> {
    let mut found = HashSet::new();
    each_namespace(|namespace| {
        // Most containers have no such mount, and a table is dear to take apart.
        if may_bind_nodes(&namespace.mountinfo) {
            let table = namespace.table()?;
            found.extend(table.entries().iter().filter_map(|entry| table.bound_below(&namespace.root, entry)));
        }
        Ok(())
    })?;
    Ok(found)
}

/// Whether a line of mountinfo is of a part of a filesystem that device nodes lie on.
fn may_bind_nodes(mountinfo: &[u8]) -> bool {
    mountinfo.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        // Spaces in a path are escaped, so the field "-" is the one before the type.
        fields.nth(3).is_some_and(|root| root != b"/")
            && fields
                .skip_while(|field| *field != b"-")
                .nth(1)
                .is_some_and(|kind| NODE_FILESYSTEMS.iter().any(|name| name.as_bytes() == kind))
    })
}

/// A mount namespace.
struct Namespace {
    /// Its mounts, as the kernel prints them.
    mountinfo: Vec<u8>,
    /// Where its root is for us.
    root: PathBuf,
    /// One of its processes, and that one's directory; `None` for our own.
    of: Option<(u32, PathBuf)>,
}

impl Namespace {
    fn table(&self) -> io::Result<MountTable> {
        MountTable::parse(&self.mountinfo)
    }

    fn process(&self) -> Option<Process> {
        self.of.as_ref().map(|(pid, directory)| process(*pid, directory))
    }
}

/// Looks at our own mount namespace first, then at each other one that some process we can see is in: there an error is
/// none, since what comes, goes or hides meanwhile is not seen.
fn each_namespace(mut look: impl FnMut(&Namespace) -> io::Result<()>) -> io::Result<()> {
    let ours = fs::read_link("/proc/thread-self/ns/mnt")?;
    let mountinfo = fs::read("/proc/thread-self/mountinfo")?;
    look(&Namespace { mountinfo, root: PathBuf::from("/"), of: None })?;
    let mut seen = HashSet::from([ours]);
    for (pid, directory) in processes() {
        let Ok(namespace) = fs::read_link(directory.join("ns/mnt")) else { continue };
        if seen.contains(&namespace) {
            continue;
        }
        // A process that ends meanwhile shows nothing: another one of the namespace is tried.
        let Ok(mountinfo) = fs::read(directory.join("mountinfo")) else { continue };
        let root = directory.join("root");
        let looked = look(&Namespace { mountinfo, root: root.clone(), of: Some((pid, directory)) });
        if looked.is_ok() && fs::symlink_metadata(&root).is_ok() {
            seen.insert(namespace);
        }
    }
    Ok(())
}

impl Os {
    /// A process with this command name, if one is visible: in the pid namespace of this process.
    #[must_use]
    pub fn process_called(&self, command: &str) -> Option<Process> {
        processes().map(|(pid, directory)| process(pid, &directory)).find(|process| process.command == command)
    }
}

fn processes() -> impl Iterator<Item = (u32, PathBuf)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
}

fn process(pid: u32, directory: &Path) -> Process {
    let command = fs::read_to_string(directory.join("comm")).unwrap_or_default();
    Process { pid, command: command.trim().to_owned() }
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::os::daemon::Daemon;
    use crate::os::{Discard, LoopAccess, LoopConfig, LoopDevice, MountFlags};

    /// A loop device over an image of its own, in mounts of its own.
    struct Used {
        os: Os,
        device: LoopDevice,
        number: DevNum,
        directory: tempfile::TempDir,
    }

    impl Used {
        fn new() -> Self {
            let (os, directory) = (Os::new(), tempfile::tempdir().unwrap());
            os.own_mounts().unwrap();
            let path = directory.path().join("image");
            let image = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
            image.set_len(16 << 20).unwrap();
            let device = os.loop_attach(&image, &path, &config()).unwrap();
            let number = device.number().unwrap();
            Self { os, device, number, directory }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        /// A file to bind a device node to.
        fn file(&self, name: &str) -> PathBuf {
            File::create(self.path(name)).unwrap();
            self.path(name)
        }

        fn users(&self) -> Vec<DeviceUse> {
            self.os.device_users(self.number).unwrap()
        }

        /// Another process, which runs a script and then sleeps.
        fn process(&self, program: &[&str], script: &str) -> Daemon {
            let log = File::create(self.path("log")).unwrap();
            let script = format!("set -e; {script}\necho ready; exec sleep 60");
            let arguments = program.iter().copied().chain(["-c", &script]).map(str::to_owned);
            let (program, arguments) = ("/usr/bin/env".as_ref(), arguments.collect::<Vec<_>>());
            let mut process = self.os.start(program, &arguments, &log).unwrap();
            let said = || fs::read_to_string(self.path("log")).unwrap();
            let named = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep");
            while !said().contains("ready") || !named(process.pid()) {
                assert!(process.ended().unwrap().is_none(), "{}", said());
                thread::sleep(Duration::from_millis(5));
            }
            process
        }

        /// The kernel removes the mounts of a process some time after its end.
        fn clear(&self, device: LoopDevice) {
            let status = self.os.loop_status(device).unwrap().unwrap();
            while !self.os.loop_clear(&status).unwrap() {
                thread::sleep(Duration::from_millis(5));
            }
        }

        /// Until nothing uses it: a process that was killed, or a child of another test until its exec.
        fn until_unused(&self) {
            while !self.users().is_empty() {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    impl Drop for Used {
        fn drop(&mut self) {
            if !thread::panicking() {
                return self.clear(self.device);
            }
            // What a failed test left on top of it first; a process that was killed may have it for a moment.
            let above = |backing: &Path| backing == self.device.path() || backing == self.path("node");
            let above = self.os.loop_views(above).unwrap_or_default().into_iter().map(|view| view.device);
            for device in above.chain([self.device]) {
                let is_left = || match self.os.loop_status(device) {
                    Ok(Some(status)) => !self.os.loop_clear(&status).unwrap_or(false),
                    _ => false,
                };
                for _ in (0..100).take_while(|_| is_left()) {
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    fn config() -> LoopConfig {
        let (name, owner) = ("users".to_owned(), "users".to_owned());
        LoopConfig { block_size: 4096, name, owner, discard: Discard::On, access: LoopAccess::Writable }
    }

    #[test]
    fn a_use_in_another_mount_namespace_is_found_with_a_process_of_it() {
        let used = Used::new();
        let (node, point, device) = (used.file("node"), used.path("point"), used.device.path());
        fs::create_dir(&point).unwrap();
        assert!(!bound_block_devices().unwrap().contains(&used.number) && used.users().is_empty());
        // Two processes: each namespace is looked at once.
        let script = format!(
            "mount --make-rprivate /; mkfs.ext4 -q {device}; mount {device} {point}; mount --bind {device} {node}; \
             setpriv --pdeathsig KILL sleep 60 &",
            device = device.display(),
            point = point.display(),
            node = node.display()
        );
        let process = used.process(&["unshare", "-m", "sh"], &script);
        let users = used.users();
        let [DeviceUse::Mounted(at, Some(by)), DeviceUse::Bound(to, Some(too))] = users.as_slice() else {
            panic!("{users:?}");
        };
        assert_eq!((at, to, by), (&point, &node, too));
        let namespace = |pid| fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
        assert_eq!(namespace(by.pid), namespace(process.pid()));
        assert!(users[1].to_string().ends_with(&format!("in the mount namespace of {} (pid {})", by.command, by.pid)));
        assert!(bound_block_devices().unwrap().contains(&used.number));
        // The same namespace is not ours, and its node is not at our path.
        assert_eq!(used.os.mounts().unwrap().uses(used.number), []);
        drop(process);
        used.until_unused();
        // In our own no process is named.
        used.os.bind(&device, &node, MountFlags::default()).unwrap();
        assert_eq!(used.users(), [DeviceUse::Bound(node.clone(), None)]);
        assert!(bound_block_devices().unwrap().contains(&used.number));
        assert!(used.os.unmount(&node).unwrap());
    }

    #[test]
    fn other_processes_that_have_it_open_are_named() {
        let used = Used::new();
        let device = used.device.path();
        let ours = File::open(&device).unwrap();
        assert_eq!(used.users(), [], "this process is not another one");
        let process = used.process(&["sh"], &format!("exec 9<{}", device.display()));
        let open = DeviceUse::Open(Process { pid: process.pid(), command: "sleep".to_owned() });
        // A child of another test has our descriptor until its exec.
        while used.users() != [open.clone()] {
            assert!(used.users().contains(&open), "{:?}", used.users());
            thread::sleep(Duration::from_millis(5));
        }
        drop((process, ours));
        used.until_unused();
    }

    #[test]
    fn devices_on_top_of_it_are_named() {
        let used = Used::new();
        let (node, device) = (used.file("node"), used.device.path());
        used.os.bind(&device, &node, MountFlags::default()).unwrap();
        let bound = DeviceUse::Bound(node.clone(), None);
        assert_eq!(used.users(), std::slice::from_ref(&bound));
        for path in [&device, &node] {
            // As kubelet does over the path of a pod.
            let file = File::options().read(true).write(true).open(path).unwrap();
            let above = used.os.loop_attach(&file, path, &config()).unwrap();
            drop(file);
            let said = format!("{} (a loop device over {})", above.path().display(), path.display());
            assert_eq!(used.users(), [bound.clone(), DeviceUse::Below(said)]);
            used.clear(above);
            assert_eq!(used.users(), std::slice::from_ref(&bound));
        }
        assert!(used.os.unmount(&node).unwrap());
        // Of those that this kernel may not have.
        let sysfs = used.path("sysfs");
        fs::create_dir_all(sysfs.join("holders/dm-3")).unwrap();
        assert_eq!(holders(&sysfs), ["/dev/dm-3"]);
        assert_eq!(holders(&used.path("absent")), [""; 0]);
    }

    /// A path is looked at only if what is there can be a device node and the lookup cannot hang.
    #[test]
    fn a_mount_binds_a_device_node_only_where_one_can_be() {
        let used = Used::new();
        let path = used.device.path();
        let on = stat(&path, Follow::No).unwrap().filesystem;
        let table = |root: &str, on: DevNum, kind: &str, below: &str| {
            let path = path.display();
            let text = format!("20 19 0:1 / / rw - {below} x rw\n21 20 {on} {root} {path} rw - {kind} x rw\n");
            MountTable::parse(text.as_bytes()).unwrap()
        };
        let other = DevNum { major: 0, minor: 99_999 };
        for (root, on, kind, below, is) in [
            ("/loop3", on, "devtmpfs", "ext4", true),
            ("/loop3", on, "tmpfs", "overlay", true),
            // The whole filesystem, and one without device nodes.
            ("/", on, "devtmpfs", "ext4", false),
            ("/loop3", on, "ext4", "ext4", false),
            // What is there now is on another filesystem: something is mounted over it.
            ("/loop3", other, "devtmpfs", "ext4", false),
            // The path leads through a filesystem that may not answer.
            ("/loop3", on, "devtmpfs", "nfs4", false),
            ("/loop3", on, "devtmpfs", "fuse.sshfs", false),
        ] {
            let table = table(root, on, kind, below);
            let found = table.bound_device(&table.entries()[1]);
            assert_eq!(found, is.then_some(used.number), "{root} of {on} {kind} below {below}");
            assert_eq!(table.uses(used.number).len(), usize::from(is));
        }
    }

    #[test]
    fn only_a_part_of_a_filesystem_for_nodes_may_be_a_node() {
        let line = |root: &str, kind: &str| {
            format!(
                "20 1 0:5 / /dev rw shared:2 - devtmpfs udev rw\n21 1 0:6 {root} /a\\040-\\040tmpfs rw shared:7 - {kind} x rw\n"
            )
        };
        for (root, kind, may) in [
            ("/loop3", "devtmpfs", true),
            ("/null", "tmpfs", true),
            ("/", "tmpfs", false),
            ("/tmpfs", "ext4", false),
            ("/x", "overlay", false),
        ] {
            assert_eq!(may_bind_nodes(line(root, kind).as_bytes()), may, "{root} {kind}");
        }
        assert!(!may_bind_nodes(b"") && !may_bind_nodes(b"\n20 1 0:5\n"));
    }
}
