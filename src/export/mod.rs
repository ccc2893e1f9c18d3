//! How a home node gives a volume's device to another node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;

use crate::os::DevNum;
use crate::types::{Changed, DhchapKey, HostNqn, Result, SubsystemNqn};

/// One export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name.
    pub subsystem: SubsystemNqn,
    /// The uuid that its namespace reports.
    pub namespace: Uuid,
    /// The only client.
    pub host: HostNqn,
    /// The client's key, where the kernels authenticate.
    pub key: Option<DhchapKey>,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The device, for example `/dev/loop3`.
    pub device: PathBuf,
    /// Its number.
    pub number: DevNum,
}

/// Exports of this machine's kernel. All calls block and are idempotent; the caller serialises calls for one volume.
pub trait Export: Send + Sync {
    /// Whether exports check the key of their client (DH-HMAC-CHAP).
    fn authenticates(&self) -> bool;

    /// Creates an export, or completes one. A client that connects meanwhile is refused and tries again; it never gets
    /// an error.
    ///
    /// # Errors
    /// `Precondition` when the export is in use and differs; `Unsupported` when the kernel cannot export; `Busy`;
    /// `Internal`.
    fn ensure(&self, spec: &Spec) -> Result<Changed>;

    /// Ends an export: after it returned, nothing that its client sent reaches the device any more. `No` when there is
    /// none.
    ///
    /// # Errors
    /// `Busy` when requests do not end within `limit`, naming the device: the export stays as it is then, closed to
    /// its client, and a later call continues. `Internal`.
    fn fence(&self, subsystem: &SubsystemNqn, limit: Duration) -> Result<Changed>;

    /// The device of an export has another size: its client sees it.
    ///
    /// # Errors
    /// `Internal`.
    fn resized(&self, subsystem: &SubsystemNqn) -> Result<()>;
}
