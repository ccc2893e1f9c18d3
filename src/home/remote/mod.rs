//! A home on another node: the words of [`Home`](super::Home) over gRPC (proto/home/v1/home.proto).
//!
//! [`RemoteHome`] asks, [`HomeService`] answers with any home behind it. Both ways every message becomes our types and
//! back in `encode` and `decode`; an error travels whole (`fault`), so that the caller sees the same kind and sentence
//! as in one process. What was not answered may have been done: it is `Unavailable` or `Timeout`, and a create that was
//! not answered is never `Clean`.

mod client;
mod decode;
mod encode;
mod fault;
mod gate;
#[cfg(test)]
pub(crate) mod loopback;
pub mod proto;
mod service;
#[cfg(test)]
pub(crate) mod wire;

pub use client::RemoteHome;
pub use decode::{finding as finding_of, pool_report, snapshot as snapshot_of, volume as volume_of};
pub use encode::{finding, pool, snapshot, volume};
pub use fault::{answer as wire_answer, denied as wire_denied, failure as wire_failure};
pub use gate::{admit as wire_admit, allowance as wire_allowance, busy as wire_busy};
pub use service::HomeService;
