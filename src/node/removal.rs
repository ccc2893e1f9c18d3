//! Removes all mounts of a volume at a path, with a bounded number of attempts.

use std::path::Path;
use std::thread;
use std::time::Duration;

use super::Node;
use crate::home::Changed;
use crate::os::{DevNum, Holder, MountEntry};
use crate::types::{Error, Kind, OsContext, Result, VolumeId};

/// The number of extra mounts removed from a path, in case another process mounts there meanwhile.
const SPARE: usize = 8;
/// The number of retries for a busy mount, and the pauses, which double up to the longest: 1.2 s in total.
const TRIES: u32 = 16;
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The action for a bind-mounted device node that is no longer the volume's device: its loop device was detached while
/// a pod used it, and the number may have another image now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stale {
    /// Remove it: the path belongs to this volume.
    Unmount,
    /// Reject it: it belongs to something else.
    Refuse,
}

impl Node {
    /// Unmounts every mount of a volume at a path. After a crash the next call continues.
    ///
    /// # Errors
    /// `InUse` naming the user; `Precondition` when something else is mounted there, or a mount on a parent directory
    /// covers it; `Internal`.
    pub(super) fn unmount_all(&self, volume: &VolumeId, path: &Path, stale: Stale) -> Result<Changed> {
        let most = self.mounts(volume)?.depth(path).saturating_add(SPARE);
        let mut changed = Changed::No;
        for _ in 0..most {
            if !self.is_mounted(volume, path, stale)? {
                return Ok(changed);
            }
            self.unmount(path)?;
            changed = Changed::Yes;
        }
        if !self.is_mounted(volume, path, stale)? {
            return Ok(changed);
        }
        Err(Error::new(
            Kind::Internal,
            format!(
                "volume {volume} is still mounted at {} after {most} unmounts: another process mounts it there again, or the mount is locked because it came from another mount namespace; find that process and stop it, then retry",
                path.display()
            ),
        ))
    }

    /// Whether there is a mount to remove at a path: the volume, or a device that was the volume's.
    fn is_mounted(&self, volume: &VolumeId, path: &Path, stale: Stale) -> Result<bool> {
        let mounts = self.mounts(volume)?;
        let other = match mounts.at(path) {
            Some(entry) if mounts.shows(entry)?.is_none() => Some(entry),
            Some(_) | None => None,
        };
        let bound = other.and_then(|entry| mounts.bound_device(entry)).filter(|_| stale == Stale::Unmount);
        let was_ours = match bound {
            // A mount of another volume is not touched. A mount without a matching record is removed only if its device
            // is gone.
            Some(device) => {
                self.os.is_device_empty(device).at(|| format!("read the state of block device {device}"))?
                    || self.was_given(volume, device)?
            }
            None => false,
        };
        match mounts.ours(path, Kind::Precondition) {
            Err(_) if was_ours => {
                tracing::warn!(%volume, path = %path.display(), "the device published at this path no longer belongs to the volume; the node removes the bind mount");
                Ok(true)
            }
            found => found.map(|found| found.is_some()),
        }
    }

    /// Whether pods of a volume may have a device. Only this node's own home knows that; a device over the network
    /// belongs to the volume by the name of its export.
    fn was_given(&self, volume: &VolumeId, device: DevNum) -> Result<bool> {
        let Ok(home) = self.home(volume) else { return Ok(false) };
        match home.was_given(volume, device) {
            Ok(given) => Ok(given),
            Err(error) if error.kind() == Kind::Unsupported => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Unmounts the topmost mount at a path. The error for a busy mount names its user.
    ///
    /// A process that looks at the mount makes it busy for a moment. So does a child of ours that is being started,
    /// because it has our descriptors until its exec. Therefore the unmount is retried as long as no other process
    /// visibly uses the mount.
    pub(super) fn unmount(&self, point: &Path) -> Result<()> {
        let mut pause = FIRST_PAUSE;
        for _ in 0..TRIES {
            match self.unmount_once(point) {
                Err(Busy::Foreign(error)) | Err(Busy::No(error)) => return Err(error),
                Err(Busy::Unseen(_)) => thread::sleep(pause),
                Ok(()) => return Ok(()),
            }
            pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
        }
        self.unmount_once(point).map_err(Busy::into_error)
    }

    fn unmount_once(&self, point: &Path) -> std::result::Result<(), Busy> {
        let Err(error) = self.os.unmount(point) else { return Ok(()) };
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(Busy::No(Error::new(Kind::Internal, format!("unmount {}", point.display())).because(error)));
        }
        let holders = self.os.holders(point).unwrap_or_default();
        let who = Holder::list(&holders).unwrap_or_else(|| "a process that is not visible from here".to_owned());
        let what = format!("{} is in use by {who}; stop it and retry", point.display());
        let error = Error::new(Kind::InUse, what).because(error);
        Err(if holders.iter().any(|holder| !holder.ours) { Busy::Foreign(error) } else { Busy::Unseen(error) })
    }
}

/// Why an unmount failed.
enum Busy {
    /// Another process uses the mount.
    Foreign(Error),
    /// The mount is in use, but no other process visibly uses it.
    Unseen(Error),
    /// The mount is not in use.
    No(Error),
}

impl Busy {
    fn into_error(self) -> Error {
        match self {
            Self::Foreign(error) | Self::Unseen(error) | Self::No(error) => error,
        }
    }
}

/// The error for a volume's mount that no path reaches.
pub(super) fn covered(volume: &VolumeId, path: &Path, by: &MountEntry, kind: Kind) -> Error {
    let (path, place) = (path.display(), by.mount_point.display());
    Error::new(
        kind,
        format!(
            "volume {volume} is mounted at {path}, but a mount at {place} ({} of {}) covers it; nothing was changed; unmount {place}, or stop the process that mounts it, then retry",
            by.fs_type, by.source
        ),
    )
}
