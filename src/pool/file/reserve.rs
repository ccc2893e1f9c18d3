//! Space for records in a full pool. Replacing a record needs a new file: an inode and blocks, which a full pool does
//! not have. Volumes in it must still be attached, detached and deleted. The pool therefore holds one file with
//! allocated space. A record that cannot be replaced is written into that file, and the two files exchange their names
//! in one step. The new record is then in place, and the old record's inode is the reserve. This needs no inode, no
//! block and no directory entry, and frees nothing that another process could take. (On btrfs the reserve's space is
//! freed instead.)
//!
//! Only records are replaced through the reserve; it never creates an object or extends an image.

use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::FilePool;
use super::filesystem::{Filesystem, cannot};
use super::plain::Plain;
use crate::os::Entry;
use crate::types::{Error, Kind, OsContext, Result};

/// Size of the reserve in bytes: as much as the largest record that is read.
const SIZE: u64 = 1 << 20;

/// State of the reserve. Its lock is held while the reserve is used.
#[derive(Debug, Default)]
pub(super) struct Reserve(Mutex<Held>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Held {
    /// Not checked yet, or there was not enough space for all of it.
    #[default]
    Short,
    Whole,
}

impl FilePool {
    /// Creates the reserve, or restores its size, where it is not complete. Without space for it, it stays as it is
    /// until the next change in the pool. A crash leaves it incomplete: the next open completes it.
    pub(super) fn hold_reserve(&self) {
        let mut held = self.reserved();
        if *held == Held::Whole {
            return;
        }
        match self.fill_reserve() {
            Ok(()) => *held = Held::Whole,
            Err(error) => {
                tracing::debug!(pool = %self.identity.name, error = %error.chain(), "the reserve for records is not complete")
            }
        }
    }

    /// Replaces a record when there is no space for a new file.
    ///
    /// # Errors
    /// `NoCapacity` when the reserve cannot hold the record; `Internal`. The old record is then in place, unless only
    /// an fsync of a directory failed.
    pub(super) fn replace_from_reserve(&self, path: &Path, record: &[u8]) -> Result<()> {
        let mut held = self.reserved();
        *held = Held::Short;
        let reserve = self.layout.reserve();
        let none = || Error::new(Kind::NoCapacity, format!("the reserve {} does not exist", reserve.display()));
        let file = self.os.open_image(&reserve).plain("open", &reserve)?.ok_or_else(none)?;
        match self.filesystem {
            Filesystem::Btrfs => self.give_up(&file, &reserve, path, record)?,
            Filesystem::Xfs | Filesystem::Ext4 | Filesystem::Fuse => self.exchange(&file, &reserve, path, record)?,
        }
        drop(file);
        if self.fill_reserve().is_ok() {
            *held = Held::Whole;
        }
        Ok(())
    }

    /// 1. Write the record into the reserve, truncate it to the record's length, fsync. A crash leaves the old record
    ///    in place, and a reserve with this one, which is never read.
    /// 2. Exchange the names of the record and the reserve. A crash leaves one of the two complete records in place.
    /// 3. fsync both directories. The reserve is now the old record's file, and is extended again if there is space.
    fn exchange(&self, file: &File, reserve: &Path, path: &Path, record: &[u8]) -> Result<()> {
        if self.os.entry(path).at(|| format!("stat {}", path.display()))? != Some(Entry::File) {
            return Err(Error::new(
                Kind::NoCapacity,
                format!("{} does not exist, so it cannot be replaced", path.display()),
            ));
        }
        self.os.write_over(file, reserve, record).at(|| format!("write {}", reserve.display()))?;
        self.os.exchange(reserve, path).at(|| format!("exchange {} and {}", reserve.display(), path.display()))?;
        self.sync_dir(path.parent().unwrap_or(path))?;
        self.sync_dir(self.layout.root())
    }

    /// btrfs writes nothing in place and stores a small record beside its inode, so there the reserve only keeps space:
    /// it is truncated to zero, and the record is replaced as usual. A process that writes all the time may take the
    /// space first. A crash leaves the old record or the new one, and no reserve.
    fn give_up(&self, file: &File, reserve: &Path, path: &Path, record: &[u8]) -> Result<()> {
        self.os.write_over(file, reserve, &[]).at(|| format!("truncate {}", reserve.display()))?;
        self.os.replace_file(path, record).at(|| format!("write {}", path.display()))
    }

    /// Allocates all of the reserve, durably.
    fn fill_reserve(&self) -> Result<()> {
        let path = self.layout.reserve();
        let file = self.open_reserve(&path)?;
        let is = self.os.image_identity(&file, &path).at(|| format!("stat {}", path.display()))?;
        if is.size >= SIZE && is.allocated >= SIZE {
            return Ok(());
        }
        match self.os.allocate(&file, &path, SIZE) {
            // It has an inode and the blocks that were written: more is not possible here.
            Err(error) if cannot(&error) => {}
            result => result.at(|| format!("allocate {}", path.display()))?,
        }
        self.os.sync_file(&file, &path).at(|| format!("fsync {}", path.display()))?;
        self.sync_dir(self.layout.root())
    }

    fn open_reserve(&self, path: &Path) -> Result<File> {
        match self.os.open_image(path).plain("open", path)? {
            Some(file) => Ok(file),
            None => self.os.create_image(path).at(|| format!("create {}", path.display())),
        }
    }

    fn reserved(&self) -> MutexGuard<'_, Held> {
        self.reserve.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
