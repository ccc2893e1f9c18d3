//! Room for records in a full pool. Replacing a record takes a new file, and so an inode and blocks, which a pool that
//! somebody filled to the last does not have; a volume there must be attached, detached and deleted all the same. The
//! pool therefore holds one file with space behind it. A record that cannot be replaced is written into that file, and
//! the two change names in one step: the new record is in place and the old one's inode is the reserve. That takes no
//! inode, no block and no directory entry, and leaves nothing free in between for somebody else to take. (On btrfs the
//! file's space is given up instead.)
//!
//! Only what replaces a record comes here, never what makes an object or an image longer.

use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::FilePool;
use super::filesystem::{Filesystem, cannot};
use super::plain::Plain;
use crate::os::Entry;
use crate::types::{Error, Kind, OsContext, Result};

/// What the reserve holds, bytes: as much as the largest record that is read.
const SIZE: u64 = 1 << 20;

/// How much of it there is. Its lock is held by who uses it.
#[derive(Debug, Default)]
pub(super) struct Reserve(Mutex<Held>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Held {
    /// Nobody has looked, or there was no room for all of it.
    #[default]
    Short,
    Whole,
}

impl FilePool {
    /// Makes the reserve, or brings it back to its size, where it is not whole. Without room for it, it stays as it is
    /// until the next change in the pool. A crash leaves it short: the next open makes it whole.
    pub(super) fn hold_reserve(&self) {
        let mut held = self.reserved();
        if *held == Held::Whole {
            return;
        }
        match self.fill_reserve() {
            Ok(()) => *held = Held::Whole,
            Err(error) => {
                tracing::debug!(pool = %self.identity.name, error = %error.chain(), "the reserve for records is not whole")
            }
        }
    }

    /// Replaces a record when there is no room for a new file.
    ///
    /// # Errors
    /// `NoCapacity` where the reserve cannot take the record; `Internal`. The old record is then in place, unless only
    /// an fsync of a directory failed.
    pub(super) fn replace_from_reserve(&self, path: &Path, record: &[u8]) -> Result<()> {
        let mut held = self.reserved();
        *held = Held::Short;
        let reserve = self.layout.reserve();
        let none = || Error::new(Kind::NoCapacity, format!("there is no {}", reserve.display()));
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

    /// 1. Write the record into the reserve, cut it to its length, fsync. A crash leaves the old record in place, and a
    ///    reserve that holds this one: what is in it means nothing.
    /// 2. Exchange the names of the record and the reserve. A crash leaves one of the two whole in place.
    /// 3. fsync both directories. The reserve is now the old record's file, and gets its size back if there is room.
    fn exchange(&self, file: &File, reserve: &Path, path: &Path, record: &[u8]) -> Result<()> {
        if self.os.entry(path).at(|| format!("look at {}", path.display()))? != Some(Entry::File) {
            return Err(Error::new(Kind::NoCapacity, format!("{} is not there to be replaced", path.display())));
        }
        self.os.write_over(file, reserve, record).at(|| format!("write {}", reserve.display()))?;
        self.os.exchange(reserve, path).at(|| format!("exchange {} and {}", reserve.display(), path.display()))?;
        self.sync_dir(path.parent().unwrap_or(path))?;
        self.sync_dir(self.layout.root())
    }

    /// btrfs writes nothing in place and keeps a record beside its inode, so the reserve is only room: it is cut to
    /// nothing, and the record replaced as always. Somebody who writes all the while may be quicker. A crash leaves the
    /// old record or the new, and no reserve.
    fn give_up(&self, file: &File, reserve: &Path, path: &Path, record: &[u8]) -> Result<()> {
        self.os.write_over(file, reserve, &[]).at(|| format!("cut {}", reserve.display()))?;
        self.os.replace_file(path, record).at(|| format!("write {}", path.display()))
    }

    /// Space behind all of the reserve, durably.
    fn fill_reserve(&self) -> Result<()> {
        let path = self.layout.reserve();
        let file = self.open_reserve(&path)?;
        let is = self.os.image_identity(&file, &path).at(|| format!("stat {}", path.display()))?;
        if is.size >= SIZE && is.allocated >= SIZE {
            return Ok(());
        }
        match self.os.allocate(&file, &path, SIZE) {
            // It has an inode and what was written into it: all that can be had here.
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
