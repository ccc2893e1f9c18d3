//! `holdfast standalone`: the whole driver of one node in one process on one socket.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use anyhow::Result;
use clap::Args;
use holdfast::config::{Config, Flags};
use holdfast::csi::{ServeConfig, ServeController, ThisNode, serve};
use holdfast::home::{Home, LocalHome};
use holdfast::os::Os;
use holdfast::route::{Directory, NO_FABRIC, Router};
use holdfast::telemetry::Metrics;
use tokio::sync::watch::Sender;
use tracing::info;

use super::PoolArguments;
use super::daemon::{self, DaemonArguments, KubeletArguments, Stop};
use super::serving::{OpenPools, Registering, find_pools, health, keep_devices, open, shares, watch};

/// Flags of `holdfast standalone`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// The name of this node in the orchestrator. Default: NODE_NAME.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    #[command(flatten)]
    pools: PoolArguments,
    #[command(flatten)]
    kubelet: KubeletArguments,
    #[command(flatten)]
    daemon: DaemonArguments,
}

impl Arguments {
    fn config(&self) -> Result<Config> {
        let flags = Flags { node_name: self.node_name.clone(), ..self.pools.flags() };
        let flags = self.daemon.flags(self.kubelet.flags(flags));
        Ok(Config::resolve(&flags, &self.pools.file()?, |name| std::env::var(name).ok())?)
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// An error that prevents the start. A later error is logged, and the exit code is 1.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let config = arguments.config()?;
    let serving = config.serving.clone();
    let (pools, registration) = (config.pools.clone(), config.registration.clone());
    let checked = serving.clone();
    let check = |os: &Os| daemon::check_node(os, &checked, &pools, registration.as_ref(), &[]);
    daemon::run(&serving, check, |os, stop, stopped| live(config, os, stop, stopped))
}

async fn live(config: Config, os: Os, stop: Sender<()>, stopped: Stop) -> Result<ExitCode> {
    let metrics = Metrics::new(os.activity().clone());
    let served = Arc::new(OnceLock::<LocalHome>::new());
    let pools = watch(&served);
    // All checks that can fail come before the first line of the log.
    let shares = shares(&os)?;
    let health = health(config.serving.metrics, &metrics, &pools, shares).await?;
    let id = config.node;
    let OpenPools { home, node, said } = open(&os, config.pools, id.clone(), Vec::new()).await?;
    let node = Arc::new(node);
    let shared: Arc<dyn Home> = Arc::new(home.clone());
    let router = Arc::new(Router::new(Directory::standalone(shared, home.pools())));
    find_pools(&home, &node, &stopped);
    let _ = served.set(home);
    pools.opened();
    daemon::wait_for_signals(stop)?;
    health.serve(&stopped);
    info!(
        version = env!("CARGO_PKG_VERSION"),
        node = %id,
        endpoint = %config.serving.socket.display(),
        pools = said,
        metrics = config.serving.metrics.map(|address| address.to_string()),
        "holdfast serves"
    );
    let serving = ServeConfig {
        socket: config.serving.socket,
        router,
        controller: ServeController::Yes,
        operators: None,
        node: Some(ThisNode { id, fabric: NO_FABRIC.to_owned(), workflows: Arc::clone(&node) }),
        metrics,
        pools,
        shares,
    };
    let registering = Registering::start(config.registration, &serving.metrics, &stopped);
    let served = serve(serving, stopped.begun()).await;
    registering.end().await;
    keep_devices(node).await;
    daemon::ended(served)
}
