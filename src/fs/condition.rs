//! Whether a mounted filesystem still works: the only check for stage, publish, growth and `doctor`.
//!
//! ext4 shows in mountinfo that it was shut down (`shutdown`) or stopped writing after errors (`emergency_ro` from
//! Linux 6.12, `ro` before). XFS shows nothing there, but every access to an XFS that was shut down fails with EIO.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::os::{MountEntry, Os};

/// A filesystem that has not answered for this long is treated as hanging.
const LIMIT: Duration = Duration::from_secs(2);

/// Why a mounted filesystem no longer works.
#[derive(Debug)]
pub enum Stopped {
    /// Nothing can be read or written.
    ShutDown,
    /// Nothing can be written, and read-only was not requested.
    ReadOnly,
    /// Its root directory cannot be read.
    Failing(io::Error),
    /// It does not answer.
    Hanging(io::Error),
}

impl Stopped {
    /// Whether it can still be read.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        matches!(self, Self::ReadOnly)
    }

    /// The error of the kernel, if there is one.
    #[must_use]
    pub fn into_reason(self) -> Option<io::Error> {
        match self {
            Self::ShutDown | Self::ReadOnly => None,
            Self::Failing(error) | Self::Hanging(error) => Some(error),
        }
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ShutDown => "was shut down after errors",
            Self::ReadOnly => "turned read-only after errors",
            Self::Failing(_) => "can no longer be read",
            Self::Hanging(_) => "does not answer",
        })
    }
}

/// Why the filesystem of these mounts no longer works; `None` when it works. All mounts must be of the same filesystem.
/// Waits at most two seconds for a filesystem that hangs.
#[must_use]
pub fn stopped(os: &Os, mounts: &[&MountEntry]) -> Option<Stopped> {
    let says = |entry: &MountEntry, word: &str| entry.super_options.iter().any(|option| option == word);
    if mounts.iter().any(|entry| says(entry, "shutdown")) {
        return Some(Stopped::ShutDown);
    }
    let first = mounts.first()?;
    match os.filesystem_answers(first.device, &first.mount_point, LIMIT) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Some(Stopped::Hanging(error)),
        // A mount that was removed meanwhile is not a stopped filesystem.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(Stopped::Failing(error)),
        Ok(()) => {}
    }
    let turned = |entry: &&&MountEntry| says(entry, "emergency_ro") || (entry.super_read_only() && !entry.read_only());
    mounts.iter().find(turned).map(|_| Stopped::ReadOnly)
}
