//! Pools, health and the wire of a daemon, put together.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use holdfast::config::{self, PoolConfig, TlsMode};
use holdfast::home::{Home, LocalHome};
use holdfast::kubelet::{Registrar, Registration};
use holdfast::node::Node;
use holdfast::os::Os;
use holdfast::pool::{self, Cloning, Pool};
use holdfast::route::Router;
use holdfast::telemetry::{Http, Metrics, PoolWatch};
use holdfast::tls::{CONNECTION_AGE, Credentials, Incoming, Role};
use holdfast::types::{Error, Kind, NodeId};
use holdfast::wire::{self, Bounds, Shares};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint, Server};
use tower::layer::util::{Identity, Stack};
use tracing::{error, warn};

use super::daemon::Stop;
use super::doctor;

/// How often a daemon that was dialled is asked whether it is still there, and how long it may take to say so: a machine
/// that lost its power says nothing.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(5);
/// The time to see that devices stay.
const KEEPING: Duration = Duration::from_secs(5);
/// The time to connect; the address is in the same network.
const DIAL: Duration = Duration::from_secs(5);

/// Pools, and the node on top of them.
pub(crate) struct Opened {
    pub(crate) home: LocalHome,
    pub(crate) node: Node,
    /// The pools in words.
    pub(crate) said: String,
}

/// Opens every pool and puts the node on top of them.
///
/// # Errors
/// The first pool that cannot be served.
pub(crate) async fn open(os: &Os, configs: Vec<PoolConfig>, id: NodeId) -> Result<Opened> {
    let os = os.clone();
    tokio::task::spawn_blocking(move || {
        let mut pools: Vec<(Arc<dyn Pool>, _)> = Vec::new();
        for config in configs {
            pools.push((pool::open(&os, &config.spec, &id)?, config.limits));
        }
        let home = LocalHome::open(os.clone(), id.clone(), pools.clone())?;
        let said = pools.iter().map(|(pool, _)| in_words(&**pool)).collect::<Result<Vec<_>>>()?.join(", ");
        let node = Node::new(os, id, Arc::new(home.clone()) as Arc<dyn Home>);
        Ok(Opened { home, node, said })
    })
    .await
    .context("open the pools")?
}

/// The last thing before the process ends: no device of a published block volume goes away with its descriptors. A disk that
/// does not answer must not keep the process.
pub(crate) async fn keep_devices(node: Arc<Node>) {
    let kept = tokio::task::spawn_blocking(move || node.keep_devices());
    if tokio::time::timeout(KEEPING, kept).await.is_err() {
        error!("whether raw block volumes keep their devices could not be seen in time");
    }
}

/// A pool for the line that says what is on.
fn in_words(pool: &dyn Pool) -> Result<String> {
    let (identity, room) = (pool.identity(), pool.room()?);
    let cloning = match pool.abilities().cloning {
        Cloning::Reflink { .. } => "reflink",
        Cloning::Copy => "copy",
    };
    let quarantined = pool.quarantined().map_or("", |_| ", in quarantine");
    Ok(format!(
        "{} ({} in {}, {cloning}, {} of {} free{quarantined})",
        identity.name, identity.kind, identity.place, room.available, room.total
    ))
}

/// What this node's own pools say of themselves: nothing until the router is there.
pub(crate) fn watch(served: &Arc<OnceLock<Arc<Router>>>, os: &Os, pools: &[PoolConfig]) -> PoolWatch {
    let (figures, extents) = (Arc::clone(served), Arc::clone(served));
    let (os, pools) = (os.clone(), pools.to_vec());
    PoolWatch::new(
        move || figures.get().map_or_else(|| Ok(Vec::new()), |router| router.figures()),
        move || extents.get().map_or_else(|| Ok(Vec::new()), |router| router.extents()),
        move || doctor::counted(&os, &pools),
    )
}

/// Metrics and health, bound, or nothing where none are wanted.
pub(crate) struct Health(Option<Http>);

/// Binds the address of metrics and health.
///
/// # Errors
/// An address that is taken.
pub(crate) async fn health(
    address: Option<SocketAddr>,
    metrics: &Arc<Metrics>,
    pools: &PoolWatch,
    shares: Shares,
) -> Result<Health> {
    Ok(Health(match address {
        Some(address) => Some(Http::bind(address, Arc::clone(metrics), pools.clone()).await?.within(shares)),
        None => None,
    }))
}

impl Health {
    /// Answers until the end begins.
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

/// The registration with kubelet, or nothing where none is wanted.
pub(crate) struct Registering(Option<JoinHandle<()>>);

impl Registering {
    /// Offers the driver as soon as CSI answers, until the end begins.
    pub(crate) fn start(registration: Option<Registration>, metrics: &Metrics, stopped: &Stop) -> Self {
        let registrar = registration.map(|registration| Registrar::new(registration, metrics.kubelet().clone()));
        Self(registrar.map(|registrar| tokio::spawn(registrar.run(stopped.clone().begun()))))
    }

    /// Its socket is gone when this completes, whatever ended CSI.
    pub(crate) async fn end(self) {
        if let Some(task) = self.0 {
            task.abort();
            let _ = task.await;
        }
    }
}

/// The certificates of a person: an operator's, or a controller's where the command runs beside one.
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

/// A port others reach this daemon at.
///
/// # Errors
/// An address that is taken.
pub(crate) async fn listen(
    credentials: &Credentials,
    address: SocketAddr,
    shares: Shares,
) -> Result<(Incoming, SocketAddr)> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("--listen {address} cannot be listened on; free the port or choose another"))?;
    let address = listener.local_addr().context("ask for the port")?;
    Ok((credentials.incoming(listener).within(shares), address))
}

/// A gRPC server for such a port.
pub(crate) fn server(bounds: Bounds) -> Server<Stack<Bounds, Identity>> {
    wire::server().max_connection_age(CONNECTION_AGE).layer(bounds)
}

/// What each port may take of the limit of open files, which is raised as far as it goes. Said when that is not enough.
pub(crate) fn shares(os: &Os) -> Result<Shares> {
    let limit = os.open_files().context("ask for the limit of open files")?;
    let shares = Shares::of(limit);
    if let Some(wanted) = shares.wanted() {
        warn!(
            limit,
            "the limit of open files is low, so that fewer connections are taken: raise it to {wanted} or more (LimitNOFILE of a service, ulimit -n)"
        );
    }
    Ok(shares)
}

/// A way to a daemon of this machine through its Unix socket, `unix:///PATH`.
///
/// # Errors
/// A path that is none.
pub(crate) fn socket_channel(address: &str) -> Result<Channel> {
    let path = config::socket_path(address)?;
    let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()));
    Ok(endpoint.with_context(|| format!("{address:?} cannot be dialled"))?.connect_timeout(DIAL).connect_lazy())
}

/// A way to another daemon, which must be of this role. Connects when it is needed, and again when it broke.
///
/// # Errors
/// An address that is none.
pub(crate) fn channel(credentials: &Credentials, role: &Role, address: &str) -> holdfast::types::Result<Channel> {
    let connector = credentials.connector(role);
    let wrong = || Error::new(Kind::InvalidArgument, format!("{address:?} cannot be dialled; it has to be HOST:PORT"));
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| wrong().because(error))?
        .connect_timeout(DIAL)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER)
        .keep_alive_while_idle(true);
    Ok(endpoint.connect_with_connector_lazy(connector))
}
