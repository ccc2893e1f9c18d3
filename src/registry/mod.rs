//! How homes and controllers find each other (docs/design.md, docs/operations.md): every node tells every controller
//! every few seconds what it is and has, and gets the directory, which it keeps on its disk.
//!
//! [`Reporter`] runs on a node, [`RegistryService`] in a controller; both speak proto/registry/v1/registry.proto.
//! People look at the whole cluster through the same service ([`Cluster`]).

mod card;
mod cluster;
mod convert;
pub mod proto;
mod reporter;
mod service;
#[cfg(test)]
mod wire;

pub use card::Card;
pub use cluster::{Cluster, Everything, NodeRow, Nodes};
pub use reporter::{Controllers, DialController, Look, Reporter, Said};
pub use service::{MOST_HEARTBEAT, RegistryService};
