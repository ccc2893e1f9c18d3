//! `holdfast node`: CSI Identity and Node on a socket, and this node's pools for the controllers.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use clap::Args;
use holdfast::config::{Flags, NodeConfig, Place, TlsMode};
use holdfast::csi::{ServeConfig, ServeController, ThisNode, serve};
use holdfast::home::remote::HomeService;
use holdfast::home::remote::proto::home_server::HomeServer;
use holdfast::home::{Home, LocalHome, PoolHealth};
use holdfast::os::{Os, Timestamp};
use holdfast::registry::{Controllers, DirectoryCache, Reporter};
use holdfast::route::{Directory, Entry, Heartbeat, Router};
use holdfast::telemetry::Metrics;
use holdfast::tls::{Credentials, Role};
use holdfast::types::PoolId;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::PoolArguments;
use super::auto::{self, Certified, EnrolArguments};
use super::daemon::{self, DaemonArguments, KubeletArguments, Stop, WireArguments};
use super::serving::{self, OpenPools, Registering};

/// The largest request of a controller, in bytes.
const MOST_REQUEST: usize = 4 << 20;

/// Flags of `holdfast node`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// The name of this node in the orchestrator. Default: NODE_NAME.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    #[command(flatten)]
    pools: PoolArguments,
    /// The controllers; a name with several addresses means all of them. Repeatable, or separated by commas.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    controllers: Vec<String>,
    /// The address that controllers connect to. Default: --listen.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// The name of the storage network of this node. Default: none.
    #[arg(long, value_name = "NAME")]
    fabric: Option<String>,
    /// The state directory: the known pools of all nodes, and the node's certificate. Default: /var/lib/holdfast.
    #[arg(long, value_name = "DIR")]
    state: Option<String>,
    #[command(flatten)]
    wire: WireArguments,
    #[command(flatten)]
    enrol: EnrolArguments,
    #[command(flatten)]
    kubelet: KubeletArguments,
    #[command(flatten)]
    daemon: DaemonArguments,
}

