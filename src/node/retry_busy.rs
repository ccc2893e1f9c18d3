//! Retries while a device is briefly busy: a child that another thread starts holds all our descriptors until its exec,
//! including those opened with O_EXCL.

use std::thread;
use std::time::Duration;

use crate::types::{Kind, Result};

const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Retries for one second while the result is `Busy`. Only for calls that change nothing in that case.
///
/// # Errors
/// The last one.
pub(super) fn patiently<T>(run: impl Fn() -> Result<T>) -> Result<T> {
    for _ in 0..TRIES {
        match run() {
            Err(error) if error.kind() == Kind::Busy => thread::sleep(PAUSE),
            result => return result,
        }
    }
    run()
}
