//! Each rule on objects as an API server answers them.

use holdfast::csi::DRIVER_NAME;
use holdfast::home::{Health, PoolHealth, PoolReport};
use holdfast::os::Timestamp;
use holdfast::pool::{Ability, FreeSpace};
use holdfast::registry::{NodeRow, Nodes};
use holdfast::route::{Entry, Silence};
use holdfast::types::{Bytes, Provisioning};
use serde_json::{Value, json};

use super::facts::{Facts, Found};
use super::objects::{List, Pod, bytes, shown};
use super::rules::{Explanation, explain};

/// 2026-11-21T12:10:00Z.
pub(super) const NOW: i64 = 1_795_263_000;
const MADE: &str = "2026-11-21T12:00:00Z";
const POOL: &str = "00000000000000aa";
pub(super) const HANDLE: &str = "hf1_00000000000000aa_0123456789abcdef0123456789abcdef_node-a";

pub(super) fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn claim(patch: Value) -> Value {
    merged(
        json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": "data", "namespace": "shop", "uid": "uid-data", "creationTimestamp": MADE,
                "finalizers": ["kubernetes.io/pvc-protection"],
            },
            "spec": {
                "storageClassName": "fast", "accessModes": ["ReadWriteOnce"], "volumeName": "pv-1",
                "resources": {"requests": {"storage": "10Gi"}},
            },
            "status": {"phase": "Bound", "capacity": {"storage": "10Gi"}},
        }),
        patch,
    )
}

/// The claim before it had a volume.
fn pending(patch: Value) -> Value {
    let open = json!({"spec": {"volumeName": null}, "status": {"phase": "Pending", "capacity": null}});
    merged(claim(open), patch)
}

fn class(binding: &str) -> Value {
    json!({"metadata": {"name": "fast"}, "provisioner": DRIVER_NAME, "volumeBindingMode": binding, "parameters": {"pool": "default"}})
}

pub(super) fn pod(name: &str, node: &str, patch: Value) -> Value {
    merged(
        json!({
            "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "creationTimestamp": MADE},
            "spec": {"nodeName": node, "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]},
            "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]},
        }),
        patch,
    )
}

fn running(name: &str) -> Value {
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    pod(name, "node-a", ready)
}

pub(super) fn unschedulable(message: &str) -> Value {
    json!({"status": {"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message, "lastTransitionTime": MADE,
    }]}})
}

fn event(kind: &str, name: &str, reason: &str, message: &str) -> Value {
    json!({
        "involvedObject": {"kind": kind, "name": name, "namespace": "shop", "uid": format!("uid-{name}")}, "type": "Warning", "reason": reason,
        "message": message, "firstTimestamp": MADE, "lastTimestamp": "2026-11-21T12:09:00Z", "eventTime": null,
    })
}

pub(super) fn attachment(node: &str, patch: Value) -> Value {
    merged(
        json!({
            "metadata": {"name": format!("csi-{node}"), "creationTimestamp": MADE},
            "spec": {"attacher": DRIVER_NAME, "nodeName": node, "source": {"persistentVolumeName": "pv-1"}},
            "status": {"attached": true},
        }),
        patch,
    )
}

/// RFC 7386.
pub(super) fn merged(mut base: Value, patch: Value) -> Value {
    match (&mut base, patch) {
        (Value::Object(base), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    base.remove(&key);
                } else {
                    let before = base.remove(&key).unwrap_or(Value::Null);
                    base.insert(key, merged(before, value));
                }
            }
        }
        (_, patch) => return patch,
    }
    base
}

pub(super) fn node_row(node: &str, silence: Silence, free: Bytes) -> NodeRow {
    let report = PoolReport {
        id: POOL.parse().unwrap(),
        name: "default".parse().unwrap(),
        kind: "file".into(),
        place: "/pool".into(),
        room: FreeSpace { total: Bytes::mib(102_400), available: free, inodes: None, inodes_free: None },
        available: free,
        available_thick: Some(free),
        available_thin: free,
        default_provisioning: Provisioning::Thick,
        promised: Bytes::ZERO,
        provisioned: Bytes::ZERO,
        volumes: 1,
        snapshots: 0,
        network: Ability::No,
    };
    NodeRow {
        node: node.parse().unwrap(),
        version: "0".into(),
        endpoint: "10.0.0.1:9811".into(),
        fabric: "none".into(),
        heard: Timestamp::now(),
        silence,
        pools: vec![PoolHealth {
            id: POOL.parse().unwrap(),
            name: "default".parse().unwrap(),
            health: Health::Served(Box::new(report)),
        }],
        connections: None,
    }
}

