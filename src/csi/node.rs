//! The Node service: each call decodes, runs its workflow and encodes, on a thread of its own.

use std::fmt;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use tracing::info;

use super::call::Begun;
use super::concern::Concern;
use super::controller::{in_span, own_fs};
use super::decode::{self, RequestedCapability, RequestedMode};
use super::encode;
use super::proto::{self as pb, node_service_capability as capability};
use super::rpc::Rpc;
use super::work::WorkerPool;
use crate::fs::MountOptions;
use crate::home::Changed;
use crate::node::{Node, PublishRequest, StageRequest, Stats, Usage};
use crate::route::{Router, Segments};
use crate::types::{Bytes, Capability, FsType, NodeId, Result, VolumeId};

type Answer<T> = std::result::Result<Response<T>, Status>;

/// The node that a service serves, and its topology.
#[derive(Clone)]
pub struct ThisNode {
    /// Its id.
    pub id: NodeId,
    /// Its storage network; [`crate::route::NO_FABRIC`] without one.
    pub fabric: String,
    /// Its workflows.
    pub workflows: Arc<Node>,
}

impl fmt::Debug for ThisNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThisNode").field("id", &self.id).field("fabric", &self.fabric).finish_non_exhaustive()
    }
}

/// The service.
#[derive(Debug)]
pub(super) struct NodeService {
    inner: Arc<Inner>,
    works: WorkerPool,
}

#[derive(Debug)]
struct Inner {
    node: ThisNode,
    router: Arc<Router>,
}

impl NodeService {
    /// For this node; the router knows the volumes' own filesystems.
    pub(super) fn new(node: ThisNode, router: Arc<Router>, works: WorkerPool) -> Self {
        Self { inner: Arc::new(Inner { node, router }), works }
    }

    async fn run<M, R, F>(&self, rpc: Rpc, request: Request<M>, work: F) -> Answer<R>
    where
        M: Concern + Send + 'static,
        R: Send + 'static,
        F: FnOnce(&Inner, M) -> Result<R> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        self.works.run(rpc, request, move |message| work(&inner, message)).await
    }
}

/// The capabilities of the node: exactly those that are implemented.
const CAPABILITIES: [capability::rpc::Type; 4] = {
    use capability::rpc::Type;
    [Type::StageUnstageVolume, Type::GetVolumeStats, Type::ExpandVolume, Type::SingleNodeMultiWriter]
};

#[tonic::async_trait]
impl pb::node_server::Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<pb::NodeStageVolumeRequest>,
    ) -> Answer<pb::NodeStageVolumeResponse> {
        self.run(Rpc::NodeStageVolume, request, stage).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<pb::NodeUnstageVolumeRequest>,
    ) -> Answer<pb::NodeUnstageVolumeResponse> {
        self.run(Rpc::NodeUnstageVolume, request, unstage).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<pb::NodePublishVolumeRequest>,
    ) -> Answer<pb::NodePublishVolumeResponse> {
        self.run(Rpc::NodePublishVolume, request, publish).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<pb::NodeUnpublishVolumeRequest>,
    ) -> Answer<pb::NodeUnpublishVolumeResponse> {
        self.run(Rpc::NodeUnpublishVolume, request, unpublish).await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<pb::NodeGetVolumeStatsRequest>,
    ) -> Answer<pb::NodeGetVolumeStatsResponse> {
        self.run(Rpc::NodeGetVolumeStats, request, stats).await
    }

    async fn node_expand_volume(
        &self,
        request: Request<pb::NodeExpandVolumeRequest>,
    ) -> Answer<pb::NodeExpandVolumeResponse> {
        self.run(Rpc::NodeExpandVolume, request, expand).await
    }

    async fn node_get_capabilities(
        &self,
        request: Request<pb::NodeGetCapabilitiesRequest>,
    ) -> Answer<pb::NodeGetCapabilitiesResponse> {
        Begun::mark(&request);
        let one = |kind: capability::rpc::Type| pb::NodeServiceCapability {
            r#type: Some(capability::Type::Rpc(capability::Rpc { r#type: kind.into() })),
        };
        Ok(Response::new(pb::NodeGetCapabilitiesResponse { capabilities: CAPABILITIES.map(one).to_vec() }))
    }

    async fn node_get_info(&self, request: Request<pb::NodeGetInfoRequest>) -> Answer<pb::NodeGetInfoResponse> {
        Begun::mark(&request);
        let ThisNode { id, fabric, .. } = &self.inner.node;
        Ok(Response::new(pb::NodeGetInfoResponse {
            node_id: id.to_string(),
            max_volumes_per_node: 0,
            accessible_topology: Some(encode::topology(&Segments::of_node(id, fabric))),
        }))
    }
}

