//! Registration of the driver with kubelet, without a separate registrar: a socket in the directory that kubelet
//! watches names the driver and its CSI socket (docs/operations.md).
//!
//! Kubelet (pkg/kubelet/pluginmanager) behaves like this:
//!
//! - It queries every socket that appears in the directory or is there when kubelet starts. When a socket disappears,
//!   it unregisters the driver. Mounted volumes stay mounted either way. Kubelet retries operations that need the
//!   driver until it is registered again.
//! - After a failure of its own checks it queries the socket again by itself. After a failure of the driver's
//!   NodeGetInfo or of the API server it never does: the socket must be created anew.
//!
//! Nothing here calls the API server, and nothing here ends the process: mounts are served whether or not the driver is
//! registered.

pub mod proto;
mod registrar;
mod registration;
mod service;
#[cfg(test)]
mod tests;

pub use registrar::Registrar;
pub use registration::Registration;