/// A claim that is bound and used, on a cluster where all is well.
pub(super) fn well() -> Facts {
    let volume = json!({
        "metadata": {"name": "pv-1"},
        "spec": {"csi": {"driver": DRIVER_NAME, "volumeHandle": HANDLE}, "persistentVolumeReclaimPolicy": "Delete"},
        "status": {"phase": "Bound"},
    });
    let node = |name: &str| json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    let csi_node =
        |name: &str| json!({"metadata": {"name": name}, "spec": {"drivers": [{"name": DRIVER_NAME, "nodeID": name}]}});
    Facts {
        namespace: "shop".into(),
        name: "data".into(),
        claim: Found::Yes(of(claim(json!({})))),
        classes: Some(vec![of(class("WaitForFirstConsumer"))]),
        volume: Found::Yes(of(volume)),
        asked: None,
        released: Some(Vec::new()),
        pods: Some(vec![of(running("web-0"))]),
        events: Some(Vec::new()),
        attachments: Some(vec![of(attachment("node-a", json!({})))]),
        driver: Found::Yes(of(json!({"metadata": {"name": DRIVER_NAME}}))),
        csi_nodes: Some(vec![of(csi_node("node-a")), of(csi_node("node-b"))]),
        capacities: Some(Vec::new()),
        nodes: Some(vec![of(node("node-a")), of(node("node-b"))]),
        snapshot: Found::Unknown,
        cloned: Found::Unknown,
        homes: Some(Nodes { nodes: vec![node_row("node-a", Silence::Heard, Bytes::mib(51_200))], missing: Vec::new() }),
        unasked: Vec::new(),
    }
}

fn open(binding: &str) -> Facts {
    Facts {
        claim: Found::Yes(of(pending(json!({})))),
        classes: Some(vec![of(class(binding))]),
        volume: Found::Unknown,
        pods: Some(Vec::new()),
        attachments: None,
        ..well()
    }
}

pub(super) fn told(facts: &Facts) -> Explanation {
    explain(facts, NOW)
}

/// The first finding is of this rule, and says all this.
pub(super) fn first(facts: &Facts, rule: &str, words: &[&str]) {
    let explanation = told(facts);
    let finding = explanation.findings.first().unwrap_or_else(|| panic!("nothing is found: {explanation:?}"));
    assert_eq!(finding.rule, rule, "{explanation:#?}");
    let text = format!("{} {} {}", finding.object, finding.waits_for, finding.next);
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!finding.next.is_empty());
}

fn capacity(node: &str, room: &str) -> Value {
    json!({
        "metadata": {"name": format!("csisc-{node}")}, "storageClassName": "fast", "capacity": room,
        "nodeTopology": {"matchLabels": {"csi.holdfast.storage/node": node}},
    })
}

#[test]
fn all_well_is_said_with_the_whole_chain() {
    let explanation = told(&well());
    assert!(explanation.findings.is_empty(), "{explanation:#?}");
    let kinds: Vec<_> = explanation.chain.iter().map(|link| link.kind).collect();
    assert_eq!(kinds, ["claim", "class", "volume", "pool", "pod"]);
    assert!(explanation.chain[3].name.contains("node-a") && explanation.chain[3].state.contains("heartbeat"));
}

#[test]
fn a_claim_that_does_not_exist() {
    first(&Facts { claim: Found::No, ..open("Immediate") }, "no-claim", &["shop/data", "kubectl -n shop get pvc"]);
}

#[test]
fn no_default_class() {
    let claim = pending(json!({"spec": {"storageClassName": null}}));
    let mut facts = Facts { claim: Found::Yes(of(claim)), ..open("Immediate") };
    first(&facts, "no-default-class", &["no StorageClass is the default", "annotate"]);
    let default = json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
    facts.classes = Some(vec![of(merged(class("WaitForFirstConsumer"), default))]);
    first(&facts, "no-consumer", &[]);
}

#[test]
fn class_not_found() {
    let claim = pending(json!({"spec": {"storageClassName": "fsat"}}));
    let mut facts = Facts { claim: Found::Yes(of(claim)), ..open("Immediate") };
    first(&facts, "class-not-found", &["fsat", "[fast]"]);
    // What may not be listed is not missing.
    facts.classes = None;
    assert!(told(&facts).findings.is_empty());
}

#[test]
fn a_class_of_another_driver() {
    let other = merged(class("Immediate"), json!({"provisioner": "ebs.csi.aws.com"}));
    first(&Facts { classes: Some(vec![of(other)]), ..open("Immediate") }, "other-driver", &["ebs.csi.aws.com"]);
}

#[test]
fn first_consumer_and_no_pod() {
    first(&open("WaitForFirstConsumer"), "no-consumer", &["first consumer", "start the pod"]);
    // Not where pods may not be listed, and not for a pod that has ended.
    let facts = Facts { pods: None, ..open("WaitForFirstConsumer") };
    assert!(told(&facts).findings.is_empty());
    let over = pod("web-0", "", json!({"status": {"phase": "Succeeded"}}));
    first(&Facts { pods: Some(vec![of(over)]), ..open("WaitForFirstConsumer") }, "no-consumer", &[]);
}

