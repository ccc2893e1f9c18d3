//! Holdfast as its users deploy it: installed by Helm into a real cluster of two nodes, with the real sidecars.
//!
//! `make e2e` builds and starts the cluster, installs the chart and runs these; `HOLDFAST_E2E` names the cluster's
//! directory. Each test has a namespace of its own and deletes it. Those in [`alone`] disturb others and run one at a
//! time.

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
    reason = "kubectl, helm and the clock are the tests' own"
)]

mod alone;
mod block;
mod claims;
mod classes;
mod growth;
mod harness;
mod pods;
mod snapshots;
