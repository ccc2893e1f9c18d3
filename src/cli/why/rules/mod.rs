//! What keeps a claim from being used: a pure function of what was gathered.
//!
//! The rules follow the claim's way: claim, class, provisioning, volume, home, pod, node, attachment, mount, growth. What
//! could not be asked is concluded from nowhere: a rule that needs it says nothing.
//!
//! `claims` has what a claim waits for before it has a volume, `deletion` what holds one that is deleted, `volumes` what
//! the volume waits for, `pods` what a pod does, and `attachments` what is between a volume and a node.

mod attachments;
mod claims;
mod deletion;
mod pods;
mod volumes;

use holdfast::csi::DRIVER_NAME;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::facts::{Facts, Found};
use super::objects::{Event, Meta, Pod, shown};

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

/// What is no cause and good to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Hint {
    /// What there is.
    pub(super) what: String,
    /// What can be done with it.
    pub(super) next: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Explanation {
    /// The claim's way.
    pub(super) chain: Vec<Link>,
    /// The nearest to the cause first; empty when all is well.
    pub(super) findings: Vec<Finding>,
    /// What nothing waits for.
    pub(super) hints: Vec<Hint>,
    /// What could not be asked.
    pub(super) unasked: Vec<String>,
}

/// Explains.
pub(super) fn explain(facts: &Facts, now: i64) -> Explanation {
    let mut case = Case { facts, now, chain: Vec::new(), findings: Vec::new(), hints: Vec::new() };
    case.look();
    Explanation { chain: case.chain, findings: case.findings, hints: case.hints, unasked: facts.unasked.clone() }
}

/// Seconds since 1970 of a time as Kubernetes writes it.
fn seconds(time: &str) -> Option<i64> {
    time.parse::<Timestamp>().ok().map(Timestamp::as_second)
}

/// What a sidecar or kubelet said, as whose words it is: the driver's are what it was answered, behind a gRPC code. Where the driver was not
/// reached or did not answer in time, gRPC itself makes up such an answer.
fn said_by(who: &str, message: &str) -> String {
    const ANSWER: &str = "rpc error: code = ";
    let answer = message.split_once(ANSWER).and_then(|(_, answer)| answer.split_once(" desc = "));
    let Some((code, said)) = answer else { return format!("{who} says: {}", message.trim()) };
    let (code, said) = (code.trim(), said.trim());
    match (code, said) {
        ("Unavailable", said) if said.starts_with("connection error") => {
            format!("{who} does not reach the driver: {said}")
        }
        ("DeadlineExceeded", "context deadline exceeded") | ("Canceled", "context canceled") => {
            format!("{who} has no answer of the driver in time; it asks again")
        }
        _ => format!("the driver says: {code}: {said}"),
    }
}

/// The driver's gRPC code in such a message.
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

    /// Whether so much time is over that whoever has to act is missed.
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
                return self.found("no-claim", self.claim_name(), "to be made: it does not exist", "", list);
            }
            Found::Unknown => return,
        };
        let phase = if claim.status.phase.is_empty() { "Pending" } else { &claim.status.phase };
        let wants = claim.spec.resources.requests.get("storage").map_or(String::new(), |wants| shown(wants));
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
        let is_leaving = self.deleting(claim);
        match phase {
            "Bound" => self.bound(claim),
            "Lost" => {
                let volume = &claim.spec.volume_name;
                let next = format!(
                    "kubectl get pv {volume}; holdfast volumes (a PersistentVolume for an existing volume can be made again)"
                );
                self.found("lost", self.claim_name(), format!("PersistentVolume {volume}, which is gone"), "", next);
            }
            // It gets no volume any more.
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
