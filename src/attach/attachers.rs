//! All ways to attach volumes of a node.

use super::{Attach, Attached, Local, Wanted};
use crate::home::DeviceAddress;
use crate::os::DevNum;
use crate::types::{Error, Kind, Result, VolumeId};

/// Attaches by the device's address. The other questions go to each way, because the kernel alone answers them: a volume
/// is detached and found also when nobody knows any more how it was attached.
pub struct Attachers {
    local: Local,
}

impl Attachers {
    /// With the ways of this node.
    #[must_use]
    pub fn new(local: Local) -> Self {
        Self { local }
    }

    fn all(&self) -> [&dyn Attach; 1] {
        [&self.local]
    }

    fn first<T>(&self, ask: impl Fn(&dyn Attach) -> Result<Option<T>>) -> Result<Option<T>> {
        for way in self.all() {
            if let Some(found) = ask(way)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

impl Attach for Attachers {
    fn attach(&self, volume: &VolumeId, wanted: &Wanted) -> Result<Attached> {
        match &wanted.at {
            DeviceAddress::Local { .. } => self.local.attach(volume, wanted),
            DeviceAddress::NvmeTcp(_) => Err(Error::new(
                Kind::Unsupported,
                format!("volume {volume} is exported by another node, and this node cannot use exports"),
            )),
        }
    }

    fn detach(&self, volume: &VolumeId) -> Result<()> {
        self.all().into_iter().try_for_each(|way| way.detach(volume))
    }

    fn device_of(&self, volume: &VolumeId) -> Result<Option<DevNum>> {
        self.first(|way| way.device_of(volume))
    }

    fn volume_of(&self, device: DevNum) -> Result<Option<VolumeId>> {
        self.first(|way| way.volume_of(device))
    }
}
