//! How a node attaches and detaches a volume's block device.
//!
//! A new way to attach volumes is one file here, and one arm in [`Attachers`].

mod attachers;
mod local;
mod nvme_tcp;
mod read_only;

pub use attachers::Attachers;
pub use local::Local;
pub use nvme_tcp::NvmeTcp;
pub use read_only::ReadOnlyViews;

use crate::home::{Connection, DeviceAddress, OpenVolume};
use crate::os::{BlockDevice, DevNum, Os};
use crate::types::{Bytes, Error, Kind, OsContext, Result, VolumeId};

/// The expected device of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The device's address.
    pub at: DeviceAddress,
    /// Minimum size, bytes: larger while an expansion is being recorded, never smaller.
    pub size: Bytes,
    /// Logical block size, bytes.
    pub block_size: u32,
    /// The connection that this node had when the home node opened the volume. What it left has ended; a connection that
    /// was lost later may have left something, so none is made in its place before the home node has opened the volume
    /// again.
    pub connection: Option<Connection>,
}

impl From<&OpenVolume> for Wanted {
    fn from(opened: &OpenVolume) -> Self {
        Self { at: opened.at.clone(), size: opened.size, block_size: opened.block_size, connection: opened.connection }
    }
}

/// A volume's device, open and verified. While this value exists, the kernel cannot give the number to another image.
#[derive(Debug)]
pub struct Attached {
    /// The open device.
    pub device: BlockDevice,
    /// Its size when it was attached.
    pub size: Bytes,
    /// The kernel's sequence number of this attachment (BLKGETDISKSEQ); `None` before Linux 5.15.
    pub diskseq: Option<u64>,
}

/// A way to attach volumes. All calls block and are idempotent.
pub trait Attach: Send + Sync {
    /// Opens a volume's device and verifies through the open descriptor that it is the complete device of this volume.
    ///
    /// # Errors
    /// `Busy` when the device is gone or has another image; asking the home again finds the right one.
    /// `Corrupt` when it is smaller than the record says or has another block size; `Internal`.
    fn attach(&self, volume: &VolumeId, wanted: &Wanted) -> Result<Attached>;

    /// Detaches the device and verifies that it is gone, also when the home no longer knows the volume.
    ///
    /// # Errors
    /// `InUse` naming the user; `Busy`, `Internal`.
    fn detach(&self, volume: &VolumeId) -> Result<()>;

    /// The device of a volume on this node: the topmost one over its data.
    ///
    /// # Errors
    /// `Corrupt` when there are two such devices, `Precondition` when one is foreign, `Internal`.
    fn device_of(&self, volume: &VolumeId) -> Result<Option<DevNum>>;

    /// The volume of a device on this machine. Opens no foreign device.
    ///
    /// # Errors
    /// `Internal`, also when the device does not respond.
    fn volume_of(&self, device: DevNum) -> Result<Option<VolumeId>>;
}

/// The size of an open device, which has at least the size of the record, and its block size. `short` is the next step
/// where it is smaller.
///
/// # Errors
/// `Corrupt` when the device differs; `Internal`.
fn verified(os: &Os, device: &BlockDevice, volume: &VolumeId, wanted: &Wanted, short: &str) -> Result<Bytes> {
    let shown = device.path().display();
    let size = Bytes::new(os.device_size(device).at(|| format!("read the size of {shown}"))?);
    if size < wanted.size {
        let (is, should) = (size.get(), wanted.size.get());
        return Err(Error::new(
            Kind::Corrupt,
            format!(
                "{shown} of volume {volume} has {is} bytes, but its record says {should}; nothing was written; {short}"
            ),
        ));
    }
    let block_size = os.device_block_size(device).at(|| format!("read the block size of {shown}"))?;
    if block_size != wanted.block_size {
        return Err(Error::new(
            Kind::Corrupt,
            format!(
                "{shown} of volume {volume} has a block size of {block_size} bytes, but its record says {}; nothing was written; detach the volume and attach it again",
                wanted.block_size
            ),
        ));
    }
    Ok(size)
}
