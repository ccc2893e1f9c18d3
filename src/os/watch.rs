//! Watches a directory for removed files, asynchronously: inotify(7).

#![expect(unsafe_code, reason = "tokio asks for a promise about the file descriptor it waits on")]

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::unistd::read;
use tokio::io::unix::AsyncFd;

/// Detects that files of a directory are removed or moved, or the directory itself. No volume depends on it, so it has
/// no [`super::Call`] name for fault injection.
#[derive(Debug)]
pub struct DirectoryWatch(AsyncFd<OwnedFd>);

impl DirectoryWatch {
    /// Starts to watch. Only within a tokio runtime.
    ///
    /// # Errors
    /// Those of inotify_init1(2) and inotify_add_watch(2), such as the limit of watches.
    pub fn new(directory: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let events = AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(directory, events)?;
        // SAFETY: the registration owns the descriptor, which is neither replaced nor closed before it is dropped
        // together with the registration.
        let registered = unsafe { AsyncFd::register(OwnedFd::from(inotify)) };
        Ok(Self(registered?))
    }

    /// Completes when something was removed or moved since the last call. The caller must look what it was.
    ///
    /// # Errors
    /// Those of read(2).
    pub async fn changed(&self) -> io::Result<()> {
        let mut events = [0; 4096];
        loop {
            let mut ready = self.0.readable().await?;
            match read(self.0.get_ref(), &mut events) {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_goes_is_seen_and_what_comes_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let watch = DirectoryWatch::new(dir.path()).unwrap();
        let quiet = async || tokio::time::timeout(Duration::from_millis(50), watch.changed()).await.is_err();
        std::fs::write(dir.path().join("a"), "").unwrap();
        assert!(quiet().await);
        std::fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        watch.changed().await.unwrap();
        assert!(quiet().await, "the same news twice");
        std::fs::remove_file(dir.path().join("b")).unwrap();
        watch.changed().await.unwrap();
        dir.close().unwrap();
        watch.changed().await.unwrap();
    }

    #[tokio::test]
    async fn only_directories_are_watched() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(DirectoryWatch::new(file.path()).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }
}
