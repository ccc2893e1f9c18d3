//! The gRPC layer: decode a request into our types, call, encode the answer. Only here errors become gRPC codes; it
//! contains no rules.
//!
//! A call passes through `call` (span, metrics, deadline, limits) and runs as a `work` on a thread of its own that
//! outlives its caller. Its error becomes a code in `status`. [`serve`] puts it on a socket.

mod call;
mod codec;
mod concern;
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
/// For the fault matrix: the call that an error would be answered to, and the code.
#[cfg(test)]
pub(crate) use rpc::{Class as RpcClass, Rpc};
#[cfg(test)]
pub(crate) use status::code_of;
