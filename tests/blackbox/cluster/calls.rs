//! Further calls to a cluster: pods, growth and snapshots.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use holdfast::csi::proto as p;
use tonic::{Code, Status};

use super::harness::{Cluster, Vol};
use crate::harness::{await_that, capability};

/// Whether the orchestrator retries the call, and concludes nothing from the error.
pub(super) fn is_retried(status: &Status) -> bool {
    matches!(status.code(), Code::Aborted | Code::Unavailable | Code::DeadlineExceeded)
}

/// Repeats a call while its error is one that an orchestrator retries.
pub(super) fn retried<T>(what: &str, mut call: impl FnMut() -> Result<T, Status>) -> T {
    let mut answer = None;
    await_that(what, Duration::from_secs(60), || {
        answer = Some(call());
        !matches!(&answer, Some(Err(status)) if is_retried(status))
    });
    answer.unwrap().unwrap_or_else(|status| panic!("{what}: {status:?}"))
}

impl Cluster {
    /// Where a volume is published in a pod of its node.
    pub(super) fn target(&self, vol: &Vol, pod: &str) -> PathBuf {
        self.nodes[&vol.node].directory.join("pods").join(pod).join(&vol.id).join("mount")
    }

    /// NodePublish into a pod; returns its path there.
    pub(super) fn bind(&self, vol: &Vol, pod: &str) -> Result<PathBuf, Status> {
        let target = self.target(vol, pod);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let request = p::NodePublishVolumeRequest {
            volume_id: vol.id.clone(),
            staging_target_path: self.staging(vol).to_str().unwrap().into(),
            target_path: target.to_str().unwrap().into(),
            volume_capability: Some(capability(vol.kind)),
            ..Default::default()
        };
        self.call(self.node(&vol.node).node_publish_volume(request))?;
        Ok(target)
    }

    /// NodeUnpublish from a pod.
    pub(super) fn unbind(&self, vol: &Vol, pod: &str) -> Result<(), Status> {
        let target_path = self.target(vol, pod).to_str().unwrap().into();
        let request = p::NodeUnpublishVolumeRequest { volume_id: vol.id.clone(), target_path };
        self.call(self.node(&vol.node).node_unpublish_volume(request)).map(drop)
    }

    /// ControllerExpand; returns the size.
    pub(super) fn expand(&self, index: usize, vol: &Vol, size: i64) -> Result<i64, Status> {
        let request = p::ControllerExpandVolumeRequest {
            volume_id: vol.id.clone(),
            capacity_range: Some(p::CapacityRange { required_bytes: size, limit_bytes: 0 }),
            volume_capability: Some(capability(vol.kind)),
            ..Default::default()
        };
        Ok(self.call(self.controller(index).controller_expand_volume(request))?.capacity_bytes)
    }

    /// NodeExpand at a pod's path; returns the size.
    pub(super) fn node_expand(&self, vol: &Vol, pod: &str, size: i64) -> Result<i64, Status> {
        let request = p::NodeExpandVolumeRequest {
            volume_id: vol.id.clone(),
            volume_path: self.target(vol, pod).to_str().unwrap().into(),
            staging_target_path: self.staging(vol).to_str().unwrap().into(),
            capacity_range: Some(p::CapacityRange { required_bytes: size, limit_bytes: 0 }),
            volume_capability: Some(capability(vol.kind)),
            ..Default::default()
        };
        Ok(self.call(self.node(&vol.node).node_expand_volume(request))?.capacity_bytes)
    }

    /// CreateSnapshot.
    pub(super) fn snapshot(&self, index: usize, name: &str, vol: &Vol) -> Result<p::Snapshot, Status> {
        let request =
            p::CreateSnapshotRequest { source_volume_id: vol.id.clone(), name: name.into(), ..Default::default() };
        Ok(self.call(self.controller(index).create_snapshot(request))?.snapshot.expect("a snapshot"))
    }

    /// DeleteSnapshot.
    pub(super) fn drop_snapshot(&self, index: usize, id: &str) -> Result<(), Status> {
        let request = p::DeleteSnapshotRequest { snapshot_id: id.into(), ..Default::default() };
        self.call(self.controller(index).delete_snapshot(request)).map(drop)
    }

    /// Ids of all snapshots, or why there is no list.
    pub(super) fn list_snapshots(&self, index: usize) -> Result<Vec<String>, Status> {
        let answer = self.call(self.controller(index).list_snapshots(p::ListSnapshotsRequest::default()))?;
        Ok(answer.entries.into_iter().map(|entry| entry.snapshot.unwrap().snapshot_id).collect())
    }
}
