//! Black-box tests: the real binary, called over its gRPC socket as an orchestrator would, on real filesystems and loop
//! devices. Each test has a mount namespace and a scratch filesystem of its own and ends with a leak check; needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test says what went wrong by panicking"
)]

mod harness;

mod bad_clients;
mod bad_input;
mod ca;
mod cluster;
mod crash;
mod format_once;
mod fsck;
mod full;
mod growth;
mod hangs;
mod hostile;
mod lifecycle;
mod limits;
mod loops;
mod mounted;
mod observability;
mod one_writer;
mod owner;
mod pools;
mod power;
mod publish;
mod registration;
mod releases;
mod secrets;
mod snapshots;
mod space;
mod topology;
mod torture;
mod upgrade;
