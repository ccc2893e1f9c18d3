//! A home node behind its own gRPC service, for tests: the same rules must hold over the protocol.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Status};

use super::proto::home_server::HomeServer;
use super::{HomeService, RemoteHome};
use crate::home::Home;
use crate::tls::Peer;

/// Permits every caller, as on a port without certificates.
fn anybody(mut request: Request<()>) -> Result<Request<()>, Status> {
    request.extensions_mut().insert(Peer::Unverified);
    Ok(request)
}

/// A served home node and its client; the service stops when it is dropped.
pub(crate) struct Loopback {
    runtime: Option<tokio::runtime::Runtime>,
    remote: Arc<RemoteHome>,
}

impl Loopback {
    /// Serves `home` on its own port, without authentication.
    pub(crate) fn new(home: Arc<dyn Home>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let node = home.node().clone();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let service = HomeServer::with_interceptor(HomeService::new(home), anybody);
        let serving = Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(serving);
        let channel = {
            let _in_runtime = runtime.enter();
            Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy()
        };
        let remote = RemoteHome::new(node, address, channel, runtime.handle().clone());
        Self { runtime: Some(runtime), remote: Arc::new(remote) }
    }

    /// The home node as its clients see it.
    pub(crate) fn home(&self) -> Arc<dyn Home> {
        Arc::clone(&self.remote) as _
    }
}

impl Drop for Loopback {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(10));
        }
    }
}
