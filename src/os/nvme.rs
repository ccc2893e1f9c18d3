//! The kernel's NVMe host: connects to subsystems over TCP, lists controllers and their block devices, disconnects.
//!
//! /dev/nvme-fabrics and sysfs are used directly. With native multipath (nvme_core.multipath=Y) a namespace is the block
//! device `nvmeXnY` of its subsystem, with a hidden path `nvmeXcZnY` for each controller; without it `nvmeXnY` belongs to
//! the controller. Nothing here opens a block device: opening one whose target is away may hang. Does not know volumes;
//! `attach` does.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use uuid::Uuid;

use super::blockdev::{DIRECT, read_direct};
use super::blockstack::{by_number, number_of, went_away};
use super::miscdev::{listed_minor, open_misc};
use super::{Call, DevNum, Dhchap, Os};

const FABRICS: &str = "/dev/nvme-fabrics";
const CONTROLLERS: &str = "/sys/class/nvme";
const SYMBOLS: &str = "/proc/kallsyms";
/// A function of the host driver with DH-HMAC-CHAP (drivers/nvme/host/auth.c).
const AUTHENTICATES: &str = "nvme_auth_init_ctrl";
/// The most I/O queues of a connection; fewer with fewer processors.
const QUEUES: usize = 4;
/// How long a connection and a disconnection may take before the caller stops waiting. The kernel makes one connection at
/// a time, and waits up to 3 s for a machine that does not answer.
const CONNECT: Duration = Duration::from_secs(30);
const DELETE: Duration = Duration::from_secs(30);
/// Seconds after which the kernel itself would connect again, 23 days: it must not (docs/protocol.md). The kernel
/// multiplies it by HZ, at most 1000, in an `int`.
const NEVER: u32 = 2_000_000;
/// Whether namespaces have one device for all paths to them.
const MULTIPATH: &str = "/sys/module/nvme_core/parameters/multipath";

/// The NVMe host driver of this kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NvmeSupport {
    /// It can connect over TCP.
    Yes,
    /// It cannot, with the reason and how to change that.
    No(String),
}

/// How to connect. `Debug` shows neither the host's name nor the secret.
#[derive(Clone)]
pub struct NvmeConnect {
    /// Address and port of the target.
    pub address: SocketAddr,
    /// The subsystem.
    pub subsystem: String,
    /// The name that the target accepts.
    pub host_nqn: String,
    /// The id that belongs to the name.
    pub host_id: Uuid,
    /// The secret for DH-HMAC-CHAP.
    pub secret: Option<String>,
    /// Whether this host has a controller of the subsystem already.
    pub path: NvmePath,
}

/// A path to a subsystem is one controller of it. Several have one block device, which works while one of them does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NvmePath {
    /// The first one: the kernel rejects it when there is one already (EALREADY).
    First,
    /// One more, to the same address.
    Another,
}

/// What a controller does, from its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NvmeCondition {
    /// It serves reads and writes.
    Live,
    /// It has no connection now; reads and writes wait.
    Waiting,
    /// It is being deleted, or the kernel gave it up.
    Ending,
}

impl fmt::Debug for NvmeConnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmeConnect")
            .field("address", &self.address)
            .field("subsystem", &self.subsystem)
            .finish_non_exhaustive()
    }
}

/// A connection to a subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeController {
    /// Its number: `nvme3` has 3. The kernel uses it again.
    pub instance: u32,
    /// Its subsystem.
    pub subsystem: String,
    /// `tcp` for a connection over TCP.
    pub transport: String,
    /// Its address, as the kernel shows it.
    pub address: String,
    /// `live`, `connecting`, `deleting`, ..
    pub state: String,
    /// The number that the target gave it; unique among the controllers of the subsystem.
    pub id: Option<u16>,
    /// Its namespaces that have a block device.
    pub namespaces: Vec<NvmeNamespace>,
}

impl NvmeController {
    /// What it does. The states are those of drivers/nvme/host/sysfs.c, `nvme_sysfs_show_state`.
    #[must_use]
    pub fn condition(&self) -> NvmeCondition {
        match self.state.as_str() {
            "live" => NvmeCondition::Live,
            "dead" => NvmeCondition::Ending,
            state if state.starts_with("deleting") => NvmeCondition::Ending,
            // `new`, `resetting`, `connecting`.
            _ => NvmeCondition::Waiting,
        }
    }
}

/// The block device of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeNamespace {
    /// The device's name, such as `nvme0n1`.
    pub name: String,
    /// Its number.
    pub number: DevNum,
    /// The uuid that the namespace reports, if any.
    pub uuid: Option<Uuid>,
    /// The kernel's sequence number of this device, if it has any.
    pub diskseq: Option<u64>,
}

