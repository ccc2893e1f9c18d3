//! Who may make which call: what is refused is logged with who asked, and counted.

use tonic::Status;

use super::fault;
use crate::telemetry::HomeMetrics;
use crate::tls::{Peer, Role};
use crate::types::Result;

/// Lets a call in, if `peer` has one of these roles.
///
/// # Errors
/// PERMISSION_DENIED, naming who asked and who may.
pub fn admit(metrics: &HomeMetrics, what: &'static str, peer: Result<&Peer>, roles: &[Role]) -> Result<(), Status> {
    let role = peer.as_ref().map_or("unknown", |peer| role_of(peer));
    peer.and_then(|peer| peer.require(what, roles)).map_err(|error| {
        tracing::warn!("{}", error.chain());
        metrics.refused(what, role);
        fault::denied(error.chain())
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
