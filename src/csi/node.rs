//! The Node service: each call decodes, runs its workflow and encodes, on a thread of its own.

use std::fmt;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use tracing::info;

use super::call::Begun;
use super::concern::Concern;
use super::controller::in_span;
use super::decode::{self, RequestedCapability};
use super::encode;
use super::proto::{self as pb, node_service_capability as capability};
use super::rpc::Rpc;
use super::work::WorkerPool;
use crate::home::Changed;
use crate::node::{Node, Problem, PublishRequest, StageRequest, Stats, Usable, Usage};
use crate::route::{NO_FABRIC, Segments};
use crate::types::{Bytes, NodeId, Result, VolumeId};

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
    node: Arc<ThisNode>,
    works: WorkerPool,
}

impl NodeService {
    /// For this node.
    pub(super) fn new(node: ThisNode, works: WorkerPool) -> Self {
        Self { node: Arc::new(node), works }
    }

    async fn run<M, R, F>(&self, rpc: Rpc, request: Request<M>, work: F) -> Answer<R>
    where
        M: Concern + Send + 'static,
        R: Send + 'static,
        F: FnOnce(&Node, M) -> Result<R> + Send + 'static,
    {
        let node = Arc::clone(&self.node);
        self.works.run(rpc, request, move |message| work(&node.workflows, message)).await
    }
}

/// The capabilities of every node: exactly those that are implemented. On a node with a fabric also GET_VOLUME_HEALTH, an
/// alpha: only the connection of a volume can have a problem that no call meets.
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

    async fn node_get_volume_health(
        &self,
        request: Request<pb::NodeGetVolumeHealthRequest>,
    ) -> Answer<pb::NodeGetVolumeHealthResponse> {
        self.run(Rpc::NodeGetVolumeHealth, request, health).await
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
        let health = (self.node.fabric != NO_FABRIC).then_some(capability::rpc::Type::GetVolumeHealth);
        let capabilities = CAPABILITIES.into_iter().chain(health).map(one).collect();
        Ok(Response::new(pb::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(&self, request: Request<pb::NodeGetInfoRequest>) -> Answer<pb::NodeGetInfoResponse> {
        Begun::mark(&request);
        let ThisNode { id, fabric, .. } = &*self.node;
        Ok(Response::new(pb::NodeGetInfoResponse {
            node_id: id.to_string(),
            max_volumes_per_node: 0,
            accessible_topology: Some(encode::topology(&Segments::of_node(id, fabric))),
        }))
    }
}

/// The work of a call for a volume: its log lines and its errors name the volume.
fn of<R>(node: &Node, volume: VolumeId, work: impl FnOnce() -> Result<R>) -> Result<R> {
    in_span(&volume);
    work().map_err(|error| node.named(&volume).in_error(error))
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
fn stage(node: &Node, request: pb::NodeStageVolumeRequest) -> Result<pb::NodeStageVolumeResponse> {
    let asked = decode::node_stage(&request)?;
    asked.asked.checked()?;
    of(node, asked.volume, || {
        let RequestedCapability { mode, access, options: mount } = asked.asked;
        let wanted = StageRequest { volume: asked.volume, staging: asked.staging, mode, access, mount };
        if node.stage(&wanted)? == Changed::Yes {
            info!(%mode, path = %wanted.staging.display(), "volume staged");
        }
        Ok(pb::NodeStageVolumeResponse {})
    })
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
fn unstage(node: &Node, request: pb::NodeUnstageVolumeRequest) -> Result<pb::NodeUnstageVolumeResponse> {
    let (volume, staging) = decode::node_unstage(&request)?;
    if of(node, volume, || node.unstage(&volume, &staging))? == Changed::Yes {
        info!(path = %staging.display(), "volume unstaged");
    }
    Ok(pb::NodeUnstageVolumeResponse {})
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
fn publish(node: &Node, request: pb::NodePublishVolumeRequest) -> Result<pb::NodePublishVolumeResponse> {
    let asked = decode::node_publish(&request)?;
    asked.asked.checked()?;
    of(node, asked.volume, || {
        let RequestedCapability { mode, access, options: mount } = asked.asked;
        let wanted = PublishRequest {
            volume: asked.volume,
            staging: asked.staging,
            target: asked.target,
            mode,
            access,
            read_only: asked.read_only,
            mount,
        };
        if node.publish(&wanted)? == Changed::Yes {
            info!(%mode, path = %wanted.target.display(), "volume published");
        }
        Ok(pb::NodePublishVolumeResponse {})
    })
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
fn unpublish(node: &Node, request: pb::NodeUnpublishVolumeRequest) -> Result<pb::NodeUnpublishVolumeResponse> {
    let (volume, target) = decode::node_unpublish(&request)?;
    if of(node, volume, || node.unpublish(&volume, &target))? == Changed::Yes {
        info!(path = %target.display(), "volume unpublished");
    }
    Ok(pb::NodeUnpublishVolumeResponse {})
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
fn stats(node: &Node, request: pb::NodeGetVolumeStatsRequest) -> Result<pb::NodeGetVolumeStatsResponse> {
    use pb::volume_usage::Unit;
    let (volume, path) = decode::node_stats(&request)?;
    let figure = |value: u64| Bytes::new(value).to_i64();
    let row = |usage: Usage, unit: Unit| pb::VolumeUsage {
        available: figure(usage.available),
        total: figure(usage.total),
        used: figure(usage.used),
        unit: unit.into(),
    };
    let usage = match of(node, volume, || node.stats(&volume, &path))? {
        Stats::Block { total } => {
            vec![pb::VolumeUsage { total: total.to_i64(), unit: Unit::Bytes.into(), ..Default::default() }]
        }
        Stats::Filesystem { bytes, inodes } => vec![row(bytes, Unit::Bytes), row(inodes, Unit::Inodes)],
    };
    Ok(pb::NodeGetVolumeStatsResponse { usage })
}

#[expect(clippy::needless_pass_by_value, reason = "a call's work owns its message")]
fn expand(node: &Node, request: pb::NodeExpandVolumeRequest) -> Result<pb::NodeExpandVolumeResponse> {
    let wanted = decode::node_expand(&request)?;
    let size = of(node, wanted.volume, || node.expand(&wanted))?;
    Ok(pb::NodeExpandVolumeResponse { capacity_bytes: size.to_i64() })
}

fn health(node: &Node, request: pb::NodeGetVolumeHealthRequest) -> Result<pb::NodeGetVolumeHealthResponse> {
    let (volume, path) = decode::node_health(&request)?;
    let entry = |problem: Problem| pb::volume_health::VolumeHealthEntry {
        status: match problem.state {
            Usable::Partly => pb::VolumeHealthErrorType::Degraded,
            Usable::No => pb::VolumeHealthErrorType::Inaccessible,
        }
        .into(),
        reason: problem.reason.to_owned(),
        message: problem.message,
    };
    let problems = of(node, volume, || node.health(&volume, path.as_deref()))?;
    Ok(pb::NodeGetVolumeHealthResponse {
        volume_health: Some(pb::VolumeHealth {
            volume_id: request.volume_id,
            health_statuses: problems.into_iter().map(entry).collect(),
        }),
    })
}