impl Os {
    /// Whether this kernel can connect to exports over NVMe/TCP. Loads nothing.
    ///
    /// # Errors
    /// Those of /dev/nvme-fabrics, except that it is missing or not permitted.
    pub fn nvme_support(&self) -> io::Result<NvmeSupport> {
        self.call(Call::NvmeSupport, &FABRICS, || {
            let missing = "the kernel module nvme-tcp is not loaded: run `modprobe nvme-tcp` on the node, and load it at boot (/etc/modules-load.d)";
            let Some(minor) = listed_minor("nvme-fabrics")? else { return Ok(NvmeSupport::No(missing.to_owned())) };
            if !Path::new("/sys/module/nvme_tcp").exists() {
                return Ok(NvmeSupport::No(missing.to_owned()));
            }
            if attribute(Path::new(MULTIPATH))?.as_deref() != Some("Y") {
                return Ok(NvmeSupport::No(format!(
                    "the kernel has no native NVMe multipath ({MULTIPATH} is not Y), which a lost connection needs: start the machine with nvme_core.multipath=Y"
                )));
            }
            match open_misc(Path::new(FABRICS), minor) {
                Ok(_) => Ok(NvmeSupport::Yes),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EROFS)) => {
                    Ok(NvmeSupport::No(format!("cannot open {FABRICS}: {error}")))
                }
                Err(error) => Err(error),
            }
        })
    }

    /// Whether the host driver of this kernel is built with DH-HMAC-CHAP. The list of options of /dev/nvme-fabrics is no
    /// answer: Linux 6.1 has the options in any case. Reads all symbols of the kernel, which takes a moment.
    ///
    /// # Errors
    /// Those of reading /proc/kallsyms.
    pub fn nvme_dhchap(&self) -> io::Result<Dhchap> {
        self.call(Call::NvmeSupport, &SYMBOLS, || {
            let table = fs::read_to_string(SYMBOLS)?;
            Ok(if has_symbol(&table, AUTHENTICATES) { Dhchap::Yes } else { Dhchap::No })
        })
    }

    /// Connects to a subsystem; returns the number of the controller. Its block devices appear later. When the connection
    /// is lost, I/O waits for ever, and the kernel does not connect again by itself.
    ///
    /// # Errors
    /// The kernel's: ECONNREFUSED when nothing listens, EALREADY when this host is connected, EIO or EINVAL when the
    /// target rejects the host; `TimedOut` after 30 s, when the call is abandoned: a connection that is made after that is
    /// ended at once.
    pub fn nvme_connect(&self, to: &NvmeConnect) -> io::Result<u32> {
        let options = options(to, thread::available_parallelism().map_or(1, usize::from));
        let object = format!("the connection to {} for {}", to.address, to.subsystem);
        self.call(Call::NvmeConnect, &to.subsystem, || {
            let minor = listed_minor("nvme-fabrics")?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
            let connect = move || {
                let mut file = open_misc(Path::new(FABRICS), minor)?;
                // One write(2) is one request.
                let written = file.write(options.as_bytes())?;
                if written != options.len() {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                let mut answer = String::new();
                file.read_to_string(&mut answer)?;
                instance_in(&answer).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("{answer:?} names no controller"))
                })
            };
            // Nobody expects it: a second path could serve a request again before the first one has ended.
            let undo = |instance| {
                let made = Path::new(CONTROLLERS).join(format!("nvme{instance}/delete_controller"));
                if let Err(error) =
                    fs::write(made, "1").or_else(|error| if went_away(&error) { Ok(()) } else { Err(error) })
                {
                    tracing::warn!(controller = instance, %error, "a connection that came too late could not be ended");
                }
            };
            self.inner.waits.within_or_undone(CONNECT, &object, connect, undo)
        })
    }

    /// Reads the first block of a device past all caches, in a thread of its own: proves that one of its paths works.
    ///
    /// # Errors
    /// Those of open(2) and pread(2); `TimedOut` at the limit, when the call is abandoned.
    pub fn nvme_answers(&self, device: &Path, limit: Duration) -> io::Result<()> {
        self.call(Call::NvmeRead, &device.display(), || {
            let (path, object) = (device.to_owned(), format!("a read of {}", device.display()));
            self.inner.waits.within(limit, &object, move || read_direct(&path, 0, DIRECT).map(drop))
        })
    }

    /// Every controller over a network, with the block devices that it has now. Opens none.
    ///
    /// # Errors
    /// Those of reading sysfs, except for a controller that disappears meanwhile.
    pub fn nvme_controllers(&self) -> io::Result<Vec<NvmeController>> {
        self.call(Call::NvmeList, &CONTROLLERS, || {
            let entries = match fs::read_dir(CONTROLLERS) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            };
            let mut found = Vec::new();
            for entry in entries {
                found.extend(controller(&entry?.path())?);
            }
            found.sort_unstable_by_key(|controller| controller.instance);
            Ok(found)
        })
    }

    /// The subsystem of a block device, and the uuid that its namespace reports; `None` when it is no NVMe namespace or
    /// disappears.
    ///
    /// # Errors
    /// Those of reading sysfs except ENOENT.
    pub fn nvme_of(&self, number: DevNum) -> io::Result<Option<(String, Option<Uuid>)>> {
        self.call(Call::NvmeList, &number, || {
            let directory = by_number(number);
            // `device` is the subsystem with multipath, otherwise the controller; both have the attribute.
            let Some(subsystem) = attribute(&directory.join("device/subsysnqn"))? else { return Ok(None) };
            Ok(Some((subsystem, uuid_in(&directory)?)))
        })
    }

    /// Disconnects a controller of this subsystem. Its block device goes with its last controller; requests to it fail
    /// with EIO. Returns when the kernel has finished. `false` when there is no such controller.
    ///
    /// # Errors
    /// Those of sysfs except ENOENT; `TimedOut` after 30 s, when the call is abandoned.
    pub fn nvme_delete(&self, controller: &NvmeController) -> io::Result<bool> {
        let object = format!("the disconnection of nvme{} from {}", controller.instance, controller.subsystem);
        self.call(Call::NvmeDelete, &controller.subsystem, || {
            let Some(directory) = same(controller)? else { return Ok(false) };
            self.inner.waits.within(DELETE, &object, move || {
                match fs::write(directory.join("delete_controller"), "1") {
                    Ok(()) => Ok(true),
                    // Deleted by another process meanwhile.
                    Err(error) if went_away(&error) => Ok(false),
                    Err(error) => Err(error),
                }
            })
        })
    }

    /// Makes the kernel look for the namespaces of a controller again. It does that later.
    ///
    /// # Errors
    /// Those of sysfs except ENOENT.
    pub fn nvme_rescan(&self, controller: &NvmeController) -> io::Result<()> {
        self.call(Call::NvmeRescan, &controller.subsystem, || {
            let Some(directory) = same(controller)? else { return Ok(()) };
            match fs::write(directory.join("rescan_controller"), "1") {
                Err(error) if !went_away(&error) => Err(error),
                _ => Ok(()),
            }
        })
    }
}

