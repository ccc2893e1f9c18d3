//! Exports of volumes to other nodes.
//!
//! An export shows one device to one client. It is made complete before its port opens, so that a client which retries
//! meanwhile never gets an error, and a live one is never changed. Its removal ([`Export::fence`]) proves that no request
//! of the client is in flight any more.

mod nvmet;
mod preflight;
mod worker;

pub use nvmet::Nvmet;
pub use preflight::{Shortcoming, missing_modules, unfit_settings};

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use uuid::Uuid;

use crate::os::{Deadline, DevNum, Dhchap};
use crate::types::{Changed, DhchapKey, HostNqn, NvmeTcpAddress, Result, SubsystemNqn};

/// What this node can export with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// It can, and whether it can authenticate clients.
    Yes(Dhchap),
    /// It cannot, with the reason and the next step.
    No(String),
}

/// One export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name.
    pub subsystem: SubsystemNqn,
    /// The uuid that its namespace reports. It stays the same when the export is rebuilt.
    pub namespace: Uuid,
    /// The only client.
    pub host: HostNqn,
    /// The key with which the client authenticates.
    pub key: Option<DhchapKey>,
    /// Where it listens. The port belongs to this export alone.
    pub listen: SocketAddr,
    /// The device.
    pub device: PathBuf,
    /// Its number.
    pub number: DevNum,
    /// The numbers of its controllers.
    pub controllers: ControllerIds,
}

/// From which numbers the target takes those of an export's controllers (CNTLID). A node that lost its connection keeps
/// the controller while it connects again, and its kernel rejects another one with the same number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ControllerIds {
    /// The lower half.
    #[default]
    Lower,
    /// The upper half.
    Upper,
}

impl ControllerIds {
    /// The half without this number.
    #[must_use]
    pub fn without(number: u16) -> Self {
        if Self::Lower.range().contains(&number) { Self::Upper } else { Self::Lower }
    }

    /// The numbers. NVMET_MAX_CNTLID of the kernel is the last one.
    #[must_use]
    pub fn range(self) -> RangeInclusive<u16> {
        match self {
            Self::Lower => 1..=0x7fff,
            Self::Upper => 0x8000..=0xffef,
        }
    }
}

impl Spec {
    /// What the client needs to connect.
    #[must_use]
    pub fn address(&self) -> NvmeTcpAddress {
        NvmeTcpAddress {
            address: self.listen,
            subsystem: self.subsystem,
            host: self.host,
            namespace: self.namespace,
            key: self.key.clone(),
        }
    }
}

/// What is known of an export that is to be removed, besides its name. A crash can leave these parts without a link to
/// the export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Its client.
    pub host: Option<HostNqn>,
    /// Where it listened.
    pub listen: Option<SocketAddr>,
}

impl From<&Spec> for Remains {
    fn from(spec: &Spec) -> Self {
        Self { host: Some(spec.host), listen: Some(spec.listen) }
    }
}

/// The result of a fence: in both cases nothing of the client can reach the device any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fenced {
    /// The export was removed.
    Now,
    /// There was none.
    Absent,
}

/// An export as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportState {
    /// Its name in the kernel.
    pub name: String,
    /// The same as a type; `None` for a name of a later release.
    pub subsystem: Option<SubsystemNqn>,
    /// The path of its device; `None` before it has one.
    pub device: Option<PathBuf>,
    /// The number of that device, if it exists.
    pub number: Option<DevNum>,
    /// Whether the namespace is enabled, according to the kernel. It reads as disabled also while requests still run.
    pub namespace: Enabled,
    /// The ports that show it: with none, no client can connect.
    pub ports: Vec<u16>,
    /// The number of clients that may connect.
    pub hosts: usize,
    /// The TCP connections to its ports now.
    pub connections: usize,
}

/// Whether a namespace is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enabled {
    /// It is.
    Yes,
    /// It reads so.
    No,
}

/// Exports devices to clients. All calls block and are idempotent: they look at the kernel first, and repeat safely after
/// a crash at any point. The caller prevents concurrent calls for one volume.
pub trait Export: Send + Sync {
    /// Whether this node can export. A positive result is cached.
    ///
    /// # Errors
    /// `Internal` when the kernel cannot be queried.
    fn support(&self) -> Result<Support>;

    /// Creates the export, or continues an incomplete one. The client can connect when this returns. The numbers of
    /// controllers are those of a new export; a complete one keeps its own.
    ///
    /// # Errors
    /// `Precondition` when this node cannot export, or when a complete export has this name and differs, naming the
    /// difference: nothing of it is changed; `InUse` when the port or address is not free; `Busy` when the NVMe target
    /// is busy, naming with what; `Internal`.
    fn ensure(&self, spec: &Spec) -> Result<Changed>;

    /// Removes an export. When this returns, nothing of the client can reach the device any more, and all its requests
    /// have finished.
    ///
    /// # Errors
    /// `Busy` when requests are still in flight at the deadline, naming the device; the next call continues. `Busy` when
    /// the NVMe target is busy, naming with what; `Internal`.
    fn fence(&self, subsystem: &SubsystemNqn, remains: &Remains, deadline: Deadline) -> Result<Fenced>;

    /// Shows the client the device's new size.
    ///
    /// # Errors
    /// `Precondition` when there is no such export; `Busy`, `Internal`.
    fn resized(&self, subsystem: &SubsystemNqn) -> Result<()>;

    /// Whether the export is complete: the client can connect.
    ///
    /// # Errors
    /// `Internal`.
    fn is_complete(&self, subsystem: &SubsystemNqn) -> Result<bool>;

    /// Every export of Holdfast in this kernel.
    ///
    /// # Errors
    /// `Internal`.
    fn exports(&self) -> Result<Vec<ExportState>>;

    /// The exports of a device, of Holdfast and of others, enabled or not. An export is invisible to O_EXCL.
    ///
    /// # Errors
    /// `Internal`.
    fn exported_device(&self, device: DevNum) -> Result<Vec<String>>;
}
