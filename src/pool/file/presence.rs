//! Whether the pool is at the path where it was opened. All accesses below its root use an open descriptor, so a pool
//! whose path leads elsewhere is still the pool. But it is not what the operator sees at that path, so requests for it
//! fail. A pool that disappeared is closed, so that its filesystem can be unmounted and mounted again; it is reopened
//! when it is back.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLockReadGuard, TryLockError};

use super::filesystem::Filesystem;
use super::identity::PoolFile;
use super::layout::{DIRECTORIES, Layout, POOL_FILE};
use super::{BackingFs, FilePool, Ownership};
use crate::os::{Entry, FileVersion, Os, OwnerLock, Shown};
use crate::types::{Error, Kind, OsContext, Result};

/// The state between two checks.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// The version of pool.json that was read last.
    seen: Mutex<Option<FileVersion>>,
    /// Why the pool is closed.
    lost: Mutex<Option<(Kind, String)>>,
}

impl FilePool {
    /// Begins work in the pool: it is not closed until the guard is dropped.
    pub(super) fn begin(&self) -> RwLockReadGuard<'_, ()> {
        self.using.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares the pool's path with the open directory, and pool.json with the pool's identity. This takes two calls
    /// of stat(2); pool.json is read again only after it changed.
    pub(super) fn look(&self) -> Result<()> {
        if let Some((kind, reason)) = &*locked(&self.presence.lost) {
            return Err(Error::new(*kind, reason.clone()));
        }
        let (shown, version) =
            self.os.look_at_root(POOL_FILE).map_err(|error| self.away("stat fails").because(error))?;
        match shown {
            Shown::Itself => {}
            Shown::Nothing => return Err(self.away("there is no directory")),
            Shown::Other => {
                return Err(self.away("there is another directory: the pool was moved, its filesystem was unmounted, or something was mounted over it"));
            }
        }
        let mut seen = locked(&self.presence.seen);
        if version.is_some() && *seen == version {
            return Ok(());
        }
        self.is_this(PoolFile::read(&self.os, &self.layout))?;
        *seen = version;
        Ok(())
    }

    /// Whether a pool.json belongs to this pool.
    fn is_this(&self, file: Result<Option<PoolFile>>) -> Result<()> {
        let file = file.map_err(|error| self.away("its pool.json cannot be used").because(error))?;
        let file = file.ok_or_else(|| {
            self.away("there is no pool.json: its filesystem is not mounted, or the file was removed")
        })?;
        if file.id != self.identity.id {
            return Err(self.away(&format!("there is another pool, {} ({})", file.id, file.name)));
        }
        if file.home != self.identity.home {
            return Err(self.away(&format!("the pool belongs to node {} now", file.home)));
        }
        Ok(())
    }

    fn away(&self, why: &str) -> Error {
        let (identity, place) = (&self.identity, self.layout.root().display());
        Error::new(
            Kind::Unavailable,
            format!(
                "pool {} ({}) is not served: at {place} {why}. Mount its filesystem there again, or unmount what hides it (findmnt {place}); no restart is needed",
                identity.name, identity.id
            ),
        )
    }

    /// Reopens the pool after it disappeared.
    ///
    /// 1. Check whether it is there: then there is nothing to do.
    /// 2. Check that it is not in use; close its directory and release its lock. A crash does both too.
    /// 3. Open the directory at its path, check that it is this pool and complete, and lock it.
    /// 4. Keep that directory open.
    ///
    /// # Errors
    /// `Unavailable` while it is not there, or while work in it does not end.
    pub(super) fn find_again(&self) -> Result<()> {
        let Err(away) = self.look() else { return Ok(()) };
        let Ownership::Owner { lock: ours } = &self.ownership else { return Err(away) };
        let _alone = match self.using.try_write() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(away),
        };
        self.root.let_go();
        *locked(ours) = None;
        let (kind, reason) = match self.open_again() {
            Ok(lock) => {
                *locked(ours) = Some(lock);
                *locked(&self.presence.seen) = None;
                *locked(&self.presence.lost) = None;
                return Ok(());
            }
            Err(error) => (error.kind(), error.chain()),
        };
        *locked(&self.presence.lost) = Some((kind, reason.clone()));
        Err(Error::new(kind, reason))
    }

    /// Steps 3 and 4.
    fn open_again(&self) -> Result<OwnerLock> {
        let cannot = |error: io::Error| self.away("open fails").because(error);
        let root = self.outside.open_root(self.layout.root()).map_err(cannot)?;
        let root = Arc::new(root.ok_or_else(|| self.away("there is no directory"))?);
        let os = self.outside.below(Arc::clone(&root));
        self.is_this(PoolFile::read(&os, &self.layout))?;
        let unusable =
            |error: Error| error.with_kind(Kind::Unavailable).context(self.away("the pool cannot be used").to_string());
        if Filesystem::of(&os, &self.layout, BackingFs::FuseForTests).map_err(unusable)? != self.filesystem {
            return Err(self.away("the pool is on another filesystem type than before; restart the driver"));
        }
        whole(&os, &self.layout).map_err(unusable)?;
        let lock = lock(&os, &self.layout).map_err(unusable)?;
        self.root.hold(&root);
        Ok(lock)
    }
}