#[test]
fn a_pod_that_no_node_has_room_for() {
    let waiting =
        pod("web-0", "", unschedulable("0/2 nodes are available: 2 node(s) did not have enough free storage."));
    let mut facts = Facts {
        pods: Some(vec![of(waiting)]),
        capacities: Some(vec![of(capacity("node-a", "1Gi")), of(capacity("node-b", "2048Mi"))]),
        ..open("WaitForFirstConsumer")
    };
    first(&facts, "no-capacity", &["10Gi", "node-a has 1 GiB", "node-b has 2 GiB"]);
    // Something else keeps it from a node that has room.
    facts.capacities = Some(vec![of(capacity("node-a", "1Gi")), of(capacity("node-b", "20Gi"))]);
    first(&facts, "unschedulable", &["pod shop/web-0", "did not have enough"]);
    // What one volume may have counts, not the sum.
    let sum = merged(capacity("node-b", "20Gi"), json!({"maximumVolumeSize": "5Gi"}));
    facts.capacities = Some(vec![of(sum)]);
    first(&facts, "no-capacity", &["node-b has 5 GiB"]);
    // Without those objects the controller's word counts.
    facts.capacities = None;
    facts.homes.as_mut().unwrap().nodes = vec![node_row("node-a", Silence::Heard, Bytes::mib(3072))];
    first(&facts, "no-capacity", &["node-a has 3 GiB"]);
}

#[test]
fn provisioning_failed_with_the_drivers_words() {
    let message = "failed to provision volume with StorageClass \"fast\": rpc error: code = InvalidArgument desc = mkfsOptions: -F is refused";
    let events = vec![of(event("PersistentVolumeClaim", "data", "ProvisioningFailed", message))];
    let facts = Facts { events: Some(events), ..open("Immediate") };
    first(&facts, "provisioning-failed", &["InvalidArgument: mkfsOptions: -F is refused"]);
    assert!(!told(&facts).findings[0].waits_for.contains("rpc error"));
    assert_eq!(told(&facts).findings[0].since, Some(NOW - 600));
    // An event of another object is none of ours.
    let other = vec![of(event("PersistentVolumeClaim", "other", "ProvisioningFailed", message))];
    first(&Facts { events: Some(other), ..open("Immediate") }, "provisioner-unresponsive", &["container provisioner"]);
    // Nor is one of an earlier claim of this name.
    let earlier = merged(
        event("PersistentVolumeClaim", "data", "ProvisioningFailed", message),
        json!({"involvedObject": {"uid": "uid-earlier"}}),
    );
    first(&Facts { events: Some(vec![of(earlier)]), ..open("Immediate") }, "provisioner-unresponsive", &[]);
}

/// What was never the driver's is told as whose it is.
#[test]
fn words_are_told_as_theirs_who_said_them() {
    let provisioner = |message: &str| Facts {
        events: Some(vec![of(event("PersistentVolumeClaim", "data", "ProvisioningFailed", message))]),
        ..open("Immediate")
    };
    let own = "error generating accessibility requirements: no available topology found";
    first(&provisioner(own), "provisioning-failed", &["; the provisioner says: error generating"]);
    let driver = "rpc error: code = Aborted desc = the copy waits: rpc error: code = Unavailable desc = node-b";
    first(&provisioner(driver), "provisioning-failed", &["; the driver says: Aborted: the copy waits: rpc error"]);
    let unreached = "rpc error: code = Unavailable desc = connection error: desc = \"transport: error while dialing: no such file\"";
    first(&provisioner(unreached), "provisioning-failed", &["; the provisioner cannot reach the driver: connection"]);
    let late = "rpc error: code = DeadlineExceeded desc = context deadline exceeded";
    first(&provisioner(late), "provisioning-failed", &["; the provisioner received no answer from the driver in time"]);

    let mount = |message: &str| Facts {
        pods: Some(vec![of(pod("web-0", "node-a", json!({})))]),
        events: Some(vec![of(event("Pod", "web-0", "FailedMount", message))]),
        ..well()
    };
    let kubelet = "MountVolume.SetUp failed for volume \"pv-1\" : applyFSGroup failed: lstat /x: input/output error";
    first(&mount(kubelet), "mount-failed", &["; kubelet says: MountVolume.SetUp failed"]);
    let driver =
        "MountVolume.MountDevice failed for volume \"pv-1\" : rpc error: code = FailedPrecondition desc = blank";
    first(&mount(driver), "mount-failed", &["; the driver says: FailedPrecondition: blank"]);
    for facts in [mount(kubelet), provisioner(own), provisioner(unreached), provisioner(late)] {
        assert!(!told(&facts).findings[0].waits_for.contains("the driver says"), "{:?}", told(&facts));
    }
    let refused = json!({"status": {"attached": false, "attachError": {"message": "node \"node-a\" has no NodeID annotation", "time": MADE}}});
    let facts = Facts {
        pods: Some(vec![of(pod("web-0", "node-a", json!({})))]),
        attachments: Some(vec![of(attachment("node-a", refused))]),
        ..well()
    };
    first(&facts, "attach-waits", &["; the attacher says: node"]);
}

