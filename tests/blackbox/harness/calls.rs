//! Blocking calls, and short forms of a volume's lifecycle with sane defaults.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use holdfast::csi::proto as p;
use holdfast::csi::proto::controller_client::ControllerClient;
use holdfast::csi::proto::identity_client::IdentityClient;
use holdfast::csi::proto::node_client::NodeClient;
use tonic::{Code, Status};

use super::{Use, Vol, World, await_that, create_request};

/// One blocking method per CSI call.
macro_rules! calls {
    ($($client:ident { $($method:ident($request:ident) -> $answer:ident;)* })*) => {
        impl World {
            $($(
                pub(crate) fn $method(&self, request: p::$request) -> Result<p::$answer, Status> {
                    let mut client = $client::new(self.channel());
                    self.block_on(client.$method(request)).map(tonic::Response::into_inner)
                }
            )*)*
        }
    };
}

calls! {
    IdentityClient {
        get_plugin_info(GetPluginInfoRequest) -> GetPluginInfoResponse;
        get_plugin_capabilities(GetPluginCapabilitiesRequest) -> GetPluginCapabilitiesResponse;
        probe(ProbeRequest) -> ProbeResponse;
    }
    ControllerClient {
        create_volume(CreateVolumeRequest) -> CreateVolumeResponse;
        delete_volume(DeleteVolumeRequest) -> DeleteVolumeResponse;
        controller_publish_volume(ControllerPublishVolumeRequest) -> ControllerPublishVolumeResponse;
        controller_unpublish_volume(ControllerUnpublishVolumeRequest) -> ControllerUnpublishVolumeResponse;
        validate_volume_capabilities(ValidateVolumeCapabilitiesRequest) -> ValidateVolumeCapabilitiesResponse;
        list_volumes(ListVolumesRequest) -> ListVolumesResponse;
        get_capacity(GetCapacityRequest) -> GetCapacityResponse;
        controller_get_capabilities(ControllerGetCapabilitiesRequest) -> ControllerGetCapabilitiesResponse;
        create_snapshot(CreateSnapshotRequest) -> CreateSnapshotResponse;
        delete_snapshot(DeleteSnapshotRequest) -> DeleteSnapshotResponse;
        list_snapshots(ListSnapshotsRequest) -> ListSnapshotsResponse;
        get_snapshot(GetSnapshotRequest) -> GetSnapshotResponse;
        controller_expand_volume(ControllerExpandVolumeRequest) -> ControllerExpandVolumeResponse;
        controller_get_volume(ControllerGetVolumeRequest) -> ControllerGetVolumeResponse;
        controller_modify_volume(ControllerModifyVolumeRequest) -> ControllerModifyVolumeResponse;
    }
    NodeClient {
        node_stage_volume(NodeStageVolumeRequest) -> NodeStageVolumeResponse;
        node_unstage_volume(NodeUnstageVolumeRequest) -> NodeUnstageVolumeResponse;
        node_publish_volume(NodePublishVolumeRequest) -> NodePublishVolumeResponse;
        node_unpublish_volume(NodeUnpublishVolumeRequest) -> NodeUnpublishVolumeResponse;
        node_get_volume_stats(NodeGetVolumeStatsRequest) -> NodeGetVolumeStatsResponse;
        node_expand_volume(NodeExpandVolumeRequest) -> NodeExpandVolumeResponse;
        node_get_capabilities(NodeGetCapabilitiesRequest) -> NodeGetCapabilitiesResponse;
        node_get_info(NodeGetInfoRequest) -> NodeGetInfoResponse;
    }
}

