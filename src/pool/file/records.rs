//! Records: bytes that this module stores and does not interpret.

use super::super::{Object, ObjectKind};
use super::FilePool;
use super::plain::Plain;
use crate::os::Entry;
use crate::types::{Error, Kind, ObjectUuid, OsContext, Result};

/// How often an object without a record must be seen before its record counts as lost. Each attempt could have met an
/// object that was removed and created again meanwhile.
const LOOKS: usize = 4;

impl FilePool {
    /// All objects whose name exists, without reading them. An object without a record is reported when it is read.
    pub(super) fn list_class(
        &self,
        class: ObjectKind,
        after: Option<ObjectUuid>,
        most: usize,
    ) -> Result<Vec<ObjectUuid>> {
        let directory = self.layout.class(class);
        let names = self.os.list_dir(&directory).at(|| format!("list {}", directory.display()))?;
        let missing = || self.os.entry(&directory).at(|| format!("stat {}", directory.display()));
        if names.is_empty() && missing()? != Some(Entry::Directory) {
            return Err(Error::new(
                Kind::Unavailable,
                format!(
                    "pool {} has no directory {}, so it is not an empty pool; restore it from a backup or, if it was empty, mkdir it",
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

    /// Whether an object's directory exists.
    pub(super) fn exists(&self, object: Object) -> Result<bool> {
        let directory = self.layout.object(object);
        Ok(self.os.entry(&directory).at(|| format!("stat {}", directory.display()))?.is_some())
    }

    pub(super) fn not_found(&self, object: Object) -> Error {
        Error::new(Kind::NotFound, format!("{object} does not exist in pool {}", self.identity.name))
    }

    /// An object's record. One rename creates a name together with its record, and one rename removes both. A name
    /// without a record therefore changed between two reads, and is read again.
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

    /// Temporary file beside the record, fsync, rename, fsync of the directory. A crash leaves the old record or the
    /// new one, and perhaps a `.tmp` file that the next write replaces and removal removes. In a full pool the reserve
    /// is used.
    pub(super) fn replace_record(&self, object: Object, record: &[u8]) -> Result<()> {
        let directory = self.layout.object(object);
        match self.os.entry(&directory).at(|| format!("stat {}", directory.display()))? {
            Some(Entry::Directory) => {}
            None => return Err(self.not_found(object)),
            Some(_) => {
                return Err(Error::new(
                    Kind::Corrupt,
                    format!(
                        "{} is not a directory, so Holdfast did not create it; inspect it and move it away",
                        directory.display()
                    ),
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
                "pool {} ({}) is full, so the record cannot be written; free space there, or delete a volume that is not used, then retry",
                self.identity.name, self.identity.place
            ))
        })
    }
}
