//! The pool of image files in a directory (docs/design.md section 7): the embedded default.
//!
//! One directory an object, its name the object's uuid, in it the image and the record. An object exists from the
//! rename that gives its directory this name to the one that takes it away. Images become block devices through loop
//! devices with direct I/O, which carry the uuid.
//!
//! On btrfs images are made without copy-on-write and thin only: space set aside there is not kept for a file that is
//! snapshotted. Two such files can share extents, so clones are reflinks where trying shows that they work.

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
mod records;
mod reserve;
mod strays;
#[cfg(test)]
mod tests;
mod trash;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

pub use self::identity::PoolFile;
pub use self::init::Claimed;
pub(in crate::pool) use self::orphans::{clear_orphans, orphan};

use self::filesystem::Filesystem;
use self::layout::Layout;
use self::reserve::Reserve;
use super::{
    Abilities, ActiveDevice, Blankness, Class, Deactivated, Fill, Geometry, Identity, ImageFacts, Object, Pool,
    Progress, Room, Stray,
};
use crate::os::{DevNum, ExtentSummary, Os, OwnerLock, Timestamp};
use crate::types::{Bytes, Error, Failure, Kind, ObjectUuid, OsContext, Result};

/// A pool of image files.
#[derive(Debug)]
pub struct FilePool {
    os: Os,
    layout: Layout,
    identity: Identity,
    filesystem: Filesystem,
    abilities: Abilities,
    ownership: Ownership,
    /// The devices of volumes as they were last seen: looked at before all others, believed only while the kernel's
    /// sequence number is the same.
    hints: Mutex<HashMap<ObjectUuid, device::Known>>,
    /// As pool.json says.
    quarantine: Mutex<Option<Timestamp>>,
    reserve: Reserve,
}

/// Whether we may write.
#[derive(Debug)]
enum Ownership {
    /// We hold the lock.
    Owner { _lock: OwnerLock },
    /// We look on.
    View,
}

impl FilePool {
    /// Refuses what a view must not do.
    fn owned(&self, what: &str) -> Result<()> {
        match self.ownership {
            Ownership::Owner { .. } => Ok(()),
            Ownership::View => Err(Error::new(
                Kind::Unsupported,
                format!(
                    "{what} in pool {}: this process only looks at the pool in {}; ask the daemon that owns it",
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

    fn quarantined(&self) -> Option<Timestamp> {
        *self.quarantine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_quarantine(&self, since: Option<Timestamp>) -> Result<()> {
        self.owned("change the quarantine")?;
        self.write_quarantine(since)
    }

    fn abilities(&self) -> Abilities {
        self.abilities
    }

    fn room(&self) -> Result<Room> {
        let space = self.os.fs_space(self.layout.root()).at(|| format!("statfs {}", self.identity.place))?;
        let counted = |count| (space.inodes > 0).then_some(count);
        Ok(Room {
            total: Bytes::new(space.total),
            available: Bytes::new(space.available),
            inodes: counted(space.inodes),
            inodes_free: counted(space.inodes_free),
        })
    }

    fn list(&self, class: Class) -> Result<Vec<ObjectUuid>> {
        self.list_class(class, None, usize::MAX)
    }

    fn list_after(&self, class: Class, after: Option<ObjectUuid>, most: usize) -> Result<Vec<ObjectUuid>> {
        self.list_class(class, after, most)
    }

    fn read_record(&self, object: Object) -> Result<Option<Vec<u8>>> {
        self.record_of(object)
    }

    fn write_record(&self, object: Object, record: &[u8]) -> Result<()> {
        self.owned("write a record")?;
        self.replace_record(object, record)?;
        self.hold_reserve();
        Ok(())
    }

    fn create(&self, object: Object, geometry: &Geometry, fill: Fill, record: &[u8]) -> Result<(), Failure> {
        self.owned("create")?;
        self.create_object(object, geometry, fill, record)?;
        self.hold_reserve();
        Ok(())
    }

    fn copy(&self, from: Object, to: Object, start: Bytes, progress: &dyn Progress) -> Result<()> {
        self.owned("copy")?;
        self.copy_image(from, to, start, progress)
    }

    fn erase(&self, object: Object, start: Bytes, progress: &dyn Progress) -> Result<()> {
        self.owned("erase")?;
        self.erase_image(object, start, progress)
    }

    fn remove(&self, object: Object) -> Result<()> {
        self.owned("remove")?;
        self.remove_object(object)?;
        self.hold_reserve();
        Ok(())
    }

    fn sweep(&self) -> Result<()> {
        self.owned("sweep")?;
        self.sweep_all()
    }

    fn facts(&self, object: Object) -> Result<Option<ImageFacts>> {
        self.facts_of(object)
    }

    fn extents(&self, object: Object) -> Result<ExtentSummary> {
        self.extents_of(object)
    }

    fn extent_count(&self, object: Object) -> Result<u64> {
        self.count_extents(object)
    }

    fn blankness(&self, volume: ObjectUuid) -> Result<Blankness> {
        self.blankness_of(volume)
    }

    fn blank(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<()> {
        self.owned("blank")?;
        self.blank_image(volume, geometry)
    }

    fn grow(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<()> {
        self.owned("grow")?;
        self.grow_image(volume, geometry)
    }

    fn activate(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<ActiveDevice> {
        self.owned("activate")?;
        self.attach(volume, geometry)
    }

    fn active(&self, volume: ObjectUuid) -> Result<Option<ActiveDevice>> {
        self.attached(volume)
    }

    fn volume_of(&self, device: DevNum) -> Result<Option<ObjectUuid>> {
        self.shown_by(device)
    }

    fn active_devices(&self) -> Result<Vec<(ObjectUuid, ActiveDevice)>> {
        self.all_attached()
    }

    fn claim_device(&self, volume: ObjectUuid, device: &ActiveDevice) -> Result<()> {
        self.recall(volume, device)
    }

    fn disclaim_device(&self, volume: ObjectUuid) {
        self.release_number(volume);
    }

    fn resize_device(&self, volume: ObjectUuid, geometry: &Geometry) -> Result<()> {
        self.owned("resize a device")?;
        self.resize_attached(volume, geometry)
    }

    fn deactivate(&self, volume: ObjectUuid) -> Result<Deactivated> {
        self.owned("deactivate")?;
        self.detach(volume)
    }

    fn strays(&self) -> Result<Vec<Stray>> {
        self.find_strays()
    }
}
