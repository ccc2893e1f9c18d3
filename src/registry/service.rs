//! [`RegistryService`]: a controller receives heartbeats and answers the command line.

use std::fmt;
use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::convert;
use super::proto::registry_server::{Registry, RegistryServer};
use super::proto::{self as pb};
use crate::route::{Router, Silence};
use crate::telemetry::HomeMetrics;
use crate::tls::{Peer, Role, admit, allowance};
use crate::types::{Failure, NodeId, PoolId, Result};
use crate::wire::{self, Allowance, Bounds, Door, MostArriving, Share, Turns, WorkerPool};

/// The largest heartbeat, in bytes: some thousand pools.
const MOST_HEARTBEAT: usize = 4 << 20;
/// The largest query of an operator, in bytes.
const MOST_QUESTION: usize = 16 << 10;
/// Concurrent works for the command line.
const MOST_WORKS: usize = 32;
/// Heartbeats processed at once, and those of one node.
const MOST_HEARTBEATS: usize = 256;
const MOST_OF_NODE: usize = 1;
/// Concurrent calls of a node, including those whose answers it has not read yet.
const MOST_CALLS_OF_NODE: usize = 4;
/// Concurrent calls of controllers and operators, and the most bytes of each.
const MOST_QUESTIONS: (usize, usize) = (256, MOST_QUESTION);
/// Bytes of requests that may be arriving at once.
const MOST_ARRIVING: MostArriving = MostArriving { all: 64 << 20, of_one: 12 << 20 };

/// The gRPC service.
pub struct RegistryService {
    router: Arc<Router>,
    way: Way,
    works: WorkerPool,
    heartbeats: WorkerPool,
    of_nodes: Turns,
    metrics: HomeMetrics,
}

/// Where requests come from.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// From other machines: the caller is in each request's [`Peer`].
    Wire,
    /// Through a Unix socket that only root on this machine can open: the caller is an operator.
    Private,
}

impl fmt::Debug for RegistryService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryService").finish_non_exhaustive()
    }
}

type Answer<T> = std::result::Result<Response<T>, Status>;

impl RegistryService {
    /// Updates the router's directory with the heartbeats, and answers operators and controllers.
    #[must_use]
    pub fn new(router: Arc<Router>) -> Self {
        Self::behind(Way::Wire, router)
    }

    /// Answers the operators' queries, and no other call, to any client of the socket it is served on: that must be a
    /// Unix socket of mode 0600.
    #[must_use]
    pub fn of_private_socket(router: Arc<Router>) -> Self {
        Self::behind(Way::Private, router)
    }

    fn behind(way: Way, router: Arc<Router>) -> Self {
        let (works, heartbeats) = (WorkerPool::new(MOST_WORKS), WorkerPool::new(2 * MOST_HEARTBEATS));
        Self { router, way, works, heartbeats, of_nodes: Turns::default(), metrics: HomeMetrics::default() }
    }

