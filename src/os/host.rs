//! The identity of this machine.

use std::fs;
use std::io;

use super::Os;

/// A new random id at every boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Os {
    /// The id of this boot of the machine, 36 characters.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn boot_id(&self) -> io::Result<String> {
        Ok(fs::read_to_string(BOOT_ID)?.trim().to_owned())
    }
}