#[test]
fn sizes_of_any_kind_are_compared() {
    let size = |size: &str| {
        let asked = json!({"spec": {"resources": {"requests": {"storage": size}}}});
        Facts {
            claim: Found::Yes(of(pending(asked))),
            pods: Some(vec![of(pod("web-0", "", json!({})))]),
            capacities: Some(vec![of(capacity("node-a", "10737418240"))]),
            ..open("WaitForFirstConsumer")
        }
    };
    for large in ["1Ei", "1E", "20e9", "10737418241", "16Ei"] {
        first(&size(large), "no-capacity", &[large, "node-a has 10 GiB"]);
    }
    first(&size("10737418241"), "no-capacity", &["10737418241 bytes (10 GiB)"]);
    for small in ["10737418240", "1E9", "1500m"] {
        assert!(told(&size(small)).findings.iter().all(|finding| finding.rule != "no-capacity"), "{small}");
    }
    let grown = json!({"spec": {"resources": {"requests": {"storage": "1Ei"}}}});
    first(&Facts { claim: Found::Yes(of(claim(grown))), ..well() }, "growth-waits", &["10Gi", "1Ei"]);
}

#[test]
fn a_clone_of_a_claim_that_is_not_there() {
    let source = json!({"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "original"}}});
    let mut facts = Facts { claim: Found::Yes(of(pending(source))), ..open("Immediate") };
    facts.cloned = Found::No;
    first(&facts, "source-not-found", &["claim shop/original", "does not exist", "kubectl -n shop get pvc"]);
    assert_eq!(told(&facts).findings[0].since, Some(NOW - 600));
    facts.cloned = Found::Yes(of(pending(json!({"metadata": {"name": "original"}}))));
    first(&facts, "source-not-bound", &["shop/original", "Pending", "holdfast why shop/original"]);
    facts.cloned = Found::Yes(of(claim(json!({"metadata": {"name": "original"}}))));
    first(&facts, "provisioner-unresponsive", &[]);
    assert!(told(&facts).chain.iter().any(|link| link.kind == "source" && link.state == "bound"));
    // What may not be asked is not missing.
    facts.cloned = Found::Unknown;
    first(&facts, "provisioner-unresponsive", &[]);
}

fn tied(volume: &mut Found<super::objects::Volume>) {
    let terms =
        json!([{"matchExpressions": [{"key": "csi.holdfast.storage/node", "operator": "In", "values": ["node-a"]}]}]);
    let affinity = json!({"required": {"nodeSelectorTerms": terms}});
    let Found::Yes(volume) = volume else { panic!() };
    volume.spec.node_affinity = of(affinity);
}

#[test]
fn a_pod_put_on_the_wrong_node_past_the_scheduler() {
    let mut facts =
        Facts { pods: Some(vec![of(pod("web-0", "node-b", json!({})))]), attachments: Some(Vec::new()), ..well() };
    tied(&mut facts.volume);
    first(
        &facts,
        "wrong-node",
        &["pod shop/web-0", "nodeName", "node-b", "volume is on node node-a", "delete pod web-0"],
    );
    assert_eq!(told(&facts).findings.len(), 1, "nothing else is of use: {:#?}", told(&facts));
    facts.pods = Some(vec![of(pod("web-0", "node-a", json!({})))]);
    first(&facts, "no-attachment", &[]);
}

/// An attachment to the pod's own node has to end before the next, and its home does not let it.
#[test]
fn a_detach_that_fails_on_the_pods_own_node() {
    let leaving = |status: Value| {
        let going = json!({"metadata": {"deletionTimestamp": MADE}, "status": status});
        Facts {
            pods: Some(vec![of(pod("web-0", "node-a", json!({})))]),
            attachments: Some(vec![of(attachment("node-a", going))]),
            ..well()
        }
    };
    let error = "rpc error: code = FailedPrecondition desc = volume hf1 stays attached to node node-a: /dev/loop3 is mounted at /var/lib/kubelet/plugins/x/globalmount";
    let facts = leaving(json!({"detachError": {"message": error, "time": MADE}}));
    let words = [
        "detached from node node-a",
        "driver says: FailedPrecondition",
        "globalmount",
        "upgrade Holdfast on node node-a",
        "umount",
    ];
    first(&facts, "detach-failed", &words);
    assert_eq!(told(&facts).findings[0].since, Some(NOW - 600));
    let error = "rpc error: code = Unavailable desc = node node-a has not been heard for 20 s";
    let facts = leaving(json!({"detachError": {"message": error, "time": MADE}}));
    first(&facts, "detach-failed", &["Unavailable: node node-a", "by itself"]);
    first(&leaving(json!({})), "detach-waits", &["attached there again", "describe volumeattachment csi-node-a"]);
}

#[test]
fn the_pool_is_full_everywhere() {
    let message = "rpc error: code = ResourceExhausted desc = no node has room for the volume";
    let facts = Facts {
        events: Some(vec![of(event("PersistentVolumeClaim", "data", "ProvisioningFailed", message))]),
        homes: Some(Nodes {
            nodes: vec![
                node_row("node-a", Silence::Heard, Bytes::mib(1024)),
                node_row("node-b", Silence::Heard, Bytes::mib(512)),
            ],
            missing: Vec::new(),
        }),
        ..open("Immediate")
    };
    first(&facts, "no-capacity", &["10Gi", "node-a has 1 GiB", "node-b has 512 MiB", "holdfast pools"]);
    assert_eq!(told(&facts).findings[1].rule, "provisioning-failed");
}

#[test]
fn a_provisioner_that_says_nothing() {
    first(&open("Immediate"), "provisioner-unresponsive", &["10Gi", "container provisioner"]);
    // Not in its first moments.
    assert!(explain(&open("Immediate"), NOW - 590).findings.is_empty());
}

#[test]
fn a_snapshot_that_is_not_ready() {
    let source = json!({"spec": {"dataSource": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "before"}}});
    let snapshot = |status: Value| json!({"metadata": {"name": "before", "creationTimestamp": MADE}, "status": status});
    let mut facts = Facts { claim: Found::Yes(of(pending(source))), ..open("Immediate") };
    facts.snapshot = Found::Yes(of(snapshot(json!({"readyToUse": false}))));
    first(&facts, "snapshot-not-ready", &["before", "not ready yet"]);
    let error = json!({"readyToUse": false, "error": {"message": "rpc error: code = Aborted desc = 12 percent copied", "time": MADE}});
    facts.snapshot = Found::Yes(of(snapshot(error)));
    first(&facts, "snapshot-not-ready", &["Aborted: 12 percent copied"]);
    facts.snapshot = Found::No;
    first(&facts, "snapshot-not-found", &["before", "get volumesnapshot"]);
    facts.snapshot = Found::Yes(of(snapshot(json!({"readyToUse": true}))));
    first(&facts, "provisioner-unresponsive", &[]);
}

/// A volume that its claim has left.
fn released(patch: Value) -> Value {
    merged(
        json!({
            "metadata": {"name": "pv-old"}, "status": {"phase": "Released", "lastPhaseTransitionTime": MADE},
            "spec": {
                "csi": {"driver": DRIVER_NAME, "volumeHandle": HANDLE}, "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": "shop", "name": "data", "uid": "uid-earlier"},
            },
        }),
        patch,
    )
}

