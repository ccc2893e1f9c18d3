//! Holdfast: a CSI driver that makes persistent volumes from the storage that a cluster already has.
//!
//! Dependencies point down only (docs/design.md section 4); tests/layers.rs compares the map with the imports. Modules in
//! one row do not use each other:
//!
//! ```text
//!  main, cli           arguments, logs, signals, exit codes
//!  daemon              puts the modules below together: standalone, controller, node
//!  config              the configuration of each daemon: flags, environment, file
//!  kubelet             registration with kubelet
//!  csi                 the gRPC boundary: decode -> call -> encode; the only map from errors to gRPC codes of CSI
//!  registry | node     heartbeats from nodes to controllers | attach -> format -> mount -> publish
//!  route | attach      placement and routing to home nodes | how a node gets a volume's block device
//!  home                the rules: records, locks, attachments, format states, space
//!  kubernetes          a client of the API server
//!  enrol               certificate issuance for nodes in mode auto
//!  tls                 certificates, and the identity of the peer of a connection between daemons
//!  telemetry           logs, metrics, health
//!  wire                ports, sockets and channels: limits of each client, errors between daemons, threads for calls
//!  pool | fs | linear | export  the storage of volumes | ext4, XFS: probe, create, check, grow | device-mapper devices over a volume's device | exports to other nodes
//!  os | types          the only system calls, unsafe code and child processes | validated types, used by all
//!  testing             test infrastructure, only with the feature of that name
//! ```

pub mod attach;
pub mod config;
pub mod csi;
pub mod daemon;
pub mod enrol;
pub mod export;
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
