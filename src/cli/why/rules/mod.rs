//! Why a claim cannot be used: a pure function of the facts.
//!
//! The rules follow the objects of a claim: claim, class, provisioning, volume, home node, pod, node, attachment, mount,
//! growth. A rule whose facts could not be read finds nothing.
//!
//! `claims`: a claim without a volume. `deletion`: an object that is being deleted. `volumes`: the volume of a claim.
//! `pods`: a pod. `attachments`: a volume and its node. `network`: a volume that is used on other nodes.

mod attachments;
mod claims;
mod deletion;
mod network;
mod pods;
mod volumes;

use holdfast::csi::DRIVER_NAME;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::facts::{Facts, Found};
use super::objects::{Event, Meta, Pod, shown};

/// The number of seconds that a component of Kubernetes may take before a rule reports it.
const PATIENCE: i64 = 30;

/// One object in the chain of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Link {
    /// Its kind.
    pub(super) kind: &'static str,
    /// Its name.
    pub(super) name: String,
    /// Its state.
    pub(super) state: String,
}

/// One thing that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finding {
    /// The rule that found it.
    pub(super) rule: &'static str,
    /// The object that waits.
    pub(super) object: String,
    /// What it waits for.
    pub(super) waits_for: String,
    /// Since when, in seconds since 1970.
    pub(super) since: Option<i64>,
    /// The next command or step.
    pub(super) next: String,
}

/// Useful information that is not a cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Hint {
    /// The information.
    pub(super) what: String,
    /// What the user can do with it.
    pub(super) next: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Explanation {
    /// The chain of objects.
    pub(super) chain: Vec<Link>,
    /// The findings, nearest to the cause first; empty if nothing waits.
    pub(super) findings: Vec<Finding>,
    /// The hints.
    pub(super) hints: Vec<Hint>,
    /// The requests that failed.
    pub(super) unasked: Vec<String>,
}

/// Applies the rules.
pub(super) fn explain(facts: &Facts, now: i64) -> Explanation {
    let mut case = Case { facts, now, chain: Vec::new(), findings: Vec::new(), hints: Vec::new() };
    case.look();
    Explanation { chain: case.chain, findings: case.findings, hints: case.hints, unasked: facts.unasked.clone() }
}

/// Seconds since 1970 of a time as Kubernetes writes it.
fn seconds(time: &str) -> Option<i64> {
    time.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

/// The message of a sidecar or kubelet, attributed to its author. Text behind a gRPC code is from the driver, except the
/// codes that gRPC itself creates when the driver cannot be reached or does not answer in time.
fn said_by(who: &str, message: &str) -> String {
    const ANSWER: &str = "rpc error: code = ";
    let answer = message.split_once(ANSWER).and_then(|(_, answer)| answer.split_once(" desc = "));
    let Some((code, said)) = answer else { return format!("{who} says: {}", message.trim()) };
    let (code, said) = (code.trim(), said.trim());
    match (code, said) {
        ("Unavailable", said) if said.starts_with("connection error") => {
            format!("{who} cannot reach the driver: {said}")
        }
        ("DeadlineExceeded", "context deadline exceeded") | ("Canceled", "context canceled") => {
            format!("{who} received no answer from the driver in time, and retries")
        }
        _ => format!("the driver says: {code}: {said}"),
    }
}

/// The gRPC code of the driver in such a message.
fn code_in(message: &str) -> &str {
    let behind = message.split_once("rpc error: code = ").map_or("", |(_, answer)| answer);
    behind.split_once(" desc = ").map_or("", |(code, _)| code.trim())
}

struct Case<'a> {
    facts: &'a Facts,
    now: i64,
    chain: Vec<Link>,
    findings: Vec<Finding>,
    hints: Vec<Hint>,
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

    /// Whether more time has passed than the responsible component may take.
    fn is_overdue(&self, since: &str) -> bool {
        seconds(since).is_none_or(|since| self.now - since > PATIENCE)
    }

    /// The latest event of one of these reasons about an object.
    fn event(&self, kind: &str, object: &Meta, reasons: &[&str]) -> Option<&'a Event> {
        self.event_that(kind, object, reasons, |_| true)
    }

    /// The latest of those with such a message. An earlier object of the same name has another uid.
    fn event_that(
        &self,
        kind: &str,
        object: &Meta,
        reasons: &[&str],
        says: impl Fn(&str) -> bool,
    ) -> Option<&'a Event> {
        let about = |event: &&Event| {
            event.involved_object.kind == kind
                && event.involved_object.uid == object.uid
                && reasons.contains(&event.reason.as_str())
                && says(&event.message)
        };
        let events = self.facts.events.iter().flatten().filter(about);
        events.max_by_key(|event| seconds(event.time()).unwrap_or(i64::MIN))
    }

    fn look(&mut self) {
        if self.left_behind() {
            return;
        }
        let claim = match &self.facts.claim {
            Found::Yes(claim) => claim,
            Found::No => {
                let list = format!("kubectl -n {} get pvc", self.facts.namespace);
                return self.found("no-claim", self.claim_name(), "its creation: it does not exist", "", list);
            }
            Found::Unknown => return,
        };
        let phase = if claim.status.phase.is_empty() { "Pending" } else { &claim.status.phase };
        let wants = claim.spec.resources.requests.get("storage").map_or(String::new(), |wants| shown(wants));
        let modes = claim.spec.access_modes.join(", ");
        self.link(
            "claim",
            format!("{}/{}", self.facts.namespace, self.facts.name),
            format!("{phase}, requests {wants}, {modes}"),
        );
        let class = self.class(claim);
        if self.facts.driver.is_missing() {
            let next = "run helm list -A; install the chart, which creates the CSIDriver object";
            self.found("no-driver", format!("CSIDriver {DRIVER_NAME}"), "the installation of the driver", "", next);
        }
        let is_leaving = self.deleting(claim);
        match phase {
            "Bound" => self.bound(claim),
            "Lost" => {
                let volume = &claim.spec.volume_name;
                let next = format!(
                    "kubectl get pv {volume}; holdfast volumes (holdfast volumes show --pv prints a PersistentVolume for an existing volume)"
                );
                self.found("lost", self.claim_name(), format!("PersistentVolume {volume}, which is gone"), "", next);
            }
            // A claim that is being deleted gets no volume.
            _ if is_leaving => {}
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
}
