//! Exports over NVMe/TCP with the kernel's own target.
//!
//! Each export has a subsystem with the namespace 1, one allowed host, and a port of its own whose number is its TCP port.
//! A shared port would answer a client whose subsystem is linked a moment later with an error that the client does not
//! retry (DNR), and the client's filesystem would get EIO. A port without a link has no listener: the client retries.
//!
//! A port is ours if it shows our subsystem, or if it is in the node's port range, shows none, and its TCP port is unset or
//! its number. A crash can leave such a port. This module keeps no state.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use uuid::Uuid;

use super::worker::Worker;
use super::{Enabled, Export, ExportState, Fenced, Remains, Spec, Support};
use crate::os::{Deadline, DevNum, NvmetLinks, NvmetObject, NvmetSupport, Os};
use crate::types::{Changed, Error, HostNqn, Kind, OsContext, Result, SubsystemNqn};

/// The prefix of our subsystems.
const OURS: &str = "nqn.2026-11.storage.holdfast:";
/// The longest time to wait for the target without a deadline of the caller.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause between two looks at the requests in flight, and how many looks in a row must find none: a request that has
/// just arrived may not be counted yet.
const POLL: Duration = Duration::from_millis(20);
const IDLE_LOOKS: u32 = 3;
/// Characters of a serial number (NVMET_SN_MAX_SIZE).
const SERIAL: usize = 20;

/// Exports of this node.
#[derive(Debug)]
pub struct Nvmet {
    kernel: Kernel,
    worker: Worker,
    support: OnceLock<Support>,
}

/// The calls themselves. They run in the worker.
#[derive(Clone, Debug)]
struct Kernel {
    os: Os,
    /// The ports of this node that are for exports alone.
    range: RangeInclusive<u16>,
}

impl Nvmet {
    /// With this kernel's target. The ports of `range` are for exports alone: one that nothing uses is removed.
    #[must_use]
    pub fn new(os: Os, range: RangeInclusive<u16>) -> Self {
        Self { worker: Worker::new(os.clone()), kernel: Kernel { os, range }, support: OnceLock::new() }
    }
}

/// The time until the caller's deadline, if it has one.
fn patience() -> Duration {
    Deadline::current().map_or(PATIENCE, |deadline| deadline.left().min(PATIENCE))
}

impl Export for Nvmet {
    fn support(&self) -> Result<Support> {
        if let Some(support) = self.support.get() {
            return Ok(support.clone());
        }
        match self.kernel.os.nvmet_support().at(|| "check whether the kernel can export devices over NVMe/TCP")? {
            NvmetSupport::Yes(dhchap) => Ok(self.support.get_or_init(|| Support::Yes(dhchap)).clone()),
            // An operator can load the modules at any time.
            NvmetSupport::No(why) => Ok(Support::No(why)),
        }
    }

    /// 1. Create the subsystem. A crash leaves a name that no client can reach; so do the crashes after steps 2 to 4.
    ///    The next call continues, and `fence` removes what is there.
    /// 2. Enable the namespace: device and uuid, then `enable`; read it back.
    /// 3. Allow the host, with its key.
    /// 4. Create the port. Without a link it has no listener: clients retry.
    /// 5. Link the subsystem to the port, last: the export is live. From here on nothing of it is changed.
    fn ensure(&self, spec: &Spec) -> Result<Changed> {
        if let Support::No(why) = self.support()? {
            return Err(Error::new(Kind::Precondition, format!("cannot export {}: {why}", spec.subsystem)));
        }
        let (kernel, wanted) = (self.kernel.clone(), spec.clone());
        let job = move || kernel.ensure(&wanted);
        self.worker.run("creation", &spec.subsystem.to_string(), patience(), job)
    }

