//! Errors as gRPC statuses.

#![expect(clippy::disallowed_methods, reason = "this is where gRPC codes are chosen")]

use tonic::Status;

/// A request whose bytes are not the message they should be.
pub(super) fn undecodable(reason: &str) -> Status {
    Status::invalid_argument(format!("the request does not decode as its CSI v1 message: {reason}"))
}
