//! Assembles the pools, health and network connections of a daemon.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use holdfast::config::{self, PoolConfig, TlsMode};
use holdfast::home::{Changed, ConfiguredPool, FindingKind, Health, Home, LocalHome, PoolCondition, unseen_by_kubelet};
use holdfast::kubelet::{Registrar, Registration};
use holdfast::node::Node;
use holdfast::os::Os;
use holdfast::pool;
use holdfast::route::{Directory, Router, figures_of};
use holdfast::telemetry::{Http, Metrics, PoolFigures, PoolFindings, PoolWatch};
use holdfast::tls::{CONNECTION_AGE, Credentials, Incoming, Role};
use holdfast::types::{Error, Kind, NodeId, PoolId, PoolName};
use holdfast::wire::{self, Bounds, Shares};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint, Server};
use tower::layer::util::{Identity, Stack};
use tracing::{error, warn};

use super::daemon::Stop;

/// The interval of keepalive pings to another daemon, and the time limit of their answer: a machine that lost power
/// does not answer.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(5);
/// The time limit of [`keep_devices`].
const KEEPING: Duration = Duration::from_secs(5);
/// The time limit to connect; the address is in the same network.
const DIAL: Duration = Duration::from_secs(5);

/// The time until the next search for pools after one that panicked.
const FIND_AGAIN: Duration = Duration::from_secs(10);

/// Pools, and the node on top of them.
pub(crate) struct OpenPools {
    pub(crate) home: LocalHome,
    pub(crate) node: Node,
    /// A description of the pools.
    pub(crate) said: String,
}

/// Opens every pool that can be opened, and builds the node on them. `before` are the pools that this node had before.
///
/// # Errors
/// That of the first pool, if no pool can be opened and waiting would not help.
pub(crate) async fn open(
    os: &Os,
    configs: Vec<PoolConfig>,
    id: NodeId,
    before: Vec<(PoolName, PoolId)>,
) -> Result<OpenPools> {
    let os = os.clone();
    tokio::task::spawn_blocking(move || {
        let pools = configs.into_iter().map(|config| {
            let known = before.iter().find(|(name, _)| *name == config.spec.name).map(|(_, pool)| *pool);
            let (os, id, spec) = (os.clone(), id.clone(), config.spec.clone());
            ConfiguredPool {
                name: config.spec.name.clone(),
                place: config.spec.place(),
                known,
                limits: config.limits,
                open: Arc::new(move |first| pool::open_or(&os, &spec, &id, first)),
            }
        });
        let home = LocalHome::start(os.clone(), id.clone(), pools.collect())?;
        let said = home.described().join(", ");
        match unseen_by_kubelet(&os) {
            Ok(None) => {}
            Ok(Some(why)) => error!("no volume can be staged or published: {why}"),
            Err(error) => warn!("{}", error.chain()),
        }
        let node = Node::new(os, id, Arc::new(home.clone()) as Arc<dyn Home>);
        Ok(OpenPools { home, node, said })
    })
    .await
    .context("open the pools")?
}

/// Searches for pools that are not served, until the process stops, and recovers the devices of each one found.
pub(crate) fn find_pools(home: &LocalHome, node: &Arc<Node>, stopped: &Stop) {
    let (home, node, mut stop) = (home.clone(), Arc::clone(node), stopped.receiver());
    tokio::spawn(async move {
        loop {
            let (looking, node) = (home.clone(), Arc::clone(&node));
            let look = move || {
                let (pause, changed) = looking.find_pools();
                if changed == Changed::Yes {
                    node.recover_devices();
                }
                pause
            };
            let found = tokio::task::spawn_blocking(look).await;
            tokio::select! {
                () = tokio::time::sleep(found.unwrap_or(FIND_AGAIN)) => {}
                _ = stop.changed() => return,
            }
        }
    });
}

/// The last step before the process exits: published raw block volumes keep their devices when the descriptors close. A
/// disk that does not answer must not delay the exit.
pub(crate) async fn keep_devices(node: Arc<Node>) {
    let kept = tokio::task::spawn_blocking(move || node.keep_devices());
    if tokio::time::timeout(KEEPING, kept).await.is_err() {
        error!(
            "could not verify within {} s that raw block volumes keep their devices; run holdfast doctor",
            KEEPING.as_secs()
        );
    }
}

/// The figures, extents and findings of this node's own pools; empty until they are open.
pub(crate) fn watch(served: &Arc<OnceLock<LocalHome>>) -> PoolWatch {
    let (figures, extents, found) = (Arc::clone(served), Arc::clone(served), Arc::clone(served));
    PoolWatch::new(
        move || Ok(figures.get().map(figures_of_pools).unwrap_or_default()),
        move || {
            let router = |home: &LocalHome| Router::new(Directory::standalone(Arc::new(home.clone()), home.pools()));
            extents.get().map_or_else(|| Ok(Vec::new()), |home| router(home).extents())
        },
        move || found.get().map_or_else(|| Ok(Vec::new()), counted),
    )
}

/// The number of findings of each kind in each pool.
fn counted(home: &LocalHome) -> holdfast::types::Result<Vec<PoolFindings>> {
    let found = home.examine()?;
    let of = |pool: &str, kind: FindingKind| {
        let count = found.iter().filter(|finding| finding.pool == pool && finding.kind == kind).count();
        PoolFindings { pool: pool.to_owned(), kind: kind.word(), findings: u64::try_from(count).unwrap_or(u64::MAX) }
    };
    let names = home.names().map(PoolName::as_str);
    Ok(names.flat_map(|pool| FindingKind::OF_A_NODE.into_iter().map(move |kind| of(pool, kind))).collect())
}