/// The error for a pool whose disk or filesystem failed. The kernel's error alone does not explain this.
pub(super) fn explained(name: &dyn Display, root: &Path, error: Error) -> Error {
    if !is_dead(&error) {
        return error;
    }
    let place = root.display();
    error.with_kind(Kind::Unavailable).context(format!(
        "the filesystem of pool {name} at {place} failed: its disk is missing or broken, or the kernel shut the filesystem down; see dmesg, then repair it and mount it again"
    ))
}

/// Whether an error says that the filesystem does not work, rather than that a file does not exist.
pub(super) fn is_dead(error: &Error) -> bool {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if let Some(errno) = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return matches!(
                errno,
                libc::EIO
                    | libc::ENODEV
                    | libc::ENXIO
                    | libc::ESHUTDOWN
                    | libc::ESTALE
                    | libc::EUCLEAN
                    | libc::ENOTCONN
            );
        }
        next = cause.source();
    }
    false
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lock of an owner.
pub(super) fn lock(os: &Os, layout: &Layout) -> Result<OwnerLock> {
    let lock = os.lock_owner(layout.root(), &layout.lock()).at(|| format!("lock {}", layout.lock().display()))?;
    lock.ok_or_else(|| {
        Error::new(
            Kind::InUse,
            format!(
                "the pool in {} is owned by another running process, which has locked {} or the directory; stop that process first",
                layout.root().display(),
                layout.lock().display()
            ),
        )
    })
}

