//! The messages, client and server generated from proto/home/v1/home.proto. Its `Error` is in the statuses of all
//! interfaces between daemons.

#![allow(
    missing_docs,
    unreachable_pub,
    rustdoc::all,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::disallowed_methods,
    clippy::needless_pass_by_value,
    clippy::large_futures,
    reason = "generated code: the proto file is reviewed instead"
)]

tonic::include_proto!("holdfast.home.v1");
