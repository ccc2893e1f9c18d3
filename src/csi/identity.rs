//! The Identity service: name, capabilities and readiness.

use std::collections::HashMap;

use tonic::{Request, Response, Status};

use super::call::Begun;
use super::proto::{self, plugin_capability as capability};
use super::rpc::Rpc;
use super::status;
use crate::telemetry::{PoolWatch, Readiness};
use crate::types::Failure;

/// The driver's name: the `provisioner` of a StorageClass.
pub const DRIVER_NAME: &str = "csi.holdfast.storage";

/// The same on every socket, whatever else is served there.
#[derive(Debug)]
pub(super) struct Identity {
    pools: PoolWatch,
}

impl Identity {
    /// Ready when these pools are ready.
    pub(super) fn new(pools: PoolWatch) -> Self {
        Self { pools }
    }
}

#[tonic::async_trait]
impl proto::identity_server::Identity for Identity {
    async fn get_plugin_info(
        &self,
        request: Request<proto::GetPluginInfoRequest>,
    ) -> Result<Response<proto::GetPluginInfoResponse>, Status> {
        Begun::mark(&request);
        Ok(Response::new(proto::GetPluginInfoResponse {
            name: DRIVER_NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: HashMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        request: Request<proto::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<proto::GetPluginCapabilitiesResponse>, Status> {
        Begun::mark(&request);
        let service =
            |kind: capability::service::Type| capability::Type::Service(capability::Service { r#type: kind.into() });
        let online = capability::VolumeExpansion { r#type: capability::volume_expansion::Type::Online.into() };
        let all = [
            service(capability::service::Type::ControllerService),
            service(capability::service::Type::VolumeAccessibilityConstraints),
            capability::Type::VolumeExpansion(online),
        ];
        let capabilities = all.map(|one| proto::PluginCapability { r#type: Some(one) }).to_vec();
        Ok(Response::new(proto::GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, request: Request<proto::ProbeRequest>) -> Result<Response<proto::ProbeResponse>, Status> {
        Begun::mark(&request);
        match self.pools.readiness().await {
            // One pool that is not served does not make the driver unready for the others.
            Readiness::Ready(_) | Readiness::Partly { .. } => {
                Ok(Response::new(proto::ProbeResponse { ready: Some(true) }))
            }
            Readiness::Starting | Readiness::Nothing(_) => {
                Ok(Response::new(proto::ProbeResponse { ready: Some(false) }))
            }
            Readiness::Failing(error) => {
                tracing::error!("the driver is not ready: {}", error.chain());
                Err(status::of(Rpc::Probe, &Failure::Clean(error)))
            }
        }
    }
}