#[test]
fn a_volume_kept_from_an_earlier_claim_is_a_hint_and_no_cause() {
    let hints = |patch: Value| {
        let facts = Facts { released: Some(vec![of(released(patch))]), ..open("WaitForFirstConsumer") };
        first(&facts, "no-consumer", &[]);
        let told = told(&facts);
        assert_eq!(told.findings.len(), 1, "{told:#?}");
        told.hints
    };
    let kept = hints(json!({}));
    assert!(kept[0].what.contains("pv-old") && kept[0].what.contains("Retain"), "{kept:?}");
    assert!(kept[0].next.contains("spec.volumeName"), "{kept:?}");
    // Free for all, it would be bound to any claim of its class.
    let to_this = r#"{"spec":{"claimRef":{"namespace":"shop","name":"data","uid":null,"resourceVersion":null}}}"#;
    assert!(kept[0].next.contains(to_this), "{kept:?}");
    for not_kept in [
        json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}),
        json!({"spec": {"claimRef": {"uid": "uid-data"}}}),
        json!({"spec": {"claimRef": {"namespace": "other"}}}),
        json!({"spec": {"claimRef": {"name": "other"}}}),
        json!({"status": {"phase": "Available"}}),
    ] {
        assert_eq!(hints(not_kept.clone()), [], "{not_kept}");
    }
}

#[test]
fn a_volume_that_the_claim_names() {
    let named = || Found::Yes(of(pending(json!({"spec": {"volumeName": "pv-old"}}))));
    let mut facts = Facts { claim: named(), volume: Found::No, ..open("WaitForFirstConsumer") };
    first(&facts, "volume-not-found", &["pv-old", "spec.volumeName"]);
    facts.volume = Found::Yes(of(released(json!({}))));
    first(&facts, "volume-taken", &["pv-old", "Released", "an earlier claim", "claimRef"]);
    facts.volume = Found::Yes(of(released(json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}))));
    first(&facts, "volume-taken", &["pv-old", "Released", "name another"]);
    let others = json!({"status": {"phase": "Bound"}, "spec": {"claimRef": {"name": "other", "uid": "uid-other"}}});
    facts.volume = Found::Yes(of(released(others)));
    first(&facts, "volume-taken", &["claim shop/other", "name another"]);
    let free = json!({"status": {"phase": "Available"}, "spec": {"claimRef": null}});
    facts.volume = Found::Yes(of(released(free)));
    let message = "Cannot bind to requested volume \"pv-old\": requested PV is too small";
    facts.events = Some(vec![of(event("PersistentVolumeClaim", "data", "VolumeMismatch", message))]);
    first(&facts, "not-bound", &["pv-old", "too small"]);
    assert!(explain(&facts, NOW - 590).findings.is_empty());
    facts.volume = Found::Unknown;
    assert!(told(&facts).findings.is_empty());
}

