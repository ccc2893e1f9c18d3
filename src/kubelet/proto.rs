//! The messages, client and server generated from proto/pluginregistration/v1/registration.proto.

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

tonic::include_proto!("pluginregistration");
