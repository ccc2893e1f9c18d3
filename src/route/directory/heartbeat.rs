//! What nodes say of themselves, how often, and what is kept of it.

use std::time::Duration;

use crate::home::PoolHealth;
use crate::os::Timestamp;
use crate::types::{NodeId, PoolId, PoolName};

/// A node's heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Who.
    pub node: NodeId,
    /// The boot of its machine.
    pub boot_id: String,
    /// Its release.
    pub version: String,
    /// Where its home is dialled, `HOST:PORT`.
    pub endpoint: String,
    /// The storage network it is on; [`NO_FABRIC`](crate::route::NO_FABRIC) without one.
    pub fabric: String,
    /// What it has.
    pub pools: Vec<PoolHealth>,
    /// What it was told before, as much of it as is taken.
    pub known: Vec<Entry>,
    /// How many more it named.
    pub left_out: usize,
}

/// One line of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The pool.
    pub pool: PoolId,
    /// What people call it.
    pub name: PoolName,
    /// The node that served it last.
    pub node: NodeId,
    /// Where that was dialled.
    pub endpoint: String,
    /// When a controller last heard so; zero where that is not known.
    pub heard: Timestamp,
}

impl Entry {
    /// How long ago it was heard, for people.
    #[must_use]
    pub fn ago(&self) -> String {
        if self.heard == Timestamp::from_nanos(0) {
            return "at a time that is not known".to_owned();
        }
        format!("{} s ago", self.heard.age().as_secs())
    }

    /// What it takes in a message, about, in bytes.
    pub(super) fn size(&self) -> usize {
        64 + self.node.as_str().len() + self.name.as_str().len() + self.endpoint.len()
    }
}

/// A node as people are shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its last heartbeat; `known` is empty.
    pub heartbeat: Heartbeat,
    /// When that was.
    pub heard: Timestamp,
    /// Whether it is too long ago for calls to be sent there.
    pub silence: Silence,
}

/// Whether a node is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// It is.
    Heard,
    /// It is not.
    Silent,
}

/// How often nodes are heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// Time between two heartbeats of a node.
    pub interval: Duration,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self { interval: Duration::from_secs(5) }
    }
}

impl Rhythm {
    /// Not heard for so long, a node is silent.
    pub(super) fn patience(self) -> Duration {
        self.interval * 3
    }

    /// Figures older than this are not capacity.
    pub(super) fn fresh(self) -> Duration {
        self.interval * 6
    }

    /// A controller that just started waits so long for the nodes to be heard.
    #[must_use]
    pub fn settling(self) -> Duration {
        self.interval * 2
    }
}
