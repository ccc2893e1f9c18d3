//! The gRPC edge, thin: decode a request into our types, call, encode the answer. The one place where errors become
//! gRPC codes; no rules live here.
//!
//! A call passes through `call` (span, metrics, deadline, limits), runs as a `work` on a thread of its own that
//! outlives its caller, and its error becomes a code in `status`. [`serve`] puts it on a socket.

mod call;
mod codec;
mod controller;
mod decode;
mod encode;
mod identity;
#[cfg(test)]
mod in_process;
mod node;
pub mod proto;
mod rpc;
mod secrets;
mod server;
pub(crate) mod socket;
mod status;
#[cfg(test)]
mod tests;
mod work;

pub use identity::DRIVER_NAME;
pub use node::ThisNode;
pub use server::{ServeConfig, ServeController, serve};

/// For the model test: calls by the ten thousand.
#[cfg(test)]
pub(crate) use in_process::InProcess;
/// For the fault matrix: which call an error would be answered to, and with which code.
#[cfg(test)]
pub(crate) use rpc::{Class as RpcClass, Rpc};
#[cfg(test)]
pub(crate) use status::code_of;
