//! The node's side: a volume's device becomes a mounted filesystem or a device file at a pod's path.

mod request;

pub use request::{ExpandRequest, PublishRequest, StageRequest, Stats, Usage};

use std::path::Path;
use std::sync::Arc;

use crate::home::{Changed, Home, Locks};
use crate::os::Os;
use crate::types::{Bytes, Error, Kind, NodeId, Result, VolumeId};

/// This node's workflows. Everything blocks; each call finishes what it began whether or not its caller waits.
pub struct Node {
    os: Os,
    id: NodeId,
    home: Arc<dyn Home>,
    locks: Locks<VolumeId>,
}

impl Node {
    /// The workflows of node `id`, whose volumes `home` knows.
    #[must_use]
    pub fn new(os: Os, id: NodeId, home: Arc<dyn Home>) -> Self {
        let locks = Locks::new(os.activity().clone());
        Self { os, id, home, locks }
    }

    /// Formats a volume if it never was, and mounts it at its staging path (NodeStageVolume).
    ///
    /// # Errors
    /// `Busy`, `AlreadyExists`, `Precondition`, `Corrupt`, `Unavailable`, `Internal`.
    pub fn stage(&self, request: &StageRequest) -> Result<Changed> {
        Err(self.soon(&request.volume))
    }

    /// Takes the staging mount and the device away (NodeUnstageVolume).
    ///
    /// # Errors
    /// `Busy`, `InUse`, `Precondition`, `Internal`.
    pub fn unstage(&self, volume: &VolumeId, _staging: &Path) -> Result<Changed> {
        Err(self.soon(volume))
    }

    /// Binds a staged volume to a pod's path (NodePublishVolume).
    ///
    /// # Errors
    /// `Busy`, `AlreadyExists`, `Precondition`, `InvalidArgument`, `Internal`.
    pub fn publish(&self, request: &PublishRequest) -> Result<Changed> {
        Err(self.soon(&request.volume))
    }

    /// Takes a pod's path away (NodeUnpublishVolume).
    ///
    /// # Errors
    /// `Busy`, `InUse`, `Precondition`, `Internal`.
    pub fn unpublish(&self, volume: &VolumeId, _target: &Path) -> Result<Changed> {
        Err(self.soon(volume))
    }

    /// How full a staged or published volume is (NodeGetVolumeStats).
    ///
    /// # Errors
    /// `NotFound` when the path is not this volume's; `Internal`.
    pub fn stats(&self, volume: &VolumeId, _path: &Path) -> Result<Stats> {
        Err(self.soon(volume))
    }

    /// Grows a volume's filesystem to its device (NodeExpandVolume); answers the size now.
    ///
    /// # Errors
    /// `NotFound` when the path is not this volume's; `OutOfRange`, `Precondition`, `Internal`.
    pub fn expand(&self, request: &ExpandRequest) -> Result<Bytes> {
        Err(self.soon(&request.volume))
    }

    fn soon(&self, volume: &VolumeId) -> Error {
        let _ = (&self.os, &self.id, &self.home, &self.locks);
        Error::new(Kind::Unsupported, format!("volume {volume}: the node's workflows are not in this build"))
    }
}
