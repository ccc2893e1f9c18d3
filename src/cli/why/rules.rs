//! What keeps a claim from being used: a pure function of what was gathered.
//!
//! The rules follow the claim's way: claim, class, provisioning, volume, home, pod, node, attachment, mount, growth. What
//! could not be asked is concluded from nowhere: a rule that needs it says nothing.

use holdfast::csi::DRIVER_NAME;
use holdfast::home::Health;
use holdfast::registry::{NodeRow, Nodes};
use holdfast::route::{NODE_KEY, Silence};
use holdfast::types::{Bytes, PoolId, VolumeId};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::facts::{Facts, Found};
use super::objects::{Attachment, Claim, Class, Event, Pod, Volume, bytes};

/// Marks the class of claims that name none.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// The node the scheduler chose for a claim's volume.
const SELECTED: &str = "volume.kubernetes.io/selected-node";
/// So long a part of Kubernetes may take without being suspected.
const PATIENCE: i64 = 30;

/// One object on the claim's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Link {
    /// What it is.
    pub(super) kind: &'static str,
    /// What it is called.
    pub(super) name: String,
    /// How it is.
    pub(super) state: String,
}

/// One thing that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    /// Which rule found it.
    pub(super) rule: &'static str,
    /// The object that waits.
    pub(super) object: String,
    /// What for.
    pub(super) waits_for: String,
    /// Seconds since 1970.
    pub(super) since: Option<i64>,
    /// The next command, or what to do.
    pub(super) next: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Explanation {
    /// The claim's way.
    pub(super) chain: Vec<Link>,
    /// The nearest to the cause first; empty when all is well.
    pub(super) findings: Vec<Finding>,
    /// What could not be asked.
    pub(super) unasked: Vec<String>,
}

/// Explains.
pub(super) fn explain(facts: &Facts, now: i64) -> Explanation {
    let mut case = Case { facts, now, chain: Vec::new(), findings: Vec::new() };
    case.look();
    Explanation { chain: case.chain, findings: case.findings, unasked: facts.unasked.clone() }
}

/// Seconds since 1970 of a time as Kubernetes writes it.
fn seconds(time: &str) -> Option<i64> {
    time.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

/// What the driver said, out of what a sidecar or kubelet wrote around it.
fn drivers_words(message: &str) -> String {
    let (around, said) = message.rsplit_once(" desc = ").unwrap_or(("", message));
    let code = around.rsplit_once("code = ").map_or("", |(_, code)| code.trim());
    if code.is_empty() { said.trim().to_owned() } else { format!("{code}: {}", said.trim()) }
}

struct Case<'a> {
    facts: &'a Facts,
    now: i64,
    chain: Vec<Link>,
    findings: Vec<Finding>,
}

impl<'a> Case<'a> {
    fn link(&mut self, kind: &'static str, name: impl Into<String>, state: impl Into<String>) {
        self.chain.push(Link { kind, name: name.into(), state: state.into() });
    }

    fn found(
        &mut self,
        rule: &'static str,
        object: impl Into<String>,
        waits_for: impl Into<String>,
        since: &str,
        next: impl Into<String>,
    ) {
        let (object, waits_for, next) = (object.into(), waits_for.into(), next.into());
        self.findings.push(Finding { rule, object, waits_for, since: seconds(since), next });
    }

    fn claim_name(&self) -> String {
        format!("claim {}/{}", self.facts.namespace, self.facts.name)
    }

    /// `kubectl describe` of something in the claim's namespace.
    fn describe(&self, what: &str, name: &str) -> String {
        format!("kubectl -n {} describe {what} {name}", self.facts.namespace)
    }

    /// Whether so much time is over that whoever has to act is missed.
    fn is_overdue(&self, since: &str) -> bool {
        seconds(since).is_none_or(|since| self.now - since > PATIENCE)
    }