/// Whether a symbol is in the text of /proc/kallsyms, of the kernel itself or of a module.
fn has_symbol(table: &str, symbol: &str) -> bool {
    table.lines().any(|line| line.split_whitespace().nth(2) == Some(symbol))
}

/// The text for /dev/nvme-fabrics (drivers/nvme/host/fabrics.c, `opt_tokens`).
fn options(to: &NvmeConnect, processors: usize) -> String {
    let mut text = format!(
        "transport=tcp,traddr={},trsvcid={},nqn={},hostnqn={},hostid={},ctrl_loss_tmo=-1,reconnect_delay={NEVER},keep_alive_tmo=5,nr_io_queues={}",
        to.address.ip(),
        to.address.port(),
        to.subsystem,
        to.host_nqn,
        to.host_id.as_hyphenated(),
        processors.clamp(1, QUEUES)
    );
    if to.path == NvmePath::Another {
        text.push_str(",duplicate_connect");
    }
    if let Some(secret) = &to.secret {
        text.push_str(",dhchap_secret=");
        text.push_str(secret);
    }
    text
}

/// The number in `instance=3,cntlid=1`.
fn instance_in(answer: &str) -> Option<u32> {
    answer.trim().split(',').find_map(|part| part.strip_prefix("instance=")?.parse().ok())
}

/// The directory of a controller, if it still has this subsystem.
fn same(controller: &NvmeController) -> io::Result<Option<PathBuf>> {
    let directory = Path::new(CONTROLLERS).join(format!("nvme{}", controller.instance));
    let now = attribute(&directory.join("subsysnqn"))?;
    Ok((now.as_deref() == Some(controller.subsystem.as_str())).then_some(directory))
}

