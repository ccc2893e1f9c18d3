//! Heartbeats of nodes, their interval, and the entries kept from them.

use std::time::Duration;

use crate::home::PoolHealth;
use crate::os::Timestamp;
use crate::types::{Named, NodeId, PoolId, PoolName, VolumeId};

/// A node's heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The node.
    pub node: NodeId,
    /// The boot id of its machine.
    pub boot_id: String,
    /// Its release.
    pub version: String,
    /// The address of its home service, `HOST:PORT`.
    pub endpoint: String,
    /// The storage network it is on; [`NO_FABRIC`](crate::route::NO_FABRIC) without one.
    pub fabric: String,
    /// Its pools.
    pub pools: Vec<PoolHealth>,
    /// The directory entries it has stored, as many as are accepted.
    pub known: Vec<Entry>,
    /// How many more entries it sent.
    pub left_out: usize,
    /// Its connections to volumes of other nodes; `None` if it does not report them: it makes none, or its release is older.
    pub connections: Option<Connections>,
}

/// The connections of a node to volumes of other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// The number of volumes with a live connection.
    pub live: usize,
    /// The volumes that do not work on this node, the oldest first.
    pub troubles: Vec<Trouble>,
}

/// A volume of another node that does not work on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The volume.
    pub volume: VolumeId,
    /// Since when, at the earliest look of the node.
    pub since: Timestamp,
    /// What is wrong.
    pub kind: TroubleKind,
}

/// What is wrong with a volume of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TroubleKind {
    /// It has no live connection: its reads and writes wait.
    Stalled {
        /// `HOST:PORT` of its export.
        address: String,
    },
    /// It was detached from the node while pods used it, and the node ended its connection: its reads and writes fail.
    Detached,
}

/// One line of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The pool.
    pub pool: PoolId,
    /// The pool's name.
    pub name: PoolName,
    /// The node that served it last.
    pub node: NodeId,
    /// The address of that node.
    pub endpoint: String,
    /// When a controller last received a heartbeat of it; zero if unknown.
    pub heard: Timestamp,
}

impl Entry {
    /// The time since that heartbeat, for messages.
    #[must_use]
    pub fn ago(&self) -> String {
        if self.heard == Timestamp::from_nanos(0) {
            return "at an unknown time".to_owned();
        }
        format!("{} s ago", self.heard.age().as_secs())
    }

    /// Its approximate size in a message, in bytes.
    pub(super) fn size(&self) -> usize {
        64 + self.node.as_str().len() + self.name.as_str().len() + self.endpoint.len()
    }
}

/// A connection that broke may be back soon: users of pods are told after this time.
pub const STALLED: Duration = Duration::from_secs(30);

impl Trouble {
    /// One word for programs, and the reason of an event.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self.kind {
            TroubleKind::Stalled { .. } => "VolumeStalled",
            TroubleKind::Detached => "VolumeDetached",
        }
    }

    /// One sentence for the users of pods, with the volume as messages name it and its home node, if that is known.
    #[must_use]
    pub fn sentence(&self, volume: &Named, home: Option<&NodeId>) -> String {
        let home = home.map_or_else(|| "its home node".to_owned(), |home| format!("its home node {home}"));
        match &self.kind {
            TroubleKind::Stalled { address } => format!(
                "reads and writes of {volume} wait, because it has no connection to {home} at {address}; they go on when the connection is back, and nothing is lost"
            ),
            TroubleKind::Detached => format!(
                "reads and writes of {volume} fail, because it was detached from this node while the pod used it; delete the pod"
            ),
        }
    }
}

/// A node as the command line shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its last heartbeat; `known` is empty.
    pub heartbeat: Heartbeat,
    /// When that was received.
    pub heard: Timestamp,
    /// Whether the node is unreachable.
    pub silence: Silence,
}

/// Whether a node is reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// Reachable.
    Heard,
    /// Unreachable.
    Silent,
}

/// The interval of heartbeats and the limits derived from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// The time between two heartbeats of a node.
    pub interval: Duration,
}

impl Default for Rhythm {
    fn default() -> Self {
        Self { interval: Duration::from_secs(5) }
    }
}

impl Rhythm {
    /// After so long without a heartbeat, a node is unreachable.
    pub(super) fn patience(self) -> Duration {
        self.interval * 3
    }

    /// Older figures are not used as capacity.
    pub(super) fn fresh(self) -> Duration {
        self.interval * 6
    }

    /// A controller that just started waits so long for heartbeats.
    #[must_use]
    pub fn settling(self) -> Duration {
        self.interval * 2
    }
}
