//! The identity of this machine.

use std::fs;
use std::io;
use std::path::Path;

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

    /// The value of a kernel setting below /proc/sys or /sys; `None` if this kernel does not have it.
    ///
    /// # Errors
    /// Those of reading it.
    pub fn kernel_setting(&self, path: &Path) -> io::Result<Option<String>> {
        match fs::read_to_string(path) {
            Ok(value) => Ok(Some(value.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
