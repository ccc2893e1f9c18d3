//! Records: bytes this room keeps and never reads.

use super::super::{Class, Object};
use super::FilePool;
use super::plain::Plain;
use crate::os::Entry;
use crate::types::{Error, Kind, ObjectUuid, OsContext, Result};

/// How often a name has to be there without a record before the record counts as lost: for each look in vain that was
/// only bad luck, the name has been made and removed once more.
const LOOKS: usize = 4;

impl FilePool {
    /// Whatever has an object's name, without a look at it: one that lost its record is found when it is read.
    pub(super) fn list_class(&self, class: Class, after: Option<ObjectUuid>, most: usize) -> Result<Vec<ObjectUuid>> {
        let directory = self.layout.class(class);
        let names = self.os.list_dir(&directory).at(|| format!("list {}", directory.display()))?;
        let missing = || self.os.entry(&directory).at(|| format!("look at {}", directory.display()));
        if names.is_empty() && missing()? != Some(Entry::Directory) {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "pool {} misses its directory {}: that is no empty pool; restore it from a backup or, if nothing was in it, mkdir it",
                    self.identity.name,
                    directory.display()
                ),
            ));
        }
        let mut uuids: Vec<ObjectUuid> = names.iter().filter_map(|name| name.parse().ok()).collect();
        uuids.retain(|uuid| after.is_none_or(|after| *uuid > after));
        uuids.sort_unstable();
        uuids.truncate(most);
        Ok(uuids)
    }

    /// Whether an object's directory is in place.
    pub(super) fn exists(&self, object: Object) -> Result<bool> {
        let directory = self.layout.object(object);
        Ok(self.os.entry(&directory).at(|| format!("look at {}", directory.display()))?.is_some())
    }

    pub(super) fn not_found(&self, object: Object) -> Error {
        Error::new(Kind::NotFound, format!("{object} does not exist in pool {}", self.identity.name))
    }

    /// An object's record. A name comes with its record and goes with it, in one rename each: one that is seen without
    /// has come or gone between two looks, and is looked at again.
    pub(super) fn record_of(&self, object: Object) -> Result<Option<Vec<u8>>> {
        let path = self.layout.record(object);
        for _ in 0..LOOKS {
            let record = self.os.read_plain(&path).plain("read", &path)?;
            if record.is_some() || !self.exists(object)? {
                return Ok(record);
            }
        }
        Err(Error::new(
            Kind::Corrupt,
            format!(
                "{object} has no record: {} is missing; restore it from a backup, or move {} away if the data is not needed",
                path.display(),
                self.layout.object(object).display()
            ),
        ))
    }

    /// Temporary beside the record, fsync, rename, fsync of the directory: a crash leaves the old record or the new,
    /// and perhaps a `.tmp` beside it, which the next write replaces and removal removes. Where there is no room for
    /// that, the reserve.
    pub(super) fn replace_record(&self, object: Object, record: &[u8]) -> Result<()> {
        let directory = self.layout.object(object);
        match self.os.entry(&directory).at(|| format!("look at {}", directory.display()))? {
            Some(Entry::Directory) => {}
            None => return Err(self.not_found(object)),
            Some(_) => {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!("{} is not a directory; Holdfast did not make it: look at it", directory.display()),
                ));
            }
        }
        let path = self.layout.record(object);
        let replaced = self.os.replace_file(&path, record).at(|| format!("write {}", path.display()));
        let Err(full) = replaced else { return Ok(()) };
        if full.kind() != Kind::NoCapacity {
            return Err(full);
        }
        self.replace_from_reserve(&path, record).map_err(|error| {
            if error.kind() != Kind::NoCapacity {
                return error;
            }
            full.context(format!(
                "pool {} ({}) is full, so what is to be recorded cannot be; free space there, or delete a volume that nobody uses, and ask again",
                self.identity.name, self.identity.place
            ))
        })
    }
}
