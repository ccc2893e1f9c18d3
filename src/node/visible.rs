//! Prevents a stage or publish that only the driver itself would see: the pod would write to the disk of the node.

use std::path::Path;

use super::Node;
use crate::types::{Error, Kind, OsContext, Result};

impl Node {
    /// Checks that kubelet and pods see what is mounted at a resolved path.
    ///
    /// # Errors
    /// `Precondition` when they do not; `Internal` when the mounts cannot be read.
    pub(super) fn visible(&self, path: &Path) -> Result<()> {
        let seen = self.os.visibility(path).at(|| format!("check the visibility of mounts at {}", path.display()))?;
        match seen.problem() {
            None => Ok(()),
            Some(why) => {
                Err(Error::new(Kind::Precondition, format!("Holdfast does not mount at {}: {why}", path.display())))
            }
        }
    }
}
