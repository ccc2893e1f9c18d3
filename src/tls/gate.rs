//! Authorisation of calls by the role of their client. A rejected call is counted, and is logged with its caller at most
//! once a minute.

use std::sync::Arc;

use http::Extensions;
use tonic::Status;

use super::role::{Link, Peer, Role};
use crate::telemetry::HomeMetrics;
use crate::types::Result;
use crate::wire::{Allowance, denied};

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
        denied(error.chain())
    })
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
