//! Taking mounts away, to an end: whatever of a volume is stacked at a path, and never for ever.

use std::path::Path;
use std::thread;
use std::time::Duration;

use super::Node;
use crate::home::Changed;
use crate::os::{DevNum, Holder, MountEntry};
use crate::types::{Error, Kind, OsContext, Result, VolumeId};

/// So many mounts more than were there at first are taken away from a path, if somebody mounts there meanwhile.
const SPARE: usize = 8;
/// So often a busy mount is tried again, and so long the pauses are, which double up to the longest: 1.2 s in all.
const TRIES: u32 = 16;
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// What becomes of a device node bound at a path that is not the volume's device any more: its loop device was cleared
/// under the pod, and the number may show another volume by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stale {
    /// It goes: the path is this volume's.
    Unmount,
    /// It is something else's.
    Refuse,
}

impl Node {
    /// Unmounts whatever of a volume is stacked at a path. A crash: the next call goes on.
    ///
    /// # Errors
    /// `InUse` naming who uses it; `Precondition` when something else is mounted there, or a mount on a directory above
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

    /// Whether something is to be unmounted at a path: the volume, or a device that was the volume's.
    fn is_mounted(&self, volume: &VolumeId, path: &Path, stale: Stale) -> Result<bool> {
        let mounts = self.mounts(volume)?;
        let other = mounts.at(path).filter(|entry| mounts.shows(entry).is_none());
        let bound = other.and_then(|entry| mounts.bound_device(entry)).filter(|_| stale == Stale::Unmount);
        let was_ours = match bound {
            // Another volume's path is not touched, and neither is what no record explains, unless the device is gone.
            Some(device) => self.shows_nothing(device)? || self.home.was_given(volume, device)?,
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

    /// Whether a device is gone, or is a loop device that nothing is attached to.
    fn shows_nothing(&self, device: DevNum) -> Result<bool> {
        let Some(found) = self.os.loop_of(device).at(|| format!("look up block device {device}"))? else {
            return Ok(!self.os.is_device(device));
        };
        Ok(self.os.loop_view(found).at(|| format!("read the state of {}", found.path().display()))?.is_none())
    }

    /// Takes the topmost mount at a path away; a busy one says who keeps it.
    ///
    /// A process that looks at the mount keeps it busy for a moment, and so does a child of ours that is just being
    /// started and has our descriptors until its exec. So it is tried again while no other process is seen to use it.
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

/// Why a mount could not be taken away.
enum Busy {
    /// Another process uses it.
    Foreign(Error),
    /// It is in use, and no other process is seen to use it.
    Unseen(Error),
    /// It is not in use.
    No(Error),
}

impl Busy {
    fn into_error(self) -> Error {
        match self {
            Self::Foreign(error) | Self::Unseen(error) | Self::No(error) => error,
        }
    }
}

/// A volume's mount that no path leads to.
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