/// The figures of the pools that are served, and why the others are not.
fn figures_of_pools(home: &LocalHome) -> Vec<PoolFigures> {
    let figures = |condition: PoolCondition| {
        let unserved = |outage| PoolFigures {
            pool: condition.name.to_string(),
            id: condition.id.map(|id| id.to_string()).unwrap_or_default(),
            node: home.node().to_string(),
            outage: Some(outage),
            ..PoolFigures::default()
        };
        match condition.health {
            Health::Served(report) => Some(figures_of(home.node(), *report)),
            Health::Failing(reason) => Some(unserved(reason)),
            // Not used until an operator readmits it: that is not an outage.
            Health::Quarantined(_) => None,
        }
    };
    home.conditions().into_iter().filter_map(figures).collect()
}

/// The bound listener of metrics and health, or nothing if none is configured.
pub(crate) struct HealthServer(Option<Http>);

/// Binds the address of metrics and health.
///
/// # Errors
/// The address is in use.
pub(crate) async fn health(
    address: Option<SocketAddr>,
    metrics: &Arc<Metrics>,
    pools: &PoolWatch,
    shares: Shares,
) -> Result<HealthServer> {
    Ok(HealthServer(match address {
        Some(address) => Some(Http::bind(address, Arc::clone(metrics), pools.clone()).await?.within(shares)),
        None => None,
    }))
}

impl HealthServer {
    /// Answers until the process stops.
    pub(crate) fn serve(self, stopped: &Stop) {
        let Some(http) = self.0 else { return };
        let until = stopped.clone();
        tokio::spawn(async move {
            if let Err(error) = http.serve(until.begun()).await {
                error!("{}", error.chain());
            }
        });
    }
}

/// The registration with kubelet, or nothing if none is configured.
pub(crate) struct Registering(Option<JoinHandle<()>>);

impl Registering {
    /// Registers the driver as soon as CSI answers, until the process stops.
    pub(crate) fn start(registration: Option<Registration>, metrics: &Metrics, stopped: &Stop) -> Self {
        let registrar = registration.map(|registration| Registrar::new(registration, metrics.kubelet().clone()));
        Self(registrar.map(|registrar| tokio::spawn(registrar.run(stopped.clone().begun()))))
    }

    /// Its socket is removed when this completes, whatever ended CSI.
    pub(crate) async fn end(self) {
        if let Some(task) = self.0 {
            task.abort();
            let _ = task.await;
        }
    }
}

/// The certificates for a command: those of an operator, or of a controller if the command runs beside one.
///
/// # Errors
/// Files that are missing or wrong.
pub(crate) fn operator_credentials(os: &Os, mode: &TlsMode<Infallible>, metrics: &Metrics) -> Result<Credentials> {
    let metrics = metrics.tls().clone();
    match mode {
        TlsMode::Files(directory) => {
            let of = |role| Credentials::from_files(os.clone(), directory, role, metrics.clone());
            of(Role::Operator).or_else(|error| of(Role::Controller).map_err(|_| error.into()))
        }
        TlsMode::Auto(never) => match *never {},
        TlsMode::InsecurePlainText => Ok(Credentials::plain(metrics)),
    }
}

/// The listener for connections of other daemons.
///
/// # Errors
/// The address is in use.
pub(crate) async fn listen(
    credentials: &Credentials,
    address: SocketAddr,
    shares: Shares,
) -> Result<(Incoming, SocketAddr)> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on --listen {address}; free the port or choose another"))?;
    let address = listener.local_addr().context("read the address of --listen")?;
    Ok((credentials.incoming(listener).within(shares), address))
}

/// A gRPC server for such a port.
pub(crate) fn server(bounds: Bounds) -> Server<Stack<Bounds, Identity>> {
    wire::server().max_connection_age(CONNECTION_AGE).layer(bounds)
}

/// The share of each port in the limit of open files, which was raised as far as possible. Warns if it is too low.
pub(crate) fn shares(os: &Os) -> Result<Shares> {
    let limit = os.open_files().context("read the limit of open files")?;
    let shares = Shares::of(limit);
    if let Some(wanted) = shares.wanted() {
        warn!(
            limit,
            "the limit of open files is low, so the process accepts fewer connections; raise it to {wanted} or more (LimitNOFILE= of systemd, ulimit -n)"
        );
    }
    Ok(shares)
}

/// A channel to a daemon of this machine through its Unix socket, `unix:///PATH`.
///
/// # Errors
/// The path is invalid.
pub(crate) fn socket_channel(address: &str) -> Result<Channel> {
    let path = config::socket_path(address)?;
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()));
    Ok(endpoint
        .with_context(|| format!("{address:?} is not a valid socket address; use unix:///PATH"))?
        .connect_timeout(DIAL)
        .connect_lazy())
}

/// A channel to another daemon, which must have this role. Connects when needed, and reconnects after a failure.
///
/// # Errors
/// The address is invalid.
pub(crate) fn channel(credentials: &Credentials, role: &Role, address: &str) -> holdfast::types::Result<Channel> {
    let connector = credentials.connector(role);
    let wrong = || Error::new(Kind::InvalidArgument, format!("{address:?} is not a valid address; use HOST:PORT"));
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| wrong().because(error))?
        .connect_timeout(DIAL)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(connector))
}
