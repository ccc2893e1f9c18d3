//! Metrics of home nodes, and of the calls to them.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::metrics::gauges;
use crate::wire::RateLimitedLog;

/// A home node, as a controller knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeFigures {
    /// Its name.
    pub node: String,
    /// Its state: the worst that applies.
    pub state: HomeState,
    /// The time since its last heartbeat, to this or another controller.
    pub heard: Duration,
}

/// The states of a home node, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HomeState {
    /// It is reachable.
    Reachable,
    /// It is unreachable, or it is reachable and does not serve a pool that no other node serves.
    Unreachable,
    /// A pool of it is in quarantine.
    Quarantined,
    /// Another node reports that it serves one of its pools too.
    Conflict,
    /// It, or a pool of it, was declared lost.
    Lost,
}

impl HomeState {
    fn word(self) -> &'static str {
        match self {
            Self::Reachable => "reachable",
            Self::Unreachable => "unreachable",
            Self::Quarantined => "quarantined",
            Self::Conflict => "conflict",
            Self::Lost => "lost",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    node: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NodeLabel {
    node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    rpc: &'static str,
    role: &'static str,
}

/// Home nodes, and calls to them. Cheap to clone: all clones share their counters. The default one is in no registry.
#[derive(Clone, Debug, Default)]
pub struct HomeMetrics {
    refused: Family<RefusedLabels, Counter>,
    in_flight: Family<NodeLabel, Gauge>,
    crowded: Family<NodeLabel, Counter>,
    watched: Watched,
    complaints: Arc<RateLimitedLog>,
}

type Source = Box<dyn Fn() -> Vec<HomeFigures> + Send + Sync>;

#[derive(Clone, Default)]
struct Watched(Arc<OnceLock<Source>>);

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").finish_non_exhaustive()
    }
}

impl HomeMetrics {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let new = Self::default();
        let help = "Calls between daemons rejected because the caller's role does not permit them";
        registry.register("wire_calls_refused", help, new.refused.clone());
        registry.register("home_calls_in_flight", "Calls to a home node in progress", new.in_flight.clone());
        let help = "Calls to a home node rejected because too many were in progress";
        registry.register("home_calls_rejected", help, new.crowded.clone());
        registry.register_collector(Box::new(new.watched.clone()));
        new
    }

    /// From now on each scrape reads the home nodes; `source` must not block. A second call has no effect.
    pub fn watch(&self, source: impl Fn() -> Vec<HomeFigures> + Send + Sync + 'static) {
        let _ = self.watched.0.set(Box::new(source));
    }

    /// A call was rejected for a caller with this role: `controller`, `node`, `operator` or `unknown`.
    pub fn refused(&self, rpc: &'static str, role: &'static str) {
        self.refused.get_or_create(&RefusedLabels { rpc, role }).inc();
    }

    /// Whether to log a rejection of `who` now, and how many were not logged since the last one.
    #[must_use]
    pub fn may_say(&self, who: &str, rpc: &'static str) -> Option<u64> {
        self.complaints.may_say(who, rpc)
    }

    /// A call to a home node began.
    pub fn call_began(&self, node: &str) {
        self.in_flight.get_or_create(&NodeLabel { node: node.to_owned() }).inc();
    }

    /// It ended.
    pub fn call_ended(&self, node: &str) {
        self.in_flight.get_or_create(&NodeLabel { node: node.to_owned() }).dec();
    }

    /// A call was rejected: too many calls to this home node are in progress.
    pub fn crowded(&self, node: &str) {
        self.crowded.get_or_create(&NodeLabel { node: node.to_owned() }).inc();
    }
}

impl Collector for Watched {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(source) = self.0.get() else { return Ok(()) };
        let homes = source();
        gauges(&mut encoder, ("home", "1 for each home node, with its state"), &homes, |home| {
            Some((StateLabels { node: home.node.clone(), state: home.state.word() }, 1))
        })?;
        gauges(
            &mut encoder,
            ("home_last_heartbeat_seconds", "Seconds since the last heartbeat of each home node"),
            &homes,
            |home| Some((NodeLabel { node: home.node.clone() }, home.heard.as_secs())),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::Activity;
    use crate::telemetry::{Metrics, Sampled};

    #[test]
    fn homes_and_calls_are_in_the_text() {
        let metrics = Metrics::new(Activity::default());
        assert!(!metrics.text(Sampled::default()).unwrap().contains("holdfast_home{"));
        let homes = metrics.homes().clone();
        homes.watch(|| {
            let heard = Duration::from_secs(70);
            vec![HomeFigures { node: "a".into(), state: HomeState::Unreachable, heard }]
        });
        homes.call_began("a");
        homes.call_began("a");
        homes.call_ended("a");
        homes.crowded("a");
        homes.refused("Grant", "node");
        let text = metrics.text(Sampled::default()).unwrap();
        for line in [
            "holdfast_home{node=\"a\",state=\"unreachable\"} 1",
            "holdfast_home_last_heartbeat_seconds{node=\"a\"} 70",
            "holdfast_home_calls_in_flight{node=\"a\"} 1",
            "holdfast_home_calls_rejected_total{node=\"a\"} 1",
            "holdfast_wire_calls_refused_total{rpc=\"Grant\",role=\"node\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
