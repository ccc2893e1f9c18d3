//! One socket, the services of a role, and an orderly shutdown.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tonic::service::Routes;
use tracing::{info, warn};

use super::call::Calls;
use super::controller::Controller;
use super::identity::Identity;
use super::node::{NodeService, ThisNode};
use super::proto::controller_server::ControllerServer;
use super::proto::identity_server::IdentityServer;
use super::proto::node_server::NodeServer;
use super::work::WorkerPool;
use crate::route::Router;
use crate::telemetry::{Metrics, PoolWatch};
use crate::types::{Error, Kind, Result};
use crate::wire::{self, Incoming, Most, Shares, socket};

/// The largest request, in bytes; the default of other gRPC implementations.
const MOST_REQUEST: usize = 4 << 20;
/// The largest request of the Identity service, whose messages are empty.
const MOST_QUESTION: usize = 16 << 10;
/// How long running work may take to finish after the shutdown began.
const GRACE: Duration = Duration::from_secs(20);

/// What is served, and where.
#[derive(Debug)]
pub struct ServeConfig {
    /// The Unix socket's absolute path.
    pub socket: PathBuf,
    /// The Controller service, if it is served: what finds the home node of each request.
    pub controller: Option<Arc<Router>>,
    /// Services on the same socket beside CSI. Only the CO and root can open it.
    pub others: Routes,
    /// The node whose Node service is served, if one is.
    pub node: Option<ThisNode>,
    /// Where calls are counted.
    pub metrics: Arc<Metrics>,
    /// The source of Probe; the caller reports when the pools are open.
    pub pools: PoolWatch,
    /// The socket's part of the limit of open files.
    pub shares: Shares,
}

/// Adds the Controller and Node services to others.
pub(crate) fn add_services(
    mut routes: Routes,
    works: &WorkerPool,
    controller: Option<Arc<Router>>,
    node: Option<ThisNode>,
) -> Routes {
    if let Some(router) = controller {
        let service = ControllerServer::new(Controller::new(router, works.clone()));
        routes = routes.add_service(service.max_decoding_message_size(MOST_REQUEST));
    }
    if let Some(node) = node {
        let service = NodeServer::new(NodeService::new(node, works.clone()));
        routes = routes.add_service(service.max_decoding_message_size(MOST_REQUEST));
    }
    routes
}

/// Serves until `shutdown` completes; then refuses new calls, gives running work a grace period, and removes the
/// socket.
///
/// Work that has not finished by then continues in its thread: the process should exit without waiting for it (the next
/// start finishes or undoes it).
///
/// # Errors
/// `Precondition` when the socket is in use; `Internal` when it cannot be created.
pub async fn serve(config: ServeConfig, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<()> {
    let (listener, file) = socket::listen(&config.socket, "--endpoint").await?;
    let (calls, works) = (Calls::new(config.metrics), WorkerPool::new());
    info!(
        socket = %config.socket.display(),
        controller = config.controller.is_some(),
        node = config.node.is_some(),
        version = env!("CARGO_PKG_VERSION"),
        "CSI is served"
    );
    let identity = IdentityServer::new(Identity::new(config.pools)).max_decoding_message_size(MOST_QUESTION);
    let routes = config.others.add_service(identity);
    let routes = add_services(routes, &works, config.controller, config.node);
    let (begin_end, end) = oneshot::channel::<()>();
    let incoming = Incoming::new(listener, "the CSI socket", Most::of_socket(config.shares.csi()));
    let server = wire::server_of_socket().layer(calls.clone()).add_routes(routes);
    let server = server.serve_with_incoming_shutdown(incoming, async move { drop(end.await) });
    let mut serving = tokio::spawn(server);
    tokio::select! {
        ended = &mut serving => {
            let reason = match ended {
                Ok(Ok(())) => Error::new(Kind::Internal, "the CSI server has stopped"),
                Ok(Err(error)) => Error::new(Kind::Internal, "the CSI server has stopped").because(error),
                Err(error) => Error::new(Kind::Internal, "the CSI server has stopped").because(error),
            };
            return Err(reason);
        }
        () = shutdown => {}
    }
    info!("stopping: new calls are refused; running calls have {} s to finish", GRACE.as_secs());
    // Connections stay open meanwhile: a refusal is more useful than a closed connection.
    calls.stop();
    let left = works.ended(GRACE).await;
    drop(begin_end);
    if left > 0 {
        warn!(left, "some calls have not finished; the next start finishes or undoes their work");
    }
    // Connections of clients that do not disconnect by themselves are closed.
    if tokio::time::timeout(Duration::from_secs(1), &mut serving).await.is_err() {
        serving.abort();
    }
    drop(file);
    info!("stopped");
    Ok(())
}