/// The content source of a restore or clone.
pub(crate) fn from_snapshot(id: &str) -> Option<p::VolumeContentSource> {
    use p::volume_content_source::{SnapshotSource, Type};
    Some(p::VolumeContentSource { r#type: Some(Type::Snapshot(SnapshotSource { snapshot_id: id.into() })) })
}

/// See [`from_snapshot`].
pub(crate) fn from_volume(vol: &Vol) -> Option<p::VolumeContentSource> {
    from_volume_id(&vol.id)
}

/// See [`from_snapshot`].
pub(crate) fn from_volume_id(id: &str) -> Option<p::VolumeContentSource> {
    use p::volume_content_source::{Type, VolumeSource};
    Some(p::VolumeContentSource { r#type: Some(Type::Volume(VolumeSource { volume_id: id.into() })) })
}

impl World {
    /// Creates from a request; `kind` is the volume's use.
    pub(crate) fn try_create(&self, kind: Use, request: &p::CreateVolumeRequest) -> Result<Vol, Status> {
        let capability = request.volume_capabilities.first().cloned().unwrap_or_else(|| super::capability(kind));
        let volume = self.create_volume(request.clone())?.volume.expect("a created volume");
        Ok(Vol { id: volume.volume_id, kind, size: volume.capacity_bytes, capability, context: volume.volume_context })
    }

    /// Creates, and retries while the driver answers that it is in progress.
    pub(crate) fn create_from(&self, kind: Use, request: &p::CreateVolumeRequest) -> Vol {
        self.retried("CreateVolume", || self.try_create(kind, request))
    }

    /// A blank volume of the usual size of its use.
    pub(crate) fn create(&self, name: &str, kind: Use) -> Vol {
        self.try_create(kind, &create_request(name, kind, kind.size())).unwrap()
    }

    /// A restore of a snapshot into a volume of this size.
    pub(crate) fn restore(&self, name: &str, kind: Use, snapshot: &str, size: i64) -> Vol {
        let request = p::CreateVolumeRequest {
            volume_content_source: from_snapshot(snapshot),
            ..create_request(name, kind, size)
        };
        self.create_from(kind, &request)
    }

    /// A clone of a volume, of the same size.
    pub(crate) fn clone_of(&self, name: &str, source: &Vol) -> Vol {
        let request = p::CreateVolumeRequest {
            volume_content_source: from_volume(source),
            ..create_request(name, source.kind, source.size)
        };
        self.create_from(source.kind, &request)
    }

    /// Repeats a call while it is answered ABORTED.
    pub(crate) fn retried<T>(&self, what: &str, call: impl Fn() -> Result<T, Status>) -> T {
        let mut answer = None;
        await_that(what, Duration::from_secs(60), || {
            answer = Some(call());
            !matches!(&answer, Some(Err(status)) if status.code() == Code::Aborted)
        });
        answer.unwrap().unwrap_or_else(|status| panic!("{what}: {status:?}"))
    }

    /// ControllerPublish to a node; its context is kept for the node calls.
    pub(crate) fn publish_to(&self, vol: &Vol, node: &str) -> Result<(), Status> {
        let answer = self.controller_publish_volume(p::ControllerPublishVolumeRequest {
            volume_id: vol.id.clone(),
            node_id: node.into(),
            volume_capability: Some(vol.capability.clone()),
            volume_context: vol.context.clone(),
            ..p::ControllerPublishVolumeRequest::default()
        })?;
        self.publish_contexts.lock().unwrap().insert(vol.id.clone(), answer.publish_context);
        Ok(())
    }

    /// ControllerPublish to this node.
    pub(crate) fn publish(&self, vol: &Vol) -> Result<(), Status> {
        self.publish_to(vol, &self.node)
    }

    /// ControllerUnpublish from this node.
    pub(crate) fn unpublish(&self, vol: &Vol) -> Result<(), Status> {
        let request = p::ControllerUnpublishVolumeRequest {
            volume_id: vol.id.clone(),
            node_id: self.node.clone(),
            ..p::ControllerUnpublishVolumeRequest::default()
        };
        self.controller_unpublish_volume(request).map(drop)
    }

    /// The request of [`World::stage`].
    pub(crate) fn stage_request(&self, vol: &Vol) -> p::NodeStageVolumeRequest {
        let staging = self.staging(vol);
        fs::create_dir_all(&staging).unwrap();
        p::NodeStageVolumeRequest {
            volume_id: vol.id.clone(),
            publish_context: self.publish_contexts.lock().unwrap().get(&vol.id).cloned().unwrap_or_default(),
            staging_target_path: staging.to_str().unwrap().into(),
            volume_capability: Some(vol.capability.clone()),
            volume_context: vol.context.clone(),
            ..p::NodeStageVolumeRequest::default()
        }
    }

    /// NodeStage.
    pub(crate) fn stage(&self, vol: &Vol) -> Result<(), Status> {
        self.node_stage_volume(self.stage_request(vol)).map(drop)
    }

    /// NodeUnstage.
    pub(crate) fn unstage(&self, vol: &Vol) -> Result<(), Status> {
        let staging_target_path = self.staging(vol).to_str().unwrap().into();
        self.node_unstage_volume(p::NodeUnstageVolumeRequest { volume_id: vol.id.clone(), staging_target_path })
            .map(drop)
    }

    /// The request of [`World::bind`].
    pub(crate) fn bind_request(&self, vol: &Vol, pod: &str) -> p::NodePublishVolumeRequest {
        let target = self.target(vol, pod);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let stage = self.stage_request(vol);
        p::NodePublishVolumeRequest {
            volume_id: stage.volume_id,
            publish_context: stage.publish_context,
            staging_target_path: stage.staging_target_path,
            target_path: target.to_str().unwrap().into(),
            volume_capability: stage.volume_capability,
            volume_context: stage.volume_context,
            ..p::NodePublishVolumeRequest::default()
        }
    }

    /// NodePublish into a pod; returns its path there.
    pub(crate) fn bind(&self, vol: &Vol, pod: &str) -> Result<PathBuf, Status> {
        self.node_publish_volume(self.bind_request(vol, pod))?;
        Ok(self.target(vol, pod))
    }

    /// NodeUnpublish from a pod.
    pub(crate) fn unbind(&self, vol: &Vol, pod: &str) -> Result<(), Status> {
        let target_path = self.target(vol, pod).to_str().unwrap().into();
        self.node_unpublish_volume(p::NodeUnpublishVolumeRequest { volume_id: vol.id.clone(), target_path }).map(drop)
    }

    /// ControllerPublish, stage, publish into a pod called `pod`: returns the path.
    pub(crate) fn attach(&self, vol: &Vol) -> Result<PathBuf, Status> {
        self.publish(vol)?;
        self.stage(vol)?;
        self.bind(vol, "pod")
    }

    /// Undoes [`World::attach`].
    pub(crate) fn detach(&self, vol: &Vol) {
        self.unbind(vol, "pod").unwrap();
        self.unstage(vol).unwrap();
        self.unpublish(vol).unwrap();
    }

    /// Deletes a volume.
    pub(crate) fn delete(&self, vol: &Vol) -> Result<(), Status> {
        self.delete_volume(p::DeleteVolumeRequest { volume_id: vol.id.clone(), ..Default::default() }).map(drop)
    }

    /// One attempt to create a snapshot.
    pub(crate) fn try_snapshot(&self, name: &str, vol: &Vol) -> Result<p::Snapshot, Status> {
        let request =
            p::CreateSnapshotRequest { source_volume_id: vol.id.clone(), name: name.into(), ..Default::default() };
        Ok(self.create_snapshot(request)?.snapshot.expect("a snapshot"))
    }

    /// A snapshot, requested until it is ready to use.
    pub(crate) fn snapshot(&self, name: &str, vol: &Vol) -> p::Snapshot {
        let mut made = None;
        await_that("the snapshot is ready", Duration::from_secs(60), || {
            let snapshot = self.retried("CreateSnapshot", || self.try_snapshot(name, vol));
            made = Some(snapshot);
            made.as_ref().is_some_and(|snapshot| snapshot.ready_to_use)
        });
        made.unwrap()
    }

    /// Deletes a snapshot.
    pub(crate) fn drop_snapshot(&self, id: &str) -> Result<(), Status> {
        self.delete_snapshot(p::DeleteSnapshotRequest { snapshot_id: id.into(), ..Default::default() }).map(drop)
    }

    /// Ids of all volumes.
    pub(crate) fn volume_ids(&self) -> Vec<String> {
        let entries = self.list_volumes(p::ListVolumesRequest::default()).unwrap().entries;
        entries.into_iter().map(|entry| entry.volume.unwrap().volume_id).collect()
    }

    /// Ids of all snapshots.
    pub(crate) fn snapshot_ids(&self) -> Vec<String> {
        let entries = self.list_snapshots(p::ListSnapshotsRequest::default()).unwrap().entries;
        entries.into_iter().map(|entry| entry.snapshot.unwrap().snapshot_id).collect()
    }

    /// ControllerExpand to exactly this size.
    pub(crate) fn expand(&self, vol: &Vol, size: i64) -> Result<p::ControllerExpandVolumeResponse, Status> {
        self.controller_expand_volume(p::ControllerExpandVolumeRequest {
            volume_id: vol.id.clone(),
            capacity_range: Some(p::CapacityRange { required_bytes: size, limit_bytes: 0 }),
            volume_capability: Some(vol.capability.clone()),
            ..Default::default()
        })
    }

    /// NodeExpand at the pod's path.
    pub(crate) fn node_expand(&self, vol: &Vol, size: i64) -> Result<i64, Status> {
        let answer = self.node_expand_volume(p::NodeExpandVolumeRequest {
            volume_id: vol.id.clone(),
            volume_path: self.target(vol, "pod").to_str().unwrap().into(),
            staging_target_path: self.staging(vol).to_str().unwrap().into(),
            capacity_range: Some(p::CapacityRange { required_bytes: size, limit_bytes: 0 }),
            volume_capability: Some(vol.capability.clone()),
            ..Default::default()
        })?;
        Ok(answer.capacity_bytes)
    }

    /// The capacity for a new volume of a use.
    pub(crate) fn capacity(&self) -> p::GetCapacityResponse {
        self.get_capacity(p::GetCapacityRequest::default()).unwrap()
    }

    /// Removes everything through the driver, stops it, and checks that nothing is left in the pool or on the machine.
    pub(crate) fn finish(mut self) {
        let (staged, targets) = self.in_use();
        for (volume_id, target) in targets {
            let target_path = target.to_str().unwrap().into();
            let request = p::NodeUnpublishVolumeRequest { volume_id, target_path };
            self.retried("NodeUnpublish", || self.node_unpublish_volume(request.clone()));
            assert!(!target.exists(), "{} is still there", target.display());
        }
        for volume_id in staged {
            let staging_target_path = self.scratch.path().join("stage").join(&volume_id).to_str().unwrap().into();
            let request = p::NodeUnstageVolumeRequest { volume_id, staging_target_path };
            self.retried("NodeUnstage", || self.node_unstage_volume(request.clone()));
        }
        for volume_id in self.volume_ids() {
            let detach = p::ControllerUnpublishVolumeRequest { volume_id: volume_id.clone(), ..Default::default() };
            self.retried("ControllerUnpublish", || self.controller_unpublish_volume(detach.clone()));
            let delete = p::DeleteVolumeRequest { volume_id, ..Default::default() };
            self.retried("DeleteVolume", || self.delete_volume(delete.clone()));
        }
        for id in self.snapshot_ids() {
            self.retried("DeleteSnapshot", || self.drop_snapshot(&id));
        }
        assert!(self.volume_ids().is_empty() && self.snapshot_ids().is_empty(), "deleted, yet listed");
        assert_eq!(self.terminate(), 0, "exit code: {}", self.log());
        for part in ["volumes", "snapshots", "trash"] {
            assert_eq!(self.in_pool(part), Vec::<String>::new(), "left in {part}");
        }
    }
}
