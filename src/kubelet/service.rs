//! What kubelet asks and says on the socket.

use tokio::sync::mpsc;
use tonic::{Request, Response, Status};
use tracing::debug;

use super::proto::registration_server::Registration;
use super::proto::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use crate::csi::DRIVER_NAME;

/// The interface's version as kubelet compares it: all of CSI 1.x.
const VERSION: &str = "1.0.0";
/// The most of kubelet's reason that is passed on, in characters.
const MOST_REASON: usize = 2000;

/// What kubelet made of us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Registered,
    /// Not, in kubelet's words.
    Refused(String),
}

/// Answers kubelet, and passes on what it says.
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
        debug!(endpoint = self.endpoint, "kubelet asks who we are");
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
        // Nobody listens any more when the socket is about to go: then it does not matter what was said of it.
        let _ = self.verdicts.send(verdict).await;
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
