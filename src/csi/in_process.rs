//! The services without a socket, for tests that make tens of thousands of calls: messages are encoded and decoded, and
//! each call passes through the same layers as a served one, except for the connection.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::body::Body;
use tonic::service::Routes;
use tower::{Layer, Service};

use super::ThisNode;
use super::call::{CallService, Calls};
use super::proto::controller_client::ControllerClient;
use super::proto::node_client::NodeClient;
use super::server::{ServeController, add_services};
use super::work::WorkerPool;
use crate::os::Activity;
use crate::route::Router;
use crate::telemetry::Metrics;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct InProcess {
    service: CallService<Routes>,
    works: WorkerPool,
}

impl InProcess {
    pub(crate) fn new(router: &Arc<Router>, node: ThisNode) -> Self {
        let works = WorkerPool::new();
        let router = Arc::clone(router);
        let routes = add_services(Routes::default(), &works, router, ServeController::Yes, Some(node)).prepare();
        Self { service: Calls::new(Metrics::new(Activity::default())).layer(routes), works }
    }

    pub(crate) fn controller(&self) -> ControllerClient<Self> {
        ControllerClient::new(self.clone())
    }

    pub(crate) fn node(&self) -> NodeClient<Self> {
        NodeClient::new(self.clone())
    }

    /// Waits until no call is running, whether or not its caller is still there; returns how many run after `grace`.
    pub(crate) async fn ended(&self, grace: Duration) -> usize {
        self.works.ended(grace).await
    }
}

impl Service<http::Request<Body>> for InProcess {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.service.call(request)
    }
}