    /// 1. Remove the host: new connections are refused. A crash after any step leaves the rest for the next call.
    /// 2. Remove the port's link: listener and connections close. What was in flight still reaches the device.
    /// 3. Wait until no request and no flush is in flight. At the deadline everything stays, for the next call.
    /// 4. Disable the namespace. The return of this call proves that no request is left. It is made again after a
    ///    restart: that the namespace reads as disabled proves nothing.
    /// 5. Remove namespace and subsystem; look for both. Remove the port, or leave it without a listener.
    fn fence(&self, subsystem: &SubsystemNqn, remains: &Remains, deadline: Deadline) -> Result<Fenced> {
        let name = subsystem.to_string();
        let (kernel, export, parts) = (self.kernel.clone(), name.clone(), *remains);
        let cut = self.worker.run("disconnection", &name, deadline.left(), move || kernel.cut(&export, &parts))?;
        if let Some((path, number)) = &cut.device {
            self.kernel.await_idle(&name, path, *number, deadline)?;
        }
        let (kernel, export, mut ports) = (self.kernel.clone(), name.clone(), cut.ports);
        ports.extend(remains.listen.map(|listen| listen.port()));
        self.worker.run("removal", &name, deadline.left(), move || {
            kernel.disable_namespace(&export)?;
            kernel.remove_export(&export, ports)
        })
    }

    fn resized(&self, subsystem: &SubsystemNqn) -> Result<()> {
        let name = subsystem.to_string();
        let (kernel, export) = (self.kernel.clone(), name.clone());
        self.worker.run("resize", &name, patience(), move || kernel.resized(&export))
    }

    fn is_complete(&self, subsystem: &SubsystemNqn) -> Result<bool> {
        Ok(!self.kernel.ports_of(&subsystem.to_string())?.is_empty())
    }

    fn exports(&self) -> Result<Vec<ExportState>> {
        self.kernel.exports()
    }

    fn exported_device(&self, device: DevNum) -> Result<Vec<String>> {
        self.kernel.os.nvmet_exports_of(device).at(|| format!("look for exports of block device {device}"))
    }
}

/// What the first steps of a fence found.
struct Cut {
    device: Option<(PathBuf, DevNum)>,
    ports: BTreeSet<u16>,
}

impl Kernel {
    fn get(&self, of: NvmetObject<'_>, attribute: &'static str) -> Result<Option<String>> {
        self.os.nvmet_get(of, attribute).at(|| format!("read {attribute} of {of}"))
    }

    fn set(&self, of: NvmetObject<'_>, attribute: &'static str, value: &str) -> Result<()> {
        self.os.nvmet_set(of, attribute, value).at(|| format!("write {attribute} of {of}"))
    }

    /// Writes an attribute that has another value.
    fn ensure_set(&self, of: NvmetObject<'_>, attribute: &'static str, value: &str) -> Result<Changed> {
        if self.get(of, attribute)?.as_deref() == Some(value) {
            return Ok(Changed::No);
        }
        self.set(of, attribute, value)?;
        match self.get(of, attribute)? {
            Some(now) if now == value => Ok(Changed::Yes),
            now => Err(Error::new(
                Kind::Internal,
                format!("{attribute} of {of} is {:?} after {value:?} was written", now.unwrap_or_default()),
            )),
        }
    }

    fn links(&self, of: NvmetLinks<'_>) -> Result<Vec<String>> {
        self.os.nvmet_links(of).at(|| format!("list {of}"))
    }

    fn has(&self, object: NvmetObject<'_>) -> Result<bool> {
        self.os.nvmet_has(object).at(|| format!("look for {object}"))
    }

    fn create(&self, object: NvmetObject<'_>) -> Result<Changed> {
        let made = self.os.nvmet_create(object).at(|| format!("create {object}"))?;
        Ok(if made { Changed::Yes } else { Changed::No })
    }

    fn remove(&self, object: NvmetObject<'_>) -> Result<Changed> {
        let removed = self.os.nvmet_remove(object).at(|| format!("remove {object}"))?;
        Ok(if removed { Changed::Yes } else { Changed::No })
    }

    fn ports_of(&self, name: &str) -> Result<BTreeSet<u16>> {
        let mut found = BTreeSet::new();
        for port in self.os.nvmet_ports().at(|| "list the ports of the NVMe target")? {
            if self.links(NvmetLinks::Port(port))?.iter().any(|link| link == name) {
                found.insert(port);
            }
        }
        Ok(found)
    }

