//! The lock that makes a pool ours: flock(2) for the life of the process, dropped by the kernel with it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{Call, Os};

/// Held while it lives. Children never inherit it (O_CLOEXEC).
#[derive(Debug)]
pub struct OwnerLock {
    _file: Flock<File>,
}

impl Os {
    /// Takes the exclusive lock on a file, made if missing; `None` when another process holds it.
    ///
    /// # Errors
    /// Those of open(2) and flock(2) but EWOULDBLOCK.
    pub fn lock_owner(&self, path: &Path) -> io::Result<Option<OwnerLock>> {
        self.call(Call::LockOwner, &path.display(), || {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => Ok(Some(OwnerLock { _file: file })),
                Err((_, Errno::EWOULDBLOCK)) => Ok(None),
                Err((_, errno)) => Err(errno.into()),
            }
        })
    }
}
