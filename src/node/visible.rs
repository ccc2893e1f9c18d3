//! Prevents a stage or publish that only the driver itself would see: the pod would write to the disk of the node.

use std::path::Path;

use super::Node;
use crate::os::{Os, Visibility};
use crate::types::{Error, Kind, OsContext, Result};

impl Node {
    /// Checks that kubelet and pods see what is mounted at a resolved path.
    ///
    /// # Errors
    /// `Precondition` when they do not; `Internal` when the mounts cannot be read.
    pub(super) fn visible(&self, path: &Path) -> Result<()> {
        match unseen(&self.os, path)? {
            None => Ok(()),
            Some(why) => {
                Err(Error::new(Kind::Precondition, format!("Holdfast does not mount at {}: {why}", path.display())))
            }
        }
    }
}

/// Why kubelet and pods would not see mounts of this process at a path, and how to fix that; `None` when they see them.
///
/// # Errors
/// `Internal` when the mounts cannot be read.
pub fn unseen(os: &Os, path: &Path) -> Result<Option<String>> {
    let seen = os.visibility(path).at(|| format!("check the visibility of mounts at {}", path.display()))?;
    let Visibility::Ourselves { mount_point } = seen else { return Ok(None) };
    Ok(Some(format!(
        "the driver runs in its own mount namespace, and the mount at {} is not shared with the host, so kubelet and pods \
         would see an empty directory of the node's own disk there. In a container, mount kubelet's directory with \
         mountPropagation: Bidirectional (docker: bind-propagation=rshared). In a systemd service, remove PrivateTmp=, \
         PrivateMounts=, ProtectSystem= and other settings that create a mount namespace. Then restart the driver",
        mount_point.display()
    )))
}
