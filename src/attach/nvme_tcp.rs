//! Volumes that another node exports over NVMe/TCP: a connection of this kernel to the export.
//!
//! This module keeps no state: the name of a subsystem contains pool and volume. A controller of a volume is stale if its
//! subsystem is not the one that the home node named now. While a stale one exists, the kernel may give the new
//! connection no device ("duplicate IDs"): the same data has the same identity. Stale controllers therefore go first.
//!
//! A lost connection is not made again by the kernel: a request that it sent twice could overwrite a later one
//! (docs/protocol.md). Its controller waits, and so do reads and writes. The home node ends everything that the connection
//! left and opens the export again; then one more controller is connected, which has the same block device, and only then
//! the waiting one is deleted: a device without a controller fails its requests.

use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use super::{Attach, Attached, Wanted, verified};
use crate::home::{Client, Connection, ConnectionState, DeviceAddress, Locks, Renaming};
use crate::os::{
    BlockDevice, DevNum, DeviceUse, Dhchap, NvmeCondition, NvmeConnect, NvmeController, NvmeNamespace, NvmePath,
    NvmeSupport, Os, Stopwatch,
};
use crate::types::{Changed, Error, Kind, NvmeTcpAddress, OsContext, Result, SubsystemNqn, VolumeId};

/// How long the device of a new connection may take; after half of the time the kernel looks again.
const DEVICE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);
/// How often a number that a pod still has the device node of is refused.
const NUMBERS: usize = 5;
/// How long a process may have the device open only to look at it, as udev does.
const LOOKS: Duration = Duration::from_secs(1);

/// Attaches volumes by connections over TCP.
#[derive(Debug)]
pub struct NvmeTcp {
    os: Os,
    dhchap: OnceLock<Dhchap>,
    /// One call at a time connects or disconnects a volume: two live controllers could serve one request twice.
    connecting: Locks<VolumeId>,
}

/// Whether this call made the block device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Device {
    New,
    Found,
}

impl NvmeTcp {
    /// With this kernel's driver.
    #[must_use]
    pub fn new(os: Os) -> Self {
        Self { connecting: Locks::new(os.activity().clone()), os, dhchap: OnceLock::new() }
    }

    /// Whether this node can connect.
    ///
    /// # Errors
    /// `Internal` when the kernel cannot be queried.
    pub fn support(&self) -> Result<NvmeSupport> {
        self.os.nvme_support().at(|| "check whether the kernel can connect over NVMe/TCP")
    }

    /// The exports that this node is connected to.
    ///
    /// # Errors
    /// `Internal` when the controllers cannot be listed.
    pub fn connected(&self) -> Result<Vec<SubsystemNqn>> {
        let all = self.os.nvme_controllers().at(|| "list the NVMe controllers")?;
        Ok(all.into_iter().filter_map(|found| found.subsystem.parse().ok()).collect())
    }

    /// The exports whose connection is lost: reads and writes wait until [`NvmeTcp::client`], the home node and
    /// [`NvmeTcp::rejoin`] have made it again. One with a live controller beside a waiting one is among them.
    ///
    /// # Errors
    /// `Internal` when the controllers cannot be listed.
    pub fn waiting(&self) -> Result<Vec<SubsystemNqn>> {
        let all = self.os.nvme_controllers().at(|| "list the NVMe controllers")?;
        let mut exports: Vec<SubsystemNqn> =
            all.into_iter().filter(is_lost).filter_map(|one| one.subsystem.parse().ok()).collect();
        exports.dedup();
        Ok(exports)
    }

    /// What the home node must know before it opens a volume for this node.
    ///
    /// # Errors
    /// `Internal` when the kernel cannot be queried.
    pub fn client(&self, volume: &VolumeId) -> Result<Client> {
        let controllers = self.controllers(volume)?;
        let live = controllers.iter().find(|(_, one)| one.condition() == NvmeCondition::Live);
        let live = live.map(|(export, _)| Connection { export: *export, state: ConnectionState::Live });
        let lost = controllers.iter().find(|(_, one)| is_lost(one)).map(|(export, one)| waiting_as(export, one));
        Ok(Client { connection: live.or(lost), authenticates: self.dhchap()?, renaming: Renaming::Allowed })
    }

