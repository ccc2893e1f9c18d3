//! The node: mounts a volume's filesystem or exposes its device at a pod's path, and removes it again.
//!
//! Keeps no state: it reads staged and published volumes from mountinfo and from the devices, every time. The record of
//! the volume's home node decides about formatting, never the content of the device (`format.rs`). Operations on one
//! volume exclude each other, but several pods may publish a volume at the same time.

mod claims;
mod connections;
#[cfg(test)]
mod device_scenarios;
mod expand;
#[cfg(test)]
mod fault_scenarios;
mod format;
#[cfg(test)]
mod format_scenarios;
mod health;
mod homes;
mod lease;
mod mounts;
mod path;
mod publish;
mod raw;
mod raw_linear;
mod raw_read_only;
#[cfg(test)]
mod read_only_scenarios;
mod reconnect;
mod removal;
#[cfg(test)]
mod removal_scenarios;
mod request;
mod retry_busy;
#[cfg(test)]
mod scenarios;
mod slots;
mod source;
mod stage;
mod stagings;
mod stats;
#[cfg(test)]
mod stopped_scenarios;
mod visible;
#[cfg(test)]
mod visible_scenarios;

pub use connections::connections_of;
pub use health::{Problem, Usable};
pub use homes::{Elsewhere, NodeHomes};
pub use lease::ASKING;
pub use reconnect::LOOKING;
pub use request::{ExpandRequest, PublishRequest, StageRequest, Stats, Usage};

use std::sync::Arc;

use crate::attach::{Attachers, Local, NvmeTcp, ReadOnlyViews};
use crate::home::{Home, Homes, Locks};
use crate::linear::Linear;
use crate::os::Os;
use crate::types::{NodeId, Result, VolumeId};

/// The number of concurrent mkfs on one node.
const FORMATS: u32 = 2;

/// This node's workflows. All calls block, and each completes even if its caller disconnects.
pub struct Node {
    os: Os,
    id: NodeId,
    homes: Arc<dyn Homes>,
    attach: Attachers,
    /// Connections to exports of other nodes; `None` where this node makes none.
    network: Option<Arc<NvmeTcp>>,
    volumes: Locks<VolumeId>,
    targets: Locks<String>,
    slots: slots::Slots,
    raw: raw::RawDevices,
    linear: Linear,
    views: ReadOnlyViews,
    /// Excludes creating and removing a volume's view at the same time; its pods publish concurrently.
    viewing: Locks<VolumeId>,
    stagings: stagings::Stagings,
    claims: claims::Claims,
    lost: reconnect::Lost,
    connections: connections::Connections,
}

impl Node {
    /// The workflows of node `id` for the volumes of `home` alone; see [`Node::with_homes`].
    #[must_use]
    pub fn new(os: Os, id: NodeId, home: Arc<dyn Home>) -> Self {
        let homes = Arc::new(homes::OneHome(Arc::clone(&home)));
        Self::with_homes(os, id, home, homes, None)
    }

    /// The workflows of node `id`, whose pools are those of `own`, for the volumes of `homes`; those of other nodes need
    /// `network`. Opens the devices of published block volumes again; a failure is logged.
    #[must_use]
    pub fn with_homes(os: Os, id: NodeId, own: Arc<dyn Home>, homes: Arc<dyn Homes>, network: Option<NvmeTcp>) -> Self {
        let activity = os.activity().clone();
        let raw = raw::RawDevices::default();
        let linear = Linear::new(os.clone());
        raw_linear::announce(&linear, own.as_ref());
        let attach = Attachers::new(Local::new(os.clone(), id.clone(), own));
        let network = network.map(Arc::new);
        let attach = match &network {
            Some(network) => attach.with_nvme_tcp(Arc::clone(network)),
            None => attach,
        };
        let node = Self {
            attach,
            network,
            volumes: Locks::new(activity.clone()),
            viewing: Locks::new(activity.clone()),
            targets: Locks::new(activity),
            slots: slots::Slots::new(FORMATS),
            raw,
            views: ReadOnlyViews::new(os.clone(), &linear),
            linear,
            stagings: stagings::Stagings::default(),
            claims: claims::Claims::default(),
            lost: reconnect::Lost::default(),
            connections: connections::Connections::default(),
            os,
            id,
            homes,
        };
        node.recover_devices();
        node
    }

    /// The home of a volume.
    fn home(&self, volume: &VolumeId) -> Result<Arc<dyn Home>> {
        self.homes.of(volume.pool)
    }

    /// Opens the devices of published block volumes: at start, and when a pool becomes available. A failure is logged.
    pub fn recover_devices(&self) {
        if let Err(error) = self.views.recover(&self.attach, &self.viewing) {
            tracing::warn!(error = error.chain(), "cannot find the read-only devices of raw block volumes in use");
        }
        if let Err(error) = self.raw.recover(&self.os, &self.attach, &self.linear, &self.views) {
            tracing::warn!(error = error.chain(), "cannot find the raw block volumes in use");
        }
    }

    /// Before the process exits: keeps the devices of published block volumes when its descriptors are closed.
    pub fn keep_devices(&self) {
        self.raw.keep_all(&self.os);
        self.views.keep_all();
    }

    /// The node's id.
    #[must_use]
    pub fn id(&self) -> &NodeId {
        &self.id
    }
}
