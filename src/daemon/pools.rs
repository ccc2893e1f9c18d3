//! The pools of a node, their figures for metrics, and the workflows on them: what `standalone` and `node` have in common.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::Semaphore;
use tonic::service::Routes;
use tracing::{error, info, warn};

use super::parts::{Base, Registering};
use super::{Stop, blocking, fabric};
use crate::attach::NvmeTcp;
use crate::config::{FabricConfig, PoolConfig};
use crate::csi::{ServeConfig, ThisNode, serve};
use crate::export::{Export, Nvmet, Shortcoming, Support, unfit_settings};
use crate::fs::tools;
use crate::home::{
    Changed, ConfiguredPool, Fabric, FindingKind, Health, Home, LocalHome, PoolCondition, unseen_by_kubelet,
};
use crate::kubelet::Registration;
use crate::node::{ASKING, Elsewhere, LOOKING, Node, NodeHomes};
use crate::os::{NvmeSupport, Os};
use crate::pool;
use crate::registry::RegistryService;
use crate::route::{Dial, Directory, NO_FABRIC, Router, figures_of};
use crate::telemetry::{NetworkMetrics, PoolFigures, PoolFindings, PoolWatch};
use crate::types::{NodeId, PoolId, PoolName, Result, SubsystemNqn};

/// The time limit of [`NodePools::keep_devices`].
const KEEPING: Duration = Duration::from_secs(5);
/// The time until the next search for pools after one that panicked.
const FIND_AGAIN: Duration = Duration::from_secs(10);

/// The home of pools that are being opened.
#[derive(Clone, Default)]
pub(super) struct Opening(Arc<OnceLock<LocalHome>>);

impl Opening {
    /// The figures, extents and findings of the pools; empty until they are open.
    pub(super) fn watch(&self) -> PoolWatch {
        let (figures, extents, found) = (self.clone(), self.clone(), self.clone());
        PoolWatch::new(
            move || figures.of(|home| Ok(figures_of_pools(home))),
            move || extents.of(|home| router(home).extents()),
            move || found.of(counted),
        )
    }

    fn of<T>(&self, of: impl FnOnce(&LocalHome) -> Result<Vec<T>>) -> Result<Vec<T>> {
        self.0.get().map_or_else(|| Ok(Vec::new()), of)
    }
}

/// How many connections are made again at a time.
const RECONNECTING: usize = 32;