    /// The latest event of one of these reasons about an object.
    fn event(&self, kind: &str, name: &str, reasons: &[&str]) -> Option<&'a Event> {
        self.event_that(kind, name, reasons, |_| true)
    }

    /// The latest of those with such a message.
    fn event_that(&self, kind: &str, name: &str, reasons: &[&str], says: impl Fn(&str) -> bool) -> Option<&'a Event> {
        let about = |event: &&Event| {
            event.involved_object.kind == kind
                && event.involved_object.name == name
                && reasons.contains(&event.reason.as_str())
                && says(&event.message)
        };
        let events = self.facts.events.iter().flatten().filter(about);
        events.max_by_key(|event| seconds(event.time()).unwrap_or(i64::MIN))
    }

    fn look(&mut self) {
        let claim = match &self.facts.claim {
            Found::Yes(claim) => claim,
            Found::No => {
                let list = format!("kubectl -n {} get pvc", self.facts.namespace);
                return self.found("no-claim", self.claim_name(), "to be made: it does not exist", "", list);
            }
            Found::Unknown => return,
        };
        let phase = if claim.status.phase.is_empty() { "Pending" } else { &claim.status.phase };
        let wants = claim.spec.resources.requests.get("storage").map_or("", String::as_str);
        let modes = claim.spec.access_modes.join(", ");
        self.link(
            "claim",
            format!("{}/{}", self.facts.namespace, self.facts.name),
            format!("{phase}, wants {wants}, {modes}"),
        );
        let class = self.class(claim);
        if self.facts.driver.is_missing() {
            let next = "helm list -A; install the chart, which makes the CSIDriver object";
            self.found("no-driver", format!("CSIDriver {DRIVER_NAME}"), "the driver to be installed", "", next);
        }
        self.deleting(claim);
        match phase {
            "Bound" => self.bound(claim),
            "Lost" => {
                let volume = &claim.spec.volume_name;
                let next = format!(
                    "kubectl get pv {volume}; holdfast volumes (a PersistentVolume for an existing volume can be made again)"
                );
                self.found("lost", self.claim_name(), format!("PersistentVolume {volume}, which is gone"), "", next);
            }
            _ => self.pending(claim, class),
        }
        for pod in self.pods() {
            let on = if pod.spec.node_name.is_empty() {
                "no node yet".to_owned()
            } else {
                format!("on node {}", pod.spec.node_name)
            };
            let chain =
                Link { kind: "pod", name: pod.metadata.name.clone(), state: format!("{}, {on}", pod.status.phase) };
            self.chain.push(chain);
        }
    }

    fn pods(&self) -> Vec<&'a Pod> {
        self.facts.pods.iter().flatten().filter(|pod| !pod.is_over()).collect()
    }

    /// The class, and what is wrong with it for a claim that is not bound.
    fn class(&mut self, claim: &Claim) -> Option<&'a Class> {
        let facts = self.facts;
        let classes = facts.classes.as_ref()?;
        let named = match claim.spec.storage_class_name.as_deref() {
            Some("") => {
                self.link("class", "\"\"", "none: only volumes made beforehand");
                return None;
            }
            Some(name) => classes.iter().find(|class| class.metadata.name == name),
            None => classes
                .iter()
                .find(|class| class.metadata.annotations.get(DEFAULT_CLASS).is_some_and(|is| is == "true")),
        };
        let is_open = claim.status.phase != "Bound";
        match (named, claim.spec.storage_class_name.as_deref()) {
            (Some(class), _) => {
                let pool =
                    class.parameters.get("pool").map_or("the default pool".to_owned(), |pool| format!("pool {pool}"));
                self.link(
                    "class",
                    &class.metadata.name,
                    format!("{}, {}, {pool}", class.provisioner, class.volume_binding_mode),
                );
            }
            (None, Some(name)) if is_open => {
                let known: Vec<_> = classes.iter().map(|class| class.metadata.name.as_str()).collect();
                let waits_for = format!("StorageClass {name}, which does not exist; there are [{}]", known.join(", "));
                let next = "make that class, or delete the claim and name another: kubectl get storageclass";
                self.found("class-not-found", self.claim_name(), waits_for, &claim.metadata.creation_timestamp, next);
            }
            (None, None) if is_open => {
                let next = format!(
                    "name a class in the claim, or make one the default: kubectl annotate storageclass NAME {DEFAULT_CLASS}=true"
                );
                let waits_for = "a class: it names none, and no StorageClass is the default";
                self.found("no-default-class", self.claim_name(), waits_for, &claim.metadata.creation_timestamp, next);
            }
            (None, _) => {}
        }
        named
    }

    fn deleting(&mut self, claim: &Claim) {
        let since = &claim.metadata.deletion_timestamp;
        if since.is_empty() {
            return;
        }
        let users: Vec<_> = self.pods().iter().map(|pod| pod.metadata.name.clone()).collect();
        if !users.is_empty() {
            let next = format!("kubectl -n {} delete pod {}", self.facts.namespace, users.join(" "));
            let waits_for = format!("pod {} to end: it is being deleted and still used", users.join(", "));
            self.found("claim-in-use", self.claim_name(), waits_for, since, next);
        }
    }

    /// A claim without a volume.
    fn pending(&mut self, claim: &Claim, class: Option<&Class>) {
        let since = claim.metadata.creation_timestamp.as_str();
        if let Some(released) = self.facts.released.as_ref().and_then(|all| all.first()) {
            let name = &released.metadata.name;
            self.link("volume", name, "Released: kept after its claim was deleted");
            let waits_for =
                format!("PersistentVolume {name}, which is kept (Retain) for the claim of this name that was deleted");
            let next = format!(
                "to use it again: kubectl patch pv {name} --type merge -p '{{\"spec\":{{\"claimRef\":{{\"uid\":null,\"resourceVersion\":null}}}}}}', and name it in the claim (spec.volumeName)"
            );
            self.found("released", self.claim_name(), waits_for, since, next);
        }
        let Some(class) = class else { return };
        if class.provisioner != DRIVER_NAME {
            let waits_for = format!("the driver {}, which is not this one", class.provisioner);
            let next = self.describe("pvc", &self.facts.name);
            return self.found("other-driver", self.claim_name(), waits_for, since, next);
        }
        if self.source(claim) {
            return;
        }
        let size = claim.spec.resources.requests.get("storage").cloned().unwrap_or_default();
        let failed = self.event("PersistentVolumeClaim", &self.facts.name, &["ProvisioningFailed"]).cloned();
        let is_late = class.volume_binding_mode == "WaitForFirstConsumer";
        let selected = claim.metadata.annotations.get(SELECTED).cloned();
        let full = self.full(class, &size);
        if let (Some(full), true) =
            (&full, is_late && selected.is_none() && !self.pods().is_empty() || failed.is_some())
        {
            let next = "holdfast pools (what is full), then delete volumes or snapshots, grow the pool's filesystem, or add a node";
            self.found("no-room", self.claim_name(), full.clone(), since, next);
        }
        if let Some(failed) = failed {
            let waits_for = format!("its volume; the driver says: {}", drivers_words(&failed.message));
            let next = self.describe("pvc", &self.facts.name);
            return self.found("provisioning-failed", self.claim_name(), waits_for, failed.began(), next);
        }
        if is_late && selected.is_none() {
            let pods = self.pods();
            let Some(pod) = pods.first() else {
                if self.facts.pods.is_some() {
                    let waits_for = "a pod that uses it: its class binds at the first consumer";
                    let next = "start the pod; nothing is wrong with the claim";
                    self.found("no-consumer", self.claim_name(), waits_for, since, next);
                }
                return;
            };
            let (pod, full) = ((*pod).clone(), full.is_some());
            if !full {
                self.unschedulable(&pod, None);
            }
            return;
        }
        if self.is_overdue(since) && self.findings.is_empty() {
            let node = selected.map_or(String::new(), |node| format!(" on node {node}"));
            let waits_for = format!("the provisioner to make a volume of {size}{node}; it has said nothing yet");
            let next = "kubectl get pods -A -l app.kubernetes.io/name=holdfast, then kubectl logs of the controller's container provisioner";
            self.found("provisioner-silent", self.claim_name(), waits_for, since, next);
        }
    }

    /// What the claim is filled from; whether that is what it waits for.
    fn source(&mut self, claim: &Claim) -> bool {
        let Some(source) = claim.spec.data_source.as_ref().filter(|source| source.kind == "VolumeSnapshot") else {
            return false;
        };
        let name = format!("snapshot {}/{}", self.facts.namespace, source.name);
        match &self.facts.snapshot {
            Found::Unknown => false,
            Found::No => {
                let next = format!("kubectl -n {} get volumesnapshot", self.facts.namespace);
                let waits_for = format!("{name}, which does not exist");
                self.found(
                    "snapshot-not-found",
                    self.claim_name(),
                    waits_for,
                    &claim.metadata.creation_timestamp,
                    next,
                );
                true
            }
            Found::Yes(snapshot) if snapshot.status.ready_to_use => {
                self.link("source", name, "ready");
                false
            }
            Found::Yes(snapshot) => {
                let why = match &snapshot.status.error {
                    Some(error) => format!("; the driver says: {}", drivers_words(&error.message)),
                    None => " yet".to_owned(),
                };
                self.link("source", &name, "not ready");
                let next = self.describe("volumesnapshot", &source.name);
                let waits_for = format!("{name}, which is not ready{why}");
                self.found(
                    "snapshot-not-ready",
                    self.claim_name(),
                    waits_for,
                    &snapshot.metadata.creation_timestamp,
                    next,
                );
                true
            }
        }
    }

    /// Each place with what it has room for, where none has room for this size.
    fn full(&self, class: &Class, size: &str) -> Option<String> {
        let wanted = bytes(size)?;
        let from_objects = self.facts.capacities.as_ref().map(|all| {
            let of_class = all.iter().filter(|one| one.storage_class_name == class.metadata.name);
            let place = |one: &super::objects::Capacity| {
                let largest = if one.maximum_volume_size.is_empty() { &one.capacity } else { &one.maximum_volume_size };
                let node = one.node_topology.match_labels.get(NODE_KEY).cloned().unwrap_or_default();
                (node, bytes(largest).unwrap_or(0).min(bytes(&one.capacity).unwrap_or(u64::MAX)))
            };
            of_class.map(place).collect::<Vec<_>>()
        });
        let from_controller = || {
            self.facts.homes.as_ref().map(|homes| {
                let wants = class.parameters.get("pool");
                let figures = homes.nodes.iter().filter(|node| node.silence == Silence::Heard).flat_map(|node| {
                    let served = node.pools.iter().filter_map(|pool| match &pool.health {
                        Health::Served(report) if wants.is_none_or(|wants| *wants == pool.name.as_str()) => {
                            Some(report.available.get())
                        }
                        _ => None,
                    });
                    served.map(|available| (node.node.to_string(), available)).collect::<Vec<_>>()
                });
                figures.collect::<Vec<_>>()
            })
        };
        let places = match from_objects {
            Some(places) if !places.is_empty() => places,
            _ => from_controller().filter(|places| !places.is_empty())?,
        };
        if places.iter().any(|(_, room)| *room >= wanted) {
            return None;
        }
        let said: Vec<_> = places.iter().map(|(node, room)| format!("{node} has {}", Bytes::new(*room))).collect();
        Some(format!("room for {size} on any node: {}", said.join(", ")))
    }

    /// A pod without a node.
    fn unschedulable(&mut self, pod: &Pod, volume_on: Option<&str>) {
        let object = format!("pod {}/{}", self.facts.namespace, pod.metadata.name);
        let next = self.describe("pod", &pod.metadata.name);
        let scheduled = pod.status.conditions.iter().find(|one| one.r#type == "PodScheduled" && one.status == "False");
        let Some(scheduled) = scheduled else {
            if self.is_overdue(&pod.metadata.creation_timestamp) {
                self.found(
                    "no-scheduler",
                    object,
                    "the scheduler, which has not looked at it",
                    &pod.metadata.creation_timestamp,
                    next,
                );
            }
            return;
        };
        let tied = volume_on.map_or(String::new(), |node| format!(" (its volume is on node {node})"));
        let waits_for = format!("a node{tied}; the scheduler says: {}", scheduled.message);
        self.found("unschedulable", object, waits_for, &scheduled.last_transition_time, next);
    }

    /// A claim with its volume.
    fn bound(&mut self, claim: &Claim) {
        let facts = self.facts;
        let name = &claim.spec.volume_name;
        let volume = match &facts.volume {
            Found::Yes(volume) => volume,
            Found::No => {
                let next = format!("kubectl get pv {name}");
                return self.found(
                    "lost",
                    self.claim_name(),
                    format!("PersistentVolume {name}, which is gone"),
                    "",
                    next,
                );
            }
            Found::Unknown => return,
        };
        let handle = volume.spec.csi.as_ref().map_or("", |csi| csi.volume_handle.as_str());
        self.link("volume", name, format!("{}, handle {handle}", volume.status.phase));
        if volume.spec.csi.as_ref().is_none_or(|csi| csi.driver != DRIVER_NAME) {
            let waits_for = "nothing of Holdfast's: its volume is of another driver";
            let next = format!("kubectl describe pv {name}");
            return self.found("other-driver", self.claim_name(), waits_for, "", next);
        }
        let home = self.home(volume);
        self.growing(claim);
        for pod in self.pods() {
            let ready = pod.status.conditions.iter().any(|one| one.r#type == "Ready" && one.status == "True");
            if !ready {
                self.waiting(claim, volume, pod, home.as_deref());
            }
        }
    }

    /// The volume's pool and node, as the controller knows them.
    fn home(&mut self, volume: &Volume) -> Option<String> {
        let homes: &Nodes = self.facts.homes.as_ref()?;
        let handle = volume.spec.csi.as_ref()?.volume_handle.as_str();
        let id: VolumeId = handle.parse().ok()?;
        let pool: PoolId = id.pool;
        let object = format!("volume {}", volume.metadata.name);
        let has = |node: &&NodeRow| node.pools.iter().any(|one| one.id == pool);
        let having: Vec<&NodeRow> = homes.nodes.iter().filter(has).collect();
        let node = having.iter().find(|node| node.silence == Silence::Heard).or(having.first()).copied();
        let Some(node) = node else {
            let entry = homes.missing.iter().find(|entry| entry.pool == pool);
            let (name, last) = entry.map_or((pool.to_string(), String::new()), |entry| {
                (
                    entry.name.to_string(),
                    format!("; node {} did {} ago", entry.node, super::ago(entry.heard.age().as_secs())),
                )
            });
            self.link("pool", name, "served by no node");
            let next = "holdfast doctor; start the node that has the pool's disks";
            self.found("pool-not-served", object, format!("pool {pool}, which no node serves{last}"), "", next);
            return entry.map(|entry| entry.node.to_string());
        };
        let heard = node.heard.age().as_secs();
        let known = node.pools.iter().find(|one| one.id == pool)?;
        let (state, wrong) = match (&known.health, node.silence) {
            (_, Silence::Silent) => (
                format!("not heard for {}", super::ago(heard)),
                Some((
                    "home-silent",
                    format!("node {}, its home, which has not been heard for {}", node.node, super::ago(heard)),
                    format!(
                        "kubectl get node {0}; kubectl get pods -A -l app.kubernetes.io/name=holdfast --field-selector spec.nodeName={0}",
                        node.node
                    ),
                )),
            ),
            (Health::Failing(why), _) => (
                format!("failing: {why}"),
                Some((
                    "pool-failing",
                    format!("pool {} on node {}, which cannot be read: {why}", known.name, node.node),
                    "holdfast doctor; dmesg on that node".to_owned(),
                )),
            ),
            (Health::Quarantined(_), _) => (
                "in quarantine".to_owned(),
                Some((
                    "pool-quarantined",
                    format!(
                        "pool {} on node {} to be readmitted: it was declared lost and came back",
                        known.name, node.node
                    ),
                    format!("holdfast pools readmit {pool}"),
                )),
            ),
            (Health::Served(report), Silence::Heard) => {
                (format!("served, {} free for volumes", report.available), None)
            }
        };
        self.link(
            "pool",
            format!("{} on node {}", known.name, node.node),
            format!("{state}, heard {} ago", super::ago(heard)),
        );
        if let Some((rule, waits_for, next)) = wrong {
            let since = i64::try_from(heard).ok().filter(|_| rule == "home-silent").map(|heard| self.now - heard);
            self.findings.push(Finding { rule, object, waits_for, since, next });
        }
        Some(node.node.to_string())
    }

    fn growing(&mut self, claim: &Claim) {
        let (wanted, has) = (claim.spec.resources.requests.get("storage"), claim.status.capacity.get("storage"));
        let (Some(wanted), Some(has)) = (wanted, has) else { return };
        if bytes(wanted) <= bytes(has) {
            return;
        }
        let condition =
            |kind: &str| claim.status.conditions.iter().find(|one| one.r#type == kind && one.status == "True");
        let failed = self.event("PersistentVolumeClaim", &self.facts.name, &["VolumeResizeFailed"]).cloned();
        let what = format!("to grow from {has} to {wanted}");
        let describe = self.describe("pvc", &self.facts.name);
        if let Some(pending) = condition("FileSystemResizePending") {
            let on_node = self.pods().iter().any(|pod| !pod.spec.node_name.is_empty());
            let (waits_for, next) = if on_node {
                (format!("kubelet {what}: the filesystem follows at the node"), describe)
            } else {
                (
                    format!("a pod {what}: the filesystem grows when it is mounted"),
                    "start a pod that uses it".to_owned(),
                )
            };
            return self.found("growth-at-node", self.claim_name(), waits_for, &pending.last_transition_time, next);
        }
        if let Some(failed) = failed {
            let waits_for = format!("its volume {what}; the driver says: {}", drivers_words(&failed.message));
            return self.found("growth-failed", self.claim_name(), waits_for, failed.began(), describe);
        }
        let since = condition("Resizing").map_or(String::new(), |one| one.last_transition_time.clone());
        self.found("growth-waits", self.claim_name(), format!("the resizer {what}"), &since, describe);
    }

    /// A pod that has its volume's claim bound and is not ready.
    fn waiting(&mut self, claim: &Claim, volume: &Volume, pod: &Pod, home: Option<&str>) {
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
            if let Some(home) = home {
                self.node_trouble(&object, home);
            }
            return self.unschedulable(pod, home);
        }
        // Cordoned or not: it is there already.
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
        self.attaching(&object, volume, pod);
        // Kubelet's sum of all volumes, said now and then, has nobody's words; other volumes are not the driver's.
        let of_volume = |message: &str| {
            message.contains(&volume.metadata.name) && !message.starts_with("Unable to attach or mount volumes")
        };
        let failed = self.event_that("Pod", &pod.metadata.name, &["FailedMount", "FailedMapVolume"], of_volume);
        if let Some(event) = failed.cloned() {
            let waits_for =
                format!("its volume to be mounted on node {node}; the driver says: {}", drivers_words(&event.message));
            let next =
                format!("{}; kubectl logs of the driver on node {node}", self.describe("pod", &pod.metadata.name));
            self.found("mount-failed", object.clone(), waits_for, event.began(), next);
        }
        if self.findings.is_empty() && self.is_overdue(&pod.metadata.creation_timestamp) {
            let waits_for = format!(
                "something that is not its volume, as far as can be seen; it is {} on node {node}",
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

    /// A node that takes no pods.
    fn node_trouble(&mut self, object: &str, name: &str) {
        let mut nodes = self.facts.nodes.iter().flatten();
        let cordoned = nodes.any(|node| node.metadata.name == name && node.spec.unschedulable);
        if !self.node_not_ready(object, name) && cordoned {
            let next = format!("kubectl uncordon {name}");
            self.found("node-cordoned", object, format!("node {name}, which is cordoned"), "", next);
        }
    }

    /// A node that runs no pods; whether that was found.
    fn node_not_ready(&mut self, object: &str, name: &str) -> bool {
        let Some(node) = self.facts.nodes.iter().flatten().find(|node| node.metadata.name == name) else {
            return false;
        };
        let ready = node.status.conditions.iter().find(|one| one.r#type == "Ready");
        let Some(ready) = ready.filter(|ready| ready.status != "True") else { return false };
        let waits_for = format!("node {name}, which is not ready: {}", ready.message);
        let next = format!("kubectl describe node {name}");
        self.found("node-not-ready", object, waits_for, &ready.last_transition_time, next);
        true
    }

    fn attaching(&mut self, object: &str, volume: &Volume, pod: &Pod) {
        let facts = self.facts;
        let Some(all) = &facts.attachments else { return };
        let (name, node) = (&volume.metadata.name, &pod.spec.node_name);
        let state = |one: &Attachment| {
            let attached = if one.status.attached { "attached" } else { "not attached" };
            let leaving = if one.metadata.deletion_timestamp.is_empty() { "" } else { ", being detached" };
            format!("{attached} to node {}{leaving}", one.spec.node_name)
        };
        for one in all {
            self.link("attachment", &one.metadata.name, state(one));
        }
        let here = all.iter().find(|one| one.spec.node_name == *node);
        let elsewhere = all.iter().find(|one| one.spec.node_name != *node);
        match (here, elsewhere) {
            (Some(here), _) if here.status.attached => {}
            (_, Some(other)) => {
                let detaching = match &other.status.detach_error {
                    Some(error) => format!("; the driver says: {}", drivers_words(&error.message)),
                    None => String::new(),
                };
                let waits_for = format!(
                    "volume {name} to be detached from node {}, which holds it{detaching}",
                    other.spec.node_name
                );
                let next = format!(
                    "kubectl get pods -A -o wide --field-selector spec.nodeName={}, and end what uses it there",
                    other.spec.node_name
                );
                self.found("held-elsewhere", object, waits_for, &other.metadata.deletion_timestamp, next);
            }
            (Some(here), None) => {
                let (why, since) = match &here.status.attach_error {
                    Some(error) => (format!("the driver says: {}", drivers_words(&error.message)), &error.time),
                    None => ("nobody has answered yet".to_owned(), &here.metadata.creation_timestamp),
                };
                let waits_for = format!("volume {name} to be attached to node {node}; {why}");
                self.found(
                    "attach-waits",
                    object,
                    waits_for,
                    since,
                    format!("kubectl describe volumeattachment {}", here.metadata.name),
                );
            }
            (None, None) => {
                let waits_for = format!("a VolumeAttachment of volume {name} to node {node}; there is none yet");
                let next = "kubectl get pods -n kube-system (kube-controller-manager makes it)";
                if self.is_overdue(&pod.metadata.creation_timestamp) {
                    self.found("no-attachment", object, waits_for, &pod.metadata.creation_timestamp, next);
                }
            }
        }
    }
}
