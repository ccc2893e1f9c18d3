//! The Unix socket: only root can connect; it is taken over only when no process answers on it, and removed at exit.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tracing::warn;

use crate::types::{Error, Kind, OsContext, Result};

/// Connections that may wait to be accepted. When the queue is full, connect(2) fails for every client, so the kernel's
/// own limit (net.core.somaxconn) should be the smaller one.
const BACKLOG: u32 = 4096;
/// How long the owner of the socket may take to accept a connection; a slower one counts as alive.
const PATIENCE: Duration = Duration::from_secs(1);

/// The path of a bound socket; removes it when dropped, if it is still ours.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// While this is open, no other file gets its inode number.
    inode: File,
}

impl SocketFile {
    /// Whether the path still is this socket.
    pub(crate) fn is_ours(&self) -> bool {
        let now = std::fs::symlink_metadata(&self.path);
        let same = |now: Metadata, ours: Metadata| (now.dev(), now.ino()) == (ours.dev(), ours.ino());
        now.is_ok_and(|now| self.inode.metadata().is_ok_and(|ours| same(now, ours)))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            warn!("cannot remove the socket {}: {error}", self.path.display());
        }
    }
}

/// Listens on `path`; `flag` is the flag that messages name.
///
/// A socket on which no process answers is replaced. Its mode is 0600 before the first connection is possible: between
/// bind(2) and listen(2) every connect(2) is refused.
///
/// # Errors
/// `Precondition` when another process answers there, or the path is not a socket; `Internal` when the system refuses.
pub(crate) async fn listen(path: &Path, flag: &str) -> Result<(UnixListener, SocketFile)> {
    clear(path, flag).await?;
    let socket = UnixSocket::new_stream().at(|| "create a Unix socket")?;
    socket.bind(path).at(|| format!("bind the socket {}; its directory must exist", path.display()))?;
    let secured = std::fs::set_permissions(path, Permissions::from_mode(0o600))
        .and_then(|()| OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path))
        .at(|| format!("set the mode of the socket {}", path.display()))?;
    let file = SocketFile { path: path.to_owned(), inode: secured };
    let listener = socket.listen(BACKLOG).at(|| format!("listen on {}", path.display()))?;
    Ok((listener, file))
}

/// Removes a socket on which no process answers.
///
/// # Errors
/// Those of [`listen`].
pub(crate) async fn clear(path: &Path, flag: &str) -> Result<()> {
    let refused = |reason: String| Error::new(Kind::Precondition, format!("socket {}: {reason}", path.display()));
    let there = match std::fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).at(|| format!("check the socket {}", path.display())),
    };
    if !there.file_type().is_socket() {
        return Err(refused(format!("the path exists and is not a socket; move it away or set another {flag}")));
    }
    match tokio::time::timeout(PATIENCE, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // EAGAIN: its backlog is full, so a process is listening.
        Ok(Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
            return Err(refused("cannot check whether another process answers there".into()).because(error));
        }
        Ok(Ok(_) | Err(_)) | Err(_) => {
            return Err(refused(format!("another process answers there; stop it, or set another {flag} for this one")));
        }
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).at(|| format!("remove the unused socket {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_goes_away_with_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let (listener, file) = listen(&path, "--endpoint").await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let connected = UnixStream::connect(&path).await;
        assert!(connected.is_ok());
        drop((listener, file));
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing else beside it");
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (listener, file) = listen(&path, "--endpoint").await.unwrap();

        let error = listen(&path, "--endpoint").await.unwrap_err();
        assert!(error.kind() == Kind::Precondition && error.to_string().contains("another process"), "{error}");
        assert!(UnixStream::connect(&path).await.is_ok(), "the live one is untouched");
        drop((listener, file));

        std::fs::write(&path, "precious").unwrap();
        let error = listen(&path, "--endpoint").await.unwrap_err();
        assert!(error.to_string().contains("not a socket"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let error = listen(&dir.path().join("no/such/dir.sock"), "--endpoint").await.unwrap_err();
        assert!(error.to_string().contains("directory must exist"), "{error}");
    }

    #[tokio::test]
    async fn what_took_our_place_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let (_listener, file) = listen(&path, "--endpoint").await.unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another").unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_successor_s_socket_is_not_removed_whatever_its_inode_s_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.sock");
        let (listener, file) = listen(&path, "--endpoint").await.unwrap();
        // A filesystem that reuses inode numbers gives the successor ours, once no process has the old socket open.
        drop(listener);
        std::fs::remove_file(&path).unwrap();
        let _successor = listen(&path, "--endpoint").await.unwrap();
        drop(file);
        assert!(UnixStream::connect(&path).await.is_ok());
    }
}
