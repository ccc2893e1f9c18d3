//! A real Kubernetes whose nodes are QEMU guests: volumes with `access: network` that follow their pods.
//!
//! `make guest-nodes` builds and starts it, installs the chart, and runs these tests one at a time; `HOLDFAST_E2E` names
//! the cluster's directory. Those in [`soak`] are long and run by `make soak`. See docs/testing.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test says what went wrong by panicking"
)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "kubectl, QEMU and the clock are the tests' own"
)]

#[path = "../kubernetes/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "these tests use a part of it")]
mod harness;

mod app;
mod database;
mod guest;
mod moves;
mod soak;
mod timeline;
