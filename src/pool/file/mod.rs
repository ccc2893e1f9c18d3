//! The pool of image files in a directory (docs/design.md section 7): the built-in default.
//!
//! Each object has one directory, named by the object's uuid, with the image and the record. An object exists from the
//! rename that gives the directory this name until the rename that removes it. Images become block devices through loop
//! devices with direct I/O, which carry the uuid.
//!
//! On btrfs, images are created without copy-on-write and thin only: btrfs does not keep reserved space for a file
//! after a snapshot. Two such files can share extents, so clones are reflinks where the test at open shows that they
//! work.

mod copy;
mod create;
mod device;
#[cfg(test)]
mod faults;
mod filesystem;
mod identity;
mod image;
mod init;
mod layout;
mod orphans;
mod plain;
mod presence;
mod records;
mod reserve;
mod strays;
#[cfg(test)]
mod tests;
mod trash;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

pub use self::identity::PoolFile;
pub use self::init::Claimed;
pub(in crate::pool) use self::orphans::{clear_orphans, orphan};

use self::filesystem::Filesystem;
use self::layout::Layout;
use self::presence::Presence;
use self::reserve::Reserve;
use super::{
    Abilities, ActiveDevice, BackingFs, Blankness, Deactivated, Fill, FreeSpace, Geometry, Identity, ImageFacts,
    LocalDevices, Object, ObjectKind, Pool, Progress, Stable, StoredRecord, Stray, Version,
};
use crate::os::{DevNum, ExtentSummary, Os, OwnerLock, Root, Timestamp};
use crate::types::{Bytes, Changed, Error, Failure, Kind, ObjectUuid, OsContext, Result};

/// A pool of image files.
#[derive(Debug)]
pub(in crate::pool) struct FilePool {
    /// Resolves paths at or below the pool's root in the open root directory.
    os: Os,
    /// Resolves paths as they are on the machine now.
    outside: Os,
    root: Arc<Root>,
    presence: Presence,
    /// A read lock for all work in the pool; the write lock to close it.
    using: RwLock<()>,
    layout: Layout,
    identity: Identity,
    filesystem: Filesystem,
    abilities: Abilities,
    ownership: Ownership,
    /// The devices of volumes as last seen. They are checked first, and are valid only while the kernel's sequence
    /// number is the same.
    hints: Mutex<HashMap<ObjectUuid, device::Known>>,
    /// The state in pool.json.
    quarantine: Mutex<Option<Timestamp>>,
    /// Held while that state is written to the disk, which may hang.
    changing: Mutex<()>,
    reserve: Reserve,
}

/// Whether this process may write.
#[derive(Debug)]
enum Ownership {
    /// Yes: it holds the lock, unless the pool disappeared.
    Owner { lock: Mutex<Option<OwnerLock>> },
    /// No: it only reads.
    View,
}

impl FilePool {
    /// Returns an error for an operation that a view must not do.
    fn owned(&self, what: &str) -> Result<()> {
        match self.ownership {
            Ownership::Owner { .. } => Ok(()),
            Ownership::View => Err(Error::new(
                Kind::Unsupported,
                format!(
                    "cannot {what} in pool {}: this process opened the pool in {} only for reading; use the driver that serves it",
                    self.identity.name, self.identity.place
                ),
            )),
        }
    }
}

impl Pool for FilePool {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn present(&self) -> Result<()> {
        self.look()
    }

    fn find_again(&self) -> Result<()> {
        Self::find_again(self)?;
        let _using = self.begin();
        self.hold_reserve();
        Ok(())
    }

