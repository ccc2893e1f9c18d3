//! The source of a volume's mount: the link `/run/holdfast/dev/<pool>_<uuid>` to its device.
//!
//! The kernel keeps the text of the source for as long as the mount exists (proc_pid_mountinfo(5)). So a mount is known
//! as the volume's also when its device is gone from sysfs, as a device is that another machine exported. The link
//! itself serves programs that look at the source of a mount; nothing is concluded from where it leads.

use std::path::{Path, PathBuf};

use super::Node;
use crate::types::{OsContext, Result, VolumeId};

/// The directory of the links.
const LINKS: &str = "/run/holdfast/dev";

/// The source of a volume's mounts.
pub(super) fn of(volume: &VolumeId) -> PathBuf {
    Path::new(LINKS).join(format!("{}_{}", volume.pool, volume.uuid))
}

impl Node {
    /// Creates the link to a volume's device, or changes it. One step; a restart of the machine removes it.
    ///
    /// # Errors
    /// `Internal` when it cannot be created.
    pub(super) fn name_source(&self, volume: &VolumeId, device: &Path) -> Result<PathBuf> {
        let source = of(volume);
        self.os.ensure_own_dir(Path::new(LINKS)).at(|| format!("create the directory {LINKS}"))?;
        self.os.link(&source, device).at(|| format!("create the link {}", source.display()))?;
        Ok(source)
    }

    /// Removes the link of a volume whose device is detached. A link that stays is harmless, and is logged.
    pub(super) fn forget_source(&self, volume: &VolumeId) {
        let source = of(volume);
        if let Err(error) = self.os.remove_file(&source) {
            tracing::warn!(%volume, path = %source.display(), %error, "cannot remove the link to the volume's device");
        }
    }
}
