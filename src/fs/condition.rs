//! Whether a mounted filesystem still works: the one check for stage, publish, growth and `doctor`.
//!
//! ext4 says in mountinfo that it was shut down (`shutdown`) or stopped writing after errors (`emergency_ro` from Linux
//! 6.12, `ro` before). XFS says nothing there: every access to one that was shut down is EIO.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::os::{MountEntry, Os};

/// A filesystem that has not answered for so long is taken for one that hangs.
const LIMIT: Duration = Duration::from_secs(2);

/// Why a mounted filesystem does not work any more.
#[derive(Debug)]
pub enum Stopped {
    /// Nothing can be read or written.
    ShutDown,
    /// Nothing can be written, and that was not asked for.
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

    /// What the kernel said, where it said anything.
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

/// Why the filesystem that these mounts show does not work any more; `None` when it does. They are mounts of one
/// filesystem. Waits two seconds at most for one that hangs.
#[must_use]
pub fn stopped(os: &Os, mounts: &[&MountEntry]) -> Option<Stopped> {
    let says = |entry: &MountEntry, word: &str| entry.super_options.iter().any(|option| option == word);
    if mounts.iter().any(|entry| says(entry, "shutdown")) {
        return Some(Stopped::ShutDown);
    }
    let first = mounts.first()?;
    match os.filesystem_answers(first.device, &first.mount_point, LIMIT) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Some(Stopped::Hanging(error)),
        // A mount that went away meanwhile is not a filesystem that stopped.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(Stopped::Failing(error)),
        Ok(()) => {}
    }
    let turned = |entry: &&&MountEntry| says(entry, "emergency_ro") || (entry.super_read_only() && !entry.read_only());
    mounts.iter().find(turned).map(|_| Stopped::ReadOnly)
}
