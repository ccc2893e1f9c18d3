//! Which home serves which pool: looked up at each call, because pools move between nodes and handles do not change.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::placement::{NO_FABRIC, Seat, Segments};
use crate::home::Home;
use crate::types::{Error, Kind, NodeId, PoolId, Result};

/// The homes there are and the nodes that are known.
pub struct Directory {
    members: Vec<Member>,
    nodes: BTreeSet<NodeId>,
    serving: Option<NodeId>,
}

/// A home with its place.
struct Member {
    home: Arc<dyn Home>,
    seat: Seat,
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let homes: Vec<_> = self.members.iter().map(|member| &member.seat.node).collect();
        f.debug_struct("Directory").field("homes", &homes).field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

impl Directory {
    /// One node that is all there is, and serves the calls itself.
    #[must_use]
    pub fn standalone(home: Arc<dyn Home>) -> Self {
        let node = home.node().clone();
        Self { serving: Some(node), ..Self::of_homes([(home, NO_FABRIC.to_owned())]) }
    }

    /// Homes on several nodes, each with the name of its fabric; none of them serves the calls.
    pub fn of_homes(homes: impl IntoIterator<Item = (Arc<dyn Home>, String)>) -> Self {
        let mut members: Vec<_> = homes
            .into_iter()
            .map(|(home, fabric)| {
                let node = home.node().clone();
                let segments = Segments::of_node(&node, &fabric);
                Member { home, seat: Seat { node, segments } }
            })
            .collect();
        members.sort_by(|a, b| a.seat.node.cmp(&b.seat.node));
        let nodes = members.iter().map(|member| member.seat.node.clone()).collect();
        Self { members, nodes, serving: None }
    }

    /// The same with nodes that have no pool of their own but may use volumes.
    #[must_use]
    pub fn with_nodes(mut self, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        self.nodes.extend(nodes);
        self
    }

    /// Whether a node exists.
    #[must_use]
    pub fn knows(&self, node: &NodeId) -> bool {
        self.nodes.contains(node)
    }

    /// The node that serves the calls, if it is a home.
    #[must_use]
    pub fn serving(&self) -> Option<&NodeId> {
        self.serving.as_ref()
    }

    /// All homes in the order of their nodes.
    pub fn homes(&self) -> impl Iterator<Item = &dyn Home> {
        self.members.iter().map(|member| &*member.home)
    }

    /// Where they are.
    #[must_use]
    pub fn seats(&self) -> Vec<Seat> {
        self.members.iter().map(|member| member.seat.clone()).collect()
    }

    /// The homes inside a topology; all without one.
    pub fn homes_in(&self, topology: Option<&Segments>) -> impl Iterator<Item = &dyn Home> {
        self.members
            .iter()
            .filter(move |member| topology.is_none_or(|topology| topology.covers(&member.seat.segments)))
            .map(|member| &*member.home)
    }

    /// The home on a node.
    ///
    /// # Errors
    /// `Unavailable` when there is none.
    pub fn home_on(&self, node: &NodeId) -> Result<&dyn Home> {
        self.homes().find(|home| home.node() == node).ok_or_else(|| {
            Error::new(
                Kind::Unavailable,
                format!("node {node} serves no pools now; wait for it, or start holdfast there"),
            )
        })
    }

    /// The home that serves a pool now.
    ///
    /// # Errors
    /// `Unavailable`, never `NotFound`: a pool nobody serves still has its volumes.
    pub fn home_of(&self, pool: PoolId) -> Result<&dyn Home> {
        self.homes().find(|home| home.pools().contains(&pool)).ok_or_else(|| {
            Error::new(
                Kind::Unavailable,
                format!(
                    "pool {pool} is served by no node now: start its node; if its disks were moved, start holdfast where they are: it says what to change"
                ),
            )
        })
    }
}
