//! The tests that run in a guest: each is started there by name. None runs on the host.

mod attack;
pub(crate) mod call;
pub(crate) mod exports;
pub(crate) mod forward;
mod linear_device;
pub(crate) mod load;
mod loopback;
mod raw_block;
pub(crate) mod records;
mod releases;
pub(crate) mod writes;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use holdfast::os::{DevNum, Os};

/// The prefix of every dm uuid of the driver's raw volumes.
const OURS: &str = "HOLDFAST-RAW-";

/// The number of the block device behind a node.
fn number_of(path: &Path) -> DevNum {
    DevNum::from_dev_t(fs::metadata(path).unwrap().rdev())
}

/// Asserts that there is no device of device-mapper at all.
fn none_left() {
    assert_eq!(Os::new().dm_devices("").unwrap(), Vec::new(), "devices of device-mapper");
}
