//! The gRPC layer: decode a request into our types, call, encode the answer. Only here errors become gRPC codes; it
//! contains no rules.
//!
//! A call passes through `call` (span, metrics, deadline, limits) and runs as a `work` on a thread of its own that
//! outlives its caller. Its error becomes a code in `status`. [`serve`] puts it on a socket.

pub(crate) mod call;
mod codec;
mod concern;
mod controller;
mod decode;
mod encode;
mod identity;
mod node;
pub mod proto;
mod rpc;
mod secrets;
pub(crate) mod server;
mod status;
#[cfg(test)]
mod tests;
pub(crate) mod work;

pub use identity::DRIVER_NAME;
pub use node::ThisNode;
pub use server::{ServeConfig, serve};

pub use rpc::{Class as RpcClass, Rpc};
#[cfg(any(test, feature = "testing"))]
pub use status::code_of;
