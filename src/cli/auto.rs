//! TLS mode `auto`: its flags, and its tasks in a controller and in a node.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use holdfast::config::{EnrolConfig, Flags, SigningConfig};
use holdfast::enrol::proto::enrolment_server::EnrolmentServer;
use holdfast::enrol::{EnrolService, Enrolling, Keeper, Kept, MOST_MESSAGE, Signing};
use holdfast::kubernetes::{KubernetesTokens, KubernetesVault, connect};
use holdfast::os::Os;
use holdfast::telemetry::{Metrics, TlsMetrics};
use holdfast::tls::{Credentials, Holder, Incoming, Role, Trust};
use holdfast::types::NodeId;
use holdfast::wire::{self, Shares};
use tokio::net::TcpListener;
use tracing::{error, info};

use super::daemon::Stop;
use super::serving;

/// The time limit of one certificate request.
const ANSWER: Duration = Duration::from_secs(20);
/// Concurrent requests on one connection.
const MOST_AT_ONCE: u32 = 2;

/// Flags of a controller.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct SigningArguments {
    /// TLS mode auto: the name of the Secret with the CA and of the ConfigMap with its certificate.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    tls_authority: Option<String>,
    /// TLS mode auto: the address where nodes request certificates.
    #[arg(long, value_name = "ADDRESS:PORT")]
    enrol_listen: Option<String>,
    /// TLS mode auto: the service account of the nodes; only its pods get certificates.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    enrol_account: Option<String>,
    /// TLS mode auto: the lifetime of a certificate, which is renewed after two thirds of it. Default: 720h.
    #[arg(long, value_name = "TIME")]
    certificate_life: Option<String>,
}

impl SigningArguments {
    /// Adds these flags.
    pub(crate) fn flags(&self, others: Flags) -> Flags {
        Flags {
            tls_authority: self.tls_authority.clone(),
            enrol_listen: self.enrol_listen.clone(),
            enrol_account: self.enrol_account.clone(),
            certificate_life: self.certificate_life.clone(),
            ..others
        }
    }
}

/// Flags of a node.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct EnrolArguments {
    /// TLS mode auto: a file with the CA's certificate, which verifies controllers; changes are detected.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<String>,
    /// TLS mode auto: a file with a service account token with audience holdfast, bound to this node's pod.
    #[arg(long, value_name = "FILE")]
    tls_token: Option<String>,
    /// TLS mode auto: the controllers' --enrol-listen. Repeatable, or separated by commas.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    enrol: Vec<String>,
}

impl EnrolArguments {
    /// Adds these flags.
    pub(crate) fn flags(&self, others: Flags) -> Flags {
        Flags { tls_ca: self.tls_ca.clone(), tls_token: self.tls_token.clone(), enrol: self.enrol.clone(), ..others }
    }
}

/// The controller's side, not yet started.
pub(crate) struct Certifying {
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
    pub(crate) async fn prepare(
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
        let listener = TcpListener::bind(config.listen).await.with_context(|| {
            format!("cannot listen on --enrol-listen {}; free the port or choose another", config.listen)
        })?;
        let address = listener.local_addr().context("read the address of --enrol-listen")?;
        let incoming = credentials.incoming_from_anybody(listener).within(shares);
        Ok(Self { keeper, signing, service, incoming, address })
    }

    /// Maintains the CA and issues certificates to nodes until the process stops.
    pub(crate) fn begin(self, stopped: &Stop) -> Signing {
        let Self { keeper, signing, service, incoming, address } = self;
        tokio::spawn(keeper.run(stopped.receiver()));
        let until = stopped.clone();
        let bounds = service.bounds();
        let service = EnrolmentServer::new(service).max_decoding_message_size(MOST_MESSAGE);
        info!(listen = %address, "this controller issues certificates to nodes");
        tokio::spawn(async move {
            let server = wire::server().timeout(ANSWER).max_concurrent_streams(MOST_AT_ONCE);
            let mut server = server.concurrency_limit_per_connection(2).layer(bounds);
            let served = server.add_service(service).serve_with_incoming_shutdown(incoming, until.begun());
            if let Err(failed) = served.await {
                error!(error = %failed, "this controller no longer issues certificates to nodes; restart it");
            }
        });
        signing
    }
}

/// The certificate of a node, if it has one.
pub(crate) struct Certified {
    kept: Kept,
    holder: Holder,
}

/// Loads the certificate that the node was issued last. Blocks.
pub(crate) fn certified(os: &Os, node: &NodeId, state: &Path, metrics: TlsMetrics) -> (Credentials, Certified) {
    let (credentials, holder) = Credentials::held(Role::Node(node.clone()), metrics);
    let kept = Kept::new(os, state);
    Enrolling::take_kept(&kept, &holder);
    (credentials, Certified { kept, holder })
}

/// The node's side: requests a certificate whenever it needs one, until the process stops.
pub(crate) fn enrol(
    config: &EnrolConfig,
    os: &Os,
    node: &NodeId,
    Certified { kept, holder }: Certified,
    metrics: &Metrics,
    stopped: &Stop,
) {
    let metrics = metrics.tls().clone();
    let dial = Box::new(move |trust: Trust, address: SocketAddr| {
        let credentials = Credentials::trusting(trust, metrics.clone());
        serving::channel(&credentials, &Role::Controller, &address.to_string())
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
    tokio::spawn(enrolling.run(stopped.receiver()));
}