/// Checks that the pool's directories exist.
pub(super) fn whole(os: &Os, layout: &Layout) -> Result<()> {
    for name in DIRECTORIES {
        let directory = layout.root().join(name);
        if os.entry(&directory).at(|| format!("stat {}", directory.display()))? != Some(Entry::Directory) {
            return Err(Error::new(
                Kind::Corrupt,
                format!(
                    "the pool in {} has no directory {name}; check that its filesystem is mounted and complete, then restore the directory or, if nothing was lost, mkdir it",
                    layout.root().display()
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::super::{Fill, FirstUse, Object, ObjectKind, open, open_or};
    use super::super::tests::{THICK, make, refused, try_open, volume};
    use super::*;
    use crate::os::MountFlags;
    use crate::testing::scratch::{PoolFs, Scratch, home, spec};
    use crate::types::ObjectUuid;

    #[test]
    fn no_pool_is_made_where_one_is_waited_for() {
        let scratch = Scratch::new(PoolFs::Xfs);
        let wait = |id| open_or(scratch.os(), &spec(&scratch.root()), &home(), FirstUse::Wait(id)).map(drop);
        let id = "00000000000000ab".parse().unwrap();
        refused(wait(Some(id)), Kind::Unavailable, &["is empty", "00000000000000ab", "findmnt", "pools init"]);
        refused(wait(None), Kind::Unavailable, &["is empty", "findmnt", "pools init"]);
        assert_eq!(fs::read_dir(scratch.root()).unwrap().count(), 0);
        try_open(&scratch).unwrap();
        wait(None).unwrap();
        wait(Some(id)).unwrap();
    }

    #[test]
    fn a_pool_that_becomes_another_is_away_and_is_taken_back() {
        let scratch = Scratch::new(PoolFs::Xfs);
        let pool = scratch.pool();
        make(&*pool);
        let file = scratch.root().join("pool.json");
        let good = fs::read_to_string(&file).unwrap();
        let id = pool.identity().id.to_string();
        for (bad, why) in [
            (good.replace(&id, "00000000000000ab"), "00000000000000ab"),
            (good.replace(home().as_str(), "node-2"), "belongs to node node-2"),
            ("{".into(), "pool.json"),
        ] {
            fs::write(&file, bad).unwrap();
            refused(pool.present(), Kind::Unavailable, &["pool default", why]);
            refused(pool.find_again(), Kind::Unavailable, &[why]);
            // Closed: nothing of the pool can be reached, and another process may own it.
            assert!(pool.read_record(volume()).is_err() && pool.list(ObjectKind::Volume).is_err());
            fs::write(&file, &good).unwrap();
            let other = open(scratch.os(), &spec(&scratch.root()), &home()).unwrap();
            refused(pool.find_again(), Kind::Unavailable, &["owned by another"]);
            drop(other);
            let (trash, aside) = (scratch.root().join("trash"), scratch.root().join("aside"));
            fs::rename(&trash, &aside).unwrap();
            refused(pool.find_again(), Kind::Unavailable, &["trash"]);
            fs::rename(&aside, &trash).unwrap();
            pool.find_again().unwrap();
            assert_eq!(pool.read_record(volume()).unwrap().unwrap().text, b"{}");
        }
        fs::remove_file(&file).unwrap();
        refused(pool.present(), Kind::Unavailable, &["no pool.json"]);
        fs::write(&file, &good).unwrap();
        pool.present().unwrap();
        pool.remove(volume()).unwrap();
    }

    #[test]
    fn a_dead_filesystem_is_known_by_its_errno_however_deep_the_cause_is() {
        let plain = |errno| Error::new(Kind::Internal, "stat x").because(io::Error::from_raw_os_error(errno));
        let chains = |errno| {
            let inside = Error::new(Kind::Internal, "list x").because(io::Error::other(plain(errno)));
            [plain(errno), plain(errno).context("read y"), plain(errno).context("read y").context("serve z"), inside]
        };
        let root = Path::new("/pool");
        for errno in
            [libc::EIO, libc::ENODEV, libc::ENXIO, libc::ESHUTDOWN, libc::ESTALE, libc::EUCLEAN, libc::ENOTCONN]
        {
            for error in chains(errno) {
                assert!(is_dead(&error), "{}", error.chain());
                let said: Result<()> = Err(explained(&"default", root, error));
                refused(said, Kind::Unavailable, &["pool default at /pool failed", "stat x", "dmesg"]);
            }
        }
        for errno in [libc::ENOENT, libc::ENOSPC, libc::EACCES, libc::EMFILE] {
            for error in chains(errno) {
                assert!(!is_dead(&error), "{}", error.chain());
                assert_eq!(explained(&"default", root, error).kind(), Kind::Internal);
            }
        }
        assert!(!is_dead(&Error::new(Kind::Internal, "no cause")));
    }

    #[test]
    fn a_part_of_the_pool_that_is_mounted_over_is_unavailable() {
        let scratch = Scratch::new(PoolFs::Xfs);
        let pool = scratch.pool();
        make(&*pool);
        let volumes = scratch.root().join("volumes");
        scratch.os().mount(Path::new("none"), &volumes, "tmpfs", MountFlags::default(), "").unwrap();
        refused(pool.list(ObjectKind::Volume), Kind::Unavailable, &["volumes", "mounted over"]);
        refused(pool.read_record(volume()), Kind::Unavailable, &["mounted over"]);
        refused(pool.remove(volume()), Kind::Unavailable, &["mounted over"]);
        let made = pool.create(Object::Volume(ObjectUuid::of_volume("b")), &THICK, Fill::Blank, b"{}");
        assert_eq!(made.unwrap_err().error().kind(), Kind::Unavailable);
        assert_eq!(fs::read_dir(&volumes).unwrap().count(), 0);
        scratch.os().unmount(&volumes).unwrap();
        pool.remove(volume()).unwrap();
    }
}
