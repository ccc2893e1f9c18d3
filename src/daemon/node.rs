//! `holdfast node`: CSI Identity and Node on a socket, and this node's pools for the controllers.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::{error, info, warn};

use super::certificates::{self, Certified};
use super::parts::{Base, dial, shares};
use super::pools::{NodePools, Opening, Others};
use super::{Stop, blocking};
use crate::config::{NodeConfig, TlsMode};
use crate::home::remote::HomeService;
use crate::home::{LocalHome, PoolHealth};
use crate::os::{Os, Timestamp};
use crate::registry::{Controllers, DeclaredLost, DirectoryCache, Reporter};
use crate::route::{Entry, Heartbeat};
use crate::telemetry::Metrics;
use crate::tls::{Credentials, Incoming, Role};
use crate::types::{OsContext, Result};
use crate::wire;

/// How long the requests of controllers may take to end after CSI has ended: they had the same time as those of
/// kubelet, and most have ended by now.
const GRACE: Duration = Duration::from_secs(1);

/// A node whose pools are open and whose port is bound.
pub struct NodeDaemon {
    config: NodeConfig,
    os: Os,
    base: Base,
    pools: NodePools,
    incoming: Incoming,
    address: SocketAddr,
    certified: Option<Certified>,
    reporter: Arc<Reporter>,
}

impl fmt::Debug for NodeDaemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeDaemon").field("config", &self.config).finish_non_exhaustive()
    }
}

impl NodeDaemon {
    /// Reads the certificates and the directory of pools, binds the port, and opens the pools.
    ///
    /// # Errors
    /// An error that prevents the start.
    pub async fn open(mut config: NodeConfig, os: Os) -> Result<Self> {
        let (metrics, opening) = (Metrics::new(os.activity().clone()), Opening::default());
        let base = Base::bind(&config.serving, metrics, opening.watch(), shares(&os)?).await?;
        let card = Arc::new(Mutex::new(DirectoryCache::open(&os, &config.state)?));
        let (credentials, certified) = credentials(&config, &os, &base.metrics).await?;
        let (incoming, address) = credentials.listen(config.listen, base.shares).await?;
        let (configs, before) = (std::mem::take(&mut config.pools), known(&card).pools_of(&config.node));
        let others = Arc::clone(&card);
        let others = Others {
            elsewhere: Box::new(move |pool| known(&others).location_of(pool)),
            network: config
                .fabric
                .take()
                .map(|fabric| (fabric, dial(credentials.clone(), base.metrics.homes().clone()))),
            metrics: base.metrics.network().clone(),
        };
        let pools = NodePools::open(&os, &opening, configs, config.node.clone(), before, others).await?;
        remember(&mut known(&card), &config, &pools.home);
        let reporter = reporter(&config, &os, &pools, credentials, card)?;
        Ok(Self { config, os, base, pools, incoming, address, certified, reporter })
    }

    /// Serves until `stop`, and ends what is running.
    ///
    /// # Errors
    /// Those of [`crate::csi::serve`].
    pub async fn serve(self, stop: Stop) -> Result<()> {
        let Self { config, os, mut base, pools, incoming, address, certified, reporter } = self;
        pools.find(&stop);
        pools.watch_connections(&stop);
        pools.watch_lost_connections(&stop);
        base.serve_health(&stop);
        let service = HomeService::new(Arc::new(pools.home.clone())).counted(base.metrics.homes().clone());
        let (works, mut server) = (service.works(), wire::server_of_daemons(service.bounds()));
        let serving_home = tokio::spawn(wire::serve(
            server.add_service(service.into_server()),
            incoming,
            stop.clone().begun(),
            "this node no longer answers controllers; restart the driver",
        ));
        if let (TlsMode::Auto(enrol), Some(certified)) = (&config.tls, certified) {
            certificates::enrol(enrol, &os, &config.node, certified, &base.metrics, &stop);
        }
        tokio::spawn(reporter.run(stop.receiver()));
        base.pools.opened();
        info!(
            version = env!("CARGO_PKG_VERSION"),
            node = %config.node,
            endpoint = %config.serving.socket.display(),
            listen = %address,
            advertise = config.advertise,
            controllers = config.controllers.join(", "),
            pools = pools.described,
            "holdfast node serves"
        );
        let served = pools.serve(base, None, config.registration, &stop).await;
        works.ended(GRACE).await;
        pools.keep_devices().await;
        serving_home.abort();
        served
    }
}

/// The directory of pools.
fn known(card: &Mutex<DirectoryCache>) -> MutexGuard<'_, DirectoryCache> {
    card.lock().unwrap_or_else(PoisonError::into_inner)
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
            let (credentials, certified) = certificates::certified(&os, &node, &state, tls);
            (credentials, Some(certified))
        }
        TlsMode::InsecurePlainText => (Credentials::plain(tls), None),
    };
    blocking("load the certificates", look).await
}

fn reporter(
    config: &NodeConfig,
    os: &Os,
    pools: &NodePools,
    credentials: Credentials,
    card: Arc<Mutex<DirectoryCache>>,
) -> Result<Arc<Reporter>> {
    let boot_id = os.boot_id().at(|| "read the machine's boot id")?;
    let about = Heartbeat {
        node: config.node.clone(),
        boot_id,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        endpoint: config.advertise.clone(),
        fabric: pools.fabric.clone(),
        pools: Vec::new(),
        known: Vec::new(),
        left_out: 0,
        connections: None,
    };
    let (looking, told, node) = (pools.home.clone(), pools.home.clone(), Arc::clone(&pools.node));
    let ending = Arc::clone(&node);
    let look = Arc::new(move || {
        let connections = node.connections().unwrap_or_else(|error| {
            warn!(error = error.chain(), "the controllers are not told of the connections to other nodes");
            None
        });
        Heartbeat { pools: looking.health(), connections, ..about.clone() }
    });
    let said = Box::new(move |lost: &DeclaredLost| {
        if !lost.elsewhere.is_empty()
            && let Err(error) = ending.end_connections_to_lost(&lost.elsewhere)
        {
            error!(error = error.chain(), "cannot end the connections to pools that were declared lost");
        }
        for pool in &lost.here {
            if let Err(error) = told.quarantine(*pool) {
                error!(%pool, error = error.chain(), "cannot put a pool that was declared lost in quarantine");
            }
        }
    });
    let dial = Box::new(move |address: SocketAddr| credentials.channel(&Role::Controller, &address.to_string()));
    Ok(Reporter::new(Controllers(config.controllers.clone()), config.rhythm.interval, dial, look, said, card))
}
