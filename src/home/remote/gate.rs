//! Authorisation of calls. A rejected call is counted, and is logged with its caller at most once a minute.

use std::sync::Arc;

use http::Extensions;
use tonic::Status;

use super::fault;
use crate::telemetry::HomeMetrics;
use crate::tls::{Link, Peer, Role};
use crate::types::{Error, Kind, Result};
use crate::wire::{Allowance, Door};

/// The calls of a node for itself.
const OF_NODES: &[&str] = &["Open", "Close", "BeginFormat", "EndFormat", "UseRaw"];
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

/// The limits for the client of a connection.
#[must_use]
pub fn allowance(from: &Extensions, calls: usize, bytes: usize) -> Allowance {
    let connection = from.get::<Link>().map(|link| Arc::clone(&link.connection));
    let client = connection.as_ref().map_or_else(|| "unknown".into(), |connection| Arc::clone(connection.name()));
    Allowance { client, connection, calls, bytes }
}

/// Permits a call if `peer` has one of these roles.
///
/// # Errors
/// PERMISSION_DENIED, with the caller and the permitted roles.
pub fn admit(metrics: &HomeMetrics, what: &'static str, peer: Result<&Peer>, roles: &[Role]) -> Result<(), Status> {
    let role = peer.as_ref().map_or("unknown", |peer| role_of(peer));
    let who = peer.as_ref().map_or_else(|_| "unknown".to_owned(), ToString::to_string);
    peer.and_then(|peer| peer.require(what, roles)).map_err(|error| {
        metrics.refused(what, role);
        if let Some(unsaid) = metrics.may_say(&who, what) {
            tracing::warn!(unsaid, "{}", error.chain());
        }
        fault::denied(error.chain())
    })
}

/// The status for a client that has too many running calls.
#[must_use]
pub fn busy(what: &str, most: usize) -> Status {
    let message = format!("{what}: {most} calls of this node are running already; retry when one has ended");
    fault::answer(&Error::new(Kind::Unavailable, message).into())
}

fn role_of(peer: &Peer) -> &'static str {
    match peer {
        Peer::Unverified | Peer::Anonymous(_) => "unknown",
        Peer::Verified(_) if peer.is_controller() => "controller",
        Peer::Verified(_) if peer.is_operator() => "operator",
        Peer::Verified(_) => "node",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::Activity;
    use crate::telemetry::{Metrics, Sampled};
    use crate::types::{Error, Kind};

    #[test]
    fn what_is_refused_is_counted_by_call_and_role() {
        let metrics = Metrics::new(Activity::default());
        let node = |id: &str| Role::Node(id.parse().unwrap());
        let peer = |role: Role| Peer::Verified(role.name());
        let admit = |peer: &Peer, roles: &[Role]| admit(metrics.homes(), "Grant", Ok(peer), roles);
        admit(&peer(Role::Controller), &[Role::Controller]).unwrap();
        admit(&Peer::Unverified, &[Role::Controller]).unwrap();
        for role in [node("b"), node("c"), Role::Operator] {
            assert_eq!(admit(&peer(role), &[Role::Controller]).unwrap_err().code(), tonic::Code::PermissionDenied);
        }
        admit(&peer(node("b")), &[Role::Controller, node("c")]).unwrap_err();
        let nobody = Err(Error::new(Kind::Denied, "nothing is known"));
        super::admit(metrics.homes(), "Open", nobody, &[Role::Controller]).unwrap_err();
        let text = metrics.text(Sampled::default()).unwrap();
        for line in [
            "{rpc=\"Grant\",role=\"node\"} 3",
            "{rpc=\"Grant\",role=\"operator\"} 1",
            "{rpc=\"Open\",role=\"unknown\"} 1",
        ] {
            assert!(text.contains(&format!("holdfast_wire_calls_refused_total{line}")), "{line}: {text}");
        }
        assert!(!text.contains("role=\"controller\""), "{text}");
    }
}