impl Arguments {
    fn config(&self) -> Result<NodeConfig> {
        let flags = Flags {
            node_name: self.node_name.clone(),
            controllers: self.controllers.clone(),
            advertise: self.advertise.clone(),
            fabric: self.fabric.clone(),
            state: self.state.clone(),
            ..self.pools.flags()
        };
        let flags = self.daemon.flags(self.kubelet.flags(self.enrol.flags(self.wire.flags(flags))));
        Ok(NodeConfig::resolve(&flags, &self.pools.file()?, |name| std::env::var(name).ok())?)
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
    let mut places = vec![Place::outside_pools("the state directory (--state)", &config.state)];
    if let TlsMode::Files(directory) = &config.tls {
        places.push(Place::outside_pools("the certificates of --tls", directory));
    }
    let checked = serving.clone();
    let check = |os: &Os| daemon::check_node(os, &checked, &pools, registration.as_ref(), &places);
    daemon::run(&serving, check, |os, stop, stopped| live(config, os, stop, stopped))
}

async fn live(config: NodeConfig, os: Os, stop: watch::Sender<()>, stopped: Stop) -> Result<ExitCode> {
    let metrics = Metrics::new(os.activity().clone());
    let served = Arc::new(OnceLock::<LocalHome>::new());
    let pools = serving::watch(&served);
    let shares = serving::shares(&os)?;
    let health = serving::health(config.serving.metrics, &metrics, &pools, shares).await?;
    let mut card = DirectoryCache::open(&os, &config.state)?;
    let (credentials, certified) = credentials(&config, &os, &metrics).await?;
    let (incoming, address) = serving::listen(&credentials, config.listen, shares).await?;
    let OpenPools { home, node, said } =
        serving::open(&os, config.pools.clone(), config.node.clone(), card.pools_of(&config.node)).await?;
    let node = Arc::new(node);
    remember(&mut card, &config, &home);
    let shared: Arc<dyn Home> = Arc::new(home.clone());
    let router = Arc::new(Router::new(Directory::standalone(Arc::clone(&shared), home.pools())));
    let _ = served.set(home.clone());
    serving::find_pools(&home, &node, &stopped);
    let service = HomeService::new(shared).counted(metrics.homes().clone());
    let (works, bounds) = (service.works(), service.bounds());
    daemon::wait_for_signals(stop)?;
    health.serve(&stopped);
    let until = stopped.clone();
    let serving_home = tokio::spawn(async move {
        let service = HomeServer::new(service).max_decoding_message_size(MOST_REQUEST);
        let served = serving::server(bounds).add_service(service).serve_with_incoming_shutdown(incoming, until.begun());
        if let Err(failed) = served.await {
            error!(error = %failed, "this node no longer answers controllers; restart the driver");
        }
    });
    if let (TlsMode::Auto(enrol), Some(certified)) = (&config.tls, certified) {
        auto::enrol(enrol, &os, &config.node, certified, &metrics, &stopped);
    }
    let reporter = reporter(&config, &os, &home, credentials, card)?;
    tokio::spawn(reporter.run(stopped.receiver()));
    pools.opened();
    info!(
        version = env!("CARGO_PKG_VERSION"),
        node = %config.node,
        endpoint = %config.serving.socket.display(),
        listen = %address,
        advertise = config.advertise,
        controllers = config.controllers.join(", "),
        pools = said,
        "holdfast node serves"
    );
    let serving = ServeConfig {
        socket: config.serving.socket,
        router,
        controller: ServeController::No,
        operators: None,
        node: Some(ThisNode { id: config.node, fabric: config.fabric, workflows: Arc::clone(&node) }),
        metrics,
        pools,
        shares,
    };
    let registering = Registering::start(config.registration, &serving.metrics, &stopped);
    let served = serve(serving, stopped.begun()).await;
    registering.end().await;
    let ended = daemon::ended(served);
    // Requests of controllers get the same time to end as those of kubelet; most have ended by now.
    works.ended(std::time::Duration::from_secs(1)).await;
    serving::keep_devices(node).await;
    serving_home.abort();
    ended
}

/// Stores which pools this node serves, so that a later start does not create a new pool where a disk is missing. A
/// report of a controller about a pool counts as newer than this.
fn remember(card: &mut DirectoryCache, config: &NodeConfig, home: &LocalHome) {
    let entry = |pool: PoolHealth| Entry {
        pool: pool.id,
        name: pool.name,
        node: config.node.clone(),
        endpoint: config.advertise.clone(),
        heard: Timestamp::from_nanos(1),
    };
    if let Err(error) = card.learn(home.health().into_iter().map(entry).collect()) {
        warn!(
            error = error.chain(),
            "the list of this node's pools is not stored; the node stores it when a controller reports it"
        );
    }
}

/// The credentials of this node. Local volumes never wait for them: unusable certificates are logged and checked again.
async fn credentials(config: &NodeConfig, os: &Os, metrics: &Metrics) -> Result<(Credentials, Option<Certified>)> {
    let (os, node, tls) = (os.clone(), config.node.clone(), metrics.tls().clone());
    let (mode, state) = (config.tls.clone(), config.state.clone());
    let look = move || match mode {
        TlsMode::Files(directory) => (Credentials::from_files_in_time(os, &directory, Role::Node(node), tls), None),
        TlsMode::Auto(_) => {
            let (credentials, certified) = auto::certified(&os, &node, &state, tls);
            (credentials, Some(certified))
        }
        TlsMode::InsecurePlainText => (Credentials::plain(tls), None),
    };
    tokio::task::spawn_blocking(look).await.context("load the certificates")
}

fn reporter(
    config: &NodeConfig,
    os: &Os,
    home: &LocalHome,
    credentials: Credentials,
    card: DirectoryCache,
) -> Result<Arc<Reporter>> {
    let boot_id = os.boot_id().context("read the machine's boot id")?;
    let about = Heartbeat {
        node: config.node.clone(),
        boot_id,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        endpoint: config.advertise.clone(),
        fabric: config.fabric.clone(),
        pools: Vec::new(),
        known: Vec::new(),
        left_out: 0,
    };
    let (looking, told) = (home.clone(), home.clone());
    let look = Arc::new(move || Heartbeat { pools: looking.health(), ..about.clone() });
    let said = Box::new(move |lost: &[PoolId]| {
        for pool in lost {
            if let Err(error) = told.quarantine(*pool) {
                error!(%pool, error = error.chain(), "cannot put a pool that was declared lost in quarantine");
            }
        }
    });
    let dial = Box::new(move |address: std::net::SocketAddr| {
        serving::channel(&credentials, &Role::Controller, &address.to_string())
    });
    Ok(Reporter::new(Controllers(config.controllers.clone()), config.rhythm.interval, dial, look, said, card))
}
