//! A device that is busy for a moment: a child that another thread is just starting has all our descriptors, those
//! opened with O_EXCL among them, until its exec.

use std::thread;
use std::time::Duration;

use crate::types::{Kind, Result};

const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// Tries again for a second while the answer is `Busy`. Only for what changes nothing when it is.
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
