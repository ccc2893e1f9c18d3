//! `holdfast controller`: CSI Identity and Controller on a socket, and the port for the heartbeats of nodes. It is
//! stateless; several can serve at the same time.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::Args;
use holdfast::config::{ControllerConfig, Flags, TlsMode};
use holdfast::csi::{ServeConfig, ServeController, serve};
use holdfast::home::Home;
use holdfast::home::remote::RemoteHome;
use holdfast::os::Os;
use holdfast::registry::proto::registry_server::RegistryServer;
use holdfast::registry::{MOST_HEARTBEAT, RegistryService};
use holdfast::route::{Dial, Directory, Router};
use holdfast::telemetry::{HomeMetrics, Metrics, PoolWatch};
use holdfast::tls::{Credentials, Role};
use holdfast::types::NodeId;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{error, info};

use super::PoolArguments;
use super::auto::{Certifying, SigningArguments};
use super::daemon::{self, DaemonArguments, Stop, WireArguments};
use super::serving;

/// Flags of `holdfast controller`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// The configuration file, YAML.
    #[arg(long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
    #[command(flatten)]
    wire: WireArguments,
    #[command(flatten)]
    signing: SigningArguments,
    #[command(flatten)]
    daemon: DaemonArguments,
}

impl Arguments {
    fn config(&self) -> Result<ControllerConfig> {
        let flags = self.daemon.flags(self.signing.flags(self.wire.flags(Flags::default())));
        let file = PoolArguments::of_file(self.config.clone()).file()?;
        Ok(ControllerConfig::resolve(&flags, &file, |name| std::env::var(name).ok())?)
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// An error that prevents the start. A later error is logged, and the exit code is 1.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let config = arguments.config()?;
    let serving = config.serving.clone();
    daemon::run(&serving, |_os| Ok(()), |os, stop, stopped| live(config, os, stop, stopped))
}

async fn live(config: ControllerConfig, os: Os, stop: watch::Sender<()>, stopped: Stop) -> Result<ExitCode> {
    let metrics = Metrics::new(os.activity().clone());
    let (credentials, certifying) = match &config.tls {
        TlsMode::Files(directory) => {
            let tls = metrics.tls().clone();
            (Credentials::from_files(os.clone(), directory, Role::Controller, tls)?, None)
        }
        TlsMode::Auto(auto) => {
            let (credentials, holder) = Credentials::held(Role::Controller, metrics.tls().clone());
            let certifying = Certifying::prepare(auto, &credentials, holder, &metrics, serving::shares(&os)?).await?;
            (credentials, Some(certifying))
        }
        TlsMode::InsecurePlainText => (Credentials::plain(metrics.tls().clone()), None),
    };
    let shares = serving::shares(&os)?;
    let dial = dial(credentials.clone(), metrics.homes().clone());
    let router = Arc::new(Router::new(Directory::of_controller(dial, config.rhythm, config.lost.clone())));
    let watched = Arc::clone(&router);
    metrics.homes().watch(move || watched.directory().homes());
    let heard = Arc::clone(&router);
    let pools = PoolWatch::new(move || heard.figures(), || Ok(Vec::new()), || Ok(Vec::new()));
    let health = serving::health(config.serving.metrics, &metrics, &pools, shares).await?;
    let (incoming, address) = serving::listen(&credentials, config.listen, shares).await?;
    let registry = RegistryService::new(Arc::clone(&router)).counted(metrics.homes().clone());
    let bounds = registry.bounds();
    let registry = RegistryServer::new(registry).max_decoding_message_size(MOST_HEARTBEAT);
    let operators = RegistryService::of_private_socket(Arc::clone(&router)).counted(metrics.homes().clone());
    daemon::wait_for_signals(stop)?;
    health.serve(&stopped);
    let until = stopped.clone();
    tokio::spawn(async move {
        let served =
            serving::server(bounds).add_service(registry).serve_with_incoming_shutdown(incoming, until.begun());
        if let Err(failed) = served.await {
            error!(error = %failed, "this controller no longer receives heartbeats; restart it");
        }
    });
    let signing = certifying.map(|certifying| certifying.begin(&stopped));
    let (ready, settling) = (pools.clone(), config.rhythm.settling());
    tokio::spawn(async move {
        // No heartbeat can arrive before there is a certificate.
        if let Some(signing) = signing {
            signing.there().await;
        }
        tokio::time::sleep(settling).await;
        ready.opened();
    });
    info!(
        version = env!("CARGO_PKG_VERSION"),
        endpoint = %config.serving.socket.display(),
        listen = %address,
        lost = config.lost.len(),
        "holdfast controller serves; it is ready after two heartbeats"
    );
    let serving = ServeConfig {
        socket: config.serving.socket,
        router,
        controller: ServeController::Yes,
        operators: Some(operators),
        node: None,
        metrics,
        pools,
        shares,
    };
    daemon::ended(serve(serving, stopped.begun()).await)
}

/// Connects to nodes: the certificate of the node that answers must be for the intended node.
fn dial(credentials: Credentials, metrics: HomeMetrics) -> Dial {
    let runtime = Handle::current();
    Box::new(move |node: &NodeId, endpoint: &str| {
        let _in_runtime = runtime.enter();
        let channel = serving::channel(&credentials, &Role::Node(node.clone()), endpoint)?;
        let home = RemoteHome::new(node.clone(), endpoint, channel, runtime.clone());
        Ok(Arc::new(home.counted(metrics.clone())) as Arc<dyn Home>)
    })
}
