//! A claim without a volume, its class and its data source.

use holdfast::csi::DRIVER_NAME;
use holdfast::home::Health;
use holdfast::route::{NODE_KEY, Silence};
use holdfast::types::Bytes;

use super::super::facts::Found;
use super::super::objects::{Capacity, Claim, Class, Reference, bytes, shown};
use super::{Case, Hint, said_by};

/// Marks the default class.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// The node that the scheduler selected for the volume of a claim.
const SELECTED: &str = "volume.kubernetes.io/selected-node";

/// The command that reserves a released volume for one claim. Without a claimRef, any claim of its class could take it,
/// with its data.
pub(super) fn handed_on(volume: &str, namespace: &str, claim: &str) -> String {
    format!(
        "kubectl patch pv {volume} --type merge -p '{{\"spec\":{{\"claimRef\":{{\"namespace\":\"{namespace}\",\"name\":\"{claim}\",\"uid\":null,\"resourceVersion\":null}}}}}}'"
    )
}

impl<'a> Case<'a> {
    /// The class, and its problems for a claim that is not bound.
    pub(super) fn class(&mut self, claim: &Claim) -> Option<&'a Class> {
        let facts = self.facts;
        let classes = facts.classes.as_ref()?;
        let named = match claim.spec.storage_class_name.as_deref() {
            Some("") => {
                self.link("class", "\"\"", "none: only volumes that already exist");
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
                let next = "create that class, or delete the claim and name another: kubectl get storageclass";
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

    /// A claim without a volume.
    pub(super) fn pending(&mut self, claim: &Claim, class: Option<&Class>) {
        if claim.spec.volume_name.is_empty() {
            self.provisioning(claim, class);
        } else {
            self.named_volume(claim);
        }
        let kept = self.facts.released.iter().flatten().find(|volume| volume.is_kept_from_before(claim));
        if let Some(kept) = kept {
            let name = &kept.metadata.name;
            self.link("volume", name, "Released: retained from an earlier claim with this name");
            self.hints.push(Hint {
                what: format!(
                    "PersistentVolume {name} is kept (reclaim policy Retain) from an earlier claim with this name, which was deleted"
                ),
                next: format!(
                    "to use it again, create the claim again with spec.volumeName: {name}, and run {}",
                    handed_on(name, &self.facts.namespace, &self.facts.name)
                ),
            });
        }
    }

    /// A claim with spec.volumeName.
    fn named_volume(&mut self, claim: &Claim) {
        let since = claim.metadata.creation_timestamp.as_str();
        let name = &claim.spec.volume_name;
        match &self.facts.volume {
            Found::Unknown => {}
            Found::No => {
                let waits_for = format!("PersistentVolume {name} (its spec.volumeName), which does not exist");
                let next = "kubectl get pv; create that PersistentVolume, or delete the claim and name another";
                self.found("volume-not-found", self.claim_name(), waits_for, since, next);
            }
            Found::Yes(volume) => {
                let phase = &volume.status.phase;
                self.link("volume", name, phase);
                let taken = volume.spec.claim_ref.as_ref().filter(|by| !claim.is_meant(by));
                if let Some(by) = taken {
                    let who = if claim.has_name(by) {
                        "an earlier claim with this name".to_owned()
                    } else {
                        format!("claim {}/{}", by.namespace, by.name)
                    };
                    let is_kept = volume.spec.persistent_volume_reclaim_policy == "Retain";
                    let next = match phase.as_str() {
                        "Released" if is_kept => handed_on(name, &self.facts.namespace, &self.facts.name),
                        _ => "name another volume".to_owned(),
                    };
                    let waits_for = format!("PersistentVolume {name}, which is {phase} and belongs to {who}");
                    return self.found("volume-taken", self.claim_name(), waits_for, since, next);
                }
                if self.is_overdue(since) {
                    let said =
                        self.event("PersistentVolumeClaim", &claim.metadata, &["VolumeMismatch", "FailedBinding"]);
                    let why = said.map_or("no event gives a reason".to_owned(), |event| event.message.clone());
                    let waits_for = format!("PersistentVolume {name} to be bound to it; {why}");
                    self.found(
                        "not-bound",
                        self.claim_name(),
                        waits_for,
                        since,
                        self.describe("pvc", &self.facts.name),
                    );
                }
            }
        }
    }

    /// A claim that needs a new volume.
    fn provisioning(&mut self, claim: &Claim, class: Option<&Class>) {
        let since = claim.metadata.creation_timestamp.as_str();
        let Some(class) = class else { return };
        if class.provisioner != DRIVER_NAME {
            let waits_for = format!("the driver {}, which is not Holdfast", class.provisioner);
            let next = self.describe("pvc", &self.facts.name);
            return self.found("other-driver", self.claim_name(), waits_for, since, next);
        }
        if self.source(claim) {
            return;
        }
        let size = claim.spec.resources.requests.get("storage").cloned().unwrap_or_default();
        let failed = self.event("PersistentVolumeClaim", &claim.metadata, &["ProvisioningFailed"]).cloned();
        let is_late = class.volume_binding_mode == "WaitForFirstConsumer";
        let selected = claim.metadata.annotations.get(SELECTED).cloned();
        let full = self.full(class, &size);
        if let (Some(full), true) =
            (&full, is_late && selected.is_none() && !self.pods().is_empty() || failed.is_some())
        {
            let next = "run holdfast pools to see which pools are full; then delete volumes or snapshots, grow the pool's filesystem, or add a node";
            self.found("no-capacity", self.claim_name(), full.clone(), since, next);
        }
        if let Some(failed) = failed {
            let waits_for = format!("its volume; {}", said_by("the provisioner", &failed.message));
            let next = self.describe("pvc", &self.facts.name);
            return self.found("provisioning-failed", self.claim_name(), waits_for, failed.began(), next);
        }
        if is_late && selected.is_none() {
            let pods = self.pods();
            let Some(pod) = pods.first() else {
                if self.facts.pods.is_some() {
                    let waits_for = "a pod that uses it: its class binds at the first consumer (WaitForFirstConsumer)";
                    let next = "start the pod; the claim has no problem";
                    self.found("no-consumer", self.claim_name(), waits_for, since, next);
                }
                return;
            };
            let (pod, full) = ((*pod).clone(), full.is_some());
            if !full {
                self.unschedulable(&pod, None, None);
            }
            return;
        }
        if self.is_overdue(since) && self.findings.is_empty() {
            let node = selected.map_or(String::new(), |node| format!(" on node {node}"));
            let waits_for =
                format!("the provisioner to create a volume of {}{node}; it has not answered yet", shown(&size));
            let next = "kubectl get pods -A -l app.kubernetes.io/name=holdfast, then kubectl logs of the controller's container provisioner";
            self.found("provisioner-unresponsive", self.claim_name(), waits_for, since, next);
        }
    }

    /// The data source of the claim; returns whether the claim waits for it.
    fn source(&mut self, claim: &Claim) -> bool {
        let Some(source) = &claim.spec.data_source else { return false };
        match source.kind.as_str() {
            "VolumeSnapshot" => self.snapshot(claim, source),
            "PersistentVolumeClaim" => self.cloned(claim, source),
            _ => false,
        }
    }

    /// The source claim of a clone.
    fn cloned(&mut self, claim: &Claim, source: &Reference) -> bool {
        let (namespace, since) = (&self.facts.namespace, claim.metadata.creation_timestamp.as_str());
        let name = format!("claim {namespace}/{}", source.name);
        match &self.facts.cloned {
            Found::Unknown => false,
            Found::No => {
                let waits_for = format!("{name}, the source of this clone, which does not exist");
                let next =
                    format!("create that claim, or delete this one and name another: kubectl -n {namespace} get pvc");
                self.found("source-not-found", self.claim_name(), waits_for, since, next);
                true
            }
            Found::Yes(original) if original.status.phase == "Bound" => {
                self.link("source", name, "bound");
                false
            }
            Found::Yes(original) => {
                let phase = if original.status.phase.is_empty() { "Pending" } else { &original.status.phase };
                self.link("source", &name, phase);
                let waits_for = format!("{name}, the source of this clone, which is {phase}");
                let next = format!("holdfast why {namespace}/{}", source.name);
                self.found("source-not-bound", self.claim_name(), waits_for, since, next);
                true
            }
        }
    }

    /// The source snapshot.
    fn snapshot(&mut self, claim: &Claim, source: &Reference) -> bool {
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
                    Some(error) => format!("; {}", said_by("the snapshotter", &error.message)),
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

    /// Each node and its free space, if no node has enough for this size.
    fn full(&self, class: &Class, size: &str) -> Option<String> {
        let wanted = bytes(size)?;
        let from_objects = self.facts.capacities.as_ref().map(|all| {
            let of_class = all.iter().filter(|one| one.storage_class_name == class.metadata.name);
            let place = |one: &Capacity| {
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
        Some(format!("free space of {}, which no node has: {}", shown(size), said.join(", ")))
    }
}
