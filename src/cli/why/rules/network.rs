//! A volume of access network and the nodes that use it: its fabric, its connection, and its home node.

use holdfast::registry::NodeRow;
use holdfast::route::{FABRIC_KEY, Silence, Trouble, TroubleKind};
use holdfast::types::VolumeId;

use super::super::ago;
use super::super::objects::{Attachment, Pod, Volume};
use super::{Case, Finding, code_in, said_by};

/// What users of a volume whose home node is away must know.
pub(super) const WAITS: &str = "reads and writes wait; they go on when the node is back; nothing is lost";
/// The most nodes that one sentence lists.
const MOST: usize = 8;

impl Case<'_> {
    /// The fabric of a volume of access network; `None` for a local one.
    pub(super) fn fabric_of<'v>(&self, volume: &'v Volume) -> Option<&'v str> {
        volume.nodes(FABRIC_KEY).first().copied()
    }

    /// The pods that use a volume on another node than its home node.
    fn remote_pods(&self, home: &str) -> Vec<&Pod> {
        let elsewhere = |pod: &&Pod| !pod.spec.node_name.is_empty() && pod.spec.node_name != home;
        self.pods().into_iter().filter(elsewhere).collect()
    }

    /// The connections of the pods' nodes to the volume's home node, and whether that node is away.
    pub(super) fn over_network(&mut self, volume: &Volume, home: &str) {
        if self.fabric_of(volume).is_none() {
            return;
        }
        let pods: Vec<(String, String)> = self
            .remote_pods(home)
            .into_iter()
            .map(|pod| (pod.spec.node_name.clone(), pod.metadata.name.clone()))
            .collect();
        if pods.is_empty() {
            return;
        }
        let object = format!("volume {}", volume.metadata.name);
        let mut is_away = false;
        for finding in self.findings.iter_mut().filter(|finding| finding.rule == "home-unreachable") {
            finding.waits_for.push_str(&format!("; its volume is used on other nodes: {WAITS}"));
            is_away = true;
        }
        if !is_away && let Some((message, since)) = self.not_ready(home) {
            let waits_for = format!("node {home}, its home node, which is not ready: {message}; {WAITS}");
            self.found("home-not-ready", object, waits_for, &since, format!("kubectl describe node {home}"));
            is_away = true;
        }
        let handle = volume.spec.csi.as_ref().map_or("", |csi| csi.volume_handle.as_str());
        let mut nodes: Vec<&str> = pods.iter().map(|(node, _)| node.as_str()).collect();
        nodes.dedup();
        for node in nodes {
            let (state, trouble) = match self.row(node) {
                None => ("not known: the controller has no heartbeat of the node".to_owned(), None),
                Some(row) => connection(row, handle),
            };
            self.link("connection", format!("node {node} to home node {home}"), state);
            let Some(trouble) = trouble else { continue };
            let namespace = &self.facts.namespace;
            for (_, pod) in pods.iter().filter(|(on, _)| on == node) {
                match &trouble.kind {
                    // The reason is the home node, which was found.
                    TroubleKind::Stalled { .. } if is_away => {}
                    TroubleKind::Stalled { address } => self.findings.push(Finding {
                        rule: "volume-stalled",
                        object: format!("pod {namespace}/{pod}"),
                        waits_for: format!(
                            "the connection of node {node} to its volume on home node {home} at {address}: {WAITS}"
                        ),
                        since: Some(trouble.since.seconds()),
                        next: format!(
                            "check the network between {node} and {home}, and the driver on {home}: kubectl get pods -A -l app.kubernetes.io/name=holdfast --field-selector spec.nodeName={home}"
                        ),
                    }),
                    TroubleKind::Detached => self.findings.push(Finding {
                        rule: "volume-detached",
                        object: format!("pod {namespace}/{pod}"),
                        next: format!("kubectl -n {namespace} delete pod {pod}"),
                        waits_for: format!(
                            "its deletion: its volume was detached from node {node} while the pod used it, so its reads and writes fail"
                        ),
                        since: Some(trouble.since.seconds()),
                    }),
                }
            }
        }
    }

    fn row(&self, node: &str) -> Option<&NodeRow> {
        self.facts.homes.as_ref()?.nodes.iter().find(|row| row.node.as_str() == node)
    }

    /// Why a node is not ready, and since when, if it is not.
    pub(super) fn not_ready(&self, name: &str) -> Option<(String, String)> {
        let node = self.facts.nodes.iter().flatten().find(|node| node.metadata.name == name)?;
        let ready = node.status.conditions.iter().find(|one| one.r#type == "Ready")?;
        (ready.status != "True").then(|| (ready.message.clone(), ready.last_transition_time.clone()))
    }

    /// The nodes of a fabric and the other nodes with the driver, for a sentence about a pod that has no node.
    pub(super) fn fabric_members(&self, fabric: &str) -> String {
        let Some(homes) = &self.facts.homes else { return String::new() };
        let (inside, outside): (Vec<_>, Vec<_>) = homes.nodes.iter().partition(|row| row.fabric == fabric);
        let named = |rows: &[&NodeRow], shown: fn(&NodeRow) -> String| {
            let mut names: Vec<_> = rows.iter().take(MOST).map(|row| shown(row)).collect();
            if rows.len() > MOST {
                names.push(format!("{} more", rows.len() - MOST));
            }
            names.join(", ")
        };
        let mut text = format!("; nodes in it: {}", named(&inside, |row| row.node.to_string()));
        if !outside.is_empty() {
            let others = named(&outside, |row| format!("{} (fabric {})", row.node, row.fabric));
            text.push_str(&format!("; not in it: {others}"));
        }
        text
    }

    /// A pod that spec.nodeName put on a node that cannot use its volume.
    pub(super) fn outside_fabric(&mut self, object: &str, volume: &Volume, pod: &Pod) -> bool {
        let (Some(fabric), node) = (self.fabric_of(volume), &pod.spec.node_name) else { return false };
        let Some(row) = self.row(node).filter(|row| row.fabric != fabric) else { return false };
        let waits_for = format!(
            "its deletion: node {node} is in fabric {}, and its volume can be used in fabric {fabric} only{}",
            row.fabric,
            self.fabric_members(fabric)
        );
        let next = format!(
            "kubectl -n {} delete pod {}, and create it without nodeName; a node whose fabric is none has no kernel module nvme-tcp or no --fabric: its log has the reason",
            self.facts.namespace, pod.metadata.name
        );
        self.found("wrong-fabric", object, waits_for, &pod.metadata.creation_timestamp, next);
        true
    }

    /// A detach that waits until the requests of the other node have ended; returns whether it is one.
    pub(super) fn fencing(&mut self, object: &str, volume: &Volume, other: &Attachment, home: Option<&str>) -> bool {
        let Some(error) = &other.status.detach_error else { return false };
        if self.fabric_of(volume).is_none() || code_in(&error.message) != "Aborted" {
            return false;
        }
        let (name, node) = (&volume.metadata.name, &other.spec.node_name);
        let waits_for = format!(
            "the end of the writes of node {node} to volume {name}: it is being detached from there, and no other node gets it before; {}",
            said_by("the attacher", &error.message)
        );
        let home = home.unwrap_or("its home node");
        let next = format!(
            "the attacher retries by itself; if this does not end, a disk of {home} does not answer: see dmesg and holdfast doctor on {home}, and repair the disk or restart {home}"
        );
        self.found("fence-waits", object, waits_for, &other.metadata.deletion_timestamp, next);
        true
    }

    /// How a volume gets away from a node that does not come back.
    pub(super) fn forced(&self, volume: &Volume, node: &str) -> String {
        if self.fabric_of(volume).is_none() || self.not_ready(node).is_none() {
            return String::new();
        }
        format!(
            "; node {node} is not ready: if it is shut down, or will not return, run kubectl taint nodes {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, and Kubernetes detaches its volumes"
        )
    }
}

/// The state of a node's connection to a volume, and what is wrong with it.
fn connection(row: &NodeRow, handle: &str) -> (String, Option<Trouble>) {
    if row.silence == Silence::Silent {
        return (
            format!(
                "not known: the node is unreachable, its last heartbeat was {} ago",
                ago(row.heard.age().as_secs())
            ),
            None,
        );
    }
    let Some(connections) = &row.connections else { return ("not reported by the node".to_owned(), None) };
    let is_it = |trouble: &&Trouble| handle.parse::<VolumeId>().is_ok_and(|volume| volume == trouble.volume);
    let Some(trouble) = connections.troubles.iter().find(is_it) else {
        return ("the node reports no problem".to_owned(), None);
    };
    let since = ago(trouble.since.age().as_secs());
    let state = match &trouble.kind {
        TroubleKind::Stalled { address } => format!("no connection to {address} for {since}: reads and writes wait"),
        TroubleKind::Detached => format!("ended {since} ago, because the volume was detached: reads and writes fail"),
    };
    (state, Some(trouble.clone()))
}
