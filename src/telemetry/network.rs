//! Metrics of volumes of access network: what a home node exports, and the connections of a node to exports of others.
//! No volume is a label: `holdfast doctor` names the volumes.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tracing::warn;

use super::measurement::Measurement;
use super::metrics::{gauge, gauges};
use crate::types::Result;

/// The time limit for the figures of the kernel: its NVMe target may wait for a disk.
const PATIENCE: Duration = Duration::from_secs(2);

/// The attachments of a home node to other nodes, from memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachmentFigures {
    /// Attached volumes whose client authenticates with DH-HMAC-CHAP.
    pub authenticated: usize,
    /// Attached volumes whose client does not.
    pub unauthenticated: usize,
    /// How long each volume has been in detaching.
    pub detaching: Vec<Duration>,
    /// The ports that have a volume.
    pub ports_taken: usize,
    /// All ports.
    pub ports: usize,
}

/// The exports of a home node, from the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportFigures {
    /// Exports with a connection.
    pub connected: usize,
    /// Exports that a client could connect to, and none has.
    pub idle: usize,
    /// Exports that no client can connect to: incomplete, or being removed.
    pub closed: usize,
    /// TCP connections of clients. A client has one for each of its queues.
    pub connections: usize,
    /// Attached volumes without an export that a client could connect to.
    pub missing: usize,
}

/// The states of a controller in sysfs (drivers/nvme/host/sysfs.c).
const CONTROLLER_STATES: [&str; 6] = ["new", "live", "resetting", "connecting", "deleting", "dead"];

/// The connections of a node to exports of other nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionFigures {
    /// The state of each controller.
    pub states: Vec<String>,
    /// How long each volume has had no live controller.
    pub stalled: Vec<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AuthenticationLabel {
    authentication: &'static str,
}

/// The result of a new connection in place of a broken one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconnected {
    /// The volume's device works again.
    Yes,
    /// It does not yet: the node tries again.
    NotYet,
}

/// Exports and connections. Cheap to clone: all clones share their counters. The default one is in no registry.
#[derive(Clone, Debug, Default)]
pub struct NetworkMetrics {
    ended: Family<ReasonLabel, Counter>,
    again: Family<OutcomeLabel, Counter>,
    sources: Sources,
}

#[derive(Clone, Default)]
struct Sources(Arc<Inner>);

type Now<T> = Box<dyn Fn() -> T + Send + Sync>;

