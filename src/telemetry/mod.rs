//! Logs, metrics and health: what the daemon says about itself. Used by all layers; knows none of them. What it
//! measures is handed to it through constructors.

mod enrol;
mod homes;
mod http;
mod kubelet;
mod logs;
mod measurement;
mod metrics;
mod pools;
mod tls;

pub use enrol::EnrolMetrics;
pub use homes::{HomeFigures, HomeMetrics, HomeState};
pub use http::Http;
pub use kubelet::KubeletMetrics;
pub use logs::{LogFormat, init_logs};
pub use metrics::{Metrics, Sampled};
pub use pools::{PoolFigures, PoolFindings, PoolWatch, Readiness, VolumeExtents};
pub use tls::TlsMetrics;