    /// Connects a volume again whose controllers wait, to the export that the home node opened again. Opens no device.
    ///
    /// # Errors
    /// `Precondition` when no controller of the export waits any more; those of [`Attach::attach`].
    pub fn rejoin(&self, volume: &VolumeId, wanted: &Wanted) -> Result<()> {
        let at = exported(volume, wanted)?;
        let is_there = self.controllers(volume)?.iter().any(|(name, _)| *name == at.subsystem);
        if !is_there {
            return Err(Error::new(Kind::Precondition, format!("volume {volume} was disconnected meanwhile")));
        }
        self.connect(volume, at, wanted.connection).map(drop)
    }

    /// Ends the connections to an export, whoever uses them: reads and writes that wait fail from then on (EIO).
    ///
    /// # Errors
    /// `Busy` when the kernel does not finish in time; `Internal`.
    pub fn disconnect(&self, export: &SubsystemNqn) -> Result<Changed> {
        let mut changed = Changed::No;
        for (name, controller) in self.controllers(&export.volume)? {
            if name == *export {
                self.delete(&export.volume, &controller)?;
                changed = Changed::Yes;
            }
        }
        Ok(changed)
    }

    /// Whether this node can authenticate itself. The result is cached.
    ///
    /// # Errors
    /// `Internal` when the kernel cannot be queried.
    pub fn dhchap(&self) -> Result<Dhchap> {
        if let Some(dhchap) = self.dhchap.get() {
            return Ok(*dhchap);
        }
        let found = self.os.nvme_dhchap().at(|| "check whether the kernel has DH-HMAC-CHAP")?;
        Ok(*self.dhchap.get_or_init(|| found))
    }

    /// The controllers of a volume.
    fn controllers(&self, volume: &VolumeId) -> Result<Vec<(SubsystemNqn, NvmeController)>> {
        let all = self.os.nvme_controllers().at(|| "list the NVMe controllers")?;
        let named = all.into_iter().filter_map(|found| Some((found.subsystem.parse::<SubsystemNqn>().ok()?, found)));
        Ok(named.filter(|(name, _)| is_of(name, volume)).collect())
    }

