//! The rules for volumes that are used on other nodes than their home node.

use holdfast::os::Timestamp;
use holdfast::registry::NodeRow;
use holdfast::route::{Connections, FABRIC_KEY, Silence, Trouble, TroubleKind};
use holdfast::types::Bytes;
use serde_json::{Value, json};

use super::facts::{Facts, Found};
use super::tests::{HANDLE, NOW, attachment, first, merged, node_row, of, pod, told, unschedulable, well};

fn row(node: &str, fabric: &str, troubles: Vec<Trouble>) -> NodeRow {
    NodeRow {
        fabric: fabric.into(),
        pools: Vec::new(),
        connections: Some(Connections { live: 1, troubles }),
        ..node_row(node, Silence::Heard, Bytes::mib(1024))
    }
}

fn stalled() -> Trouble {
    Trouble {
        volume: HANDLE.parse().unwrap(),
        since: Timestamp::from_nanos(u64::try_from(NOW - 300).unwrap() * 1_000_000_000),
        kind: TroubleKind::Stalled { address: "10.0.0.1:4500".into() },
    }
}

/// A pod on node-b uses the volume of home node node-a, with these troubles of node-b.
fn remote(patch: Value, troubles: Vec<Trouble>) -> Facts {
    let mut facts = well();
    let tied = json!({"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": FABRIC_KEY, "operator": "In", "values": ["rack-1"]}]},
    ]}}}});
    let volume = json!({
        "metadata": {"name": "pv-1"},
        "spec": {"csi": {"driver": holdfast::csi::DRIVER_NAME, "volumeHandle": HANDLE}},
        "status": {"phase": "Bound"},
    });
    facts.volume = Found::Yes(of(merged(volume, tied)));
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    facts.pods = Some(vec![of(pod("web-0", "node-b", merged(ready, patch)))]);
    facts.attachments = Some(vec![of(attachment("node-b", json!({})))]);
    let home = NodeRow { fabric: "rack-1".into(), ..node_row("node-a", Silence::Heard, Bytes::mib(1024)) };
    facts.homes.as_mut().unwrap().nodes = vec![home, row("node-b", "rack-1", troubles)];
    facts
}

fn state_of_connection(facts: &Facts) -> (String, String) {
    let link = told(facts).chain.into_iter().find(|link| link.kind == "connection").unwrap();
    (link.name, link.state)
}

fn node(name: &str, ready: &str) -> Value {
    json!({"metadata": {"name": name}, "status": {"conditions": [
        {"type": "Ready", "status": ready, "message": "Kubelet stopped posting node status.", "lastTransitionTime": "2026-11-21T12:05:00Z"},
    ]}})
}

#[test]
fn a_volume_over_the_network_names_both_nodes_and_its_connection() {
    let facts = remote(json!({}), Vec::new());
    assert!(told(&facts).findings.is_empty(), "{:#?}", told(&facts));
    let (name, state) = state_of_connection(&facts);
    assert_eq!(name, "node node-b to home node node-a");
    assert!(state.contains("no problem"), "{state}");
    // A node of an earlier release, and a node that is away, say nothing.
    let mut older = remote(json!({}), Vec::new());
    older.homes.as_mut().unwrap().nodes[1].connections = None;
    assert!(state_of_connection(&older).1.contains("not reported"));
    let mut away = remote(json!({}), vec![stalled()]);
    away.homes.as_mut().unwrap().nodes[1].silence = Silence::Silent;
    assert!(state_of_connection(&away).1.contains("not known"));
    assert!(told(&away).findings.is_empty());
    // A pod on the home node has no connection.
    let mut local = remote(json!({"spec": {"nodeName": "node-a"}}), vec![stalled()]);
    local.attachments = Some(vec![of(attachment("node-a", json!({})))]);
    let explanation = told(&local);
    assert!(explanation.chain.iter().all(|link| link.kind != "connection") && explanation.findings.is_empty());
}

#[test]
fn a_connection_that_waits_is_named_with_its_time() {
    let facts = remote(json!({}), vec![stalled()]);
    let words = [
        "pod shop/web-0",
        "node node-b",
        "home node node-a at 10.0.0.1:4500",
        "nothing is lost",
        "spec.nodeName=node-a",
    ];
    first(&facts, "volume-stalled", &words);
    assert_eq!(told(&facts).findings[0].since, Some(NOW - 300));
    assert!(state_of_connection(&facts).1.contains("no connection to 10.0.0.1:4500"));
    // Another volume's is none of this claim.
    let other = Trouble { volume: HANDLE.replace("0123", "1123").parse().unwrap(), ..stalled() };
    assert!(told(&remote(json!({}), vec![other])).findings.is_empty());
}

