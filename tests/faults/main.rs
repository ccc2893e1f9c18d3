//! The fault matrix: every system call of every operation of the driver fails, before and after its effect, with each
//! error it can give; the process is killed at every call; and what is done to undo a failure fails too. Then the same
//! request comes again, as a sidecar sends it, and must end where an undisturbed one ends (docs/testing.md).
//!
//! Real filesystems, loop devices, mounts and tools. Faults go in at `os`, below pool, fs, attach, home and node, so
//! every path an error takes through them is walked by itself: no second stand-in for those traits is needed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test says what went wrong by panicking"
)]

mod hangs;
mod matrix;
mod operations;
mod partition;
mod state;
mod world;
