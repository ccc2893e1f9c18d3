//! A claim with its volume: the pool, the home node, and growth.

use holdfast::csi::DRIVER_NAME;
use holdfast::home::Health;
use holdfast::registry::{NodeRow, Nodes};
use holdfast::route::Silence;
use holdfast::types::{PoolId, VolumeId};

use super::super::ago;
use super::super::facts::Found;
use super::super::objects::{Claim, Volume, bytes, shown};
use super::{Case, Finding, code_in, said_by};

impl Case<'_> {
    /// A claim with its volume.
    pub(super) fn bound(&mut self, claim: &Claim) {
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
            let waits_for = "another driver: its volume does not belong to Holdfast";
            let next = format!("kubectl describe pv {name}");
            return self.found("other-driver", self.claim_name(), waits_for, "", next);
        }
        let home = self.home(volume);
        if let Some(home) = &home {
            self.over_network(volume, home);
        }
        self.growing(claim);
        for pod in self.pods() {
            let ready = pod.status.conditions.iter().any(|one| one.r#type == "Ready" && one.status == "True");
            if !ready {
                self.waiting(claim, volume, pod, home.as_deref());
            }
        }
    }

    /// The pool and home node of the volume, from the controller.
    pub(super) fn home(&mut self, volume: &Volume) -> Option<String> {
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
                (entry.name.to_string(), format!("; node {} did {} ago", entry.node, ago(entry.heard.age().as_secs())))
            });
            self.link("pool", name, "served by no node");
            let next = "run holdfast doctor; start the node that has the pool's disks";
            self.findings.push(Finding {
                rule: "pool-not-served",
                object,
                waits_for: format!("pool {pool}, which no node serves{last}"),
                since: entry.map(|entry| entry.heard.seconds()),
                next: next.to_owned(),
            });
            return entry.map(|entry| entry.node.to_string());
        };
        let heard = node.heard.age().as_secs();
        let known = node.pools.iter().find(|one| one.id == pool)?;
        let (state, wrong) = match (&known.health, node.silence) {
            (_, Silence::Silent) => (
                "unreachable".to_owned(),
                Some((
                    "home-unreachable",
                    format!(
                        "node {}, its home node, which is unreachable: the last heartbeat was {} ago",
                        node.node,
                        ago(heard)
                    ),
                    format!(
                        "kubectl get node {0}; kubectl get pods -A -l app.kubernetes.io/name=holdfast --field-selector spec.nodeName={0}",
                        node.node
                    ),
                    Some(node.heard.seconds()),
                )),
            ),
            (Health::Failing(why), _) => (
                format!("failing: {why}"),
                Some((
                    "pool-failing",
                    format!("pool {} on node {}, which cannot be read: {why}", known.name, node.node),
                    "run holdfast doctor, and dmesg on that node".to_owned(),
                    None,
                )),
            ),
            (Health::Quarantined(since), _) => (
                "in quarantine".to_owned(),
                Some((
                    "pool-quarantined",
                    format!(
                        "pool {} on node {} to be readmitted: it was declared lost and came back",
                        known.name, node.node
                    ),
                    format!(
                        "remove node {} and pool {pool} from lostHomes (in the chart's values), then run holdfast pools readmit {pool}",
                        node.node
                    ),
                    Some(since.seconds()),
                )),
            ),
            (Health::Served(report), Silence::Heard) => (format!("served, {} available", report.available), None),
        };
        self.link(
            "pool",
            format!("{} on node {}", known.name, node.node),
            format!("{state}, last heartbeat {} ago", ago(heard)),
        );
        if let Some((rule, waits_for, next, since)) = wrong {
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
        let what = format!("to grow from {} to {}", shown(has), shown(wanted));
        let describe = self.describe("pvc", &self.facts.name);
        if let Some(pending) = condition("FileSystemResizePending") {
            let on_node = self.pods().iter().any(|pod| !pod.spec.node_name.is_empty());
            let (waits_for, next) = if on_node {
                let failed = condition("NodeResizeError");
                let said = failed.map_or(String::new(), |failed| format!("; {}", said_by("kubelet", &failed.message)));
                (format!("kubelet {what}: the filesystem grows on the node{said}"), describe)
            } else {
                (
                    format!("a pod {what}: the filesystem grows when it is mounted"),
                    "start a pod that uses it".to_owned(),
                )
            };
            return self.found("growth-at-node", self.claim_name(), waits_for, &pending.last_transition_time, next);
        }
        // The condition stays after Kubernetes deletes the event, which is after an hour.
        let event = self.event("PersistentVolumeClaim", &claim.metadata, &["VolumeResizeFailed"]);
        let failed = event.map(|event| (event.message.as_str(), event.began())).or_else(|| {
            condition("ControllerResizeError").map(|one| (one.message.as_str(), one.last_transition_time.as_str()))
        });
        if let Some((message, since)) = failed {
            let next = if code_in(message) == "OutOfRange" {
                format!(
                    "run holdfast pools to see the free space; free more, or request less, which may be as little as {has}: kubectl -n {} edit pvc {}",
                    self.facts.namespace, self.facts.name
                )
            } else {
                describe
            };
            let waits_for = format!("its volume {what}; {}", said_by("the resizer", message));
            return self.found("growth-failed", self.claim_name(), waits_for, since, next);
        }
        let since = condition("Resizing").map_or(String::new(), |one| one.last_transition_time.clone());
        self.found("growth-waits", self.claim_name(), format!("the resizer {what}"), &since, describe);
    }
}
