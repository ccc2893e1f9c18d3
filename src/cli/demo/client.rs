//! A small orchestrator: the calls of the sidecars and kubelet, over the driver's socket.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use holdfast::csi::proto::controller_client::ControllerClient;
use holdfast::csi::proto::identity_client::IdentityClient;
use holdfast::csi::proto::node_client::NodeClient;
use holdfast::csi::proto::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest,
    CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeRequest, GetPluginInfoRequest,
    NodeExpandVolumeRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, ProbeRequest, Snapshot, Volume, VolumeCapability, VolumeContentSource, volume_capability,
    volume_content_source,
};
use holdfast::types::{Bytes, FsType, NodeId};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

/// A connection to the driver.
pub(super) struct Client {
    identity: IdentityClient<Channel>,
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
    node_id: NodeId,
    fs: FsType,
}

/// A volume in use: its handle and its paths.
pub(super) struct InUse<'a> {
    pub(super) volume_id: &'a str,
    pub(super) staging: &'a Path,
    pub(super) target: &'a Path,
}

impl Client {
    /// Connects to the socket and asks whether the driver is ready.
    pub(super) async fn connect(socket: &Path, node_id: NodeId, fs: FsType) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        let channel = endpoint.connect().await.with_context(|| format!("connect to {}", socket.display()))?;
        let mut client = Self {
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel),
            node_id,
            fs,
        };
        let ready = answer("Probe", client.identity.probe(ProbeRequest {}).await)?.ready;
        if ready == Some(false) { Err(anyhow!("Probe: the driver is not ready yet")) } else { Ok(client) }
    }

    /// Name and version of the driver.
    pub(super) async fn who(&mut self) -> Result<String> {
        let info = answer("GetPluginInfo", self.identity.get_plugin_info(GetPluginInfoRequest {}).await)?;
        Ok(format!("{} {}", info.name, info.vendor_version))
    }

    pub(super) async fn create(&mut self, name: &str, size: Bytes, from_snapshot: Option<&str>) -> Result<Volume> {
        let source = from_snapshot.map(|id| VolumeContentSource {
            r#type: Some(volume_content_source::Type::Snapshot(volume_content_source::SnapshotSource {
                snapshot_id: id.to_owned(),
            })),
        });
        let request = CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: Some(range(size)),
            volume_capabilities: vec![self.capability()],
            parameters: HashMap::from([("csi.storage.k8s.io/fstype".to_owned(), self.fs.to_string())]),
            volume_content_source: source,
            ..CreateVolumeRequest::default()
        };
        loop {
            match self.controller.create_volume(request.clone()).await {
                // A copy is in progress, if the pool's filesystem has no reflinks: retried, as the provisioner does.
                Err(status) if status.code() == Code::Aborted => pause().await,
                other => return answer("CreateVolume", other)?.volume.context("CreateVolume answered no volume"),
            }
        }
    }

    pub(super) async fn attach(&mut self, volume_id: &str) -> Result<HashMap<String, String>> {
        let request = ControllerPublishVolumeRequest {
            volume_id: volume_id.to_owned(),
            node_id: self.node_id.to_string(),
            volume_capability: Some(self.capability()),
            ..ControllerPublishVolumeRequest::default()
        };
        Ok(answer("ControllerPublishVolume", self.controller.controller_publish_volume(request).await)?.publish_context)
    }

    /// NodeStageVolume: formats a volume that was never formatted, and mounts it once on the node.
    pub(super) async fn stage(&mut self, used: &InUse<'_>, context: &HashMap<String, String>) -> Result<()> {
        let request = NodeStageVolumeRequest {
            volume_id: used.volume_id.to_owned(),
            publish_context: context.clone(),
            staging_target_path: path(used.staging),
            volume_capability: Some(self.capability()),
            ..NodeStageVolumeRequest::default()
        };
        answer("NodeStageVolume", self.node.node_stage_volume(request).await).map(drop)
    }

    /// NodePublishVolume: bind-mounts it into the pod's directory.
    pub(super) async fn publish(&mut self, used: &InUse<'_>, context: &HashMap<String, String>) -> Result<()> {
        let request = NodePublishVolumeRequest {
            volume_id: used.volume_id.to_owned(),
            publish_context: context.clone(),
            staging_target_path: path(used.staging),
            target_path: path(used.target),
            volume_capability: Some(self.capability()),
            ..NodePublishVolumeRequest::default()
        };
        answer("NodePublishVolume", self.node.node_publish_volume(request).await).map(drop)
    }

    /// ControllerPublish, NodeStage and NodePublish.
    pub(super) async fn bring(&mut self, used: &InUse<'_>) -> Result<()> {
        let context = self.attach(used.volume_id).await?;
        self.stage(used, &context).await?;
        self.publish(used, &context).await
    }

    /// NodeUnpublish, NodeUnstage and ControllerUnpublish.
    pub(super) async fn release(&mut self, used: &InUse<'_>) -> Result<()> {
        let volume_id = used.volume_id.to_owned();
        let unpublish = NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path: path(used.target) };
        answer("NodeUnpublishVolume", self.node.node_unpublish_volume(unpublish).await)?;
        let unstage =
            NodeUnstageVolumeRequest { volume_id: volume_id.clone(), staging_target_path: path(used.staging) };
        answer("NodeUnstageVolume", self.node.node_unstage_volume(unstage).await)?;
        let detach = ControllerUnpublishVolumeRequest {
            volume_id,
            node_id: self.node_id.to_string(),
            ..ControllerUnpublishVolumeRequest::default()
        };
        answer("ControllerUnpublishVolume", self.controller.controller_unpublish_volume(detach).await).map(drop)
    }

    /// CreateSnapshot, retried until its data is complete.
    pub(super) async fn snapshot(&mut self, name: &str, volume_id: &str) -> Result<Snapshot> {
        let request = CreateSnapshotRequest {
            name: name.to_owned(),
            source_volume_id: volume_id.to_owned(),
            ..CreateSnapshotRequest::default()
        };
        loop {
            let snapshot = answer("CreateSnapshot", self.controller.create_snapshot(request.clone()).await)?
                .snapshot
                .context("CreateSnapshot answered no snapshot")?;
            if snapshot.ready_to_use {
                return Ok(snapshot);
            }
            pause().await;
        }
    }

    /// The first half of an expansion: image and device.
    pub(super) async fn grow_device(&mut self, volume_id: &str, size: Bytes) -> Result<()> {
        let request = ControllerExpandVolumeRequest {
            volume_id: volume_id.to_owned(),
            capacity_range: Some(range(size)),
            volume_capability: Some(self.capability()),
            ..ControllerExpandVolumeRequest::default()
        };
        let answered = answer("ControllerExpandVolume", self.controller.controller_expand_volume(request).await)?;
        if answered.capacity_bytes < size.to_i64() || !answered.node_expansion_required {
            return Err(anyhow!(
                "ControllerExpandVolume answered {} bytes, node expansion required: {}",
                answered.capacity_bytes,
                answered.node_expansion_required
            ));
        }
        Ok(())
    }

    /// The second half: the mounted filesystem.
    pub(super) async fn grow_filesystem(&mut self, used: &InUse<'_>, size: Bytes) -> Result<()> {
        let request = NodeExpandVolumeRequest {
            volume_id: used.volume_id.to_owned(),
            volume_path: path(used.target),
            staging_target_path: path(used.staging),
            capacity_range: Some(range(size)),
            volume_capability: Some(self.capability()),
            ..NodeExpandVolumeRequest::default()
        };
        answer("NodeExpandVolume", self.node.node_expand_volume(request).await).map(drop)
    }

    pub(super) async fn delete(&mut self, volume_id: &str) -> Result<()> {
        self.try_delete(volume_id).await.map_err(|status| said("DeleteVolume", &status))
    }

    /// DeleteVolume with the unchanged answer of the driver.
    pub(super) async fn try_delete(&mut self, volume_id: &str) -> Result<(), Status> {
        let request = DeleteVolumeRequest { volume_id: volume_id.to_owned(), ..DeleteVolumeRequest::default() };
        self.controller.delete_volume(request).await.map(drop)
    }

    pub(super) async fn delete_snapshot(&mut self, snapshot_id: &str) -> Result<()> {
        let request = DeleteSnapshotRequest { snapshot_id: snapshot_id.to_owned(), ..DeleteSnapshotRequest::default() };
        answer("DeleteSnapshot", self.controller.delete_snapshot(request).await).map(drop)
    }

    /// The capability of a claim with ReadWriteOnce.
    fn capability(&self) -> VolumeCapability {
        let mount = volume_capability::MountVolume {
            fs_type: self.fs.to_string(),
            ..volume_capability::MountVolume::default()
        };
        VolumeCapability {
            access_mode: Some(volume_capability::AccessMode {
                mode: volume_capability::access_mode::Mode::SingleNodeMultiWriter.into(),
            }),
            access_type: Some(volume_capability::AccessType::Mount(mount)),
        }
    }
}

async fn pause() {
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn range(size: Bytes) -> CapacityRange {
    CapacityRange { required_bytes: size.to_i64(), limit_bytes: 0 }
}

fn answer<T>(rpc: &str, result: Result<Response<T>, Status>) -> Result<T> {
    result.map(Response::into_inner).map_err(|status| said(rpc, &status))
}

fn said(rpc: &str, status: &Status) -> anyhow::Error {
    anyhow!("{rpc} answered {:?}: {}", status.code(), status.message())
}
