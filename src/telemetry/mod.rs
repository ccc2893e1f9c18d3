//! Logs, metrics and health. All layers use this module, and it uses none of them: constructors receive the sources of
//! its measurements.

mod enrol;
mod homes;
mod http;
mod kubelet;
mod logs;
mod measurement;
mod metrics;
mod network;
mod pools;
mod tls;

pub use enrol::EnrolMetrics;
pub use homes::{HomeFigures, HomeMetrics, HomeState};
pub use http::Http;
pub use kubelet::KubeletMetrics;
pub use logs::{LogFormat, init_logs};
pub use metrics::{Metrics, Sampled};
pub use network::{AttachmentFigures, ConnectionFigures, ExportFigures, NetworkMetrics, NetworkSample, Reconnected};
pub use pools::{PoolFigures, PoolFindings, PoolWatch, Readiness, VolumeExtents};
pub use tls::TlsMetrics;
