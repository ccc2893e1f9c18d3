//! The base of the tests: a scratch filesystem in a mount namespace of its own, the driver as a child process, blocking
//! calls, content to compare, tools that can be blocked, and a leak check at the end.

pub(crate) mod api_server;
pub(crate) mod calls;
mod content;
mod faults;
mod hog;
mod leaks;
mod process;
pub(crate) mod raw;
mod request;
mod scratch;
mod spelling;
mod world;

pub(crate) use content::{
    allocated, check_chunks, check_device, check_piece, check_tree, checksum, device_size, empty_filesystem,
    fill_filesystem, fs_size, is_dense, superblock_uuid, write_chunk, write_device, write_piece, write_tree,
};
pub(crate) use faults::{Frozen, HeldTool};
pub(crate) use hog::Hog;
pub(crate) use leaks::{loops_on, others_here, tools_here};
pub(crate) use process::{
    Daemon, Finished, Release, driver_binary, free_port, run, try_run, try_run_unchecked, try_run_with,
};
pub(crate) use request::{Use, capability, create_request, segments, with_mode};
pub(crate) use scratch::{PoolFs, Scratch, mounts, own_mounts};
pub(crate) use world::{Vol, World, await_that, can_grow_ext4_online};

/// One MiB, for sizes as CSI's signed numbers.
pub(crate) const MIB: i64 = 1 << 20;

/// Requires a refusal with one of these codes; returns its message, which must not be empty.
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<T, tonic::Status>, codes: &[tonic::Code]) -> String {
    let status = answer.expect_err("it should have been refused");
    assert!(codes.contains(&status.code()), "{codes:?} was expected: {status:?}");
    assert!(!status.message().trim().is_empty(), "a refusal without a message: {status:?}");
    assert!(status.details().is_empty(), "details must be empty: {status:?}");
    status.message().to_owned()
}
