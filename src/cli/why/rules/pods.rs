//! Pods that wait for a node or for their volume on it.

use holdfast::csi::DRIVER_NAME;
use holdfast::route::NODE_KEY;

use super::super::objects::{Claim, Pod, Volume};
use super::{Case, said_by};

impl Case<'_> {
    /// A pod without a node.
    pub(super) fn unschedulable(&mut self, pod: &Pod, volume_on: Option<&str>, fabric: Option<&str>) {
        let object = format!("pod {}/{}", self.facts.namespace, pod.metadata.name);
        let next = self.describe("pod", &pod.metadata.name);
        let scheduled = pod.status.conditions.iter().find(|one| one.r#type == "PodScheduled" && one.status == "False");
        let Some(scheduled) = scheduled else {
            if self.is_overdue(&pod.metadata.creation_timestamp) {
                self.found(
                    "no-scheduler",
                    object,
                    "the scheduler, which has not processed it",
                    &pod.metadata.creation_timestamp,
                    next,
                );
            }
            return;
        };
        let tied = match (fabric, volume_on) {
            (Some(fabric), _) => {
                format!(" of fabric {fabric}, where its volume can be used{}", self.fabric_members(fabric))
            }
            (None, Some(node)) => format!(" (its volume is on node {node})"),
            (None, None) => String::new(),
        };
        let waits_for = format!("a node{tied}; the scheduler says: {}", scheduled.message);
        self.found("unschedulable", object, waits_for, &scheduled.last_transition_time, next);
    }

    /// A pod with a bound claim that is not ready.
    pub(super) fn waiting(&mut self, claim: &Claim, volume: &Volume, pod: &Pod, home: Option<&str>) {
        let facts = self.facts;
        let object = format!("pod {}/{}", facts.namespace, pod.metadata.name);
        let others: Vec<_> =
            self.pods().into_iter().filter(|other| other.metadata.name != pod.metadata.name).cloned().collect();
        let node = pod.spec.node_name.as_str();
        if claim.spec.access_modes.iter().any(|mode| mode == "ReadWriteOncePod")
            && let Some(other) = others.iter().find(|other| !other.spec.node_name.is_empty())
        {
            let waits_for = format!("pod {} to end: the claim is ReadWriteOncePod", other.metadata.name);
            let next = format!(
                "kubectl -n {} delete pod {}, or use another access mode",
                facts.namespace, other.metadata.name
            );
            return self.found("one-pod-only", object, waits_for, &pod.metadata.creation_timestamp, next);
        }
        if node.is_empty() {
            let fabric = self.fabric_of(volume);
            // A pod with a volume of access network may be on another node.
            if let Some(home) = home.filter(|_| fabric.is_none()) {
                self.node_trouble(&object, home);
            }
            return self.unschedulable(pod, home, fabric);
        }
        if self.outside_fabric(&object, volume, pod) {
            return;
        }
        // This pod can never start: the scheduler would not have selected this node.
        let tied = volume.nodes(NODE_KEY);
        if let Some(home) = tied.first().filter(|_| !tied.contains(&node)) {
            let waits_for = format!(
                "its deletion: spec.nodeName puts it on node {node} without the scheduler, and its volume is on node {home}"
            );
            let next = format!(
                "kubectl -n {} delete pod {}, and create it without nodeName (also in its controller's template): the scheduler then selects {home}",
                facts.namespace, pod.metadata.name
            );
            return self.found("wrong-node", object, waits_for, &pod.metadata.creation_timestamp, next);
        }
        // A cordoned node does not matter: the pod is already there.
        self.node_not_ready(&object, node);
        if let Some(csi_nodes) = &facts.csi_nodes {
            let here = csi_nodes.iter().find(|one| one.metadata.name == node);
            let has = here.is_some_and(|one| one.spec.drivers.iter().any(|driver| driver.name == DRIVER_NAME));
            if !has {
                let waits_for = format!("the driver on node {node}: it is not registered in CSINode {node}");
                let next = format!(
                    "kubectl get pods -A -l app.kubernetes.io/name=holdfast --field-selector spec.nodeName={node}, then its logs"
                );
                self.found("not-registered", object.clone(), waits_for, &pod.metadata.creation_timestamp, next);
            }
        }
        self.attaching(&object, volume, pod, home);
        // Kubelet's periodic summary of all volumes has no cause in it; other volumes are not the driver's.
        let of_volume = |message: &str| {
            message.contains(&volume.metadata.name) && !message.starts_with("Unable to attach or mount volumes")
        };
        let failed = self.event_that("Pod", &pod.metadata, &["FailedMount", "FailedMapVolume"], of_volume);
        if let Some(event) = failed.cloned() {
            let waits_for = format!("the mount of its volume on node {node}; {}", said_by("kubelet", &event.message));
            let next = format!(
                "{}; kubectl logs of the driver's pod on node {node}",
                self.describe("pod", &pod.metadata.name)
            );
            self.found("mount-failed", object.clone(), waits_for, event.began(), next);
        }
        if self.findings.is_empty() && self.is_overdue(&pod.metadata.creation_timestamp) {
            let waits_for = format!(
                "something that is not its volume, according to these checks; it is {} on node {node}",
                pod.status.phase
            );
            self.found(
                "pod-not-ready",
                object,
                waits_for,
                &pod.metadata.creation_timestamp,
                self.describe("pod", &pod.metadata.name),
            );
        }
    }

    /// A node that accepts no pods.
    fn node_trouble(&mut self, object: &str, name: &str) {
        let mut nodes = self.facts.nodes.iter().flatten();
        let cordoned = nodes.any(|node| node.metadata.name == name && node.spec.unschedulable);
        if !self.node_not_ready(object, name) && cordoned {
            let next = format!("kubectl uncordon {name}");
            self.found("node-cordoned", object, format!("node {name}, which is cordoned"), "", next);
        }
    }

    /// A node that is not ready; returns whether it is.
    fn node_not_ready(&mut self, object: &str, name: &str) -> bool {
        let Some((message, since)) = self.not_ready(name) else { return false };
        let waits_for = format!("node {name}, which is not ready: {message}");
        let next = format!("kubectl describe node {name}");
        self.found("node-not-ready", object, waits_for, &since, next);
        true
    }
}
