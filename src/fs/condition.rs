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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::{Call, MountTable};
    use crate::testing::{Disturbance, FaultInjector, Moment};

    /// Mounts of one filesystem, by their own options, those of the filesystem, and their mount point.
    fn mounts(of: &[(&str, &str, &str)]) -> MountTable {
        let line =
            |(own, all, at): &(&str, &str, &str)| format!("36 35 0:9999 / {at} {own} - ext4 /dev/loop9999 {all}\n");
        MountTable::parse(of.iter().map(line).collect::<String>().as_bytes()).unwrap()
    }

    fn found(os: &Os, of: &[(&str, &str, &str)]) -> Option<Stopped> {
        stopped(os, &mounts(of).entries().iter().collect::<Vec<_>>())
    }

    /// Whatever the kernel of this machine prints. The root directory answers in place of the filesystem's.
    #[test]
    fn what_mountinfo_says_is_known_of_every_kernel() {
        let os = Os::new();
        let is = |of: &[(&str, &str, &str)]| found(&os, of).map(|why| (why.to_string(), why.is_readable()));
        let shut_down = Some(("was shut down after errors".to_owned(), false));
        let read_only = Some(("turned read-only after errors".to_owned(), true));
        assert_eq!(is(&[]), None);
        assert_eq!(is(&[("rw", "rw", "/")]), None);
        assert_eq!(is(&[("rw", "rw,shutdown", "/")]), shut_down);
        assert_eq!(is(&[("ro", "ro,shutdown", "/")]), shut_down);
        assert_eq!(is(&[("rw", "rw,emergency_ro", "/")]), read_only, "from Linux 6.12");
        assert_eq!(is(&[("ro", "rw,emergency_ro", "/")]), read_only);
        assert_eq!(is(&[("rw", "ro", "/")]), read_only, "before Linux 6.12");
        assert_eq!(is(&[("ro", "ro", "/")]), None, "as requested");
        assert_eq!(is(&[("ro", "rw", "/")]), None, "a pod that only reads");
        // The mount of a pod that only reads says nothing; the staging mount does.
        assert_eq!(is(&[("ro", "ro", "/"), ("rw", "ro", "/")]), read_only);
        assert_eq!(is(&[("ro", "rw", "/"), ("rw", "rw,shutdown", "/")]), shut_down);
        // Its mount was removed since mountinfo was read.
        assert_eq!(is(&[("rw", "ro", "/no/such/directory")]), None);
    }

    #[test]
    fn one_that_fails_and_one_that_hangs_are_told_apart() {
        let hand = FaultInjector::default();
        let os = Os::intercepted(Box::new(hand.clone()));
        let one = [("rw", "rw", "/")];
        hand.arm(0, Disturbance::Once(Moment::Before, 0));
        let failing = found(&os, &one).unwrap();
        assert_eq!((failing.to_string().as_str(), failing.is_readable()), ("can no longer be read", false));
        assert_eq!(failing.into_reason().unwrap().raw_os_error(), Some(libc::EIO));
        hand.disarm();
        hand.hold(Call::FsAnswers, "/");
        let hanging = found(&os, &one);
        hand.release();
        let hanging = hanging.unwrap();
        assert!(matches!(hanging, Stopped::Hanging(_)), "{hanging}");
        assert_eq!((hanging.to_string().as_str(), hanging.is_readable()), ("does not answer", false));
        assert_eq!(hanging.into_reason().unwrap().kind(), io::ErrorKind::TimedOut);
    }
}