#[derive(Default)]
struct Inner {
    attachments: OnceLock<Now<Option<AttachmentFigures>>>,
    exports: OnceLock<Measurement<Option<ExportFigures>>>,
    connections: OnceLock<Measurement<ConnectionFigures>>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl NetworkMetrics {
    pub(super) fn in_registry(registry: &mut Registry) -> Self {
        let new = Self::default();
        let help = "Connections to exports that this node ended, although the volume was in use";
        registry.register("connections_ended", help, new.ended.clone());
        let help = "Attempts to connect to an export again after its connection broke";
        registry.register("reconnections", help, new.again.clone());
        registry.register_collector(Box::new(new.sources.clone()));
        new
    }

    /// From now on each scrape reads the attachments to other nodes; `source` must not block, and returns `None` on a node
    /// that exports nothing. A second call has no effect.
    pub fn watch_attachments(&self, source: impl Fn() -> Option<AttachmentFigures> + Send + Sync + 'static) {
        let _ = self.sources.0.attachments.set(Box::new(source));
    }

    /// From now on each scrape reads the kernel's exports; `source` may block, and returns `None` on a node that exports
    /// nothing. A second call has no effect.
    pub fn watch_exports(&self, source: impl Fn() -> Result<Option<ExportFigures>> + Send + Sync + 'static) {
        let measured = Measurement::new("the exports of the NVMe target", PATIENCE, Duration::ZERO, source);
        let _ = self.sources.0.exports.set(measured);
    }

    /// From now on each scrape reads the connections; `source` may block. A second call has no effect.
    pub fn watch_connections(&self, source: impl Fn() -> Result<ConnectionFigures> + Send + Sync + 'static) {
        let measured = Measurement::new("the connections to other nodes", PATIENCE, Duration::ZERO, source);
        let _ = self.sources.0.connections.set(measured);
    }

    /// The node ended the connection of a volume that was detached from it while it was in use.
    pub fn ended_detached(&self) {
        self.ended.get_or_create(&ReasonLabel { reason: "detached" }).inc();
    }

    /// The node tried to connect to an export again whose connection broke.
    pub fn reconnected(&self, outcome: Reconnected) {
        let outcome = match outcome {
            Reconnected::Yes => "connected",
            Reconnected::NotYet => "failed",
        };
        self.again.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// Reads what blocks, for the next scrape. Figures that are not available in time are absent from it.
    pub(super) async fn read(&self) -> NetworkSample {
        let Inner { exports, connections, .. } = &*self.sources.0;
        let (exports, connections) =
            tokio::join!(async { Some(exports.get()?.now().await.map(|figures| *figures)) }, async {
                Some(connections.get()?.now().await.map(|figures| figures.as_ref().clone()))
            },);
        let exports = exports.and_then(|read| read.inspect_err(|error| warn!("{}", error.chain())).ok().flatten());
        let connections = connections.and_then(|read| read.inspect_err(|error| warn!("{}", error.chain())).ok());
        NetworkSample { exports, connections }
    }

    /// The part of a scrape that was read for it.
    pub(super) fn write(sample: &NetworkSample, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if let Some(exports) = sample.exports {
            let help = "Exports of this home node: with a connection, without one, and those that accept none";
            let rows = [("connected", exports.connected), ("idle", exports.idle), ("closed", exports.closed)];
            gauges(encoder, ("exports", help), &rows, |(state, count)| Some((StateLabel { state }, wide(*count))))?;
            let help = "TCP connections of clients to the exports of this home node; one for each queue";
            gauge(encoder, ("export_connections", help), signed(exports.connections))?;
            let help = "Volumes attached to other nodes without an export that accepts connections";
            gauge(encoder, ("exports_missing", help), signed(exports.missing))?;
        }
        let Some(ConnectionFigures { states, stalled }) = &sample.connections else { return Ok(()) };
        let count = |state: &str| states.iter().filter(|one| known(one) == state).count();
        let help = "NVMe controllers of this node for volumes of other nodes, by their state in sysfs";
        let rows = CONTROLLER_STATES.iter().chain(&["other"]);
        gauges(encoder, ("nvme_controllers", help), rows, |state| Some((StateLabel { state }, wide(count(state)))))?;
        let help = "Volumes of other nodes without a live connection: their reads and writes wait";
        gauge(encoder, ("stalled_volumes", help), signed(stalled.len()))?;
        let help = "How long the reads and writes of the longest stalled volume have waited; 0 if none is stalled";
        gauge(encoder, ("stalled_volume_oldest_seconds", help), oldest(stalled))
    }
}

/// The state of a controller as a label: the values are limited, and the kernel may add a word to one, such as in
/// "deleting (no IO)".
fn known(state: &str) -> &'static str {
    CONTROLLER_STATES.into_iter().find(|known| state.starts_with(known)).unwrap_or("other")
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn oldest(ages: &[Duration]) -> i64 {
    ages.iter().max().map_or(0, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX))
}

/// What was read for one scrape.
#[derive(Clone, Debug, Default)]
pub struct NetworkSample {
    /// The kernel's exports; `None` where there are none, or they could not be read.
    pub exports: Option<ExportFigures>,
    /// The connections; `None` where this node makes none, or they could not be read.
    pub connections: Option<ConnectionFigures>,
}

impl Collector for Sources {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(figures) = self.0.attachments.get().and_then(|source| source()) else { return Ok(()) };
        let AttachmentFigures { authenticated, unauthenticated, detaching, ports_taken, ports } = figures;
        let help = "Volumes of this home node that are attached to other nodes, by how the client authenticates";
        let rows = [("dhchap", authenticated), ("none", unauthenticated)];
        gauges(&mut encoder, ("network_attachments", help), &rows, |(authentication, count)| {
            Some((AuthenticationLabel { authentication }, wide(*count)))
        })?;
        let help = "Volumes that are being detached from another node: the home node waits until its writes have ended";
        gauge(&mut encoder, ("fences", help), signed(detaching.len()))?;
        let help = "How long the oldest fence has taken; 0 if there is none";
        gauge(&mut encoder, ("fence_oldest_seconds", help), oldest(&detaching))?;
        let help = "TCP ports for exports (--fabric-ports), by state";
        let rows = [("taken", ports_taken), ("free", ports.saturating_sub(ports_taken))];
        gauges(&mut encoder, ("export_ports", help), &rows, |(state, count)| Some((StateLabel { state }, wide(*count))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::Activity;
    use crate::telemetry::{Metrics, Sampled};
    use crate::types::{Error, Kind};

    async fn text(metrics: &Metrics) -> String {
        let network = metrics.network().read().await;
        metrics.text(Sampled { network, ..Sampled::default() }).unwrap()
    }

    #[tokio::test]
    async fn exports_and_connections_are_in_the_text_of_a_node_that_has_them() {
        let metrics = Metrics::new(Activity::default());
        let before = text(&metrics).await;
        for name in ["holdfast_exports", "holdfast_fences", "holdfast_nvme_controllers", "holdfast_stalled_volumes"] {
            assert!(!before.contains(&format!("{name} ")) && !before.contains(&format!("{name}{{")), "{before}");
        }
        let network = metrics.network().clone();
        network.watch_attachments(|| {
            Some(AttachmentFigures {
                authenticated: 3,
                unauthenticated: 1,
                detaching: vec![Duration::from_secs(7), Duration::from_secs(400)],
                ports_taken: 6,
                ports: 500,
            })
        });
        network.watch_exports(|| {
            Ok(Some(ExportFigures { connected: 2, idle: 1, closed: 1, connections: 10, missing: 1 }))
        });
        network.watch_connections(|| {
            let states = ["live", "live", "connecting", "deleting (no IO)", "word of a later kernel"];
            Ok(ConnectionFigures {
                states: states.map(str::to_owned).to_vec(),
                stalled: vec![Duration::from_secs(61), Duration::from_secs(5)],
            })
        });
        network.ended_detached();
        network.reconnected(Reconnected::Yes);
        network.reconnected(Reconnected::NotYet);
        let text = text(&metrics).await;
        for line in [
            "holdfast_network_attachments{authentication=\"dhchap\"} 3",
            "holdfast_network_attachments{authentication=\"none\"} 1",
            "holdfast_fences 2",
            "holdfast_fence_oldest_seconds 400",
            "holdfast_export_ports{state=\"taken\"} 6",
            "holdfast_export_ports{state=\"free\"} 494",
            "holdfast_exports{state=\"connected\"} 2",
            "holdfast_exports{state=\"idle\"} 1",
            "holdfast_exports{state=\"closed\"} 1",
            "holdfast_export_connections 10",
            "holdfast_exports_missing 1",
            "holdfast_nvme_controllers{state=\"live\"} 2",
            "holdfast_nvme_controllers{state=\"connecting\"} 1",
            "holdfast_nvme_controllers{state=\"deleting\"} 1",
            "holdfast_nvme_controllers{state=\"dead\"} 0",
            "holdfast_nvme_controllers{state=\"other\"} 1",
            "holdfast_stalled_volumes 2",
            "holdfast_stalled_volume_oldest_seconds 61",
            "holdfast_connections_ended_total{reason=\"detached\"} 1",
            "holdfast_reconnections_total{outcome=\"connected\"} 1",
            "holdfast_reconnections_total{outcome=\"failed\"} 1",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is not in\n{text}");
        }
    }

    #[tokio::test]
    async fn a_kernel_that_does_not_answer_hides_only_its_own_figures() {
        let metrics = Metrics::new(Activity::default());
        let network = metrics.network();
        network.watch_attachments(|| Some(AttachmentFigures { ports: 2, ..AttachmentFigures::default() }));
        network.watch_exports(|| Err(Error::new(Kind::Internal, "no answer")));
        network.watch_connections(|| Ok(ConnectionFigures::default()));
        let text = text(&metrics).await;
        assert!(text.contains("holdfast_fences 0\n") && text.contains("holdfast_stalled_volumes 0\n"), "{text}");
        assert!(text.contains("holdfast_stalled_volume_oldest_seconds 0\n"), "{text}");
        assert!(!text.contains("holdfast_exports"), "{text}");
    }
}
