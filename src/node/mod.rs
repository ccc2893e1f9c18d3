//! The node's side: a volume's device becomes a mounted filesystem or a device file at a pod's path, and goes away again.
//!
//! Keeps no state: what is staged and published is read from mountinfo and from what is behind each device, every
//! time. Formatting is decided by the record at the volume's home, never by how a device looks (`format.rs`).
//! One volume's operations exclude each other; several pods may publish one volume at the same time.

#[cfg(test)]
mod device_scenarios;
mod expand;
#[cfg(test)]
mod fault_scenarios;
mod format;
#[cfg(test)]
mod format_scenarios;
mod mounts;
mod path;
mod patience;
mod publish;
mod raw;
mod raw_linear;
mod raw_read_only;
#[cfg(test)]
mod read_only_scenarios;
mod removal;
#[cfg(test)]
mod removal_scenarios;
mod request;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod scenarios;
mod slots;
mod stage;
mod stagings;
mod stats;
#[cfg(test)]
mod stopped_scenarios;
mod visible;
#[cfg(test)]
mod visible_scenarios;

pub use request::{ExpandRequest, PublishRequest, StageRequest, Stats, Usage};
pub use visible::unseen;

use std::sync::Arc;

use crate::attach::{Attach, Linear, Local, ReadOnlyViews};
use crate::home::{Home, Locks};
use crate::os::Os;
use crate::types::{NodeId, VolumeId};

/// So many mkfs at once on one node.
const FORMATS: u32 = 2;

/// This node's workflows. Everything blocks; each call finishes what it began whether or not its caller waits.
pub struct Node {
    os: Os,
    id: NodeId,
    home: Arc<dyn Home>,
    attach: Box<dyn Attach>,
    volumes: Locks<VolumeId>,
    targets: Locks<String>,
    slots: slots::Slots,
    raw: raw::RawDevices,
    linear: Linear,
    views: ReadOnlyViews,
    /// Making and removing a volume's view exclude each other; its pods publish at the same time.
    viewing: Locks<VolumeId>,
    stagings: stagings::Stagings,
}

impl Node {
    /// The workflows of node `id`, whose volumes `home` knows. Takes the devices of published block volumes in hand
    /// again; one that cannot be is logged.
    #[must_use]
    pub fn new(os: Os, id: NodeId, home: Arc<dyn Home>) -> Self {
        let activity = os.activity().clone();
        let attach: Box<dyn Attach> = Box::new(Local::new(os.clone(), id.clone(), Arc::clone(&home)));
        let raw = raw::RawDevices::default();
        let linear = Linear::new(os.clone());
        raw_linear::announce(&linear);
        let node = Self {
            attach,
            volumes: Locks::new(activity.clone()),
            viewing: Locks::new(activity.clone()),
            targets: Locks::new(activity),
            slots: slots::Slots::new(FORMATS),
            raw,
            views: ReadOnlyViews::new(os.clone(), &linear),
            linear,
            stagings: stagings::Stagings::default(),
            os,
            id,
            home,
        };
        node.recover_devices();
        node
    }

    /// Takes the devices of published block volumes in hand: at the start, and when a pool is served that was not. One that
    /// cannot be is logged.
    pub fn recover_devices(&self) {
        if let Err(error) = self.views.recover(self.attach.as_ref()) {
            tracing::warn!(error = error.chain(), "cannot find the read-only devices of raw block volumes in use");
        }
        if let Err(error) = self.raw.recover(&self.os, self.attach.as_ref(), &self.linear, &self.views) {
            tracing::warn!(error = error.chain(), "cannot find the raw block volumes in use");
        }
    }

    /// Before the process ends: the devices of published block volumes stay when its descriptors are closed.
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
