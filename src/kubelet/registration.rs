//! What is registered, and where.

use std::path::{Path, PathBuf};

use crate::csi::DRIVER_NAME;

/// A driver that offers itself to kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Our socket in the directory that kubelet watches.
    pub socket: PathBuf,
    /// The socket CSI is served on, as this process sees it.
    pub csi: PathBuf,
    /// The same as kubelet sees it.
    pub endpoint: String,
}

impl Registration {
    /// In a directory that kubelet watches. The name of the socket is the one the standard registrar would take, so that
    /// one driver is never there twice.
    #[must_use]
    pub fn within(directory: &Path, csi: &Path, endpoint: &str) -> Self {
        Self {
            socket: directory.join(format!("{DRIVER_NAME}-reg.sock")),
            csi: csi.to_owned(),
            endpoint: endpoint.to_owned(),
        }
    }

    /// The directory that kubelet watches.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.socket.parent().unwrap_or(Path::new("/"))
    }
}