    /// Disconnects a controller. Its block device may stay as long as a process has it open.
    fn delete(&self, volume: &VolumeId, controller: &NvmeController) -> Result<()> {
        match self.os.nvme_delete(controller) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Err(Error::new(
                Kind::Busy,
                format!(
                    "volume {volume} is not disconnected yet: controller nvme{} of {} still has requests; retry",
                    controller.instance, controller.subsystem
                ),
            )
            .because(error)),
            Err(error) => Err(Error::new(
                Kind::Internal,
                format!("cannot disconnect volume {volume}: delete controller nvme{}", controller.instance),
            )
            .because(error)),
        }
    }

    fn delete_stale(&self, volume: &VolumeId, wanted: &SubsystemNqn) -> Result<()> {
        for (name, controller) in self.controllers(volume)? {
            if name != *wanted {
                tracing::warn!(%volume, controller = controller.instance, "an earlier connection of the volume was left: it is removed");
                self.delete(volume, &controller)?;
            }
        }
        let left = self.controllers(volume)?.into_iter().find(|(name, _)| name != wanted);
        match left {
            None => Ok(()),
            Some((_, controller)) => Err(Error::new(
                Kind::Busy,
                format!(
                    "an earlier connection of volume {volume}, controller nvme{}, is still there; retry",
                    controller.instance
                ),
            )),
        }
    }

    /// The live controller of exactly this export, or a new one. `before` is the connection that the home node knew of:
    /// after any other one it may not have ended everything yet.
    ///
    /// 1. Connect, unless one is live. A crash leaves a controller beside the waiting ones: the next call continues.
    /// 2. Wait until the device answers through it.
    /// 3. Delete the waiting ones.
    fn connect(
        &self,
        volume: &VolumeId,
        at: &NvmeTcpAddress,
        before: Option<Connection>,
    ) -> Result<(NvmeController, Device)> {
        let _lock = self.connecting.try_lock(volume, "connecting")?;
        let found = || -> Result<Vec<NvmeController>> {
            let all = self.controllers(volume)?.into_iter();
            Ok(all.filter(|(name, _)| *name == at.subsystem).map(|(_, found)| found).collect())
        };
        let (mut live, mut waiting) = (None, Vec::new());
        for one in found()? {
            match one.condition() {
                NvmeCondition::Live => live = Some(one),
                NvmeCondition::Waiting if is_lost(&one) => waiting.push(one),
                NvmeCondition::Waiting | NvmeCondition::Ending => self.delete(volume, &one)?,
            }
        }
        let device = if live.is_none() && waiting.is_empty() { Device::New } else { Device::Found };
        let live = match live {
            Some(live) => live,
            None => {
                // The one whose number the home node avoids stays: without any, the device would fail its requests.
                let known = waiting.iter().position(|one| before == Some(waiting_as(&at.subsystem, one)));
                let path = match known {
                    Some(known) => {
                        let kept = waiting.swap_remove(known);
                        for other in std::mem::replace(&mut waiting, vec![kept]) {
                            self.delete(volume, &other)?;
                        }
                        NvmePath::Another
                    }
                    None if waiting.is_empty() && before.is_none_or(|one| one.export != at.subsystem) => {
                        NvmePath::First
                    }
                    None => {
                        let why = format!("the connection of volume {volume} changed a moment ago; retry");
                        return Err(Error::new(Kind::Busy, why));
                    }
                };
                let made = self.new_path(volume, at, path)?;
                found()?.into_iter().find(|one| one.instance == made).ok_or_else(|| {
                    let why = format!("the connection of volume {volume} to {} is gone again; retry", at.address);
                    Error::new(Kind::Busy, why)
                })?
            }
        };
        if let Some(shown) = waiting.first().and_then(|one| one.namespaces.first()) {
            self.await_path(volume, at, &live, shown)?;
        }
        for one in &waiting {
            self.delete(volume, one)?;
        }
        Ok((live, device))
    }

    fn new_path(&self, volume: &VolumeId, at: &NvmeTcpAddress, path: NvmePath) -> Result<u32> {
        let to = NvmeConnect {
            address: at.address,
            subsystem: at.subsystem.to_string(),
            host_nqn: at.host.reveal(),
            host_id: at.host.host_id(),
            secret: at.key.as_ref().map(|key| key.reveal().to_owned()),
            path,
        };
        self.os.nvme_connect(&to).map_err(|error| refused(volume, at, error))
    }

    /// Waits until a device answers through a new connection. One that does not get the device is ended: the next call
    /// makes another one.
    fn await_path(
        &self,
        volume: &VolumeId,
        at: &NvmeTcpAddress,
        live: &NvmeController,
        shown: &NvmeNamespace,
    ) -> Result<()> {
        let watch = Stopwatch::start();
        let mut rescanned = false;
        loop {
            let all = self.controllers(volume)?;
            let now = all.iter().map(|(_, one)| one).find(|one| one.instance == live.instance);
            if now.is_some_and(|now| now.namespaces.iter().any(|device| device.number == shown.number)) {
                break;
            }
            if now.is_none() || watch.elapsed() >= DEVICE {
                self.delete(volume, live)?;
                return Err(Error::new(
                    Kind::Busy,
                    format!(
                        "the new connection of volume {volume} to {} did not become a path to /dev/{}; it was removed; retry (`dmesg` on this node may say why)",
                        at.address, shown.name
                    ),
                ));
            }
            if !rescanned && watch.elapsed() >= DEVICE / 2 {
                rescanned = true;
                self.os.nvme_rescan(live).at(|| format!("rescan controller nvme{}", live.instance))?;
            }
            thread::sleep(POLL);
        }
        let path = self.os.device_node(shown.number).at(|| format!("create the device node of {}", shown.name))?;
        self.os.nvme_answers(&path, DEVICE).map_err(|error| {
            let why = format!(
                "/dev/{} of volume {volume} does not answer through its new connection to {} yet; retry",
                shown.name, at.address
            );
            Error::new(Kind::Busy, why).because(error)
        })
    }

    /// Waits for the block device of the export.
    fn await_device(
        &self,
        volume: &VolumeId,
        at: &NvmeTcpAddress,
        controller: &NvmeController,
    ) -> Result<NvmeNamespace> {
        let watch = Stopwatch::start();
        let mut rescanned = false;
        loop {
            let all = self.controllers(volume)?;
            let Some((_, now)) = all.into_iter().find(|(_, one)| one.instance == controller.instance) else {
                return Err(Error::new(
                    Kind::Busy,
                    format!("the connection of volume {volume} to {} ended before it had a device; retry", at.address),
                ));
            };
            if let Some(device) = now.namespaces.iter().find(|device| device.uuid == Some(at.namespace)) {
                return Ok(device.clone());
            }
            if let Some(other) = now.namespaces.first() {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!(
                        "{} from {} is not the device of volume {volume}: it has another uuid than the home node said; nothing was written; detach the volume and attach it again",
                        other.name, at.address
                    ),
                ));
            }
            if watch.elapsed() >= DEVICE {
                self.delete(volume, controller)?;
                return Err(Error::new(
                    Kind::Busy,
                    format!(
                        "the connection of volume {volume} to {} had no device after {} s and was removed; retry (`dmesg` on this node may say \"duplicate IDs\")",
                        at.address,
                        DEVICE.as_secs()
                    ),
                ));
            }
            if !rescanned && watch.elapsed() >= DEVICE / 2 {
                rescanned = true;
                self.os.nvme_rescan(controller).at(|| format!("rescan controller nvme{}", controller.instance))?;
            }
            thread::sleep(POLL);
        }
    }

    /// Opens the device, and verifies that the number still belongs to the export.
    fn open(&self, volume: &VolumeId, at: &NvmeTcpAddress, found: &NvmeNamespace) -> Result<BlockDevice> {
        let moved =
            || Error::new(Kind::Busy, format!("{} is no longer the device of volume {volume}; retry", found.name));
        let path = self.os.device_node(found.number).at(|| format!("create the device node of {}", found.name))?;
        let device = self.os.open_device(&path).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => moved().because(error),
            _ => {
                Error::new(Kind::Internal, format!("cannot open {} of volume {volume}", path.display())).because(error)
            }
        })?;
        // The descriptor is open: from here on the kernel does not give the number to another device.
        let now = self.os.nvme_of(device.number()).at(|| format!("look up block device {}", device.number()))?;
        let is_same =
            now.is_some_and(|(subsystem, uuid)| subsystem == at.subsystem.to_string() && uuid == Some(at.namespace));
        if device.number() == found.number && is_same { Ok(device) } else { Err(moved()) }
    }

    /// Connects until the device has a number of which no container has a device node: such a container would see this
    /// volume. A refused device is held open meanwhile, because the kernel takes the lowest free number.
    fn device(&self, volume: &VolumeId, at: &NvmeTcpAddress, before: Option<Connection>) -> Result<BlockDevice> {
        let mut refused = Vec::new();
        for _ in 0..NUMBERS {
            let (controller, known) = self.connect(volume, at, before)?;
            let found = self.await_device(volume, at, &controller)?;
            let device = self.open(volume, at, &found)?;
            if known == Device::Found {
                return Ok(device);
            }
            let bound = self.os.bound_devices().at(|| "look for device nodes in pods")?;
            if !bound.contains(&device.number()) {
                return Ok(device);
            }
            tracing::warn!(%volume, device = %device.number(), "a pod still has the device node of an earlier device with this number: the volume is connected again");
            self.delete(volume, &controller)?;
            refused.push(device);
        }
        let numbers: Vec<_> = refused.iter().map(|device| device.number().to_string()).collect();
        Err(Error::new(
            Kind::Busy,
            format!(
                "volume {volume} was not attached: pods still have the device nodes of earlier devices with the numbers {}; stop the pods of detached raw block volumes on this node, and retry",
                numbers.join(", ")
            ),
        ))
    }

    /// The users of a device, without those that only look at it.
    fn users(&self, number: DevNum) -> Result<Vec<DeviceUse>> {
        let watch = Stopwatch::start();
        loop {
            let users = self.os.device_users(number).at(|| format!("look for the users of block device {number}"))?;
            let only_open = users.iter().all(|used| matches!(used, DeviceUse::Open(_)));
            if users.is_empty() || !only_open || watch.elapsed() >= LOOKS {
                return Ok(users);
            }
            thread::sleep(POLL);
        }
    }
}