#[test]
fn a_volume_whose_claim_is_gone_is_not_the_next_claims() {
    let asked = |patch: Value, claim| Facts { asked: Some(of(released(patch))), claim, ..well() };
    let another = || Found::Yes(of(claim(json!({}))));
    let facts = asked(json!({}), another());
    first(&facts, "left-behind", &["volume pv-old", "shop/data", "is another", "Retain", "claimRef"]);
    assert_eq!(told(&facts).findings[0].since, Some(NOW - 600));
    assert_eq!(told(&facts).chain.len(), 1, "nothing is said of the other claim");
    let deleted = json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}});
    first(&asked(deleted, Found::No), "left-behind", &["provisioner", "describe pv pv-old"]);
    let own = json!({"spec": {"claimRef": {"uid": "uid-data"}}, "status": {"phase": "Bound"}});
    assert!(told(&asked(own, another())).findings.is_empty());
    assert!(told(&asked(json!({}), Found::Unknown)).findings.is_empty(), "the claim could not be asked for");
    // Put aside for a claim that is still to be made.
    let kept_for = json!({"spec": {"claimRef": {"uid": null}}, "status": {"phase": "Available"}});
    first(&asked(kept_for, Found::No), "no-claim", &[]);
}

#[test]
fn a_home_that_is_silent() {
    let mut facts = well();
    let long_ago = Timestamp::from_nanos(u64::try_from(NOW - 600).unwrap() * 1_000_000_000);
    let node = &mut facts.homes.as_mut().unwrap().nodes[0];
    (node.silence, node.heard) = (Silence::Silent, long_ago);
    first(&facts, "home-unreachable", &["node node-a", "is unreachable", "last heartbeat"]);
    assert_eq!(told(&facts).findings[0].since, Some(NOW - 600));
    facts.homes = Some(Nodes::default());
    first(&facts, "pool-not-served", &[POOL]);
    let entry = Entry {
        pool: POOL.parse().unwrap(),
        name: "default".parse().unwrap(),
        node: "node-a".parse().unwrap(),
        endpoint: "10.0.0.1:9811".into(),
        heard: long_ago,
    };
    facts.homes = Some(Nodes { nodes: Vec::new(), missing: vec![entry] });
    first(&facts, "pool-not-served", &["node node-a did"]);
    assert_eq!(told(&facts).findings[0].since, Some(NOW - 600));
    // Another node that is heard and has the pool now is its home.
    let nodes =
        vec![node_row("node-a", Silence::Silent, Bytes::mib(1)), node_row("node-b", Silence::Heard, Bytes::mib(1))];
    facts.homes = Some(Nodes { nodes, missing: Vec::new() });
    assert!(told(&facts).findings.is_empty());
    let pools = &mut facts.homes.as_mut().unwrap().nodes[1].pools;
    pools[0].health = Health::Failing("EIO".into());
    first(&facts, "pool-failing", &["EIO", "node-b"]);
    let pools = &mut facts.homes.as_mut().unwrap().nodes[1].pools;
    pools[0].health = Health::Quarantined(long_ago);
    first(&facts, "pool-quarantined", &["holdfast pools readmit 00000000000000aa", "lostHomes", "node-b"]);
    assert_eq!(told(&facts).findings[0].since, Some(NOW - 600));
}

#[test]
fn the_node_plugin_is_not_registered() {
    let mut facts = Facts { pods: Some(vec![of(pod("web-0", "node-a", json!({})))]), ..well() };
    facts.csi_nodes = Some(vec![of(json!({"metadata": {"name": "node-a"}, "spec": {"drivers": null}}))]);
    first(&facts, "not-registered", &["node node-a", "CSINode", "logs"]);
    facts.csi_nodes = None;
    first(&facts, "pod-not-ready", &["not its volume"]);
}

#[test]
fn an_attachment_that_waits() {
    let waiting = || Some(vec![of(pod("web-0", "node-b", json!({})))]);
    let leaving = json!({
        "metadata": {"deletionTimestamp": MADE},
        "status": {"detachError": {"message": "rpc error: code = FailedPrecondition desc = mounted at /x", "time": MADE}},
    });
    let mut facts = Facts { pods: waiting(), attachments: Some(vec![of(attachment("node-a", leaving))]), ..well() };
    first(&facts, "held-elsewhere", &["detached from node node-a", "FailedPrecondition: mounted at /x"]);
    let here = json!({"status": {"attached": false, "attachError": {"message": "rpc error: code = Unavailable desc = silent", "time": MADE}}});
    facts.attachments = Some(vec![of(attachment("node-b", here))]);
    first(&facts, "attach-waits", &["node-b", "Unavailable: silent"]);
    facts.attachments = Some(Vec::new());
    first(&facts, "no-attachment", &["VolumeAttachment"]);
    facts.attachments = None;
    first(&facts, "pod-not-ready", &[]);
}

