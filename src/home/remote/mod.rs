//! A home node on another machine: the calls of [`Home`](super::Home) over gRPC (proto/home/v1/home.proto).
//!
//! [`RemoteHome`] is the client; [`HomeService`] is the server for any home. `encode` and `decode` convert between
//! messages and our types. `wire::error` transfers an error completely, so that the caller sees the same kind and
//! message as in one process. A call without an answer may have been executed: it is `Unavailable` or `Timeout`, and a create
//! without an answer is never `Clean`.

mod client;
mod concern;
mod decode;
mod door;
mod encode;
mod service;
#[cfg(test)]
pub(crate) mod wire;

pub use client::RemoteHome;
pub use decode::{finding as finding_of, pool_report, snapshot as snapshot_of, volume as volume_of};
pub use encode::{finding, pool, snapshot, volume};
pub use service::HomeService;

pub use crate::wire::proto;
