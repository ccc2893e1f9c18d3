//! NodeGetVolumeStats.

use std::path::Path;

use super::mounts::Shown;
use super::{Node, Stats, Usage, path};
use crate::types::{Bytes, Error, Kind, OsContext, Result, VolumeId};

impl Node {
    /// How full a staged or published volume is (NodeGetVolumeStats). Takes no lock: a filesystem that hangs holds up
    /// the question about itself only.
    ///
    /// # Errors
    /// `NotFound` when exactly this path is not a mount of this volume; `Internal`, with the reason, for a dead one.
    pub fn stats(&self, volume: &VolumeId, path: &Path) -> Result<Stats> {
        let (resolved, shown) = self.used_at(volume, path)?;
        match shown {
            Shown::Device(device) => {
                let path = self.os.device_path(device);
                let opened = self.os.open_device(&path).at(|| format!("open {} of volume {volume}", path.display()))?;
                let size = self.os.device_size(&opened).at(|| format!("ask {} for its size", path.display()))?;
                Ok(Stats::Block { total: Bytes::new(size) })
            }
            Shown::Filesystem(_) => {
                let space = self.os.fs_space(&resolved).at(|| format!("ask {} how full it is", resolved.display()))?;
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

    /// How the volume is to be seen at exactly this path.
    ///
    /// # Errors
    /// `NotFound` when it is not: also for a path that could never be one.
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
