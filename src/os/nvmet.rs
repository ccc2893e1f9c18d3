//! The kernel's NVMe target: subsystems, namespaces, ports and hosts in configfs, read and written directly.
//!
//! Changes only subsystems whose names have the driver's prefix, and hosts whose names are a uuid; the caller decides
//! which ports are its own. Does not know volumes; `export` does. The name of a host lets a node connect, so it is
//! neither in a target nor in a message.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statfs::statfs;

use super::blockstack::{by_number, went_away};
use super::{Call, DevNum, Os};

/// The prefix of the subsystems that the driver may change.
const OURS: &str = "nqn.2026-11.storage.holdfast:";
/// The prefix of the hosts that the driver may change.
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:";
/// The host that is created and removed to see its attributes.
const PROBE: &str = "nqn.2026-11.storage.holdfast:probe";
const CONFIGFS: &str = "/sys/kernel/config";
const ROOT: &str = "/sys/kernel/config/nvmet";
/// CONFIGFS_MAGIC of include/uapi/linux/magic.h.
const CONFIGFS_MAGIC: i64 = 0x6265_6570;
/// Directories whose paths may be followed: a path elsewhere may lead through a filesystem that does not respond.
const LOCAL: [&str; 2] = ["/dev", "/run"];

/// Whether both sides of a connection can be authenticated with DH-HMAC-CHAP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dhchap {
    /// This kernel has it.
    Yes,
    /// It does not.
    #[default]
    No,
}

/// The NVMe target of this kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NvmetSupport {
    /// It can export over TCP.
    Yes(Dhchap),
    /// It cannot, with the reason and how to change that.
    No(String),
}

/// A directory of the target.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum NvmetObject<'n> {
    /// A subsystem.
    Subsystem(&'n str),
    /// The namespace 1 of a subsystem.
    Namespace(&'n str),
    /// A port.
    Port(u16),
    /// A host.
    Host(&'n str),
}

/// A link of the target, or the directory of such links.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum NvmetLinks<'n> {
    /// The hosts that may connect to a subsystem.
    Allowed(&'n str),
    /// The subsystems that a port shows.
    Port(u16),
}

impl fmt::Display for NvmetObject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subsystem(name) => write!(f, "subsystem {name}"),
            Self::Namespace(name) => write!(f, "namespace 1 of subsystem {name}"),
            Self::Port(port) => write!(f, "port {port}"),
            Self::Host(_) => f.write_str("a host"),
        }
    }
}

impl fmt::Display for NvmetLinks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed(name) => write!(f, "the allowed hosts of subsystem {name}"),
            Self::Port(port) => write!(f, "the subsystems of port {port}"),
        }
    }
}

impl NvmetObject<'_> {
    fn path(self) -> io::Result<PathBuf> {
        Ok(match self {
            Self::Subsystem(name) => Path::new(ROOT).join("subsystems").join(plain(name)?),
            Self::Namespace(name) => Path::new(ROOT).join("subsystems").join(plain(name)?).join("namespaces/1"),
            Self::Port(port) => Path::new(ROOT).join("ports").join(port.to_string()),
            Self::Host(name) => Path::new(ROOT).join("hosts").join(plain(name)?),
        })
    }

    /// The same if the driver may change it.
    fn own(self) -> io::Result<PathBuf> {
        match self {
            Self::Subsystem(name) | Self::Namespace(name) => own_subsystem(name)?,
            Self::Host(name) if !name.starts_with(HOST) => return Err(foreign()),
            Self::Host(_) | Self::Port(_) => {}
        }
        self.path()
    }
}

impl NvmetLinks<'_> {
    fn path(self) -> io::Result<PathBuf> {
        Ok(match self {
            Self::Allowed(name) => NvmetObject::Subsystem(name).path()?.join("allowed_hosts"),
            Self::Port(port) => NvmetObject::Port(port).path()?.join("subsystems"),
        })
    }

    /// Path and target of one link, if the driver may change it.
    fn own(self, name: &str) -> io::Result<(PathBuf, PathBuf)> {
        let target = match self {
            Self::Allowed(subsystem) => {
                own_subsystem(subsystem)?;
                NvmetObject::Host(name).path()?
            }
            Self::Port(_) => NvmetObject::Subsystem(name).own()?,
        };
        Ok((self.path()?.join(name), target))
    }
}

