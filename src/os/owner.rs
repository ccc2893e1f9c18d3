//! The lock that makes a process the owner of a pool: flock(2), released by the kernel when the process ends.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, ResolveFlag};
use nix::sys::stat::Mode;

use super::files::OWN_FILE;
use super::{Call, Os};

/// Releases the lock when it is dropped. Children never inherit it (O_CLOEXEC).
#[derive(Debug)]
pub struct OwnerLock {
    _directory: Flock<File>,
    _file: Flock<File>,
}

impl Os {
    /// Locks a directory, which cannot be removed while it has an entry. Then locks a file in it, which release 0.1.0
    /// locks; the file is created if missing. `None` when another process holds one of the locks.
    ///
    /// # Errors
    /// Those of open(2) and flock(2) except EWOULDBLOCK.
    pub fn lock_owner(&self, directory: &Path, file: &Path) -> io::Result<Option<OwnerLock>> {
        self.call(Call::LockOwner, &file.display(), || {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
            let directory = self.place(directory).open(flags, Mode::empty(), ResolveFlag::empty())?;
            let Some(directory) = lock(directory)? else { return Ok(None) };
            let file = self.place(file).parent()?.open(OFlag::O_RDWR | OFlag::O_CREAT, OWN_FILE)?;
            Ok(lock(file)?.map(|file| OwnerLock { _directory: directory, _file: file }))
        })
    }
}

fn lock(file: File) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => Ok(Some(file)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}
