//! Holdfast: a CSI driver that makes persistent volumes from the storage that a cluster already has.
//!
//! Dependencies point down only (docs/design.md section 4):
//!
//! ```text
//!  main, cli        arguments, logs, signals, exit codes
//!  daemon           puts the modules below together: standalone, controller, node
//!  csi              the gRPC edge: decode -> call -> encode; the one Error -> Status map
//!  kubelet          registration with kubelet
//!  registry         heartbeats from nodes to controllers
//!  route | node     placement and routing to home nodes | attach -> format -> mount -> publish
//!  home             the rules: records, locks, attachments, format states, space
//!  pool, attach     the storage of volumes | how a node gets a block device
//!  fs               ext4, xfs: probe, create, check, grow
//!  os               the only system calls, unsafe and child processes
//!  enrol            certificate issuance for nodes in mode auto
//!  kubernetes       a client of the API server
//!  wire             ports, sockets and channels: their limits, errors between daemons, threads for calls
//!  tls              certificates, and the identity of the peer of a connection between daemons
//!  types, telemetry shared types | logs, metrics, health; used by all
//!  testing          test infrastructure, only with the feature of that name
//! ```

pub mod attach;
pub mod config;
pub mod csi;
pub mod daemon;
pub mod enrol;
pub mod fs;
pub mod home;
pub mod kubelet;
pub mod kubernetes;
pub mod linear;
pub mod node;
pub mod os;
pub mod pool;
pub mod registry;
pub mod route;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
pub mod types;
pub mod wire;
