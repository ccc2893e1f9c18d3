//! How kubelet gets to know the driver, without a registrar beside it: a socket in the directory that kubelet watches
//! says who we are and where CSI is served (docs/operations.md).
//!
//! What kubelet does (pkg/kubelet/pluginmanager) decides what happens here:
//!
//! - It asks every socket that appears in the directory or lies there when kubelet starts, and takes one that goes away
//!   for a driver that is gone. Volumes that are mounted stay so either way; what it has to do with the driver it tries
//!   again until the driver is back.
//! - After a refusal of its own checks it asks again by itself. When the driver's NodeGetInfo or the cluster's answer was
//!   the reason it does not, ever: the socket must be made anew.
//!
//! Nothing here speaks to the cluster, and nothing here ends the process: mounts are served whether kubelet knows us or
//! not.

pub mod proto;
mod registrar;
mod registration;
mod service;
#[cfg(test)]
mod tests;

pub use registrar::Registrar;
pub use registration::Registration;
