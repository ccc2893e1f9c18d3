//! Metrics of the registration with kubelet.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::metrics::gauge;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Absent if the driver does not register itself. Cheap to clone: all clones share their counters.
#[derive(Clone, Debug, Default)]
pub struct KubeletMetrics {
    registered: Registered,
    registrations: Family<OutcomeLabel, Counter>,
}

impl KubeletMetrics {
    pub(super) fn in_registry(registry: &mut Registry) -> Self {
        let new = Self::default();
        registry.register_collector(Box::new(new.registered.clone()));
        registry.register("kubelet_registrations", "Answers of kubelet to registrations", new.registrations.clone());
        new
    }

    /// Kubelet has registered the driver.
    pub fn registered(&self) {
        self.registered.set(true);
        self.registrations.get_or_create(&OutcomeLabel { outcome: "registered" }).inc();
    }

    /// Kubelet has rejected the driver.
    pub fn refused(&self) {
        self.registered.set(false);
        self.registrations.get_or_create(&OutcomeLabel { outcome: "refused" }).inc();
    }

    /// Kubelet has not asked yet, or has lost the registration.
    pub fn unknown(&self) {
        self.registered.set(false);
    }
}

/// The last answer of kubelet; `None` if the driver does not register itself.
#[derive(Clone, Debug, Default)]
struct Registered(Arc<Mutex<Option<bool>>>);

impl Registered {
    fn set(&self, registered: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(registered);
    }
}

impl Collector for Registered {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(registered) = *self.0.lock().unwrap_or_else(PoisonError::into_inner) else { return Ok(()) };
        let help = "1 when the last answer of kubelet was that the driver is registered";
        gauge(&mut encoder, ("kubelet_registered", help), i64::from(registered))
    }
}
