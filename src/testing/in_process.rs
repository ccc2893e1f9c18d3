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

use crate::csi::ThisNode;
use crate::csi::call::{CallService, Calls};
use crate::csi::proto::controller_client::ControllerClient;
use crate::csi::proto::node_client::NodeClient;
use crate::csi::server::add_services;
use crate::csi::work::WorkerPool;
use crate::os::Activity;
use crate::route::Router;
use crate::telemetry::Metrics;

/// The Controller and Node services of one process. Cheap to clone.
#[derive(Clone)]
pub struct InProcess {
    service: CallService<Routes>,
    works: WorkerPool,
}

impl InProcess {
    /// The services of `node`, with `router`.
    #[must_use]
    pub fn new(router: &Arc<Router>, node: ThisNode) -> Self {
        let works = WorkerPool::new();
        let routes = add_services(Routes::default(), &works, Some(Arc::clone(router)), Some(node)).prepare();
        Self { service: Calls::new(Metrics::new(Activity::default())).layer(routes), works }
    }

    /// A client of the Controller service.
    #[must_use]
    pub fn controller(&self) -> ControllerClient<Self> {
        ControllerClient::new(self.clone())
    }

    /// A client of the Node service.
    #[must_use]
    pub fn node(&self) -> NodeClient<Self> {
        NodeClient::new(self.clone())
    }

    /// Waits until no call is running, whether or not its caller is still there; returns how many run after `grace`.
    pub async fn ended(&self, grace: Duration) -> usize {
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
