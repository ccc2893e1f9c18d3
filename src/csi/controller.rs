//! The Controller service: each call decodes, calls the router and encodes, on a thread of its own.

mod snapshots;
mod volumes;

pub(super) use volumes::in_span;

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::call::Begun;
use super::concern::Concern;
use super::proto::{self as pb, controller_service_capability as capability};
use super::rpc::Rpc;
use super::work::WorkerPool;
use crate::route::Router;
use crate::types::Failure;

type Answer<T> = Result<Response<T>, Status>;

/// The service.
#[derive(Debug)]
pub(super) struct Controller {
    router: Arc<Router>,
    works: WorkerPool,
}

impl Controller {
    /// With this router.
    pub(super) fn new(router: Arc<Router>, works: WorkerPool) -> Self {
        Self { router, works }
    }

    async fn run<M, R, E, F>(&self, rpc: Rpc, request: Request<M>, work: F) -> Answer<R>
    where
        M: Concern + Send + 'static,
        R: Send + 'static,
        E: Into<Failure>,
        F: FnOnce(&Router, M) -> Result<R, E> + Send + 'static,
    {
        let router = Arc::clone(&self.router);
        self.works.run(rpc, request, move |message| work(&router, message)).await
    }
}

/// The capabilities of the controller: exactly those that are implemented.
const CAPABILITIES: [capability::rpc::Type; 13] = {
    use capability::rpc::Type;
    [
        Type::CreateDeleteVolume,
        Type::PublishUnpublishVolume,
        Type::ListVolumes,
        Type::GetCapacity,
        Type::CreateDeleteSnapshot,
        Type::ListSnapshots,
        Type::CloneVolume,
        Type::PublishReadonly,
        Type::ExpandVolume,
        Type::ListVolumesPublishedNodes,
        Type::GetVolume,
        Type::SingleNodeMultiWriter,
        Type::GetSnapshot,
    ]
};

#[tonic::async_trait]
impl pb::controller_server::Controller for Controller {
    async fn create_volume(&self, request: Request<pb::CreateVolumeRequest>) -> Answer<pb::CreateVolumeResponse> {
        self.run(Rpc::CreateVolume, request, volumes::create).await
    }

    async fn delete_volume(&self, request: Request<pb::DeleteVolumeRequest>) -> Answer<pb::DeleteVolumeResponse> {
        self.run(Rpc::DeleteVolume, request, volumes::delete).await
    }

    async fn controller_publish_volume(
        &self,
        request: Request<pb::ControllerPublishVolumeRequest>,
    ) -> Answer<pb::ControllerPublishVolumeResponse> {
        self.run(Rpc::ControllerPublishVolume, request, volumes::publish).await
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<pb::ControllerUnpublishVolumeRequest>,
    ) -> Answer<pb::ControllerUnpublishVolumeResponse> {
        self.run(Rpc::ControllerUnpublishVolume, request, volumes::unpublish).await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<pb::ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<pb::ValidateVolumeCapabilitiesResponse> {
        self.run(Rpc::ValidateVolumeCapabilities, request, volumes::validate).await
    }

    async fn list_volumes(&self, request: Request<pb::ListVolumesRequest>) -> Answer<pb::ListVolumesResponse> {
        self.run(Rpc::ListVolumes, request, volumes::list).await
    }

    async fn get_capacity(&self, request: Request<pb::GetCapacityRequest>) -> Answer<pb::GetCapacityResponse> {
        self.run(Rpc::GetCapacity, request, volumes::capacity).await
    }

    async fn controller_get_capabilities(
        &self,
        request: Request<pb::ControllerGetCapabilitiesRequest>,
    ) -> Answer<pb::ControllerGetCapabilitiesResponse> {
        Begun::mark(&request);
        let one = |kind: capability::rpc::Type| pb::ControllerServiceCapability {
            r#type: Some(capability::Type::Rpc(capability::Rpc { r#type: kind.into() })),
        };
        Ok(Response::new(pb::ControllerGetCapabilitiesResponse { capabilities: CAPABILITIES.map(one).to_vec() }))
    }

    async fn create_snapshot(&self, request: Request<pb::CreateSnapshotRequest>) -> Answer<pb::CreateSnapshotResponse> {
        self.run(Rpc::CreateSnapshot, request, snapshots::create).await
    }

    async fn delete_snapshot(&self, request: Request<pb::DeleteSnapshotRequest>) -> Answer<pb::DeleteSnapshotResponse> {
        self.run(Rpc::DeleteSnapshot, request, snapshots::delete).await
    }

    async fn list_snapshots(&self, request: Request<pb::ListSnapshotsRequest>) -> Answer<pb::ListSnapshotsResponse> {
        self.run(Rpc::ListSnapshots, request, snapshots::list).await
    }

    async fn get_snapshot(&self, request: Request<pb::GetSnapshotRequest>) -> Answer<pb::GetSnapshotResponse> {
        self.run(Rpc::GetSnapshot, request, snapshots::get).await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<pb::ControllerExpandVolumeRequest>,
    ) -> Answer<pb::ControllerExpandVolumeResponse> {
        self.run(Rpc::ControllerExpandVolume, request, volumes::expand).await
    }

    async fn controller_get_volume(
        &self,
        request: Request<pb::ControllerGetVolumeRequest>,
    ) -> Answer<pb::ControllerGetVolumeResponse> {
        self.run(Rpc::ControllerGetVolume, request, volumes::get).await
    }
}
