//! The messages, client and server generated from proto/enrol/v1/enrol.proto.

#![allow(
    missing_docs,
    unreachable_pub,
    rustdoc::all,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::disallowed_methods,
    clippy::needless_pass_by_value,
    clippy::large_futures,
    reason = "generated code: the proto file is what is read and reviewed"
)]

include!(concat!(env!("OUT_DIR"), "/holdfast.enrol.v1.rs"));

/// A Debug without the token.
impl std::fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolRequest").field("request", &self.request).finish_non_exhaustive()
    }
}
