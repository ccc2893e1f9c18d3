//! The driver on another kernel than this machine's: small QEMU guests with Debian's cloud kernel.
//!
//! `make guests` builds the files that a guest boots and runs the tests of this file's modules on the host. Each starts
//! a guest and runs tests of [`inside`] in it: this same program, which is part of the guest's root. See
//! docs/testing.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test says what went wrong by panicking"
)]

#[path = "../blackbox/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "guests use a part of what the black-box tests stand on")]
mod harness;

mod cluster;
mod detach;
mod exports;
mod fences;
mod figures;
mod inside;
mod machine;
mod moves;
mod power;
mod power_cuts;
mod raw_block;
mod reconnect;
mod restarts;
mod root;
mod sanity;
mod soak;