impl Os {
    /// Whether this kernel can export devices over NVMe/TCP. Loads nothing.
    ///
    /// # Errors
    /// Those of configfs, except that something is missing.
    pub fn nvmet_support(&self) -> io::Result<NvmetSupport> {
        self.call(Call::NvmetSupport, &ROOT, || {
            let is_configfs = statfs(CONFIGFS).is_ok_and(|found| found.filesystem_type().0 == CONFIGFS_MAGIC);
            if !is_configfs {
                return Ok(NvmetSupport::No(format!(
                    "configfs is not mounted at {CONFIGFS}: run `modprobe nvmet-tcp` and `mount -t configfs configfs {CONFIGFS}` on the node, and give the driver {CONFIGFS} of the host"
                )));
            }
            if !Path::new(ROOT).exists() || !Path::new("/sys/module/nvmet_tcp").exists() {
                return Ok(NvmetSupport::No(
                    "the kernel modules nvmet and nvmet-tcp are not loaded: run `modprobe nvmet-tcp` on the node, and load it at boot (/etc/modules-load.d)".to_owned(),
                ));
            }
            let probe = Path::new(ROOT).join("hosts").join(PROBE);
            match fs::create_dir(&probe) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EROFS | libc::EACCES | libc::EPERM)) => {
                    return Ok(NvmetSupport::No(format!("cannot write {ROOT}: {error}")));
                }
                Err(error) => return Err(error),
            }
            let dhchap = if probe.join("dhchap_key").exists() { Dhchap::Yes } else { Dhchap::No };
            fs::remove_dir(&probe)?;
            Ok(NvmetSupport::Yes(dhchap))
        })
    }

    /// The names of all subsystems, ours and others; none without an NVMe target.
    ///
    /// # Errors
    /// Those of readdir(2) except ENOENT.
    pub fn nvmet_subsystems(&self) -> io::Result<Vec<String>> {
        self.call(Call::NvmetList, &"subsystems", || names(&Path::new(ROOT).join("subsystems")))
    }

    /// The numbers of a subsystem's namespaces.
    ///
    /// # Errors
    /// Those of readdir(2) except ENOENT.
    pub fn nvmet_namespaces(&self, subsystem: &str) -> io::Result<Vec<String>> {
        let object = NvmetObject::Subsystem(subsystem);
        self.call(Call::NvmetList, &object, || names(&object.path()?.join("namespaces")))
    }

    /// The ports whose numbers are those of TCP ports; other names do not exist in nvmet.
    ///
    /// # Errors
    /// Those of readdir(2) except ENOENT.
    pub fn nvmet_ports(&self) -> io::Result<Vec<u16>> {
        self.call(Call::NvmetList, &"ports", || {
            let names = names(&Path::new(ROOT).join("ports"))?;
            Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
        })
    }

    /// The names that are linked.
    ///
    /// # Errors
    /// Those of readdir(2) except ENOENT.
    pub fn nvmet_links(&self, of: NvmetLinks<'_>) -> io::Result<Vec<String>> {
        self.call(Call::NvmetList, &of, || names(&of.path()?))
    }

    /// An attribute without the end of its line; `None` when object or attribute is missing.
    ///
    /// # Errors
    /// Those of reading it except ENOENT.
    pub fn nvmet_get(&self, of: NvmetObject<'_>, attribute: &str) -> io::Result<Option<String>> {
        self.call(Call::NvmetGet, &of, || match fs::read_to_string(of.path()?.join(plain(attribute)?)) {
            Ok(text) => Ok(Some(text.trim_end_matches('\n').to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
    }

    /// Whether an object exists.
    ///
    /// # Errors
    /// Those of lstat(2) except ENOENT.
    pub fn nvmet_has(&self, object: NvmetObject<'_>) -> io::Result<bool> {
        self.call(Call::NvmetGet, &object, || match fs::symlink_metadata(object.path()?) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        })
    }

    /// Creates an object; `false` when it exists.
    ///
    /// # Errors
    /// Those of mkdir(2) except EEXIST.
    pub fn nvmet_create(&self, object: NvmetObject<'_>) -> io::Result<bool> {
        self.call(Call::NvmetCreate, &object, || match fs::create_dir(object.own()?) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        })
    }

    /// Removes an object; `false` when it is missing. Waits, unkillable, while requests of a namespace are in flight,
    /// and for a port while any connection of the whole target is being torn down.
    ///
    /// # Errors
    /// Those of rmdir(2) except ENOENT: EBUSY for an object that is linked, ENOTEMPTY for one with namespaces.
    pub fn nvmet_remove(&self, object: NvmetObject<'_>) -> io::Result<bool> {
        self.call(Call::NvmetRemove, &object, || gone_is_fine(fs::remove_dir(object.own()?)))
    }

    /// Writes an attribute. `enable` 0 waits, unkillable, while requests are in flight, and its return proves that there
    /// are none.
    ///
    /// # Errors
    /// The kernel's: EBUSY or EACCES for an attribute of an enabled object, EINVAL for a rejected value.
    pub fn nvmet_set(&self, of: NvmetObject<'_>, attribute: &str, value: &str) -> io::Result<()> {
        self.call(Call::NvmetSet, &of, || {
            let path = of.own()?.join(plain(attribute)?);
            // One write(2): each is a value of its own.
            let written = OpenOptions::new().write(true).open(path)?.write(value.as_bytes())?;
            if written == value.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
        })
    }

    /// Links a host to a subsystem, or a subsystem to a port; `false` when it is linked. The first link of a port opens
    /// its listener.
    ///
    /// # Errors
    /// Those of symlink(2) except EEXIST: for a port EADDRINUSE, EADDRNOTAVAIL.
    pub fn nvmet_link(&self, to: NvmetLinks<'_>, name: &str) -> io::Result<bool> {
        self.call(Call::NvmetLink, &to, || {
            let (path, target) = to.own(name)?;
            match symlink(target, path) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    /// Removes a link; `false` when it is missing. The last link of a port closes its listener and its connections.
    ///
    /// # Errors
    /// Those of unlink(2) except ENOENT.
    pub fn nvmet_unlink(&self, from: NvmetLinks<'_>, name: &str) -> io::Result<bool> {
        self.call(Call::NvmetUnlink, &from, || gone_is_fine(fs::remove_file(from.own(name)?.0)))
    }

    /// The number of the block device at the path of a namespace; `None` when there is none, or the path is neither in
    /// /dev nor in /run. Opens nothing.
    ///
    /// # Errors
    /// Those of stat(2) except ENOENT.
    pub fn nvmet_device(&self, path: &Path) -> io::Result<Option<DevNum>> {
        self.call(Call::Identity, &path.display(), || device_at(path))
    }

    /// The subsystems, ours and others, that have a namespace over this device, enabled or not. Such a namespace holds
    /// the device without O_EXCL.
    ///
    /// # Errors
    /// Those of reading configfs.
    pub fn nvmet_exports_of(&self, device: DevNum) -> io::Result<Vec<String>> {
        self.call(Call::NvmetList, &device, || exports_of(device))
    }

    /// The requests in flight on a device, reads and writes; `None` when there is no such device. A request that only
    /// flushes is not counted.
    ///
    /// # Errors
    /// Those of reading sysfs; `InvalidData` when these are no numbers.
    pub fn requests_in_flight(&self, device: DevNum) -> io::Result<Option<u64>> {
        self.call(Call::DeviceStack, &device, || match fs::read_to_string(by_number(device).join("inflight")) {
            Ok(text) => {
                let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
                match numbers.as_deref() {
                    Ok([reads, writes]) => Ok(Some(reads.saturating_add(*writes))),
                    _ => Err(io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} are not two numbers"))),
                }
            }
            Err(error) if went_away(&error) => Ok(None),
            Err(error) => Err(error),
        })
    }

    /// Flushes a device, in a thread of its own. When this returns, every flush that was in flight before has finished,
    /// with success or not: the kernel makes one at a time ([`Os::requests_in_flight`] does not count them).
    ///
    /// # Errors
    /// Those of open(2) and fsync(2); `TimedOut` at the limit, when the call is abandoned.
    pub fn flush_within(&self, device: &Path, limit: Duration) -> io::Result<()> {
        self.call(Call::FlushDevice, &device.display(), || {
            let (path, object) = (device.to_owned(), format!("a flush of {}", device.display()));
            self.inner.waits.within(limit, &object, move || {
                OpenOptions::new().write(true).open(path).and_then(|file| file.sync_all())
            })
        })
    }

    /// The established TCP connections to a port of this machine: the clients of an export.
    ///
    /// # Errors
    /// Those of reading /proc/net.
    pub fn tcp_connections(&self, port: u16) -> io::Result<usize> {
        self.call(Call::NvmetList, &format!("connections of TCP port {port}"), || {
            let mut found = 0;
            for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
                match fs::read_to_string(table) {
                    Ok(text) => found += established(&text, port),
                    // A kernel without IPv6.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(found)
        })
    }
}

/// See [`Os::nvmet_exports_of`].
pub(super) fn exports_of(device: DevNum) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    let subsystems = Path::new(ROOT).join("subsystems");
    for name in names(&subsystems)? {
        let namespaces = subsystems.join(&name).join("namespaces");
        for namespace in names(&namespaces)? {
            // One that is removed meanwhile exports nothing.
            let Ok(path) = fs::read_to_string(namespaces.join(namespace).join("device_path")) else { continue };
            if device_at(Path::new(path.trim_end_matches('\n')))? == Some(device) {
                found.push(name.clone());
            }
        }
    }
    Ok(found)
}

fn device_at(path: &Path) -> io::Result<Option<DevNum>> {
    if !LOCAL.iter().any(|directory| path.starts_with(directory)) {
        return Ok(None);
    }
    match fs::metadata(path) {
        Ok(meta) => Ok(meta.file_type().is_block_device().then(|| DevNum::from_dev_t(meta.rdev()))),
        Err(error) if went_away(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Established connections in the text of /proc/net/tcp whose local port is this one.
fn established(table: &str, port: u16) -> usize {
    let suffix = format!(":{port:04X}");
    table
        .lines()
        .filter(|line| {
            let mut fields = line.split_whitespace();
            // TCP_ESTABLISHED of include/net/tcp_states.h is 1.
            fields.nth(1).is_some_and(|local| local.ends_with(&suffix)) && fields.nth(1) == Some("01")
        })
        .count()
}

/// The names in a directory, sorted; none if it is missing.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        // Attributes are beside the objects.
        if !entry.file_type()?.is_file() {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// A name of one component.
fn plain(name: &str) -> io::Result<&str> {
    let is_plain = !name.is_empty() && !name.contains('/') && !name.contains('\0') && name != "." && name != "..";
    if is_plain { Ok(name) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn own_subsystem(name: &str) -> io::Result<()> {
    if name.starts_with(OURS) { Ok(()) } else { Err(foreign()) }
}

fn foreign() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "it does not belong to Holdfast")
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_are_changed() {
        let os = Os::new();
        let other = "nqn.2014-08.org.example:disk";
        let refused = |result: io::Result<bool>| result.unwrap_err().kind() == io::ErrorKind::PermissionDenied;
        assert!(refused(os.nvmet_create(NvmetObject::Subsystem(other))));
        assert!(refused(os.nvmet_remove(NvmetObject::Namespace(other))));
        assert!(refused(os.nvmet_remove(NvmetObject::Host("nqn.other"))));
        assert!(refused(os.nvmet_link(NvmetLinks::Port(1), other)));
        assert!(refused(os.nvmet_unlink(NvmetLinks::Allowed(other), "nqn.x")));
        let escapes = format!("{OURS}x/../../ports");
        assert_eq!(os.nvmet_create(NvmetObject::Subsystem(&escapes)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_host_s_name_is_in_no_target() {
        let name = format!("{HOST}0");
        assert!(!NvmetObject::Host(&name).to_string().contains(&name));
        assert!(!NvmetLinks::Allowed("nqn.x").to_string().contains(HOST));
    }

    #[test]
    fn established_connections_are_counted_by_local_port() {
        let table = "  sl  local_address rem_address   st\n\
            0: 0100000A:4E21 00000000:0000 0A 0 0\n\
            1: 0100000A:4E21 0200000A:C350 01 0 0\n\
            2: 0100000A:C350 0200000A:4E21 01 0 0\n\
            3: 0100000A:4E21 0200000A:C351 06 0 0\n";
        assert_eq!((established(table, 20001), established(table, 20002)), (1, 0));
    }

    #[test]
    fn a_device_that_is_not_exported_has_no_export() {
        assert_eq!(Os::new().nvmet_exports_of(DevNum { major: 4095, minor: 0 }).unwrap(), Vec::<String>::new());
        assert_eq!(device_at(Path::new("/etc/passwd")).unwrap(), None);
        assert_eq!(device_at(Path::new("/dev/null")).unwrap(), None);
        assert_eq!(Os::new().requests_in_flight(DevNum { major: 4095, minor: 0 }).unwrap(), None);
    }
}
