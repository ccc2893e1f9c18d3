//! Metrics of certificate requests from nodes.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Requests for certificates. Cheap to clone: all clones count together.
#[derive(Clone, Debug, Default)]
pub struct EnrolMetrics {
    ended: Family<OutcomeLabel, Counter>,
}

impl EnrolMetrics {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let new = Self::default();
        registry.register("enrolments", "Certificate requests from nodes, by outcome", new.ended.clone());
        new
    }

    /// A request ended: `issued`, or the reason why not.
    pub fn ended(&self, outcome: &'static str) {
        self.ended.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}
