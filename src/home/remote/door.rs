//! Which calls of a home node a client may make.

use http::Extensions;
use tonic::Status;

use crate::telemetry::HomeMetrics;
use crate::tls::{Peer, Role, admit, allowance};
use crate::wire::{Allowance, Door};

/// The calls of a node for itself.
const OF_NODES: &[&str] = &["Open", "Close", "BeginFormat", "EndFormat", "UseRaw", "ListExports"];
/// The calls only for controllers.
const OF_CONTROLLERS: &[&str] = &[
    "CreateVolume",
    "DeleteVolume",
    "GetVolume",
    "FindVolume",
    "ListVolumes",
    "Grant",
    "Revoke",
    "CreateSnapshot",
    "DeleteSnapshot",
    "GetSnapshot",
    "FindSnapshot",
    "ListSnapshots",
    "Expand",
    "GetCapacity",
    "ListExtents",
    "Report",
    "Readmit",
    "Examine",
];
/// A node's concurrent calls, and the most bytes of each: its messages have only ids.
const MOST_OF_NODE: (usize, usize) = (32, 16 << 10);
/// The concurrent calls of all controllers together, and the most bytes of each.
const MOST_OF_CONTROLLERS: (usize, usize) = (1024, 4 << 20);

/// Checks for every call on the port of a home node.
pub(super) struct HomeDoor(pub(super) HomeMetrics);

impl Door for HomeDoor {
    fn admit(&self, from: &Extensions, path: &str) -> Result<Allowance, Status> {
        let call = path.rsplit('/').next().unwrap_or_default();
        let find = |names: &[&'static str]| names.iter().find(|name| **name == call).copied();
        let peer = Peer::of(from);
        let is_node = peer.as_ref().is_ok_and(|peer| !peer.is_controller() && peer.is_some_node());
        let (calls, bytes) = match find(OF_NODES) {
            Some(_) if is_node => MOST_OF_NODE,
            what => {
                let what = what.or_else(|| find(OF_CONTROLLERS)).unwrap_or("unknown");
                admit(&self.0, what, peer, &[Role::Controller])?;
                MOST_OF_CONTROLLERS
            }
        };
        Ok(allowance(from, calls, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call that is missing here is refused to everybody but controllers, under the name `unknown`.
    #[test]
    fn every_call_of_the_service_is_listed_once() {
        let proto = include_str!("../../../proto/home/v1/home.proto");
        let calls = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
        let mut calls: Vec<_> = calls.map(str::trim).collect();
        let mut listed = [OF_NODES, OF_CONTROLLERS].concat();
        calls.sort_unstable();
        listed.sort_unstable();
        assert_eq!(listed, calls);
        let service = include_str!("service.rs");
        for call in OF_NODES {
            let own = format!("self.own(\"{call}\"");
            assert!(service.contains(&own) || *call == "ListExports", "{call} is a call of nodes for themselves");
        }
    }
}
