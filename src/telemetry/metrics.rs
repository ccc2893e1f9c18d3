//! The metrics of the daemon, in the OpenMetrics text format.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::{
    EnrolMetrics, HomeMetrics, KubeletMetrics, NetworkMetrics, NetworkSample, PoolFigures, PoolFindings, TlsMetrics,
    VolumeExtents,
};
use crate::os::Activity;
use crate::types::{Error, Kind, Result};

/// A child process or kernel call older than this counts as stuck.
const STUCK: Duration = Duration::from_secs(60);
/// Upper bounds, in seconds, of the latency histogram: kubelet gives up after two minutes.
const SECONDS: [f64; 12] = [0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 120.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    rpc: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabel {
    rpc: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
    id: String,
    kind: String,
    node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServedLabels {
    pool: String,
    node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VolumeLabels {
    volume: String,
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FindingLabels {
    pool: String,
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    what: String,
    target: String,
    pid: String,
}

/// The registry and the metrics in it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    calls: Family<CallLabels, Counter>,
    seconds: Family<RpcLabel, Histogram, fn() -> Histogram>,
    in_flight: Family<RpcLabel, Gauge>,
    tls: TlsMetrics,
    enrol: EnrolMetrics,
    kubelet: KubeletMetrics,
    homes: HomeMetrics,
    network: NetworkMetrics,
    sampled: Arc<Mutex<Sampled>>,
}

/// Values that are read at each scrape.
#[derive(Clone, Debug, Default)]
pub struct Sampled {
    /// The figures of the pools; `None` when they could not be read.
    pub pools: Option<Vec<PoolFigures>>,
    /// The most fragmented images.
    pub extents: Vec<VolumeExtents>,
    /// The number of findings of doctor.
    pub findings: Vec<PoolFindings>,
    /// Exports and connections.
    pub network: NetworkSample,
}

impl Metrics {
    /// An empty registry; `activity` lists the child processes and kernel calls that may be stuck.
    #[must_use]
    pub fn new(activity: Activity) -> Arc<Self> {
        let mut registry = Registry::with_prefix("holdfast");
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The version of this binary", Info::new(version));
        let calls = Family::<CallLabels, Counter>::default();
        registry.register("csi_calls", "CSI calls answered", calls.clone());
        let constructor: fn() -> Histogram = || Histogram::new(SECONDS);
        let seconds = Family::new_with_constructor(constructor);
        registry.register("csi_call_seconds", "Latency of CSI calls", seconds.clone());
        let in_flight = Family::<RpcLabel, Gauge>::default();
        registry.register("csi_calls_in_flight", "CSI calls in progress", in_flight.clone());
        let tls = TlsMetrics::registered(&mut registry);
        let enrol = EnrolMetrics::registered(&mut registry);
        let kubelet = KubeletMetrics::in_registry(&mut registry);
        let homes = HomeMetrics::registered(&mut registry);
        let network = NetworkMetrics::in_registry(&mut registry);
        let sampled = Arc::default();
        registry.register_collector(Box::new(Pools(Arc::clone(&sampled))));
        registry.register_collector(Box::new(Operations(activity)));
        Arc::new(Self { registry, calls, seconds, in_flight, tls, enrol, kubelet, homes, network, sampled })
    }

    /// A call came in.
    pub fn call_began(&self, rpc: &'static str) {
        self.in_flight.get_or_create(&RpcLabel { rpc }).inc();
    }

    /// It was answered, or its caller disconnected.
    pub fn call_ended(&self, rpc: &'static str, code: &'static str, took: Duration) {
        self.in_flight.get_or_create(&RpcLabel { rpc }).dec();
        self.calls.get_or_create(&CallLabels { rpc, code }).inc();
        self.seconds.get_or_create(&RpcLabel { rpc }).observe(took.as_secs_f64());
    }

    /// Metrics of connections between daemons.
    #[must_use]
    pub fn tls(&self) -> &TlsMetrics {
        &self.tls
    }

    /// Metrics of certificate requests from nodes.
    #[must_use]
    pub fn enrol(&self) -> &EnrolMetrics {
        &self.enrol
    }

    /// Metrics of the registration with kubelet.
    #[must_use]
    pub fn kubelet(&self) -> &KubeletMetrics {
        &self.kubelet
    }

    /// Metrics of home nodes, and of the calls to them.
    #[must_use]
    pub fn homes(&self) -> &HomeMetrics {
        &self.homes
    }

    /// Metrics of volumes over the network.
    #[must_use]
    pub fn network(&self) -> &NetworkMetrics {
        &self.network
    }

    /// All metrics as text, with the values that were read for this scrape.
    ///
    /// # Errors
    /// `Internal` when it cannot be written.
    pub fn text(&self, sampled: Sampled) -> Result<String> {
        *self.sampled.lock().unwrap_or_else(PoisonError::into_inner) = sampled;
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .map_err(|error| Error::new(Kind::Internal, "metrics cannot be written").because(error))?;
        Ok(text)
    }
}

/// Writes one gauge with a row for each of `rows`.
pub(super) fn gauges<'r, T: 'r, L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    rows: impl IntoIterator<Item = &'r T>,
    row: impl Fn(&'r T) -> Option<(L, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in rows.into_iter().filter_map(row) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Writes one gauge without labels.
pub(super) fn gauge(encoder: &mut DescriptorEncoder<'_>, (name, help): (&str, &str), value: i64) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

#[derive(Debug)]
struct Pools(Arc<Mutex<Sampled>>);

impl Collector for Pools {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        type Column = (&'static str, &'static str, fn(&PoolFigures) -> Option<u64>);
        const COLUMNS: [Column; 8] = [
            ("pool_total_bytes", "Size of the pool's filesystem in bytes", |p| Some(p.total)),
            ("pool_available_bytes", "Bytes available for new volumes", |p| Some(p.available)),
            ("pool_reserved_bytes", "Bytes reserved and not yet allocated", |p| Some(p.promised)),
            ("pool_provisioned_bytes", "Sum of the sizes of all volumes", |p| Some(p.provisioned)),
            ("pool_inodes", "Inodes of the pool's filesystem", |p| p.inodes),
            ("pool_inodes_free", "Free inodes of the pool's filesystem", |p| p.inodes_free),
            ("pool_volumes", "Volumes in the pool", |p| Some(p.volumes)),
            ("pool_snapshots", "Snapshots in the pool", |p| Some(p.snapshots)),
        ];
        let sampled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let served = |pools: &Vec<PoolFigures>| pools.iter().all(|pool| pool.outage.is_none());
        let readable = i64::from(sampled.pools.as_ref().is_some_and(served));
        gauge(&mut encoder, ("pools_readable", "1 when every pool is served and reports its space"), readable)?;
        let help = "Extents of the most fragmented images; more extents make a clone slower";
        gauges(&mut encoder, ("volume_extents", help), &sampled.extents, |one| {
            Some((VolumeLabels { volume: one.volume.clone(), pool: one.pool.clone() }, one.extents))
        })?;
        let help = "Findings of holdfast doctor in the pool, by kind; counted again after ten minutes";
        gauges(&mut encoder, ("findings", help), &sampled.findings, |one| {
            Some((FindingLabels { pool: one.pool.clone(), kind: one.kind }, one.findings))
        })?;
        NetworkMetrics::write(&sampled.network, &mut encoder)?;
        let Some(figures) = sampled.pools.as_ref() else { return Ok(()) };
        let help = "1 when the pool is served, 0 when it is not: its disk is missing, fails or does not answer";
        gauges(&mut encoder, ("pool_served", help), figures, |pool| {
            let labels = ServedLabels { pool: pool.pool.clone(), node: pool.node.clone() };
            Some((labels, u64::from(pool.outage.is_none())))
        })?;
        for (name, help, value) in COLUMNS {
            gauges(&mut encoder, (name, help), figures, |pool| {
                if pool.outage.is_some() {
                    return None;
                }
                let PoolFigures { pool: name, id, kind, node, .. } = pool.clone();
                value(pool).map(|value| (PoolLabels { pool: name, id, kind, node }, value))
            })?;
        }
        Ok(())
    }
}

/// Child processes and kernel calls in progress, each with its age: one may never return.
#[derive(Debug)]
struct Operations(Activity);

impl Collector for Operations {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let ongoing = self.0.list();
        let stuck = ongoing.iter().filter(|one| one.age >= STUCK).count();
        let help = "Child processes and kernel calls in progress for more than a minute";
        gauge(&mut encoder, ("stuck_operations", help), i64::try_from(stuck).unwrap_or(i64::MAX))?;
        let help = "Age of each child process and kernel call in progress";
        gauges(&mut encoder, ("operation_age_seconds", help), &ongoing, |one| {
            let labels = OperationLabels {
                what: one.what.clone(),
                target: one.target.clone(),
                pid: one.pid.map_or_else(String::new, |pid| pid.to_string()),
            };
            Some((labels, one.age.as_secs()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_pools_are_in_the_text() {
        let activity = Activity::default();
        let _child = activity.enter("mkfs.ext4", "/dev/loop7", Some(4711));
        let metrics = Metrics::new(activity);
        metrics.call_began("CreateVolume");
        metrics.call_began("CreateVolume");
        metrics.call_ended("CreateVolume", "OK", Duration::from_millis(30));
        let pool = PoolFigures { pool: "default".into(), total: 10, inodes: Some(7), ..PoolFigures::default() };
        let image = VolumeExtents { volume: "v".into(), pool: "p".into(), extents: 40 };
        let finding = PoolFindings { pool: "default".into(), kind: "orphan", findings: 2 };
        let sampled =
            Sampled { pools: Some(vec![pool]), extents: vec![image], findings: vec![finding], ..Sampled::default() };
        let text = metrics.text(sampled).unwrap();
        for line in [
            "holdfast_csi_calls_total{rpc=\"CreateVolume\",code=\"OK\"} 1",
            "holdfast_csi_call_seconds_count{rpc=\"CreateVolume\"} 1",
            "holdfast_csi_calls_in_flight{rpc=\"CreateVolume\"} 1",
            "holdfast_findings{pool=\"default\",kind=\"orphan\"} 2",
            "holdfast_volume_extents{volume=\"v\",pool=\"p\"} 40",
            "holdfast_operation_age_seconds{what=\"mkfs.ext4\",target=\"/dev/loop7\",pid=\"4711\"} 0",
            "holdfast_pools_readable 1",
            "holdfast_pool_total_bytes{pool=\"default\",id=\"\",kind=\"\",node=\"\"} 10",
            "holdfast_pool_inodes{pool=\"default\",id=\"\",kind=\"\",node=\"\"} 7",
            "holdfast_stuck_operations 0",
            concat!("holdfast_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("inodes_free{"), "{text}");
    }

    #[test]
    fn one_pool_that_is_not_served_is_told_beside_those_that_are() {
        let of = |pool: &str, outage: Option<String>| PoolFigures {
            pool: pool.into(),
            node: "n".into(),
            outage,
            ..PoolFigures::default()
        };
        let pools = Some(vec![of("good", None), of("bad", Some("its disk is gone".into()))]);
        let text = Metrics::new(Activity::default()).text(Sampled { pools, ..Sampled::default() }).unwrap();
        for line in [
            "holdfast_pools_readable 0",
            "holdfast_pool_served{pool=\"good\",node=\"n\"} 1",
            "holdfast_pool_served{pool=\"bad\",node=\"n\"} 0",
            "holdfast_pool_total_bytes{pool=\"good\"",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("holdfast_pool_total_bytes{pool=\"bad\""), "{text}");
    }

    #[test]
    fn pools_that_do_not_answer_are_said_not_to() {
        let text = Metrics::new(Activity::default()).text(Sampled::default()).unwrap();
        assert!(text.contains("holdfast_pools_readable 0"), "{text}");
        assert!(!text.contains("pool_total_bytes"), "{text}");
    }
}
