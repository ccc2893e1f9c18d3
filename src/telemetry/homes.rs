//! What is measured between controllers and homes.

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
use crate::wire::Complaints;

/// A home as a controller knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HomeFigures {
    /// Its node.
    pub node: String,
    /// Whether it serves, or the worst of what keeps it from that.
    pub state: HomeState,
    /// How long ago it was heard, here or by another controller.
    pub heard: Duration,
}

/// The states of a home, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HomeState {
    /// It is heard.
    Heard,
    /// It is not, or it is and does not serve a pool that nobody else serves.
    Silent,
    /// A pool of it is in quarantine.
    Quarantined,
    /// Another node says that it serves one of its pools too.
    Doubled,
    /// It, or a pool of it, was declared lost.
    Lost,
}

impl HomeState {
    fn word(self) -> &'static str {
        match self {
            Self::Heard => "heard",
            Self::Silent => "silent",
            Self::Quarantined => "quarantined",
            Self::Doubled => "doubled",
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

/// Homes, and calls to them. Cheap to clone: all clones count together. One that is in no registry counts for nobody.
#[derive(Clone, Debug, Default)]
pub struct HomeMetrics {
    refused: Family<RefusedLabels, Counter>,
    in_flight: Family<NodeLabel, Gauge>,
    crowded: Family<NodeLabel, Counter>,
    watched: Watched,
    complaints: Arc<Complaints>,
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
        registry.register("wire_calls_refused", "Calls that who asked may not make", new.refused.clone());
        registry.register("home_calls_in_flight", "Calls to a home not answered yet", new.in_flight.clone());
        let help = "Calls not made because too many to that home were under way";
        registry.register("home_calls_crowded", help, new.crowded.clone());
        registry.register_collector(Box::new(new.watched.clone()));
        new
    }

    /// From now on each scrape asks for the homes; `source` does not block. The first one stays.
    pub fn watch(&self, source: impl Fn() -> Vec<HomeFigures> + Send + Sync + 'static) {
        let _ = self.watched.0.set(Box::new(source));
    }

    /// A call was refused to somebody of this role: `controller`, `node`, `operator` or `unknown`.
    pub fn refused(&self, rpc: &'static str, role: &'static str) {
        self.refused.get_or_create(&RefusedLabels { rpc, role }).inc();
    }

    /// Whether a refusal to `who` is to be said now, and how many were not said since the last time.
    #[must_use]
    pub fn may_say(&self, who: &str, rpc: &'static str) -> Option<u64> {
        self.complaints.may_say(who, rpc)
    }

    /// A call to a home began.
    pub fn call_began(&self, node: &str) {
        self.in_flight.get_or_create(&NodeLabel { node: node.to_owned() }).inc();
    }

    /// It ended.
    pub fn call_ended(&self, node: &str) {
        self.in_flight.get_or_create(&NodeLabel { node: node.to_owned() }).dec();
    }

    /// A call was not made: too many are under way to this home.
    pub fn crowded(&self, node: &str) {
        self.crowded.get_or_create(&NodeLabel { node: node.to_owned() }).inc();
    }
}

impl Collector for Watched {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(source) = self.0.get() else { return Ok(()) };
        let homes = source();
        gauges(&mut encoder, ("home", "1 for each home, with its state"), &homes, |home| {
            Some((StateLabels { node: home.node.clone(), state: home.state.word() }, 1))
        })?;
        gauges(&mut encoder, ("home_heard_seconds", "How long ago each home was heard"), &homes, |home| {
            Some((NodeLabel { node: home.node.clone() }, home.heard.as_secs()))
        })
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
            vec![HomeFigures { node: "a".into(), state: HomeState::Silent, heard }]
        });
        homes.call_began("a");
        homes.call_began("a");
        homes.call_ended("a");
        homes.crowded("a");
        homes.refused("Grant", "node");
        let text = metrics.text(Sampled::default()).unwrap();
        for line in [
            "holdfast_home{node=\"a\",state=\"silent\"} 1",
            "holdfast_home_heard_seconds{node=\"a\"} 70",
            "holdfast_home_calls_in_flight{node=\"a\"} 1",
            "holdfast_home_calls_crowded_total{node=\"a\"} 1",
            "holdfast_wire_calls_refused_total{rpc=\"Grant\",role=\"node\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
