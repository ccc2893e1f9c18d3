//! TLS mode auto in a controller, which issues certificates, and in a node, which requests one.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tracing::info;

use super::Stop;
use crate::config::{EnrolConfig, SigningConfig};
use crate::enrol::proto::enrolment_server::EnrolmentServer;
use crate::enrol::{EnrolService, Enrolling, Keeper, Kept, MOST_MESSAGE, Signing};
use crate::kubernetes::{KubernetesTokens, KubernetesVault, connect};
use crate::os::Os;
use crate::telemetry::{Metrics, TlsMetrics};
use crate::tls::{Credentials, Holder, Incoming, Role, Trust};
use crate::types::{NodeId, Result};
use crate::wire::{self, Shares};

/// The time limit of one certificate request.
const ANSWER: Duration = Duration::from_secs(20);
/// Concurrent requests on one connection.
const MOST_AT_ONCE: u32 = 2;

/// The controller's side, not yet started.
pub(super) struct Certifying {
    keeper: Keeper,
    signing: Signing,
    service: EnrolService,
    incoming: Incoming,
    address: SocketAddr,
}

impl Certifying {
    /// Binds the port and configures the client of the API server.
    ///
    /// # Errors
    /// The address is in use, or the API server is not configured.
    pub(super) async fn prepare(
        config: &SigningConfig,
        credentials: &Credentials,
        holder: Holder,
        metrics: &Metrics,
        shares: Shares,
    ) -> Result<Self> {
        let client = connect().await?;
        let vault = Arc::new(KubernetesVault::new(&client, config.authority.clone()));
        let (keeper, signing) = Keeper::new(vault, config.life, holder);
        let tokens = Arc::new(KubernetesTokens::new(&client));
        let service =
            EnrolService::new(tokens, config.account.clone(), signing.clone(), config.life, metrics.enrol().clone());
        let (incoming, address) = credentials.listen_to_anybody(config.listen, shares).await?;
        Ok(Self { keeper, signing, service, incoming, address })
    }

    /// Maintains the CA and issues certificates to nodes until the process stops.
    pub(super) fn begin(self, stop: &Stop) -> Signing {
        let Self { keeper, signing, service, incoming, address } = self;
        tokio::spawn(keeper.run(stop.receiver()));
        let server = wire::server().timeout(ANSWER).max_concurrent_streams(MOST_AT_ONCE);
        let mut server = server.concurrency_limit_per_connection(2).layer(service.bounds());
        let service = EnrolmentServer::new(service).max_decoding_message_size(MOST_MESSAGE);
        info!(listen = %address, "this controller issues certificates to nodes");
        tokio::spawn(wire::serve(
            server.add_service(service),
            incoming,
            stop.clone().begun(),
            "this controller no longer issues certificates to nodes; restart it",
        ));
        signing
    }
}

/// The certificate of a node, if it has one.
pub(super) struct Certified {
    kept: Kept,
    holder: Holder,
}

/// Loads the certificate that the node was issued last. Blocks.
pub(super) fn certified(os: &Os, node: &NodeId, state: &Path, metrics: TlsMetrics) -> (Credentials, Certified) {
    let (credentials, holder) = Credentials::held(Role::Node(node.clone()), metrics);
    let kept = Kept::new(os, state);
    Enrolling::take_kept(&kept, &holder);
    (credentials, Certified { kept, holder })
}

/// The node's side: requests a certificate whenever it needs one, until the process stops.
pub(super) fn enrol(
    config: &EnrolConfig,
    os: &Os,
    node: &NodeId,
    Certified { kept, holder }: Certified,
    metrics: &Metrics,
    stop: &Stop,
) {
    let metrics = metrics.tls().clone();
    let dial = Box::new(move |trust: Trust, address: SocketAddr| {
        let credentials = Credentials::trusting(trust, metrics.clone());
        credentials.channel(&Role::Controller, &address.to_string())
    });
    let enrolling = Enrolling {
        os: os.clone(),
        node: node.clone(),
        servers: config.servers.clone(),
        token: config.token.clone(),
        ca: config.ca.clone(),
        kept,
        holder,
        dial,
    };
    tokio::spawn(enrolling.run(stop.receiver()));
}