#[test]
fn a_mount_that_failed_with_the_drivers_words() {
    let message = "MountVolume.MountDevice failed for volume \"pv-1\" : rpc error: code = DataLoss desc = the superblock is another's";
    let facts = Facts {
        pods: Some(vec![of(pod("web-0", "node-a", json!({})))]),
        events: Some(vec![of(event("Pod", "web-0", "FailedMount", message))]),
        ..well()
    };
    first(&facts, "mount-failed", &["DataLoss: the superblock is another's", "node node-a"]);
    // Kubelet's sum of all volumes has nobody's words, and other volumes are not the driver's.
    for message in [
        "Unable to attach or mount volumes: unmounted volumes=[data], failed to process volumes=[pv-1]: timed out",
        "MountVolume.SetUp failed for volume \"kube-api-access\" : object not registered",
    ] {
        let events = Some(vec![of(event("Pod", "web-0", "FailedMount", message))]);
        let facts = Facts { pods: Some(vec![of(pod("web-0", "node-a", json!({})))]), events, ..well() };
        first(&facts, "pod-not-ready", &[]);
    }
    // A pod that has come up since has nothing to wait for.
    let facts = Facts { pods: Some(vec![of(running("web-0"))]), ..facts };
    assert!(told(&facts).findings.is_empty());
}

#[test]
fn growth_that_waits() {
    let grown = |conditions: Value| {
        claim(json!({"spec": {"resources": {"requests": {"storage": "20Gi"}}}, "status": {"conditions": conditions}}))
    };
    let mut facts = Facts { claim: Found::Yes(of(grown(json!([])))), ..well() };
    first(&facts, "growth-waits", &["10Gi", "20Gi", "resizer"]);
    let message =
        "resize volume \"pv-1\" by resizer failed: rpc error: code = ResourceExhausted desc = the pool has no room";
    facts.events = Some(vec![of(event("PersistentVolumeClaim", "data", "VolumeResizeFailed", message))]);
    first(&facts, "growth-failed", &["ResourceExhausted: the pool has no room"]);
    // The event is forgotten after an hour, the condition is not.
    facts.events = Some(Vec::new());
    let refused = "failed to expand pvc with rpc error: code = OutOfRange desc = pool default has no room";
    let refused =
        json!([{"type": "ControllerResizeError", "status": "True", "message": refused, "lastTransitionTime": MADE}]);
    facts.claim = Found::Yes(of(grown(refused)));
    first(
        &facts,
        "growth-failed",
        &["OutOfRange: pool default has no room", "as little as 10Gi", "kubectl -n shop edit pvc data"],
    );
    assert_eq!(told(&facts).findings[0].since, Some(NOW - 600));
    let pending =
        |more: Value| json!([{"type": "FileSystemResizePending", "status": "True", "lastTransitionTime": MADE}, more]);
    let failed =
        json!({"type": "NodeResizeError", "status": "True", "message": "rpc error: code = Unavailable desc = busy"});
    facts.claim = Found::Yes(of(grown(pending(failed))));
    first(&facts, "growth-at-node", &["kubelet", "Unavailable: busy"]);
    facts.claim = Found::Yes(of(grown(pending(json!({})))));
    first(&facts, "growth-at-node", &["kubelet"]);
    facts.pods = Some(Vec::new());
    first(&facts, "growth-at-node", &["a pod", "start a pod"]);
}

#[test]
fn a_pod_that_no_scheduler_has_looked_at() {
    let waiting = pod("web-0", "", json!({"status": {"conditions": null}}));
    let facts = Facts { pods: Some(vec![of(waiting)]), ..open("WaitForFirstConsumer") };
    first(&facts, "no-scheduler", &["pod shop/web-0", "scheduler"]);
    assert!(explain(&facts, NOW - 590).findings.is_empty());
}

#[test]
fn one_pod_only() {
    let only = claim(json!({"spec": {"accessModes": ["ReadWriteOncePod"]}}));
    let second = pod(
        "web-1",
        "",
        unschedulable("node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"),
    );
    let facts = Facts { claim: Found::Yes(of(only)), pods: Some(vec![of(running("web-0")), of(second)]), ..well() };
    first(&facts, "one-pod-only", &["pod shop/web-1", "pod web-0", "ReadWriteOncePod"]);
}

#[test]
fn a_node_that_is_down() {
    let down = json!({"metadata": {"name": "node-a"}, "status": {"conditions": [
        {"type": "Ready", "status": "Unknown", "message": "Kubelet stopped posting node status.", "lastTransitionTime": MADE}]}});
    let mut facts = Facts {
        pods: Some(vec![of(pod("web-0", "", unschedulable("1 node(s) didn't match volume node affinity")))]),
        nodes: Some(vec![of(down)]),
        ..well()
    };
    first(&facts, "node-not-ready", &["node node-a", "stopped posting"]);
    assert!(told(&facts).findings.iter().any(|finding| finding.rule == "unschedulable"));
    facts.nodes = Some(vec![of(json!({"metadata": {"name": "node-a"}, "spec": {"unschedulable": true}}))]);
    first(&facts, "node-cordoned", &["uncordon node-a"]);
}

