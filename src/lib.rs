//! Holdfast: a CSI driver that makes persistent volumes out of what a cluster already has.
//!
//! Dependencies point down only (docs/design.md section 4):
//!
//! ```text
//!  main, cli        arguments, wiring, exit codes
//!  csi              the gRPC edge: decode -> call -> encode; the one Error -> Status map
//!  kubelet          how kubelet gets to know the driver
//!  registry         how nodes and controllers find each other
//!  route | node     placement and routing to homes | attach -> format -> mount -> publish
//!  home             the rules: records, locks, grants, format states, space
//!  pool, attach     where volumes are carved from | how a node gets a block device
//!  fs               ext4, xfs: probe, make, check, grow
//!  os               the only system calls, unsafe and child processes
//!  enrol            certificates for nodes without files
//!  kubernetes       the API server, as a plain client
//!  works            threads for the workflows, for whoever serves calls
//!  wire             the bounds of every port and socket
//!  tls              certificates, and who is at the other end of a connection between daemons
//!  types, telemetry words as types | logs, metrics, health; used by all
//! ```

pub mod attach;
pub mod config;
pub mod csi;
pub mod enrol;
#[cfg(test)]
mod faults;
pub mod fs;
pub mod home;
pub mod kubelet;
pub mod kubernetes;
#[cfg(test)]
mod model;
pub mod node;
pub mod os;
pub mod pool;
pub mod registry;
pub mod route;
pub mod telemetry;
pub mod tls;
pub mod types;
pub mod wire;
pub mod works;