    /// The path of an export's device; `None` before it has one.
    fn device_path(&self, name: &str) -> Result<Option<PathBuf>> {
        let text = self.get(NvmetObject::Namespace(name), "device_path")?;
        Ok(text.filter(|text| text != "(null)" && !text.is_empty()).map(PathBuf::from))
    }

    fn ensure(&self, spec: &Spec) -> Result<Changed> {
        let name = spec.subsystem.to_string();
        if !self.ports_of(&name)?.is_empty() {
            return self.compare(&name, spec).map(|()| Changed::No);
        }
        self.create_subsystem(&name, spec)?;
        self.enable_namespace(&name, spec)?;
        self.allow_host(&name, spec)?;
        self.create_port(&name, spec.listen)?;
        self.link_port(&name, spec.listen)?;
        self.compare(&name, spec)?;
        Ok(Changed::Yes)
    }

    /// Step 1 of `ensure`.
    fn create_subsystem(&self, name: &str, spec: &Spec) -> Result<()> {
        let subsystem = NvmetObject::Subsystem(name);
        self.create(subsystem)?;
        self.ensure_set(subsystem, "attr_allow_any_host", "0")?;
        // The same after every rebuild; otherwise the kernel draws one.
        let serial: String = spec.subsystem.nonce.as_simple().to_string().chars().take(SERIAL).collect();
        self.ensure_set(subsystem, "attr_serial", &serial)?;
        let (least, most) = (spec.controllers.range().start().to_string(), spec.controllers.range().end().to_string());
        // The kernel rejects a least number above the greatest one. One of an earlier call may be there.
        if self.get(subsystem, "attr_cntlid_min")?.as_ref() != Some(&least) {
            self.ensure_set(subsystem, "attr_cntlid_min", "1")?;
        }
        self.ensure_set(subsystem, "attr_cntlid_max", &most)?;
        self.ensure_set(subsystem, "attr_cntlid_min", &least)?;
        Ok(())
    }

    /// Step 2 of `ensure`.
    fn enable_namespace(&self, name: &str, spec: &Spec) -> Result<()> {
        let found = self.os.nvmet_device(&spec.device).at(|| format!("look at {}", spec.device.display()))?;
        if found != Some(spec.number) {
            return Err(Error::new(
                Kind::Precondition,
                format!(
                    "{} is not the device node of block device {}, which export {name} is to show; give the driver the /dev of the host, and retry",
                    spec.device.display(),
                    spec.number
                ),
            ));
        }
        let namespace = NvmetObject::Namespace(name);
        self.create(namespace)?;
        if self.get(namespace, "enable")?.as_deref() == Some("1") {
            return self.compare_namespace(name, spec);
        }
        self.ensure_set(namespace, "device_path", &spec.device.display().to_string())?;
        self.ensure_set(namespace, "device_uuid", &spec.namespace.as_hyphenated().to_string())?;
        self.ensure_set(namespace, "enable", "1")?;
        Ok(())
    }

    /// Step 3 of `ensure`. No port shows the subsystem, so nobody is connected.
    fn allow_host(&self, name: &str, spec: &Spec) -> Result<()> {
        let allowed = NvmetLinks::Allowed(name);
        let wanted = spec.host.reveal();
        if self.links(allowed)?.as_slice() == [wanted.as_str()] && self.has_key(spec)? {
            return Ok(());
        }
        self.remove_hosts(name, Some(&spec.host))?;
        let host = NvmetObject::Host(&wanted);
        self.create(host)?;
        if let Some(key) = &spec.key {
            self.set(host, "dhchap_key", key.reveal()).map_err(|error| {
                let why = "this kernel cannot authenticate clients (NVME_TARGET_AUTH), or rejects the key";
                Error::new(Kind::Precondition, format!("cannot give export {name} a key: {why}")).because(error)
            })?;
        }
        self.os.nvmet_link(allowed, &wanted).at(|| format!("allow the client of export {name}"))?;
        Ok(())
    }

