//! How home nodes and controllers find each other (docs/design.md, docs/operations.md). Every few seconds, every node
//! sends every controller a heartbeat with its state and pools. The answer is the directory of pools, which the node
//! keeps on its disk.
//!
//! [`Reporter`] runs on a node, [`RegistryService`] in a controller; both use proto/registry/v1/registry.proto. The
//! command line queries the whole cluster through the same service ([`Cluster`]).

mod cluster;
mod convert;
mod directory_cache;
pub mod proto;
mod reporter;
mod service;
#[cfg(test)]
mod wire;

pub use cluster::{Cluster, Everything, NodeRow, Nodes};
pub use directory_cache::DirectoryCache;
pub use reporter::{Controllers, DeclaredLost, DialController, Look, Reporter, Said};
pub use service::RegistryService;