    fn quarantined(&self) -> Option<Timestamp> {
        *self.quarantine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_quarantine(&self, since: Option<Timestamp>) -> Result<()> {
        let _using = self.begin();
        self.owned("change the quarantine")?;
        self.write_quarantine(since)
    }

    fn abilities(&self) -> Abilities {
        self.abilities
    }

    fn room(&self) -> Result<FreeSpace> {
        let _using = self.begin();
        let space = self.os.fs_space(self.layout.root()).at(|| format!("statfs {}", self.identity.place))?;
        let counted = |count| (space.inodes > 0).then_some(count);
        Ok(FreeSpace {
            total: Bytes::new(space.total),
            available: Bytes::new(space.available),
            inodes: counted(space.inodes),
            inodes_free: counted(space.inodes_free),
        })
    }

    fn list(&self, class: ObjectKind) -> Result<Vec<ObjectUuid>> {
        let _using = self.begin();
        self.list_class(class, None, usize::MAX)
    }

    fn list_after(&self, class: ObjectKind, after: Option<ObjectUuid>, most: usize) -> Result<Vec<ObjectUuid>> {
        let _using = self.begin();
        self.list_class(class, after, most)
    }

    fn read_record(&self, object: Object) -> Result<Option<StoredRecord>> {
        let _using = self.begin();
        Ok(self.record_of(object)?.map(|text| StoredRecord { text, version: Version::ONE_WRITER }))
    }

    fn write_record(&self, object: Object, record: &[u8], replaces: Version) -> Result<Version> {
        let _using = self.begin();
        self.owned("write a record")?;
        self.replace_record(object, record)?;
        self.hold_reserve();
        Ok(replaces)
    }

    fn create(&self, object: Object, geometry: &Geometry, fill: Fill, record: &[u8]) -> Result<(), Failure> {
        let _using = self.begin();
        self.owned("create")?;
        self.create_object(object, geometry, fill, record)?;
        self.hold_reserve();
        Ok(())
    }

    fn copy(&self, from: Object, to: Object, start: Bytes, progress: &dyn Progress) -> Result<()> {
        let _using = self.begin();
        self.owned("copy")?;
        self.copy_image(from, to, start, progress)
    }

    fn erase(&self, object: Object, start: Bytes, progress: &dyn Progress) -> Result<()> {
        let _using = self.begin();
        self.owned("erase")?;
        self.erase_image(object, start, progress)
    }

    fn remove(&self, object: Object) -> Result<()> {
        let _using = self.begin();
        self.owned("remove")?;
        self.remove_object(object)?;
        self.hold_reserve();
        Ok(())
    }

    fn sweep(&self) -> Result<()> {
        let _using = self.begin();
        self.owned("sweep")?;
        self.sweep_all()
    }

    fn facts(&self, object: Object) -> Result<Option<ImageFacts>> {
        let _using = self.begin();
        self.facts_of(object)
    }

    fn extents(&self, object: Object) -> Result<ExtentSummary> {
        let _using = self.begin();
        self.extents_of(object)
    }

    fn extent_count(&self, object: Object) -> Result<u64> {
        let _using = self.begin();
        self.count_extents(object)
    }

    fn blankness(&self, volume: ObjectUuid) -> Result<Blankness> {
        let _using = self.begin();
        self.blankness_of(volume)
    }

    fn blank(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<()> {
        let _using = self.begin();
        self.owned("blank")?;
        self.blank_image(volume, geometry)
    }

    fn grow(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<()> {
        let _using = self.begin();
        self.owned("grow")?;
        self.grow_image(volume, geometry)
    }

    fn devices(&self) -> Option<&dyn LocalDevices> {
        Some(self)
    }

    fn view(&self) -> Result<Arc<dyn Pool>> {
        Ok(Self::view(&self.outside, self.layout.root())?)
    }

    fn locate(&self, object: Object) -> String {
        self.layout.object(object).display().to_string()
    }

    fn strays(&self) -> Result<Vec<Stray>> {
        let _using = self.begin();
        self.find_strays()
    }
}

impl LocalDevices for FilePool {
    fn activate(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<ActiveDevice> {
        let _using = self.begin();
        self.owned("activate")?;
        self.attach(volume, geometry)
    }

    fn active(&self, volume: ObjectUuid) -> Result<Option<ActiveDevice>> {
        let _using = self.begin();
        self.attached(volume)
    }

    fn volume_of(&self, device: DevNum) -> Result<Option<ObjectUuid>> {
        self.shown_by(device)
    }

    fn all(&self) -> Result<Vec<(ObjectUuid, ActiveDevice)>> {
        self.all_attached()
    }

    fn claim(&self, volume: ObjectUuid, device: &ActiveDevice) -> Result<()> {
        self.recall(volume, device)
    }

    fn disclaim(&self, volume: ObjectUuid) {
        self.release_number(volume);
    }

    fn resize(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<()> {
        let _using = self.begin();
        self.owned("resize a device")?;
        self.resize_attached(volume, geometry)
    }

    fn set_stable(&self, volume: ObjectUuid, stable: Stable) -> Result<Changed> {
        let _using = self.begin();
        self.owned("change how a volume is written")?;
        self.set_synchronous(volume, stable)
    }

    fn stable(&self, volume: ObjectUuid) -> Result<Stable> {
        let _using = self.begin();
        self.is_synchronous(volume)
    }

    fn deactivate(&self, volume: ObjectUuid) -> Result<Deactivated> {
        let _using = self.begin();
        self.owned("deactivate")?;
        self.detach(volume)
    }
}
