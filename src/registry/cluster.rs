//! [`Cluster`]: the whole cluster as a controller knows it, for the command line.

use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::convert;
use super::proto::registry_client::RegistryClient;
use super::proto::{self as pb};
use crate::home::{Finding, PoolHealth, Snapshot, Volume, remote};
use crate::os::Timestamp;
use crate::route::{Connections, Entry};
use crate::types::{NodeId, PoolId, Result};
use crate::wire;

/// A controller queries home nodes for at most 20 s.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest answer, in bytes.
const MOST_REPLY: usize = 256 << 20;

/// A node as the controller knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Its id.
    pub node: NodeId,
    /// Its release.
    pub version: String,
    /// The address of its home service.
    pub endpoint: String,
    /// The storage network it is on.
    pub fabric: String,
    /// Its last heartbeat.
    pub heard: Timestamp,
    /// Whether that is too long ago.
    pub silence: crate::route::Silence,
    /// Its pools.
    pub pools: Vec<PoolHealth>,
    /// Its connections to volumes of other nodes; `None` if it does not report them.
    pub connections: Option<Connections>,
}

/// Nodes, and pools that no node serves now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Every node that sent a heartbeat.
    pub nodes: Vec<NodeRow>,
    /// Known pools that are not served.
    pub missing: Vec<Entry>,
}

/// Volumes and snapshots of all nodes that answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Everything {
    /// The volumes.
    pub volumes: Vec<Volume>,
    /// The snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Why some may be missing, one sentence each.
    pub unheard: Vec<String>,
}

/// A client of a controller.
#[derive(Clone, Debug)]
pub struct Cluster {
    client: RegistryClient<Channel>,
    address: String,
    controller: NodeId,
}

impl Cluster {
    /// The controller behind a channel; `address` is its name in messages.
    ///
    /// # Errors
    /// None in practice: the name is a constant.
    pub fn new(address: impl Into<String>, channel: Channel) -> Result<Self> {
        let client = RegistryClient::new(channel).max_decoding_message_size(MOST_REPLY);
        Ok(Self { client, address: address.into(), controller: "controller".parse()? })
    }

    fn said<T>(&self, what: &str, answer: std::result::Result<Response<T>, Status>) -> Result<T> {
        answer
            .map(Response::into_inner)
            .map_err(|status| wire::failure(&self.controller, &self.address, what, &status).into_error())
    }

    fn request<M>(message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(PATIENCE);
        request
    }

    /// Its nodes and their pools.
    ///
    /// # Errors
    /// `Unavailable` when it does not answer or refuses this caller.
    pub async fn nodes(&mut self) -> Result<Nodes> {
        let answer = self.client.list_nodes(Self::request(pb::ListNodesRequest {})).await;
        let reply = self.said("ListNodes", answer)?;
        let row = |node: pb::Node| {
            Ok(NodeRow {
                node: node.node.parse()?,
                version: node.version,
                endpoint: node.endpoint,
                fabric: node.fabric,
                heard: Timestamp::from_nanos(node.heard),
                silence: if node.silent { crate::route::Silence::Silent } else { crate::route::Silence::Heard },
                pools: node.pools.into_iter().map(convert::health_in).collect::<Result<_>>()?,
                connections: node.connections.map(convert::connections_in).transpose()?,
            })
        };
        Ok(Nodes {
            nodes: reply.nodes.into_iter().map(row).collect::<Result<_>>()?,
            missing: reply.missing.into_iter().map(convert::entry_in).collect::<Result<_>>()?,
        })
    }

    /// The volumes and snapshots of its nodes.
    ///
    /// # Errors
    /// As [`Cluster::nodes`].
    pub async fn everything(&mut self) -> Result<Everything> {
        let answer = self.client.list_inventory(Self::request(pb::ListInventoryRequest {})).await;
        let reply = self.said("ListInventory", answer)?;
        Ok(Everything {
            volumes: reply.volumes.into_iter().map(|volume| remote::volume_of(Some(volume))).collect::<Result<_>>()?,
            snapshots: reply
                .snapshots
                .into_iter()
                .map(|snapshot| remote::snapshot_of(Some(snapshot)))
                .collect::<Result<_>>()?,
            unheard: reply.unheard,
        })
    }

    /// Problems in its nodes' own pools, each with the node; and why some may be missing, one sentence each.
    ///
    /// # Errors
    /// As [`Cluster::nodes`].
    pub async fn findings(&mut self) -> Result<(Vec<(String, Finding)>, Vec<String>)> {
        let answer = self.client.list_findings(Self::request(pb::ListFindingsRequest {})).await;
        let reply = self.said("ListFindings", answer)?;
        let found = |one: pb::NodeFinding| (one.node, remote::finding_of(one.finding.unwrap_or_default()));
        Ok((reply.findings.into_iter().map(found).collect(), reply.unheard))
    }

    /// Removes a pool from quarantine.
    ///
    /// # Errors
    /// `Precondition` while it is declared lost; `Unavailable` when its node is unreachable; as [`Cluster::nodes`].
    pub async fn readmit(&mut self, pool: PoolId) -> Result<()> {
        let answer = self.client.readmit(Self::request(pb::ReadmitRequest { pool: pool.to_string() })).await;
        self.said("Readmit", answer).map(drop)
    }
}