/// How a volume is to be used, with its own filesystem where the CO names none.
fn resolved(router: &Router, volume: &VolumeId, asked: &RequestedCapability) -> Result<(Capability, MountOptions)> {
    let own = match asked.mode {
        RequestedMode::Mount(None) => own_fs(&router.volume(volume)?)?,
        RequestedMode::Mount(Some(_)) | RequestedMode::Block => FsType::Ext4,
    };
    asked.resolved(own)
}

/// The work of a call for a volume: its log lines and its errors name the volume.
fn of<R>(inner: &Inner, volume: VolumeId, work: impl FnOnce() -> Result<R>) -> Result<R> {
    in_span(&volume);
    work().map_err(|error| inner.node.workflows.named(&volume).in_error(error))
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
fn stage(inner: &Inner, request: pb::NodeStageVolumeRequest) -> Result<pb::NodeStageVolumeResponse> {
    let asked = decode::node_stage(&request)?;
    of(inner, asked.volume, || {
        let (Capability { mode, access }, mount) = resolved(&inner.router, &asked.volume, &asked.asked)?;
        let wanted = StageRequest { volume: asked.volume, staging: asked.staging, mode, access, mount };
        if inner.node.workflows.stage(&wanted)? == Changed::Yes {
            info!(%mode, path = %wanted.staging.display(), "volume staged");
        }
        Ok(pb::NodeStageVolumeResponse {})
    })
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
fn unstage(inner: &Inner, request: pb::NodeUnstageVolumeRequest) -> Result<pb::NodeUnstageVolumeResponse> {
    let (volume, staging) = decode::node_unstage(&request)?;
    if of(inner, volume, || inner.node.workflows.unstage(&volume, &staging))? == Changed::Yes {
        info!(path = %staging.display(), "volume unstaged");
    }
    Ok(pb::NodeUnstageVolumeResponse {})
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
fn publish(inner: &Inner, request: pb::NodePublishVolumeRequest) -> Result<pb::NodePublishVolumeResponse> {
    let asked = decode::node_publish(&request)?;
    of(inner, asked.volume, || {
        let (Capability { mode, access }, mount) = resolved(&inner.router, &asked.volume, &asked.asked)?;
        let wanted = PublishRequest {
            volume: asked.volume,
            staging: asked.staging,
            target: asked.target,
            mode,
            access,
            read_only: asked.read_only,
            mount,
        };
        if inner.node.workflows.publish(&wanted)? == Changed::Yes {
            info!(%mode, path = %wanted.target.display(), "volume published");
        }
        Ok(pb::NodePublishVolumeResponse {})
    })
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
fn unpublish(inner: &Inner, request: pb::NodeUnpublishVolumeRequest) -> Result<pb::NodeUnpublishVolumeResponse> {
    let (volume, target) = decode::node_unpublish(&request)?;
    if of(inner, volume, || inner.node.workflows.unpublish(&volume, &target))? == Changed::Yes {
        info!(path = %target.display(), "volume unpublished");
    }
    Ok(pb::NodeUnpublishVolumeResponse {})
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
fn stats(inner: &Inner, request: pb::NodeGetVolumeStatsRequest) -> Result<pb::NodeGetVolumeStatsResponse> {
    use pb::volume_usage::Unit;
    let (volume, path) = decode::node_stats(&request)?;
    let figure = |value: u64| Bytes::new(value).to_i64();
    let row = |usage: Usage, unit: Unit| pb::VolumeUsage {
        available: figure(usage.available),
        total: figure(usage.total),
        used: figure(usage.used),
        unit: unit.into(),
    };
    let usage = match of(inner, volume, || inner.node.workflows.stats(&volume, &path))? {
        Stats::Block { total } => {
            vec![pb::VolumeUsage { total: total.to_i64(), unit: Unit::Bytes.into(), ..Default::default() }]
        }
        Stats::Filesystem { bytes, inodes } => vec![row(bytes, Unit::Bytes), row(inodes, Unit::Inodes)],
    };
    Ok(pb::NodeGetVolumeStatsResponse { usage })
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
fn expand(inner: &Inner, request: pb::NodeExpandVolumeRequest) -> Result<pb::NodeExpandVolumeResponse> {
    let wanted = decode::node_expand(&request)?;
    let size = of(inner, wanted.volume, || inner.node.workflows.expand(&wanted))?;
    Ok(pb::NodeExpandVolumeResponse { capacity_bytes: size.to_i64() })
}
