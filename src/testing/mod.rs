//! Test infrastructure: the base of the tests in this crate, in tests/, benches/ and fuzz/. The feature `testing` turns
//! it on; the released binary is built without it.
//!
//! - [`scratch`]: filesystems for pools, each on its own loop device;
//! - [`FaultInjector`]: makes chosen system calls fail, hang or end the process;
//! - [`InProcess`]: the CSI services without a socket.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a test says what went wrong by panicking"
)]

mod fault_injector;
mod fault_table;
mod in_process;
#[cfg(test)]
mod loopback;
mod pool;
#[cfg(test)]
pub(crate) mod rig;
pub mod scratch;

pub use fault_injector::{BEHIND, Disturbance, FaultInjector, Moment};
pub use fault_table::{Fault, Row, row};
pub use in_process::InProcess;
#[cfg(test)]
pub(crate) use loopback::Loopback;
