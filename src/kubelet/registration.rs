//! The registration: names and paths.

use std::path::{Path, PathBuf};

use crate::csi::DRIVER_NAME;

/// The registration of a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Our socket in the directory that kubelet watches.
    pub socket: PathBuf,
    /// The socket that the standard registrar would create there for this driver: no process may answer on it.
    pub registrar: PathBuf,
    /// The CSI socket, as this process sees it.
    pub csi: PathBuf,
    /// The same as kubelet sees it.
    pub endpoint: String,
}

impl Registration {
    /// In a directory that kubelet watches.
    ///
    /// Kubelet calls with the socket's path as `:authority`, which grpc-go writes as `%2Fvar%2Flib%2F..`
    /// (clientconn.go, `encodeAuthority`; dial in kubelet's operation_generator.go). HTTP/2 servers that check it
    /// answer PROTOCOL_ERROR: a host may not contain `%`. The part before an `@` may (RFC 3986, userinfo), and `@` is
    /// not escaped: hence the socket's name. Kubelet accepts any name.
    #[must_use]
    pub fn within(directory: &Path, csi: &Path, endpoint: &str) -> Self {
        Self {
            socket: directory.join(format!("kubelet@{DRIVER_NAME}-reg.sock")),
            registrar: directory.join(format!("{DRIVER_NAME}-reg.sock")),
            csi: csi.to_owned(),
            endpoint: endpoint.to_owned(),
        }
    }

    /// Kubelet's root directory on the host, if its paths have the usual names.
    #[must_use]
    pub fn kubelet_root(&self) -> Option<PathBuf> {
        let usual = format!("/plugins/{DRIVER_NAME}/csi.sock");
        let of_endpoint = self.endpoint.strip_suffix(&usual).map(PathBuf::from);
        let watched = self.directory();
        let of_directory = || watched.file_name().filter(|name| *name == "plugins_registry").and(watched.parent());
        let root = of_endpoint.or_else(|| of_directory().map(Path::to_owned))?;
        root.parent().is_some().then_some(root)
    }

    /// The registration socket as kubelet finds it, if known.
    #[must_use]
    pub fn socket_of_kubelet(&self) -> Option<PathBuf> {
        Some(self.kubelet_root()?.join("plugins_registry").join(self.socket.file_name()?))
    }

    /// The directory that kubelet watches.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.socket.parent().unwrap_or(Path::new("/"))
    }
}