#[test]
fn a_connection_that_was_ended_needs_the_pod_deleted() {
    let facts = remote(json!({}), vec![Trouble { kind: TroubleKind::Detached, ..stalled() }]);
    first(&facts, "volume-detached", &["detached from node node-b", "fail", "kubectl -n shop delete pod web-0"]);
}

#[test]
fn a_home_node_that_is_away_makes_its_users_wait() {
    let mut facts = remote(json!({}), vec![stalled()]);
    facts.homes.as_mut().unwrap().nodes[0].silence = Silence::Silent;
    let lost = "reads and writes wait; they go on when the node is back; nothing is lost";
    first(&facts, "home-unreachable", &["node-a, its home node", lost]);
    assert_eq!(told(&facts).findings.len(), 1, "one cause, not its effect besides: {:#?}", told(&facts));

    let mut facts = remote(json!({}), vec![stalled()]);
    facts.nodes = Some(vec![of(node("node-a", "Unknown")), of(node("node-b", "True"))]);
    first(&facts, "home-not-ready", &["volume pv-1", "node-a, its home node", "stopped posting", lost]);
    assert_eq!(told(&facts).findings.len(), 1);
    // Nobody waits for it where no pod uses the volume from another node.
    facts.pods = Some(Vec::new());
    assert!(told(&facts).findings.is_empty());
}

#[test]
fn a_detach_that_waits_for_the_writes_of_the_other_node() {
    let message = "rpc error: code = Aborted desc = volume is being detached: requests to /dev/loop3 have not ended";
    let leaving = json!({
        "metadata": {"deletionTimestamp": "2026-11-21T12:06:00Z"},
        "status": {"detachError": {"message": message, "time": "2026-11-21T12:09:00Z"}},
    });
    let waiting = json!({"status": {"phase": "Pending", "conditions": [{"type": "Ready", "status": "False"}]}});
    let mut facts = remote(waiting, Vec::new());
    facts.attachments = Some(vec![of(attachment("node-c", leaving))]);
    let words = ["writes of node node-c", "no other node gets it", "/dev/loop3", "holdfast doctor on node-a"];
    first(&facts, "fence-waits", &words);
    assert_eq!(told(&facts).findings[0].since, Some(NOW - 240));
    // Without an error it is not known what it waits for.
    facts.attachments = Some(vec![of(attachment("node-c", json!({})))]);
    first(&facts, "held-elsewhere", &["node-c", "delete the pods"]);
    assert!(!told(&facts).findings[0].next.contains("taint"));
    facts.nodes = Some(vec![of(node("node-a", "True")), of(node("node-b", "True")), of(node("node-c", "Unknown"))]);
    first(&facts, "held-elsewhere", &["out-of-service=nodeshutdown:NoExecute", "taint nodes node-c"]);
}

#[test]
fn a_pod_without_a_node_of_the_fabric() {
    let mut facts =
        remote(merged(unschedulable("0/3 nodes are available"), json!({"spec": {"nodeName": null}})), Vec::new());
    facts.homes.as_mut().unwrap().nodes.push(row("node-c", "none", Vec::new()));
    let words = ["a node of fabric rack-1", "in it: node-a, node-b", "not in it: node-c (fabric none)", "0/3 nodes"];
    first(&facts, "unschedulable", &words);
    // A cordoned home node does not matter.
    let cordoned = merged(node("node-a", "True"), json!({"spec": {"unschedulable": true}}));
    facts.nodes = Some(vec![of(cordoned), of(node("node-b", "True"))]);
    first(&facts, "unschedulable", &[]);

    let waiting = json!({"spec": {"nodeName": "node-c"}, "status": {"phase": "Pending", "conditions": [{"type": "Ready", "status": "False"}]}});
    let mut facts = remote(waiting, Vec::new());
    facts.homes.as_mut().unwrap().nodes.push(row("node-c", "none", Vec::new()));
    first(&facts, "wrong-fabric", &["node-c is in fabric none", "fabric rack-1 only", "delete pod web-0", "nvme-tcp"]);
}
