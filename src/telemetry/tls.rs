//! Metrics of connections between daemons.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    side: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabel {
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SideLabel {
    side: &'static str,
}

/// Certificates, handshakes and connections. Cheap to clone: all clones share their counters.
#[derive(Clone, Debug, Default)]
pub struct TlsMetrics {
    expires: Family<NameLabel, Gauge>,
    reloads: Family<OutcomeLabel, Counter>,
    refused: Family<RefusalLabels, Counter>,
    connections: Family<SideLabel, Gauge>,
    usable: Family<NameLabel, Gauge>,
    /// Why there is no usable certificate.
    missing: Arc<Mutex<Option<String>>>,
}

impl TlsMetrics {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let new = Self::default();
        let help = "Expiry of the certificate in use, in seconds since 1970";
        registry.register("tls_certificate_expiry_seconds", help, new.expires.clone());
        registry.register("tls_reloads", "Reloads of changed certificate files", new.reloads.clone());
        registry.register("tls_handshakes_refused", "TLS handshakes that failed", new.refused.clone());
        registry.register("tls_connections", "Open connections between daemons", new.connections.clone());
        let help = "1 when there is a usable certificate; 0 when there is none, so other daemons cannot be reached";
        registry.register("tls_certificate_usable", help, new.usable.clone());
        new
    }

    /// The certificate in use has this name and expires at this time.
    pub fn expires(&self, name: &str, seconds_since_1970: i64) {
        self.expires.get_or_create(&NameLabel { name: name.to_owned() }).set(seconds_since_1970);
        self.usable.get_or_create(&NameLabel { name: name.to_owned() }).set(1);
        *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// There is no usable certificate with this name.
    pub fn missing(&self, name: &str, why: &str) {
        self.usable.get_or_create(&NameLabel { name: name.to_owned() }).set(0);
        *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
    }

    /// Why there is no usable certificate, if there is none.
    #[must_use]
    pub fn why_missing(&self) -> Option<String> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changed files were loaded: `renewed` or `failed`.
    pub fn reloaded(&self, outcome: &'static str) {
        self.reloads.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// A connection was rejected; `side` is our side, `server` or `client`.
    pub fn refused(&self, side: &'static str, reason: &'static str) {
        self.refused.get_or_create(&RefusalLabels { side, reason }).inc();
    }

    /// A connection began.
    pub fn connected(&self, side: &'static str) {
        self.connections.get_or_create(&SideLabel { side }).inc();
    }

    /// It ended.
    pub fn disconnected(&self, side: &'static str) {
        self.connections.get_or_create(&SideLabel { side }).dec();
    }
}