/// The controller of a sysfs directory; `None` when it disappears or is a local one.
fn controller(directory: &Path) -> io::Result<Option<NvmeController>> {
    let Some(instance) = number_after(directory, "nvme") else { return Ok(None) };
    let read = |name: &str| attribute(&directory.join(name));
    let (Some(subsystem), Some(transport), Some(state)) = (read("subsysnqn")?, read("transport")?, read("state")?)
    else {
        return Ok(None);
    };
    if transport == "pcie" {
        return Ok(None);
    }
    let mut namespaces = Vec::new();
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if went_away(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let name = entry?.file_name();
        if let Some(disk) = name.to_str().and_then(disk_of) {
            namespaces.extend(namespace(&disk)?);
        }
    }
    namespaces.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let address = read("address")?.unwrap_or_default();
    let id = read("cntlid")?.and_then(|text| text.parse().ok());
    Ok(Some(NvmeController { instance, subsystem, transport, address, state, id, namespaces }))
}

/// The number at the end of a directory's name.
fn number_after(directory: &Path, prefix: &str) -> Option<u32> {
    directory.file_name()?.to_str()?.strip_prefix(prefix)?.parse().ok()
}

/// The block device of an entry of a controller: `nvme0n1` of `nvme0c3n1` and of itself.
fn disk_of(entry: &str) -> Option<String> {
    let (holder, namespace) = entry.strip_prefix("nvme")?.split_once('n')?;
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (subsystem, path) = holder.split_once('c').map_or((holder, None), |(subsystem, path)| (subsystem, Some(path)));
    let is_disk = number(subsystem) && number(namespace) && path.is_none_or(number);
    is_disk.then(|| format!("nvme{subsystem}n{namespace}"))
}

fn namespace(name: &str) -> io::Result<Option<NvmeNamespace>> {
    let directory = Path::new("/sys/block").join(name);
    let Some(number) = attribute(&directory.join("dev"))? else { return Ok(None) };
    let diskseq = attribute(&directory.join("diskseq"))?.and_then(|text| text.parse().ok());
    Ok(Some(NvmeNamespace { name: name.to_owned(), number: number_of(&number)?, uuid: uuid_in(&directory)?, diskseq }))
}

fn uuid_in(directory: &Path) -> io::Result<Option<Uuid>> {
    Ok(attribute(&directory.join("uuid"))?.and_then(|text| Uuid::parse_str(&text).ok()))
}

/// An attribute; `None` when its object has none, or disappears.
fn attribute(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if went_away(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_a_controller_name_block_devices() {
        for (entry, disk) in [("nvme0n1", "nvme0n1"), ("nvme12c3n4", "nvme12n4")] {
            assert_eq!(disk_of(entry).as_deref(), Some(disk));
        }
        for other in ["nvme0", "nvme0c1", "ng0n1", "nvme0n1p1", "nvmen1", "nvme0cn1", "hwmon0", "power"] {
            assert_eq!(disk_of(other), None, "{other}");
        }
        assert_eq!(instance_in("instance=3,cntlid=1\n"), Some(3));
        assert_eq!(instance_in("instance=-1,cntlid=-1,transport=%s"), None);
    }

    #[test]
    fn a_symbol_is_found_in_the_kernel_and_in_a_module() {
        let table = "0000000000000000 T nvme_auth_init\n0000000000000000 t one_more\t[nvme_core]\n";
        assert!(has_symbol(table, "nvme_auth_init") && has_symbol(table, "one_more"));
        assert!(!has_symbol(table, "nvme_auth") && !has_symbol(table, "[nvme_core]"));
    }

    #[test]
    fn a_connection_waits_for_ever_and_names_are_not_in_debug_output() {
        let mut to = NvmeConnect {
            address: "[fd00::1]:20001".parse().unwrap(),
            subsystem: "nqn.s".to_owned(),
            host_nqn: "nqn.secret".to_owned(),
            host_id: Uuid::nil(),
            secret: None,
            path: NvmePath::First,
        };
        assert_eq!(
            options(&to, 9),
            "transport=tcp,traddr=fd00::1,trsvcid=20001,nqn=nqn.s,hostnqn=nqn.secret,hostid=00000000-0000-0000-0000-000000000000,ctrl_loss_tmo=-1,reconnect_delay=2000000,keep_alive_tmo=5,nr_io_queues=4"
        );
        to.secret = Some("DHHC-1:00:x:".to_owned());
        assert!(options(&to, 1).ends_with("nr_io_queues=1,dhchap_secret=DHHC-1:00:x:"));
        to.path = NvmePath::Another;
        assert!(options(&to, 1).contains(",duplicate_connect,"));
        assert!(NEVER.checked_mul(1000).is_some_and(|jiffies| i32::try_from(jiffies).is_ok()));
        let shown = format!("{to:?}");
        assert!(!shown.contains("secret") && !shown.contains("DHHC"), "{shown}");
    }

    #[test]
    fn a_machine_without_such_devices_has_none() {
        assert_eq!(Os::new().nvme_of(DevNum { major: 7, minor: 0 }).unwrap(), None);
        Os::new().nvme_controllers().unwrap();
    }
}