    /// Whether the host has the key of the export.
    fn has_key(&self, spec: &Spec) -> Result<bool> {
        let now = self.get(NvmetObject::Host(&spec.host.reveal()), "dhchap_key")?.unwrap_or_default();
        Ok(now == spec.key.as_ref().map(|key| key.reveal()).unwrap_or_default())
    }

    /// Removes the hosts that a subsystem allows, and this one.
    fn remove_hosts(&self, name: &str, also: Option<&HostNqn>) -> Result<Changed> {
        let mut changed = Changed::No;
        let allowed = NvmetLinks::Allowed(name);
        let mut hosts = self.links(allowed)?;
        for host in &hosts {
            self.os.nvmet_unlink(allowed, host).at(|| format!("remove a client of export {name}"))?;
            changed = Changed::Yes;
        }
        hosts.extend(also.map(HostNqn::reveal));
        for host in &hosts {
            match self.os.nvmet_remove(NvmetObject::Host(host)) {
                Ok(true) => changed = Changed::Yes,
                Ok(false) => {}
                // Another subsystem allows it, which is not ours to change.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                // Not a host of ours: only its link was.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Err(error) => return Err(error).at(|| format!("remove the host of export {name}")),
            }
        }
        Ok(changed)
    }

    /// Step 4 of `ensure`.
    fn create_port(&self, name: &str, listen: SocketAddr) -> Result<()> {
        let number = listen.port();
        let port = NvmetObject::Port(number);
        self.create(port)?;
        let shows = self.links(NvmetLinks::Port(number))?;
        if let Some(other) = shows.first() {
            return Err(Error::new(
                Kind::InUse,
                format!(
                    "cannot export {name} on port {number}: the NVMe target of this node uses the port for {other}; fence that export, or choose another port"
                ),
            ));
        }
        if !self.is_free(number)? {
            return Err(Error::new(
                Kind::InUse,
                format!(
                    "cannot export {name} on port {number}: another program configured port {number} of this node's NVMe target; remove it with `rmdir /sys/kernel/config/nvmet/ports/{number}`, or choose another port range"
                ),
            ));
        }
        let (family, address) = match listen {
            SocketAddr::V4(address) => ("ipv4", address.ip().to_string()),
            SocketAddr::V6(address) => ("ipv6", address.ip().to_string()),
        };
        self.ensure_set(port, "addr_trtype", "tcp")?;
        self.ensure_set(port, "addr_adrfam", family)?;
        self.ensure_set(port, "addr_traddr", &address)?;
        self.ensure_set(port, "addr_trsvcid", &number.to_string())?;
        Ok(())
    }

    /// Whether a port without a link is ours: its TCP port is unset or is its number.
    fn is_free(&self, number: u16) -> Result<bool> {
        let service = self.get(NvmetObject::Port(number), "addr_trsvcid")?.unwrap_or_default();
        Ok(service.is_empty() || service == number.to_string())
    }

    /// Step 5 of `ensure`.
    fn link_port(&self, name: &str, listen: SocketAddr) -> Result<()> {
        self.os.nvmet_link(NvmetLinks::Port(listen.port()), name).map(drop).map_err(|error| {
            let (kind, why) = match error.raw_os_error() {
                Some(libc::EADDRINUSE) => (
                    Kind::InUse,
                    "another program listens there: stop it (`ss -ltnp` shows it), or choose another port range",
                ),
                Some(libc::EADDRNOTAVAIL) => (
                    Kind::Precondition,
                    "this node does not have the address: correct the address that the node exports on",
                ),
                _ => (Kind::Internal, "the kernel did not open the port"),
            };
            Error::new(kind, format!("cannot export {name} on {listen}: {why}")).because(error)
        })
    }

