//! A home node behind its own gRPC service, for tests: the same rules must hold over the protocol.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::home::Home;
use crate::home::remote::{HomeService, RemoteHome};
use crate::os::Activity;
use crate::telemetry::Metrics;
use crate::tls::{Credentials, Role};
use crate::wire::{self, Shares};

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
        let credentials = Credentials::plain(Metrics::new(Activity::default()).tls().clone());
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (incoming, address) = runtime.block_on(credentials.listen(any, Shares::of(1 << 16))).unwrap();
        let service = HomeService::new(home);
        let server = wire::server_of_daemons(service.bounds()).add_service(service.into_server());
        runtime.spawn(wire::serve(server, incoming, std::future::pending(), "the loopback has ended"));
        let address = address.to_string();
        let channel = {
            let _in_runtime = runtime.enter();
            credentials.channel(&Role::Node(node.clone()), &address).unwrap()
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