#[test]
fn a_claim_that_is_deleted_and_used() {
    let leaving = || Found::Yes(of(claim(json!({"metadata": {"deletionTimestamp": MADE}}))));
    let mut facts = Facts { claim: leaving(), ..well() };
    first(&facts, "claim-in-use", &["web-0", "still used"]);
    assert_eq!(told(&facts).findings[0].since, Some(NOW - 600));
    // A pod that has ended keeps it, one without a node does not.
    facts.pods = Some(vec![of(pod("job-0", "node-a", json!({"status": {"phase": "Succeeded"}})))]);
    first(&facts, "claim-in-use", &["job-0", "has ended", "delete pod job-0"]);
    facts.pods = Some(vec![of(pod("web-0", "", unschedulable("persistentvolumeclaim \"data\" is being deleted")))]);
    first(&facts, "claim-not-released", &["kubernetes.io/pvc-protection", "no pod"]);
    facts.pods = Some(Vec::new());
    first(&facts, "claim-not-released", &["kube-controller-manager"]);
    assert!(explain(&facts, NOW - 590).findings.is_empty());
    facts.pods = None;
    first(&facts, "claim-in-use", &["could not be listed"]);
}

#[test]
fn a_claim_that_is_deleted_and_held_by_a_finalizer() {
    let held = |finalizers: Value| {
        let metadata = json!({"metadata": {"deletionTimestamp": MADE, "finalizers": finalizers}});
        Facts { claim: Found::Yes(of(claim(metadata))), pods: Some(Vec::new()), ..well() }
    };
    let source = held(json!(["snapshot.storage.kubernetes.io/pvc-as-source-protection"]));
    first(&source, "claim-is-source", &["snapshot", "kubectl -n shop get volumesnapshot"]);
    assert_eq!(told(&source).findings[0].since, Some(NOW - 600));
    let cloned = held(json!(["provisioner.storage.kubernetes.io/cloning-protection"]));
    first(&cloned, "claim-is-cloned", &["clones it", "kubectl -n shop get pvc"]);
    first(&held(json!(["example.com/backup"])), "claim-has-finalizer", &["example.com/backup", "-o yaml"]);
    assert!(told(&held(json!(null))).findings.is_empty());
    // It gets no volume any more: nothing else is waited for.
    let metadata = json!({"metadata": {"deletionTimestamp": MADE, "finalizers": ["example.com/backup"]}});
    let facts = Facts { claim: Found::Yes(of(pending(metadata))), ..open("WaitForFirstConsumer") };
    first(&facts, "claim-has-finalizer", &[]);
    assert_eq!(told(&facts).findings.len(), 1);
}

#[test]
fn the_driver_is_not_installed() {
    first(&Facts { driver: Found::No, ..open("WaitForFirstConsumer") }, "no-driver", &["CSIDriver"]);
}

#[test]
fn a_volume_that_is_gone() {
    first(&Facts { volume: Found::No, ..well() }, "lost", &["pv-1", "gone"]);
}

#[test]
fn what_could_not_be_asked_is_told_and_concluded_from_nowhere() {
    let blind = Facts {
        namespace: "shop".into(),
        name: "data".into(),
        claim: Found::Yes(of(claim(json!({})))),
        unasked: vec!["list Nodes: forbidden".into()],
        ..Facts::default()
    };
    let explanation = told(&blind);
    assert!(explanation.findings.is_empty(), "{explanation:?}");
    assert_eq!(explanation.unasked, ["list Nodes: forbidden"]);
}

#[test]
fn generic_ephemeral_volumes_are_claims_named_after_pod_and_volume() {
    let pod: Pod = of(
        json!({"metadata": {"name": "job"}, "spec": {"volumes": [{"name": "tmp", "ephemeral": {}}, {"name": "cfg"}]}}),
    );
    assert!(pod.uses("job-tmp") && !pod.uses("tmp"));
    assert_eq!(pod.claims(), ["job-tmp"]);
}

#[test]
fn lists_and_quantities_are_read_as_they_are_written() {
    let empty: List<Pod> = of(json!({"kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": null}));
    assert!(empty.items.is_empty());
    let sizes = [("10Gi", 10 << 30), ("1.5Gi", (1 << 30) + (1 << 29) - 2), ("2G", 2_000_000_000), ("512", 512)];
    for (text, size) in sizes {
        assert!(bytes(text).unwrap().abs_diff(size) < 8, "{text}");
    }
    let exact: &[(&str, u64)] = &[
        ("1.25Gi", 1_342_177_280),
        ("7Ei", 7 << 60),
        ("1E", 1_000_000_000_000_000_000),
        ("0.5Ei", 1 << 59),
        ("1e3", 1000),
        ("12E3", 12_000),
        ("5e-1", 1),
        ("1500m", 2),
        (".5Ki", 512),
        ("10737418240", 10 << 30),
        // More than there can be is more than everything.
        ("16Ei", u64::MAX),
        ("99999999999Pi", u64::MAX),
    ];
    for (text, size) in exact {
        assert_eq!(bytes(text), Some(*size), "{text}");
    }
    for wrong in ["", ".", "Gi", "1Zi", "-1Gi", "1.2.3", "1e", "1e99", "1EE", "1 Gi"] {
        assert_eq!(bytes(wrong), None, "{wrong}");
    }
    assert_eq!(shown("10737418240"), "10737418240 bytes (10 GiB)");
    assert_eq!((shown("10Gi"), shown("1E"), shown("1000")), ("10Gi".into(), "1E".into(), "1000".into()));
}
