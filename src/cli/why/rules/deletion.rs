//! Objects that are being deleted and still exist: claims with a finalizer, volumes whose claim is gone.

use super::super::facts::Found;
use super::super::objects::{Claim, Pod};
use super::Case;
use super::claims::handed_on;

/// Kubernetes sets it on a claim that pods on nodes use.
const IN_USE: &str = "kubernetes.io/pvc-protection";
/// The snapshot controller sets it on a claim while snapshots of it are taken.
const IS_SOURCE: &str = "snapshot.storage.kubernetes.io/pvc-as-source-protection";
/// The provisioner sets it on a claim while it is cloned.
const IS_CLONED: &str = "provisioner.storage.kubernetes.io/cloning-protection";

impl Case<'_> {
    /// A claim that is being deleted: what blocks its deletion. Returns whether it is being deleted.
    pub(super) fn deleting(&mut self, claim: &Claim) -> bool {
        let since = &claim.metadata.deletion_timestamp;
        if since.is_empty() {
            return false;
        }
        let namespace = &self.facts.namespace;
        for finalizer in &claim.metadata.finalizers {
            match finalizer.as_str() {
                IN_USE => self.in_use(since),
                IS_SOURCE => {
                    let waits_for =
                        format!("a snapshot of it to be taken: it is being deleted and has the finalizer {IS_SOURCE}");
                    let next = format!("kubectl -n {namespace} get volumesnapshot; describe the one that is not ready");
                    self.found("claim-is-source", self.claim_name(), waits_for, since, next);
                }
                IS_CLONED => {
                    let waits_for = format!(
                        "a claim that clones it, and whose volume is not created yet: it is being deleted and has the finalizer {IS_CLONED}"
                    );
                    let next = format!(
                        "kubectl -n {namespace} get pvc; describe the one that is Pending and has it as dataSource"
                    );
                    self.found("claim-is-cloned", self.claim_name(), waits_for, since, next);
                }
                other => {
                    let waits_for =
                        format!("the owner of its finalizer {other}, who must remove it: it is being deleted");
                    let next = format!("kubectl -n {namespace} get pvc {} -o yaml", self.facts.name);
                    self.found("claim-has-finalizer", self.claim_name(), waits_for, since, next);
                }
            }
        }
        true
    }

    /// Pods with a node block its deletion, also those that have ended.
    fn in_use(&mut self, since: &str) {
        let namespace = &self.facts.namespace;
        let Some(pods) = &self.facts.pods else {
            let waits_for = "the pods that use it to be deleted; they could not be listed";
            return self.found(
                "claim-in-use",
                self.claim_name(),
                waits_for,
                since,
                format!("kubectl -n {namespace} get pods"),
            );
        };
        let users: Vec<&Pod> = pods.iter().filter(|pod| !pod.spec.node_name.is_empty()).collect();
        if !users.is_empty() {
            let names = |with: &str| users.iter().map(|pod| pod.metadata.name.as_str()).collect::<Vec<_>>().join(with);
            let over = if users.iter().all(|pod| pod.is_over()) { ", which has ended," } else { "" };
            let waits_for =
                format!("pod {}{over} to be deleted: the claim is being deleted and still used", names(", "));
            let next = format!("kubectl -n {namespace} delete pod {}", names(" "));
            self.found("claim-in-use", self.claim_name(), waits_for, since, next);
        } else if self.is_overdue(since) {
            let waits_for = format!(
                "kube-controller-manager to remove the finalizer {IN_USE}: it is being deleted, and no pod uses it"
            );
            let next = "kubectl get pods -n kube-system (check that kube-controller-manager runs)";
            self.found("claim-not-released", self.claim_name(), waits_for, since, next);
        }
    }

    /// A requested volume whose claim is gone; a claim with that name is then another claim. Returns whether it is.
    pub(super) fn left_behind(&mut self) -> bool {
        let facts = self.facts;
        let Some((volume, of)) =
            facts.asked.as_ref().and_then(|volume| Some((volume, volume.spec.claim_ref.as_ref()?)))
        else {
            return false;
        };
        let is_left = match &facts.claim {
            Found::Yes(claim) => !claim.is_meant(of),
            Found::No => !of.uid.is_empty(),
            Found::Unknown => false,
        };
        if !is_left {
            return false;
        }
        let (name, phase) = (&volume.metadata.name, &volume.status.phase);
        self.link("volume", name, phase);
        let another = if facts.claim.is_missing() { "" } else { ", and the claim with that name is another" };
        let gone = format!("its claim {}/{} is gone{another}", of.namespace, of.name);
        let (waits_for, next) = if volume.spec.persistent_volume_reclaim_policy == "Retain" {
            let next = format!(
                "to use it again: create claim {}/{} with spec.volumeName: {name}, and run {}",
                of.namespace,
                of.name,
                handed_on(name, &of.namespace, &of.name)
            );
            (format!("an administrator's decision (reclaim policy Retain): {gone}"), next)
        } else {
            // It cannot be deleted while its home node does not answer.
            self.home(volume);
            (format!("the provisioner to delete it: {gone}"), format!("kubectl describe pv {name}"))
        };
        self.found("left-behind", format!("volume {name}"), waits_for, &volume.status.last_phase_transition_time, next);
        true
    }
}