    /// Compares a live export with its specification; changes nothing.
    fn compare(&self, name: &str, spec: &Spec) -> Result<()> {
        self.compare_namespace(name, spec)?;
        let subsystem = NvmetObject::Subsystem(name);
        if self.get(subsystem, "attr_allow_any_host")?.as_deref() != Some("0") {
            return Err(differs(name, "every client may connect"));
        }
        if self.links(NvmetLinks::Allowed(name))?.as_slice() != [spec.host.reveal()] {
            return Err(differs(name, "another client may connect, or none"));
        }
        if !self.has_key(spec)? {
            return Err(differs(name, "its client has another key, or none"));
        }
        let ports: Vec<_> = self.ports_of(name)?.into_iter().collect();
        if ports.as_slice() != [spec.listen.port()] {
            return Err(differs(name, &format!("it is on the ports {ports:?} and not on {}", spec.listen.port())));
        }
        let port = NvmetObject::Port(spec.listen.port());
        let (address, service) = (self.get(port, "addr_traddr")?, self.get(port, "addr_trsvcid")?);
        let (address, service) = (address.unwrap_or_default(), service.unwrap_or_default());
        if address != spec.listen.ip().to_string() || service != spec.listen.port().to_string() {
            return Err(differs(name, &format!("it listens on {address} port {service} and not on {}", spec.listen)));
        }
        Ok(())
    }

    fn compare_namespace(&self, name: &str, spec: &Spec) -> Result<()> {
        let namespaces = self.os.nvmet_namespaces(name).at(|| format!("list the namespaces of {name}"))?;
        if namespaces != ["1"] {
            return Err(differs(name, &format!("it has the namespaces {namespaces:?}")));
        }
        let namespace = NvmetObject::Namespace(name);
        if self.get(namespace, "enable")?.as_deref() != Some("1") {
            return Err(differs(name, "its namespace is disabled"));
        }
        let path = self.device_path(name)?.unwrap_or_default();
        let number = self.os.nvmet_device(&path).at(|| format!("look at {}", path.display()))?;
        if path != spec.device || number != Some(spec.number) {
            return Err(differs(
                name,
                &format!("it shows {} and not {} ({})", path.display(), spec.device.display(), spec.number),
            ));
        }
        let uuid = self.get(namespace, "device_uuid")?.and_then(|text| Uuid::parse_str(&text).ok());
        if uuid != Some(spec.namespace) {
            return Err(differs(name, "its namespace has another uuid"));
        }
        Ok(())
    }

    /// Steps 1 and 2 of `fence`.
    fn cut(&self, name: &str, remains: &Remains) -> Result<Cut> {
        self.remove_hosts(name, remains.host.as_ref())?;
        let ports = self.ports_of(name)?;
        for port in &ports {
            self.os.nvmet_unlink(NvmetLinks::Port(*port), name).at(|| format!("close port {port} of export {name}"))?;
        }
        let device = match self.device_path(name)? {
            Some(path) => self.device_of(name, &path)?.map(|number| (path, number)),
            None => None,
        };
        Ok(Cut { device, ports })
    }

    fn device_of(&self, name: &str, path: &Path) -> Result<Option<DevNum>> {
        self.os.nvmet_device(path).at(|| format!("look at {} of export {name}", path.display()))
    }