/// A router to the pools of this node alone.
fn router(home: &LocalHome) -> Router {
    Router::new(Directory::standalone(Arc::new(home.clone()), home.pools()))
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

/// The number of findings of each kind in each pool.
fn counted(home: &LocalHome) -> Result<Vec<PoolFindings>> {
    let found = home.examine()?;
    let of = |pool: &str, kind: FindingKind| {
        let count = found.iter().filter(|finding| finding.pool == pool && finding.kind == kind).count();
        PoolFindings { pool: pool.to_owned(), kind: kind.word(), findings: u64::try_from(count).unwrap_or(u64::MAX) }
    };
    let names = home.names().map(PoolName::as_str);
    Ok(names.flat_map(|pool| FindingKind::OF_A_NODE.into_iter().map(move |kind| of(pool, kind))).collect())
}

/// From now on each scrape has the exports of this node and its connections to others.
fn watch(metrics: &NetworkMetrics, home: &LocalHome, node: &Arc<Node>, fabric: &str) {
    let (attached, exports) = (home.clone(), home.clone());
    metrics.watch_attachments(move || attached.attachment_figures());
    metrics.watch_exports(move || exports.export_figures());
    if fabric != NO_FABRIC {
        let node = Arc::clone(node);
        metrics.watch_connections(move || node.connection_figures());
    }
}

/// Logs the tools that volumes need, with their versions, and each missing one as a warning: a node without the tools of
/// one filesystem serves volumes of the other.
fn report_tools(os: Os) {
    // On a thread of its own: a tool that does not answer delays no start.
    let started = thread::Builder::new().name("tools".to_owned()).spawn(move || look_for_tools(&os));
    if let Err(error) = started {
        warn!(%error, "cannot look for the tools of filesystems");
    }
}

fn look_for_tools(os: &Os) {
    for missing in tools::missing() {
        warn!("{missing}");
    }
    let (found, failed): (Vec<_>, Vec<_>) = tools::versions(os).into_iter().partition(Result::is_ok);
    for error in failed.into_iter().filter_map(Result::err) {
        warn!("{}", error.chain());
    }
    info!(tools = found.into_iter().flatten().collect::<Vec<_>>().join(", "), "found the tools of filesystems");
}

/// Open pools, and the node on top of them.
pub(super) struct NodePools {
    pub(super) id: NodeId,
    pub(super) home: LocalHome,
    pub(super) node: Arc<Node>,
    pub(super) router: Arc<Router>,
    /// A description of the pools.
    pub(super) described: String,
    /// The storage network on which this node can use volumes of other nodes; [`NO_FABRIC`] without one.
    pub(super) fabric: String,
}

/// What a node knows of the pools of other nodes, and how it uses their volumes.
pub(super) struct Others {
    pub(super) elsewhere: Elsewhere,
    /// The storage network, where one is configured.
    pub(super) network: Option<(FabricConfig, Dial)>,
    pub(super) metrics: NetworkMetrics,
}

/// What this node's kernel can do on the configured fabric.
#[derive(Default)]
struct Network {
    exports: Option<Fabric>,
    connections: Option<(NvmeTcp, Dial, String)>,
}

impl Network {
    /// Asks the kernel. What it cannot do is logged, and the node works without it.
    ///
    /// # Errors
    /// Those of [`fabric::address`].
    fn look(os: &Os, config: FabricConfig, dial: Dial) -> Result<Self> {
        let FabricConfig { name, address, ports } = config;
        let address = fabric::address(os, &address)?;
        match unfit_settings(os) {
            Ok(found) => {
                for Shortcoming { what, remedy, .. } in found {
                    warn!(fabric = name, "{what}; {remedy}");
                }
            }
            Err(error) => warn!(fabric = name, error = error.chain(), "cannot check the settings of this node"),
        }
        if let Some(why) = fabric::unusable(address, &ports) {
            error!(fabric = name, "{why}");
        }
        let export = Nvmet::new(os.clone(), ports.clone());
        let exports = match export.support() {
            Ok(Support::Yes(dhchap)) => {
                info!(fabric = name, %address, ports = format!("{}-{}", ports.start(), ports.end()), authentication = ?dhchap, "this node exports volumes of access network over NVMe/TCP");
                Some(Fabric::new(Arc::new(export), address, ports))
            }
            Ok(Support::No(why)) => {
                error!(
                    fabric = name,
                    "this node exports no volumes, so no volume of access network is created on it: {why}; then restart the driver"
                );
                None
            }
            Err(error) => {
                error!(fabric = name, error = error.chain(), "this node exports no volumes");
                None
            }
        };
        let connections = NvmeTcp::new(os.clone());
        let connections = match connections.support() {
            Ok(NvmeSupport::Yes) => Some((connections, dial, name)),
            Ok(NvmeSupport::No(why)) => {
                error!(
                    fabric = name,
                    "this node cannot use volumes of other nodes, and is not in the fabric: {why}; then restart the driver"
                );
                None
            }
            Err(error) => {
                error!(fabric = name, error = error.chain(), "this node cannot use volumes of other nodes");
                None
            }
        };
        Ok(Self { exports, connections })
    }
}

impl NodePools {
    /// Opens every pool that can be opened, and builds the node on them. `before` are the pools that this node had
    /// before; `elsewhere` knows those of other nodes.
    ///
    /// # Errors
    /// That of the first pool, if no pool can be opened and waiting would not help; those of [`fabric::address`].
    pub(super) async fn open(
        os: &Os,
        opening: &Opening,
        configs: Vec<PoolConfig>,
        id: NodeId,
        before: Vec<(PoolName, PoolId)>,
        others: Others,
    ) -> Result<Self> {
        let (os, opening) = (os.clone(), opening.clone());
        let open = move || {
            let pools = configs.into_iter().map(|PoolConfig { spec, limits }| {
                let known = before.iter().find(|(name, _)| *name == spec.name).map(|(_, pool)| *pool);
                let (os, id, name, place) = (os.clone(), id.clone(), spec.name.clone(), spec.place());
                let open = Arc::new(move |first| pool::open_or(&os, &spec, &id, first));
                ConfiguredPool { name, place, known, limits, open }
            });
            let Others { elsewhere, network, metrics } = others;
            let network =
                network.map(|(config, dial)| Network::look(&os, config, dial)).transpose()?.unwrap_or_default();
            let home = LocalHome::start(os.clone(), id.clone(), pools.collect(), network.exports)?;
            let described = home.described().join(", ");
            match unseen_by_kubelet(&os) {
                Ok(None) => {}
                Ok(Some(why)) => error!("no volume can be staged or published: {why}"),
                Err(error) => warn!("{}", error.chain()),
            }
            report_tools(os.clone());
            let own: Arc<dyn Home> = Arc::new(home.clone());
            let homes = NodeHomes::new(home.clone(), elsewhere);
            let (homes, connections, fabric) = match network.connections {
                Some((connections, dial, fabric)) => (homes.with_others(dial), Some(connections), fabric),
                None => (homes, None, NO_FABRIC.to_owned()),
            };
            let node = Node::with_homes(os, id.clone(), own, Arc::new(homes), connections).counted(metrics.clone());
            let node = Arc::new(node);
            watch(&metrics, &home, &node, &fabric);
            let router = Arc::new(router(&home));
            let _ = opening.0.set(home.clone());
            Ok(Self { id, home, node, router, described, fabric })
        };
        blocking("open the pools", open).await?
    }

    /// Searches for pools that are not served, until the process stops, and recovers the devices of each one found.
    pub(super) fn find(&self, stop: &Stop) {
        let (home, node, mut stop) = (self.home.clone(), Arc::clone(&self.node), stop.receiver());
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

    /// Ends connections to exports that this node may not use any more, until the process stops.
    pub(super) fn watch_connections(&self, stop: &Stop) {
        let (node, mut stop) = (Arc::clone(&self.node), stop.receiver());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(ASKING) => {}
                    _ = stop.changed() => return,
                }
                let node = Arc::clone(&node);
                let look = move || node.end_lost_connections().and_then(|_| node.connections());
                match tokio::task::spawn_blocking(look).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => warn!(error = error.chain(), "cannot check the connections to other nodes"),
                    Err(error) => warn!(%error, "the check of the connections to other nodes failed"),
                }
            }
        });
    }

    /// Makes lost connections to exports again, until the process stops.
    pub(super) fn watch_lost_connections(&self, stop: &Stop) {
        let (node, mut stop) = (Arc::clone(&self.node), stop.receiver());
        let (under_way, slots) =
            (Arc::new(Mutex::new(HashSet::<SubsystemNqn>::new())), Arc::new(Semaphore::new(RECONNECTING)));
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOKING) => {}
                    _ = stop.changed() => return,
                }
                let looking = Arc::clone(&node);
                let lost = match tokio::task::spawn_blocking(move || looking.lost_connections()).await {
                    Ok(Ok(lost)) => lost,
                    Ok(Err(error)) => {
                        warn!(error = error.chain(), "cannot look for lost connections to other nodes");
                        continue;
                    }
                    Err(error) => {
                        warn!(%error, "the search for lost connections to other nodes failed");
                        continue;
                    }
                };
                for export in lost {
                    let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { break };
                    if !under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(export) {
                        continue;
                    }
                    let (node, under_way) = (Arc::clone(&node), Arc::clone(&under_way));
                    // In a thread each: one home node that does not answer delays no other.
                    tokio::spawn(async move {
                        if let Err(error) = tokio::task::spawn_blocking(move || node.reconnect(&export)).await {
                            warn!(export = %export, %error, "connecting again failed; the node tries again");
                        }
                        under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&export);
                        drop(slot);
                    });
                }
            }
        });
    }

    /// Serves CSI, registers the driver with kubelet, and removes that registration's socket at the end.
    ///
    /// # Errors
    /// Those of [`serve`].
    pub(super) async fn serve(
        &self,
        base: Base,
        controller: Option<Arc<Router>>,
        registration: Option<Registration>,
        stop: &Stop,
    ) -> Result<()> {
        let registering = Registering::start(registration, &base.metrics, stop);
        // For `holdfast doctor`, `volumes` and `pools` with --controller.
        let operators = controller.clone().map(|router| {
            let service = RegistryService::of_private_socket(router).counted(base.metrics.homes().clone());
            Routes::new(service.into_server())
        });
        let config = ServeConfig {
            socket: base.socket,
            controller,
            others: operators.unwrap_or_default(),
            node: Some(ThisNode {
                id: self.id.clone(),
                fabric: self.fabric.clone(),
                workflows: Arc::clone(&self.node),
            }),
            metrics: base.metrics,
            pools: base.pools,
            shares: base.shares,
        };
        let served = serve(config, stop.clone().begun()).await;
        registering.end().await;
        served
    }

    /// The last step before the process exits: published raw block volumes keep their devices when the descriptors
    /// close. A disk that does not answer must not delay the exit.
    pub(super) async fn keep_devices(self) {
        let kept = tokio::task::spawn_blocking(move || self.node.keep_devices());
        if tokio::time::timeout(KEEPING, kept).await.is_err() {
            error!(
                "could not verify within {} s that raw block volumes keep their devices; run holdfast doctor",
                KEEPING.as_secs()
            );
        }
    }
}
