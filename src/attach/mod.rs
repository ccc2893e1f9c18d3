//! How a node comes to hold a volume's block device, and lets go of it.
//!
//! A new way to reach volumes is one file here and one arm in the caller that chooses by [`Coordinates`].

mod linear;
mod local;
mod read_only;

pub use linear::{Linear, LinearDevice};
pub use local::Local;
pub use read_only::ReadOnlyViews;

use crate::home::{Coordinates, Opened};
use crate::os::{BlockDevice, DevNum};
use crate::types::{Bytes, Result, VolumeId};

/// What the device of a volume must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Where it is.
    pub at: Coordinates,
    /// Its size at least, bytes: more while an expansion is being recorded, never less.
    pub size: Bytes,
    /// Its logical block size, bytes.
    pub block_size: u32,
}

impl From<&Opened> for Wanted {
    fn from(opened: &Opened) -> Self {
        Self { at: opened.at.clone(), size: opened.size, block_size: opened.block_size }
    }
}

/// A volume's device, open and verified: while it lives, its number cannot be given to another image.
#[derive(Debug)]
pub struct Attached {
    /// The open device.
    pub device: BlockDevice,
    /// Its size when it was attached.
    pub size: Bytes,
    /// The kernel's number of this attachment (BLKGETDISKSEQ); `None` before Linux 5.15.
    pub diskseq: Option<u64>,
}

/// A way to reach volumes. All calls block and are idempotent.
pub trait Attach: Send + Sync {
    /// Opens a volume's device and proves through the open descriptor that it is this volume's, whole.
    ///
    /// # Errors
    /// `Busy` when the device is gone or shows something else by now: asking the home again finds the right one.
    /// `Corrupt` when it is smaller than the record says or has another block size; `Internal`.
    fn attach(&self, volume: &VolumeId, wanted: &Wanted) -> Result<Attached>;

    /// Takes the device away, and proves it; also when the home does not know the volume any more.
    ///
    /// # Errors
    /// `InUse` naming what holds it; `Busy`, `Internal`.
    fn detach(&self, volume: &VolumeId) -> Result<()>;

    /// The device that shows a volume here now: the top of what lies over its data.
    ///
    /// # Errors
    /// `Corrupt` when two devices do, `Precondition` when one does that is not ours, `Internal`.
    fn device_of(&self, volume: &VolumeId) -> Result<Option<DevNum>>;

    /// The volume that a device of this machine shows. Opens no device of others.
    ///
    /// # Errors
    /// `Internal`, also when the device does not answer.
    fn volume_of(&self, device: DevNum) -> Result<Option<VolumeId>>;
}
