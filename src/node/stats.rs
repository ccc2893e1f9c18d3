//! NodeGetVolumeStats.

use std::path::Path;

use super::mounts::Shown;
use super::publish::has_stopped;
use super::{Node, Stats, Usage, path};
use crate::fs::{self, Stopped};
use crate::types::{Bytes, Error, Kind, OsContext, Result, VolumeId};

impl Node {
    /// The usage of a staged or published volume (NodeGetVolumeStats). Takes no lock: a filesystem that hangs blocks
    /// only the request about itself.
    ///
    /// # Errors
    /// `NotFound` when exactly this path is not a mount of this volume; `Timeout` when it does not respond; `Internal`,
    /// with the reason, for a dead filesystem.
    pub fn stats(&self, volume: &VolumeId, path: &Path) -> Result<Stats> {
        let (resolved, shown) = self.used_at(volume, path)?;
        match shown {
            Shown::Device(device) | Shown::View(device) => {
                let size = self.os.device_size_shown(device);
                let size = size.at(|| format!("read the size of block device {device} of volume {volume}"))?;
                Ok(Stats::Block { total: Bytes::new(size) })
            }
            Shown::Filesystem(_) => {
                let mounts = self.mounts(volume)?;
                if let Some(entry) = mounts.at(&resolved) {
                    match fs::stopped(&self.os, &[entry]) {
                        // statfs(2) on a filesystem that hangs would block this thread forever.
                        Some(Stopped::Hanging(reason)) => {
                            let place = resolved.display();
                            let what = format!("the filesystem of volume {volume} at {place} does not answer");
                            return Err(Error::new(Kind::Timeout, what).because(reason));
                        }
                        // statfs(2) succeeds on ext4 and XFS that were shut down.
                        Some(why) if !why.is_readable() => {
                            return Err(has_stopped(volume, entry, why).with_kind(Kind::Internal));
                        }
                        Some(_) | None => {}
                    }
                }
                let space =
                    self.os.fs_space(&resolved).at(|| format!("read the free space of {}", resolved.display()))?;
                let bytes = Usage {
                    total: space.total,
                    available: space.available,
                    used: space.total.saturating_sub(space.free),
                };
                let inodes = Usage {
                    total: space.inodes,
                    available: space.inodes_free,
                    used: space.inodes.saturating_sub(space.inodes_free),
                };
                Ok(Stats::Filesystem { bytes, inodes })
            }
        }
    }

    /// How the volume is mounted at exactly this path.
    ///
    /// # Errors
    /// `NotFound` when it is not, also for an invalid path.
    pub(super) fn used_at(&self, volume: &VolumeId, path: &Path) -> Result<(std::path::PathBuf, Shown)> {
        let absent = || {
            Error::new(Kind::NotFound, format!("volume {volume} is neither staged nor published at {}", path.display()))
        };
        let resolved = path::resolve(&self.os, path).map_err(|error| match error.kind() {
            Kind::InvalidArgument => absent(),
            _ => error,
        })?;
        let resolved = resolved.ok_or_else(absent)?;
        let (_, shown) =
            self.mounts(volume)?.ours(&resolved, Kind::NotFound)?.ok_or_else(absent).map(|(e, s)| (e.id, s))?;
        Ok((resolved, shown))
    }
}
