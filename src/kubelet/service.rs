//! The calls of kubelet on the socket.

use tokio::sync::mpsc;
use tonic::{Request, Response, Status};
use tracing::debug;

use super::proto::registration_server::Registration;
use super::proto::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use crate::csi::DRIVER_NAME;

/// The interface's version as kubelet compares it: all of CSI 1.x.
const VERSION: &str = "1.0.0";
/// The most characters of kubelet's error that are passed on.
const MOST_REASON: usize = 2000;

/// The result that kubelet reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Registered,
    /// Refused, with kubelet's error.
    Refused(String),
}

/// Answers kubelet, and passes on its result.
#[derive(Debug)]
pub(super) struct Service {
    endpoint: String,
    verdicts: mpsc::Sender<Verdict>,
}

impl Service {
    /// CSI is served at `endpoint`, as kubelet sees it.
    pub(super) fn new(endpoint: &str, verdicts: mpsc::Sender<Verdict>) -> Self {
        Self { endpoint: endpoint.to_owned(), verdicts }
    }
}

#[tonic::async_trait]
impl Registration for Service {
    async fn get_info(&self, _request: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        debug!(endpoint = self.endpoint, "kubelet calls GetInfo");
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: DRIVER_NAME.to_owned(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec![VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        let verdict = if plugin_registered {
            Verdict::Registered
        } else {
            Verdict::Refused(error.chars().take(MOST_REASON).collect())
        };
        // The receiver is gone only when the socket is about to be removed: then the result does not matter.
        let _ = self.verdicts.send(verdict).await;
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
