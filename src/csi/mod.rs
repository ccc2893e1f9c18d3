//! The gRPC edge, thin: decode a request into our types, call, encode the answer. The one place where errors become
//! gRPC codes ([`status`]); no rules live here.

mod codec;
pub mod proto;
mod secrets;
mod status;