    /// The limits of the port it is served on.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        Bounds::new(RegistryDoor(self.metrics.clone()), MOST_ARRIVING)
    }

    /// The same, with refused calls counted.
    #[must_use]
    pub fn counted(self, metrics: HomeMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// As a service of a server.
    #[must_use]
    pub fn into_server(self) -> RegistryServer<Self> {
        let most = match self.way {
            Way::Wire => MOST_HEARTBEAT,
            Way::Private => MOST_QUESTION,
        };
        RegistryServer::new(self).max_decoding_message_size(most)
    }

    /// Admits a call if the caller has one of these roles.
    fn admit<Q>(&self, what: &'static str, request: &Request<Q>, roles: &[Role]) -> std::result::Result<(), Status> {
        let operator = Peer::Verified(Role::Operator.name());
        let peer = match self.way {
            Way::Wire => Peer::of(request.extensions()),
            Way::Private => Ok(&operator),
        };
        admit(&self.metrics, what, peer, roles)
    }

    /// A query of the command line, which may take as long as the slowest home node.
    async fn ask<Q, R, F>(&self, what: &'static str, request: Request<Q>, work: F) -> Answer<R>
    where
        Q: Send + 'static,
        R: Send + 'static,
        F: FnOnce(&Router, Q) -> Result<R> + Send + 'static,
    {
        let roles = [Role::Controller, Role::Operator];
        self.admit(what, &request, &roles)?;
        let (router, message) = (Arc::clone(&self.router), request.into_inner());
        wire::run(&self.works, what, Share::of_all(), move || work(&router, message)).await
    }
}

/// Admission to the port where nodes register themselves.
struct RegistryDoor(HomeMetrics);

impl Door for RegistryDoor {
    fn admit(&self, from: &http::Extensions, path: &str) -> std::result::Result<Allowance, Status> {
        let peer = Peer::of(from);
        let (calls, bytes) = match (path.rsplit('/').next(), &peer) {
            (Some("Heartbeat"), Ok(Peer::Unverified)) => (MOST_HEARTBEATS, MOST_HEARTBEAT),
            (Some("Heartbeat"), Ok(peer)) if peer.is_some_node() => (MOST_CALLS_OF_NODE, MOST_HEARTBEAT),
            (Some("Heartbeat"), peer) => {
                let who = peer.as_ref().map_or_else(|_| "unknown".to_owned(), ToString::to_string);
                self.0.refused("Heartbeat", "unknown");
                return Err(wire::denied(format!("Heartbeat is refused to {who}: only nodes may send it")));
            }
            (what, _) => {
                let known = ["ListNodes", "ListInventory", "ListFindings", "Readmit"];
                let what = known.into_iter().find(|known| what == Some(*known)).unwrap_or("unknown");
                admit(&self.0, what, peer, &[Role::Controller, Role::Operator])?;
                MOST_QUESTIONS
            }
        };
        Ok(allowance(from, calls, bytes + 5))
    }
}

#[tonic::async_trait]
impl Registry for RegistryService {
    async fn heartbeat(&self, request: Request<pb::HeartbeatRequest>) -> Answer<pb::HeartbeatReply> {
        let node: NodeId = request.get_ref().node.parse().map_err(|error| wire::status(&Failure::Clean(error)))?;
        self.admit("Heartbeat", &request, &[Role::Node(node)])?;
        let turn = self.of_nodes.take(&request.get_ref().node.as_str().into(), MOST_OF_NODE);
        let Some(turn) = turn else { return Err(wire::busy("Heartbeat", MOST_OF_NODE)) };
        let (router, message) = (Arc::clone(&self.router), request.into_inner());
        let work = move || {
            let _until_it_ends = turn;
            let heard = router.directory().hear(convert::heartbeat_in(message)?);
            heard.map(|told| pb::HeartbeatReply {
                directory: told.directory.iter().map(convert::entry_out).collect(),
                lost: told.lost.iter().map(PoolId::to_string).collect(),
                lost_elsewhere: told.lost_elsewhere.iter().map(PoolId::to_string).collect(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            })
        };
        wire::run(&self.heartbeats, "Heartbeat", Share::of_all(), work).await
    }

    async fn list_nodes(&self, request: Request<pb::ListNodesRequest>) -> Answer<pb::ListNodesReply> {
        self.ask("ListNodes", request, |router, _message| {
            let directory = router.directory();
            let node = |seen: crate::route::Seen| pb::Node {
                node: seen.heartbeat.node.to_string(),
                boot_id: seen.heartbeat.boot_id,
                version: seen.heartbeat.version,
                endpoint: seen.heartbeat.endpoint,
                fabric: seen.heartbeat.fabric,
                pools: seen.heartbeat.pools.iter().map(convert::health_out).collect(),
                heard: seen.heard.as_nanos(),
                silent: seen.silence == Silence::Silent,
                connections: seen.heartbeat.connections.as_ref().map(convert::connections_out),
            };
            Ok(pb::ListNodesReply {
                nodes: directory.seen().into_iter().map(node).collect(),
                missing: directory.missing().iter().map(convert::entry_out).collect(),
            })
        })
        .await
    }

    async fn list_inventory(&self, request: Request<pb::ListInventoryRequest>) -> Answer<pb::ListInventoryReply> {
        self.ask("ListInventory", request, |router, _message| {
            let found = router.inventory();
            Ok(pb::ListInventoryReply {
                volumes: found.volumes.into_iter().map(crate::home::remote::volume).collect(),
                snapshots: found.snapshots.into_iter().map(crate::home::remote::snapshot).collect(),
                unheard: found.unheard,
            })
        })
        .await
    }

    async fn list_findings(&self, request: Request<pb::ListFindingsRequest>) -> Answer<pb::ListFindingsReply> {
        self.ask("ListFindings", request, |router, _message| {
            let (findings, unheard) = router.findings();
            let finding = |(node, finding): (NodeId, _)| pb::NodeFinding {
                node: node.to_string(),
                finding: Some(crate::home::remote::finding(finding)),
            };
            Ok(pb::ListFindingsReply { findings: findings.into_iter().map(finding).collect(), unheard })
        })
        .await
    }

    async fn readmit(&self, request: Request<pb::ReadmitRequest>) -> Answer<pb::ReadmitReply> {
        self.ask("Readmit", request, |router, message| {
            router.readmit(message.pool.parse()?).map(|_| pb::ReadmitReply {})
        })
        .await
    }
}
