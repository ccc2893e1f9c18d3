//! A home node on another machine: the calls of [`Home`](super::Home) over gRPC (proto/home/v1/home.proto).
//!
//! [`RemoteHome`] is the client; [`HomeService`] is the server for any home. `encode` and `decode` convert between
//! messages and our types. `fault` transfers an error completely, so that the caller sees the same kind and message as
//! in one process. A call without an answer may have been executed: it is `Unavailable` or `Timeout`, and a create
//! without an answer is never `Clean`.

mod client;
mod concern;
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
