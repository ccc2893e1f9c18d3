//! How this home node exports volumes to other nodes: the address, and the TCP ports. Each export has a port of its own,
//! which its record keeps, so that the client finds the export again after a restart of this machine.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use super::attached::Attached;
use crate::export::Export;
use crate::types::{Error, Kind, Result, SubsystemNqn, VolumeId};

/// The exports of a home node.
pub struct Fabric {
    pub(super) export: Arc<dyn Export>,
    address: IpAddr,
    range: RangeInclusive<u16>,
    ports: Mutex<Ports>,
    /// Exports that were made by this process and that no node was told of.
    unused: Mutex<HashSet<SubsystemNqn>>,
    /// For metrics.
    pub(super) attached: Attached,
}

#[derive(Debug, Default)]
struct Ports {
    taken: BTreeMap<u16, VolumeId>,
    /// The last one that was given: the next one comes after it, so that a port is not soon another volume's.
    last: Option<u16>,
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric").field("address", &self.address).field("ports", &self.range).finish_non_exhaustive()
    }
}

impl Fabric {
    /// With the address that clients connect to, and the ports of exports.
    #[must_use]
    pub fn new(export: Arc<dyn Export>, address: IpAddr, ports: RangeInclusive<u16>) -> Self {
        Self {
            export,
            address,
            range: ports,
            ports: Mutex::default(),
            unused: Mutex::default(),
            attached: Attached::default(),
        }
    }

    /// The address of an export.
    pub(super) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address, port)
    }

    /// How many ports are taken, and how many there are.
    #[must_use]
    pub fn ports(&self) -> (usize, usize) {
        (self.with(|ports| ports.taken.len()), self.range.len())
    }

    /// A free port for a volume.
    ///
    /// # Errors
    /// `NoCapacity` when all are taken, naming the range.
    pub(super) fn take(&self, volume: VolumeId) -> Result<u16> {
        self.with(|ports| {
            let after = ports.last.and_then(|last| last.checked_add(1)).unwrap_or(0);
            let later = self.range.clone().filter(|port| *port >= after);
            let free = later.chain(self.range.clone()).find(|port| !ports.taken.contains_key(port));
            let Some(port) = free else {
                return Err(Error::new(
                    Kind::NoCapacity,
                    format!(
                        "all {} ports for exports ({}-{}) of this node are taken; extend the range (--fabric-ports)",
                        self.range.len(),
                        self.range.start(),
                        self.range.end()
                    ),
                ));
            };
            ports.taken.insert(port, volume);
            ports.last = Some(port);
            Ok(port)
        })
    }

    /// An export with names that nobody knows.
    pub(super) fn is_new(&self, export: SubsystemNqn) {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner).insert(export);
    }

    /// Whether nobody knows the names of an export, for the last time.
    pub(super) fn use_up(&self, export: SubsystemNqn) -> bool {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner).remove(&export)
    }

    /// The volumes that have a port.
    pub(super) fn volumes(&self) -> Vec<VolumeId> {
        self.with(|ports| ports.taken.values().copied().collect())
    }

    /// Enters the port of a record; the volume that has it, if it is another one.
    pub(super) fn enter(&self, port: u16, volume: VolumeId) -> Option<VolumeId> {
        self.with(|ports| {
            let of = *ports.taken.entry(port).or_insert(volume);
            (of != volume).then_some(of)
        })
    }

    /// Returns a port of this volume.
    pub(super) fn give_back(&self, port: u16, volume: VolumeId) {
        self.with(|ports| {
            if ports.taken.get(&port) == Some(&volume) {
                ports.taken.remove(&port);
            }
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut Ports) -> T) -> T {
        act(&mut self.ports.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