impl Attach for NvmeTcp {
    /// 1. Delete stale controllers of the volume. A crash after any step leaves controllers of the volume: the next call
    ///    uses or deletes them, and `detach` deletes them.
    /// 2. Connect, unless there is a live controller of exactly this export ([`NvmeTcp::connect`]).
    /// 3. Wait for its device.
    /// 4. Open the device; verify uuid, size and block size.
    fn attach(&self, volume: &VolumeId, wanted: &Wanted) -> Result<Attached> {
        let at = exported(volume, wanted)?;
        if let NvmeSupport::No(why) = self.support()? {
            return Err(Error::new(Kind::Precondition, format!("this node cannot use volume {volume}: {why}")));
        }
        self.delete_stale(volume, &at.subsystem)?;
        let device = self.device(volume, at, wanted.connection)?;
        let shown = device.path().display().to_string();
        let diskseq = self.os.disk_sequence(&device).at(|| format!("read the sequence number of {shown}"))?;
        let size = verified(&self.os, &device, volume, wanted, "detach the volume and attach it again")?;
        Ok(Attached { device, size, diskseq })
    }

    /// Nothing is flushed: the unmount, or the last user of a raw block device, has done that. Opens no device: one whose
    /// home node is away may not answer.
    fn detach(&self, volume: &VolumeId) -> Result<()> {
        let _lock = self.connecting.try_lock(volume, "disconnecting")?;
        let controllers = self.controllers(volume)?;
        for (_, controller) in &controllers {
            for device in &controller.namespaces {
                let users = self.users(device.number)?;
                if !users.is_empty() {
                    let users: Vec<_> = users.iter().map(ToString::to_string).collect();
                    return Err(Error::new(
                        Kind::InUse,
                        format!(
                            "/dev/{} of volume {volume} is {}; stop the pods or processes that use it, and retry",
                            device.name,
                            users.join(", ")
                        ),
                    ));
                }
            }
        }
        for (_, controller) in &controllers {
            self.delete(volume, controller)?;
        }
        if let Some((_, left)) = self.controllers(volume)?.first() {
            return Err(Error::new(
                Kind::Busy,
                format!("controller nvme{} of volume {volume} is still there after its removal; retry", left.instance),
            ));
        }
        for (name, controller) in &controllers {
            for device in &controller.namespaces {
                let now = self.os.nvme_of(device.number).at(|| format!("look up block device {}", device.number))?;
                if now.is_some_and(|(subsystem, _)| subsystem == name.to_string()) {
                    return Err(Error::new(
                        Kind::Busy,
                        format!(
                            "/dev/{} of volume {volume} is still there after its controller is gone; retry",
                            device.name
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    fn device_of(&self, volume: &VolumeId) -> Result<Option<DevNum>> {
        let controllers = self.controllers(volume)?;
        let devices = controllers.iter().flat_map(|(_, controller)| &controller.namespaces);
        let mut numbers: Vec<_> = devices.map(|device| device.number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        match numbers.as_slice() {
            [] => Ok(None),
            [number] => Ok(Some(*number)),
            [one, other, ..] => Err(Error::new(
                Kind::Corrupt,
                format!(
                    "volume {volume} has two devices over NVMe/TCP, {one} and {other}; nothing was changed; stop its pods on this node and unstage it"
                ),
            )),
        }
    }

    fn volume_of(&self, device: DevNum) -> Result<Option<VolumeId>> {
        let found = self.os.nvme_of(device).at(|| format!("look up block device {device}"))?;
        Ok(found.and_then(|(subsystem, _)| subsystem.parse::<SubsystemNqn>().ok()).map(|name| name.volume))
    }
}

/// Whether a controller has a device that waits for another connection. One that is still being made has none, nor has
/// one that broke before.
fn is_lost(controller: &NvmeController) -> bool {
    controller.condition() == NvmeCondition::Waiting && !controller.namespaces.is_empty()
}

fn waiting_as(export: &SubsystemNqn, controller: &NvmeController) -> Connection {
    Connection { export: *export, state: ConnectionState::Waiting(controller.id) }
}

/// The export of a volume.
///
/// # Errors
/// `Internal` when it is local; `Corrupt` when the export is another volume's.
fn exported<'w>(volume: &VolumeId, wanted: &'w Wanted) -> Result<&'w NvmeTcpAddress> {
    match &wanted.at {
        DeviceAddress::NvmeTcp(at) if is_of(&at.subsystem, volume) => Ok(at),
        DeviceAddress::NvmeTcp(at) => Err(Error::new(
            Kind::Corrupt,
            format!(
                "the home node of volume {volume} answered with the export {} of another volume; nothing was connected",
                at.subsystem
            ),
        )),
        DeviceAddress::Local { .. } => {
            Err(Error::new(Kind::Internal, format!("volume {volume} is not exported over NVMe/TCP")))
        }
    }
}

/// Whether an export is of this volume, whatever the volume's handle carries besides pool and uuid.
fn is_of(name: &SubsystemNqn, volume: &VolumeId) -> bool {
    name.volume.pool == volume.pool && name.volume.uuid == volume.uuid
}

/// A failed connection. The message names neither the host nor its key.
fn refused(volume: &VolumeId, at: &NvmeTcpAddress, error: std::io::Error) -> Error {
    let address = at.address;
    let (kind, why) = match error.raw_os_error() {
        _ if error.kind() == std::io::ErrorKind::TimedOut => {
            (Kind::Unavailable, "the home node does not answer, or an earlier connection is still being made; retry")
        }
        Some(libc::ECONNREFUSED) => (
            Kind::Unavailable,
            "nothing listens there, or the export does not accept this node: the home node may be restarting, or has detached the volume; retry",
        ),
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ECONNRESET | libc::EPIPE) => (
            Kind::Unavailable,
            "the home node cannot be reached; check the network and firewall between the nodes, and retry",
        ),
        Some(libc::EALREADY) => (Kind::Busy, "another call is connecting it; retry"),
        Some(libc::EKEYREJECTED | libc::ENOKEY | libc::EACCES | libc::EPERM) => {
            (Kind::Precondition, "the export does not accept this node's key; detach the volume and attach it again")
        }
        Some(libc::EIO) => {
            (Kind::Busy, "the export does not accept this node: the home node may have detached the volume; retry")
        }
        _ => (Kind::Internal, "the kernel did not make the connection"),
    };
    Error::new(kind, format!("cannot connect volume {volume} to {address}: {why}")).because(error)
}