    /// Step 3 of `fence`. Runs in the caller's thread: a device that does not finish holds up nobody else.
    ///
    /// Flushes are not among the requests that the kernel counts, and `enable` 0 would wait for them too. A flush of our
    /// own returns after all earlier ones. A write may follow its own flush (REQ_FUA), so the count must be zero again.
    fn await_idle(&self, name: &str, path: &Path, number: DevNum, deadline: Deadline) -> Result<()> {
        loop {
            self.await_no_requests(name, path, number, deadline)?;
            match self.os.flush_within(path, deadline.left().max(POLL)) {
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(unfinished(name, path, "a flush is in flight").because(error));
                }
                // A flush that fails has finished, and with it those before it.
                _ => {}
            }
            if self.in_flight(path, number)? == 0 {
                return Ok(());
            }
        }
    }

    fn await_no_requests(&self, name: &str, path: &Path, number: DevNum, deadline: Deadline) -> Result<()> {
        let mut idle = 0;
        loop {
            let requests = self.in_flight(path, number)?;
            idle = if requests == 0 { idle + 1 } else { 0 };
            if idle == IDLE_LOOKS {
                return Ok(());
            }
            if deadline.left() < POLL && idle == 0 {
                return Err(unfinished(name, path, &format!("{requests} requests are in flight")));
            }
            thread::sleep(POLL);
        }
    }

    fn in_flight(&self, path: &Path, number: DevNum) -> Result<u64> {
        let requests = self.os.requests_in_flight(number);
        Ok(requests.at(|| format!("read the requests in flight on {}", path.display()))?.unwrap_or(0))
    }

    /// Step 4 of `fence`.
    fn disable_namespace(&self, name: &str) -> Result<()> {
        let namespace = NvmetObject::Namespace(name);
        if self.has(namespace)? { self.set(namespace, "enable", "0") } else { Ok(()) }
    }

    /// Step 5 of `fence`.
    fn remove_export(&self, name: &str, ports: BTreeSet<u16>) -> Result<Fenced> {
        let mut found = Fenced::Absent;
        for object in [NvmetObject::Namespace(name), NvmetObject::Subsystem(name)] {
            if self.remove(object)? == Changed::Yes {
                found = Fenced::Now;
            }
            if self.has(object)? {
                return Err(Error::new(Kind::Internal, format!("{object} is still there after its removal; retry")));
            }
        }
        self.remove_ports(ports)?;
        Ok(found)
    }

    /// Removes these ports and those of the node's range, unless something uses them, or any namespace is left in the
    /// target. The kernel first waits until no connection of the whole target is being torn down, and such a connection
    /// waits for its requests. Ports therefore stay until the last export is removed: without a link they have no
    /// listener, and `ensure` uses them again.
    fn remove_ports(&self, mut ports: BTreeSet<u16>) -> Result<()> {
        for name in self.os.nvmet_subsystems().at(|| "list the subsystems of the NVMe target")? {
            let namespaces = self.os.nvmet_namespaces(&name).at(|| format!("list the namespaces of {name}"))?;
            if !namespaces.is_empty() {
                return Ok(());
            }
        }
        let there = self.os.nvmet_ports().at(|| "list the ports of the NVMe target")?;
        ports.extend(there.iter().filter(|number| self.range.contains(number)));
        for number in ports.into_iter().filter(|number| there.contains(number)) {
            if self.links(NvmetLinks::Port(number))?.is_empty() && self.is_free(number)? {
                self.remove(NvmetObject::Port(number))?;
            }
        }
        Ok(())
    }

    fn resized(&self, name: &str) -> Result<()> {
        let namespace = NvmetObject::Namespace(name);
        if !self.has(namespace)? {
            return Err(Error::new(Kind::Precondition, format!("there is no export {name} to resize")));
        }
        self.set(namespace, "revalidate_size", "1")
    }

    fn exports(&self) -> Result<Vec<ExportState>> {
        let mut found = Vec::new();
        let names = self.os.nvmet_subsystems().at(|| "list the subsystems of the NVMe target")?;
        for name in names.into_iter().filter(|name| name.starts_with(OURS)) {
            let device = self.device_path(&name)?;
            let number = match &device {
                Some(path) => self.device_of(&name, path)?,
                None => None,
            };
            let enabled = self.get(NvmetObject::Namespace(&name), "enable")?.as_deref() == Some("1");
            let ports: Vec<_> = self.ports_of(&name)?.into_iter().collect();
            let mut connections = 0;
            for port in &ports {
                let now = self.os.tcp_connections(*port).at(|| format!("list the connections of port {port}"))?;
                connections += now;
            }
            found.push(ExportState {
                subsystem: name.parse().ok(),
                device,
                number,
                namespace: if enabled { Enabled::Yes } else { Enabled::No },
                ports,
                hosts: self.links(NvmetLinks::Allowed(&name))?.len(),
                connections,
                name,
            });
        }
        Ok(found)
    }
}

fn unfinished(name: &str, path: &Path, what: &str) -> Error {
    Error::new(
        Kind::Busy,
        format!(
            "export {name} is not removed yet: {what} on {}, and the disk below it has not finished; its client is disconnected; check that disk, and retry",
            path.display()
        ),
    )
}

fn differs(name: &str, what: &str) -> Error {
    Error::new(
        Kind::Precondition,
        format!("export {name} exists and differs: {what}; nothing was changed; detach the volume and attach it again"),
    )
}
